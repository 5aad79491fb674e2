//! A handler of SDK 7 that shows what its host gives it. The last part of the path says what.
use spin_sdk::http::body::IncomingBodyExt;
use spin_sdk::http::{IntoResponse, Request, StatusCode};
use spin_sdk::http_service;
use spin_sdk::key_value::Store;
use spin_sdk::sqlite::{Connection, Value};
use spin_sdk::wasip3::filesystem::preopens::get_directories;
use spin_sdk::wasip3::filesystem::types::{Descriptor, DescriptorFlags, OpenFlags, PathFlags};

#[http_service]
async fn handle(request: Request) -> impl IntoResponse {
    match answer(request).await {
        Ok(body) => (StatusCode::OK, body),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

type Answer = Result<String, String>;

fn told(error: impl std::fmt::Debug) -> String {
    format!("{error:?}")
}

async fn answer(request: Request) -> Answer {
    let argument = request.uri().query().and_then(|query| query.split_once('='));
    let argument = argument.map_or("", |(_, value)| value).to_owned();
    let what = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    Ok(match what.as_str() {
        // The headers that the host has added.
        "headers" => {
            let headers = request.headers().iter();
            let headers = headers.filter(|(name, _)| name.as_str().starts_with("spin-"));
            let mut lines: Vec<String> = headers
                .map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap_or("?")))
                .collect();
            lines.sort();
            lines.concat()
        }
        "variable" => spin_sdk::variables::get(&argument).await.map_err(told)?,
        "env" => std::env::vars().map(|(name, value)| format!("{name}={value}\n")).collect(),
        // By WASI 0.2, as the standard library does.
        "std-read" => std::fs::read_to_string(&argument).map_err(told)?,
        "read" => read(&argument).await?,
        "write" => {
            open(&argument, OpenFlags::CREATE, DescriptorFlags::WRITE).await?;
            "written".into()
        }
        "list" => list(&argument).await?,
        "stat" => stat(&argument).await?,
        "set" => {
            let (key, value) = argument.split_once(':').ok_or("no value")?;
            store().await?.set(key, value.as_bytes()).await.map_err(told)?;
            "set".into()
        }
        "get" => match store().await?.get(&argument).await.map_err(told)? {
            Some(value) => String::from_utf8(value).map_err(told)?,
            None => "none".into(),
        },
        "keys" => {
            let mut keys = store().await?.get_keys().await.collect().await.map_err(told)?;
            keys.sort();
            keys.join(" ")
        }
        "delete" => {
            let store = store().await?;
            store.delete(&argument).await.map_err(told)?;
            format!("{}", store.exists(&argument).await.map_err(told)?)
        }
        "open" => {
            Store::open(&argument).await.map_err(told)?;
            "open".into()
        }
        // SQL in the body of the request.
        "sql" => {
            let body = request.into_body().bytes().await.map_err(told)?;
            let text = String::from_utf8(body.to_vec()).map_err(told)?;
            let with = text.contains("?1");
            let parameters = if with { vec![Value::Integer(7)] } else { Vec::new() };
            let connection = Connection::open(&argument).await.map_err(told)?;
            let result = connection.execute(text, parameters).await.map_err(told)?;
            let columns = result.columns().join(",");
            let rows = result.collect().await.map_err(told)?;
            let rows: String = rows.iter().map(|row| format!("{:?}\n", row.values)).collect();
            let (changes, last) =
                (connection.changes().await, connection.last_insert_rowid().await);
            format!("{columns}\n{rows}{changes} {last}\n")
        }
        // Many results that nobody reads.
        "held" => {
            let connection = Connection::open("default").await.map_err(told)?;
            let sql = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 3) \
                       SELECT zeroblob(4000000) FROM n";
            let mut held = Vec::new();
            loop {
                match connection.execute(sql.to_owned(), Vec::new()).await {
                    Ok(result) => held.push(result),
                    Err(error) => return Ok(format!("{} {error:?}", held.len())),
                }
            }
        }
        "changes" => {
            let connection = Connection::open(&argument).await.map_err(told)?;
            format!("{}", connection.changes().await)
        }
        // A socket that does nothing.
        "socket" => {
            use spin_sdk::wasip3::sockets::types::{IpAddressFamily, UdpSocket};
            format!("{}", UdpSocket::create(IpAddressFamily::Ipv4).is_ok())
        }
        "fetch" => {
            let response = spin_sdk::http::get(argument).await.map_err(told)?;
            let status = response.status();
            let body = response.into_body().bytes().await.map_err(told)?;
            format!("{} {}", status.as_u16(), String::from_utf8_lossy(&body))
        }
        // Something that this host does not offer.
        "redis" => {
            spin_sdk::redis::Connection::open("redis://127.0.0.1:6379").await.map_err(told)?;
            "redis".into()
        }
        "trap" => panic!("the guest panics"),
        _ => "Hello from Spin!".into(),
    })
}

async fn store() -> Result<Store, String> {
    Store::open_default().await.map_err(told)
}

/// The directory above a path, and the rest of the path.
fn place(path: &str) -> Result<(Descriptor, String), String> {
    let inside = get_directories().into_iter().filter_map(|(directory, name)| {
        let rest = path.strip_prefix(name.trim_end_matches('/'))?;
        let rest = if rest.is_empty() { rest } else { rest.strip_prefix('/')? };
        let rest = if rest.is_empty() { "." } else { rest };
        Some((directory, name.len(), rest.to_owned()))
    });
    let (directory, _, rest) = inside.max_by_key(|it| it.1).ok_or("no such directory")?;
    Ok((directory, rest))
}

/// Opens a file by WASI 0.3.
async fn open(path: &str, open: OpenFlags, flags: DescriptorFlags) -> Result<Descriptor, String> {
    let (directory, rest) = place(path)?;
    directory.open_at(PathFlags::SYMLINK_FOLLOW, rest, open, flags).await.map_err(told)
}

async fn read(path: &str) -> Answer {
    let file = open(path, OpenFlags::empty(), DescriptorFlags::READ).await?;
    let (contents, end) = file.read_via_stream(0);
    let bytes = contents.collect().await;
    end.await.map_err(told)?;
    String::from_utf8(bytes).map_err(told)
}

async fn list(path: &str) -> Answer {
    let directory = open(path, OpenFlags::DIRECTORY, DescriptorFlags::READ).await?;
    let (entries, end) = directory.read_directory();
    let mut names: Vec<String> = entries.collect().await.into_iter().map(|it| it.name).collect();
    end.await.map_err(told)?;
    names.sort();
    Ok(names.join(" "))
}

async fn stat(path: &str) -> Answer {
    let (directory, rest) = place(path)?;
    directory.metadata_hash_at(PathFlags::empty(), rest.clone()).await.map_err(told)?;
    let about = directory.stat_at(PathFlags::empty(), rest).await.map_err(told)?;
    Ok(format!("{:?} {}", about.type_, about.size))
}
