//! Images to measure, batch by batch, and published statistics of images.
//!
//! What evaluation programs write is read: `.npz` of images in ADM's layout, folders of pictures, statistics of pytorch-fid
//! (`mu`, `sigma`) and of ADM (`mu`, `sigma`, `mu_s`, `sigma_s`, and images beside them). Entries of an archive may be stored or
//! deflated. No more than a batch of images is in memory.

use std::fs::File;
use std::io::{BufReader, Cursor, Read, Write};
use std::path::{Path, PathBuf};

use fewstep_metrics::FeatureStatistics;
use fewstep_torch::checkpoint::write_atomically;
use ndarray::ArrayView4;
use zip::{CompressionMethod, ZipArchive, ZipWriter, write::SimpleFileOptions};

use super::npz::npy_header;
use super::{ImagesError, file_error};

/// pytorch-fid and ADM do not write how many images their statistics are of; a covariance needs some number.
const NOMINAL_COUNT: u64 = 50_000;
/// A header of NumPy is no longer than that.
const MAX_HEADER: usize = 1 << 16;

/// Images that lie in a file or a folder.
#[derive(Debug, Clone, PartialEq)]
pub enum ImageSource {
    /// `arr_0` of an `.npz`, uint8 `[N, height, width, 1 or 3]`.
    Npz {
        /// The file.
        path: PathBuf,
        /// `[N, height, width, channels]`.
        shape: [usize; 4],
    },
    /// Every `.png`, `.jpg` and `.jpeg` of a folder, by name; what is below its subfolders is not counted.
    Folder {
        /// The pictures; at least one.
        files: Vec<PathBuf>,
    },
}

impl ImageSource {
    /// The images at a path.
    ///
    /// # Errors
    /// Nothing is there, or no images.
    pub fn open(path: &Path) -> Result<Self, ImagesError> {
        if path.is_dir() {
            return folder(path);
        }
        let shape = Archive::open(path)?
            .images()?
            .ok_or_else(|| wrong(path, "expected images as arr_0, found none"))?;
        let path = path.to_owned();
        Ok(Self::Npz { path, shape })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        match self {
            Self::Npz { shape, .. } => shape[0],
            Self::Folder { files } => files.len(),
        }
    }

    /// Calls `visit` with batches of up to `size` images, bytes `[n, height, width, 1 or 3]`; pictures of a folder are turned
    /// into RGB.
    ///
    /// # Errors
    /// What `visit` returns; an image is damaged or, within a batch, of another size than the first.
    pub fn batches<E: From<ImagesError>>(
        &self,
        size: usize,
        mut visit: impl FnMut(ArrayView4<'_, u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        let size = size.max(1);
        match self {
            Self::Npz { path, shape } => {
                let [count, height, width, channels] = *shape;
                let mut archive = Archive::open(path)?;
                let mut entry = archive.entry("arr_0.npy")?;
                let header = Header::read(&mut entry).map_err(|e| wrong(path, e))?;
                // The file may have changed since it was opened.
                if header.images().as_ref() != Ok(shape) {
                    return Err(wrong(path, "arr_0 changed while it was read").into());
                }
                let mut bytes = Vec::new();
                for first in (0..count).step_by(size) {
                    let batch = size.min(count - first);
                    let length = batch * height * width * channels;
                    read_exactly(&mut entry, length, &mut bytes).map_err(|e| wrong(path, e))?;
                    let shape = (batch, height, width, channels);
                    let view = ArrayView4::from_shape(shape, &bytes).map_err(|e| wrong(path, e))?;
                    visit(view)?;
                }
                Ok(())
            }
            Self::Folder { files } => {
                for files in files.chunks(size) {
                    let mut bytes = Vec::new();
                    let mut first = None;
                    for file in files {
                        let picture = image::open(file).map_err(|e| wrong(file, e))?.to_rgb8();
                        let found = (picture.height() as usize, picture.width() as usize);
                        let (height, width) = *first.get_or_insert(found);
                        if found != (height, width) {
                            let (h, w) = found;
                            return Err(wrong(
                                file,
                                format!(
                                    "expected {height}×{width} pixels as in {}, found {h}×{w}",
                                    files[0].display()
                                ),
                            )
                            .into());
                        }
                        bytes.extend_from_slice(picture.as_raw());
                    }
                    let (height, width) = first.unwrap_or_default();
                    let shape = (files.len(), height, width, 3);
                    let view =
                        ArrayView4::from_shape(shape, &bytes).map_err(|e| wrong(&files[0], e))?;
                    visit(view)?;
                }
                Ok(())
            }
        }
    }
}

fn folder(path: &Path) -> Result<ImageSource, ImagesError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|e| wrong(path, e))? {
        let file = entry.map_err(|e| wrong(path, e))?.path();
        let ending = file.extension().and_then(|e| e.to_str());
        let ending = ending.unwrap_or_default().to_ascii_lowercase();
        if matches!(ending.as_str(), "png" | "jpg" | "jpeg") && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(wrong(path, "expected .png or .jpg files, found none"));
    }
    Ok(ImageSource::Folder { files })
}

