//! Cached sampling and learning a router on harmonica.safetensors, and training curves on the digits that fewstep carries.

use anyhow::Result;
use fewstep_datasets::DataSpec;
use fewstep_diffusion::random::ImageNoise;
use fewstep_diffusion::sampler::{Sampler, SamplerName, sample};
use fewstep_diffusion::train::{self, TrainData, TrainEvent, TrainOptions};
use fewstep_diffusion::{Dit, Guidance, Guided, NoiseSchedule, SamplerOptions};
use fewstep_harmonica::learn::LearnEvent;
use fewstep_harmonica::{CachedReuse, Conditions, LearnOptions, Planned, Setting, learn, policy};
use fewstep_iir::{Data, Event, Observer};
use fewstep_torch::{Checkpoint, Group, LearningRate};
use tch::Tensor;

use super::{Named, Place, fixture, small_dit};
use crate::config;
use crate::experiment::Experiment;

/// The fixture's model and what it is sampled with.
struct Job {
    dit: Dit,
    sampler: Box<dyn Sampler>,
    noise: NoiseSchedule,
    conditions: Conditions,
}

impl Job {
    fn new(file: &Checkpoint, place: &Place) -> Result<Self> {
        let config = small_dit(4, 3, 16, 4)?;
        let dit = Dit::from_tensors(&config, file.section("model/"), "the fixture")?;
        let noise = NoiseSchedule::default();
        let sampler = SamplerOptions::new(SamplerName::Ddim, 5).build(&noise)?;
        let guidance = Guidance::scale(1.5);
        Ok(Self {
            conditions: Conditions::new(&dit, "ddim 5", sampler.timesteps(), &guidance)?,
            dit: dit.to(place.device, place.kind())?,
            sampler,
            noise,
        })
    }
}

/// x0 without a cache, with reuse and with forecasts.
pub(super) fn cached(place: &Place) -> Result<Named> {
    let file = fixture!("harmonica")?;
    let job = Job::new(&file, place)?;
    let labels = place.put(file.tensor("infer/labels")?)?;
    let x = place.put(&file.tensor("infer/noise")?.f_to_kind(place.kind())?)?;
    let plans = [
        ("uncached", policy::none(&job.conditions)?),
        ("fora", policy::fora(&job.conditions, 2)?),
        ("taylorseer", policy::taylorseer(&job.conditions, 2, 1, 1)?),
        ("random", policy::random(&job.conditions, 0.5, 0)?),
    ];
    let mut all = Named::new();
    for (name, plan) in plans {
        let mut reuse = CachedReuse::new(Planned(&plan), job.dit.config());
        let guidance = &job.conditions.guidance;
        let mut denoiser = Guided::new(&job.dit, &labels, guidance, &mut reuse)?;
        let mut noise = ImageNoise::new(0, 0..2);
        let x0 = sample(
            job.sampler.as_ref(),
            &mut denoiser,
            &x,
            &mut noise,
            &mut |_, _| Ok(()),
        )?;
        all.push((name.to_owned(), x0));
    }
    Ok(all)
}

/// The losses of a router that is learned.
pub(super) fn router_losses(place: &Place) -> Result<Named> {
    let mut all = router(place)?;
    all.retain(|(name, _)| name == LOSSES);
    Ok(all)
}

const LOSSES: &str = "losses";

