use toml::toml;

use super::{FORA, INTERVAL, NONE, TAYLORSEER};
use crate::{CachePlan, Conditions, Error, Formula, Result};

/// Computes everything.
///
/// # Errors
/// The conditions make no sense.
pub fn none(made_for: &Conditions) -> Result<CachePlan> {
    CachePlan::new(NONE, toml::Table::new(), made_for, |_, _| false)
}

/// Executed call k is computed where k is a multiple of `interval`, and reused as a whole elsewhere.
///
/// # Errors
/// An interval of 0.
pub fn fora(made_for: &Conditions, interval: usize) -> Result<CachePlan> {
    every(interval)?;
    let steps = made_for.steps();
    let settings = toml! { interval = (interval as i64) };
    CachePlan::new(FORA, settings, made_for, |row, _| {
        !(steps - 1 - row).is_multiple_of(interval)
    })
}

/// In the window of executed calls from `first` to `last`, counted from 0 and both included, every `interval`-th is computed,
/// beginning with the first; outside it all are.
///
/// # Errors
/// An interval of 0, or a window that is not within the calls.
pub fn interval(
    made_for: &Conditions,
    first: usize,
    last: usize,
    interval: usize,
) -> Result<CachePlan> {
    every(interval)?;
    let steps = made_for.steps();
    if !(first <= last && last < steps) {
        let expected = format!("first ≤ last ≤ {}", steps.saturating_sub(1));
        return Err(Error::option(
            "window",
            expected,
            format!("{first} to {last}"),
        ));
    }
    let settings = toml! {
        first = (first as i64)
        last = (last as i64)
        interval = (interval as i64)
    };
    CachePlan::new(INTERVAL, settings, made_for, |row, _| {
        let k = steps - 1 - row;
        (first..=last).contains(&k) && !(k - first).is_multiple_of(interval)
    })
}

/// TaylorSeer: the first `warm_up` executed calls are computed, then every `interval`-th; the others are forecast by its formula.
///
/// # Errors
/// An interval of 0, an order above [`MAX_ORDER`](crate::MAX_ORDER), or no first call.
pub fn taylorseer(
    made_for: &Conditions,
    interval: usize,
    order: u8,
    warm_up: usize,
) -> Result<CachePlan> {
    every(interval)?;
    let steps = made_for.steps();
    if !(1..=steps).contains(&warm_up) {
        return Err(Error::option("warm_up", format!("1 to {steps}"), warm_up));
    }
    let settings = toml! {
        interval = (interval as i64)
        order = (i64::from(order))
        warm_up = (warm_up as i64)
    };
    CachePlan::new(TAYLORSEER, settings, made_for, |row, _| {
        let k = steps - 1 - row;
        k >= warm_up && !(k + 1 - warm_up).is_multiple_of(interval)
    })?
    .with_orders(Formula::Taylor, |_, _| order)
}

fn every(interval: usize) -> Result<()> {
    match interval {
        0 => Err(Error::option("interval", "at least 1", 0)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::conditions;

    /// One letter for each executed call.
    fn calls(plan: &CachePlan) -> String {
        let rows = (0..plan.steps()).rev().map(|row| plan.row(row));
        rows.map(|r| {
            assert!(r.iter().all(|c| *c == r[0]));
            if r[0] { '.' } else { 'C' }
        })
        .collect()
    }

    #[test]
    fn intervals_count_executed_calls() {
        let c = conditions(10, 2);
        assert_eq!(calls(&none(&c).unwrap()), "CCCCCCCCCC");
        assert_eq!(calls(&fora(&c, 1).unwrap()), "CCCCCCCCCC");
        assert_eq!(calls(&fora(&c, 3).unwrap()), "C..C..C..C");
        assert_eq!(calls(&fora(&c, 99).unwrap()), "C.........");
        assert_eq!(calls(&interval(&c, 0, 5, 2).unwrap()), "C.C.C.CCCC");
        assert_eq!(calls(&interval(&c, 2, 8, 3).unwrap()), "CCC..C..CC");
        assert_eq!(calls(&taylorseer(&c, 3, 1, 1).unwrap()), "C..C..C..C");
        assert_eq!(calls(&taylorseer(&c, 2, 2, 3).unwrap()), "CCC.C.C.C.");
        assert_eq!(taylorseer(&c, 2, 2, 3).unwrap().order(0, 3), 2);
        assert_eq!(
            fora(&c, 3).unwrap().settings()["interval"].as_integer(),
            Some(3)
        );
    }

    #[test]
    fn impossible_intervals_and_windows_are_refused() {
        let c = conditions(10, 2);
        assert_eq!(
            fora(&c, 0).unwrap_err().to_string(),
            "interval: expected at least 1, found 0"
        );
        assert_eq!(
            interval(&c, 3, 10, 2).unwrap_err().to_string(),
            "window: expected first ≤ last ≤ 9, found 3 to 10"
        );
    }
}
