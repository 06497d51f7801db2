//! A training step of VGG9 or VGG16 at T = 5 and T = 1; inference at T = 1, launched kernel by kernel and as one CUDA graph.

use std::time::Instant;

use anyhow::{Result, ensure};
use fewstep_spiking::{
    Forward, Input, LeakOptions, Mode, Network, NeuronOptions, Result as SpikingResult, zoo,
};
use fewstep_torch::{Group, Messages, Optimiser, OptimiserConfig, ParameterGroup, Reducer, Replay};
use serde_json::json;
use tch::{Device, Kind, Reduction, Tensor};

use super::{Options, wait};
use crate::trained;

const IMAGES: i64 = 32;

pub(super) fn bench(options: &Options) -> Result<()> {
    ensure!(
        options.cuda_graph || options.runs.is_empty(),
        "--run: for spiking it is for inference, with --cuda-graph"
    );
    for run in &options.runs {
        let trained = trained::open(run, None, options.device()?)?;
        ensure!(
            trained.mode == Mode::Spiking { timesteps: 1 },
            "--run: expected a network of one timestep, found {} with stage `{}`",
            run.display(),
            trained.stage
        );
        let name = format!("{}-{}", trained.experiment.name, trained.stage);
        inference(options, &name, &trained.network)?;
    }
    if !options.runs.is_empty() {
        return Ok(());
    }
    for timesteps in [1u32, 5] {
        let step = Step {
            timesteps,
            images: IMAGES,
            group: &Group::alone(),
        };
        let (ms, _) = step.measure(options)?;
        let name = format!("{}-t{timesteps}-b{IMAGES}", options.network);
        options.say(
            json!({"name": name, "ms": ms, "threads": options.threads, "batch": IMAGES}),
            json!({}),
        )?;
    }
    match options.cuda_graph {
        true => {
            let name = format!("{}-t1", options.network);
            inference(options, &name, &random(options)?)
        }
        false => Ok(()),
    }
}

/// Random weights, of which 4 to 40 % of the neurons of each convolution fire in VGG9.
fn random(options: &Options) -> Result<Network> {
    tch::manual_seed(0);
    let device = options.device()?;
    let plan = zoo::vgg(&options.network, [3, 32, 32], &[1024, 1024], 10, 1., false)?;
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
    Ok(network)
}

/// Milliseconds of a batch at one timestep, launched and played in turn, and how far apart their logits are.
fn inference(options: &Options, name: &str, network: &Network) -> Result<()> {
    let _guard = tch::no_grad_guard();
    let _tf32 = options.precision.tf32()?;
    let device = options.device()?;
    let [channels, height, width] = network.plan().input;
    let size = [IMAGES, channels, height, width];
    let images = Tensor::f_rand(size, (Kind::Float, device))?;
    let forward = Forward::evaluation(Mode::Spiking { timesteps: 1 });
    let once = || -> SpikingResult<Tensor> {
        let run = || network.forward(Input::Direct(&images), &forward, None);
        let logits = options
            .precision
            .run(device, || run().map(|out| out.logits))?;
        Ok(logits.f_to_kind(Kind::Float)?)
    };
    let mut graph = Replay::new(device, once)?;
    let (mut launched, mut played, mut off) = (Vec::new(), Vec::new(), 0f64);
    for step in 0..options.warmup + options.samples {
        let start = Instant::now();
        let expected = once()?;
        wait(&expected)?;
        let ms = start.elapsed().as_secs_f64() * 1e3;
        let start = Instant::now();
        let found = graph.play()?;
        wait(found)?;
        if step >= options.warmup {
            launched.push(ms);
            played.push(start.elapsed().as_secs_f64() * 1e3);
        }
        let apart = found.f_sub(&expected)?.f_abs()?.f_max()?;
        off = off.max(apart.f_double_value(&[])?);
    }
    options.profiled(&format!("{name}-b{IMAGES}-inference"), || Ok(once()?))?;
    let line = |name: String, ms: &[f64]| json!({"name": name, "ms": ms, "threads": options.threads, "batch": IMAGES, "judged": false});
    let plain = format!("{name}-b{IMAGES}-inference");
    options.say(line(plain.clone(), &launched), json!({}))?;
    let more = json!({"beside": plain, "recorded": device != Device::Cpu, "logits_off_by": off});
    options.say(line(format!("{plain}-graph"), &played), more)
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
        let device = options.device()?;
        let network = random(options)?;
        let _tf32 = options.precision.tf32()?;
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
            let forward = Forward::spiking(self.timesteps);
            let run = || network.forward(Input::Direct(&images), &forward, None);
            let logits = options
                .precision
                .run(device, || run().map(|out| out.logits))?;
            let logits = logits.f_to_kind(Kind::Float)?;
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
        let name = format!("{}-t{}-b{}", options.network, self.timesteps, self.images);
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
