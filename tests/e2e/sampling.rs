//! `fewstep sample`, `plan` and `router` with small random models.

use std::io::Read;
use std::path::{Path, PathBuf};

use fewstep_diffusion::random::{self, Use};
use fewstep_diffusion::sampler::SamplerName;
use fewstep_diffusion::{Dit, DitConfig, Guidance, NoiseSchedule, SamplerOptions};
use fewstep_harmonica::{CachePlan, Conditions, Router, RouterInit, policy};
use serde_json::Value;
use tch::Kind;

use crate::common::{Done, Sandbox};

/// A model for 8×8 inputs with `channels`, saved as `model.safetensors`. A new DiT has a last layer of zeros and would not show
/// what it does.
pub fn save_model(sandbox: &Sandbox, channels: i64) -> Dit {
    let config = DitConfig {
        depth: 2,
        width: 24,
        heads: 3,
        classes: 10,
        learned_variance: false,
        ..DitConfig::named("S/4", 8, channels).unwrap()
    };
    let dit = Dit::new(&config, 0).unwrap();
    let _guard = tch::no_grad_guard();
    for (place, (_, mut t)) in dit.parameters().into_iter().enumerate() {
        let mut rng = random::generator(1, Use::Weights, &[place as u64]);
        t.f_copy_(&(random::normal(&mut rng, &t.size()).unwrap() * 0.15))
            .unwrap();
    }
    dit.save(&sandbox.path("model.safetensors"), Kind::Float)
        .unwrap();
    dit
}

/// What the binary takes the job to be under its own labels.
fn conditions(dit: &Dit, steps: usize) -> Conditions {
    let options = SamplerOptions::new(SamplerName::Ddim, steps);
    let sampler = options.build(&NoiseSchedule::default()).unwrap();
    let guidance = Guidance::scale(1.5);
    Conditions::new(dit, options.label(), sampler.timesteps(), &guidance).unwrap()
}

/// `fewstep sample` of that model with these words behind it.
fn sample(sandbox: &Sandbox, words: &str) -> Done {
    let common = "sample --checkpoint model.safetensors --device cpu --threads 1 --quiet";
    let words: Vec<&str> = common.split(' ').chain(words.split(' ')).collect();
    sandbox.fewstep(&words)
}

fn succeed(done: Done) -> String {
    assert!(done.ok, "{}", done.stderr);
    assert_eq!(done.stderr, "");
    done.stdout
}

/// Header and values of an array in an `.npz`.
pub fn array(path: &Path, name: &str) -> (String, Vec<u8>) {
    let mut archive = zip::ZipArchive::new(std::fs::File::open(path).unwrap()).unwrap();
    let mut bytes = Vec::new();
    archive
        .by_name(name)
        .unwrap()
        .read_to_end(&mut bytes)
        .unwrap();
    let values = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = String::from_utf8(bytes[10..values].to_vec()).unwrap();
    (header, bytes[values..].to_vec())
}

fn images(sandbox: &Sandbox, file: &str) -> Vec<u8> {
    array(&sandbox.path(file), "arr_0.npy").1
}

fn farthest(a: &[u8], b: &[u8]) -> u8 {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().zip(b);
    pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

/// A file of the data folder that nobody need have.
fn shared(relative: &str) -> Option<PathBuf> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let data = std::env::var_os("FEWSTEP_DATA")
        .map_or_else(|| repository.join("../shared/data"), PathBuf::from);
    let file = data.join(relative);
    if !file.exists() {
        println!("skipped: {relative} is not in the data folder");
        return None;
    }
    Some(file)
}

