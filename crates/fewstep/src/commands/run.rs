//! `fewstep run CONFIG`: an experiment from its config to `runs/<name>/`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use fewstep_iir::{Data, Recipe, Silent};
use fewstep_torch::{DeviceChoice, device};

use crate::commands::observe::Recorder;
use crate::commands::ranks::{Here, RankOptions};
use crate::commands::summary;
use crate::config::ConfigSource;
use crate::experiment::{Experiment, Method, MethodOnly};
use crate::progress::ProgressMode;
use crate::run::{Existing, RunError, RunFolder};

/// Options of `fewstep run`.
#[derive(Args, Debug, Clone)]
#[command(
    after_help = "Example: fewstep run configs/iir/fashion-mnist-quick.toml --set seed=1 --set name=fashion-seed1"
)]
pub struct Options {
    /// A config, such as configs/iir/demo.toml
    pub config: PathBuf,
    /// What demo takes as well
    #[command(flatten)]
    pub common: Common,
    /// For several processes that train together
    #[command(flatten)]
    pub ranks: RankOptions,
}

/// Options that `run` and `demo` share.
#[derive(Args, Debug, Clone)]
pub struct Common {
    /// Change a value of the config: KEY=VALUE, as often as needed (snn.learning_rate=2e-3)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Go on with a run that was stopped
    #[arg(long)]
    pub resume: bool,
    /// Delete what an earlier run of this name wrote, and start anew
    #[arg(long, conflicts_with = "resume")]
    pub force: bool,
    /// auto, cpu, cuda or cuda:N; the same as --set device=…
    #[arg(long)]
    pub device: Option<String>,
    /// Where run folders are
    #[arg(long, default_value = "runs")]
    pub runs: PathBuf,
    /// No progress, only the table
    #[arg(long)]
    pub quiet: bool,
    /// Print summary.json instead of the table
    #[arg(long)]
    pub json: bool,
}

impl Common {
    fn existing(&self) -> Existing {
        match (self.resume, self.force) {
            (true, _) => Existing::Resume,
            (_, true) => Existing::Replace,
            _ => Existing::Refuse,
        }
    }

    pub(crate) fn overrides(&self) -> Vec<String> {
        let device = self.device.iter().map(|d| format!("device={d}"));
        self.set.iter().cloned().chain(device).collect()
    }
}

/// Runs the config.
///
/// # Errors
/// The config, the data, the folder or the training is at fault; one sentence.
pub fn run(options: &Options) -> Result<()> {
    let common = &options.common;
    Here::with(&options.ranks, |here| {
        let source = ConfigSource::read(&options.config, &common.overrides())?;
        follow_any(&source, common, here)
    })
}

/// Runs whatever `source` describes.
pub(crate) fn follow_any(source: &ConfigSource, common: &Common, here: &Here) -> Result<()> {
    let method = source.deserialize::<MethodOnly>()?.method;
    match method {
        Method::IirSnn => follow(&source.deserialize()?, source, common, here),
        Method::Dit => super::dit::follow(&source.deserialize()?, source, common, here),
        Method::Harmonica => super::harmonica::follow(&source.deserialize()?, source, common, here),
    }
}

/// The device and threads that a config asks for.
pub(crate) fn set_up(
    device: DeviceChoice,
    threads: Option<u32>,
    source: &ConfigSource,
) -> Result<tch::Device> {
    let device = device::resolve(device)?;
    if let Some(threads) = threads {
        if !(1..=1024).contains(&threads) {
            let message = format!("expected 1 to 1024, found {threads}");
            return Err(source.invalid("threads", message).into());
        }
        tch::set_num_threads(i32::try_from(threads)?);
    }
    Ok(device)
}

/// A device as a config names it.
pub(crate) fn device_choice(device: tch::Device) -> DeviceChoice {
    match device {
        tch::Device::Cuda(n) => DeviceChoice::Cuda(n),
        _ => DeviceChoice::Cpu,
    }
}

/// The run folder of a config whose device and data are resolved.
pub(crate) fn open_folder(
    common: &Common,
    name: &str,
    experiment: &impl serde::Serialize,
    source: &ConfigSource,
) -> Result<RunFolder> {
    let folder = RunFolder::create(&common.runs, name, experiment, common.existing()).map_err(
        |e| match e {
            RunError::Name { .. } => source.invalid("name", e.to_string()).into(),
            other => anyhow::Error::from(other),
        },
    )?;
    if folder.finished() && common.resume {
        bail!(
            "{} is finished; its figures are in summary.json (--force starts anew)",
            folder.path("").display()
        );
    }
    Ok(folder)
}

