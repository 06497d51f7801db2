//! `fewstep evaluate SAMPLES --reference REF`: how good generated images are, as published papers measure it.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use fewstep_features::{
    Evaluator, FeatureNetwork, Figure, Inception, Measured, Metric, ResNet56, Resize,
};
use fewstep_metrics::{KernelOptions, Splits};
use fewstep_torch::{DeviceChoice, device};
use serde_json::{Map, Value, json};
use tch::Device;

use crate::images::{ImageSource, Reference, write_statistics};
use crate::progress::{Progress, ProgressMode};
use crate::report::{Style, text};

/// Options of `fewstep evaluate`.
#[derive(Args, Debug, Clone)]
#[command(
    after_help = "Example: fewstep evaluate samples.npz --reference VIRTUAL_imagenet256_labeled.npz --json"
)]
pub struct Options {
    /// Generated images: an .npz as ADM writes it, or a folder of PNG or JPEG files
    pub samples: PathBuf,
    /// What they are compared with: images as above, or an .npz of statistics (pytorch-fid's, ADM's)
    #[arg(long, value_name = "PATH")]
    pub reference: Option<PathBuf>,
    /// Whose features
    #[arg(long, value_enum, default_value_t = Network::Inception)]
    pub network: Network,
    /// Its weights [default: where `fewstep data fetch` puts them]
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,
    /// fid, sfid, is, precision, recall, kid, separated by commas [default: all that network and reference allow]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = metric)]
    pub metrics: Vec<Metric>,
    /// How images come to Inception's 299×299 pixels: as in ADM and torch-fidelity, or as in pytorch-fid
    #[arg(long, value_enum, default_value_t = How::Tensorflow)]
    pub resize: How,
    /// Images at a time
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub batch_size: u32,
    /// Equal splits of the Inception Score (torch-fidelity: 10) [default: splits of 5000 images, as in ADM]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub splits: Option<u64>,
    /// Random subsets of the kernel distance
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub kid_subsets: u32,
    /// Images of each set in a subset, at most those that there are
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(2..=50_000))]
    pub kid_subset_size: u32,
    /// Of the subsets
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Write the statistics of SAMPLES, to be a reference later
    #[arg(long, value_name = "FILE.npz")]
    pub save_statistics: Option<PathBuf>,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Threads of libtorch [default: what libtorch finds]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=1024))]
    pub threads: Option<i32>,
    /// No progress, only the result
    #[arg(long)]
    pub quiet: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// Networks that give features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Network {
    /// FID's InceptionV3
    Inception,
    /// The CIFAR-10 ResNet-56 of akamaster/pytorch_resnet_cifar10: fd-resnet56
    Resnet56,
}

/// How images are resized for Inception.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum How {
    /// ADM, torch-fidelity, the original FID
    Tensorflow,
    /// pytorch-fid
    Pytorch,
}

fn metric(name: &str) -> Result<Metric, String> {
    let short = |metric: &Metric| match metric {
        Metric::InceptionScore => "is",
        metric => metric.name(),
    };
    let known = Metric::ALL.iter().map(short).collect::<Vec<_>>().join(", ");
    Metric::ALL
        .into_iter()
        .find(|m| name == short(m) || name == m.name())
        .ok_or_else(|| format!("expected some of {known}"))
}

