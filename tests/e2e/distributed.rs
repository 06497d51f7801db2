//! Several processes train one network: the same one, whatever their number, and whoever is killed.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use fewstep_torch::Checkpoint;

use crate::common::{Done, Sandbox, TINY, end, start_ranks};
use crate::harmonica::{DIT, HARMONICA};

/// 55 steps of each phase, with batch norm, dropout, augmentation, distillation and the penalty on spikes.
fn config() -> String {
    let longer = TINY
        .replace("epochs = 2\n", "epochs = 5\n")
        .replace("epochs = [1, 2]", "epochs = [5, 5]")
        // Adam divides by the gradient's size, which lifts a last bit to the size of a step: small steps, small differences.
        .replace("learning_rate = 1e-3", "learning_rate = 1e-4");
    assert_eq!(longer.matches("= 5\n").count(), 2);
    format!("{longer}distillation = {{ weight = 0.5 }}\nrate_penalty = 0.01\n")
}

fn sandbox() -> Sandbox {
    Sandbox::with_config(&config())
}

/// Ranks 0, 1, … of a run that has begun.
struct Ranks(Vec<Child>);

impl Ranks {
    fn start(commands: Vec<Command>) -> Self {
        Self(start_ranks(commands))
    }

    /// All ranks of `sandbox`'s run.
    fn of(sandbox: &Sandbox, world: usize, arguments: &[&str]) -> Self {
        Self::start((0..world).map(|_| command(sandbox, arguments)).collect())
    }

    /// Kills a rank as soon as `file` is there; whether the run was unfinished then.
    fn kill_at(&mut self, rank: usize, sandbox: &Sandbox, file: &str) -> bool {
        wait_for(sandbox, file);
        self.0[rank].kill().unwrap();
        !sandbox.tiny("summary.json").exists()
    }

    fn end(self) -> Vec<Done> {
        self.0.into_iter().map(end).collect()
    }

    /// All must succeed; all but rank 0 in silence.
    fn succeed(self) {
        for (rank, done) in self.end().into_iter().enumerate() {
            assert!(done.ok, "rank {rank}: {}", done.stderr);
            if rank > 0 {
                assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("", ""));
            }
        }
    }
}

