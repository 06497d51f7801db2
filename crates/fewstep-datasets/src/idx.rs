//! IDX files, plain or gzip: the format of MNIST, Fashion-MNIST and their kin.
//!
//! Big-endian: two zero bytes, type (8 is `u8`), number of dimensions, one `u32` a dimension, then the values.
//! <http://yann.lecun.com/exdb/mnist/>

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::GzDecoder;
use ndarray::Array4;

use crate::dataset::{check_classes, check_labels};
use crate::{Error, MemoryDataset, Result, Splits};

const FASHION: [&str; 10] = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
];
/// No header may ask for more than this: it is a hundred times the largest set published as IDX.
const LARGEST_BYTES: u64 = 1 << 36;

/// The four files of a set.
#[derive(Debug)]
pub(crate) struct IdxFiles {
    train: [PathBuf; 2],
    test: [PathBuf; 2],
}

impl IdxFiles {
    /// All of them.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        [&self.train[..], &self.test].concat()
    }
}

/// Looks for `*train-images*`, `*train-labels*` and `*t10k-*` or `*test-*` in a folder; `None` where it has no IDX files.
pub(crate) fn find(folder: &Path) -> Result<Option<IdxFiles>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let plain = name.strip_suffix(".gz").unwrap_or(name);
        if path.is_file()
            && ["idx1-ubyte", "idx3-ubyte", ".idx"]
                .iter()
                .any(|end| plain.ends_with(end))
        {
            files.push((plain.to_owned(), path));
        }
    }
    if files.is_empty() {
        return Ok(None);
    }
    // Shortest first: where a file is there plain and packed, the plain one is read.
    files.sort_by(|a, b| (&a.0, a.1.as_os_str().len()).cmp(&(&b.0, b.1.as_os_str().len())));
    let one = |splits: &[&str], what: &str| {
        let of = |name: &str| {
            splits
                .iter()
                .any(|split| name.contains(&format!("{split}-{what}")))
        };
        let mut found = files.iter().filter(|(name, _)| of(name));
        let (name, path) = found.next().ok_or_else(|| {
            Error::format(
                folder,
                format!("IDX files, but none named {}-{what}-…", splits[0]),
            )
        })?;
        match found.find(|(other, _)| other != name) {
            Some((other, _)) => Err(Error::format(
                folder,
                format!("two candidates for one file: {name} and {other}"),
            )),
            None => Ok(path.clone()),
        }
    };
    let test = ["t10k", "test"];
    Ok(Some(IdxFiles {
        train: [one(&["train"], "images")?, one(&["train"], "labels")?],
        test: [one(&test, "images")?, one(&test, "labels")?],
    }))
}

/// Reads both splits. Labels that start at 1 (as in EMNIST's letters) are moved down by one.
pub(crate) fn read(files: &IdxFiles, name: &str) -> Result<Splits> {
    let (train_images, mut train_labels) = read_pair(&files.train)?;
    let (test_images, mut test_labels) = read_pair(&files.test)?;
    if train_images.dim().2 != test_images.dim().2 || train_images.dim().3 != test_images.dim().3 {
        let size = |images: &Array4<u8>| format!("{}×{}", images.dim().2, images.dim().3);
        let what = format!(
            "images are {}, expected {} as in training",
            size(&test_images),
            size(&train_images)
        );
        return Err(Error::format(&files.test[0], what));
    }
    let first = train_labels
        .iter()
        .chain(&test_labels)
        .copied()
        .min()
        .unwrap_or(0)
        .min(1);
    train_labels
        .iter_mut()
        .chain(&mut test_labels)
        .for_each(|label| *label -= first);
    let classes = train_labels
        .iter()
        .max()
        .map_or(0, |&label| label as usize + 1);
    let class_names: Vec<String> = if name == "fashion-mnist" && classes <= FASHION.len() {
        FASHION.iter().map(|&name| name.into()).collect()
    } else {
        (0..classes)
            .map(|class| (class + first as usize).to_string())
            .collect()
    };
    check_classes(&files.train[1], &train_labels, &class_names)?;
    check_labels(&files.test[1], &test_labels, class_names.len())?;
    Ok(Splits {
        train: Arc::new(MemoryDataset::new(
            name,
            train_images,
            train_labels,
            class_names.clone(),
        )?),
        test: Arc::new(MemoryDataset::new(
            name,
            test_images,
            test_labels,
            class_names,
        )?),
    })
}

