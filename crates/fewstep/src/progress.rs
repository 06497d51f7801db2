//! Progress of a long step: a bar on a terminal, a plain line every few seconds elsewhere, or nothing.
//!
//! Everything goes to standard error, so that standard output stays clean for tables and `--json`.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgressMode {
    /// A bar that redraws itself.
    Bar,
    /// A line at most every five seconds, and one at the end.
    Lines,
    /// Nothing (`--quiet`).
    Silent,
}

impl ProgressMode {
    /// Silent if `quiet`; else a bar if standard error is a terminal; else lines.
    pub fn detect(quiet: bool) -> Self {
        if quiet {
            Self::Silent
        } else if io::stderr().is_terminal() {
            Self::Bar
        } else {
            Self::Lines
        }
    }
}

/// The progress of one step that takes `total` units. If it is dropped without [`finish`](Self::finish) (an error on the
/// way), the bar is taken away and nothing more is said.
pub struct Progress {
    label: String,
    total: u64,
    shape: Shape,
}

enum Shape {
    Bar(ProgressBar),
    Lines(Lines),
    Silent,
}

struct Lines {
    out: Box<dyn Write + Send>,
    interval: Duration,
    began: Instant,
    last: Instant,
}

/// Between two lines where there is no terminal.
const INTERVAL: Duration = Duration::from_secs(5);

impl Progress {
    /// Starts to show `label`, at 0 of `total` units (0: unknown).
    pub fn new(mode: ProgressMode, label: impl Into<String>, total: u64) -> Self {
        let label = label.into();
        let shape = match mode {
            ProgressMode::Bar => Shape::Bar(bar(&label, total)),
            ProgressMode::Lines => {
                return Self::to_writer(Box::new(io::stderr()), INTERVAL, label, total);
            }
            ProgressMode::Silent => Shape::Silent,
        };
        Self {
            label,
            total,
            shape,
        }
    }

    fn to_writer(
        out: Box<dyn Write + Send>,
        interval: Duration,
        label: String,
        total: u64,
    ) -> Self {
        let now = Instant::now();
        let lines = Lines {
            out,
            interval,
            began: now,
            last: now,
        };
        Self {
            label,
            total,
            shape: Shape::Lines(lines),
        }
    }

    /// `done` units are done; `message` is a few words such as "loss 0.31".
    pub fn set(&mut self, done: u64, message: impl fmt::Display) {
        match &mut self.shape {
            Shape::Bar(bar) => {
                bar.set_position(done);
                bar.set_message(message.to_string());
            }
            Shape::Lines(lines) if lines.last.elapsed() >= lines.interval => {
                lines.last = Instant::now();
                let share = match self.total {
                    0 => format!("{done}"),
                    total => format!(
                        "{done}/{total} ({:.0} %)",
                        100.0 * done as f64 / total as f64
                    ),
                };
                lines.say(&self.label, format_args!("{share}  {message}"));
            }
            Shape::Lines(_) | Shape::Silent => {}
        }
    }

    /// Ends the step with one line that stays: the label, `message` and the time it took.
    pub fn finish(mut self, message: impl fmt::Display) {
        match &mut self.shape {
            Shape::Bar(bar) => {
                let took = seconds(bar.elapsed());
                bar.finish_and_clear();
                // Not through the bar: after it is cleared it prints nothing.
                let _ = writeln!(io::stderr(), "{}: {message}  [{took}]", self.label);
            }
            Shape::Lines(lines) => {
                let took = seconds(lines.began.elapsed());
                lines.say(&self.label, format_args!("{message}  [{took}]"));
            }
            Shape::Silent => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Shape::Bar(bar) = &self.shape
            && !bar.is_finished()
        {
            bar.finish_and_clear();
        }
    }
}

impl Lines {
    fn say(&mut self, label: &str, text: fmt::Arguments<'_>) {
        // A closed pipe is no reason to stop a run.
        let _ = writeln!(self.out, "{label}: {text}").and_then(|()| self.out.flush());
    }
}

fn bar(label: &str, total: u64) -> ProgressBar {
    let target = ProgressDrawTarget::stderr_with_hz(8);
    let (template, length) = if total == 0 {
        ("{prefix} {spinner} {pos} [{elapsed}] {wide_msg}", None)
    } else {
        (
            "{prefix} {bar:24.cyan/blue} {pos}/{len} [{elapsed}<{eta}] {wide_msg}",
            Some(total),
        )
    };
    let style = ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸─");
    ProgressBar::with_draw_target(length, target)
        .with_style(style)
        .with_prefix(label.to_owned())
}

fn seconds(time: Duration) -> String {
    let whole = time.as_secs();
    match whole {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Shared {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    #[test]
    fn lines_come_no_more_often_than_the_interval_and_at_the_end() {
        let out = Shared::default();
        let hour = Duration::from_secs(3600);
        let mut progress = Progress::to_writer(Box::new(out.clone()), hour, "snn T=5".into(), 40);
        for done in 1..=40 {
            progress.set(done, "loss 0.3");
        }
        assert_eq!(out.text(), "");
        progress.finish("val 98.2 %");
        assert!(
            out.text().starts_with("snn T=5: val 98.2 %  [0."),
            "{}",
            out.text()
        );
        assert_eq!(out.text().lines().count(), 1);
    }

    #[test]
    fn a_line_names_the_step_and_how_far_it_is() {
        let out = Shared::default();
        let mut progress =
            Progress::to_writer(Box::new(out.clone()), Duration::ZERO, "ann".into(), 8);
        progress.set(2, "loss 0.3");
        let mut unknown =
            Progress::to_writer(Box::new(out.clone()), Duration::ZERO, "scan".into(), 0);
        unknown.set(7, "images");
        assert_eq!(out.text(), "ann: 2/8 (25 %)  loss 0.3\nscan: 7  images\n");
    }

    #[test]
    fn times_are_told_in_units_that_people_use() {
        assert_eq!(seconds(Duration::from_millis(1540)), "1.5 s");
        assert_eq!(seconds(Duration::from_secs(125)), "2 min 05 s");
        assert_eq!(seconds(Duration::from_secs(7384)), "2 h 03 min");
    }

    #[test]
    fn silent_and_bar_modes_take_any_number() {
        for mode in [ProgressMode::Silent, ProgressMode::Bar] {
            for total in [0, 3] {
                let mut progress = Progress::new(mode, "x", total);
                progress.set(5, "beyond the end");
                progress.finish("done");
            }
        }
        assert_eq!(ProgressMode::detect(true), ProgressMode::Silent);
    }
}
