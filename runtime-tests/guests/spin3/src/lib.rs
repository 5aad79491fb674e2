//! A handler that shows what its host gives it. The last part of the path says what.
use anyhow::{anyhow, Result};
use spin_sdk::http::{IntoResponse, Method, Request, Response};
use spin_sdk::http_component;
use spin_sdk::key_value::Store;
use spin_sdk::sqlite::{Connection, Value};
use spin_sdk::variables;

#[http_component]
async fn handle(request: Request) -> Result<impl IntoResponse> {
    let (status, body) = match answer(&request).await {
        Ok(body) => (200, body),
        Err(error) => (500, format!("{error:?}\n")),
    };
    Ok(Response::builder().status(status).header("content-type", "text/plain").body(body).build())
}

async fn answer(request: &Request) -> Result<String> {
    let query = request.query().to_owned();
    let argument = query.split_once('=').map_or("", |(_, value)| value).to_owned();
    let what = request.path().rsplit('/').next().unwrap_or_default().to_owned();
    Ok(match what.as_str() {
        // The headers that the host has added.
        "headers" => {
            let mut lines: Vec<String> = request
                .headers()
                .filter(|(name, _)| name.starts_with("spin-"))
                .map(|(name, value)| format!("{name}: {}\n", value.as_str().unwrap_or("?")))
                .collect();
            lines.sort();
            lines.concat()
        }
        "variable" => variables::get(&argument)?,
        "env" => std::env::vars().map(|(name, value)| format!("{name}={value}\n")).collect(),
        "read" => std::fs::read_to_string(&argument)?,
        "write" => {
            std::fs::write(&argument, "written")?;
            "written".into()
        }
        "list" => {
            let mut names = Vec::new();
            for entry in std::fs::read_dir(&argument)? {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
            names.sort();
            names.join(" ")
        }
        "set" => {
            let (key, value) = argument.split_once(':').ok_or_else(|| anyhow!("no value"))?;
            Store::open_default()?.set(key, value.as_bytes())?;
            "set".into()
        }
        "get" => match Store::open_default()?.get(&argument)? {
            Some(value) => String::from_utf8(value)?,
            None => "none".into(),
        },
        "keys" => {
            let store = Store::open_default()?;
            let mut keys = store.get_keys()?;
            keys.sort();
            keys.join(" ")
        }
        "delete" => {
            let store = Store::open_default()?;
            store.delete(&argument)?;
            format!("{}", store.exists(&argument)?)
        }
        "open" => {
            Store::open(&argument)?;
            "open".into()
        }
        // SQL in the body of the request.
        "sql" => {
            let text = String::from_utf8(request.body().to_vec())?;
            let parameters: &[Value] = if text.contains("?1") { &[Value::Integer(7)] } else { &[] };
            let rows = Connection::open(&argument)?.execute(&text, parameters)?;
            let columns = rows.columns.join(",");
            let rows = rows.rows.iter().map(|row| format!("{:?}\n", row.values));
            format!("{columns}\n{}", rows.collect::<String>())
        }
        "fetch" => {
            let request = Request::builder().method(Method::Get).uri(argument).build();
            let response: Response = spin_sdk::http::send(request).await?;
            format!("{} {}", response.status(), String::from_utf8_lossy(response.body()))
        }
        // What this host does not offer.
        "redis" => {
            spin_sdk::redis::Connection::open("redis://127.0.0.1:6379")?;
            "redis".into()
        }
        "postgres" => {
            spin_sdk::pg::Connection::open("postgres://127.0.0.1")?;
            "postgres".into()
        }
        "mysql" => {
            spin_sdk::mysql::Connection::open("mysql://127.0.0.1")?;
            "mysql".into()
        }
        "log" => {
            eprintln!("logged: {argument}");
            "logged".into()
        }
        "trap" => panic!("the guest panics"),
        "" | "hello" => "Hello from Spin!".into(),
        body if *request.method() == Method::Post => {
            format!("{body} {}", request.body().len())
        }
        other => format!("Hello from {other}"),
    })
}
