use toml::toml;

use super::{HARMONICA, L2C};
use crate::{CachePlan, Conditions, Error, Formula, Result, Router};

/// HarmoniCa's rule: a cell is computed where its probability is above `threshold`, and in the first executed row.
///
/// # Errors
/// The router's conditions make no sense.
pub fn harmonica(router: &Router, threshold: f64) -> Result<CachePlan> {
    let first = router.steps() - 1;
    let p = router.probabilities();
    let settings = settings(router, threshold);
    let plan = CachePlan::new(HARMONICA, settings, router.made_for(), |row, column| {
        row != first && p[row][column] <= threshold
    })?;
    plan.with_orders(Formula::Polynomial, |_, _| router.order())
}

/// The plan of a router at the threshold that reaches `mac_saving`, which is another than it was trained for.
///
/// # Errors
/// As [`plan_at_mac_saving`].
pub fn harmonica_at_mac_saving(router: &Router, mac_saving: f64) -> Result<CachePlan> {
    let settings = toml! { router = (router.fingerprint()) };
    plan_at_mac_saving(
        HARMONICA,
        settings,
        router.made_for(),
        &router.probabilities(),
        mac_saving,
    )?
    .with_orders(Formula::Polynomial, |_, _| router.order())
}

/// Learning-to-Cache's rule, as published: a cell of an even row is computed where its probability is above `threshold`; an odd
/// row is computed whatever the router says, for nothing trained it, and so is the first executed row, whose cache is empty.
///
/// # Errors
/// The router's conditions make no sense.
pub fn l2c(router: &Router, threshold: f64) -> Result<CachePlan> {
    let first = router.steps() - 1;
    let p = router.probabilities();
    let settings = settings(router, threshold);
    CachePlan::new(L2C, settings, router.made_for(), |row, column| {
        row != first && row % 2 == 0 && p[row][column] <= threshold
    })
}

/// Learning-to-Cache's rule at the threshold that reaches `mac_saving`, which is another than it was trained for.
///
/// # Errors
/// As [`plan_at_mac_saving`]; about half is the most that even rows can save.
pub fn l2c_at_mac_saving(router: &Router, mac_saving: f64) -> Result<CachePlan> {
    let settings = toml! { router = (router.fingerprint()) };
    let mut scores = router.probabilities();
    // No threshold between 0 and 1 reaches these.
    scores
        .iter_mut()
        .skip(1)
        .step_by(2)
        .flatten()
        .for_each(|r| *r = f64::INFINITY);
    let plan = plan_at_mac_saving(L2C, settings, router.made_for(), &scores, mac_saving)?;
    let odd = (1..plan.steps())
        .step_by(2)
        .any(|row| plan.row(row).contains(&true));
    match odd {
        false => Ok(plan),
        true => Err(Error::option(
            "mac_saving",
            "what even rows can save",
            mac_saving,
        )),
    }
}

fn settings(router: &Router, threshold: f64) -> toml::Table {
    toml! {
        threshold = threshold
        router = (router.fingerprint())
    }
}

