//! The networks that are timed: from a run, or with random weights and thresholds at which a share of the neurons fires.

use std::path::Path;

use anyhow::{Result, ensure};
use fewstep_events::Network as EventNetwork;
use fewstep_iir::percentile;
use fewstep_spiking::{Input, Network, NeuronOptions, zoo};
use tch::{Device, Tensor};

use crate::commands::export::events;
use crate::trained;

/// A network and images to run it on.
pub(super) struct Subject {
    pub network: EventNetwork,
    /// `[N, H, W, C]`.
    pub pixels: Vec<u8>,
    /// Where it comes from, in words.
    pub origin: String,
}

/// The network of a run's last stage, and the first images of its test split.
pub(super) fn trained(run: &Path, images: usize) -> Result<Subject> {
    let (trained, data) = trained::open_with_data(run, None, Device::Cpu)?;
    let (name, steps) = (&trained.network.plan().name, trained.timesteps);
    ensure!(
        ["vgg16", "resnet20"].contains(&name.as_str()) && steps == 1,
        "{}: expected a vgg16 or resnet20 at T = 1, found {name} at T = {steps}",
        run.display()
    );
    ensure!(
        data.test().len() >= images,
        "{}: expected at least {images} test images, found {}",
        run.display(),
        data.test().len()
    );
    let mut pixels = Vec::new();
    for index in 0..images {
        let image = data.test().image(index)?;
        pixels.extend(image.view().permuted_axes([1, 2, 0]).iter());
    }
    let mut network = events::network(&trained.network)?;
    network.mean = trained.images.mean;
    network.std = trained.images.std;
    network.timesteps = trained.timesteps as usize;
    Ok(Subject {
        network,
        pixels,
        origin: format!("{}, {}", run.display(), trained.stage),
    })
}

/// A network of random weights.
pub(super) struct MadeUp {
    network: Network,
    pixels: Vec<u8>,
    /// The same images, normalised, `[N, C, H, W]`.
    images: Tensor,
}

/// Mean and deviation of evenly spread pixels.
const MEAN: f32 = 0.5;
const STD: f32 = 0.288_675_1;
/// Thresholds are found on as many images.
const FOR_THRESHOLDS: i64 = 8;

impl MadeUp {
    /// A network of the zoo for images of CIFAR, on noise.
    pub fn new(name: &str, images: usize) -> Result<Self> {
        tch::manual_seed(0);
        let plan = zoo::by_name(name, [3, 32, 32], &zoo::PUBLISHED_HIDDEN, 10, 1., false)?;
        let mut network = Network::new(plan, Device::Cpu)?;
        network.add_neurons(&NeuronOptions::default())?;
        let shape = [images as i64, 32, 32, 3];
        let noise = Tensor::f_randint(256, shape, (tch::Kind::Uint8, Device::Cpu))?;
        let pixels = Vec::<u8>::try_from(&noise.f_flatten(0, -1)?)?;
        let images = noise.f_to_kind(tch::Kind::Float)?.f_permute([0, 3, 1, 2])?;
        let images = (images / 255. - f64::from(MEAN)) / f64::from(STD);
        Ok(Self {
            network,
            pixels,
            images: images.f_contiguous()?,
        })
    }

    /// With thresholds at which this share of each layer's neurons fires. (`fewstep_iir::calibrate` keeps thresholds above 0, which
    /// a rate near one half does not allow.)
    pub fn at(&mut self, rate: f64) -> Result<Subject> {
        let _guard = tch::no_grad_guard();
        let few = self.images.f_narrow(0, 0, FOR_THRESHOLDS)?;
        for place in 0..self.network.units().len() - 1 {
            let current = self
                .network
                .current(Input::Direct(&few), 1, place, &mut Vec::new())?;
            let threshold = percentile(&current, 100. * (1. - rate), false)?;
            if let Some(neuron) = &mut self.network.units_mut()[place].neuron {
                neuron.threshold.f_copy_(&threshold)?;
            }
        }
        let mut network = events::network(&self.network)?;
        network.mean = vec![MEAN; 3];
        network.std = vec![STD; 3];
        Ok(Subject {
            network,
            pixels: self.pixels.clone(),
            origin: format!(
                "random weights, {} % of each layer's neurons fire",
                100. * rate
            ),
        })
    }
}
