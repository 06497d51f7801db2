//! Who is alive. c10d says that a connection broke, but every rank that stops breaks connections, so that an error wanders through the
//! group and names a neighbour. Each rank leaves signs of life in the store; after an error they tell who was lost first.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{Error, Result};

use super::{Ranks, Store, list};

/// A sign of life is left as often.
const BEAT: Duration = Duration::from_millis(400);
/// A rank without one for this long is lost.
const SILENCE: Duration = Duration::from_millis(2500);

pub(super) struct Life {
    ranks: Ranks,
    timeout: Duration,
    store: Arc<Store>,
    state: Arc<State>,
    /// When the last operation began.
    began: Mutex<Instant>,
    exchanges: AtomicU64,
    gone: AtomicBool,
    beating: Mutex<Option<JoinHandle<()>>>,
}

/// What the signs of life tell.
#[derive(Default)]
struct State {
    operations: AtomicU64,
    doing: Mutex<String>,
    ended: AtomicBool,
}

/// The last sign of a rank.
#[derive(Clone, Debug, PartialEq)]
struct Sign {
    beat: u64,
    operations: u64,
    doing: String,
}

impl Life {
    /// Claims the rank and begins to give signs.
    pub fn start(ranks: &Ranks, store: Store, beats: Store, timeout: Duration) -> Result<Self> {
        let store = Arc::new(store);
        let claims = store.add(&format!("fewstep/claims/{}", ranks.rank), 1)?;
        if claims > 1 {
            return Err(Error::Mismatch(format!(
                "expected one process as rank {}, found another, or one that has not ended yet (RANK must differ)",
                ranks.rank
            )));
        }
        let state = Arc::new(State::default());
        let (rank, shared) = (ranks.rank, state.clone());
        give_sign(&beats, rank, 0, &state)?;
        let beat = move || {
            for beat in 1.. {
                std::thread::park_timeout(BEAT);
                if shared.ended.load(Ordering::Relaxed)
                    || give_sign(&beats, rank, beat, &shared).is_err()
                {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("fewstep-signs".into())
            .spawn(beat)
            .map_err(|e| Error::Mismatch(format!("no thread for signs of life: {e}")))?;
        Ok(Self {
            ranks: ranks.clone(),
            timeout,
            store,
            state,
            began: Mutex::new(Instant::now()),
            exchanges: AtomicU64::new(0),
            gone: AtomicBool::new(false),
            beating: Mutex::new(Some(thread)),
        })
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Notes the operation that begins.
    pub fn begins(&self, what: &str) {
        self.state.operations.fetch_add(1, Ordering::Relaxed);
        let mut doing = self
            .state
            .doing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        doing.clear();
        doing.push_str(what);
        drop(doing);
        *self.began.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Every rank's text, in their order.
    pub fn exchange(&self, mine: &str) -> Result<Vec<String>> {
        let n = self.exchanges.fetch_add(1, Ordering::Relaxed);
        let key = |rank: usize| format!("fewstep/exchange/{n}/{rank}");
        self.store.set(&key(self.ranks.rank), mine.as_bytes())?;
        (0..self.ranks.world)
            .map(|rank| {
                let text = self.store.get(&key(rank))?;
                Ok(String::from_utf8_lossy(&text).into_owned())
            })
            .collect()
    }

    /// Ranks that have given no sign yet.
    pub fn missing(&self) -> Vec<usize> {
        self.others(|rank| matches!(self.sign(rank), Ok(None)))
    }

    fn others(&self, which: impl Fn(usize) -> bool) -> Vec<usize> {
        (0..self.ranks.world)
            .filter(|&rank| rank != self.ranks.rank && which(rank))
            .collect()
    }

    fn sign(&self, rank: usize) -> Result<Option<Sign>> {
        let Some(bytes) = self.store.peek(&sign_key(rank))? else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let mut parts = text.splitn(3, ' ');
        let mut number = || parts.next().and_then(|p| p.parse().ok()).unwrap_or(0);
        Ok(Some(Sign {
            beat: number(),
            operations: number(),
            doing: parts.next().unwrap_or_default().to_owned(),
        }))
    }

    fn left(&self, rank: usize) -> Result<Option<String>> {
        let reason = self.store.peek(&left_key(rank))?;
        Ok(reason.map(|r| String::from_utf8_lossy(&r).into_owned()))
    }

    /// Which rank an error is owed to, in words; `None` where all seem well. Takes [`SILENCE`].
    pub fn diagnose(&self) -> Option<String> {
        self.look().unwrap_or_else(|_| Some(self.without_store()))
    }

    /// What to say where nobody can be asked.
    fn without_store(&self) -> String {
        match self.ranks.agent {
            Some(_) => "the store of torchrun's agent is lost".into(),
            None => "rank 0 is lost (it held the store)".into(),
        }
    }

    /// Waits until rank 0 has left; why, where it did not come to its end.
    pub fn see_out(&self) -> Option<String> {
        let watch = || -> Result<Option<String>> {
            let (mut last, mut since) = (self.sign(0)?, Instant::now());
            loop {
                match self.left(0)? {
                    Some(reason) if reason.is_empty() => return Ok(None),
                    Some(reason) => return Ok(Some(format!("rank 0 stopped ({reason})"))),
                    None => std::thread::sleep(BEAT / 8),
                }
                let now = self.sign(0)?;
                if now != last {
                    (last, since) = (now, Instant::now());
                } else if since.elapsed() > 4 * SILENCE {
                    return Ok(Some("rank 0 is lost".into()));
                }
            }
        };
        watch().unwrap_or_else(|_| Some(self.without_store()))
    }

    fn look(&self) -> Result<Option<String>> {
        let began = *self.began.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = began.elapsed();
        let all = 0..self.ranks.world;
        let signs =
            |_| -> Result<Vec<Option<Sign>>> { all.clone().map(|rank| self.sign(rank)).collect() };
        let before = signs(())?;
        std::thread::sleep(SILENCE);
        let after = signs(())?;
        let left: Vec<Option<String>> = all
            .clone()
            .map(|rank| self.left(rank))
            .collect::<Result<_>>()?;
        // A rank of another program gives no signs.
        let known = |rank: usize| after[rank].is_some();
        let lost = self.others(|rank| {
            known(rank)
                && left[rank].is_none()
                && before[rank].as_ref().map(|s| s.beat) == after[rank].as_ref().map(|s| s.beat)
        });
        if !lost.is_empty() {
            let verb = if lost.len() == 1 { "is" } else { "are" };
            return Ok(Some(format!("{} {verb} lost", list(&lost))));
        }
        let ended = |rank: usize| left[rank].as_ref();
        if let Some(rank) = self
            .others(|r| ended(r).is_some_and(|t| !t.is_empty()))
            .first()
        {
            let reason = ended(*rank).map_or("", String::as_str);
            return Ok(Some(format!("rank {rank} stopped ({reason})")));
        }
        if let Some(rank) = self.others(|r| ended(r).is_some()).first() {
            return Ok(Some(format!("rank {rank} has ended before")));
        }
        if waited + BEAT < self.timeout {
            // Nobody was waited for.
            return Ok(None);
        }
        let mine = self.state.operations.load(Ordering::Relaxed);
        let late = self.others(|rank| after[rank].as_ref().is_some_and(|s| s.operations < mine));
        Ok(late.first().map(|&rank| {
            let doing = after[rank].as_ref().map_or("", |s| s.doing.as_str());
            let at = match doing {
                "" => "before its first operation".to_owned(),
                doing => format!("at {doing}"),
            };
            format!(
                "rank {rank} is late: alive, but still {at} after {} s",
                self.timeout.as_secs()
            )
        }))
    }

    /// Says goodbye, once; rank 0 waits for the others, where the store is its own. `close` breaks the connections, which those who wait
    /// for a rank that stopped would not notice otherwise.
    pub fn leave(&self, reason: Option<&str>, close: impl FnOnce()) {
        let text = reason.unwrap_or_default().as_bytes();
        if self.gone.swap(true, Ordering::Relaxed)
            || self.store.set(&left_key(self.ranks.rank), text).is_err()
        {
            return;
        }
        if reason.is_some() {
            close();
        }
        let start = Instant::now();
        let serves = self.ranks.rank == 0 && self.ranks.agent.is_none();
        let mut signs = vec![(None, start); self.ranks.world];
        // Who has left or is lost does not read any more, and neither does a rank of another program, which gives no signs.
        let mut reads = |rank: usize| {
            let (Ok(None), Ok(sign @ Some(_))) = (self.left(rank), self.sign(rank)) else {
                return false;
            };
            if signs[rank].0 != sign {
                signs[rank] = (sign, Instant::now());
            }
            signs[rank].1.elapsed() < SILENCE
        };
        while serves && start.elapsed() < self.timeout && (1..self.ranks.world).any(&mut reads) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::Relaxed);
        let thread = self
            .beating
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

fn sign_key(rank: usize) -> String {
    format!("fewstep/signs/{rank}")
}

fn left_key(rank: usize) -> String {
    format!("fewstep/left/{rank}")
}

fn give_sign(store: &Store, rank: usize, beat: u64, state: &State) -> Result<()> {
    let operations = state.operations.load(Ordering::Relaxed);
    let doing = state
        .doing
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    let sign = format!("{beat} {operations} {doing}");
    store.set(&sign_key(rank), sign.as_bytes())
}
