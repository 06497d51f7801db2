//! Bytes to tensors and back to rows.

use ndarray::ArrayView4;
use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

/// Bytes [N, H, W, 1 or 3] as f32 [N, 3, H, W] in 0..=255 on the device; grey is repeated.
pub(crate) fn tensor(images: ArrayView4<'_, u8>, device: Device) -> Result<Tensor> {
    let (_, _, _, channels) = images.dim();
    if images.is_empty() || !matches!(channels, 1 | 3) {
        return Err(Error::Images {
            found: images.shape().to_vec(),
        });
    }
    let size: Vec<i64> = images.shape().iter().map(|&d| d as i64).collect();
    let images = images.as_standard_layout();
    let bytes = images.as_slice().unwrap_or_default();
    let x = Tensor::f_from_slice(bytes)?
        .f_view(size.as_slice())?
        .f_to_device(device)?
        .f_permute([0, 3, 1, 2])?
        .f_to_kind(Kind::Float)?;
    Ok(x.f_expand([-1, 3, -1, -1], false)?.f_contiguous()?)
}

/// The numbers of a tensor, row after row, on the CPU.
pub(crate) fn rows(x: &Tensor) -> Result<Vec<f32>> {
    let flat = x
        .f_to_device(Device::Cpu)?
        .f_to_kind(Kind::Float)?
        .f_contiguous()?
        .f_view([-1])?;
    Ok(Vec::<f32>::try_from(flat)?)
}
