//! What Spin offers to an asynchronous component: the same as in `platform.rs`, by functions that
//! do not make the component wait.
#![forbid(unsafe_code)]

use rusqlite::types::Value;
use wasmtime::Result;
use wasmtime::component::{Accessor, FutureReader, HasData, Linker, Resource, StreamReader};

use super::platform::{Opened, Platform, use_store, wait, with_store};
use super::stores::{Kind, Rows, Store};
use crate::kept::{Items, Kept};
use crate::world::World;
use rt_spin::template;

mod generated {
    wasmtime::component::bindgen!({
        path: "wit",
        world: "rt:spin/newer-platform",
        imports: {
            "spin:sqlite/sqlite.[static]connection.open": async | trappable,
            "spin:sqlite/sqlite.[method]connection.execute": async | trappable,
            "spin:sqlite/sqlite.[method]connection.changes": async | trappable,
            "spin:sqlite/sqlite.[method]connection.last-insert-rowid": async | trappable,
            default: trappable,
        },
        require_store_data_send: true,
        with: {
            "spin:key-value/key-value.store": crate::spin::platform::Opened,
            "spin:sqlite/sqlite.connection": crate::spin::platform::Opened,
        },
    });
}

use generated::spin::key_value::key_value;
use generated::spin::sqlite::sqlite;
use generated::spin::variables::variables;

pub(crate) struct Has;

impl HasData for Has {
    type Data<'a> = Platform<'a>;
}

pub(crate) fn add_to_linker(linker: &mut Linker<World>) -> Result<()> {
    variables::add_to_linker::<World, Has>(linker, World::platform)?;
    key_value::add_to_linker::<World, Has>(linker, World::platform)?;
    sqlite::add_to_linker::<World, Has>(linker, World::platform)
}

/// Keeps items until the guest has read them.
async fn kept<T>(items: Vec<T>, size: usize) -> std::result::Result<Items<T>, String> {
    match Kept::take(size).await {
        Some(kept) => Ok(Items::new(items, kept)),
        None => Err("the guests of this app have too much that they did not read".into()),
    }
}

type Answer<T, E> = Result<std::result::Result<T, E>>;
type Guest<T> = Accessor<T, Has>;

/// Does something with a store, in its turn.
async fn with<T: Send + 'static, D: Send + 'static>(
    guest: &Guest<D>,
    opened: Resource<Opened>,
    work: impl FnOnce(&Store) -> std::result::Result<T, String> + Send + 'static,
) -> Answer<T, String> {
    let (store, is_quick) = guest.with(|mut access| {
        let platform = access.get();
        Result::<_>::Ok((platform.store(&opened)?, platform.is_quick()))
    })?;
    Ok(with_store(store, is_quick, work).await)
}

/// Opens a store that the manifest gives to the component. The outer error says why it does not
/// open.
async fn open<D: Send + 'static>(
    guest: &Guest<D>,
    kind: Kind,
    name: String,
) -> Result<Option<std::result::Result<Resource<Opened>, String>>> {
    let stores = guest.with(|mut access| access.get().stores(kind, &name))?;
    let Some(stores) = stores else { return Ok(None) };
    match wait(move || stores.open(kind, &name)).await {
        Ok(store) => guest.with(|mut access| Ok(Some(Ok(access.get().keep(store)?)))),
        Err(why) => Ok(Some(Err(why))),
    }
}

impl variables::Host for Platform<'_> {}

impl<D: Send + 'static> variables::HostWithStore<D> for Has {
    async fn get(guest: &Guest<D>, name: String) -> Answer<String, variables::Error> {
        guest.with(|mut access| {
            let platform = access.get();
            Ok(match platform.guest()?.variables.get(&name) {
                Some(value) => Ok(value.clone()),
                None if template::is_name(&name) => Err(variables::Error::Undefined(name)),
                None => Err(variables::Error::InvalidName(name)),
            })
        })
    }
}

impl key_value::Host for Platform<'_> {}

impl key_value::HostStore for Platform<'_> {
    fn drop(&mut self, opened: Resource<Opened>) -> Result<()> {
        self.table.delete(opened)?;
        Ok(())
    }
}

/// Keys, and how their stream ends.
type Keys = (StreamReader<String>, FutureReader<std::result::Result<(), key_value::Error>>);

impl<D: Send + 'static> key_value::HostStoreWithStore<D> for Has {
    async fn open(guest: &Guest<D>, label: String) -> Answer<Resource<Opened>, key_value::Error> {
        Ok(match open(guest, Kind::KeyValue, label).await? {
            None => Err(key_value::Error::AccessDenied),
            Some(opened) => opened.map_err(key_value::Error::Other),
        })
    }

    async fn get(
        guest: &Guest<D>,
        opened: Resource<Opened>,
        key: String,
    ) -> Answer<Option<Vec<u8>>, key_value::Error> {
        let value = with(guest, opened, move |store| store.get(&key)).await?;
        Ok(value.map_err(key_value::Error::Other))
    }

    async fn set(
        guest: &Guest<D>,
        opened: Resource<Opened>,
        key: String,
        value: Vec<u8>,
    ) -> Answer<(), key_value::Error> {
        let set = with(guest, opened, move |store| store.set(&key, &value)).await?;
        Ok(set.map_err(key_value::Error::Other))
    }

    async fn delete(
        guest: &Guest<D>,
        opened: Resource<Opened>,
        key: String,
    ) -> Answer<(), key_value::Error> {
        let deleted = with(guest, opened, move |store| store.delete(&key)).await?;
        Ok(deleted.map_err(key_value::Error::Other))
    }

    async fn exists(
        guest: &Guest<D>,
        opened: Resource<Opened>,
        key: String,
    ) -> Answer<bool, key_value::Error> {
        let value = with(guest, opened, move |store| store.get(&key)).await?;
        Ok(value.map(|value| value.is_some()).map_err(key_value::Error::Other))
    }

    async fn get_keys(guest: &Guest<D>, opened: Resource<Opened>) -> Result<Keys> {
        let store = guest.with(|mut access| access.get().store(&opened))?;
        let keys = use_store(store, Store::keys).await;
        let keys = match keys {
            Ok(keys) => {
                let size = keys.iter().map(|key| size_of::<String>() + key.len()).sum();
                kept(keys, size).await
            }
            Err(why) => Err(why),
        };
        guest.with(|mut access| {
            let (keys, end) = match keys {
                Ok(keys) => (StreamReader::new(&mut access, keys)?, Ok(())),
                Err(why) => {
                    let none: Vec<String> = Vec::new();
                    (StreamReader::new(&mut access, none)?, Err(key_value::Error::Other(why)))
                }
            };
            let end = async { wasmtime::error::Ok(end) };
            Ok((keys, FutureReader::new(&mut access, end)?))
        })
    }
}

