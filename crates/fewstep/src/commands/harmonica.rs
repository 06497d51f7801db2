//! `method = "harmonica"`: learns routers for a DiT and compares ways to skip its work.

mod compare;
mod matched;
mod write;

use std::path::{Path, PathBuf};

use anyhow::Result;
use fewstep_datasets::Dataset;
use fewstep_diffusion::NoiseSchedule;
use fewstep_features::ResNet56;
use fewstep_harmonica::learn::{self, Images, LearnEvent, LearnOptions, Learned, Training};
use fewstep_harmonica::{Conditions, Error, Setting};
use fewstep_torch::Group;
use ndarray::Array4;
use serde_json::json;
use tch::{Device, Tensor};

use crate::classifier::Classifier;
use crate::commands::ranks::Here;
use crate::commands::run::{Common, device_choice, open_folder, set_up};
use crate::config::ConfigSource;
use crate::experiment::HarmonicaExperiment;
use crate::progress::{Progress, ProgressMode};
use crate::run::RunFolder;
use crate::sampling;
pub(super) use write::{plan_plot, router_plot};

/// A router that was learned, under its name in the config.
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) training: Training,
    pub(crate) trajectories: u32,
    pub(crate) learned: Learned,
}

/// Runs the experiment that was read from `source`.
pub(crate) fn follow(
    experiment: &HarmonicaExperiment,
    source: &ConfigSource,
    common: &Common,
    here: &Here,
) -> Result<()> {
    follow_with(experiment, source, common, here, Vec::new(), false)
}

