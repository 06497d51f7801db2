//! The DiT against the official layout and against diffusers' DiTTransformer2DModel, on the same random weights
//! (`dit.safetensors`, made by `dit.py`). Where the two differ, each difference has its own test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use fewstep_diffusion::dit::ComputeAll;
use fewstep_diffusion::load::{self, LoadOptions};
use fewstep_diffusion::random::ImageNoise;
use fewstep_diffusion::sampler::{Call, Denoiser, SamplerName, SamplerState};
use fewstep_diffusion::{
    Convention, Dit, DitConfig, Guidance, Guided, NoiseSchedule, SamplerOptions,
};
use fewstep_torch::Checkpoint;
use tch::{Device, Kind, Tensor};

use crate::{difference, fixture};

/// Relative to the largest element.
const TOLERANCE: f64 = 1e-4;

fn model(file: &Checkpoint, convention: Convention) -> Dit {
    let config = DitConfig {
        depth: 2,
        width: 32,
        heads: 2,
        classes: 10,
        convention,
        ..DitConfig::named("S/2", 8, 4).unwrap()
    };
    Dit::from_tensors(&config, file.section("model/"), "the fixture").unwrap()
}

fn forward(dit: &Dit, file: &Checkpoint, t: [f32; 3]) -> Tensor {
    let (x, labels) = (
        file.tensor("input/x").unwrap(),
        file.tensor("input/labels").unwrap(),
    );
    let _guard = tch::no_grad_guard();
    dit.forward(x, &Tensor::from_slice(&t), labels, &mut ComputeAll)
        .unwrap()
}

fn assert_close(found: &Tensor, expected: &Tensor, what: &str) {
    let off = difference(found, expected);
    println!("{what}: off by {off:.1e}");
    assert!(off < TOLERANCE, "{what}: off by {off:e}");
}

#[test]
fn the_forward_pass_is_that_of_the_official_layout_at_every_timestep() {
    let file = fixture("dit");
    let dit = model(&file, Convention::Original);
    for t in [0u16, 1, 500, 999] {
        let name = format!("official/forward/t={t}");
        assert_close(
            &forward(&dit, &file, [f32::from(t); 3]),
            file.tensor(&name).unwrap(),
            &name,
        );
    }
    let mixed = file.tensor("official/forward/mixed").unwrap();
    assert_close(
        &forward(&dit, &file, [999., 0., 500.]),
        mixed,
        "mixed timesteps",
    );
}

#[test]
fn the_forward_pass_is_that_of_diffusers_by_its_convention() {
    let file = fixture("dit");
    let dit = model(&file, Convention::Diffusers);
    for t in [0u16, 1, 500, 999] {
        let name = format!("diffusers/forward/t={t}");
        assert_close(
            &forward(&dit, &file, [f32::from(t); 3]),
            file.tensor(&name).unwrap(),
            &name,
        );
    }
}

#[test]
fn frequencies_reach_down_to_10000_only_in_diffusers() {
    let file = fixture("dit");
    let [ours, theirs] = [Convention::Original, Convention::Diffusers]
        .map(|convention| forward(&model(&file, convention), &file, [500.; 3]));
    let official = file.tensor("official/forward/t=500").unwrap();
    let diffusers = file.tensor("diffusers/forward/t=500").unwrap();
    assert!(difference(official, diffusers) > 1e-2);
    assert_close(&ours, official, "over 128");
    assert_close(&theirs, diffusers, "over 127");
    // At timestep 0 all angles are 0, whatever the frequencies.
    let (official, diffusers) = ("official/forward/t=0", "diffusers/forward/t=0");
    assert!(
        difference(
            file.tensor(official).unwrap(),
            file.tensor(diffusers).unwrap()
        ) < 1e-4
    );
}

#[test]
fn diffusers_adds_1e_5_in_the_norm_before_the_mlp_and_nowhere_else() {
    let file = fixture("dit");
    // At timestep 0 the frequencies do not show, so that what is left between the two is the norms.
    let [ours, theirs] = [Convention::Original, Convention::Diffusers]
        .map(|convention| forward(&model(&file, convention), &file, [0.; 3]));
    let official = file.tensor("official/forward/t=0").unwrap();
    let expected = file.tensor("diffusers/forward/t=0").unwrap() - official;
    let off = difference(&(theirs - ours), &expected);
    println!("the norms' share: off by {off:.1e} of itself");
    // float32 leaves the share few digits; any other norm in its place is off by more than all of it.
    assert!(off < 0.5, "{off}");
}

