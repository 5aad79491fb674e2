//! What a WebAssembly file imports and exports, by its outermost sections (WebAssembly core
//! specification 5.5, component-model `Binary.md`).
//!
//! Own code, because this is a part of the choice of an engine, and `rt` wants three of a dozen
//! sections: the parser crates (`wasmparser`) link everything that they know. This reader checks
//! only what it reads. A compiler or an engine checks the file.
#![forbid(unsafe_code)]

use std::os::fd::BorrowedFd;

use anyhow::{Context, Result, bail, ensure};

use super::{Format, World};

/// The longest section that is read, in bytes. A linker writes a few dozen kilobytes.
const LONGEST: u32 = 4 << 20;
/// The most sections, and the most entries of one section.
const MOST: u32 = 100_000;

/// What a file imports, or exports.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Item {
    /// The module from which a core module imports. Empty for exports, and in components.
    pub(crate) module: String,
    pub(crate) name: String,
    /// Such as `func`, `memory` or `instance`.
    pub(crate) kind: &'static str,
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Contents {
    pub(crate) imports: Vec<Item>,
    pub(crate) exports: Vec<Item>,
}

/// Reads the outermost sections of a core module or a component.
pub(crate) fn read(file: BorrowedFd<'_>, format: Format) -> Result<Contents> {
    let (imports, exports) = match format {
        Format::Module => (2, 7),
        Format::Component => (10, 11),
        _ => bail!("it is not a WebAssembly module"),
    };
    let mut contents = Contents::default();
    let mut at = super::HEAD as u64;
    for _ in 0..MOST {
        let Some((id, length, begin)) = section(file, at)? else { return Ok(contents) };
        if id == imports || id == exports {
            ensure!(length <= LONGEST, "section {id} is larger than {} MiB", LONGEST >> 20);
            let bytes = bytes(file, begin, length)?;
            let mut cursor = Cursor { rest: &bytes };
            let items = match (format, id == imports) {
                (Format::Module, true) => cursor.list(Cursor::import),
                (Format::Module, false) => cursor.list(Cursor::export),
                (_, true) => cursor.list(Cursor::component_import),
                (_, false) => cursor.list(Cursor::component_export),
            };
            let items = items.with_context(|| format!("section {id}"))?;
            let list = if id == imports { &mut contents.imports } else { &mut contents.exports };
            list.extend(items);
        }
        at = begin + u64::from(length);
    }
    bail!("it has more than {MOST} sections")
}

/// The section at this place: its number, its length, and where its contents begin.
fn section(file: BorrowedFd<'_>, at: u64) -> Result<Option<(u8, u32, u64)>> {
    let mut head = [0; 6];
    let mut length = 0;
    while length < head.len() {
        match rustix::io::pread(file, &mut head[length..], at + length as u64)? {
            0 => break,
            more => length += more,
        }
    }
    let Some((id, rest)) = head[..length].split_first() else { return Ok(None) };
    let mut cursor = Cursor { rest };
    let size = cursor.number().context("the length of a section")?;
    let used = length - cursor.rest.len();
    Ok(Some((*id, size, at + used as u64)))
}

fn bytes(file: BorrowedFd<'_>, at: u64, length: u32) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length as usize];
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pread(file, &mut bytes[done..], at + done as u64)? {
            0 => bail!("the file ends within a section"),
            more => done += more,
        }
    }
    Ok(bytes)
}

/// The rest of a section.
struct Cursor<'a> {
    rest: &'a [u8],
}