/// Means and covariances of features that somebody published.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// Of the pooled features: `mu`, `sigma`.
    pub pooled: FeatureStatistics,
    /// Of the spatial features: `mu_s`, `sigma_s`. ADM's files have them.
    pub spatial: Option<FeatureStatistics>,
}

/// What samples are compared with.
#[derive(Debug, Clone, PartialEq)]
pub struct Reference {
    /// Statistics, if the file has some.
    pub moments: Option<Moments>,
    /// Images, if there are some. In ADM's `VIRTUAL_imagenet*.npz` these are 10,000 of those that the statistics are of.
    pub images: Option<ImageSource>,
}

impl Reference {
    /// A folder of pictures, or an `.npz` of images, of statistics or of both.
    ///
    /// # Errors
    /// Nothing of that is there, or it is damaged.
    pub fn open(path: &Path) -> Result<Self, ImagesError> {
        if path.is_dir() {
            let images = Some(folder(path)?);
            let moments = None;
            return Ok(Self { moments, images });
        }
        let mut archive = Archive::open(path)?;
        let pooled = archive.statistics("mu", "sigma")?;
        let spatial = archive.statistics("mu_s", "sigma_s")?;
        let moments = pooled.map(|pooled| Moments { pooled, spatial });
        let images = archive.images()?.map(|shape| ImageSource::Npz {
            path: path.to_owned(),
            shape,
        });
        if moments.is_none() && images.is_none() {
            return Err(wrong(
                path,
                "expected images as arr_0 or statistics as mu and sigma, found neither",
            ));
        }
        Ok(Self { moments, images })
    }
}

/// Writes statistics as pytorch-fid and, with spatial ones, ADM read them: float64 `mu`, `sigma`, `mu_s`, `sigma_s`.
///
/// # Errors
/// Statistics of fewer than 2 samples, or the file cannot be written.
pub fn write_statistics(
    path: &Path,
    pooled: &FeatureStatistics,
    spatial: Option<&FeatureStatistics>,
) -> Result<(), ImagesError> {
    let failed = |e: &dyn std::fmt::Display| file_error(path, e);
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let mut put = |name: &str, shape: String, values: &[f64]| {
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        zip.start_file(format!("{name}.npy"), options)
            .map_err(|e| failed(&e))?;
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        zip.write_all(&npy_header("<f8", &shape))
            .and_then(|()| zip.write_all(&bytes))
            .map_err(|e| failed(&e))
    };
    for (suffix, statistics) in [("", Some(pooled)), ("_s", spatial)] {
        let Some(statistics) = statistics else {
            continue;
        };
        let dim = statistics.dim();
        let covariance = statistics.covariance().map_err(|e| failed(&e))?;
        put(&format!("mu{suffix}"), format!("{dim},"), statistics.mean())?;
        put(
            &format!("sigma{suffix}"),
            format!("{dim}, {dim}"),
            &covariance,
        )?;
    }
    let bytes = zip.finish().map_err(|e| failed(&e))?.into_inner();
    write_atomically(path, &bytes).map_err(|e| failed(&e))
}

/// An `.npz` that is open.
struct Archive<'a> {
    path: &'a Path,
    zip: ZipArchive<BufReader<File>>,
}

