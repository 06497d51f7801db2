//! The engine against a few plain loops in float64.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::*;

/// Logits of one image by the definitions, without any of the engine's code, and how close a potential came to its threshold.
fn reference(network: &Network, image: &[f32], precision: Precision) -> (Vec<f64>, f64) {
    let mut closest = f64::INFINITY;
    let quantised = |dense: &Dense, outputs: usize, first: bool| -> Vec<f64> {
        let rows = dense.weight.len() / outputs;
        let each = dense.weight.chunks(rows);
        each.flat_map(|w| {
            let largest = w.iter().fold(0f32, |m, v| m.max(v.abs()));
            let scale = if largest > 0. { largest / 127. } else { 1. };
            let whole = precision == Precision::Float32 || first;
            w.iter().map(move |&v| match whole {
                true => f64::from(v),
                false => f64::from((v / scale).round()) * f64::from(scale),
            })
        })
        .collect()
    };
    let conv = |x: &[f64],
                [c, h, w]: [usize; 3],
                weight: &[f64],
                bias: &[f32],
                outputs: usize,
                [kh, kw]: [usize; 2],
                stride: usize,
                padding: usize| {
        let side = |size: usize, k: usize| (size + 2 * padding - k) / stride + 1;
        let (oh, ow) = (side(h, kh), side(w, kw));
        let mut y = vec![0.; outputs * oh * ow];
        for o in 0..outputs {
            for oy in 0..oh {
                for ox in 0..ow {
                    let mut sum = bias.get(o).map_or(0., |&b| f64::from(b));
                    for i in 0..c {
                        for ky in 0..kh {
                            for kx in 0..kw {
                                let (iy, ix) = (oy * stride + ky, ox * stride + kx);
                                if iy < padding
                                    || ix < padding
                                    || iy - padding >= h
                                    || ix - padding >= w
                                {
                                    continue;
                                }
                                sum += weight[((o * c + i) * kh + ky) * kw + kx]
                                    * x[(i * h + iy - padding) * w + ix - padding];
                            }
                        }
                    }
                    y[(o * oh + oy) * ow + ox] = sum;
                }
            }
        }
        (y, [outputs, oh, ow])
    };
    let steps = network.timesteps;
    let mut outputs: Vec<(Vec<Vec<f64>>, [usize; 3])> = Vec::new();
    let mut x: Vec<Vec<f64>> = vec![image.iter().map(|&v| f64::from(v)).collect(); steps];
    let mut shape = network.input;
    for (place, layer) in network.layers.iter().enumerate() {
        let weight = quantised(&layer.dense, layer.outputs, place == 0);
        let (kernel, stride, padding) = match layer.connection {
            Connection::Conv {
                kernel,
                stride,
                padding,
            } => ([kernel; 2], stride, padding),
            Connection::Linear => ([shape[1], shape[2]], 1, 0),
        };
        if layer.threshold.is_empty() {
            let mut logits = vec![0.; layer.outputs];
            for x in &x {
                let (y, _) = conv(
                    x,
                    shape,
                    &weight,
                    &[],
                    layer.outputs,
                    kernel,
                    stride,
                    padding,
                );
                logits.iter_mut().zip(y).for_each(|(l, y)| *l += y);
            }
            logits
                .iter_mut()
                .zip(&layer.dense.bias)
                .for_each(|(l, &b)| *l += f64::from(b));
            return (logits, closest);
        }
        let mut currents = Vec::new();
        let mut made = shape;
        for x in &x {
            let (y, s) = conv(
                x,
                shape,
                &weight,
                &layer.dense.bias,
                layer.outputs,
                kernel,
                stride,
                padding,
            );
            currents.push(y);
            made = s;
        }
        if let Some(shortcut) = &layer.shortcut {
            let (source, from) = &outputs[shortcut.from];
            for (current, x) in currents.iter_mut().zip(source) {
                let add = match &shortcut.projection {
                    Some((stride, dense)) => {
                        conv(
                            x,
                            *from,
                            &quantised(dense, layer.outputs, false),
                            &dense.bias,
                            layer.outputs,
                            [1, 1],
                            *stride,
                            0,
                        )
                        .0
                    }
                    None => x.clone(),
                };
                current.iter_mut().zip(add).for_each(|(c, a)| *c += a);
            }
        }
        let each = made[1] * made[2];
        let mut potential = vec![0.; made.iter().product()];
        let mut spikes = Vec::new();
        for current in &currents {
            let mut s = vec![0.; current.len()];
            for i in 0..current.len() {
                let of = |v: &[f32]| f64::from(v[(i / each) % v.len()]);
                let (theta, leak) = (of(&layer.threshold), of(&layer.leak));
                let m = leak * potential[i] + current[i];
                closest = closest.min((m - theta).abs());
                s[i] = if m > theta { 1. } else { 0. };
                potential[i] = match network.reset {
                    Reset::Soft => m - theta * s[i],
                    Reset::Hard => m * (1. - s[i]),
                    Reset::None => m,
                };
            }
            spikes.push(s);
        }
        if layer.pool {
            let [c, h, w] = made;
            let (ph, pw) = (h / 2, w / 2);
            for s in &mut spikes {
                let mut p = vec![0.; c * ph * pw];
                for i in 0..c {
                    for y in 0..ph {
                        for x in 0..pw {
                            let at =
                                |dy: usize, dx: usize| s[(i * h + 2 * y + dy) * w + 2 * x + dx];
                            p[(i * ph + y) * pw + x] =
                                (at(0, 0) + at(0, 1) + at(1, 0) + at(1, 1)) / 4.;
                        }
                    }
                }
                *s = p;
            }
            made = [c, ph, pw];
        }
        outputs.push((spikes.clone(), made));
        (x, shape) = (spikes, made);
    }
    unreachable!("a network ends in a read-out")
}

