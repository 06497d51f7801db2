//! Router files of Learning-to-Cache and HarmoniCa. Both are `torch.save`d dicts: `routers` with the raw logits of row r under
//! `r.prob` (float32 `[N]`), `opt` with the state of AdamW, and `args`, an `argparse.Namespace`.

use std::path::Path;

use fewstep_torch::torch_file::{self, Value};
use serde_json::json;
use tch::{Kind, Tensor};

use super::Router;
use crate::{Conditions, Error, Result};

/// Reads a published router, of which only the caller knows what it was made for. The training arguments in the file become
/// [`Router::training`]. Logits stay as they are: what they mean in which row is up to the policy
/// ([`harmonica`](crate::policy::harmonica) or [`l2c`](crate::policy::l2c)).
///
/// # Errors
/// No such file, another layout, or another number of steps or sub-modules than `made_for` has.
pub fn import(path: &Path, made_for: &Conditions, threshold: f64) -> Result<Router> {
    let file = torch_file::load(path)?;
    let routers = file.get("routers").map(Value::tensors).unwrap_or_default();
    if routers.is_empty() {
        return Err(Error::file(
            path,
            "expected a published router with tensors in `routers`, found none",
        ));
    }
    let logits = (0..routers.len())
        .map(|row| {
            let key = format!("{row}.prob");
            let t = routers.get(&key).ok_or_else(|| {
                let found: Vec<&str> = routers.keys().take(3).map(String::as_str).collect();
                let reason = format!(
                    "routers: expected `{key}`, found `{}` …",
                    found.join("`, `")
                );
                Error::file(path, reason)
            })?;
            if t.dim() != 1 {
                let reason = format!("routers.{key}: expected [N], found {:?}", t.size());
                return Err(Error::file(path, reason));
            }
            Ok(Vec::<f32>::try_from(t.f_to_kind(Kind::Float)?)?)
        })
        .collect::<Result<Vec<_>>>()?;
    let router = Router::from_logits(made_for, threshold, logits)
        .map_err(|e| Error::file(path, e.to_string()))?;
    let args: serde_json::Map<_, _> = match file.get("args") {
        Some(Value::Object {
            state: Some(state), ..
        }) => attributes(state).collect(),
        _ => serde_json::Map::new(),
    };
    Ok(router.with_training(json!({ "published_args": args })))
}

/// The attributes that are plain values.
fn attributes(state: &Value) -> impl Iterator<Item = (String, serde_json::Value)> {
    state
        .as_dict()
        .unwrap_or_default()
        .iter()
        .filter_map(|(key, value)| {
            let value = match value {
                Value::None => json!(null),
                Value::Bool(b) => json!(b),
                Value::Int(i) => json!(i),
                Value::Float(x) => json!(x),
                Value::Str(s) => json!(s),
                _ => return None,
            };
            Some((key.as_str()?.to_owned(), value))
        })
}

/// Writes HarmoniCa's layout, which its sampling script reads with its own options `--path` and `--thres`. The optimiser's state
/// is empty. Arguments that came from an import go back.
///
/// # Errors
/// A router whose reused outputs are forecast, which that program can't do. The file can't be written; what stood there before stays.
pub fn export(router: &Router, path: &Path) -> Result<()> {
    if router.order() > 0 {
        let expected = "0, for HarmoniCa's program knows no forecast";
        return Err(Error::option("order", expected, router.order()));
    }
    // HarmoniCa's rule reads every row; Learning-to-Cache trains and reads the even ones only.
    let even_only = router.training()["training"] == "l2c";
    let routers = router
        .logits()
        .iter()
        .enumerate()
        .map(|(row, logits)| {
            let computed = even_only && (row % 2 == 1 || row + 1 == router.steps());
            let t = match computed {
                true => Tensor::f_full(
                    [logits.len() as i64],
                    f64::from(crate::LOGIT_LIMIT),
                    (tch::Kind::Float, tch::Device::Cpu),
                )?,
                false => Tensor::f_from_slice(logits)?,
            };
            Ok((format!("{row}.prob"), Value::Tensor(t)))
        })
        .collect::<Result<Vec<_>>>()?;
    let optimiser = Value::dict([
        ("state", Value::Dict(Vec::new())),
        ("param_groups", Value::List(Vec::new())),
    ]);
    let steps = router.steps() as i64;
    let imported = router.training()["published_args"].as_object();
    let mut ours = vec![
        ("num_sampling_steps", Value::Int(steps)),
        ("cfg_scale", Value::Float(router.made_for().guidance.scale)),
    ];
    if imported.is_none() {
        // What was imported has it if its program was HarmoniCa; giving it to another would change the rule it is read by.
        ours.push(("ste_threshold", Value::Float(router.threshold())));
    }
    let mut args: Vec<(String, Value)> = imported
        .into_iter()
        .flatten()
        .filter(|(key, _)| ours.iter().all(|(k, _)| k != key))
        .filter_map(|(key, value)| Some((key.clone(), plain(value)?)))
        .collect();
    args.extend(ours.into_iter().map(|(key, value)| (key.to_owned(), value)));
    let namespace = Value::Object {
        class: "argparse.Namespace".into(),
        args: Vec::new(),
        state: Some(Box::new(Value::dict(args))),
    };
    let file = Value::dict([
        ("routers", Value::dict(routers)),
        ("opt", optimiser),
        ("args", namespace),
    ]);
    Ok(torch_file::save(path, &file)?)
}