fn read_pair([images, labels]: &[PathBuf; 2]) -> Result<(Array4<u8>, Vec<u32>)> {
    let (dims, pixels) = read_file(images, 3)?;
    let (count, values) = read_file(labels, 1)?;
    if dims[0] != count[0] {
        return Err(Error::format(
            labels,
            format!(
                "{} labels, but {} has {} images",
                count[0],
                images.display(),
                dims[0]
            ),
        ));
    }
    if pixels.is_empty() {
        return Err(Error::format(images, "no images"));
    }
    let array = Array4::from_shape_vec((dims[0], 1, dims[1], dims[2]), pixels)
        .map_err(|error| Error::format(images, error.to_string()))?;
    Ok((array, values.into_iter().map(u32::from).collect()))
}

/// Reads a file of `u8` with the given number of dimensions.
fn read_file(path: &Path, dimensions: usize) -> Result<(Vec<usize>, Vec<u8>)> {
    let file = BufReader::new(File::open(path).map_err(Error::io(path))?);
    if path.extension().is_some_and(|end| end == "gz") {
        parse(path, GzDecoder::new(file), dimensions)
    } else {
        parse(path, file, dimensions)
    }
}

fn parse(path: &Path, mut reader: impl Read, dimensions: usize) -> Result<(Vec<usize>, Vec<u8>)> {
    let header_bytes = 4 + 4 * dimensions;
    let header = read_up_to(path, &mut reader, header_bytes as u64)?;
    if header.len() >= 4 && header[..4] != [0, 0, 8, dimensions as u8] {
        let what = format!(
            "IDX magic at offset 0 is {:02x?}, expected [00, 00, 08, {dimensions:02x}] (u8, {dimensions} dimensions)",
            &header[..4]
        );
        return Err(Error::format(path, what));
    }
    if header.len() < header_bytes {
        let (expected, found) = (header_bytes as u64, header.len() as u64);
        return Err(Error::Truncated {
            path: path.into(),
            what: "the IDX header".into(),
            expected,
            found,
        });
    }
    let dims: Vec<usize> = header[4..]
        .chunks_exact(4)
        .map(|bytes| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
        .collect();
    let bytes = dims
        .iter()
        .try_fold(1u64, |product, &dim| product.checked_mul(dim as u64));
    let Some(bytes) = bytes.filter(|&bytes| bytes <= LARGEST_BYTES) else {
        return Err(Error::format(
            path,
            format!("the IDX header at offset 4 asks for {dims:?} values"),
        ));
    };
    let values = read_up_to(path, &mut reader, bytes)?;
    if (values.len() as u64) < bytes {
        let item = values.len() / dims[1..].iter().product::<usize>().max(1);
        let (expected, found) = (
            header_bytes as u64 + bytes,
            (header_bytes + values.len()) as u64,
        );
        let what = format!("item {item} of {} (all of them)", dims[0]);
        return Err(Error::Truncated {
            path: path.into(),
            what,
            expected,
            found,
        });
    }
    // Reading on also makes gzip compare its checksum.
    if reader.read(&mut [0]).map_err(Error::io(path))? > 0 {
        let end = header_bytes as u64 + bytes;
        return Err(Error::format(
            path,
            format!("more bytes after offset {end}, where the header says it ends"),
        ));
    }
    Ok((dims, values))
}

/// Reads at most `limit` bytes; a gzip stream that breaks off counts as its end, so that the error can name the place.
fn read_up_to(path: &Path, reader: &mut impl Read, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match reader.take(limit).read_to_end(&mut bytes) {
        Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => {
            Err(Error::io(path)(error))
        }
        _ => Ok(bytes),
    }
}
