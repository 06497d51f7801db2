//! What is made of a job's shards when all are there: a grid or an `.npz`, by the name of the path; or the job's folder itself is kept.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use fewstep_diffusion::DitConfig;
use fewstep_diffusion::autoencoder::Autoencoder;
use fewstep_torch::checkpoint::ASIDE;
use ndarray::{Axis, Slice};

use super::Labels;
use super::folder::{JobFolder, is_job};
use super::shard::{self, Files, Images, Kept};
use crate::images;

/// More images than this make a grid that nobody can look at.
const GRID: usize = 1024;

/// What a path asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Grid,
    Npz,
    Folder,
}

/// An output.
struct Target {
    path: PathBuf,
    format: Format,
}

/// All outputs of a job.
pub(super) struct Targets(Vec<Target>);

impl Targets {
    /// Checks what can be checked before there is anything to write.
    ///
    /// # Errors
    /// The folder of a file is not there; a job's folder has other files in it already, or there are two of them; or PNGs are asked for
    /// without a folder.
    pub(super) fn check(paths: &[PathBuf], png: bool) -> Result<Self> {
        let all = paths
            .iter()
            .map(|path| Target::check(path))
            .collect::<Result<Vec<_>>>()?;
        let folders = all.iter().filter(|t| t.format == Format::Folder).count();
        match folders {
            0 if png => bail!("--png: expected a folder among the --out, found none"),
            0 | 1 => Ok(Self(all)),
            _ => bail!("--out: expected one folder at most, found {folders}"),
        }
    }

    /// How this model's images are kept.
    ///
    /// # Errors
    /// A picture is asked for of latents that nothing decodes.
    pub(super) fn kept(
        &self,
        config: &DitConfig,
        vae: Option<&dyn Autoencoder>,
        png: bool,
    ) -> Result<Kept> {
        let latents = vae.is_none() && ![1, 3].contains(&config.channels);
        let picture = self.0.iter().find(|target| match target.format {
            Format::Grid => true,
            Format::Folder => png,
            Format::Npz => false,
        });
        if let (true, Some(picture)) = (latents, picture) {
            bail!(
                "--out: the model makes latents of {} channels, which {} can't hold: give --vae for pixels, or an .npz for latents",
                config.channels,
                picture.path.display()
            );
        }
        Ok(Kept {
            files: match (png, latents) {
                (true, _) => Files::Png,
                (false, true) => Files::Latents,
                (false, false) => Files::Npz,
            },
            channels: if vae.is_some() {
                3
            } else {
                config.channels as usize
            },
            side: (config.input_size * vae.map_or(1, |v| v.factor())) as usize,
            convention: config.convention,
        })
    }

    /// The job's folder, and whether it is kept: without a folder among the outputs, the shards are beside the first one meanwhile.
    pub(super) fn folder(&self) -> (PathBuf, bool) {
        let asked = self.0.iter().find(|t| t.format == Format::Folder);
        match (asked, self.0.first()) {
            (Some(folder), _) => (folder.path.clone(), true),
            (None, Some(first)) => {
                let mut name = first.path.clone().into_os_string();
                name.push(".job");
                (name.into(), false)
            }
            (None, None) => (PathBuf::new(), false),
        }
    }

    /// Makes everything but the folder of a job whose shards are all there, a shard at a time.
    ///
    /// # Errors
    /// A shard can't be read, or an output can't be written.
    pub(super) fn make(&self, folder: &JobFolder, kept: &Kept, labels: &Labels) -> Result<()> {
        for target in &self.0 {
            match target.format {
                Format::Grid => grid(&target.path, folder, kept)?,
                Format::Npz => {
                    let mut writer = kept.npz(&target.path, folder.chunks().images)?;
                    for chunk in 0..folder.chunks().count() {
                        let classes = labels.of(folder.chunks().range(chunk));
                        shard::add(&mut writer, &read(folder, kept, chunk)?, &classes)?;
                    }
                    writer.finish()?;
                }
                Format::Folder => {}
            }
        }
        Ok(())
    }
}

impl Target {
    fn check(path: &Path) -> Result<Self> {
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
            Format::Folder if is_job(path) => {}
            Format::Folder => {
                // A job that was killed at its very start left no more than this.
                let strange = |name: &str| {
                    !["claims", "job.lock"].contains(&name) && !name.starts_with(ASIDE)
                };
                let mut files = std::fs::read_dir(path).into_iter().flatten().flatten();
                if files.any(|file| strange(&file.file_name().to_string_lossy())) {
                    bail!(
                        "--out: expected a folder that is new, empty or a job's, found {shown} with other files in it"
                    );
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
}

fn read(folder: &JobFolder, kept: &Kept, chunk: u64) -> Result<Images> {
    let range = folder.chunks().range(chunk);
    kept.read(&folder.shard(chunk), range.start, range.end - range.start)
}

fn grid(path: &Path, folder: &JobFolder, kept: &Kept) -> Result<()> {
    let (mut all, mut missing) = (Vec::new(), GRID);
    for chunk in 0..folder.chunks().count() {
        let Images::Pixels(mut pixels) = read(folder, kept, chunk)? else {
            break;
        };
        let some = missing.min(pixels.dim().0);
        pixels.slice_axis_inplace(Axis(0), Slice::from(..some));
        all.push(pixels);
        missing -= some;
        if missing == 0 {
            break;
        }
    }
    let views: Vec<_> = all.iter().map(|pixels| pixels.view()).collect();
    let all = ndarray::concatenate(Axis(0), &views)?;
    Ok(images::write_grid(path, all.view(), Default::default())?)
}
