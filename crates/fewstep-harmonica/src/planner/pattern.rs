//! Whole-step patterns: which calls are computed and which are reused as a whole.

use crate::{CachePlan, Conditions, Result};

/// Whether each executed call is computed; the first is.
pub(super) type Pattern = Vec<bool>;

/// The plan that reuses whole calls.
pub(super) fn plan(made_for: &Conditions, pattern: &Pattern) -> Result<CachePlan> {
    let steps = made_for.steps();
    CachePlan::new(super::PLANNER, toml::Table::new(), made_for, |row, _| {
        !pattern[steps - 1 - row] && !made_for.must_compute(row)
    })
}

/// Patterns of `steps` calls with exactly `reused` reused ones: every interval from 2 to all, begun at every call, as often as needed, and
/// computed calls spread evenly or denser at one end.
pub(super) fn windows(steps: usize, reused: usize) -> Vec<Pattern> {
    let mut all: Vec<Pattern> = Vec::new();
    let mut add = |pattern: Pattern| {
        let right = pattern.iter().filter(|c| !**c).count() == reused && pattern[0];
        if right && !all.contains(&pattern) {
            all.push(pattern);
        }
    };
    for interval in 2..=steps {
        for first in 0..steps {
            let mut left = reused;
            add((0..steps)
                .map(|k| {
                    let computed = left == 0 || k < first || (k - first).is_multiple_of(interval);
                    left -= usize::from(!computed);
                    computed
                })
                .collect());
        }
    }
    for power in [0.5, 0.6, 0.7, 0.8, 0.9, 1., 1.15, 1.3, 1.5, 1.8] {
        add(spread(steps, reused, power));
    }
    all
}

/// Computed calls at a power of their number: below 1 they crowd at the end, above 1 at the start, at 1 they are even.
pub(super) fn spread(steps: usize, reused: usize, power: f64) -> Pattern {
    let computed = steps - reused;
    let mut pattern = vec![false; steps];
    for i in 0..computed {
        let place = (i as f64 / computed as f64).powf(power) * steps as f64;
        let mut k = (place as usize).min(steps - 1);
        // The next free one; at the end, the last free one.
        while k + 1 < steps && pattern[k] {
            k += 1;
        }
        while pattern[k] {
            k -= 1;
        }
        pattern[k] = true;
    }
    pattern
}

/// What differs from a pattern by moving one computed call to a neighbouring one, or anywhere else.
pub(super) fn neighbours(pattern: &Pattern) -> Vec<Pattern> {
    let steps = pattern.len();
    let mut near = Vec::new();
    let mut far = Vec::new();
    for from in 1..steps {
        for to in 1..steps {
            if pattern[from] && !pattern[to] {
                let mut other = pattern.clone();
                other.swap(from, to);
                match from.abs_diff(to) {
                    1 => near.push(other),
                    2 | 3 => far.push(other),
                    _ => {}
                }
            }
        }
    }
    near.extend(far);
    near
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_have_as_many_reused_calls_as_asked_for() {
        for steps in [2, 5, 20, 50] {
            for reused in 1..steps {
                let all = windows(steps, reused);
                assert!(!all.is_empty(), "{steps} {reused}");
                for p in &all {
                    assert!(p[0] && p.len() == steps);
                    assert_eq!(p.iter().filter(|c| !**c).count(), reused);
                }
            }
        }
        let half: Pattern = (0..20).map(|k| k % 2 == 0).collect();
        assert!(windows(20, 10).contains(&half));
    }

    #[test]
    fn neighbours_keep_the_number_of_computed_calls() {
        let pattern = vec![true, false, true, true, false, false];
        let all = neighbours(&pattern);
        assert!(all.contains(&vec![true, true, false, true, false, false]));
        assert!(
            all.iter()
                .all(|p| p.iter().filter(|c| **c).count() == 3 && p[0])
        );
    }
}
