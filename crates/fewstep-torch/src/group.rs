//! Several processes as one: libtorch's own distributed engine, c10d (`cpp/c10d.cpp`), with Gloo for tensors in memory and NCCL for those on
//! GPUs. The stores, prefixes and group names are those of Python's `torch.distributed`, so that a Python process may be a rank too.

mod life;
mod meet;
mod part;
mod ranks;
mod reducer;
mod store;

use std::ffi::c_char;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Serialize, de::DeserializeOwned};
use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use crate::ops::check;
use crate::{Error, Result};

use life::Life;
pub use part::Part;
pub use ranks::Ranks;
pub use reducer::{Messages, Reducer};
use store::RawStore;
pub use store::Store;

#[repr(C)]
struct RawGroup {
    _private: [u8; 0],
}

type MakeNccl = unsafe extern "C" fn(
    *const std::ffi::c_void,
    i32,
    i32,
    i64,
    *mut std::ffi::c_void,
) -> *mut c_char;

unsafe extern "C" {
    fn fewstep_group_new(
        store: *const RawStore,
        rank: i64,
        world: i64,
        left_ms: i64,
        timeout_ms: i64,
        nccl: Option<MakeNccl>,
        out: *mut *mut RawGroup,
    ) -> *mut c_char;
    fn fewstep_group_free(group: *mut RawGroup);
    fn fewstep_group_all_reduce(
        group: *const RawGroup,
        tensor: *const C_tensor,
        operation: i64,
    ) -> *mut c_char;
    fn fewstep_group_broadcast(
        group: *const RawGroup,
        tensor: *const C_tensor,
        from: i64,
    ) -> *mut c_char;
    fn fewstep_group_all_gather(
        group: *const RawGroup,
        tensor: *const C_tensor,
        out: *const C_tensor,
    ) -> *mut c_char;
    fn fewstep_group_reduce_scatter(
        group: *const RawGroup,
        tensor: *const C_tensor,
        out: *const C_tensor,
    ) -> *mut c_char;
    fn fewstep_group_barrier(group: *const RawGroup) -> *mut c_char;
    fn fewstep_group_sum(
        group: *const RawGroup,
        tensor: *const C_tensor,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
}

/// What becomes of the ranks' numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduce {
    /// Their sum.
    Sum,
    /// The smallest.
    Min,
    /// The largest.
    Max,
}

/// Ranks that work together. All of them call the same operations in the same order; each call waits for all. Operations name what they
/// carry (`what`: "the gradients"), for the sentence that says which rank was lost on it. A group of one has no network, and its operations
/// cost nothing.
///
/// ```
/// use fewstep_torch::{Group, Reduce};
/// use tch::Tensor;
///
/// let sums = Group::of_threads(2, std::time::Duration::from_secs(60), |group| {
///     let x = Tensor::from_slice(&[1. + group.rank() as f64]);
///     group.all_reduce("x", &x, Reduce::Sum)?;
///     Ok::<f64, fewstep_torch::Error>(x.f_double_value(&[0])?)
/// })?;
/// assert_eq!(sums.into_iter().collect::<Result<Vec<_>, _>>()?, [3., 3.]);
/// # Ok::<(), fewstep_torch::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Group(Option<Arc<Member>>);

/// A place in a group of several.
struct Member {
    raw: Handle,
    /// Why there is nothing for tensors on GPUs, where there is not.
    no_nccl: Option<String>,
    ranks: Ranks,
    life: Life,
}

/// c10d's process group.
struct Handle(Mutex<*mut RawGroup>);

// SAFETY: the pointer is used under the lock, and a process group may be used from any thread.
unsafe impl Send for Handle {}
unsafe impl Sync for Handle {}

impl Handle {
    fn lock(&self) -> std::sync::MutexGuard<'_, *mut RawGroup> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Breaks the connections: operations of others that wait for this rank end at once.
    fn close(&self) {
        let raw = std::mem::replace(&mut *self.lock(), std::ptr::null_mut());
        // SAFETY: made by the shim or null, and freed once, as nobody else has it from here on.
        unsafe { fewstep_group_free(raw) };
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank(), self.world())
    }
}

impl Group {
    /// A single process.
    pub fn alone() -> Self {
        Self(None)
    }

    /// 0 to world − 1.
    pub fn rank(&self) -> usize {
        self.0.as_ref().map_or(0, |m| m.ranks.rank)
    }

    /// How many ranks there are.
    pub fn world(&self) -> usize {
        self.0.as_ref().map_or(1, |m| m.ranks.world)
    }

    /// Whether this is rank 0, which writes files and talks to the user.
    pub fn leads(&self) -> bool {
        self.rank() == 0
    }

    /// Reduces a tensor over the ranks, in place.
    ///
    /// # Errors
    /// A rank is lost or late, or libtorch refuses.
    pub fn all_reduce(&self, what: &str, tensor: &Tensor, operation: Reduce) -> Result<()> {
        let operation = match operation {
            Reduce::Sum => 0,
            Reduce::Min => 1,
            Reduce::Max => 2,
        };
        self.carries(tensor)?;
        self.run(what, |raw| {
            // SAFETY: group and tensor are alive.
            check(unsafe { fewstep_group_all_reduce(raw, tensor.as_ptr(), operation) })
        })
    }

