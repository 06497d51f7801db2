//! Which device to run on.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::library::{CudaPart, open_cuda};
use crate::{Error, Result};

/// What a user can ask for: `auto`, `cpu`, `cuda` (the first one) or `cuda:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// The first CUDA device where one answers, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA device by its number.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => s
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| Error::Device {
                    asked: format!("`{s}`"),
                    reason: "expected auto, cpu, cuda or cuda:N".into(),
                }),
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = Error;

    fn try_from(s: String) -> Result<Self> {
        s.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(d: DeviceChoice) -> Self {
        d.to_string()
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

/// How many CUDA devices answer, or why none does.
///
/// # Errors
/// The reason, one clause.
pub fn cuda_devices() -> std::result::Result<usize, String> {
    match open_cuda() {
        CudaPart::Absent(reason) => Err(reason.clone()),
        CudaPart::Open(_) => match usize::try_from(tch::Cuda::device_count()) {
            Ok(0) | Err(_) => Err("the NVIDIA driver lists no device".into()),
            Ok(n) => Ok(n),
        },
    }
}

/// Opens CUDA where it is wanted and there, and says which device to use.
///
/// # Errors
/// A CUDA device was asked for and is not there.
pub fn resolve(choice: DeviceChoice) -> Result<Device> {
    match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Auto => Ok(if cuda_devices().is_ok() {
            Device::Cuda(0)
        } else {
            Device::Cpu
        }),
        DeviceChoice::Cuda(n) => match cuda_devices() {
            Ok(count) if n < count => Ok(Device::Cuda(n)),
            Ok(count) => Err(Error::Device {
                asked: choice.to_string(),
                reason: format!("this machine has {count} CUDA device(s), numbered from 0"),
            }),
            Err(reason) => Err(Error::Device {
                asked: choice.to_string(),
                reason,
            }),
        },
    }
}

/// The name of a device as it is written into results: `cpu`, `cuda:0`.
pub fn name(device: Device) -> String {
    match device {
        Device::Cuda(n) => format!("cuda:{n}"),
        Device::Cpu => "cpu".into(),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// A tensor on `device`; from memory to a GPU by way of pinned memory, so that nobody waits for the copy.
///
/// # Errors
/// libtorch refuses.
pub fn send(tensor: &Tensor, device: Device) -> Result<Tensor> {
    match (tensor.device(), device) {
        (Device::Cpu, Device::Cuda(_)) => {
            let pinned = tensor.f_pin_memory(device)?;
            Ok(pinned.f_to_device_(device, tensor.kind(), true, false)?)
        }
        _ => Ok(tensor.f_to_device(device)?),
    }
}

/// Keeps glibc from giving the memory of every large tensor back to the kernel: training frees and asks for the same sizes
/// again in each step, and the page faults cost more than the arithmetic of the element-wise layers. Called once by a binary.
pub fn keep_memory() {
    // 32 MiB is the most that glibc takes. SAFETY: mallopt only sets two numbers of the allocator.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_written_as_it_is_read() {
        for s in ["auto", "cpu", "cuda:0", "cuda:3"] {
            assert_eq!(s.parse::<DeviceChoice>().unwrap().to_string(), s);
        }
        assert_eq!(
            "gpu".parse::<DeviceChoice>().unwrap_err().to_string(),
            "device `gpu`: expected auto, cpu, cuda or cuda:N"
        );
    }

    #[test]
    fn a_cuda_device_that_is_not_there_is_refused_with_a_reason() {
        let e = resolve(DeviceChoice::Cuda(99)).unwrap_err().to_string();
        assert!(e.starts_with("device cuda:99: "), "{e}");
        assert_eq!(resolve(DeviceChoice::Cpu).unwrap(), Device::Cpu);
    }
}
