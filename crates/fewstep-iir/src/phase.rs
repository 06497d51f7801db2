//! One phase of training: epochs, validation, the best weights, and a checkpoint after every epoch from which a killed run goes on to the
//! same bits. Several ranks share each batch.

use std::path::{Path, PathBuf};
use std::time::Instant;

use fewstep_spiking::{Forward, Input, Mode, Monitor, Network};
use fewstep_torch::checkpoint::remove_torn;
use fewstep_torch::{
    Checkpoint, Group, Optimiser, ParameterGroup, Reducer, Resident, UnreadLosses, seed,
};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::data::{Batches, Data, Split};
use crate::evaluate::evaluate;
use crate::loss::{cross_entropy, distillation};
use crate::ranks::{Part, first_words, shard};
use crate::{Error, Evaluation, Event, Observer, Performance, PhaseKind, PhasePlan, Result};

/// How far a phase has come.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Progress {
    pub(crate) epochs_done: u32,
    pub(crate) best_epoch: u32,
    pub(crate) best: Option<Evaluation>,
    pub(crate) last: Option<Evaluation>,
    pub(crate) train_seconds: f64,
}

/// What a phase needs to train.
pub(crate) struct Trainer<'a> {
    pub(crate) phase: &'a PhasePlan,
    pub(crate) phases: usize,
    pub(crate) data: &'a Data,
    pub(crate) seed: u64,
    pub(crate) limit: Option<usize>,
    pub(crate) folder: PathBuf,
    pub(crate) group: &'a Group,
    pub(crate) teacher: Option<&'a Network>,
    pub(crate) performance: &'a Performance,
    /// The training images, where they lie on the device.
    pub(crate) resident: Option<&'a Resident>,
}

/// A loss that is no number, and where; epoch and batch from 0.
struct NotFinite {
    loss: f64,
    epoch: u32,
    batch: usize,
    /// Batches that were trained on since.
    late: usize,
}

/// The mode of a phase.
pub(crate) fn mode(kind: PhaseKind) -> Mode {
    match kind {
        PhaseKind::Ann => Mode::Analog,
        PhaseKind::Stage(timesteps) => Mode::Spiking { timesteps },
        PhaseKind::Direct(_) => Mode::Spiking { timesteps: 1 },
    }
}