/// The same with routers that were learned before, beside those that it learns; `matched` prints as well how policies compare at the
/// same saving and at the same time.
pub(super) fn follow_with(
    experiment: &HarmonicaExperiment,
    source: &ConfigSource,
    common: &Common,
    here: &Here,
    learned: Vec<(PathBuf, Named)>,
    matched: bool,
) -> Result<()> {
    let group = &here.group;
    here.same_config(experiment)?;
    let device = set_up(here.device(experiment.device), experiment.threads, source)?;
    experiment
        .validate()
        .map_err(|(key, reason)| source.invalid(&key, reason))?;
    for (name, options) in &experiment.routers {
        let key = format!("routers.{name}.batch_size");
        here.enough(source, &key, options.batch_size as u64)?;
    }
    let model = &experiment.model;
    sampling::check_scheduler(
        &model.checkpoint,
        &model.noise,
        experiment.sampler.prediction,
    )
    .map_err(|e| source.invalid("model.noise", e.to_string()))?;
    let dit = sampling::open_model(&model.checkpoint, model.convention, device)
        .map_err(|e| source.invalid("model.checkpoint", format!("{e:#}")))?;
    let noise = NoiseSchedule::new(&model.noise)?;
    let sampler = experiment.sampler.build(&noise)?;
    let conditions = Conditions::new(
        &dit,
        sampling::sampler_label(&experiment.sampler, &model.noise),
        sampler.timesteps(),
        &experiment.guidance,
    )?;
    let data = match &experiment.data {
        Some(section) => Some(super::dit::open_data(section, experiment.seed)?),
        None => None,
    };
    for (path, router) in &learned {
        let made_for = router.learned.router.made_for();
        made_for.check_fits(&conditions, &path.display().to_string())?;
    }
    // What the comparison needs is found wanting now and not when all routers have been learned.
    compare::fixed_plans(experiment, &conditions)?;
    let classifier = match &experiment.evaluation.classifier {
        Some(name) => Some(
            Classifier::open(name, device)
                .map_err(|e| source.invalid("evaluation.classifier", format!("{e:#}")))?,
        ),
        None => None,
    };
    let resnet56 = match experiment.evaluation.fd_resnet56 {
        true => Some(
            open_resnet56(device)
                .map_err(|e| source.invalid("evaluation.fd_resnet56", format!("{e:#}")))?,
        ),
        false => None,
    };
    let is_l2c = |o: &LearnOptions| o.training == Training::L2c;
    let pixels = match &data {
        Some(data)
            if classifier.is_some()
                || resnet56.is_some()
                || experiment.routers.values().any(is_l2c) =>
        {
            Some(pixels(data.train.as_ref())?)
        }
        _ => None,
    };
    let setting = Setting {
        dit: &dit,
        sampler: sampler.as_ref(),
        noise: &noise,
        conditions: &conditions,
    };
    let images = match (&data, &pixels) {
        (Some(data), Some(pixels)) => Some(to_tensors(data.train.as_ref(), pixels)?),
        _ => None,
    };
    let images = images
        .as_ref()
        .map(|(images, labels)| Images { images, labels });
    here.same_device(device)?;
    group.agree("the model", &dit.fingerprint()?)?;
    if let Some(data) = &data {
        here.same_data(data.train.as_ref(), &[data.validation.len()])?;
    }
    if !group.leads() {
        // Rank 0 writes, compares and speaks for all.
        for (name, options) in &experiment.routers {
            let (seed, nowhere) = (experiment.seed, Path::new(""));
            let images = images.as_ref();
            let learned = learn::learn(setting, options, images, seed, nowhere, group, &mut |_| {
                Ok(())
            });
            super::or_lower(learned, &format!("routers.{name}.batch_size"))?;
        }
        return Ok(());
    }

    let mut experiment = experiment.clone();
    experiment.device = device_choice(device);
    let experiment = &experiment;
    let mut folder = open_folder(common, &experiment.name, experiment, source)?;
    if folder.resumed() {
        folder.rewind(checkpoints_done(experiment, &folder.checkpoints())?)?;
    }
    let mode = ProgressMode::detect(common.quiet || common.json);
    if mode != ProgressMode::Silent {
        super::tell(&format!(
            "{}: {} sub-modules × {} calls of {}, guidance {}, {}",
            experiment.name,
            conditions.modules(),
            conditions.steps(),
            conditions.sampler,
            experiment.guidance.scale,
            here.place(device)
        ));
    }
    let mut routers = Vec::new();
    for (path, router) in learned {
        let from = json!({"router": router.name, "file": path.display().to_string()});
        folder.event("router", from)?;
        let own = folder.path(format!("router-{}.safetensors", router.name));
        router.learned.router.save(&own)?;
        routers.push(router);
    }
    routers.extend(learn_all(
        experiment,
        setting,
        images.as_ref(),
        &mut folder,
        group,
        mode,
    )?);
    let judge = match &pixels {
        Some(pixels) => {
            let rows = pixels.view().permuted_axes([0, 2, 3, 1]);
            Some(compare::Judge::new(classifier, resnet56, rows)?)
        }
        None => None,
    };
    let compared = compare::compare(experiment, setting, &routers, judge.as_ref(), mode)?;
    write::write(
        &mut folder,
        experiment,
        setting,
        &routers,
        &compared,
        device,
        group.world(),
    )?;
    if matched && !common.json {
        write::Matched::new(experiment, &compared).print()?;
    }
    write::print(&folder, &compared, common.json)
}

fn open_resnet56(device: Device) -> Result<ResNet56> {
    let weights = fewstep_datasets::find_weights("resnet56")?;
    Ok(ResNet56::load(&weights, device)?)
}

/// All images of a data set, bytes (M, C, H, W).
fn pixels(dataset: &dyn Dataset) -> Result<Array4<u8>> {
    let shape = dataset.shape();
    let mut all = Array4::zeros((dataset.len(), shape.channels, shape.height, shape.width));
    for (index, mut place) in all.outer_iter_mut().enumerate() {
        place.assign(&dataset.image(index)?);
    }
    Ok(all)
}

