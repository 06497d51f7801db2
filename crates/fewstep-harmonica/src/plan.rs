//! The one artefact of all static policies: which sub-module is computed and which is reused at which call, with what it was
//! made for and by whom.

mod difference;
mod file;

use crate::{Conditions, Error, Result};

pub use difference::{PlanDifference, PlanDifferences};
pub(crate) use file::read_with_conditions;

/// T × N cells, each computed or reused. Row 0 is the last call of the model (ascending timesteps), row T−1 the first, which
/// computes everything. Column 2i is the attention of block i, 2i + 1 its MLP.
#[derive(Debug, Clone, PartialEq)]
pub struct CachePlan {
    policy: String,
    settings: toml::Table,
    created_by: String,
    made_for: Conditions,
    reused: Vec<bool>,
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
        let cells = self.reused.iter().enumerate().filter(|(_, r)| **r);
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
