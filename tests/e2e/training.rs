//! Training that goes wrong stops with the stage, the layer and what to do.

use crate::common::Sandbox;

#[test]
fn a_learning_rate_out_of_all_bounds_stops_with_stage_and_place() {
    let cases = [
        (
            "ann.learning_rate=1e30",
            "error: stage ann: the loss is NaN in epoch 1, batch 2: parameter `conv1.",
        ),
        (
            "snn.learning_rate=1e38",
            "error: stage t2: the loss is NaN in epoch 1, batch 2: parameter `conv1.",
        ),
    ];
    for (set, expected) in cases {
        let sandbox = Sandbox::new();
        let done = sandbox.run(&["--set", set]);
        let said = done.sentence();
        assert!(
            said.starts_with(expected) && said.contains("lower the learning rate"),
            "{said}"
        );
        assert!(!sandbox.tiny("summary.json").exists());
    }
}

#[test]
fn what_the_last_step_of_an_epoch_broke_is_never_kept() {
    let sandbox = Sandbox::new();
    let done = sandbox.run(&[
        "--set",
        "ann.learning_rate=1e30",
        "--set",
        "ann.batch_size=180",
    ]);
    let said = done.sentence();
    assert!(
        said.starts_with("error: stage ann: after epoch 1 layer `conv1` is the first"),
        "{said}"
    );
    assert!(!sandbox.tiny("checkpoints/ann/best.safetensors").exists());
}

#[test]
fn thresholds_that_kill_the_network_stop_with_stage_and_layer() {
    let sandbox = Sandbox::new();
    let done = sandbox.run(&["--set", "calibration.scale=1e6"]);
    let said = done.sentence();
    assert!(
        said.starts_with("error: stage t2: layer `conv1` is dead"),
        "{said}"
    );
    assert!(
        said.contains("lower the thresholds (calibration.percentile, calibration.scale)"),
        "{said}"
    );
    // A run keeps the config it began with; another scale is another run.
    let again = sandbox.run(&["--resume"]);
    assert!(
        again
            .sentence()
            .contains("`calibration.scale` was 1000000.0 when the run began"),
        "{}",
        again.stderr
    );
}

#[test]
fn a_quick_look_goes_through_all_stages_even_if_the_network_is_dead() {
    let sandbox = Sandbox::new();
    let done = sandbox.succeed(&[
        "--set",
        "calibration.scale=1e6",
        "--set",
        "limits.batches=1",
    ]);
    assert!(
        done.stderr
            .contains("warning: stage t2: no neuron fires in the dead layers `conv1`"),
        "{}",
        done.stderr
    );
    assert_eq!(sandbox.summary()["stages"].as_array().unwrap().len(), 2);
}
