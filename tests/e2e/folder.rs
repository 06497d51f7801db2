//! Who may write to a run folder.

use crate::common::Sandbox;

#[test]
fn a_folder_in_use_is_refused_and_a_left_one_asks_what_to_do() {
    let sandbox = Sandbox::new();
    let long = ["--set", "ann.epochs=100000"];
    let (mut child, began) = sandbox.run_until(&long, "checkpoints/ann/last.safetensors");
    assert!(began);
    for flags in [&[][..], &["--resume"], &["--force"]] {
        let done = sandbox.run(&[&long[..], flags].concat());
        assert!(
            done.sentence()
                .contains("runs/tiny is in use by another process"),
            "{}",
            done.stderr
        );
    }
    assert!(
        child.try_wait().unwrap().is_none(),
        "the first run was disturbed"
    );
    child.kill().unwrap();
    child.wait().unwrap();

    let done = sandbox.run(&long);
    let said = done.sentence();
    assert!(
        said.contains("runs/tiny already holds an unfinished run") && said.contains("--resume"),
        "{said}"
    );
    let done = sandbox.run(&["--resume", "--set", "ann.epochs=3"]);
    let said = done.sentence();
    assert!(
        said.contains("`ann.epochs` was 100000 when the run began and is 3 now"),
        "{said}"
    );

    std::fs::write(sandbox.tiny("notes.txt"), "mine").unwrap();
    sandbox.succeed(&["--force"]);
    assert_eq!(sandbox.summary()["ann"]["epochs"], 2);
    assert_eq!(
        sandbox
            .events()
            .iter()
            .filter(|e| e["phase"] == "ann" && e["kind"] == "epoch")
            .count(),
        2
    );
    assert!(sandbox.tiny("notes.txt").exists());
    let done = sandbox.run(&[]);
    assert!(
        done.sentence().contains("already holds a finished run"),
        "{}",
        done.stderr
    );
}

#[test]
fn resume_and_force_exclude_each_other() {
    let sandbox = Sandbox::new();
    let done = sandbox.run(&["--resume", "--force"]);
    assert!(
        !done.ok && done.stderr.contains("cannot be used with"),
        "{}",
        done.stderr
    );
}
