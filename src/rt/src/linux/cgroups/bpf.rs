//! Programs for cgroups, in the instruction set of
//! `Documentation/bpf/standardization/instruction-set.rst`. libcgroups makes such programs too, but
//! with libbpf, a C library that requires two more.
#![forbid(unsafe_code)]

use crate::linux::assembler::{Assembler, Instruction, Label, Way};

pub(super) type Program = Assembler<u64>;

/// One instruction: 8 bits of operation, 4 of destination, 4 of source, 16 of offset, 32 of
/// immediate value.
const fn instruction(operation: u8, destination: u8, source: u8, offset: i16, value: i32) -> u64 {
    u64::from_le_bytes({
        let ([o0, o1], [v0, v1, v2, v3]) = (offset.to_le_bytes(), value.to_le_bytes());
        [operation, destination | source << 4, o0, o1, v0, v1, v2, v3]
    })
}

// Operations: class, source and code or size, from `<linux/bpf_common.h>` and `<linux/bpf.h>`.
pub(super) const LOAD_WORD: u8 = 0x61;
pub(super) const LOAD_POINTER: u8 = 0x79;
pub(super) const AND: u8 = 0x54;
pub(super) const SHIFT_RIGHT: u8 = 0x74;
pub(super) const MOVE: u8 = 0xb4;
pub(super) const MOVE_REGISTER: u8 = 0xbc;
pub(super) const TO_BIG_ENDIAN: u8 = 0xdc;
pub(super) const JUMP_IF_NOT: u8 = 0x55;
pub(super) const JUMP_IF_NOT_REGISTER: u8 = 0x5d;
pub(super) const JUMP_IF: u8 = 0x15;
pub(super) const JUMP_IF_BELOW: u8 = 0xa5;
pub(super) const JUMP_IF_ABOVE: u8 = 0x25;
pub(super) const CALL: u8 = 0x85;
pub(super) const EXIT: u8 = 0x95;

impl Instruction for u64 {
    fn skip(&mut self, way: Way, count: usize) -> Option<()> {
        let [operation, registers, _, _, v0, v1, v2, v3] = self.to_le_bytes();
        let [o0, o1] = i16::try_from(count).ok().filter(|_| way == Way::Yes)?.to_le_bytes();
        *self = u64::from_le_bytes([operation, registers, o0, o1, v0, v1, v2, v3]);
        Some(())
    }
}

impl Program {
    /// Adds an instruction that neither jumps nor uses memory.
    pub(super) fn add(&mut self, operation: u8, destination: u8, source: u8, value: i32) {
        self.push(instruction(operation, destination, source, 0, value));
    }

    /// Loads the value at an offset from the address in a register.
    pub(super) fn load(&mut self, operation: u8, destination: u8, source: u8, offset: i16) {
        self.push(instruction(operation, destination, source, offset, 0));
    }

    /// Compares a register with a value, and goes to the label if the comparison holds.
    pub(super) fn jump_if(&mut self, comparison: u8, register: u8, value: i32, to: Label) {
        self.jump(instruction(comparison, register, 0, 0, value), &[(Way::Yes, to)]);
    }

    /// The same with two registers.
    pub(super) fn jump_if_register(&mut self, comparison: u8, register: u8, other: u8, to: Label) {
        self.jump(instruction(comparison, register, other, 0, 0), &[(Way::Yes, to)]);
    }

    /// Ends with an answer.
    pub(super) fn answer(&mut self, value: i32) {
        self.add(MOVE, 0, 0, value);
        self.add(EXIT, 0, 0, 0);
    }
}

/// The program's answer, from an interpreter of the few instructions that we use. `load` returns
/// the word that a register points to, by the register's value and the offset. Register 1 begins
/// with 1.
#[cfg(test)]
pub(super) fn run(program: &[u64], load: impl Fn(i32, i16) -> i32) -> (i32, Option<i32>) {
    let (mut registers, mut at, mut called) = ([0_i32; 11], 0_usize, None);
    registers[1] = 1;
    loop {
        let [operation, both, o0, o1, v0, v1, v2, v3] = program[at].to_le_bytes();
        let (destination, source) = (usize::from(both & 15), usize::from(both >> 4));
        let (offset, value) = (i16::from_le_bytes([o0, o1]), i32::from_le_bytes([v0, v1, v2, v3]));
        at += 1;
        let mut jump = false;
        let own = registers[destination];
        match operation {
            LOAD_WORD | LOAD_POINTER => registers[destination] = load(registers[source], offset),
            AND => registers[destination] &= value,
            SHIFT_RIGHT => registers[destination] >>= value,
            MOVE => registers[destination] = value,
            MOVE_REGISTER => registers[destination] = registers[source],
            TO_BIG_ENDIAN => {
                registers[destination] =
                    i32::from(u16::from_be(u16::try_from(own).expect("a word")));
            }
            JUMP_IF_NOT => jump = own != value,
            JUMP_IF_NOT_REGISTER => jump = own != registers[source],
            JUMP_IF => jump = own == value,
            JUMP_IF_BELOW => jump = own < value,
            JUMP_IF_ABOVE => jump = own > value,
            CALL => called = Some(registers[1]),
            EXIT => return (registers[0], called),
            operation => panic!("unknown operation {operation:#x}"),
        }
        if jump {
            at += usize::try_from(offset).expect("forwards");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_goes_over_what_is_between_it_and_its_label() {
        let over = |count: usize| {
            let mut program = Program::default();
            let end = program.label();
            program.jump_if(JUMP_IF, 2, 7, end);
            (0..count).for_each(|_| program.add(MOVE, 0, 0, 0));
            program.put(end);
            program.finish().map(|program| program[0])
        };
        assert_eq!(over(3).expect("short enough"), instruction(JUMP_IF, 2, 0, 3, 7));
        assert_eq!(over(32767).expect("short enough"), instruction(JUMP_IF, 2, 0, 32767, 7));
        let error = over(32768).expect_err("too long").to_string();
        assert_eq!(error, "the jump in instruction 0 of 32769 is too long");
    }
}
