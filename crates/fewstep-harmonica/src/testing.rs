//! What several tests need.

use fewstep_diffusion::random::{self, Use};
use fewstep_diffusion::{Dit, DitConfig, Guidance};

use crate::Conditions;

/// T evenly spaced steps of DDIM with guidance 1.5 on a small model of this depth.
pub(crate) fn conditions(steps: usize, depth: i64) -> Conditions {
    Conditions {
        model: Some("0123456789abcdef".into()),
        sampler: "ddim".into(),
        timesteps: (0..steps)
            .map(|row| (999 * row / (steps - 1).max(1)) as f64)
            .collect(),
        guidance: Guidance::scale(1.5),
        shape: DitConfig {
            depth,
            width: 24,
            heads: 3,
            classes: 10,
            ..DitConfig::named("S/2", 8, 4).unwrap()
        },
    }
}

/// A model with no weight left at zero, as a new one's are.
pub(crate) fn dit(shape: &DitConfig) -> Dit {
    let dit = Dit::new(shape, 0).unwrap();
    let _guard = tch::no_grad_guard();
    for (i, (_, mut t)) in dit.parameters().into_iter().enumerate() {
        let mut rng = random::generator(7, Use::Weights, &[i as u64]);
        t.copy_(&(random::normal(&mut rng, &t.size()).unwrap() * 0.2));
    }
    dit
}