/// Runs an experiment that was read from `source`.
pub(crate) fn follow(
    experiment: &Experiment,
    source: &ConfigSource,
    common: &Common,
    here: &Here,
) -> Result<()> {
    let group = &here.group;
    let recipe = experiment.recipe();
    // Everything that can be wrong with the config is said before a folder is made.
    recipe.validate().map_err(|e| place(source, e))?;
    here.same_config(experiment)?;
    let device = set_up(here.device(experiment.device), experiment.threads, source)?;
    let (data, stand_in) = open_data(experiment, &recipe, source, group.leads())?;
    check_plan(&recipe, &data, source)?;
    recipe.validate_with(&data).map_err(|e| place(source, e))?;
    here.same_device(device)?;
    let (train, validation, test) = data.counts();
    here.same_data(data.train().as_ref(), &[validation, test])?;
    if !group.leads() {
        // Rank 0 writes and speaks for all.
        fewstep_iir::run(&recipe, &data, Path::new(""), device, group, &mut Silent)?;
        return Ok(());
    }
    // What was chosen for the user is part of the run: it can't go on with other data or on another device.
    let experiment = &resolved(experiment, device, stand_in);

    let mut folder = open_folder(common, &experiment.name, experiment, source)?;
    let checkpoints = folder.checkpoints();
    let resumed = folder.resumed();
    if resumed {
        folder.rewind(fewstep_iir::epochs_done(&recipe, &checkpoints)?)?;
    }
    let mode = ProgressMode::detect(common.quiet || common.json);
    let mut recorder = Recorder::new(folder, mode, &recipe)?;
    recorder.say(&format!(
        "{}: {} on {} ({train} + {validation} + {test} images), {}",
        experiment.name,
        experiment.network.architecture,
        data.name(),
        here.place(device)
    ));
    if common.resume && !resumed {
        recorder.say("there was no run of that name to go on with: this is a new one");
    }
    let report = fewstep_iir::run(&recipe, &data, &checkpoints, device, group, &mut recorder)?;
    let mut folder = recorder.into_folder();
    summary::write(
        &mut folder,
        experiment,
        &data,
        stand_in,
        device,
        &report,
        group.world(),
    )?;
    summary::print(&folder, &report, common.json)
}

/// Puts the config's line in front of an error about a value.
fn place(source: &ConfigSource, error: fewstep_iir::Error) -> anyhow::Error {
    match error {
        fewstep_iir::Error::Recipe { key, reason } => source.invalid(&key, reason).into(),
        fewstep_iir::Error::Data(e @ fewstep_datasets::Error::UnknownName { .. }) => {
            source.invalid("data.name", e.to_string()).into()
        }
        fewstep_iir::Error::Data(fewstep_datasets::Error::Option { option, what }) => {
            let key = match option {
                "name" | "synthetic" => "data.name".to_owned(),
                "path" => "data.path".to_owned(),
                other => format!("data.folder.{other}"),
            };
            source.invalid(&key, what).into()
        }
        other => other.into(),
    }
}

/// The data; under `limits.batches`, noise where it is not there.
fn open_data(
    experiment: &Experiment,
    recipe: &Recipe,
    source: &ConfigSource,
    speak: bool,
) -> Result<(Data, bool)> {
    let section = &experiment.data;
    match Data::open_with(&section.spec(), &section.options(), experiment.seed) {
        Ok(data) => Ok((data, false)),
        Err(fewstep_iir::Error::Data(fewstep_datasets::Error::NotFound { .. }))
            if recipe.limits.batches.is_some()
                && section.path.is_none()
                && section.stand_in.is_some() =>
        {
            let name = section.stand_in.clone().unwrap_or_default();
            if speak {
                super::tell(&format!(
                    "{} is not there: noise takes its place ({name}); accuracies mean nothing",
                    section.name
                ));
            }
            let spec = fewstep_datasets::DataSpec::new(name, None);
            let options = fewstep_iir::DataOptions {
                train_images: None,
                test_images: None,
                ..section.options()
            };
            match Data::open_with(&spec, &options, experiment.seed) {
                Ok(data) => Ok((data, true)),
                Err(fewstep_iir::Error::Data(e)) => {
                    Err(source.invalid("data.stand_in", e.to_string()).into())
                }
                Err(e) => Err(place(source, e)),
            }
        }
        Err(e) => Err(place(source, e)),
    }
}

/// The experiment with its device and data as they are.
fn resolved(experiment: &Experiment, device: tch::Device, stand_in: bool) -> Experiment {
    let mut resolved = experiment.clone();
    resolved.device = device_choice(device);
    if let (true, Some(noise)) = (stand_in, resolved.data.stand_in.take()) {
        resolved.data.name = noise;
    }
    resolved
}

/// An architecture that does not fit the images is the config's fault.
fn check_plan(recipe: &Recipe, data: &Data, source: &ConfigSource) -> Result<()> {
    let shape = data.shape();
    let input = [
        shape.channels as i64,
        shape.height as i64,
        shape.width as i64,
    ];
    use fewstep_spiking::Error as Fault;
    let (key, reason) = match recipe.network.plan(input, data.class_names().len() as i64) {
        Ok(_) => return Ok(()),
        Err(fewstep_iir::Error::Spiking(Fault::Plan(reason))) => ("network.architecture", reason),
        Err(fewstep_iir::Error::Spiking(Fault::Option {
            option,
            expected,
            found,
        })) => (option, format!("expected {expected}, found {found}")),
        Err(e) => ("network.architecture", e.to_string()),
    };
    Err(source.invalid(key, reason).into())
}
