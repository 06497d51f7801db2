//! A checkout, a cache and a `python3` whose pip hands out small wheels.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// Everything that one test may touch.
pub struct Sandbox {
    folder: TempDir,
}

/// What a program said, and how it ended.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Sandbox {
    /// An empty checkout, an empty cache, and wheels for the fake pip to hand out.
    pub fn new() -> Self {
        let sandbox = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        for name in ["root", "cache", "bin", "wheels"] {
            fs::create_dir(sandbox.path(name)).unwrap();
        }
        sandbox.wheel(
            "torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl",
            &[
                "torch/__init__.py",
                "torch/include/torch/torch.h",
                "torch/lib/libc10.so",
                "torch/lib/libc10_cuda.so",
                "torch/lib/libcaffe2_nvrtc.so",
                "torch/lib/libgomp.so.1",
                "torch/lib/libtorch.so",
                "torch/lib/libtorch_cpu.so",
                "torch/lib/libtorch_cuda.so",
                "torch/lib/libtorch_cuda_linalg.so",
                "torch/lib/libtorch_nvshmem.so",
            ],
        );
        sandbox.wheel(
            "nvidia_cuda_runtime-13.0.96-py3-none-x.whl",
            &["nvidia/cu13/lib/libcudart.so.13"],
        );
        sandbox.wheel(
            "nvidia_cuda_cupti-13.0.85-py3-none-x.whl",
            &[
                "nvidia/cu13/lib/libcupti.so.13",
                "nvidia/cu13/lib/libcheckpoint.so",
            ],
        );
        sandbox
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where the CPU flavour goes.
    pub fn home(&self) -> PathBuf {
        self.path("cache/fewstep/libtorch-2.11.0-cpu")
    }

    /// A wheel whose files hold their own names.
    pub fn wheel(&self, name: &str, files: &[&str]) {
        let mut zip = ZipWriter::new(fs::File::create(self.path("wheels").join(name)).unwrap());
        for file in files {
            zip.start_file(*file, SimpleFileOptions::default()).unwrap();
            zip.write_all(file.as_bytes()).unwrap();
        }
        zip.finish().unwrap();
    }

    /// Puts an executable shell script on the PATH.
    pub fn script(&self, name: &str, body: &str) -> PathBuf {
        let path = self.path("bin").join(name);
        let text = self.path("script");
        fs::write(&text, format!("#!/bin/sh\n{body}\n")).unwrap();
        // Not written by us: a process that another test forks meanwhile would have it open, and nobody could run it ("text file busy").
        let done = Command::new("install")
            .args(["-m", "755"])
            .args([&text, &path])
            .status()
            .unwrap();
        assert!(done.success());
        path
    }

    /// A python3 whose `pip download` runs `body`; there `$dest` is the folder to fill and `$wheels` what to fill it with.
    pub fn pip(&self, body: &str) {
        self.script(
            "python3",
            &format!(
                r#"case "$*" in
  --version) echo "Python 3.12.0"; exit ;;
  "-m pip --version") echo "pip 24.0 from /somewhere (python 3.12)"; exit ;;
  "-m pip download "*) ;;
  *) exit 9 ;;
esac
here={folder}
wheels=$here/wheels
echo "$*" >> $here/calls
while [ $# -gt 0 ]; do if [ "$1" = --dest ]; then dest=$2; fi; shift; done
{body}"#,
                folder = self.folder.path().display()
            ),
        );
    }

    /// A pip that works.
    pub fn working_pip(&self) {
        self.pip("rm -f $dest/* && cp $wheels/* $dest");
    }

    /// How often pip was asked to download.
    pub fn downloads(&self) -> usize {
        fs::read_to_string(self.path("calls")).map_or(0, |text| text.lines().count())
    }

    /// The program with the environment of a fresh user.
    pub fn xtask(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .args(arguments)
            .current_dir(self.path("root"))
            .env("FEWSTEP_ROOT", self.path("root"))
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("PATH", format!("{}:{path}", self.path("bin").display()))
            .env_remove("CARGO_TARGET_DIR")
            .env_remove("FEWSTEP_BENCH_PYTHON")
            .env_remove("LIBTORCH")
            .env_remove("LIBTORCH_USE_PYTORCH")
            .env_remove("VIRTUAL_ENV");
        command
    }

    /// Runs it to its end.
    pub fn says(&self, arguments: &[&str]) -> Said {
        said(&mut self.xtask(arguments))
    }

    /// A folder that passes for a libtorch of this version.
    pub fn libtorch(&self, name: &str, version: &str) -> PathBuf {
        let root = self.path(name);
        fs::create_dir_all(root.join("lib")).unwrap();
        fs::create_dir_all(root.join("include/torch/headeronly")).unwrap();
        for library in ["libtorch_cpu.so", "libc10.so"] {
            fs::write(root.join("lib").join(library), "").unwrap();
        }
        let header =
            format!("#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION \\\n  \"{version}\"\n");
        fs::write(root.join("include/torch/headeronly/version.h"), header).unwrap();
        root.canonicalize().unwrap()
    }
}

/// Runs a command to its end.
pub fn said(command: &mut Command) -> Said {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    Said {
        code: status.code(),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    }
}

/// Waits until a file is there.
pub fn wait_for(path: &Path) {
    let start = Instant::now();
    while !path.exists() {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{} never came",
            path.display()
        );
        thread::sleep(Duration::from_millis(2));
    }
}
