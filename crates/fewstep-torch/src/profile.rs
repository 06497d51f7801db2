//! What a piece of work spends its time on, operator by operator, by libtorch's own profiler (Kineto).

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use tch::Device;

use crate::Error;
use crate::ops::check;

unsafe extern "C" {
    fn fewstep_profile_begin(cuda: bool) -> *mut c_char;
    fn fewstep_profile_end(
        path: *const c_char,
        events: *mut c_void,
        add: extern "C" fn(*mut c_void, *const c_char, u64, u64, u64, bool),
    ) -> *mut c_char;
}

/// An operator's call, or a kernel on a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `aten::addmm`, or the name of a kernel.
    pub name: String,
    /// Nanoseconds on the profiler's clock.
    pub start: u64,
    /// Nanoseconds, with all that it called.
    pub duration: u64,
    /// The thread that called it; on a GPU, nothing in particular.
    pub thread: u64,
    /// Whether it ran on the GPU.
    pub on_device: bool,
}

/// All calls of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// See [`Event::name`].
    pub name: String,
    /// How often.
    pub calls: usize,
    /// Together, without what they called in turn.
    pub own_time: Duration,
    /// Whether they ran on the GPU.
    pub on_device: bool,
}

/// What was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profile {
    /// In the order of libtorch.
    pub events: Vec<Event>,
}

impl Profile {
    /// The events by name, those with the most own time first, kernels on the GPU before operators.
    pub fn by_name(&self) -> Vec<Line> {
        let mut sums: BTreeMap<(&str, bool), (usize, u64)> = BTreeMap::new();
        for (event, own) in self.events.iter().zip(self.own_times()) {
            let sum = sums.entry((&event.name, event.on_device)).or_default();
            sum.0 += 1;
            sum.1 += own;
        }
        let mut lines: Vec<Line> = sums
            .into_iter()
            .map(|((name, on_device), (calls, own))| Line {
                name: name.to_owned(),
                calls,
                own_time: Duration::from_nanos(own),
                on_device,
            })
            .collect();
        lines.sort_by_key(|l| (!l.on_device, std::cmp::Reverse(l.own_time)));
        lines
    }

    /// How often operators of this name were called.
    pub fn calls(&self, name: &str) -> usize {
        self.events.iter().filter(|e| e.name == name).count()
    }

    /// Each event's duration without that of the events inside it on the same thread.
    fn own_times(&self) -> Vec<u64> {
        let mut own: Vec<u64> = self.events.iter().map(|e| e.duration).collect();
        let mut order: Vec<usize> = (0..own.len())
            .filter(|&i| !self.events[i].on_device)
            .collect();
        // An outer event begins no later and ends no earlier.
        order.sort_by_key(|&i| {
            let e = &self.events[i];
            (e.thread, e.start, std::cmp::Reverse(e.duration))
        });
        let mut around: Vec<usize> = Vec::new();
        for i in order {
            let e = &self.events[i];
            while let Some(&outer) = around.last() {
                let o = &self.events[outer];
                if o.thread == e.thread && e.start + e.duration <= o.start + o.duration {
                    own[outer] = own[outer].saturating_sub(e.duration);
                    break;
                }
                let _ = around.pop();
            }
            around.push(i);
        }
        own
    }
}

/// Runs `f` under the profiler, with the GPU's kernels where `device` is one. With `trace`, all of it is written there as JSON that
/// chrome://tracing and Perfetto open. Calls must not be nested, nor run side by side.
///
/// # Errors
/// Those of `f`; libtorch refuses; the trace can't be written.
pub fn profile<T, E: From<Error>>(
    device: Device,
    trace: Option<&Path>,
    f: impl FnOnce() -> std::result::Result<T, E>,
) -> std::result::Result<(T, Profile), E> {
    let path = trace
        .map(|path| CString::new(path.as_os_str().as_bytes()))
        .transpose()
        .map_err(|_| Error::Mismatch("the trace's path has a zero byte in it".into()))?;
    // SAFETY: a flag is all it takes.
    check(unsafe { fewstep_profile_begin(device.is_cuda()) })?;
    let done = f();
    let mut events: Vec<Event> = Vec::new();
    let text = path.as_deref().map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: the shim calls `add` with the vector and a C string that lives through the call, before it returns.
    check(unsafe { fewstep_profile_end(text, (&raw mut events).cast(), add) })?;
    if let Some(path) = trace.filter(|path| !path.exists()) {
        let reason = "libtorch could not write the trace".into();
        let path = path.to_path_buf();
        return Err(Error::File { path, reason }.into());
    }
    Ok((done?, Profile { events }))
}

extern "C" fn add(
    events: *mut c_void,
    name: *const c_char,
    start: u64,
    duration: u64,
    thread: u64,
    on_device: bool,
) {
    // SAFETY: see `profile`.
    let (events, name) = unsafe { (&mut *events.cast::<Vec<Event>>(), CStr::from_ptr(name)) };
    events.push(Event {
        name: name.to_string_lossy().into_owned(),
        start,
        duration,
        thread,
        on_device,
    });
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::*;
    use crate::Result;

    fn event(name: &str, start: u64, duration: u64, on_device: bool) -> Event {
        Event {
            name: name.into(),
            start,
            duration,
            thread: 1,
            on_device,
        }
    }

    #[test]
    fn an_operators_own_time_is_without_what_it_called() {
        let profile = Profile {
            events: vec![
                event("inner", 10, 30, false),
                event("outer", 0, 100, false),
                event("inner", 50, 20, false),
                event("innermost", 52, 5, false),
                event("after", 100, 7, false),
                event("kernel", 5, 1000, true),
            ],
        };
        let lines = profile.by_name();
        let short: Vec<_> = lines
            .iter()
            .map(|l| (l.name.as_str(), l.calls, l.own_time.as_nanos()))
            .collect();
        let expected = [
            ("kernel", 1, 1000),
            ("outer", 1, 50),
            ("inner", 2, 45),
            ("after", 1, 7),
            ("innermost", 1, 5),
        ];
        assert_eq!(short, expected);
    }

    #[test]
    fn a_product_is_seen_by_its_name_and_the_trace_holds_it_too() {
        let a = Tensor::ones([64, 64], (Kind::Float, Device::Cpu));
        let folder = std::env::temp_dir();
        let trace = folder.join(format!("fewstep-profile-{}.json", std::process::id()));
        let work = || -> Result<f64> { Ok(a.f_mm(&a)?.f_sum(Kind::Double)?.f_double_value(&[])?) };
        let (sum, seen) = profile(Device::Cpu, Some(&trace), work).unwrap();
        assert_eq!(sum, 64f64.powi(3));
        assert_eq!((seen.calls("aten::mm"), seen.calls("aten::conv2d")), (1, 0));
        let text = std::fs::read_to_string(&trace).unwrap();
        std::fs::remove_file(&trace).unwrap();
        assert!(text.contains("aten::mm"));
        let nowhere = Path::new("/nonexistent/trace.json");
        let refused = profile(Device::Cpu, Some(nowhere), || Ok::<_, Error>(()));
        let said = refused.unwrap_err().to_string();
        assert_eq!(
            said,
            "/nonexistent/trace.json: libtorch could not write the trace"
        );
    }
}
