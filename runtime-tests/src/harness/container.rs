//! Containers, and the output of commands.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Outcome, Test, ensure, ensure_eq, wait_until};

/// The output and the exit code of a command.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) code: Option<i32>,
}

impl Output {
    pub(crate) fn of(command: Command) -> Outcome<Output> {
        Output::with_input(command, "")
    }

    /// Runs a command. The output goes to files, because a created container inherits the streams
    /// and would hold a pipe open.
    pub(crate) fn with_input(mut command: Command, input: &str) -> Outcome<Output> {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let base = std::env::temp_dir().join(format!("rt-tests-{}-{number}", std::process::id()));
        let [out, err] = ["out", "err"].map(|end| base.with_extension(end));
        command.stdout(File::create(&out)?).stderr(File::create(&err)?);
        if !input.is_empty() {
            command.stdin(Stdio::piped());
        }
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        let status = wait(&mut child)?;
        let read = |path: &PathBuf| {
            fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        };
        let stderr = without_notices(&read(&err)?);
        let output = Output { stdout: read(&out)?, stderr, code: status.code() };
        fs::remove_file(out)?;
        fs::remove_file(err)?;
        Ok(output)
    }

    pub(crate) fn success(self) -> Outcome<Output> {
        self.code(0)
    }

    pub(crate) fn code(self, code: i32) -> Outcome<Output> {
        ensure(
            self.code == Some(code),
            format!("exit status {:?}, not {code}: {}{}", self.code, self.stderr, self.stdout),
        )?;
        Ok(self)
    }

    pub(crate) fn stdout(self, expected: &str) -> Outcome<Output> {
        ensure(
            self.stdout == expected,
            format!("stdout: {:?}, not {expected:?}; stderr: {}", self.stdout, self.stderr),
        )?;
        Ok(self)
    }

    /// Expects a failure, with one line on standard error that contains these words.
    pub(crate) fn fails_with(self, words: &str) -> Outcome<Output> {
        ensure(self.code.is_some_and(|code| code != 0), format!("it succeeded: {}", self.stdout))?;
        ensure(self.stderr.contains(words), format!("no {words:?} in: {}", self.stderr))?;
        ensure_eq(self.stderr.matches('\n').count(), 1)?;
        Ok(self)
    }
}

/// The limit for every command. A command that takes longer is killed, and its test fails.
const LONGEST: Duration = Duration::from_secs(600);

fn wait(child: &mut Child) -> Outcome<ExitStatus> {
    let end = Instant::now() + LONGEST;
    let mut pause = Duration::from_micros(100);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > end {
            child.kill()?;
            child.wait()?;
            return Err(format!("it did not end within {LONGEST:?}").into());
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// A created container. The end of its test deletes it.
#[derive(Debug)]
pub(crate) struct Container<'a> {
    pub(crate) test: &'a Test,
    pub(crate) id: String,
    out: PathBuf,
    err: PathBuf,
}

impl<'a> Container<'a> {
    /// Runs a command that makes the container.
    pub(crate) fn create(test: &'a Test, id: &str, command: Command) -> Outcome<Container<'a>> {
        let [out, err] =
            ["out", "err"].map(|end| File::create(test.folder.join(format!("{id}.{end}"))));
        Container::create_writing_to(test, id, command, [out?.into(), err?.into()])
    }

    /// Runs a command with other streams. Somebody else writes their content to the files.
    pub(crate) fn create_writing_to(
        test: &'a Test,
        id: &str,
        mut command: Command,
        [stdout, stderr]: [Stdio; 2],
    ) -> Outcome<Container<'a>> {
        let [out, err] = ["out", "err"].map(|end| test.folder.join(format!("{id}.{end}")));
        let status = command.stdout(stdout).stderr(stderr).status()?;
        // This closes our end of a pipe.
        drop(command);
        let container = Container { test, id: id.to_owned(), out, err };
        ensure(status.success(), format!("create: {status}: {}", container.stderr()?))?;
        Ok(container)
    }

    /// A container that another command makes or has made. Its output goes elsewhere.
    pub(crate) fn named(test: &'a Test, id: &str) -> Container<'a> {
        let [out, err] = ["out", "err"].map(|end| test.folder.join(format!("{id}.{end}")));
        Container { test, id: id.to_owned(), out, err }
    }

    pub(crate) fn rt(&self, args: &[&str]) -> Outcome<Output> {
        self.test.rt(args.iter().copied().chain([self.id.as_str()]))
    }

    pub(crate) fn start(&self) -> Outcome {
        self.rt(&["start"])?.success().map(drop)
    }

    pub(crate) fn kill(&self, signal: &str) -> Outcome {
        self.test.rt(["kill", &self.id, signal])?.success().map(drop)
    }

    pub(crate) fn delete(&self) -> Outcome {
        self.rt(&["delete"])?.success().map(drop)
    }

    pub(crate) fn state(&self) -> Outcome<Value> {
        let output = self.rt(&["state"])?.success()?;
        Ok(serde_json::from_str(&output.stdout)?)
    }

    pub(crate) fn status(&self) -> Outcome<String> {
        Ok(self.state()?["status"].as_str().unwrap_or_default().to_owned())
    }

    pub(crate) fn pid(&self) -> Outcome<i32> {
        Ok(i32::try_from(self.state()?["pid"].as_i64().unwrap_or_default())?)
    }

    /// Waits until the container's first process has ended.
    pub(crate) fn wait(&self) -> Outcome {
        wait_until("the container has stopped", || {
            self.status().is_ok_and(|status| status == "stopped")
        })
    }

    pub(crate) fn wait_for_output(&self, text: &str) -> Outcome {
        wait_until(&format!("{text:?} is printed"), || {
            self.stdout().is_ok_and(|out| out.contains(text))
        })
    }

    /// A file in the test's directory, named after the container: `ID.END`.
    pub(crate) fn file(&self, end: &str) -> PathBuf {
        self.test.folder.join(format!("{}.{end}", self.id))
    }

    pub(crate) fn stdout(&self) -> Outcome<String> {
        Ok(fs::read_to_string(&self.out)?)
    }

    pub(crate) fn stderr(&self) -> Outcome<String> {
        Ok(without_notices(&fs::read_to_string(&self.err)?))
    }
}

/// Standard error without the notices of `rt` that a module was compiled first: on a busy host, any
/// start may take long enough for one.
fn without_notices(text: &str) -> String {
    let is_notice = |line: &&str| {
        line.starts_with("rt: warning: `") && line.contains(" s until it was compiled")
    };
    text.split_inclusive('\n').filter(|line| !is_notice(line)).collect()
}
