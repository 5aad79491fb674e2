//! The command line that `rt` starts an engine with (`docs/engine.md`, "How it is started").
#![forbid(unsafe_code)]

use std::ffi::OsString;

/// The version of the contract that this engine speaks.
const VERSION: &str = "1";

/// What `rt` wants of this program.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Work {
    Run(Contract),
    /// A module from standard input, native code to standard output; with or without instructions
    /// that count.
    Compile {
        counting: bool,
    },
}

#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Contract {
    pub(crate) engine_dir: i32,
    pub(crate) module: i32,
    /// What the module was compiled to, if it was.
    pub(crate) native: Option<i32>,
    pub(crate) environment: i32,
    /// Where plugins are, and which files of it to load.
    pub(crate) plugin_dir: Option<i32>,
    pub(crate) plugins: Vec<String>,
    pub(crate) directories: Vec<Directory>,
    /// What the container may use, in bytes.
    pub(crate) memory: Option<u64>,
    /// How long the guest may run, in milliseconds.
    pub(crate) timeout: Option<i32>,
    /// How many instructions the guest may run.
    pub(crate) fuel: Option<u64>,
    /// The guest's.
    pub(crate) arguments: Vec<String>,
}

#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Directory {
    pub(crate) path: String,
    pub(crate) read_only: bool,
    /// It is open already, by this descriptor.
    pub(crate) descriptor: Option<i32>,
}

impl Work {
    pub(crate) fn parse(args: impl Iterator<Item = OsString>) -> Result<Work, String> {
        let mut args = args.skip(1).peekable();
        let first = text(args.next().unwrap_or_default())?;
        if first != format!("--contract={VERSION}") {
            return Err(format!(
                "`{first}`: this engine speaks version {VERSION} of the engine contract, and is started by rt"
            ));
        }
        if args.next_if(|arg| arg == "--compile").is_some() {
            let counting = args.next_if(|arg| arg == "--counting").is_some();
            return match args.next() {
                Some(arg) => Err(format!("unknown option `{}`", text(arg)?)),
                None => Ok(Work::Compile { counting }),
            };
        }
        Contract::parse(args).map(Work::Run)
    }
}

impl Contract {
    fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Contract, String> {
        let mut contract =
            Contract { engine_dir: -1, module: -1, environment: -1, ..Contract::default() };
        for arg in args.by_ref() {
            let arg = text(arg)?;
            if arg == "--" {
                break;
            }
            let wrong = || format!("unknown option `{arg}`");
            let (name, value) = arg.split_once('=').ok_or_else(wrong)?;
            let descriptor = || {
                value
                    .parse()
                    .ok()
                    .filter(|fd| *fd > 2)
                    .ok_or_else(|| format!("`{arg}`: not a descriptor"))
            };
            match name {
                "--engine-dir" => contract.engine_dir = descriptor()?,
                "--module" => contract.module = descriptor()?,
                "--native" => contract.native = Some(descriptor()?),
                "--env" => contract.environment = descriptor()?,
                "--plugin-dir" => contract.plugin_dir = Some(descriptor()?),
                "--plugin" => contract.plugins.push(value.to_owned()),
                "--memory" => {
                    let limit =
                        value.parse().map_err(|_| format!("`{arg}`: not a number of bytes"));
                    contract.memory = Some(limit?);
                }
                "--timeout" => {
                    let number = value.parse().ok().filter(|number| *number > 0);
                    let wrong = || format!("`{arg}`: not a number of milliseconds");
                    contract.timeout = Some(number.ok_or_else(wrong)?);
                }
                "--fuel" => {
                    let number = value.parse().ok().filter(|number| *number > 0);
                    let wrong = || format!("`{arg}`: not a number of instructions");
                    contract.fuel = Some(number.ok_or_else(wrong)?);
                }
                "--dir-fd" => {
                    let (number, rest) = value.split_once(':').ok_or_else(wrong)?;
                    let number =
                        number.parse().ok().filter(|number| *number > 2).ok_or_else(wrong)?;
                    let directory = directory(rest).ok_or_else(wrong)?;
                    let descriptor = Some(number);
                    contract.directories.push(Directory { descriptor, ..directory });
                }
                "--dir" => contract.directories.push(directory(value).ok_or_else(wrong)?),
                _ => return Err(wrong()),
            }
        }
        contract.arguments = args.map(text).collect::<Result<_, _>>()?;
        if contract.engine_dir < 0 || contract.module < 0 || contract.environment < 0 {
            return Err("`--engine-dir`, `--module` and `--env` must be given".into());
        }
        let descriptors = [contract.engine_dir, contract.module, contract.environment];
        let mut descriptors: Vec<i32> =
            descriptors.into_iter().chain(contract.native).chain(contract.plugin_dir).collect();
        descriptors
            .extend(contract.directories.iter().filter_map(|directory| directory.descriptor));
        let count = descriptors.len();
        descriptors.sort_unstable();
        descriptors.dedup();
        if descriptors.len() < count {
            return Err("the descriptors of the command line must differ".into());
        }
        if contract.plugins.is_empty() != contract.plugin_dir.is_none()
            || contract.plugins.iter().any(|file| file.is_empty() || file.contains('/'))
        {
            return Err("`--plugin` names a file in `--plugin-dir`".into());
        }
        Ok(contract)
    }
}

