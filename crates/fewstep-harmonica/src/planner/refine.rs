//! Weights of forecasts, by the gradient of x₀'s error.

use super::trial::{self, finite};
use super::{Planner, sensitivity};
use crate::{CachePlan, MAX_ORDER, Result};

const REFINED: &str = "refined";
const REFINED_KNOWN: &str = "refined from a known policy";
/// The step of a weight in the first rounds of refining.
const REFINE_RATE: f64 = 0.02;

impl Planner<'_> {
    /// The weights of the best plans, the planner's own and a known one where that is better, refined by the gradient of x₀'s error along
    /// their own trajectories. A fit makes each feature's error the least; what x₀ makes of errors that lean the same way it does not see.
    pub(super) fn refine(&mut self) -> Result<()> {
        if self.options.refine_rounds == 0 {
            return Ok(());
        }
        let start = |known: bool| {
            let all = self.state.tried.iter();
            all.filter(|t| t.known == known && self.right(t) && !t.family.starts_with(REFINED))
                .min_by(|a, b| a.error.total_cmp(&b.error))
                .cloned()
        };
        let (own, known) = (start(false), start(true));
        let known = known.filter(|k| own.as_ref().is_none_or(|o| k.error < o.error));
        for (stage, start) in [(REFINED, own), (REFINED_KNOWN, known)] {
            if self.state.has(stage) {
                continue;
            }
            if let Some(start) = start.and_then(|t| t.plan) {
                self.refine_from(stage, explicit(start)?)?;
            }
            self.done(stage)?;
        }
        Ok(())
    }

    fn refine_from(&mut self, stage: &str, start: CachePlan) -> Result<()> {
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
            self.tell(stage)?;
            // A little of it may be better on other noise than all of it.
            if [4, 2]
                .iter()
                .any(|n| round == self.options.refine_rounds / n)
            {
                self.snapshot(stage, round, best.as_ref())?;
            }
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
        self.snapshot(stage, self.options.refine_rounds, best.as_ref())
    }

    fn snapshot(&mut self, stage: &str, round: u32, best: Option<&(f64, CachePlan)>) -> Result<()> {
        let Some((error, plan)) = best else {
            return Ok(());
        };
        self.note(stage, format!("{round} rounds"), false, plan, *error)
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
