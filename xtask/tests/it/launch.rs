//! `launch`: ranks of a shell script that plays fewstep.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::sandbox::{Said, Sandbox, said, wait_for};

/// A sandbox whose cargo "builds" a fewstep that runs `body`; there `$here` is the sandbox's folder.
fn with_fewstep(body: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.libtorch("root/.libtorch", "2.11.0");
    let here = sandbox.path("");
    let fewstep = sandbox.script("fewstep", &format!("here={}\n{body}", here.display()));
    let message = serde_json::json!({
        "reason": "compiler-artifact",
        "target": { "name": "fewstep" },
        "executable": fewstep,
    });
    sandbox.script(
        "fake-cargo",
        &format!(
            "[ \"$1\" = build ] || exit 9\necho \"$*\" >> {}/asked\necho 'no JSON'\necho '{message}'",
            here.display()
        ),
    );
    sandbox
}

fn launch(sandbox: &Sandbox, arguments: &[&str]) -> Command {
    let mut command = sandbox.xtask(&["launch"]);
    command
        .args(arguments)
        .env("CARGO", sandbox.path("bin/fake-cargo"))
        .env_remove("OMP_NUM_THREADS");
    command
}

fn says(sandbox: &Sandbox, arguments: &[&str]) -> Said {
    said(&mut launch(sandbox, arguments))
}

/// Starts it and waits until so many ranks have made their file `upN`.
fn start(command: &mut Command, sandbox: &Sandbox, ranks: usize) -> Child {
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    for rank in 0..ranks {
        wait_for(&sandbox.path(&format!("up{rank}")));
    }
    child
}

fn send(signal: &str, child: &Child) {
    let id = child.id().to_string();
    let done = Command::new("kill").args([signal, &id]).status().unwrap();
    assert!(done.success());
}

/// How it ended, and what it said on standard error.
fn end(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), words)
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

/// What a rank has written about its place.
fn place(sandbox: &Sandbox, rank: usize) -> Vec<String> {
    let text = fs::read_to_string(sandbox.path(&format!("place{rank}"))).unwrap();
    text.split_whitespace().map(str::to_owned).collect()
}

const PLACE: &str = r#"echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR $OMP_NUM_THREADS \
    ${TORCHELASTIC_USE_AGENT_STORE-none} $MASTER_PORT" > $here/place$RANK"#;

/// Until rank 1 has ended and launch has taken note of it, there is a process of its number.
const AFTER_RANK_1: &str =
    "while [ ! -e $here/pid1 ] || kill -0 $(cat $here/pid1) 2> /dev/null; do sleep 0.01; done";

#[test]
fn each_rank_is_told_its_place_and_has_its_share_of_the_cores() {
    let sandbox = with_fewstep(PLACE);
    let cores = thread::available_parallelism().unwrap().get();
    let answer = said(
        launch(&sandbox, &["--nproc", "3", "run", "a.toml"])
            // As if a rank of a torchrun had started us.
            .envs([("RANK", "7"), ("WORLD_SIZE", "9"), ("MASTER_PORT", "1")])
            .env("TORCHELASTIC_USE_AGENT_STORE", "True"),
    );
    assert_eq!(answer.code, Some(0), "{answer:?}");
    let mut ports = Vec::new();
    for rank in 0..3 {
        let mut place = place(&sandbox, rank);
        ports.push(place.pop().unwrap().parse::<u16>().unwrap());
        let (rank, share) = (rank.to_string(), (cores / 3).max(1).to_string());
        assert_eq!(place, [&rank, &rank, "3", "3", "127.0.0.1", &share, "none"]);
    }
    assert!(ports[0] > 1 && ports.iter().all(|port| *port == ports[0]));
    let asked = fs::read_to_string(sandbox.path("asked")).unwrap();
    assert_eq!(asked.lines().count(), 1, "it is built once: {asked}");
}

#[test]
fn a_port_and_a_number_of_threads_that_the_user_names_stay() {
    let sandbox = with_fewstep(PLACE);
    let free = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = free.local_addr().unwrap().port().to_string();
    drop(free);
    let mut command = launch(&sandbox, &["--nproc", "2", "--port", &port, "demo"]);
    let answer = said(command.env("OMP_NUM_THREADS", "11"));
    assert_eq!(answer.code, Some(0), "{answer:?}");
    for rank in 0..2 {
        assert_eq!(place(&sandbox, rank)[5..], ["11", "none", &port]);
    }
}

