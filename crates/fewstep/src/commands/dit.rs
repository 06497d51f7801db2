//! `method = "dit"`: trains a diffusion transformer, and shows what it draws.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use fewstep_datasets::{Dataset, Subset, stratified_split, stratified_take};
use fewstep_diffusion::train::{self, TrainData, TrainEvent};
use fewstep_diffusion::{Error, NoiseSchedule};
use fewstep_torch::device;
use serde_json::json;

use crate::commands::ranks::Here;
use crate::commands::run::{Common, device_choice, open_folder, set_up};
use crate::config::ConfigSource;
use crate::experiment::{DataSection, DitExperiment, Precision};
use crate::images;
use crate::progress::{Progress, ProgressMode};
use crate::run::RunFolder;
use crate::sampling::{self, Job};

/// Steps whose mean loss becomes one event.
const LOG_EVERY: u32 = 20;

/// Runs the experiment that was read from `source`.
pub(crate) fn follow(
    experiment: &DitExperiment,
    source: &ConfigSource,
    common: &Common,
    here: &Here,
) -> Result<()> {
    let group = &here.group;
    here.same_config(experiment)?;
    let device = set_up(here.device(experiment.device), experiment.threads, source)?;
    let training = &experiment.training;
    let place = |section: &str, (key, reason): (&str, String)| {
        source.invalid(&format!("{section}.{key}"), reason)
    };
    training.validate().map_err(|e| place("training", e))?;
    here.enough(source, "training.batch_size", training.batch_size as u64)?;
    experiment
        .sampler
        .validate()
        .map_err(|e| place("sampler", e))?;
    experiment
        .guidance
        .validate()
        .map_err(|e| place("guidance", e))?;
    let data = open_data(&experiment.data, experiment.seed)?;
    let (shape, classes) = (data.train.shape(), data.train.class_names().len());
    if shape.height != shape.width {
        let message = format!("expected square images, found {shape}");
        return Err(source.invalid("data.name", message).into());
    }
    let config = experiment.model.config(shape, classes);
    config.validate().map_err(|e| place("model", e))?;
    if experiment.guidance.scale != 1. && config.class_dropout == 0. {
        let message =
            "expected 1, because a model trained with class_dropout = 0 has no null class";
        return Err(source.invalid("guidance.scale", message).into());
    }
    if experiment.samples == 0 {
        return Err(source
            .invalid("samples", "expected at least 1, found 0")
            .into());
    }
    here.same_device(device)?;
    here.same_data(data.train.as_ref(), &[data.validation.len()])?;
    let learn = |folder: &Path, observe: &mut dyn FnMut(&TrainEvent) -> _| {
        let trained = train::train(
            &config,
            training,
            &data,
            experiment.seed,
            folder,
            device,
            group,
            observe,
        );
        super::or_lower(trained, "training.batch_size")
    };
    if !group.leads() {
        // Rank 0 writes and speaks for all.
        learn(Path::new(""), &mut |_| Ok(()))?;
        return Ok(());
    }

    let mut experiment = experiment.clone();
    experiment.device = device_choice(device);
    let experiment = &experiment;
    let mut folder = open_folder(common, &experiment.name, experiment, source)?;
    let checkpoints = folder.checkpoints();
    if folder.resumed() {
        let done = train::steps_done(&checkpoints)?;
        folder.rewind(u64::from(done.div_ceil(training.checkpoint_every)))?;
    }
    let mode = ProgressMode::detect(common.quiet || common.json);
    if mode != ProgressMode::Silent {
        super::tell(&format!(
            "{}: a DiT of {} parameters on {} ({} + {} images), {}",
            experiment.name,
            config.parameters(),
            data.train.name(),
            data.train.len(),
            data.validation.len(),
            here.place(device)
        ));
    }
    let mut bar = Progress::new(mode, "training", u64::from(training.steps));
    // A run whose training was finished when it was stopped has its loss in the log only.
    let logged = folder.events()?;
    let logged = logged.iter().rev().find(|e| e["tag"] == "validation_loss");
    let mut validation_loss = logged.and_then(|e| e["value"].as_f64()).unwrap_or(f64::NAN);
    let mut losses = (0., 0);
    let dit = learn(&checkpoints, &mut |event| {
        record(
            &mut folder,
            &mut bar,
            event,
            training,
            &mut losses,
            &mut validation_loss,
        )
        .map_err(|e| Error::Stopped(e.to_string()))
    })?;
    bar.finish(format!("validation loss {validation_loss:.4}"));
    let weights = folder.path("dit.safetensors");
    let kind = match experiment.precision {
        Precision::Float32 => tch::Kind::Float,
        Precision::Float16 => tch::Kind::Half,
    };
    dit.save(&weights, kind)?;

    let schedule = NoiseSchedule::new(&training.noise)?;
    let sampler = experiment.sampler.build(&schedule)?;
    let started = Instant::now();
    let job = Job {
        dit: &dit,
        sampler: sampler.as_ref(),
        guidance: &experiment.guidance,
        seed: experiment.seed,
        batch_size: 100,
    };
    let latents = job.sample(&sampling::labels_in_turn(experiment.samples, classes), None)?;
    let sample_seconds = started.elapsed().as_secs_f64();
    let pixels = sampling::to_pixels(&latents)?;
    folder.plot(
        "samples",
        &images::png(images::grid(pixels.view(), Default::default())?.view())?,
    )?;
    folder.write_summary(&json!({
        "method": experiment.method,
        "name": experiment.name,
        "dataset": data.train.name(),
        "images": {"train": data.train.len(), "validation": data.validation.len(), "shape_chw": [shape.channels, shape.height, shape.width]},
        "model": config,
        "model_fingerprint": dit.fingerprint()?,
        "parameters": config.parameters(),
        "macs": config.macs().total(),
        "steps": training.steps,
        "validation_loss": validation_loss,
        "seed": experiment.seed,
        "device": device::name(device),
        "threads": tch::get_num_threads(),
        "ranks": group.world(),
        "seconds": folder.elapsed_s(),
        "sample_seconds": sample_seconds,
        "versions": crate::run::versions(),
    }))?;
    super::report::of_run(&folder);
    if common.json {
        return super::print(std::fs::read_to_string(folder.path("summary.json"))?.trim_end());
    }
    super::print(&format!(
        "validation loss {validation_loss:.4}; weights: {}; samples: {}; to look at: {}",
        weights.display(),
        folder.path("plots/samples.png").display(),
        folder.path("report.html").display()
    ))
}

