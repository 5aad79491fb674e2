//! What Spin itself offers to a component: variables, key-value stores and SQLite.
#![forbid(unsafe_code)]

use std::sync::Arc;

use rusqlite::types::Value;
use tokio::sync::Semaphore;
use wasmtime::Result;
use wasmtime::component::{HasData, Linker, Resource, ResourceTable, ResourceType};
use wasmtime::error::Context as _;

use super::Guest;
use super::stores::{Kind, Rows, Store, Stores};
use crate::world::World;
use rt_spin::template;

mod generated {
    wasmtime::component::bindgen!({
        path: "wit",
        world: "rt:spin/platform",
        imports: { default: async | trappable },
        require_store_data_send: true,
        with: {
            "fermyon:spin/key-value.store": super::Opened,
            "fermyon:spin/sqlite.connection": super::Opened,
        },
    });
}

use generated::fermyon::spin2_0_0::{key_value, sqlite, variables};
use generated::wasi::config::store as config;

/// The interface that [`add_sqlite_3`] offers.
pub(super) const SQLITE_3: &str = "spin:sqlite/sqlite@3.0.0";

/// A store or a database that a guest has opened.
#[derive(Debug)]
#[allow(unreachable_pub, reason = "the generated code exports it again")]
pub struct Opened(Store);

/// What these interfaces use.
pub(crate) struct Platform<'a> {
    pub(crate) guest: Option<&'a Guest>,
    pub(crate) table: &'a mut ResourceTable,
}

pub(crate) fn add_to_linker(linker: &mut Linker<World>) -> Result<()> {
    struct Has;
    impl HasData for Has {
        type Data<'a> = Platform<'a>;
    }
    variables::add_to_linker::<World, Has>(linker, World::platform)?;
    key_value::add_to_linker::<World, Has>(linker, World::platform)?;
    sqlite::add_to_linker::<World, Has>(linker, World::platform)?;
    add_sqlite_3(linker)?;
    config::add_to_linker::<World, Has>(linker, World::platform)
}

/// The interface of SQLite that `spin_sdk::sqlite3` of SDK 5 imports. It has the types and
/// functions of `fermyon:spin/sqlite@2.0.0`, and two more functions. A second generated interface
/// would have types of its own, and twice the code.
fn add_sqlite_3(linker: &mut Linker<World>) -> Result<()> {
    use sqlite::HostConnection;

    let mut instance = linker.instance(SQLITE_3)?;
    instance.resource_async(
        "connection",
        ResourceType::host::<Opened>(),
        |mut store, representation| {
            Box::new(async move {
                let opened = Resource::new_own(representation);
                HostConnection::drop(&mut store.data_mut().platform(), opened).await
            })
        },
    )?;
    instance.func_wrap_async("[static]connection.open", |mut store, (name,): (String,)| {
        Box::new(async move {
            Ok((HostConnection::open(&mut store.data_mut().platform(), name).await?,))
        })
    })?;
    type Execute = (Resource<Opened>, String, Vec<sqlite::Value>);
    instance.func_wrap_async(
        "[method]connection.execute",
        |mut store, (opened, statement, parameters): Execute| {
            Box::new(async move {
                let mut platform = store.data_mut().platform();
                let executed =
                    HostConnection::execute(&mut platform, opened, statement, parameters);
                Ok((executed.await?,))
            })
        },
    )?;
    instance.func_wrap_async(
        "[method]connection.last-insert-rowid",
        |mut store, (opened,): (Resource<Opened>,)| {
            Box::new(async move { Ok((store.data_mut().platform().last_row(&opened).await?,)) })
        },
    )?;
    instance.func_wrap_async(
        "[method]connection.changes",
        |mut store, (opened,): (Resource<Opened>,)| {
            Box::new(async move { Ok((store.data_mut().platform().changes(&opened).await?,)) })
        },
    )
}

