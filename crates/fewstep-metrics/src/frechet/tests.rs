use super::*;

/// Of a Gaussian given by its mean and covariance.
fn gaussian(mean: &[f64], covariance: &[f64]) -> FeatureStatistics {
    FeatureStatistics::from_moments(1000, mean, covariance).unwrap()
}

fn of_rows(dim: usize, rows: &[f32]) -> FeatureStatistics {
    let mut statistics = FeatureStatistics::new(dim).unwrap();
    statistics.add(rows).unwrap();
    statistics
}

/// Deterministic values in ±1, some of them 0 as after a ReLU.
fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next().max(-0.5) + 0.5).collect()
}

#[track_caller]
fn assert_near(found: f64, expected: f64, tolerance: f64) {
    let size = expected.abs().max(1.0);
    assert!(
        (found - expected).abs() <= tolerance * size,
        "{found} is not {expected}"
    );
}

#[test]
fn equal_gaussians_are_at_distance_0() {
    let statistics = of_rows(6, &values(6 * 40, 1));
    let distance = frechet_distance(&statistics, &statistics).unwrap();
    assert_near(distance, 0.0, 1e-12);
}

#[test]
fn one_dimension_is_the_difference_of_means_and_deviations() {
    let distance = frechet_distance(&gaussian(&[1.0], &[4.0]), &gaussian(&[-2.0], &[0.25]));
    assert_near(distance.unwrap(), 9.0 + 1.5 * 1.5, 1e-14);
}

#[test]
fn diagonal_covariances_add_up_dimension_by_dimension() {
    let a = gaussian(
        &[0.0, 1.0, 2.0],
        &[4.0, 0.0, 0.0, 0.0, 9.0, 0.0, 0.0, 0.0, 0.0],
    );
    let b = gaussian(
        &[0.5, 1.0, 0.0],
        &[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 16.0],
    );
    let expected = 0.25 + 4.0 + 1.0 + 9.0 + 16.0;
    assert_near(frechet_distance(&a, &b).unwrap(), expected, 1e-14);
}

#[test]
fn covariances_that_commute_compare_by_eigenvalue() {
    // Both have the eigenvectors (1, 1) and (1, −1): eigenvalues 5, 1 and 9, 4.
    let a = gaussian(&[0.0, 0.0], &[3.0, 2.0, 2.0, 3.0]);
    let b = gaussian(&[0.0, 0.0], &[6.5, 2.5, 2.5, 6.5]);
    let expected = (3.0 - 5.0_f64.sqrt()).powi(2) + 1.0;
    assert_near(frechet_distance(&a, &b).unwrap(), expected, 1e-13);
}

#[test]
fn the_order_of_the_two_does_not_matter() {
    let a = of_rows(8, &values(8 * 30, 3));
    let b = of_rows(8, &values(8 * 30, 4));
    let there = frechet_distance(&a, &b).unwrap();
    assert!(there > 1e-3);
    assert_near(frechet_distance(&b, &a).unwrap(), there, 1e-12);
}

#[test]
fn singular_covariances_give_numbers_at_every_rank() {
    let dim = 24;
    let whole = of_rows(dim, &values(dim * 100, 5));
    for samples in [2, 3, 9, 23, 24, 25] {
        let few = of_rows(dim, &values(dim * samples, 6));
        let distance = frechet_distance(&few, &whole).unwrap();
        assert!(distance.is_finite() && distance > 0.0, "{distance}");
        assert_near(frechet_distance(&few, &few).unwrap(), 0.0, 1e-12);
        let other = of_rows(dim, &values(dim * samples, 7));
        assert!(frechet_distance(&few, &other).unwrap().is_finite());
    }
    let constant = of_rows(dim, &vec![0.5; dim * 10]);
    assert_near(frechet_distance(&constant, &constant).unwrap(), 0.0, 0.0);
    let spread: f64 = whole.covariance_matrix().unwrap().trace();
    let apart: f64 = whole.mean().iter().map(|mean| (mean - 0.5).powi(2)).sum();
    let distance = frechet_distance(&whole, &constant).unwrap();
    assert_near(distance, apart + spread, 1e-12);
}

#[test]
fn scales_that_differ_by_many_orders_come_out() {
    let dim = 12;
    let graded = |seed: u64| {
        let mut rows = values(dim * 60, seed);
        for (at, value) in rows.iter_mut().enumerate() {
            *value *= 10_f32.powi(-3 * (at % dim) as i32);
        }
        of_rows(dim, &rows)
    };
    let distance = frechet_distance(&graded(8), &graded(9)).unwrap();
    assert!(distance.is_finite() && distance > 0.0, "{distance}");
    assert_near(
        frechet_distance(&graded(8), &graded(8)).unwrap(),
        0.0,
        1e-12,
    );
}