fn record(
    folder: &mut RunFolder,
    bar: &mut Progress,
    event: &TrainEvent,
    training: &train::TrainOptions,
    losses: &mut (f64, u32),
    last: &mut f64,
) -> Result<()> {
    match *event {
        TrainEvent::Step {
            step,
            loss,
            learning_rate,
        } => {
            losses.0 += loss;
            losses.1 += 1;
            bar.set(u64::from(step), format_args!("loss {loss:.4}"));
            // At a checkpoint too, so that a run that resumes there has the same means.
            let checkpoint = step % training.checkpoint_every == 0;
            if step % LOG_EVERY == 0 || checkpoint || step == training.steps {
                folder.scalar("loss", u64::from(step), losses.0 / f64::from(losses.1))?;
                folder.scalar("learning_rate", u64::from(step), learning_rate)?;
                *losses = (0., 0);
            }
        }
        TrainEvent::Checkpoint {
            step,
            validation_loss,
        } => {
            *last = validation_loss;
            folder.scalar("validation_loss", u64::from(step), validation_loss)?;
            folder.mark(u64::from(step.div_ceil(training.checkpoint_every)))?;
        }
    }
    Ok(())
}

/// Training and validation images; the test split is not looked at.
pub(crate) fn open_data(section: &DataSection, seed: u64) -> Result<TrainData> {
    let splits = section.spec().open()?;
    let mut train: Arc<dyn Dataset> = splits.train;
    if let Some(n) = section.train_images {
        let taken = stratified_take(train.labels(), n, seed);
        train = Arc::new(Subset::new(train, taken)?);
    }
    let (train_indices, validation_indices) =
        stratified_split(train.labels(), section.validation_fraction, seed);
    Ok(TrainData {
        validation: Arc::new(Subset::new(train.clone(), validation_indices)?),
        train: Arc::new(Subset::new(train, train_indices)?),
    })
}
