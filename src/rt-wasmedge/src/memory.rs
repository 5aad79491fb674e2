//! The memories and tables of a module: their initial sizes, and whether native code may use them.
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::FileExt;

use wasmparser::{MemoryType, Parser, Payload, TableType, TypeRef};

/// The memories of a module that has native code. Reads only the necessary part of the module.
/// Fails if the module has a memory or a table for which native code must not be made, because
/// native code checks 32 bits only ([`crate::config`]).
pub(crate) fn of_native(module: &File) -> Result<Vec<MemoryType>, String> {
    let mut bytes = vec![0; 64 << 10];
    let mut length = 0;
    loop {
        let read = module.read_at(&mut bytes[length..], length as u64).unwrap_or(0);
        length += read;
        let spaces = parse(&bytes[..length]);
        if spaces.is_whole {
            return spaces.narrow();
        }
        // A module with native code is never larger than `LARGEST`.
        if read == 0 || length as u64 >= rt_engine::LARGEST {
            return Err("its memories are not understood".into());
        }
        bytes.resize(bytes.len() * 2, 0);
    }
}

pub(crate) fn of_bytes(module: &[u8]) -> Vec<MemoryType> {
    parse(module).memories
}

/// The memories and tables of a module.
#[derive(Default)]
struct Spaces {
    memories: Vec<MemoryType>,
    tables: Vec<TableType>,
    /// Whether these are all memories and tables, and all were parsed.
    is_whole: bool,
}

impl Spaces {
    /// The memories, if all memories and tables have 32 bits and are not shared, and if the
    /// memories have pages of the usual size.
    fn narrow(self) -> Result<Vec<MemoryType>, String> {
        let wide = |memory: &MemoryType| {
            memory.memory64 || memory.shared || memory.page_size_log2.is_some()
        };
        if self.memories.iter().any(wide) {
            return Err("it has a memory of 64 bits, or a shared one".into());
        }
        if self.tables.iter().any(|table| table.table64 || table.shared) {
            return Err("it has a table of 64 bits, or a shared one".into());
        }
        Ok(self.memories)
    }
}

/// If this parser fails, WasmEdge has refused the module already, or parses it better.
fn parse(module: &[u8]) -> Spaces {
    let mut spaces = Spaces::default();
    let mut understood = true;
    for payload in Parser::new(0).parse_all(module) {
        match payload {
            Ok(Payload::ImportSection(imports)) => {
                for import in imports.into_imports() {
                    match import.map(|import| import.ty) {
                        Ok(TypeRef::Memory(memory)) => spaces.memories.push(memory),
                        Ok(TypeRef::Table(table)) => spaces.tables.push(table),
                        Ok(_) => {}
                        Err(_) => understood = false,
                    }
                }
            }
            Ok(Payload::MemorySection(section)) => {
                for memory in section {
                    memory.map_or_else(|_| understood = false, |it| spaces.memories.push(it));
                }
            }
            Ok(Payload::TableSection(section)) => {
                for table in section {
                    table.map_or_else(|_| understood = false, |it| spaces.tables.push(it.ty));
                }
            }
            // All memories and tables come before the code.
            Ok(Payload::CodeSectionStart { .. } | Payload::End(_)) => {
                spaces.is_whole = understood;
                return spaces;
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    spaces
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn memories_are_found_in_imports_too() {
        // (module (import "a" "b" (memory 3)) (memory 5 6))
        let module = b"\0asm\x01\0\0\0\x02\x08\x01\x01a\x01b\x02\0\x03\x05\x04\x01\x01\x05\x06";
        let initial: Vec<u64> = of_bytes(module).iter().map(|memory| memory.initial).collect();
        assert_eq!(initial, [3, 5]);
        assert!(of_bytes(b"nonsense").is_empty());
    }

    #[test]
    fn native_code_is_for_memories_and_tables_of_32_bits() {
        // (module (import "a" "b" (memory 3)) (table 1 funcref) (memory 5 6)), and variants in
        // which one of them has 64 bits or is shared.
        let module = |import: &[u8], table: u8, memory: u8| {
            let head = b"\0asm\x01\0\0\0\x02\x08\x01\x01a\x01b";
            [&head[..], import, &[4, 4, 1, 0x70, table, 1, 5, 4, 1, memory, 5, 6]].concat()
        };
        for (import, table, memory, good) in [
            (b"\x02\0\x03", 0, 1, true),
            (b"\x02\x04\x03", 0, 1, false),
            (b"\x02\0\x03", 4, 1, false),
            (b"\x02\0\x03", 0, 5, false),
            (b"\x02\0\x03", 0, 3, false),
        ] {
            let spaces = parse(&module(import, table, memory));
            assert!(spaces.is_whole);
            assert_eq!(spaces.narrow().is_ok(), good, "{import:?} {table} {memory}");
        }
        assert!(!parse(b"\0asm\x01\0\0\0\x05\x04\x01\xff\x05\x06").is_whole);
    }

    #[test]
    fn memories_are_found_in_a_file_behind_much_else() {
        // A custom section of 300000 bytes, (memory 5 6), and the beginning of the functions.
        let mut module = b"\0asm\x01\0\0\0\0\xe0\xa7\x12\0".to_vec();
        module.resize(module.len() + 299_999, 1);
        module.extend(b"\x05\x04\x01\x01\x05\x06\x0a\x7f\x00");
        let path = std::env::temp_dir().join(format!("rt-wasmedge-memory-{}", std::process::id()));
        fs::write(&path, &module).expect("written");
        let found = of_native(&File::open(&path).expect("open")).expect("understood");
        fs::write(&path, &module[..module.len() - 4]).expect("written");
        let cut_off = of_native(&File::open(&path).expect("open"));
        fs::remove_file(path).expect("removed");
        assert!(cut_off.is_err());
        assert_eq!(found.iter().map(|memory| memory.initial).collect::<Vec<_>>(), [5]);
    }
}
