//! Key-value stores and SQLite databases of a Spin app, in memory or in a directory of a volume.
//!
//! SQL comes from a hostile guest. It must not reach another file, wait without end, or use more
//! memory than this file allows.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;
use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, OpenFlags, OptionalExtension, params_from_iter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::functions;

/// The most memory of SQLite for all stores together, in bytes, and the share of the container's
/// memory if that is less. What guests have not read yet (`kept.rs`) takes a fourth more.
const MEMORY: u64 = 48 << 20;
const SHARE: (u64, u64) = (3, 32);

/// The size of a store in memory, and the page size of SQLite, in bytes.
const IN_MEMORY: u64 = 16 << 20;
const PAGE: u64 = 4096;

/// The longest text or blob, and the largest result of a statement, in bytes.
const LONGEST: i32 = 4 << 20;
const LARGEST_RESULT: usize = 16 << 20;

/// The longest pattern of `LIKE` and `GLOB`, in bytes. SQLite compares it at each place of a text.
const LONGEST_PATTERN: i32 = 100;

/// How long a statement may take, and how long it waits for another process that uses the volume.
const TIME: Duration = Duration::from_secs(5);
const BUSY: Duration = Duration::from_secs(2);

/// How many instructions of SQLite pass between two looks at the clock.
const STEPS: i32 = 10_000;

/// What SQL may ask of SQLite itself.
const PRAGMAS: [&str; 8] = [
    "foreign_key_list",
    "foreign_keys",
    "index_info",
    "index_list",
    "table_info",
    "table_list",
    "table_xinfo",
    "user_version",
];

/// Functions that SQL must not call: they load code, or one call of them computes for hours.
const DENIED: [&str; 3] = ["json_patch", "jsonb_patch", "load_extension"];

/// All stores of an app. Those with the same name are the same for all components.
#[derive(Debug)]
pub(crate) struct Stores {
    /// `None` in memory.
    directory: Option<PathBuf>,
    /// The most bytes of all stores' memory.
    memory: u64,
    opened: Mutex<HashMap<String, Store>>,
}

/// A store or a database. Its functions may wait for a disk.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    connection: Arc<Mutex<Connection>>,
    /// Whose turn it is. Whoever has it finds the connection free, so that no thread waits for it.
    turn: Arc<Semaphore>,
}

/// The right to use a store.
#[derive(Debug)]
pub(crate) struct Turn(#[allow(dead_code, reason = "its end is its use")] OwnedSemaphorePermit);

/// The result of a statement.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Rows {
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<Vec<Value>>,
    /// About how many bytes it has.
    pub(crate) size: usize,
}

/// What a store is used for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    KeyValue,
    Sqlite,
}

impl Stores {
    /// `directory` is in the container. It must be on a volume, because nothing is written into the
    /// rootfs. `memory` is the container's limit in bytes.
    pub(crate) fn new(directory: Option<&str>, memory: Option<u64>) -> Result<Stores, String> {
        let directory = directory.filter(|it| !it.is_empty()).map(PathBuf::from);
        if let Some(directory) = &directory {
            check(directory)
                .map_err(|why| format!("keep stores in `{}`: {why}", directory.display()))?;
        }
        let memory = memory.map_or(MEMORY, |memory| (memory / SHARE.1 * SHARE.0).min(MEMORY));
        Ok(Stores { directory, memory, opened: Mutex::default() })
    }

    /// Whether the stores are in this process's memory only.
    pub(crate) fn are_in_memory(&self) -> bool {
        self.directory.is_none()
    }

    /// Opens a store, or finds it open. The compiler has checked the name.
    pub(crate) fn open(&self, kind: Kind, name: &str) -> Result<Store, String> {
        let file = match kind {
            Kind::KeyValue => format!("{name}.kv.sqlite"),
            Kind::Sqlite => format!("{name}.sqlite"),
        };
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = opened.get(&file) {
            return Ok(store.clone());
        }
        let connection = self.connect(kind, &file).map_err(|error| error.to_string())?;
        let connection = Arc::new(Mutex::new(connection));
        let store = Store { connection, turn: Arc::new(Semaphore::new(1)) };
        opened.insert(file, store.clone());
        Ok(store)
    }

