//! Every policy samples the same images from the same noise; what differs is time and error.

mod candidates;

use std::time::Instant;

use anyhow::Result;
use fewstep_diffusion::dit::ComputeAll;
use fewstep_diffusion::sampler::{Call, Sampler};
use fewstep_diffusion::{NoiseSchedule, Reuse, SamplerOptions};
use fewstep_features::{ResNet56, feature_statistics};
use fewstep_harmonica::{
    CachePlan, CachedReuse, Conditions, Planned, Setting, StackCache, StackRule,
};
use fewstep_metrics::{FeatureStatistics, LatencySummary, frechet_distance};
use fewstep_torch::seed;
use ndarray::{Array4, ArrayView4};
use serde::Serialize;
use tch::{Reduction::Mean, Tensor};

use super::Named;
use crate::classifier::Classifier;
use crate::experiment::HarmonicaExperiment;
use crate::progress::{Progress, ProgressMode};
use crate::sampling::{Job, labels_in_turn, to_pixels};
use candidates::candidates;
pub(super) use candidates::fixed_plans;

/// One line of the comparison.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Compared {
    /// The policy's name (`fewstep_harmonica::policy`).
    pub(crate) name: String,
    /// What tells it from others of its name.
    pub(crate) label: String,
    /// Calls of the model.
    pub(crate) calls: usize,
    /// Reused cells of all, the published "CUR", in percent.
    pub(crate) cur_percent: f64,
    /// Skipped MACs, all that is never skipped counted in, in percent; for fewer steps those of the calls left out.
    pub(crate) mac_saving_percent: f64,
    /// Milliseconds an image, median.
    pub(crate) latency_ms_per_image: f64,
    /// Latency of the uncached run over this one's.
    pub(crate) speedup: f64,
    /// Mean squared error of the final latents against the uncached run from the same noise.
    pub(crate) x0_mse_vs_uncached: f64,
    /// Fréchet distance between the classifier's features of these samples and of the training images.
    pub(crate) fd: Option<f64>,
    /// The same on the 64 features of a published CIFAR-10 ResNet-56.
    pub(crate) fd_resnet56: Option<f64>,
    /// Share of the samples that the classifier takes for the class that was asked for, in percent.
    pub(crate) recognised_percent: Option<f64>,
    /// Mean squared error of the latents after each call against the uncached run; empty where the calls differ.
    pub(crate) error_per_step: Vec<f64>,
    /// The threshold of a policy that decides from what it sees, with its other settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rule: Option<StackRule>,
    /// Of a policy that decides from what it sees, what it did with the last batch.
    #[serde(skip)]
    pub(crate) plan: Option<CachePlan>,
    #[serde(skip)]
    pub(crate) pixels: Option<Array4<u8>>,
}

enum What {
    /// One plan, or several whose x0 errors are averaged.
    Plans(Vec<CachePlan>),
    Stack(StackRule),
    Steps(SamplerOptions),
}

/// What answers the model while a batch is sampled.
#[derive(Clone, Copy)]
enum Cache<'a> {
    None,
    Plan(&'a CachePlan),
    Stack(&'a StackRule),
}

impl What {
    fn cache(&self) -> Cache<'_> {
        match self {
            Self::Plans(plans) => plans.first().map_or(Cache::None, Cache::Plan),
            Self::Stack(rule) => Cache::Stack(rule),
            Self::Steps(_) => Cache::None,
        }
    }
}

struct Candidate {
    name: String,
    label: String,
    what: What,
}

/// Networks that judge samples, each with what it says of the training images.
pub(super) struct Judge {
    classifier: Option<(Classifier, FeatureStatistics)>,
    resnet56: Option<(ResNet56, FeatureStatistics)>,
}

impl Judge {
    /// Of these images, bytes (N, H, W, C).
    pub(super) fn new(
        classifier: Option<Classifier>,
        resnet56: Option<ResNet56>,
        images: ArrayView4<'_, u8>,
    ) -> Result<Self> {
        let classifier = match classifier {
            Some(c) => {
                let (reference, _) = c.judge(images)?;
                Some((c, reference))
            }
            None => None,
        };
        let resnet56 = match resnet56 {
            Some(network) => {
                let reference = feature_statistics(&network, images)?;
                Some((network, reference))
            }
            None => None,
        };
        Ok(Self {
            classifier,
            resnet56,
        })
    }
}

