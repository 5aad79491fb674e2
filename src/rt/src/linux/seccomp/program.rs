//! Programs of classic BPF for `seccomp(2)` (`<linux/bpf_common.h>`, kernel documentation,
//! `networking/filter.rst`).
#![forbid(unsafe_code)]

use libc::sock_filter;

use crate::linux::assembler::{Assembler, Instruction, Label, Way};

pub(super) type Program = Assembler<sock_filter>;

/// Offsets in `struct seccomp_data`, `<linux/seccomp.h>`.
pub(super) const NR: u32 = 0;
pub(super) const ARCH: u32 = 4;

/// The offset of the arguments, which have 64 bits each.
const ARGUMENTS: u32 = 16;

/// The offset of one half of an argument.
pub(super) fn half(argument: u32, is_high: bool) -> u32 {
    ARGUMENTS + 8 * argument + if is_high == cfg!(target_endian = "little") { 4 } else { 0 }
}

const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;

fn instruction(code: u32, k: u32) -> sock_filter {
    // All codes of classic BPF fit a byte.
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

impl Instruction for sock_filter {
    fn skip(&mut self, way: Way, count: usize) -> Option<()> {
        match way {
            Way::Yes if u32::from(self.code) == JUMP => self.k = count.try_into().ok()?,
            Way::Yes => self.jt = count.try_into().ok()?,
            Way::No => self.jf = count.try_into().ok()?,
        }
        Some(())
    }
}

impl Program {
    /// Loads a word of `struct seccomp_data` into the accumulator.
    pub(super) fn load(&mut self, offset: u32) {
        self.push(instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset));
    }

    pub(super) fn and(&mut self, mask: u32) {
        self.push(instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, mask));
    }

    /// Ends with an answer, `SECCOMP_RET_*`.
    pub(super) fn answer(&mut self, answer: u32) {
        self.push(instruction(libc::BPF_RET | libc::BPF_K, answer));
    }

    /// Compares the accumulator (`BPF_JEQ` and others). At most 255 instructions lie between this
    /// and a label.
    pub(super) fn compare(&mut self, comparison: u32, with: u32, ways: &[(Way, Label)]) {
        self.jump(instruction(libc::BPF_JMP | libc::BPF_K | comparison, with), ways);
    }

    /// Continues if the accumulator equals `with`, otherwise goes to a label that may be far away.
    /// The jump to this label has no comparison, so it has 32 bits for the distance.
    pub(super) fn only(&mut self, with: u32, otherwise: Label) {
        let next = self.label();
        self.compare(libc::BPF_JEQ, with, &[(Way::Yes, next)]);
        self.go(otherwise);
        self.put(next);
    }

    pub(super) fn go(&mut self, to: Label) {
        self.jump(instruction(JUMP, 0), &[(Way::Yes, to)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Puts `count` instructions between a jump and its label.
    fn over(count: u32, jump: impl FnOnce(&mut Program, Label)) -> anyhow::Result<sock_filter> {
        let mut program = Program::default();
        let end = program.label();
        jump(&mut program, end);
        (0..count).for_each(|answer| program.answer(answer));
        program.put(end);
        program.finish().map(|program| program[0])
    }

    #[test]
    fn a_comparison_reaches_255_instructions_and_a_jump_all() {
        for way in [Way::Yes, Way::No] {
            let compare = |program: &mut Program, end| {
                program.compare(libc::BPF_JEQ, 1, &[(way, end)]);
            };
            let jump = over(255, compare).expect("short enough");
            let expected = if way == Way::Yes { (255, 0) } else { (0, 255) };
            assert_eq!((jump.jt, jump.jf), expected);
            let error = over(256, compare).expect_err("too long").to_string();
            assert_eq!(error, "the jump in instruction 0 of 257 is too long");
        }
        let go = |program: &mut Program, end| program.go(end);
        assert_eq!(over(4000, go).expect("short enough").k, 4000);
    }

    #[test]
    fn a_jump_back_or_to_nowhere_is_an_error() {
        let mut program = Program::default();
        let begin = program.label();
        program.put(begin);
        program.answer(0);
        program.go(begin);
        program.finish().expect_err("a jump back");
        let mut program = Program::default();
        let nowhere = program.label();
        program.go(nowhere);
        program.finish().expect_err("a label that is nowhere");
    }
}