impl Trainer<'_> {
    fn last(&self) -> PathBuf {
        self.folder.join("last.safetensors")
    }

    fn best(&self) -> PathBuf {
        self.folder.join("best.safetensors")
    }

    /// Whether a checkpoint of this phase is there, so that its start need not be prepared again.
    pub(crate) fn has_begun(&self) -> Result<bool> {
        self.group.told("what is done", || Ok(self.last().exists()))
    }

    /// Takes up the weights that were best on validation.
    pub(crate) fn load_best(&self, network: &mut Network) -> Result<()> {
        let best = self.best();
        if self.group.leads() {
            network.load(&load(&best)?.section(""), &best.display().to_string())?;
        }
        Ok(self.group.spread("the best weights", network.tensors())?)
    }

    /// Trains the network, or goes on where the checkpoint stopped, and leaves the weights that were best on validation in it.
    pub(crate) fn train(
        &self,
        network: &mut Network,
        observer: &mut dyn Observer,
    ) -> Result<Progress> {
        self.epochs(network, observer).map_err(|e| {
            if !e.is_out_of_memory() {
                return e;
            }
            Error::OutOfMemory {
                stage: self.phase.name.clone(),
                what: e.to_string(),
                section: match self.phase.kind {
                    PhaseKind::Ann => "ann",
                    PhaseKind::Stage(_) | PhaseKind::Direct(_) => "snn",
                },
            }
        })
    }

    fn epochs(&self, network: &mut Network, observer: &mut dyn Observer) -> Result<Progress> {
        let mut optimiser = self.optimiser(network)?;
        let mut progress = self.resume(network, &mut optimiser)?;
        let parameters: Vec<_> = network.parameters().into_iter().map(|(_, p)| p).collect();
        let reducer = self.group.reducer(&parameters)?;
        let (name, epochs) = (self.phase.name.as_str(), self.phase.run_epochs);
        let (number, phases) = (self.phase.number, self.phases);
        observer.event(&Event::PhaseStarted {
            phase: name,
            number,
            phases,
            epochs,
            done: progress.epochs_done,
        })?;
        for epoch in progress.epochs_done..epochs {
            let start = Instant::now();
            let (train_loss, learning_rate) =
                self.epoch(network, &mut optimiser, reducer.as_ref(), epoch, observer)?;
            progress.train_seconds += start.elapsed().as_secs_f64();
            let mut monitor = Monitor::new();
            let spikes = self.phase.kind != PhaseKind::Ann;
            let found = evaluate(
                network,
                mode(self.phase.kind),
                self.data,
                Split::Validation,
                self.limit,
                self.group,
                spikes.then_some(&mut monitor),
            )?;
            self.check_finite(network, &found, epoch)?;
            self.check_alive(network, &monitor)?;
            // Later epochs win ties: the learning rate is lower there.
            let best = progress.best.is_none_or(|b| found.accuracy >= b.accuracy);
            if best {
                self.write(&self.best(), || {
                    Ok(Checkpoint::new().with_all("", network.tensors()))
                })?;
                (progress.best, progress.best_epoch) = (Some(found), epoch + 1);
            }
            (progress.last, progress.epochs_done) = (Some(found), epoch + 1);
            let seconds = start.elapsed().as_secs_f64();
            let (number, validation) = (epoch + 1, &found);
            // Told before the checkpoint is written: a log then always reaches as far as the checkpoints do.
            observer.event(&Event::Epoch {
                phase: name,
                epoch: number,
                epochs,
                learning_rate,
                train_loss,
                validation,
                best,
                seconds,
            })?;
            self.write(&self.last(), || {
                let progress = serde_json::to_string(&progress)
                    .map_err(|e| Error::Checkpoint(e.to_string()))?;
                Ok(Checkpoint::new()
                    .with_all("network.", network.tensors())
                    .with_all("optimiser.", optimiser.state())
                    .with_string("progress", progress))
            })?;
        }
        self.load_best(network)?;
        Ok(progress)
    }

    /// A dead layer ends a stage; it is the very thing that an ablation may show. Under `limits.batches` nothing has been trained to
    /// the end, so it is no more than a warning.
    pub(crate) fn check_alive(&self, network: &Network, monitor: &Monitor) -> Result<()> {
        if !matches!(self.phase.kind, PhaseKind::Stage(_)) || self.limit.is_some() {
            return Ok(());
        }
        for (i, layer) in monitor.layers()?.into_iter().enumerate() {
            // A shortcut around a layer keeps what is behind it alive.
            let bypassed = network
                .plan()
                .units
                .iter()
                .enumerate()
                .any(|(j, u)| j > i && u.shortcut.is_some_and(|s| s.from < i));
            if layer.spike_rate == 0. && !bypassed {
                let stage = self.phase.name.clone();
                return Err(Error::Dead {
                    stage,
                    layer: layer.name,
                });
            }
        }
        Ok(())
    }

    fn write(&self, path: &Path, checkpoint: impl FnOnce() -> Result<Checkpoint>) -> Result<()> {
        if self.group.leads() {
            checkpoint()?.save(path)?;
        }
        Ok(())
    }

    fn resume(&self, network: &mut Network, optimiser: &mut Optimiser) -> Result<Progress> {
        let progress = self.group.told("what is done", || -> Result<_> {
            let path = self.last();
            // A new phase has no folder yet.
            let _ = remove_torn(&self.folder);
            if !path.exists() {
                std::fs::create_dir_all(&self.folder)
                    .map_err(|e| Error::Checkpoint(format!("{}: {e}", self.folder.display())))?;
                return Ok(Progress::default());
            }
            let saved = load(&path)?;
            let progress = progress_of(&saved, &path)?;
            network.load(&saved.section("network."), &path.display().to_string())?;
            optimiser.load_state(&saved.section("optimiser."))?;
            Ok(progress)
        })?;
        self.group.spread("the weights", network.tensors())?;
        self.group
            .spread("the optimiser's state", optimiser.state())?;
        Ok(progress)
    }

    /// Three groups: weights (decayed), biases and batch norm, thresholds and leaks.
    fn optimiser(&self, network: &Network) -> Result<Optimiser> {
        let (mut weights, mut others, mut neurons) = (Vec::new(), Vec::new(), Vec::new());
        for (name, p) in network.parameters() {
            if name.ends_with(".threshold") || name.ends_with(".leak") {
                neurons.push((name, p));
            } else if name.ends_with(".weight") && p.dim() > 1 {
                weights.push((name, p));
            } else {
                others.push((name, p));
            }
        }
        let group = |parameters, weight_decay, lr_factor| ParameterGroup {
            parameters,
            weight_decay,
            lr_factor,
        };
        let t = &self.phase.training;
        let groups = vec![
            group(weights, t.weight_decay, 1.),
            group(others, 0., 1.),
            group(neurons, 0., self.phase.threshold_lr_factor),
        ];
        Ok(Optimiser::new(t.optimiser, groups)?)
    }

    /// One epoch; returns the mean loss and the last learning rate.
    fn epoch(
        &self,
        network: &mut Network,
        optimiser: &mut Optimiser,
        reducer: Option<&Reducer>,
        epoch: u32,
        observer: &mut dyn Observer,
    ) -> Result<(f64, f64)> {
        let t = &self.phase.training;
        // Everything random in an epoch follows from its place, so a resumed run draws what the whole one drew.
        seed::set_libtorch(seed::derive(
            self.seed,
            &[1, self.phase.number, u64::from(epoch)],
        ));
        let loader = self.data.training(
            t.batch_size,
            seed::derive(self.seed, &[2, self.phase.number]),
            shard(self.group),
        )?;
        let batches = loader
            .batches_per_epoch()
            .min(self.limit.unwrap_or(usize::MAX));
        let options = Forward {
            mode: mode(self.phase.kind),
            train: self.phase.kind == PhaseKind::Ann,
            dropout: t.dropout,
            operations: self.phase.rate_penalty > 0.,
        };
        let device = network.device();
        let _tf32 = t.precision.tf32()?;
        let (mut sum, mut rate) = (0., 0.);
        let mut unread = UnreadLosses::new(self.performance.read_loss_every, device);
        let made = Batches::new(&loader, u64::from(epoch), device, self.resident)?;
        for (i, own) in made.take(batches).enumerate() {
            let part = Part::new(self.group, &loader, i, own?, device)?;
            let loss = t
                .precision
                .run(device, || self.loss(network, &options, &part))?;
            unread.push(&loss, part.weight())?;
            let read = match unread.is_full() || i + 1 == batches {
                true => unread.read(self.group)?,
                false => Vec::new(),
            };
            if let Some(at) = read.iter().position(|loss| !loss.whole.is_finite()) {
                let late = read.len() - 1 - at;
                // The images of an earlier batch are gone.
                let at_fault = (late == 0 && !read[at].own.is_finite()).then_some(&part.images);
                let found = NotFinite {
                    loss: read[at].whole,
                    epoch,
                    batch: i - late,
                    late,
                };
                return Err(self.not_finite(network, &options, at_fault, found)?);
            }
            if i % t.accumulate == 0 {
                optimiser.zero_grad();
            }
            // The last step of an epoch may have fewer batches to its mean.
            let of_step = t.accumulate.min(batches - i / t.accumulate * t.accumulate);
            let steps = (i + 1) % t.accumulate == 0 || i + 1 == batches;
            // The mean over ranks of this is the mean over the batch.
            let share = part.weight() * self.group.world() as f64;
            let loss = loss.f_mul_scalar(share)?.f_div_scalar(of_step as f64)?;
            self.backward(&loss, reducer.filter(|_| steps))?;
            let done = f64::from(epoch) + i as f64 / batches as f64;
            rate = t.learning_rate * t.schedule.factor(done, t.epochs);
            if steps {
                optimiser.step(rate)?;
                network.constrain()?;
            }
            for (batch, loss) in (i + 2 - read.len()..).zip(&read) {
                sum += loss.whole;
                observer.event(&Event::Batch {
                    phase: self.phase.name.as_str(),
                    epoch: epoch + 1,
                    batch,
                    batches,
                    loss: sum / batch as f64,
                })?;
            }
        }
        Ok((sum / batches.max(1) as f64, rate))
    }

    /// Adds to the gradients; with a reducer, they are then the mean over ranks.
    fn backward(&self, loss: &Tensor, reducer: Option<&Reducer>) -> Result<()> {
        match reducer {
            Some(reducer) => reducer.backward(loss)?,
            None => loss
                .f_backward()
                .map_err(|e| self.group.explain("the backward pass", e.into()))?,
        }
        Ok(())
    }

    /// The loss of one batch, mean over this rank's part.
    fn loss(&self, network: &Network, options: &Forward, part: &Part) -> Result<Tensor> {
        let x = Input::Direct(&part.images);
        let out = network.forward_share(x, options, part.share)?;
        let logits = out.logits.f_to_kind(Kind::Float)?;
        let smoothing = self.phase.training.label_smoothing;
        let mut loss = cross_entropy(&logits, &part.labels, smoothing)?;
        if let (Some(d), Some(teacher)) = (self.phase.distillation, self.teacher) {
            let target = tch::no_grad(|| teacher.forward(x, &Forward::analog(), None))?.logits;
            let distance = distillation(&logits, &target, d.temperature)?;
            loss = loss.f_add(&distance.f_mul_scalar(d.weight)?)?;
        }
        if let Some(operations) = &out.operations {
            loss = loss.f_add(&operations.f_mul_scalar(self.phase.rate_penalty)?)?;
        }
        Ok(loss)
    }

    /// Says where a loss that is no number begins: in a parameter, or in the first layer whose potential is not finite. `images` are those
    /// of a rank whose own loss is none; all ranks say the same.
    fn not_finite(
        &self,
        network: &Network,
        options: &Forward,
        images: Option<&Tensor>,
        found: NotFinite,
    ) -> Result<Error> {
        let _guard = tch::no_grad_guard();
        let mut place = non_finite_parameter(network)?;
        if let (None, Some(x)) = (&place, images) {
            let mut monitor = Monitor::new();
            network.forward(
                Input::Direct(x),
                &Forward {
                    dropout: 0.,
                    operations: false,
                    ..*options
                },
                Some(&mut monitor),
            )?;
            place = monitor
                .first_non_finite_layer()
                .map(|l| format!("layer `{l}` is the first whose potential is not finite"));
            if place.is_none() && x.f_isfinite()?.f_all()?.f_double_value(&[])? == 0. {
                place = Some("the images are not finite".into());
            }
        }
        let place = first_words(self.group, place)?;
        let mut place = place.unwrap_or_else(|| "the read-out overflows".into());
        if found.late > 0 {
            place += &format!(
                " (seen {} batches later; with performance.read_loss_every = 1 the layer is named)",
                found.late
            );
        }
        Ok(Error::NotFinite {
            stage: self.phase.name.clone(),
            loss: found.loss,
            epoch: found.epoch + 1,
            batch: found.batch + 1,
            place,
        })
    }

    /// The last step of an epoch has no batch behind it that would show what it broke, and what is broken must not be kept as a
    /// checkpoint.
    fn check_finite(&self, network: &Network, found: &Evaluation, epoch: u32) -> Result<()> {
        let mut place = non_finite_parameter(network)?;
        if place.is_none() && found.loss.is_finite() {
            return Ok(());
        }
        if place.is_none() {
            let (mode, mut monitor) = (mode(self.phase.kind), Monitor::new());
            evaluate(
                network,
                mode,
                self.data,
                Split::Validation,
                Some(1),
                self.group,
                Some(&mut monitor),
            )?;
            place = monitor
                .first_non_finite_layer()
                .map(|l| format!("layer `{l}` is the first whose potential is not finite"));
        }
        Err(Error::NotFiniteAfter {
            stage: self.phase.name.clone(),
            epoch: epoch + 1,
            loss: found.loss,
            place: place.unwrap_or_else(|| "the read-out overflows".into()),
        })
    }
}