/// Losses, errors and logits of a router that is learned.
pub(super) fn router(place: &Place) -> Result<Named> {
    let job = Job::new(&fixture!("harmonica")?, place)?;
    let setting = Setting {
        dit: &job.dit,
        sampler: job.sampler.as_ref(),
        noise: &job.noise,
        conditions: &job.conditions,
    };
    let options = LearnOptions {
        trajectories: 3,
        batch_size: 2,
        evaluate_on: 2,
        precision: place.precision,
        ..LearnOptions::default()
    };
    let folder = tempfile::tempdir()?;
    let (mut losses, mut errors, mut lambdas) = (Vec::new(), Vec::new(), Vec::new());
    let mut watch = |event: &LearnEvent| {
        match event {
            LearnEvent::Trajectory { loss, mse, .. } => {
                losses.push(*loss);
                errors.push(*mse);
            }
            LearnEvent::Refreshed { lambda, .. } => lambdas.extend_from_slice(lambda),
            LearnEvent::Checkpoint { error_per_step, .. } => {
                errors.extend_from_slice(error_per_step);
            }
        }
        Ok(())
    };
    let learned = learn(
        setting,
        &options,
        None,
        place.seed,
        folder.path(),
        &Group::alone(),
        &mut watch,
    )?;
    let logits = learned.router.logits().concat();
    Ok(vec![
        (LOSSES.into(), Tensor::f_from_slice(&losses)?),
        ("errors".into(), Tensor::f_from_slice(&errors)?),
        (
            "weights of the steps".into(),
            Tensor::f_from_slice(&lambdas)?,
        ),
        ("logits".into(), Tensor::f_from_slice(&logits)?),
    ])
}

const CURVES: &str = r#"
name = "check"
[data]
name = "digits"
[network]
architecture = "16 A 32 A"
hidden = [64]
[ann]
epochs = 1
batch_size = 27
learning_rate = 0.05
dropout = 0.0
[snn]
timesteps = [2]
epochs = 1
batch_size = 27
learning_rate = 1e-3
dropout = 0.0
[performance]
read_loss_every = 1
[limits]
batches = 50
"#;

/// The mean loss so far, after each batch, phase by phase.
#[derive(Default)]
struct Losses(Vec<(String, Vec<f64>)>);

impl Observer for Losses {
    fn event(&mut self, event: &Event) -> fewstep_iir::Result<()> {
        match event {
            Event::PhaseStarted { phase, .. } => self.0.push(((*phase).to_owned(), Vec::new())),
            Event::Batch { loss, .. } => {
                if let Some((_, curve)) = self.0.last_mut() {
                    curve.push(*loss);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// The losses of an artificial network and of the spiking one made of it.
pub(super) fn spiking_curves(place: &Place) -> Result<Named> {
    let mut experiment: Experiment = config::from_str("the check's config", CURVES, &[])?;
    experiment.seed = place.seed;
    experiment.ann.precision = place.precision;
    experiment.snn.precision = place.precision;
    let data = Data::open_with(
        &experiment.data.spec(),
        &experiment.data.options(),
        experiment.seed,
    )?;
    let folder = tempfile::tempdir()?;
    let mut losses = Losses::default();
    fewstep_iir::run(
        &experiment.recipe(),
        &data,
        folder.path(),
        place.device,
        &Group::alone(),
        &mut losses,
    )?;
    let curves = losses.0.into_iter();
    curves
        .map(|(phase, curve)| Ok((phase, Tensor::f_from_slice(&curve)?)))
        .collect()
}

/// The losses of a DiT.
pub(super) fn dit_curve(place: &Place) -> Result<Named> {
    let digits = DataSpec::new("digits", None).open()?;
    let data = TrainData {
        train: digits.train,
        validation: digits.test,
    };
    let config = small_dit(1, 3, 48, 3)?;
    let options = TrainOptions {
        steps: 50,
        batch_size: 32,
        learning_rate: 1e-3,
        schedule: LearningRate::Constant,
        precision: place.precision,
        read_loss_every: Some(1),
        checkpoint_every: 50,
        validation_images: 32,
        ..TrainOptions::default()
    };
    let folder = tempfile::tempdir()?;
    let mut losses = Vec::new();
    let mut watch = |event: &TrainEvent| {
        if let TrainEvent::Step { loss, .. } = event {
            losses.push(*loss);
        }
        Ok(())
    };
    train::train(
        &config,
        &options,
        &data,
        place.seed,
        folder.path(),
        place.device,
        &Group::alone(),
        &mut watch,
    )?;
    Ok(vec![("loss".into(), Tensor::f_from_slice(&losses)?)])
}