/// Waits for a file of the run.
fn wait_for(sandbox: &Sandbox, file: &str) {
    let (file, start) = (sandbox.tiny(file), Instant::now());
    while !file.exists() {
        assert!(start.elapsed() < Duration::from_secs(120), "never came");
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn command(sandbox: &Sandbox, arguments: &[&str]) -> Command {
    let words = ["run", "tiny.toml", "--quiet", "--rank-timeout", "60"];
    sandbox.command(&[&words, arguments].concat())
}

/// A whole run of so many ranks.
fn whole(world: usize, arguments: &[&str]) -> Sandbox {
    whole_of(&config(), world, arguments)
}

fn whole_of(config: &str, world: usize, arguments: &[&str]) -> Sandbox {
    let sandbox = Sandbox::with_config(config);
    Ranks::of(&sandbox, world, arguments).succeed();
    sandbox
}

/// Weights and running statistics after a phase's last epoch.
fn weights(sandbox: &Sandbox, phase: &str) -> BTreeMap<String, tch::Tensor> {
    section(sandbox, &format!("{phase}/last.safetensors"), "network.")
}

/// Part of a checkpoint of a run.
fn section(sandbox: &Sandbox, file: &str, section: &str) -> BTreeMap<String, tch::Tensor> {
    let path = sandbox.tiny(&format!("checkpoints/{file}"));
    Checkpoint::load(&path).unwrap().section(section)
}

/// The largest difference between any two weights.
fn difference(a: &Sandbox, b: &Sandbox, phase: &str) -> f64 {
    most(&weights(a, phase), &weights(b, phase))
}

fn most(a: &BTreeMap<String, tch::Tensor>, b: &BTreeMap<String, tch::Tensor>) -> f64 {
    assert!(a.keys().eq(b.keys()));
    let each = a
        .iter()
        .map(|(name, t)| (t - &b[name]).abs().max().double_value(&[]));
    each.fold(0., f64::max)
}

fn assert_near(found: &Sandbox, expected: &Sandbox, phases: &[&str]) {
    for phase in phases {
        let most = difference(found, expected, phase);
        assert!(most < 1e-5, "{phase}: weights differ by {most:e}");
    }
}

#[test]
fn two_and_three_ranks_train_the_network_of_one_process() {
    let alone = whole(1, &[]);
    for world in [2, 3] {
        let together = whole(world, &[]);
        assert_near(&together, &alone, &["ann", "t2", "t1"]);
        let kinds = |s: &Sandbox| {
            s.events()
                .iter()
                .map(|e| e["kind"].clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(kinds(&together), kinds(&alone));
    }
}

#[test]
fn a_rank_without_an_image_in_a_batch_takes_part_in_the_step() {
    let few = [
        "--set",
        "ann.batch_size=2",
        "--set",
        "ann.epochs=1",
        "--set",
        // Statistics of two images are near to nothing, and what they divide by is too.
        "ann.learning_rate=0.01",
        "--set",
        "limits.batches=55",
    ];
    assert_near(&whole(3, &few), &whole(1, &few), &["ann"]);
}

#[test]
fn accumulated_steps_are_those_of_one_process() {
    let steps = ["--set", "ann.accumulate=3", "--set", "snn.accumulate=3"];
    assert_near(&whole(2, &steps), &whole(1, &steps), &["ann", "t2"]);
}

/// Kills `victim` of so many ranks, looks at what the others say, and returns the folder.
fn killed(victim: usize, world: usize, file: &str) -> Sandbox {
    killed_of(&config(), victim, world, file)
}

fn killed_of(config: &str, victim: usize, world: usize, file: &str) -> Sandbox {
    for _ in 0..20 {
        let sandbox = Sandbox::with_config(config);
        let mut ranks = Ranks::of(&sandbox, world, &[]);
        // A run that was faster than the kill is started again.
        let unfinished = ranks.kill_at(victim, &sandbox, file);
        let start = Instant::now();
        let done = ranks.end();
        if !unfinished {
            continue;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "the others hung");
        for (rank, done) in done.iter().enumerate().filter(|(rank, _)| *rank != victim) {
            let said = done.sentence();
            let begin = format!("error: rank {rank} of {world}, ");
            assert!(said.starts_with(&begin), "{said}");
            assert!(said.contains(&format!("rank {victim} is lost")), "{said}");
        }
        return sandbox;
    }
    panic!("every run was over before it could be killed");
}

#[test]
fn when_a_rank_is_killed_the_others_name_it_and_the_resumed_run_ends_in_the_same_weights() {
    let expected = whole(2, &[]).weights();
    for (victim, file) in [
        (1, "checkpoints/ann/last.safetensors"),
        (0, "checkpoints/t2/best.safetensors"),
    ] {
        let sandbox = killed(victim, 2, file);
        Ranks::of(&sandbox, 2, &["--resume"]).succeed();
        assert!(sandbox.weights() == expected, "after rank {victim}'s end");
        assert!(sandbox.events().iter().any(|e| e["kind"] == "resume"));
    }
}

#[test]
fn a_run_that_lost_a_rank_goes_on_with_another_number_of_ranks() {
    let alone = whole(1, &[]);
    for world in [1, 2] {
        let sandbox = killed(2, 3, "checkpoints/ann/last.safetensors");
        Ranks::of(&sandbox, world, &["--resume"]).succeed();
        assert_near(&sandbox, &alone, &["ann", "t2", "t1"]);
    }
}

#[test]
fn a_second_group_of_ranks_on_one_run_is_refused_and_the_first_goes_on() {
    let longer = config().replace("epochs = 5\n", "epochs = 25\n");
    let sandbox = Sandbox::with_config(&longer);
    let first = Ranks::of(&sandbox, 2, &[]);
    wait_for(&sandbox, "checkpoints/ann/last.safetensors");
    let second = Ranks::of(&sandbox, 2, &["--resume"]).end();
    let said = second[0].sentence();
    assert!(said.contains("runs/tiny"), "{said}");
    let why = said.trim_start_matches("error: ");
    assert!(
        second[1]
            .sentence()
            .ends_with(&format!("rank 0 stopped ({why})")),
        "{}",
        second[1].stderr
    );
    first.succeed();
}

/// torchrun, where FEWSTEP_BENCH_PYTHON names a Python with torch: its agent has the store.
#[test]
fn torchrun_starts_ranks_that_train_the_same_network() {
    let Some(python) = std::env::var_os("FEWSTEP_BENCH_PYTHON") else {
        eprintln!("skipped: FEWSTEP_BENCH_PYTHON does not name a Python with torch");
        return;
    };
    let sandbox = sandbox();
    let inner = command(&sandbox, &[]);
    let port = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().port().to_string()
    };
    let torchrun = "-m torch.distributed.run --no-python --nproc-per-node 2 --master-port";
    let mut all = Command::new(python);
    all.args(torchrun.split(' ')).args([port.as_str(), "--"]);
    all.arg(inner.get_program()).args(inner.get_args());
    let output = all.current_dir(sandbox.path("")).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}");
    assert!(sandbox.weights() == whole(2, &[]).weights());
}

#[test]
fn a_rank_with_another_config_is_refused_and_nothing_is_written() {
    let sandbox = sandbox();
    let other = command(&sandbox, &["--set", "ann.learning_rate=0.01"]);
    let done = Ranks::start(vec![command(&sandbox, &[]), other]).end();
    let why = "rank 1 has another config than rank 0: `ann.learning_rate` is 0.01, not 0.05";
    assert_eq!(done[1].sentence(), format!("error: {why}"));
    assert!(
        done[0]
            .sentence()
            .ends_with(&format!("rank 1 stopped ({why})"))
    );
    assert!(!sandbox.path("runs").exists());
}

#[test]
fn a_rank_of_another_build_is_refused_and_nothing_is_written() {
    let sandbox = sandbox();
    // The same program with a byte behind its end: it runs, and is another file. Beside the real one, so that it finds its libraries.
    let real = Path::new(env!("CARGO_BIN_EXE_fewstep"));
    let mut bytes = std::fs::read(real).unwrap();
    bytes.push(0);
    let copy = sandbox.path("fewstep");
    std::fs::write(&copy, bytes).unwrap();
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut other = Command::new(&copy);
    let same = command(&sandbox, &[]);
    other.args(same.get_args()).current_dir(sandbox.path(""));
    for done in Ranks::start(vec![same, other]).end() {
        let said = done.sentence();
        assert!(said.contains("the build: rank 0 has `fewstep "), "{said}");
        assert!(said.contains(", rank 1 has `fewstep "), "{said}");
    }
    assert!(!sandbox.path("runs").exists());
}

#[test]
fn a_disk_that_is_full_stops_all_ranks_and_leaves_the_last_good_checkpoint() {
    let expected = whole(2, &[]).weights();
    let last = "checkpoints/ann/last.safetensors";
    let sandbox = killed(0, 2, last);
    let good = std::fs::read(sandbox.tiny(last)).unwrap();
    // Files that grow past this size can't be written; the log stays below, checkpoints do not.
    let room = 16;
    assert!(good.len() > room << 10);
    let arguments = ["--resume"];
    let inner = command(&sandbox, &arguments);
    let mut rank_0 = Command::new("bash");
    let script = format!("trap '' XFSZ; ulimit -f {room}; exec \"$@\"");
    rank_0
        .args(["-c", &script, "bash"])
        .arg(inner.get_program());
    rank_0.args(inner.get_args()).current_dir(sandbox.path(""));
    let done = Ranks::start(vec![rank_0, command(&sandbox, &arguments)]).end();
    let said = done[0].sentence();
    let failed = "safetensors: could not be written: File too large";
    assert!(
        said.contains("error: runs/tiny/checkpoints/ann/") && said.contains(failed),
        "{said}"
    );
    let heard = done[1].sentence();
    assert!(
        heard.contains("rank 0 stopped (") && heard.contains(failed),
        "{heard}"
    );
    assert!(std::fs::read(sandbox.tiny(last)).unwrap() == good);
    Ranks::of(&sandbox, 2, &["--resume"]).succeed();
    assert!(sandbox.weights() == expected);
}

/// The same with a real disk: a tmpfs in a mount namespace of rank 0's own, where this machine lets a process have one.
#[test]
fn a_tmpfs_that_is_full_stops_all_ranks_and_leaves_the_last_good_checkpoint() {
    let allowed = Command::new("unshare").args(["-rm", "true"]).status();
    if !allowed.is_ok_and(|status| status.success()) {
        eprintln!("skipped: this machine gives no mount namespace (unshare -rm)");
        return;
    }
    let last = "checkpoints/ann/last.safetensors";
    let sandbox = killed(0, 2, last);
    let good = std::fs::read(sandbox.tiny(last)).unwrap();
    std::fs::rename(sandbox.path("runs"), sandbox.path("saved")).unwrap();
    std::fs::create_dir(sandbox.path("runs")).unwrap();
    let inner = command(&sandbox, &["--resume"]);
    let mut rank_0 = Command::new("unshare");
    // What is there and another 8 KiB: a checkpoint's temporary file does not fit.
    let script = "set -e; size=$(du -sk --apparent-size saved | cut -f1); mount -t tmpfs -o size=$((size + 24))k none runs; \
                  cp -r saved/. runs; head -c $(( ($(stat -f -c %a runs) - 2) * 4096 )) /dev/zero >runs/filler; \
                  set +e; \"$@\"; code=$?; cp -r runs after; exit $code";
    rank_0
        .args(["-rm", "bash", "-c", script, "bash"])
        .arg(inner.get_program());
    rank_0.args(inner.get_args()).current_dir(sandbox.path(""));
    let done = Ranks::start(vec![rank_0, command(&sandbox, &["--resume"])]).end();
    let said = done[0].sentence();
    assert!(
        said.contains("error: runs/tiny/") && said.contains("No space left on device"),
        "{said}"
    );
    let heard = done[1].sentence();
    assert!(
        heard.contains("rank 0 stopped (") && heard.contains("No space left on device"),
        "{heard}"
    );
    let after = sandbox.path(&format!("after/tiny/{last}"));
    assert!(std::fs::read(after).unwrap() == good);
    std::fs::remove_dir(sandbox.path("runs")).unwrap();
    std::fs::remove_file(sandbox.path("after/filler")).unwrap();
    std::fs::rename(sandbox.path("after"), sandbox.path("runs")).unwrap();
    Ranks::of(&sandbox, 2, &["--resume"]).succeed();
    assert!(sandbox.weights() == whole(2, &[]).weights());
}

#[test]
fn a_loss_that_is_no_number_stops_all_ranks_with_one_sentence() {
    let sandbox = sandbox();
    let done = Ranks::of(&sandbox, 2, &["--set", "ann.learning_rate=1e30"]).end();
    let said = done[0].sentence();
    assert!(said.starts_with("error: stage ann: "), "{said}");
    assert_eq!(done[1].sentence(), said);
}

#[test]
fn ranks_train_the_diffusion_transformer_of_one_process_and_resume_to_it() {
    let longer = DIT
        .replace("steps = 40", "steps = 50")
        .replace("learning_rate = 1e-3", "learning_rate = 1e-4");
    let average = |s: &Sandbox| section(s, "dit.safetensors", "ema/");
    let expected = average(&whole_of(&longer, 1, &[]));
    let two = whole_of(&longer, 2, &[]);
    assert!(most(&average(&two), &expected) < 1e-5);
    assert_eq!(two.summary()["ranks"], 2);
    let sandbox = killed_of(&longer, 1, 2, "checkpoints/dit.safetensors");
    Ranks::of(&sandbox, 2, &["--resume"]).succeed();
    assert_eq!(average(&sandbox), average(&two));
}

#[test]
fn ranks_learn_the_routers_of_one_process_and_resume_to_them() {
    let slower = HARMONICA.replace("learning_rate = 0.5", "learning_rate = 0.01");
    let of = |s: &Sandbox, name: &str| section(s, &format!("{name}/router.safetensors"), "logits");
    let one = whole_of(&slower, 1, &[]);
    let two = whole_of(&slower, 2, &[]);
    for name in ["harmonica", "l2c"] {
        assert_eq!(of(&two, name).len(), 1);
        assert!(most(&of(&two, name), &of(&one, name)) < 1e-5, "{name}");
    }
    let sandbox = killed_of(&slower, 0, 2, "checkpoints/l2c/router.safetensors");
    Ranks::of(&sandbox, 2, &["--resume"]).succeed();
    for name in ["harmonica", "l2c"] {
        assert_eq!(of(&sandbox, name), of(&two, name));
    }
}

#[test]
fn a_batch_smaller_than_the_ranks_is_refused_before_a_folder_is_made() {
    for (config, key) in [
        (DIT, "training.batch_size"),
        (HARMONICA, "routers.harmonica.batch_size"),
    ] {
        let sandbox = Sandbox::with_config(config);
        let set = format!("{key}=1");
        for done in Ranks::of(&sandbox, 2, &["--set", &set]).end() {
            let said = done.sentence();
            let expected = format!("`{key}`: expected at least one for each of 2 ranks, found 1");
            assert!(said.ends_with(&expected), "{said}");
        }
        assert!(!sandbox.path("runs").exists());
    }
}

#[test]
fn the_demo_is_refused_to_several_ranks() {
    let sandbox = Sandbox::new();
    for done in Ranks::start(vec![sandbox.command(&["demo"]), sandbox.command(&["demo"])]).end() {
        let said = done.sentence();
        assert!(said.starts_with("error: demo is for one process"), "{said}");
    }
    assert!(!sandbox.path("runs").exists());
}