fn of_guest(values: Vec<sqlite::Value>) -> Vec<Value> {
    let value = |value| match value {
        sqlite::Value::Integer(value) => Value::Integer(value),
        sqlite::Value::Real(value) => Value::Real(value),
        sqlite::Value::Text(value) => Value::Text(value),
        sqlite::Value::Blob(value) => Value::Blob(value),
        sqlite::Value::Null => Value::Null,
    };
    values.into_iter().map(value).collect()
}

fn for_guest(rows: Vec<Vec<Value>>) -> Vec<sqlite::RowResult> {
    let value = |value| match value {
        Value::Integer(value) => sqlite::Value::Integer(value),
        Value::Real(value) => sqlite::Value::Real(value),
        Value::Text(value) => sqlite::Value::Text(value),
        Value::Blob(value) => sqlite::Value::Blob(value),
        Value::Null => sqlite::Value::Null,
    };
    let row = |row: Vec<Value>| sqlite::RowResult { values: row.into_iter().map(value).collect() };
    rows.into_iter().map(row).collect()
}

impl sqlite::Host for Platform<'_> {}

impl sqlite::HostConnection for Platform<'_> {
    async fn open(&mut self, name: String) -> Answer<Resource<Opened>, sqlite::Error> {
        Ok(match Platform::open(self, Kind::Sqlite, name).await? {
            None => Err(sqlite::Error::AccessDenied),
            Some(opened) => opened.map_err(sqlite::Error::Io),
        })
    }

    async fn execute(
        &mut self,
        opened: Resource<Opened>,
        statement: String,
        parameters: Vec<sqlite::Value>,
    ) -> Answer<sqlite::QueryResult, sqlite::Error> {
        let store = self.store(&opened)?;
        let parameters = of_guest(parameters);
        let executed = use_store(store, move |store| store.execute(&statement, parameters)).await;
        let result =
            |Rows { columns, rows, .. }| sqlite::QueryResult { columns, rows: for_guest(rows) };
        Ok(executed.map(result).map_err(sqlite::Error::Io))
    }

    async fn last_insert_rowid(&mut self, opened: Resource<Opened>) -> Result<i64> {
        self.last_row(&opened).await
    }

    async fn changes(&mut self, opened: Resource<Opened>) -> Result<u64> {
        Platform::changes(self, &opened).await
    }

    fn drop(&mut self, opened: Resource<Opened>) -> Result<()> {
        self.table.delete(opened)?;
        Ok(())
    }
}

/// The columns of a result, its rows, and how it ends.
type Streamed = (
    Vec<String>,
    StreamReader<sqlite::RowResult>,
    FutureReader<std::result::Result<(), sqlite::Error>>,
);

impl<D: Send + 'static> sqlite::HostConnectionWithStore<D> for Has {
    async fn open_async(guest: &Guest<D>, name: String) -> Answer<Resource<Opened>, sqlite::Error> {
        Ok(match open(guest, Kind::Sqlite, name).await? {
            None => Err(sqlite::Error::AccessDenied),
            Some(opened) => opened.map_err(sqlite::Error::Io),
        })
    }

    async fn execute_async(
        guest: &Guest<D>,
        opened: Resource<Opened>,
        statement: String,
        parameters: Vec<sqlite::Value>,
    ) -> Answer<Streamed, sqlite::Error> {
        let store = guest.with(|mut access| access.get().store(&opened))?;
        let parameters = of_guest(parameters);
        let executed = use_store(store, move |store| store.execute(&statement, parameters)).await;
        let executed = match executed {
            Ok(Rows { columns, rows, size }) => {
                kept(for_guest(rows), size).await.map(|rows| (columns, rows))
            }
            Err(why) => Err(why),
        };
        let (columns, rows) = match executed {
            Ok(executed) => executed,
            Err(why) => return Ok(Err(sqlite::Error::Io(why))),
        };
        let end = async { wasmtime::error::Ok(Ok(())) };
        guest.with(|mut access| {
            let rows = StreamReader::new(&mut access, rows)?;
            Ok(Ok((columns, rows, FutureReader::new(&mut access, end)?)))
        })
    }

    async fn last_insert_rowid_async(guest: &Guest<D>, opened: Resource<Opened>) -> Result<i64> {
        let row = with(guest, opened, |store| Ok(store.last_row())).await?;
        row.map_err(wasmtime::Error::msg)
    }

    async fn changes_async(guest: &Guest<D>, opened: Resource<Opened>) -> Result<u64> {
        let changes = with(guest, opened, |store| Ok(store.changes())).await?;
        changes.map_err(wasmtime::Error::msg)
    }
}
