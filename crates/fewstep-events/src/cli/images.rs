//! Image files: found in folders, decoded to what the model reads.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use image::imageops::FilterType;
use image::{DynamicImage, ImageDecoder, ImageError, ImageReader};

use crate::Model;

/// An image that is to be classified.
pub(super) struct Item {
    pub path: PathBuf,
    /// Its class, where its folder says so.
    pub label: Option<usize>,
}

/// What there is.
pub(super) struct Found {
    pub items: Vec<Item>,
    /// How labels were taken from folders, where that is not plain.
    pub notes: Vec<String>,
}

/// Files as they are named; of a folder its images and those in its subfolders, by name.
pub(super) fn find(paths: &[PathBuf], names: &[String], classes: usize) -> Result<Found> {
    let mut found = Found {
        items: Vec::new(),
        notes: Vec::new(),
    };
    for path in paths {
        if !path.is_dir() {
            let (path, label) = (path.clone(), None);
            found.items.push(Item { path, label });
            continue;
        }
        let before = found.items.len();
        found.folder(path, names, classes)?;
        if found.items.len() == before {
            bail!(
                "{}: expected images (.png, .jpg, .jpeg) here or in subfolders, found none",
                path.display()
            );
        }
    }
    Ok(found)
}

impl Found {
    fn folder(&mut self, folder: &Path, names: &[String], classes: usize) -> Result<()> {
        let (folders, files) = list(folder)?;
        let unlabelled = |path| Item { path, label: None };
        self.items.extend(files.into_iter().map(unlabelled));
        let mut labelled = Vec::new();
        for folder in folders {
            let (_, files) = list(&folder)?;
            if !files.is_empty() {
                labelled.push((folder, files));
            }
        }
        if labelled.is_empty() {
            return Ok(());
        }
        let name = |folder: &Path| {
            folder
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
        };
        let place = |folder: &Path| names.iter().position(|n| *n == name(folder));
        let known = labelled.iter().all(|(folder, _)| place(folder).is_some());
        let count = labelled.len();
        let in_order = !known && count == classes;
        let here = folder.display();
        if in_order {
            self.notes.push(format!(
                "{here}: the names of its {count} subfolders are not those of the model's classes; they are taken for classes 0 to {} in the order of \
                 their names",
                count - 1
            ));
        } else if !known {
            self.notes.push(format!(
                "{here}: its {count} subfolders do not have names of the model's {classes} classes; there is no top-1"
            ));
        }
        for (number, (folder, files)) in labelled.into_iter().enumerate() {
            let label = if in_order {
                Some(number)
            } else {
                place(&folder).filter(|_| known)
            };
            self.items
                .extend(files.into_iter().map(|path| Item { path, label }));
        }
        Ok(())
    }
}

/// Subfolders and images of a folder, each by name.
fn list(folder: &Path) -> Result<(BTreeSet<PathBuf>, BTreeSet<PathBuf>)> {
    let (mut folders, mut files) = (BTreeSet::new(), BTreeSet::new());
    let entries =
        std::fs::read_dir(folder).and_then(|all| all.collect::<std::io::Result<Vec<_>>>());
    let hidden = |path: &Path| {
        path.file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with('.'))
    };
    for entry in entries.map_err(|e| anyhow!("{}: {e}", folder.display()))? {
        let path = entry.path();
        let image = path.extension().is_some_and(|e| {
            ["png", "jpg", "jpeg"]
                .iter()
                .any(|known| e.eq_ignore_ascii_case(known))
        });
        // Follows links, as opening a file does.
        if hidden(&path) {
            continue;
        }
        if path.is_dir() {
            folders.insert(path);
        } else if image {
            files.insert(path);
        }
    }
    Ok((folders, files))
}

/// Makes `[H, W, C]` bytes of a file.
pub(super) struct Decoder {
    /// `[C, H, W]`.
    input: [usize; 3],
    resize: bool,
}

impl Decoder {
    /// # Errors
    /// A model that reads neither grey nor colour.
    pub fn new(model: &Model, resize: bool) -> Result<Self> {
        let input = model.input();
        if ![1, 3].contains(&input[0]) {
            bail!(
                "{}: expected a model of images with 1 or 3 channels, found {}",
                model.name(),
                input[0]
            );
        }
        Ok(Self { input, resize })
    }

    /// Bytes of an image.
    pub fn bytes(&self) -> usize {
        self.input.iter().product()
    }

    /// # Errors
    /// No image, a damaged one, or one of another size.
    pub fn decode(&self, path: &Path, pixels: &mut [u8]) -> Result<()> {
        let shown = path.display();
        let damaged = |e: ImageError| anyhow!("{shown}: not a PNG or JPEG that can be read: {e}");
        let reader = ImageReader::open(path)
            .and_then(ImageReader::with_guessed_format)
            .map_err(|e| anyhow!("{shown}: {e}"))?;
        let decoder = reader.into_decoder().map_err(damaged)?;
        let [channels, h, w] = self.input;
        let (found_w, found_h) = decoder.dimensions();
        let found_channels = decoder.color_type().channel_count();
        let same = (found_w as usize, found_h as usize) == (w, h);
        if !self.resize {
            if !same {
                bail!(
                    "{shown}: expected {w}×{h} pixels, found {found_w}×{found_h} (--resize scales images)"
                );
            }
            if usize::from(found_channels) != channels {
                let kind = |channels| match channels {
                    1 => "grey",
                    2 => "grey with transparency",
                    3 => "colour",
                    _ => "colour with transparency",
                };
                bail!(
                    "{shown}: expected an image in {}, found {} (--resize converts images)",
                    kind(channels),
                    kind(usize::from(found_channels))
                );
            }
        }
        let mut image = DynamicImage::from_decoder(decoder).map_err(damaged)?;
        if !same {
            image = image.resize_exact(w as u32, h as u32, FilterType::Triangle);
        }
        let bytes = match channels {
            1 => image.into_luma8().into_raw(),
            _ => image.into_rgb8().into_raw(),
        };
        pixels
            .get_mut(..bytes.len())
            .with_context(|| format!("{shown}: an image of another size than it said"))?
            .copy_from_slice(&bytes);
        Ok(())
    }
}
