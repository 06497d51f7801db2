//! A training step of VGG9 at T = 5 and T = 1.

use std::time::Instant;

use anyhow::Result;
use fewstep_spiking::{Forward, Input, LeakOptions, Network, NeuronOptions, zoo};
use fewstep_torch::{Group, Messages, Optimiser, OptimiserConfig, ParameterGroup, Reducer};
use serde_json::json;
use tch::{Kind, Reduction, Tensor};

use super::{Options, wait};
use crate::commands::print;

pub(super) fn bench(options: &Options) -> Result<()> {
    for timesteps in [1u32, 5] {
        let step = Step {
            timesteps,
            images: 32,
            group: &Group::alone(),
        };
        let (ms, _) = step.measure(options)?;
        print(
            &json!({"name": format!("vgg9-t{timesteps}-b32"), "ms": ms, "threads": options.threads, "batch": 32})
                .to_string(),
        )?;
    }
    Ok(())
}

/// Forward, cross entropy on the summed logits, backward, an Adam step with AMSGrad; as `xtask/bench/spiking_peer.py`.
pub(super) struct Step<'a> {
    pub timesteps: u32,
    /// Those of this rank.
    pub images: i64,
    /// Who trains together.
    pub group: &'a Group,
}

impl Step<'_> {
    /// Milliseconds of each step, and what messages took of it where there are several ranks.
    pub(super) fn measure(&self, options: &Options) -> Result<(Vec<f64>, Option<Messages>)> {
        tch::manual_seed(0);
        let plan = zoo::vgg("vgg9", [3, 32, 32], &[1024, 1024], 10, 1., false)?;
        let device = options.device()?;
        let mut network = Network::new(plan, device)?;
        let leak = LeakOptions {
            initial: 0.9,
            learnable: false,
        };
        network.add_neurons(&NeuronOptions {
            threshold: 0.5,
            learnable_threshold: false,
            leak,
            ..NeuronOptions::default()
        })?;
        let parameters = network.parameters();
        let all: Vec<_> = parameters.iter().map(|(_, p)| p.shallow_clone()).collect();
        let reducer = self.group.reducer(&all)?;
        let config = OptimiserConfig::Adam {
            betas: [0.9, 0.999],
            eps: 1e-8,
            amsgrad: true,
            decoupled: false,
        };
        let mut optimiser = Optimiser::new(
            config,
            vec![ParameterGroup {
                parameters,
                weight_decay: 0.,
                lr_factor: 1.,
            }],
        )?;
        let images = Tensor::f_rand([self.images, 3, 32, 32], (Kind::Float, device))?;
        let labels = Tensor::f_randint(10, [self.images], (Kind::Int64, device))?;
        let mut once = || -> Result<Tensor> {
            let options = Forward::spiking(self.timesteps);
            let logits = network
                .forward(Input::Direct(&images), &options, None)?
                .logits;
            let mean = Reduction::Mean;
            let loss = logits.f_cross_entropy_loss(&labels, None::<Tensor>, mean, -100, 0.)?;
            optimiser.zero_grad();
            match &reducer {
                Some(reducer) => reducer.backward(&loss)?,
                None => loss.f_backward()?,
            }
            optimiser.step(1e-4)?;
            Ok(loss)
        };
        let mut samples = Vec::new();
        for step in 0..options.warmup + options.samples {
            self.group.barrier("a measurement")?;
            let start = Instant::now();
            wait(&once()?)?;
            if step >= options.warmup {
                samples.push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
        let name = format!("vgg9-t{}-b{}", self.timesteps, self.images);
        options.profiled(&name, once)?;
        options.profiled(&format!("{name}-inference"), || {
            let _guard = tch::no_grad_guard();
            let options = Forward::spiking(self.timesteps);
            Ok(network.forward(Input::Direct(&images), &options, None)?)
        })?;
        let messages = reducer.as_ref().map(Reducer::messages).transpose()?;
        Ok((samples, messages))
    }
}
