//! The live table. Three threads tell the main thread what happens: one takes samples, one reads
//! the keys, one waits for signals. The main thread alone writes to the terminal.

use std::io::{self, Read};
use std::mem;
use std::process::ExitCode;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::execute;
use ratatui::style::{Style, Stylize};
use ratatui::text::{Line, Text};
use ratatui::{DefaultTerminal, Frame};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGWINCH};
use signal_hook::iterator::Signals;

use crate::keys::{self, Key};
use crate::source::Source;
use crate::table::{self, Sort};
use crate::text;
use crate::usage::{self, Row, Sample};

/// What happened.
enum Event {
    Sample(Result<Sample, String>),
    Key(Key),
    /// A signal that ends the program, or one that tells of a new size.
    Signal(i32),
    /// The terminal is gone.
    HungUp,
}

/// What the user sees, and how.
#[derive(Debug)]
struct Screen {
    interval: Duration,
    sample: Sample,
    rows: Vec<Row>,
    sort: Sort,
    /// The number of rows above the first visible one.
    above: usize,
    /// The number of rows that fit, when the screen was last drawn.
    page: usize,
    help: bool,
    /// Why the last sample failed.
    error: Option<String>,
}

/// Shows the table until the user or a signal ends it.
pub(crate) fn run(source: Source, interval: Duration) -> Result<ExitCode, String> {
    // The first sample is taken before the terminal changes, so that an error is one line.
    let sample = source.sample()?;
    let (sender, events) = mpsc::channel();
    let signals = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH];
    let signals = Signals::new(signals).map_err(|error| format!("wait for signals: {error}"))?;
    let mut terminal = open()?;
    wait_for_signals(signals, sender.clone());
    read_keys(sender.clone());
    take_samples(source, interval, sender);
    let mut screen = Screen::new(interval, sample);
    let outcome = show(&mut terminal, &mut screen, &events);
    close();
    // Its end would show the cursor again, and panic if the terminal is gone.
    mem::forget(terminal);
    outcome
}

/// Draws after each event. Returns the exit status.
fn show(
    terminal: &mut DefaultTerminal,
    screen: &mut Screen,
    events: &mpsc::Receiver<Event>,
) -> Result<ExitCode, String> {
    loop {
        let drawn = terminal.draw(|frame| screen.draw(frame));
        drawn.map_err(|error| format!("write to the terminal: {error}"))?;
        // All that has happened meanwhile is shown at once.
        let mut event = events.recv().map_err(|_| "a thread of the program has ended")?;
        loop {
            match event {
                Event::Key(Key::Char('\x1a')) => {
                    suspend(terminal)?;
                }
                Event::Key(Key::Char('q' | '\x03')) => return Ok(ExitCode::SUCCESS),
                Event::Key(key) => screen.press(key),
                Event::Sample(sample) => screen.take(sample),
                Event::Signal(SIGWINCH) => {}
                // As a shell reports a program that a signal has ended.
                Event::Signal(signal) => {
                    return Ok(u8::try_from(128 + signal).map_or(ExitCode::FAILURE, ExitCode::from));
                }
                Event::HungUp => return Err("the terminal is gone".into()),
            }
            match events.try_recv() {
                Ok(next) => event = next,
                Err(_) => break,
            }
        }
    }
}

/// Switches the terminal to its second screen, without echo. A panic switches it back.
fn open() -> Result<DefaultTerminal, String> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        close();
        hook(info);
    }));
    ratatui::try_init().map_err(|error| {
        close();
        format!("use the terminal: {error}")
    })
}

/// Gives the terminal back as it was.
fn close() {
    // If one of these fails, the others may still work, and nobody can be told.
    let _ = ratatui::try_restore();
    let _ = execute!(io::stdout(), Show);
}

/// Stops this process, as Control and Z do with others, until a shell continues it.
fn suspend(terminal: &mut DefaultTerminal) -> Result<(), String> {
    close();
    signal_hook::low_level::raise(SIGTSTP).map_err(|error| format!("stop: {error}"))?;
    mem::forget(mem::replace(terminal, open()?));
    Ok(())
}

