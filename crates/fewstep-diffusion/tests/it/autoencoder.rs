//! Autoencoders against diffusers' AutoencoderKL and the tiny autoencoder (`autoencoder.safetensors`, made by `autoencoder.py`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fewstep_diffusion::Convention;
use fewstep_diffusion::autoencoder::{
    self, Autoencoder, AutoencoderKl, KlConfig, TinyAutoencoder, TinyConfig, to_pixels,
};
use fewstep_diffusion::random::{ImageNoise, NoiseSource};
use fewstep_torch::Checkpoint;
use tch::{Device, Kind, Tensor};

use crate::{difference, fixture};

/// Relative to the largest element.
const TOLERANCE: f64 = 1e-4;

fn kl_config(file: &Checkpoint) -> KlConfig {
    let meta: serde_json::Value = serde_json::from_str(file.string("fewstep").unwrap()).unwrap();
    serde_json::from_value(meta["kl"].clone()).unwrap()
}

fn kl(file: &Checkpoint, change: impl FnOnce(&mut KlConfig)) -> AutoencoderKl {
    let mut config = kl_config(file);
    change(&mut config);
    AutoencoderKl::from_tensors(&config, file.section("kl/model/"), "the fixture").unwrap()
}

fn assert_close(found: &Tensor, expected: &Tensor, what: &str) {
    let off = difference(found, expected);
    println!("{what}: off by {off:.1e}");
    assert!(off < TOLERANCE, "{what}: off by {off:e}");
}

#[test]
fn the_posterior_of_images_is_that_of_diffusers() {
    let file = fixture("autoencoder");
    let found = kl(&file, |_| ())
        .posterior(file.tensor("kl/image").unwrap())
        .unwrap();
    assert_close(&found.mean, file.tensor("kl/mean").unwrap(), "mean");
    assert_close(&found.logvar, file.tensor("kl/logvar").unwrap(), "logvar");
}

#[test]
fn latents_are_scaled_by_0_18215_as_published_or_by_what_the_config_says() {
    let file = fixture("autoencoder");
    let get = |name: &str| file.tensor(name).unwrap();
    let published = kl(&file, |_| ());
    assert_eq!(published.config().scaling_factor, 0.18215);
    let stable_diffusion_3 = kl(&file, |c| {
        (c.scaling_factor, c.shift_factor) = (1.5305, 0.0609);
    });
    for (model, shift, scale) in [
        (published, 0., 0.18215),
        (stable_diffusion_3, 0.0609, 1.5305),
    ] {
        let latents = model.encode(get("kl/image"), None).unwrap();
        assert_close(&latents, &((get("kl/mean") - shift) * scale), "encoded");
        let latents = (get("kl/latent") - shift) * scale;
        let images = model.decode(&latents).unwrap();
        assert_close(&images, get("kl/decoded"), "decoded");
    }
}

#[test]
fn a_sampled_latent_is_the_mean_plus_its_deviation_times_the_noise() {
    let file = fixture("autoencoder");
    let model = kl(&file, |_| ());
    let image = file.tensor("kl/image").unwrap();
    let mean = file.tensor("kl/mean").unwrap();
    let deviation = (file.tensor("kl/logvar").unwrap() / 2.).exp();
    let mut source = ImageNoise::new(3, 0..2);
    let noise = source.noise(0, mean).unwrap();
    let expected = mean + &deviation * &noise;
    let given = model.posterior(image).unwrap().sample(&noise).unwrap();
    assert_close(&given, &expected, "with given noise");
    let drawn = model.encode(image, Some(&mut source)).unwrap();
    assert_close(&drawn, &(expected * 0.18215), "with drawn noise");
}

#[test]
fn the_logarithm_of_the_variance_stays_between_minus_30_and_20() {
    let file = fixture("autoencoder");
    let mut tensors = file.section("kl/model/");
    let bias = Tensor::from_slice(&[0f32, 0., 0., 0., 1e3, 1e3, -1e3, -1e3]);
    tensors.insert("quant_conv.bias".into(), bias);
    let model = AutoencoderKl::from_tensors(&kl_config(&file), tensors, "the fixture").unwrap();
    let logvar = model
        .posterior(file.tensor("kl/image").unwrap())
        .unwrap()
        .logvar;
    let all = |channels: i64, value: f64| {
        let (least, most) = (
            logvar.narrow(1, channels, 2).min(),
            logvar.narrow(1, channels, 2).max(),
        );
        least.double_value(&[]) == value && most.double_value(&[]) == value
    };
    assert!(all(0, 20.) && all(2, -30.));
}

#[test]
fn the_older_names_of_attention_are_accepted_as_convolutions_and_as_matrices() {
    let file = fixture("autoencoder");
    let older: BTreeMap<String, Tensor> = file
        .section("kl/model/")
        .into_iter()
        .map(|(name, t)| {
            let new = name.clone();
            let name = name
                .replace(".to_q.", ".query.")
                .replace(".to_k.", ".key.")
                .replace(".to_v.", ".value.")
                .replace(".to_out.0.", ".proj_attn.");
            let convolution = name != new && name.starts_with("encoder") && t.dim() == 2;
            let size = t.size();
            match convolution {
                true => (name, t.view([size[0], size[1], 1, 1])),
                false => (name, t),
            }
        })
        .collect();
    assert!(older.contains_key("decoder.mid_block.attentions.0.proj_attn.weight"));
    let model = AutoencoderKl::from_tensors(&kl_config(&file), older, "older").unwrap();
    let today: BTreeMap<_, _> = model.tensors().into_iter().collect();
    assert_eq!(today, file.section("kl/model/"));
}

