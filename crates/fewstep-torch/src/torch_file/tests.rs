mod hostile;

use std::path::PathBuf;

use tch::{Device, Kind};

use super::*;
use crate::Checkpoint;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/parity/torch_file")
        .join(name)
}

/// A published file, or None with a sentence where it is not at hand.
fn published(name: &str) -> Option<PathBuf> {
    let data = std::env::var_os("FEWSTEP_DATA").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"),
        PathBuf::from,
    );
    let path = data.join(name);
    if !path.exists() {
        println!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

fn numbers(shape: &[i64], kind: Kind) -> Tensor {
    let n = shape.iter().product::<i64>();
    ((Tensor::arange(n, (Kind::Int64, Device::Cpu)) * 7).remainder(23) - 11)
        .reshape(shape)
        .to_kind(kind)
}

/// All tensors, `/` between the keys.
fn flat(value: &Value, prefix: &str, into: &mut BTreeMap<String, Tensor>) {
    let mut each = |key: &Value, v: &Value| {
        let key = match key {
            Value::Int(n) => n.to_string(),
            key => key.as_str().unwrap().to_owned(),
        };
        flat(v, &format!("{prefix}/{key}"), into);
    };
    match value {
        Value::Tensor(t) => drop(into.insert(prefix.to_owned(), t.shallow_clone())),
        Value::Dict(items) => items.iter().for_each(|(k, v)| each(k, v)),
        Value::List(items) | Value::Tuple(items) => items
            .iter()
            .zip(0..)
            .for_each(|(v, i)| each(&Value::Int(i), v)),
        _ => {}
    }
}

fn reason(path: &Path) -> String {
    match load(path) {
        Err(Error::File { path: p, reason }) => {
            assert_eq!(p, path);
            assert!(!reason.contains('\n') && reason.len() < 400, "{reason}");
            reason
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_tensor_of_every_fixture_is_what_python_saved() {
    let expected = Checkpoint::load(&fixture("expected.safetensors")).unwrap();
    let mut expected = expected.section("");
    for entry in std::fs::read_dir(fixture("")).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if !expected.keys().any(|k| k.starts_with(&format!("{stem}/"))) {
            continue;
        }
        let mut found = BTreeMap::new();
        flat(&load(&path).unwrap(), &stem, &mut found);
        for (name, tensor) in found {
            let e = expected.remove(&name).unwrap_or_else(|| panic!("{name}"));
            assert_eq!(tensor.kind(), e.kind(), "{name}");
            assert_eq!(tensor, e, "{name}");
            assert!(tensor.is_contiguous() && !tensor.requires_grad(), "{name}");
        }
    }
    assert!(expected.is_empty(), "not found: {:?}", expected.keys());
}

#[test]
fn a_training_checkpoint_gives_its_arguments_and_each_of_its_state_dicts() {
    for name in ["checkpoint.pt", "checkpoint-legacy.pt"] {
        let file = load(&fixture(name)).unwrap();
        let args = file.get("args").unwrap();
        assert!(matches!(args, Value::Object { class, .. } if class == "argparse.Namespace"));
        assert_eq!(args.get("model").unwrap().as_str(), Some("DiT-XL/2"));
        assert_eq!(args.get("num_sampling_steps").unwrap().as_i64(), Some(20));
        assert_eq!(args.get("l1").unwrap().as_f64(), Some(5e-6));
        assert_eq!(args.get("wandb").unwrap().as_bool(), Some(true));
        assert!(matches!(args.get("ckpt"), Some(Value::None)));
        assert_eq!(args.get("sizes").unwrap().as_list().unwrap().len(), 2);
        assert!(
            matches!(file.get("dtype").unwrap(), Value::Object { class, .. } if class == "torch.bfloat16")
        );
        assert!(
            matches!(file.get("device").unwrap(), Value::Object { class, args, .. }
                if class == "torch.device" && args[0].as_str() == Some("cpu"))
        );
        let tensors = load_tensors(&fixture(name), &["absent", "ema", "model"]).unwrap();
        assert_eq!(
            tensors.keys().collect::<Vec<_>>(),
            ["0.bias", "0.weight", "1.0.weight"]
        );
        assert_eq!(tensors["0.weight"].size(), [4, 3]);
        let model = load_tensors(&fixture(name), &["model"]).unwrap();
        let [ema, model] = [&tensors, &model].map(|t| t["0.bias"].shallow_clone());
        assert_ne!(model, ema);
        let state = load_tensors(&fixture(name), &["opt.state"]).unwrap();
        assert_eq!(state["0.exp_avg"].size(), [4, 3]);
        let e = load_tensors(&fixture(name), &["nope", "ema_model"]).unwrap_err();
        assert_eq!(
            e.to_string(),
            format!(
                "{}: expected `nope` or `ema_model` inside, found `model`, `ema`, `opt`, `args`, `dtype`, `device`, `parameter`",
                fixture(name).display()
            )
        );
        let e = load_tensors(&fixture(name), &["args"]).unwrap_err();
        assert!(
            e.to_string()
                .ends_with("expected a dict of tensors in `args`, found none"),
            "{e}"
        );
    }
}

#[test]
fn numbers_text_and_bytes_of_protocols_2_and_4_come_through() {
    for name in ["plain.pt", "plain-protocol-4.pt"] {
        let file = load(&fixture(name)).unwrap();
        let ints = file.get("ints").unwrap().as_list().unwrap();
        let known = [0, -1, 255, 256, 65536, -(1 << 31), 1 << 40, i64::MIN];
        for (i, n) in known.iter().enumerate() {
            assert_eq!(ints[i].as_i64(), Some(*n), "{name}");
        }
        let Value::Object { class, args, .. } = &ints[8] else {
            panic!("{:?}", ints[8]);
        };
        assert_eq!(class, "int");
        assert!(matches!(&args[0], Value::Bytes(b) if b.len() == 13 && b[12] == 16));
        let floats = file.get("floats").unwrap().as_list().unwrap();
        assert_eq!(floats[0].as_f64(), Some(0.1));
        assert_eq!(floats[1].as_f64(), Some(f64::NEG_INFINITY));
        assert_eq!(file.get("text").unwrap().as_str(), Some("naïve 文"));
        let all = (0..=255).collect::<Vec<u8>>();
        assert!(matches!(file.get("bytes").unwrap(), Value::Bytes(b) if *b == all));
        assert!(matches!(file.get("no bytes").unwrap(), Value::Bytes(b) if b.is_empty()));
        let Value::Object { class, args, .. } = file.get("set").unwrap() else {
            panic!("{name}");
        };
        assert_eq!(class, "builtins.set");
        assert_eq!(args[0].as_list().unwrap()[0].as_i64(), Some(3));
        let nested = &file.get("nested").unwrap().as_dict().unwrap()[0];
        assert_eq!(nested.0.as_i64(), Some(1));
        assert_eq!(nested.1.as_list().unwrap().len(), 3);
        assert_eq!(file.get("long").unwrap().as_list().unwrap().len(), 2000);
    }
}

#[test]
fn tensors_that_are_not_dense_are_refused_in_a_sentence() {
    assert_eq!(
        reason(&fixture("sparse.pt")),
        "expected dense tensors, found one that torch rebuilds with `torch._utils._rebuild_sparse_tensor`"
    );
    assert_eq!(
        reason(&fixture("complex.pt")),
        "expected tensors of float32, float64, float16, bfloat16, int64, int32, int16, int8, uint8 or bool, found \
         `torch.ComplexFloatStorage`"
    );
    assert!(reason(&fixture("quantised.pt")).ends_with("found `torch.QInt8Storage`"));
    assert_eq!(
        reason(&fixture("conjugated.pt")),
        "expected plain tensors, found a conjugated or negated view"
    );
}

/// What tests/parity/torch_file.py --check expects of written.pt.
fn to_write() -> Value {
    let kinds = [
        ("float32", Kind::Float),
        ("float64", Kind::Double),
        ("float16", Kind::Half),
        ("bfloat16", Kind::BFloat16),
        ("int64", Kind::Int64),
        ("int32", Kind::Int),
        ("int16", Kind::Int16),
        ("int8", Kind::Int8),
        ("uint8", Kind::Uint8),
        ("bool", Kind::Bool),
    ];
    let object = |class: &str, state| Value::Object {
        class: class.into(),
        args: Vec::new(),
        state,
    };
    let big = [&[0; 12][..], &[16]].concat();
    let base = numbers(&[3, 4], Kind::Float);
    Value::dict([
        (
            "types",
            Value::dict(kinds.map(|(name, kind)| (name, Value::Tensor(numbers(&[2, 3], kind))))),
        ),
        ("transposed", Value::Tensor(base.tr())),
        ("scalar", Value::Tensor(base.get(1).get(2))),
        ("empty", Value::Tensor(base.narrow(0, 0, 0))),
        (
            "args",
            object(
                "argparse.Namespace",
                Some(Box::new(Value::dict([
                    ("l1", Value::Float(5e-6)),
                    ("model", Value::Str("DiT-XL/2".into())),
                    ("ckpt", Value::None),
                ]))),
            ),
        ),
        ("dtype", object("torch.bfloat16", None)),
        (
            "plain",
            Value::List(vec![
                Value::Int(0),
                Value::Int(-1),
                Value::Int(1 << 40),
                Value::Int(i64::MIN),
                Value::Object {
                    class: "int".into(),
                    args: vec![Value::Bytes(big)],
                    state: None,
                },
                Value::Float(0.1),
                Value::Str("naïve 文".into()),
                Value::Bytes((0..=255).collect()),
                Value::Bytes(Vec::new()),
                Value::Tuple(Vec::new()),
                Value::Tuple(vec![Value::Bool(true)]),
                Value::Dict(vec![(Value::Int(1), Value::List(Vec::new()))]),
            ]),
        ),
    ])
}

#[test]
fn what_is_written_are_the_bytes_that_python_was_seen_to_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("written.pt");
    save(&path, &to_write()).unwrap();
    let same = std::fs::read(&path).unwrap() == std::fs::read(fixture("written.pt")).unwrap();
    if !same {
        let kept = dir.keep().join("written.pt");
        panic!(
            "run `python tests/parity/torch_file.py --check {0}` and, where it agrees, put {0} into tests/parity/torch_file",
            kept.display()
        );
    }
    let back = load(&path).unwrap();
    assert_eq!(format!("{back:?}"), format!("{:?}", to_write()));
    let (mut found, mut expected) = (BTreeMap::new(), BTreeMap::new());
    flat(&back, "", &mut found);
    flat(&to_write(), "", &mut expected);
    assert_eq!(found, expected);
}

#[test]
fn what_cannot_be_written_leaves_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kept.pt");
    std::fs::write(&path, "old").unwrap();
    let object = |class: &str| Value::Object {
        class: class.into(),
        args: Vec::new(),
        state: None,
    };
    let complex = Tensor::zeros([1], (Kind::ComplexFloat, Device::Cpu));
    let deep = (0..200).fold(Value::None, |v, _| Value::List(vec![v]));
    for (value, says) in [
        (
            object("Namespace"),
            "expected a class as `module.name`, found `Namespace`",
        ),
        (object("os.system\nc"), "found `os.system"),
        (Value::Tensor(complex), "a tensor has type ComplexFloat"),
        (deep, "nested deeper than 100 levels"),
    ] {
        let e = save(&path, &value).unwrap_err().to_string();
        assert!(e.contains("can't be written") && e.contains(says), "{e}");
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
}

#[test]
fn published_checkpoints_load() {
    for (name, blocks) in [("resnet20-12fca82f.th", 9), ("resnet56-4bfd9763.th", 27)] {
        let Some(path) = published(&format!("weights/{name}")) else {
            continue;
        };
        let file = load(&path).unwrap();
        assert!(file.get("best_prec1").unwrap().as_f64().unwrap() > 91.);
        let tensors = load_tensors(&path, &["state_dict"]).unwrap();
        assert_eq!(tensors["module.linear.weight"].size(), [10, 64]);
        let convolutions = tensors.values().filter(|t| t.dim() == 4).count();
        assert_eq!(convolutions, 2 * blocks + 1);
        assert!(
            tensors
                .values()
                .all(|t| t.isfinite().all().int64_value(&[]) == 1)
        );
    }
    for name in ["taef2_encoder.pth", "taef2_decoder.pth"] {
        if let Some(path) = published(&format!("weights/{name}")) {
            assert!(load_tensors(&path, &[]).unwrap().len() > 20, "{name}");
        }
    }
}

#[test]
fn the_published_router_of_learning_to_cache_loads() {
    let Some(path) = published("routers/l2c-dit-xl-2-256-ddim20.pt") else {
        return;
    };
    let routers = load_tensors(&path, &["routers"]).unwrap();
    assert_eq!(routers.len(), 20);
    assert!(routers.values().all(|t| t.size() == [56]));
    let file = load(&path).unwrap();
    let args = file.get("args").unwrap();
    assert_eq!(args.get("num_sampling_steps").unwrap().as_i64(), Some(20));
    // Its rule: at every second step, what is not above the threshold is taken from the step before.
    let reused = (0..20)
        .step_by(2)
        .map(|i| {
            let p = routers[&format!("{i}.prob")].sigmoid();
            p.le(0.1).sum(Kind::Int64).int64_value(&[])
        })
        .sum::<i64>();
    assert_eq!(reused, 248);
}
