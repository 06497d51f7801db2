//! `fewstep devices`: what `--device` may name here, each tried with a small product.

use anyhow::{Result, bail};
use clap::Args;
use fewstep_torch::device::{cuda_devices, name};
use tch::{Device, Kind, Tensor};

/// Options of `fewstep devices`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "Example: fewstep devices")]
pub struct Options {}

/// Prints a line for each device.
///
/// # Errors
/// One of them does not compute.
pub fn devices(_: &Options) -> Result<()> {
    let mut found = vec![Device::Cpu];
    let cuda = cuda_devices();
    found.extend((0..*cuda.as_ref().unwrap_or(&0)).map(Device::Cuda));
    let mut failed = Vec::new();
    for device in found {
        let says = match computes(device) {
            Ok(()) if device == Device::Cpu => {
                format!("computes, {} threads", tch::get_num_threads())
            }
            Ok(()) => "computes".into(),
            Err(reason) => {
                failed.push(name(device));
                reason
            }
        };
        super::print(&format!("{}: {says}", name(device)))?;
    }
    if let Err(reason) = cuda {
        super::print(&format!("no cuda: {reason}"))?;
    }
    if !failed.is_empty() {
        bail!("{}: no use for computing", failed.join(", "));
    }
    Ok(())
}

/// 64 ones times 64 ones, 64 times.
fn computes(device: Device) -> std::result::Result<(), String> {
    let product = || {
        let ones = Tensor::f_ones([64, 64], (Kind::Float, device))?;
        ones.f_matmul(&ones)?
            .f_sum(Kind::Float)?
            .f_to(Device::Cpu)?
            .f_double_value(&[])
    };
    match product() {
        Ok(262_144.0) => Ok(()),
        Ok(sum) => Err(format!("64³ ones sum up to {sum}")),
        // The rest of libtorch's message is a C++ stack.
        Err(e) => Err(e.to_string().lines().next().unwrap_or_default().to_owned()),
    }
}
