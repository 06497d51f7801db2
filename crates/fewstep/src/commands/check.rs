//! `fewstep check`: whether a device gives the CPU's numbers, on the inputs and weights of every parity fixture.

mod diffusion;
mod features;
mod learning;
mod spiking;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use fewstep_diffusion::DitConfig;
use fewstep_torch::{Checkpoint, DeviceChoice, Precision, device};
use serde::de::value::{Error as Unknown, StrDeserializer};
use serde::{Deserialize, Serialize, de::IntoDeserializer};
use tch::{Device, Kind, Tensor};

use crate::progress::{Progress, ProgressMode};
use crate::report::{Style, text};

/// Options of `fewstep check`.
#[derive(Args, Debug, Clone)]
#[command(
    after_help = "Exits with 1 where a figure is off by more than it may be. The inputs are those of tests/parity, where the CPU is \
                  compared with Python.\n\nExample: fewstep check --device cuda:0 --precision bfloat16"
)]
pub struct Options {
    /// The device to compare with the CPU: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: DeviceChoice,
    /// Its number format; the CPU computes in float32
    #[arg(long, value_name = "FORMAT", default_value = "float32", value_parser = precision)]
    pub precision: Precision,
    /// Only checks whose name contains this
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,
    /// No progress, only the result
    #[arg(long)]
    pub quiet: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// As in configs.
pub(super) fn precision(name: &str) -> Result<Precision, Unknown> {
    let name: StrDeserializer<Unknown> = name.into_deserializer();
    Precision::deserialize(name)
}

/// Where a check is computed.
#[derive(Clone, Copy)]
struct Place {
    device: Device,
    precision: Precision,
    seed: u64,
}

impl Place {
    /// The number format of a model's weights.
    fn kind(&self) -> Kind {
        match self.precision {
            Precision::Bfloat16 => Kind::BFloat16,
            _ => Kind::Float,
        }
    }

    fn put(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.f_to_device(self.device)?)
    }
}

/// A DiT of ten classes on `[channels, 8, 8]`, in patches of 2 × 2.
fn small_dit(channels: i64, depth: i64, width: i64, heads: i64) -> Result<DitConfig> {
    let shape = DitConfig::named("S/2", 8, channels).context("DiT-S/2 is not known")?;
    Ok(DitConfig {
        depth,
        width,
        heads,
        classes: 10,
        ..shape
    })
}

/// What a check has computed: tensors by name, in the order in which they are to be shown.
type Named = Vec<(String, Tensor)>;

/// When two results agree.
#[derive(Clone, Copy, PartialEq)]
enum Rule {
    /// In float32 each element is within [`FLOAT32`] of the CPU's, relative to the largest of its tensor; in TF32 and bfloat16, of which
    /// a single element knows three digits and two, the tensor is within [`TF32`] and [`BFLOAT16`], in the mean square.
    Close,
    /// Curves of a training, apart by less than those of two seeds are on the CPU (root mean square).
    Curves,
}

const FLOAT32: f64 = 1e-4;
const TF32: f64 = 5e-3;
const BFLOAT16: f64 = 2e-2;

/// One check.
struct Check {
    name: &'static str,
    rule: Rule,
    coarser: Coarser,
    run: Run,
}

type Run = fn(&Place) -> Result<Named>;

