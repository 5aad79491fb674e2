//! A Spin app: several components, each at its routes (`docs/spin.md`). The compiler has made a
//! plan of its manifest.
#![forbid(unsafe_code)]

mod files;
mod functions;
mod handler;
mod inbound;
mod newer_files;
mod newer_platform;
mod october;
mod platform;
mod router;
mod stores;
mod traps;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rt_engine::memory::Pool;
use rt_engine::{End, Run, Start, reserved, variables};
use wasmtime::Engine;
use wasmtime::component::Linker;
use wasmtime_wasi::sockets::SocketAddrUse;

use crate::engines::{Engines, Loaded, Unloaded};
use crate::serve::{self, Handler, Outbound, Policy, Protocol, Settings, Target, Tls};
use crate::world::{Given, World};
use crate::{kept, world};
use rt_spin::hosts::Host;
use rt_spin::plan::{self, Plan};
use rt_spin::template;

pub(crate) use files::{Shown, Streams};
pub(crate) use platform::Platform;

use handler::Exported;
use router::Routes;
use stores::Stores;

/// The prefix of the variables in the container's environment that are variables of the app.
const PREFIX: &str = "SPIN_VARIABLE_";

/// The variable that names a directory for stores.
const DIRECTORY: &str = "SPIN_STATE_DIR";

/// The path at which the server itself answers, as Spin's does.
const HEALTH: &str = "/.well-known/spin/health";

/// What a component may use, beside WASI.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) component: plan::Component,
    /// With their values.
    pub(crate) variables: BTreeMap<String, String>,
    pub(crate) stores: Arc<Stores>,
    /// The files of its patterns.
    pub(crate) shown: Option<Arc<Shown>>,
}

/// The hosts that a component may reach.
#[derive(Debug)]
pub(crate) struct Hosts(Vec<Host>);

impl Policy for Hosts {
    fn has(&self, protocol: Protocol, host: &str, port: u16) -> bool {
        self.0.iter().any(|allowed| allowed.allows(protocol.scheme(), host, port))
    }

    fn lists(&self, address: IpAddr) -> bool {
        self.0.iter().any(|allowed| allowed.names(&address.to_string()))
    }

    fn lists_localhost(&self) -> bool {
        self.0.iter().any(|allowed| allowed.names("localhost"))
    }

    fn inside<'a>(&self, host: &'a str) -> Option<Target<'a>> {
        match host {
            // A path alone, and the name for programs that need one.
            "" | "self.alt" => Some(Target::App),
            _ => host.strip_suffix(serve::DOMAIN).map(Target::Component),
        }
    }

    fn has_inside(&self, target: &Target<'_>) -> bool {
        self.0.iter().any(|allowed| match target {
            Target::App => allowed.allows_self(),
            Target::Component(name) => allowed.allows_component(name),
        })
    }
}

impl Hosts {
    /// Those of a component, with the values of the app's variables.
    fn new(
        component: &plan::Component,
        values: &BTreeMap<String, String>,
    ) -> Result<Hosts, String> {
        let hosts = component.allowed_hosts.iter();
        hosts.map(|host| Host::parse(&resolve(host, values)?)).collect::<Result<_, _>>().map(Hosts)
    }

    /// Whether a socket of the component may do this.
    pub(crate) fn allow_socket(&self, address: SocketAddr, what: SocketAddrUse) -> bool {
        match what {
            // Only the server listens. A connection begins with any free port.
            SocketAddrUse::TcpBind | SocketAddrUse::UdpBind => address.port() == 0,
            SocketAddrUse::TcpConnect | SocketAddrUse::UdpSend | SocketAddrUse::UdpReceive => {
                self.0.iter().any(|allowed| allowed.allows_socket(address.ip(), address.port()))
            }
            _ => false,
        }
    }

    /// Whether the component may use sockets at all.
    pub(crate) fn allow_sockets(&self) -> bool {
        self.0.iter().any(Host::is_for_sockets)
    }
}

