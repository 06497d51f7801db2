//! `cargo xtask bundle`: a small folder that runs fewstep on a machine that has Python's torch, and neither Rust nor a network.
//!
//! The program and each data set are a `.tar.gz`. xz would save 3 MB of 30 on cifar10-jpeg (JPEGs are packed already), and gzip is unpacked
//! in a quarter of the time, needs no crate that the workspace has not, and no Python lacks it. `run.py` unpacks them on first use, finds
//! torch's libraries and starts the program.

mod folder;
mod program;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;

use super::drive;
use crate::checkout::Checkout;
use crate::libtorch::VERSION;
use folder::{Content, Member, Partial, files_below};

/// The most that a bundle may have, bytes.
const LIMIT: u64 = 60_000_000;
/// What starts the program on the other machine.
const RUN: &str = include_str!("bundle/run.py");
/// What tells its user how.
const README: &str = include_str!("bundle/README.md");

/// Options of `cargo xtask bundle`.
#[derive(Args, Debug)]
pub struct Options {
    /// A data set to take along, named as in a config; or the weights resnet56
    #[arg(long, value_name = "NAME")]
    data: Vec<String>,
    /// A config to take along, beside those of configs/
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// A checkpoint, a router or a whole run folder to take along
    #[arg(long, value_name = "PATH")]
    checkpoint: Vec<PathBuf>,
    /// The folder to make; an older bundle there is replaced
    #[arg(long, value_name = "FOLDER", default_value = "bundle")]
    out: PathBuf,
}

/// A part of the bundle and its size, for those who have to leave something out.
struct Part {
    what: String,
    bytes: u64,
    packed: bool,
    optional: bool,
}

/// A file and its place in the bundle.
struct Copy {
    from: PathBuf,
    to: String,
}

/// Makes the folder, or says in one sentence why not and leaves none.
pub fn bundle(checkout: &Checkout, options: &Options) -> Result<ExitCode> {
    // Where the name is a link, the folder behind it is meant.
    let out = fs::canonicalize(&options.out).unwrap_or_else(|_| options.out.clone());
    folder::replaceable(&out)?;
    let (mut parts, copies) = plain_files(checkout, options)?;

    let built = drive::build(checkout)?;
    let mut partial = Partial::new(&out)?;
    eprintln!("packing the program");
    let program = program::prepare(&built.program, &partial.scratch())?;
    let mut members = vec![member("fewstep", Content::Program(program.bytes))];
    if let Some(library) = &built.cuda {
        let library = program::prepare(library, &partial.scratch())?;
        members.push(member(
            "libfewstep_cuda.so",
            Content::Program(library.bytes),
        ));
    }
    parts.insert(
        0,
        Part {
            what: "program".into(),
            bytes: partial.pack("program.tar.gz", members, LIMIT)?
                + (RUN.len() + README.len()) as u64,
            packed: true,
            optional: false,
        },
    );
    for name in unique(&options.data) {
        let members = data_files(&built.program, name)?;
        if members.is_empty() {
            eprintln!("{name} needs no files");
            continue;
        }
        eprintln!("packing {name}, {} files", members.len());
        parts.push(Part {
            what: format!("--data {name}"),
            bytes: partial.pack(&format!("data-{name}.tar.gz"), members, LIMIT)?,
            packed: true,
            optional: true,
        });
    }
    check_size(&parts)?;

    let content: Vec<_> = parts
        .iter()
        .map(|part| part.what.trim_start_matches("--"))
        .collect();
    let about = BTreeMap::from([
        ("fewstep", env!("CARGO_PKG_VERSION")),
        ("torch", VERSION),
        ("glibc", &program.glibc),
        ("machine", env::consts::ARCH),
    ]);
    let mut readme = README.replace("{CONTENT}", &content.join(", "));
    for (key, value) in &about {
        readme = readme.replace(&format!("{{{}}}", key.to_uppercase()), value);
    }
    partial.write("run", RUN.as_bytes(), 0o755)?;
    partial.write("README.md", readme.as_bytes(), 0o644)?;
    for copy in &copies {
        partial.copy(&copy.from, &copy.to)?;
    }
    let bytes = partial.publish(&about, LIMIT)?;

    for part in &parts {
        println!("{:>6.1} MB  {}", megabytes(part.bytes), part.what);
    }
    println!(
        "{:>6.1} MB  {}, for glibc {} or newer and Python's torch {VERSION}; copy it there and ask `./run --check`",
        megabytes(bytes),
        options.out.display(),
        program.glibc
    );
    Ok(ExitCode::SUCCESS)
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn member(path: impl Into<PathBuf>, content: Content) -> Member {
    Member {
        path: path.into(),
        content,
    }
}

/// Each once, in the order given.
fn unique(names: &[String]) -> Vec<&str> {
    let mut found: Vec<&str> = Vec::new();
    for name in names {
        if !found.contains(&name.as_str()) {
            found.push(name);
        }
    }
    found
}

/// Asks fewstep which files a data set has; in the bundle they are where it looks for that name.
fn data_files(program: &Path, name: &str) -> Result<Vec<Member>> {
    ensure!(
        !name.contains('/'),
        "--data {name}: expected a name as in a config, found a path"
    );
    let output = Command::new(program)
        .args(["data", "files", "--json", "--", name])
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!(
            "--data {name}: {}",
            words.trim().trim_start_matches("error: ")
        );
    }
    let answer: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("`fewstep data files --json {name}` gave no JSON"))?;
    let folder = Path::new(answer["folder"].as_str().unwrap_or_default());
    let files = answer["files"].as_array().map(Vec::as_slice);
    let files = files.unwrap_or_default().iter().filter_map(Value::as_str);
    let inside = Path::new("data").join(name);
    Ok(files
        .map(|file| member(inside.join(file), Content::File(folder.join(file))))
        .collect())
}

