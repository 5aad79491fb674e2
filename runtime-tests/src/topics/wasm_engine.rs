//! The engine program of WasmEdge, which the build joins from a program and its libraries
//! (`packaging/wasmedge/join`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::wasm::by_wasmtime;
use crate::harness::{Container, Outcome, Output, Test, ensure, ensure_eq, skip};

super::tests! { "wasm_engine":
    its_pointers_are_read_only, no_page_is_writable_and_executable, it_has_another_address_each_time,
    a_joined_program_does_what_its_parts_do, what_cannot_be_joined_is_named,
}

/// An ELF program header: type, offset, address and size in memory.
struct Header {
    kind: u32,
    offset: u64,
    address: u64,
    size: u64,
}

fn headers(file: &Path) -> Outcome<Vec<Header>> {
    let bytes = fs::read(file)?;
    let number = |at: usize, size: usize| -> u64 {
        bytes[at..at + size].iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte))
    };
    let first = usize::try_from(number(32, 8))?;
    let count = usize::try_from(number(56, 2))?;
    let header = |at: usize| -> Outcome<Header> {
        let kind = u32::try_from(number(at, 4))?;
        Ok(Header {
            kind,
            offset: number(at + 8, 8),
            address: number(at + 16, 8),
            size: number(at + 40, 8),
        })
    };
    (0..count).map(|index| header(first + index * 56)).collect()
}

/// The program, if it is a joined one.
fn joined(test: &Test) -> Outcome<PathBuf> {
    test.only_rt()?;
    if by_wasmtime(test) {
        return skip("wasmtime's engine program has no libraries");
    }
    let engine = test.host.runtime.parent().and_then(Path::parent).ok_or("no place")?;
    let program = engine.join("libexec/rt/wasmedge/rt-wasmedge");
    // For other processors, the libraries stay separate.
    if !cfg!(target_arch = "x86_64") || !program.exists() {
        return skip("there is no joined program here");
    }
    Ok(program)
}

/// A part of a process's addresses: start, end, rights, and the offset and path of its file.
type Mapping = (u64, u64, String, u64, String);

fn mappings(container: &Container<'_>) -> Outcome<Vec<Mapping>> {
    let maps = fs::read_to_string(format!("/proc/{}/maps", container.pid()?))?;
    let parse = |line: &str| -> Outcome<Mapping> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (start, end) = words[0].split_once('-').ok_or("no range")?;
        let number = |word: &str| u64::from_str_radix(word, 16);
        let path = words.get(5).copied().unwrap_or_default().to_owned();
        Ok((number(start)?, number(end)?, words[1].to_owned(), number(words[2])?, path))
    };
    maps.lines().map(parse).collect()
}

fn running(test: &Test) -> Outcome<Container<'_>> {
    let container = test.wasm("probe", &["sleep"])?.start()?;
    container.wait_for_output("ready\n")?;
    Ok(container)
}

/// The address of the program, which is that of the beginning of its file.
fn base(mappings: &[Mapping]) -> Outcome<u64> {
    let mut of = mappings.iter().filter(|it| it.4 == "/rt-wasmedge" && it.3 == 0);
    Ok(of.next().ok_or("the program is not mapped")?.0)
}

const GNU_RELRO: u32 = 0x6474_e552;
const NAMES: u32 = 0x6072_7401;

fn its_pointers_are_read_only(test: &Test) -> Outcome {
    let program = joined(test)?;
    let container = running(test)?;
    let mappings = mappings(&container)?;
    let base = base(&mappings)?;
    let mut ranges = 0;
    for header in headers(&program)?.iter().filter(|header| header.kind == GNU_RELRO) {
        // Whole pages only.
        let (start, end) = (base + header.address, base + header.address + header.size);
        for page in (start & !4095..end & !4095).step_by(4096) {
            let mut of = mappings.iter().filter(|it| it.0 <= page && page < it.1);
            let rights = of.next().map_or("none", |it| it.2.as_str());
            ensure_eq((page - base, rights), (page - base, "r--p"))?;
        }
        ranges += 1;
    }
    // Of the program, WasmEdge, the C++ library, and others.
    ensure(ranges > 5, format!("{ranges} ranges"))
}

