//! `rt top` on a terminal of the test, and what the screen of that terminal shows.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::LocalModes;

use super::{built, on, size, terminal};
use crate::harness::{Outcome, Test, ensure, wait_until};

pub(super) struct Live {
    /// `None` when it is closed.
    master: Option<File>,
    /// Keeps the terminal's modes after the program has ended.
    slave: Option<OwnedFd>,
    child: Child,
    /// All that the program has written.
    written: Vec<u8>,
    /// The number of these bytes that are on the screen, and the screen.
    done: usize,
    cells: Vec<Vec<char>>,
    at: (usize, usize),
}

impl Live {
    pub(super) fn start(test: &Test, size: (u16, u16), args: &[&str]) -> Outcome<Live> {
        built(test)?;
        let (master, slave) = terminal(size)?;
        let child = on(test, &slave, args)?.spawn()?;
        let (master, slave) = (Some(master.into()), Some(slave));
        let (written, cells, at) = (Vec::new(), vec![vec![' '; 300]; 100], (0, 0));
        Ok(Live { master, slave, child, written, done: 0, cells, at })
    }

    /// Waits until a line of the screen contains a text.
    pub(super) fn shows(&mut self, text: &str) -> Outcome {
        self.until(text, |live| live.lines().iter().any(|line| line.contains(text)))
    }

    pub(super) fn first_row_is(&mut self, id: &str) -> Outcome {
        let is_first = |live: &Live| live.line(2).split(' ').next() == Some(id);
        self.until(&format!("{id} in the first row"), is_first)
    }

    pub(super) fn line(&self, number: usize) -> String {
        self.lines()[number].clone()
    }

    fn lines(&self) -> Vec<String> {
        let line = |cells: &Vec<char>| cells.iter().collect::<String>().trim_end().to_owned();
        self.cells.iter().map(line).collect()
    }

    fn until(&mut self, what: &str, holds: impl Fn(&Live) -> bool) -> Outcome {
        let end = Instant::now() + Duration::from_secs(40);
        while !holds(self) {
            let more = self.read(Duration::from_millis(200))?;
            let seen = self.lines().join("\n").trim_end().to_owned();
            ensure(Instant::now() < end, format!("waited in vain for {what}:\n{seen}"))?;
            let ended = !more && self.child.try_wait()?.is_some();
            // What it wrote before its end may still come.
            if ended && !self.read(Duration::ZERO)? {
                return ensure(holds(self), format!("ended without {what}:\n{seen}"));
            }
        }
        Ok(())
    }

    /// Reads what is there, and waits for it if necessary. Returns whether there was anything.
    fn read(&mut self, patience: Duration) -> Outcome<bool> {
        let Some(master) = &mut self.master else { return Ok(false) };
        let mut polled = [PollFd::new(&*master, PollFlags::IN)];
        rustix::event::poll(&mut polled, Some(&Timespec::try_from(patience)?))?;
        if !polled[0].revents().contains(PollFlags::IN) {
            return Ok(false);
        }
        let mut bytes = [0; 4096];
        let length = master.read(&mut bytes)?;
        self.written.extend_from_slice(&bytes[..length]);
        self.paint();
        Ok(length > 0)
    }

    /// Does what a terminal does with the characters and sequences that the program uses.
    fn paint(&mut self) {
        while let Some((first, rest)) = self.written[self.done..].split_first() {
            let length = match (first, rest) {
                (0x1b, [b'[', rest @ ..]) => {
                    let last = rest.iter().position(|byte| (0x40..=0x7e).contains(byte));
                    let Some(last) = last else { return };
                    let parameters = String::from_utf8_lossy(&rest[..last]).into_owned();
                    let number = |at: usize| {
                        let text = parameters.split(';').nth(at).unwrap_or_default();
                        text.parse::<usize>().unwrap_or(1).saturating_sub(1)
                    };
                    match rest[last] {
                        b'H' => self.at = (number(0), number(1)),
                        b'J' => self.cells.iter_mut().for_each(|line| line.fill(' ')),
                        _ => {}
                    }
                    last + 3
                }
                (0x1b, []) => return,
                (b'\r', _) => {
                    self.at.1 = 0;
                    1
                }
                (b'\n', _) => {
                    self.at.0 += 1;
                    1
                }
                (first, _) => {
                    let length = match first {
                        0xf0.. => 4,
                        0xe0.. => 3,
                        0xc0.. => 2,
                        _ => 1,
                    };
                    let text = &self.written[self.done..];
                    if text.len() < length {
                        return;
                    }
                    let text = String::from_utf8_lossy(&text[..length]).into_owned();
                    let (row, column) = self.at;
                    if let Some(cell) =
                        self.cells.get_mut(row).and_then(|line| line.get_mut(column))
                    {
                        *cell = text.chars().next().unwrap_or(' ');
                    }
                    self.at.1 += 1;
                    length
                }
            };
            self.done += length;
        }
    }

    pub(super) fn types(&mut self, keys: &str) -> Outcome {
        let master = self.master.as_mut().ok_or("the terminal is closed")?;
        Ok(master.write_all(keys.as_bytes())?)
    }

    pub(super) fn resize(&self, to: (u16, u16)) -> Outcome {
        let master = self.master.as_ref().ok_or("the terminal is closed")?;
        Ok(rustix::termios::tcsetwinsize(master, size(to))?)
    }

    pub(super) fn is_raw(&self) -> Outcome<bool> {
        let slave = self.slave.as_ref().ok_or("the terminal is closed")?;
        let modes = rustix::termios::tcgetattr(slave)?.local_modes;
        Ok(!modes.intersects(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG))
    }

    /// Checks the modes, the first screen and the cursor.
    pub(super) fn is_given_back(&mut self) -> Outcome {
        while self.read(Duration::ZERO)? {}
        let slave = self.slave.as_ref().ok_or("the terminal is closed")?;
        let modes = rustix::termios::tcgetattr(slave)?.local_modes;
        let all = LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
        ensure(modes.contains(all), format!("{modes:?}"))?;
        let written = String::from_utf8_lossy(&self.written).into_owned();
        for (on, off) in [("\x1b[?1049h", "\x1b[?1049l"), ("\x1b[?25l", "\x1b[?25h")] {
            ensure(written.rfind(on) < written.rfind(off), format!("{off:?} in {written:?}"))?;
        }
        Ok(())
    }

    pub(super) fn signal(&self, signal: Signal) -> Outcome {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Waits for the end of the program.
    pub(super) fn ends(&mut self) -> Outcome<ExitStatus> {
        let mut status = None;
        wait_until("the program ends", || {
            // It may have to write before its end.
            let _ = self.read(Duration::ZERO);
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        })?;
        Ok(status.ok_or("no status")?)
    }

    pub(super) fn hang_up(&mut self) -> Outcome<ExitStatus> {
        (self.master, self.slave) = (None, None);
        self.ends()
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // A test that has failed leaves no process.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
