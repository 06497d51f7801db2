//! fewstep-events for C and whatever calls C. The header is `include/fewstep_events.h`.
//!
//! Every function that can fail returns a [`FewstepStatus`] and leaves a sentence for [`fewstep_last_error`]. No panic leaves a function.
//! A model may be used by many threads at a time; freeing it while another thread uses it is the caller's to avoid.
//!
//! What C does, in Rust's words:
//!
//! ```
//! use fewstep_events_c::{FewstepStatus, fewstep_last_error, fewstep_model_free, fewstep_model_open};
//! use std::{ffi::CStr, ptr};
//!
//! let mut model = ptr::null_mut();
//! // SAFETY: the path ends in NUL, and there is room for a pointer.
//! let status = unsafe { fewstep_model_open(c"nowhere.events".as_ptr(), &mut model) };
//! assert_eq!(status, FewstepStatus::File);
//! // SAFETY: the library's own string, read before the next failure.
//! let sentence = unsafe { CStr::from_ptr(fewstep_last_error()) }.to_string_lossy();
//! assert!(sentence.starts_with("nowhere.events: "), "{sentence}");
//! // SAFETY: NULL is nothing to free.
//! unsafe { fewstep_model_free(model) };
//! ```

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use fewstep_events::{Error, Images, Model, Options, Session};

/// What became of a call.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FewstepStatus {
    /// Done.
    Ok = 0,
    /// An argument is NULL, misaligned, out of range, or of the wrong length.
    Misuse = 1,
    /// The model can't be read, is damaged, is of another version, or is no model.
    File = 2,
    /// There is not enough memory.
    Memory = 3,
    /// A mistake in this library.
    Internal = 4,
}

/// A model that is ready to run. Its contents are private.
pub struct FewstepModel {
    model: Model,
    names: Vec<CString>,
    /// Sessions that ran before, with their number of threads: at most one for each call that was under way at one time.
    idle: Mutex<Vec<(usize, Session)>>,
}

type Failure = (FewstepStatus, String);

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

fn misuse(what: impl Into<String>) -> Failure {
    (FewstepStatus::Misuse, what.into())
}

fn failure(error: Error) -> Failure {
    let status = match error {
        Error::Image { .. } | Error::Option { .. } => FewstepStatus::Misuse,
        Error::Memory(_) => FewstepStatus::Memory,
        _ => FewstepStatus::File,
    };
    (status, error.to_string())
}

/// Text as C has it: a NUL in its midst would end it early.
fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', "")).unwrap_or_default()
}

fn guarded(call: impl FnOnce() -> Result<(), Failure>) -> FewstepStatus {
    let done = catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let what = (panic.downcast_ref::<String>().map(String::as_str))
            .or(panic.downcast_ref::<&str>().copied());
        let what = what.unwrap_or("no message");
        Err((
            FewstepStatus::Internal,
            format!("a mistake in fewstep-events: {what}"),
        ))
    });
    let Err((status, message)) = done else {
        return FewstepStatus::Ok;
    };
    // In a thread that is ending there is nobody left to read it.
    let _ = LAST.try_with(|last| *last.borrow_mut() = c_text(&message));
    status
}

/// # Safety
/// `pointer` is NULL or points to `len` elements that nobody writes meanwhile.
unsafe fn slice<'a, T>(pointer: *const T, len: usize, name: &str) -> Result<&'a [T], Failure> {
    check(pointer, len, name)?;
    // SAFETY: as this function's; not NULL, aligned, and of a size that can be.
    Ok(unsafe { std::slice::from_raw_parts(pointer, len) })
}

fn check<T>(pointer: *const T, len: usize, name: &str) -> Result<(), Failure> {
    if pointer.is_null() {
        return Err(misuse(format!("{name}: expected a pointer, found NULL")));
    }
    if !pointer.is_aligned() {
        let bytes = align_of::<T>();
        return Err(misuse(format!(
            "{name}: expected an address that is a multiple of {bytes}, found {pointer:p}"
        )));
    }
    if len
        .checked_mul(size_of::<T>())
        .is_none_or(|bytes| bytes > isize::MAX as usize)
    {
        return Err(misuse(format!(
            "{name}: expected a length that fits into memory, found {len}"
        )));
    }
    Ok(())
}

/// # Safety
/// `out` is NULL or points to room for a `T`.
unsafe fn put<T>(out: *mut T, value: T, name: &str) -> Result<(), Failure> {
    check(out, 1, name)?;
    // SAFETY: as this function's; not NULL and aligned.
    unsafe { out.write(value) };
    Ok(())
}

