//! Samplers against diffusers and guided-diffusion (`samplers.safetensors`, made by `samplers.py`), and against what is known of
//! Gaussian images N(mean, deviation²): there the right denoiser, the flow from noise to image and all variances have closed forms.

use std::collections::BTreeMap;
use std::path::Path;

use fewstep_diffusion::noise::Respacing;
use fewstep_diffusion::random::{self, NoiseSource, Use};
use fewstep_diffusion::sampler::{
    Call, Denoiser, Prediction, SamplerName, SamplerState, Variance, sample,
};
use fewstep_diffusion::{BetaSchedule, NoiseSchedule, Result, SamplerOptions};
use fewstep_torch::Checkpoint;
use proptest::prelude::*;
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

/// A denoiser from a function of latents and call.
struct Says<F>(F);

impl<F: FnMut(&Tensor, &Call) -> Tensor> Denoiser for Says<F> {
    fn denoise(&mut self, x: &Tensor, call: &Call) -> Result<Tensor> {
        Ok((self.0)(x, call))
    }
}

/// Noise from a function of the place.
struct Noise<F>(F);

impl<F: FnMut(usize, &Tensor) -> Tensor> NoiseSource for Noise<F> {
    fn noise(&mut self, call: usize, like: &Tensor) -> Result<Tensor> {
        Ok((self.0)(call, like))
    }
}

fn no_noise() -> Noise<impl FnMut(usize, &Tensor) -> Tensor> {
    Noise(|call, _: &Tensor| panic!("a deterministic sampler drew noise {call}"))
}

/// The latents after each call.
fn run(
    options: &SamplerOptions,
    schedule: &NoiseSchedule,
    x: &Tensor,
    noise: &mut dyn NoiseSource,
    denoiser: impl FnMut(&Tensor, &Call) -> Tensor,
) -> Vec<Tensor> {
    let sampler = options.build(schedule).unwrap();
    assert_eq!(sampler.timesteps().len(), options.calls());
    let mut seen = Vec::new();
    let mut watch = |_: &Call, x: &Tensor| {
        seen.push(x.shallow_clone());
        Ok(())
    };
    let _ = sample(&*sampler, &mut Says(denoiser), x, noise, &mut watch).unwrap();
    seen
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    (a - b).abs().max().double_value(&[])
}

fn schedules() -> [NoiseSchedule; 3] {
    [
        BetaSchedule::default(),
        BetaSchedule::scaled_linear(),
        BetaSchedule::cosine(),
    ]
    .map(|s| NoiseSchedule::new(&s).unwrap())
}

fn options(name: SamplerName, steps: usize) -> SamplerOptions {
    SamplerOptions::new(name, steps)
}

#[derive(Deserialize)]
struct Case {
    options: SamplerOptions,
    schedule: BetaSchedule,
}

#[test]
fn trajectories_are_those_of_diffusers_and_guided_diffusion() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/samplers.safetensors");
    let file = Checkpoint::load(&path).unwrap();
    let cases: BTreeMap<String, Case> =
        serde_json::from_str(file.string("cases").unwrap()).unwrap();
    assert_eq!(cases.len(), 38);
    // diffusers' DPM-Solver++ and flow matching compute in f32 throughout.
    for (kind, tolerance) in [(Kind::Double, 5e-6), (Kind::Float, 1e-5)] {
        let get = |name: &str| file.tensor(name).unwrap().to_kind(kind);
        let (start, noise, push) = (get("x"), get("noise"), get("push"));
        for (name, case) in &cases {
            let schedule = NoiseSchedule::new(&case.schedule).unwrap();
            // There x₀ at timestep 999 is 20,000 times a difference of almost equal numbers, of which f32 knows little.
            if kind == Kind::Float && matches!(case.schedule, BetaSchedule::Cosine { .. }) {
                continue;
            }
            let timesteps = get(&format!("{name}/timesteps"));
            let sampler = case.options.build(&schedule).unwrap();
            // Of Heun's 16 calls the file holds 14; diffusers' times are in f32.
            for (index, expected) in Vec::<f64>::try_from(timesteps).unwrap().iter().enumerate() {
                let off = (sampler.timesteps()[index] - expected).abs();
                assert!(off < 1e-6, "{name}: timesteps {:?}", sampler.timesteps());
            }
            let model = file.tensor(&format!("{name}/model")).unwrap();
            let model = Vec::<Vec<f64>>::try_from(model).unwrap();
            let mut noise = Noise(|call: usize, _: &Tensor| noise.get(call as i64 - 1));
            let found = run(&case.options, &schedule, &start, &mut noise, |x, call| {
                let weights = model.get(call.index).map_or([0., 0.], |m| [m[0], m[1]]);
                Tensor::cat(&[x, x], 1) * weights[0] + push.get(call.index as i64) * weights[1]
            });
            let expected = get(&format!("{name}/x"));
            for (index, found) in found.iter().enumerate().take(model.len()) {
                let expected = expected.get(index as i64);
                assert_eq!(found.kind(), kind);
                let off = distance(found, &expected) / expected.abs().max().double_value(&[]);
                assert!(
                    off < tolerance,
                    "{name}, {kind:?}, after call {index}: off by {off:e}"
                );
            }
        }
    }
}