pub(crate) struct Maker(pub ChaCha8Rng);

impl Maker {
    fn dense(&mut self, rows: usize, outputs: usize, gain: f32) -> Dense {
        let mut of = |n: usize, gain: f32| {
            (0..n)
                .map(|_| (self.0.random::<f32>() - 0.5) * gain)
                .collect::<Vec<_>>()
        };
        Dense {
            weight: of(rows * outputs, gain / (rows as f32).sqrt()),
            bias: of(outputs, 0.2),
        }
    }

    /// A layer on maps of `channels`; `threshold` sets how much it fires.
    fn conv(
        &mut self,
        name: &str,
        channels: usize,
        outputs: usize,
        kernel: usize,
        stride: usize,
    ) -> Layer {
        Layer {
            name: name.into(),
            connection: Connection::Conv {
                kernel,
                stride,
                padding: kernel / 2,
            },
            outputs,
            dense: self.dense(kernel * kernel * channels, outputs, 6.),
            threshold: vec![0.4],
            leak: vec![0.9],
            pool: false,
            shortcut: None,
        }
    }

    fn linear(&mut self, name: &str, inputs: usize, outputs: usize) -> Layer {
        Layer {
            connection: Connection::Linear,
            dense: self.dense(inputs, outputs, 6.),
            ..self.conv(name, 1, outputs, 1, 1)
        }
    }

    fn readout(&mut self, inputs: usize, outputs: usize) -> Layer {
        Layer {
            threshold: vec![],
            leak: vec![],
            ..self.linear("readout", inputs, outputs)
        }
    }

    /// Everything that a network may have, at widths that fill no block.
    pub fn network(&mut self, timesteps: usize, reset: Reset) -> Network {
        let mut layers = vec![
            Layer {
                pool: true,
                ..self.conv("stem", 3, 24, 3, 1)
            },
            self.conv("plain", 24, 80, 3, 1),
            Layer {
                shortcut: Some(Shortcut {
                    from: 0,
                    projection: Some((1, self.dense(24, 80, 6.))),
                }),
                ..self.conv("projected", 80, 80, 3, 1)
            },
            Layer {
                shortcut: Some(Shortcut {
                    from: 2,
                    projection: None,
                }),
                pool: true,
                ..self.conv("identity", 80, 80, 1, 1)
            },
            self.conv("stride", 80, 130, 3, 2),
            Layer {
                shortcut: Some(Shortcut {
                    from: 3,
                    projection: Some((2, self.dense(80, 130, 6.))),
                }),
                ..self.conv("across", 130, 130, 3, 1)
            },
            self.conv("same", 130, 130, 3, 1),
            Layer {
                shortcut: Some(Shortcut {
                    from: 6,
                    projection: None,
                }),
                ..self.conv("again", 130, 130, 3, 1)
            },
            self.linear("hidden", 130 * 2 * 2, 72),
            self.readout(72, 10),
        ];
        for layer in &mut layers[..9] {
            let n = layer.outputs;
            layer.threshold = (0..n).map(|_| 0.3 + 0.4 * self.0.random::<f32>()).collect();
            layer.leak = (0..n).map(|_| self.0.random::<f32>()).collect();
        }
        Network {
            name: "everything".into(),
            input: [3, 13, 18],
            mean: vec![0.4, 0.5, 0.6],
            std: vec![0.2, 0.3, 0.4],
            timesteps,
            reset,
            layers,
            ..Network::default()
        }
    }

