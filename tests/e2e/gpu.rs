//! What a GPU is proven with: comparing devices, profiles, recorded sampling. Here all of it runs on the CPU.

use serde_json::Value;

use crate::common::{Done, Sandbox};

#[test]
fn the_cpu_agrees_with_itself_and_in_bfloat16_within_two_percent() {
    let sandbox = Sandbox::new();
    for (precision, most) in [("float32", 0.), ("bfloat16", 2e-2)] {
        let words = ["check", "--device", "cpu", "--only", "DiT, both", "--json"];
        let done = sandbox.fewstep(&[&words[..], &["--precision", precision]].concat());
        assert!(done.ok, "{}", done.stderr);
        let found: Value = serde_json::from_str(&done.stdout).unwrap();
        assert_eq!(
            (&found["agrees"], &found["checks"][0]["tensors"]),
            (&Value::from(true), &Value::from(8))
        );
        let off = found["checks"][0]["off"].as_f64().unwrap();
        assert!(off <= most && (off > 0. || most == 0.), "{off}");
    }
}

#[test]
fn every_check_on_a_fixture_runs_and_what_bfloat16_cannot_be_asked_is_named() {
    let sandbox = Sandbox::new();
    for name in [
        "spiking networks",
        "samplers",
        "autoencoders",
        "cache plan",
        "router",
    ] {
        let done = sandbox.fewstep(&["check", "--device", "cpu", "--only", name, "--quiet"]);
        assert!(
            done.ok
                && done
                    .stdout
                    .ends_with("cpu agrees with the CPU in float32\n"),
            "{name}: {}{}",
            done.stdout,
            done.stderr
        );
    }
    let words = ["check", "--device", "cpu", "--precision", "bfloat16"];
    let done = sandbox.fewstep(&[&words[..], &["--only", "samplers", "--quiet"]].concat());
    let said = "--only: nothing of it can be asked in bfloat16: samplers, 32 trajectories (samplers compute in float32)";
    assert!(done.sentence().contains(said), "{}", done.stderr);
}

#[test]
fn a_check_that_is_not_known_and_a_device_that_is_not_there_are_refused_in_one_sentence() {
    let sandbox = Sandbox::new();
    let done = sandbox.fewstep(&["check", "--device", "cpu", "--only", "nothing"]);
    assert!(
        done.sentence()
            .starts_with("error: --only: expected a part of one of ["),
        "{}",
        done.stderr
    );
    if fewstep_torch::device::cuda_devices().is_err() {
        let done = sandbox.fewstep(&["check", "--device", "cuda"]);
        assert!(
            done.sentence().starts_with("error: device cuda:0: "),
            "{}",
            done.stderr
        );
    }
}

#[test]
fn sampling_that_is_recorded_gives_the_same_bits_and_refuses_noise_on_the_way() {
    let sandbox = Sandbox::new();
    let sample = |more: &[&str]| {
        let words = [
            "sample",
            "--checkpoint",
            "digits",
            "--fora",
            "2",
            "--n",
            "5",
            "--batch",
            "2",
            "--quiet",
        ];
        sandbox.fewstep(&[&words[..], more].concat())
    };
    for (out, more) in [("a.npz", &[][..]), ("b.npz", &["--cuda-graph"])] {
        let done = sample(&[&["--steps", "4", "--out", out], more].concat());
        assert!(done.ok, "{}", done.stderr);
    }
    let bytes = |name: &str| std::fs::read(sandbox.path(name)).unwrap();
    assert_eq!(bytes("a.npz"), bytes("b.npz"));
    let done = sample(&[
        "--sampler",
        "ddpm",
        "--steps",
        "4",
        "--cuda-graph",
        "--out",
        "c.npz",
    ]);
    let said = "cuda-graph: expected a sampler that draws no noise on its way";
    assert!(done.sentence().contains(said), "{}", done.stderr);
    assert!(!sandbox.path("c.npz").exists());
}