/// Serves an app until a termination signal comes.
pub(crate) fn serve(start: Start) -> Result<End, String> {
    let Start { environment, run } = start;
    let Run { engine_dir, module, native, parts, directories, http, memory, .. } = run;
    let mut http = http.ok_or("there is nothing to listen on")?;
    let plan = read_plan(native.as_ref().ok_or("its manifest is not compiled")?, parts.len())?;
    let environment = Environment::new(&environment)?;
    let values = environment.values(&plan)?;
    kept::limit(memory);
    let stores = Arc::new(Stores::new(environment.get(DIRECTORY), memory)?);
    let hosts = plan.components.iter().map(|component| {
        Hosts::new(component, &values).map(Arc::new).map_err(|why| of(&component.name, &why))
    });
    let hosts = hosts.collect::<Result<Vec<_>, _>>()?;
    let mut settings = Settings::new(&http.limits, memory, run.timeout, run.fuel);
    if hosts.iter().flat_map(|hosts| &hosts.0).any(Host::is_for_components) {
        settings.allow_inside();
    }
    let pool = Arc::new(Pool::new(memory, settings.reserve(), settings.memory));
    let mut engines = Engines::of_a_server(run.fuel.is_some(), settings.instances())?;
    let modules = parts
        .iter()
        .enumerate()
        .map(|(number, part)| engines.load(part).map_err(|why| not_loaded(&plan, number, why)));
    let modules = modules.collect::<Result<Vec<_>, _>>()?;
    // As for a command.
    drop((engine_dir, module, native, parts));
    let mut offers = Offers::new(environment.get(serve::TRUSTED));
    let place = files::Place::new(directories)?;
    let handlers = plan.components.into_iter().zip(hosts).map(|(component, hosts)| {
        let name = component.name.clone();
        let module = modules.get(component.module).ok_or("its module is missing")?;
        match offers.handler(module, component, hosts, &values, &stores, &place) {
            Ok(handler) => Ok((name, handler)),
            Err(why) => Err(of(&name, &why)),
        }
    });
    let handlers = handlers.collect::<Result<Vec<_>, String>>()?;
    drop(place);
    let routes = Routes::new(&plan.routes, handlers)?;
    http.health.get_or_insert_with(|| HEALTH.to_owned());
    serve::interrupt(engines.into_all())?;
    reserved::name_all();
    serve::serve(Box::new(routes), *http, settings, pool)
}

fn of(component: &str, why: &str) -> String {
    format!("the component `{component}`: {why}")
}

/// Replaces the variables of a template.
fn resolve(text: &str, values: &BTreeMap<String, String>) -> Result<String, String> {
    template::resolve(text, |name| {
        values.get(name).cloned().ok_or_else(|| format!("there is no variable `{name}`"))
    })
}

/// Why a module was not loaded.
fn not_loaded(plan: &Plan, module: usize, why: Unloaded) -> String {
    let component = plan.components.iter().find(|component| component.module == module);
    let name = component.map_or("", |component| component.name.as_str());
    match why {
        Unloaded::IsCommand(_) => of(name, handler::NONE),
        Unloaded::Otherwise(why) => of(name, &why),
    }
}

fn read_plan(file: &File, modules: usize) -> Result<Plan, String> {
    // `rt` has opened the file by its path.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(plan::LONGEST).read_to_end(&mut bytes))
        .map_err(|error| format!("read the plan of the app: {error}"))?;
    plan::read(&bytes, modules)
}

/// The environment of the container. The components do not see it.
struct Environment<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Environment<'a> {
    fn new(bytes: &'a [u8]) -> Result<Environment<'a>, String> {
        let variables = variables(bytes)?;
        Ok(Environment(variables.into_iter().filter_map(|it| it.split_once('=')).collect()))
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        self.0.get(name).copied()
    }

    /// The values of the app's variables.
    fn values(&self, plan: &Plan) -> Result<BTreeMap<String, String>, String> {
        let value = |(name, variable): (&String, &plan::Variable)| {
            let own = format!("{PREFIX}{}", name.to_ascii_uppercase());
            let value = self.get(&own).map(str::to_owned).or_else(|| variable.default.clone());
            let value = value.ok_or_else(|| {
                format!("the variable `{name}` is required, and the environment has no `{own}`")
            })?;
            Ok((name.clone(), value))
        };
        plan.variables.iter().map(value).collect()
    }
}