    pub fn pixels(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.0.random()).collect()
    }
}

pub(crate) fn maker(seed: u64) -> Maker {
    Maker(ChaCha8Rng::seed_from_u64(seed))
}

/// `[H, W, C]` bytes as `[C, H, W]` numbers.
fn normalised(network: &Network, pixels: &[u8]) -> Vec<f32> {
    let [c, h, w] = network.input;
    let mut out = vec![0.; pixels.len()];
    for (i, &p) in pixels.iter().enumerate() {
        let (at, channel) = (i / c, i % c);
        out[channel * h * w + at] =
            (f32::from(p) / 255. - network.mean[channel]) / network.std[channel];
    }
    out
}

/// Images whose potentials keep a distance from their thresholds that float32 can tell have the same logits; returns how many do.
fn near(found: &[f32], expected: &[(Vec<f64>, f64)], what: &dyn std::fmt::Debug) -> usize {
    let mut judged = 0;
    for (found, (expected, closest)) in found.chunks(10).zip(expected) {
        if *closest < 3e-6 {
            continue;
        }
        judged += 1;
        let size = expected.iter().fold(0f64, |m, v| m.max(v.abs()));
        assert!(size > 0.1);
        for (f, e) in found.iter().zip(expected) {
            assert!(
                (f64::from(*f) - e).abs() <= 1e-5 * size,
                "{what:?}: {found:?} {expected:?}"
            );
        }
    }
    judged
}

#[test]
fn every_layer_timestep_reset_precision_and_instruction_set_agrees_with_plain_loops() {
    const IMAGES: usize = 3;
    let mut judged = 0;
    for (seed, timesteps, reset) in [
        (1, 1, Reset::Soft),
        (2, 2, Reset::Soft),
        (3, 3, Reset::Hard),
        (4, 5, Reset::None),
    ] {
        let mut maker = maker(seed);
        let network = maker.network(timesteps, reset);
        let size: usize = network.input.iter().product();
        let pixels = maker.pixels(IMAGES * size);
        for precision in [Precision::Float32, Precision::Int8] {
            let model = Model::from_network(&network, precision).unwrap();
            let expected: Vec<_> = pixels
                .chunks(size)
                .map(|image| reference(&network, &normalised(&network, image), precision))
                .collect();
            for &instructions in Instructions::all() {
                for (threads, group, dense_above) in
                    [(1, 16, 0.6), (2, 1, 4.), (2, 2, 0.), (4, 16, 0.3)]
                {
                    let threads = if cfg!(feature = "threads") {
                        threads
                    } else {
                        1
                    };
                    let options = Options {
                        threads,
                        instructions: Some(instructions),
                        group,
                        dense_above,
                        count: true,
                    };
                    let mut session = model.session(options).unwrap();
                    let mut scores = vec![0.; 10 * IMAGES];
                    session.run(Images::Pixels(&pixels), &mut scores).unwrap();
                    judged += near(&scores, &expected, &(seed, precision, options));
                    let floats: Vec<f32> = pixels
                        .chunks(size)
                        .flat_map(|p| normalised(&network, p))
                        .collect();
                    scores.fill(0.);
                    session
                        .run(Images::Normalised(&floats), &mut scores)
                        .unwrap();
                    near(&scores, &expected, &(seed, precision, options));
                    let rates: Vec<f64> = session
                        .counts()
                        .iter()
                        .map(|c| c.spikes as f64 / c.inputs as f64)
                        .collect();
                    assert!(
                        rates[1..].iter().all(|r| (0.02..3.9).contains(r)),
                        "{rates:?}"
                    );
                }
            }
        }
    }
    assert!(judged > 100, "{judged}");
}
