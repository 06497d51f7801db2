use std::collections::BTreeSet;

use fewstep_torch::torch_file::Value;
use tch::{Device, Kind};

use super::*;
use crate::BetaSchedule;
use crate::dit::ComputeAll;
use crate::noise::Respacing;
use crate::random::{self, Use};
use crate::sampler::Prediction;

fn small() -> DitConfig {
    DitConfig {
        depth: 2,
        width: 24,
        heads: 3,
        classes: 10,
        ..DitConfig::named("S/2", 8, 4).unwrap()
    }
}

/// The options that a shape that nobody published needs.
fn heads() -> LoadOptions {
    LoadOptions {
        heads: Some(3),
        ..LoadOptions::default()
    }
}

/// A model whose weights are all random: a new one has many zeros, which hide an error.
fn random_dit() -> Dit {
    let dit = Dit::new(&small(), 0).unwrap();
    let mut rng = random::generator(1, Use::Weights, &[]);
    let _guard = tch::no_grad_guard();
    for (_, mut t) in dit.parameters() {
        t.copy_(&(random::normal(&mut rng, &t.size()).unwrap() * 0.05));
    }
    dit
}

fn output(dit: &Dit) -> Tensor {
    let mut rng = random::generator(2, Use::Training, &[]);
    let x = random::normal(&mut rng, &[2, 4, 8, 8]).unwrap();
    let t = Tensor::from_slice(&[3f32, 999.]);
    let y = Tensor::from_slice(&[3i64, 10]);
    let _guard = tch::no_grad_guard();
    dit.forward(&x, &t, &y, &mut ComputeAll).unwrap()
}

/// As the official code saves it: with pos_embed, the patch embedding a convolution.
fn official_tensors(dit: &Dit) -> BTreeMap<String, Tensor> {
    let mut all: BTreeMap<_, _> = dit.tensors().into_iter().collect();
    let patches = all["x_embedder.proj.weight"].view([24, 4, 2, 2]);
    all.insert("x_embedder.proj.weight".into(), patches);
    all
}

fn value(tensors: &BTreeMap<String, Tensor>) -> Value {
    Value::dict(
        tensors
            .iter()
            .map(|(name, t)| (name.clone(), Value::Tensor(t.shallow_clone()))),
    )
}

fn zeros(size: &[i64]) -> Tensor {
    Tensor::zeros(size, (Kind::Float, Device::Cpu))
}

fn says<T: std::fmt::Debug>(result: Result<T>, text: &str) {
    let e = result.unwrap_err().to_string();
    assert!(e.contains(text), "{e}\n{text}");
}

const CONFIG: &str = r#"{
  "_class_name": "DiTTransformer2DModel", "_diffusers_version": "0.30.0", "activation_fn": "gelu-approximate",
  "attention_bias": true, "attention_head_dim": 8, "dropout": 0.0, "in_channels": 4, "norm_elementwise_affine": false,
  "norm_eps": 1e-05, "norm_num_groups": 32, "norm_type": "ada_norm_zero", "num_attention_heads": 3,
  "num_embeds_ada_norm": 10, "num_layers": 2, "out_channels": 8, "patch_size": 2, "sample_size": 8, "upcast_attention": false
}"#;

/// Official names without their ends, and those of diffusers that hold the same numbers, pieces of one or copies. `#` is a
/// block.
const MAPPING: [(&str, &[&str]); 11] = [
    ("x_embedder.proj", &["pos_embed.proj"]),
    (
        "t_embedder.mlp.0",
        &[
            "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1",
            "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1",
        ],
    ),
    (
        "t_embedder.mlp.2",
        &[
            "transformer_blocks.0.norm1.emb.timestep_embedder.linear_2",
            "transformer_blocks.1.norm1.emb.timestep_embedder.linear_2",
        ],
    ),
    (
        "y_embedder.embedding_table",
        &[
            "transformer_blocks.0.norm1.emb.class_embedder.embedding_table",
            "transformer_blocks.1.norm1.emb.class_embedder.embedding_table",
        ],
    ),
    (
        "blocks.#.adaLN_modulation.1",
        &["transformer_blocks.#.norm1.linear"],
    ),
    (
        "blocks.#.attn.qkv",
        &[
            "transformer_blocks.#.attn1.to_q",
            "transformer_blocks.#.attn1.to_k",
            "transformer_blocks.#.attn1.to_v",
        ],
    ),
    (
        "blocks.#.attn.proj",
        &["transformer_blocks.#.attn1.to_out.0"],
    ),
    ("blocks.#.mlp.fc1", &["transformer_blocks.#.ff.net.0.proj"]),
    ("blocks.#.mlp.fc2", &["transformer_blocks.#.ff.net.2"]),
    ("final_layer.adaLN_modulation.1", &["proj_out_1"]),
    ("final_layer.linear", &["proj_out_2"]),
];