/// Gaussian images.
#[derive(Clone, Copy)]
struct Gaussian {
    mean: f64,
    deviation: f64,
}

impl Gaussian {
    /// Mean and deviation of signal · image + sigma · noise.
    fn marginal(self, signal: f64, sigma: f64) -> (f64, f64) {
        (signal * self.mean, (signal * self.deviation).hypot(sigma))
    }

    /// The expected noise in x.
    fn epsilon(self, x: &Tensor, alpha_bar: f64) -> Tensor {
        let sigma = (1. - alpha_bar).sqrt();
        let (mean, deviation) = self.marginal(alpha_bar.sqrt(), sigma);
        (x - mean) * (sigma / deviation.powi(2))
    }

    /// The expected velocity at time t.
    fn velocity(self, x: &Tensor, t: f64) -> Tensor {
        let (mean, deviation) = self.marginal(t, 1. - t);
        (x - mean) * ((t * self.deviation.powi(2) - (1. - t)) / deviation.powi(2)) + self.mean
    }

    /// Var(x₀ | x).
    fn posterior(self, alpha_bar: f64) -> f64 {
        1. / (self.deviation.powi(-2) + alpha_bar / (1. - alpha_bar))
    }
}

const IMAGES: Gaussian = Gaussian {
    mean: 0.3,
    deviation: 0.5,
};

/// Error at timestep 0 against the closed form of the probability-flow equation, where x keeps its quantile.
fn error(name: SamplerName, steps: usize) -> f64 {
    let start = Tensor::linspace(-2, 2, 9, DOUBLE).view([1, 1, 3, 3]);
    let schedule = NoiseSchedule::default();
    let bar = schedule.alphas_cumprod();
    let levels = |bar: f64| IMAGES.marginal(bar.sqrt(), (1. - bar).sqrt());
    let flow = matches!(name, SamplerName::Euler | SamplerName::Heun);
    let seen = run(
        &options(name, steps),
        &schedule,
        &start,
        &mut no_noise(),
        |x, call| match flow {
            true => IMAGES.velocity(x, call.timestep),
            false => IMAGES.epsilon(x, bar[call.timestep as usize]),
        },
    );
    let (from, to, found) = match flow {
        true => (
            (0., 1.),
            (IMAGES.mean, IMAGES.deviation),
            &seen[seen.len() - 1],
        ),
        // The last call goes from timestep 0 to no noise at all in one step, however many there are.
        false => (levels(bar[999]), levels(bar[0]), &seen[steps - 2]),
    };
    let expected = (&start - from.0) / from.1 * to.1 + to.0;
    distance(found, &expected)
}

#[test]
fn samplers_converge_to_the_closed_form_with_their_order() {
    use SamplerName::*;
    // 999 is divisible by one less than these numbers of steps: no rounding of timesteps.
    for (name, [coarse, fine], order) in [
        (Ddim, [112, 334], 0.9..1.2),
        (DpmSolver, [112, 334], 1.7..2.5),
        (Euler, [20, 80], 0.9..1.2),
        (Heun, [20, 80], 1.7..2.3),
    ] {
        let errors = [error(name, coarse), error(name, fine)];
        let ratio = match name {
            Ddim | DpmSolver => (fine - 1) as f64 / (coarse - 1) as f64,
            _ => fine as f64 / coarse as f64,
        };
        let found = (errors[0] / errors[1]).ln() / ratio.ln();
        assert!(
            order.contains(&found),
            "{name:?}: order {found}, errors {errors:?}"
        );
        assert!(errors[1] < 0.02, "{name:?}: {errors:?}");
    }
}