fn no_page_is_writable_and_executable(test: &Test) -> Outcome {
    joined(test)?;
    let mappings = mappings(&running(test)?)?;
    ensure(mappings.len() > 20, format!("{mappings:?}"))?;
    let both = mappings.iter().find(|it| it.2.contains('w') && it.2.contains('x'));
    ensure(both.is_none(), format!("{both:?}"))
}

/// Only texts of messages have a fixed address.
fn it_has_another_address_each_time(test: &Test) -> Outcome {
    let program = joined(test)?;
    let [first, second] = [mappings(&running(test)?)?, mappings(&running(test)?)?];
    ensure(base(&first)? != base(&second)?, "it has the same address twice")?;
    let names: Vec<_> =
        headers(&program)?.into_iter().filter(|header| header.kind == NAMES).collect();
    for mappings in [&first, &second] {
        let low: Vec<_> = mappings.iter().filter(|it| it.0 < 1 << 40).collect();
        ensure_eq(low.len(), names.len())?;
        for (mapping, names) in low.iter().zip(&names) {
            ensure_eq((mapping.0, mapping.2.as_str()), (names.address, "r--p"))?;
            ensure_eq((mapping.3, mapping.4.as_str()), (names.offset, "/rt-wasmedge"))?;
        }
    }
    Ok(())
}

/// A library with everything that a joined program resolves at its build.
const LOWER: &str = r#"
#include <stdio.h>
#include <math.h>
__thread int counter;
__thread int *self = 0;
int shared = 7;
int *pointer = &shared;
extern int missing(void) __attribute__((weak));
int (*maybe)(void) = missing;
int chosen(void) { return 1; }
static int quick(void) { return 20; }
static int (*resolve(void))(void) { return quick; }
int fast(void) __attribute__((ifunc("resolve")));
int (*through)(void) = fast;
int old_answer(void) { return 41; }
int new_answer(void) { return 42; }
__asm__(".symver old_answer,answer@LOWER_1\n.symver new_answer,answer@@LOWER_2");
double root(double x) { return sqrt(x) + cbrt(x); }
static const char *const words[] = { "one", "two", "three" };
const char *word(int at) { return words[at]; }
int count(void) { self = &counter; counter += chosen(); return *self; }
int counted(void) { return maybe ? maybe() : through() + *pointer; }
__attribute__((constructor)) static void up(void) { puts("lower starts"); }
__attribute__((destructor)) static void down(void) { puts("lower ends"); }
"#;

const UPPER: &str = r#"
#include <stdio.h>
extern __thread int counter;
extern int count(void), counted(void), answer(void);
extern int shared;
static __thread int mine = 0;
int chosen(void);
int all(void) { shared++; mine += count() + count(); return mine * 1000000 + counter * 10000 + counted() * 100 + answer(); }
__attribute__((constructor)) static void up(void) { printf("upper starts: %d\n", count()); }
__attribute__((destructor)) static void down(void) { puts("upper ends"); }
"#;

/// It has its own `chosen`, which the libraries find before theirs.
const PROGRAM: &str = r#"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
extern int all(void);
extern double root(double);
extern const char *word(int);
static __thread int before, after;
int chosen(void) { return 5; }
static void *run(void *none) { before++; after += 2; printf("%d %d %d\n", all(), before, after); return none; }
int main(int count, char **arguments) {
  pthread_t thread;
  run(NULL);
  pthread_create(&thread, NULL, run, NULL);
  pthread_join(thread, NULL);
  printf("%s %d %.3f %s\n", word(2), count, root(64 * count), arguments[1]);
  return atoi(arguments[1]);
}
"#;

struct Parts {
    folder: PathBuf,
    loader: String,
}