impl<'a> Archive<'a> {
    fn open(path: &'a Path) -> Result<Self, ImagesError> {
        let file = File::open(path).map_err(|e| wrong(path, e))?;
        let zip = ZipArchive::new(BufReader::new(file)).map_err(|e| {
            let expected = "expected a folder of pictures or an .npz archive";
            wrong(path, format!("{expected} ({e})"))
        })?;
        Ok(Self { path, zip })
    }

    fn entry(&mut self, name: &str) -> Result<impl Read + use<'_, 'a>, ImagesError> {
        self.zip.by_name(name).map_err(|e| wrong(self.path, e))
    }

    fn has(&self, name: &str) -> bool {
        self.zip.index_for_name(name).is_some()
    }

    /// The shape of `arr_0`, if there is one.
    fn images(&mut self) -> Result<Option<[usize; 4]>, ImagesError> {
        if !self.has("arr_0.npy") {
            return Ok(None);
        }
        let path = self.path;
        let header = Header::read(&mut self.entry("arr_0.npy")?);
        let shape = header.and_then(|header| header.images());
        shape.map(Some).map_err(|e| wrong(path, e))
    }

    /// A mean and a covariance, if both are there.
    fn statistics(
        &mut self,
        mean: &str,
        covariance: &str,
    ) -> Result<Option<FeatureStatistics>, ImagesError> {
        let names = [mean, covariance].map(|name| format!("{name}.npy"));
        if !names.iter().all(|name| self.has(name)) {
            return Ok(None);
        }
        let path = self.path;
        let mut floats = |name: &str| {
            let mut entry = self.entry(name)?;
            floats(&mut entry).map_err(|e| wrong(path, format!("{name}: {e}")))
        };
        let (mean, covariance) = (floats(&names[0])?, floats(&names[1])?);
        FeatureStatistics::from_moments(NOMINAL_COUNT, &mean, &covariance)
            .map(Some)
            .map_err(|e| wrong(path, e))
    }
}

/// All numbers of a float32 or float64 array.
fn floats(entry: &mut impl Read) -> Result<Vec<f64>, String> {
    let header = Header::read(entry)?;
    let width: usize = match header.dtype.as_str() {
        "<f8" => 8,
        "<f4" => 4,
        other => return Err(format!("expected <f8 or <f4, found {other}")),
    };
    let length = header
        .shape
        .iter()
        .try_fold(width, |n: usize, d| n.checked_mul(*d));
    let length = length.ok_or("the shape is too large")?;
    let mut bytes = Vec::new();
    read_exactly(entry, length, &mut bytes)?;
    // A covariance is symmetric, so Fortran's order makes no difference.
    Ok(match width {
        8 => bytes
            .as_chunks::<8>()
            .0
            .iter()
            .map(|&b| f64::from_le_bytes(b))
            .collect(),
        _ => bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|&b| f64::from(f32::from_le_bytes(b)))
            .collect(),
    })
}

/// Grows with what comes, so that a false length costs no memory.
fn read_exactly(from: &mut impl Read, length: usize, into: &mut Vec<u8>) -> Result<(), String> {
    into.clear();
    from.take(length as u64)
        .read_to_end(into)
        .map_err(|e| e.to_string())?;
    if into.len() != length {
        return Err("the array ends before its last value".into());
    }
    Ok(())
}

/// What stands before the values of an `.npy`.
struct Header {
    dtype: String,
    fortran: bool,
    shape: Vec<usize>,
}