#[test]
fn tensors_that_are_missing_extra_or_misshaped_are_listed() {
    let file = fixture("autoencoder");
    let mut tensors = file.section("kl/model/");
    let _ = tensors.remove("encoder.conv_in.bias").unwrap();
    let bias = tensors.remove("quant_conv.bias").unwrap();
    tensors.insert("decoder.conv_out.bias".into(), bias.shallow_clone());
    tensors.insert("loss.logvar".into(), bias);
    let config = kl_config(&file);
    let error = AutoencoderKl::from_tensors(&config, tensors, "x.safetensors").unwrap_err();
    assert_eq!(
        error.to_string(),
        "x.safetensors does not fit: `encoder.conv_in.bias` is missing; `quant_conv.bias` is missing; \
         `decoder.conv_out.bias` is [8], expected [3]; `loss.logvar` is not expected"
    );
    let error = TinyAutoencoder::from_tensors(BTreeMap::new(), "x.pth").unwrap_err();
    assert_eq!(
        error.to_string(),
        "x.pth does not fit a tiny autoencoder: `decoder.1.weight` is missing"
    );
}

#[test]
fn images_and_latents_of_another_shape_are_refused_in_words() {
    let model = kl(&fixture("autoencoder"), |_| ());
    let zeros = |size: [i64; 4]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
    assert_eq!(
        model
            .encode(&zeros([1, 3, 16, 15]), None)
            .unwrap_err()
            .to_string(),
        "images: expected [N, 3, H, W] with H and W multiples of 2, found [1, 3, 16, 15]"
    );
    assert_eq!(
        model.decode(&zeros([1, 3, 8, 8])).unwrap_err().to_string(),
        "latents: expected [N, 4, H / 2, W / 2], found [1, 3, 8, 8]"
    );
}

#[test]
fn a_config_of_another_autoencoder_is_refused_by_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    for (json, complaint) in [
        (
            r#"{"_class_name": "VQModel"}"#,
            "`_class_name`: expected AutoencoderKL, found VQModel",
        ),
        (
            r#"{"act_fn": "relu"}"#,
            "`act_fn`: expected silu, found relu",
        ),
        (
            r#"{"down_block_types": ["AttnDownBlock2D"]}"#,
            "`down_block_types`: expected DownEncoderBlock2D, found AttnDownBlock2D",
        ),
        (
            r#"{"norm_num_groups": 0}"#,
            "`norm_num_groups`: expected 1 to 1024, found 0",
        ),
        (
            r#"{"scaling_factor": -1}"#,
            "`scaling_factor`: expected a number above 0, found -1",
        ),
        (
            r#"{"block_out_channels": [64, 96]}"#,
            "as many as block_out_channels has (2), found 1",
        ),
    ] {
        std::fs::write(&path, json).unwrap();
        let error = KlConfig::read(&path).unwrap_err().to_string();
        assert!(error.contains(complaint), "{json}: {error}");
        assert!(error.starts_with(&path.display().to_string()), "{error}");
    }
    let levels = |kind: &str| vec![kind.to_owned(); 4];
    let published = serde_json::json!({
        "_class_name": "AutoencoderKL", "_diffusers_version": "0.4.2", "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512], "down_block_types": levels("DownEncoderBlock2D"), "in_channels": 3,
        "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3, "sample_size": 256,
        "up_block_types": levels("UpDecoderBlock2D"),
    });
    std::fs::write(&path, published.to_string()).unwrap();
    assert_eq!(KlConfig::read(&path).unwrap(), KlConfig::stable_diffusion());
}