#[test]
fn samples_become_a_grid_an_npz_and_a_folder_at_once() {
    let sandbox = Sandbox::new();
    save_model(&sandbox, 3);
    let out = succeed(sample(
        &sandbox,
        "--steps 3 --n 5 --batch 2 --classes 3,1 --png --out grid.png --out all.npz --out singles",
    ));
    assert_eq!(out.lines().count(), 1, "{out}");
    assert!(out.starts_with("5 images in "), "{out}");
    let end = "none: cache utilisation 0.0 %, 0.0 % of MACs saved; grid.png, all.npz, singles\n";
    assert!(out.ends_with(end), "{out}");
    let (header, pixels) = array(&sandbox.path("all.npz"), "arr_0.npy");
    assert!(
        header.contains("'|u1'") && header.contains("(5, 8, 8, 3)"),
        "{header}"
    );
    let labels: Vec<i64> = array(&sandbox.path("all.npz"), "arr_1.npy")
        .1
        .chunks(8)
        .map(|b| i64::from_le_bytes(b.try_into().unwrap()))
        .collect();
    assert_eq!(labels, [3, 1, 3, 1, 3]);
    for (k, expected) in pixels.chunks(8 * 8 * 3).enumerate() {
        let single =
            image::open(sandbox.path(&format!("singles/images-000000/{k:06}.png"))).unwrap();
        assert_eq!(single.to_rgb8().as_raw(), expected);
    }
    let grid = image::open(sandbox.path("grid.png")).unwrap();
    assert!(grid.width() >= 3 * 64 && grid.height() >= 64);
    std::fs::create_dir(sandbox.path("others")).unwrap();
    std::fs::write(sandbox.path("others/a.txt"), "").unwrap();
    let done = sample(&sandbox, "--steps 3 --n 2 --out others");
    assert_eq!(
        done.sentence(),
        "error: --out: expected a folder that is new, empty or a job's, found others with other files in it"
    );
}

#[test]
fn an_image_is_bitwise_the_same_whatever_the_batch_and_the_job() {
    let sandbox = Sandbox::new();
    save_model(&sandbox, 1);
    let job = "--sampler ddpm --steps 4 --fora 2 --seed 7";
    for (n, batch) in [(5, 1), (5, 3), (70, 64)] {
        let words = format!("{job} --n {n} --batch {batch} --out {n}-{batch}.npz");
        succeed(sample(&sandbox, &words));
    }
    let alone = images(&sandbox, "5-1.npz");
    assert_eq!(alone, images(&sandbox, "5-3.npz"));
    assert_eq!(alone, images(&sandbox, "70-64.npz")[..alone.len()]);
    succeed(sample(&sandbox, "--steps 4 --n 5 --seed 8 --out other.npz"));
    assert!(farthest(&alone, &images(&sandbox, "other.npz")) > 50);
}

#[test]
fn reuse_is_counted_and_changes_images() {
    let sandbox = Sandbox::new();
    save_model(&sandbox, 1);
    let json = |words: &str| -> Value {
        serde_json::from_str(&succeed(sample(&sandbox, &format!("--json {words}")))).unwrap()
    };
    let all = json("--steps 4 --n 2 --out all.npz");
    assert_eq!(
        (&all["policy"], &all["cur_percent"]),
        (&"none".into(), &0.0.into())
    );
    let half = json("--steps 4 --n 2 --fora 2 --out half.npz");
    assert_eq!(
        (&half["policy"], &half["cur_percent"]),
        (&"fora".into(), &50.0.into())
    );
    let saving = half["mac_saving_percent"].as_f64().unwrap();
    assert!((10. ..50.).contains(&saving), "{half}");
    assert_eq!(half["sampler"], "ddim 4");
    assert_ne!(images(&sandbox, "all.npz"), images(&sandbox, "half.npz"));
    json("--steps 4 --n 2 --fora 1 --out every.npz");
    assert_eq!(images(&sandbox, "all.npz"), images(&sandbox, "every.npz"));
}