    fn connect(&self, kind: Kind, file: &str) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            // A neighbour that shares the volume could have put a link there.
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let mut connection = match &self.directory {
            Some(directory) => Connection::open_with_flags(directory.join(file), flags)?,
            None => Connection::open_in_memory()?,
        };
        connection.busy_timeout(BUSY)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
        connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, LONGEST)?;
        connection.set_limit(Limit::SQLITE_LIMIT_SQL_LENGTH, 1 << 20)?;
        connection.set_limit(Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, LONGEST_PATTERN)?;
        functions::replace(&connection)?;
        // No file beside the database's own.
        connection.pragma_update(None, "temp_store", "memory")?;
        connection.pragma_update(None, "hard_heap_limit", self.memory.cast_signed())?;
        if self.directory.is_none() {
            connection.pragma_update(None, "max_page_count", (IN_MEMORY / PAGE).cast_signed())?;
        }
        if kind == Kind::KeyValue {
            connection.execute_batch(
                "CREATE TABLE IF NOT EXISTS pairs (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
            )?;
        }
        // From now on, only a guest's statements.
        connection.authorizer(Some(authorize))?;
        Ok(connection)
    }
}

/// Whether a statement may do something.
fn authorize(what: AuthContext<'_>) -> Authorization {
    match what.action {
        AuthAction::Attach { .. } | AuthAction::Detach { .. } => Authorization::Deny,
        AuthAction::Pragma { pragma_name, .. } => {
            let name = pragma_name.to_ascii_lowercase();
            if PRAGMAS.contains(&name.as_str()) {
                Authorization::Allow
            } else {
                Authorization::Deny
            }
        }
        AuthAction::Function { function_name } => {
            let name = function_name.to_ascii_lowercase();
            if DENIED.contains(&name.as_str()) { Authorization::Deny } else { Authorization::Allow }
        }
        _ => Authorization::Allow,
    }
}

/// Fails unless the directory is on another mount than the rootfs, and writable.
fn check(directory: &Path) -> Result<(), String> {
    if !directory.is_absolute() {
        return Err("it is not an absolute path".into());
    }
    let mount = |path: &Path| -> std::io::Result<Option<String>> {
        use std::os::fd::AsRawFd;
        let opened = File::open(path.join("."))?;
        let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", opened.as_raw_fd()))?;
        Ok(about.lines().find_map(|line| Some(line.strip_prefix("mnt_id:")?.trim().to_owned())))
    };
    let failed = |error: std::io::Error| error.to_string();
    let (own, root) = (mount(directory).map_err(failed)?, mount(Path::new("/")).map_err(failed)?);
    if own.is_none() || own == root {
        return Err("it is not on a volume, and nothing is written into the rootfs".into());
    }
    writable(directory).map_err(|error| format!("it cannot be written to: {error}"))
}

/// Fails if no file can be made in the directory. Otherwise each request would fail.
fn writable(directory: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    // A file without a name (open(2)). Nobody else sees it, and it is gone at once.
    let mut options = File::options();
    let made = options.write(true).custom_flags(libc::O_TMPFILE).mode(0o600).open(directory);
    match made {
        // A filesystem without such files. SQLite reports what is wrong there.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {
            Ok(())
        }
        made => made.map(drop),
    }
}

impl Store {
    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody uses the store.
    pub(crate) async fn turn(&self) -> Option<Turn> {
        Arc::clone(&self.turn).acquire_owned().await.ok().map(Turn)
    }

    /// The same, if nobody uses the store now.
    pub(crate) fn turn_now(&self) -> Option<Turn> {
        Arc::clone(&self.turn).try_acquire_owned().ok().map(Turn)
    }

    pub(crate) fn get(&self, key: &str) -> Result<Option<Vec<u8>>, String> {
        let connection = self.lock();
        let get = || {
            let mut statement =
                connection.prepare_cached("SELECT value FROM pairs WHERE key = ?1")?;
            statement.query_row([key], |row| row.get(0)).optional()
        };
        get().map_err(|error| error.to_string())
    }

    pub(crate) fn set(&self, key: &str, value: &[u8]) -> Result<(), String> {
        let connection = self.lock();
        let set = || {
            connection
                .prepare_cached("INSERT OR REPLACE INTO pairs VALUES (?1, ?2)")?
                .execute((key, value))
        };
        set().map(drop).map_err(|error| error.to_string())
    }

    pub(crate) fn delete(&self, key: &str) -> Result<(), String> {
        let connection = self.lock();
        let delete =
            || connection.prepare_cached("DELETE FROM pairs WHERE key = ?1")?.execute([key]);
        delete().map(drop).map_err(|error| error.to_string())
    }

    pub(crate) fn keys(&self) -> Result<Vec<String>, String> {
        let connection = self.lock();
        let keys = || {
            let mut statement = connection.prepare_cached("SELECT key FROM pairs")?;
            let mut rows = statement.query([])?;
            let (mut keys, mut size) = (Vec::new(), 0);
            while let Some(row) = rows.next()? {
                let key: String = row.get(0)?;
                size += size_of::<String>() + key.len();
                keys.push(key);
                if size > LARGEST_RESULT {
                    return Ok(None);
                }
            }
            Ok(Some(keys))
        };
        let keys: rusqlite::Result<_> = keys();
        keys.map_err(|error| error.to_string())?.ok_or_else(too_large)
    }