/// What can be asked of a check in TF32 and bfloat16, and why no more.
#[derive(Clone, Copy)]
enum Coarser {
    /// All of it, by the same rule.
    All,
    /// In TF32 these curves, for roundings grow along the trajectories that are learned from.
    Tf32Curves(Run, &'static str),
    Nothing(&'static str),
}

const CHECKS: &[Check] = &[
    Check {
        name: "spiking networks, logits and gradients, T = 1 to 5",
        rule: Rule::Close,
        coarser: Coarser::Nothing("a potential near its threshold fires or not"),
        run: spiking::spiking,
    },
    Check {
        name: "artificial network, logits and gradients",
        rule: Rule::Close,
        coarser: Coarser::All,
        run: spiking::artificial,
    },
    Check {
        name: "samplers, 32 trajectories",
        rule: Rule::Close,
        coarser: Coarser::Nothing("samplers compute in float32"),
        run: diffusion::samplers,
    },
    Check {
        name: "DiT, both conventions",
        rule: Rule::Close,
        coarser: Coarser::All,
        run: diffusion::dit,
    },
    Check {
        name: "autoencoders",
        rule: Rule::Close,
        coarser: Coarser::All,
        run: diffusion::autoencoders,
    },
    Check {
        name: "sampling with a cache plan",
        rule: Rule::Close,
        coarser: Coarser::Nothing("roundings grow along a trajectory"),
        run: learning::cached,
    },
    Check {
        name: "learning a router, three trajectories",
        rule: Rule::Close,
        coarser: Coarser::Tf32Curves(
            learning::router_losses,
            "routers are learned in float32 or TF32",
        ),
        run: learning::router,
    },
    Check {
        name: "features of InceptionV3 and ResNet-56",
        rule: Rule::Close,
        coarser: Coarser::Nothing("features are taken in float32"),
        run: features::features,
    },
    Check {
        name: "training a spiking network, 50 steps each",
        rule: Rule::Curves,
        coarser: Coarser::All,
        run: learning::spiking_curves,
    },
    Check {
        name: "training a DiT, 50 steps",
        rule: Rule::Curves,
        coarser: Coarser::All,
        run: learning::dit_curve,
    },
];

/// What came of a check.
#[derive(Serialize)]
struct Outcome {
    check: &'static str,
    /// The tensor that is furthest off.
    worst: String,
    off: f64,
    may_be: f64,
    tensors: usize,
    agrees: bool,
    seconds: f64,
}

/// Compares, prints a table; exits with 1 where something is off.
///
/// # Errors
/// The device is not there, or libtorch refuses; one sentence.
pub fn check(options: &Options) -> Result<ExitCode> {
    let found = Place {
        device: device::resolve(options.device)?,
        precision: options.precision,
        seed: 0,
    };
    let only = options.only.as_deref().unwrap_or_default();
    let chosen: Vec<&Check> = CHECKS.iter().filter(|c| c.name.contains(only)).collect();
    if chosen.is_empty() {
        let names: Vec<_> = CHECKS.iter().map(|c| c.name).collect();
        bail!("--only: expected a part of one of {names:?}, found {only:?}");
    }
    let mode = ProgressMode::detect(options.quiet || options.json);
    let mut progress = Progress::new(mode, "checks", chosen.len() as u64);
    let (mut outcomes, mut skipped) = (Vec::new(), Vec::new());
    for (done, check) in chosen.iter().enumerate() {
        progress.set(done as u64, check.name);
        match check.asked_in(found.precision) {
            Err(why) => skipped.push((check.name, why)),
            Ok(asked) => outcomes.push(
                check
                    .outcome(asked, &found)
                    .with_context(|| check.name.to_owned())
                    .map_err(|e| anyhow::anyhow!("{e:#}"))?,
            ),
        }
    }
    progress.finish(format!("{} done", outcomes.len()));
    if outcomes.is_empty() {
        let why: Vec<_> = skipped
            .iter()
            .map(|(name, why)| format!("{name} ({why})"))
            .collect();
        bail!(
            "--only: nothing of it can be asked in {}: {}",
            found.precision.name(),
            why.join(", ")
        );
    }
    let (on, agree) = (
        device::name(found.device),
        outcomes.iter().all(|o| o.agrees),
    );
    if options.json {
        let all = serde_json::json!({
            "device": on,
            "precision": options.precision,
            "agrees": agree,
            "checks": outcomes,
            "not_asked_in_this_precision": skipped.iter().map(|(name, _)| name).collect::<Vec<_>>(),
        });
        super::print(&serde_json::to_string_pretty(&all)?)?;
    } else {
        let rows: Vec<_> = outcomes.iter().map(Outcome::row).collect();
        super::print(&text(&HEADER, &rows, Style::detect()))?;
        for (name, why) in &skipped {
            super::print(&format!("not asked in this precision: {name} ({why})"))?;
        }
        let verdict = if agree { "agrees" } else { "does not agree" };
        super::print(&format!("{on} {verdict} with the CPU in float32"))?;
    }
    Ok(if agree {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

const HEADER: [&str; 6] = ["check", "tensors", "worst", "off by", "may be", "s"];

impl Outcome {
    fn row(&self) -> [String; 6] {
        let mark = if self.agrees { "" } else { " !" };
        [
            self.check.to_owned(),
            self.tensors.to_string(),
            self.worst.clone(),
            format!("{:.1e}{mark}", self.off),
            format!("{:.0e}", self.may_be),
            format!("{:.1}", self.seconds),
        ]
    }
}

impl Check {
    /// What is asked in this precision, and by which rule; or why nothing is.
    fn asked_in(&self, precision: Precision) -> Result<(Run, Rule), &'static str> {
        match (precision, self.coarser) {
            (Precision::Float32, _) | (_, Coarser::All) => Ok((self.run, self.rule)),
            (Precision::Tf32, Coarser::Tf32Curves(run, _)) => Ok((run, Rule::Curves)),
            (_, Coarser::Tf32Curves(_, why) | Coarser::Nothing(why)) => Err(why),
        }
    }

    fn outcome(&self, (run, rule): (Run, Rule), found: &Place) -> Result<Outcome> {
        let start = Instant::now();
        let cpu = Place {
            device: Device::Cpu,
            precision: Precision::Float32,
            seed: 0,
        };
        let expected = run(&cpu)?;
        // A training turns it on itself.
        let tf32 = match rule {
            Rule::Close => Some(found.precision.tf32()?),
            Rule::Curves => None,
        };
        let seen = run(found)?;
        drop(tf32);
        let (distance, may_be): (fn(&Tensor, &Tensor) -> Result<f64>, _) = match rule {
            Rule::Close => match found.precision {
                Precision::Float32 => (furthest, FLOAT32),
                Precision::Tf32 => (relative_root_mean_square, TF32),
                Precision::Bfloat16 => (relative_root_mean_square, BFLOAT16),
            },
            Rule::Curves => {
                let other = run(&Place { seed: 1, ..cpu })?;
                // The smaller the stricter, where there are several curves.
                let noise = apart(&other, &expected, root_mean_square)?
                    .into_iter()
                    .fold(f64::INFINITY, f64::min);
                (root_mean_square, noise)
            }
        };
        let all = apart(&seen, &expected, distance)?;
        let worst = (0..all.len()).max_by(|&a, &b| all[a].total_cmp(&all[b]));
        let worst = worst.context("nothing was computed")?;
        Ok(Outcome {
            check: self.name,
            worst: seen[worst].0.clone(),
            off: all[worst],
            may_be,
            tensors: all.len(),
            agrees: all[worst] <= may_be,
            seconds: start.elapsed().as_secs_f64(),
        })
    }
}

/// The distance between each pair.
fn apart(
    found: &Named,
    expected: &Named,
    distance: fn(&Tensor, &Tensor) -> Result<f64>,
) -> Result<Vec<f64>> {
    if found.len() != expected.len() {
        bail!("{} tensors instead of {}", found.len(), expected.len());
    }
    let pairs = found.iter().zip(expected);
    pairs
        .map(|((name, a), (other, b))| {
            if name != other || a.size() != b.size() {
                bail!("{name} {:?} instead of {other} {:?}", a.size(), b.size());
            }
            let double = |t: &Tensor| t.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double);
            let off = distance(&double(a)?, &double(b)?)?;
            Ok(if off.is_nan() { f64::INFINITY } else { off })
        })
        .collect()
}

/// The largest difference over the largest element.
fn furthest(found: &Tensor, expected: &Tensor) -> Result<f64> {
    let largest = expected.f_abs()?.f_max()?.f_double_value(&[])?;
    let off = found
        .f_sub(expected)?
        .f_abs()?
        .f_max()?
        .f_double_value(&[])?;
    Ok(if off == 0. { 0. } else { off / largest })
}

/// The root of the mean squared difference over that of the mean square.
fn relative_root_mean_square(found: &Tensor, expected: &Tensor) -> Result<f64> {
    let size = root_mean_square(&expected.f_zeros_like()?, expected)?;
    let off = root_mean_square(found, expected)?;
    Ok(if off == 0. { 0. } else { off / size })
}

/// The root of the mean squared difference.
fn root_mean_square(found: &Tensor, expected: &Tensor) -> Result<f64> {
    let squares = found.f_sub(expected)?.f_square()?;
    Ok(squares
        .f_mean(Kind::Double)?
        .f_sqrt()?
        .f_double_value(&[])?)
}

/// A file of tests/parity, which the program carries.
macro_rules! fixture {
    ($name:literal) => {
        $crate::commands::check::carried(
            concat!("tests/parity/", $name, ".safetensors"),
            include_bytes!(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../../tests/parity/",
                $name,
                ".safetensors"
            )),
        )
    };
}
use fixture;

fn carried(name: &str, bytes: &[u8]) -> Result<Checkpoint> {
    Ok(Checkpoint::from_bytes(bytes, name.as_ref())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_counts_against_the_largest_element() {
        let expected = Tensor::from_slice(&[1f64, -4., 0.]);
        let near = Tensor::from_slice(&[1f64, -4.2, 0.]);
        assert!((furthest(&near, &expected).unwrap() - 0.05).abs() < 1e-12);
        assert!((root_mean_square(&near, &expected).unwrap() - 0.2 / 3f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn what_differs_by_more_than_it_may_does_not_agree() {
        let check = |run: fn(&Place) -> Result<Named>| Check {
            name: "made up",
            rule: Rule::Close,
            coarser: Coarser::All,
            run,
        };
        let outcome = |check: &Check, precision| {
            let place = Place {
                device: Device::Cpu,
                precision,
                seed: 0,
            };
            check.outcome((check.run, check.rule), &place)
        };
        let off = check(|p| {
            let value = if p.precision == Precision::Float32 {
                1f32
            } else {
                1.005
            };
            Ok(vec![("x".into(), Tensor::from_slice(&[value]))])
        });
        let in_bfloat16 = outcome(&off, Precision::Bfloat16).unwrap();
        assert!(in_bfloat16.agrees && (in_bfloat16.off - 0.005).abs() < 1e-6);
        assert!(outcome(&off, Precision::Float32).unwrap().agrees);
        let far = check(|p| {
            let value = if p.precision == Precision::Float32 {
                1f32
            } else {
                1.05
            };
            Ok(vec![("x".into(), Tensor::from_slice(&[value]))])
        });
        assert!(!outcome(&far, Precision::Bfloat16).unwrap().agrees);
        let broken = check(|p| {
            let value = if p.precision == Precision::Float32 {
                1f32
            } else {
                -f32::NAN
            };
            Ok(vec![("x".into(), Tensor::from_slice(&[value]))])
        });
        assert!(!outcome(&broken, Precision::Bfloat16).unwrap().agrees);
    }

    #[test]
    fn learning_a_router_is_asked_in_tf32_as_curves_and_not_in_bfloat16() {
        let router = CHECKS.iter().find(|c| c.name.contains("router")).unwrap();
        let rule = |precision| router.asked_in(precision).map(|(_, rule)| rule);
        assert!(rule(Precision::Float32) == Ok(Rule::Close));
        let why = rule(Precision::Bfloat16).err();
        assert_eq!(why, Some("routers are learned in float32 or TF32"));
        let asked = router.asked_in(Precision::Tf32).unwrap();
        assert!(asked.1 == Rule::Curves);
        // TF32 is float32 on a CPU.
        let place = Place {
            device: Device::Cpu,
            precision: Precision::Tf32,
            seed: 0,
        };
        let found = router.outcome(asked, &place).unwrap();
        assert!(found.agrees && found.off == 0. && found.may_be > 0.);
    }

    #[test]
    fn a_precision_is_named_as_in_configs() {
        assert_eq!(precision("bfloat16").unwrap(), Precision::Bfloat16);
        assert!(
            precision("half")
                .unwrap_err()
                .to_string()
                .contains("float32")
        );
    }
}