/// The table for two blocks: official name, those of diffusers, and whether those are pieces of it.
fn mapping() -> Vec<(String, Vec<String>, bool)> {
    let mut all = Vec::new();
    for (official, theirs) in MAPPING {
        let blocks = if official.contains('#') { 2 } else { 1 };
        for block in 0..blocks {
            let name = |n: &str| n.replace('#', &block.to_string());
            let pieces = official.ends_with("qkv");
            all.push((
                name(official),
                theirs.iter().map(|n| name(n)).collect(),
                pieces,
            ));
        }
    }
    all
}

/// Every tensor of diffusers' layout filled with a number of its own, copies with the same one.
fn numbered() -> BTreeMap<String, Tensor> {
    let mut number = 0.;
    let mut all = BTreeMap::new();
    for (name, t) in diffusers::to_diffusers(&random_dit()).unwrap() {
        let (stem, end) = name.rsplit_once('.').unwrap();
        let copy = mapping()
            .into_iter()
            .find(|(_, theirs, pieces)| !pieces && theirs.iter().any(|n| n == stem));
        let first = copy.map(|(_, theirs, _)| format!("{}.{end}", theirs[0]));
        let value = match first.and_then(|f| all.get(&f)) {
            Some(first) => Tensor::shallow_clone(first),
            None => {
                number += 1.;
                t.full_like(number)
            }
        };
        all.insert(name, value);
    }
    assert!(number > 30.);
    all
}

#[test]
fn every_official_tensor_holds_the_numbers_of_its_name_in_diffusers() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), CONFIG).unwrap();
    let theirs = numbered();
    Checkpoint::new()
        .with_all(
            "",
            theirs.iter().map(|(n, t)| (n.clone(), t.shallow_clone())),
        )
        .save(&folder.path().join("diffusion_pytorch_model.safetensors"))
        .unwrap();
    let dit = dit(folder.path(), &LoadOptions::default()).unwrap();
    assert_eq!(dit.config(), &small());
    let mut seen = BTreeSet::new();
    for (name, t) in dit.parameters() {
        let (stem, end) = name.rsplit_once('.').unwrap();
        let (_, places, pieces) = mapping().into_iter().find(|(o, ..)| o == stem).unwrap();
        let pieces = match pieces {
            true => t.chunk(places.len() as i64, 0),
            false => places.iter().map(|_| t.shallow_clone()).collect(),
        };
        for (place, piece) in places.iter().zip(pieces) {
            let place = format!("{place}.{end}");
            assert_eq!(
                piece.reshape(theirs[&place].size()),
                theirs[&place],
                "{place}"
            );
            seen.insert(place);
        }
    }
    assert!(seen.iter().eq(theirs.keys()));
}

#[test]
fn the_way_to_diffusers_and_back_changes_nothing() {
    let theirs = to_diffusers(&random_dit()).unwrap();
    let official = official_tensors(&random_dit());
    let qkv = official["blocks.1.attn.qkv.weight"].shallow_clone();
    for (i, letter) in ["q", "k", "v"].into_iter().enumerate() {
        let name = format!("transformer_blocks.1.attn1.to_{letter}.weight");
        assert_eq!(theirs[&name], qkv.narrow(0, 24 * i as i64, 24));
    }
    assert_eq!(theirs["pos_embed.proj.weight"].size(), [24, 4, 2, 2]);

    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("transformer");
    std::fs::create_dir(&inner).unwrap();
    std::fs::write(inner.join("config.json"), CONFIG).unwrap();
    let bin = inner.join("diffusion_pytorch_model.bin");
    torch_file::save(&bin, &value(&theirs)).unwrap();
    let expected = output(&random_dit());
    // The pipeline's folder, its transformer, and the file itself.
    for path in [folder.path(), &inner, &bin] {
        let dit = dit(path, &LoadOptions::default()).unwrap();
        assert_eq!(output(&dit), expected, "{}", path.display());
    }
    let other = LoadOptions {
        convention: Convention::Diffusers,
        ..LoadOptions::default()
    };
    let other = dit(&inner, &other).unwrap();
    assert_eq!(other.config().convention, Convention::Diffusers);
    assert_ne!(output(&other), expected);
}