/// What is taken along as it is: configs/, and what the user names.
fn plain_files(checkout: &Checkout, options: &Options) -> Result<(Vec<Part>, Vec<Copy>)> {
    let mut taken = BTreeMap::new();
    let configs = checkout.root.join("configs");
    if configs.is_dir() {
        for name in files_below(&configs)? {
            if name.extension().is_some_and(|end| end == "toml") {
                taken.insert(Path::new("configs").join(&name), configs.join(name));
            }
        }
    }
    let mut parts = vec![Part {
        what: "configs".into(),
        bytes: size(taken.values())?,
        packed: false,
        optional: false,
    }];
    let current = env::current_dir().context("the current folder is gone")?;
    for (option, paths, home) in [
        ("--config", &options.config, "configs"),
        ("--checkpoint", &options.checkpoint, "checkpoints"),
    ] {
        for path in paths {
            let what = format!("{option} {}", path.display());
            let metadata = fs::metadata(path).with_context(|| format!("{what} cannot be read"))?;
            let place = place(path, &current, home).with_context(|| {
                format!("{what}: expected the path of a file or a folder in it")
            })?;
            let mut files = vec![(place.clone(), path.clone())];
            if metadata.is_dir() {
                ensure!(option != "--config", "{what} is a folder, expected a file");
                files = files_below(path)?
                    .into_iter()
                    .map(|name| (place.join(&name), path.join(name)))
                    .collect();
                ensure!(!files.is_empty(), "{what} holds no files");
            }
            let mut new = Vec::new();
            for (to, from) in files {
                match taken.get(&to) {
                    Some(other) if fs::canonicalize(other)? != fs::canonicalize(&from)? => bail!(
                        "{what}: {} and {} would both be {} in the bundle",
                        other.display(),
                        from.display(),
                        to.display()
                    ),
                    Some(_) => {}
                    None => {
                        new.push(from.clone());
                        taken.insert(to, from);
                    }
                }
            }
            parts.push(Part {
                what,
                bytes: size(new.iter())?,
                packed: false,
                optional: true,
            });
        }
    }
    let copies = taken.into_iter().map(|(to, from)| {
        let to = to
            .to_str()
            .with_context(|| format!("{}: expected a name in UTF-8", from.display()))?
            .to_owned();
        Ok(Copy { from, to })
    });
    Ok((parts, copies.collect::<Result<_>>()?))
}

