//! A plan with weights: one network that runs as an artificial one (ReLU) and, once it has neurons, as a spiking one.
//!
//! Layer by layer over all timesteps: activations are `[T·N, C, H, W]`, so that a convolution sees one large batch and a neuron one
//! sweep over T. With direct encoding the first layer's current is the same at every timestep and is computed once.

mod pass;
mod share;
mod synapse;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use crate::plan::{Connection, Plan};
use crate::{Error, Monitor, Neuron, NeuronOptions, Result};

pub use pass::{Forward, Input, Mode, Output};
pub use share::Share;
pub use synapse::{BatchNorm, MemoryFormat, Synapse};

/// One layer of the network.
#[derive(Debug)]
pub struct Unit {
    /// Its name.
    pub name: String,
    /// Its connections.
    pub synapse: Synapse,
    /// The projection of its shortcut, where it has one.
    pub projection: Option<Synapse>,
    /// Its neurons, after [`Network::add_neurons`]; the read-out has none.
    pub neuron: Option<Neuron>,
}

/// A network of [`Unit`]s.
#[derive(Debug)]
pub struct Network {
    plan: Plan,
    units: Vec<Unit>,
    device: Device,
}

/// What to leave beside logits.
#[derive(Default)]
struct Extras<'a> {
    monitor: Option<&'a mut Monitor>,
    /// Membrane potentials to continue from and to leave behind, one for each unit.
    state: Option<&'a mut Vec<Option<Tensor>>>,
    /// Stop here and return this unit's current instead of logits.
    current_of: Option<usize>,
    /// Return what enters the read-out instead of logits.
    features: bool,
    /// Which part of a batch this is.
    share: Option<Share<'a>>,
}

impl Network {
    /// Fresh weights as in the published code: convolutions normal with deviation √(2 / (k²·C_out)), fully connected layers with
    /// √(2 / inputs), batch norm at identity. Drawn from libtorch's generator.
    ///
    /// (The published 0.01 for fully connected layers starves narrow ones, whose fan-in is small; √(2/4096) is 0.02.)
    ///
    /// # Errors
    /// Not enough memory.
    pub fn new(plan: Plan, device: Device) -> Result<Self> {
        let units = plan
            .units
            .iter()
            .map(|u| {
                Ok(Unit {
                    name: u.name.clone(),
                    synapse: Synapse::new(u.connection, u.bias, u.batch_norm, device)?,
                    projection: match u.shortcut.and_then(|s| s.projection) {
                        Some(p) => Some(Synapse::new(p, u.bias, u.batch_norm, device)?),
                        None => None,
                    },
                    neuron: None,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            plan,
            units,
            device,
        })
    }

    /// The plan; after [`Network::replace_batch_norm`] its biases are there and its batch norms are not.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The units, front to back.
    pub fn units(&self) -> &[Unit] {
        &self.units
    }

    /// The units, to change their values in place.
    pub fn units_mut(&mut self) -> &mut [Unit] {
        &mut self.units
    }

    /// Lays the weights of convolutions out in this order, which activations then follow through the network. Results are the same up to
    /// rounding. Tensors taken from [`Network::parameters`] before are no longer the network's.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn set_memory_format(&mut self, format: MemoryFormat) -> Result<()> {
        for unit in &mut self.units {
            for synapse in std::iter::once(&mut unit.synapse).chain(&mut unit.projection) {
                synapse.set_memory_format(format)?;
            }
        }
        Ok(())
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Replaces batch norm by what [`Synapse`] folding returns: the caller hands each synapse to `fold`, which must leave a bias and no
    /// batch norm. The plan follows.
    ///
    /// # Errors
    /// Whatever `fold` returns.
    pub fn replace_batch_norm<E>(
        &mut self,
        mut fold: impl FnMut(&mut Synapse) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        for (unit, planned) in self.units.iter_mut().zip(&mut self.plan.units) {
            for synapse in std::iter::once(&mut unit.synapse).chain(&mut unit.projection) {
                if synapse.batch_norm.is_some() {
                    fold(synapse)?;
                }
            }
            planned.batch_norm = unit.synapse.batch_norm.is_some();
            planned.bias = unit.synapse.bias.is_some();
        }
        Ok(())
    }

    /// Gives every unit but the read-out its neurons (new ones where it had some).
    ///
    /// # Errors
    /// Options out of range.
    pub fn add_neurons(&mut self, options: &NeuronOptions) -> Result<()> {
        for (unit, planned) in self.units.iter_mut().zip(&self.plan.units) {
            if planned.active {
                unit.neuron = Some(Neuron::new(
                    options,
                    planned.connection.outputs(),
                    self.device,
                )?);
            }
        }
        Ok(())
    }

    /// Every trained tensor by its name: `conv1.weight`, `conv1.bias`, `conv1.batch_norm.weight`, `conv1.threshold`, `conv1.leak`,
    /// `stage2.block1.conv2.projection.weight`, …
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        self.tensors()
            .into_iter()
            .filter(|(_, t)| t.requires_grad())
            .collect()
    }

    /// Every tensor by its name: the parameters, fixed thresholds and leaks, and running statistics.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let mut all = Vec::new();
        for u in &self.units {
            u.synapse.named(&u.name, &mut all);
            if let Some(p) = &u.projection {
                p.named(&format!("{}.projection", u.name), &mut all);
            }
            if let Some(n) = &u.neuron {
                all.push((format!("{}.threshold", u.name), n.threshold.shallow_clone()));
                all.push((format!("{}.leak", u.name), n.leak.shallow_clone()));
            }
        }
        all
    }