impl Cursor<'_> {
    fn byte(&mut self) -> Result<u8> {
        let (first, rest) = self.rest.split_first().context("it ends too early")?;
        self.rest = rest;
        Ok(*first)
    }

    /// An unsigned number in LEB128, of at most 32 bits.
    fn number(&mut self) -> Result<u32> {
        let mut number = 0_u64;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return u32::try_from(number).context("a number is too large");
            }
        }
        bail!("a number is too long")
    }

    /// Passes over a number of any kind in LEB128.
    fn pass(&mut self) -> Result<()> {
        for _ in 0..10 {
            if self.byte()? & 0x80 == 0 {
                return Ok(());
            }
        }
        bail!("a number is too long")
    }

    fn text(&mut self) -> Result<String> {
        let length = self.number()? as usize;
        ensure!(length <= self.rest.len(), "a name is too long");
        let (text, rest) = self.rest.split_at(length);
        self.rest = rest;
        Ok(std::str::from_utf8(text).context("a name is not UTF-8")?.to_owned())
    }

    fn list(&mut self, item: impl Fn(&mut Self) -> Result<Item>) -> Result<Vec<Item>> {
        let count = self.number()?;
        ensure!(count <= MOST, "it has more than {MOST} entries");
        let items = (0..count).map(|_| item(self)).collect::<Result<Vec<_>>>()?;
        ensure!(self.rest.is_empty(), "it is longer than its entries");
        Ok(items)
    }

    fn import(&mut self) -> Result<Item> {
        let (module, name) = (self.text()?, self.text()?);
        let kind = match self.byte()? {
            0 => self.pass().map(|()| "func")?,
            1 => {
                self.value_type()?;
                self.limits().map(|()| "table")?
            }
            2 => self.limits().map(|()| "memory")?,
            3 => {
                self.value_type()?;
                self.byte().map(|_| "global")?
            }
            4 => {
                self.byte()?;
                self.pass().map(|()| "tag")?
            }
            other => bail!("`{name}` is of the unknown kind {other}"),
        };
        Ok(Item { module, name, kind })
    }

    fn value_type(&mut self) -> Result<()> {
        // A reference with its heap type (function references and garbage collection).
        if let 0x63 | 0x64 = self.byte()? {
            self.pass()?;
        }
        Ok(())
    }

    fn limits(&mut self) -> Result<()> {
        let flags = self.byte()?;
        ensure!(flags <= 0x0f, "limits of the unknown kind {flags}");
        self.pass()?;
        if flags & 1 != 0 {
            self.pass()?;
        }
        if flags & 8 != 0 {
            self.pass()?;
        }
        Ok(())
    }

    fn export(&mut self) -> Result<Item> {
        let name = self.text()?;
        let kind = match self.byte()? {
            0 => "func",
            1 => "table",
            2 => "memory",
            3 => "global",
            4 => "tag",
            other => bail!("`{name}` is of the unknown kind {other}"),
        };
        self.pass()?;
        Ok(Item { module: String::new(), name, kind })
    }

    /// A name of a component's import or export.
    fn component_name(&mut self) -> Result<String> {
        match self.byte()? {
            0 | 1 => self.text(),
            other => bail!("a name of the unknown kind {other}"),
        }
    }

    fn component_import(&mut self) -> Result<Item> {
        let name = self.component_name()?;
        let kind = self.described().with_context(|| format!("`{name}`"))?;
        Ok(Item { module: String::new(), name, kind })
    }

    /// The type of a component's import or export (`externdesc`).
    fn described(&mut self) -> Result<&'static str> {
        let kind = self.byte()?;
        if let 0 | 2 | 3 = kind {
            // A core sort, or how the type is bound.
            let bound = self.byte()?;
            if kind == 3 && bound == 1 {
                return Ok("type");
            }
        }
        self.pass()?;
        sort(kind)
    }

    fn component_export(&mut self) -> Result<Item> {
        let name = self.component_name()?;
        let number = self.byte()?;
        if number == 0 {
            self.byte()?;
        }
        let kind = sort(number).with_context(|| format!("`{name}`"))?;
        self.pass()?;
        match self.byte()? {
            0 => {}
            1 => drop(self.described().with_context(|| format!("`{name}`"))?),
            other => bail!("`{name}` has a type of the unknown kind {other}"),
        }
        Ok(Item { module: String::new(), name, kind })
    }
}

/// The sorts of a component, by number.
fn sort(number: u8) -> Result<&'static str> {
    const SORTS: [&str; 6] = ["core module", "func", "value", "type", "component", "instance"];
    SORTS.get(usize::from(number)).copied().with_context(|| format!("unknown kind {number}"))
}

/// The functions of WASI preview1 (`wasi_snapshot_preview1`).
const PREVIEW1: [&str; 46] = [
    "args_get",
    "args_sizes_get",
    "clock_res_get",
    "clock_time_get",
    "environ_get",
    "environ_sizes_get",
    "fd_advise",
    "fd_allocate",
    "fd_close",
    "fd_datasync",
    "fd_fdstat_get",
    "fd_fdstat_set_flags",
    "fd_fdstat_set_rights",
    "fd_filestat_get",
    "fd_filestat_set_size",
    "fd_filestat_set_times",
    "fd_pread",
    "fd_prestat_dir_name",
    "fd_prestat_get",
    "fd_pwrite",
    "fd_read",
    "fd_readdir",
    "fd_renumber",
    "fd_seek",
    "fd_sync",
    "fd_tell",
    "fd_write",
    "path_create_directory",
    "path_filestat_get",
    "path_filestat_set_times",
    "path_link",
    "path_open",
    "path_readlink",
    "path_remove_directory",
    "path_rename",
    "path_symlink",
    "path_unlink_file",
    "poll_oneoff",
    "proc_exit",
    "proc_raise",
    "random_get",
    "sched_yield",
    "sock_accept",
    "sock_recv",
    "sock_send",
    "sock_shutdown",
];

