//! An assembler for the kernel's two virtual machines, classic BPF and eBPF, with labels in place
//! of distances. In both, a jump skips a number of the instructions that follow it.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};

/// A place in a program. A jump to the label comes before this place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Label(usize);

/// One of the two ways of a jump.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Way {
    /// The comparison holds, or the jump has none.
    Yes,
    /// The comparison does not hold. For an instruction set whose jumps have two ways.
    No,
}

/// An instruction of one of the two virtual machines.
pub(crate) trait Instruction {
    /// Makes a jump skip `count` instructions. Returns None if the jump cannot go that far, or does
    /// not have this way.
    fn skip(&mut self, way: Way, count: usize) -> Option<()>;
}

#[derive(Debug)]
pub(crate) struct Assembler<I> {
    program: Vec<I>,
    /// For each label, the number of the instruction after it.
    places: Vec<Option<usize>>,
    jumps: Vec<(usize, Way, Label)>,
}

impl<I> Default for Assembler<I> {
    fn default() -> Self {
        Assembler { program: Vec::new(), places: Vec::new(), jumps: Vec::new() }
    }
}

impl<I: Instruction> Assembler<I> {
    pub(crate) fn push(&mut self, instruction: I) {
        self.program.push(instruction);
    }

    /// Makes a new label, which the program must [put](Assembler::put) somewhere.
    pub(crate) fn label(&mut self) -> Label {
        self.places.push(None);
        Label(self.places.len() - 1)
    }

    /// Puts the label here: in front of the next instruction.
    pub(crate) fn put(&mut self, label: Label) {
        self.places[label.0] = Some(self.program.len());
    }

    /// Adds a jump. A way without a label continues with the next instruction.
    pub(crate) fn jump(&mut self, instruction: I, ways: &[(Way, Label)]) {
        let at = self.program.len();
        self.jumps.extend(ways.iter().map(|&(way, label)| (at, way, label)));
        self.push(instruction);
    }

    /// Fails if the instruction set cannot express a jump: one that is too long, or that goes back.
    pub(crate) fn finish(mut self) -> Result<Vec<I>> {
        for (at, way, label) in self.jumps {
            let count = self.places[label.0].and_then(|place| place.checked_sub(at + 1));
            count.and_then(|count| self.program[at].skip(way, count)).with_context(|| {
                format!("the jump in instruction {at} of {} is too long", self.program.len())
            })?;
        }
        Ok(self.program)
    }
}
