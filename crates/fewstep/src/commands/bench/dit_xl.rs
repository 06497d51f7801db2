//! DiT-XL/2 with random weights: one image of 256 × 256 pixels; or, with `--steps`, whole batches in so many steps, uncached and with cache
//! plans, as `xtask/bench/sampling_peer.py` runs them. Latents alone, no autoencoder.

use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use fewstep_diffusion::dit::ComputeAll;
use fewstep_diffusion::random::ImageNoise;
use fewstep_diffusion::sampler::{self, Sampler, SamplerName};
use fewstep_diffusion::{Dit, DitConfig, Guidance, Guided, NoiseSchedule, SamplerOptions};
use fewstep_harmonica::{CachePlan, Conditions, policy};
use fewstep_torch::{Precision, memory};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::sampling::{GUIDANCE, SEED, check_finite, implied, launched, played, random_dit};
use super::{Options, gib, wait};
use crate::commands::{print, tell};
use crate::sampling::{Job, labels_in_turn};

/// Which of 20 × 56 cells Learning-to-Cache's router for DiT-XL/2 256 at 20 steps of DDIM reuses (arXiv 2406.01733, threshold 0.1): a line a
/// call, the first one first; attention and MLP of each block in turn; 1 where the last output is taken.
const PUBLISHED: &str = include_str!("l2c-dit-xl-2-ddim20.txt");
/// As many as the published router reuses, of all.
const PUBLISHED_UTILISATION: f64 = 248. / 1120.;
/// HarmoniCa's published 420 of 1120.
const HARMONICA_UTILISATION: f64 = 0.375;

pub(super) fn bench(options: &Options) -> Result<()> {
    if options.steps.is_empty() {
        return one_image(options);
    }
    // Before hours are spent on the first of them.
    for &resolution in &options.resolution {
        options.shape(resolution)?;
    }
    for &resolution in &options.resolution {
        let dit = options.random_dit(resolution)?;
        for &steps in &options.steps {
            batches(options, &dit, resolution, steps as usize)?;
        }
    }
    Ok(())
}

impl Options {
    /// The shape that is asked for, for images of so many pixels a side.
    fn shape(&self, resolution: i64) -> Result<DitConfig> {
        // The autoencoders of DiT make one of 8 × 8 pixels, and a patch is 2 × 2 of those.
        ensure!(
            resolution >= 16 && resolution % 16 == 0 && resolution <= 4096,
            "--resolution: expected a multiple of 16 up to 4096, found {resolution}"
        );
        let shape = shape(&self.model, resolution / 8)?;
        let checked = shape.validate();
        checked.map_err(|(key, reason)| anyhow!("--resolution {resolution}: {key}: {reason}"))?;
        Ok(shape)
    }

    /// A model of that shape with random weights, where it is to compute.
    pub(super) fn random_dit(&self, resolution: i64) -> Result<Dit> {
        let shape = self.shape(resolution)?;
        let start = Instant::now();
        let kind = match self.precision {
            Precision::Bfloat16 => Kind::BFloat16,
            _ => Kind::Float,
        };
        let dit = random_dit(&shape)?.to(self.device()?, kind)?;
        tell(&format!(
            "DiT-{} {resolution}, {:.1} million random weights in {:.1} s",
            self.model,
            dit.config().parameters() as f64 / 1e6,
            start.elapsed().as_secs_f64()
        ));
        Ok(dit)
    }

    /// A case's name: `dit-xl2-256-s20-b8`.
    fn case(&self, resolution: i64, steps: usize) -> String {
        let model = self.model.to_lowercase().replace('/', "");
        format!("dit-{model}-{resolution}-s{steps}-b{}", self.batch)
    }
}

/// Without the model's fingerprint, which takes longer than a run.
pub(super) fn conditions(
    dit: &Dit,
    label: String,
    sampler: &dyn Sampler,
    guidance: &Guidance,
) -> Conditions {
    Conditions {
        model: None,
        sampler: label,
        timesteps: sampler.timesteps().iter().rev().copied().collect(),
        guidance: guidance.clone(),
        shape: dit.config().clone(),
    }
}

