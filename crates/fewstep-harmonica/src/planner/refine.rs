//! Weights of forecasts, by the gradient of x₀'s error.

use super::trial::{self, finite};
use super::{Planner, sensitivity};
use crate::{CachePlan, MAX_ORDER, Result};

/// The step of a weight in the first rounds of refining.
const REFINE_RATE: f64 = 0.02;

impl Planner<'_> {
    /// The weights of the best plan, refined by the gradient of x₀'s error along its own trajectories. A fit makes each feature's error the
    /// least; what x₀ makes of errors that lean the same way it does not see.
    pub(super) fn refine(&mut self) -> Result<()> {
        const STAGE: &str = "refining forecasts";
        if self.state.has(STAGE) || self.options.refine_rounds == 0 {
            return Ok(());
        }
        let Some(start) = self.own().first().and_then(|t| t.plan.clone()) else {
            return self.done(STAGE);
        };
        let start = explicit(start)?;
        let (steps, modules) = (start.steps(), start.modules());
        let mut best: Option<(f64, CachePlan)> = None;
        let mut plan = start;
        // Adam, for the scales of gradients differ between cells by orders of magnitude.
        let mut moments = vec![[[0f64; 2]; MAX_ORDER as usize + 1]; steps * modules];
        for round in 0..=self.options.refine_rounds {
            let (error, gradients) = sensitivity::gradients(self.setting, &mut self.trials, &plan)?;
            if best.as_ref().is_none_or(|(least, _)| error < *least) {
                best = Some((finite(error, "refined forecasts")?, plan.clone()));
            }
            self.tell(STAGE)?;
            let time = i32::try_from(round).unwrap_or(i32::MAX).saturating_add(1);
            // Falls to nothing, so that the end is calm.
            let left = 1. - f64::from(round) / f64::from(self.options.refine_rounds + 1);
            let mut steps_of = vec![Vec::new(); steps * modules];
            for (cell, moments) in moments.iter_mut().enumerate() {
                let gradient = &gradients[cell / modules][cell % modules];
                for (i, (g, [m, v])) in gradient.iter().zip(moments).enumerate() {
                    *m = 0.9 * *m + 0.1 * g;
                    *v = 0.99 * *v + 0.01 * g * g;
                    let (m, v) = (
                        *m / (1. - 0.9f64.powi(time)),
                        *v / (1. - 0.99f64.powi(time)),
                    );
                    // The newest output itself is far larger than its differences.
                    let rate = if i == 0 { 0.1 } else { 1. } * REFINE_RATE * left;
                    steps_of[cell].push(-rate * m / (v.sqrt() + f64::MIN_POSITIVE));
                }
            }
            plan = plan.clone().with_weights(|row, column| {
                let weights = plan.weights(row, column)?;
                let step = &steps_of[row * modules + column];
                let mut new: Vec<f64> = weights.iter().map(|w| f64::from(*w)).collect();
                for (i, by) in step.iter().enumerate() {
                    for (w, made) in new.iter_mut().zip(trial::difference_weights(i)) {
                        *w += by * made;
                    }
                }
                Some(new.iter().map(|w| *w as f32).collect())
            })?;
        }
        if let Some((error, plan)) = best {
            let label = format!("{} rounds", self.options.refine_rounds);
            self.note("refined", label, false, &plan, error)?;
        }
        self.done(STAGE)
    }
}

/// The same plan with its forecasts as weights.
pub(super) fn explicit(plan: CachePlan) -> Result<CachePlan> {
    let timesteps = plan.made_for().timesteps.clone();
    let steps = plan.steps();
    plan.clone().with_weights(|row, column| {
        let computed = (row + 1..steps)
            .filter(|&r| !plan.reuses(r, column) || plan.made_for().must_compute(r));
        let order = usize::from(plan.order(row, column));
        let times: Vec<f64> = computed.take(order + 1).map(|r| timesteps[r]).collect();
        match plan.weights(row, column) {
            Some(weights) => Some(weights.to_vec()),
            None => Some(
                crate::weights(plan.formula(), &times, timesteps[row])
                    .iter()
                    .map(|w| *w as f32)
                    .collect(),
            ),
        }
    })
}