#[test]
fn a_router_serves_what_it_was_made_for_and_nothing_else() {
    let sandbox = Sandbox::new();
    let dit = save_model(&sandbox, 1);
    let made_for = conditions(&dit, 3);
    let router = Router::new(&made_for, 0.5, &RouterInit::default(), 0).unwrap();
    router.save(&sandbox.path("router.safetensors")).unwrap();
    let plan = policy::harmonica(&router, 0.5).unwrap();
    let out = succeed(sample(
        &sandbox,
        "--steps 3 --n 2 --router router.safetensors --out a.npz --json",
    ));
    let out: Value = serde_json::from_str(&out).unwrap();
    let cur = out["cur_percent"].as_f64().unwrap();
    assert!(
        cur > 0. && (cur - 100. * plan.utilisation()).abs() < 1e-9,
        "{out}"
    );

    let other = "--sampler dpm-solver++ --steps 4 --guidance 2 --n 2 --out b.npz";
    let done = sample(&sandbox, &format!("{other} --router router.safetensors"));
    assert_eq!(
        done.sentence(),
        "error: router.safetensors does not fit: steps: made for 3, found 4; sampler: made for ddim 3, found dpm-solver++ 4; \
         guidance.scale: made for 1.5, found 2.0"
    );
    let done = sample(
        &sandbox,
        "--steps 3 --threshold 0.9 --out b.npz --router router.safetensors",
    );
    assert_eq!(
        done.sentence(),
        "error: router.safetensors does not fit: threshold: made for 0.5, found 0.9"
    );
    save_model(&sandbox, 3);
    for (flag, file) in [("--router", "router.safetensors"), ("--plan", "plan.toml")] {
        plan.save(&sandbox.path("plan.toml")).unwrap();
        let done = sample(&sandbox, &format!("--steps 3 --out b.npz {flag} {file}"));
        let said = done.sentence();
        assert!(
            said.contains(&format!("{file} does not fit: model: made for ")),
            "{said}"
        );
        assert!(
            said.contains("shape.channels: made for 1, found 3"),
            "{said}"
        );
    }
    assert!(!sandbox.path("b.npz").exists());
}

#[test]
fn what_cannot_be_sampled_is_refused_in_one_sentence() {
    let sandbox = Sandbox::new();
    save_model(&sandbox, 1);
    for (words, expected) in [
        (
            "--steps 0 --out a.png",
            "--steps: expected a whole number from 2 to 1000, found 0",
        ),
        (
            "--eta 2 --out a.png",
            "--eta: expected a number from 0 to 1, found 2",
        ),
        (
            "--karras --out a.png",
            "--karras: expected none with ddim, found true",
        ),
        (
            "--guidance -1 --out a.png",
            "--guidance: expected a number from 0, found -1",
        ),
        (
            "--guidance-interval 9:1 --out a.png",
            "--guidance-interval: expected two numbers in rising order, found 9 and 1",
        ),
        (
            "--class 11 --out a.png",
            "--class: expected 0 to 10, found 11",
        ),
        (
            "--fora 0 --out a.png",
            "--fora: interval: expected at least 1, found 0",
        ),
        (
            "--out absent/a.png",
            "--out: expected absent/a.png in a folder that exists, found no absent",
        ),
        (
            "--convention diffusers --out a.png",
            "--convention: expected original, as model.safetensors says itself, found diffusers",
        ),
        (
            "--vae tiny.toml --out a.png",
            "--vae: expected a folder of diffusers or taesd_decoder.pth, found tiny.toml",
        ),
        (
            "--device gpu --out a.png",
            "expected auto, cpu, cuda or cuda:N",
        ),
    ] {
        let done = match words.contains("--device") {
            true => sandbox.fewstep(&[
                "sample",
                "--checkpoint",
                "model.safetensors",
                "--device",
                "gpu",
                "--out",
                "a.png",
            ]),
            false => sample(&sandbox, words),
        };
        assert!(
            done.sentence().contains(expected),
            "{}\n{expected}",
            done.stderr
        );
    }
    let whole = std::fs::read(sandbox.path("model.safetensors")).unwrap();
    std::fs::write(sandbox.path("model.safetensors"), &whole[..whole.len() / 2]).unwrap();
    let done = sample(&sandbox, "--out a.png");
    let said = done.sentence();
    assert!(
        said.starts_with("error: model.safetensors: expected a whole safetensors file"),
        "{said}"
    );
    std::fs::remove_file(sandbox.path("model.safetensors")).unwrap();
    let done = sample(&sandbox, "--out a.png");
    assert!(
        done.sentence()
            .starts_with("error: model.safetensors: No such file"),
        "{}",
        done.stderr
    );
    assert!(!sandbox.path("a.png").exists());
}