/// Measures and prints.
///
/// # Errors
/// Samples, reference or weights are not there or damaged, or a metric cannot be taken on them; one sentence.
pub fn evaluate(options: &Options) -> Result<()> {
    let samples = ImageSource::open(&options.samples)?;
    let reference = options
        .reference
        .as_deref()
        .map(Reference::open)
        .transpose()?;
    let plan = Plan::new(options, reference.as_ref())?;
    if samples.count() < 2 {
        bail!(
            "{}: expected at least 2 images, found {}",
            options.samples.display(),
            samples.count()
        );
    }
    if let Some(splits) = options.splits
        && splits > samples.count() as u64
    {
        bail!(
            "--splits: expected at most the number of samples, {}, found {splits}",
            samples.count()
        );
    }
    let device = device::resolve(options.device.parse::<DeviceChoice>()?)?;
    if let Some(threads) = options.threads {
        tch::set_num_threads(threads);
    }
    let network = open_network(options, device)?;
    let work = Work {
        network: network.as_ref(),
        batch: options.batch_size as usize,
        mode: ProgressMode::detect(options.quiet),
    };
    let reference = reference.map(|r| work.reference(r, &plan)).transpose()?;
    let splits = match options.splits {
        Some(splits) => Splits::Equal {
            splits,
            of: samples.count() as u64,
        },
        None => Splits::OfSize(5000),
    };
    let measured = work.images("samples", &samples, &plan.of_samples, Some(splits))?;
    if let (Some(path), Some(pooled)) = (&options.save_statistics, measured.pooled()) {
        write_statistics(path, pooled, measured.spatial())?;
        super::tell(&format!(
            "the statistics of the samples are in {}",
            path.display()
        ));
    }
    let kid = KernelOptions {
        subsets: options.kid_subsets as usize,
        subset_size: options.kid_subset_size as usize,
        seed: options.seed,
    };
    let figures = match &reference {
        Some(reference) => measured.compare(reference, kid)?,
        None => alone(&measured, &plan),
    };
    let figures: Vec<Figure> = figures
        .into_iter()
        .filter(|figure| plan.shown(figure, network.as_ref()))
        .collect();
    print(options, samples.count(), &figures)
}

/// Figures that need no reference.
fn alone(measured: &Measured, plan: &Plan) -> Vec<Figure> {
    if !plan.shown.contains(&Metric::InceptionScore) {
        return Vec::new();
    }
    measured.inception_score().into_iter().collect()
}

/// What is taken of which set.
struct Plan {
    /// Figures to print.
    shown: Vec<Metric>,
    of_samples: Vec<Metric>,
    /// Of the images of the reference.
    of_reference: Vec<Metric>,
}

impl Plan {
    fn new(options: &Options, reference: Option<&Reference>) -> Result<Self> {
        let network: &[Metric] = match options.network {
            Network::Inception => &Metric::ALL,
            Network::Resnet56 => &[Metric::Fid],
        };
        let path = options.reference.as_deref().unwrap_or(Path::new(""));
        // Why a metric cannot be taken, if it cannot.
        let lacks = |metric: &Metric| -> Option<String> {
            let name = metric.name();
            if !network.contains(metric) {
                return Some(format!(
                    "--metrics: {name} is taken on Inception's features; --network resnet56 gives fd-resnet56 (fid) only"
                ));
            }
            if *metric == Metric::InceptionScore {
                return None;
            }
            let Some(reference) = reference else {
                return Some(format!("--metrics: {name} needs --reference"));
            };
            let moments = reference.moments.as_ref();
            let there = match metric {
                Metric::Fid => moments.is_some(),
                Metric::Sfid => moments.is_some_and(|m| m.spatial.is_some()),
                _ => false,
            };
            if there || reference.images.is_some() {
                return None;
            }
            Some(format!(
                "--metrics: {name} needs {}, found none in {}",
                if *metric == Metric::Sfid {
                    "mu_s and sigma_s or images"
                } else {
                    "images"
                },
                path.display()
            ))
        };
        let mut shown = Vec::new();
        let asked = !options.metrics.is_empty();
        for metric in Metric::ALL {
            match lacks(&metric) {
                None if !asked || options.metrics.contains(&metric) => shown.push(metric),
                Some(why) if asked && options.metrics.contains(&metric) => bail!(why),
                _ => {}
            }
        }
        let mut of_samples = shown.clone();
        if options.save_statistics.is_some() {
            for metric in [Metric::Fid, Metric::Sfid] {
                if network.contains(&metric) && !of_samples.contains(&metric) {
                    of_samples.push(metric);
                }
            }
        }
        if of_samples.is_empty() {
            bail!("expected --reference, or --save-statistics to make one");
        }
        let moments = reference.and_then(|r| r.moments.as_ref());
        let of_reference = shown.iter().copied().filter(|metric| match metric {
            Metric::InceptionScore => false,
            Metric::Fid => moments.is_none(),
            Metric::Sfid => moments.is_none_or(|m| m.spatial.is_none()),
            _ => true,
        });
        Ok(Self {
            of_reference: of_reference.collect(),
            of_samples,
            shown,
        })
    }

