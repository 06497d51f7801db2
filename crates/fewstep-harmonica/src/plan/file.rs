//! Plans as TOML: written to be read and edited by people, replaced as a whole or not at all, with nothing of the clock in it.

use std::fmt::Write;
use std::path::Path;

use fewstep_torch::checkpoint::write_atomically;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::CachePlan;
use crate::history::{Formula, MAX_ORDER};
use crate::{Conditions, Error, Result};

/// What a cell can be.
const CELLS: [char; 5] = ['C', '.', '1', '2', '3'];

const HEADER: &str = "\
# A cache plan of Fewstep. A line of `steps` is a call of the model, in the order of execution: the first line is the first
# call, on pure noise. C is computed, a dot reuses the last computed output, 1 to 3 is a forecast of that order from the last
# ones. A pair is a block, its attention before its MLP. Spaces do not count.
";

/// What can stand in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    policy: Option<String>,
    #[serde(default)]
    created_by: Option<String>,
    steps: Vec<Spanned<String>>,
    #[serde(default)]
    forecast: Formula,
    #[serde(default)]
    weights: Vec<Vec<Vec<f32>>>,
    #[serde(default)]
    settings: toml::Table,
    made_for: Option<Conditions>,
}

/// What stands below the steps.
#[derive(Serialize)]
struct Tables<'a> {
    #[serde(skip_serializing_if = "toml::Table::is_empty")]
    settings: &'a toml::Table,
    made_for: &'a Conditions,
}

impl CachePlan {
    /// The text of its file.
    ///
    /// # Errors
    /// A setting that TOML can't hold.
    pub fn to_toml(&self) -> Result<String> {
        let not_toml = |e: toml::ser::Error| Error::Invalid {
            key: "settings".into(),
            reason: format!("expected values that TOML can hold, found others ({e})"),
        };
        let quoted = |s: &str| toml::Value::from(s).to_string();
        let mut text = format!(
            "{HEADER}policy = {}\ncreated_by = {}\nsteps = [\n",
            quoted(&self.policy),
            quoted(&self.created_by)
        );
        for row in (0..self.steps()).rev() {
            let cells: Vec<char> = (0..self.modules())
                .map(|column| self.letter(row, column))
                .collect();
            let blocks: Vec<String> = cells.chunks(2).map(|b| b.iter().collect()).collect();
            // Writing to a string can't fail.
            let _ = writeln!(
                text,
                "    \"{}\", # t = {}",
                blocks.join(" "),
                self.made_for.timesteps[row]
            );
        }
        let tables = Tables {
            settings: &self.settings,
            made_for: &self.made_for,
        };
        text += "]\n";
        if self.formula == Formula::Taylor {
            text += "forecast = \"taylor\"\n";
        }
        if !self.weights.is_empty() {
            text += "# Of the last outputs, newest first, fitted: a line for each step, a list for each sub-module.\nweights = [\n";
            for row in (0..self.steps()).rev() {
                let cells: Vec<&[f32]> = (0..self.modules())
                    .map(|column| self.weights(row, column).unwrap_or_default())
                    .collect();
                let _ = match cells.iter().all(|c| c.is_empty()) {
                    true => writeln!(text, "    [],"),
                    false => writeln!(text, "    {cells:?},"),
                };
            }
            text += "]\n";
        }
        text += "\n";
        text += &toml::to_string(&tables).map_err(not_toml)?;
        Ok(text)
    }

    /// A cell in a file or on a terminal: `C` computed, a dot reused, a digit a forecast of that order.
    pub fn letter(&self, row: usize, column: usize) -> char {
        match (self.reuses(row, column), self.order(row, column)) {
            (false, _) => 'C',
            (true, 0) => '.',
            (true, order) => char::from(b'0' + order),
        }
    }

    /// Writes the file.
    ///
    /// # Errors
    /// It can't be written; what stood there before stays.
    pub fn save(&self, path: &Path) -> Result<()> {
        Ok(write_atomically(path, self.to_toml()?.as_bytes())?)
    }