#[test]
fn a_folder_of_diffusers_says_which_autoencoder_it_holds() {
    let file = fixture("autoencoder");
    let meta: serde_json::Value = serde_json::from_str(file.string("fewstep").unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let vae = folder.path().join("vae");
    std::fs::create_dir(&vae).unwrap();
    let write = |config: &serde_json::Value, tensors: BTreeMap<String, Tensor>| {
        std::fs::write(vae.join("config.json"), config.to_string()).unwrap();
        let weights = Checkpoint::new().with_all("", tensors);
        weights
            .save(&vae.join("diffusion_pytorch_model.safetensors"))
            .unwrap();
    };
    write(&meta["kl"], file.section("kl/model/"));
    for path in [folder.path(), &vae] {
        let model = autoencoder::load(path, tch::Device::Cpu).unwrap();
        assert_eq!((model.latent_channels(), model.factor()), (4, 2));
        let images = model
            .decode(&(file.tensor("kl/latent").unwrap() * 0.18215))
            .unwrap();
        assert_close(&images, file.tensor("kl/decoded").unwrap(), "decoded");
    }
    // diffusers has no number for the squashing at the start of the decoder.
    let tiny = tiny_tensors(&file, "sd").into_iter().map(|(name, t)| {
        let (half, rest) = name.split_once('.').unwrap();
        let (place, rest) = rest.split_once('.').unwrap();
        let place = place.parse::<usize>().unwrap() - usize::from(half == "decoder");
        (format!("{half}.layers.{place}.{rest}"), t)
    });
    write(
        &serde_json::json!({"_class_name": "AutoencoderTiny"}),
        tiny.collect(),
    );
    let model = autoencoder::load(folder.path(), tch::Device::Cpu).unwrap();
    assert_eq!((model.latent_channels(), model.factor()), (4, 8));
    let images = model
        .decode(file.tensor("tiny/sd/latent").unwrap())
        .unwrap();
    assert_close(
        &from_zero(&images),
        file.tensor("tiny/sd/decoded").unwrap(),
        "decoded",
    );
}

#[test]
fn bfloat16_stays_near_float32() {
    let file = fixture("autoencoder");
    let model = kl(&file, |_| ()).to(Device::Cpu, Kind::BFloat16).unwrap();
    let latents = file.tensor("kl/latent").unwrap() * 0.18215;
    let off = difference(
        &model.decode(&latents).unwrap(),
        file.tensor("kl/decoded").unwrap(),
    );
    println!("decoded in bfloat16: off by {off:.1e}");
    assert!(off < 5e-2, "{off:e}");
}

fn tiny_tensors(file: &Checkpoint, form: &str) -> BTreeMap<String, Tensor> {
    let half = |half: &str| {
        let section = file.section(&format!("tiny/{form}/{half}/")).into_iter();
        let half = half.to_owned();
        section.map(move |(name, t)| (format!("{half}.{name}"), t))
    };
    half("encoder").chain(half("decoder")).collect()
}

/// Images from −1 … 1 to 0 … 1, as the tiny autoencoder's own code has them.
fn from_zero(images: &Tensor) -> Tensor {
    (images + 1.) / 2.
}

fn check_tiny(model: &TinyAutoencoder, file: &Checkpoint, prefix: &str) {
    let get = |name: &str| file.tensor(&format!("{prefix}/{name}")).unwrap();
    let latents = model.encode(&(get("image") * 2. - 1.), None).unwrap();
    assert_close(&latents, get("encoded"), &format!("{prefix} encoded"));
    let images = model.decode(get("latent")).unwrap();
    assert_close(
        &from_zero(&images),
        get("decoded"),
        &format!("{prefix} decoded"),
    );
}

#[test]
fn the_tiny_autoencoder_is_its_python_form_for_stable_diffusion_and_flux_2() {
    let file = fixture("autoencoder");
    for (form, branch) in [("sd", false), ("flux2", true)] {
        let tensors = tiny_tensors(&file, form);
        let model = TinyAutoencoder::from_tensors(tensors, "the fixture").unwrap();
        let config = TinyConfig {
            latent_channels: 4,
            width: 4,
            branch,
        };
        assert_eq!(*model.config(), config);
        check_tiny(&model, &file, &format!("tiny/{form}"));
    }
}

#[test]
fn the_tiny_autoencoder_with_published_weights_is_its_python_form() {
    let data = std::env::var_os("FEWSTEP_DATA").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"),
        PathBuf::from,
    );
    let file = |half: &str| data.join(format!("weights/taef2_{half}.pth"));
    let (encoder, decoder) = (file("encoder"), file("decoder"));
    if !encoder.exists() || !decoder.exists() {
        println!("left out: {} is absent", encoder.display());
        return;
    }
    let model = TinyAutoencoder::load(&encoder, &decoder).unwrap();
    let config = TinyConfig {
        latent_channels: 32,
        width: 64,
        branch: true,
    };
    assert_eq!(*model.config(), config);
    check_tiny(&model, &fixture("autoencoder"), "taef2");
}

#[test]
fn pixels_between_two_bytes_go_up_originally_and_to_the_even_byte_in_diffusers() {
    // What sample_ddp.py and diffusers' VaeImageProcessor make of them.
    let x = [
        -1.2f32,
        -1.,
        -0.999,
        -0.5,
        -2. / 255.,
        0.,
        2. / 255.,
        0.3,
        0.999,
        1.,
        1.7,
    ];
    let original: [u8; 11] = [0, 0, 0, 64, 127, 128, 129, 166, 255, 255, 255];
    let diffusers: [u8; 11] = [0, 0, 0, 64, 126, 128, 128, 166, 255, 255, 255];
    let images = Tensor::from_slice(&x).view([1, 1, 1, 11]);
    for (convention, expected) in [
        (Convention::Original, original),
        (Convention::Diffusers, diffusers),
    ] {
        let found = to_pixels(&images, convention).unwrap();
        assert_eq!(found.size(), [1, 1, 11, 1]);
        assert_eq!(
            Vec::<u8>::try_from(found.view(-1)).unwrap(),
            expected,
            "{convention:?}"
        );
    }
}
