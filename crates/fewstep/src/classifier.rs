//! A small classifier that judges samples: its features for a Fréchet distance, its answers for the share of samples that are the
//! class asked for. It is the artificial network of an IIR-SNN run.

use std::path::Path;

use anyhow::{Context, Result, bail};
use fewstep_iir::Data;
use fewstep_metrics::FeatureStatistics;
use fewstep_spiking::{Forward, Input, Network};
use fewstep_torch::Checkpoint;
use ndarray::ArrayView4;
use tch::{Device, Kind, Tensor};

use crate::config::ConfigSource;
use crate::experiment::Experiment;

/// The recipe and the weights of the classifier that fewstep carries.
const DIGITS: (&str, &[u8]) = (
    include_str!("../../../configs/harmonica/digits-classifier.toml"),
    include_bytes!("../../../configs/harmonica/weights/digits-classifier.safetensors"),
);
/// Images at a time.
const BATCH: usize = 256;

/// A trained classifier and how its images are normalised.
pub struct Classifier {
    network: Network,
    mean: Tensor,
    std: Tensor,
}

impl Classifier {
    /// `digits`, the one that fewstep carries, or the folder of a finished IIR-SNN run.
    ///
    /// # Errors
    /// No such run, or its data set is not there (its pixels' mean and deviation are needed).
    pub fn open(name: &str, device: Device) -> Result<Self> {
        let (source, weights) = match name {
            "digits" => (
                ConfigSource::parse("configs/harmonica/digits-classifier.toml", DIGITS.0, &[])?,
                Checkpoint::from_bytes(DIGITS.1, Path::new("the carried classifier"))?,
            ),
            _ => {
                let folder = Path::new(name);
                let best = folder.join("checkpoints/ann/best.safetensors");
                if !best.exists() {
                    bail!(
                        "expected `digits` or the folder of an IIR-SNN run, found {name} without checkpoints/ann/best.safetensors"
                    );
                }
                (
                    ConfigSource::read(&folder.join("config.toml"), &[])?,
                    Checkpoint::load(&best)?,
                )
            }
        };
        let experiment: Experiment = source.deserialize()?;
        let data = &experiment.data;
        let data = Data::open_with(&data.spec(), &data.options(), experiment.seed)
            .with_context(|| format!("the data set of the classifier {name}"))?;
        let shape = data.shape();
        let input = [shape.channels, shape.height, shape.width].map(|d| d as i64);
        let plan = experiment
            .network
            .plan(input, data.class_names().len() as i64)?;
        let mut network = Network::new(plan, device)?;
        network.load(&weights.section(""), name)?;
        let column = |values: &[f32]| -> Result<Tensor> {
            Ok(Tensor::f_from_slice(values)?
                .f_view([1, -1, 1, 1])?
                .f_to_device(device)?)
        };
        Ok(Self {
            mean: column(&data.statistics().mean)?,
            std: column(&data.statistics().std)?,
            network,
        })
    }

    /// Statistics of the features, and the class of each image; bytes (N, H, W, C).
    ///
    /// # Errors
    /// Images of another shape.
    pub fn judge(&self, images: ArrayView4<'_, u8>) -> Result<(FeatureStatistics, Vec<i64>)> {
        let _guard = tch::no_grad_guard();
        let mut statistics: Option<FeatureStatistics> = None;
        let mut classes = Vec::new();
        for batch in images.axis_chunks_iter(ndarray::Axis(0), BATCH) {
            let size: Vec<i64> = batch.shape().iter().map(|&d| d as i64).collect();
            let bytes: Vec<u8> = batch.iter().copied().collect();
            let x = Tensor::f_from_slice(&bytes)?
                .f_view(size.as_slice())?
                .f_permute([0, 3, 1, 2])?
                .f_to_device(self.mean.device())?
                .f_to_kind(Kind::Float)?
                .f_div_scalar(255.)?
                .f_sub(&self.mean)?
                .f_div(&self.std)?;
            let features = self.network.features(&x)?.f_to_device(Device::Cpu)?;
            let logits = self
                .network
                .forward(Input::Direct(&x), &Forward::analog(), None)?;
            classes.extend(Vec::<i64>::try_from(logits.logits.f_argmax(1, false)?)?);
            let width = features.size().last().copied().unwrap_or(0) as usize;
            let rows = Vec::<f32>::try_from(features.f_contiguous()?.f_flatten(0, -1)?)?;
            match &mut statistics {
                Some(s) => s.add(&rows)?,
                None => {
                    let mut s = FeatureStatistics::new(width)?;
                    s.add(&rows)?;
                    statistics = Some(s);
                }
            }
        }
        let statistics = statistics.context("there are no images to judge")?;
        Ok((statistics, classes))
    }
}