    fn shown(&self, figure: &Figure, network: &dyn FeatureNetwork) -> bool {
        self.shown.iter().any(|metric| {
            figure.name == metric.name()
                || *metric == Metric::Fid && figure.name == network.distance_name()
        })
    }
}

fn open_network(options: &Options, device: Device) -> Result<Box<dyn FeatureNetwork>> {
    let weights = |name: &str| match &options.weights {
        Some(path) => Ok(path.clone()),
        None => fewstep_datasets::find_weights(name),
    };
    Ok(match options.network {
        Network::Inception => {
            let resize = match options.resize {
                How::Tensorflow => Resize::TensorFlow,
                How::Pytorch => Resize::Torch,
            };
            Box::new(Inception::load(&weights("inception")?, resize, device)?)
        }
        Network::Resnet56 => Box::new(ResNet56::load(&weights("resnet56")?, device)?),
    })
}

struct Work<'a> {
    network: &'a dyn FeatureNetwork,
    batch: usize,
    mode: ProgressMode,
}

impl Work<'_> {
    fn images(
        &self,
        label: &str,
        images: &ImageSource,
        wanted: &[Metric],
        splits: Option<Splits>,
    ) -> Result<Measured> {
        let mut evaluator = Evaluator::new(self.network, wanted)?.with_batch_size(self.batch);
        if let Some(splits) = splits {
            evaluator = evaluator.with_splits(splits)?;
        }
        let mut progress = Progress::new(self.mode, label, images.count() as u64);
        images.batches(self.batch, |batch| -> Result<()> {
            evaluator.add(batch)?;
            progress.set(evaluator.count(), "images");
            Ok(())
        })?;
        progress.finish(format!("{} images", evaluator.count()));
        Ok(evaluator.finish()?)
    }

    fn reference(&self, reference: Reference, plan: &Plan) -> Result<Measured> {
        let wanted = &plan.of_reference;
        let images = match &reference.images {
            Some(images) if !wanted.is_empty() => {
                Some(self.images("reference", images, wanted, None)?)
            }
            _ => None,
        };
        let Some(moments) = reference.moments else {
            // Without statistics there are images; they are not looked at when nothing is asked of them.
            return match images {
                Some(images) => Ok(images),
                None => Ok(Measured::from_statistics(self.network, None, None)?),
            };
        };
        let measured =
            Measured::from_statistics(self.network, Some(moments.pooled), moments.spatial)?;
        Ok(match images {
            Some(images) => measured.with_features_of(images),
            None => measured,
        })
    }
}

