//! `--examples N`: test images as the network takes them, and what it answers, to hold another program against.

use std::path::Path;

use anyhow::Result;
use fewstep_datasets::{Loader, LoaderOptions};
use fewstep_iir::Data;
use fewstep_spiking::{Forward, Input};
use fewstep_torch::Checkpoint;
use tch::Tensor;

use crate::trained::Trained;

/// Images at a time.
const BATCH: usize = 100;

/// Writes `images` (float `[N, C, H, W]`, normalised), `labels` and `logits` (`[N, classes]`, summed over T) of the first `count` images of
/// the test split, or all where there are fewer.
pub(super) fn write(trained: &Trained, data: &Data, count: usize, path: &Path) -> Result<()> {
    let options = LoaderOptions {
        batch_size: BATCH.min(count),
        statistics: data.statistics().clone(),
        ..LoaderOptions::default()
    };
    let loader = Loader::new(data.test().clone(), options)?;
    let forward = Forward::evaluation(trained.mode);
    let (mut images, mut labels, mut logits) = (Vec::new(), Vec::new(), Vec::new());
    let _guard = tch::no_grad_guard();
    for batch in loader.epoch(0).take(count.div_ceil(BATCH)) {
        let batch = batch?;
        let shape: Vec<i64> = batch.images.shape().iter().map(|&d| d as i64).collect();
        let pixels: Vec<f32> = batch.images.iter().copied().collect();
        let x = Tensor::f_from_slice(&pixels)?.f_view(shape.as_slice())?;
        logits.push(
            trained
                .network
                .forward(Input::Direct(&x), &forward, None)?
                .logits,
        );
        labels.push(Tensor::f_from_slice(&batch.labels)?);
        images.push(x);
    }
    let together = |parts: &[Tensor]| -> Result<Tensor> {
        let all = Tensor::f_cat(parts, 0)?;
        Ok(all.f_narrow(0, 0, all.size()[0].min(count as i64))?)
    };
    Ok(Checkpoint::new()
        .with("images", &together(&images)?)
        .with("labels", &together(&labels)?)
        .with("logits", &together(&logits)?)
        .save(path)?)
}
