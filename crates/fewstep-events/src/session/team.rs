//! Threads that share the layers of one image.

use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};

/// What the threads of a team do together: it is called on each of them, with the number of the thread.
type Job<'a> = dyn Fn(usize) + Sync + 'a;

/// A leader and its helpers. A layer takes less time than to wake a thread, so helpers wait for the next job awake, and one that is late
/// does not take part.
#[derive(Default)]
pub(super) struct Team {
    helpers: usize,
    /// Odd while there is a job, another number for each; at last `END`.
    turn: AtomicUsize,
    /// Helpers that look at the job.
    inside: AtomicUsize,
    job: UnsafeCell<Option<*const Job<'static>>>,
}

// SAFETY: the job is written only by the leader and while no helper looks at it (`inside`); it is `Sync` itself.
unsafe impl Sync for Team {}

#[cfg(feature = "threads")]
const END: usize = usize::MAX;

/// Looks at the turn before others get this core.
#[cfg(feature = "threads")]
const PATIENCE: usize = 2000;

impl Team {
    /// Calls `lead` with a team of as many `threads`.
    #[cfg(feature = "threads")]
    pub fn gather<R>(pool: &rayon::ThreadPool, threads: usize, lead: impl FnOnce(&Self) -> R) -> R {
        let team = Self {
            helpers: threads - 1,
            ..Self::default()
        };
        pool.in_place_scope(|scope| {
            for me in 1..threads {
                let team = &team;
                scope.spawn(move |_| team.help(me));
            }
            let _end = OnDrop(|| team.turn.store(END, SeqCst));
            lead(&team)
        })
    }

    pub fn threads(&self) -> usize {
        1 + self.helpers
    }

    /// Calls `job` on the leader, which this is called on, and on the helpers that are awake, and waits for all of them. Not for jobs within
    /// jobs.
    fn run(&self, job: &Job) {
        let job: *const Job = job;
        // SAFETY: the same type but for its lifetime; no helper uses it after `run`, which waits for them below. No other reference to the
        // field is alive: helpers read it only while the turn is odd.
        unsafe {
            *self.job.get() = Some(std::mem::transmute::<*const Job, *const Job<'static>>(job))
        };
        self.turn.fetch_add(1, SeqCst);
        let _close = OnDrop(|| {
            self.turn.fetch_add(1, SeqCst);
            while self.inside.load(SeqCst) > 0 {
                spin_loop();
            }
        });
        // SAFETY: it is alive.
        unsafe { (*job)(0) };
    }

    /// Gives each piece to a thread of the team, with the number of the thread.
    pub fn share<T>(&self, pieces: impl Iterator<Item = T> + Send, work: impl Fn(usize, T) + Sync) {
        if self.helpers == 0 {
            return pieces.for_each(|piece| work(0, piece));
        }
        let pieces = Mutex::new(pieces);
        let next = || pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
        self.run(&|me| {
            while let Some(piece) = next() {
                work(me, piece);
            }
        });
    }

    #[cfg(feature = "threads")]
    fn help(&self, me: usize) {
        let (mut done, mut looks) = (0, 0);
        loop {
            let turn = self.turn.load(SeqCst);
            if turn == END {
                return;
            }
            if turn.is_multiple_of(2) || turn == done {
                looks += 1;
                match looks < PATIENCE {
                    true => spin_loop(),
                    false => std::thread::yield_now(),
                }
                continue;
            }
            self.inside.fetch_add(1, SeqCst);
            let _leave = OnDrop(|| {
                self.inside.fetch_sub(1, SeqCst);
            });
            // The leader may have closed this turn before it could see that we are inside.
            if self.turn.load(SeqCst) == turn {
                // SAFETY: the leader has written it before this turn, and waits for `inside` to be 0 before it writes or returns.
                if let Some(job) = unsafe { *self.job.get() } {
                    unsafe { (*job)(me) };
                }
                (done, looks) = (turn, 0);
            }
        }
    }
}

/// Does something on the way out, panics included.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[cfg(all(test, feature = "threads"))]
mod tests {
    use super::*;

    #[test]
    fn a_team_of_four_does_each_piece_of_each_job_once() {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(4)
            .build()
            .unwrap();
        let seen = AtomicUsize::new(0);
        Team::gather(&pool, 4, |team| {
            for job in 0..2000 {
                // On the stack of this turn only: a helper that came too late would read what is gone.
                let mut pieces = vec![0; job % 37];
                team.share(pieces.iter_mut(), |me, piece| {
                    *piece += job;
                    seen.fetch_or(1 << me, SeqCst);
                });
                assert!(pieces.iter().all(|&p| p == job), "job {job}");
            }
        });
        assert!(seen.load(SeqCst) < 16);
    }

    #[test]
    fn a_panic_of_the_leader_or_of_a_helper_ends_the_team_and_is_passed_on() {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(2)
            .build()
            .unwrap();
        for who in [0, 1] {
            let met = AtomicUsize::new(0);
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                Team::gather(&pool, 2, |team| {
                    while met.load(SeqCst) == 0 {
                        team.share(0..8, |me, _| {
                            if me == who {
                                met.store(1, SeqCst);
                                panic!("on purpose");
                            }
                        });
                    }
                });
            }));
            assert!(result.is_err(), "of {who}");
        }
    }
}
