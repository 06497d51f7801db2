//! Downloads data sets, and weights that measure with, from their official addresses: resumed where it broke off, checked, and in place all at once.
//!
//! Everything happens in `.<name>.partial` below the data root: `<file>.part` while it arrives, `complete/` once it is
//! checked. The last step renames `complete/` to `<name>`, so a set is either whole or not there.

use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::read::GzDecoder;
use sha2::{Digest, Sha256};
use ureq::http::header::{ACCEPT_ENCODING, CONTENT_RANGE, RANGE};
use ureq::{Agent, Body, http};

use crate::open::data_roots;
use crate::{Error, Result};

/// Tries without a single new byte before giving up.
const TRIES: usize = 3;
const CHUNK_BYTES: usize = 1 << 18;
const TIMEOUT: Duration = Duration::from_secs(60);

/// What a download is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchProgress {
    /// The file.
    pub file: String,
    /// What is being done with it.
    pub stage: FetchStage,
    /// Bytes that have arrived, those of earlier runs included.
    pub received_bytes: u64,
    /// Bytes in all, where the server says so.
    pub total_bytes: Option<u64>,
}

/// The steps of a download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchStage {
    /// Bytes are arriving.
    Downloading,
    /// The checksum is being computed.
    Checking,
    /// The archive is being unpacked.
    Unpacking,
}

/// A data set at its official address.
#[derive(Debug)]
struct Source {
    name: &'static str,
    base: &'static str,
    /// File and SHA-256.
    files: &'static [(&'static str, &'static str)],
    /// The folder that the archive unpacks to; `None` for plain files.
    unpacks_to: Option<&'static str>,
}

/// The digests of data sets are of the official files, as TensorFlow Datasets records them. Files of weights have the
/// first eight digits of theirs in their names.
const SOURCES: [Source; 6] = [
    Source {
        name: "cifar10",
        base: "https://www.cs.toronto.edu/~kriz",
        files: &[(
            "cifar-10-binary.tar.gz",
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        )],
        unpacks_to: Some("cifar-10-batches-bin"),
    },
    Source {
        name: "cifar100",
        base: "https://www.cs.toronto.edu/~kriz",
        files: &[(
            "cifar-100-binary.tar.gz",
            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        )],
        unpacks_to: Some("cifar-100-binary"),
    },
    Source {
        name: "mnist",
        base: "https://ossci-datasets.s3.amazonaws.com/mnist",
        files: &[
            (
                "train-images-idx3-ubyte.gz",
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            ),
            (
                "train-labels-idx1-ubyte.gz",
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            ),
            (
                "t10k-images-idx3-ubyte.gz",
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            ),
            (
                "t10k-labels-idx1-ubyte.gz",
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            ),
        ],
        unpacks_to: None,
    },
    Source {
        name: "fashion-mnist",
        base: "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        files: &[
            (
                "train-images-idx3-ubyte.gz",
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            ),
            (
                "train-labels-idx1-ubyte.gz",
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            ),
            (
                "t10k-images-idx3-ubyte.gz",
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            ),
            (
                "t10k-labels-idx1-ubyte.gz",
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            ),
        ],
        unpacks_to: None,
    },
    Source {
        name: "inception",
        base: "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights",
        files: &[(
            "pt_inception-2015-12-05-6726825d.pth",
            "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        )],
        unpacks_to: None,
    },
    Source {
        name: "resnet56",
        base: "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models",
        files: &[(
            "resnet56-4bfd9763.th",
            "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367",
        )],
        unpacks_to: None,
    },
];

/// Where the weights `inception` or `resnet56` are: in a folder of that name, as [`fetch`] leaves them, or in `weights`,
/// below the folders of `$FEWSTEP_DATA` and then `./data`.
///
/// # Errors
/// They are not there; the message says where they were looked for and how to get them. Another name.
pub fn find_weights(name: &str) -> Result<PathBuf> {
    let source = find_source(name)?;
    let (file, _) = source.files[0];
    let looked: Vec<PathBuf> = data_roots()
        .iter()
        .flat_map(|root| [name, "weights"].map(|folder| root.join(folder).join(file)))
        .collect();
    match looked.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => Err(Error::WeightsNotFound {
            name: name.into(),
            looked,
        }),
    }
}

fn find_source(name: &str) -> Result<&'static Source> {
    SOURCES
        .iter()
        .find(|source| source.name == name)
        .ok_or_else(|| Error::UnknownName {
            name: name.into(),
            nearest: fetchable()
                .find(|known| strsim::jaro(known, name) > 0.8)
                .map(Into::into),
            known: fetchable().collect::<Vec<_>>().join(", "),
        })
}