    /// Sums numbers over the ranks, in place.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    pub fn sum(&self, what: &str, numbers: &mut [f64]) -> Result<()> {
        if self.0.is_none() {
            return Ok(());
        }
        let tensor = Tensor::f_from_slice(numbers)?;
        self.all_reduce(what, &tensor, Reduce::Sum)?;
        Ok(tensor.f_copy_data(numbers, numbers.len())?)
    }

    /// Everybody's tensor becomes that of rank `from`.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    pub fn broadcast(&self, what: &str, tensor: &Tensor, from: usize) -> Result<()> {
        self.carries(tensor)?;
        self.run(what, |raw| {
            // SAFETY: group and tensor are alive.
            check(unsafe { fewstep_group_broadcast(raw, tensor.as_ptr(), from as i64) })
        })
    }

    /// Everybody's bytes become those of rank 0.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    pub fn broadcast_bytes(&self, what: &str, bytes: &mut Vec<u8>) -> Result<()> {
        if self.0.is_none() {
            return Ok(());
        }
        let length = Tensor::from(bytes.len() as i64);
        self.broadcast(what, &length, 0)?;
        let length = length.f_int64_value(&[])?;
        let all = match self.leads() {
            true => Tensor::f_from_slice(bytes)?,
            false => Tensor::f_zeros([length], (Kind::Uint8, Device::Cpu))?,
        };
        if length > 0 {
            self.broadcast(what, &all, 0)?;
        }
        if !self.leads() {
            *bytes = Vec::try_from(&all)?;
        }
        Ok(())
    }

    /// What rank 0 finds, for everybody. Where it finds an error, the others are told as it leaves.
    ///
    /// # Errors
    /// Of `find`; else as [`all_reduce`](Self::all_reduce).
    pub fn told<T: Serialize + DeserializeOwned, E: From<Error>>(
        &self,
        what: &str,
        find: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let not_json = |e: serde_json::Error| Error::Mismatch(format!("{what} of rank 0: {e}"));
        if !self.leads() {
            let mut bytes = Vec::new();
            self.broadcast_bytes(what, &mut bytes)?;
            return Ok(serde_json::from_slice(&bytes).map_err(not_json)?);
        }
        let found = find()?;
        if self.world() > 1 {
            let mut bytes = serde_json::to_vec(&found).map_err(not_json)?;
            self.broadcast_bytes(what, &mut bytes)?;
        }
        Ok(found)
    }

    /// Everybody's tensors become those of rank 0, in place.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    pub fn spread(
        &self,
        what: &str,
        tensors: impl IntoIterator<Item = (String, Tensor)>,
    ) -> Result<()> {
        if self.world() > 1 {
            for (_, tensor) in tensors {
                self.broadcast(what, &tensor.f_detach()?, 0)?;
            }
        }
        Ok(())
    }

    /// All ranks' tensors, which have the same shape, in the order of the ranks.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    pub fn all_gather(&self, what: &str, tensor: &Tensor) -> Result<Vec<Tensor>> {
        if self.0.is_none() {
            return Ok(vec![tensor.shallow_clone()]);
        }
        self.carries(tensor)?;
        let tensor = tensor.f_contiguous()?;
        let mut shape = tensor.size();
        shape.insert(0, self.world() as i64);
        let out = Tensor::f_empty(shape, (tensor.kind(), tensor.device()))?;
        self.run(what, |raw| {
            // SAFETY: group and tensors are alive.
            check(unsafe { fewstep_group_all_gather(raw, tensor.as_ptr(), out.as_ptr()) })
        })?;
        Ok(out.f_unbind(0)?)
    }

    /// The sum over ranks of this rank's part of `tensor`, `[world, …]`.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce), or the first dimension is not the number of ranks.
    pub fn reduce_scatter(&self, what: &str, tensor: &Tensor) -> Result<Tensor> {
        self.carries(tensor)?;
        let shape = tensor.size();
        if shape.first() != Some(&(self.world() as i64)) {
            return Err(Error::Mismatch(format!(
                "{what}: expected {} parts, found shape {shape:?}",
                self.world()
            )));
        }
        let tensor = tensor.f_contiguous()?;
        if self.0.is_none() {
            return Ok(tensor.f_select(0, 0)?);
        }
        let out = Tensor::f_empty(&shape[1..], (tensor.kind(), tensor.device()))?;
        self.run(what, |raw| {
            // SAFETY: group and tensors are alive.
            check(unsafe { fewstep_group_reduce_scatter(raw, tensor.as_ptr(), out.as_ptr()) })
        })?;
        Ok(out)
    }

    /// Waits until all ranks are here.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    pub fn barrier(&self, what: &str) -> Result<()> {
        // SAFETY: the group is alive.
        self.run(what, |raw| check(unsafe { fewstep_group_barrier(raw) }))
    }

    /// The sum over ranks, differentiable: each rank's gradient is the sum of all ranks' gradients. The tensor and its sum have the same
    /// shape on all ranks.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    pub fn differentiable_sum(&self, what: &str, tensor: &Tensor) -> Result<Tensor> {
        if self.0.is_none() {
            return Ok(tensor.shallow_clone());
        }
        self.carries(tensor)?;
        let mut out = std::ptr::null_mut();
        self.run(what, |raw| {
            // SAFETY: group and tensor are alive; on success the shim hands over a tensor.
            check(unsafe { fewstep_group_sum(raw, tensor.as_ptr(), &raw mut out) })
        })?;
        // SAFETY: just made.
        Ok(unsafe { Tensor::from_ptr(out) })
    }

    /// Makes sure that all ranks have the same text (a config, a version).
    ///
    /// # Errors
    /// A rank that has another one than rank 0, on every rank; or a rank is lost or late.
    pub fn agree(&self, what: &str, mine: &str) -> Result<()> {
        let Some(member) = &self.0 else {
            return Ok(());
        };
        // A wait for a key would not notice that a rank has left.
        self.barrier(what)?;
        let all = member
            .life
            .exchange(mine)
            .map_err(|e| self.explain(what, e))?;
        match (1..).zip(&all[1..]).find(|(_, text)| **text != all[0]) {
            None => Ok(()),
            Some((rank, text)) => Err(self.error(
                what,
                format!("rank 0 has `{}`, rank {rank} has `{text}`", all[0]),
            )),
        }
    }

    /// The reducer of these parameters' gradients, which all ranks have in the same order and with the same values (those of rank 0 are
    /// sent to all). `None` for a process alone.
    ///
    /// # Errors
    /// Another number of parameters or other shapes on another rank; else as [`all_reduce`](Self::all_reduce).
    pub fn reducer(&self, parameters: &[Tensor]) -> Result<Option<Reducer>> {
        if self.0.is_none() {
            return Ok(None);
        }
        for parameter in parameters {
            self.broadcast("the parameters", &parameter.f_detach()?, 0)?;
        }
        self.run("making the gradients' buckets", |raw| {
            Reducer::new(self.clone(), raw, parameters).map(Some)
        })
    }

    /// Why an operation failed, as a sentence that names the rank that was lost, where one was. It takes seconds to find out, so it is for
    /// errors that end a run.
    pub fn explain(&self, what: &str, error: Error) -> Error {
        match (&self.0, error) {
            (None, error) | (Some(_), error @ (Error::Group { .. } | Error::OutOfMemory(_))) => {
                error
            }
            (Some(member), error) => {
                let found = member.life.diagnose();
                self.error(what, found.unwrap_or_else(|| error.to_string()))
            }
        }
    }

    /// Waits until rank 0, which has more to do than the others, has come to its end, however long that takes. Returns at once on rank 0
    /// itself.
    ///
    /// # Errors
    /// Rank 0 stopped with a reason, or is lost.
    pub fn see_out(&self, what: &str) -> Result<()> {
        match &self.0 {
            Some(member) if !self.leads() => member
                .life
                .see_out()
                .map_or(Ok(()), |reason| Err(self.error(what, reason))),
            _ => Ok(()),
        }
    }

    /// Says that this process is about to end, and why, where it is not because all is done. Rank 0 waits for the others here, because
    /// they may still want to read that.
    pub fn leave(&self, reason: Option<&str>) {
        if let Some(member) = &self.0 {
            member.life.leave(reason, || member.raw.close());
        }
    }

    /// Whether there is a way for a tensor on its device.
    fn carries(&self, tensor: &Tensor) -> Result<()> {
        let reason = self.0.as_ref().and_then(|member| member.no_nccl.as_ref());
        match (tensor.device(), reason) {
            (Device::Cuda(_), Some(reason)) => Err(Error::Device {
                asked: "several ranks on CUDA".into(),
                reason: reason.clone(),
            }),
            _ => Ok(()),
        }
    }

    fn error(&self, what: &str, reason: String) -> Error {
        Error::Group {
            rank: self.rank(),
            world: self.world(),
            what: what.to_owned(),
            reason,
        }
    }

    /// Runs an operation where there are several ranks.
    fn run<T: Default>(
        &self,
        what: &str,
        operation: impl FnOnce(*const RawGroup) -> Result<T>,
    ) -> Result<T> {
        let Some(member) = &self.0 else {
            return Ok(T::default());
        };
        member.life.begins(what);
        let done = {
            let raw = member.raw.lock();
            if raw.is_null() {
                return Err(self.error(what, "this rank has left the group".into()));
            }
            operation(*raw)
        };
        done.map_err(|e| self.explain(what, e))
    }
}

#[cfg(test)]
mod tests;

/// "rank 1", "ranks 1 and 3".
fn list(ranks: &[usize]) -> String {
    let words: Vec<String> = ranks.iter().map(usize::to_string).collect();
    match words.split_last() {
        Some((last, [])) => format!("rank {last}"),
        Some((last, rest)) => format!("ranks {} and {last}", rest.join(", ")),
        None => "no rank".into(),
    }
}
