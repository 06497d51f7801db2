//! The number format of a forward pass.

use std::ffi::c_char;

use serde::{Deserialize, Serialize};
use tch::Device;

use crate::Result;
use crate::ops::check;

unsafe extern "C" {
    fn fewstep_autocast_begin(cuda: bool) -> *mut c_char;
    fn fewstep_autocast_end(cuda: bool) -> *mut c_char;
    fn fewstep_set_tf32(on: bool) -> *mut c_char;
    #[cfg(test)]
    fn fewstep_tf32(matmul: *mut bool, convolution: *mut bool) -> *mut c_char;
}

/// The number format of matrix products and convolutions while training; weights and their updates stay in float32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// float32 everywhere: TF32, which libtorch leaves on for convolutions, is off.
    #[default]
    Float32,
    /// float32 whose matrix products and convolutions round their factors to 10 bits on a GPU that has TF32; float32 elsewhere.
    Tf32,
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

/// Turns TF32 off again.
#[must_use = "TF32 ends where this is dropped"]
pub struct Tf32(bool);

impl Drop for Tf32 {
    fn drop(&mut self) {
        if self.0 {
            // It only turns switches back and can't fail in a way that a drop could report.
            let _ = set_tf32(false);
        }
    }
}

/// Turns TF32 on or off for matrix products and convolutions on CUDA.
pub(crate) fn set_tf32(on: bool) -> Result<()> {
    // SAFETY: no arguments but a flag.
    check(unsafe { fewstep_set_tf32(on) })
}

impl Precision {
    /// As in configs and summaries.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Tf32 => "tf32",
            Self::Bfloat16 => "bfloat16",
        }
    }

    /// Allows TF32 where this precision wants it, until the guard is dropped. It covers backward too, so it is held over whole steps. The
    /// switch is the process's, so guards must not overlap.
    ///
    /// # Errors
    /// libtorch refuses.
    pub fn tf32(self) -> Result<Tf32> {
        let guard = Tf32(self == Self::Tf32);
        if guard.0 {
            set_tf32(true)?;
        }
        Ok(guard)
    }

    /// Runs `f` in this precision on `device`, but for TF32, which is [`Precision::tf32`]'s. Backward belongs outside of it. Calls must
    /// not be nested.
    ///
    /// # Errors
    /// Those of `f`; libtorch refuses.
    pub fn run<T, E: From<crate::Error>>(
        self,
        device: Device,
        f: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        if self != Self::Bfloat16 {
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

    /// Whether TF32 is on for matrix products and for convolutions.
    fn is_on() -> [bool; 2] {
        let [mut matmul, mut convolution] = [false; 2];
        // SAFETY: both are written before the shim returns.
        check(unsafe { fewstep_tf32(&raw mut matmul, &raw mut convolution) }).unwrap();
        [matmul, convolution]
    }

    #[test]
    fn tf32_is_on_for_products_and_convolutions_while_its_guard_lives_and_changes_nothing_on_a_cpu()
    {
        let x = Tensor::f_rand([33, 65], (Kind::Float, Device::Cpu)).unwrap();
        let product = || x.f_matmul(&x.f_tr().unwrap()).unwrap();
        set_tf32(false).unwrap();
        assert_eq!(is_on(), [false, false]);
        let before = product();
        {
            let _float32 = Precision::Float32.tf32().unwrap();
            let _bfloat16 = Precision::Bfloat16.tf32().unwrap();
            assert_eq!(is_on(), [false, false]);
            let _tf32 = Precision::Tf32.tf32().unwrap();
            assert_eq!(is_on(), [true, true]);
            let inside = Precision::Tf32
                .run::<_, crate::Error>(Device::Cpu, || Ok(product()))
                .unwrap();
            assert_eq!(inside, before);
        }
        assert_eq!(is_on(), [false, false]);
    }

    #[test]
    fn a_precision_is_called_what_it_is_in_configs() {
        for p in [Precision::Float32, Precision::Tf32, Precision::Bfloat16] {
            assert_eq!(serde_json::to_value(p).unwrap(), p.name());
        }
    }

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
