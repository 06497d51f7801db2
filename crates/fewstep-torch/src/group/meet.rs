//! How a group comes together.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::ops::check;
use crate::{Error, Result};

use super::{
    Group, Handle, Life, MakeNccl, Member, Ranks, RawGroup, Store, fewstep_group_new, list,
};

impl Group {
    /// Meets the other ranks. `timeout` is for the meeting and for each operation after it.
    ///
    /// # Errors
    /// A rank does not come in time (which one), or two processes claim the same rank.
    pub fn join(ranks: &Ranks, timeout: Duration) -> Result<Self> {
        if ranks.world == 1 {
            return Ok(Self::alone());
        }
        let start = Instant::now();
        let left = || timeout.saturating_sub(start.elapsed());
        let fail = |reason: String| Error::Group {
            rank: ranks.rank,
            world: ranks.world,
            what: "meeting the other ranks".into(),
            reason,
        };
        let store = Store::of(ranks, timeout).map_err(|e| match (ranks.rank, ranks.agent) {
            (1.., None) if start.elapsed() + Duration::from_secs(1) > timeout => fail(format!(
                "rank 0 did not come to {}:{} within {} s",
                ranks.address,
                ranks.port,
                timeout.as_secs()
            )),
            _ => fail(e.to_string()),
        })?;
        // A connection of its own: a wait for a key would hold the other one.
        let beats = Store::client_of(ranks, left()).map_err(|e| fail(e.to_string()))?;
        let life = Life::start(ranks, store, beats, timeout).map_err(|e| fail(e.to_string()))?;
        let (nccl, no_nccl) = match nccl() {
            Ok(found) => (found, None),
            Err(reason) => (None, Some(reason)),
        };
        let meet = || -> Result<*mut RawGroup> {
            // As Python's `init_process_group` names them.
            let of_group = life.store().prefix("default_pg")?.prefix("0/")?;
            let mut raw = std::ptr::null_mut();
            // SAFETY: the store is alive; on success the shim hands over a group.
            check(unsafe {
                fewstep_group_new(
                    of_group.as_ptr(),
                    ranks.rank as i64,
                    ranks.world as i64,
                    left().as_millis() as i64,
                    timeout.as_millis() as i64,
                    nccl,
                    &raw mut raw,
                )
            })?;
            Ok(raw)
        };
        let raw = meet().map_err(|e| {
            let missing = life.missing();
            let reason = match missing.is_empty() {
                false => format!(
                    "{} did not come within {} s",
                    list(&missing),
                    timeout.as_secs()
                ),
                true => life.diagnose().unwrap_or_else(|| e.to_string()),
            };
            life.leave(Some(&reason), || ());
            fail(reason)
        })?;
        Ok(Self(Some(Arc::new(Member {
            raw: Handle(Mutex::new(raw)),
            no_nccl,
            ranks: ranks.clone(),
            life,
        }))))
    }

    /// Runs `each` as every rank of a group, on threads of this process, because c10d minds no processes: to try out and to test what ranks
    /// do together. Returns what each rank returned.
    ///
    /// # Errors
    /// There is no free port, or the ranks do not meet.
    pub fn of_threads<T: Send>(
        world: usize,
        timeout: Duration,
        each: impl Fn(&Self) -> T + Sync,
    ) -> Result<Vec<T>> {
        let cannot = |e: std::io::Error| Error::Mismatch(format!("ranks on threads: {e}"));
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .map_err(cannot)?
            .port();
        let work = |rank: usize| -> Result<T> {
            let group = Self::join(&Ranks::here(rank, world, port), timeout)?;
            let result = each(&group);
            group.leave(None);
            Ok(result)
        };
        std::thread::scope(|scope| {
            let work = &work;
            let threads: Vec<_> = (0..world)
                .map(|rank| scope.spawn(move || work(rank)))
                .collect();
            let end = |thread: std::thread::ScopedJoinHandle<'_, Result<T>>| match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            threads.into_iter().map(end).collect()
        })
    }
}

/// The function that makes the NCCL backend, where there is CUDA; why it can't be had.
fn nccl() -> std::result::Result<Option<MakeNccl>, String> {
    if !tch::Cuda::is_available() {
        return Ok(None);
    }
    crate::library::cuda_function("fewstep_nccl").map(|address| {
        // SAFETY: the function of that name in our own library, `cpp/nccl.cpp`, has this type.
        Some(unsafe { std::mem::transmute::<*mut std::ffi::c_void, MakeNccl>(address) })
    })
}
