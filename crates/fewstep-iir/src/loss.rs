//! Losses on the logits, which are the read-out's current summed over T.

use serde::{Deserialize, Serialize};
use tch::{Kind, Reduction, Tensor};

use crate::{Error, Result};

/// Learning from the artificial network's logits (Hinton et al. 2015).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Distillation {
    /// Weight of this loss beside the cross entropy.
    pub weight: f64,
    /// τ: both sides' logits are divided by it.
    #[serde(default = "temperature")]
    pub temperature: f64,
}

fn temperature() -> f64 {
    4.
}

/// τ² · KL(softmax(teacher/τ) ‖ softmax(student/τ)), mean over the batch; both `[N, classes]`.
///
/// # Errors
/// Shapes that differ.
pub fn distillation(student: &Tensor, teacher: &Tensor, temperature: f64) -> Result<Tensor> {
    if student.dim() != 2 || student.size() != teacher.size() {
        let (s, t) = (student.size(), teacher.size());
        return Err(Error::Recipe {
            key: "snn.distillation".into(),
            reason: format!("expected logits [N, classes] of one shape, found {s:?} and {t:?}"),
        });
    }
    let log_softmax = |t: &Tensor| t.f_div_scalar(temperature)?.f_log_softmax(-1, Kind::Float);
    let (log_student, log_teacher) = (log_softmax(student)?, log_softmax(&teacher.f_detach()?)?);
    let kl = log_teacher
        .f_exp()?
        .f_mul(&log_teacher.f_sub(&log_student)?)?;
    let factor = temperature * temperature / student.size()[0] as f64;
    Ok(kl.f_sum(Kind::Float)?.f_mul_scalar(factor)?)
}

/// Cross entropy with label smoothing, mean over the batch.
pub(crate) fn cross_entropy(logits: &Tensor, labels: &Tensor, smoothing: f64) -> Result<Tensor> {
    Ok(logits.f_cross_entropy_loss(labels, None::<Tensor>, Reduction::Mean, -100, smoothing)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_losses_and_their_gradients_equal_torchs() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/parity/spiking.safetensors");
        let all = fewstep_torch::Checkpoint::load(&path).unwrap();
        let tensor = |name: &str| all.tensor(&format!("loss/{name}")).unwrap().shallow_clone();
        let check = |name: &str, loss: &dyn Fn(&Tensor) -> Tensor| {
            let student = tensor("student").copy().set_requires_grad(true);
            let value = loss(&student);
            value.backward();
            let near = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]) < 1e-6;
            assert!(near(&value.detach().view([1]), &tensor(name)), "{name}");
            assert!(
                near(&student.grad(), &tensor(&format!("{name}/grad"))),
                "{name}: gradient"
            );
        };
        for smoothing in [0., 0.1] {
            check(&format!("cross_entropy/smoothing={smoothing}"), &|s| {
                cross_entropy(s, &tensor("labels"), smoothing).unwrap()
            });
        }
        for tau in [1., 4.] {
            check(&format!("distill/tau={tau}"), &|s| {
                distillation(s, &tensor("teacher"), tau).unwrap()
            });
        }
    }
}
