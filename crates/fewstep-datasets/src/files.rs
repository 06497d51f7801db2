//! Which files a data set consists of, for whoever takes it elsewhere.

use std::path::PathBuf;

use serde::Serialize;

use crate::fetch::find_weights;
use crate::{DataSpec, Error, Result};

/// The files of a data set and the folder that they are in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DataFiles {
    /// The folder; with the same files below it, a folder of the data set's name below a data root is found by that name.
    pub folder: PathBuf,
    /// Paths below `folder`. None for a data set that needs no files.
    pub files: Vec<PathBuf>,
}

/// Looks a data set up as [`open`](crate::open) does, or weights as [`find_weights`](crate::find_weights) does, and lists its files; none is read.
///
/// ```
/// let digits = fewstep_datasets::files("digits")?;
/// assert!(digits.files.is_empty()); // they are part of this crate
/// # Ok::<(), fewstep_datasets::Error>(())
/// ```
///
/// # Errors
/// The name means nothing, or the data set is not there, or not whole.
pub fn files(name: &str) -> Result<DataFiles> {
    if name == "digits" || name.split(':').next() == Some("synthetic") {
        return Ok(DataFiles {
            folder: PathBuf::new(),
            files: Vec::new(),
        });
    }
    let (folder, paths) = if ["inception", "resnet56"].contains(&name) {
        let path = find_weights(name)?;
        let folder = path.parent().map(Into::into).unwrap_or_default();
        (folder, vec![path])
    } else {
        let (folder, layout) = DataSpec::new(name, None).search()?;
        let paths = layout.files()?;
        (folder, paths)
    };
    let mut files = Vec::with_capacity(paths.len());
    for path in paths {
        match path.strip_prefix(&folder) {
            Ok(below) if path.is_file() => files.push(below.into()),
            _ => {
                let source = std::io::ErrorKind::NotFound.into();
                return Err(Error::Io { path, source });
            }
        }
    }
    Ok(DataFiles { folder, files })
}
