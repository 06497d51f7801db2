//! One of several processes that do a job together: meeting the others, and refusing those that are not alike.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use fewstep_datasets::Dataset;
use fewstep_torch::{DeviceChoice, Group, LIBTORCH_VERSION, Ranks, device};
use serde::Serialize;

use crate::config::ConfigSource;
use crate::run::first_difference;

/// Options of commands that several ranks can share.
#[derive(Args, Debug, Clone)]
pub struct RankOptions {
    /// With several ranks (RANK and WORLD_SIZE are set): how long to wait for the others
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub rank_timeout: u64,
}

/// Images whose pixels ranks compare.
const COMPARED: usize = 64;

/// This process and the others.
pub(crate) struct Here {
    pub(crate) group: Group,
    local_rank: usize,
}

impl Here {
    pub(crate) fn alone() -> Self {
        Self {
            group: Group::alone(),
            local_rank: 0,
        }
    }

    /// [`meet`](Self::meet), for work that all ranks must come to the end of. Rank 0 writes, and so works longest: the others stay, to
    /// say whether it came to its end.
    pub(crate) fn with(
        options: &RankOptions,
        work: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<()> {
        Self::meet(options, |here| {
            work(here)?;
            Ok(here.group.see_out("the end")?)
        })
    }

    /// Joins the group that the environment names, does the work, and leaves it; the others are told why where it failed.
    pub(crate) fn meet(
        options: &RankOptions,
        work: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<()> {
        let here = match Ranks::from_env()? {
            Some(ranks) if ranks.world > 1 => {
                // The group is for GPUs as well, where there are any; it must find CUDA open.
                let _ = device::cuda_devices();
                Self {
                    group: Group::join(&ranks, Duration::from_secs(options.rank_timeout))?,
                    local_rank: ranks.local_rank,
                }
            }
            _ => Self::alone(),
        };
        let all = || {
            here.same_build()?;
            work(&here)
        };
        let result = all();
        let reason = result.as_ref().err().map(anyhow::Error::to_string);
        here.group.leave(reason.as_deref());
        result
    }

    /// The device of this rank: those of a machine share out its GPUs, from the one that is named on.
    pub(crate) fn device(&self, choice: DeviceChoice) -> DeviceChoice {
        match choice {
            DeviceChoice::Cuda(first) => DeviceChoice::Cuda(first + self.local_rank),
            DeviceChoice::Auto if self.group.world() > 1 && device::cuda_devices().is_ok() => {
                DeviceChoice::Cuda(self.local_rank)
            }
            other => other,
        }
    }

    /// Where the work is done, in words.
    pub(crate) fn place(&self, device: tch::Device) -> String {
        match self.group.world() {
            1 => device::name(device),
            ranks => format!("{}, {ranks} ranks", device::name(device)),
        }
    }

    /// Another build may compute other numbers, so each rank must run the very same file.
    fn same_build(&self) -> Result<()> {
        if self.group.world() == 1 {
            return Ok(());
        }
        let path = std::env::current_exe()
            .map_err(|e| anyhow::anyhow!("cannot find the fewstep program: {e}"))?;
        let sum = super::checksum(&path, 0)?;
        let version = env!("CARGO_PKG_VERSION");
        // A checksum of half a gigabyte would take longer than the meeting.
        let bytes = fewstep_torch::libtorch_bytes().unwrap_or_default();
        let mine = format!(
            "fewstep {version}, checksum {sum:08x}, libtorch {LIBTORCH_VERSION} of {bytes} bytes"
        );
        Ok(self.group.agree("the build", &mine)?)
    }

    /// Makes sure that all ranks have opened the same data: as many images of the same name, with the same labels, and a few of them the
    /// same.
    pub(crate) fn same_data(&self, train: &dyn Dataset, others: &[usize]) -> Result<()> {
        if self.group.world() == 1 {
            return Ok(());
        }
        let labels: Vec<u8> = train
            .labels()
            .iter()
            .flat_map(|l| l.to_le_bytes())
            .collect();
        let mut sum = crc32c::crc32c(&labels);
        for index in (0..train.len()).step_by(train.len().div_ceil(COMPARED).max(1)) {
            let image = train.image(index)?;
            sum = crc32c::crc32c_append(sum, image.as_standard_layout().as_slice().unwrap_or(&[]));
        }
        let (name, images) = (train.name(), train.len());
        let mine =
            format!("{name} ({images} images for training, others {others:?}, checksum {sum:08x})");
        Ok(self.group.agree("the data", &mine)?)
    }

    /// Tensors of a GPU and of a CPU cannot be reduced together.
    pub(crate) fn same_device(&self, device: tch::Device) -> Result<()> {
        let kind = if device.is_cuda() { "cuda" } else { "cpu" };
        Ok(self.group.agree("the device", kind)?)
    }

    /// A batch must have something for every rank.
    pub(crate) fn enough(&self, source: &ConfigSource, key: &str, batch_size: u64) -> Result<()> {
        let world = self.group.world() as u64;
        if batch_size >= world {
            return Ok(());
        }
        let message =
            format!("expected at least one for each of {world} ranks, found {batch_size}");
        Err(source.invalid(key, message).into())
    }

    /// Every rank must have been given the same config.
    pub(crate) fn same_config(&self, config: &impl Serialize) -> Result<()> {
        let (group, rank) = (&self.group, self.group.rank());
        if group.world() == 1 {
            return Ok(());
        }
        let mine = toml::to_string(config)?;
        let mut first = mine.clone().into_bytes();
        group.broadcast_bytes("the config", &mut first)?;
        let first = String::from_utf8_lossy(&first).into_owned();
        if let Some((key, theirs, own)) = first_difference(&first, &mine)? {
            bail!("rank {rank} has another config than rank 0: `{key}` is {own}, not {theirs}");
        }
        // Who differs is not here, and has said why.
        Ok(group.barrier("comparing the configs")?)
    }
}
