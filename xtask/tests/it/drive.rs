//! Commands that hand over to cargo, to the fewstep binary, to the peers of a benchmark.

use std::fs;
use std::process::Command;

use super::sandbox::{Said, Sandbox, said};

/// A sandbox with libtorch, and a cargo that notes what it is asked and then runs `body`.
fn with_cargo(body: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.libtorch("root/.libtorch", "2.11.0");
    let log = sandbox.path("asked");
    sandbox.script(
        "fake-cargo",
        &format!("echo \"$*\" >> {}\n{body}", log.display()),
    );
    sandbox
}

fn run(sandbox: &Sandbox, arguments: &[&str]) -> Said {
    said(
        sandbox
            .xtask(arguments)
            .env("CARGO", sandbox.path("bin/fake-cargo")),
    )
}

fn asked(sandbox: &Sandbox) -> Vec<String> {
    let text = fs::read_to_string(sandbox.path("asked")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn words_and_exit_codes_pass_through_to_fewstep() {
    for (ours, theirs) in [
        (
            &["run", "a.toml", "--set", "seed=1", "--resume"][..],
            "run a.toml --set seed=1 --resume",
        ),
        (&["run", "--resume", "a.toml"], "run --resume a.toml"),
        (&["run", "--", "--help"], "run --help"),
        (&["demo"], "demo"),
        (&["demo", "--set", "seed=2"], "demo --set seed=2"),
        (&["data", "info", "here"], "data info here"),
        (&["anything", "--else"], "anything --else"),
    ] {
        let sandbox = with_cargo("exit 7");
        let answer = run(&sandbox, ours);
        assert_eq!(answer.code, Some(7), "{ours:?}: {answer:?}");
        let asked = asked(&sandbox);
        assert!(
            asked[0].ends_with(&format!("--package fewstep -- {theirs}")),
            "{asked:?}"
        );
    }
}

#[test]
fn every_command_has_help_with_an_example_and_none_runs_for_it() {
    let sandbox = with_cargo("exit 7");
    for command in [
        "setup", "doctor", "run", "demo", "launch", "data", "bundle", "test", "book", "ci", "bench",
    ] {
        let answer = run(&sandbox, &[command, "--help"]);
        assert_eq!(answer.code, Some(0), "{command}");
        assert!(
            answer
                .out
                .contains(&format!("Example: cargo xtask {command}")),
            "{}",
            answer.out
        );
    }
    let answer = run(&sandbox, &[]);
    assert!(
        answer.err.contains("Usage: cargo xtask <COMMAND>"),
        "{answer:?}"
    );
    assert!(asked(&sandbox).is_empty());
}

#[test]
fn ci_runs_the_cheapest_checks_first_and_tests_last() {
    let sandbox = with_cargo(r#"[ "$1" = metadata ] && echo '{"packages": []}'; exit 0"#);
    let answer = run(&sandbox, &["ci"]);
    assert_eq!(answer.code, Some(0), "{answer:?}");
    let asked = asked(&sandbox);
    let words: Vec<&str> = asked
        .iter()
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(words, ["fmt", "metadata", "clippy", "doc", "run", "test"]);
    assert!(answer.out.contains("all checks passed"), "{}", answer.out);
}

#[test]
fn ci_stops_at_a_failing_check_and_names_it() {
    let sandbox = with_cargo(r#"[ "$1" = fmt ] && exit 1; exit 0"#);
    let answer = run(&sandbox, &["ci"]);
    assert_eq!(answer.code, Some(1));
    assert!(
        answer
            .err
            .ends_with("error: the check `format` failed; `cargo fmt` mends it\n"),
        "{}",
        answer.err
    );
    assert_eq!(asked(&sandbox).len(), 1);
}

#[test]
fn slow_tests_run_only_on_request_and_get_the_python_of_the_benchmarks() {
    let sandbox = with_cargo(r#"echo "python: $FEWSTEP_BENCH_PYTHON""#);
    let slow = |key: &str, value: &str| {
        let mut command = sandbox.xtask(&["test", "--slow"]);
        command
            .env("CARGO", sandbox.path("bin/fake-cargo"))
            .env_remove("FEWSTEP_XL")
            .env(key, value);
        said(&mut command)
    };
    assert_eq!(run(&sandbox, &["test"]).code, Some(0));
    let answer = slow("FEWSTEP_BENCH_PYTHON", "/peers/bin/python");
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert!(answer.out.starts_with("python: /peers/bin/python\n"));
    // What it would make is there already.
    let answer = slow("FEWSTEP_XL", "xl.safetensors");
    assert!(answer.out.starts_with("python: \n"), "{answer:?}");
    let all = "test --workspace -- --include-ignored";
    assert_eq!(asked(&sandbox), ["test --workspace", all, all]);
}

/// A benchmark with figures made up: ours takes `ours` ms, spikingjelly 100, snntorch 200.
fn bench(sandbox: &Sandbox) -> Command {
    against_peers(
        sandbox,
        &["bench", "spiking", "--threads", "2", "--rounds", "2"],
    )
}

fn against_peers(sandbox: &Sandbox, words: &[&str]) -> Command {
    let peer = sandbox.script(
        "peer",
        r#"case "$*" in *spikingjelly*) ms=100 ;; *) ms=200 ;; esac
echo "a warning on standard output"
echo "{\"name\": \"vgg9-t1-b32\", \"ms\": [$ms, $ms.5], \"threads\": 2, \"batch\": 32}""#,
    );
    let mut command = sandbox.xtask(words);
    command
        .env("CARGO", sandbox.path("bin/fake-cargo"))
        .env("FEWSTEP_BENCH_PYTHON", peer);
    command
}

#[test]
fn bench_writes_medians_and_verdicts_and_a_table() {
    let sandbox = with_cargo(
        r#"echo '{"name": "vgg9-t1-b32", "ms": [120, 130], "threads": 2, "batch": 32}'"#,
    );
    let answer = said(&mut bench(&sandbox));
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert!(
        answer.out.contains("1 of 2 targets are missed"),
        "{}",
        answer.out
    );
    let text = fs::read_to_string(sandbox.path("root/target/bench/spiking.json")).unwrap();
    let rows: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(rows.as_array().unwrap().len(), 2);
    assert_eq!(rows[0]["name"], "vgg9-t1-b32");
    assert_eq!(rows[0]["peer"], "spikingjelly");
    assert_eq!(rows[0]["ours_ms"], 125.0);
    assert_eq!(rows[0]["peer_ms"], 100.25);
    assert_eq!(rows[0]["target"], 1.1);
    assert_eq!(rows[0]["met"], false);
    assert_eq!(rows[1]["met"], true);
    assert_eq!(
        (&rows[1]["threads"], &rows[1]["batch"]),
        (&2.into(), &32.into())
    );
    assert!(
        asked(&sandbox)[0].ends_with("-- bench spiking --json --threads=2 --samples=3 --warmup=1")
    );
}

#[test]
fn bench_dit_xl_on_a_gpu_asks_for_every_case_and_on_a_cpu_for_one_image() {
    let sandbox = with_cargo(
        r#"echo '{"name": "vgg9-t1-b32", "ms": [90], "threads": 2, "batch": 32, "steps": 20}'"#,
    );
    let mut one = sandbox.xtask(&["bench", "dit-xl", "--threads", "2"]);
    one.env("CARGO", sandbox.path("bin/fake-cargo"));
    assert_eq!(said(&mut one).code, Some(0));
    let words = ["bench", "dit-xl", "--threads", "2", "--device", "cuda:0"];
    let words = [&words[..], &["--quick", "--precision", "tf32"]].concat();
    let mut all = against_peers(&sandbox, &words);
    let answer = said(&mut all);
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert!(answer.out.contains("0.056 s an image"), "{}", answer.out);
    let asked = asked(&sandbox);
    assert!(
        asked[0].ends_with("-- bench dit-xl --threads=2"),
        "{asked:?}"
    );
    let words =
        "--device=cuda:0 --precision=tf32 --steps=20 --steps=50 --resolution=256 --resolution=512";
    assert!(asked[1].ends_with(words), "{asked:?}");
}

#[test]
fn bench_names_what_it_knows_and_what_went_wrong() {
    let sandbox = with_cargo("echo '{\"name\": 3}'");
    let answer = run(&sandbox, &["bench", "spikin"]);
    assert_eq!(answer.code, Some(1));
    assert_eq!(
        answer.err,
        "error: there is no benchmark \"spikin\"; known: spiking, sampling, dit-xl, events, distributed, sdt\n"
    );
    let answer = said(&mut bench(&sandbox));
    assert_eq!(answer.code, Some(1));
    assert!(answer.err.contains("fewstep printed"), "{}", answer.err);
    assert!(answer.err.contains("`ms` is no list"), "{}", answer.err);
}
