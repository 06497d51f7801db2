use super::*;

fn score(classes: usize, splits: Splits, logits: &[f32]) -> Score {
    let mut score = InceptionScore::new(classes, splits).unwrap();
    score.add(logits).unwrap();
    score.score().unwrap()
}

#[test]
fn sure_and_evenly_spread_answers_score_the_number_of_classes() {
    let sure: Vec<f32> = (0..9)
        .map(|i| if i % 4 == 0 { 90.0 } else { 0.0 })
        .collect();
    let found = score(3, Splits::OfSize(5000), &sure).mean;
    assert!((found - 3.0).abs() < 1e-12, "{found}");
    let unsure = score(3, Splits::OfSize(5000), &[0.7; 12]).mean;
    assert!((unsure - 1.0).abs() < 1e-12, "{unsure}");
}

#[test]
fn batches_and_splits_fall_where_they_should() {
    let logits: Vec<f32> = (0..7 * 3).map(|i| (i as f32 * 1.7).sin() * 4.0).collect();
    let part = |rows: std::ops::Range<usize>| {
        let rows = &logits[rows.start * 3..rows.end * 3];
        score(3, Splits::OfSize(100), rows).mean
    };
    // ⌊7/3⌋ = 2, ⌊14/3⌋ = 4.
    let equal = Splits::Equal { splits: 3, of: 7 };
    for (splits, parts) in [
        (Splits::OfSize(3), [0..3, 3..6, 6..7]),
        (equal, [0..2, 2..4, 4..7]),
    ] {
        let expected = parts.map(part);
        let mean = expected.iter().sum::<f64>() / 3.0;
        let mut batched = InceptionScore::new(3, splits).unwrap();
        for batch in logits.chunks(6) {
            batched.add(batch).unwrap();
        }
        assert_eq!(batched, {
            let mut whole = InceptionScore::new(3, splits).unwrap();
            whole.add(&logits).unwrap();
            whole
        });
        let found = batched.score().unwrap();
        assert!((found.mean - mean).abs() < 1e-12);
        assert!(found.std > 0.0 && found.splits == 3);
    }
}

#[test]
fn what_cannot_be_scored_is_an_error() {
    let words = |e: FeatureError| e.to_string();
    let new = |splits| words(InceptionScore::new(3, splits).unwrap_err());
    assert_eq!(
        new(Splits::OfSize(0)),
        "the size of a split is 0; expected at least 1"
    );
    assert_eq!(
        new(Splits::Equal { splits: 3, of: 2 }),
        "the number of samples in a split is 0; expected at least 1"
    );
    let mut score = InceptionScore::new(2, Splits::Equal { splits: 1, of: 2 }).unwrap();
    score.add(&[0.0, 1.0]).unwrap();
    assert_eq!(
        words(score.score().unwrap_err()),
        "the Inception Score needs at least 2 samples; found 1"
    );
    assert!(score.add(&[0.0, f32::NAN]).is_err());
    assert!(score.add(&[0.0; 4]).is_err());
    assert_eq!(score.count(), 1);
}
