//! What a network does while it runs: spike rates per layer, timestep and channel, and the membrane potential.

use fewstep_torch::{Group, Reduce};
use serde::Serialize;
use tch::{Kind, Tensor};

use crate::Result;

/// Collects statistics over any number of [`Network::forward`](crate::Network::forward) calls of the same mode and T.
#[derive(Debug, Default)]
pub struct Monitor {
    layers: Vec<Sums>,
}

#[derive(Debug)]
struct Sums {
    name: String,
    images: f64,
    neurons_per_channel: f64,
    /// `[T, C]`: activations summed over images and positions.
    activity: Tensor,
    /// sum, sum of squares, minimum, maximum of the potential.
    sum: f64,
    squares: f64,
    min: f64,
    max: f64,
    count: f64,
    finite: bool,
}

/// What one layer did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerActivity {
    /// The unit's name.
    pub name: String,
    /// Mean spikes per neuron and image, summed over T.
    pub spike_rate: f64,
    /// The same for each timestep.
    pub spike_rate_per_timestep: Vec<f64>,
    /// Channels that never fired.
    pub silent_channels: usize,
    /// Channels in which every neuron fired at every timestep for every image.
    pub saturated_channels: usize,
    /// All channels.
    pub channels: usize,
    /// Membrane potential after the reset (the pre-activation of an artificial network).
    pub membrane: Moments,
}

/// Mean, standard deviation and range.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Moments {
    /// Mean.
    pub mean: f64,
    /// Standard deviation.
    pub std: f64,
    /// Least value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
}

impl Monitor {
    /// Nothing collected yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes up one layer of one batch: `spikes` and `potential` are `[T, N, C, …]`.
    pub(crate) fn record(
        &mut self,
        unit: usize,
        name: &str,
        spikes: &Tensor,
        potential: &Tensor,
    ) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let size = spikes.size();
        let over: Vec<i64> = (0..size.len() as i64)
            .filter(|d| *d != 0 && *d != 2)
            .collect();
        let activity = spikes.f_sum_dim_intlist(over.as_slice(), false, Kind::Double)?;
        let number = |t: Tensor| -> Result<f64> { Ok(t.f_double_value(&[])?) };
        let (sum, squares) = (
            number(potential.f_sum(Kind::Double)?)?,
            number(potential.f_square()?.f_sum(Kind::Double)?)?,
        );
        let (min, max) = (number(potential.f_min()?)?, number(potential.f_max()?)?);
        let count = potential.numel() as f64;
        let finite = sum.is_finite() && squares.is_finite();
        if unit == self.layers.len() {
            let neurons_per_channel = size.iter().skip(3).product::<i64>() as f64;
            let name = name.to_owned();
            let images = size[1] as f64;
            self.layers.push(Sums {
                name,
                images,
                neurons_per_channel,
                activity,
                sum,
                squares,
                min,
                max,
                count,
                finite,
            });
        } else if let Some(l) = self.layers.get_mut(unit) {
            l.images += size[1] as f64;
            let _ = l.activity.f_add_(&activity)?;
            l.sum += sum;
            l.squares += squares;
            l.min = l.min.min(min);
            l.max = l.max.max(max);
            l.count += count;
            l.finite &= finite;
        }
        Ok(())
    }

    /// Forgets the images, and keeps the layers: for a process whose images were stand-ins.
    ///
    /// # Errors
    /// libtorch refuses.
    pub fn forget(&mut self) -> Result<()> {
        for l in &mut self.layers {
            let _ = l.activity.f_zero_()?;
            (l.images, l.sum, l.squares, l.count) = (0., 0., 0., 0.);
            (l.min, l.max, l.finite) = (f64::INFINITY, f64::NEG_INFINITY, true);
        }
        Ok(())
    }

    /// Puts together what each process of a group has seen of the same network.
    ///
    /// # Errors
    /// Another process is gone.
    pub fn gather(&mut self, group: &Group) -> Result<()> {
        if group.world() == 1 {
            return Ok(());
        }
        let what = "what the layers did";
        for l in &mut self.layers {
            group.all_reduce(what, &l.activity, Reduce::Sum)?;
            let broken = f64::from(u8::from(!l.finite));
            let mut numbers = [l.images, l.sum, l.squares, l.count, broken];
            group.sum(what, &mut numbers)?;
            let [images, sum, squares, count, broken] = numbers;
            (l.images, l.sum, l.squares, l.count) = (images, sum, squares, count);
            l.finite = broken == 0.;
            let ends = Tensor::f_from_slice(&[-l.min, l.max])?.f_to_device(l.activity.device())?;
            group.all_reduce(what, &ends, Reduce::Max)?;
            let ends = Vec::<f64>::try_from(ends)?;
            (l.min, l.max) = (-ends[0], ends[1]);
        }
        Ok(())
    }

    /// What each layer did, front to back.
    ///
    /// # Errors
    /// libtorch refuses.
    pub fn layers(&self) -> Result<Vec<LayerActivity>> {
        self.layers.iter().map(Sums::finish).collect()
    }

    /// The first layer that never fired, if there is one.
    ///
    /// # Errors
    /// libtorch refuses.
    pub fn first_dead_layer(&self) -> Result<Option<String>> {
        Ok(self
            .layers()?
            .into_iter()
            .find(|l| l.spike_rate == 0.)
            .map(|l| l.name))
    }

    /// The first layer whose potential was not a finite number.
    pub fn first_non_finite_layer(&self) -> Option<&str> {
        self.layers
            .iter()
            .find(|l| !l.finite)
            .map(|l| l.name.as_str())
    }

    /// Sentences for a person, one for each layer that is dead, nearly dead (over nine tenths of its channels) or saturated,
    /// up to the first dead layer.
    ///
    /// # Errors
    /// libtorch refuses.
    pub fn warnings(&self) -> Result<Vec<String>> {
        let (mut dead, mut found) = (Vec::new(), Vec::new());
        for l in self.layers()? {
            if l.spike_rate == 0. {
                dead.push(format!("`{}`", l.name));
            } else if 10 * l.silent_channels > 9 * l.channels {
                found.push(format!(
                    "layer `{}` is dying: {} of its {} channels never fired",
                    l.name, l.silent_channels, l.channels
                ));
            } else if 2 * l.saturated_channels > l.channels {
                found.push(format!(
                    "layer `{}` is saturated: {} of its {} channels always fire",
                    l.name, l.saturated_channels, l.channels
                ));
            }
        }
        if !dead.is_empty() {
            let message = format!("no neuron fires in the dead layers {}", dead.join(", "));
            found.insert(0, message);
        }
        Ok(found)
    }
}

