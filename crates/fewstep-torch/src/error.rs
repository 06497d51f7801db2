use std::path::PathBuf;

/// What can go wrong at the border to libtorch. Each message is one sentence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A C++ exception of libtorch; the message is its first line.
    #[error("libtorch: {0}")]
    Torch(String),
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
        Self::Torch(first_line(&e.to_string()))
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
