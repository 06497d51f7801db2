//! The search over whole-step patterns, and the fit of a plan's forecasts.

use super::pattern::{self, Pattern};
use super::trial::finite;
use super::{OF_A_FAMILY, Planner, SAFE_ORDER, TOLERANCE};
use crate::{CachePlan, Formula, Result};

impl Planner<'_> {
    /// Whole-step patterns just below and just above the target, with fitted forecasts.
    pub(super) fn patterns(&mut self) -> Result<()> {
        let conditions = self.setting.conditions;
        let steps = conditions.steps();
        let saving = |reused: usize| -> Result<f64> {
            let pattern = (0..steps).map(|k| k == 0 || k > reused).collect();
            Ok(pattern::plan(conditions, &pattern)?.mac_saving())
        };
        let mut above = 1;
        while above + 1 < steps && saving(above)? < self.target() {
            above += 1;
        }
        // Just below the target cells are added, just above it taken away.
        let near = saving(above)? <= self.target() + TOLERANCE;
        for reused in [above - 1, above] {
            if near && reused < above {
                continue;
            }
            let stage = format!("patterns of {reused} reused steps");
            if reused == 0 || self.state.has(&stage) {
                continue;
            }
            let mut tried: Vec<(f64, Pattern)> = Vec::new();
            let windows = pattern::windows(steps, reused);
            let every = windows
                .len()
                .div_ceil(self.options.search_trials.max(1) as usize);
            for pattern in windows.into_iter().step_by(every.max(1)) {
                let error = self.screened(&pattern)?;
                tried.push((error, pattern));
                self.tell(&stage)?;
            }
            tried.sort_by(|a, b| a.0.total_cmp(&b.0));
            let mut left = self.options.search_trials;
            // From the best, its neighbours, as long as one of them is better.
            let Some((mut error, mut best)) = tried.first().cloned() else {
                continue;
            };
            let mut seen = tried;
            'search: loop {
                for other in pattern::neighbours(&best) {
                    if left == 0 {
                        break 'search;
                    }
                    if seen.iter().any(|(_, p)| *p == other) {
                        continue;
                    }
                    left -= 1;
                    let found = self.screened(&other)?;
                    seen.push((found, other.clone()));
                    self.tell(&stage)?;
                    if found < error {
                        (error, best) = (found, other);
                        continue 'search;
                    }
                }
                break;
            }
            seen.sort_by(|a, b| a.0.total_cmp(&b.0));
            let mut fitted = Vec::new();
            for (_, pattern) in seen.iter().take(OF_A_FAMILY as usize) {
                fitted.push(self.fit(&pattern::plan(conditions, pattern)?)?);
                self.tell(&stage)?;
            }
            fitted.sort_by(|a, b| a.1.total_cmp(&b.1));
            for (i, (plan, error)) in fitted.iter().enumerate() {
                let label = format!("{reused} reused steps, {}", i + 1);
                self.note("patterns", label, false, plan, *error)?;
            }
            self.done(&stage)?;
        }
        Ok(())
    }

    fn screened(&mut self, pattern: &Pattern) -> Result<f64> {
        let plan = pattern::plan(self.setting.conditions, pattern)?;
        // Calls without guidance are cheaper: a pattern of those saves too little.
        let call = 1. / self.setting.conditions.steps() as f64;
        if plan.mac_saving() < self.target() - call {
            return Ok(f64::INFINITY);
        }
        let order = self.options.max_order;
        let (_, mut least) = self.screen.fit(&plan, order)?;
        for (formula, order) in [
            (Formula::Taylor, order),
            (Formula::Polynomial, order.min(SAFE_ORDER)),
        ] {
            let plan = plan.clone().with_orders(formula, |_, _| order)?;
            least = least.min(self.screen.error(&plan)?);
        }
        finite(least, "a pattern")
    }

    pub(super) fn fit(&mut self, plan: &CachePlan) -> Result<(CachePlan, f64)> {
        let (mut best, mut least) = self.trials.fit(plan, self.options.max_order)?;
        let orders = 0..=self.options.max_order;
        let formulas = orders.flat_map(|order| {
            // At orders 0 and 1 both are the same.
            let polynomial = (order > 1).then_some((Formula::Polynomial, order));
            [(Formula::Taylor, order)].into_iter().chain(polynomial)
        });
        for (formula, order) in formulas {
            let plan = plan.clone().with_orders(formula, |_, _| order)?;
            let error = self.trials.error(&plan)?;
            if error < least {
                (best, least) = (plan, error);
            }
        }
        Ok((best, finite(least, "a plan")?))
    }
}
