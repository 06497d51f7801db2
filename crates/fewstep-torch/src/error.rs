use std::path::PathBuf;

/// What can go wrong at the border to libtorch. Each message is one sentence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A C++ exception of libtorch; the message is its first line.
    #[error("libtorch: {0}")]
    Torch(String),
    /// There is not enough memory for a tensor.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// A device that was asked for is not there.
    #[error("device {asked}: {reason}")]
    Device {
        /// What the user asked for.
        asked: String,
        /// Why it can't be had, and what to do.
        reason: String,
    },
    /// A checkpoint file that can't be read or written.
    #[error("{path}: {reason}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// An operation of several ranks failed.
    #[error("rank {rank} of {world}, {what}: {reason}")]
    Group {
        /// This process.
        rank: usize,
        /// How many there are.
        world: usize,
        /// What was being done.
        what: String,
        /// Which rank was lost, or what libtorch said.
        reason: String,
    },
    /// A tensor or state entry that is missing, extra or of another shape.
    #[error("{0}")]
    Mismatch(String),
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;

impl From<tch::TchError> for Error {
    fn from(e: tch::TchError) -> Self {
        Self::torch(&e.to_string())
    }
}

impl Error {
    /// What a C++ exception of libtorch says.
    pub(crate) fn torch(message: &str) -> Self {
        let line = first_line(message);
        match memory(&line) {
            Some(sizes) => Self::OutOfMemory(sizes),
            None => Self::Torch(line),
        }
    }

    /// Whether there was not enough memory, so that smaller batches may help.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::OutOfMemory(_))
    }
}

/// The sizes in what libtorch's allocators throw (c10/cuda/CUDACachingAllocator.cpp, c10/core/impl/alloc_cpu.cpp); CUDA itself and cuBLAS
/// know none.
fn memory(line: &str) -> Option<String> {
    // The text from `start` to where one of `ends` begins.
    let between = |start: &str, ends: &[&str]| {
        let rest = &line[line.find(start)? + start.len()..];
        let end = ends.iter().filter_map(|end| rest.find(end)).min();
        Some(rest[..end.unwrap_or(rest.len())].trim())
    };
    if line.contains("CUDA out of memory") {
        let asked = between("Tried to allocate ", &[". "]).unwrap_or("more");
        let asked = asked.trim_end_matches('.');
        let mut sizes = format!("{asked} asked for");
        if let Some(gpu) = between("GPU ", &[" has a total capacity of "]) {
            let total = between(" has a total capacity of ", &[" of which ", ". "]);
            let free = between(" of which ", &[" is free"]);
            if let (Some(total), Some(free)) = (total, free) {
                sizes += &format!(" on cuda:{gpu}, {free} of {total} free");
            }
        }
        if let Some(own) = between("Of the allocated memory ", &[" is allocated by PyTorch"]) {
            sizes += &format!(", {own} in use by this process");
        }
        return Some(sizes);
    }
    if line.contains("DefaultCPUAllocator: ") && line.contains("memory") {
        let asked = between("you tried to allocate ", &[" bytes"]);
        return Some(match asked.and_then(|bytes| bytes.parse::<u64>().ok()) {
            Some(bytes) => format!("{} asked for on the CPU", size(bytes)),
            None => "on the CPU".into(),
        });
    }
    let of_cuda = ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"];
    of_cuda
        .iter()
        .any(|words| line.contains(words))
        .then(|| "CUDA itself has no more on the GPU".into())
}

/// Bytes as libtorch writes them.
fn size(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.iter().find(|(_, shift)| bytes >> shift > 0) {
        Some((unit, shift)) => format!("{:.2} {unit}", bytes as f64 / f64::from(1u32 << shift)),
        None => format!("{bytes} bytes"),
    }
}

/// libtorch appends its C++ stack to every message; people want the first line.
pub(crate) fn first_line(message: &str) -> String {
    let message = message.trim();
    let message = message
        .strip_prefix("Internal torch error: ")
        .unwrap_or(message);
    message.lines().next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_too_large_for_this_machine_is_out_of_memory_with_its_size() {
        // 1 PiB: more than an address space holds.
        let e = tch::Tensor::f_empty([1 << 48], (tch::Kind::Float, tch::Device::Cpu));
        let e = Error::from(e.unwrap_err());
        assert!(e.is_out_of_memory());
        assert_eq!(
            e.to_string(),
            "out of memory: 1048576.00 GiB asked for on the CPU"
        );
    }

    #[test]
    fn what_libtorch_says_of_a_full_gpu_becomes_one_sentence_with_the_sizes() {
        // The words of libc10_cuda.so 2.11.0.
        let all = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of 79.11 GiB of which 1.20 GiB is free. Process \
            4711 has 77.91 GiB memory in use. Of the allocated memory 76.50 GiB is allocated by PyTorch, and 512.00 MiB is reserved by PyTorch \
            but unallocated. If reserved but unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid \
            fragmentation.  See documentation for Memory Management  (a link)\nException raised from malloc at …";
        for (said, expected) in [
            (
                all,
                "out of memory: 2.00 GiB asked for on cuda:1, 1.20 GiB of 79.11 GiB free, 76.50 GiB in use by this process",
            ),
            (
                "CUDA out of memory. Tried to allocate more than 1EB memory.",
                "out of memory: more than 1EB memory asked for",
            ),
            (
                "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
                "out of memory: CUDA itself has no more on the GPU",
            ),
            (
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
                "out of memory: CUDA itself has no more on the GPU",
            ),
        ] {
            let e = Error::torch(said);
            assert!(e.is_out_of_memory(), "{e:?}");
            assert_eq!(e.to_string(), expected);
        }
        assert!(!Error::torch("the memory format is unsupported").is_out_of_memory());
    }

    #[test]
    fn a_cpp_exception_becomes_one_line_without_its_stack() {
        let a = tch::Tensor::ones([2, 3], (tch::Kind::Float, tch::Device::Cpu));
        let e = Error::from(a.f_matmul(&a).unwrap_err()).to_string();
        assert!(
            e.contains("mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)"),
            "{e}"
        );
        assert_eq!(e.lines().count(), 1);
        assert!(!e.contains("Exception raised"), "{e}");
    }
}