    /// Reads what [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// No such file, or it is no plan: the line or key, what was expected and what was found.
    pub fn load(path: &Path) -> Result<Self> {
        read_with_conditions(path, None)
    }
}

/// Reads a plan. A file without conditions gets `default`'s, and without a policy it is a table.
pub(crate) fn read_with_conditions(path: &Path, default: Option<&Conditions>) -> Result<CachePlan> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::file(path, e.to_string()))?;
    parse(&text, path, default)
}

/// The same from the text of the file.
pub(crate) fn parse(text: &str, path: &Path, default: Option<&Conditions>) -> Result<CachePlan> {
    let line_of = |offset: usize| 1 + text.bytes().take(offset).filter(|&b| b == b'\n').count();
    let file: File = toml::from_str(text).map_err(|e| {
        let line = line_of(e.span().map_or(0, |s| s.start));
        let message = e.message().trim().replace('\n', ", ");
        Error::file(
            path,
            format!("line {line}: expected a cache plan, found {message}"),
        )
    })?;
    let made_for = file.made_for.as_ref().or(default).ok_or_else(|| {
        Error::file(
            path,
            "expected a table `made_for` that says what the plan was made for, found none",
        )
    })?;
    let in_file = |e: Error| Error::file(path, e.to_string());
    made_for.validate().map_err(in_file)?;
    let (steps, modules) = (made_for.steps(), made_for.modules());
    if file.steps.len() != steps {
        let found = file.steps.len();
        let reason = format!("steps: expected {steps} lines, one for each timestep, found {found}");
        return Err(Error::file(path, reason));
    }
    let mut rows = Vec::with_capacity(steps);
    for step in file.steps.iter().rev() {
        let line = line_of(step.span().start);
        let cells: Vec<char> = step
            .get_ref()
            .chars()
            .filter(|c| !c.is_whitespace())
            .collect();
        if let Some(c) = cells.iter().find(|c| !CELLS.contains(c)) {
            let reason = format!(
                "line {line}: expected C, a dot or 1 to {MAX_ORDER} for each sub-module, found `{c}`"
            );
            return Err(Error::file(path, reason));
        }
        if cells.len() != modules {
            let found = cells.len();
            let reason = format!("line {line}: expected {modules} sub-modules, found {found}");
            return Err(Error::file(path, reason));
        }
        rows.push(cells);
    }
    let policy = file.policy.as_deref().unwrap_or(crate::policy::TABLE);
    let mut plan = CachePlan::new(policy, file.settings, made_for, |row, column| {
        rows[row][column] != 'C'
    })
    .and_then(|plan| {
        plan.with_orders(file.forecast, |row, column| {
            rows[row][column]
                .to_digit(10)
                .map_or(0, |order| order as u8)
        })
    })
    .map_err(in_file)?;
    if !file.weights.is_empty() {
        let right = |w: &Vec<Vec<f32>>| w.is_empty() || w.len() == modules;
        if file.weights.len() != steps || !file.weights.iter().all(right) {
            let reason = format!(
                "weights: expected a list for each of {steps} steps, empty or with a list for each of {modules} sub-modules, \
                 found something else"
            );
            return Err(Error::file(path, reason));
        }
        let own = |row: usize, column: usize| file.weights[steps - 1 - row].get(column);
        plan = plan
            .with_weights(|row, column| own(row, column).filter(|w| !w.is_empty()).cloned())
            .map_err(in_file)?;
    }
    if let Some(created_by) = file.created_by {
        plan.created_by = created_by;
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::plan;
    use super::*;
    use crate::testing::conditions;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn a_saved_plan_is_the_plan(
            steps in 2usize..7,
            cells in proptest::collection::vec(any::<bool>(), 7 * 6),
            threshold in 0.01f64..0.99,
            policy in "[a-z\"\\\\\n]{1,8}",
            orders in proptest::collection::vec(0u8..=3, 7 * 6),
            fitted in proptest::collection::vec(proptest::option::of(-2f32..2.), 7 * 6),
            taylor in any::<bool>(),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("plan.toml");
            let mut made_for = conditions(steps, 3);
            made_for.guidance.interval = Some([0.1, 0.1 + threshold]);
            made_for.timesteps[0] = threshold;
            let settings = toml::toml! { n = 3 }.into_iter()
                .chain([("threshold".to_owned(), toml::Value::from(threshold))]).collect();
            let plan = CachePlan::new(&policy, settings, &made_for, |row, c| row + 1 < steps && cells[6 * row + c]).unwrap();
            let formula = if taylor { Formula::Taylor } else { Formula::Polynomial };
            let plan = plan.with_orders(formula, |row, c| orders[6 * row + c]).unwrap();
            let plan = plan.with_weights(|row, c| fitted[6 * row + c].map(|w| vec![w; 1 + orders[6 * row + c] as usize])).unwrap();
            plan.save(&path).unwrap();
            prop_assert_eq!(CachePlan::load(&path).unwrap(), plan);
        }
    }

    #[test]
    fn the_file_reads_well() {
        let text = plan(3, 2, 6).to_toml().unwrap();
        let (head, tail) = text.split_once("\n\n").unwrap();
        assert_eq!(
            head.strip_prefix(HEADER).unwrap(),
            format!(
                "policy = \"table\"\ncreated_by = \"fewstep-harmonica {}\"\nsteps = [\n    \"CC CC\", # t = 999\n    \
                 \".. CC\", # t = 499\n    \".. ..\", # t = 0\n]",
                env!("CARGO_PKG_VERSION")
            )
        );
        assert!(tail.contains("[made_for.guidance]\nscale = 1.5"), "{tail}");
    }

    #[test]
    fn a_damaged_plan_is_refused_with_line_or_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plan.toml");
        let good = plan(3, 2, 6).to_toml().unwrap();
        let cases = [
            (
                ("\".. CC\"", "\".. CX\""),
                "line 8: expected C, a dot or 1 to 3 for each sub-module, found `X`",
            ),
            (
                ("\".. CC\"", "\".. C\""),
                "line 8: expected 4 sub-modules, found 3",
            ),
            (
                ("    \".. CC\",", "    "),
                "steps: expected 3 lines, one for each timestep, found 2",
            ),
            (
                ("\"CC CC\"", "\"CC .C\""),
                "the first executed step: expected every sub-module computed",
            ),
            (
                ("made_for", "made_of"),
                "line 12: expected a cache plan, found unknown field `made_of`",
            ),
            (
                ("policy = ", "policy = 3 # "),
                "line 4: expected a cache plan, found invalid type: integer `3`",
            ),
            (("steps = [", "steps = "), "line 7: expected a cache plan"),
            (
                ("scale = 1.5", "scale = -1"),
                "guidance.scale: expected a number from 0, found -1",
            ),
            (
                ("scale = 1.5", "scale = nan"),
                "guidance.scale: expected a number from 0, found NaN",
            ),
            (
                ("heads = 3", "heads = 5"),
                "shape.heads: expected a divisor of the width 24, found 5",
            ),
            (
                ("timesteps = [", "timesteps = [inf, "),
                "timesteps: expected finite numbers, found inf",
            ),
        ];
        for ((from, to), expected) in cases {
            assert!(good.contains(from), "{good}");
            std::fs::write(&path, good.replace(from, to)).unwrap();
            let e = CachePlan::load(&path).unwrap_err().to_string();
            assert!(
                e.contains("plan.toml: ") && e.contains(expected),
                "{e}\n{expected}"
            );
            assert_eq!(e.lines().count(), 1, "{e}");
        }
        std::fs::write(&path, "steps = [\"CC\"]").unwrap();
        let e = CachePlan::load(&path).unwrap_err().to_string();
        assert!(e.contains("expected a table `made_for`"), "{e}");
        let e = CachePlan::load(&folder.path().join("absent.toml"))
            .unwrap_err()
            .to_string();
        assert!(e.contains("absent.toml: "), "{e}");
    }
}
