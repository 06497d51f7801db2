//! Training a DiT on images: noise prediction with classifier-free label dropout and an exponential moving average of the weights.
//!
//! Every random number of a step comes from the seed and the step's number, so a training that was killed and resumes takes the
//! steps it would have taken. Several ranks share each batch: a rank draws the numbers of all of it and keeps those of its part.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use fewstep_datasets::{Batch, Dataset, Loader, LoaderOptions, Shard, Statistics};
use fewstep_torch::device::send;
use fewstep_torch::{
    Augmenter, Checkpoint, Group, Optimiser, ParameterGroup, Part, Reducer, Resident, UnreadLosses,
    checkpoint, seed,
};
use rand::Rng;
use tch::{Device, Kind, Tensor};

use crate::dit::{ComputeAll, Dit, DitConfig};
use crate::noise::NoiseSchedule;
use crate::random::{self, Use};
use crate::{Error, Result};

mod options;
mod variance;

pub use options::{Loss, TrainOptions};

/// What happens in a training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TrainEvent {
    /// A step was taken.
    Step {
        /// Its number, from 1.
        step: u32,
        /// The loss on its batch.
        loss: f64,
        /// The learning rate.
        learning_rate: f64,
    },
    /// A checkpoint is about to be written.
    Checkpoint {
        /// Steps taken.
        step: u32,
        /// Mean squared error of the averaged weights on the validation images, with the same noise every time.
        validation_loss: f64,
    },
}

/// The images a DiT learns from, and those it is watched on.
#[derive(Clone)]
pub struct TrainData {
    /// For the gradient.
    pub train: Arc<dyn Dataset>,
    /// For the validation loss.
    pub validation: Arc<dyn Dataset>,
}

/// Name of the checkpoint inside the folder that [`train`] is given.
pub const CHECKPOINT: &str = "dit.safetensors";

/// Steps that the checkpoint in `folder` has behind it; 0 where there is none.
///
/// # Errors
/// There is one, and it can't be read.
pub fn steps_done(folder: &Path) -> Result<u32> {
    let path = folder.join(CHECKPOINT);
    if !path.exists() {
        return Ok(0);
    }
    steps_of(&Checkpoint::load(&path)?, &path)
}

fn steps_of(file: &Checkpoint, path: &Path) -> Result<u32> {
    let found = file.string("step").unwrap_or("nothing");
    found.parse().map_err(|_| Error::File {
        path: path.into(),
        reason: format!("expected the number of steps under `step`, found {found}"),
    })
}

/// Trains a DiT and returns the averaged weights. Goes on from the checkpoint in `folder` if there is one.
///
/// Each rank of `group` must be given the same config, options, data and seed. They share every batch, so that the weights are those of
/// one process but for the order of sums. Only rank 0 touches the folder, and a training may go on with another number of ranks.
///
/// # Errors
/// Options or images that do not fit the model, fewer images in a batch than ranks, a loss that is not a number, a checkpoint that can't
/// be read or written, a lost rank, or an error of `observe`.
#[expect(clippy::too_many_arguments, reason = "each is one thing")]
pub fn train(
    config: &DitConfig,
    options: &TrainOptions,
    data: &TrainData,
    run_seed: u64,
    folder: &Path,
    device: Device,
    group: &Group,
    observe: &mut dyn FnMut(&TrainEvent) -> Result<()>,
) -> Result<Dit> {
    let mut trainer = Trainer::new(config, options, data, run_seed, device, group)?;
    let path = folder.join(CHECKPOINT);
    trainer.resume(&path)?;
    let parameters: Vec<_> = trainer
        .dit
        .parameters()
        .into_iter()
        .map(|(_, p)| p)
        .collect();
    let reducer = group.reducer(&parameters)?;
    let per_epoch = trainer.loader.batches_per_epoch().max(1) as u64;
    while trainer.step < options.steps {
        let (epoch, first) = (
            u64::from(trainer.step) / per_epoch,
            u64::from(trainer.step) % per_epoch,
        );
        for batch in trainer.batches(epoch, first as usize)? {
            for event in trainer.take_step(batch?, reducer.as_ref())? {
                observe(&event)?;
            }
            let step = trainer.step;
            if options.is_checkpoint(step) {
                let validation_loss = trainer.validation_loss()?;
                observe(&TrainEvent::Checkpoint {
                    step,
                    validation_loss,
                })?;
                if group.leads() {
                    trainer.save(&path)?;
                }
            }
            if step == options.steps {
                break;
            }
        }
    }
    let Trainer { average, .. } = trainer;
    Ok(average)
}

