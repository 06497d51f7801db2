//! Signals in and out; all `unsafe` of xtask is here.

use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::process::{self, Child, Command};
use std::ptr;

/// What ends a program that does not mind it, beside the one that says that a child has ended.
const ENDING: [libc::c_int; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// How long to wait for a signal.
static TICK: libc::timespec = libc::timespec {
    tv_sec: 0,
    tv_nsec: 500_000_000,
};

/// Signals that are held back until [`Signals::next`] takes them. Held back, not handled: then one thread does all the work,
/// and a rank cannot be waited for by one thread and sent a signal by another.
pub struct Signals {
    set: libc::sigset_t,
    /// What was held back before.
    before: libc::sigset_t,
}

/// A signal that asks for an end.
pub struct Signal {
    pub number: i32,
    /// It came from a key of the terminal, and so to all of its foreground processes.
    pub of_the_terminal: bool,
}

impl Signals {
    /// Holds back signals from this thread and those that it will start. One that is ignored (by nohup, by a shell that starts us in
    /// the background) stays ignored: held back it would count.
    pub fn hold() -> io::Result<Self> {
        let (mut set, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: the sets are written, by sigemptyset and pthread_sigmask, before anything reads them, and outlive the calls.
        let (failed, set, before) = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigemptyset(before.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
            for signal in ENDING.into_iter().filter(|&signal| !ignored(signal)) {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            let failed = libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), before.as_mut_ptr());
            (failed, set.assume_init(), before.assume_init())
        };
        match failed {
            0 => Ok(Self { set, before }),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Readies a program that is about to be started: it holds nothing back (it would inherit that), and the kernel kills it when the
    /// thread that starts it is gone, even by a kill -9.
    pub fn ready(&self, command: &mut Command) {
        let (us, before) = (process::id(), self.before);
        // SAFETY: between fork and exec this makes three system calls, and none allocates or locks anything.
        unsafe {
            command.pre_exec(move || {
                match libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut()) {
                    0 => {}
                    error => return Err(io::Error::from_raw_os_error(error)),
                }
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(io::Error::last_os_error());
                }
                // Gone before the kernel knew: nobody would tell it.
                if libc::getppid().cast_unsigned() != us {
                    return Err(io::Error::from_raw_os_error(libc::ESRCH));
                }
                Ok(())
            });
        }
    }

    /// Waits a moment for a signal; `None` where none came or a child has ended.
    pub fn next(&self) -> io::Result<Option<Signal>> {
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        // SAFETY: all three live until the call returns; zeros are a siginfo_t, and a signal fills it in.
        let (number, info) = unsafe {
            let number =
                libc::sigtimedwait(&raw const self.set, info.as_mut_ptr(), &raw const TICK);
            (number, info.assume_init())
        };
        if number < 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) => Ok(None),
                _ => Err(error),
            };
        }
        Ok((number != libc::SIGCHLD).then_some(Signal {
            number,
            // Positive: from the kernel. What a process sends is 0 or negative.
            of_the_terminal: info.si_code > 0,
        }))
    }
}

/// Whether this process ignores a signal.
fn ignored(signal: libc::c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action nothing changes; zeros are a sigaction, and the call fills it in.
    let action = unsafe {
        libc::sigaction(signal, ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}

/// Sends a signal to a child that has not been waited for.
pub fn send(child: &Child, signal: i32) {
    // SAFETY: no memory is involved, and the number is the child's until it is waited for.
    unsafe {
        libc::kill(child.id().cast_signed(), signal);
    }
}

/// `9 (KILL)`.
pub fn named(signal: i32) -> String {
    let name = match signal {
        libc::SIGHUP => "HUP",
        libc::SIGINT => "INT",
        libc::SIGQUIT => "QUIT",
        libc::SIGILL => "ILL",
        libc::SIGTRAP => "TRAP",
        libc::SIGABRT => "ABRT",
        libc::SIGBUS => "BUS",
        libc::SIGFPE => "FPE",
        libc::SIGKILL => "KILL",
        libc::SIGSEGV => "SEGV",
        libc::SIGPIPE => "PIPE",
        libc::SIGALRM => "ALRM",
        libc::SIGTERM => "TERM",
        libc::SIGXCPU => "XCPU",
        libc::SIGXFSZ => "XFSZ",
        libc::SIGSYS => "SYS",
        _ => return signal.to_string(),
    };
    format!("{signal} ({name})")
}
