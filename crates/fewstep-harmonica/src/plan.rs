//! The one artefact of all static policies: which sub-module is computed and which is reused at which call, with what it was
//! made for and by whom.

mod difference;
mod file;

use crate::history::{Formula, MAX_ORDER, Weights};
use crate::policy::Decision;
use crate::{Conditions, Error, Forecast, Result};

pub use difference::{PlanDifference, PlanDifferences};
pub(crate) use file::{parse, read_with_conditions};

/// T × N cells, each computed or reused, and what a reused one is made of: the last output, or a forecast from the last ones. Row 0 is the last call of the model (ascending timesteps), row T−1 the first, which
/// computes everything. Column 2i is the attention of block i, 2i + 1 its MLP.
#[derive(Debug, Clone, PartialEq)]
pub struct CachePlan {
    policy: String,
    settings: toml::Table,
    created_by: String,
    made_for: Conditions,
    reused: Vec<bool>,
    /// Of every cell; 0 where it is computed.
    orders: Vec<u8>,
    formula: Formula,
    /// Fitted weights of the last outputs, of every cell; empty where there are none.
    weights: Vec<Option<Weights>>,
}

impl CachePlan {
    /// A plan that `reuses(row, column)`; `policy` and its settings are its provenance.
    ///
    /// # Errors
    /// The conditions make no sense, or the first executed row reuses something.
    pub fn new(
        policy: &str,
        settings: toml::Table,
        made_for: &Conditions,
        reuses: impl Fn(usize, usize) -> bool,
    ) -> Result<Self> {
        made_for.validate()?;
        let (steps, modules) = (made_for.steps(), made_for.modules());
        let plan = Self {
            policy: policy.into(),
            settings,
            created_by: concat!("fewstep-harmonica ", env!("CARGO_PKG_VERSION")).into(),
            made_for: made_for.clone(),
            reused: (0..steps * modules)
                .map(|cell| reuses(cell / modules, cell % modules))
                .collect(),
            orders: vec![0; steps * modules],
            formula: Formula::default(),
            weights: vec![],
        };
        match plan.row(steps - 1).iter().position(|&r| r) {
            Some(column) => Err(Error::option(
                "the first executed step",
                "every sub-module computed, because nothing is cached yet",
                format!("sub-module {column} reused"),
            )),
            None => Ok(plan),
        }
    }

    /// The same cells with forecasts: `order(row, column)` is asked of each reused cell. Fitted weights are dropped.
    ///
    /// # Errors
    /// An order above [`MAX_ORDER`].
    pub fn with_orders(
        mut self,
        formula: Formula,
        order: impl Fn(usize, usize) -> u8,
    ) -> Result<Self> {
        let n = self.modules();
        for (cell, reused) in self.reused.iter().enumerate() {
            self.orders[cell] = match reused {
                true => order(cell / n, cell % n),
                false => 0,
            };
        }
        if let Some(found) = self.orders.iter().find(|o| **o > MAX_ORDER) {
            return Err(Error::option("order", format!("0 to {MAX_ORDER}"), found));
        }
        self.formula = formula;
        self.weights.clear();
        Ok(self)
    }

    /// The same cells and orders with fitted weights in place of the formula's; the number of a cell's weights is its order + 1.
    ///
    /// # Errors
    /// As many weights as no order needs.
    pub fn with_weights(
        mut self,
        weights: impl Fn(usize, usize) -> Option<Vec<f32>>,
    ) -> Result<Self> {
        let n = self.modules();
        self.weights = vec![None; self.reused.len()];
        for cell in 0..self.reused.len() {
            let Some(found) = weights(cell / n, cell % n).filter(|_| self.reused[cell]) else {
                continue;
            };
            let Some(w) = Weights::new(&found) else {
                let expected = format!("1 to {} finite numbers for a cell", MAX_ORDER + 1);
                return Err(Error::option("weights", expected, format!("{found:?}")));
            };
            self.orders[cell] = (w.get().len() - 1) as u8;
            self.weights[cell] = Some(w);
        }
        if self.weights.iter().all(Option::is_none) {
            self.weights.clear();
        }
        Ok(self)
    }

    /// The same plan with another name and settings.
    #[must_use]
    pub fn named(mut self, policy: &str, settings: toml::Table) -> Self {
        self.policy = policy.into();
        self.settings = settings;
        self
    }

    /// Name of the policy that made it, as in tables and JSON.
    pub fn policy(&self) -> &str {
        &self.policy
    }

    /// Settings of that policy.
    pub fn settings(&self) -> &toml::Table {
        &self.settings
    }

    /// The program that made it, with its version.
    pub fn created_by(&self) -> &str {
        &self.created_by
    }

    /// What it was made for.
    pub fn made_for(&self) -> &Conditions {
        &self.made_for
    }

    /// T.
    pub fn steps(&self) -> usize {
        self.made_for.steps()
    }

    /// N.
    pub fn modules(&self) -> usize {
        self.made_for.modules()
    }

    /// Whether a cell is reused; cells outside the plan are not.
    pub fn reuses(&self, row: usize, column: usize) -> bool {
        let n = self.modules();
        column < n && self.reused.get(row * n + column).is_some_and(|&r| r)
    }

