//! A folder of its own for each test, and the binary started in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// A second of training in which everything random matters: dropout, augmentation, order, split.
pub const TINY: &str = r#"name = "tiny"
device = "cpu"
threads = 1

[data]
name = "digits"
train_images = 200
test_images = 100
augment = { crop_padding = 1 }

[network]
architecture = "8 A 8"
hidden = [16]

[ann]
epochs = 2
batch_size = 16
learning_rate = 0.05
dropout = 0.1
schedule = { name = "constant" }

[calibration]
timesteps = 5
images = 64
percentile = 80

[snn]
timesteps = [2, 1]
epochs = [1, 2]
batch_size = 16
learning_rate = 1e-3
dropout = 0.1
schedule = { name = "constant" }
"#;

/// What a process left.
pub struct Done {
    pub ok: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Done {
    /// The one sentence of a run that failed as it should.
    pub fn sentence(&self) -> &str {
        assert!(!self.ok, "expected a failure, but:\n{}", self.stdout);
        self.no_panic();
        let said: Vec<_> = self
            .stderr
            .lines()
            .filter(|l| l.starts_with("error: "))
            .collect();
        assert_eq!(said.len(), 1, "{}", self.stderr);
        assert_eq!(
            self.stderr.lines().last(),
            said.first().copied(),
            "{}",
            self.stderr
        );
        said[0]
    }

    pub fn no_panic(&self) {
        let said = self.stderr.to_lowercase();
        assert!(
            !said.contains("panicked") && !said.contains("backtrace"),
            "{}",
            self.stderr
        );
    }
}

/// A temporary folder with `tiny.toml`.
pub struct Sandbox {
    folder: TempDir,
}

impl Sandbox {
    pub fn new() -> Self {
        Self::with_config(TINY)
    }

    pub fn with_config(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tiny.toml"), text).unwrap();
        Self { folder }
    }

    pub fn path(&self, relative: &str) -> PathBuf {
        self.folder.path().join(relative)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fewstep"));
        command.args(arguments).current_dir(self.folder.path());
        command
            .env_remove("FEWSTEP_DATA")
            .env_remove("RUST_LOG")
            .env("RUST_BACKTRACE", "1");
        command.stdin(Stdio::null());
        command
    }

    pub fn fewstep(&self, arguments: &[&str]) -> Done {
        let output = self.command(arguments).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Done {
            ok: output.status.success(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// `fewstep run tiny.toml` with these arguments behind it.
    pub fn run(&self, arguments: &[&str]) -> Done {
        self.fewstep(&[&["run", "tiny.toml"], arguments].concat())
    }

    /// The same, and it must succeed.
    pub fn succeed(&self, arguments: &[&str]) -> Done {
        let done = self.run(arguments);
        assert!(done.ok, "{}", done.stderr);
        done.no_panic();
        done
    }

    /// Starts a run and waits for `file` of its folder; `false` if the run was over first.
    pub fn run_until(&self, arguments: &[&str], file: &str) -> (Child, bool) {
        let mut command = self.command(&[&["run", "tiny.toml"], arguments].concat());
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (file, start) = (self.tiny(file), Instant::now());
        while !file.exists() {
            if child.try_wait().unwrap().is_some() {
                return (child, false);
            }
            assert!(
                start.elapsed() < Duration::from_secs(120),
                "{} never came",
                file.display()
            );
            std::thread::sleep(Duration::from_micros(200));
        }
        (child, true)
    }

    /// A file of the run folder.
    pub fn tiny(&self, relative: &str) -> PathBuf {
        self.path("runs/tiny").join(relative)
    }

    pub fn summary(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.tiny("summary.json")).unwrap()).unwrap()
    }

    pub fn events(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.tiny("events.jsonl")).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// The bytes of every file that holds results of training.
    pub fn weights(&self) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        for path in files(&self.tiny("checkpoints")) {
            let name = path
                .strip_prefix(self.tiny(""))
                .unwrap()
                .display()
                .to_string();
            if name.ends_with("best.safetensors") || name.contains("calibrated-") {
                found.insert(name, std::fs::read(path).unwrap());
            }
        }
        assert!(
            found.contains_key("checkpoints/ann/best.safetensors"),
            "{:?}",
            found.keys()
        );
        found
    }
}

/// All files below a folder.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// JSON without what a clock says, and how a run was started.
pub fn timeless(value: &Value) -> Value {
    const LEFT_OUT: [&str; 7] = [
        "time_s",
        "unix_s",
        // How it was started: with `--resume` or without.
        "command",
        "seconds",
        "train_seconds",
        "latency_ms",
        "ms",
    ];
    match value {
        Value::Object(fields) => {
            let kept = fields
                .iter()
                .filter(|(key, _)| !LEFT_OUT.contains(&key.as_str()));
            Value::Object(kept.map(|(key, v)| (key.clone(), timeless(v))).collect())
        }
        Value::Array(list) => Value::Array(list.iter().map(timeless).collect()),
        other => other.clone(),
    }
}

/// Starts a process for each command as ranks 0, 1, … of one group.
pub fn start_ranks(commands: Vec<Command>) -> Vec<Child> {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port().to_string();
    drop(free);
    let world = commands.len().to_string();
    let start = |(rank, mut command): (usize, Command)| {
        let rank = rank.to_string();
        let place = [
            ("RANK", &rank),
            ("LOCAL_RANK", &rank),
            ("WORLD_SIZE", &world),
            ("MASTER_PORT", &port),
        ];
        command.envs(place).env("MASTER_ADDR", "127.0.0.1");
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    commands.into_iter().enumerate().map(start).collect()
}

/// Waits for a process that was started with pipes.
pub fn end(child: Child) -> Done {
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Done {
        ok: output.status.success(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}