/// # Safety
/// `model` is NULL or was made by this library and not freed.
unsafe fn known<'a>(model: *const FewstepModel) -> Result<&'a FewstepModel, Failure> {
    // SAFETY: as this function's.
    unsafe { slice(model, 1, "model") }.map(|models| &models[0])
}

/// # Safety
/// `out` is NULL or points to room for a pointer.
unsafe fn hand_out(model: Model, out: *mut *mut FewstepModel) -> Result<(), Failure> {
    let names = model
        .class_names()
        .iter()
        .map(|name| c_text(name))
        .collect();
    let made = Box::new(FewstepModel {
        model,
        names,
        idle: Mutex::default(),
    });
    // SAFETY: as this function's.
    unsafe { put(out, Box::into_raw(made), "model") }
}

/// Opens the model file at `path` and puts a model into `*model`, to be freed with `fewstep_model_free`. The file is mapped: replace
/// it by renaming another over it, never by writing into it. `*model` is NULL where that fails.
///
/// # Safety
/// `path` is NULL or a string that ends in NUL; `model` is NULL or points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fewstep_model_open(
    path: *const c_char,
    model: *mut *mut FewstepModel,
) -> FewstepStatus {
    guarded(|| {
        // SAFETY: as this function's.
        unsafe { put(model, std::ptr::null_mut(), "model")? };
        check(path, 1, "path")?;
        // SAFETY: not NULL, and a string by this function's conditions.
        let path = unsafe { CStr::from_ptr(path) };
        let path = to_path(path)?;
        let opened = Model::open(path).map_err(failure)?;
        // SAFETY: as this function's.
        unsafe { hand_out(opened, model) }
    })
}

#[cfg(unix)]
fn to_path(path: &CStr) -> Result<&std::path::Path, Failure> {
    use std::os::unix::ffi::OsStrExt;
    Ok(std::ffi::OsStr::from_bytes(path.to_bytes()).as_ref())
}

#[cfg(not(unix))]
fn to_path(path: &CStr) -> Result<&std::path::Path, Failure> {
    let text = path
        .to_str()
        .map_err(|e| misuse(format!("path: expected UTF-8, found other bytes ({e})")))?;
    Ok(text.as_ref())
}

/// A model from the `len` bytes of a model file, which are copied. Else as `fewstep_model_open`.
///
/// # Safety
/// `bytes` is NULL or points to `len` bytes; `model` is NULL or points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fewstep_model_from_memory(
    bytes: *const u8,
    len: usize,
    model: *mut *mut FewstepModel,
) -> FewstepStatus {
    guarded(|| {
        // SAFETY: as this function's.
        unsafe { put(model, std::ptr::null_mut(), "model")? };
        // SAFETY: as this function's.
        let bytes = unsafe { slice(bytes, len, "bytes")? };
        let opened = Model::from_bytes(bytes).map_err(failure)?;
        // SAFETY: as this function's.
        unsafe { hand_out(opened, model) }
    })
}

/// Height, width and channels of an image.
///
/// # Safety
/// `model` is NULL or a model that is not freed; the others are NULL or point to room for a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fewstep_model_input(
    model: *const FewstepModel,
    height: *mut usize,
    width: *mut usize,
    channels: *mut usize,
) -> FewstepStatus {
    guarded(|| {
        // SAFETY: as this function's.
        unsafe {
            let [c, h, w] = known(model)?.model.input();
            put(height, h, "height")?;
            put(width, w, "width")?;
            put(channels, c, "channels")
        }
    })
}

/// The number of classes.
///
/// # Safety
/// `model` is NULL or a model that is not freed; `classes` is NULL or points to room for a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fewstep_model_classes(
    model: *const FewstepModel,
    classes: *mut usize,
) -> FewstepStatus {
    guarded(|| {
        // SAFETY: as this function's.
        unsafe { put(classes, known(model)?.model.classes(), "classes") }
    })
}

/// The name of a class, in UTF-8, which lives as long as the model. NULL with `FEWSTEP_STATUS_OK` where the file has no names.
///
/// # Safety
/// `model` is NULL or a model that is not freed; `name` is NULL or points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fewstep_model_class_name(
    model: *const FewstepModel,
    number: usize,
    name: *mut *const c_char,
) -> FewstepStatus {
    guarded(|| {
        // SAFETY: as this function's.
        unsafe {
            put(name, std::ptr::null(), "name")?;
            let model = known(model)?;
            let classes = model.model.classes();
            if number >= classes {
                return Err(misuse(format!(
                    "number: expected a class from 0 to {}, found {number}",
                    classes - 1
                )));
            }
            let found = model
                .names
                .get(number)
                .map_or(std::ptr::null(), |n| n.as_ptr());
            put(name, found, "name")
        }
    })
}