impl Header {
    fn read(from: &mut impl Read) -> Result<Self, String> {
        let mut bytes = |n: usize| -> Result<Vec<u8>, String> {
            let mut bytes = Vec::new();
            read_exactly(from, n, &mut bytes).map(|()| bytes)
        };
        let start = bytes(8)?;
        if !start.starts_with(b"\x93NUMPY") {
            return Err("expected an array of NumPy, found something else".into());
        }
        let length = match start[6] {
            1 => bytes(2)?
                .iter()
                .rev()
                .fold(0, |n, &b| n << 8 | usize::from(b)),
            2 | 3 => bytes(4)?
                .iter()
                .rev()
                .fold(0, |n, &b| n << 8 | usize::from(b)),
            other => return Err(format!("version {other} of NumPy's format is not known")),
        };
        if length > MAX_HEADER {
            return Err(format!("a header of {length} bytes is none of NumPy's"));
        }
        let text = String::from_utf8(bytes(length)?).map_err(|e| e.to_string())?;
        let parsed = || -> Option<Self> {
            let after = |key: &str| Some(text.split_once(&format!("'{key}':"))?.1.trim_start());
            let dtype = after("descr")?.strip_prefix('\'')?.split_once('\'')?.0;
            let shape = after("shape")?.strip_prefix('(')?.split_once(')')?.0;
            let dims = shape.split(',').map(str::trim).filter(|d| !d.is_empty());
            Some(Self {
                dtype: dtype.to_owned(),
                fortran: after("fortran_order")?.starts_with("True"),
                shape: dims.map(|d| d.parse().ok()).collect::<Option<_>>()?,
            })
        };
        parsed().ok_or_else(|| format!("not understood: {}", text.trim_end()))
    }

    /// The shape, if these are images.
    fn images(&self) -> Result<[usize; 4], String> {
        let shape = <[usize; 4]>::try_from(self.shape.as_slice());
        match shape {
            Ok([_, height, width, 1 | 3])
                if self.dtype == "|u1" && !self.fortran && height > 0 && width > 0 =>
            {
                let bytes = self
                    .shape
                    .iter()
                    .try_fold(1_usize, |n, &d| n.checked_mul(d));
                bytes.ok_or("the shape is too large")?;
                Ok([self.shape[0], height, width, self.shape[3]])
            }
            _ => Err(format!(
                "expected arr_0 to be |u1 [N, height, width, 3], found {} {:?}{}",
                self.dtype,
                self.shape,
                if self.fortran {
                    " in Fortran's order"
                } else {
                    ""
                }
            )),
        }
    }
}

