//! Linear layers whose sums do not show how many samples were computed at a time.
//!
//! A matrix product's kernel, and with it the order of a sum, goes by the number of rows: oneDNN has others below 48, MKL below 8 (and
//! the one has others than the other). So, without gradients on a CPU, products of tokens are always oneDNN's and of at least
//! [`TOKEN_ROWS`] rows, products of conditions always MKL's and of multiples of [`CONDITION_ROWS`]; what is missing is filled up.

use fewstep_torch::ops::{self, Activation};
use tch::{Device, Tensor};

use crate::Result;

/// The fewest rows of a product of tokens.
const TOKEN_ROWS: i64 = 64;
/// Products of conditions have a multiple of this many rows.
pub(super) const CONDITION_ROWS: i64 = 16;

/// Whether kernels must not go by the number of samples. With gradients nobody asks for that; a GPU's library chooses in its own way.
pub(super) fn kernels_are_fixed(x: &Tensor) -> bool {
    x.device() == Device::Cpu && !ops::grad_enabled()
}

/// `[outputs, inputs]` and `[outputs]`.
#[derive(Debug)]
pub(super) struct Linear {
    pub weight: Tensor,
    pub bias: Tensor,
}

impl Linear {
    /// Of tokens `[N, tokens, inputs]`.
    pub fn forward(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let (n, tokens, inputs) = x.size3()?;
        let rows = n * tokens;
        if rows >= TOKEN_ROWS || !kernels_are_fixed(x) {
            return Ok(ops::linear(x, &self.weight, &self.bias, activation)?);
        }
        let filled =
            x.f_reshape([rows, inputs])?
                .f_constant_pad_nd([0, 0, 0, TOKEN_ROWS - rows])?;
        let out = ops::linear(&filled, &self.weight, &self.bias, activation)?;
        Ok(out.f_narrow(0, 0, rows)?.f_view([n, tokens, -1])?)
    }

    /// Of conditions `[N, inputs]`; where kernels are fixed, N is a multiple of [`CONDITION_ROWS`].
    pub fn of_conditions(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_linear(&self.weight, Some(&self.bias))?)
    }
}