#[test]
fn guidance_is_on_three_channels_originally_and_on_all_in_diffusers() {
    let file = fixture("dit");
    let pair = file.tensor("input/x").unwrap().narrow(0, 0, 2);
    let labels = Tensor::from_slice(&[3i64, 7]);
    let both = Tensor::from_slice(&[3i64, 7, 10, 10]);
    let guidance = Guidance::scale(4.);
    let call = Call {
        index: 0,
        row: 0,
        timestep: 500.,
    };
    let mut said = Vec::new();
    for (convention, name, channels) in [
        (Convention::Original, "official/cfg/t=500", 8),
        (Convention::Diffusers, "diffusers/cfg/t=500", 4),
    ] {
        let dit = model(&file, convention);
        let expected = file.tensor(name).unwrap();
        let (x, t) = (
            Tensor::cat(&[&pair, &pair], 0),
            Tensor::full([4], 500., (Kind::Float, Device::Cpu)),
        );
        let plain = dit.forward(&x, &t, &both, &mut ComputeAll).unwrap();
        assert_close(&guidance.combine(&dit, &plain).unwrap(), expected, name);
        let mut reuse = ComputeAll;
        let mut guided = Guided::new(&dit, &labels, &guidance, &mut reuse).unwrap();
        let found = guided.denoise(&pair, &call).unwrap();
        let expected = expected.narrow(0, 0, 2).narrow(1, 0, channels);
        assert_close(&found, &expected, "as a denoiser");
        said.push((plain, found));
    }
    // The fourth channel is as without guidance in the one and not in the other.
    let fourth = |x: &Tensor| x.narrow(0, 0, 2).narrow(1, 3, 1);
    assert_eq!(fourth(&said[0].0), fourth(&said[0].1));
    assert!(difference(&fourth(&said[1].0), &fourth(&said[1].1)) > 1e-2);
    // Anybody may ask for either number of channels.
    let all = Guidance {
        channels: Some(4),
        ..guidance
    };
    let combined = all
        .combine(&model(&file, Convention::Original), &said[0].0)
        .unwrap();
    assert!(difference(&fourth(&combined), &fourth(&said[0].0)) > 1e-2);
}

#[test]
fn the_learned_variance_is_kept_originally_and_discarded_by_diffusers() {
    let file = fixture("dit");
    let x = file.tensor("input/x").unwrap();
    let labels = file.tensor("input/labels").unwrap();
    let guidance = Guidance::default();
    let schedule = NoiseSchedule::default();
    let step = |convention, name| {
        let dit = model(&file, convention);
        let mut reuse = ComputeAll;
        let mut guided = Guided::new(&dit, labels, &guidance, &mut reuse).unwrap();
        let sampler = SamplerOptions::new(name, 10).build(&schedule).unwrap();
        let output = guided.denoise(x, &sampler.call(4)).unwrap();
        let noise = &mut ImageNoise::new(0, 0..3);
        let next = sampler.step(&mut SamplerState::default(), 4, x, &output, noise);
        (output.size()[1], next)
    };
    let (channels, learned) = step(Convention::Original, SamplerName::Iddpm);
    assert_eq!(channels, 8);
    let (_, fixed) = step(Convention::Original, SamplerName::Ddpm);
    assert!(difference(&learned.unwrap(), &fixed.unwrap()) > 1e-3);
    let (channels, refused) = step(Convention::Diffusers, SamplerName::Iddpm);
    assert_eq!(channels, 4);
    assert_eq!(
        refused.unwrap_err().to_string(),
        "the denoiser's output: expected twice the latents' 4 channels, for the learned variance, found [3, 4, 8, 8]"
    );
    assert!(step(Convention::Diffusers, SamplerName::Ddpm).1.is_ok());
}

#[test]
fn bfloat16_stays_near_float32() {
    let file = fixture("dit");
    let dit = model(&file, Convention::Original)
        .to(Device::Cpu, Kind::BFloat16)
        .unwrap();
    for t in [0u16, 500, 999] {
        let expected = file.tensor(&format!("official/forward/t={t}")).unwrap();
        let off = difference(&forward(&dit, &file, [f32::from(t); 3]), expected);
        println!("bfloat16 at t = {t}: off by {off:.1e}");
        assert!(off < 2e-2, "t = {t}: {off:e}");
    }
}

/// The files of `dit.py --xl`: those that FEWSTEP_XL names, or new ones in `folder`.
fn xl_fixture(folder: &Path) -> PathBuf {
    if let Some(path) = std::env::var_os("FEWSTEP_XL") {
        return path.into();
    }
    let Some(python) = std::env::var_os("FEWSTEP_BENCH_PYTHON") else {
        panic!(
            "a DiT-XL/2 is made by a Python with torch, timm, diffusers and safetensors: run `cargo xtask test --slow`, which \
             installs one, or set FEWSTEP_BENCH_PYTHON to it, or FEWSTEP_XL to a file that tests/parity/dit.py --xl made"
        );
    };
    let path = folder.join("xl.safetensors");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/dit.py");
    let made = Command::new(&python)
        .arg(script)
        .arg("--xl")
        .arg(&path)
        .status();
    assert!(
        made.unwrap().success(),
        "{} could not make a DiT-XL/2",
        python.display()
    );
    path
}

#[test]
#[ignore = "slow: makes a DiT-XL/2 of 2.7 GB in Python, a minute or two and 6 GB of memory"]
fn a_whole_dit_xl_2_for_256_pixels_is_the_official_one() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = xl_fixture(folder.path());
    let file = Checkpoint::load(&path).unwrap();
    let start = Instant::now();
    let dit = load::dit(&path.with_extension("pt"), &LoadOptions::default()).unwrap();
    let loaded = start.elapsed();
    assert_eq!(dit.config(), &DitConfig::named("DiT-XL/2", 32, 4).unwrap());
    let input = |name: &str| file.tensor(&format!("input/{name}")).unwrap();
    let _guard = tch::no_grad_guard();
    let start = Instant::now();
    let found = dit
        .forward(input("x"), input("t"), input("labels"), &mut ComputeAll)
        .unwrap();
    println!(
        "loaded in {:.1?}, one forward pass of two samples in {:.1?}",
        loaded,
        start.elapsed()
    );
    if let Ok(status) = std::fs::read_to_string("/proc/self/status")
        && let Some(peak) = status.lines().find(|line| line.starts_with("VmHWM"))
    {
        println!(
            "peak memory of the process: {}",
            peak.trim_start_matches("VmHWM:").trim()
        );
    }
    assert_close(&found, file.tensor("official/forward").unwrap(), "DiT-XL/2");
}