    /// Takes up saved tensors.
    ///
    /// # Errors
    /// Lists every missing, extra and misshaped one; `what` names the source in the message.
    pub fn load(&mut self, tensors: &BTreeMap<String, Tensor>, what: &str) -> Result<()> {
        Ok(fewstep_torch::checkpoint::copy_into(
            &self.tensors(),
            tensors,
            what,
        )?)
    }

    /// Brings thresholds and leaks back into their ranges.
    ///
    /// # Errors
    /// libtorch refuses.
    pub fn constrain(&mut self) -> Result<()> {
        self.units
            .iter_mut()
            .filter_map(|u| u.neuron.as_mut())
            .try_for_each(Neuron::constrain)
    }

    /// Logits for a batch. `monitor` collects what the layers did.
    ///
    /// # Errors
    /// An input of another shape; spiking mode before [`Network::add_neurons`].
    pub fn forward(
        &self,
        input: Input,
        options: &Forward,
        monitor: Option<&mut Monitor>,
    ) -> Result<Output> {
        self.run(
            input,
            options,
            Extras {
                monitor,
                ..Extras::default()
            },
        )
    }

    /// Logits for this process's part of a batch: [`Network::forward`] as if one process had the whole of it. Every process of the
    /// group must call it.
    ///
    /// # Errors
    /// As [`Network::forward`]; another process is gone.
    pub fn forward_share(&self, input: Input, options: &Forward, share: Share) -> Result<Output> {
        let extras = Extras {
            share: (share.group.world() > 1).then_some(share),
            ..Extras::default()
        };
        self.run(input, options, extras)
    }

    /// What enters the read-out, `[N, features]`, of the artificial network: features to compare sets of images by.
    ///
    /// # Errors
    /// As [`Network::forward`].
    pub fn features(&self, images: &Tensor) -> Result<Tensor> {
        let extras = Extras {
            features: true,
            ..Extras::default()
        };
        let input = Input::Direct(images);
        Ok(self.run(input, &Forward::analog(), extras)?.logits)
    }

