//! Single nodes of a NIR graph, checked: connections, neurons, pools, shapes.

use std::collections::BTreeMap;

use fewstep_spiking::plan::Connection;
use tch::Tensor;

use crate::Result;
use crate::nir::graph::Named;

/// Sides and channels beyond this are no image; the bound keeps products of shapes within range.
const LARGEST: i64 = 1 << 16;
/// How far the leak in a node's metadata may lie from the one that its τ in float32 gives.
const SAME_LEAK: f64 = 1e-6;

/// A `Conv2d`, `Linear` or `Affine` with the shape that leaves it.
pub(super) struct Layer {
    pub(super) connection: Connection,
    pub(super) output: [i64; 3],
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Layer {
    pub(super) fn read(node: Named, input: [i64; 3], flat: bool) -> Result<Self> {
        let (weight, shape) = node.weights("weight")?;
        let connection = if node.node.kind == "Conv2d" {
            conv(node, &shape, input, flat)?
        } else {
            let &[outputs, inputs] = shape.as_slice() else {
                return Err(node.fault(format!("expected a weight [out, in], found {shape:?}")));
            };
            if !flat {
                return Err(node.fault(format!(
                    "expected a Flatten before it, found an input {input:?}"
                )));
            }
            let entering: i64 = input.iter().product();
            if inputs != entering {
                return Err(node.fault(format!(
                    "its weight {shape:?} takes {inputs} inputs, but {entering} enter"
                )));
            }
            Connection::Linear { inputs, outputs }
        };
        let output = connection.output_shape(input);
        if output.iter().any(|d| !(1..=LARGEST).contains(d)) {
            return Err(node.fault(format!("its output would have shape {output:?}")));
        }
        let bias = match node.node.kind.as_str() {
            "Linear" => None,
            _ => {
                let (bias, shape) = node.weights("bias")?;
                if shape != [output[0]] {
                    return Err(node.fault(format!(
                        "expected a bias of {} numbers, found shape {shape:?}",
                        output[0]
                    )));
                }
                // NIR's convolution has to have one.
                let absent = node.node.kind == "Conv2d" && bias.iter().all(|b| *b == 0.);
                (!absent).then_some(bias)
            }
        };
        Ok(Self {
            connection,
            output,
            weight,
            bias,
        })
    }

    /// Passes `n` numbers on.
    pub(super) fn identity(n: i64) -> Self {
        let mut weight = vec![0.; (n * n) as usize];
        weight
            .iter_mut()
            .step_by(n as usize + 1)
            .for_each(|w| *w = 1.);
        Self {
            connection: Connection::Linear {
                inputs: n,
                outputs: n,
            },
            output: [n, 1, 1],
            weight,
            bias: None,
        }
    }

    pub(super) fn has_bias(&self) -> bool {
        self.bias.is_some()
    }

    pub(super) fn tensors(
        &self,
        name: &str,
        bias: bool,
        bias_scale: f32,
        into: &mut BTreeMap<String, Tensor>,
    ) -> Result<()> {
        let weight = Tensor::f_from_slice(&self.weight)?
            .f_view(self.connection.weight_shape().as_slice())?;
        into.insert(format!("{name}.weight"), weight);
        if bias {
            let values: Vec<f32> = match &self.bias {
                Some(b) => b.iter().map(|x| x * bias_scale).collect(),
                None => vec![0.; self.connection.outputs() as usize],
            };
            into.insert(format!("{name}.bias"), Tensor::f_from_slice(&values)?);
        }
        Ok(())
    }
}

fn conv(node: Named, weight: &[i64], input: [i64; 3], flat: bool) -> Result<Connection> {
    let &[outputs, inputs, kernel, width] = weight else {
        return Err(node.fault(format!(
            "expected a weight [out, in, k, k], found {weight:?}"
        )));
    };
    if flat {
        return Err(node.fault("expected an image to enter it, found a vector"));
    }
    if kernel != width || kernel < 1 {
        return Err(node.fault(format!("expected a square kernel, found {kernel}×{width}")));
    }
    if inputs != input[0] {
        return Err(node.fault(format!(
            "its weight {weight:?} takes {inputs} channels, but {} enter",
            input[0]
        )));
    }
    let stride = node.same("stride")?;
    for key in ["dilation", "groups"] {
        let found = node.same(key)?;
        if found != 1 {
            return Err(node.fault(format!("expected `{key}` 1, found {found}")));
        }
    }
    let padding = match node.word("padding") {
        Some("valid") => 0,
        Some("same") if stride == 1 && kernel % 2 == 1 => kernel / 2,
        Some(word) => {
            return Err(node.fault(format!(
                "expected a number as `padding`, `valid`, or `same` with stride 1, found `{word}`"
            )));
        }
        None => node.same("padding")?,
    };
    if !(1..=LARGEST).contains(&stride) || !(0..=LARGEST).contains(&padding) {
        return Err(node.fault(format!(
            "expected a positive stride and no negative padding, found {stride} and {padding}"
        )));
    }
    Ok(Connection::Conv {
        inputs,
        outputs,
        kernel,
        stride,
        padding,
    })
}

/// Threshold and leak of the neurons of a layer, one or one a channel.
pub(super) struct NeuronValues {
    threshold: Vec<f32>,
    leak: Vec<f32>,
}

impl NeuronValues {
    pub(super) fn read(node: Named, layer: &Layer, dt: f64) -> Result<Self> {
        let values = |key: &str| channels(node, key, layer);
        let zero = |key: &str| -> Result<()> {
            if node.has(key) && values(key)?.iter().any(|v| *v != 0.) {
                return Err(node.fault(format!("expected `{key}` 0, found another value")));
            }
            Ok(())
        };
        zero("v_reset")?;
        let r = values("r")?;
        let (leak, gain) = if node.node.kind == "IF" {
            (vec![1.], r)
        } else {
            zero("v_leak")?;
            let steps: Vec<f64> = values("tau")?.iter().map(|tau| tau / dt).collect();
            let leak: Vec<f64> = steps.iter().map(|n| 1. - 1. / n).collect();
            if let Some(l) = leak.iter().find(|l| !(-SAME_LEAK..=1.).contains(*l)) {
                return Err(node.fault(format!(
                    "expected a time constant of at least dt = {dt}, which makes a leak of 0 to 1, found {l}"
                )));
            }
            // An infinite τ with an infinite R is an IF.
            let gain = pairs(&r, &steps)
                .map(|(r, n)| {
                    if r.is_infinite() && n.is_infinite() {
                        1.
                    } else {
                        r / n
                    }
                })
                .collect();
            (leak, gain)
        };
        if let Some(g) = gain.iter().find(|g| !(**g > 0. && g.is_finite())) {
            return Err(node.fault(format!("expected a positive gain (r·dt/tau), found {g}")));
        }
        let threshold = values("v_threshold")?;
        // A gain on the current is a threshold that is as many times lower. One that is 1 up to rounding is 1.
        let threshold: Vec<f32> = pairs(&threshold, &gain)
            .map(|(theta, g)| {
                if (g - 1.).abs() < SAME_LEAK {
                    theta
                } else {
                    theta / g
                }
            })
            .map(|theta| theta as f32)
            .collect();
        if let Some(t) = threshold.iter().find(|t| !(**t > 0. && t.is_finite())) {
            return Err(node.fault(format!("expected positive thresholds, found {t}")));
        }
        let mut leak: Vec<f32> = leak.iter().map(|&l| l.max(0.) as f32).collect();
        if let Some(exact) = node.node.metadata.get("leak").and_then(|a| a.numbers()) {
            let agrees = [1, layer.output[0] as usize].contains(&exact.len())
                && pairs(
                    &exact,
                    &leak.iter().map(|&l| f64::from(l)).collect::<Vec<_>>(),
                )
                .all(|(a, b)| (a - b).abs() <= SAME_LEAK);
            if agrees {
                leak = exact.iter().map(|&l| l as f32).collect();
            }
        }
        let n = threshold.len().max(leak.len());
        let spread = |v: Vec<f32>| if v.len() == n { v } else { vec![v[0]; n] };
        Ok(Self {
            threshold: spread(threshold),
            leak: spread(leak),
        })
    }