#[test]
fn any_portions_and_any_merge_give_the_statistics_of_one_go() {
    let dim = 5;
    // A mean 1000 times the deviation: sums of squares would lose it.
    let rows: Vec<f32> = values(dim * 700, 10).iter().map(|v| v + 1000.0).collect();
    let whole = of_rows(dim, &rows);
    for portion in [1, 2, 7, 256, 257, 699] {
        let mut statistics = FeatureStatistics::new(dim).unwrap();
        for chunk in rows.chunks(portion * dim) {
            statistics.add(chunk).unwrap();
        }
        assert_eq!(statistics.count(), 700);
        assert_same(&statistics, &whole);
        let (front, back) = rows.split_at(portion * dim);
        let mut merged = of_rows(dim, front);
        merged.merge(&of_rows(dim, back)).unwrap();
        assert_same(&merged, &whole);
    }
    let mut merged = FeatureStatistics::new(dim).unwrap();
    merged.merge(&whole).unwrap();
    merged.merge(&FeatureStatistics::new(dim).unwrap()).unwrap();
    assert_same(&merged, &whole);
}

#[track_caller]
fn assert_same(found: &FeatureStatistics, expected: &FeatureStatistics) {
    for (found, expected) in found.mean().iter().zip(expected.mean()) {
        assert_near(*found, *expected, 1e-13);
    }
    let (found, expected) = (found.covariance().unwrap(), expected.covariance().unwrap());
    for (found, expected) in found.iter().zip(&expected) {
        assert_near(*found, *expected, 1e-12);
    }
}

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    dim: usize,
    a: Vec<f32>,
    b: Vec<f32>,
    mean_a: Vec<f64>,
    covariance_a: Vec<f64>,
    distance: f64,
}

#[test]
fn numpy_finds_the_same_moments_and_distances() {
    let text = include_str!("../../../../tests/parity/frechet.json");
    let cases: Vec<Case> = serde_json::from_str(text).unwrap();
    assert!(cases.len() >= 4);
    for case in cases {
        let (a, b) = (of_rows(case.dim, &case.a), of_rows(case.dim, &case.b));
        for (found, expected) in a.mean().iter().zip(&case.mean_a) {
            assert_near(*found, *expected, 1e-12);
        }
        for (found, expected) in a.covariance().unwrap().iter().zip(&case.covariance_a) {
            assert_near(*found, *expected, 1e-11);
        }
        let distance = frechet_distance(&a, &b).unwrap();
        // NumPy's way through the unsymmetric product keeps about half of the digits where it is singular.
        let near = (distance - case.distance).abs() < 2e-6 * case.distance;
        assert!(near, "{}: {distance}, not {}", case.name, case.distance);
    }
}

#[test]
fn wrong_input_is_an_error_that_says_what_was_found() {
    let mut statistics = FeatureStatistics::new(3).unwrap();
    let uneven = statistics.add(&[1.0; 4]).unwrap_err().to_string();
    assert_eq!(
        uneven,
        "4 feature values are no whole number of rows of 3 values"
    );
    statistics.add(&[1.0; 3]).unwrap();
    let nan = statistics
        .add(&[0.0, 0.0, 0.0, 0.0, f32::NAN, 0.0])
        .unwrap_err();
    assert_eq!(
        nan.to_string(),
        "feature 1 of sample 2 is NaN; expected a finite number"
    );
    assert_eq!(statistics.count(), 1);
    let one = frechet_distance(&statistics, &statistics).unwrap_err();
    assert_eq!(
        one,
        FeatureError::TooFew {
            what: "a covariance",
            needed: 2,
            found: 1
        }
    );
    let other = FeatureStatistics::new(4).unwrap();
    let mixed = frechet_distance(&statistics, &other).unwrap_err();
    assert_eq!(
        mixed,
        FeatureError::Dimensions {
            expected: 3,
            found: 4
        }
    );
    assert_eq!(statistics.merge(&other), Err(mixed));
    assert_eq!(FeatureStatistics::new(0), Err(FeatureError::NoDimensions));
    let skew = FeatureStatistics::from_moments(9, &[0.0, 0.0], &[1.0, 0.5, 0.4, 1.0]);
    assert!(skew.unwrap_err().to_string().contains("not symmetric"));
    let short = FeatureStatistics::from_moments(9, &[0.0, 0.0], &[1.0]);
    assert_eq!(
        short.unwrap_err().to_string(),
        "the covariance does not fit the mean; found 1 values, expected 2 × 2"
    );
}