#[test]
fn a_profile_names_the_operators_of_a_step_and_leaves_a_trace() {
    let sandbox = Sandbox::new();
    let words = [
        "bench",
        "spiking",
        "--samples",
        "1",
        "--warmup",
        "0",
        "--threads",
        "2",
    ];
    let done = sandbox.fewstep(&[&words[..], &["--profile", "traces"]].concat());
    assert!(done.ok, "{}", done.stderr);
    for said in ["vgg9-t1-b32: one step, ", "| operator or kernel ", "aten::"] {
        assert!(done.stderr.contains(said), "{}", done.stderr);
    }
    let trace = std::fs::read(sandbox.path("traces/vgg9-t1-b32-inference.json")).unwrap();
    let trace: Value = serde_json::from_slice(&trace).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let convolution = |e: &&Value| e["name"] == "aten::conv2d";
    assert_eq!(events.iter().filter(convolution).count(), 7);
    let done = sandbox.fewstep(&["bench", "events", "--profile", "traces"]);
    assert!(
        done.sentence()
            .contains("--device and --profile are for spiking, sampling, dit-xl and sdt"),
        "{}",
        done.stderr
    );
}

/// The lines of JSON that a benchmark printed.
fn lines(done: &crate::common::Done) -> Vec<Value> {
    assert!(done.ok, "{}", done.stderr);
    let lines = done.stdout.lines();
    lines.map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn a_trained_network_of_one_timestep_infers_recorded_what_it_infers_launched() {
    let sandbox = Sandbox::new();
    let done = sandbox.run(&[]);
    assert!(done.ok, "{}", done.stderr);
    let words = "bench spiking --run runs/tiny --cuda-graph --samples 2 --warmup 1";
    let found = lines(&sandbox.fewstep(&words.split(' ').collect::<Vec<_>>()));
    let names: Vec<_> = found.iter().map(|l| l["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        ["tiny-t1-b32-inference", "tiny-t1-b32-inference-graph"]
    );
    assert_eq!(
        (&found[1]["logits_off_by"], &found[1]["recorded"]),
        (&Value::from(0.), &Value::from(false))
    );
    assert_eq!(found[1]["ms"].as_array().unwrap().len(), 2);
    let done = sandbox.fewstep(&["bench", "spiking", "--run", "runs/tiny"]);
    let said = "--run: for spiking it is for inference, with --cuda-graph";
    assert!(done.sentence().contains(said), "{}", done.stderr);
}

/// A small stand-in for DiT-XL/2.
const SMALL: &str = "--model S/8 --resolution 64 --batch 2 --warmup 0 --json";

/// `fewstep bench NAME` with it.
fn small(sandbox: &Sandbox, name: &str, more: &str) -> Done {
    let words = format!("bench {name} {SMALL} {more}");
    sandbox.fewstep(&words.split(' ').collect::<Vec<_>>())
}

#[test]
fn cached_and_recorded_batches_are_timed_beside_uncached_ones() {
    let sandbox = Sandbox::new();
    let bench = |more: &str| small(&sandbox, "dit-xl", more);
    let found = lines(&bench("--steps 2 --steps 3 --samples 1 --cuda-graph"));
    let names: Vec<_> = found.iter().map(|l| l["name"].as_str().unwrap()).collect();
    let of = |steps: u32| {
        let name = format!("dit-s8-64-s{steps}-b2");
        let plans = ["", "-random-22", "-random-37"];
        let cases = plans.map(|plan| format!("{name}{plan}"));
        let graphs = cases.clone().map(|case| format!("{case}-graph"));
        [cases, graphs].concat()
    };
    assert_eq!(names, [of(2), of(3)].concat());
    assert!(found[0]["peak_memory_gib"].as_f64().unwrap() > 0.);
    let half = &found[2];
    assert_eq!(half["against"], "dit-s8-64-s2-b2");
    assert_eq!(half["utilisation_percent"], 37.5);
    assert!(half["implied_speedup"].as_f64().unwrap() > 1.);
    let done = bench("--steps 2 --resolution 100");
    assert_eq!(done.stdout, "");
    let said = "--resolution: expected a multiple of 16 up to 4096, found 100";
    assert!(done.sentence().contains(said), "{}", done.stderr);
    let done = sandbox.fewstep(&["bench", "sampling", "--precision", "tf32"]);
    let said = "--precision is for spiking, dit-xl, sdt";
    assert!(done.sentence().contains(said), "{}", done.stderr);
    let words = ["bench", "dit-xl", "--steps", "2", "--model", "M/2"];
    let done = sandbox.fewstep(&words);
    let said = "--model: expected S, B, L or XL with /2, /4 or /8, such as XL/2, found \"M/2\"";
    assert!(done.sentence().contains(said), "{}", done.stderr);
}

#[test]
fn a_trajectory_of_step_wise_denoising_training_is_timed_and_its_memory_told() {
    let sandbox = Sandbox::new();
    let bench = |more: &str| small(&sandbox, "sdt", &format!("--steps 3 --samples 2 {more}"));
    let found = lines(&bench("--precision tf32"));
    assert_eq!(found.len(), 1);
    assert_eq!(found[0]["name"], "sdt-s8-64-t3-b2");
    assert_eq!(found[0]["ms"].as_array().unwrap().len(), 2);
    assert_eq!(found[0]["proxy_ms"].as_array().unwrap().len(), 1);
    assert!(found[0]["peak_memory_gib"].as_f64().unwrap() > 0.);
    let done = bench("--precision bfloat16");
    let said = "--precision: expected float32 or tf32, in which routers are learned";
    assert!(done.sentence().contains(said), "{}", done.stderr);
}

/// The scripts of the Python peers, where FEWSTEP_BENCH_PYTHON names a Python that has their packages.
#[test]
fn the_peers_time_the_cases_that_ours_time() {
    let Some(python) = std::env::var_os("FEWSTEP_BENCH_PYTHON") else {
        eprintln!("skipped: FEWSTEP_BENCH_PYTHON does not name a Python with the peers");
        return;
    };
    let scripts = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../xtask/bench");
    let peer = |script: &str, words: &str| -> Vec<String> {
        let mut command = std::process::Command::new(&python);
        command.arg(scripts.join(script)).args(words.split(' '));
        let done = command.output().unwrap();
        let (said, why) = (&done.stdout, String::from_utf8_lossy(&done.stderr));
        assert!(done.status.success(), "{words}: {why}");
        let lines = String::from_utf8_lossy(said);
        let lines = lines.lines().filter(|l| l.starts_with('{'));
        lines
            .map(|l| {
                let line: Value = serde_json::from_str(l).unwrap();
                assert!(line["ms"][0].as_f64().unwrap() > 0.);
                line["name"].as_str().unwrap().to_owned()
            })
            .collect()
    };
    let small = "--model S/8 --resolution 64 --batch 2 --steps 2 --samples 1 --warmup 0";
    for precision in ["float32", "bfloat16"] {
        let words = format!("--peer pytorch --precision {precision} {small}");
        assert_eq!(peer("sampling_peer.py", &words), ["dit-s8-64-s2-b2"]);
    }
    for network in ["vgg9", "vgg16"] {
        let words =
            format!("--peer spikingjelly --network {network} --case t1 --samples 1 --warmup 0");
        assert_eq!(
            peer("spiking_peer.py", &words),
            [format!("{network}-t1-b32")]
        );
    }
    // All of it in one call.
    let sandbox = Sandbox::new();
    let ours = sandbox.command(&[]);
    let mut both = std::process::Command::new(&python);
    both.arg(scripts.join("compare.py"))
        .args(["dit-xl", "--device", "cpu", "--rounds", "1"])
        .args(["--peer", "pytorch", "--out", "rows.json", "--ours"])
        .arg(ours.get_program())
        .args(small.split(' '))
        .current_dir(sandbox.path(""));
    let done = both.output().unwrap();
    let why = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{why}");
    let rows: Value =
        serde_json::from_slice(&std::fs::read(sandbox.path("rows.json")).unwrap()).unwrap();
    let rows = rows["rows"].as_array().unwrap();
    let seen: Vec<_> = rows
        .iter()
        .map(|r| (r["name"].as_str().unwrap(), r["other"].as_str().unwrap()))
        .collect();
    let uncached = "dit-s8-64-s2-b2";
    assert_eq!(
        seen,
        [
            (uncached, "pytorch"),
            ("dit-s8-64-s2-b2-random-22", uncached),
            ("dit-s8-64-s2-b2-random-37", uncached)
        ]
    );
}
