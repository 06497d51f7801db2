//! What makes training faster changes no result, and what stops it leaves the last epoch's checkpoint good.

use std::path::Path;

use fewstep_datasets::{Augment, DataSpec};
use fewstep_iir::{Error, Event, Observer};
use fewstep_spiking::MemoryFormat;

use super::*;

/// Augmented digits.
fn augmented() -> Data {
    let options = DataOptions {
        validation_fraction: 0.2,
        train_images: Some(200),
        test_images: Some(100),
        augment: Augment {
            crop_padding: 1,
            horizontal_flip: true,
            cutout: 2,
            ..Augment::default()
        },
    };
    Data::open_with(&DataSpec::new("digits", None), &options, 0).unwrap()
}

/// Two epochs of the artificial network and one stage, with all that is random in a step; 160 images make 7 batches of 24.
fn short() -> Recipe {
    let mut recipe = recipe();
    recipe.ann.epochs = 2;
    recipe.ann.batch_size = 24;
    recipe.ann.dropout = 0.1;
    recipe.snn.batch_size = 24;
    recipe.snn.dropout = 0.1;
    recipe
}

/// Every loss that an observer is told.
#[derive(Default)]
struct Losses(Vec<(u32, usize, f64)>);

impl Observer for Losses {
    fn event(&mut self, event: &Event) -> fewstep_iir::Result<()> {
        if let Event::Batch {
            epoch, batch, loss, ..
        } = *event
        {
            self.0.push((epoch, batch, loss));
        }
        Ok(())
    }
}

/// Trains, and returns all tensors of the last stage's checkpoint and the losses told.
fn trained(performance: Performance, data: &Data) -> (Tensors, Vec<(u32, usize, f64)>) {
    let folder = tempfile::tempdir().unwrap();
    let recipe = Recipe {
        performance,
        ..short()
    };
    let mut losses = Losses::default();
    let alone = Group::alone();
    run(
        &recipe,
        data,
        folder.path(),
        Device::Cpu,
        &alone,
        &mut losses,
    )
    .unwrap();
    (read(&folder, "t2/last", ""), losses.0)
}

#[test]
fn losses_read_rarely_and_data_on_the_device_change_no_bit_of_what_is_trained_and_told() {
    let _guard = alone();
    let data = augmented();
    let expected = trained(Performance::default(), &data);
    assert!(expected.1.len() > 15);
    // More than an epoch has, and a number that does not divide it.
    for every in [4, 100] {
        let performance = Performance {
            read_loss_every: Some(every),
            data_on_device: Some(true),
            ..Performance::default()
        };
        let found = trained(performance, &data);
        assert_eq!(found.1, expected.1);
        assert_eq!(found.0, expected.0);
    }
}

#[test]
fn a_run_that_was_trained_channels_last_goes_on_contiguous() {
    let _guard = alone();
    let folder = tempfile::tempdir().unwrap();
    let data = data();
    for memory_format in [MemoryFormat::ChannelsLast, MemoryFormat::Contiguous] {
        let mut recipe = short();
        recipe.performance.memory_format = Some(memory_format);
        if memory_format == MemoryFormat::Contiguous {
            recipe.snn.epochs = Epochs::Same(2);
            std::fs::remove_file(folder.path().join("t2/result.json")).unwrap();
        }
        train(&recipe, &data, folder.path());
    }
}

/// Does something in one batch of one epoch of `ann`.
struct At<F>(u32, usize, F);

impl<F: FnMut() -> fewstep_iir::Result<()>> Observer for At<F> {
    fn event(&mut self, event: &Event) -> fewstep_iir::Result<()> {
        match *event {
            Event::Batch {
                phase: "ann",
                epoch,
                batch,
                ..
            } if (epoch, batch) == (self.0, self.1) => (self.2)(),
            _ => Ok(()),
        }
    }
}

fn fails(recipe: &Recipe, data: &Data, folder: &Path, observer: &mut dyn Observer) -> Error {
    run(recipe, data, folder, Device::Cpu, &Group::alone(), observer).unwrap_err()
}

#[test]
fn a_run_out_of_memory_says_what_to_lower_and_resumes_from_its_last_epoch() {
    let _guard = alone();
    let (recipe, data) = (short(), data());
    let folder = tempfile::tempdir().unwrap();
    let mut full = At(2, 3, || {
        // More than an address space holds: libtorch refuses it as it refuses a step that does not fit.
        let _ = Tensor::f_empty([1 << 48], (Kind::Float, Device::Cpu))?;
        Ok(())
    });
    let said = fails(&recipe, &data, folder.path(), &mut full).to_string();
    assert_eq!(
        said,
        "stage ann: out of memory: 1048576.00 GiB asked for on the CPU; lower ann.batch_size and raise ann.accumulate by the same factor, \
         which makes steps of as many images"
    );
    assert_eq!(fewstep_iir::epochs_done(&recipe, folder.path()).unwrap(), 1);
    train(&recipe, &data, folder.path());
    let whole = tempfile::tempdir().unwrap();
    train(&recipe, &data, whole.path());
    let last = "t2/last";
    assert_eq!(
        read(&folder, last, "network."),
        read(&whole, last, "network.")
    );
}

#[test]
fn a_loss_that_is_no_number_is_seen_when_it_is_read_and_named_with_its_batch() {
    let _guard = alone();
    let data = data();
    let mut recipe = short();
    recipe.ann.learning_rate = 1e30;
    let of = |recipe: &Recipe| {
        let folder = tempfile::tempdir().unwrap();
        match fails(recipe, &data, folder.path(), &mut Silent) {
            Error::NotFinite { batch, place, .. } => (batch, place),
            other => panic!("{other}"),
        }
    };
    let (at_once, place) = of(&recipe);
    assert!(!place.contains("later"), "{place}");
    recipe.performance.read_loss_every = Some(at_once + 2);
    let (late, place) = of(&recipe);
    assert_eq!(late, at_once);
    assert!(place.starts_with("parameter `"), "{place}");
    assert!(place.contains("seen 2 batches later"), "{place}");
}

#[test]
fn data_on_the_device_and_a_random_resized_crop_exclude_each_other() {
    let options = DataOptions {
        augment: Augment {
            random_resized_crop: Some(8),
            ..Augment::default()
        },
        ..DataOptions::default()
    };
    let data = Data::open_with(&DataSpec::new("digits", None), &options, 0).unwrap();
    let mut recipe = recipe();
    recipe.performance.data_on_device = Some(true);
    let said = recipe.validate_with(&data).unwrap_err().to_string();
    assert!(
        said.starts_with("performance.data_on_device: expected false"),
        "{said}"
    );
}

#[test]
fn ranks_with_their_parts_on_the_device_channels_last_train_the_network_of_one_process() {
    let _guard = alone();
    let data = data();
    let (expected, _) = spike(&recipe(), &data);
    let mut recipe = recipe();
    recipe.performance = Performance {
        read_loss_every: Some(3),
        data_on_device: Some(true),
        memory_format: Some(MemoryFormat::ChannelsLast),
    };
    let found = folder_with_ann();
    let ranks = Group::of_threads(2, std::time::Duration::from_secs(60), |group| {
        // Only rank 0 has a folder.
        let folder = match group.leads() {
            true => found.path(),
            false => Path::new(""),
        };
        run(&recipe, &data, folder, Device::Cpu, group, &mut Silent).map(drop)
    });
    for ended in ranks.unwrap() {
        ended.unwrap();
    }
    let [expected, found] = [&expected, &found].map(|folder| best(folder, "t2"));
    assert!(distance(&expected, &found) < 1e-4);
}