/// What the handlers of Spin's SDKs export: a component as an interface, and a core module as a
/// function of one (`INTERFACE@VERSION#FUNCTION`).
const OF_AN_APP: [&str; 3] =
    ["wasi:http/incoming-handler", "wasi:http/handler", "fermyon:spin/inbound-http"];

impl Contents {
    /// What shows that a module is a part of a Spin app, and does not run by itself: the handler
    /// that a core module exports, or an interface of Spin that a handler imports. wasmtime's
    /// adapter makes a component of such a core module, as a part of an app only.
    pub(crate) fn part_of_an_app(&self, format: Format) -> Option<&Item> {
        let exports = |name: &str| self.exports.iter().any(|it| it.name == name);
        let is_spins = |it: &&Item| ["spin:", "fermyon:"].iter().any(|of| it.name.starts_with(of));
        let is_one = |it: &&Item| {
            let name = it.name.split(['@', '#']).next();
            name.is_some_and(|name| OF_AN_APP.contains(&name))
        };
        match format {
            Format::Module if !exports("_start") => {
                self.exports.iter().find(|it| it.name.contains('#') && is_one(it))
            }
            Format::Component if self.handler().is_some() => self.imports.iter().find(is_spins),
            Format::Component => self.exports.iter().find(|it| is_spins(it) && is_one(it)),
            _ => None,
        }
    }

    /// The world of a component with these exports, if it handles requests of HTTP and is not a
    /// command. A component of both versions of WASI is one of the newer.
    pub(crate) fn handler(&self) -> Option<World> {
        let exports =
            |name: &str| self.exports.iter().any(|it| it.name.split('@').next() == Some(name));
        match () {
            () if exports("wasi:cli/run") => None,
            () if exports("wasi:http/handler") => Some(World::HttpService),
            () if exports("wasi:http/incoming-handler") => Some(World::HttpProxy),
            () => None,
        }
    }