/// Runs images on a number of threads (1 to 1024).
///
/// `pixels` are the bytes [N, height, width, channels] of N images, `pixels_len` in number; `scores` is room for [N, classes] numbers,
/// `scores_len` in number. The class of an image is the place of its highest score. Several threads may run one model at a time. What a
/// call needs in memory is kept for the next one with as many threads, so that a second call does not ask for any.
///
/// # Safety
/// `model` is NULL or a model that is not freed before this call returns; `pixels` and `scores` are NULL or of the lengths said, and
/// nobody else writes to them or reads the scores meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fewstep_model_run(
    model: *const FewstepModel,
    pixels: *const u8,
    pixels_len: usize,
    threads: usize,
    scores: *mut f32,
    scores_len: usize,
) -> FewstepStatus {
    guarded(|| {
        // SAFETY: as this function's.
        let (model, pixels) = unsafe { (known(model)?, slice(pixels, pixels_len, "pixels")?) };
        check(scores, scores_len, "scores")?;
        // The caller's room may hold no numbers yet.
        // SAFETY: as this function's, checked as `slice` does; every bit pattern is an f32.
        let scores = unsafe {
            scores.write_bytes(0, scores_len);
            std::slice::from_raw_parts_mut(scores, scores_len)
        };
        let idle = || model.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = {
            let mut idle = idle();
            let place = idle.iter().position(|(n, _)| *n == threads);
            place.map(|place| idle.swap_remove(place).1)
        };
        let mut session = match taken {
            Some(session) => session,
            None => {
                let options = Options {
                    threads,
                    ..Options::default()
                };
                model.model.session(options).map_err(failure)?
            }
        };
        let done = session.run(Images::Pixels(pixels), scores);
        idle().push((threads, session));
        done.map_err(failure)
    })
}

/// Why this thread's last call that failed did: one sentence in UTF-8, empty before the first. It is good until the next call of this
/// library that fails on this thread.
#[unsafe(no_mangle)]
pub extern "C" fn fewstep_last_error() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr())
        .unwrap_or(c"".as_ptr())
}

/// Frees a model. NULL is nothing.
///
/// # Safety
/// `model` is NULL or a model that is not freed and that no other call uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fewstep_model_free(model: *mut FewstepModel) {
    guarded(|| {
        if !model.is_null() {
            // SAFETY: it was made by `hand_out` and is freed once, by this function's conditions.
            drop(unsafe { Box::from_raw(model) });
        }
        Ok(())
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> String {
        // SAFETY: the library's own string, read before the next failure.
        unsafe { CStr::from_ptr(fewstep_last_error()) }
            .to_str()
            .unwrap()
            .into()
    }

    #[test]
    fn a_panic_becomes_a_status_and_a_sentence() {
        let status = guarded(|| panic!("on purpose"));
        assert_eq!(status, FewstepStatus::Internal);
        assert_eq!(message(), "a mistake in fewstep-events: on purpose");
    }

    #[test]
    fn a_misaligned_pointer_is_refused_before_it_is_used() {
        let numbers = [0f32; 4];
        let odd = numbers.as_ptr().wrapping_byte_add(1);
        let (status, why) = check(odd, 2, "scores").unwrap_err();
        assert_eq!(status, FewstepStatus::Misuse);
        assert!(
            why.starts_with("scores: expected an address that is a multiple of 4, found 0x"),
            "{why}"
        );
        let (_, why) = check(numbers.as_ptr(), usize::MAX, "scores").unwrap_err();
        assert!(
            why.starts_with("scores: expected a length that fits into memory, found 1844"),
            "{why}"
        );
    }

    #[test]
    fn each_thread_has_its_own_last_error() {
        // SAFETY: NULL is allowed.
        let status = unsafe { fewstep_model_open(std::ptr::null(), std::ptr::null_mut()) };
        assert_eq!(status, FewstepStatus::Misuse);
        assert_eq!(message(), "model: expected a pointer, found NULL");
        std::thread::spawn(|| assert_eq!(message(), ""))
            .join()
            .unwrap();
    }
}
