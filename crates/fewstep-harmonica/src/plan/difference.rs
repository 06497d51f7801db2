use std::fmt;

use fewstep_diffusion::SubModule;
use fewstep_diffusion::dit::SubModuleKind;

use super::CachePlan;
use crate::{Error, Result};

/// A cell that one of two plans reuses and the other computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanDifference {
    /// Row, 0 for the last call.
    pub row: usize,
    /// The sub-module.
    pub module: SubModule,
    /// Whether it is the first plan that reuses it.
    pub first_reuses: bool,
}

/// How two plans differ. Displayed as a line that counts and one line for each step with differences.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanDifferences {
    /// The cells, in the order of execution.
    pub cells: Vec<PlanDifference>,
    /// Cells that both reuse, with other forecasts.
    pub forecasts: usize,
    timesteps: Vec<f64>,
    of: usize,
}

impl CachePlan {
    /// The cells that differ.
    ///
    /// # Errors
    /// The other plan has another number of steps or sub-modules.
    pub fn diff(&self, other: &Self) -> Result<PlanDifferences> {
        let shape = |p: &Self| format!("{} steps × {} sub-modules", p.steps(), p.modules());
        if shape(self) != shape(other) {
            return Err(Error::option("the second plan", shape(self), shape(other)));
        }
        let mut cells = Vec::new();
        for row in (0..self.steps()).rev() {
            let pairs = self.row(row).iter().zip(other.row(row)).enumerate();
            for (column, (&first, _)) in pairs.filter(|(_, (a, b))| a != b) {
                cells.push(PlanDifference {
                    row,
                    module: SubModule::at(column),
                    first_reuses: first,
                });
            }
        }
        let all = (0..self.steps()).flat_map(|row| (0..self.modules()).map(move |c| (row, c)));
        let forecasts = all
            .filter(|&(row, c)| self.reuses(row, c) && other.reuses(row, c))
            .filter(|&(row, c)| self.decision(row, c) != other.decision(row, c))
            .count();
        Ok(PlanDifferences {
            cells,
            forecasts,
            timesteps: self.made_for().timesteps.clone(),
            of: self.steps() * self.modules(),
        })
    }
}

impl fmt::Display for PlanDifferences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (cells, of, steps) = (&self.cells, self.of, self.timesteps.len());
        if self.forecasts > 0 {
            let n = self.forecasts;
            writeln!(
                f,
                "{n} of {of} cells are reused by both, with other forecasts."
            )?;
        }
        if cells.is_empty() {
            return match self.forecasts {
                0 => write!(f, "The plans agree in all {of} cells."),
                _ => write!(f, "The plans compute the same cells."),
            };
        }
        let first = cells.iter().filter(|c| c.first_reuses).count();
        let second = cells.len() - first;
        write!(
            f,
            "{} of {of} cells differ: {first} reused by the first plan only, {second} by the second only.",
            cells.len()
        )?;
        for step in cells.chunk_by(|a, b| a.row == b.row) {
            let row = step[0].row;
            write!(
                f,
                "\nstep {} of {steps} (t = {})",
                steps - row,
                self.timesteps[row]
            )?;
            let mut separator = ": ";
            for (who, reuses) in [("first", true), ("second", false)] {
                let names: Vec<String> = step
                    .iter()
                    .filter(|c| c.first_reuses == reuses)
                    .map(|c| match c.module.kind {
                        SubModuleKind::Attention => format!("attention {}", c.module.block),
                        SubModuleKind::Mlp => format!("MLP {}", c.module.block),
                    })
                    .collect();
                if !names.is_empty() {
                    write!(f, "{separator}the {who} reuses {}", names.join(", "))?;
                    separator = "; ";
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::plan;
    use crate::{CachePlan, testing::conditions};

    #[test]
    fn a_difference_reads_well() {
        let make = |cells: &'static [(usize, usize)]| {
            CachePlan::new(
                "table",
                toml::Table::new(),
                &conditions(4, 2),
                |row, column| cells.contains(&(row, column)),
            )
            .unwrap()
        };
        let a = make(&[(2, 1), (2, 2), (0, 0)]);
        let b = make(&[(2, 3), (0, 0), (1, 0)]);
        assert_eq!(
            a.diff(&b).unwrap().to_string(),
            "4 of 16 cells differ: 2 reused by the first plan only, 2 by the second only.\n\
             step 2 of 4 (t = 666): the first reuses MLP 0, attention 1; the second reuses MLP 1\n\
             step 3 of 4 (t = 333): the second reuses attention 0"
        );
        assert_eq!(
            a.diff(&a).unwrap().to_string(),
            "The plans agree in all 16 cells."
        );
        assert_eq!(
            a.diff(&plan(5, 2, 0)).unwrap_err().to_string(),
            "the second plan: expected 4 steps × 4 sub-modules, found 5 steps × 4 sub-modules"
        );
    }
}
