//! What ranks say: passed on line by line, and the last of it kept.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::mem;
use std::process::Child;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How many lines of standard error are repeated at the end.
const LAST: usize = 5;

/// Longer lines are passed on in pieces.
const LONGEST: u64 = 64 * 1024;

type Lines = Arc<Mutex<VecDeque<String>>>;

/// The words of one rank.
pub struct Words {
    last: Lines,
    threads: Vec<JoinHandle<()>>,
}

impl Words {
    /// Passes on what the child says through pipes. Its standard output, a result, is left as it is, because programs read it (`--json`);
    /// words on standard error begin with `[rank 2] `, unless they are rank 0's.
    pub fn of(rank: usize, child: &mut Child) -> Self {
        let prefix = if rank == 0 {
            String::new()
        } else {
            format!("[rank {rank}] ")
        };
        let last = Lines::default();
        let mut threads = Vec::new();
        if let Some(from) = child.stdout.take() {
            threads.push(thread::spawn(move || {
                pass_on(from, io::stdout, "", None);
            }));
        }
        if let Some(from) = child.stderr.take() {
            let kept = last.clone();
            threads.push(thread::spawn(move || {
                pass_on(from, io::stderr, &prefix, Some(&kept));
            }));
        }
        Self { last, threads }
    }

    /// Waits until all is passed on; not for long, as a process that the rank left behind may hold a pipe open.
    pub fn wait(&self) {
        let end = Instant::now() + Duration::from_secs(2);
        while self.threads.iter().any(|thread| !thread.is_finished()) && Instant::now() < end {
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// The last lines of standard error.
    pub fn last(&self) -> Vec<String> {
        mem::take(&mut *self.last.lock().unwrap_or_else(PoisonError::into_inner)).into()
    }
}

/// Reads to the end. An error of writing is no reason to stop: the rank would stop as well.
fn pass_on<W: Write>(from: impl Read, to: impl Fn() -> W, prefix: &str, last: Option<&Lines>) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while matches!(
        from.by_ref().take(LONGEST).read_until(b'\n', &mut line),
        Ok(1..)
    ) {
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        // One write, so that lines of two ranks do not mix.
        let whole = [prefix.as_bytes(), &line, b"\n"].concat();
        let mut to = to();
        let _ = to.write_all(&whole).and_then(|()| to.flush());
        if let Some(last) = last {
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.len() == LAST {
                last.pop_front();
            }
            last.push_back(String::from_utf8_lossy(&line).into_owned());
        }
        line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A writer that several may hold.
    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_get_the_prefix_and_the_last_five_are_kept() {
        let (to, kept) = (Shared::default(), Lines::default());
        pass_on(
            &b"1\n2\n3\n\n5\nno \xff end"[..],
            || to.clone(),
            "[rank 2] ",
            Some(&kept),
        );
        let written = String::from_utf8_lossy(&to.0.lock().unwrap()).into_owned();
        assert_eq!(
            written,
            "[rank 2] 1\n[rank 2] 2\n[rank 2] 3\n[rank 2] \n[rank 2] 5\n[rank 2] no \u{fffd} end\n"
        );
        assert_eq!(
            *kept.lock().unwrap(),
            ["2", "3", "", "5", "no \u{fffd} end"]
        );
    }

    #[test]
    fn a_line_without_end_does_not_fill_the_memory() {
        let to = Shared::default();
        pass_on(io::repeat(b'x').take(LONGEST + 1), || to.clone(), "", None);
        let written = to.0.lock().unwrap();
        assert_eq!(written.iter().filter(|&&byte| byte == b'\n').count(), 2);
    }
}