/// The names that [`fetch`] knows.
pub fn fetchable() -> impl Iterator<Item = &'static str> {
    SOURCES.iter().map(|source| source.name)
}

/// Downloads data set (or weights) `name` to `root/name`, the place where [`open`](crate::open) finds it when `root` is the data root,
/// and returns that path. A set that is already there is left as it is, without a word to the server. A download that
/// broke off, now or in an earlier run, is resumed. `base_url` replaces the official address (a mirror, a test).
///
/// # Errors
/// An unknown name, a server that does not answer or answers with an error, a file whose SHA-256 is not the published
/// one (it is removed), a full disk, or another run that fetches the same set at this moment.
pub fn fetch(
    name: &str,
    root: &Path,
    progress: &mut dyn FnMut(FetchProgress),
    base_url: Option<&str>,
) -> Result<PathBuf> {
    fetch_source(find_source(name)?, root, progress, base_url)
}

fn fetch_source(
    source: &Source,
    root: &Path,
    progress: &mut dyn FnMut(FetchProgress),
    base_url: Option<&str>,
) -> Result<PathBuf> {
    let target = root.join(source.name);
    if target.exists() {
        return check_target(source, target);
    }
    let partial = root.join(format!(".{}.partial", source.name));
    let complete = partial.join("complete");
    fs::create_dir_all(&complete).map_err(Error::io(&complete))?;
    let lock = File::create(partial.join("lock")).map_err(Error::io(&partial))?;
    if lock.try_lock().is_err() {
        return Err(Error::format(
            &partial,
            "another run is fetching this data set at this moment",
        ));
    }
    let base = base_url.unwrap_or(source.base).trim_end_matches('/');
    let agent = agent(base);
    for (file, digest) in source.files {
        let done = complete.join(file);
        if done.exists() {
            continue;
        }
        let part = partial.join(format!("{file}.part"));
        let mut download = Download {
            agent: &agent,
            url: format!("{base}/{file}"),
            file,
            part: &part,
            progress,
        };
        download.run()?;
        download.check(digest)?;
        if let Some(folder) = source.unpacks_to {
            download.unpack(&complete, folder)?;
            fs::remove_file(&part).map_err(Error::io(&part))?;
        } else {
            fs::rename(&part, &done).map_err(Error::io(&done))?;
        }
    }
    fs::rename(&complete, &target).map_err(Error::io(&target))?;
    fs::remove_dir_all(&partial).map_err(Error::io(&partial))?;
    Ok(target)
}

/// Only what this module renamed into place is whole; anything else by that name is the user's.
fn check_target(source: &Source, target: PathBuf) -> Result<PathBuf> {
    let files = source.unpacks_to.map_or_else(
        || source.files.iter().map(|(file, _)| *file).collect(),
        |to| vec![to],
    );
    match files.iter().find(|file| !target.join(file).exists()) {
        Some(file) => Err(Error::format(
            &target,
            format!(
                "exists but has no {file}; move it away to fetch {}",
                source.name
            ),
        )),
        None => Ok(target),
    }
}

fn agent(base: &str) -> Agent {
    let host = base.split("://").nth(1).unwrap_or_default();
    let mut config = Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(TIMEOUT))
        .timeout_recv_response(Some(TIMEOUT))
        .timeout_per_read(Some(TIMEOUT));
    if host.starts_with("127.") || host.starts_with("localhost") {
        // A proxy of the environment cannot reach this machine's loopback.
        config = config.proxy(None);
    }
    config.build().into()
}

/// One file on its way.
struct Download<'a> {
    agent: &'a Agent,
    url: String,
    file: &'a str,
    part: &'a Path,
    progress: &'a mut dyn FnMut(FetchProgress),
}