#[test]
fn latents_without_an_autoencoder_are_numbers_and_no_picture() {
    let sandbox = Sandbox::new();
    save_model(&sandbox, 4);
    let done = sample(&sandbox, "--steps 2 --n 3 --out grid.png");
    assert_eq!(
        done.sentence(),
        "error: --out: the model makes latents of 4 channels, which grid.png can't hold: give --vae for pixels, or an .npz for latents"
    );
    succeed(sample(
        &sandbox,
        "--steps 2 --n 3 --batch 2 --out latents.npz",
    ));
    let (header, values) = array(&sandbox.path("latents.npz"), "arr_0.npy");
    assert!(
        header.contains("'<f4'") && header.contains("(3, 4, 8, 8)"),
        "{header}"
    );
    let finite = |b: &[u8]| f32::from_le_bytes(b.try_into().unwrap()).is_finite();
    assert!(values.len() == 3 * 4 * 64 * 4 && values.chunks(4).all(finite));
}

#[test]
fn an_autoencoder_makes_pixels_of_latents() {
    let Some(vae) = shared("weights/taef2_decoder.pth") else {
        return;
    };
    let sandbox = Sandbox::new();
    save_model(&sandbox, 32);
    let vae = vae.display();
    let job = format!("--steps 2 --n 3 --batch 2 --vae {vae}");
    succeed(sample(&sandbox, &format!("{job} --out a.npz --out a.png")));
    let (header, pixels) = array(&sandbox.path("a.npz"), "arr_0.npy");
    assert!(header.contains("(3, 64, 64, 3)"), "{header}");
    assert!(pixels.iter().any(|p| *p != pixels[0]));
    save_model(&sandbox, 4);
    assert_eq!(
        sample(&sandbox, &format!("{job} --out b.png")).sentence(),
        "error: --vae: expected latents of 4 channels, which the model makes, found an autoencoder for 32"
    );
}

