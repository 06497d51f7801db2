//! Sampling with a DiT-S/2 of random weights, uncached and with cache plans.

use std::time::Instant;

use anyhow::Result;
use fewstep_diffusion::dit::ComputeAll;
use fewstep_diffusion::random::{self, Use};
use fewstep_diffusion::sampler::SamplerName;
use fewstep_diffusion::{Dit, DitConfig, Guidance, NoiseSchedule, Reuse, SamplerOptions};
use fewstep_harmonica::{CachePlan, CachedReuse, Conditions, Planned, policy};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::dit_xl::shape;
use super::{Options, product};
use crate::commands::print;
use crate::sampling::{Job, Recorded, labels_in_turn};

pub(super) const SEED: u64 = 0;
const BATCH: usize = 8;
pub(super) const GUIDANCE: f64 = 1.5;
/// Calls of the model in a run of `sampling`: three times each of FORA's intervals 2 and 3.
pub(super) const STEPS: usize = 6;

/// DiT-S/2 on latents 4 × 32 × 32, batch 8 with guidance, 6 steps of DDIM; as `xtask/bench/sampling_peer.py`. Then the same with
/// cache plans, all of them in turn, so that a machine that gets busy is unfair to all.
pub(super) fn bench(options: &Options) -> Result<()> {
    let (threads, name) = (options.threads, "dit-s2");
    print(
        &json!({
            "name": "product", "ms": product(options)?, "threads": threads, "batch": 1,
            "gflop": 2. * 1024f64.powi(3) / 1e9, "judged": false,
        })
        .to_string(),
    )?;
    let dit = random_dit(&shape("S/2", 32)?)?.to(options.device()?, Kind::Float)?;
    let config = dit.config();
    let guidance = Guidance::scale(GUIDANCE);
    let ddim = SamplerOptions::new(SamplerName::Ddim, STEPS);
    let sampler = ddim.build(&NoiseSchedule::default())?;
    let job = Job {
        dit: &dit,
        sampler: &*sampler,
        guidance: &guidance,
        seed: SEED,
        batch_size: BATCH,
    };
    let conditions = Conditions::new(&dit, ddim.label(), sampler.timesteps(), &guidance)?;
    let plans = [
        ("fora-2", policy::fora(&conditions, 2)?),
        ("fora-3", policy::fora(&conditions, 3)?),
        (
            "random-30",
            policy::random_at_mac_saving(&conditions, 0.3, SEED)?,
        ),
        (
            "random-50",
            policy::random_at_mac_saving(&conditions, 0.5, SEED)?,
        ),
    ];
    let labels = labels_in_turn(BATCH as u64, config.classes as usize);
    let run = |plan: Option<&CachePlan>| launched(job, plan, &labels);
    // Touches the memory of the slots, too; sampling more than one batch does so once.
    for _ in 0..options.warmup {
        run(Some(&plans[1].1))?;
    }
    let mut uncached = Vec::new();
    let mut cached = vec![Vec::new(); plans.len()];
    for _ in 0..options.samples {
        uncached.push(run(None)?);
        for ((_, plan), all) in plans.iter().zip(&mut cached) {
            all.push(run(Some(plan))?);
        }
    }
    // A run is the least that a plan is about; its trace shows the steps one after the other.
    options.profiled(name, || run(None))?;
    for (plan_name, plan) in &plans {
        options.profiled(&format!("{name}-{plan_name}"), || run(Some(plan)))?;
    }
    let graphs = match dit.device() {
        Device::Cpu => Vec::new(),
        _ => recorded(options, job, &labels, &plans)?,
    };
    let macs = config.macs().total() * 2 * BATCH as u64;
    let line = |name: &str, ms: &[f64], more: Value| {
        let line = json!({"name": name, "ms": ms, "threads": threads, "batch": BATCH});
        options.say(line, more)
    };
    line(name, &uncached, json!({"gflop": 2. * macs as f64 / 1e9}))?;
    for ((plan_name, plan), ms) in plans.iter().zip(&cached) {
        line(&format!("{name}-{plan_name}"), ms, implied(name, plan))?;
    }
    for (plan_name, ms) in &graphs {
        let more = json!({"against": name, "cuda_graph": true, "judged": false});
        line(&format!("{name}-{plan_name}-graph"), ms, more)?;
    }
    Ok(())
}

/// Milliseconds a step of every plan, and of none, as a CUDA graph.
fn recorded(
    options: &Options,
    job: Job<'_>,
    labels: &[i64],
    plans: &[(&str, CachePlan)],
) -> Result<Vec<(String, Vec<f64>)>> {
    let uncached = ("uncached", None);
    let all = plans.iter().map(|(name, plan)| (*name, Some(plan)));
    std::iter::once(uncached)
        .chain(all)
        .map(|(name, plan)| Ok((name.to_owned(), played(options, job, plan, labels)?)))
        .collect()
}

/// Milliseconds a step of one batch, kernel by kernel.
pub(super) fn launched(job: Job<'_>, plan: Option<&CachePlan>, labels: &[i64]) -> Result<f64> {
    let mut cached = plan.map(|plan| CachedReuse::new(Planned(plan), job.dit.config()));
    let reuse: &mut dyn Reuse = match &mut cached {
        Some(cached) => cached,
        None => &mut ComputeAll,
    };
    timed(job, || Ok(job.batch(0, labels, reuse, &mut |_, _| Ok(()))?))
}

/// Milliseconds a step of each sample, played from one CUDA graph.
pub(super) fn played(
    options: &Options,
    job: Job<'_>,
    plan: Option<&CachePlan>,
    labels: &[i64],
) -> Result<Vec<f64>> {
    let mut graph = Recorded::new(job, plan, labels)?;
    let samples = 0..options.samples;
    samples
        .map(|_| timed(job, || Ok(graph.batch(0, labels)?)))
        .collect()
}

/// Milliseconds a step of what makes a batch, whose latents arrive on the CPU.
fn timed(job: Job<'_>, batch: impl FnOnce() -> Result<Tensor>) -> Result<f64> {
    let start = Instant::now();
    let x = batch()?;
    let ms = start.elapsed().as_secs_f64() * 1e3 / job.sampler.timesteps().len() as f64;
    check_finite(&x)?;
    Ok(ms)
}

/// What a case with a plan is held against.
pub(super) fn implied(uncached: &str, plan: &CachePlan) -> Value {
    let saving = plan.mac_saving();
    json!({"against": uncached, "implied_speedup": 1. / (1. - saving), "mac_saving_percent": 100. * saving})
}

/// A model of this shape with random weights everywhere: the zeros of a new model's modulations and last
/// layer are cheaper to compute with than a trained model's numbers.
pub(super) fn random_dit(config: &DitConfig) -> Result<Dit> {
    let dit = Dit::new(config, SEED)?;
    let _guard = tch::no_grad_guard();
    for (place, (name, mut t)) in dit.parameters().into_iter().enumerate() {
        if (name.contains("adaLN") || name.starts_with("final")) && name.ends_with("weight") {
            let mut rng = random::generator(SEED, Use::Learning, &[place as u64]);
            let bound = (6. / (t.size()[0] + t.size()[1]) as f64).sqrt();
            t.f_copy_(&random::uniform(&mut rng, &t.size(), bound)?)?;
        }
    }
    Ok(dit)
}

pub(super) fn check_finite(x: &Tensor) -> Result<()> {
    anyhow::ensure!(
        x.f_isfinite()?.f_all()?.f_int64_value(&[])? == 1,
        "the latents are not finite; the measurement is void"
    );
    Ok(())
}