struct Trainer<'a> {
    options: &'a TrainOptions,
    dit: Dit,
    average: Dit,
    optimiser: Optimiser,
    schedule: NoiseSchedule,
    loader: Loader,
    /// Makes the loader's batches on the device, where the images lie there.
    resident: Option<Rc<Augmenter>>,
    validation: Loader,
    group: &'a Group,
    seed: u64,
    step: u32,
    unread: UnreadLosses,
}

type Batches = dyn Iterator<Item = Result<(Tensor, Vec<i64>)>>;

/// This process's share of the work on each batch.
fn shard(group: &Group) -> Shard {
    Shard {
        rank: group.rank(),
        world: group.world(),
    }
}

/// Timesteps `[n]` and noise `[n, C, H, W]` of a part.
struct Drawn {
    timesteps: Tensor,
    noise: Tensor,
}

impl<'a> Trainer<'a> {
    fn new(
        config: &DitConfig,
        options: &'a TrainOptions,
        data: &TrainData,
        run_seed: u64,
        device: Device,
        group: &'a Group,
    ) -> Result<Self> {
        config
            .validate()
            .and_then(|()| options.validate())
            .map_err(Error::setting)?;
        let shape = data.train.shape();
        let found = [shape.channels, shape.height, shape.width].map(|d| d as i64);
        if found != [config.channels, config.input_size, config.input_size] {
            return Err(Error::Shape {
                what: "images",
                expected: format!(
                    "[{}, {}, {}] for this DiT",
                    config.channels, config.input_size, config.input_size
                ),
                found: found.to_vec(),
            });
        }
        if options.loss == Loss::Hybrid && !config.learned_variance {
            return Err(Error::option(
                "loss",
                "mse for a DiT without learned variance",
                "hybrid",
            ));
        }
        let statistics = Statistics {
            mean: vec![0.5; shape.channels],
            std: vec![0.5; shape.channels],
        };
        let batch_size = options.batch_size.min(data.train.len());
        if batch_size < group.world() {
            let expected = format!("an image for each of {} ranks", group.world());
            return Err(Error::option("batch_size", expected, batch_size));
        }
        let shard = shard(group);
        let loader = LoaderOptions {
            batch_size,
            shuffle: true,
            drop_last: true,
            augment: options.augment,
            statistics: statistics.clone(),
            seed: seed::derive(run_seed, &[1]),
            shard,
            ..LoaderOptions::default()
        };
        let loader = Loader::new(data.train.clone(), loader)?;
        let validation = LoaderOptions {
            batch_size: options.batch_size.min(data.validation.len().max(1)),
            statistics,
            shard,
            ..LoaderOptions::default()
        };
        let dit = Dit::new(config, run_seed)?.to(device, Kind::Float)?;
        let average = Dit::new(config, run_seed)?.to(device, Kind::Float)?;
        for (_, p) in dit.parameters() {
            let _ = p.f_set_requires_grad(true)?;
        }
        let parameters = ParameterGroup {
            parameters: dit.parameters(),
            weight_decay: options.weight_decay,
            lr_factor: 1.,
        };
        Ok(Self {
            optimiser: Optimiser::new(options.optimiser, vec![parameters])?,
            schedule: NoiseSchedule::new(&options.noise)?,
            resident: resident(&loader, options, device)?,
            loader,
            validation: Loader::new(data.validation.clone(), validation)?,
            group,
            seed: run_seed,
            step: 0,
            unread: UnreadLosses::new(options.read_loss_every, device),
            options,
            dit,
            average,
        })
    }

    /// This rank's parts of the batches of an epoch from batch `first` on: images `[n, C, H, W]`, on the device where they lie there, and n
    /// labels.
    fn batches(&self, epoch: u64, first: usize) -> Result<Box<Batches>> {
        let Some(augmenter) = self.resident.clone() else {
            let made = self.loader.epoch_from(epoch, first);
            return Ok(Box::new(made.map(|batch| to_tensors(batch?))));
        };
        let dataset = self.loader.dataset().clone();
        let drawn = self.loader.drawn(epoch)?.skip(first);
        Ok(Box::new(drawn.map(move |drawn| {
            let (images, _) = augmenter.batch(&drawn.numbers())?;
            let label = |&i: &usize| i64::from(dataset.labels()[i]);
            Ok((images, drawn.indices.iter().map(label).collect()))
        })))
    }