fn directory(value: &str) -> Option<Directory> {
    let (right, path) = value.split_once(':')?;
    let read_only = match right {
        "ro" => true,
        "rw" => false,
        _ => return None,
    };
    let path = path.starts_with('/').then(|| path.to_owned())?;
    Some(Directory { path, read_only, descriptor: None })
}

/// `config.json` is JSON, so all its strings are UTF-8.
fn text(arg: OsString) -> Result<String, String> {
    arg.into_string().map_err(|arg| format!("the argument {arg:?} is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(args: &[&str]) -> Result<Work, String> {
        Work::parse(["rt-wasmedge"].iter().chain(args).map(OsString::from))
    }

    fn parse(args: &[&str]) -> Result<Contract, String> {
        match work(args)? {
            Work::Run(contract) => Ok(contract),
            Work::Compile { .. } => Err("to compile".into()),
        }
    }

    const FDS: [&str; 4] = ["--contract=1", "--engine-dir=3", "--module=4", "--env=5"];

    #[test]
    fn takes_what_rt_gives() {
        let args = [
            &FDS[..],
            &[
                "--native=6",
                "--memory=1048576",
                "--timeout=1500",
                "--fuel=5000000000",
                "--dir=ro:/",
                "--dir=rw:/a:b",
                "--",
                "/app.wasm",
                "--dir=x",
                "--",
            ],
        ]
        .concat();
        let contract = parse(&args).expect("taken");
        assert_eq!((contract.engine_dir, contract.module, contract.environment), (3, 4, 5));
        assert_eq!((contract.native, contract.fuel), (Some(6), Some(5_000_000_000)));
        assert_eq!((contract.memory, contract.timeout), (Some(1 << 20), Some(1500)));
        let directories: Vec<_> =
            contract.directories.iter().map(|d| (d.path.as_str(), d.read_only)).collect();
        assert_eq!(directories, [("/", true), ("/a:b", false)]);
        assert_eq!(contract.arguments, ["/app.wasm", "--dir=x", "--"]);
    }

    #[test]
    fn refuses_everything_else() {
        assert!(parse(&[]).is_err_and(|error| error.contains("contract")));
        assert!(parse(&["--contract=2"]).is_err_and(|error| error.contains("`--contract=2`")));
        assert!(parse(&FDS[..3]).is_err());
        assert!(parse(&["--contract=1", "--engine-dir=3", "--module=4", "--env=4"]).is_err());
        for wrong in [
            &["--native=4"][..],
            &["--plugin=x.so"],
            &["--plugin-dir=7"],
            &["--plugin-dir=7", "--plugin=../x"],
        ] {
            assert!(parse(&[&FDS[..], wrong].concat()).is_err(), "{wrong:?}");
        }
        let plugins =
            parse(&[&FDS[..], &["--plugin-dir=7", "--plugin=x.so"]].concat()).expect("taken");
        assert_eq!((plugins.plugin_dir, plugins.plugins), (Some(7), vec!["x.so".to_owned()]));
        for (counting, args) in [(false, &["--compile"][..]), (true, &["--compile", "--counting"])]
        {
            let args = [&["--contract=1"], args].concat();
            assert_eq!(work(&args), Ok(Work::Compile { counting }));
        }
        assert!(work(&["--contract=1", "--compile", "x"]).is_err());
        assert!(work(&["--compile"]).is_err());
        for bad in [
            "--frob=1",
            "--dir=/x",
            "--dir=ro:x",
            "--module=2",
            "--module=x",
            "--memory=x",
            "--memory=-1",
            "--timeout=0",
            "--timeout=1s",
            "--fuel=0",
            "--fuel=many",
            "x",
        ] {
            let error = parse(&[&FDS[..], &[bad]].concat()).expect_err(bad);
            assert!(error.contains(bad), "{error}");
        }
    }
}
