//! `cargo xtask doctor`: what is there, what is missing, how to mend it. Changes nothing.

use std::env;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::thread;

use anyhow::Result;

use crate::checkout::{Checkout, output_of};
use crate::libtorch::{Flavour, Source, VERSION, damage, foreign_fault, source};

/// One line of the report.
#[derive(Debug, PartialEq, Eq)]
enum Finding {
    /// As it should be.
    Good(String),
    /// Worth knowing; nothing stops.
    Note(String),
    /// Something needed is missing: what, and how to mend it.
    Bad(String, String),
}

use Finding::{Bad, Good, Note};

/// Prints the report; exit code 1 if something that is needed is missing.
pub fn doctor(checkout: &Checkout) -> Result<ExitCode> {
    let libtorch = libtorch(checkout);
    let needs_download =
        matches!(libtorch, Bad(..)) && matches!(source(checkout), Ok(Source::Cache));
    let linked_cuda = fs::canonicalize(checkout.link()).is_ok_and(|folder| {
        folder.join("cuda/lib/libtorch_cuda.so").exists()
            || folder.join("lib/libtorch_cuda.so").exists()
    });
    let findings = [
        rust(),
        compiler(),
        python(needs_download),
        libtorch,
        processor(),
        gpu(linked_cuda),
        download(checkout, needs_download),
    ];
    let mut healthy = true;
    for finding in findings {
        match finding {
            Good(what) => println!("ok    {what}"),
            Note(what) => println!("note  {what}"),
            Bad(what, mend) => {
                healthy = false;
                println!("BAD   {what}\n      mend: {mend}");
            }
        }
    }
    Ok(if healthy {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn rust() -> Finding {
    match output_of("rustc", &["--version"]) {
        Some(version) => Good(version),
        None => Bad(
            "rustc does not answer".into(),
            "install Rust with rustup, or put ~/.cargo/bin on the PATH".into(),
        ),
    }
}

fn compiler() -> Finding {
    let program = env::var("CXX").unwrap_or_else(|_| "c++".into());
    match output_of(&program, &["--version"])
        .as_deref()
        .and_then(|text| text.lines().next())
    {
        Some(version) => Good(format!("C++ compiler: {version}")),
        None => Bad(
            format!("the C++ compiler `{program}` does not answer"),
            "install one (Debian: `apt install g++`), or set CXX to its name".into(),
        ),
    }
}

/// Only a download needs it.
fn python(needed: bool) -> Finding {
    let fault = match output_of("python3", &["--version"]) {
        None => "python3 does not answer",
        Some(version) => match output_of("python3", &["-m", "pip", "--version"]) {
            // "pip 23.2.1 from …"
            Some(pip) => {
                let pip = pip.split(" from ").next().unwrap_or_default().to_owned();
                return Good(format!("{version} with {pip}"));
            }
            None => "python3 has no pip",
        },
    };
    if needed {
        Bad(
            format!("{fault}, and pip downloads libtorch"),
            "install Python 3 with pip (Debian: `apt install python3-pip`)".into(),
        )
    } else {
        Note(format!(
            "{fault}; nothing has to be downloaded, so it is not missed"
        ))
    }
}

fn libtorch(checkout: &Checkout) -> Finding {
    match source(checkout) {
        Err(error) => return Bad(format!("{error:#}"), "see above".into()),
        Ok(Source::Python(folder)) => return foreign(&folder, "LIBTORCH_USE_PYTORCH"),
        Ok(Source::Variable(folder)) => return foreign(&folder, "LIBTORCH"),
        Ok(Source::Cache) => {}
    }
    let link = checkout.link();
    let Ok(folder) = fs::canonicalize(&link) else {
        let what = match fs::read_link(&link) {
            Ok(target) => format!(
                "libtorch: {} leads to {}, which is gone",
                link.display(),
                target.display()
            ),
            Err(_) => format!(
                "libtorch {VERSION} is not set up: {} is not there",
                link.display()
            ),
        };
        return Bad(what, Flavour::Cpu.command().into());
    };
    for flavour in [Flavour::Cpu, Flavour::Cuda] {
        if fs::canonicalize(checkout.cache.join(flavour.folder())).is_ok_and(|home| home == folder)
        {
            return match damage(&folder) {
                None => Good(format!(
                    "libtorch {VERSION} ({}), whole: {}",
                    flavour.title(),
                    folder.display()
                )),
                Some(fault) => Bad(
                    format!("libtorch is damaged: {fault}"),
                    flavour.command().into(),
                ),
            };
        }
    }
    match foreign_fault(&folder) {
        None => Good(format!(
            "libtorch {VERSION} (not installed by setup): {}",
            folder.display()
        )),
        Some(fault) => Bad(
            fault,
            format!("`rm {}`, then `cargo xtask setup`", link.display()),
        ),
    }
}

/// A libtorch that the user points to with `variable`.
fn foreign(folder: &Path, variable: &str) -> Finding {
    match foreign_fault(folder) {
        None => Good(format!(
            "libtorch {VERSION} ({variable}): {}",
            folder.display()
        )),
        Some(fault) => Bad(
            format!("{variable} is set, but {fault}"),
            format!("point it to a libtorch {VERSION}, or unset it and run `cargo xtask setup`"),
        ),
    }
}

fn processor() -> Finding {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown", |(_, model)| model);
    Good(format!("device cpu: {threads} threads, {model}"))
}

fn gpu(linked_cuda: bool) -> Finding {
    let names = output_of("nvidia-smi", &["--query-gpu=name", "--format=csv,noheader"])
        .filter(|names| !names.is_empty());
    match (names, linked_cuda) {
        (Some(names), true) => Good(
            names
                .lines()
                .enumerate()
                .map(|(index, name)| format!("device cuda:{index}: {name}"))
                .collect::<Vec<_>>()
                .join("\n      "),
        ),
        (Some(names), false) => Note(format!(
            "a GPU is here ({}), but libtorch has no CUDA parts; `{}` ({} MB) adds them",
            names.lines().collect::<Vec<_>>().join(", "),
            Flavour::Cuda.command(),
            Flavour::Cuda.megabytes()
        )),
        (None, _) if Path::new("/dev/nvidiactl").exists() => Note(
            "an NVIDIA device is here, but its driver does not answer (`nvidia-smi` says why); everything runs on the CPU".into(),
        ),
        (None, _) => Note("no NVIDIA driver: everything runs on the CPU".into()),
    }
}

/// What the next set-up would fetch.
fn download(checkout: &Checkout, needed: bool) -> Finding {
    let cost = |flavour: Flavour| match damage(&checkout.cache.join(flavour.folder())) {
        None => format!(
            "`{}`: nothing, it is in {}",
            flavour.command(),
            checkout.cache.display()
        ),
        Some(_) if flavour == Flavour::Cpu && !needed => {
            format!("`{}`: nothing, libtorch is set up", flavour.command())
        }
        Some(_) => format!("`{}`: {} MB", flavour.command(), flavour.megabytes()),
    };
    Note(format!(
        "would be downloaded by {}; by {}",
        cost(Flavour::Cpu),
        cost(Flavour::Cuda)
    ))
}