fn wait_for_signals(mut signals: Signals, events: Sender<Event>) {
    thread::spawn(move || {
        for signal in signals.forever() {
            if events.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    });
}

fn read_keys(events: Sender<Event>) {
    thread::spawn(move || {
        let mut bytes = [0; 64];
        loop {
            let read = match io::stdin().lock().read(&mut bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(0) | Err(_) => {
                    // The main thread may have ended.
                    let _ = events.send(Event::HungUp);
                    return;
                }
                Ok(read) => read,
            };
            for key in keys::keys(&bytes[..read]) {
                if events.send(Event::Key(key)).is_err() {
                    return;
                }
            }
        }
    });
}

fn take_samples(source: Source, interval: Duration, events: Sender<Event>) {
    thread::spawn(move || {
        let mut next = Instant::now();
        loop {
            // A sample that took longer than the interval delays those after it.
            next = (next + interval).max(Instant::now());
            thread::sleep(next.saturating_duration_since(Instant::now()));
            if events.send(Event::Sample(source.sample())).is_err() {
                return;
            }
        }
    });
}

/// Fits on a screen of 40 columns and 10 rows.
const HELP: [&str; 7] = [
    "c m p n  sort: CPU MEM PROCS name",
    "↑ ↓ k j  scroll by a line",
    "PgUp PgDn Home End  scroll further",
    "? Esc    show or hide this help",
    "q        quit",
    "CPU%: of one CPU. K, M: 1024, 1024²",
    "-: unknown, or no limit",
];

impl Screen {
    fn new(interval: Duration, sample: Sample) -> Screen {
        let rows = usage::rows(None, &sample);
        let sort = Sort::Cpu;
        let mut screen =
            Screen { interval, sample, rows, sort, above: 0, page: 1, help: false, error: None };
        table::sort(&mut screen.rows, sort);
        screen
    }

    fn take(&mut self, sample: Result<Sample, String>) {
        match sample {
            Ok(sample) => {
                self.rows = usage::rows(Some(&self.sample), &sample);
                table::sort(&mut self.rows, self.sort);
                self.sample = sample;
                self.error = None;
            }
            Err(error) => self.error = Some(error),
        }
    }

    fn press(&mut self, key: Key) {
        match key {
            Key::Char('c') => self.sort_by(Sort::Cpu),
            Key::Char('m') => self.sort_by(Sort::Memory),
            Key::Char('p') => self.sort_by(Sort::Processes),
            Key::Char('n') => self.sort_by(Sort::Name),
            Key::Char('?' | 'h') => self.help = !self.help,
            Key::Escape => self.help = false,
            Key::Up | Key::Char('k') => self.scroll_to(self.above.saturating_sub(1)),
            Key::Down | Key::Char('j') => self.scroll_to(self.above + 1),
            Key::PageUp => self.scroll_to(self.above.saturating_sub(self.page)),
            Key::PageDown | Key::Char(' ') => self.scroll_to(self.above + self.page),
            Key::Home | Key::Char('g') => self.scroll_to(0),
            Key::End | Key::Char('G') => self.scroll_to(usize::MAX),
            Key::Char(_) => {}
        }
    }

    fn sort_by(&mut self, sort: Sort) {
        self.sort = sort;
        self.above = 0;
        table::sort(&mut self.rows, sort);
    }

    /// The last page has no empty lines.
    fn scroll_to(&mut self, above: usize) {
        self.above = above.min(self.rows.len().saturating_sub(self.page));
    }

    /// A title, the head of the table, its rows, a note if there is one, and the keys.
    fn draw(&mut self, frame: &mut Frame<'_>) {
        let (width, height) = (usize::from(frame.area().width), usize::from(frame.area().height));
        let note = self.note();
        let around = 3 + usize::from(note.is_some());
        self.page = height.saturating_sub(around).max(1);
        self.scroll_to(self.above);
        let mut lines = vec![Line::from(table::cut(&self.title(width), width)).bold()];
        if self.help {
            lines.extend(HELP.iter().take(self.page + 1).map(|line| Line::from(*line)));
        } else {
            let mut table = table::lines(&self.rows, Some(width)).into_iter();
            let head = table.next().unwrap_or_default();
            lines.push(Line::styled(format!("{head:width$}"), Style::new().reversed()));
            lines.extend(table.skip(self.above).take(self.page).map(Line::from));
        }
        lines.resize(height.saturating_sub(around - 2).max(lines.len()), Line::default());
        lines.extend(note.map(|note| Line::from(table::cut(&note, width)).bold()));
        let keys = "q quit  ? help  c m p n sort  ↑ ↓ scroll";
        lines.push(Line::from(table::cut(keys, width)).dim());
        frame.render_widget(Text::from(lines), frame.area());
    }

    /// The part that is visible comes first, because a narrow screen cuts off the end.
    fn title(&self, width: usize) -> String {
        let (first, all) = (self.above + 1, self.rows.len());
        let last = (self.above + self.page).min(all);
        let part =
            if last < all || first > 1 { format!(", {first}-{last} shown") } else { String::new() };
        let plural = if all == 1 { "" } else { "s" };
        let sort = match self.sort {
            Sort::Cpu => "CPU",
            Sort::Memory => "memory",
            Sort::Processes => "processes",
            Sort::Name => "name",
        };
        let mut title = format!("rt top: {all} container{plural}{part}");
        let more = format!(", by {sort}, every {} s", self.interval.as_secs_f64());
        if title.chars().count() + more.chars().count() <= width {
            title += &more;
        }
        title
    }

    /// Why there is no new sample, or else the first warning of `rt`.
    fn note(&self) -> Option<String> {
        let notes = &self.sample.notes;
        let note = self.error.as_ref().or(notes.first())?;
        let others = notes.len().saturating_sub(1);
        let more = if others == 0 || self.error.is_some() {
            String::new()
        } else {
            format!("(1 of {}) ", others + 1)
        };
        Some(format!("{more}{}", text::visible(note)))
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::usage::{Container, Usage};

    fn screen(containers: u64) -> Screen {
        let containers = (0..containers).map(|number| Container {
            status: "running".into(),
            usage: Some(Usage { memory: Some(number << 20), ..Usage::default() }),
            ..Container::new(&format!("c{number:02}"))
        });
        let sample = Sample { containers: containers.collect(), notes: Vec::new() };
        Screen::new(Duration::from_secs(2), sample)
    }

    /// The lines of a screen of this size.
    fn drawn(screen: &mut Screen, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("made");
        terminal.draw(|frame| screen.draw(frame)).expect("drawn");
        let cells = terminal.backend().buffer().content().chunks(usize::from(width).max(1));
        let line = |cells: &[ratatui::buffer::Cell]| {
            cells.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned()
        };
        cells.map(line).collect()
    }

    #[test]
    fn a_small_screen_shows_what_it_can() {
        let mut screen = screen(20);
        let lines = drawn(&mut screen, 40, 10);
        assert_eq!(lines[0], "rt top: 20 containers, 1-7 shown");
        assert!(lines[1].starts_with("ID   STATUS   CPU%"), "{lines:?}");
        assert!(lines[2].starts_with("c00  running") && lines[8].starts_with("c06"), "{lines:?}");
        assert!(lines[9].starts_with("q quit  ? help"), "{lines:?}");
        for (width, height) in [(0, 0), (1, 1), (5, 2), (40, 3), (300, 100)] {
            for help in [false, true] {
                screen.help = help;
                drawn(&mut screen, width, height);
            }
        }
    }

    #[test]
    fn keys_scroll_and_sort() {
        let mut screen = screen(20);
        let mut first = |key: Key| {
            drawn(&mut screen, 80, 10);
            screen.press(key);
            drawn(&mut screen, 80, 10)[2][..3].to_owned()
        };
        for (key, expected) in [
            (Key::Up, "c00"),
            (Key::Down, "c01"),
            (Key::Char('j'), "c02"),
            (Key::Char('k'), "c01"),
            (Key::PageDown, "c08"),
            (Key::End, "c13"),
            (Key::Down, "c13"),
            (Key::PageUp, "c06"),
            (Key::Home, "c00"),
            (Key::Char('m'), "c19"),
            (Key::Char('n'), "c00"),
            (Key::Char('x'), "c00"),
        ] {
            assert_eq!(first(key), expected, "{key:?}");
        }
    }

    #[test]
    fn a_note_and_help_are_shown() {
        let mut screen = screen(2);
        screen.sample.notes = vec!["leave out container `x`: \u{1b}[31m".into(), "more".into()];
        let lines = drawn(&mut screen, 80, 10);
        assert_eq!(lines[8], "(1 of 2) leave out container `x`: \\u{1b}[31m");
        screen.take(Err("rt is gone".into()));
        assert_eq!(drawn(&mut screen, 80, 10)[8], "rt is gone");
        screen.press(Key::Char('?'));
        assert!(drawn(&mut screen, 80, 10)[1].starts_with("c m p n"), "help");
        screen.press(Key::Escape);
        assert!(drawn(&mut screen, 80, 10)[1].starts_with("ID"), "no help");
    }

    #[test]
    fn fewer_containers_leave_no_empty_page() {
        let mut many = screen(20);
        drawn(&mut many, 80, 10);
        many.press(Key::End);
        many.take(Ok(screen(3).sample));
        assert!(drawn(&mut many, 80, 10)[2].starts_with("c00"), "the first row");
    }
}
