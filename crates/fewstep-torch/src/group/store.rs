//! c10d's stores: keys and values that all ranks see.

use std::ffi::{CString, c_char};
use std::path::Path;
use std::time::Duration;

use crate::ops::check;
use crate::{Error, Result};

use super::Ranks;

#[repr(C)]
pub(super) struct RawStore {
    _private: [u8; 0],
}

unsafe extern "C" {
    fn fewstep_store_tcp(
        host: *const c_char,
        port: u16,
        server: bool,
        timeout_ms: i64,
        out: *mut *mut RawStore,
    ) -> *mut c_char;
    fn fewstep_store_file(
        path: *const c_char,
        world: i64,
        timeout_ms: i64,
        out: *mut *mut RawStore,
    ) -> *mut c_char;
    fn fewstep_store_prefix(
        store: *const RawStore,
        prefix: *const c_char,
        out: *mut *mut RawStore,
    ) -> *mut c_char;
    fn fewstep_store_set(
        store: *const RawStore,
        key: *const c_char,
        bytes: *const u8,
        n: i64,
    ) -> *mut c_char;
    fn fewstep_store_get(
        store: *const RawStore,
        key: *const c_char,
        bytes: *mut *mut u8,
        n: *mut i64,
    ) -> *mut c_char;
    fn fewstep_store_check(
        store: *const RawStore,
        key: *const c_char,
        there: *mut bool,
    ) -> *mut c_char;
    fn fewstep_store_add(
        store: *const RawStore,
        key: *const c_char,
        value: i64,
        now: *mut i64,
    ) -> *mut c_char;
    fn fewstep_store_free(store: *mut RawStore);
}

/// Keys and values that all ranks see: c10d's TCPStore or FileStore.
#[derive(Debug)]
pub struct Store(*mut RawStore);

// SAFETY: c10d's stores lock each call.
unsafe impl Send for Store {}
unsafe impl Sync for Store {}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: made by the shim, freed once.
        unsafe { fewstep_store_free(self.0) };
    }
}

fn text(value: &str) -> Result<CString> {
    CString::new(value)
        .map_err(|_| Error::Mismatch(format!("{value:?}: expected text without a zero byte")))
}

/// What the shim hands over.
fn made(make: impl FnOnce(*mut *mut RawStore) -> *mut c_char) -> Result<Store> {
    let mut raw = std::ptr::null_mut();
    check(make(&raw mut raw))?;
    Ok(Store(raw))
}

impl Store {
    /// A store that one process serves at a port (0: any that is free) and others connect to.
    ///
    /// # Errors
    /// The port is taken, or nobody answers in time.
    pub fn tcp(address: &str, port: u16, serve: bool, timeout: Duration) -> Result<Self> {
        let host = text(address)?;
        // SAFETY: the string outlives the call.
        made(|out| unsafe {
            fewstep_store_tcp(host.as_ptr(), port, serve, timeout.as_millis() as i64, out)
        })
    }

    /// A store in a file that `world` processes can open. The file must be new.
    ///
    /// # Errors
    /// The file can't be opened.
    pub fn file(path: &Path, world: usize, timeout: Duration) -> Result<Self> {
        let path = text(&path.to_string_lossy())?;
        // SAFETY: the string outlives the call.
        made(|out| unsafe {
            fewstep_store_file(path.as_ptr(), world as i64, timeout.as_millis() as i64, out)
        })
    }

    /// The store of some ranks: rank 0 serves it, unless `torchrun` does.
    pub(super) fn of(ranks: &Ranks, timeout: Duration) -> Result<Self> {
        let serve = ranks.rank == 0 && ranks.agent.is_none();
        Self::tcp(&ranks.address, ranks.port, serve, timeout)?.for_attempt(ranks)
    }

    /// Another connection to it.
    pub(super) fn client_of(ranks: &Ranks, timeout: Duration) -> Result<Self> {
        Self::tcp(&ranks.address, ranks.port, false, timeout)?.for_attempt(ranks)
    }

    /// As Python's `env://` names it.
    fn for_attempt(self, ranks: &Ranks) -> Result<Self> {
        match ranks.agent {
            Some(attempt) => self.prefix(&format!("/worker/attempt_{attempt}")),
            None => Ok(self),
        }
    }

    /// The same store; its keys begin with a prefix and a slash.
    ///
    /// # Errors
    /// A zero byte in the prefix.
    pub fn prefix(&self, prefix: &str) -> Result<Self> {
        let prefix = text(prefix)?;
        // SAFETY: the store is alive, the string outlives the call.
        made(|out| unsafe { fewstep_store_prefix(self.0, prefix.as_ptr(), out) })
    }

    /// Sets a key.
    ///
    /// # Errors
    /// The store is gone.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        let key = text(key)?;
        // SAFETY: the store is alive, key and value outlive the call.
        check(unsafe {
            fewstep_store_set(self.0, key.as_ptr(), value.as_ptr(), value.len() as i64)
        })
    }

    /// A key's value; waits for it.
    ///
    /// # Errors
    /// Nobody sets it in time, or the store is gone.
    pub fn get(&self, key: &str) -> Result<Vec<u8>> {
        let key = text(key)?;
        let (mut bytes, mut n) = (std::ptr::null_mut(), 0);
        // SAFETY: the store is alive; on success the shim hands over `n` bytes from malloc.
        unsafe {
            check(fewstep_store_get(
                self.0,
                key.as_ptr(),
                &raw mut bytes,
                &raw mut n,
            ))?;
            let value = std::slice::from_raw_parts(bytes, n as usize).to_vec();
            libc::free(bytes.cast());
            Ok(value)
        }
    }

    /// A key's value, if it is there now.
    ///
    /// # Errors
    /// The store is gone.
    pub fn peek(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let (name, mut there) = (text(key)?, false);
        // SAFETY: the store is alive, the string outlives the call.
        check(unsafe { fewstep_store_check(self.0, name.as_ptr(), &raw mut there) })?;
        match there {
            true => self.get(key).map(Some),
            false => Ok(None),
        }
    }

    /// Adds to a key's number, 0 at first, and returns what it is then. One rank at a time, so that each gets another number.
    ///
    /// # Errors
    /// The store is gone.
    pub fn add(&self, key: &str, value: i64) -> Result<i64> {
        let (key, mut now) = (text(key)?, 0);
        // SAFETY: the store is alive, the string outlives the call.
        check(unsafe { fewstep_store_add(self.0, key.as_ptr(), value, &raw mut now) })?;
        Ok(now)
    }

    pub(super) fn as_ptr(&self) -> *const RawStore {
        self.0
    }
}
