//! `cargo xtask launch --nproc N COMMAND …`: ranks of `fewstep` on this machine, without Python.
//!
//! A rank finds its place in the variables that torchrun sets as well, so the program cannot tell the two apart. Rank 0 has the
//! terminal; what the others say on standard error is prefixed with their number. A rank that ends does not end the others: in training they notice
//! by themselves, in sampling they go on.

mod output;
mod signals;

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::drive;
use crate::checkout::Checkout;
use output::Words;
use signals::{Signals, named};

/// How long ranks may take to end once they are asked to.
const GRACE: Duration = Duration::from_secs(10);

/// Arguments of `cargo xtask launch`.
#[derive(clap::Args)]
pub struct Options {
    /// How many ranks to start
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    nproc: u16,
    /// The port at which they meet [default: a free one]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// A command of fewstep and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        hide = true
    )]
    arguments: Vec<OsString>,
}

/// Builds `fewstep` once, starts the ranks and stays until all have ended. The exit code is that of the first failure; 128 + the
/// signal's number for a rank that a signal killed.
pub fn launch(checkout: &Checkout, options: &Options) -> Result<ExitCode> {
    let program = drive::program(checkout)?;
    let port = free_port(options.port)?;
    // From here on a signal waits until the ranks can be told of it.
    let signals = Signals::hold().context("cannot hold back signals")?;
    let mut ranks = Ranks::start(&program, port, options, &signals)?;
    ranks.wait(&signals)?;
    Ok(ranks.report())
}

/// The port asked for if nobody has it, or any that is free. Rank 0 will listen on all addresses, so all are tried.
pub(super) fn free_port(asked: Option<u16>) -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, asked.unwrap_or(0))).with_context(
        || match asked {
            Some(port) => {
                format!("port {port} cannot be had, leave --port out for one that is free")
            }
            None => "no port is free".to_owned(),
        },
    )?;
    Ok(listener.local_addr()?.port())
}

/// Tells a program on this machine which rank it is, in the variables of torchrun.
pub(super) fn place(command: &mut Command, rank: usize, world: usize, port: u16) {
    command
        .env("MASTER_ADDR", "127.0.0.1")
        .env("MASTER_PORT", port.to_string())
        .env("RANK", rank.to_string())
        .env("LOCAL_RANK", rank.to_string())
        .env("WORLD_SIZE", world.to_string())
        .env("LOCAL_WORLD_SIZE", world.to_string())
        // Of a torchrun around us: its store is not ours.
        .env_remove("TORCHELASTIC_USE_AGENT_STORE")
        .env_remove("TORCHELASTIC_RESTART_COUNT");
}

struct Rank {
    child: Child,
    words: Words,
    ended: Option<ExitStatus>,
}

/// All ranks that were started; those still there are killed when this goes out of scope.
struct Ranks {
    ranks: Vec<Rank>,
    /// The first rank that failed, and its exit code.
    failure: Option<u8>,
    /// The signal that was handed on.
    asked: Option<i32>,
}

impl Ranks {
    fn start(program: &Path, port: u16, options: &Options, signals: &Signals) -> Result<Self> {
        let world = usize::from(options.nproc);
        // `launch --nproc 2 -- run`: the dashes were for us.
        let ours = options.arguments[0] == OsStr::new("--");
        let arguments = &options.arguments[usize::from(ours)..];
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let terminal = io::stderr().is_terminal();
        let mut all = Self {
            ranks: Vec::with_capacity(world),
            failure: None,
            asked: None,
        };
        for rank in 0..world {
            let mut command = Command::new(program);
            command.args(arguments);
            place(&mut command, rank, world, port);
            if env::var_os("OMP_NUM_THREADS").is_none() {
                command.env("OMP_NUM_THREADS", (cores / world).max(1).to_string());
            }
            if rank > 0 {
                command.stdin(Stdio::null()).stdout(Stdio::piped());
            }
            // Progress bars need the terminal itself; without one there is something to repeat at the end.
            if rank > 0 || !terminal {
                command.stderr(Stdio::piped());
            }
            signals.ready(&mut command);
            let mut child = command
                .spawn()
                .with_context(|| format!("cannot start rank {rank} ({})", program.display()))?;
            let words = Words::of(rank, &mut child);
            all.ranks.push(Rank {
                child,
                words,
                ended: None,
            });
        }
        Ok(all)
    }