#[test]
fn one_error_lists_all_that_does_not_fit_under_both_names() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), CONFIG).unwrap();
    let path = folder.path().join("diffusion_pytorch_model.bin");
    let mut theirs = numbered();
    theirs.remove("transformer_blocks.1.attn1.to_k.bias");
    theirs.insert("proj_out_1.weight".into(), zeros(&[48, 23]));
    theirs.insert("norm_out.weight".into(), zeros(&[24]));
    theirs.insert(
        "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias".into(),
        zeros(&[24]),
    );
    torch_file::save(&path, &value(&theirs)).unwrap();
    let e = dit(folder.path(), &LoadOptions::default()).unwrap_err();
    assert_eq!(
        e.to_string(),
        format!(
            "{} does not fit: \
             `transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias` differs from its copy in another block, and \
             there is one `t_embedder.mlp.0.bias` for all; \
             `transformer_blocks.1.attn1.to_k.bias` (officially `blocks.1.attn.qkv.bias`) is missing; \
             `proj_out_1.weight` (officially `final_layer.adaLN_modulation.1.weight`) is [48, 23], expected [48, 24]; \
             `norm_out.weight` is not expected",
            path.display()
        )
    );
    // The official layout as well.
    let path = folder.path().join("official.pt");
    let mut ours = official_tensors(&random_dit());
    ours.remove("blocks.0.attn.proj.bias");
    ours.insert("blocks.1.mlp.fc2.weight".into(), zeros(&[24, 95]));
    ours.insert("extra".into(), zeros(&[1]));
    torch_file::save(&path, &value(&ours)).unwrap();
    assert_eq!(
        dit(&path, &heads()).unwrap_err().to_string(),
        format!(
            "{} does not fit: `blocks.0.attn.proj.bias` is missing; `blocks.1.mlp.fc2.weight` is [24, 95], expected \
             [24, 96]; `extra` is not expected",
            path.display()
        )
    );
    torch_file::save(&path, &value(&[("w".into(), zeros(&[1]))].into())).unwrap();
    says(
        dit(&path, &heads()),
        "does not fit: `x_embedder.proj.weight` is missing; `y_embedder.embedding_table.weight` is missing",
    );
}

#[test]
fn official_files_give_their_shape_and_a_training_checkpoint_its_average() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    let model = official_tensors(&random_dit());
    let expected = output(&random_dit());
    let new = official_tensors(&Dit::new(&small(), 5).unwrap());
    let wrapped = model
        .iter()
        .map(|(n, t)| (format!("module.{n}"), t.shallow_clone()))
        .collect();
    let args = Value::Object {
        class: "argparse.Namespace".into(),
        args: Vec::new(),
        state: Some(Box::new(Value::dict([("epochs", Value::Int(3))]))),
    };
    for file in [
        value(&model),
        value(&wrapped),
        Value::dict([
            ("model", value(&new)),
            ("ema", value(&model)),
            ("opt", Value::dict([("state", value(&new))])),
            ("args", args),
        ]),
    ] {
        torch_file::save(&path, &file).unwrap();
        let dit = dit(&path, &heads()).unwrap();
        assert_eq!(dit.config(), &small());
        assert_eq!(output(&dit), expected);
    }
    // SiT's files may come without the position embedding.
    let mut bare = official_tensors(&random_dit());
    bare.remove("pos_embed");
    torch_file::save(&path, &value(&bare)).unwrap();
    says(dit(&path, &heads()), "has no pos_embed");
    let options = LoadOptions {
        input_size: Some(8),
        ..heads()
    };
    assert_eq!(output(&dit(&path, &options).unwrap()), expected);
    let whole = LoadOptions {
        config: Some(small()),
        ..LoadOptions::default()
    };
    assert_eq!(output(&dit(&path, &whole).unwrap()), expected);
    bare.insert("pos_embed".into(), zeros(&[1, 16, 24]));
    torch_file::save(&path, &value(&bare)).unwrap();
    says(dit(&path, &heads()), "pos_embed");
}