impl Platform<'_> {
    pub(super) fn guest(&self) -> Result<&Guest> {
        self.guest.context("this component is not one of a Spin app")
    }

    /// Opens a store that the manifest gives to the component. The outer error says why it does not
    /// open.
    pub(super) async fn open(
        &mut self,
        kind: Kind,
        name: String,
    ) -> Result<Option<std::result::Result<Resource<Opened>, String>>> {
        let Some(stores) = self.stores(kind, &name)? else { return Ok(None) };
        Ok(Some(match wait(move || stores.open(kind, &name)).await {
            Ok(store) => Ok(self.keep(store)?),
            Err(why) => Err(why),
        }))
    }

    /// The stores of the app, if the manifest gives the one of this name to the component.
    pub(super) fn stores(&self, kind: Kind, name: &str) -> Result<Option<Arc<Stores>>> {
        let guest = self.guest()?;
        let names = match kind {
            Kind::KeyValue => &guest.component.stores,
            Kind::Sqlite => &guest.component.databases,
        };
        let is_listed = names.iter().any(|listed| listed == name);
        Ok(is_listed.then(|| Arc::clone(&guest.stores)))
    }

    pub(super) fn keep(&mut self, store: Store) -> Result<Resource<Opened>> {
        Ok(self.table.push(Opened(store))?)
    }

    pub(super) fn store(&self, opened: &Resource<Opened>) -> Result<Store> {
        Ok(self.table.get(opened)?.0.clone())
    }

    /// The number of the last row that was added.
    pub(super) async fn last_row(&mut self, opened: &Resource<Opened>) -> Result<i64> {
        let (store, is_quick) = (self.store(opened)?, self.is_quick());
        let row = with_store(store, is_quick, |store| Ok(store.last_row())).await;
        row.map_err(wasmtime::Error::msg)
    }

    /// How many rows the last statement changed.
    pub(super) async fn changes(&mut self, opened: &Resource<Opened>) -> Result<u64> {
        let (store, is_quick) = (self.store(opened)?, self.is_quick());
        let changes = with_store(store, is_quick, |store| Ok(store.changes())).await;
        changes.map_err(wasmtime::Error::msg)
    }

    /// Whether the use of a store is immediate.
    pub(super) fn is_quick(&self) -> bool {
        self.guest.is_some_and(|guest| guest.stores.are_in_memory())
    }
}

/// How many threads work with stores at once, at most. The others of the pool are for files and
/// names, whatever SQL does.
static PLACES: Semaphore = Semaphore::const_new(4);

/// Does something that may wait for a disk or take long.
pub(super) async fn wait<T: Send + 'static>(
    work: impl FnOnce() -> std::result::Result<T, String> + Send + 'static,
) -> std::result::Result<T, String> {
    let place = PLACES.acquire().await;
    // The work may go on when its guest has ended, and keeps its place.
    let work = move || {
        let _place = place;
        work()
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(error.to_string()))
}

/// Does something with a store that takes long.
pub(super) async fn use_store<T: Send + 'static>(
    store: Store,
    work: impl FnOnce(&Store) -> std::result::Result<T, String> + Send + 'static,
) -> std::result::Result<T, String> {
    // First the turn: whoever waits for this store must not keep a place from others.
    let turn = store.turn().await;
    wait(move || {
        let _turn = turn;
        work(&store)
    })
    .await
}

/// Does something with a store, which may be quick. If so, and if nobody uses the store, this
/// thread does it at once. A statement may have the store for seconds, and this thread serves
/// everybody.
pub(super) async fn with_store<T: Send + 'static>(
    store: Store,
    is_quick: bool,
    work: impl FnOnce(&Store) -> std::result::Result<T, String> + Send + 'static,
) -> std::result::Result<T, String> {
    match store.turn_now().filter(|_| is_quick) {
        Some(_turn) => work(&store),
        None => use_store(store, work).await,
    }
}

impl variables::Host for Platform<'_> {
    async fn get(&mut self, name: String) -> Result<std::result::Result<String, variables::Error>> {
        Ok(match self.guest()?.variables.get(&name) {
            Some(value) => Ok(value.clone()),
            None if template::is_name(&name) => Err(variables::Error::Undefined(name)),
            None => Err(variables::Error::InvalidName(name)),
        })
    }
}

impl config::Host for Platform<'_> {
    async fn get(
        &mut self,
        key: String,
    ) -> Result<std::result::Result<Option<String>, config::Error>> {
        Ok(Ok(self.guest()?.variables.get(&key).cloned()))
    }

    async fn get_all(
        &mut self,
    ) -> Result<std::result::Result<Vec<(String, String)>, config::Error>> {
        Ok(Ok(self.guest()?.variables.clone().into_iter().collect()))
    }
}

impl key_value::Host for Platform<'_> {}