/// Reuses the cells of the lowest `scores` (`[T][N]`, row 0 the last call): the lowest threshold whose MAC saving is at least
/// `mac_saving`, and every cell up to it. The first executed row is computed. Saving and threshold join the `settings`.
///
/// # Errors
/// Scores of another shape or that are not numbers, or a saving that can't be reached.
pub fn plan_at_mac_saving(
    policy: &str,
    mut settings: toml::Table,
    made_for: &Conditions,
    scores: &[Vec<f64>],
    mac_saving: f64,
) -> Result<CachePlan> {
    made_for.validate()?;
    let (steps, modules) = (made_for.steps(), made_for.modules());
    if scores.len() != steps || scores.iter().any(|row| row.len() != modules) {
        let found = scores.iter().map(Vec::len).max().unwrap_or(0);
        return Err(Error::option(
            "scores",
            format!("{steps} rows of {modules}"),
            format!("{} of up to {found}", scores.len()),
        ));
    }
    if let Some(found) = scores.iter().flatten().find(|s| s.is_nan()) {
        return Err(Error::option("scores", "numbers", found));
    }
    let mut cells: Vec<(f64, u64)> = (0..(steps - 1) * modules)
        .map(|i| (i / modules, i % modules))
        .map(|(row, column)| (scores[row][column], made_for.macs(row, column)))
        .collect();
    cells.sort_by(|a, b| a.0.total_cmp(&b.0));
    let all: u64 = cells.iter().map(|c| c.1).sum();
    let total = made_for.total_macs() as f64;
    if !(mac_saving > 0. && mac_saving <= all as f64 / total) {
        let expected = format!("above 0 to {:.4}", all as f64 / total);
        return Err(Error::option("mac_saving", expected, mac_saving));
    }
    let mut skipped = 0;
    let reached = cells.iter().find(|(_, macs)| {
        skipped += macs;
        skipped as f64 / total >= mac_saving
    });
    // The last cell reaches what all of them reach.
    let threshold = reached.map_or(f64::INFINITY, |c| c.0);
    settings.insert("mac_saving".into(), mac_saving.into());
    settings.insert("threshold".into(), threshold.into());
    CachePlan::new(policy, settings, made_for, |row, column| {
        row + 1 < steps && scores[row][column] <= threshold
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::conditions;

    fn logit(p: f32) -> f32 {
        (p / (1. - p)).ln()
    }

    #[test]
    fn the_threshold_is_strict_and_the_first_row_computes_whatever_its_logits_say() {
        let rows = vec![
            vec![0., 0.1, -4., 4.],
            vec![-0.1, 0., 0., 5.],
            vec![-5., 0., 0., -1.],
        ];
        let router = Router::from_logits(&conditions(3, 2), 0.5, rows).unwrap();
        let plan = harmonica(&router, 0.5).unwrap();
        assert_eq!(plan.row(0), [true, false, true, false]);
        assert_eq!(plan.row(1), [true, true, true, false]);
        assert_eq!(plan.row(2), [false; 4]);
        assert_eq!(plan.settings()["threshold"].as_float(), Some(0.5));
    }

    #[test]
    fn only_even_rows_reuse_in_learning_to_cache_for_even_and_odd_numbers_of_steps() {
        for steps in [4, 5] {
            let rows = vec![vec![logit(0.05); 4]; steps];
            let router = Router::from_logits(&conditions(steps, 2), 0.1, rows).unwrap();
            let plan = l2c(&router, 0.1).unwrap();
            let reused: Vec<bool> = (0..steps).map(|row| plan.row(row)[0]).collect();
            assert_eq!(reused, [true, false, true, false, false][..steps]);
        }
    }

    #[test]
    fn the_plan_at_a_saving_is_the_smallest_that_reaches_it() {
        let c = conditions(5, 2);
        let score = |row: usize, column: usize| ((row * 7 + column * 3) % 11) as f64;
        let scores: Vec<Vec<f64>> = (0..5)
            .map(|row| (0..4).map(|column| score(row, column)).collect())
            .collect();
        let at = |threshold: f64| {
            CachePlan::new("table", toml::Table::new(), &c, |row, column| {
                row < 4 && score(row, column) <= threshold
            })
            .unwrap()
        };
        for target in [0.01, 0.1, 0.2, 0.3, 0.5, 0.7] {
            let plan =
                plan_at_mac_saving("table", toml::Table::new(), &c, &scores, target).unwrap();
            let threshold = plan.settings()["threshold"].as_float().unwrap();
            assert!(plan.mac_saving() >= target);
            assert!(at(threshold - 1.).mac_saving() < target);
            assert_eq!(plan.diff(&at(threshold)).unwrap().cells, []);
        }
        let most = at(11.).mac_saving();
        let plan = plan_at_mac_saving("table", toml::Table::new(), &c, &scores, most).unwrap();
        assert_eq!(plan.reused(), 16);
        let e = plan_at_mac_saving("table", toml::Table::new(), &c, &scores, 0.9).unwrap_err();
        assert!(
            e.to_string()
                .starts_with("mac_saving: expected above 0 to 0."),
            "{e}"
        );
        let e = plan_at_mac_saving("table", toml::Table::new(), &c, &scores[1..], 0.3).unwrap_err();
        assert_eq!(
            e.to_string(),
            "scores: expected 5 rows of 4, found 4 of up to 4"
        );
    }
}
