//! One file for each subcommand of the binary.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write, stderr, stdout};
use std::path::Path;

pub mod bench;
pub mod check;
pub mod compare;
pub mod data;
pub mod demo;
pub mod devices;
mod dit;
pub mod evaluate;
pub mod export;
mod harmonica;
pub mod import;
pub mod infer;
mod observe;
pub mod plan;
mod ranks;
pub mod report;
pub mod router;
pub mod run;
pub mod sample;
mod setting;
mod summary;

/// A line of the result, to standard output. A reader who has seen enough (`| head`) is no fault.
///
/// # Errors
/// It cannot be written for any other reason.
pub(crate) fn print(line: &str) -> anyhow::Result<()> {
    match writeln!(stdout(), "{line}") {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}

/// Makes one sentence of what failed with a file and why.
pub(crate) fn at<'a>(path: &'a Path, what: &'a str) -> impl Fn(io::Error) -> anyhow::Error + 'a {
    move |e| anyhow::anyhow!("{} {what}: {e}", path.display())
}

/// The checksum of a file's bytes, behind that of others.
///
/// # Errors
/// It can't be read.
pub(crate) fn checksum(path: &Path, earlier: u32) -> anyhow::Result<u32> {
    let unreadable = at(path, "could not be read");
    let mut file = File::open(path).map_err(&unreadable)?;
    let (mut buffer, mut sum) = (vec![0; 1 << 20], earlier);
    loop {
        match file.read(&mut buffer).map_err(&unreadable)? {
            0 => return Ok(sum),
            n => sum = crc32c::crc32c_append(sum, &buffer[..n]),
        }
    }
}

/// Says which keys or flags to lower where there was not enough memory.
pub(crate) fn or_lower<T, E: Into<anyhow::Error>>(
    result: Result<T, E>,
    keys: &str,
) -> anyhow::Result<T> {
    result.map_err(|e| {
        let e = e.into();
        let of_diffusion = e
            .downcast_ref()
            .map(fewstep_diffusion::Error::is_out_of_memory);
        let of_harmonica = || {
            e.downcast_ref()
                .map(fewstep_harmonica::Error::is_out_of_memory)
        };
        match of_diffusion.or_else(of_harmonica) {
            Some(true) => anyhow::anyhow!("{e}; lower {keys}"),
            _ => e,
        }
    })
}

/// A line for a person, to standard error; a run goes on when nobody reads it.
pub(crate) fn tell(line: &str) {
    let _ = writeln!(stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_out_of_memory_is_answered_with_what_to_lower() {
        let sentence = |e: anyhow::Error| {
            or_lower(Err::<(), _>(e), "--batch")
                .unwrap_err()
                .to_string()
        };
        // 1 PiB: more than an address space holds.
        let full = || {
            let cpu = (tch::Kind::Float, tch::Device::Cpu);
            fewstep_diffusion::Error::from(tch::Tensor::f_empty([1 << 48], cpu).unwrap_err())
        };
        let said = "out of memory: 1048576.00 GiB asked for on the CPU; lower --batch";
        assert_eq!(sentence(full().into()), said);
        assert_eq!(
            sentence(fewstep_harmonica::Error::from(full()).into()),
            said
        );
        let other = fewstep_diffusion::Error::Stopped("the disk is full".into());
        assert_eq!(sentence(other.into()), "the disk is full");
    }
}
