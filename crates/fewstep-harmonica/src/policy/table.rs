use std::path::Path;

use crate::{CachePlan, Conditions, Result, plan};

/// A plan written by hand: a file as [`CachePlan::save`] writes it, of which only `steps` is needed. Where it says what it was
/// made for, it must fit `job`; otherwise it is taken to be made for `job`.
///
/// # Errors
/// No such file, a file that is no plan, or a plan for something else.
pub fn table(path: &Path, job: &Conditions) -> Result<CachePlan> {
    let plan = plan::read_with_conditions(path, Some(job))?;
    plan.check_fits(job, &path.display().to_string())?;
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::conditions;

    #[test]
    fn a_table_needs_nothing_but_its_steps() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hand.toml");
        std::fs::write(&path, "steps = [\n  'CCCC',\n  'C..C',\n  '.C C.',\n]\n").unwrap();
        let plan = table(&path, &conditions(3, 2)).unwrap();
        assert_eq!(plan.policy(), "table");
        assert_eq!(plan.row(1), [false, true, true, false]);
        assert_eq!(plan.row(0), [true, false, false, true]);
        let e = table(&path, &conditions(4, 2)).unwrap_err().to_string();
        assert!(
            e.ends_with("hand.toml: steps: expected 4 lines, one for each timestep, found 3"),
            "{e}"
        );
        plan.save(&path).unwrap();
        let mut job = conditions(3, 2);
        job.sampler = "ddpm".into();
        let e = table(&path, &job).unwrap_err().to_string();
        assert!(
            e.ends_with("hand.toml does not fit: sampler: made for ddim, found ddpm"),
            "{e}"
        );
    }
}
