//! What changes how fast training goes.

use fewstep_datasets::Dataset;
use fewstep_spiking::MemoryFormat;
use fewstep_torch::Resident;
use serde::{Deserialize, Serialize};
use tch::Device;

use super::Recipe;
use crate::resident::resident;
use crate::{Data, Error, Result};

/// What changes how fast training goes, and its results by no more than the order of sums. What is not given depends on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Performance {
    /// Batches from one look at the loss to the next. A look waits for the device; a loss that is no number is found that much later.
    /// Default: 1, on CUDA 20.
    pub read_loss_every: Option<usize>,
    /// Keep the training images on the device as bytes, and augment them there. Default: false, on CUDA true where they take up to 2 GiB and
    /// are not randomly resized.
    pub data_on_device: Option<bool>,
    /// How convolutions lie in memory. Default: contiguous, on CUDA channels last.
    pub memory_format: Option<MemoryFormat>,
}

impl Performance {
    /// How convolutions lie in memory.
    pub fn memory_format(&self, device: Device) -> MemoryFormat {
        self.memory_format
            .unwrap_or(if matches!(device, Device::Cuda(_)) {
                MemoryFormat::ChannelsLast
            } else {
                MemoryFormat::Contiguous
            })
    }

    /// The training images on the device, where they belong there.
    pub(crate) fn resident(&self, data: &Data, device: Device) -> Result<Option<Resident>> {
        let images: &dyn Dataset = data.train().as_ref();
        let usual = Resident::fits(images.len() * images.shape().numel(), device)
            && data.augment().random_resized_crop.is_none();
        if !self.data_on_device.unwrap_or(usual) {
            return Ok(None);
        }
        resident(images, device).map(Some).map_err(|e| {
            if !e.is_out_of_memory() {
                return e;
            }
            let reason =
                format!("the training images do not fit on the device ({e}); expected false");
            Error::Recipe {
                key: "performance.data_on_device".into(),
                reason,
            }
        })
    }
}

impl Recipe {
    /// What [`Recipe::validate`] can't know without the data.
    ///
    /// # Errors
    /// The value that does not go with the data, with its key.
    pub fn validate_with(&self, data: &Data) -> Result<()> {
        if self.performance.data_on_device == Some(true)
            && data.augment().random_resized_crop.is_some()
        {
            return Err(Error::Recipe {
                key: "performance.data_on_device".into(),
                reason: "expected false with data.augment.random_resized_crop, which is done on the CPU alone, found true".into(),
            });
        }
        Ok(())
    }
}
