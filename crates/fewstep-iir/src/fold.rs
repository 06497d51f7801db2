//! Batch norm folded into the convolution before it: W' = W·γ/√(var+ε), b' = (b − mean)·γ/√(var+ε) + β, with running statistics.

use fewstep_spiking::{BatchNorm, Network};

use crate::{Error, Result};

/// Folds every batch norm of the network; its convolutions get biases, which are trained from then on.
///
/// # Errors
/// libtorch refuses.
pub fn fold_batch_norm(network: &mut Network) -> Result<()> {
    network.replace_batch_norm(|synapse| {
        let Some(norm) = synapse.batch_norm.take() else {
            return Ok(());
        };
        let _guard = tch::no_grad_guard();
        let factor = &norm.weight / (&norm.running_var + BatchNorm::EPS).f_sqrt()?;
        let before = match &synapse.bias {
            Some(b) => b - &norm.running_mean,
            None => norm.running_mean.f_neg()?,
        };
        let weight = &synapse.weight * factor.f_view([-1, 1, 1, 1])?;
        let bias = before * factor + &norm.bias;
        synapse.weight = weight.f_detach()?.f_set_requires_grad(true)?;
        synapse.bias = Some(bias.f_detach()?.f_set_requires_grad(true)?);
        Ok::<_, Error>(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fewstep_spiking::{Forward, Input, zoo};
    use tch::{Device, Kind, Tensor};

    #[test]
    fn a_folded_network_computes_what_it_computed_before() {
        tch::manual_seed(0);
        for name in ["8 A 16", "resnet12"] {
            let plan = zoo::by_name(name, [3, 16, 16], &[8], 4, 0.25, true).unwrap();
            let mut n = Network::new(plan, Device::Cpu).unwrap();
            let x = Tensor::randn([8, 3, 16, 16], (Kind::Float, Device::Cpu));
            for _ in 0..3 {
                n.forward(
                    Input::Direct(&x),
                    &Forward {
                        train: true,
                        ..Forward::analog()
                    },
                    None,
                )
                .unwrap();
            }
            let before = n
                .forward(Input::Direct(&x), &Forward::analog(), None)
                .unwrap()
                .logits;
            fold_batch_norm(&mut n).unwrap();
            assert!(
                n.tensors()
                    .iter()
                    .all(|(name, _)| !name.contains("batch_norm"))
            );
            assert_eq!(
                n.plan().parameters(),
                n.parameters()
                    .iter()
                    .map(|(_, p)| p.numel() as i64)
                    .sum::<i64>()
            );
            let after = n
                .forward(Input::Direct(&x), &Forward::analog(), None)
                .unwrap()
                .logits;
            assert!(
                (before - after).abs().max().double_value(&[]) < 1e-4,
                "{name}"
            );
        }
    }

    #[test]
    fn folding_equals_torchs_fuse_conv_bn_eval() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/parity/spiking.safetensors");
        let all = fewstep_torch::Checkpoint::load(&path)
            .unwrap()
            .section("fold/");
        let plan = zoo::vgg("4", [3, 5, 5], &[], 2, 1., true).unwrap();
        let mut n = Network::new(plan, Device::Cpu).unwrap();
        let s = &mut n.units_mut()[0].synapse;
        s.weight = all["weight"].shallow_clone();
        s.bias = Some(all["bias"].shallow_clone());
        let norm = s.batch_norm.as_mut().unwrap();
        norm.weight = all["gamma"].shallow_clone();
        norm.bias = all["beta"].shallow_clone();
        norm.running_mean = all["mean"].shallow_clone();
        norm.running_var = all["var"].shallow_clone();
        fold_batch_norm(&mut n).unwrap();
        let s = &n.units()[0].synapse;
        let near = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]) < 1e-5;
        assert!(near(&s.weight, &all["folded_weight"]));
        assert!(near(s.bias.as_ref().unwrap(), &all["folded_bias"]));
    }
}