fn wrong(path: &Path, reason: impl std::fmt::Display) -> ImagesError {
    ImagesError::Unreadable {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array4, Axis, s};

    use super::super::{NpzWriter, write_folder};
    use super::*;

    fn images(count: usize) -> Array4<u8> {
        Array4::from_shape_fn((count, 4, 5, 3), |(n, y, x, c)| {
            (n * 60 + y * 15 + x * 3 + c) as u8
        })
    }

    fn all(source: &ImageSource, size: usize) -> Result<(Array4<u8>, Vec<usize>), ImagesError> {
        let (mut rows, mut sizes) = (Vec::new(), Vec::new());
        source.batches(size, |batch| {
            sizes.push(batch.shape()[0]);
            rows.push(batch.to_owned());
            Ok::<_, ImagesError>(())
        })?;
        let views: Vec<_> = rows.iter().map(|r| r.view()).collect();
        Ok((ndarray::concatenate(Axis(0), &views).unwrap(), sizes))
    }

    /// An archive with these entries, deflated.
    fn archive(path: &Path, entries: &[(&str, Vec<u8>)]) {
        let mut zip = ZipWriter::new(File::create(path).unwrap());
        for (name, bytes) in entries {
            let options = SimpleFileOptions::default();
            zip.start_file(
                *name,
                options.compression_method(CompressionMethod::Deflated),
            )
            .unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap();
    }

    fn array(dtype: &str, shape: &str, bytes: &[u8]) -> Vec<u8> {
        [npy_header(dtype, shape), bytes.to_vec()].concat()
    }

    #[test]
    fn images_come_in_batches_from_an_archive_and_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let images = images(5);
        let stored = folder.path().join("stored.npz");
        let mut writer = NpzWriter::create(&stored, [5, 4, 5], false).unwrap();
        writer.write(images.view(), &[]).unwrap();
        writer.finish().unwrap();
        let deflated = folder.path().join("deflated.npz");
        let bytes = array("|u1", "5, 4, 5, 3", images.as_slice().unwrap());
        archive(&deflated, &[("arr_0.npy", bytes)]);
        let pictures = folder.path().join("pictures");
        write_folder(&pictures, 0, images.view()).unwrap();
        std::fs::write(pictures.join("notes.txt"), "").unwrap();
        for path in [stored, deflated, pictures] {
            let source = ImageSource::open(&path).unwrap();
            assert_eq!(source.count(), 5);
            assert_eq!(all(&source, 2).unwrap(), (images.clone(), vec![2, 2, 1]));
            assert_eq!(all(&source, 9).unwrap().1, [5]);
            let reference = Reference::open(&path).unwrap();
            assert_eq!(reference.images, Some(source));
            assert_eq!(reference.moments, None);
        }
    }

    #[test]
    fn statistics_survive_and_single_precision_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("statistics.npz");
        let covariance = [2.0, 0.5, 0.5, 1.0];
        let pooled = FeatureStatistics::from_moments(9, &[1.0, -2.5], &covariance).unwrap();
        let spatial = FeatureStatistics::from_moments(9, &[4.0], &[3.0]).unwrap();
        write_statistics(&path, &pooled, Some(&spatial)).unwrap();
        let moments = Reference::open(&path).unwrap().moments.unwrap();
        assert_eq!(moments.pooled.mean(), pooled.mean());
        for (found, expected) in moments.pooled.covariance().unwrap().iter().zip(covariance) {
            assert!((found - expected).abs() < 1e-12);
        }
        assert_eq!(moments.spatial.unwrap().dim(), 1);

        let bytes =
            |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
        let pixels = images(2).into_raw_vec_and_offset().0;
        archive(
            &path,
            &[
                ("mu.npy", array("<f4", "2,", &bytes(&[0.5, 1.5]))),
                (
                    "sigma.npy",
                    array("<f4", "2, 2", &bytes(&[1.0, 0.0, 0.0, 1.0])),
                ),
                ("arr_0.npy", array("|u1", "2, 4, 5, 3", &pixels)),
            ],
        );
        let both = Reference::open(&path).unwrap();
        assert_eq!(both.moments.unwrap().pooled.mean(), [0.5, 1.5]);
        assert_eq!(all(&both.images.unwrap(), 2).unwrap().0, images(2));
    }

    #[test]
    fn what_cannot_be_measured_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npz");
        let said = |path: &Path| {
            let message = Reference::open(path).unwrap_err().to_string();
            message.rsplit('/').next().unwrap_or_default().to_owned()
        };
        assert!(said(&path).starts_with("x.npz could not be read: No such file"));
        std::fs::write(&path, "no archive").unwrap();
        assert!(
            said(&path).contains("expected a folder of pictures or an .npz archive"),
            "{}",
            said(&path)
        );
        archive(&path, &[("arr_1.npy", Vec::new())]);
        assert_eq!(
            said(&path),
            "x.npz could not be read: expected images as arr_0 or statistics as mu and sigma, found neither"
        );
        archive(&path, &[("arr_0.npy", array("<f4", "2, 3", &[]))]);
        assert_eq!(
            said(&path),
            "x.npz could not be read: expected arr_0 to be |u1 [N, height, width, 3], found <f4 [2, 3]"
        );
        let huge = array("|u1", "9999999999, 9999999999, 9999999999, 3", &[]);
        archive(&path, &[("arr_0.npy", huge)]);
        assert!(said(&path).ends_with("the shape is too large"));
        archive(
            &path,
            &[("arr_0.npy", array("|u1", "2, 4, 5, 3", &[0; 70]))],
        );
        let source = ImageSource::open(&path).unwrap();
        let error = all(&source, 1).unwrap_err().to_string();
        assert!(
            error.ends_with("the array ends before its last value"),
            "{error}"
        );
        let pictures = folder.path().join("empty");
        std::fs::create_dir(&pictures).unwrap();
        assert_eq!(
            said(&pictures),
            "empty could not be read: expected .png or .jpg files, found none"
        );
        write_folder(&pictures, 0, images(1).view()).unwrap();
        write_folder(&pictures, 1, images(1).slice(s![.., ..3, .., ..])).unwrap();
        let error = all(&ImageSource::open(&pictures).unwrap(), 2).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("000001.png could not be read: expected 4×5 pixels as in "),
            "{error}"
        );
        assert!(error.ends_with("000000.png, found 3×5"), "{error}");
    }
}