    fn running(&mut self) -> impl Iterator<Item = &mut Rank> {
        self.ranks.iter_mut().filter(|rank| rank.ended.is_none())
    }

    /// Waits until all have ended, hands signals on and says which rank failed as soon as it has.
    fn wait(&mut self, signals: &Signals) -> Result<()> {
        let mut patience = None;
        loop {
            self.reap()?;
            if self.running().next().is_none() {
                return Ok(());
            }
            if patience.is_some_and(|end| Instant::now() >= end) {
                let late = self.send(libc::SIGKILL);
                eprintln!(
                    "launch: {} still there; killed",
                    count(late, "rank is", "ranks are")
                );
                patience = None;
            }
            let Some(signal) = signals.next()? else {
                continue;
            };
            let again = self.asked.replace(signal.number).is_some();
            if again {
                // Who asks twice does not want to wait.
                patience = Some(Instant::now());
            } else {
                patience = Some(Instant::now() + GRACE);
                // A key of the terminal has reached the ranks already.
                if !signal.of_the_terminal {
                    self.send(signal.number);
                }
            }
        }
    }

    /// Takes note of who has ended.
    fn reap(&mut self) -> Result<()> {
        for rank in 0..self.ranks.len() {
            let one = &mut self.ranks[rank];
            if one.ended.is_some() {
                continue;
            }
            let Some(status) = one.child.try_wait().context("cannot wait for the ranks")? else {
                continue;
            };
            one.ended = Some(status);
            if status.success() {
                continue;
            }
            self.failure.get_or_insert(exit_code(status));
            if self.as_asked(status) {
                continue;
            }
            let (left, world) = (self.running().count(), self.ranks.len());
            let others = match left {
                0 => "no rank is left".to_owned(),
                1 => format!("1 of {world} ranks goes on"),
                _ => format!("{left} of {world} ranks go on"),
            };
            eprintln!("launch: rank {rank} {}; {others}", ending(status));
        }
        Ok(())
    }

    /// Whether this is how a rank ends that was told to.
    fn as_asked(&self, status: ExitStatus) -> bool {
        self.asked.is_some() && status.signal() == self.asked
    }

    /// Sends a signal to all that are there and says to how many.
    fn send(&mut self, signal: i32) -> usize {
        self.running()
            .map(|rank| signals::send(&rank.child, signal))
            .count()
    }

    /// Repeats what those who failed said last.
    fn report(self) -> ExitCode {
        for one in &self.ranks {
            one.words.wait();
        }
        let mut failures = 0;
        for (rank, one) in self.ranks.iter().enumerate() {
            let Some(status) = one.ended else { continue };
            if status.success() || self.as_asked(status) {
                continue;
            }
            failures += 1;
            let last = one.words.last();
            if !last.is_empty() {
                eprintln!(
                    "launch: last words of rank {rank}, which {}:",
                    ending(status)
                );
            }
            for line in last {
                eprintln!("    {line}");
            }
        }
        if failures > 0 {
            eprintln!(
                "launch: {failures} of {} failed",
                count(self.ranks.len(), "rank", "ranks")
            );
        }
        if let Some(signal) = self.asked {
            eprintln!(
                "launch: all ranks have ended after signal {}",
                named(signal)
            );
        }
        self.failure.map_or(ExitCode::SUCCESS, ExitCode::from)
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for rank in self.running() {
            // Neither can fail in a way that something could be done about.
            let _ = rank.child.kill();
            let _ = rank.child.wait();
        }
    }
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was killed by signal {}", named(signal)),
        (None, None) => status.to_string(),
    }
}

fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}