    /// The current `[T, N, C, …]` (`[1, N, C, …]` for the first unit under direct encoding) that meets the neurons of unit number `unit`,
    /// with everything before it spiking. `state` holds the membrane potentials between calls, so that many timesteps can be fed in
    /// chunks; start with an empty one.
    ///
    /// # Errors
    /// As [`Network::forward`].
    pub fn current(
        &self,
        input: Input,
        timesteps: u32,
        unit: usize,
        state: &mut Vec<Option<Tensor>>,
    ) -> Result<Tensor> {
        state.resize_with(self.units.len(), || None);
        let extras = Extras {
            state: Some(state),
            current_of: Some(unit),
            ..Extras::default()
        };
        Ok(self
            .run(input, &Forward::spiking(timesteps), extras)?
            .logits)
    }

    fn run(&self, input: Input, options: &Forward, mut extras: Extras) -> Result<Output> {
        let (mut x, images, timesteps) = self.enter(input, options.mode)?;
        let mut direct = matches!(input, Input::Direct(_));
        let mut outputs: Vec<Option<Tensor>> = Vec::with_capacity(self.units.len());
        let mut operations: Option<Tensor> = None;
        let keep: Vec<usize> = self
            .plan
            .units
            .iter()
            .filter_map(|u| u.shortcut.map(|s| s.from))
            .collect();

        let fed = self.shares_fed();
        let (train, share) = (options.train, extras.share);

        for (i, (unit, planned)) in self.units.iter().zip(&self.plan.units).enumerate() {
            if matches!(planned.connection, Connection::Linear { .. }) && x.dim() > 2 {
                x = x.f_flatten(1, -1)?;
            }
            if !planned.active {
                // Σ_t W·o[t] = W·Σ_t o[t]: one product instead of T.
                let summed = if timesteps > 1 && !direct {
                    x.f_view([timesteps, images, -1])?.f_sum_dim_intlist(
                        [0i64].as_slice(),
                        false,
                        x.kind(),
                    )?
                } else {
                    x
                };
                if extras.features {
                    return Ok(Output {
                        logits: summed,
                        operations,
                    });
                }
                return Ok(Output {
                    logits: unit.synapse.apply(&summed, train, share)?,
                    operations,
                });
            }
            let mut current = unit.synapse.apply(&x, train, share)?;
            if let Some(shortcut) = planned.shortcut {
                let source = outputs
                    .get(shortcut.from)
                    .and_then(Option::as_ref)
                    .ok_or_else(|| Error::State("a shortcut from nowhere".into()))?;
                current = match &unit.projection {
                    Some(p) => current.f_add(&p.apply(source, train, share)?)?,
                    None => current.f_add(source)?,
                };
            }
            let steps = if direct { 1 } else { timesteps };
            let current = current.f_view(with_time(&current, steps, images).as_slice())?;
            if extras.current_of == Some(i) {
                return Ok(Output {
                    logits: current,
                    operations: None,
                });
            }
            let activation = self.activate(i, &current, options.mode, &mut extras)?;
            direct = false;
            if options.operations {
                let share = activation
                    .f_mean(Kind::Float)?
                    .f_mul_scalar(timesteps as f64 * fed[i])?;
                operations = Some(match operations {
                    Some(sum) => sum.f_add(&share)?,
                    None => share,
                });
            }
            x = self.after(i, activation, options.dropout, share)?;
            outputs.push(keep.contains(&i).then(|| x.shallow_clone()));
        }
        Err(Error::State("the plan has no read-out".into()))
    }

    /// For each unit, the MACs that its spikes feed, as a share of all behind the first layer.
    fn shares_fed(&self) -> Vec<f64> {
        let mut fed = vec![0.; self.units.len()];
        for (ops, source) in self.plan.operations() {
            if let Some(source) = source {
                fed[source] += ops.macs as f64;
            }
        }
        let all: f64 = fed.iter().sum();
        fed.iter().map(|macs| macs / all).collect()
    }