#[test]
fn a_plan_is_made_shown_compared_and_followed() {
    let sandbox = Sandbox::new();
    let dit = save_model(&sandbox, 1);
    let make = |words: &str| {
        let common = "plan make --checkpoint model.safetensors --steps 4";
        let words: Vec<&str> = common.split(' ').chain(words.split(' ')).collect();
        sandbox.fewstep(&words)
    };
    let out = succeed(make("--policy fora --interval 2 --out a.toml"));
    assert!(
        out.starts_with("a.toml: fora, utilisation 50.00 % (8 of 16), "),
        "{out}"
    );
    let plan = CachePlan::load(&sandbox.path("a.toml")).unwrap();
    assert_eq!(plan, policy::fora(&conditions(&dit, 4), 2).unwrap());

    let out = succeed(sandbox.fewstep(&["plan", "show", "a.toml", "--out", "a.png"]));
    assert!(
        out.contains("step   1  t = 999     CC CC  utilisation   0.0 %"),
        "{out}"
    );
    assert!(
        out.contains("step   4  t = 0       .. ..  utilisation 100.0 %"),
        "{out}"
    );
    assert!(image::open(sandbox.path("a.png")).unwrap().width() >= 900);

    succeed(make(
        "--policy random --mac-saving 0.2 --seed 3 --out b.toml",
    ));
    let diff = |b: &str| {
        let mut command = sandbox.command(&["plan", "diff", "a.toml", b]);
        let output = command.output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    assert_eq!(
        diff("a.toml"),
        (Some(0), "The plans agree in all 16 cells.\n".into())
    );
    let (code, said) = diff("b.toml");
    assert!(
        code == Some(1) && said.contains("of 16 cells differ"),
        "{said}"
    );
    succeed(make("--policy fora --interval 2 --guidance 2 --out c.toml"));
    let (code, said) = diff("c.toml");
    let expected = "The first plan does not fit: guidance.scale: made for 1.5, found 2.0";
    assert!(code == Some(1) && said.contains(expected), "{said}");
    assert_eq!(diff("absent.toml").0, Some(2));
    succeed(make(
        "--policy interval --window 0:3 --interval 2 --order 1 --out e.toml",
    ));
    let (code, said) = diff("e.toml");
    let expected = "8 of 16 cells are reused by both, with other forecasts.";
    assert!(code == Some(1) && said.contains(expected), "{said}");

    succeed(sample(
        &sandbox,
        "--steps 4 --n 2 --plan a.toml --out plan.npz",
    ));
    succeed(sample(&sandbox, "--steps 4 --n 2 --fora 2 --out fora.npz"));
    assert_eq!(images(&sandbox, "plan.npz"), images(&sandbox, "fora.npz"));

    let done = make("--policy random --interval 2 --out d.toml");
    assert_eq!(
        done.sentence(),
        "error: --interval: expected none with --policy random, found one"
    );
    let done = make("--policy fora --out d.toml");
    assert_eq!(
        done.sentence(),
        "error: --interval: expected a value with --policy fora, found none"
    );
}

#[test]
fn a_plan_is_found_for_a_saving_and_followed() {
    let sandbox = Sandbox::new();
    let find = |words: &str| {
        let common = "plan --checkpoint digits --steps 5 --device cpu --threads 1 --quiet --pool-images 8 --images 4 \
                      --screen-images 2 --unseen-images 3 --search-trials 4 --cell-rounds 1 --learn-trajectories 1 \
                      --out found.toml";
        let words: Vec<&str> = common.split_whitespace().chain(words.split(' ')).collect();
        sandbox.fewstep(&words)
    };
    let out = succeed(find("--target-saving 35% --json"));
    let found: Value = serde_json::from_str(&out).unwrap();
    let saving = found["mac_saving_percent"].as_f64().unwrap();
    assert!((35. ..37.).contains(&saving), "{saving}");
    let judged = found["judged"].as_array().unwrap();
    assert_eq!(judged[0]["known"], false);
    for policy in ["fora", "taylorseer", "random", "fewer-steps"] {
        assert!(judged.iter().any(|t| t["policy"] == policy), "{policy}");
    }
    assert!(
        judged
            .iter()
            .all(|t| t["x0_mse_unseen"].as_array().unwrap().len() == 3)
    );
    let plan = CachePlan::load(&sandbox.path("found.toml")).unwrap();
    assert!((100. * plan.mac_saving() - saving).abs() < 1e-9);
    assert_eq!(
        plan.settings()["beat"].as_array().unwrap().len(),
        judged.len() - 1
    );
    let search = sandbox.path("found.toml.search");
    assert!(!search.exists());
    std::fs::create_dir(&search).unwrap();
    std::fs::write(search.join("search.json"), "{").unwrap();
    let done = find("--target-saving 35%");
    assert!(
        done.sentence()
            .contains("search.json: expected a search for a plan"),
        "{}",
        done.stderr
    );
    std::fs::remove_dir_all(&search).unwrap();
    succeed(sandbox.fewstep(&["plan", "show", "found.toml"]));
    succeed(sandbox.fewstep(
        &"sample --checkpoint digits --device cpu --threads 1 --quiet --steps 5 --n 2 --plan found.toml --out plan.npz"
            .split(' ')
            .collect::<Vec<_>>(),
    ));

    for (words, sentence) in [
        (
            "--resume",
            "error: expected --target-saving or --target-ms, found neither",
        ),
        (
            "--target-saving 90%",
            "error: target_mac_saving: expected at most 0.7",
        ),
        ("--target-ms 1000000", "error: --target-ms: expected below "),
        (
            "--target-saving 35% --choose-images 18446744073709551615",
            "error: --choose-images: expected 1 to 1000000, found 18446744073709551615",
        ),
        (
            "--target-saving 35% --max-order 5",
            "error: --max-order: expected 0 to 3, found 5",
        ),
    ] {
        let done = find(words);
        assert!(done.sentence().starts_with(sentence), "{}", done.stderr);
    }
    let done = find("--target-saving 140%");
    assert!(
        done.stderr.contains("expected a share such as 40% or 0.4"),
        "{}",
        done.stderr
    );
}

#[test]
fn a_router_becomes_harmonicas_file_and_comes_back() {
    let sandbox = Sandbox::new();
    let dit = save_model(&sandbox, 1);
    let router = Router::new(&conditions(&dit, 3), 0.3, &RouterInit::default(), 5).unwrap();
    router.save(&sandbox.path("router.safetensors")).unwrap();
    let words = [
        "router",
        "export",
        "router.safetensors",
        "--out",
        "router.pt",
    ];
    succeed(sandbox.fewstep(&words));
    let words = "router import router.pt --checkpoint model.safetensors --steps 3 --threshold 0.3 --out back.safetensors";
    let out = succeed(sandbox.fewstep(&words.split(' ').collect::<Vec<_>>()));
    assert!(
        out.starts_with("back.safetensors: harmonica at threshold 0.3, utilisation "),
        "{out}"
    );
    let back = Router::load(&sandbox.path("back.safetensors")).unwrap();
    assert_eq!(back.logits(), router.logits());
    assert_eq!(back.made_for(), router.made_for());
    let job = "--steps 3 --n 2 --json --out";
    let from_pt = succeed(sample(
        &sandbox,
        &format!("{job} a.npz --router router.pt --threshold 0.3"),
    ));
    succeed(sample(
        &sandbox,
        &format!("{job} b.npz --router back.safetensors"),
    ));
    assert_eq!(images(&sandbox, "a.npz"), images(&sandbox, "b.npz"));
    assert!(from_pt.contains("\"policy\":\"harmonica\""), "{from_pt}");
    let done = sandbox.fewstep(&["router", "show", "router.pt"]);
    assert!(
        done.sentence().contains("`fewstep router import`"),
        "{}",
        done.stderr
    );
}

#[test]
fn learning_to_caches_published_router_is_read_by_its_own_rule() {
    let Some(file) = shared("routers/l2c-dit-xl-2-256-ddim20.pt") else {
        return;
    };
    let sandbox = Sandbox::new();
    let file = file.to_str().unwrap();
    let import = |model: &str| {
        let words = [
            "router",
            "import",
            file,
            "--model",
            model,
            "--out",
            "l2c.safetensors",
        ];
        sandbox.fewstep(&words)
    };
    let out = succeed(import("DiT-XL/2"));
    assert!(
        out.starts_with(
            "l2c.safetensors: l2c at threshold 0.1, utilisation 22.14 % (248 of 1120), "
        ),
        "{out}"
    );
    let words = ["router", "show", "l2c.safetensors", "--out", "l2c.png"];
    let out = succeed(sandbox.fewstep(&words));
    assert!(
        out.starts_with(
            "20 steps × 56 sub-modules of any model of its shape, ddim 20, guidance 1.5\n"
        ),
        "{out}"
    );
    assert!(out.contains("l2c, computed where r > 0.1"), "{out}");
    assert!(image::open(sandbox.path("l2c.png")).is_ok());
    let done = import("DiT-L/2");
    assert!(
        done.sentence()
            .ends_with("logits: expected 48 in row 0, one for each sub-module, found 56"),
        "{}",
        done.stderr
    );
}

#[test]
fn every_command_has_help_with_an_example() {
    let sandbox = Sandbox::new();
    for words in [
        "sample",
        "plan",
        "plan show",
        "plan diff",
        "plan make",
        "router show",
        "router import",
        "router export",
    ] {
        let arguments: Vec<&str> = words.split(' ').chain(["--help"]).collect();
        let out = succeed(sandbox.fewstep(&arguments));
        assert!(out.contains(&format!("Example: fewstep {words} ")), "{out}");
    }
}