/// Says which parameter, if any, holds something that is no number.
fn non_finite_parameter(network: &Network) -> Result<Option<String>> {
    for (name, p) in network.tensors() {
        if p.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
            return Ok(Some(format!("parameter `{name}` is not finite")));
        }
    }
    Ok(None)
}

/// Epochs that the checkpoints hold, up to the first phase that is not complete.
///
/// # Errors
/// A damaged checkpoint.
pub fn epochs_done(recipe: &crate::Recipe, folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for phase in recipe.phases()? {
        let path = folder.join(&phase.name).join("last.safetensors");
        let done = match path.exists() {
            true => progress_of(&load(&path)?, &path)?.epochs_done,
            false => 0,
        };
        sum += u64::from(done);
        if done < phase.run_epochs {
            break;
        }
    }
    Ok(sum)
}

fn progress_of(saved: &Checkpoint, path: &Path) -> Result<Progress> {
    serde_json::from_str(saved.string("progress").unwrap_or_default()).map_err(|e| {
        Error::Checkpoint(format!(
            "{}: its entry `progress` can't be read: {e}{}",
            path.display(),
            start_again(path)
        ))
    })
}

/// A checkpoint of this run; the error says how to go on where it is damaged.
pub(crate) fn load(path: &Path) -> Result<Checkpoint> {
    Checkpoint::load(path).map_err(|e| Error::Checkpoint(format!("{e}{}", start_again(path))))
}

/// What to do about a damaged checkpoint.
fn start_again(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match path.parent() {
        Some(folder) if !name.starts_with("calibrated-") => format!(
            "; delete {} and the folders of later phases to train from there on again",
            folder.display()
        ),
        _ => "; delete it to calibrate again".into(),
    }
}
