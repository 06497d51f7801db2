//! What a GPU is proven with: comparing devices, profiles, recorded sampling. Here all of it runs on the CPU.

use serde_json::Value;

use crate::common::Sandbox;

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
            .contains("--device and --profile are for spiking, sampling and dit-xl"),
        "{}",
        done.stderr
    );
}