#[test]
fn files_of_our_own_say_everything_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let expected = output(&random_dit());
    random_dit().save(&path, Kind::Float).unwrap();
    assert_eq!(
        output(&dit(&path, &LoadOptions::default()).unwrap()),
        expected
    );
    // A checkpoint of training: the average.
    Checkpoint::new()
        .with_string("dit", serde_json::to_string(&small()).unwrap())
        .with_all("model/", Dit::new(&small(), 5).unwrap().parameters())
        .with_all("ema/", random_dit().parameters())
        .save(&path)
        .unwrap();
    assert_eq!(
        output(&dit(&path, &LoadOptions::default()).unwrap()),
        expected
    );
    // Official names in somebody else's safetensors.
    Checkpoint::new()
        .with_all("", official_tensors(&random_dit()))
        .save(&path)
        .unwrap();
    assert_eq!(output(&dit(&path, &heads()).unwrap()), expected);
}

#[test]
fn published_shapes_are_recognised_and_others_asked_for() {
    for name in ["S/2", "S/8", "B/4", "L/8", "XL/2"] {
        let config = DitConfig::named(name, 32, 4).unwrap();
        // One number seen as many: no memory for any of them.
        let mut tensors: BTreeMap<_, _> = official::layout(&config)
            .into_iter()
            .map(|(name, size)| (name, zeros(&[1]).expand(&size, true)))
            .collect();
        tensors.insert(
            "pos_embed".into(),
            zeros(&[1]).expand([1, config.tokens(), config.width], true),
        );
        let found = official::infer(&tensors, &LoadOptions::default(), "it").unwrap();
        assert_eq!(found, config, "{name}");
        let no_null = LoadOptions {
            classes: Some(1001),
            ..LoadOptions::default()
        };
        let found = official::infer(&tensors, &no_null, "it").unwrap();
        assert_eq!((found.classes, found.label_rows()), (1001, 1001));
    }
    says(
        official::infer(
            &official_tensors(&random_dit()),
            &LoadOptions::default(),
            "it",
        ),
        "heads: expected the number of attention heads, which no tensor tells, found none, and it is none of the published \
         shapes (depth 2, width 24)",
    );
}

#[test]
fn a_path_that_holds_no_dit_is_refused_in_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let options = LoadOptions::default();
    says(
        dit(folder.path(), &options),
        "expected a folder of diffusers",
    );
    says(dit(&folder.path().join("absent"), &options), "No such file");
    let config = folder.path().join("config.json");
    std::fs::write(&config, CONFIG).unwrap();
    says(
        dit(folder.path(), &options),
        "expected diffusion_pytorch_model.safetensors or .bin in the folder, found neither",
    );
    let bin = folder.path().join("diffusion_pytorch_model.bin");
    torch_file::save(&bin, &value(&numbered())).unwrap();
    for (from, to, says_what) in [
        (
            "gelu-approximate",
            "geglu",
            "`activation_fn`: expected gelu-approximate, found geglu",
        ),
        (
            "\"out_channels\": 8",
            "\"out_channels\": 5",
            "`out_channels`: expected in_channels or twice as many, found 5",
        ),
        (
            "\"num_layers\": 2",
            "\"num_layers\": -1",
            "depth: expected 1 to 1048576, found -1",
        ),
        ("\"num_layers\": 2,", "", "missing field `num_layers`"),
        ("{", "", "expected a config of diffusers"),
    ] {
        std::fs::write(&config, CONFIG.replacen(from, to, 1)).unwrap();
        says(dit(folder.path(), &options), says_what);
    }
    std::fs::write(&config, CONFIG.replace("1e-05", "1e-06")).unwrap();
    assert!(dit(folder.path(), &options).is_ok());
    let other = LoadOptions {
        convention: Convention::Diffusers,
        ..options
    };
    says(
        dit(folder.path(), &other),
        "`norm_eps`: expected 1e-5, found 0.000001",
    );
}