fn print(options: &Options, count: usize, figures: &[Figure]) -> Result<()> {
    let (network, resize) = match (options.network, options.resize) {
        (Network::Resnet56, _) => ("resnet56", None),
        (Network::Inception, How::Tensorflow) => ("inception", Some("tensorflow")),
        (Network::Inception, How::Pytorch) => ("inception", Some("pytorch")),
    };
    if options.json {
        let mut all: Map<String, Value> = Map::new();
        all.insert("samples".into(), json!(options.samples));
        all.insert("samples_count".into(), json!(count));
        all.insert("reference".into(), json!(options.reference));
        all.insert("network".into(), json!(network));
        all.insert("resize".into(), json!(resize));
        for figure in figures {
            all.insert(figure.name.into(), json!(figure.value));
            if let Some(std) = figure.std {
                all.insert(format!("{}_std", figure.name), json!(std));
            }
        }
        return super::print(&serde_json::to_string_pretty(&all)?);
    }
    if figures.is_empty() {
        return Ok(());
    }
    let rows: Vec<[String; 3]> = figures
        .iter()
        .map(|figure| {
            let std = figure.std.map_or("-".to_owned(), |std| format!("{std:.6}"));
            [figure.name.to_owned(), format!("{:.6}", figure.value), std]
        })
        .collect();
    super::print(&text(&["figure", "value", "std"], &rows, Style::detect()))?;
    super::print(&format!("{count} samples, features of {network}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> Options {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            options: Options,
        }
        let words = [&["evaluate", "samples.npz"], words].concat();
        <Line as clap::Parser>::parse_from(words).options
    }

    fn images() -> ImageSource {
        ImageSource::Folder {
            files: vec!["a.png".into()],
        }
    }

    fn moments() -> crate::images::Moments {
        let one = || fewstep_metrics::FeatureStatistics::from_moments(9, &[0.0], &[1.0]).unwrap();
        crate::images::Moments {
            pooled: one(),
            spatial: Some(one()),
        }
    }

    #[test]
    fn the_reference_decides_what_is_measured() {
        use Metric::{Fid, InceptionScore, Kid, Precision, Recall, Sfid};
        let plan = |words: &[&str], reference: Option<&Reference>| {
            let plan = Plan::new(&options(words), reference).unwrap();
            (plan.shown, plan.of_samples, plan.of_reference)
        };
        let of_images = Reference {
            moments: None,
            images: Some(images()),
        };
        let all = Metric::ALL.to_vec();
        let but_score = vec![Fid, Sfid, Precision, Recall, Kid];
        assert_eq!(
            plan(&[], Some(&of_images)),
            (all.clone(), all.clone(), but_score)
        );
        let adm = Reference {
            moments: Some(moments()),
            images: Some(images()),
        };
        let pairs = vec![Precision, Recall, Kid];
        assert_eq!(plan(&[], Some(&adm)), (all.clone(), all, pairs));
        let published = Reference {
            moments: Some(moments()),
            images: None,
        };
        let some = vec![Fid, Sfid, InceptionScore];
        assert_eq!(plan(&[], Some(&published)), (some.clone(), some, vec![]));
        let score = vec![InceptionScore];
        assert_eq!(plan(&[], None), (score.clone(), score.clone(), vec![]));
        let saved = plan(&["--save-statistics", "x.npz", "--metrics", "is"], None);
        assert_eq!(saved, (score, vec![InceptionScore, Fid, Sfid], vec![]));
        let resnet = plan(&["--network", "resnet56"], Some(&of_images));
        assert_eq!(resnet, (vec![Fid], vec![Fid], vec![Fid]));
    }

    #[test]
    fn what_cannot_be_measured_is_said() {
        let said = |words: &[&str], reference: Option<&Reference>| {
            let error = Plan::new(&options(words), reference).err();
            error.map(|e| e.to_string()).unwrap_or_default()
        };
        let published = Reference {
            moments: Some(moments()),
            images: None,
        };
        assert_eq!(
            said(&["--metrics", "fid,kid"], None),
            "--metrics: fid needs --reference"
        );
        let words = ["--metrics", "fid,kid", "--reference", "stats.npz"];
        assert_eq!(
            said(&words, Some(&published)),
            "--metrics: kid needs images, found none in stats.npz"
        );
        assert_eq!(
            said(&["--network", "resnet56"], None),
            "expected --reference, or --save-statistics to make one"
        );
        let words = ["--network", "resnet56", "--metrics", "is"];
        assert!(said(&words, None).contains("is taken on Inception's features"));
        assert!(
            metric("fids")
                .unwrap_err()
                .contains("fid, sfid, is, precision")
        );
    }
}
