//! The folder of a sampling job: `job.toml` says what determines its images, and each chunk of them is a shard that is there once it is
//! whole.
//!
//! Ranks share out the chunks by locks and never wait for one another's messages: who holds the lock `claims/000012` makes shard
//! `images-000012`. The kernel (of the server, on a shared file system) frees the locks of a process that was killed, so another
//! rank makes its chunk. All ranks of a job hold `job.lock` together; a job that finds it held is the second one, and is refused.

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use fewstep_torch::Group;
use fewstep_torch::checkpoint::{remove_torn, write_atomically};

use crate::commands::at;
use crate::run::first_difference;

const JOB: &str = "job.toml";
const LOCK: &str = "job.lock";
const CLAIMS: &str = "claims";

/// How a job's images are divided.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunks {
    pub images: u64,
    /// Images in a chunk; the last has what is left.
    pub size: u64,
}

impl Chunks {
    pub(super) fn count(self) -> u64 {
        self.images.div_ceil(self.size)
    }

    /// The images of a chunk.
    pub(super) fn range(self, chunk: u64) -> Range<u64> {
        let first = chunk * self.size;
        first..self.images.min(first.saturating_add(self.size))
    }
}

/// A job's folder, held together with the other ranks.
pub(super) struct JobFolder {
    path: PathBuf,
    chunks: Chunks,
    /// What a shard's name ends with: `.npz`, or nothing for a folder.
    ending: &'static str,
    lock: File,
    /// One process needs no locks where the file system has none.
    alone: bool,
}

impl Drop for JobFolder {
    /// A child process that is just being started has the lock's file too, until it runs its own program.
    fn drop(&mut self) {
        let _ = self.lock.unlock();
    }
}

/// Whether a job has begun in this folder.
pub(super) fn is_job(path: &Path) -> bool {
    path.join(JOB).is_file()
}

