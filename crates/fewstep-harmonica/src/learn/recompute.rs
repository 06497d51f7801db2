//! A student's step in the memory of one block: what the blocks compute on the way there is not kept for the way back, but computed
//! again (gradient checkpointing, Chen et al., arXiv 1604.06174), block by block.

use fewstep_diffusion::dit::Prepared;
use fewstep_diffusion::sampler::Call;
use tch::{Kind, Tensor};

use super::Learner;
use super::job::Job;
use super::mix::{Gates, Slots};
use crate::Result;

/// One call of the model, as the uncached teacher has answered it.
pub(super) struct Taught<'a> {
    pub(super) prepared: &'a Prepared,
    pub(super) call: &'a Call,
    /// The output of the first sub-module.
    pub(super) first: Option<Tensor>,
    /// The prediction.
    pub(super) target: Tensor,
}

impl Learner<'_> {
    /// The student's prediction, detached, and its error against the teacher's, whose gradient ends in `gates.r`. Slots are written as
    /// [`Gates::student`] does.
    pub(super) fn recomputed(
        &self,
        job: &Job<'_>,
        taught: Taught<'_>,
        gates: &Gates,
        slots: &mut Slots,
    ) -> Result<(Tensor, Tensor)> {
        let Taught {
            prepared,
            call,
            first,
            target,
        } = taught;
        let dit = self.setting.dit;
        let depth = dit.config().depth as usize;
        let before = slots.snapshot();
        // There: the tokens in front of each block are all that is kept.
        let mut tokens = vec![prepared.tokens().shallow_clone()];
        {
            let _guard = tch::no_grad_guard();
            let mut student = gates.student(slots, call.timestep);
            student.first = first.as_ref().map(Tensor::shallow_clone);
            for block in 0..depth {
                tokens.push(dit.block(prepared, block, &tokens[block], &mut student)?);
            }
        }
        let last = leaf(&tokens[depth])?;
        let output = job.finish(prepared, call, &last)?;
        let error = self.error(&output, &target)?;
        let mut flow = gradients(&error, &[&last])?.remove(0);
        // And back, last block first.
        let row = Gates {
            r: leaf(&gates.r)?,
            numbers: gates.numbers.clone(),
            ..*gates
        };
        let mut total = row.r.f_zeros_like()?;
        for block in (0..depth).rev() {
            tokens.truncate(block + 1);
            let x = leaf(&tokens[block])?;
            let mut slots = before.snapshot();
            let mut student = row.student(&mut slots, call.timestep);
            student.write = false;
            if block == 0 {
                student.first = first.as_ref().map(Tensor::shallow_clone);
            }
            let y = dit.block(prepared, block, &x, &mut student)?;
            // A block whose slots are empty mixes nothing; its part of the row is 0.
            let through = y.f_mul(&flow)?.f_sum(Kind::Float)?;
            let through = through.f_add(&row.r.f_sum(Kind::Float)?.f_mul_scalar(0.)?)?;
            let mut found = gradients(&through, &[&x, &row.r])?;
            total = total.f_add(&found.remove(1))?;
            flow = found.remove(0);
        }
        // A number with the gradient that was found.
        let carried = gates.r.f_sub(&gates.r.f_detach()?)?;
        let carried = carried.f_mul(&total)?.f_sum(Kind::Float)?;
        Ok((output.f_detach()?, error.f_detach()?.f_add(&carried)?))
    }
}

fn leaf(t: &Tensor) -> Result<Tensor> {
    Ok(t.f_detach()?.f_set_requires_grad(true)?)
}

fn gradients(of: &Tensor, with_respect_to: &[&Tensor]) -> Result<Vec<Tensor>> {
    Ok(Tensor::f_run_backward(
        &[of],
        with_respect_to,
        false,
        false,
    )?)
}
