//! A spiking network in float64, written down once more with libtorch's own operators: spikes, and what hangs on those that are too
//! close to call.
//!
//! Float32 sums of a few hundred weights are off by some 1e-6; a potential nearer to its threshold than that may fire in one program and
//! not in another, and both are right.

use fewstep::trained::Trained;
use fewstep_spiking::Reset;
use fewstep_spiking::plan::{Connection, UnitPlan};
use tch::{Device, Kind, Tensor};

/// Potentials nearer to θ than this share of it are too close to call.
const CLOSE: f64 = 1e-5;
/// Outcomes that are followed up.
const MOST: usize = 256;

struct Unit {
    plan: UnitPlan,
    weights: [Tensor; 2],
    projection: Option<[Tensor; 2]>,
    /// θ and λ, `[1, C, 1, 1]`.
    neuron: Option<([Tensor; 2], Reset)>,
}

pub(super) struct Reference {
    units: Vec<Unit>,
    timesteps: i64,
}

/// Output of each unit so far, `[T, N, C, H, W]` before its pool.
type Spikes = Vec<Tensor>;

impl Reference {
    pub fn new(trained: &Trained) -> Self {
        let double = |t: &Tensor| t.detach().to_kind(Kind::Double);
        let weights = |s: &fewstep_spiking::Synapse| {
            let outputs = s.connection.outputs();
            let none = || Tensor::zeros([outputs], (Kind::Double, Device::Cpu));
            [double(&s.weight), s.bias.as_ref().map_or_else(none, double)]
        };
        let units = trained
            .network
            .units()
            .iter()
            .zip(&trained.network.plan().units);
        Self {
            units: units
                .map(|(u, plan)| Unit {
                    plan: plan.clone(),
                    weights: weights(&u.synapse),
                    projection: u.projection.as_ref().map(weights),
                    neuron: u.neuron.as_ref().map(|n| {
                        let values = [&n.threshold, &n.leak].map(|t| double(t).view([1, -1, 1, 1]));
                        (values, n.reset())
                    }),
                })
                .collect(),
            timesteps: i64::from(trained.timesteps),
        }
    }

    /// Spikes of every unit but the read-out for images `[N, C, H, W]`, and for each image whether one of them is too close to call.
    pub fn spikes(&self, images: &Tensor) -> (Spikes, Vec<bool>) {
        let n = images.size()[0];
        let mut spikes = Spikes::new();
        let mut close = Tensor::zeros([n], (Kind::Bool, Device::Cpu));
        for unit in &self.units[..self.units.len() - 1] {
            let (fired, near) = self.fire(unit, &self.current(unit, images, &spikes));
            close = close.logical_or(&near.transpose(0, 1).flatten(1, -1).any_dim(1, false));
            spikes.push(fired);
        }
        (spikes, Vec::try_from(close).unwrap())
    }

    /// The logits of one image, for every way in which the spikes that are too close to call may fall.
    pub fn outcomes(&self, image: &Tensor) -> Vec<Vec<f32>> {
        let mut ways = vec![Spikes::new()];
        let (readout, hidden) = self.units.split_last().unwrap();
        for unit in hidden {
            let mut next = Vec::new();
            for spikes in ways {
                let current = self.current(unit, image, &spikes);
                let near = self.fire(unit, &current).1;
                for nudged in nudges(&current, &near, unit) {
                    let mut way: Spikes = spikes.iter().map(Tensor::shallow_clone).collect();
                    way.push(self.fire(unit, &nudged).0);
                    next.push(way);
                }
                assert!(next.len() <= MOST, "too many spikes are too close to call");
            }
            ways = next;
        }
        let logits = |spikes: &Spikes| {
            let summed = self.current(readout, image, spikes).sum_dim_intlist(
                [0i64].as_slice(),
                false,
                Kind::Double,
            );
            Vec::try_from(summed.flatten(0, -1).to_kind(Kind::Float)).unwrap()
        };
        ways.iter().map(logits).collect()
    }

