//! Operators of the C++ shim. tch alone can't define an autograd function; these are differentiable like any other.

use std::ffi::{CStr, c_char};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::{Error, Result};

unsafe extern "C" {
    fn fewstep_neuron(
        x: *const C_tensor,
        threshold: *const C_tensor,
        leak: *const C_tensor,
        initial: *const C_tensor,
        timesteps: i64,
        reset: i64,
        surrogate: i64,
        a: f64,
        b: f64,
        want_membrane: bool,
        allow_fused: bool,
        spikes: *mut *mut C_tensor,
        membrane: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn fewstep_linear(
        x: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        gelu: bool,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn fewstep_modulate(
        x: *const C_tensor,
        shift: *const C_tensor,
        factor: *const C_tensor,
        eps: f64,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn fewstep_grad_enabled() -> bool;
}

/// Turns the shim's message, if there is one, into an error and frees it.
pub(crate) fn check(message: *mut c_char) -> Result<()> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: the shim returns null or a C string from strdup that it gives to the caller.
    let text = unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        libc::free(message.cast());
        text
    };
    Err(Error::torch(&text))
}

/// The numbers that [`neuron`] needs besides tensors. `fewstep-spiking` gives them names and checks their ranges.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NeuronCall {
    /// T, at least 1.
    pub timesteps: i64,
    /// 0 soft, 1 hard, 2 none.
    pub reset: i64,
    /// 0 triangular, 1 rectangular, 2 sigmoid, 3 fast sigmoid, 4 arctangent.
    pub surrogate: i64,
    /// The surrogate's height or slope.
    pub a: f64,
    /// The surrogate's half width, where it has one.
    pub b: f64,
    /// Also return the membrane potential after the reset.
    pub membrane: bool,
    /// Use the one-sweep CPU kernel where it applies. `false` forces the operators that CUDA uses; tests compare the two.
    pub fused: bool,
}

/// A spiking neuron over all timesteps (equations in `cpp/neuron.cpp`; IIR-SNN, arXiv 2110.05929).
///
/// `initial` is the membrane potential `[N, C, …]` that an earlier call left (zero where `None`); no gradient flows into it.
/// `current` is `[T, N, C, …]`, or `[1, N, C, …]` for one current that enters at every timestep; `threshold` and `leak` hold one
/// value or C. Returns spikes `[T, N, C, …]` of 0 and 1 and, if asked for, the membrane potential of the same shape (without
/// gradient).
///
/// # Errors
/// Shapes that do not fit, or any other exception of libtorch.
pub fn neuron(
    current: &Tensor,
    threshold: &Tensor,
    leak: &Tensor,
    initial: Option<&Tensor>,
    call: NeuronCall,
) -> Result<(Tensor, Option<Tensor>)> {
    let (mut spikes, mut membrane) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: the tensors outlive the call; on success the shim hands over one or two owned tensors.
    unsafe {
        check(fewstep_neuron(
            current.as_ptr(),
            threshold.as_ptr(),
            leak.as_ptr(),
            initial.map_or(std::ptr::null(), Tensor::as_ptr),
            call.timesteps,
            call.reset,
            call.surrogate,
            call.a,
            call.b,
            call.membrane,
            call.fused,
            &raw mut spikes,
            &raw mut membrane,
        ))?;
        Ok((
            Tensor::from_ptr(spikes),
            (!membrane.is_null()).then(|| Tensor::from_ptr(membrane)),
        ))
    }
}

/// What follows a [`linear`] layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// GELU in its tanh form.
    Gelu,
}

/// `activation(x · weightᵀ + bias)` of `x` `[…, inputs]`, `weight` `[outputs, inputs]` and `bias` `[outputs]`. Without gradients,
/// in float32 on a CPU, oneDNN does it in one go, faster than eager PyTorch's two operators; the sums are then rounded in another
/// order.
///
/// # Errors
/// Shapes that do not fit, or any other exception of libtorch.
pub fn linear(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    activation: Activation,
) -> Result<Tensor> {
    let mut out = std::ptr::null_mut();
    let gelu = activation == Activation::Gelu;
    // SAFETY: the tensors outlive the call; on success the shim hands over an owned tensor.
    unsafe {
        check(fewstep_linear(
            x.as_ptr(),
            weight.as_ptr(),
            bias.as_ptr(),
            gelu,
            &raw mut out,
        ))?;
        Ok(Tensor::from_ptr(out))
    }
}

