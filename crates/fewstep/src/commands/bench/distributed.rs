//! Training steps and sampling by several ranks; as `xtask/bench/distributed_peer.py`.

use std::time::{Duration, Instant};

use anyhow::Result;
use fewstep_diffusion::dit::ComputeAll;
use fewstep_diffusion::sampler::SamplerName;
use fewstep_diffusion::{Guidance, NoiseSchedule, SamplerOptions};
use fewstep_torch::{Group, Ranks};
use serde_json::json;

use super::dit_xl::shape;
use super::{Options, sampling, spiking};
use crate::commands::print;
use crate::sampling::{Job, labels_in_turn};

/// Images of a training step, all ranks together.
const BATCH: i64 = 64;
/// Images that are sampled, all ranks together, and how many at a time.
const IMAGES: i64 = 8;
const AT_ONCE: usize = 4;

pub(super) fn bench(options: &Options) -> Result<()> {
    let group = match Ranks::from_env()? {
        Some(ranks) => Group::join(&ranks, Duration::from_secs(600))?,
        None => Group::alone(),
    };
    let result = cases(options, &group);
    let reason = result.as_ref().err().map(anyhow::Error::to_string);
    group.leave(reason.as_deref());
    result
}

fn cases(options: &Options, group: &Group) -> Result<()> {
    let (threads, part) = (options.threads, group.part(BATCH));
    for timesteps in [1, 5] {
        let step = spiking::Step {
            timesteps,
            images: part.len,
            group,
        };
        let (ms, messages) = step.measure(options)?;
        if group.leads() {
            let mut line = json!({"name": format!("vgg9-t{timesteps}"), "ms": ms, "threads": threads, "batch": BATCH});
            if let Some(messages) = messages {
                line["sent"] = json!(messages.sent.as_secs_f64() * 1e3);
                line["waited"] = json!(messages.waited.as_secs_f64() * 1e3);
            }
            print(&line.to_string())?;
        }
    }
    let ms = sample(options, group)?;
    if group.leads() {
        print(
            &json!({"name": "dit-s2", "ms": ms, "threads": threads, "batch": IMAGES}).to_string(),
        )?;
    }
    Ok(())
}

/// Milliseconds that all images take all ranks.
fn sample(options: &Options, group: &Group) -> Result<Vec<f64>> {
    let dit = sampling::random_dit(&shape("S/2", 32)?)?;
    let guidance = Guidance::scale(sampling::GUIDANCE);
    let labels = labels_in_turn(IMAGES as u64, dit.config().classes as usize);
    let (what, own) = ("a measurement", group.part(IMAGES).numbers());
    let run = |steps: usize| -> Result<f64> {
        let sampler =
            SamplerOptions::new(SamplerName::Ddim, steps).build(&NoiseSchedule::default())?;
        let job = Job {
            dit: &dit,
            sampler: &*sampler,
            guidance: &guidance,
            seed: 0,
            batch_size: AT_ONCE,
        };
        group.barrier(what)?;
        let start = Instant::now();
        for first in own.clone().step_by(AT_ONCE) {
            let end = own.end.min(first + AT_ONCE as u64);
            let labels = &labels[first as usize..end as usize];
            let x = job.batch(first, labels, &mut ComputeAll, &mut |_, _| Ok(()))?;
            sampling::check_finite(&x)?;
        }
        group.barrier(what)?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    };
    run(2)?;
    (0..options.samples).map(|_| run(sampling::STEPS)).collect()
}
