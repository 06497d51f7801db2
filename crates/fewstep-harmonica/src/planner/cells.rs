//! Single cells: which are computed and which reused, by the sensitivity of x₀.

use super::{PLANNER, Planner, sensitivity};
use crate::{CachePlan, Conditions, Result};

impl Planner<'_> {
    /// Single cells, by the sensitivity of x₀: first to the target, then to and fro.
    pub(super) fn cells(&mut self) -> Result<()> {
        let starts: Vec<CachePlan> = self
            .state
            .tried
            .iter()
            .filter(|t| t.family == "patterns" && t.label.ends_with(", 1"))
            .filter_map(|t| t.plan.clone())
            .collect();
        for (i, start) in starts.into_iter().enumerate() {
            let stage = format!("cells from pattern {}", i + 1);
            if self.state.has(&stage) {
                continue;
            }
            let changes = self.changes(&start)?;
            let plan = self.to_target(&start, &changes)?;
            let (plan, error) = self.fit(&plan)?;
            self.note("cells", format!("pattern {}", i + 1), false, &plan, error)?;
            self.tell(&stage)?;
            self.done(&stage)?;
        }
        const STAGE: &str = "moving cells";
        if self.state.has(STAGE) {
            return Ok(());
        }
        let Some(best) = self.best() else {
            return self.done(STAGE);
        };
        let Some(mut plan) = best.plan.clone() else {
            return self.done(STAGE);
        };
        let mut error = best.error;
        let mut size = (plan.steps() * plan.modules() / 16).max(1);
        let mut changes = self.changes(&plan)?;
        for _ in 0..self.options.cell_rounds {
            let (moved, promised) = self.moved(&plan, &changes, size)?;
            let enough = moved.mac_saving() >= self.target() - 1e-9;
            let better = match promised < 0. && enough {
                true => Some(self.fit(&moved)?).filter(|(_, found)| *found < error),
                false => None,
            };
            self.tell(STAGE)?;
            match better {
                Some((fitted, found)) => {
                    (plan, error) = (fitted, found);
                    self.note("cells", format!("{size} moved"), false, &plan, error)?;
                    changes = self.changes(&plan)?;
                }
                None if size == 1 => break,
                None => size = size.div_ceil(2).min(size - 1),
            }
        }
        self.done(STAGE)
    }

    fn changes(&mut self, plan: &CachePlan) -> Result<sensitivity::Changes> {
        let (order, probes) = (self.options.max_order.min(1), self.options.probes);
        sensitivity::changes(self.setting, &mut self.trials, plan, order, probes)
    }

    /// Cells that may be flipped: those that are reused or not, best first by change for an operation.
    fn flips(
        &self,
        plan: &CachePlan,
        changes: &sensitivity::Changes,
        reused: bool,
    ) -> Vec<(usize, usize)> {
        let made_for = plan.made_for();
        let mut cells: Vec<(usize, usize)> = (0..plan.steps() - 1)
            .flat_map(|row| (0..plan.modules()).map(move |c| (row, c)))
            .filter(|&(row, c)| plan.reuses(row, c) == reused && !made_for.must_compute(row))
            .collect();
        let rate = |&(row, c): &(usize, usize)| changes[row][c] / made_for.macs(row, c) as f64;
        cells.sort_by(|a, b| rate(a).total_cmp(&rate(b)));
        cells
    }

    /// The plan with just so many cells flipped that it saves the target.
    fn to_target(&self, plan: &CachePlan, changes: &sensitivity::Changes) -> Result<CachePlan> {
        let made_for = plan.made_for();
        let total = made_for.total_macs() as f64;
        let mut cells: Vec<Vec<bool>> = (0..plan.steps()).map(|r| plan.row(r).to_vec()).collect();
        let mut saving = plan.mac_saving();
        let target = self.target();
        for (row, c) in self.flips(plan, changes, false) {
            if saving >= target {
                break;
            }
            cells[row][c] = true;
            saving += made_for.macs(row, c) as f64 / total;
        }
        // What is saved too much is computed where that helps most.
        for (row, c) in self.flips(plan, changes, true) {
            let less = saving - made_for.macs(row, c) as f64 / total;
            if less >= target {
                cells[row][c] = false;
                saving = less;
            }
        }
        of_cells(made_for, &cells)
    }

    /// The plan with `size` reused cells computed and as much work reused elsewhere, and the change that is promised.
    fn moved(
        &self,
        plan: &CachePlan,
        changes: &sensitivity::Changes,
        size: usize,
    ) -> Result<(CachePlan, f64)> {
        let made_for = plan.made_for();
        let mut cells: Vec<Vec<bool>> = (0..plan.steps()).map(|r| plan.row(r).to_vec()).collect();
        let mut promised = 0.;
        for (row, c) in self.flips(plan, changes, true).into_iter().take(size) {
            cells[row][c] = false;
            promised += changes[row][c];
        }
        let opened = of_cells(made_for, &cells)?;
        let mut saving = opened.mac_saving();
        let total = made_for.total_macs() as f64;
        for (row, c) in self.flips(plan, changes, false) {
            if saving >= self.target() {
                break;
            }
            cells[row][c] = true;
            promised += changes[row][c];
            saving += made_for.macs(row, c) as f64 / total;
        }
        let plan = of_cells(made_for, &cells)?;
        Ok((plan, promised))
    }
}

/// The plan that reuses these cells, `[T][N]`.
fn of_cells(made_for: &Conditions, cells: &[Vec<bool>]) -> Result<CachePlan> {
    let settings = toml::Table::new();
    CachePlan::new(PLANNER, settings, made_for, |row, column| {
        cells[row][column]
    })
}
