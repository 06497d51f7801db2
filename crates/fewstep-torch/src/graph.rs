//! Work that is done over and over with other numbers in the same tensors. On a GPU it is recorded as a CUDA graph, and played without a
//! launch from the CPU for each kernel; on a CPU it is simply done again, so that one piece of code serves both.

use std::ffi::{c_char, c_int, c_void};

use tch::Device;

use crate::library::cuda_function;
use crate::ops::check;
use crate::{Error, Result};

type Handle = *mut c_void;

/// The functions of `cpp/cuda_graph.cpp`.
#[derive(Clone, Copy)]
struct Functions {
    new: unsafe extern "C" fn(c_int, *mut Handle) -> *mut c_char,
    begin: unsafe extern "C" fn(Handle) -> *mut c_char,
    end: unsafe extern "C" fn(Handle) -> *mut c_char,
    replay: unsafe extern "C" fn(Handle) -> *mut c_char,
    free: unsafe extern "C" fn(Handle),
}

impl Functions {
    fn open() -> Result<Self> {
        // SAFETY: the functions of these names in our own library have these types.
        unsafe {
            Ok(Self {
                new: function("fewstep_graph_new")?,
                begin: function("fewstep_graph_begin")?,
                end: function("fewstep_graph_end")?,
                replay: function("fewstep_graph_replay")?,
                free: function("fewstep_graph_free")?,
            })
        }
    }
}

/// # Safety
/// `F` is the function's type.
unsafe fn function<F: Copy>(name: &str) -> Result<F> {
    const { assert!(size_of::<F>() == size_of::<Handle>()) };
    let address = cuda_function(name).map_err(|reason| Error::Device {
        asked: "cuda".into(),
        reason: format!("no CUDA graphs: {reason}"),
    })?;
    // SAFETY: of the size of an address, and as the caller says.
    Ok(unsafe { std::mem::transmute_copy::<Handle, F>(&address) })
}

/// A recording on a GPU.
struct Recording {
    functions: Functions,
    handle: Handle,
}

impl Recording {
    fn new(device: usize) -> Result<Self> {
        let functions = Functions::open()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: on success the shim hands over a recording, which `drop` gives back.
        check(unsafe { (functions.new)(device as c_int, &raw mut handle) })?;
        Ok(Self { functions, handle })
    }

    fn call(&self, function: unsafe extern "C" fn(Handle) -> *mut c_char) -> Result<()> {
        // SAFETY: the handle is one of `new`, and lives.
        check(unsafe { function(self.handle) })
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // SAFETY: as in `call`; it is not used again.
        unsafe { (self.functions.free)(self.handle) }
    }
}

/// Work to be done over and over: see [`Replay::new`].
pub struct Replay<'a, T, E> {
    state: State<T>,
    work: Work<'a, T, E>,
}

enum State<T> {
    /// On a GPU, with the output that a play overwrites.
    Recorded(Recording, T),
    /// Elsewhere, with the output of the last play.
    DoneAgain(Option<T>),
}

type Work<'a, T, E> = Box<dyn FnMut() -> std::result::Result<T, E> + 'a>;

impl<'a, T, E: From<Error>> Replay<'a, T, E> {
    /// Makes ready for work that is done by [`play`](Self::play). On a GPU `work` runs once, so that libraries set themselves up, and once
    /// more to be recorded; on a CPU nothing is done yet.
    ///
    /// `work` must always do the same operations on the same tensors: put other numbers into its inputs with `copy_`. On a GPU it must
    /// neither read a value nor copy from or to the CPU, and its output is overwritten by the next [`play`](Self::play).
    ///
    /// # Errors
    /// Those of `work`; on a GPU, what can't be recorded, or fewstep was built without CUDA's headers.
    pub fn new(
        device: Device,
        work: impl FnMut() -> std::result::Result<T, E> + 'a,
    ) -> std::result::Result<Self, E> {
        let mut work: Work<'a, T, E> = Box::new(work);
        let state = match device {
            Device::Cuda(number) => {
                let recording = Recording::new(number)?;
                // Libraries set themselves up in the first run, which can't be recorded.
                let _ = work()?;
                recording.call(recording.functions.begin)?;
                let output = work();
                // Recording must end whatever became of the work.
                let ended = recording.call(recording.functions.end);
                let output = output?;
                ended?;
                State::Recorded(recording, output)
            }
            _ => State::DoneAgain(None),
        };
        Ok(Self { state, work })
    }

    /// Does the work on what its inputs hold now.
    ///
    /// # Errors
    /// Those of the work.
    pub fn play(&mut self) -> std::result::Result<&T, E> {
        match &mut self.state {
            State::Recorded(recording, output) => {
                recording.call(recording.functions.replay)?;
                Ok(output)
            }
            State::DoneAgain(last) => {
                // Given back before the next one takes its room.
                *last = None;
                Ok(last.insert((self.work)()?))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::*;

    #[test]
    fn playing_does_the_work_on_what_the_inputs_hold_by_then() {
        let mut input = Tensor::from_slice(&[1f32, 2.]);
        let alias = input.shallow_clone();
        let mut replay: Replay<'_, Tensor, Error> =
            Replay::new(Device::Cpu, || Ok(alias.f_square()?.f_sum(Kind::Float)?)).unwrap();
        input.copy_(&Tensor::from_slice(&[3f32, 4.]));
        assert_eq!(replay.play().unwrap().double_value(&[]), 25.);
    }

    #[test]
    fn on_a_cpu_the_work_is_done_once_a_play_and_not_before() {
        let done = std::cell::Cell::new(0);
        let mut replay: Replay<'_, i32, Error> = Replay::new(Device::Cpu, || {
            done.set(done.get() + 1);
            Ok(done.get())
        })
        .unwrap();
        assert_eq!(done.get(), 0);
        assert_eq!([*replay.play().unwrap(), *replay.play().unwrap()], [1, 2]);
    }

    #[test]
    fn without_the_library_a_graph_is_refused_in_one_sentence() {
        if option_env!("FEWSTEP_CUDA").is_some() {
            eprintln!("skipped: this build has the library");
            return;
        }
        let refused = Replay::<'_, (), Error>::new(Device::Cuda(0), || Ok(()));
        let said = refused.err().unwrap().to_string();
        assert!(said.starts_with("device cuda: no CUDA graphs: libfewstep_cuda.so is not there"));
    }
}