fn plain(value: &serde_json::Value) -> Option<Value> {
    use serde_json::Value as Json;
    Some(match value {
        Json::Null => Value::None,
        Json::Bool(b) => Value::Bool(*b),
        Json::Number(n) => match n.as_i64() {
            Some(i) => Value::Int(i),
            None => Value::Float(n.as_f64()?),
        },
        Json::String(s) => Value::Str(s.clone()),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use fewstep_diffusion::{DitConfig, Guidance};

    use super::*;
    use crate::testing::conditions;
    use crate::{RouterInit, policy};

    /// DiT-XL/2 at 256 pixels with 20 steps of DDIM.
    fn published() -> Conditions {
        let timesteps = [
            0, 53, 105, 158, 210, 263, 315, 368, 421, 473, 526, 578, 631, 684, 736, 789, 841, 894,
            946, 999,
        ];
        Conditions {
            model: None,
            sampler: "ddim".into(),
            timesteps: timesteps.map(f64::from).to_vec(),
            guidance: Guidance::scale(1.5),
            shape: DitConfig::named("DiT-XL/2", 32, 4).unwrap(),
        }
    }

    #[test]
    fn learning_to_caches_own_router_reuses_as_many_as_it_says() {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let data = std::env::var_os("FEWSTEP_DATA")
            .map_or_else(|| repository.join("../shared/data"), PathBuf::from);
        let path = data.join("routers/l2c-dit-xl-2-256-ddim20.pt");
        if !path.exists() {
            println!("skipped: the published router is not in the data folder");
            return;
        }
        let router = import(&path, &published(), 0.1).unwrap();
        let plan = policy::l2c(&router, 0.1).unwrap();
        assert_eq!((plan.reused(), plan.steps() * plan.modules()), (248, 1120));
        assert!((100. * plan.utilisation() - 22.14).abs() < 0.005);
        // The first row is stored as it was drawn, and is not 1; its probabilities are not what makes it compute.
        assert!((router.logits()[19][0] + 0.6014).abs() < 1e-4);
        assert_eq!(router.training()["published_args"]["l1"], json!(5e-6));
        // Read by HarmoniCa's rule, rows that nothing trained would reuse as well.
        assert!(policy::harmonica(&router, 0.1).unwrap().reused() > 248);

        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("copy.pt");
        export(&router, &copy).unwrap();
        let again = import(&copy, &published(), 0.1).unwrap();
        assert_eq!(again.logits(), router.logits());
        assert_eq!(
            again.training()["published_args"]["model"],
            json!("DiT-XL/2")
        );

        let e = import(&path, &conditions(20, 2), 0.1)
            .unwrap_err()
            .to_string();
        assert!(
            e.ends_with("logits: expected 4 in row 0, one for each sub-module, found 56"),
            "{e}"
        );
    }

    #[test]
    fn a_router_of_learning_to_cache_reuses_the_same_under_harmonicas_rule_once_exported() {
        let logits = vec![vec![-4.; 4]; 5];
        let router = Router::from_logits(&conditions(5, 2), 0.1, logits)
            .unwrap()
            .with_training(json!({"training": "l2c"}));
        let expected = crate::policy::l2c(&router, 0.1).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("router.pt");
        export(&router, &path).unwrap();
        let back = import(&path, &conditions(5, 2), 0.1).unwrap();
        let found = crate::policy::harmonica(&back, 0.1).unwrap();
        assert!((0..5).all(|row| found.row(row) == expected.row(row)));
        assert!(found.reused() > 0);
    }

    #[test]
    fn an_exported_router_comes_back_with_its_settings() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("router.pt");
        let c = conditions(12, 2);
        let router = Router::new(&c, 0.1, &RouterInit::default(), 0).unwrap();
        export(&router, &path).unwrap();
        let back = import(&path, &c, 0.1).unwrap();
        assert_eq!(back.logits(), router.logits());
        let args = &back.training()["published_args"];
        assert_eq!(
            *args,
            json!({"num_sampling_steps": 12, "cfg_scale": 1.5, "ste_threshold": 0.1})
        );

        torch_file::save(&path, &Value::dict([("model", Value::None)])).unwrap();
        let e = import(&path, &c, 0.1).unwrap_err().to_string();
        assert!(
            e.ends_with(
                "router.pt: expected a published router with tensors in `routers`, found none"
            ),
            "{e}"
        );
        let one = Value::Tensor(Tensor::from_slice(&[1f32]));
        torch_file::save(
            &path,
            &Value::dict([("routers", Value::dict([("a.prob", one)]))]),
        )
        .unwrap();
        let e = import(&path, &c, 0.1).unwrap_err().to_string();
        assert!(
            e.ends_with("routers: expected `0.prob`, found `a.prob` …"),
            "{e}"
        );
    }
}