/// Compiles the parts, and collects the libraries.
fn parts(test: &Test) -> Outcome<Parts> {
    test.only_rt()?;
    if !cfg!(target_arch = "x86_64") || !Path::new("/usr/bin/cc").exists() {
        return skip("no C compiler for x86-64");
    }
    let folder = test.folder.join("parts");
    fs::create_dir_all(folder.join("lib"))?;
    let sources = [("lower.c", LOWER), ("upper.c", UPPER), ("program.c", PROGRAM)];
    for (name, text) in sources.into_iter().chain([("versions", "LOWER_1 {}; LOWER_2 {} LOWER_1;")])
    {
        fs::write(folder.join(name), text)?;
    }
    let scripts = [
        "cc -shared -fPIC -O1 -o lib/liblower.so lower.c -Wl,-soname,liblower.so -Wl,--version-script=versions -lm",
        "cc -shared -fPIC -O1 -o lib/libupper.so upper.c -Wl,-soname,libupper.so -Llib -llower",
        "cc -O1 -fPIE -pie -o program program.c -Llib -Wl,--export-dynamic-symbol=chosen -lupper -llower -lm",
        "for file in libc.so.6 libm.so.6; do cp $(cc -print-file-name=$file) lib/; done",
        "cp /lib64/ld-linux-x86-64.so.2 ld.so",
    ];
    for script in scripts {
        shell(&folder, script)?.success()?;
    }
    Ok(Parts { folder, loader: "./ld.so --inhibit-cache --library-path".into() })
}

fn shell(folder: &Path, script: &str) -> Outcome<Output> {
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).current_dir(folder).env("LC_ALL", "C");
    Output::of(shell)
}

/// Joins the parts to `joined`.
fn join(parts: &Parts) -> Outcome<Output> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/wasmedge/join");
    let script =
        format!("{} program lib joined libc.so.6,ld-linux-x86-64.so.2 none.so", script.display());
    shell(&parts.folder, &script)
}

fn a_joined_program_does_what_its_parts_do(test: &Test) -> Outcome {
    let parts = parts(test)?;
    let expected = shell(&parts.folder, &format!("{} lib ./program 33", parts.loader))?.code(33)?;
    let texts = ["lower starts", "upper starts: 5\n", "\nthree 2 ", "upper ends\nlower ends\n"];
    for text in texts {
        ensure(expected.stdout.contains(text), format!("no {text:?} in {:?}", expected.stdout))?;
    }
    join(&parts)?.success()?;
    // The C library is the only one that is left.
    shell(&parts.folder, "mkdir kept && cp lib/libc.so.6 kept/")?.success()?;
    let output = shell(&parts.folder, &format!("{} kept ./joined 33", parts.loader))?.code(33)?;
    ensure_eq(output.stdout, expected.stdout)?;
    // The loader looks up names of the C library only.
    let script = format!("LD_DEBUG=bindings {} kept ./joined 0", parts.loader);
    let bindings = shell(&parts.folder, &script)?.success()?.stderr;
    ensure(bindings.contains("symbol `pthread_create'"), bindings.as_str())?;
    for name in ["all", "count", "answer", "chosen", "sqrt", "cbrt"] {
        ensure(!bindings.contains(&format!("symbol `{name}'")), format!("{name} in {bindings}"))?;
    }
    Ok(())
}

fn what_cannot_be_joined_is_named(test: &Test) -> Outcome {
    let parts = parts(test)?;
    let lower = fs::read_to_string(parts.folder.join("lower.c"))?;
    let compile = "cc -shared -fPIC -O1 -o lib/liblower.so lower.c -Wl,-soname,liblower.so \
                   -Wl,--version-script=versions -lm";
    for (line, words) in [
        ("__thread int one = 1;", "liblower.so: thread-local variables that are not zero"),
        ("extern int none(void); int call(void) { return none(); }", "nothing defines none"),
    ] {
        fs::write(parts.folder.join("lower.c"), format!("{lower}{line}"))?;
        shell(&parts.folder, compile)?.success()?;
        join(&parts)?.code(3)?.fails_with(words)?;
        ensure(!parts.folder.join("joined").exists(), "something was written")?;
    }
    Ok(())
}
