//! Training images that lie on the device: the batches that are made there are, to the bit, those of the loader.

use fewstep_datasets::Dataset;
use fewstep_torch::Resident;
use tch::Device;

use crate::Result;

/// Copies all of `dataset` to `device`.
pub(crate) fn resident(dataset: &dyn Dataset, device: Device) -> Result<Resident> {
    let labels: Vec<i64> = dataset.labels().iter().map(|&l| i64::from(l)).collect();
    let shape = dataset.shape();
    let shape = [shape.channels, shape.height, shape.width];
    Ok(Resident::new(&dataset.bytes()?, &labels, shape, device)?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use fewstep_datasets::{Augment, DataSpec, Loader, LoaderOptions, Shard, Statistics};

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
        let resident = resident(dataset.as_ref(), Device::Cpu).unwrap();
        let augmenter = resident.augmenter(loader.normalised()).unwrap();
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
                let found = augmenter.batch(&drawn.numbers()).unwrap();
                assert_eq!(found, expected, "{augment:?}");
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
