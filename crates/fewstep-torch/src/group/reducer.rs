//! Gradients of all ranks: the reducer of PyTorch's DistributedDataParallel.

use std::ffi::c_char;
use std::fmt;
use std::time::Duration;

use tch::Tensor;
use torch_sys::C_tensor;

use crate::Result;
use crate::ops::check;

use super::{Group, RawGroup};

#[repr(C)]
struct RawReducer {
    _private: [u8; 0],
}

unsafe extern "C" {
    fn fewstep_reducer_new(
        group: *const RawGroup,
        parameters: *const *const C_tensor,
        n: i64,
        first_bytes: i64,
        bytes: i64,
        out: *mut *mut RawReducer,
    ) -> *mut c_char;
    fn fewstep_reducer_prepare(reducer: *const RawReducer, loss: *const C_tensor) -> *mut c_char;
    fn fewstep_reducer_buckets(
        reducer: *const RawReducer,
        bytes: *mut i64,
        room: i64,
        n: *mut i64,
    ) -> *mut c_char;
    fn fewstep_reducer_times(reducer: *const RawReducer, ns: *mut i64) -> *mut c_char;
    fn fewstep_reducer_free(reducer: *mut RawReducer);
}

/// The first bucket that is sent is small, so that communication begins early; as PyTorch's.
const FIRST_BUCKET: i64 = 1 << 20;
const BUCKET: i64 = 25 << 20;

/// What messages took of a training step, means over c10d's sample of steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Messages {
    /// From the first bucket's start to the last one's arrival.
    pub sent: Duration,
    /// The part of it after backward had come to its end.
    pub waited: Duration,
}

/// Averages gradients over the ranks, a bucket at a time, while backward goes on to earlier layers: c10d's own, as in
/// DistributedDataParallel.
pub struct Reducer {
    raw: *mut RawReducer,
    group: Group,
}

// SAFETY: it is used by one thread at a time; its hooks run in backward, which waits for them.
unsafe impl Send for Reducer {}

impl Drop for Reducer {
    fn drop(&mut self) {
        // SAFETY: made by the shim, freed once.
        unsafe { fewstep_reducer_free(self.raw) };
    }
}

impl fmt::Debug for Reducer {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "reducer of {:?}", self.group)
    }
}

impl Reducer {
    pub(super) fn new(
        group: Group,
        raw_group: *const RawGroup,
        parameters: &[Tensor],
    ) -> Result<Self> {
        let pointers: Vec<*const C_tensor> = parameters.iter().map(|p| p.as_ptr() as _).collect();
        let mut raw = std::ptr::null_mut();
        // SAFETY: group and tensors are alive; on success the shim hands over a reducer.
        check(unsafe {
            fewstep_reducer_new(
                raw_group,
                pointers.as_ptr(),
                pointers.len() as i64,
                FIRST_BUCKET,
                BUCKET,
                &raw mut raw,
            )
        })?;
        Ok(Self { raw, group })
    }

    /// Backward from `loss`, after which each parameter's gradient is the mean over ranks of what it would have been, with whatever was
    /// accumulated in it before. Backwards before this one, of the same step, add to the gradients without this.
    ///
    /// # Errors
    /// A rank is lost or late, or libtorch refuses.
    pub fn backward(&self, loss: &Tensor) -> Result<()> {
        let what = "the gradients";
        if let Some(member) = &self.group.0 {
            member.life.begins(what);
        }
        // SAFETY: reducer and tensor are alive.
        check(unsafe { fewstep_reducer_prepare(self.raw, loss.as_ptr()) })
            .and_then(|()| Ok(loss.f_backward()?))
            .map_err(|e| self.group.explain(what, e))
    }

    /// What messages took of the steps before the last one, as c10d's logger counts it.
    ///
    /// # Errors
    /// libtorch refuses.
    pub fn messages(&self) -> Result<Messages> {
        let mut ns = [0; 2];
        // SAFETY: the reducer is alive, and there is room for two numbers.
        check(unsafe { fewstep_reducer_times(self.raw, ns.as_mut_ptr()) })?;
        let [sent, beside] = ns.map(|ns| Duration::from_nanos(ns.max(0) as u64));
        Ok(Messages {
            sent,
            waited: sent.saturating_sub(beside),
        })
    }

    /// Bytes of each bucket, in the order in which they are sent.
    ///
    /// # Errors
    /// libtorch refuses.
    pub fn buckets(&self) -> Result<Vec<u64>> {
        let (mut bytes, mut n) = ([0; 4096], 0);
        // SAFETY: there is room for as many as are asked for.
        check(unsafe { fewstep_reducer_buckets(self.raw, bytes.as_mut_ptr(), 4096, &raw mut n) })?;
        let found = bytes.iter().take(n as usize);
        Ok(found.map(|&b| b as u64).collect())
    }
}