#[test]
fn a_port_that_somebody_has_is_refused_in_one_sentence_and_nothing_starts() {
    let sandbox = with_fewstep("touch $here/started");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let answer = says(&sandbox, &["--nproc", "2", "--port", &port, "demo"]);
    assert_eq!(answer.code, Some(1));
    assert_eq!(
        answer.err.lines().last().unwrap(),
        format!(
            "error: port {port} cannot be had, leave --port out for one that is free: Address already in use (os error 98)"
        )
    );
    assert!(!sandbox.path("started").exists());
}

#[test]
fn rank_0_has_the_input_and_what_the_others_say_beside_results_has_a_prefix() {
    let sandbox = with_fewstep(
        r#"read -r word
echo "out of $RANK: $word"
printf 'no end of %s' $RANK >&2"#,
    );
    let mut command = launch(&sandbox, &["--nproc", "3", "demo"]);
    let input = sandbox.path("input");
    fs::write(&input, "word\n").unwrap();
    let answer = said(command.stdin(fs::File::open(input).unwrap()));
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert_eq!(
        sorted(&answer.out),
        ["out of 0: word", "out of 1: ", "out of 2: "]
    );
    let words = answer.err.split_once("few minutes\n").unwrap().1;
    assert_eq!(
        sorted(words),
        [
            "[rank 1] no end of 1",
            "[rank 2] no end of 2",
            "no end of 0"
        ]
    );
}

#[test]
fn the_exit_code_is_that_of_the_first_failure_and_the_others_go_on_after_it() {
    let sandbox = with_fewstep(&format!(
        r#"if [ $RANK = 1 ]; then echo $$ > $here/pid; mv $here/pid $here/pid1; exit 7; fi
{AFTER_RANK_1}
[ $RANK = 2 ] && exit 9
echo "went on""#
    ));
    let answer = says(&sandbox, &["--nproc", "3", "demo"]);
    assert_eq!(answer.code, Some(7), "{answer:?}");
    assert_eq!(answer.out, "went on\n");
    assert!(
        answer
            .err
            .contains("launch: rank 1 ended with exit code 7; 2 of 3 ranks go on\n"),
        "{}",
        answer.err
    );
    assert!(
        answer.err.ends_with("launch: 2 of 3 ranks failed\n"),
        "{}",
        answer.err
    );
}

#[test]
fn a_rank_that_a_signal_kills_counts_as_128_and_its_number() {
    let sandbox = with_fewstep(&format!(
        r#"if [ $RANK = 1 ]; then echo $$ > $here/pid; mv $here/pid $here/pid1; kill -KILL $$; fi
{AFTER_RANK_1}"#
    ));
    let answer = says(&sandbox, &["--nproc", "2", "demo"]);
    assert_eq!(answer.code, Some(137), "{answer:?}");
    assert!(
        answer
            .err
            .contains("launch: rank 1 was killed by signal 9 (KILL); 1 of 2 ranks goes on\n"),
        "{}",
        answer.err
    );
}

#[test]
fn the_last_words_of_failed_ranks_are_said_again_at_the_end() {
    let sandbox = with_fewstep(&format!(
        r#"if [ $RANK = 1 ]; then
  echo $$ > $here/pid; mv $here/pid $here/pid1
  for n in 1 2 3 4 5 6; do echo "word $n" >&2; done
  exit 3
fi
{AFTER_RANK_1}
echo "all is well with $RANK" >&2"#
    ));
    let answer = says(&sandbox, &["--nproc", "3", "demo"]);
    assert_eq!(answer.code, Some(3), "{answer:?}");
    let last = "launch: last words of rank 1, which ended with exit code 3:
    word 2
    word 3
    word 4
    word 5
    word 6
launch: 1 of 3 ranks failed
";
    assert!(answer.err.ends_with(last), "{}", answer.err);
}