    /// The first unit's input as `[N or T·N, C, H, W]`, N and T.
    fn enter(&self, input: Input, mode: Mode) -> Result<(Tensor, i64, i64)> {
        let timesteps = match mode {
            Mode::Analog => 1,
            Mode::Spiking { timesteps: 0 } => {
                return Err(Error::Option {
                    option: "timesteps",
                    expected: "at least 1",
                    found: "0".into(),
                });
            }
            Mode::Spiking { timesteps } => i64::from(timesteps),
        };
        let [c, h, w] = self.plan.input;
        let (x, lead) = match input {
            Input::Direct(x) => (x, 1),
            Input::Encoded(x) => (x, 2),
        };
        let size = x.size();
        if size.len() != lead + 3
            || size[lead..] != self.plan.input
            || (lead == 2 && size[0] != timesteps)
        {
            let expected = if lead == 1 {
                format!("[N, {c}, {h}, {w}]")
            } else {
                format!("[{timesteps}, N, {c}, {h}, {w}]")
            };
            return Err(Error::Input {
                expected,
                found: size,
            });
        }
        Ok((
            if lead == 1 {
                x.shallow_clone()
            } else {
                x.f_flatten(0, 1)?
            },
            size[lead - 1],
            timesteps,
        ))
    }

    /// ReLU or spikes, `[T, N, C, …]`.
    fn activate(
        &self,
        i: usize,
        current: &Tensor,
        mode: Mode,
        extras: &mut Extras,
    ) -> Result<Tensor> {
        let unit = &self.units[i];
        match mode {
            Mode::Analog => {
                let a = current.f_relu()?;
                if let Some(m) = extras.monitor.as_deref_mut() {
                    m.record(i, &unit.name, &a, current)?;
                }
                Ok(a)
            }
            Mode::Spiking { timesteps } => {
                let neuron = unit.neuron.as_ref().ok_or_else(|| {
                    Error::State(format!("layer `{}` has no neurons yet", unit.name))
                })?;
                let initial = extras.state.as_deref().and_then(|s| s[i].as_ref());
                let wanted = extras.monitor.is_some() || extras.state.is_some();
                let (spikes, membrane) = neuron.call(current, timesteps, initial, wanted, true)?;
                if let (Some(m), Some(after)) = (extras.monitor.as_deref_mut(), &membrane) {
                    m.record(i, &unit.name, &spikes, after)?;
                }
                if let (Some(state), Some(after)) = (extras.state.as_deref_mut(), &membrane) {
                    state[i] = Some(after.f_get(i64::from(timesteps) - 1)?.f_contiguous()?);
                }
                Ok(spikes)
            }
        }
    }

    /// Pool or dropout behind an activation `[T, N, C, …]`; returns `[T·N, C, …]`.
    fn after(
        &self,
        i: usize,
        activation: Tensor,
        dropout: f64,
        share: Option<Share>,
    ) -> Result<Tensor> {
        let planned = &self.plan.units[i];
        if planned.pool {
            return Ok(activation.f_flatten(0, 1)?.f_avg_pool2d(
                [2, 2],
                [2, 2],
                [0, 0],
                false,
                true,
                None::<i64>,
            )?);
        }
        if planned.dropout && dropout > 0. {
            let mut shape = activation.size();
            let images = shape[1];
            shape[0] = 1;
            shape[1] = share.map_or(images, |s| s.part.batch);
            let mut mask = Tensor::f_full(
                &shape,
                1. - dropout,
                (activation.kind(), activation.device()),
            )?
            .f_bernoulli()?;
            if let Some(share) = share {
                mask = share.rows(&mask, images)?;
            }
            let scaled = mask.f_div_scalar(1. - dropout)?;
            return Ok(activation.f_mul(&scaled)?.f_flatten(0, 1)?);
        }
        Ok(activation.f_flatten(0, 1)?)
    }
}

/// `[T·N, C, …]` as `[T, N, C, …]`.
fn with_time(x: &Tensor, timesteps: i64, images: i64) -> Vec<i64> {
    [timesteps, images]
        .into_iter()
        .chain(x.size().into_iter().skip(1))
        .collect()
}