impl JobFolder {
    /// Holds the folder for this group; rank 0 makes it where it is new. `manifest` is TOML.
    ///
    /// # Errors
    /// Another job is at work on it, or has other settings; it can't be written; a rank is lost.
    pub(super) fn open(
        path: &Path,
        manifest: &str,
        chunks: Chunks,
        ending: &'static str,
        group: &Group,
    ) -> Result<Self> {
        let (what, alone) = ("opening the job's folder", group.world() == 1);
        let first = match group.leads() {
            true => Some(begin(path, manifest, alone)?),
            false => None,
        };
        group.barrier(what)?;
        // Only who leads had it exclusively, so that no other job was let in; from here on it is everybody's.
        if let Some(lock) = &first {
            let _ = lock.unlock();
            share(lock, path, alone)?;
        }
        group.barrier(what)?;
        let lock = match first {
            Some(lock) => lock,
            None => {
                let lock = open_lock(path)?;
                share(&lock, path, alone)?;
                lock
            }
        };
        // Nobody may come to the end, where the folder can be removed, before all are here.
        group.barrier(what)?;
        Ok(Self {
            path: path.to_owned(),
            chunks,
            ending,
            lock,
            alone,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn chunks(&self) -> Chunks {
        self.chunks
    }

    /// Where the shard of a chunk is or will be.
    pub(super) fn shard(&self, chunk: u64) -> PathBuf {
        self.path.join(format!("images-{chunk:06}{}", self.ending))
    }

    /// How many images are there.
    pub(super) fn images_there(&self) -> u64 {
        let there = (0..self.chunks.count()).filter(|&chunk| self.shard(chunk).exists());
        there
            .map(|chunk| {
                let range = self.chunks.range(chunk);
                range.end - range.start
            })
            .sum()
    }

    /// Has `make` make every shard that is not there and that no other rank makes. When this returns, all are there.
    ///
    /// # Errors
    /// Of `make`, or claims can't be written.
    pub(super) fn fill(&self, mut make: impl FnMut(u64) -> Result<()>) -> Result<()> {
        let mut in_other_hands = Vec::new();
        for chunk in 0..self.chunks.count() {
            if self.shard(chunk).exists() {
                continue;
            }
            let claim = self.claim(chunk)?;
            match held(claim.try_lock(), &self.claim_path(chunk), self.alone)? {
                true => self.fulfil(chunk, &mut make)?,
                false => in_other_hands.push(chunk),
            }
        }
        for chunk in in_other_hands {
            if self.shard(chunk).exists() {
                continue;
            }
            // Waits until its rank has made it or is gone.
            let claim = self.claim(chunk)?;
            let path = self.claim_path(chunk);
            claim.lock().map_err(at(&path, "could not be locked"))?;
            self.fulfil(chunk, &mut make)?;
        }
        Ok(())
    }

    /// Removes the job, and the folder if nothing else is in it. Only the last rank may.
    pub(super) fn remove(self) {
        for chunk in 0..self.chunks.count() {
            remove(&self.shard(chunk));
        }
        remove(&self.path.join(JOB));
        remove(&self.path.join(LOCK));
        let _ = fs::remove_dir(&self.path);
    }

    /// Makes the shard of a chunk whose claim is held, if nobody made it before.
    fn fulfil(&self, chunk: u64, make: &mut impl FnMut(u64) -> Result<()>) -> Result<()> {
        if !self.shard(chunk).exists() {
            make(chunk)?;
        }
        // Whoever still comes to hold this file finds the shard.
        let _ = fs::remove_file(self.claim_path(chunk));
        Ok(())
    }

    fn claim(&self, chunk: u64) -> Result<File> {
        let path = self.claim_path(chunk);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path);
        file.map_err(at(&path, "could not be written"))
    }

    fn claim_path(&self, chunk: u64) -> PathBuf {
        self.path.join(CLAIMS).join(format!("{chunk:06}"))
    }

    /// Lets go of the folder. `Some` for exactly one rank, the last one, which has it for itself: what is made of all shards is made by
    /// that. What killed ranks were writing is gone then.
    pub(super) fn last(self) -> Result<Option<Self>> {
        let _ = self.lock.unlock();
        if !held(self.lock.try_lock(), &self.path.join(LOCK), self.alone)? {
            return Ok(None);
        }
        // Two may come here one after the other; who removes the claims is the last.
        let claims = self.path.join(CLAIMS);
        match fs::remove_dir_all(&claims) {
            Ok(()) => {
                remove_torn(&self.path).map_err(at(&self.path, "could not be read"))?;
                Ok(Some(self))
            }
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(at(&claims, "could not be removed")(e)),
        }
    }
}

/// Whether a lock is held now.
fn held(tried: Result<(), TryLockError>, path: &Path, alone: bool) -> Result<bool> {
    match tried {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        // Some network file systems have no locks.
        Err(TryLockError::Error(e)) if alone && e.kind() == ErrorKind::Unsupported => Ok(true),
        Err(TryLockError::Error(e)) => Err(at(path, "could not be locked")(e)),
    }
}

/// Removes a file or folder of ours.
fn remove(path: &Path) {
    let _ = match path.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
}

/// Locks the folder and writes the manifest, or finds that it is there and the same.
fn begin(path: &Path, manifest: &str, alone: bool) -> Result<File> {
    let claims = path.join(CLAIMS);
    let mut lock = loop {
        fs::create_dir_all(&claims).map_err(at(&claims, "could not be written"))?;
        let mut lock = open_lock(path)?;
        if !held(lock.try_lock(), &path.join(LOCK), alone)? {
            return Err(in_use(&mut lock, path));
        }
        // The last rank of another job may have removed the file after it was opened here.
        let there = fs::metadata(path.join(LOCK)).map(|m| m.ino());
        if lock
            .metadata()
            .is_ok_and(|m| there.is_ok_and(|i| i == m.ino()))
        {
            break lock;
        }
    };
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let holder = format!("process {} on {}", std::process::id(), host.trim());
    lock.set_len(0)
        .and_then(|()| lock.write_all(holder.as_bytes()))
        .map_err(at(&path.join(LOCK), "could not be written"))?;
    let file = path.join(JOB);
    match fs::read_to_string(&file) {
        Ok(earlier) => {
            let found = first_difference(&earlier, manifest)
                .map_err(|e| anyhow::anyhow!("{}: {}", file.display(), e.message()))?;
            if let Some((key, earlier, now)) = found {
                bail!(
                    "{}: the job in that folder has {key} = {earlier}, this one {now}; go on with the same settings, or remove the folder",
                    file.display()
                );
            }
        }
        Err(e) if e.kind() == ErrorKind::NotFound => write_atomically(&file, manifest.as_bytes())?,
        Err(e) => return Err(at(&file, "could not be read")(e)),
    }
    remove_torn(path).map_err(at(path, "could not be read"))?;
    Ok(lock)
}

fn open_lock(path: &Path) -> Result<File> {
    let lock = path.join(LOCK);
    File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&lock)
        .map_err(at(&lock, "could not be written"))
}

fn share(lock: &File, path: &Path, alone: bool) -> Result<()> {
    match held(lock.try_lock_shared(), &path.join(LOCK), alone)? {
        true => Ok(()),
        false => Err(in_use(&mut open_lock(path)?, path)),
    }
}

fn in_use(lock: &mut File, path: &Path) -> anyhow::Error {
    let mut holder = String::new();
    let _ = lock.read_to_string(&mut holder);
    let holder = match holder.as_str() {
        "" => "another process",
        known => known,
    };
    anyhow::anyhow!(
        "{}: a job is at work on this folder ({holder}); wait for it, or choose another folder",
        path.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIVE: Chunks = Chunks { images: 9, size: 2 };

    fn open(path: &Path, manifest: &str) -> Result<JobFolder> {
        JobFolder::open(path, manifest, FIVE, ".npz", &Group::alone())
    }

    #[test]
    fn chunks_hold_every_image_once() {
        assert_eq!(FIVE.count(), 5);
        let all: Vec<u64> = (0..5).flat_map(|chunk| FIVE.range(chunk)).collect();
        assert_eq!(all, (0..9).collect::<Vec<_>>());
    }

    #[test]
    fn only_what_is_missing_is_made_and_half_a_shard_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let job = open(folder.path(), "seed = 1").unwrap();
        fs::write(job.shard(1), "").unwrap();
        drop(job);
        fs::write(folder.path().join(".writing-abc"), "half").unwrap();
        let job = open(folder.path(), "seed = 1").unwrap();
        assert_eq!(job.images_there(), 2);
        let mut made = Vec::new();
        job.fill(|chunk| {
            made.push(chunk);
            Ok(fs::write(job.shard(chunk), "")?)
        })
        .unwrap();
        assert_eq!(made, [0, 2, 3, 4]);
        assert_eq!(job.images_there(), 9);
        fs::write(folder.path().join(".writing-def"), "half").unwrap();
        fs::write(folder.path().join("claims/000003"), "").unwrap();
        let late = open_lock(folder.path()).unwrap();
        assert!(job.last().unwrap().is_some());
        let late = JobFolder {
            path: folder.path().to_owned(),
            chunks: FIVE,
            ending: ".npz",
            lock: late,
            alone: false,
        };
        assert!(late.last().unwrap().is_none(), "there is one last rank");
        let left = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 5 + 2, "job.toml and job.lock beside the shards");
    }

