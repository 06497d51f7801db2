//! The event-driven engine on VGG16 and ResNet20 for CIFAR; the cases of `xtask/bench/events_peer.py`.

mod subject;

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use fewstep_events::{Images, LayerCounts, Model, Options as SessionOptions, Precision};
use serde_json::{Value, json};

use super::Options;
use crate::commands::{print, tell};
use subject::{MadeUp, Subject};

/// Images that are run; a batch of one takes them in turn.
const IMAGES: usize = 32;
/// Share of each layer's neurons that fires in a made-up network.
const RATE: f64 = 0.1;
/// The same in the sweep.
const RATES: [f64; 7] = [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5];
const PRECISIONS: [(&str, Precision); 2] =
    [("fp32", Precision::Float32), ("int8", Precision::Int8)];
/// Ways to run a layer in the sweep: `dense_above` of the session. Eight-bit weights have no dense way.
const WAYS: [(&str, f32); 2] = [("events", 4.), ("dense", 0.)];

/// Each network, precision and batch; on one thread also VGG16 by spike rate.
pub(super) fn bench(options: &Options) -> Result<()> {
    let kept = options.models.clone();
    let lost = tempfile::tempdir().context("cannot make a folder for the model files")?;
    let folder = kept.as_deref().unwrap_or(lost.path());
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let trained = options
        .runs
        .iter()
        .map(|run| subject::trained(run, IMAGES))
        .collect::<Result<Vec<Subject>>>()?;
    for name in ["vgg16", "resnet20"] {
        let mut made_up = MadeUp::new(name, IMAGES)?;
        match trained.iter().find(|subject| subject.network.name == name) {
            Some(subject) => cases(subject, folder, options)?,
            None => cases(&made_up.at(RATE)?, folder, options)?,
        }
        if name == "vgg16" && options.threads == 1 {
            sweep(&mut made_up, options)?;
        }
    }
    Ok(())
}

fn cases(subject: &Subject, folder: &Path, options: &Options) -> Result<()> {
    let name = &subject.network.name;
    tell(&format!("{name}: {}", subject.origin));
    for (word, precision) in PRECISIONS {
        let path = folder.join(format!("{name}-{word}.events"));
        subject.network.save(&path, precision)?;
        let model = Model::open(&path)?;
        for batch in [1, IMAGES] {
            let mut line = time(&model, subject, batch, SessionOptions::default(), options)?;
            line["name"] = json!(format!("{name}-{word}-b{batch}"));
            line["origin"] = json!(subject.origin);
            print(&line.to_string())?;
        }
    }
    Ok(())
}

/// Everything by adding rows, everything densely, and what the engine chooses, one image at a time.
fn sweep(made_up: &mut MadeUp, options: &Options) -> Result<()> {
    for rate in RATES {
        let subject = made_up.at(rate)?;
        for (word, precision) in PRECISIONS {
            let model = Model::from_network(&subject.network, precision)?;
            let chosen = ("chosen", SessionOptions::default().dense_above);
            let ways = WAYS.into_iter().chain([chosen]);
            for (way, dense_above) in
                ways.filter(|(way, _)| precision == Precision::Float32 || *way == "events")
            {
                let session = SessionOptions {
                    dense_above,
                    ..SessionOptions::default()
                };
                let mut line = time(&model, &subject, 1, session, options)?;
                let case = format!("{}-{word}-b1", subject.network.name);
                line["name"] = json!(format!("{case}-rate-{rate}-{way}"));
                line["beside"] = json!(case);
                line["rate"] = json!(rate);
                line["judged"] = json!(false);
                print(&line.to_string())?;
            }
        }
    }
    Ok(())
}

/// Milliseconds of each batch after the warm-up, and what a batch takes in additions and bytes of weights.
fn time(
    model: &Model,
    subject: &Subject,
    batch: usize,
    session: SessionOptions,
    options: &Options,
) -> Result<Value> {
    let session = SessionOptions {
        threads: options.threads as usize,
        ..session
    };
    let size = subject.pixels.len() / IMAGES;
    let mut scores = vec![0.; IMAGES * model.classes()];

    let mut counting = model.session(SessionOptions {
        count: true,
        ..session
    })?;
    for (image, scores) in subject
        .pixels
        .chunks(size * batch)
        .zip(scores.chunks_mut(model.classes() * batch))
    {
        counting.run(Images::Pixels(image), scores)?;
    }
    ensure!(
        scores.iter().all(|score| score.is_finite()),
        "{}: the scores are not finite; the measurement is void",
        model.name()
    );
    let counts = counting.counts();
    let of_a_batch = |what: fn(&LayerCounts) -> u64| {
        counts.iter().map(what).sum::<u64>() as f64 * batch as f64 / IMAGES as f64 / 1e9
    };
    let shares: Vec<f64> = counts[1..]
        .iter()
        .map(|c| c.spikes as f64 / c.inputs.max(1) as f64)
        .collect();

    let mut running = model.session(session)?;
    let scores = &mut scores[..model.classes() * batch];
    let mut images = subject.pixels.chunks(size * batch).cycle();
    let mut run = || -> Result<f64> {
        let image = images.next().unwrap_or_default();
        let start = Instant::now();
        running.run(Images::Pixels(image), scores)?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    };
    for _ in 0..options.warmup {
        run()?;
    }
    // As the peers: a batch of one ten times as often.
    let samples = options.samples * if batch == 1 { 10 } else { 1 };
    let ms = (0..samples).map(|_| run()).collect::<Result<Vec<f64>>>()?;
    Ok(json!({
        "ms": ms, "threads": options.threads, "batch": batch,
        "gadd": of_a_batch(|c| c.additions), "gbyte": of_a_batch(|c| c.weight_bytes), "input_shares": shares,
    }))
}
