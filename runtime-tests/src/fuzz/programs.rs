//! Programs that need only a kernel: the program in the place of the host's programs, and the
//! witness, which looks around in a container.

/// The first line of the witness. It shows that a container has run.
pub(super) const STARTED: &str = "WITNESS STARTED";

/// The line that the witness prints after it has looked around. If it has an argument, it runs the
/// bundle's `/upset` before.
pub(super) const SETTLED: &str = "WITNESS SETTLED";

/// An ELF program that prints a text and ends with exit code 77, at any load address. `interpreter`
/// is its `PT_INTERP`.
pub(super) fn elf(text: &str, interpreter: Option<&str>) -> Vec<u8> {
    let text = format!("{text}\n");
    let code = code(&text);
    let interpreter = interpreter.map(|path| [path.as_bytes(), b"\0"].concat());
    let headers: u16 = if interpreter.is_some() { 2 } else { 1 };
    let start = 64 + 56 * u64::from(headers);
    let length = start + code.len() as u64 + interpreter.as_ref().map_or(0, Vec::len) as u64;

    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    let machine: u16 = if cfg!(target_arch = "aarch64") { 183 } else { 62 };
    // ET_DYN: the program has no fixed address, so it can also be the interpreter of another
    // program.
    for half in [3, machine] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1_u32.to_le_bytes());
    for long in [start, 64, 0] {
        file.extend(long.to_le_bytes());
    }
    file.extend(0_u32.to_le_bytes());
    for half in [64, 56, headers, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // PT_INTERP is 3, PT_LOAD is 1. The flags are read, and read and execute.
    let mut header = |kind: u32, flags: u32, at: u64, length: u64, align: u64| {
        file.extend(kind.to_le_bytes());
        file.extend(flags.to_le_bytes());
        for long in [at, at, at, length, length, align] {
            file.extend(long.to_le_bytes());
        }
    };
    if let Some(path) = &interpreter {
        header(3, 4, start + code.len() as u64, path.len() as u64, 1);
    }
    header(1, 5, 0, length, 0x1000);
    file.extend(code);
    file.extend(interpreter.unwrap_or_default());
    file
}

/// `write(1, text, length); exit(77)`, and then the text.
#[cfg(target_arch = "x86_64")]
fn code(text: &str) -> Vec<u8> {
    let mut code = vec![0xbf, 1, 0, 0, 0]; // mov edi, 1
    code.extend([0x48, 0x8d, 0x35, 24, 0, 0, 0]); // lea rsi, [rip + 24]
    code.push(0xba); // mov edx, length
    code.extend((text.len() as u64).to_le_bytes().into_iter().take(4));
    code.extend([0xb8, 1, 0, 0, 0, 0x0f, 0x05]); // mov eax, 1; syscall
    // mov edi, 77; mov eax, 60; syscall
    code.extend([0xbf, 77, 0, 0, 0, 0xb8, 60, 0, 0, 0, 0x0f, 0x05]);
    code.extend(text.as_bytes());
    code
}

#[cfg(target_arch = "aarch64")]
fn code(text: &str) -> Vec<u8> {
    let set = |register: u32, value: u32| 0xd280_0000 | (value & 0xffff) << 5 | register;
    let length = text.len().try_into().unwrap_or_default();
    // adr x1, 28 bytes ahead; svc 0.
    let code = [
        set(0, 1),
        0x1000_00e1,
        set(2, length),
        set(8, 64),
        0xd400_0001,
        set(0, 77),
        set(8, 93),
        0xd400_0001,
    ];
    let mut bytes: Vec<u8> = code.iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
    bytes.extend(text.as_bytes());
    bytes
}

/// The script of the witness. It looks for a way out through each of its descriptors and
/// directories, and prints what it finds there. It uses only the shell itself. With the argument
/// `live` or `snoop`, it runs the bundle's `/upset`, and stays. With `snoop`, it also looks at
/// other processes of the container.
pub(super) fn witness() -> String {
    format!(
        r#"exec 2>&1
echo {STARTED}
up=../../../../../../../../../../../../..
look() {{
  [ -f "$1/srv/canary/public" ] && read -r line <"$1/srv/canary/public" && echo "by $1: $line"
}}
for way in / . /proc/self/root /proc/self/cwd /proc/self/fd/* /dev/fd/*; do
  look $way
  look $way/$up
done
for file in /etc/* /dev/* /run/* /run/*/* /mnt/* /data/* /data/a/* /t/* /work/*; do
  [ -f "$file" ] && read -r line <"$file" && echo "$file: $line"
done
for file in /proc/self/mountinfo /proc/keys; do
  [ -f "$file" ] && while read -r line; do
    case $line in *room-srv*|*room-key*|*room-changes*) echo "LEAK in $file: $line" ;; esac
  done <"$file"
done
[ -z "$1" ] || [ ! -f /upset ] || . /upset
echo {SETTLED}
if [ "$1" = snoop ]; then
  round=0
  while [ $round -lt 3000 ]; do
    for way in /proc/[2-9]*/fd/* /proc/1[0-9]*/fd/* /proc/[2-9]*/cwd; do
      look $way/$up
    done
    round=$((round + 1))
  done
fi
[ -z "$1" ] || exec sleep 60
"#
    )
}
