use super::*;

fn small() -> DitConfig {
    DitConfig {
        input_size: 8,
        channels: 4,
        depth: 2,
        width: 24,
        heads: 3,
        classes: 10,
        ..DitConfig::named("S/2", 8, 4).unwrap()
    }
}

#[test]
fn published_shapes_have_the_published_counts() {
    let xl = DitConfig::named("DiT-XL/2", 32, 4).unwrap();
    assert_eq!(xl.parameters(), 675_129_632 - 256 * 1152);
    // 118.6 G, by specs of the paper's authors; attention 1.510 G and MLP 2.718 G a block.
    let macs = xl.macs();
    assert_eq!(macs.attention, 1_509_949_440);
    assert_eq!(macs.mlp, 2_717_908_992);
    assert!((macs.total() as f64 / 1e9 - 118.6).abs() < 0.1);
    for (name, millions) in [("S/2", 33), ("B/4", 130), ("L/8", 459)] {
        let found = DitConfig::named(name, 32, 4).unwrap().parameters();
        assert!(
            (found as f64 / 1e6 - f64::from(millions)).abs() < 1.5,
            "{name}: {found}"
        );
    }
    assert!(DitConfig::named("DiT-M/2", 32, 4).is_none());
}

#[test]
fn parameters_are_as_many_as_counted() {
    let dit = Dit::new(&small(), 0).unwrap();
    let found: usize = dit.parameters().iter().map(|(_, t)| t.numel()).sum();
    assert_eq!(found as i64, small().parameters());
}

#[test]
fn a_new_model_says_nothing_and_its_seed_decides_its_weights() {
    let x = random::normal(&mut random::generator(0, Use::Training, &[]), &[2, 4, 8, 8]).unwrap();
    let t = Tensor::from_slice(&[3f32, 999.]);
    let y = Tensor::from_slice(&[3i64, 10]);
    let dit = Dit::new(&small(), 0).unwrap();
    let out = dit.forward(&x, &t, &y, &mut ComputeAll).unwrap();
    assert_eq!(out, Tensor::zeros([2, 8, 8, 8], (Kind::Float, Device::Cpu)));
    let again = Dit::new(&small(), 0).unwrap().fingerprint().unwrap();
    assert_eq!(again, dit.fingerprint().unwrap());
    assert_ne!(again, Dit::new(&small(), 1).unwrap().fingerprint().unwrap());
}

#[test]
fn a_saved_model_is_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dit.safetensors");
    let dit = Dit::new(&small(), 3).unwrap();
    dit.save(&path, Kind::Float).unwrap();
    let read = Dit::load(&path).unwrap();
    assert_eq!(read.config(), dit.config());
    assert_eq!(read.fingerprint().unwrap(), dit.fingerprint().unwrap());
}

#[test]
fn latents_of_another_size_and_impossible_shapes_are_refused_in_words() {
    let dit = Dit::new(&small(), 0).unwrap();
    let one = Tensor::from_slice(&[1f32]);
    let x = Tensor::zeros([1, 4, 6, 6], (Kind::Float, Device::Cpu));
    let e = dit.forward(&x, &one, &Tensor::from_slice(&[1i64]), &mut ComputeAll);
    assert_eq!(
        e.unwrap_err().to_string(),
        "latents: expected [N, 4, 8, 8], found [1, 4, 6, 6]"
    );
    let e = DitConfig {
        heads: 5,
        ..small()
    }
    .validate()
    .unwrap_err();
    assert_eq!(
        e,
        (
            "heads",
            "expected a divisor of the width 24, found 5".into()
        )
    );
}

/// The same 67 samples, so many at a time.
fn in_batches(dit: &Dit, size: i64) -> Tensor {
    let _guard = tch::no_grad_guard();
    let c = dit.config();
    let mut rng = random::generator(0, Use::Training, &[]);
    let shape = [67, c.channels, c.input_size, c.input_size];
    let x = random::normal(&mut rng, &shape).unwrap();
    let y = random::integers(&mut rng, 67, c.classes).unwrap();
    let batches = (0..67).step_by(size as usize).map(|first| {
        let n = size.min(67 - first);
        let t = Tensor::full([n], 333., (Kind::Float, Device::Cpu));
        dit.forward(
            &x.narrow(0, first, n),
            &t,
            &y.narrow(0, first, n),
            &mut ComputeAll,
        )
        .unwrap()
    });
    Tensor::cat(&batches.collect::<Vec<_>>(), 0)
}

#[test]
fn a_sample_is_bitwise_the_same_whatever_the_batch() {
    let four_tokens = DitConfig {
        patch: 4,
        ..small()
    };
    let wide = DitConfig {
        width: 384,
        heads: 6,
        ..small()
    };
    for config in [small(), four_tokens, wide] {
        let dit = Dit::new(&config, 0).unwrap();
        let _guard = tch::no_grad_guard();
        for (place, (_, mut t)) in dit.parameters().into_iter().enumerate() {
            let mut rng = random::generator(1, Use::Weights, &[place as u64]);
            t.copy_(&(random::normal(&mut rng, &t.size()).unwrap() * 0.1));
        }
        let one = in_batches(&dit, 1);
        for size in [2, 3, 5, 8, 16, 67] {
            assert_eq!(in_batches(&dit, size), one, "{config:?}, {size} at a time");
        }
    }
}

/// Jumps from block 0 with the tokens given, or writes down which entered each block.
#[derive(Default)]
struct Jumps {
    to: Option<(usize, Tensor)>,
    entered: Vec<Tensor>,
    ran: Vec<usize>,
}

impl Reuse for Jumps {
    fn enter(
        &mut self,
        block: usize,
        tokens: &Tensor,
        modulated: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Option<(usize, Tensor)>> {
        assert_eq!(modulated()?.size(), tokens.size());
        self.entered.resize_with(block, Tensor::new);
        self.entered.push(tokens.copy());
        Ok(self.to.take())
    }

    fn run(
        &mut self,
        module: SubModule,
        compute: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Tensor> {
        self.ran.push(module.index());
        compute()
    }
}

#[test]
fn a_jump_goes_on_with_its_tokens_and_no_block_before_is_run() {
    let dit = Dit::new(&small(), 0).unwrap();
    let _guard = tch::no_grad_guard();
    for (i, (_, mut t)) in dit.parameters().into_iter().enumerate() {
        let mut rng = random::generator(7, Use::Weights, &[i as u64]);
        t.copy_(&(random::normal(&mut rng, &t.size()).unwrap() * 0.2));
    }
    let x = random::normal(&mut random::generator(0, Use::Training, &[]), &[2, 4, 8, 8]).unwrap();
    let (t, y) = (
        Tensor::from_slice(&[3f32, 999.]),
        Tensor::from_slice(&[3i64, 10]),
    );
    let mut whole = Jumps::default();
    let expected = dit.forward(&x, &t, &y, &mut whole).unwrap();
    assert_eq!(whole.ran, [0, 1, 2, 3]);
    for block in 0..=2 {
        let mut jumps = Jumps {
            to: Some((block, whole.entered[block].copy())),
            ..Jumps::default()
        };
        let found = dit.forward(&x, &t, &y, &mut jumps).unwrap();
        assert_eq!(found, expected, "to block {block}");
        assert_eq!(jumps.ran, [0, 1, 2, 3][2 * block..]);
    }
}
