//! Step-wise Denoising Training of a router (HarmoniCa, arXiv 2410.01723) for a DiT of random weights: seconds a trajectory, and the most
//! memory. Published for DiT-XL/2 256, T = 10, a batch of 64 with guidance (32 latents).

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use fewstep_diffusion::sampler::SamplerName;
use fewstep_diffusion::{Guidance, NoiseSchedule, SamplerOptions};
use fewstep_harmonica::learn::LearnEvent;
use fewstep_harmonica::{Error, LearnOptions, Setting, learn};
use fewstep_torch::{Group, Precision, memory};
use serde_json::json;

use super::dit_xl::conditions;
use super::sampling::{GUIDANCE, SEED};
use super::{Options, gib};
use crate::commands::print;

pub(super) fn bench(options: &Options) -> Result<()> {
    ensure!(
        options.precision != Precision::Bfloat16,
        "--precision: expected float32 or tf32, in which routers are learned, found bfloat16"
    );
    let steps = options.steps.first().map_or(10, |&steps| steps as usize);
    let resolution = options.resolution.first().copied().unwrap_or(256);
    let dit = options.random_dit(resolution)?;
    let noise = NoiseSchedule::default();
    let guidance = Guidance::scale(GUIDANCE);
    let ddim = SamplerOptions::new(SamplerName::Ddim, steps);
    let sampler = ddim.build(&noise)?;
    let conditions = conditions(&dit, ddim.label(), &*sampler, &guidance);
    let setting = Setting {
        dit: &dit,
        sampler: &*sampler,
        noise: &noise,
        conditions: &conditions,
    };
    let learning = LearnOptions {
        trajectories: options.warmup + options.samples,
        batch_size: options.batch as i64,
        precision: options.precision,
        recompute: options.recompute,
        checkpoint_every: options.warmup + options.samples,
        evaluate_on: 1,
        ..LearnOptions::default()
    };
    let weights = gib(memory::peak(dit.device())?.used);
    memory::reset_peak(dit.device())?;
    let folder = tempfile::tempdir().context("no folder for the router")?;
    let (mut ms, mut proxy_ms) = (Vec::new(), Vec::new());
    let mut peak = None;
    let mut start = Instant::now();
    // A trajectory reads its losses, so nothing of it is left to wait for when it is told of.
    let mut watch = |event: &LearnEvent| {
        let lap = start.elapsed().as_secs_f64() * 1e3;
        match event {
            LearnEvent::Refreshed { .. } => proxy_ms.push(lap),
            LearnEvent::Trajectory { trajectory, .. } => {
                if *trajectory > options.warmup {
                    ms.push(lap);
                }
                peak = Some(memory::peak(dit.device()).map_err(Error::from)?);
            }
            LearnEvent::Checkpoint { .. } => {}
        }
        start = Instant::now();
        Ok(())
    };
    let group = Group::alone();
    learn(
        setting,
        &learning,
        None,
        SEED,
        folder.path(),
        &group,
        &mut watch,
    )?;
    let peak = peak.context("no trajectory was learned from")?;
    let model = &options.model;
    let name = format!(
        "sdt-{}-{resolution}-t{steps}-b{}{}",
        model.to_lowercase().replace('/', ""),
        options.batch,
        if options.recompute { "-recompute" } else { "" }
    );
    if options.json {
        let line = json!({
            "name": name, "ms": ms, "threads": options.threads, "batch": options.batch, "steps": steps, "proxy_ms": proxy_ms,
            "peak_memory_gib": gib(peak.used), "peak_reserved_gib": gib(peak.reserved), "peak_before_gib": weights,
            "device": fewstep_torch::device::name(dit.device()), "precision": options.precision, "judged": false,
        });
        return print(&line.to_string());
    }
    ms.sort_by(f64::total_cmp);
    let all = match dit.device() {
        tch::Device::Cpu => "of the process",
        _ => "of tensors on the GPU",
    };
    print(&format!(
        "{name}: {:.2} s a trajectory of {steps} steps (median of {}), {:.2} s to weigh the steps; peak memory {all} {:.2} GiB, of which {weights:.2} \
         GiB before the first",
        ms[ms.len() / 2] / 1e3,
        ms.len(),
        proxy_ms.iter().sum::<f64>() / 1e3,
        gib(peak.used)
    ))
}
