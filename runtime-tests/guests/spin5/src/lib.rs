//! A handler of a newer SDK, as its template makes it, which also asks others and uses what its
//! host gives it. The last part of the path says what.
use spin_sdk::http::{IntoResponse, Request, Response};
use spin_sdk::key_value::Store;
use spin_sdk::{http_component, sqlite, sqlite3, variables};

#[http_component]
async fn handle(request: Request) -> anyhow::Result<impl IntoResponse> {
    let (status, body) = match answer(&request).await {
        Ok(body) => (200, body),
        Err(error) => (500, format!("{error:?}\n")),
    };
    Ok(Response::builder().status(status).header("content-type", "text/plain").body(body).build())
}

async fn answer(request: &Request) -> anyhow::Result<String> {
    if let Some(url) = request.query().strip_prefix("ask=") {
        let response: Response = spin_sdk::http::send(Request::get(url)).await?;
        return Ok(format!("{} {}", response.status(), String::from_utf8_lossy(response.body())));
    }
    let argument = request.query().split_once('=').map_or("", |(_, value)| value);
    Ok(match request.path().rsplit('/').next().unwrap_or_default() {
        "variable" => variables::get(argument)?,
        "set" => {
            let (key, value) = argument.split_once(':').unwrap_or((argument, ""));
            Store::open_default()?.set(key, value.as_bytes())?;
            "set".to_owned()
        }
        "get" => match Store::open_default()?.get(argument)? {
            Some(value) => String::from_utf8(value)?,
            None => "none".to_owned(),
        },
        // SQL in the body of the request, by the interface of Spin 3 and by that of Spin 2.
        "sql" => {
            use sqlite3::{Connection, Value};
            let text = String::from_utf8(request.body().to_vec())?;
            let parameters: &[Value] = if text.contains("?1") { &[Value::Integer(7)] } else { &[] };
            let connection = Connection::open(argument)?;
            let rows = connection.execute(&text, parameters)?;
            let columns = rows.columns.join(",");
            let rows: String = rows.rows.iter().map(|row| format!("{:?}\n", row.values)).collect();
            let (changes, last) = (connection.changes(), connection.last_insert_rowid());
            format!("{columns}\n{rows}{changes} {last}\n")
        }
        "sql-2" => {
            let text = String::from_utf8(request.body().to_vec())?;
            let rows = sqlite::Connection::open(argument)?.execute(&text, &[])?;
            rows.rows.iter().map(|row| format!("{:?}\n", row.values)).collect()
        }
        _ => {
            let route = request.header("spin-component-route");
            format!("Hello from Spin 5 at {}", route.and_then(|it| it.as_str()).unwrap_or(""))
        }
    })
}
