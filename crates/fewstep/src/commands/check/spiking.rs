//! Networks of neurons on the weights of spiking.safetensors.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use fewstep_spiking::{Forward, Input, Mode, Network, NeuronOptions, Reset, Surrogate, zoo};
use fewstep_torch::Precision;
use tch::{Kind, Tensor};

use super::{Named, Place, fixture};

/// Logits and gradients for T = 1 to 5, every reset and every surrogate.
pub(super) fn spiking(place: &Place) -> Result<Named> {
    let file = fixture!("spiking")?;
    let weights = file.section("weights/");
    let surrogates = [
        ("triangular", Surrogate::default()),
        ("rectangular", Surrogate::Rectangular { width: 0.625 }),
        ("sigmoid", Surrogate::Sigmoid { slope: 4. }),
        ("fast-sigmoid", Surrogate::FastSigmoid { slope: 5. }),
        ("arctangent", Surrogate::Arctangent { slope: 2. }),
    ];
    let mut all = Named::new();
    for (reset, of_reset) in [(Reset::Soft, "soft"), (Reset::Hard, "hard")] {
        for (name, surrogate) in surrogates {
            for timesteps in 1..=5 {
                let case = format!("{of_reset} {name} T={timesteps}");
                // Only these have potentials that are nowhere near their threshold (tests/parity/README.md).
                let published = format!("case/snntorch/{of_reset}/T{timesteps}/");
                let of_case = file.section(&published);
                let mut network = network(place, "4 A 6", [2, 4, 4], 5, false)?;
                network.add_neurons(&NeuronOptions {
                    reset,
                    surrogate,
                    ..NeuronOptions::default()
                })?;
                let mut tensors = BTreeMap::new();
                for (i, (from, to)) in [("conv1", "conv1"), ("conv2", "conv2"), ("fc", "fc1")]
                    .into_iter()
                    .enumerate()
                {
                    tensors.insert(format!("{to}.weight"), get(&weights, from)?);
                    for what in ["threshold", "leak"] {
                        if to != "fc1" {
                            let value = get(&of_case, what)?.f_narrow(0, i as i64, 1)?;
                            tensors.insert(format!("{to}.{what}"), value);
                        }
                    }
                }
                network.load(&tensors, &case)?;
                let options = Forward {
                    train: true,
                    ..Forward::spiking(timesteps)
                };
                let x = get(&weights, "image")?;
                let y = get(&weights, "labels")?;
                all.extend(trained(place, &network, &options, &x, &y, &case)?);
            }
        }
    }
    Ok(all)
}

/// With batch norm, on random weights and images.
pub(super) fn artificial(place: &Place) -> Result<Named> {
    fewstep_torch::seed::set_libtorch(1);
    let network = network(place, "16 A 32 A", [3, 8, 8], 10, true)?;
    let x = Tensor::f_rand([16, 3, 8, 8], (Kind::Float, tch::Device::Cpu))?;
    let y = Tensor::f_arange(16, (Kind::Int64, tch::Device::Cpu))?.f_remainder(10)?;
    let options = Forward {
        train: true,
        ..Forward::evaluation(Mode::Analog)
    };
    let mut all = trained(place, &network, &options, &x, &y, "batch norm")?;
    if place.precision != Precision::Float32 {
        // Sums over a batch that nearly cancel: of those fewer digits leave none.
        all.retain(|(name, _)| !name.contains("gradient"));
    }
    Ok(all)
}

fn network(
    place: &Place,
    layers: &str,
    input: [i64; 3],
    classes: i64,
    batch_norm: bool,
) -> Result<Network> {
    let plan = zoo::vgg(layers, input, &[], classes, 1., batch_norm)?;
    Ok(Network::new(plan, place.device)?)
}

/// Logits, loss and all gradients of one batch.
fn trained(
    place: &Place,
    network: &Network,
    options: &Forward,
    x: &Tensor,
    y: &Tensor,
    case: &str,
) -> Result<Named> {
    let (x, y) = (place.put(x)?, place.put(y)?);
    let logits = place.precision.run(place.device, || {
        network
            .forward(Input::Direct(&x), options, None)
            .map(|out| out.logits)
    })?;
    let logits = logits.f_to_kind(Kind::Float)?;
    let loss = logits.f_cross_entropy_loss(&y, None::<Tensor>, tch::Reduction::Mean, -100, 0.)?;
    loss.f_backward()?;
    let mut all = vec![
        (format!("{case}: logits"), logits.f_detach()?),
        (format!("{case}: loss"), loss.f_detach()?),
    ];
    for (name, parameter) in network.parameters() {
        let gradient = parameter.f_grad()?;
        // At one timestep a leak has none.
        if gradient.defined() {
            all.push((format!("{case}: gradient of {name}"), gradient));
        }
    }
    Ok(all)
}

fn get(tensors: &BTreeMap<String, Tensor>, name: &str) -> Result<Tensor> {
    let tensor = tensors.get(name);
    Ok(tensor
        .with_context(|| format!("the fixture has no `{name}`"))?
        .shallow_clone())
}
