//! The most memory that was in use.

use std::ffi::{c_char, c_int};

use tch::Device;

use crate::ops::check;
use crate::{Error, Result};

unsafe extern "C" {
    fn fewstep_cuda_peak(device: c_int, tensors: *mut i64, reserved: *mut i64) -> *mut c_char;
    fn fewstep_cuda_reset_peak(device: c_int) -> *mut c_char;
}

/// Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peak {
    /// On a GPU, those of tensors; on the CPU, all that the process had resident.
    pub used: u64,
    /// On a GPU, those that libtorch had taken from it, of which tensors are given theirs; on the CPU as `used`.
    pub reserved: u64,
}

/// The most that was in use on `device`: on a GPU since [`reset_peak`], on the CPU since the process began (`VmHWM` of Linux).
///
/// # Errors
/// No GPU of that number has been used, or the system does not say.
pub fn peak(device: Device) -> Result<Peak> {
    match device {
        Device::Cuda(number) => {
            let (mut used, mut reserved) = (0, 0);
            // SAFETY: two numbers to write to; the function refuses a device that is not there.
            check(unsafe { fewstep_cuda_peak(number as c_int, &raw mut used, &raw mut reserved) })?;
            Ok(Peak {
                used: used as u64,
                reserved: reserved as u64,
            })
        }
        _ => {
            let bytes = resident().ok_or_else(|| Error::Device {
                asked: "cpu".into(),
                reason: "the most memory of a process is only known on Linux (VmHWM in /proc/self/status)".into(),
            })?;
            Ok(Peak {
                used: bytes,
                reserved: bytes,
            })
        }
    }
}

/// Begins anew on a GPU: from now on [`peak`] is at least what is in use now. Does nothing on the CPU.
///
/// # Errors
/// No GPU of that number has been used.
pub fn reset_peak(device: Device) -> Result<()> {
    match device {
        // SAFETY: as in `peak`.
        Device::Cuda(number) => check(unsafe { fewstep_cuda_reset_peak(number as c_int) }),
        _ => Ok(()),
    }
}

fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_of_the_cpu_has_room_for_what_the_process_made() {
        let size = 64 << 20;
        let made = std::hint::black_box(vec![1u8; size]);
        let peak = peak(Device::Cpu).unwrap();
        assert!(peak.used >= size as u64 && peak.reserved == peak.used);
        assert_eq!(made.len(), size);
        reset_peak(Device::Cpu).unwrap();
    }

    #[test]
    fn without_cuda_the_peak_of_a_gpu_is_refused() {
        if crate::device::cuda_devices().is_ok() {
            eprintln!("skipped: there is a GPU");
            return;
        }
        assert!(peak(Device::Cuda(0)).is_err());
        assert!(reset_peak(Device::Cuda(0)).is_err());
    }
}