/// The same as a tensor, and the labels.
fn to_tensors(dataset: &dyn Dataset, pixels: &Array4<u8>) -> Result<(Tensor, Tensor)> {
    let size: Vec<i64> = pixels.shape().iter().map(|&d| d as i64).collect();
    let labels: Vec<i64> = dataset.labels().iter().map(|&l| i64::from(l)).collect();
    let images = Tensor::f_from_slice(pixels.as_slice().unwrap_or_default())?;
    Ok((
        images.f_view(size.as_slice())?,
        Tensor::f_from_slice(&labels)?,
    ))
}

/// Checkpoints of all routers so far: the number of the mark to go back to.
fn checkpoints_done(experiment: &HarmonicaExperiment, checkpoints: &Path) -> Result<u64> {
    let mut sum = 0;
    for (name, options) in &experiment.routers {
        let done = learn::trajectories_done(&checkpoints.join(name))?;
        sum += u64::from(done.div_ceil(options.checkpoint_every));
    }
    Ok(sum)
}

fn learn_all(
    experiment: &HarmonicaExperiment,
    setting: Setting<'_>,
    images: Option<&Images<'_>>,
    folder: &mut RunFolder,
    group: &Group,
    mode: ProgressMode,
) -> Result<Vec<Named>> {
    let mut routers = Vec::new();
    let mut marks = 0;
    for (name, options) in &experiment.routers {
        let checkpoints = folder.checkpoints().join(name);
        let mut bar = None;
        let mut last = String::new();
        let learned = learn::learn(
            setting,
            options,
            images,
            experiment.seed,
            &checkpoints,
            group,
            &mut |event| {
                let bar = bar.get_or_insert_with(|| {
                    Progress::new(mode, name.clone(), u64::from(options.trajectories))
                });
                record(folder, name, event, bar, &mut last, &mut |trajectory| {
                    marks + u64::from(trajectory.div_ceil(options.checkpoint_every))
                })
                .map_err(|e| Error::Stopped(e.to_string()))
            },
        );
        let learned = super::or_lower(learned, &format!("routers.{name}.batch_size"))?;
        if let Some(bar) = bar {
            bar.finish(last);
        }
        marks += u64::from(options.trajectories.div_ceil(options.checkpoint_every));
        learned
            .router
            .save(&folder.path(format!("router-{name}.safetensors")))?;
        routers.push(Named {
            name: name.clone(),
            training: options.training,
            trajectories: options.trajectories,
            learned,
        });
    }
    Ok(routers)
}

fn record(
    folder: &mut RunFolder,
    name: &str,
    event: &LearnEvent,
    bar: &mut Progress,
    last: &mut String,
    mark: &mut dyn FnMut(u32) -> u64,
) -> Result<()> {
    match event {
        LearnEvent::Refreshed { trajectory, lambda } => folder.event(
            "proxy",
            json!({"router": name, "trajectory": trajectory, "lambda": lambda}),
        )?,
        LearnEvent::Trajectory {
            trajectory,
            loss,
            mse,
            utilisation,
            mac_saving,
            beta,
        } => {
            *last = format!(
                "loss {loss:.2e}, utilisation {:.1} %, MAC saving {:.1} %",
                100. * utilisation,
                100. * mac_saving
            );
            bar.set(u64::from(*trajectory), &last);
            let curves = [
                ("loss", *loss),
                ("mse", *mse),
                ("utilisation_percent", 100. * utilisation),
                ("mac_saving_percent", 100. * mac_saving),
                ("beta", *beta),
            ];
            for (curve, value) in curves {
                folder.scalar(&format!("{name}/{curve}"), u64::from(*trajectory), value)?;
            }
        }
        LearnEvent::Checkpoint {
            trajectory,
            error_per_step,
        } => {
            folder.event(
                "error_per_step",
                json!({"router": name, "trajectory": trajectory, "mse": error_per_step}),
            )?;
            let x0 = error_per_step.last().copied().unwrap_or(f64::NAN);
            folder.scalar(&format!("{name}/x0_mse"), u64::from(*trajectory), x0)?;
            folder.mark(mark(*trajectory))?;
        }
    }
    Ok(())
}
