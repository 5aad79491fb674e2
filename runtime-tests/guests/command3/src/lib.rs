//! A command of WASI 0.3. Its first argument says what it does.

use std::io::Write;

use wasip3::clocks::monotonic_clock::wait_for;
use wasip3::filesystem::types::{Descriptor, DescriptorFlags, OpenFlags, PathFlags};
use wasip3::{cli, wit_stream};

struct Command;

wasip3::cli::command::export!(Command);

impl wasip3::exports::cli::run::Guest for Command {
    async fn run() -> Result<(), ()> {
        let arguments = cli::environment::get_arguments();
        let arguments: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
        match arguments.as_slice() {
            [] => write("Hello from Wasm!\n").await,
            ["fail"] => return Err(()),
            ["exit", status] => cli::exit::exit_with_code(status.parse().unwrap_or(1)),
            ["trap"] => core::arch::wasm32::unreachable(),
            ["loop"] => loop {
                std::hint::black_box(1);
            },
            ["variables"] => {
                for (name, value) in cli::environment::get_environment() {
                    write(&format!("{name}={value}\n")).await;
                }
            }
            ["directory"] => {
                write(&cli::environment::get_initial_cwd().unwrap_or_default()).await;
            }
            ["input"] => {
                let (contents, _end) = cli::stdin::read_via_stream();
                let bytes = contents.collect().await;
                write(&String::from_utf8_lossy(&bytes)).await;
            }
            // Waits for two things at once.
            ["sleep"] => {
                write("ready\n").await;
                futures::join!(wait_for(3600 * 1_000_000_000), wait_for(1_000_000));
            }
            ["prompt"] => {
                print!("name: ");
                let _ = std::io::stdout().flush();
                wait_for(3600 * 1_000_000_000).await;
            }
            ["grow", mebibytes] => {
                let mut all: Vec<Vec<u8>> = Vec::new();
                for _ in 0..mebibytes.parse().unwrap_or(0) {
                    let mut more = Vec::new();
                    if more.try_reserve_exact(1 << 20).is_err() {
                        break;
                    }
                    more.resize(1 << 20, 1);
                    all.push(more);
                }
                write(&format!("{} MiB\n", all.len())).await;
            }
            ["read", path] => show(read(path).await).await,
            ["write", path] => show(create(path).await).await,
            ["ls", path] => show(list(path).await).await,
            _ => write("unknown\n").await,
        }
        Ok(())
    }
}

/// Writes by WASI 0.3. The standard library writes by WASI 0.2.
async fn write(text: &str) {
    let (mut out, contents) = wit_stream::new();
    let end = cli::stdout::write_via_stream(contents);
    out.write_all(text.as_bytes().to_vec()).await;
    drop(out);
    let _ = end.await;
}

async fn show(result: Result<String, String>) {
    write(&result.unwrap_or_else(|error| format!("error: {error}"))).await;
}

async fn open(path: &str, open: OpenFlags, flags: DescriptorFlags) -> Result<Descriptor, String> {
    let directories = wasip3::filesystem::preopens::get_directories();
    let inside = directories.iter().filter_map(|(directory, name)| {
        let rest = path.strip_prefix(name.trim_end_matches('/'))?;
        let rest = if rest.is_empty() { rest } else { rest.strip_prefix('/')? };
        Some((directory, name.len(), rest))
    });
    let (directory, _, rest) =
        inside.max_by_key(|it| it.1).ok_or_else(|| "no such directory".to_owned())?;
    let rest = if rest.is_empty() { "." } else { rest };
    let opened = directory.open_at(PathFlags::SYMLINK_FOLLOW, rest.to_owned(), open, flags).await;
    opened.map_err(|error| format!("{error:?}"))
}

async fn read(path: &str) -> Result<String, String> {
    let file = open(path, OpenFlags::empty(), DescriptorFlags::READ).await?;
    let (contents, end) = file.read_via_stream(0);
    let bytes = contents.collect().await;
    end.await.map_err(|error| format!("{error:?}"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

async fn create(path: &str) -> Result<String, String> {
    let file = open(path, OpenFlags::CREATE, DescriptorFlags::WRITE).await?;
    let (mut out, contents) = wit_stream::new();
    let end = file.write_via_stream(contents, 0);
    out.write_all(b"written".to_vec()).await;
    drop(out);
    end.await.map_err(|error| format!("{error:?}"))?;
    Ok("ok\n".into())
}

async fn list(path: &str) -> Result<String, String> {
    let directory = open(path, OpenFlags::DIRECTORY, DescriptorFlags::READ).await?;
    let (entries, end) = directory.read_directory();
    let mut names: Vec<String> = entries.collect().await.into_iter().map(|it| it.name).collect();
    end.await.map_err(|error| format!("{error:?}"))?;
    names.sort();
    Ok(names.join(" "))
}