fn size<'a>(files: impl Iterator<Item = &'a PathBuf>) -> Result<u64> {
    let mut sum = 0;
    for file in files {
        let metadata =
            fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?;
        sum += metadata.len();
    }
    Ok(sum)
}

/// A path below the current folder stays what it is, so that commands stay the same; any other goes to `home` by its name.
fn place(path: &Path, current: &Path, home: &str) -> Option<PathBuf> {
    let below: PathBuf = path
        .strip_prefix(current)
        .unwrap_or(path)
        .components()
        .filter(|part| *part != Component::CurDir)
        .collect();
    let plain = below
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    match below.file_name()? {
        _ if plain => Some(below),
        name => Some(Path::new(home).join(name)),
    }
}

fn check_size(parts: &[Part]) -> Result<()> {
    let sum: u64 = parts.iter().map(|part| part.bytes).sum();
    if sum <= LIMIT {
        return Ok(());
    }
    let sizes: Vec<_> = parts
        .iter()
        .map(|part| {
            // Packing stops where it has become too much.
            let more = if part.packed && part.bytes > LIMIT {
                "more than "
            } else {
                ""
            };
            format!("{} {more}{:.1} MB", part.what, megabytes(part.bytes))
        })
        .collect();
    let largest = parts
        .iter()
        .filter(|part| part.optional)
        .max_by_key(|part| part.bytes);
    let remedy = largest.map_or(String::new(), |part| format!("; leave out {}", part.what));
    bail!(
        "the bundle would have more than {:.0} MB: {}{remedy}",
        megabytes(LIMIT),
        sizes.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_below_the_current_folder_stays_and_any_other_goes_by_its_name() {
        let place = |path: &str| place(Path::new(path), Path::new("/here"), "checkpoints");
        for (path, expected) in [
            ("runs/a/dit.safetensors", "runs/a/dit.safetensors"),
            ("./runs/a/", "runs/a"),
            ("/here/runs/a", "runs/a"),
            ("/there/runs/a", "checkpoints/a"),
            ("../a", "checkpoints/a"),
            ("runs/../a", "checkpoints/a"),
        ] {
            assert_eq!(place(path), Some(expected.into()), "{path}");
        }
        for path in [".", "/here", "..", "/"] {
            assert_eq!(place(path), None, "{path}");
        }
    }

    #[test]
    fn too_much_is_answered_with_the_sizes_and_the_largest_that_may_go() {
        let part = |what: &str, bytes, optional| Part {
            what: what.into(),
            bytes,
            packed: what != "--checkpoint b",
            optional,
        };
        let mut parts = vec![
            part("program", 11_000_000, false),
            part("--data a", 8_000_000, true),
            part("--checkpoint b", 41_000_000, true),
        ];
        check_size(&parts).unwrap();
        parts[1].bytes += 1_000_000;
        assert_eq!(
            check_size(&parts).unwrap_err().to_string(),
            "the bundle would have more than 60 MB: program 11.0 MB, --data a 9.0 MB, --checkpoint b 41.0 MB; leave out --checkpoint b"
        );
        parts[1].bytes = 60_000_001;
        let error = check_size(&parts).unwrap_err().to_string();
        assert!(error.contains("--data a more than 60.0 MB,"), "{error}");
        parts[2].bytes = 70_000_000;
        let error = check_size(&parts).unwrap_err().to_string();
        assert!(error.contains("--checkpoint b 70.0 MB;"), "{error}");
    }
}