    /// The cells of a row below T: true is reused.
    pub fn row(&self, row: usize) -> &[bool] {
        let n = self.modules();
        &self.reused[row * n..][..n]
    }

    /// The order of a cell's forecast; 0 for plain reuse, and for cells that are computed.
    pub fn order(&self, row: usize, column: usize) -> u8 {
        let n = self.modules();
        let order = self.orders.get(row * n + column).copied();
        order.filter(|_| column < n).unwrap_or(0)
    }

    /// By which formula orders are meant.
    pub fn formula(&self) -> Formula {
        self.formula
    }

    /// The fitted weights of a cell, newest output first.
    pub fn weights(&self, row: usize, column: usize) -> Option<&[f32]> {
        let n = self.modules();
        let found = self.weights.get(row * n + column)?;
        found.as_ref().filter(|_| column < n).map(Weights::get)
    }

    /// What happens at a cell; outside the plan everything is computed.
    pub fn decision(&self, row: usize, column: usize) -> Decision {
        if !self.reuses(row, column) {
            return Decision::Compute;
        }
        let cell = row * self.modules() + column;
        Decision::Reuse(match self.weights.get(cell) {
            Some(Some(w)) => Forecast::Weights(*w),
            _ => Forecast::Order(self.orders[cell], self.formula),
        })
    }

    /// How many outputs of a sub-module must be kept: one more than the highest order of its cells.
    pub fn keeps(&self, column: usize) -> usize {
        let orders = (0..self.steps()).map(|row| usize::from(self.order(row, column)));
        orders.max().unwrap_or(0) + 1
    }

    /// Reused cells.
    pub fn reused(&self) -> usize {
        self.reused.iter().filter(|&&r| r).count()
    }

    /// Share of all T·N cells that are reused, from 0 to below 1: the paper's CUR, with the first step in the denominator.
    pub fn utilisation(&self) -> f64 {
        self.reused() as f64 / self.reused.len() as f64
    }

    /// Share of all multiply-accumulate operations of T calls that are skipped, those that are never skipped in the
    /// denominator; calls without the unconditional half count half.
    pub fn mac_saving(&self) -> f64 {
        let n = self.modules();
        let reused = self.reused.iter().enumerate().filter(|(_, r)| **r);
        // Where guidance begins the cache has too little, and everything is computed whatever the plan says.
        let cells = reused.filter(|(i, _)| !self.made_for.must_compute(i / n));
        let skipped: u64 = cells.map(|(i, _)| self.made_for.macs(i / n, i % n)).sum();
        skipped as f64 / self.made_for.total_macs() as f64
    }

    /// How many uncached calls cost as much.
    pub fn full_forwards(&self) -> f64 {
        self.steps() as f64 * (1. - self.mac_saving())
    }

    /// Whether it may be used in `job`; `what` names it in the error.
    ///
    /// # Errors
    /// Names everything that differs.
    pub fn check_fits(&self, job: &Conditions, what: &str) -> Result<()> {
        self.made_for.check_fits(job, what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::conditions;

    /// The first `reused` cells reused.
    pub(super) fn plan(steps: usize, depth: i64, reused: usize) -> CachePlan {
        let made_for = conditions(steps, depth);
        let n = made_for.modules();
        CachePlan::new("table", toml::Table::new(), &made_for, |row, column| {
            row * n + column < reused
        })
        .unwrap()
    }

    #[test]
    fn utilisation_counts_as_the_paper_does() {
        let rows = [
            (20, 420, 37.50),
            (10, 128, 22.86),
            (50, 663, 23.68),
            (20, 291, 25.98),
            (20, 294, 26.25),
            (10, 107, 19.11),
            (50, 655, 23.39),
        ];
        for (steps, reused, percent) in rows {
            let plan = plan(steps, 28, reused);
            assert_eq!(plan.reused(), reused);
            assert!(
                (100. * plan.utilisation() - percent).abs() < 0.005,
                "{reused}"
            );
        }
    }

    #[test]
    fn savings_count_what_is_never_skipped_and_full_forwards_follow() {
        let made_for = conditions(4, 2);
        let macs = made_for.shape.macs();
        let settings = toml::Table::new();
        let plan = CachePlan::new("table", settings, &made_for, |row, c| {
            row == 1 && c % 2 == 1
        })
        .unwrap();
        let expected = 2. * macs.mlp as f64 / (4. * macs.total() as f64);
        assert!((plan.mac_saving() - expected).abs() < 1e-12);
        assert!((plan.full_forwards() - 4. * (1. - expected)).abs() < 1e-12);
        let all = CachePlan::new("table", toml::Table::new(), &made_for, |row, _| row < 3).unwrap();
        assert!(all.mac_saving() < 0.75, "some work is never skipped");
    }

    #[test]
    fn a_plan_that_reuses_in_the_first_executed_step_is_refused() {
        let e = CachePlan::new("table", toml::Table::new(), &conditions(3, 1), |row, c| {
            (row, c) == (2, 1)
        });
        assert_eq!(
            e.unwrap_err().to_string(),
            "the first executed step: expected every sub-module computed, because nothing is cached yet, \
             found sub-module 1 reused"
        );
    }
}
