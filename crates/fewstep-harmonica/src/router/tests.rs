use super::*;
use crate::testing::conditions;

#[test]
fn a_new_router_is_normal_within_the_limit_and_computes_nearly_everything() {
    let c = conditions(20, 28);
    let router = Router::new(&c, 0.1, &RouterInit::default(), 3).unwrap();
    assert!(router.logits()[19].iter().all(|&l| l == 5.));
    let rows = router.logits()[..19].concat();
    let n = rows.len() as f32;
    let mean = rows.iter().sum::<f32>() / n;
    let variance = rows.iter().map(|l| (l - mean).powi(2)).sum::<f32>() / n;
    assert!(
        mean.abs() < 0.13 && (variance - 1.).abs() < 0.18,
        "{mean} {variance}"
    );
    // 98.6 % of a normal distribution lie above the logit of 0.1.
    let above = router.probabilities()[..19]
        .concat()
        .iter()
        .filter(|&&p| p > 0.1)
        .count();
    assert!((above as f64 / 1064. - 0.986).abs() < 0.015, "{above}");
    assert_eq!(
        router,
        Router::new(&c, 0.1, &RouterInit::default(), 3).unwrap()
    );
    assert_ne!(
        router,
        Router::new(&c, 0.1, &RouterInit::default(), 4).unwrap()
    );
    let wide = RouterInit::Normal { mean: 0., std: 90. };
    let wide = Router::new(&c, 0.1, &wide, 3).unwrap();
    assert!(wide.logits().iter().flatten().all(|l| l.abs() <= 5.));
    let constant = Router::new(&c, 0.1, &RouterInit::Constant { logit: 2. }, 3).unwrap();
    assert!(constant.logits()[..19].iter().flatten().all(|&l| l == 2.));
    assert!((constant.probabilities()[19][0] - 0.99331).abs() < 1e-5);
}

#[test]
fn rows_are_clamped_and_the_first_executed_one_is_fixed() {
    let mut router = Router::new(&conditions(3, 1), 0.1, &RouterInit::default(), 0).unwrap();
    router.set_row(1, &[-7., 0.25]).unwrap();
    assert_eq!(router.logits()[1], [-5., 0.25]);
    for (row, values, expected) in [
        (
            2,
            vec![0., 0.],
            "row: expected below 2, for the first executed row is fixed, found 2",
        ),
        (
            0,
            vec![0.],
            "logits: expected 2 in row 0, one for each sub-module, found 1",
        ),
        (
            0,
            vec![f32::NAN, 0.],
            "logits: expected finite numbers in row 0, found NaN",
        ),
    ] {
        assert_eq!(
            router.set_row(row, &values).unwrap_err().to_string(),
            expected
        );
    }
}

#[test]
fn a_saved_router_is_the_router_and_other_conditions_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("router.safetensors");
    let made_for = conditions(5, 2);
    let router = Router::new(&made_for, 0.1, &RouterInit::default(), 1)
        .unwrap()
        .with_training(serde_json::json!({"beta": 7e-8, "seed": 1}))
        .with_order(2)
        .unwrap();
    router.save(&path).unwrap();
    let read = Router::load(&path).unwrap();
    assert_eq!(read, router);
    assert_eq!(read.fingerprint(), router.fingerprint());
    read.check_fits(&made_for, 0.1, "router").unwrap();
    assert_eq!(
        read.check_fits(&made_for, 0.5, "router")
            .unwrap_err()
            .to_string(),
        "router does not fit: threshold: made for 0.1, found 0.5"
    );
    assert_eq!(
        read.check_fits(&conditions(6, 2), 0.1, "router")
            .unwrap_err()
            .to_string(),
        "router does not fit: steps: made for 5, found 6"
    );
}

#[test]
fn a_file_that_is_no_router_is_refused_by_entry() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("router.safetensors");
    let made_for = serde_json::to_string(&conditions(2, 1)).unwrap();
    let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, tch::Device::Cpu));
    let good = |logits: &Tensor| {
        Checkpoint::new()
            .with("logits", logits)
            .with_string("made_for", &made_for)
            .with_string("threshold", "0.1")
            .with_string("training", "{}")
    };
    good(&zeros(&[2, 2])).save(&path).unwrap();
    Router::load(&path).unwrap();
    let cases = [
        (
            Checkpoint::new(),
            "expected a router saved by fewstep, found no entry `made_for`",
        ),
        (
            good(&zeros(&[3, 2])),
            "logits: expected 2 rows, one for each timestep, found 3",
        ),
        (
            good(&zeros(&[2, 3])),
            "logits: expected 2 in row 0, one for each sub-module, found 3",
        ),
        (
            good(&zeros(&[4])),
            "logits: expected [T, N] of Float, found [4] of Float",
        ),
        (
            good(&zeros(&[2, 2])).with_string("threshold", "x"),
            "entry `threshold`: expected a number, found `x`",
        ),
        (
            good(&zeros(&[2, 2])).with_string("threshold", "1"),
            "threshold: expected above 0 and below 1, found 1",
        ),
        (
            good(&zeros(&[2, 2])).with_string("made_for", "{}"),
            "entry `made_for`: missing field `sampler`",
        ),
    ];
    for (file, expected) in cases {
        file.save(&path).unwrap();
        let e = Router::load(&path).unwrap_err().to_string();
        assert!(
            e.contains("router.safetensors: ") && e.contains(expected),
            "{e}"
        );
    }
}
