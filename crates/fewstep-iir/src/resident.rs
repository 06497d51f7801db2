//! Training images that lie on the device as bytes, augmented there: the CPU draws the few numbers that an augmentation needs, and the
//! batches are, to the bit, those of the loader.

use fewstep_datasets::{Choice, Dataset, Drawn, ImageShape, Loader};
use fewstep_torch::device::send;
use tch::{Device, Kind, Tensor};

use crate::Result;

/// Bytes that a data set may have to be put onto a GPU without having been asked.
const SMALL: usize = 1 << 31;

/// What an image's batch needs to know of it, in the order in which it is sent.
const NUMBERS: [fn(usize, &Choice) -> i64; 8] = [
    |index, _| index as i64,
    |_, choice| choice.down,
    |_, choice| choice.right,
    |_, choice| i64::from(choice.mirrored),
    |_, choice| choice.hole[0].start as i64,
    |_, choice| choice.hole[0].end as i64,
    |_, choice| choice.hole[1].start as i64,
    |_, choice| choice.hole[1].end as i64,
];

/// A data set on a device.
pub(crate) struct Resident {
    /// `[N, C, H·W]`, bytes.
    images: Tensor,
    /// `[N]`.
    labels: Tensor,
    shape: ImageShape,
}

/// What is the same for all batches of a loader.
pub(crate) struct Augmenter<'a> {
    resident: &'a Resident,
    /// `[C·256]`: what a byte of a channel becomes.
    table: Tensor,
    /// `[C, 1]`: where a channel begins in the table.
    channel: Tensor,
    /// `[1, H]` and `[1, W]`: 0, 1, 2, …
    rows: Tensor,
    columns: Tensor,
}

impl Resident {
    /// Whether images on `device` are better off there, where nobody has said so.
    pub(crate) fn fits(dataset: &dyn Dataset, device: Device) -> bool {
        matches!(device, Device::Cuda(_)) && dataset.len() * dataset.shape().numel() <= SMALL
    }

    /// Copies all of `dataset` to `device`.
    pub(crate) fn new(dataset: &dyn Dataset, device: Device) -> Result<Self> {
        let shape = dataset.shape();
        let mut bytes = Vec::<u8>::with_capacity(dataset.len() * shape.numel());
        for index in 0..dataset.len() {
            bytes.extend(dataset.image(index)?.iter());
        }
        let labels: Vec<i64> = dataset.labels().iter().map(|&l| i64::from(l)).collect();
        let size = [dataset.len(), shape.channels, shape.height * shape.width];
        Ok(Self {
            images: Tensor::f_from_slice(&bytes)?
                .f_view(size.map(|n| n as i64))?
                .f_to_device(device)?,
            labels: Tensor::f_from_slice(&labels)?.f_to_device(device)?,
            shape,
        })
    }

    /// For the batches of `loader`, which is over the same data set.
    pub(crate) fn augmenter(&self, loader: &Loader) -> Result<Augmenter<'_>> {
        let device = self.images.device();
        let count = |n: usize| Tensor::f_arange(n as i64, (Kind::Int64, device));
        let channel = count(self.shape.channels)?.f_mul_scalar(256)?;
        Ok(Augmenter {
            resident: self,
            table: Tensor::f_from_slice(loader.normalised().as_flattened())?.f_to_device(device)?,
            channel: channel.f_view([-1, 1])?,
            rows: count(self.shape.height)?.f_view([1, -1])?,
            columns: count(self.shape.width)?.f_view([1, -1])?,
        })
    }
}