/// Plans with the utilisation of the published routers: Learning-to-Cache's own cells where it has any for these calls, else random ones.
fn plans(conditions: &Conditions) -> Result<Vec<(&'static str, CachePlan)>> {
    let l2c = match published(conditions)? {
        Some(plan) => ("l2c", plan),
        None => {
            let plan = policy::random(conditions, PUBLISHED_UTILISATION, SEED)?;
            ("random-22", plan)
        }
    };
    let more = policy::random(conditions, HARMONICA_UTILISATION, SEED)?;
    Ok(vec![l2c, ("random-37", more)])
}

/// The published plan; none for another number of calls or sub-modules.
fn published(conditions: &Conditions) -> Result<Option<CachePlan>> {
    let calls: Vec<&[u8]> = PUBLISHED.lines().map(str::as_bytes).collect();
    let (steps, modules) = (conditions.steps(), conditions.modules());
    if calls.len() != steps || calls.iter().any(|call| call.len() != modules) {
        return Ok(None);
    }
    let settings = toml::Table::new();
    let plan = CachePlan::new(policy::L2C, settings, conditions, |row, column| {
        calls[steps - 1 - row][column] == b'1'
    });
    Ok(Some(plan?))
}

/// Runs of one resolution and number of steps, uncached and with plans in turn, so that a machine that gets busy is unfair to all.
fn batches(options: &Options, dit: &Dit, resolution: i64, steps: usize) -> Result<()> {
    let (threads, batch, name) = (
        options.threads,
        options.batch as usize,
        options.case(resolution, steps),
    );
    let config = dit.config();
    let guidance = Guidance::scale(GUIDANCE);
    let ddim = SamplerOptions::new(SamplerName::Ddim, steps);
    let sampler = ddim.build(&NoiseSchedule::default())?;
    let job = Job {
        dit,
        sampler: &*sampler,
        guidance: &guidance,
        seed: SEED,
        batch_size: batch,
    };
    let conditions = conditions(dit, ddim.label(), &*sampler, &guidance);
    let plans = plans(&conditions)?;
    let labels = labels_in_turn(batch as u64, config.classes as usize);
    let _tf32 = options.precision.tf32()?;
    let run = |plan: Option<&CachePlan>| launched(job, plan, &labels);
    let cases: Vec<(String, Option<&CachePlan>)> = std::iter::once((name.clone(), None))
        .chain(
            plans
                .iter()
                .map(|(plan_name, plan)| (format!("{name}-{plan_name}"), Some(plan))),
        )
        .collect();
    let mut times = vec![Vec::new(); cases.len()];
    let mut peaks = vec![0f64; cases.len()];
    for round in 0..options.warmup + options.samples {
        for (i, (_, plan)) in cases.iter().enumerate() {
            memory::reset_peak(dit.device())?;
            let ms = run(*plan)?;
            peaks[i] = peaks[i].max(gib(memory::peak(dit.device())?.used));
            if round >= options.warmup {
                times[i].push(ms);
            }
        }
    }
    for (case, plan) in &cases {
        options.profiled(case, || run(*plan))?;
    }
    let macs = config.macs().total() * 2 * batch as u64;
    for ((case, plan), (ms, peak)) in cases.iter().zip(times.iter().zip(&peaks)) {
        let more = match plan {
            None => json!({"gflop": 2. * macs as f64 / 1e9}),
            Some(plan) => cached_line(&name, plan),
        };
        let line = json!({
            "name": case, "ms": ms, "threads": threads, "batch": batch, "steps": steps, "peak_memory_gib": peak,
            "device": fewstep_torch::device::name(dit.device()), "precision": options.precision,
        });
        options.say(line, more)?;
    }
    if !options.cuda_graph && dit.device() == Device::Cpu {
        return Ok(());
    }
    for (case, plan) in &cases {
        let line = json!({
            "name": format!("{case}-graph"), "ms": played(options, job, *plan, &labels)?, "threads": threads, "batch": batch,
            "steps": steps, "beside": name,
        });
        // Against a graph too: what a graph wins is not won by the cache.
        let uncached = format!("{name}-graph");
        let more = plan.map_or(json!({}), |plan| cached_line(&uncached, plan));
        options.say(line, more)?;
    }
    Ok(())
}

/// What a case with a plan is held against, and how much of it is reused.
fn cached_line(uncached: &str, plan: &CachePlan) -> Value {
    let mut line = implied(uncached, plan);
    line["utilisation_percent"] = (100. * plan.utilisation()).into();
    line
}