    /// One step on this rank's part of a batch. Returns the steps whose losses were read: of whole batches, up to this one.
    fn take_step(
        &mut self,
        (images, labels): (Tensor, Vec<i64>),
        reducer: Option<&Reducer>,
    ) -> Result<Vec<TrainEvent>> {
        let o = self.options;
        let device = self.dit.device();
        let _tf32 = o.precision.tf32()?;
        let mut rng = random::generator(self.seed, Use::Training, &[u64::from(self.step)]);
        // Incomplete batches are left out.
        let part = self.group.part(self.loader.images_in(0) as i64);
        let labels = self.drop_labels(labels, &part, &mut rng)?;
        let drawn = self.draw(&part, &mut rng)?;
        let loss = o.precision.run(device, || {
            self.loss(&self.dit, &images, &labels, &drawn, o.loss)
        })?;
        self.step += 1;
        self.unread.push(&loss, part.weight())?;
        let read = match self.unread.is_full() || o.is_checkpoint(self.step) {
            true => self.read()?,
            false => Vec::new(),
        };
        self.optimiser.zero_grad();
        match reducer {
            // The mean over ranks of this is the mean over the batch.
            Some(reducer) => {
                let share = part.weight() * self.group.world() as f64;
                reducer.backward(&loss.f_mul_scalar(share)?)?;
            }
            None => loss.f_backward()?,
        }
        if let Some(largest) = o.gradient_clip {
            clip(&self.dit.parameters(), largest)?;
        }
        self.optimiser.step(o.rate(self.step))?;
        let _guard = tch::no_grad_guard();
        let step = f64::from(self.step);
        let keep = o.ema.min((1. + step) / (10. + step));
        for ((_, mut slow), (_, fast)) in self
            .average
            .parameters()
            .into_iter()
            .zip(self.dit.parameters())
        {
            let _ = slow.f_lerp_(&fast, 1. - keep)?;
        }
        Ok(read)
    }

    /// Waits for the losses that are not read yet, and makes sure that they are numbers.
    fn read(&mut self) -> Result<Vec<TrainEvent>> {
        let losses = self.unread.read(self.group)?;
        let first = self.step + 1 - losses.len() as u32;
        (first..)
            .zip(losses)
            .map(|(step, loss)| match loss.whole.is_finite() {
                true => Ok(TrainEvent::Step {
                    step,
                    loss: loss.whole,
                    learning_rate: self.options.rate(step),
                }),
                false => Err(Error::Diverged {
                    step: u64::from(step),
                    loss: loss.whole,
                }),
            })
            .collect()
    }

    /// Gives a share of the labels `[n]` of this part up for the null class.
    fn drop_labels(&self, mut labels: Vec<i64>, part: &Part, rng: &mut impl Rng) -> Result<Tensor> {
        let config = self.dit.config();
        let own = part.numbers();
        for image in 0..part.batch as u64 {
            let dropped = f64::from(rng.next_u32()) < config.class_dropout * 2f64.powi(32);
            if dropped && own.contains(&image) {
                labels[(image - own.start) as usize] = config.classes;
            }
        }
        Ok(Tensor::f_from_slice(&labels)?)
    }

    fn draw(&self, part: &Part, rng: &mut rand_chacha::ChaCha8Rng) -> Result<Drawn> {
        let (n, c) = (part.batch, self.dit.config());
        let timesteps = random::integers(rng, n, self.schedule.alphas_cumprod().len() as i64)?;
        let noise = random::normal(rng, &[n, c.channels, c.input_size, c.input_size])?;
        Ok(Drawn {
            timesteps: part.rows(&timesteps)?,
            noise: part.rows(&noise)?,
        })
    }

    fn loss(
        &self,
        dit: &Dit,
        images: &Tensor,
        labels: &Tensor,
        drawn: &Drawn,
        which: Loss,
    ) -> Result<Tensor> {
        let device = dit.device();
        let (timesteps, noise) = (&drawn.timesteps, send(&drawn.noise, device)?);
        let images = send(images, device)?;
        let x = self.schedule.q_sample(&images, timesteps, &noise)?;
        let t = send(timesteps, device)?.f_to_kind(Kind::Float)?;
        let output = dit.forward(&x, &t, &send(labels, device)?, &mut ComputeAll)?;
        let channels = dit.config().channels;
        let predicted = output.f_narrow(1, 0, channels)?;
        let mse = predicted.f_mse_loss(&noise, tch::Reduction::Mean)?;
        if which == Loss::Mse {
            return Ok(mse);
        }
        let bound = variance::bound(&self.schedule, &images, &x, timesteps, &output)?;
        Ok(mse.f_add(&bound)?)
    }

