//! Help, and words that mean nothing.

use crate::common::Sandbox;

#[test]
fn every_subcommand_has_help_with_an_example() {
    let sandbox = Sandbox::new();
    for words in [
        &[][..],
        &["run"],
        &["demo"],
        &["devices"],
        &["check"],
        &["data", "info"],
        &["data", "files"],
        &["data", "fetch"],
        &["evaluate"],
        &["report"],
        &["dashboard"],
        &["bench"],
    ] {
        let done = sandbox.fewstep(&[words, &["--help"]].concat());
        assert!(done.ok, "{words:?}");
        let example = format!("Example: fewstep {}", words.join(" "));
        assert!(
            done.stdout.contains(example.trim_end()),
            "{words:?}:\n{}",
            done.stdout
        );
    }
    let bare = sandbox.fewstep(&[]);
    assert!(bare.ok && bare.stdout.contains("Usage:"));
}

#[test]
fn an_unknown_subcommand_fails_and_a_near_one_is_proposed() {
    let sandbox = Sandbox::new();
    let done = sandbox.fewstep(&["runn"]);
    assert!(
        !done.ok && done.stderr.contains("similar subcommand exists: 'run'"),
        "{}",
        done.stderr
    );
    let done = sandbox.fewstep(&["bench", "nothing"]);
    assert!(
        done.sentence().contains(
            "no benchmark `nothing`; there are: spiking, sampling, events, distributed, dit-xl, sdt"
        ),
        "{}",
        done.stderr
    );
}

#[test]
fn a_device_that_is_not_there_is_refused_in_one_sentence() {
    let sandbox = Sandbox::new();
    let done = sandbox.run(&["--device", "gpu"]);
    assert!(
        done.sentence()
            .contains("expected auto, cpu, cuda or cuda:N"),
        "{}",
        done.stderr
    );
    if fewstep_torch::device::cuda_devices().is_err() {
        let done = sandbox.run(&["--device", "cuda:7"]);
        assert!(
            done.sentence().starts_with("error: device cuda:7: "),
            "{}",
            done.stderr
        );
        assert!(!sandbox.path("runs").exists());
    }
}

#[test]
fn devices_lists_the_cpu_and_says_why_there_is_no_cuda() {
    let done = Sandbox::new().fewstep(&["devices"]);
    assert!(done.ok, "{}", done.stderr);
    assert!(
        done.stdout.starts_with("cpu: computes, "),
        "{}",
        done.stdout
    );
    assert_eq!(
        done.stdout.contains("no cuda: "),
        fewstep_torch::device::cuda_devices().is_err(),
        "{}",
        done.stdout
    );
}

#[test]
fn a_name_that_is_not_utf8_does_not_end_in_a_panic() {
    use std::os::unix::ffi::OsStrExt;
    let sandbox = Sandbox::new();
    let config = std::ffi::OsStr::from_bytes(b"t\xff.toml");
    std::fs::copy(sandbox.path("tiny.toml"), sandbox.path("").join(config)).unwrap();
    let mut run = sandbox.command(&["run", "--quiet"]);
    let output = run.arg(config).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}