    /// Runs one statement of a guest.
    pub(crate) fn execute(&self, sql: &str, parameters: Vec<Value>) -> Result<Rows, String> {
        let mut connection = self.lock();
        let end = Instant::now() + TIME;
        let set = connection.progress_handler(STEPS, Some(move || Instant::now() > end));
        set.map_err(|error| error.to_string())?;
        let execute = || {
            let mut statement = connection.prepare(sql)?;
            let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
            let (width, mut size) = (columns.len(), 0);
            let mut found = statement.query(params_from_iter(parameters))?;
            let mut rows = Vec::new();
            while let Some(row) = found.next()? {
                let mut values = Vec::with_capacity(width);
                for column in 0..width {
                    let value = row.get_ref(column)?;
                    size += size_of::<Value>();
                    if let ValueRef::Text(bytes) | ValueRef::Blob(bytes) = value {
                        size += bytes.len();
                    }
                    values.push(Value::try_from(value)?);
                }
                size += size_of::<Vec<Value>>();
                rows.push(values);
                if size > LARGEST_RESULT {
                    return Ok(None);
                }
            }
            Ok(Some(Rows { columns, rows, size }))
        };
        let executed: rusqlite::Result<_> = execute();
        executed.map_err(|error| error.to_string())?.ok_or_else(too_large)
    }

    /// How many rows the last statement changed.
    pub(crate) fn changes(&self) -> u64 {
        self.lock().changes()
    }

    /// The number of the last row that was added.
    pub(crate) fn last_row(&self) -> i64 {
        self.lock().last_insert_rowid()
    }
}

