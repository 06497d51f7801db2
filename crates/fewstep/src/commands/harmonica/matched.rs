//! Policies at the same MAC saving and at the same time, each family by its best member.

use fewstep_harmonica::policy;
use serde::Serialize;

use super::compare::Compared;

/// A point less than was asked for counts as the same saving.
const TOLERANCE_PERCENT: f64 = 1.;

/// The best member of a family among those that save as much as is asked.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct AtSaving {
    /// What was asked for.
    pub(super) asked_percent: f64,
    pub(super) name: String,
    pub(super) label: String,
    pub(super) mac_saving_percent: f64,
    pub(super) latency_ms_per_image: f64,
    pub(super) speedup: f64,
    pub(super) x0_mse_vs_uncached: f64,
    pub(super) fd: Option<f64>,
}

/// The error of a family at a time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct AtLatency {
    /// The time.
    pub(super) latency_ms_per_image: f64,
    /// The time of the uncached run over it.
    pub(super) speedup: f64,
    pub(super) name: String,
    /// The member, or the two between which the error was interpolated.
    pub(super) from: String,
    pub(super) x0_mse_vs_uncached: f64,
}

impl AtSaving {
    pub(super) const HEADER: [&'static str; 8] = [
        "policy",
        "",
        "asked %",
        "MAC saving %",
        "ms/image",
        "speed-up",
        "x0 MSE",
        "fd",
    ];

    pub(super) fn row(&self) -> [String; 8] {
        [
            self.name.clone(),
            self.label.clone(),
            format!("{:.0}", self.asked_percent),
            format!("{:.1}", self.mac_saving_percent),
            format!("{:.2}", self.latency_ms_per_image),
            format!("{:.2}", self.speedup),
            format!("{:.2e}", self.x0_mse_vs_uncached),
            self.fd.map_or("-".into(), |fd| format!("{fd:.3}")),
        ]
    }
}