/// A norm without weights over the last dimension of `x` `[N, tokens, width]`, times `factor`, plus `shift`, each `[N, 1, width]`
/// (adaLN, arXiv 2212.09748). Without gradients, in float32 on a CPU, it is one sweep over memory.
///
/// # Errors
/// Shapes that do not fit, or any other exception of libtorch.
pub fn modulate(x: &Tensor, shift: &Tensor, factor: &Tensor, eps: f64) -> Result<Tensor> {
    let mut out = std::ptr::null_mut();
    // SAFETY: as in `linear`.
    unsafe {
        check(fewstep_modulate(
            x.as_ptr(),
            shift.as_ptr(),
            factor.as_ptr(),
            eps,
            &raw mut out,
        ))?;
        Ok(Tensor::from_ptr(out))
    }
}

/// Whether operators of this thread record gradients. Where they do not, what nobody else holds may be written over.
pub fn grad_enabled() -> bool {
    // SAFETY: reads a number of the thread.
    unsafe { fewstep_grad_enabled() }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn numbers(rng: &mut u32, size: &[i64]) -> Tensor {
        let n = size.iter().product::<i64>() as usize;
        let all: Vec<f32> = std::iter::repeat_with(|| {
            *rng = rng.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (*rng >> 8) as f32 / (1 << 23) as f32 - 1.
        })
        .take(n)
        .collect();
        Tensor::from_slice(&all).view(size)
    }

    fn difference(a: &Tensor, b: &Tensor) -> f64 {
        assert_eq!(a.size(), b.size());
        (a - b).abs().max().double_value(&[])
    }

    #[test]
    fn a_linear_layer_is_the_same_with_and_without_gradients() {
        let rng = &mut 1;
        let (weight, bias) = (numbers(rng, &[40, 24]), numbers(rng, &[40]));
        for rows in [1, 3, 80] {
            let x = numbers(rng, &[2, rows, 24]);
            let plain = x.linear(&weight, Some(&bias));
            for (activation, expected) in [
                (Activation::None, plain.shallow_clone()),
                (Activation::Gelu, plain.gelu("tanh")),
            ] {
                let recorded = linear(&x, &weight, &bias, activation).unwrap();
                assert_eq!(recorded, expected);
                let _guard = tch::no_grad_guard();
                let fast = linear(&x, &weight, &bias, activation).unwrap();
                assert!(difference(&fast, &expected) < 2e-6, "{rows} {activation:?}");
            }
        }
        let _guard = tch::no_grad_guard();
        let e = linear(
            &numbers(rng, &[2, 80, 23]),
            &weight,
            &bias,
            Activation::Gelu,
        );
        assert!(matches!(e, Err(Error::Torch(_))), "{e:?}");
    }

    #[test]
    fn a_modulated_norm_is_the_same_with_and_without_gradients() {
        let rng = &mut 2;
        for (n, tokens, width) in [(1, 1, 4), (3, 5, 24), (2, 300, 130)] {
            let x = numbers(rng, &[n, tokens, width]) * 3. + 1.;
            // As a DiT has them: parts of one product.
            let all = numbers(rng, &[n, 1, 3 * width]);
            let parts = all.chunk(3, -1);
            for factor in [&parts[1], &(&parts[1] + 1.)] {
                let recorded = modulate(&x, &parts[2], factor, 1e-6).unwrap();
                let _guard = tch::no_grad_guard();
                let fast = modulate(&x, &parts[2], factor, 1e-6).unwrap();
                assert!(difference(&fast, &recorded) < 1e-5, "{width}");
                let doubles = [&x, &parts[2], factor].map(|t| t.to_kind(Kind::Double));
                let exact = modulate(&doubles[0], &doubles[1], &doubles[2], 1e-6).unwrap();
                assert!(difference(&fast.to_kind(Kind::Double), &exact) < 1e-5);
            }
        }
    }

    #[test]
    fn gradients_pass_through_where_they_are_wanted() {
        let rng = &mut 3;
        let x = numbers(rng, &[2, 70, 8]).set_requires_grad(true);
        let (weight, bias) = (
            numbers(rng, &[8, 8]),
            Tensor::zeros([8], (Kind::Float, Device::Cpu)),
        );
        let m = numbers(rng, &[2, 1, 8]);
        let out = linear(
            &modulate(&x, &m, &m, 1e-6).unwrap(),
            &weight,
            &bias,
            Activation::Gelu,
        );
        out.unwrap().square().sum(Kind::Float).backward();
        assert!(x.grad().abs().max().double_value(&[]) > 0.);
        assert!(grad_enabled());
        let _guard = tch::no_grad_guard();
        assert!(!grad_enabled());
    }
}
