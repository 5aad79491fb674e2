//! Names a guest's memories, so that `rt events` finds them: for an engine that reserves addresses
//! for each memory, and does not tell where.
#![forbid(unsafe_code)]

use std::fs;
use std::ops::Range;

use crate::process::name_memory;

/// An engine that does so reserves 4 GiB of addresses for each memory, and makes the pages in use
/// accessible.
const LEAST: usize = 1 << 31;

/// Names the memories of all instances. A memory that grows later keeps its name, because it grows
/// into its reserved addresses. Any thread may call this.
pub fn name_all() {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for memory in memories(&maps) {
        name_memory(memory.start, memory.len());
    }
}

/// The anonymous addresses of memories in a process's table of mappings (`proc_pid_maps(5)`). The
/// pages of a memory's initial data are those of the file of native code, until the guest writes to
/// them. They have no name.
fn memories(maps: &str) -> Vec<Range<usize>> {
    let (mut found, mut in_use, mut end) = (Vec::new(), Vec::new(), 0);
    for Mapping { range, accessible, anonymous } in maps.lines().filter_map(Mapping::parse) {
        if range.start != end {
            in_use.clear();
        }
        end = range.end;
        if accessible && anonymous {
            in_use.push(range);
        } else if !accessible {
            let mut before = std::mem::take(&mut in_use);
            if anonymous && range.len() >= LEAST {
                found.append(&mut before);
                found.push(range);
            }
        }
    }
    found
}

/// A private mapping that is readable and writable, or not accessible at all.
struct Mapping {
    range: Range<usize>,
    accessible: bool,
    anonymous: bool,
}

impl Mapping {
    fn parse(line: &str) -> Option<Mapping> {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let accessible = match fields.next()? {
            "rw-p" => true,
            "---p" => false,
            _ => return None,
        };
        let (_offset, _device, inode) = (fields.next()?, fields.next()?, fields.next()?);
        let number = |text| usize::from_str_radix(text, 16).ok();
        let anonymous = inode == "0" && fields.next().is_none();
        Some(Mapping { range: number(start)?..number(end)?, accessible, anonymous })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_is_what_is_in_use_and_the_reserve_behind_it() {
        let maps = "\
            00400000-00500000 r-xp 00000000 00:1f 5   /program\n\
            00600000-00700000 rw-p 00000000 00:00 0   [heap]\n\
            10000000-10001000 rw-p 00000000 00:00 0 \n\
            7f0000000000-7f0000100000 rw-p 00000000 00:00 0 \n\
            7f0000100000-7f0000120000 rw-p 00000000 00:1f 6   /native\n\
            7f0000120000-7f0000130000 rw-p 00000000 00:00 0 \n\
            7f0000130000-7f0102000000 ---p 00000000 00:00 0 \n\
            7f2000000000-7f2102000000 ---p 00000000 00:00 0 \n\
            7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0   [stack]\n";
        let expected = [
            0x7f00_0000_0000..0x7f00_0010_0000,
            0x7f00_0012_0000..0x7f00_0013_0000,
            0x7f00_0013_0000..0x7f01_0200_0000,
            0x7f20_0000_0000..0x7f21_0200_0000,
        ];
        assert_eq!(memories(maps), expected);
        assert_eq!(memories("x\n\n1-2 ---p"), []);
    }
}