/// The functions that components may import, in each engine that has components.
struct Offers {
    plain: Option<Linker<World>>,
    asynchronous: Option<Linker<World>>,
    tls: Arc<Tls>,
}

fn linker(engine: &Engine, is_asynchronous: bool) -> Result<Linker<World>, String> {
    let mut linker = world::http_linker(engine, is_asynchronous)?;
    let add = |linker: &mut Linker<World>| {
        files::guard(linker)?;
        platform::add_to_linker(linker)?;
        october::add_to_linker(linker)?;
        if is_asynchronous {
            newer_files::guard(linker)?;
            newer_platform::add_to_linker(linker)?;
        }
        Ok(())
    };
    let added: wasmtime::Result<()> = add(&mut linker);
    added.map_err(|error| format!("offer Spin's interfaces: {error:#}"))?;
    Ok(linker)
}

impl Offers {
    /// `trusted` is the container's file of trusted certificates, if its environment names one.
    fn new(trusted: Option<&str>) -> Offers {
        Offers { plain: None, asynchronous: None, tls: Arc::new(Tls::new(trusted)) }
    }

    /// The functions for a component of this module.
    fn linker(&mut self, module: &Loaded) -> Result<Linker<World>, String> {
        let made = match module.is_asynchronous {
            true => &mut self.asynchronous,
            false => &mut self.plain,
        };
        if made.is_none() {
            *made = Some(linker(module.component.engine(), module.is_asynchronous)?);
        }
        made.clone().ok_or_else(|| "there are no functions for it".into())
    }

    fn handler(
        &mut self,
        module: &Loaded,
        component: plan::Component,
        hosts: Arc<Hosts>,
        values: &BTreeMap<String, String>,
        stores: &Arc<Stores>,
        place: &files::Place,
    ) -> Result<Arc<dyn Handler>, String> {
        let variables = component
            .variables
            .iter()
            .map(|(name, text)| Ok((name.clone(), resolve(text, values)?)))
            .collect::<Result<_, String>>()?;
        let mut environment = Vec::new();
        for (name, value) in &component.environment {
            environment.extend(format!("{name}={value}\0").into_bytes());
        }
        let files = place.open(&component)?;
        let arguments = vec![component.name.clone()];
        let mut given = Given::new(arguments, &environment, &files.directories, false)?;
        given.limit_sockets(Arc::clone(&hosts));
        let mut linker = self.linker(module)?;
        traps::define(&mut linker, module).map_err(|error| format!("its imports: {error:#}"))?;
        let exported = Exported::find(&linker, module)?;
        let guest = Arc::new(Guest {
            component,
            variables,
            stores: Arc::clone(stores),
            shown: files.shown,
        });
        let outbound = Outbound::new(hosts, Arc::clone(&self.tls));
        Ok(Arc::new(handler::Component { exported, given, guest, outbound }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(list: &[&str]) -> Hosts {
        Hosts(list.iter().map(|host| Host::parse(host).expect(host)).collect())
    }

    #[test]
    fn a_name_leads_to_no_address_of_the_machine() {
        let listing = |address| match address {
            IpAddr::V4(_) => hosts(&["http://*:*", &format!("http://{address}")]),
            IpAddr::V6(_) => hosts(&["http://*:*", &format!("http://[{address}]")]),
        };
        serve::leads_to_no_address_of_the_machine(&hosts(&["http://*:*", "*://*:*"]), listing);
        let own = hosts(&["http://localhost:*"]);
        assert!(own.leads_to("localhost", [127, 0, 0, 1].into()));
        assert!(!own.leads_to("other", [127, 0, 0, 1].into()));
    }
}