impl Sums {
    fn finish(&self) -> Result<LayerActivity> {
        let per = self.images * self.neurons_per_channel;
        let channel = Vec::<f64>::try_from(self.activity.f_sum_dim_intlist(
            [0i64].as_slice(),
            false,
            Kind::Double,
        )?)?;
        let timestep = Vec::<f64>::try_from(self.activity.f_mean_dim(
            [1i64].as_slice(),
            false,
            Kind::Double,
        )?)?;
        let spike_rate_per_timestep: Vec<_> = timestep.iter().map(|s| s / per).collect();
        let always = per * timestep.len() as f64;
        let mean = self.sum / self.count;
        Ok(LayerActivity {
            name: self.name.clone(),
            spike_rate: spike_rate_per_timestep.iter().sum(),
            spike_rate_per_timestep,
            silent_channels: channel.iter().filter(|&&c| c == 0.).count(),
            saturated_channels: channel.iter().filter(|&&c| c >= always).count(),
            channels: channel.len(),
            membrane: Moments {
                mean,
                std: (self.squares / self.count - mean * mean).max(0.).sqrt(),
                min: self.min,
                max: self.max,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_silent_and_saturated_channels_are_counted_over_batches() {
        // T = 2, N = 1, C = 3: channel 0 never fires, 1 fires always, 2 in the second timestep only.
        let s = Tensor::from_slice(&[0f32, 1., 0., 0., 1., 1.]).view([2, 1, 3]);
        let u = Tensor::from_slice(&[1f32, 2., 3., 4., 5., 6.]).view([2, 1, 3]);
        let mut m = Monitor::new();
        m.record(0, "a", &s, &u).unwrap();
        m.record(0, "a", &s, &u).unwrap();
        let l = m.layers().unwrap().remove(0);
        assert_eq!(
            (l.silent_channels, l.saturated_channels, l.channels),
            (1, 1, 3)
        );
        assert!((l.spike_rate - 1.).abs() < 1e-12);
        assert!((l.spike_rate_per_timestep[0] - 1. / 3.).abs() < 1e-12);
        assert_eq!(
            (l.membrane.mean, l.membrane.min, l.membrane.max),
            (3.5, 1., 6.)
        );
        assert_eq!(m.warnings().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_dead_layer_is_named() {
        let none = Tensor::zeros([1, 2, 3], (Kind::Float, tch::Device::Cpu));
        let mut m = Monitor::new();
        m.record(0, "conv1", &(&none + 1.), &none).unwrap();
        m.record(1, "conv2", &none, &(&none + f64::NAN)).unwrap();
        assert_eq!(m.first_dead_layer().unwrap().as_deref(), Some("conv2"));
        assert_eq!(m.first_non_finite_layer(), Some("conv2"));
        assert!(m.warnings().unwrap()[0].ends_with("`conv2`"));
    }
}