#[test]
fn arguments_after_the_command_are_fewsteps_and_dashes_before_it_are_ours() {
    for (ours, theirs) in [
        (
            &[
                "run",
                "a b.toml",
                "--set",
                "name=\"*\"",
                "--nproc",
                "3",
                "--resume",
            ][..],
            "<run><a b.toml><--set><name=\"*\"><--nproc><3><--resume>",
        ),
        (&["run", "--", "--port", ""], "<run><--><--port><>"),
        (&["--", "run", "--help"], "<run><--help>"),
        (&["--", "--help"], "<--help>"),
        (&["--version"], "<--version>"),
        (&["--", "run", "--", "a"], "<run><--><a>"),
    ] {
        let sandbox = with_fewstep(r#"printf '<%s>' "$@""#);
        let answer = says(&sandbox, &[&["--nproc", "1"], ours].concat());
        assert_eq!(answer.code, Some(0), "{ours:?}: {answer:?}");
        assert_eq!(answer.out, theirs, "{ours:?}");
    }
}

#[test]
fn a_fewstep_that_does_not_build_starts_no_ranks() {
    let sandbox = with_fewstep("touch $here/started");
    sandbox.script(
        "fake-cargo",
        "echo 'error[E0308]: mismatched types' >&2; exit 101",
    );
    let answer = says(&sandbox, &["--nproc", "2", "demo"]);
    assert_eq!(answer.code, Some(1));
    assert!(
        answer.err.ends_with(
            "error[E0308]: mismatched types\nerror: fewstep does not build; cargo has said why\n"
        ),
        "{}",
        answer.err
    );
    assert!(!sandbox.path("started").exists());
}

#[test]
fn a_signal_to_launch_reaches_the_ranks_and_all_end() {
    for (signal, code, name) in [("-TERM", 143, "15 (TERM)"), ("-INT", 130, "2 (INT)")] {
        let sandbox = with_fewstep("touch $here/up$RANK; exec sleep 60");
        let mut command = launch(&sandbox, &["--nproc", "3", "demo"]);
        let child = start(&mut command, &sandbox, 3);
        send(signal, &child);
        let (ended, words) = end(child);
        assert_eq!(ended, Some(code), "{words}");
        let all = words.split_once("few minutes\n").unwrap().1;
        assert_eq!(
            all,
            format!("launch: all ranks have ended after signal {name}\n")
        );
    }
}

#[test]
fn ranks_that_do_not_mind_a_signal_are_killed_at_the_second() {
    let sandbox = with_fewstep("trap '' TERM INT; touch $here/up$RANK; exec sleep 60");
    let mut command = launch(&sandbox, &["--nproc", "2", "demo"]);
    let child = start(&mut command, &sandbox, 2);
    send("-TERM", &child);
    send("-INT", &child);
    let (ended, words) = end(child);
    assert_eq!(ended, Some(137), "{words}");
    assert!(
        words.contains("launch: 2 ranks are still there; killed\n"),
        "{words}"
    );
}

/// `nohup cargo xtask launch …`, and the terminal closes.
#[test]
fn a_signal_that_is_ignored_around_launch_ends_nothing() {
    let sandbox = with_fewstep("touch $here/up$RANK; exec sleep 60");
    let inner = launch(&sandbox, &["--nproc", "2", "demo"]);
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "trap '' HUP; exec \"$0\" \"$@\""])
        .arg(inner.get_program())
        .args(inner.get_args())
        .current_dir(sandbox.path("root"));
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let child = start(&mut shell, &sandbox, 2);
    send("-HUP", &child);
    send("-TERM", &child);
    let (ended, words) = end(child);
    assert_eq!(ended, Some(143), "{words}");
    assert!(
        words.ends_with("launch: all ranks have ended after signal 15 (TERM)\n"),
        "{words}"
    );
}

#[test]
fn no_rank_outlives_a_launch_that_is_killed() {
    let sandbox =
        with_fewstep("echo $$ > $here/pid$RANK; mv $here/pid$RANK $here/up$RANK; exec sleep 60");
    let mut command = launch(&sandbox, &["--nproc", "2", "demo"]);
    let mut child = start(&mut command, &sandbox, 2);
    child.kill().unwrap();
    child.wait().unwrap();
    for rank in 0..2 {
        let id = fs::read_to_string(sandbox.path(&format!("up{rank}"))).unwrap();
        let (stat, start) = (format!("/proc/{}/stat", id.trim()), Instant::now());
        while lives(Path::new(&stat)) {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "rank {rank} lives"
            );
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Whether there is a process that has not ended; one that nobody has waited for is a zombie.
fn lives(stat: &Path) -> bool {
    fs::read_to_string(stat).is_ok_and(|text| {
        let state = text.rsplit(") ").next().unwrap_or_default();
        !state.starts_with('Z')
    })
}