/// What a model says that knows the image, in the terms it is asked for.
fn knows(
    image: &Tensor,
    prediction: Prediction,
    schedule: &NoiseSchedule,
) -> impl Fn(&Tensor, &Call) -> Tensor {
    move |x, call| {
        let bar = schedule.alphas_cumprod()[call.timestep as usize];
        let epsilon = (x - image * bar.sqrt()) / (1. - bar).sqrt();
        match prediction {
            Prediction::Epsilon => epsilon,
            Prediction::V => epsilon * bar.sqrt() - image * (1. - bar).sqrt(),
            Prediction::Sample => image.shallow_clone(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_denoiser_that_knows_the_image_ends_there(
        name in prop::sample::select(vec![SamplerName::Ddim, SamplerName::Ddpm, SamplerName::DpmSolver]),
        prediction in prop::sample::select(vec![Prediction::Epsilon, Prediction::V, Prediction::Sample]),
        respacing in prop::sample::select(vec![Respacing::Published, Respacing::Leading, Respacing::Trailing, Respacing::Linspace]),
        schedule in prop::sample::select(schedules().to_vec()),
        steps in 2..60usize,
        eta in 0. ..=1f64,
        clip: bool,
        seed: u64,
    ) {
        let mut rng = random::generator(seed, Use::Sampling, &[]);
        let mut draw = || random::normal(&mut rng, &[2, 3, 2, 2]).unwrap().to_kind(Kind::Double);
        let image = draw().clamp(-1, 1);
        let start = draw();
        let mut o = options(name, steps);
        o.prediction = prediction;
        o.respacing = respacing;
        o.clip_denoised = clip && name != SamplerName::DpmSolver;
        if name == SamplerName::Ddim {
            o.eta = eta;
        }
        let mut noise = Noise(|_, _: &Tensor| draw());
        let seen = run(&o, &schedule, &start, &mut noise, knows(&image, prediction, &schedule));
        prop_assert!(distance(&seen[steps - 1], &image) < 1e-7);
    }

    #[test]
    fn flow_matching_ends_at_an_image_whose_velocity_is_known(heun: bool, steps in 1..40usize, seed: u64) {
        let mut rng = random::generator(seed, Use::Sampling, &[]);
        let mut draw = || random::normal(&mut rng, &[2, 3, 2, 2]).unwrap().to_kind(Kind::Double);
        let (image, start) = (draw(), draw());
        let name = if heun { SamplerName::Heun } else { SamplerName::Euler };
        let o = options(name, steps);
        let seen = run(&o, &NoiseSchedule::default(), &start, &mut no_noise(), |_, _| &image - &start);
        prop_assert!(distance(seen.last().unwrap(), &image) < 1e-12);
    }

    #[test]
    fn iddpm_with_the_right_variance_is_exact_for_gaussian_images(deviation in 0.1..0.95f64, steps in 2..100usize) {
        let images = Gaussian { mean: 0., deviation };
        let found = variance(SamplerName::Iddpm, Variance::default(), images, steps);
        // The last call gives the expected image, which varies less than images do.
        let expected = deviation.powi(2) - images.posterior(NoiseSchedule::default().alphas_cumprod()[0]);
        prop_assert!((found / expected - 1.).abs() < 1e-3, "{found} is not {expected}");
    }
}

/// The variance that a sampler gives Gaussian images, from that of noise: each step is a·x + b·noise, and a and b are read off it.
fn variance(name: SamplerName, fixed: Variance, images: Gaussian, steps: usize) -> f64 {
    let schedule = NoiseSchedule::default();
    let mut o = options(name, steps);
    o.variance = fixed;
    let sampler = o.build(&schedule).unwrap();
    let mut state = SamplerState::default();
    let bar = |index: usize| match sampler.timesteps().get(index) {
        Some(&t) => schedule.alphas_cumprod()[t as usize],
        None => 1.,
    };
    let mut variance = 1.;
    for index in 0..steps {
        let (now, next) = (bar(index), bar(index + 1));
        let beta = 1. - now / next;
        let small = beta * (1. - next) / (1. - now);
        let of_x0 = beta * next.sqrt() / (1. - now);
        let right = small + of_x0.powi(2) * images.posterior(now);
        let v = 2. * (right / small).ln() / (beta / small).ln() - 1.;
        let mut read = |x: f64, noise: f64| {
            let x = Tensor::full([1, 1, 1, 1], x, DOUBLE);
            let output = Tensor::cat(&[images.epsilon(&x, now), x.full_like(v)], 1);
            let mut noise = Noise(|_, like: &Tensor| like.full_like(noise));
            let next = sampler.step(&mut state, index, &x, &output, &mut noise);
            next.unwrap().double_value(&[0, 0, 0, 0])
        };
        variance = read(1., 0.).powi(2) * variance + read(0., 1.).powi(2);
    }
    variance
}

#[test]
fn ddpm_encloses_the_variance_of_gaussian_images_and_closes_in_on_it() {
    let images = Gaussian {
        mean: 0.,
        deviation: 0.5,
    };
    let off = |fixed, steps| variance(SamplerName::Ddpm, fixed, images, steps) / 0.25 - 1.;
    let mut last = f64::INFINITY;
    for steps in [10, 50, 250, 1000] {
        let (small, large) = (
            off(Variance::FixedSmall, steps),
            off(Variance::FixedLarge, steps),
        );
        assert!(small < 0. && large > 0., "{steps}: {small} {large}");
        assert!(large - small < last / 2.);
        last = large - small;
    }
    assert!(last < 0.02, "{last}");
}

#[test]
fn ddim_with_eta_1_is_ddpm_with_the_small_variance() {
    let start = Tensor::linspace(-2, 2, 8, DOUBLE).view([1, 2, 2, 2]);
    let schedule = NoiseSchedule::default();
    let runs = [(SamplerName::Ddim, 1.), (SamplerName::Ddpm, 0.)].map(|(name, eta)| {
        let mut o = options(name, 13);
        o.eta = eta;
        let mut noise = Noise(|call: usize, like: &Tensor| (like + call as f64).sin());
        run(&o, &schedule, &start, &mut noise, |x, _| x.cos())
    });
    for (a, b) in runs[0].iter().zip(&runs[1]) {
        assert!(distance(a, b) < 1e-10);
    }
}

#[test]
fn noise_is_drawn_at_its_place_and_never_at_the_last_step() {
    let start = Tensor::zeros([1, 1, 2, 2], (Kind::Float, Device::Cpu));
    for name in [SamplerName::Ddim, SamplerName::Ddpm, SamplerName::Iddpm] {
        let mut o = options(name, 5);
        o.eta = f64::from(u8::from(name == SamplerName::Ddim));
        let mut drawn = Vec::new();
        let mut noise = Noise(|call, like: &Tensor| {
            drawn.push(call);
            like.zeros_like()
        });
        run(&o, &NoiseSchedule::default(), &start, &mut noise, |x, _| {
            Tensor::cat(&[x, x], 1)
        });
        assert_eq!(drawn, [1, 2, 3, 4], "{name:?}");
    }
    let mut karras = options(SamplerName::DpmSolver, 5);
    karras.karras = true;
    for o in [
        options(SamplerName::Ddim, 5),
        options(SamplerName::DpmSolver, 5),
        karras,
        options(SamplerName::Euler, 5),
        options(SamplerName::Heun, 5),
    ] {
        run(
            &o,
            &NoiseSchedule::default(),
            &start,
            &mut no_noise(),
            |x, _| x.shallow_clone(),
        );
    }
}

#[test]
fn latents_keep_their_kind_whatever_the_model_computes_in() {
    let start = Tensor::ones([1, 2, 2, 2], (Kind::Float, Device::Cpu));
    use SamplerName::*;
    for name in [Ddim, Ddpm, Iddpm, DpmSolver, Euler, Heun] {
        let mut noise = Noise(|_, like: &Tensor| like.ones_like());
        let seen = run(
            &options(name, 4),
            &NoiseSchedule::default(),
            &start,
            &mut noise,
            |x, _| Tensor::cat(&[x, x], 1).to_kind(Kind::BFloat16),
        );
        assert!(
            seen.iter()
                .all(|x| x.kind() == Kind::Float && x.size() == [1, 2, 2, 2])
        );
    }
}

#[test]
fn what_a_sampler_cannot_use_is_refused_with_a_sentence() {
    let x = Tensor::zeros([1, 2, 2, 2], (Kind::Float, Device::Cpu));
    let step = |name, index: usize, output: &[i64]| {
        let sampler = options(name, 4).build(&NoiseSchedule::default()).unwrap();
        let output = Tensor::zeros(output, (Kind::Float, Device::Cpu));
        let mut noise = Noise(|_, like: &Tensor| like.zeros_like());
        let found = sampler.step(&mut SamplerState::default(), index, &x, &output, &mut noise);
        found.unwrap_err().to_string()
    };
    assert_eq!(
        step(SamplerName::Ddim, 0, &[1, 3, 2, 2]),
        "the denoiser's output: expected the latents' shape [1, 2, 2, 2], or twice the channels, found [1, 3, 2, 2]"
    );
    assert_eq!(
        step(SamplerName::Iddpm, 0, &[1, 2, 2, 2]),
        "the denoiser's output: expected twice the latents' 2 channels, for the learned variance, found [1, 2, 2, 2]"
    );
    assert_eq!(
        step(SamplerName::Euler, 4, &[1, 2, 2, 2]),
        "index: expected a call below 4, found 4"
    );
    assert_eq!(
        step(SamplerName::Heun, 1, &[1, 2, 2, 2]),
        "index: expected a call that follows the first half of its step, found 1"
    );
}
