//! A chunk of a job as a file or a folder: written aside a batch at a time, named when it is whole, read back as a whole.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use fewstep_diffusion::Convention;
use fewstep_torch::checkpoint::ASIDE;
use ndarray::{Array4, ArrayView4, s};
use tch::Tensor;
use tempfile::TempDir;

use crate::commands::at;
use crate::images::{self, NpzWriter};
use crate::sampling;

/// What a job's images are, and how they are kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    pub files: Files,
    /// Of an image or latent.
    pub channels: usize,
    /// Height and width.
    pub side: usize,
    pub convention: Convention,
}

/// The files of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Files {
    /// Shards in ADM's layout.
    Npz,
    /// The same, with float32 latents.
    Latents,
    /// A folder of PNGs for each chunk.
    Png,
}

impl Files {
    /// What a shard's name ends with.
    pub(super) fn ending(self) -> &'static str {
        match self {
            Self::Npz | Self::Latents => ".npz",
            Self::Png => "",
        }
    }
}

/// The images of a chunk, or a few of them.
pub(super) enum Images {
    /// `[n, height, width, channels]`.
    Pixels(Array4<u8>),
    /// `[n, channels, height, width]`.
    Latents(Array4<f32>),
}

impl Kept {
    /// What a model or autoencoder made, `[n, C, height, width]` on the CPU, as it is kept.
    pub(super) fn images(&self, x: &Tensor) -> Result<Images> {
        Ok(match self.files {
            Files::Latents => {
                let size: Vec<usize> = x.size().iter().map(|&d| d as usize).collect();
                let numbers = Vec::<f32>::try_from(x.f_contiguous()?.f_flatten(0, -1)?)?;
                let shape = (size[0], size[1], size[2], size[3]);
                Images::Latents(Array4::from_shape_vec(shape, numbers)?)
            }
            Files::Npz | Files::Png => Images::Pixels(sampling::to_pixels_as(x, self.convention)?),
        })
    }

    /// Begins a file of `count` images in ADM's layout.
    pub(super) fn npz(&self, path: &Path, count: u64) -> Result<NpzWriter> {
        let (count, side) = (usize::try_from(count)?, self.side);
        Ok(match self.files {
            Files::Latents => {
                NpzWriter::create_latents(path, [count, self.channels, side, side], true)?
            }
            Files::Npz | Files::Png => NpzWriter::create(path, [count, side, side], true)?,
        })
    }

    /// Begins the shard `path` of `count` images from number `first` on.
    pub(super) fn begin(&self, path: &Path, first: u64, count: u64) -> Result<ShardWriter> {
        Ok(match self.files {
            Files::Npz | Files::Latents => ShardWriter::Npz(Box::new(self.npz(path, count)?)),
            Files::Png => {
                let readable = std::os::unix::fs::PermissionsExt::from_mode(0o777);
                let aside = tempfile::Builder::new()
                    .prefix(ASIDE)
                    .permissions(readable)
                    .tempdir_in(path.parent().unwrap_or(Path::new(".")))
                    .map_err(at(path, "could not be written"))?;
                ShardWriter::Png {
                    aside,
                    path: path.to_owned(),
                    next: first as usize,
                }
            }
        })
    }

    /// The images of a shard that is there.
    pub(super) fn read(&self, path: &Path, first: u64, count: u64) -> Result<Images> {
        let (n, side) = (usize::try_from(count)?, self.side);
        Ok(match self.files {
            Files::Latents => {
                Images::Latents(images::read_latents(path, [n, self.channels, side, side])?)
            }
            Files::Npz => {
                let all = images::read_images(path, [n, side, side])?;
                // Grey became three channels in the file.
                let channels = self.channels;
                Images::Pixels(all.slice_move(s![.., .., .., ..channels]))
            }
            Files::Png => Images::Pixels(images::read_folder(
                path,
                first as usize,
                [n, side, side, self.channels],
            )?),
        })
    }
}

/// A shard that is being written.
pub(super) enum ShardWriter {
    Npz(Box<NpzWriter>),
    Png {
        aside: TempDir,
        path: PathBuf,
        next: usize,
    },
}

impl ShardWriter {
    /// Adds a batch.
    pub(super) fn write(&mut self, images: &Images, classes: &[i64]) -> Result<()> {
        match self {
            Self::Npz(writer) => add(writer, images, classes),
            Self::Png { aside, next, .. } => {
                if let Images::Pixels(pixels) = images {
                    images::write_folder(aside.path(), *next, pixels.view())?;
                    *next += pixels.dim().0;
                }
                Ok(())
            }
        }
    }

    /// Gives the shard its name.
    pub(super) fn finish(self) -> Result<()> {
        match self {
            Self::Npz(writer) => Ok(writer.finish()?),
            Self::Png { aside, path, .. } => {
                match fs::rename(aside.path(), &path) {
                    Ok(()) => {
                        // It is no longer where its destructor would look for it.
                        let _ = aside.keep();
                        Ok(())
                    }
                    // A network file system may have shown late that another rank has made it.
                    Err(_) if path.is_dir() => Ok(()),
                    Err(e) => Err(at(&path, "could not be written")(e)),
                }
            }
        }
    }
}

/// Adds a batch to a file in ADM's layout.
pub(super) fn add(writer: &mut NpzWriter, images: &Images, classes: &[i64]) -> Result<()> {
    match images {
        Images::Pixels(pixels) => writer.write(pixels.view(), classes)?,
        Images::Latents(latents) => {
            writer.write_latents(ArrayView4::from(latents), classes)?;
        }
    }
    Ok(())
}