    pub(super) fn tensors(&self, name: &str, into: &mut BTreeMap<String, Tensor>) -> Result<()> {
        into.insert(
            format!("{name}.threshold"),
            Tensor::f_from_slice(&self.threshold)?,
        );
        into.insert(format!("{name}.leak"), Tensor::f_from_slice(&self.leak)?);
        Ok(())
    }
}

/// Element by element; a single one stands for all.
fn pairs<'a>(a: &'a [f64], b: &'a [f64]) -> impl Iterator<Item = (f64, f64)> + 'a {
    let at = |v: &[f64], i: usize| v[if v.len() == 1 { 0 } else { i }];
    (0..a.len().max(b.len())).map(move |i| (at(a, i), at(b, i)))
}

/// A value of neurons as one number, or one a channel. NIR has one a neuron; single ones and one a channel are taken as well.
fn channels(node: Named, key: &str, layer: &Layer) -> Result<Vec<f64>> {
    let (values, shape) = node.numbers(key)?;
    let [c, h, w] = layer.output.map(|d| d.unsigned_abs());
    let wanted = [vec![c, h, w], vec![c, 1, 1], vec![c]];
    if values.len() != 1 && !wanted.iter().any(|s| s == shape) {
        return Err(node.fault(format!(
            "expected `{key}` of shape {:?}, found {shape:?}",
            if (h, w) == (1, 1) {
                &wanted[2]
            } else {
                &wanted[0]
            }
        )));
    }
    if values.iter().all(|v| *v == values[0]) {
        return Ok(vec![values[0]]);
    }
    let area = values.len() / c as usize;
    values
        .chunks(area)
        .map(|one| match one.iter().all(|v| *v == one[0]) {
            true => Ok(one[0]),
            false => Err(node.fault(format!(
                "expected one `{key}` a layer or a channel, found different ones within a channel"
            ))),
        })
        .collect()
}

/// The image's shape and whether it is a vector.
pub(super) fn input_shape(node: Named) -> Result<([i64; 3], bool)> {
    let (values, _) = node.numbers("shape")?;
    let sizes: Vec<i64> = values.iter().map(|&v| v as i64).collect();
    if sizes.iter().any(|d| !(1..=LARGEST).contains(d)) {
        return Err(node.fault(format!("expected a positive shape, found {sizes:?}")));
    }
    match *sizes.as_slice() {
        [n] => Ok(([n, 1, 1], true)),
        [c, h, w] => Ok(([c, h, w], false)),
        _ => Err(node.fault(format!(
            "expected the shape of an image [C, H, W] or a vector [N], found {sizes:?}"
        ))),
    }
}

pub(super) fn check_output(node: Named, layer: &Layer) -> Result<()> {
    if !node.has("shape") {
        return Ok(());
    }
    let (values, shape) = node.numbers("shape")?;
    if values.iter().product::<f64>() != layer.output.iter().product::<i64>() as f64 {
        return Err(node.fault(format!(
            "its shape is {values:?} ({shape:?}), but {:?} enters",
            layer.output
        )));
    }
    Ok(())
}

pub(super) fn check_pool(node: Named, [_, h, w]: [i64; 3], flat: bool) -> Result<()> {
    let found = [
        node.same("kernel_size")?,
        node.same("stride")?,
        node.same("padding")?,
    ];
    if found != [2, 2, 0] {
        let [kernel, stride, padding] = found;
        return Err(node.fault(format!(
            "expected a 2×2 pool with stride 2 and no padding, found kernel {kernel}, stride {stride}, padding {padding}"
        )));
    }
    if flat || h < 2 || w < 2 {
        return Err(node.fault("expected an image of at least 2×2 to enter it"));
    }
    Ok(())
}
