//! Wall-clock samples, summarised. Timesteps are no latency: what a user waits for is measured here.

use serde::{Deserialize, Serialize};

use crate::MetricsError;

/// Median and spread of repeated measurements, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LatencySummary {
    /// Number of measurements.
    pub samples: usize,
    /// 10th percentile, in ms.
    pub p10_ms: f64,
    /// Median, in ms.
    pub median_ms: f64,
    /// 90th percentile, in ms.
    pub p90_ms: f64,
}

impl LatencySummary {
    /// Summarises measurements in milliseconds; percentiles are interpolated linearly between neighbours.
    ///
    /// # Errors
    /// [`MetricsError::Empty`] without samples; [`MetricsError::Value`] for one that is negative or not finite.
    pub fn from_ms(samples_ms: &[f64]) -> Result<Self, MetricsError> {
        if samples_ms.is_empty() {
            return Err(MetricsError::Empty {
                what: "latency samples",
            });
        }
        if let Some((at, &found)) = samples_ms
            .iter()
            .enumerate()
            .find(|(_, v)| !v.is_finite() || **v < 0.0)
        {
            let expected = "a finite number of milliseconds, 0 or more".into();
            return Err(MetricsError::Value {
                what: format!("latency sample {at}"),
                found,
                expected,
            });
        }
        let mut sorted = samples_ms.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let place = share * (sorted.len() - 1) as f64;
            let (low, high) = (place.floor() as usize, place.ceil() as usize);
            sorted[low] + (sorted[high] - sorted[low]) * place.fract()
        };
        Ok(Self {
            samples: sorted.len(),
            p10_ms: at(0.1),
            median_ms: at(0.5),
            p90_ms: at(0.9),
        })
    }

    /// The same summary for one image, when each measurement was a batch of `images`.
    ///
    /// # Errors
    /// [`MetricsError::Empty`] for 0 images.
    pub fn per_image(&self, images: usize) -> Result<Self, MetricsError> {
        if images == 0 {
            return Err(MetricsError::Empty {
                what: "images in a batch",
            });
        }
        let n = images as f64;
        Ok(Self {
            p10_ms: self.p10_ms / n,
            median_ms: self.median_ms / n,
            p90_ms: self.p90_ms / n,
            ..*self
        })
    }
}

/// Wall-clock per image of the artificial network and of the spiking one, measured with the same batch and threads.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LatencyReport {
    /// Images in each measured batch.
    pub batch_images: usize,
    /// CPU threads.
    pub threads: usize,
    /// The artificial network, per image.
    pub ann: LatencySummary,
    /// The spiking network, per image, all its timesteps.
    pub snn: LatencySummary,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_interpolate_and_ignore_the_order() {
        let summary = LatencySummary::from_ms(&[5.0, 1.0, 3.0, 2.0, 4.0]).unwrap();
        assert_eq!(summary.median_ms, 3.0);
        assert!((summary.p10_ms - 1.4).abs() < 1e-12 && (summary.p90_ms - 4.6).abs() < 1e-12);
        assert_eq!(LatencySummary::from_ms(&[1.0, 2.0]).unwrap().median_ms, 1.5);
        assert_eq!(summary.per_image(10).unwrap().median_ms, 0.3);
    }

    #[test]
    fn one_sample_is_its_own_spread() {
        let one = LatencySummary::from_ms(&[7.0]).unwrap();
        assert_eq!((one.p10_ms, one.median_ms, one.p90_ms), (7.0, 7.0, 7.0));
    }

    #[test]
    fn impossible_samples_are_named() {
        assert_eq!(
            LatencySummary::from_ms(&[1.0, -2.0])
                .unwrap_err()
                .to_string(),
            "latency sample 1 is -2; expected a finite number of milliseconds, 0 or more"
        );
        assert!(LatencySummary::from_ms(&[f64::NAN]).is_err());
        assert!(LatencySummary::from_ms(&[]).is_err());
        assert!(
            LatencySummary::from_ms(&[1.0])
                .unwrap()
                .per_image(0)
                .is_err()
        );
    }
}
