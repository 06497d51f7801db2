//! Known policies: the plans that everything else has to beat, and start from.

use std::collections::BTreeMap;

use super::trial::finite;
use super::{OF_A_FAMILY, Planner, TOLERANCE, Tried};
use crate::{CachePlan, Conditions, Formula, MAX_ORDER, Result, policy};

impl Planner<'_> {
    /// Every known policy that saves enough and not much more.
    pub(super) fn known(&mut self) -> Result<()> {
        const STAGE: &str = "known policies";
        if self.state.has(STAGE) {
            return Ok(());
        }
        let conditions = self.setting.conditions;
        let steps = conditions.steps();
        let target = self.target();
        let enough = |p: &CachePlan| p.mac_saving() >= target - TOLERANCE;
        let mut all: Vec<(String, String, CachePlan)> = Vec::new();
        for interval in 2..=steps {
            let plan = policy::fora(conditions, interval)?;
            if enough(&plan) {
                all.push((policy::FORA.into(), format!("every {interval}"), plan));
                break;
            }
        }
        for warm_up in [1, 3].into_iter().filter(|w| *w < steps) {
            for interval in 2..=steps {
                let plan = policy::taylorseer(conditions, interval, 0, warm_up)?;
                if !enough(&plan) {
                    continue;
                }
                for order in 1..=MAX_ORDER {
                    let plan = policy::taylorseer(conditions, interval, order, warm_up)?;
                    let label = format!("every {interval}, order {order}, first {warm_up}");
                    all.push((policy::TAYLORSEER.into(), label, plan));
                }
                break;
            }
        }
        // The smallest window of each interval that saves enough, at every place.
        for interval in 2..=steps.min(6) {
            let saves =
                |first: usize, last: usize| policy::interval(conditions, first, last, interval);
            for first in 0..steps {
                for last in first..steps {
                    let plan = saves(first, last)?;
                    if !enough(&plan) {
                        continue;
                    }
                    for order in 0..=2 {
                        let plan = plan
                            .clone()
                            .with_orders(Formula::Polynomial, |_, _| order)?;
                        let label = format!("every {interval} in {first}-{last}, order {order}");
                        let family = if order == 0 {
                            policy::INTERVAL.into()
                        } else {
                            format!("{} + forecast", policy::INTERVAL)
                        };
                        all.push((family, label, plan));
                    }
                    break;
                }
            }
        }
        if let Ok(plan) = policy::random_at_mac_saving(conditions, target, self.options.seed) {
            all.push((policy::RANDOM.into(), String::new(), plan));
        }
        let given = self
            .rivals
            .plans
            .iter()
            .filter(|(_, _, p)| enough(p))
            .cloned();
        all.extend(given);
        let mut screened: Vec<(f64, usize)> = Vec::new();
        for (i, (_, _, plan)) in all.iter().enumerate() {
            screened.push((self.screen.error(plan)?, i));
            self.tell(STAGE)?;
        }
        screened.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut of_family: BTreeMap<&str, u32> = BTreeMap::new();
        for (_, i) in screened {
            let (family, label, plan) = &all[i];
            let seen = of_family.entry(family).or_default();
            *seen += 1;
            if *seen <= OF_A_FAMILY {
                let error = self.trials.error(plan)?;
                self.note(family, label.clone(), true, plan, error)?;
                self.tell(STAGE)?;
            }
        }
        self.fewer_steps()?;
        self.done(STAGE)
    }

    /// The most steps that save enough.
    fn fewer_steps(&mut self) -> Result<()> {
        let conditions = self.setting.conditions;
        for steps in (1..conditions.steps()).rev() {
            let Some(sampler) = (self.rivals.fewer_steps)(steps) else {
                continue;
            };
            let fewer = Conditions {
                timesteps: sampler.timesteps().iter().rev().copied().collect(),
                ..conditions.clone()
            };
            let saving = 1. - fewer.total_macs() as f64 / conditions.total_macs() as f64;
            if saving < self.target() - TOLERANCE {
                continue;
            }
            let error = self.trials.error_of(sampler.as_ref())?;
            self.state.tried.push(Tried {
                family: policy::FEWER_STEPS.into(),
                label: format!("{steps}"),
                mac_saving: saving,
                error: finite(error, policy::FEWER_STEPS)?,
                unseen: vec![],
                known: true,
                plan: None,
                fewer_steps: Some(steps),
            });
            break;
        }
        Ok(())
    }
}