impl AtLatency {
    pub(super) const HEADER: [&'static str; 5] =
        ["policy", "from", "ms/image", "speed-up", "x0 MSE"];

    pub(super) fn row(&self) -> [String; 5] {
        [
            self.name.clone(),
            self.from.clone(),
            format!("{:.2}", self.latency_ms_per_image),
            format!("{:.2}", self.speedup),
            format!("{:.2e}", self.x0_mse_vs_uncached),
        ]
    }
}

/// The families in the order of their first appearance, without the uncached run.
fn families(all: &[Compared]) -> Vec<(&str, Vec<&Compared>)> {
    let mut found: Vec<(&str, Vec<&Compared>)> = Vec::new();
    for one in all.iter().filter(|c| c.name != policy::NONE) {
        match found.iter_mut().find(|(name, _)| *name == one.name) {
            Some((_, members)) => members.push(one),
            None => found.push((&one.name, vec![one])),
        }
    }
    found
}

/// For each saving (in percent) the best of each family that saves at least as much less a point, nearest to the uncached run first.
pub(super) fn at_savings(all: &[Compared], asked: &[f64]) -> Vec<AtSaving> {
    let mut rows = Vec::new();
    for &asked_percent in asked {
        let mut best: Vec<&Compared> = families(all)
            .into_iter()
            .filter_map(|(_, members)| {
                members
                    .into_iter()
                    .filter(|c| c.mac_saving_percent >= asked_percent - TOLERANCE_PERCENT)
                    .min_by(|a, b| a.x0_mse_vs_uncached.total_cmp(&b.x0_mse_vs_uncached))
            })
            .collect();
        best.sort_by(|a, b| a.x0_mse_vs_uncached.total_cmp(&b.x0_mse_vs_uncached));
        rows.extend(best.into_iter().map(|c| AtSaving {
            asked_percent,
            name: c.name.clone(),
            label: c.label.clone(),
            mac_saving_percent: c.mac_saving_percent,
            latency_ms_per_image: c.latency_ms_per_image,
            speedup: c.speedup,
            x0_mse_vs_uncached: c.x0_mse_vs_uncached,
            fd: c.fd,
        }));
    }
    rows
}

/// For the time that each saving (in percent) would leave of the uncached run's if time went with operations: the error of each family,
/// interpolated in its logarithm between the two members around that time; where none is slower, that of the best member. Members that
/// another of the family beats in time and error do not count. A family without a member as fast is left out.
pub(super) fn at_latencies(all: &[Compared], asked: &[f64]) -> Vec<AtLatency> {
    let Some(uncached) = all.first().map(|c| c.latency_ms_per_image) else {
        return vec![];
    };
    let mut rows = Vec::new();
    for saving in asked {
        let time = uncached * (1. - saving / 100.);
        let mut here: Vec<AtLatency> = families(all)
            .into_iter()
            .filter_map(|(name, members)| {
                let (from, error) = interpolated(front(members), time)?;
                Some(AtLatency {
                    latency_ms_per_image: time,
                    speedup: uncached / time,
                    name: name.to_owned(),
                    from,
                    x0_mse_vs_uncached: error,
                })
            })
            .collect();
        here.sort_by(|a, b| a.x0_mse_vs_uncached.total_cmp(&b.x0_mse_vs_uncached));
        rows.extend(here);
    }
    rows
}

/// The members that no other beats in both, fastest first.
fn front(mut members: Vec<&Compared>) -> Vec<&Compared> {
    members.retain(|c| c.latency_ms_per_image.is_finite() && c.x0_mse_vs_uncached.is_finite());
    members.sort_by(|a, b| {
        let time = a.latency_ms_per_image.total_cmp(&b.latency_ms_per_image);
        time.then(a.x0_mse_vs_uncached.total_cmp(&b.x0_mse_vs_uncached))
    });
    let mut best = f64::INFINITY;
    members.retain(|c| {
        let better = c.x0_mse_vs_uncached < best;
        best = best.min(c.x0_mse_vs_uncached);
        better
    });
    members
}

fn interpolated(front: Vec<&Compared>, time: f64) -> Option<(String, f64)> {
    let slower = front.partition_point(|c| c.latency_ms_per_image <= time);
    let before = front.get(slower.checked_sub(1)?)?;
    let (t, e) = (before.latency_ms_per_image, before.x0_mse_vs_uncached);
    Some(match front.get(slower) {
        Some(after) if e > 0. && after.x0_mse_vs_uncached > 0. && time > t => {
            let share = (time - t) / (after.latency_ms_per_image - t);
            let log = e.ln() + share * (after.x0_mse_vs_uncached.ln() - e.ln());
            (format!("{} | {}", before.label, after.label), log.exp())
        }
        _ => (before.label.clone(), e),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, label: &str, saving: f64, ms: f64, mse: f64) -> Compared {
        Compared {
            name: name.into(),
            label: label.into(),
            calls: 10,
            cur_percent: saving,
            mac_saving_percent: saving,
            latency_ms_per_image: ms,
            speedup: 10. / ms,
            x0_mse_vs_uncached: mse,
            fd: None,
            fd_resnet56: None,
            recognised_percent: None,
            error_per_step: vec![],
            rule: None,
            plan: None,
            pixels: None,
        }
    }

    fn all() -> Vec<Compared> {
        vec![
            one("none", "", 0., 10., 0.),
            one("fora", "2", 50., 5., 1e-2),
            one("fora", "3", 66., 4., 1e-1),
            one("tea", "a", 29.2, 8., 1e-4),
            one("tea", "b", 48., 6., 1e-3),
            one("tea", "worse", 31., 8.5, 1e-2),
        ]
    }

    #[test]
    fn a_saving_is_matched_by_the_best_member_that_saves_as_much_less_a_point() {
        let rows = at_savings(&all(), &[30., 49., 60.]);
        let found: Vec<_> = rows
            .iter()
            .map(|r| (r.asked_percent, r.name.as_str(), r.label.as_str()))
            .collect();
        assert_eq!(
            found,
            [
                (30., "tea", "a"),
                (30., "fora", "2"),
                (49., "tea", "b"),
                (49., "fora", "2"),
                (60., "fora", "3")
            ]
        );
    }

    #[test]
    fn errors_at_a_time_are_interpolated_in_their_logarithm_between_the_members_around_it() {
        let rows = at_latencies(&all(), &[10., 30., 45., 55., 65.]);
        let found: Vec<_> = rows
            .iter()
            .map(|r| {
                (
                    r.latency_ms_per_image,
                    r.name.as_str(),
                    r.from.as_str(),
                    r.x0_mse_vs_uncached,
                )
            })
            .collect();
        let expected = [
            // All are faster than 9 ms: the best of each.
            (9., "tea", "a", 1e-4),
            (9., "fora", "2", 1e-2),
            // Half way from 1e-3 to 1e-4.
            (7., "tea", "b | a", 10f64.powf(-3.5)),
            (7., "fora", "2", 1e-2),
            (5.5, "fora", "2", 1e-2),
            (4.5, "fora", "3 | 2", 10f64.powf(-1.5)),
        ];
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (a, b) in found.iter().zip(&expected) {
            assert_eq!((a.1, a.2), (b.1, b.2));
            assert!(
                (a.0 - b.0).abs() < 1e-9 && (a.3 / b.3 - 1.).abs() < 1e-9,
                "{a:?} {b:?}"
            );
        }
    }
}