impl Augmenter<'_> {
    /// Images `[n, C, H, W]` and labels `[n]`.
    pub(crate) fn batch(&self, drawn: &Drawn) -> Result<(Tensor, Tensor)> {
        let Resident {
            images,
            labels,
            shape,
        } = self.resident;
        let (height, width) = (shape.height as i64, shape.width as i64);
        // One copy carries all numbers.
        let numbers: Vec<i64> = NUMBERS
            .iter()
            .flat_map(|number| {
                let each = drawn.indices.iter().zip(&drawn.choices);
                each.map(move |(&index, choice)| number(index, choice))
            })
            .collect();
        let numbers = Tensor::f_from_slice(&numbers)?.f_view([NUMBERS.len() as i64, -1, 1])?;
        let numbers = send(&numbers, images.device())?;
        let column = |k: i64| numbers.f_get(k);
        let index = column(0)?.f_flatten(0, -1)?;
        let (down, right, mirrored) = (column(1)?, column(2)?, column(3)?);
        // Where each pixel comes from: rows [n, H, 1] and columns [n, 1, W].
        let rows = self.rows.f_add(&down)?;
        let opposite = self.columns.f_neg()?.f_add_scalar(width - 1)?;
        let columns = opposite.f_where_self(&mirrored.f_gt(0)?, &self.columns)?;
        let columns = columns.f_add(&right)?;
        let within = |at: &Tensor, length: i64| at.f_ge(0)?.f_logical_and(&at.f_lt(length)?);
        let seen = within(&rows, height)?
            .f_unsqueeze(-1)?
            .f_logical_and(&within(&columns, width)?.f_unsqueeze(1)?)?;
        let source = (rows.f_clamp(0, height - 1)?.f_mul_scalar(width)?)
            .f_unsqueeze(-1)?
            .f_add(&columns.f_clamp(0, width - 1)?.f_unsqueeze(1)?)?
            .f_view([-1, 1, height * width])?
            .f_expand([-1, shape.channels as i64, -1], false)?;
        let bytes = images
            .f_index_select(0, &index)?
            .f_gather(2, &source, false)?
            .f_mul(&seen.f_view([-1, 1, height * width])?)?;
        let pixels = self
            .table
            .f_take(&bytes.f_to_kind(Kind::Int64)?.f_add(&self.channel)?)?
            .f_view([-1, shape.channels as i64, height, width])?;
        let inside = |at: &Tensor, from: i64, to: i64| {
            at.f_ge_tensor(&column(from)?)?
                .f_logical_and(&at.f_lt_tensor(&column(to)?)?)
        };
        let hole = inside(&self.rows, 4, 5)?
            .f_unsqueeze(-1)?
            .f_logical_and(&inside(&self.columns, 6, 7)?.f_unsqueeze(1)?)?;
        Ok((
            pixels.f_masked_fill(&hole.f_unsqueeze(1)?, 0)?,
            labels.f_index_select(0, &index)?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use fewstep_datasets::{Augment, DataSpec, LoaderOptions, Shard, Statistics};

    use super::*;
    use crate::data::to_tensors;

    fn same_batches(augment: Augment, shard: Shard) {
        let spec = DataSpec::new("synthetic:3x7x9:4:50", None);
        let dataset = spec.open().unwrap().train;
        let options = LoaderOptions {
            batch_size: 16,
            shuffle: true,
            augment,
            statistics: Statistics {
                mean: vec![0.49, 0.48, 0.45],
                std: vec![0.25, 0.24, 0.26],
            },
            seed: 3,
            shard,
            ..LoaderOptions::default()
        };
        let loader = Loader::new(Arc::clone(&dataset), options).unwrap();
        let resident = Resident::new(dataset.as_ref(), Device::Cpu).unwrap();
        let augmenter = resident.augmenter(&loader).unwrap();
        for epoch in 0..2 {
            let drawn: Vec<_> = loader.drawn(epoch).unwrap().collect();
            let batches: Vec<_> = loader.epoch(epoch).map(|b| b.unwrap()).collect();
            assert_eq!(drawn.len(), batches.len());
            for (drawn, batch) in drawn.iter().zip(&batches) {
                assert_eq!(drawn.indices, batch.indices);
                if drawn.indices.is_empty() {
                    continue;
                }
                let expected = to_tensors(batch, Device::Cpu).unwrap();
                assert_eq!(augmenter.batch(drawn).unwrap(), expected, "{augment:?}");
            }
        }
    }

    #[test]
    fn batches_made_on_the_device_are_the_loaders_to_the_bit() {
        let plain = Augment::default();
        for augment in [
            plain,
            Augment {
                crop_padding: 2,
                ..plain
            },
            // Farther than the image is large: some windows see nothing of it.
            Augment {
                crop_padding: 11,
                ..plain
            },
            Augment {
                horizontal_flip: true,
                ..plain
            },
            Augment { cutout: 5, ..plain },
            Augment {
                crop_padding: 4,
                horizontal_flip: true,
                cutout: 4,
                ..plain
            },
        ] {
            same_batches(augment, Shard::default());
        }
    }

    #[test]
    fn ranks_make_the_parts_of_the_loaders_ranks() {
        for rank in 0..3 {
            same_batches(Augment::cifar(), Shard { rank, world: 3 });
        }
    }

    #[test]
    fn a_random_resized_crop_is_refused_in_one_sentence() {
        let dataset = DataSpec::new("synthetic:3x8x8:4:20", None).open().unwrap();
        let augment = Augment {
            random_resized_crop: Some(4),
            ..Augment::default()
        };
        let options = LoaderOptions {
            augment,
            ..LoaderOptions::default()
        };
        let loader = Loader::new(dataset.train, options).unwrap();
        let said = loader.drawn(0).map(drop).unwrap_err().to_string();
        assert!(said.contains("done on the CPU alone"), "{said}");
    }
}
