//! Where samples go: a grid, an `.npz` or a folder, by the name of the path. All but the grid hold no more than a batch.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use fewstep_diffusion::DitConfig;
use fewstep_diffusion::autoencoder::Autoencoder;
use ndarray::{Array4, ArrayView4, Axis};
use tch::Tensor;

use crate::images::{self, NpzWriter};

/// What a path asks for.
enum Format {
    Grid,
    Npz,
    Folder,
}

/// An output that can be written, as far as can be said before there is anything to write.
pub(super) struct Target {
    path: PathBuf,
    format: Format,
}

impl Target {
    /// # Errors
    /// The folder of a file is not there, or the folder for PNGs has files already: those of an earlier job would be taken for
    /// this one's.
    pub(super) fn check(path: &Path) -> Result<Self> {
        let extension = path.extension().map(|e| e.to_ascii_lowercase());
        let format = match extension.as_deref().and_then(|e| e.to_str()) {
            Some("png") => Format::Grid,
            Some("npz") => Format::Npz,
            _ => Format::Folder,
        };
        let shown = path.display();
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        match format {
            Format::Folder if path.is_file() => {
                bail!("--out: expected .png, .npz or a folder, found the file {shown}");
            }
            Format::Folder => {
                if std::fs::read_dir(path).is_ok_and(|mut files| files.next().is_some()) {
                    bail!("--out: expected a new or empty folder, found {shown} with files in it");
                }
            }
            Format::Grid | Format::Npz if path.is_dir() => {
                bail!("--out: expected a file, found the folder {shown}");
            }
            Format::Grid | Format::Npz => {
                if let Some(parent) = parent.filter(|p| !p.is_dir()) {
                    let parent = parent.display();
                    bail!("--out: expected {shown} in a folder that exists, found no {parent}");
                }
            }
        }
        Ok(Self {
            path: path.to_owned(),
            format,
        })
    }

    /// Opens it for `images` of this model.
    ///
    /// # Errors
    /// A picture is asked for of latents that nothing decodes, or the folder can't be written.
    pub(super) fn open(
        self,
        images: u64,
        config: &DitConfig,
        vae: Option<&dyn Autoencoder>,
    ) -> Result<Output> {
        let Self { path, format } = self;
        let count = usize::try_from(images)?;
        let size = (config.input_size * vae.map_or(1, |v| v.factor())) as usize;
        let latents = vae.is_none() && ![1, 3].contains(&config.channels);
        let shown = path.display();
        Ok(match format {
            Format::Grid | Format::Folder if latents => bail!(
                "--out: the model makes latents of {} channels, which {shown} can't hold: give --vae for pixels, or an .npz for latents",
                config.channels
            ),
            Format::Npz if latents => {
                let shape = [count, config.channels as usize, size, size];
                Output::Latents(NpzWriter::create_latents(&path, shape, true)?)
            }
            Format::Npz => Output::Npz(NpzWriter::create(&path, [count, size, size], true)?),
            Format::Grid => Output::Grid(path, Vec::new()),
            Format::Folder => Output::Folder(path),
        })
    }
}

/// An output that is being written.
pub(super) enum Output {
    Grid(PathBuf, Vec<Array4<u8>>),
    Npz(NpzWriter),
    Latents(NpzWriter),
    Folder(PathBuf),
}

impl Output {
    /// Whether it takes latents instead of pixels.
    pub(super) fn wants_latents(&self) -> bool {
        matches!(self, Self::Latents(_))
    }

    /// Adds a batch `[n, height, width, channels]` that begins with image `first`.
    ///
    /// # Errors
    /// The disk is full.
    pub(super) fn write(
        &mut self,
        first: usize,
        pixels: ArrayView4<'_, u8>,
        classes: &[i64],
    ) -> Result<()> {
        match self {
            Self::Grid(_, all) => all.push(pixels.to_owned()),
            Self::Npz(writer) | Self::Latents(writer) => writer.write(pixels, classes)?,
            Self::Folder(path) => images::write_folder(path, first, pixels)?,
        }
        Ok(())
    }

    /// Adds a batch of latents `[n, C, height, width]`, float32 on the CPU.
    ///
    /// # Errors
    /// The disk is full, or it is no output for latents.
    pub(super) fn write_latents(&mut self, latents: &Tensor, classes: &[i64]) -> Result<()> {
        if let Self::Latents(writer) = self {
            let size: Vec<usize> = latents.size().iter().map(|&d| d as usize).collect();
            let numbers = Vec::<f32>::try_from(latents.f_contiguous()?.f_flatten(0, -1)?)?;
            let shape = (size[0], size[1], size[2], size[3]);
            writer.write_latents(ArrayView4::from_shape(shape, &numbers)?, classes)?;
        }
        Ok(())
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// It can't be written.
    pub(super) fn finish(self) -> Result<()> {
        match self {
            Self::Grid(path, all) => {
                let views: Vec<_> = all.iter().map(Array4::view).collect();
                let all = ndarray::concatenate(Axis(0), &views)?;
                images::write_grid(&path, all.view(), Default::default())?;
            }
            Self::Npz(writer) | Self::Latents(writer) => writer.finish()?,
            Self::Folder(_) => {}
        }
        Ok(())
    }
}
