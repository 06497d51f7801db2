//! Opening libtorch's CUDA part at run time: the binary is linked against the CPU part only, so one build serves both.

use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// What became of the attempt to open the CUDA part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CudaPart {
    /// Loaded from this file.
    Open(PathBuf),
    /// Not loaded, and why (one clause, with the remedy).
    Absent(String),
}

/// The folder that `libtorch_cpu.so` was loaded from.
pub(crate) fn folder() -> Option<PathBuf> {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: dladdr fills `info` where it returns non-zero, and a code address of the library is valid to ask about.
    let info = unsafe {
        if libc::dladdr(address_in_libtorch(), info.as_mut_ptr()) == 0 {
            return None;
        }
        info.assume_init()
    };
    if info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: a non-null dli_fname is a C string that lives as long as the library is loaded.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    Path::new(name.to_str().ok()?)
        .canonicalize()
        .ok()?
        .parent()
        .map(Path::to_path_buf)
}

/// Size of the `libtorch_cpu.so` that is open, by which two builds of the same version differ.
pub fn libtorch_bytes() -> Option<u64> {
    let file = folder()?.join("libtorch_cpu.so");
    Some(file.metadata().ok()?.len())
}

fn address_in_libtorch() -> *const libc::c_void {
    // SAFETY: dlsym with a C string; null where the symbol is not found, which dladdr then refuses.
    // at::get_num_threads() is defined in libtorch_cpu.so and is as old as the library's C++ interface.
    unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"_ZN2at15get_num_threadsEv".as_ptr()) }
}

/// Opens `libtorch_cuda.so` once, where the library folder has one and a driver answers.
///
/// It must run before libtorch is first asked about CUDA, because libtorch remembers the answer.
pub(crate) fn open_cuda() -> &'static CudaPart {
    static PART: OnceLock<CudaPart> = OnceLock::new();
    PART.get_or_init(|| match try_open_cuda() {
        Ok(path) => {
            // libtorch leaves TF32 on for convolutions; whoever wants it says so (`Precision::Tf32`).
            if let Err(e) = crate::precision::set_tf32(false) {
                return CudaPart::Absent(e.to_string());
            }
            tracing::debug!(path = %path.display(), "opened libtorch's CUDA part");
            CudaPart::Open(path)
        }
        Err(reason) => CudaPart::Absent(reason),
    })
}

fn try_open_cuda() -> Result<PathBuf, String> {
    let folder = folder().ok_or("the folder of libtorch_cpu.so is not known")?;
    // Python's torch keeps it beside libtorch_cpu.so; `cargo xtask setup --cuda` in a folder that the linker never sees.
    let candidates = [
        folder.join("libtorch_cuda.so"),
        folder.join("../cuda/lib/libtorch_cuda.so"),
    ];
    let path = candidates.iter().find(|p| p.exists()).ok_or_else(|| {
        "this libtorch has no CUDA part; `cargo xtask setup --cuda` installs it, or point LIBTORCH at Python's torch folder"
            .to_owned()
    })?;
    // SAFETY: the driver and libtorch run their own initialisers when opened, as they would when linked.
    unsafe {
        let driver = Library::open(Some("libcuda.so.1"), RTLD_NOW)
            .map_err(|_| "no NVIDIA driver (libcuda.so.1) on this machine")?;
        let part = Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL)
            .map_err(|e| format!("{} could not be opened: {e}", path.display()))?;
        // libtorch keeps function pointers into both: they stay open until the process ends.
        std::mem::forget((driver, part));
    }
    Ok(path.clone())
}

/// A function of our library for what needs CUDA's and NCCL's headers: several ranks on GPUs, CUDA graphs. It lies beside the binary,
/// beside libtorch, or where it was built. Opened once; libtorch's CUDA part must be open.
pub(crate) fn cuda_function(name: &str) -> Result<*mut libc::c_void, String> {
    const NAME: &str = "libfewstep_cuda.so";
    static OPEN: OnceLock<Result<Library, String>> = OnceLock::new();
    let open = || {
        let beside_binary = std::env::current_exe()
            .ok()
            .and_then(|exe| Some(exe.parent()?.join(NAME)));
        let beside_libtorch = folder().map(|folder| folder.join(NAME));
        // Of the build script.
        let built = option_env!("FEWSTEP_CUDA").map(PathBuf::from);
        let path = [beside_binary, beside_libtorch, built]
            .into_iter()
            .flatten()
            .find(|path| path.exists())
            .ok_or_else(|| {
                format!("{NAME} is not there; it is built where `cargo xtask setup --cuda` has installed the headers of CUDA and NCCL")
            })?;
        // SAFETY: our own library; it has no initialisers but libtorch's.
        unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) }
            .map_err(|e| format!("{} could not be opened: {e}", path.display()))
    };
    let library = OPEN.get_or_init(open).as_ref().map_err(Clone::clone)?;
    // SAFETY: an address is all that is taken; whoever calls it knows its type. The library is never closed.
    unsafe { library.get::<*mut libc::c_void>(name.as_bytes()) }
        .map(|function| *function)
        .map_err(|e| format!("{NAME}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_folder_is_the_one_that_holds_libtorch_cpu() {
        let _ = tch::get_num_threads();
        let folder = folder().unwrap();
        assert!(
            folder.join("libtorch_cpu.so").exists(),
            "{}",
            folder.display()
        );
    }

    /// Where this build has made the library: everything that it wants of libtorch is there, GPU or not.
    #[test]
    fn the_library_for_cuda_opens_once_libtorchs_cuda_part_is_open() {
        let folder = folder().unwrap();
        let part = [
            folder.join("libtorch_cuda.so"),
            folder.join("../cuda/lib/libtorch_cuda.so"),
        ];
        let (Some(_), Some(part)) = (
            option_env!("FEWSTEP_CUDA"),
            part.iter().find(|path| path.exists()),
        ) else {
            eprintln!("skipped: this libtorch has no CUDA part, or no headers of NCCL");
            return;
        };
        // SAFETY: as in `try_open_cuda`; nothing of it is used.
        let part = unsafe { Library::open(Some(part), RTLD_NOW | RTLD_GLOBAL) }.unwrap();
        std::mem::forget(part);
        for name in ["fewstep_nccl", "fewstep_graph_new", "fewstep_graph_replay"] {
            assert!(!cuda_function(name).unwrap().is_null());
        }
        assert!(cuda_function("fewstep_nothing").is_err());
    }
}
