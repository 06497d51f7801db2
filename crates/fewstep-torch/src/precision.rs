//! The number format of a forward pass.

use std::ffi::c_char;

use serde::{Deserialize, Serialize};
use tch::Device;

use crate::Result;
use crate::ops::check;

unsafe extern "C" {
    fn fewstep_autocast_begin(cuda: bool) -> *mut c_char;
    fn fewstep_autocast_end(cuda: bool) -> *mut c_char;
}

/// The number format of matrix products and convolutions while training; weights and their updates stay in float32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// float32.
    #[default]
    Float32,
    /// libtorch's autocast to bfloat16: twice as fast where the processor has it.
    Bfloat16,
}

/// Ends autocast, also where an error leaves early.
struct Autocast(bool);

impl Drop for Autocast {
    fn drop(&mut self) {
        // SAFETY: no arguments but a flag. It only turns a switch back and can't fail in a way that a drop could report.
        let _ = check(unsafe { fewstep_autocast_end(self.0) });
    }
}

impl Precision {
    /// Runs `f` in this precision on `device`. Backward belongs outside of it. Calls must not be nested.
    ///
    /// # Errors
    /// Those of `f`; libtorch refuses.
    pub fn run<T, E: From<crate::Error>>(
        self,
        device: Device,
        f: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        if self == Self::Float32 {
            return f();
        }
        let _on = Self::autocast(device)?;
        f()
    }

    fn autocast(device: Device) -> Result<Autocast> {
        let guard = Autocast(matches!(device, Device::Cuda(_)));
        // SAFETY: no arguments but a flag.
        check(unsafe { fewstep_autocast_begin(guard.0) })?;
        Ok(guard)
    }
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::*;

    #[test]
    fn bfloat16_is_for_products_inside_only_and_gradients_come_back_in_float32() {
        let w = Tensor::from_slice(&[1.001f32, -2.003])
            .view([1, 2])
            .set_requires_grad(true);
        let x = Tensor::from_slice(&[1f32, 0.5]).view([1, 2]);
        let y = Precision::Bfloat16
            .run::<_, crate::Error>(Device::Cpu, || Ok(x.f_linear(&w, None::<Tensor>)?))
            .unwrap();
        assert_eq!(y.kind(), Kind::BFloat16);
        y.to_kind(Kind::Float).sum(Kind::Float).backward();
        assert_eq!(w.grad().kind(), Kind::Float);
        assert_eq!(x.linear(&w, None::<Tensor>).kind(), Kind::Float);
        let failed: Result<()> = Precision::Bfloat16.run(Device::Cpu, || {
            Ok(
                x.f_matmul(&Tensor::f_ones([3, 3], (Kind::Float, Device::Cpu))?)
                    .map(drop)?,
            )
        });
        assert!(failed.is_err());
        assert_eq!(x.linear(&w, None::<Tensor>).kind(), Kind::Float);
    }
}