    /// For every unit the additions that the spikes stand for: one for each spike and target that exists, by a convolution with ones;
    /// and the energy model's R·M, which also counts targets in the padding.
    pub fn additions(&self, spikes: &Spikes) -> Vec<(f64, f64)> {
        let count = |connection: Connection, source: usize, output: [i64; 3]| {
            let unit = &self.units[source].plan;
            // Behind a pool each of four spikes goes where their mean goes.
            let factor = if unit.pool { 4. } else { 1. };
            let x = pooled(unit, &spikes[source]) * factor;
            let outputs = connection.outputs() as f64;
            let rate = spikes[source].sum(Kind::Double).double_value(&[]) / unit.neurons() as f64;
            let rows = connection.weight_shape().iter().skip(1).product::<i64>();
            let table = rate * factor * (rows * output.iter().product::<i64>()) as f64;
            let reached = match connection {
                Connection::Conv {
                    inputs,
                    kernel,
                    stride,
                    padding,
                    ..
                } => {
                    let ones =
                        Tensor::ones([1, inputs, kernel, kernel], (Kind::Double, Device::Cpu));
                    x.conv2d(&ones, None::<Tensor>, stride, padding, 1, 1)
                }
                Connection::Linear { .. } => x,
            };
            (reached.sum(Kind::Double).double_value(&[]) * outputs, table)
        };
        let units = self.units.iter().enumerate();
        let each = units.map(|(i, unit)| {
            let Some(before) = i.checked_sub(1) else {
                return (0., 0.);
            };
            let main = count(unit.plan.connection, before, unit.plan.output);
            match unit.plan.shortcut.map(|s| (s.projection, s.from)) {
                Some((Some(projection), from)) => {
                    let side = count(projection, from, unit.plan.output);
                    (main.0 + side.0, main.1 + side.1)
                }
                _ => main,
            }
        });
        each.collect()
    }

    /// `[T, N, C, H, W]`.
    fn current(&self, unit: &Unit, images: &Tensor, spikes: &Spikes) -> Tensor {
        let x = match spikes.len().checked_sub(1) {
            Some(before) => pooled(&self.units[before].plan, &spikes[before]),
            None => images.repeat([self.timesteps, 1, 1, 1]),
        };
        let mut current = product(unit.plan.connection, &x, &unit.weights);
        if let Some(shortcut) = unit.plan.shortcut {
            let side = pooled(&self.units[shortcut.from].plan, &spikes[shortcut.from]);
            current += match (shortcut.projection, &unit.projection) {
                (Some(connection), Some(weights)) => product(connection, &side, weights),
                _ => side,
            };
        }
        let [c, h, w] = unit.plan.output;
        current.view([self.timesteps, -1, c, h, w])
    }

    /// Spikes, and which were too close to call.
    fn fire(&self, unit: &Unit, current: &Tensor) -> (Tensor, Tensor) {
        let ([threshold, leak], reset) = unit.neuron.as_ref().unwrap();
        let mut left = current.get(0).zeros_like();
        let (mut spikes, mut near) = (Vec::new(), Vec::new());
        for t in 0..self.timesteps {
            let potential = left * leak + current.get(t);
            let fired = potential.gt_tensor(threshold).to_kind(Kind::Double);
            near.push(
                (&potential - threshold)
                    .abs()
                    .lt_tensor(&(threshold * CLOSE)),
            );
            left = match reset {
                Reset::Soft => &potential - threshold * &fired,
                Reset::Hard => &potential * (1. - &fired),
                Reset::None => potential.shallow_clone(),
            };
            spikes.push(fired);
        }
        (Tensor::stack(&spikes, 0), Tensor::stack(&near, 0))
    }
}

/// The current as it is, and with each set of the close potentials pushed to the other side of the threshold.
fn nudges(current: &Tensor, near: &Tensor, unit: &Unit) -> Vec<Tensor> {
    let mut all = vec![current.copy()];
    if near.any().int64_value(&[]) == 0 {
        return all;
    }
    let ([threshold, _], _) = unit.neuron.as_ref().unwrap();
    let push = (threshold * (2. * CLOSE))
        .expand_as(current)
        .contiguous()
        .flatten(0, -1);
    let places = Vec::<i64>::try_from(near.flatten(0, -1).nonzero().flatten(0, -1)).unwrap();
    assert!(places.len() <= 8, "too many spikes are too close to call");
    for place in places {
        let mut more = Vec::new();
        for way in &all {
            for sign in [-1., 1.] {
                let pushed = way.copy();
                let _ = pushed
                    .view([-1])
                    .get(place)
                    .g_add_(&(push.get(place) * sign));
                more.push(pushed);
            }
        }
        all = more;
    }
    all
}

/// `[T·N, C, H, W]` behind the unit's pool.
fn pooled(unit: &UnitPlan, spikes: &Tensor) -> Tensor {
    let x = spikes.flatten(0, 1);
    match unit.pool {
        true => x.avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None::<i64>),
        false => x,
    }
}

fn product(connection: Connection, x: &Tensor, [weight, bias]: &[Tensor; 2]) -> Tensor {
    match connection {
        Connection::Conv {
            stride, padding, ..
        } => x.conv2d(weight, Some(bias), stride, padding, 1, 1),
        Connection::Linear { .. } => x.flatten(1, -1).linear(weight, Some(bias)),
    }
}