/// Compares all policies of the experiment.
pub(super) fn compare(
    experiment: &HarmonicaExperiment,
    setting: Setting<'_>,
    routers: &[Named],
    judge: Option<&Judge>,
    mode: ProgressMode,
) -> Result<Vec<Compared>> {
    let candidates = candidates(experiment, setting, routers, mode)?;
    let classes = setting.dit.config().classes as usize;
    let labels = labels_in_turn(experiment.evaluation.images, classes);
    let mut bar = Progress::new(mode, "comparing", candidates.len() as u64);
    let schedule = NoiseSchedule::new(&experiment.model.noise)?;
    let mut reference: Option<Run> = None;
    let mut all = Vec::with_capacity(candidates.len());
    let mut samplers: Vec<Option<Box<dyn Sampler>>> = Vec::new();
    for (i, candidate) in candidates.iter().enumerate() {
        let other = match &candidate.what {
            What::Steps(options) => Some(options.build(&schedule)?),
            _ => None,
        };
        let sampler = other.as_deref().unwrap_or(setting.sampler);
        let job = job(experiment, setting, sampler);
        let plans: Vec<&CachePlan> = match &candidate.what {
            What::Plans(plans) => plans.iter().collect(),
            _ => vec![],
        };
        let sampled = run(&job, &labels, candidate.what.cache())?;
        let base = reference.as_ref().unwrap_or(&sampled);
        let mut x0_mse = mse(&sampled.latents, &base.latents)?;
        for plan in plans.iter().skip(1) {
            x0_mse += mse(
                &run(&job, &labels, Cache::Plan(plan))?.latents,
                &base.latents,
            )?;
        }
        x0_mse /= plans.len().max(1) as f64;
        let error_per_step = match sampled.steps.len() == base.steps.len() {
            true => sampled
                .steps
                .iter()
                .zip(&base.steps)
                .map(|(a, b)| mse(a, b))
                .collect::<Result<_>>()?,
            false => vec![],
        };
        let calls = sampler.timesteps().len();
        let fewer = Conditions {
            timesteps: sampler.timesteps().iter().rev().copied().collect(),
            ..setting.conditions.clone()
        };
        let left_out = 1. - fewer.total_macs() as f64 / setting.conditions.total_macs() as f64;
        let decided = sampled.decided.as_ref();
        let plan = match decided {
            Some(decided) => Some(decided.cache.as_plan(setting.conditions)?),
            None => plans.first().copied().cloned(),
        };
        let saved = match (decided, &plan) {
            (Some(decided), _) => (decided.utilisation, decided.mac_saving),
            (None, Some(plan)) => (plan.utilisation(), plan.mac_saving()),
            (None, None) => (0., left_out),
        };
        let shape = setting.dit.config();
        let pixels = matches!(shape.channels, 1 | 3)
            .then(|| to_pixels(&sampled.latents))
            .transpose()?;
        let (mut fd, mut fd_resnet56, mut recognised_percent) = (None, None, None);
        if let (Some(judge), Some(pixels)) = (judge, &pixels) {
            if let Some((classifier, reference)) = &judge.classifier {
                let (features, found) = classifier.judge(pixels.view())?;
                let right = found.iter().zip(&labels).filter(|(a, b)| a == b).count();
                fd = Some(frechet_distance(&features, reference)?);
                recognised_percent = Some(100. * right as f64 / labels.len() as f64);
            }
            if let Some((network, reference)) = &judge.resnet56 {
                let features = feature_statistics(network, pixels.view())?;
                fd_resnet56 = Some(frechet_distance(&features, reference)?);
            }
        }
        all.push(Compared {
            name: candidate.name.clone(),
            label: candidate.label.clone(),
            calls,
            cur_percent: 100. * saved.0,
            mac_saving_percent: 100. * saved.1,
            latency_ms_per_image: f64::NAN,
            speedup: f64::NAN,
            x0_mse_vs_uncached: x0_mse,
            fd,
            fd_resnet56,
            recognised_percent,
            error_per_step,
            rule: match &candidate.what {
                What::Stack(rule) => Some(rule.clone()),
                _ => None,
            },
            plan,
            pixels,
        });
        if reference.is_none() {
            reference = Some(sampled);
        }
        samplers.push(other);
        bar.set(
            i as u64 + 1,
            format_args!("{} {}", candidate.name, candidate.label),
        );
    }
    bar.finish("timing");
    time(
        experiment,
        setting,
        &labels,
        &candidates,
        &samplers,
        &mut all,
    )?;
    Ok(all)
}