    /// The first import of a core module that is not one of preview1's functions.
    pub(crate) fn beyond_preview1(&self) -> Option<&Item> {
        self.imports.iter().find(|import| {
            import.module != "wasi_snapshot_preview1" || !PREVIEW1.contains(&import.name.as_str())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::MemfdFlags;

    use super::*;

    fn contents(format: Format, sections: &[u8]) -> Result<Contents> {
        let file = rustix::fs::memfd_create("sections", MemfdFlags::CLOEXEC).expect("made");
        rustix::io::pwrite(&file, &[&[0; 8], sections].concat(), 0).expect("written");
        read(file.as_fd(), format)
    }

    fn shown(items: &[Item]) -> Vec<String> {
        let show = |it: &Item| format!("{}/{}: {}", it.module, it.name, it.kind);
        items.iter().map(show).collect()
    }

    #[test]
    fn a_core_module_imports_and_exports() {
        let module = b"\x00\x05\x04name\
            \x02\x29\x05\x01a\x01f\x00\x81\x01\x01a\x01t\x01\x63\x05\x01\x02\x80\x01\x01a\x01m\x02\x03\x01\x02\
            \x01a\x01g\x03\x7f\x01\x01a\x01x\x04\x00\x03\
            \x0a\x02\x00\x00\
            \x07\x13\x02\x06_start\x00\x00\x06memory\x02\x00";
        let contents = contents(Format::Module, module).expect("good");
        let imports = ["a/f: func", "a/t: table", "a/m: memory", "a/g: global", "a/x: tag"];
        assert_eq!(shown(&contents.imports), imports);
        assert_eq!(shown(&contents.exports), ["/_start: func", "/memory: memory"]);
    }

    #[test]
    fn a_component_imports_and_exports() {
        let component = b"\x01\x02\x00\x00\
            \x0a\x17\x04\x00\x03a:b\x05\x02\x01\x01f\x01\x00\x00\x01t\x03\x01\x00\x01m\x00\x11\x07\
            \x0a\x06\x01\x00\x01v\x02\x01\
            \x0b\x0f\x02\x00\x03c:d\x05\x00\x00\x00\x01g\x01\x01\x00";
        // The second import section is cut short by one byte.
        assert!(contents(Format::Component, component).is_err());
        let component = b"\x01\x02\x00\x00\
            \x0a\x18\x04\x00\x03a:b\x05\x02\x01\x01f\x01\x00\x00\x01t\x03\x01\x00\x01m\x00\x11\x07\
            \x0a\x07\x01\x00\x01v\x02\x01\x73\
            \x0b\x0f\x02\x00\x03c:d\x05\x00\x00\x00\x01g\x01\x01\x00";
        let contents = contents(Format::Component, component).expect("good");
        let imports = ["/a:b: instance", "/f: func", "/t: type", "/m: core module", "/v: value"];
        assert_eq!(shown(&contents.imports), imports);
        assert_eq!(shown(&contents.exports), ["/c:d: instance", "/g: func"]);
    }

    #[test]
    fn damaged_sections_are_errors() {
        for wrong in [
            &b"\x02"[..],
            b"\x02\x80\x80\x80\x80\x80",
            b"\x02\xff\xff\xff\xff\x0f",
            b"\x02\x05\x01",
            b"\x02\x01\x01",
            b"\x02\x02\x00\x00",
            b"\x02\x05\xff\xff\xff\xff\x0f",
            b"\x02\x07\x01\x01a\x01f\x09\x00",
            b"\x02\x07\x01\x7fa\x01f\x00\x00",
            b"\x07\x04\x01\x01\xff\x00\x00",
        ] {
            assert!(contents(Format::Module, wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(contents(Format::Module, b"").expect("good"), Contents::default());
        assert!(contents(Format::Elf, b"").is_err());
    }

    #[test]
    fn a_handler_is_told_from_a_command() {
        let of = |names: &[&str]| {
            let item = |name: &&str| Item {
                module: String::new(),
                name: (*name).into(),
                kind: "instance",
            };
            Contents { imports: Vec::new(), exports: names.iter().map(item).collect() }.handler()
        };
        let (older, newer) = ("wasi:http/incoming-handler@0.2.3", "wasi:http/handler@0.3.0");
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[older]), Some(World::HttpProxy));
        assert_eq!(of(&[newer]), Some(World::HttpService));
        assert_eq!(of(&["wasi:http/handler@0.3.0-rc-2026-03-15"]), Some(World::HttpService));
        assert_eq!(of(&[older, newer]), Some(World::HttpService));
        assert_eq!(of(&[newer, "wasi:cli/run@0.3.0"]), None);
    }

    #[test]
    fn a_part_of_an_app_is_told_from_a_program() {
        let of = |format, imports: &[&str], exports: &[&str]| {
            let item =
                |name: &&str| Item { module: String::new(), name: (*name).into(), kind: "func" };
            let (imports, exports) = (imports.iter().map(item), exports.iter().map(item));
            let contents = Contents { imports: imports.collect(), exports: exports.collect() };
            contents.part_of_an_app(format).is_some()
        };
        let (module, component) = (Format::Module, Format::Component);
        for (export, expected) in [
            ("wasi:http/incoming-handler@0.2.0-rc-2023-10-18#handle", true),
            ("wasi:http/incoming-handler@0.2.0#handle", true),
            ("fermyon:spin/inbound-http#handle-request", true),
            ("cabi_realloc", false),
            ("wasi:http/incoming-handler", false),
        ] {
            assert_eq!(of(module, &[], &["memory", export]), expected, "{export}");
            assert!(!of(module, &[], &["_start", export]), "{export}");
        }
        let (plain, own) = ("wasi:cli/environment@0.2.0", "spin:variables/variables@3.0.0");
        let handler = "wasi:http/handler@0.3.0";
        assert!(!of(component, &[plain], &[handler]));
        assert!(of(component, &[plain, own], &[handler]));
        assert!(of(component, &["fermyon:spin/sqlite@2.0.0"], &["wasi:http/incoming-handler"]));
        assert!(of(component, &[], &["fermyon:spin/inbound-http"]));
        assert!(!of(component, &[own], &["wasi:cli/run@0.2.0"]));
        assert!(!of(Format::Manifest, &[own], &[handler]));
    }

    #[test]
    fn an_import_beyond_preview1_is_found() {
        let of = |module: &str, name: &str| {
            let item = Item { module: module.into(), name: name.into(), kind: "func" };
            Contents { imports: vec![item], exports: Vec::new() }.beyond_preview1().is_some()
        };
        assert!(!of("wasi_snapshot_preview1", "fd_write"));
        assert!(of("wasi_snapshot_preview1", "sock_open"));
        assert!(!of("wasi_snapshot_preview1", "sock_send"));
        assert!(of("wasi_unstable", "fd_write"));
        assert!(of("env", "fd_write"));
    }
}
