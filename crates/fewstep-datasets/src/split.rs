//! Stratified splits: every class is divided in the same proportion, by seed.

use rand::seq::SliceRandom;

use crate::random::{Stream, stream};

/// Divides `0..labels.len()` into (rest, part) with `fraction` (0 to 1, clamped) of every class in `part`.
///
/// The two are disjoint, complete and ascending. `part` has `round(fraction · N)` images, and of each class
/// `fraction · n` rounded down or up (largest remainders are rounded up first). The same seed gives the same split.
pub fn stratified_split(labels: &[u32], fraction: f64, seed: u64) -> (Vec<usize>, Vec<usize>) {
    let fraction = if fraction.is_nan() {
        0.0
    } else {
        fraction.clamp(0.0, 1.0)
    };
    divide(
        labels,
        (fraction * labels.len() as f64).round() as usize,
        fraction,
        seed,
    )
}

/// `n` indices (all where there are fewer), ascending, with the classes in the proportion of the whole.
pub fn stratified_take(labels: &[u32], n: usize, seed: u64) -> Vec<usize> {
    let n = n.min(labels.len());
    divide(labels, n, n as f64 / labels.len().max(1) as f64, seed).1
}

fn divide(labels: &[u32], total: usize, fraction: f64, seed: u64) -> (Vec<usize>, Vec<usize>) {
    let classes = labels.iter().max().map_or(0, |&label| label as usize + 1);
    let mut members = vec![Vec::new(); classes];
    for (index, &label) in labels.iter().enumerate() {
        members[label as usize].push(index);
    }
    let quotas = apportion(&members, total, fraction);
    let (mut rest, mut part) = (Vec::new(), Vec::new());
    for (class, (mut indices, quota)) in members.into_iter().zip(quotas).enumerate() {
        indices.shuffle(&mut stream(seed, 0, class as u64, Stream::Split));
        part.extend_from_slice(&indices[..quota]);
        rest.extend_from_slice(&indices[quota..]);
    }
    rest.sort_unstable();
    part.sort_unstable();
    (rest, part)
}

/// How many of each class: rounded down, then the largest remainders up until `total` is reached.
fn apportion(members: &[Vec<usize>], total: usize, fraction: f64) -> Vec<usize> {
    let exact: Vec<f64> = members
        .iter()
        .map(|indices| indices.len() as f64 * fraction)
        .collect();
    // The tolerance keeps 0.1 · 30 = 3.0000000000000004 and 2.9999999999999996 alike.
    let mut quotas: Vec<usize> = exact
        .iter()
        .map(|share| (share + 1e-9).floor() as usize)
        .collect();
    let mut order: Vec<usize> = (0..members.len()).collect();
    order.sort_by(|&a, &b| {
        (exact[b] - quotas[b] as f64)
            .total_cmp(&(exact[a] - quotas[a] as f64))
            .then(a.cmp(&b))
    });
    let missing = total.saturating_sub(quotas.iter().sum());
    let open = order
        .into_iter()
        .filter(|&class| quotas[class] < members[class].len())
        .collect::<Vec<_>>();
    for class in open.into_iter().take(missing) {
        quotas[class] += 1;
    }
    quotas
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn count(labels: &[u32], indices: &[usize], class: u32) -> usize {
        indices
            .iter()
            .filter(|&&index| labels[index] == class)
            .count()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

        #[test]
        fn a_stratified_split_is_disjoint_complete_and_proportional(
            labels in prop::collection::vec(0u32..7, 0..300), fraction in 0.0f64..=1.0, seed: u64,
        ) {
            let (rest, part) = stratified_split(&labels, fraction, seed);
            let mut all = [rest.clone(), part.clone()].concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..labels.len()).collect::<Vec<_>>());
            prop_assert_eq!(part.len(), (fraction * labels.len() as f64).round() as usize);
            for class in 0..7 {
                let whole = labels.iter().filter(|&&label| label == class).count();
                let exact = whole as f64 * fraction;
                prop_assert!((count(&labels, &part, class) as f64 - exact).abs() < 1.0 + 1e-6);
            }
            prop_assert_eq!(stratified_split(&labels, fraction, seed), (rest, part));
        }

        #[test]
        fn a_stratified_take_has_as_many_as_asked(
            labels in prop::collection::vec(0u32..5, 1..200), n in 0usize..250, seed: u64,
        ) {
            let taken = stratified_take(&labels, n, seed);
            prop_assert_eq!(taken.len(), n.min(labels.len()));
            prop_assert!(taken.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }

    #[test]
    fn another_seed_gives_another_split() {
        let labels: Vec<u32> = (0..100).map(|i| i % 4).collect();
        assert_ne!(
            stratified_split(&labels, 0.5, 0),
            stratified_split(&labels, 0.5, 1)
        );
    }

    #[test]
    fn fractions_outside_zero_to_one_are_clamped() {
        let labels = [0, 1, 1];
        assert_eq!(stratified_split(&labels, 2.0, 0), (vec![], vec![0, 1, 2]));
        assert_eq!(
            stratified_split(&labels, f64::NAN, 0),
            (vec![0, 1, 2], vec![])
        );
    }
}
