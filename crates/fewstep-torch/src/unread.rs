//! Losses that stay on the device for a while.

use tch::{Device, Kind, Tensor};

use crate::{Group, Result};

/// Losses of a training's last batches that still lie on the device: reading one waits for all that was asked of a GPU before it.
#[derive(Debug)]
pub struct UnreadLosses {
    every: usize,
    losses: Vec<Tensor>,
    weights: Vec<f64>,
}

/// The loss of one batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReadLoss {
    /// Of this rank's part.
    pub own: f64,
    /// Of the whole batch.
    pub whole: f64,
}

impl UnreadLosses {
    /// To be read every so many batches. Default: at each on a CPU, where reading costs nothing, and at each 20th on CUDA.
    pub fn new(every: Option<usize>, device: Device) -> Self {
        let usual = match device {
            Device::Cuda(_) => 20,
            _ => 1,
        };
        Self {
            every: every.unwrap_or(usual),
            losses: Vec::new(),
            weights: Vec::new(),
        }
    }

    /// Takes up the mean loss of this rank's part of a batch, of which it is `weight` (0 to 1).
    ///
    /// # Errors
    /// libtorch refuses.
    pub fn push(&mut self, loss: &Tensor, weight: f64) -> Result<()> {
        self.losses.push(loss.f_detach()?);
        self.weights.push(weight);
        Ok(())
    }

    /// Whether it is time to read.
    pub fn is_full(&self) -> bool {
        self.losses.len() >= self.every
    }

    /// All losses in the order in which they came, which are forgotten here. Every rank must call it at the same batch.
    ///
    /// # Errors
    /// A rank is lost or late, or libtorch refuses.
    pub fn read(&mut self, group: &Group) -> Result<Vec<ReadLoss>> {
        let losses = std::mem::take(&mut self.losses);
        let weights = std::mem::take(&mut self.weights);
        if losses.is_empty() {
            return Ok(Vec::new());
        }
        let own = Vec::<f64>::try_from(Tensor::f_stack(&losses, 0)?.f_to_kind(Kind::Double)?)?;
        let mut whole: Vec<f64> = own.iter().zip(weights).map(|(l, w)| l * w).collect();
        group.sum("the loss", &mut whole)?;
        let both = own.into_iter().zip(whole);
        Ok(both.map(|(own, whole)| ReadLoss { own, whole }).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn losses_come_back_in_order_and_weighed_over_the_ranks() {
        let read = Group::of_threads(2, Duration::from_secs(60), |group| {
            let mut unread = UnreadLosses::new(Some(2), Device::Cpu);
            let rank = group.rank() as f32;
            for batch in 0..2 {
                assert!(!unread.is_full());
                unread.push(&Tensor::from(10. * batch as f32 + rank), 0.5)?;
            }
            assert!(unread.is_full());
            let read = unread.read(group)?;
            assert_eq!(unread.read(group)?, []);
            Ok::<_, crate::Error>(read)
        });
        for (rank, read) in read.unwrap().into_iter().enumerate() {
            let own = rank as f64;
            let expected = [
                ReadLoss { own, whole: 0.5 },
                ReadLoss {
                    own: 10. + own,
                    whole: 10.5,
                },
            ];
            assert_eq!(read.unwrap(), expected);
        }
    }
}
