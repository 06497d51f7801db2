//! Samplers, the DiT and autoencoders on samplers.safetensors, dit.safetensors and autoencoder.safetensors.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use fewstep_diffusion::autoencoder::{Autoencoder, AutoencoderKl, TinyAutoencoder};
use fewstep_diffusion::dit::ComputeAll;
use fewstep_diffusion::random::NoiseSource;
use fewstep_diffusion::sampler::{Call, Denoiser, sample};
use fewstep_diffusion::{BetaSchedule, Convention, Dit, DitConfig, NoiseSchedule, SamplerOptions};
use serde::Deserialize;
use tch::{Kind, Tensor};

use super::{Named, Place, fixture, small_dit};

#[derive(Deserialize)]
struct Case {
    options: SamplerOptions,
    schedule: BetaSchedule,
}

/// A linear model: `model[call] · (x, x) + push`.
struct Linear {
    weights: Vec<Vec<f64>>,
    push: Tensor,
}

impl Denoiser for Linear {
    fn denoise(&mut self, x: &Tensor, call: &Call) -> fewstep_diffusion::Result<Tensor> {
        let weights = self.weights.get(call.index);
        let (of_x, of_push) = weights.map_or((0., 0.), |w| (w[0], w[1]));
        let push = self.push.f_get(call.index as i64)?;
        Ok(Tensor::f_cat(&[x, x], 1)?
            .f_mul_scalar(of_x)?
            .f_add(&push.f_mul_scalar(of_push)?)?)
    }
}

struct Given(Tensor);

impl NoiseSource for Given {
    fn noise(&mut self, call: usize, _: &Tensor) -> fewstep_diffusion::Result<Tensor> {
        Ok(self.0.f_get(call as i64 - 1)?)
    }
}

/// The last latents of every trajectory. Cosine schedules are left out: there float32 itself is off by more than the rule.
pub(super) fn samplers(place: &Place) -> Result<Named> {
    let file = fixture!("samplers")?;
    let cases = file.string("cases").context("the fixture has no cases")?;
    let cases: BTreeMap<String, Case> = serde_json::from_str(cases)?;
    let get = |name: &str| place.put(&file.tensor(name)?.f_to_kind(Kind::Float)?);
    let (start, noise, push) = (get("x")?, get("noise")?, get("push")?);
    let mut all = Named::new();
    for (name, case) in &cases {
        if matches!(case.schedule, BetaSchedule::Cosine { .. }) {
            continue;
        }
        let model = file.tensor(&format!("{name}/model"))?;
        let mut model = Linear {
            weights: Vec::try_from(model)?,
            push: push.shallow_clone(),
        };
        let sampler = case.options.build(&NoiseSchedule::new(&case.schedule)?)?;
        let mut noise = Given(noise.shallow_clone());
        let x = sample(
            &*sampler,
            &mut model,
            &start,
            &mut noise,
            &mut |_, _| Ok(()),
        )?;
        all.push((name.clone(), x));
    }
    Ok(all)
}

/// Outputs at four timesteps.
pub(super) fn dit(place: &Place) -> Result<Named> {
    let file = fixture!("dit")?;
    let x = place.put(&file.tensor("input/x")?.f_to_kind(place.kind())?)?;
    let labels = place.put(file.tensor("input/labels")?)?;
    let mut all = Named::new();
    for (name, convention) in [
        ("official", Convention::Original),
        ("diffusers", Convention::Diffusers),
    ] {
        let config = DitConfig {
            convention,
            ..small_dit(4, 2, 32, 2)?
        };
        let dit = Dit::from_tensors(&config, file.section("model/"), "the fixture")?
            .to(place.device, place.kind())?;
        for t in [0f32, 1., 500., 999.] {
            let t_all = place.put(&Tensor::f_from_slice(&[t; 3])?)?;
            let _guard = tch::no_grad_guard();
            let out = dit.forward(&x, &t_all, &labels, &mut ComputeAll)?;
            all.push((format!("{name}, t = {t}"), out));
        }
    }
    Ok(all)
}

/// Encoding and decoding by the VAE and by the tiny autoencoder.
pub(super) fn autoencoders(place: &Place) -> Result<Named> {
    let file = fixture!("autoencoder")?;
    let facts = file.string("fewstep").context("the fixture has no facts")?;
    let facts: serde_json::Value = serde_json::from_str(facts)?;
    let config = serde_json::from_value(facts["kl"].clone())?;
    let kl = AutoencoderKl::from_tensors(&config, file.section("kl/model/"), "the fixture")?;
    let halves = ["encoder", "decoder"].into_iter().flat_map(|half| {
        let tensors = file.section(&format!("tiny/flux2/{half}/"));
        tensors
            .into_iter()
            .map(move |(name, t)| (format!("{half}.{name}"), t))
    });
    let tiny = TinyAutoencoder::from_tensors(halves.collect(), "the fixture")?;
    let both: [(&str, Box<dyn Autoencoder>, &str); 2] = [
        ("kl", Box::new(kl.to(place.device, place.kind())?), "kl"),
        (
            "tiny",
            Box::new(tiny.to(place.device, place.kind())?),
            "tiny/flux2",
        ),
    ];
    let mut all = Named::new();
    let _guard = tch::no_grad_guard();
    for (name, model, section) in both {
        let put = |what: &str| -> Result<Tensor> {
            place.put(file.tensor(&format!("{section}/{what}"))?)
        };
        let latents = model.encode(&put("image")?, None)?;
        all.push((format!("{name}: encoded"), latents));
        let images = model.decode(&put("latent")?)?;
        all.push((format!("{name}: decoded"), images));
    }
    Ok(all)
}
