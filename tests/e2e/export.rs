//! `fewstep export` and `fewstep import`: a run's network out to NIR and ONNX, and in again.

use crate::common::{Done, Sandbox};

#[test]
fn a_trained_network_goes_out_to_nir_and_comes_back_in() {
    let sandbox = Sandbox::new();
    sandbox.succeed(&["--quiet"]);
    let good = |words: &[&str]| -> Done {
        let done = sandbox.fewstep(words);
        assert!(done.ok, "{}", done.stderr);
        done
    };

    let out = good(&["export", "runs/tiny", "--to", "nir", "--stage", "t2"]);
    assert!(
        out.stdout
            .starts_with("runs/tiny/t2.nir: t2 of runs/tiny, "),
        "{}",
        out.stdout
    );
    let said = good(&["import", "runs/tiny/t2.nir", "--output", "runs/back"]);
    assert_eq!(
        said.stdout.trim_end(),
        "runs/back/network.safetensors: 4 layers, 2872 parameters, input [1, 8, 8], 10 classes, T = 2"
    );
    good(&[
        "export",
        "runs/back",
        "--to",
        "nir",
        "--output",
        "again.nir",
    ]);
    let tables = |path: &str| {
        let options = fewstep_interchange::nir::ImportOptions::default();
        let path = sandbox.path(path);
        fewstep_interchange::nir::import(&path, &options, tch::Device::Cpu).unwrap()
    };
    let (first, again) = (tables("runs/tiny/t2.nir"), tables("again.nir"));
    assert_eq!(first.network.tensors(), again.network.tensors());
    for key in ["mean", "std", "classes", "data", "test_accuracy"] {
        assert_eq!(first.notes[key], again.notes[key], "{key}");
    }

    for form in [&["--ann"][..], &["--stage", "t1", "--examples", "8"]] {
        let words = [&["export", "runs/tiny", "--to", "onnx"], form].concat();
        good(&words);
    }
    assert!(sandbox.path("runs/tiny/ann.onnx").exists());
    assert!(
        sandbox
            .path("runs/tiny/t1.onnx.examples.safetensors")
            .exists()
    );

    let refused = |words: &[&str]| sandbox.fewstep(words).sentence().to_owned();
    assert_eq!(
        refused(&["export", "runs/tiny", "--to", "onnx", "--stage", "t2"]),
        "error: --to onnx: expected a stage of one timestep (or --ann), found t2 with 2"
    );
    assert_eq!(
        refused(&["export", "runs/tiny", "--to", "nir", "--ann"]),
        "error: --to nir: expected a spiking stage, found the artificial network (it goes --to onnx)"
    );
    assert_eq!(
        refused(&["export", "runs/tiny", "--to", "nir", "--stage", "t9"]),
        "error: runs/tiny has no stage `t9`; it has ann, t2, t1"
    );
    assert_eq!(
        refused(&["export", "runs/absent", "--to", "nir"]),
        "error: expected the folder of a run, found runs/absent without config.toml"
    );
    assert_eq!(
        refused(&["export", "runs/back", "--to", "nir", "--stage", "t2"]),
        "error: runs/back holds an imported network: it has no stage `t2`"
    );
    assert_eq!(
        refused(&["import", "runs/tiny/t2.nir", "--output", "runs/tiny"]),
        "error: --output: expected a new folder, found runs/tiny with config.toml"
    );
    std::fs::write(sandbox.path("foreign.nir"), "not HDF5").unwrap();
    let said = refused(&["import", "foreign.nir", "--output", "runs/foreign"]);
    assert!(
        said.starts_with("error: foreign.nir: expected a NIR file (HDF5), found something else"),
        "{said}"
    );
}