impl Download<'_> {
    fn error(&self, what: impl Into<String>) -> Error {
        Error::Download {
            url: self.url.clone(),
            what: what.into(),
        }
    }

    fn report(&mut self, stage: FetchStage, received_bytes: u64, total_bytes: Option<u64>) {
        (self.progress)(FetchProgress {
            file: self.file.into(),
            stage,
            received_bytes,
            total_bytes,
        });
    }

    /// Bytes that are here.
    fn have(&self) -> u64 {
        fs::metadata(self.part).map_or(0, |data| data.len())
    }

    /// Brings the `.part` file to its full length, in as many requests as it takes while each brings something.
    fn run(&mut self) -> Result<()> {
        let mut idle = 0;
        loop {
            let before = self.have();
            match self.request()? {
                None => return Ok(()),
                Some(_) if self.have() > before => idle = 0,
                Some(_) if idle + 1 < TRIES => idle += 1,
                Some(why) => {
                    let what = format!(
                        "broke off after {} bytes ({why}); run the same again to resume",
                        self.have()
                    );
                    return Err(self.error(what));
                }
            }
        }
    }

    /// One request for what is missing. `None`: the file is whole. `Some`: it broke off, for this reason.
    fn request(&mut self) -> Result<Option<String>> {
        let have = self.have();
        let mut request = self
            .agent
            .get(&self.url)
            .header(ACCEPT_ENCODING, "identity");
        if have > 0 {
            request = request.header(RANGE, format!("bytes={have}-"));
        }
        let response = match request.call() {
            Ok(response) => response,
            // The first byte never came: with nothing here that is an error, else worth another try.
            Err(error) if have == 0 => return Err(self.error(error.to_string())),
            Err(error) => return Ok(Some(error.to_string())),
        };
        let start = match response.status().as_u16() {
            200 => 0,
            206 if starts_at(&response) == Some(have) => have,
            206 => {
                return Err(self.error(format!("the server resumed elsewhere than at byte {have}")));
            }
            // Nothing is missing; if it is too much, the checksum will tell.
            416 if have > 0 => return Ok(None),
            _ => return Err(self.error(format!("the server answered {}", response.status()))),
        };
        self.receive(response, start)
    }

    fn receive(&mut self, response: http::Response<Body>, start: u64) -> Result<Option<String>> {
        let total = response
            .body()
            .content_length()
            .map(|length| start + length);
        let file = OpenOptions::new()
            .create(true)
            .truncate(start == 0)
            .write(true)
            .open(self.part);
        let mut file = file.map_err(Error::io(self.part))?;
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(start))
            .map_err(Error::io(self.part))?;
        let mut reader = response
            .into_body()
            .into_with_config()
            .limit(u64::MAX)
            .reader();
        let (mut buffer, mut received) = (vec![0; CHUNK_BYTES], start);
        let broken = loop {
            self.report(FetchStage::Downloading, received, total);
            match reader.read(&mut buffer) {
                Ok(0) if total.is_none_or(|total| received >= total) => break None,
                Ok(0) => break Some("the connection was closed".into()),
                Ok(count) => {
                    file.write_all(&buffer[..count])
                        .map_err(Error::io(self.part))?;
                    received += count as u64;
                }
                Err(error) => break Some(error.to_string()),
            }
        };
        file.sync_all().map_err(Error::io(self.part))?;
        Ok(broken)
    }

    fn check(&mut self, expected: &str) -> Result<()> {
        let total = self.have();
        self.report(FetchStage::Checking, total, Some(total));
        let mut file = File::open(self.part).map_err(Error::io(self.part))?;
        let (mut hash, mut buffer) = (Sha256::new(), vec![0; CHUNK_BYTES]);
        loop {
            match file.read(&mut buffer).map_err(Error::io(self.part))? {
                0 => break,
                count => hash.update(&buffer[..count]),
            }
        }
        let found: String = hash
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        if found != expected {
            fs::remove_file(self.part).map_err(Error::io(self.part))?;
            let (url, expected) = (self.url.clone(), expected.into());
            return Err(Error::Checksum {
                url,
                algorithm: "SHA-256",
                expected,
                found,
            });
        }
        Ok(())
    }

    /// Unpacks into an emptied `complete`, where `folder` must appear.
    fn unpack(&mut self, complete: &Path, folder: &str) -> Result<()> {
        let total = self.have();
        self.report(FetchStage::Unpacking, total, Some(total));
        fs::remove_dir_all(complete).map_err(Error::io(complete))?;
        fs::create_dir_all(complete).map_err(Error::io(complete))?;
        let file = BufReader::new(File::open(self.part).map_err(Error::io(self.part))?);
        tar::Archive::new(GzDecoder::new(file))
            .unpack(complete)
            .map_err(Error::io(self.part))?;
        if !complete.join(folder).is_dir() {
            return Err(Error::format(
                self.part,
                format!("the archive has no folder {folder}"),
            ));
        }
        Ok(())
    }
}

/// The first byte of a partial answer: `Content-Range: bytes 17-99/100`.
fn starts_at(response: &http::Response<Body>) -> Option<u64> {
    let range = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    range
        .strip_prefix("bytes ")?
        .split('-')
        .next()?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
#[path = "fetch_tests.rs"]
mod tests;