impl key_value::HostStore for Platform<'_> {
    async fn open(
        &mut self,
        label: String,
    ) -> Result<std::result::Result<Resource<Opened>, key_value::Error>> {
        Ok(match self.open(Kind::KeyValue, label).await? {
            None => Err(key_value::Error::AccessDenied),
            Some(opened) => opened.map_err(key_value::Error::Other),
        })
    }

    async fn get(
        &mut self,
        opened: Resource<Opened>,
        key: String,
    ) -> Result<std::result::Result<Option<Vec<u8>>, key_value::Error>> {
        let store = self.store(&opened)?;
        Ok(with_store(store, self.is_quick(), move |store| store.get(&key))
            .await
            .map_err(key_value::Error::Other))
    }

    async fn set(
        &mut self,
        opened: Resource<Opened>,
        key: String,
        value: Vec<u8>,
    ) -> Result<std::result::Result<(), key_value::Error>> {
        let store = self.store(&opened)?;
        Ok(with_store(store, self.is_quick(), move |store| store.set(&key, &value))
            .await
            .map_err(key_value::Error::Other))
    }

    async fn delete(
        &mut self,
        opened: Resource<Opened>,
        key: String,
    ) -> Result<std::result::Result<(), key_value::Error>> {
        let store = self.store(&opened)?;
        Ok(with_store(store, self.is_quick(), move |store| store.delete(&key))
            .await
            .map_err(key_value::Error::Other))
    }

    async fn exists(
        &mut self,
        opened: Resource<Opened>,
        key: String,
    ) -> Result<std::result::Result<bool, key_value::Error>> {
        let store = self.store(&opened)?;
        let exists = with_store(store, self.is_quick(), move |store| {
            store.get(&key).map(|value| value.is_some())
        })
        .await;
        Ok(exists.map_err(key_value::Error::Other))
    }

    async fn get_keys(
        &mut self,
        opened: Resource<Opened>,
    ) -> Result<std::result::Result<Vec<String>, key_value::Error>> {
        let store = self.store(&opened)?;
        Ok(use_store(store, Store::keys).await.map_err(key_value::Error::Other))
    }

    async fn drop(&mut self, opened: Resource<Opened>) -> Result<()> {
        self.table.delete(opened)?;
        Ok(())
    }
}

impl sqlite::Host for Platform<'_> {}

impl sqlite::HostConnection for Platform<'_> {
    async fn open(
        &mut self,
        database: String,
    ) -> Result<std::result::Result<Resource<Opened>, sqlite::Error>> {
        Ok(match self.open(Kind::Sqlite, database).await? {
            None => Err(sqlite::Error::AccessDenied),
            Some(opened) => opened.map_err(sqlite::Error::Io),
        })
    }

    async fn execute(
        &mut self,
        opened: Resource<Opened>,
        statement: String,
        parameters: Vec<sqlite::Value>,
    ) -> Result<std::result::Result<sqlite::QueryResult, sqlite::Error>> {
        let store = self.store(&opened)?;
        let parameters = parameters.into_iter().map(|value| match value {
            sqlite::Value::Integer(value) => Value::Integer(value),
            sqlite::Value::Real(value) => Value::Real(value),
            sqlite::Value::Text(value) => Value::Text(value),
            sqlite::Value::Blob(value) => Value::Blob(value),
            sqlite::Value::Null => Value::Null,
        });
        let parameters = parameters.collect();
        let executed = use_store(store, move |store| store.execute(&statement, parameters)).await;
        Ok(executed.map(result).map_err(sqlite::Error::Io))
    }

    async fn drop(&mut self, opened: Resource<Opened>) -> Result<()> {
        self.table.delete(opened)?;
        Ok(())
    }
}

fn result(Rows { columns, rows, .. }: Rows) -> sqlite::QueryResult {
    let value = |value| match value {
        Value::Integer(value) => sqlite::Value::Integer(value),
        Value::Real(value) => sqlite::Value::Real(value),
        Value::Text(value) => sqlite::Value::Text(value),
        Value::Blob(value) => sqlite::Value::Blob(value),
        Value::Null => sqlite::Value::Null,
    };
    let rows = rows.into_iter();
    let rows = rows.map(|row| sqlite::RowResult { values: row.into_iter().map(value).collect() });
    sqlite::QueryResult { columns, rows: rows.collect() }
}