#[test]
fn scheduler_configs_become_schedules() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scheduler");
    std::fs::create_dir(&path).unwrap();
    let path = path.join("scheduler_config.json");
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        scheduler(folder.path())
    };
    // facebook/DiT-XL-2-256.
    let dit = r#"{"_class_name": "DDIMScheduler", "_diffusers_version": "0.12.0", "beta_end": 0.02, "beta_schedule": "linear",
        "beta_start": 0.0001, "clip_sample": false, "num_train_timesteps": 1000, "prediction_type": "epsilon",
        "set_alpha_to_one": true, "steps_offset": 0, "trained_betas": null}"#;
    let expected = SchedulerConfig {
        betas: BetaSchedule::default(),
        prediction: Prediction::Epsilon,
        respacing: Respacing::Leading,
        clip_denoised: false,
    };
    assert_eq!(read(dit).unwrap(), expected);
    let other = r#"{"_class_name": "DPMSolverMultistepScheduler", "beta_start": 0.00085, "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}"#;
    let expected = SchedulerConfig {
        betas: BetaSchedule::scaled_linear(),
        prediction: Prediction::V,
        respacing: Respacing::Linspace,
        clip_denoised: false,
    };
    assert_eq!(read(other).unwrap(), expected);
    assert!(
        read(r#"{"_class_name": "DDPMScheduler"}"#)
            .unwrap()
            .clip_denoised
    );
    for (text, expected) in [
        (
            r#"{"num_train_timesteps": 500}"#,
            "`num_train_timesteps`: expected 1000, found 500",
        ),
        (
            r#"{"beta_schedule": "sigmoid"}"#,
            "`beta_schedule`: expected linear",
        ),
        (
            r#"{"prediction_type": "flow"}"#,
            "`prediction_type`: expected epsilon, v_prediction or sample, found flow",
        ),
        (
            r#"{"steps_offset": 1}"#,
            "`steps_offset`: expected 0, found 1",
        ),
        (
            r#"{"trained_betas": [0.1]}"#,
            "`trained_betas`: expected null",
        ),
        (
            r#"{"beta_start": 2}"#,
            "`beta_start`: expected a number between 0 and 1, found 2",
        ),
    ] {
        says(read(text), expected);
    }
}

#[test]
fn a_vae_of_either_age_comes_under_todays_names() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("vae");
    std::fs::create_dir(&inner).unwrap();
    std::fs::write(
        inner.join("config.json"),
        r#"{"scaling_factor": 0.13025, "latent_channels": 4}"#,
    )
    .unwrap();
    let names = [
        (
            "decoder.mid_block.attentions.0.query.weight",
            "decoder.mid_block.attentions.0.to_q.weight",
        ),
        (
            "encoder.mid_block.attentions.0.key.bias",
            "encoder.mid_block.attentions.0.to_k.bias",
        ),
        (
            "encoder.mid_block.attentions.0.value.bias",
            "encoder.mid_block.attentions.0.to_v.bias",
        ),
        (
            "decoder.mid_block.attentions.0.proj_attn.weight",
            "decoder.mid_block.attentions.0.to_out.0.weight",
        ),
        (
            "decoder.mid_block.attentions.0.group_norm.weight",
            "decoder.mid_block.attentions.0.group_norm.weight",
        ),
        (
            "decoder.mid_block.attentions.0.to_q.bias",
            "decoder.mid_block.attentions.0.to_q.bias",
        ),
        ("quant_conv.weight", "quant_conv.weight"),
    ];
    let size = |name: &str| match name {
        n if n.ends_with("query.weight") || n.starts_with("quant") => vec![3, 3, 1, 1],
        _ => vec![3],
    };
    let all = names
        .map(|(old, _)| (old.to_owned(), zeros(&size(old))))
        .into();
    torch_file::save(&inner.join("diffusion_pytorch_model.bin"), &value(&all)).unwrap();
    for path in [folder.path(), &inner] {
        let vae = vae(path).unwrap();
        assert_eq!(vae.scaling_factor, 0.13025);
        let expected: BTreeSet<_> = names.iter().map(|(_, new)| *new).collect();
        assert!(vae.tensors.keys().map(String::as_str).eq(expected));
        assert_eq!(vae.tensors[names[0].1].size(), [3, 3]);
        assert_eq!(vae.tensors["quant_conv.weight"].size(), [3, 3, 1, 1]);
    }
}
