//! The program as it goes into a bundle: stripped, without the building machine's paths, and checked to need no newer system than promised.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// The newest symbol versions that may be needed: what a system of glibc 2.35 has (Ubuntu 22.04, with the C++ library of GCC 12).
const NEWEST: [(&str, &str); 3] = [
    ("GLIBC", "2.35"),
    ("GLIBCXX", "3.4.30"),
    ("CXXABI", "1.3.13"),
];

/// A program or library, ready to be packed.
pub struct Prepared {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The oldest glibc that it starts with, such as `2.35`.
    pub glibc: String,
}

/// Strips a copy of `path`, which it makes at `scratch`, and looks at what it needs.
pub fn prepare(path: &Path, scratch: &Path) -> Result<Prepared> {
    let glibc = check(path, &binutils("readelf", &["-VW".as_ref(), path])?)?;
    binutils("strip", &["-o".as_ref(), scratch, path])?;
    let dynamic = binutils("readelf", &["-dW".as_ref(), scratch])?;
    let unreadable = || format!("cannot read {}", scratch.display());
    let mut bytes = fs::read(scratch).with_context(unreadable)?;
    fs::remove_file(scratch).with_context(unreadable)?;
    for folders in library_folders(&dynamic) {
        erase(&mut bytes, folders).with_context(|| {
            format!(
                "{}: its library folders {folders} are not found in it",
                path.display()
            )
        })?;
    }
    Ok(Prepared { bytes, glibc })
}

/// The standard output of a program of binutils.
fn binutils(program: &str, arguments: &[&Path]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .output()
        .with_context(|| {
            format!("`{program}` does not start; install binutils (Debian: `apt install binutils`)")
        })?;
    ensure!(
        output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The newest glibc among the symbol versions that `readelf -V` lists, if none is newer than [`NEWEST`].
fn check(path: &Path, versions: &str) -> Result<String> {
    let mut needed: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for word in versions
        .lines()
        .filter_map(|line| line.split_once("Name: ")?.1.split_whitespace().next())
    {
        let Some((library, version)) = word.split_once('_') else {
            continue;
        };
        // Relocations that only a loader since 2.36 knows.
        let version = if version == "ABI_DT_RELR" {
            "2.36"
        } else {
            version
        };
        if let Some(numbers) = numbers(version) {
            let newest = needed.entry(library).or_default();
            *newest = numbers.max(std::mem::take(newest));
        }
    }
    for (library, newest) in NEWEST {
        let found = needed.get(library).map(Vec::as_slice).unwrap_or_default();
        if numbers(newest).is_some_and(|newest| found > &newest[..]) {
            bail!(
                "{} needs {library} {}, and a bundle is for systems that have {newest} (`objdump -T` shows the symbols): build it on an older system",
                path.display(),
                dotted(found)
            );
        }
    }
    match needed.get("GLIBC") {
        Some(version) => Ok(dotted(version)),
        None => bail!(
            "{} names no version of glibc, so nobody can say where it runs",
            path.display()
        ),
    }
}

fn numbers(version: &str) -> Option<Vec<u32>> {
    version
        .split('.')
        .map(|number| number.parse().ok())
        .collect()
}

fn dotted(version: &[u32]) -> String {
    let numbers: Vec<_> = version.iter().map(u32::to_string).collect();
    numbers.join(".")
}

/// The lists of folders (RUNPATH, RPATH) that `readelf -d` shows.
fn library_folders(dynamic: &str) -> impl Iterator<Item = &str> {
    dynamic.lines().filter_map(|line| {
        let (_, rest) = line
            .split_once("Library runpath: [")
            .or_else(|| line.split_once("Library rpath: ["))?;
        rest.strip_suffix(']')
    })
}

/// Overwrites a string of the string table with nothing: the loader passes over an empty list.
fn erase(bytes: &mut [u8], string: &str) -> Option<()> {
    let whole = [b"\0", string.as_bytes(), b"\0"].concat();
    let start = bytes
        .windows(whole.len())
        .position(|window| window == whole)?;
    bytes[start..start + whole.len()].fill(0);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSIONS: &str = "\
Version needs section '.gnu.version_r' contains 2 entries:
  000000: Version: 1  File: libc.so.6  Cnt: 3
  0x0010:   Name: GLIBC_2.9  Flags: none  Version: 12
  0x0020:   Name: GLIBC_2.34  Flags: none  Version: 11
  0x0030:   Name: GLIBC_PRIVATE  Flags: none  Version: 10
  0x0040:   Name: GLIBCXX_3.4.9  Flags: none  Version: 9
";

    #[test]
    fn the_newest_glibc_is_found_by_number_and_not_by_letter() {
        assert_eq!(check(Path::new("p"), VERSIONS).unwrap(), "2.34");
    }

    #[test]
    fn what_a_system_of_glibc_2_35_does_not_have_is_refused_by_name() {
        for (newer, what) in [
            ("GLIBC_2.36", "GLIBC 2.36"),
            ("GLIBC_ABI_DT_RELR", "GLIBC 2.36"),
            ("GLIBCXX_3.4.31", "GLIBCXX 3.4.31"),
            ("CXXABI_1.3.14", "CXXABI 1.3.14"),
        ] {
            let text = format!("{VERSIONS}  0x0050:   Name: {newer}  Flags: none  Version: 3\n");
            let error = check(Path::new("p"), &text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("p needs {what}, ")), "{error}");
        }
        assert!(check(Path::new("p"), "no version information").is_err());
    }

    #[test]
    fn only_the_whole_string_is_erased() {
        let mut bytes = b"\0/a/lib:/b\0x/a/lib\0/a/lib\0".to_vec();
        erase(&mut bytes, "/a/lib").unwrap();
        assert_eq!(bytes, b"\0/a/lib:/b\0x/a/lib\0\0\0\0\0\0\0\0");
        assert!(erase(&mut bytes, "/a/lib").is_none());
        let shown = " 0x1d (RUNPATH)  Library runpath: [$ORIGIN/../lib:/x]\n 0x01 (NEEDED)  Shared library: [libc.so.6]\n";
        assert_eq!(
            library_folders(shown).collect::<Vec<_>>(),
            ["$ORIGIN/../lib:/x"]
        );
    }
}
