//! Every way in which data can be wrong, one sentence each, naming the file and the place.

use std::path::PathBuf;

use crate::ImageShape;

/// The result of everything here that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as a sentence for the person who owns the data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file is shorter than its format or header says.
    #[error("{}: truncated at byte {found}: {what} needs {expected} bytes", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The part that is incomplete, for example `record 17`.
        what: String,
        /// Bytes that the file should have up to the end of that part.
        expected: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// A file is not what its name or place says.
    #[error("{}: {what}", path.display())]
    Format {
        /// The file or folder.
        path: PathBuf,
        /// What was expected and what was found, with the offset where there is one.
        what: String,
    },
    /// A label is not below the number of classes.
    #[error("{}: image {index} has label {label}, expected 0 to {}", path.display(), classes.saturating_sub(1))]
    Label {
        /// The file.
        path: PathBuf,
        /// Place of the image in the file, from 0.
        index: usize,
        /// The label found.
        label: i64,
        /// The number of classes.
        classes: usize,
    },
    /// An image has another size than the rest of its data set.
    #[error("{}: image is {found}, expected {expected} as the first one; ask for `resize` and `crop` to mix sizes", path.display())]
    Size {
        /// The image file.
        path: PathBuf,
        /// Size of the data set's first image, after resize and crop.
        expected: ImageShape,
        /// Size of this one.
        found: ImageShape,
    },
    /// A class without a single image in the training split.
    #[error("{}: class {class:?} has no images", path.display())]
    EmptyClass {
        /// The folder or file.
        path: PathBuf,
        /// The class.
        class: String,
    },
    /// An image file that cannot be decoded.
    #[error("{}: unreadable image: {what}", path.display())]
    Image {
        /// The image file.
        path: PathBuf,
        /// What the decoder said.
        what: String,
    },
    /// A data set that is in none of the usual places.
    #[error("data set {name} not found: looked for {}; {hint}", list(looked))]
    NotFound {
        /// The name asked for.
        name: String,
        /// Where it was looked for, in order.
        looked: Vec<PathBuf>,
        /// How to get it.
        hint: String,
    },
    /// Weights that are in none of the usual places.
    #[error(
        "the weights of {name} were not found: looked for {}; `cargo xtask data fetch {name}` downloads them",
        list(looked)
    )]
    WeightsNotFound {
        /// The name asked for.
        name: String,
        /// Where they were looked for, in order.
        looked: Vec<PathBuf>,
    },
    /// A name that means no data set.
    #[error("unknown data set {name:?}{}; known are {known}", nearest.as_ref().map(|n| format!(", did you mean {n:?}?")).unwrap_or_default())]
    UnknownName {
        /// The name asked for.
        name: String,
        /// The known name next to it, where one is near.
        nearest: Option<String>,
        /// All known names.
        known: String,
    },
    /// A folder that holds no layout known here.
    #[error("{}: no data set recognised; known are {}", path.display(), crate::open::RECOGNISED)]
    Unrecognised {
        /// The folder or file.
        path: PathBuf,
    },
    /// An index past the end of a data set.
    #[error("data set {name}: image {index} asked for, but it has {len}")]
    Index {
        /// The data set.
        name: String,
        /// The index asked for.
        index: usize,
        /// The number of images.
        len: usize,
    },
    /// An option that makes no sense, alone or with the data.
    #[error("option {option}: {what}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// What was expected and what was found.
        what: String,
    },
    /// A download that failed.
    #[error("{url}: {what}")]
    Download {
        /// The address.
        url: String,
        /// What happened.
        what: String,
    },
    /// A download whose content is not the published one. The file has been removed.
    #[error(
        "{url}: {algorithm} is {found}, expected {expected}; the download was discarded, try again"
    )]
    Checksum {
        /// The address.
        url: String,
        /// `MD5` or `SHA-256`.
        algorithm: &'static str,
        /// The published digest.
        expected: String,
        /// The digest of what arrived.
        found: String,
    },
    /// A panic while a batch was assembled.
    #[error("assembling batch {batch} of epoch {epoch} panicked: {what}")]
    Worker {
        /// The epoch.
        epoch: u64,
        /// The batch within it, from 0.
        batch: usize,
        /// The panic's message.
        what: String,
    },
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn format(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::Format {
            path: path.into(),
            what: what.into(),
        }
    }
}

fn list(paths: &[PathBuf]) -> String {
    paths
        .iter()
        .map(|path| path.display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}
