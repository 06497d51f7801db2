//! Who answers for a sub-module: the seam between the model and its caches.

use tch::Tensor;

use crate::Result;

/// What a [`SubModule`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SubModuleKind {
    /// Norm, modulation, attention and its projection.
    Attention,
    /// Norm, modulation and the two layers of the MLP.
    Mlp,
}

/// One sub-module of a DiT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubModule {
    /// The block, from 0.
    pub block: usize,
    /// Attention or MLP.
    pub kind: SubModuleKind,
}

impl SubModule {
    /// Place among all sub-modules: 2·block for attention, 2·block + 1 for the MLP.
    pub fn index(self) -> usize {
        2 * self.block + usize::from(self.kind == SubModuleKind::Mlp)
    }

    /// The sub-module at a place.
    pub fn at(index: usize) -> Self {
        Self {
            block: index / 2,
            kind: match index % 2 {
                0 => SubModuleKind::Attention,
                _ => SubModuleKind::Mlp,
            },
        }
    }
}

/// Decides where a sub-module's output comes from. The output is `[N, tokens, width]`, before the adaLN gate.
pub trait Reuse {
    /// Called by a denoiser before each call of the model.
    fn begin(&mut self, call: &crate::sampler::Call) {
        let _ = call;
    }

    /// Called before the sub-modules of each forward pass, with the number of samples in it.
    fn batch(&mut self, samples: i64) {
        let _ = samples;
    }

    /// Called with the tokens `[N, tokens, width]` that enter `block`, and after the last block with those that leave it (`block` is
    /// then the depth); not for a block that a jump leads to. `modulated` computes what the block's attention gets: layer norm and adaLN
    /// modulation (after the last block, what the last layer gets).
    ///
    /// An answer `(b, tokens)` goes on at block `b`, this one or a later one, with these tokens, which are then the model's own. Without
    /// gradients the tokens of all blocks but the first are written to later: whoever keeps them copies them.
    ///
    /// # Errors
    /// Of `modulated`, or of what makes the answer.
    fn enter(
        &mut self,
        block: usize,
        tokens: &Tensor,
        modulated: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Option<(usize, Tensor)>> {
        let _ = (block, tokens, modulated);
        Ok(None)
    }

    /// # Errors
    /// Of `compute`, or of what takes its place.
    fn run(
        &mut self,
        module: SubModule,
        compute: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Tensor>;
}

/// Computes everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct ComputeAll;

impl Reuse for ComputeAll {
    fn run(&mut self, _: SubModule, compute: &mut dyn FnMut() -> Result<Tensor>) -> Result<Tensor> {
        compute()
    }
}