fn too_large() -> String {
    format!("the result has more than {LARGEST_RESULT} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(kind: Kind) -> Store {
        Stores::new(None, None).expect("made").open(kind, "default").expect("opened")
    }

    #[test]
    fn a_value_is_kept_under_its_key() {
        let stores = Stores::new(None, Some(1 << 30)).expect("made");
        let store = stores.open(Kind::KeyValue, "default").expect("opened");
        store.set("a", b"1").expect("set");
        store.set("a", b"2").expect("set");
        store.set("b", b"").expect("set");
        let again = stores.open(Kind::KeyValue, "default").expect("opened");
        assert_eq!(again.get("a"), Ok(Some(b"2".to_vec())));
        assert_eq!(again.keys(), Ok(vec!["a".into(), "b".into()]));
        again.delete("a").expect("deleted");
        assert_eq!(store.get("a"), Ok(None));
        let other = stores.open(Kind::KeyValue, "other").expect("opened");
        assert_eq!(other.keys(), Ok(Vec::new()));
        assert!(stores.are_in_memory());
    }

    #[test]
    fn a_store_has_a_size() {
        let store = store(Kind::KeyValue);
        assert!(store.set("large", &vec![0; LONGEST as usize + 1]).is_err());
        let value = vec![0; 1 << 20];
        let stored = (0..64).take_while(|n| store.set(&n.to_string(), &value).is_ok()).count();
        assert!((4..17).contains(&stored), "{stored}");
        assert_eq!(store.get("0").map(|it| it.map(|it| it.len())), Ok(Some(1 << 20)));
    }

    #[test]
    fn statements_return_rows() {
        let store = store(Kind::Sqlite);
        store.execute("CREATE TABLE t (a, b)", Vec::new()).expect("created");
        let values = vec![Value::Integer(7), Value::Text("x".into())];
        store.execute("INSERT INTO t VALUES (?1, ?2)", values.clone()).expect("inserted");
        let rows = store.execute("SELECT a, b FROM t", Vec::new()).expect("selected");
        assert_eq!((rows.columns, rows.rows), (vec!["a".into(), "b".into()], vec![values]));
        assert!((1..1000).contains(&rows.size), "{}", rows.size);
        assert!(store.execute("SELECT", Vec::new()).is_err());
    }

    #[test]
    fn a_hostile_statement_is_refused() {
        let store = store(Kind::Sqlite);
        for sql in [
            "ATTACH '/tmp/rt-spin-attack' AS x",
            "VACUUM INTO '/tmp/rt-spin-attack'",
            "PRAGMA hard_heap_limit = 0",
            "PRAGMA max_page_count = 1000000",
            "PRAGMA temp_store_directory = '/tmp'",
            "PRAGMA writable_schema = 1",
            "SELECT load_extension('x')",
            // Larger than the longest text.
            "SELECT hex(zeroblob(100000000))",
            // Without end.
            "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n",
            // A result without end.
            "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n",
        ] {
            let begun = Instant::now();
            assert!(store.execute(sql, Vec::new()).is_err(), "{sql}");
            assert!(begun.elapsed() < TIME * 2, "{sql}");
        }
        assert!(!Path::new("/tmp/rt-spin-attack").exists());
        assert!(store.execute("PRAGMA table_list", Vec::new()).is_ok());
    }

    /// SQLite looks at the clock between instructions only, and each function is one.
    #[test]
    fn no_function_computes_for_long() {
        let long = "hex(zeroblob(2097000))";
        let half = format!("substr({long}, 1, 2000000)");
        let long_json = "(WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 200000) \
                         SELECT json_group_object('k' || x, 1) FROM n)";
        let many = |each: &str, count: usize| vec![each; count].join(", ");
        for sql in [
            format!("SELECT instr({long}, {half} || '1')"),
            format!("SELECT length(replace({long}, {half} || '1', 'x'))"),
            format!("SELECT length(replace({long}, '00', ''))"),
            format!("SELECT length(trim({long}, replace(hex(zeroblob(1000000)), '0', '1') || '0'))"),
            format!("SELECT length(rtrim({long}, replace({half}, '0', 'ä') || '0'))"),
            format!("SELECT length(trim(replace({half}, '0', 'ä'), replace({half}, '0', 'ö') || 'ä'))"),
            format!("SELECT unhex(replace({long}, '0', 'x'), replace({half}, '0', 'y') || 'x')"),
            format!("SELECT {long} LIKE '%' || substr({long}, 1, 49000) || '1%'"),
            format!("SELECT {long} LIKE '%' || substr({long}, 1, 97) || '1%'"),
            format!("SELECT {long} LIKE '{}1'", "%0".repeat(49)),
            format!("SELECT {long} LIKE '{}1'", "%_".repeat(49)),
            format!("SELECT {long} GLOB '{}1'", "*0".repeat(49)),
            format!("SELECT {long} GLOB '{}1'", "*[a0]".repeat(19)),
            format!("SELECT {long} GLOB '*[{}0]1'", "a".repeat(90)),
            format!("SELECT length(printf(replace({long}, '0000000', '%.2999g'), 1))"),
            format!("SELECT length(printf(replace({long}, '0000000', '%2999d')))"),
            format!("SELECT length(printf(replace({long}, '000000000', '%.999999g'), 1))"),
            "SELECT length(printf('%.4000000f', 1.0 / 3))".into(),
            "SELECT length(printf('%4000000d', 1))".into(),
            format!("SELECT length(printf('%,.4000000d', 1)), length(quote({long}))"),
            format!("SELECT length(json_set({long_json}, {}))", many("'$.k200000', 1", 49)),
            format!("SELECT length(json_remove({long_json}, {}))", many("'$.k100000'", 49)),
            format!("SELECT length(json_insert({long_json}, {}))", many("'$.a.b', 1", 49)),
            format!("SELECT length(json_extract({long_json}, {}))", many("'$.k200000'", 99)),
            format!("SELECT json_patch({long_json}, replace({long_json}, 'k', 'm'))"),
            format!("SELECT jsonb_patch({long_json}, '{{}}')"),
            format!("SELECT length(json_pretty({long_json}))"),
            "SELECT length(json_pretty(replace(hex(zeroblob(400)), '0', '[') || replace(hex(zeroblob(400)), '0', ']'), hex(zeroblob(20000))))".into(),
            format!("SELECT json_error_position(replace({long}, '0', '[')), json_valid({long}, 8)"),
            format!("SELECT length(unistr(replace({half}, '0', '\\u0041')))"),
            format!("SELECT length(concat_ws({half}, {}))", many("1", 90)),
            format!("SELECT length(upper({long})), unicode({long}), length(hex({half}))"),
            format!("SELECT length(strftime(replace({half}, '0', '%J'))), datetime({long})"),
            format!("SELECT CAST({long} || '.' || {half} AS REAL), CAST({long} AS INTEGER), round(1e300, 2000000000)"),
            format!("SELECT max({}), {half} BETWEEN {half} AND {half}", many(&half, 90)),
            format!("SELECT {half} COLLATE RTRIM = {long} COLLATE NOCASE"),
        ] {
            let begun = Instant::now();
            let done = store(Kind::Sqlite).execute(&sql, Vec::new());
            let took = begun.elapsed();
            // Below a second in the program that is shipped.
            assert!(took < TIME + BUSY, "{took:?} {sql} {}", done.is_ok());
        }
    }

    #[test]
    fn nothing_is_kept_in_the_rootfs() {
        for wrong in ["data", "/", "/etc", "/no/such"] {
            assert!(Stores::new(Some(wrong), None).is_err(), "{wrong}");
        }
    }

    #[test]
    fn nothing_is_kept_where_nothing_can_be_written() {
        assert!(writable(&std::env::temp_dir()).is_ok());
        assert!(writable(Path::new("/no/such")).is_err());
    }
}