/// Latencies in rounds, so that whatever slows the machine for a while slows every policy.
fn time(
    experiment: &HarmonicaExperiment,
    setting: Setting<'_>,
    labels: &[i64],
    candidates: &[Candidate],
    samplers: &[Option<Box<dyn Sampler>>],
    all: &mut [Compared],
) -> Result<()> {
    let n = labels.len().min(experiment.evaluation.batch_size as usize);
    let mut times = vec![Vec::new(); all.len()];
    for _ in 0..experiment.evaluation.repeats {
        for (i, candidate) in candidates.iter().enumerate() {
            let sampler = samplers[i].as_deref().unwrap_or(setting.sampler);
            let job = job(experiment, setting, sampler);
            let started = Instant::now();
            run(&job, &labels[..n], candidate.what.cache())?;
            times[i].push(1e3 * started.elapsed().as_secs_f64() / n as f64);
        }
    }
    for (compared, times) in all.iter_mut().zip(&times) {
        compared.latency_ms_per_image = LatencySummary::from_ms(times)?.median_ms;
    }
    let uncached = all.first().map_or(f64::NAN, |c| c.latency_ms_per_image);
    for compared in all {
        compared.speedup = uncached / compared.latency_ms_per_image;
    }
    Ok(())
}

/// Final latents of all images, and those of the first batch after each call.
struct Run {
    latents: Tensor,
    steps: Vec<Tensor>,
    decided: Option<Decided>,
}

/// What a cache that decides from what it sees did.
struct Decided {
    utilisation: f64,
    mac_saving: f64,
    /// After the last batch.
    cache: StackCache,
}

/// Samples with a cache or without; forgets everything between batches.
fn run(job: &Job<'_>, labels: &[i64], cache: Cache<'_>) -> Result<Run> {
    let (mut latents, mut steps) = (Vec::new(), Vec::new());
    let (mut reused, mut cells, mut skipped, mut macs) = (0, 0, 0, 0);
    let shape = job.dit.config();
    let mut stack = match cache {
        Cache::Stack(rule) => Some(StackCache::new(rule.clone(), shape)?),
        _ => None,
    };
    for (batch, labels) in labels.chunks(job.batch_size).enumerate() {
        let watch = &mut |_: &Call, x: &Tensor| {
            if batch == 0 {
                steps.push(x.shallow_clone());
            }
            Ok(())
        };
        let mut compute_all = ComputeAll;
        let mut cached = match cache {
            Cache::Plan(plan) => Some(CachedReuse::new(Planned(plan), shape)),
            _ => None,
        };
        let reuse: &mut dyn Reuse = match (&mut cached, &mut stack) {
            (Some(cached), _) => cached,
            (_, Some(stack)) => stack,
            _ => &mut compute_all,
        };
        let first = (batch * job.batch_size) as u64;
        latents.push(job.batch(first, labels, reuse, watch)?);
        if let Some(stack) = &stack {
            let counts = stack.counts();
            let (r, c): (u64, u64) = (counts.reused.iter().sum(), counts.computed.iter().sum());
            reused += r * labels.len() as u64;
            cells += (r + c) * labels.len() as u64;
            skipped += counts.skipped_macs;
            macs += counts.macs;
        }
    }
    Ok(Run {
        latents: Tensor::f_cat(&latents, 0)?,
        steps,
        decided: stack.map(|cache| Decided {
            utilisation: reused as f64 / cells.max(1) as f64,
            mac_saving: skipped as f64 / (skipped + macs).max(1) as f64,
            cache,
        }),
    })
}

/// The job of this sampler.
fn job<'a>(
    experiment: &HarmonicaExperiment,
    setting: Setting<'a>,
    sampler: &'a dyn Sampler,
) -> Job<'a> {
    Job {
        dit: setting.dit,
        sampler,
        guidance: setting.guidance(),
        seed: seed::derive(experiment.seed, &[SAMPLES]),
        batch_size: experiment.evaluation.batch_size as usize,
    }
}

/// The noise that policies are judged on; no router has learned from it.
const SAMPLES: u64 = 20;

fn mse(a: &Tensor, b: &Tensor) -> Result<f64> {
    Ok(a.f_mse_loss(b, Mean)?.f_double_value(&[])?)
}