/// One image of 256 × 256 pixels: 3 steps of DDIM with guidance.
fn one_image(options: &Options) -> Result<()> {
    let start = Instant::now();
    let dit = options.random_dit(256)?;
    let init_seconds = start.elapsed().as_secs_f64();
    let c = dit.config();
    let guidance = Guidance::scale(GUIDANCE);
    let sampler = SamplerOptions::new(SamplerName::Ddim, 3).build(&NoiseSchedule::default())?;
    let mut noise = ImageNoise::new(SEED, 0..1);
    let x = noise.initial([c.channels, c.input_size, c.input_size])?;
    let x = x.f_to_device(dit.device())?;
    let _guard = tch::no_grad_guard();
    let _tf32 = options.precision.tf32()?;
    let mut reuse = ComputeAll;
    let mut denoiser = Guided::new(
        &dit,
        &Tensor::f_from_slice(&[207i64])?,
        &guidance,
        &mut reuse,
    )?;
    let mut seconds = Vec::new();
    let mut start = Instant::now();
    let x = sampler::sample(&*sampler, &mut denoiser, &x, &mut noise, &mut |_, x| {
        wait(x).map_err(|e| fewstep_diffusion::Error::Stopped(e.to_string()))?;
        seconds.push(start.elapsed().as_secs_f64());
        start = Instant::now();
        Ok(())
    })?;
    check_finite(&x)?;
    let mean = seconds.iter().sum::<f64>() / seconds.len() as f64;
    let gflop = 4. * c.macs().total() as f64 / 1e9;
    let peak_gib = gib(memory::peak(dit.device())?.used);
    if options.json {
        return print(
            &json!({
                "name": "dit-xl2", "threads": options.threads, "batch": 1, "steps": 3,
                "init_seconds": init_seconds, "step_seconds": seconds, "gflop": gflop,
                "peak_memory_gib": peak_gib,
            })
            .to_string(),
        );
    }
    let each: Vec<String> = seconds.iter().map(|s| format!("{s:.2}")).collect();
    print(&format!(
        "DiT-{} 256, one image with guidance {GUIDANCE}, {} threads: {mean:.2} s a step ({} s), {:.0} GFLOP/s; peak memory {peak_gib:.2} GiB",
        options.model,
        options.threads,
        each.join(", "),
        gflop / mean
    ))
}

/// A published shape by name for latents `[4, size, size]`.
pub(super) fn shape(name: &str, size: i64) -> Result<DitConfig> {
    DitConfig::named(name, size, 4).with_context(|| {
        format!("--model: expected S, B, L or XL with /2, /4 or /8, such as XL/2, found {name:?}")
    })
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use fewstep_harmonica::published;

    use super::*;

    fn conditions_of(steps: usize, model: &str) -> Conditions {
        let ddim = SamplerOptions::new(SamplerName::Ddim, steps);
        let sampler = ddim.build(&NoiseSchedule::default()).unwrap();
        Conditions {
            model: None,
            sampler: ddim.label(),
            timesteps: sampler.timesteps().iter().rev().copied().collect(),
            guidance: Guidance::scale(GUIDANCE),
            shape: shape(model, 32).unwrap(),
        }
    }

    #[test]
    fn the_carried_plan_is_that_of_the_published_router() {
        let conditions = conditions_of(20, "XL/2");
        let (name, plan) = plans(&conditions).unwrap().remove(0);
        assert_eq!((name, plan.reused()), ("l2c", 248));
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let data = std::env::var_os("FEWSTEP_DATA")
            .map_or_else(|| repository.join("../shared/data"), PathBuf::from);
        let path = data.join("routers/l2c-dit-xl-2-256-ddim20.pt");
        if !path.exists() {
            println!("skipped: the published router is not in the data folder");
            return;
        }
        let router = published::import(&path, &conditions, 0.1).unwrap();
        let expected = policy::l2c(&router, 0.1).unwrap();
        for row in 0..20 {
            assert_eq!(plan.row(row), expected.row(row), "{row}");
        }
    }

    #[test]
    fn other_calls_get_random_plans_of_the_published_utilisation() {
        let found = plans(&conditions_of(50, "XL/2")).unwrap();
        let reused: Vec<_> = found.iter().map(|(n, p)| (*n, p.reused())).collect();
        assert_eq!(reused, [("random-22", 620), ("random-37", 1050)]);
    }
}