    fn validation_loss(&self) -> Result<f64> {
        let _guard = tch::no_grad_guard();
        let mut rng = random::generator(self.seed, Use::Training, &[u64::MAX]);
        // Loss and images of this part.
        let mut sums = [0., 0.];
        let mut left = self.options.validation_images as i64;
        for (number, batch) in self.validation.epoch(0).enumerate() {
            let batch = batch?;
            let all = self.validation.images_in(number) as i64;
            let part = self.group.part(all).of_first(left);
            if part.batch == 0 {
                break;
            }
            left -= part.batch;
            let drawn = self.draw(&part, &mut rng)?;
            if part.len == 0 {
                continue;
            }
            let (images, labels) = to_tensors(batch)?;
            let labels = Tensor::f_from_slice(&labels)?;
            let n = part.len;
            let (images, labels) = (images.f_narrow(0, 0, n)?, labels.f_narrow(0, 0, n)?);
            let loss = self.loss(&self.average, &images, &labels, &drawn, Loss::Mse)?;
            sums[0] += loss.f_double_value(&[])? * n as f64;
            sums[1] += n as f64;
        }
        self.group.sum("the validation loss", &mut sums)?;
        Ok(sums[0] / sums[1].max(1.))
    }

    fn save(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| Error::File {
                path: folder.into(),
                reason: e.to_string(),
            })?;
        }
        let file = Checkpoint::new()
            .with_string("dit", serde_json::json!(self.dit.config()).to_string())
            .with_string("step", self.step.to_string())
            .with_all("model/", self.dit.parameters())
            .with_all("ema/", self.average.parameters())
            .with_all("optimiser/", self.optimiser.state());
        Ok(file.save(path)?)
    }

    /// Takes up the checkpoint where there is one.
    fn resume(&mut self, path: &Path) -> Result<()> {
        let group = self.group;
        self.step = group.told("what is done", || match path.exists() {
            true => self.load(path),
            false => Ok(0),
        })?;
        // The weights themselves go with the reducer.
        group.spread("the averaged weights", self.average.parameters())?;
        Ok(group.spread("the optimiser's state", self.optimiser.state())?)
    }

    /// Returns the steps that the checkpoint has behind it.
    fn load(&mut self, path: &Path) -> Result<u32> {
        let _guard = tch::no_grad_guard();
        let file = Checkpoint::load(path)?;
        let step = steps_of(&file, path)?;
        let what = path.display().to_string();
        checkpoint::copy_into(&self.dit.parameters(), &file.section("model/"), &what)?;
        checkpoint::copy_into(&self.average.parameters(), &file.section("ema/"), &what)?;
        self.optimiser.load_state(&file.section("optimiser/"))?;
        Ok(step)
    }
}

/// Images `[N, C, H, W]` on the CPU and N labels.
fn to_tensors(batch: Batch) -> Result<(Tensor, Vec<i64>)> {
    let shape: Vec<i64> = batch.images.shape().iter().map(|&d| d as i64).collect();
    let images = Tensor::f_from_slice(batch.images.as_slice().unwrap_or_default())?;
    Ok((images.f_view(shape.as_slice())?, batch.labels))
}

/// What makes the batches of `loader` on `device`, where its images belong there.
fn resident(
    loader: &Loader,
    options: &TrainOptions,
    device: Device,
) -> Result<Option<Rc<Augmenter>>> {
    let dataset = loader.dataset();
    let shape = dataset.shape();
    let usual = Resident::fits(dataset.len() * shape.numel(), device)
        && options.augment.random_resized_crop.is_none();
    if !options.data_on_device.unwrap_or(usual) {
        return Ok(None);
    }
    // Labels come from the loader's side: some are given up for the null class on the CPU.
    let labels = vec![0; dataset.len()];
    let shape = [shape.channels, shape.height, shape.width];
    let resident = Resident::new(&dataset.bytes()?, &labels, shape, device);
    match resident.and_then(|images| images.augmenter(loader.normalised())) {
        Ok(augmenter) => Ok(Some(Rc::new(augmenter))),
        Err(e) if e.is_out_of_memory() => Err(Error::Setting {
            option: "data_on_device",
            reason: format!("the training images do not fit on the device ({e}); expected false"),
        }),
        Err(e) => Err(e.into()),
    }
}

/// Scales all gradients down so that their norm together is at most `largest`. No value leaves the device.
fn clip(parameters: &[(String, Tensor)], largest: f64) -> Result<()> {
    let _guard = tch::no_grad_guard();
    let gradients: Vec<Tensor> = parameters
        .iter()
        .map(|(_, p)| p.grad())
        .filter(Tensor::defined)
        .collect();
    let norms = gradients
        .iter()
        .map(|g| Ok(g.f_norm()?))
        .collect::<Result<Vec<_>>>()?;
    let norm = Tensor::f_stack(&norms, 0)?.f_norm()?;
    let factor = norm.f_add_scalar(1e-6)?.f_reciprocal()?;
    let factor = factor.f_mul_scalar(largest)?.f_clamp_max(1.)?;
    for mut g in gradients {
        let _ = g.f_mul_(&factor)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