    #[test]
    fn a_second_job_and_another_manifest_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let job = open(folder.path(), "seed = 1").unwrap();
        let message = |manifest: &str| open(folder.path(), manifest).err().unwrap().to_string();
        let expected = format!(
            "a job is at work on this folder (process {} on ",
            std::process::id()
        );
        assert!(message("seed = 1").contains(&expected));
        drop(job);
        assert!(message("seed = 2").ends_with(
            "job.toml: the job in that folder has seed = 1, this one 2; go on with the same settings, or remove the folder"
        ));
        assert!(open(folder.path(), "seed = 1").is_ok());
    }

    #[test]
    fn a_chunk_in_other_hands_is_made_when_they_let_go() {
        let folder = tempfile::tempdir().unwrap();
        let job = open(folder.path(), "").unwrap();
        let other = job.claim(0).unwrap();
        other.lock().unwrap();
        let order = std::sync::Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                job.fill(|chunk| {
                    order.lock().unwrap().push(chunk);
                    Ok(fs::write(job.shard(chunk), "")?)
                })
                .unwrap();
            });
            while !job.shard(4).exists() {
                std::thread::yield_now();
            }
            drop(other);
        });
        assert_eq!(order.into_inner().unwrap(), [1, 2, 3, 4, 0]);
    }
}
