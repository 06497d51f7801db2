use fewstep_diffusion::dit::ComputeAll;
use fewstep_diffusion::random::{self, NoiseSource, Use};
use fewstep_diffusion::sampler::{Sampler, SamplerState, sample};
use fewstep_diffusion::{Dit, Guidance, Guided};
use proptest::prelude::*;
use tch::{Device, Kind};

use super::*;
use crate::testing::{conditions, dit};

fn first_block(threshold: f64) -> StackRule {
    StackRule::FirstBlock {
        threshold,
        order: 0,
    }
}

fn dual_block(front: usize, back: usize, threshold: f64) -> StackRule {
    StackRule::DualBlock {
        front,
        back,
        threshold,
        warmup_steps: 1,
        max_continuous_cached_steps: None,
        order: 0,
    }
}

fn tea(threshold: f64, coefficients: &[f64]) -> StackRule {
    StackRule::Tea {
        threshold,
        coefficients: coefficients.to_vec(),
        order: 0,
    }
}

fn delta(interval: usize, blocks: usize, switch: f64) -> StackRule {
    StackRule::Delta {
        interval,
        blocks,
        switch,
    }
}

/// A stack of blocks without weights: block i adds `adds(i, t, x)` to every token.
struct MadeUp<'a> {
    depth: usize,
    adds: &'a dyn Fn(usize, f64, f64) -> f64,
    /// What `modulated` computes at the first block.
    modulated: &'a dyn Fn(f64) -> f64,
}

impl MadeUp<'_> {
    /// One call as `Dit::run` does it, half a block's addition in each sub-module, written in place.
    fn call(&self, reuse: &mut dyn Reuse, call: &Call, x: &[f64]) -> Vec<f64> {
        let t = call.timestep;
        let mut tokens = Tensor::from_slice(x).view([x.len() as i64, 1, 1]);
        reuse.begin(call);
        reuse.batch(x.len() as i64);
        let (mut block, mut own) = (0, false);
        loop {
            let signal = Tensor::full([x.len() as i64], (self.modulated)(t), tokens_kind());
            let answer = reuse.enter(block, &tokens, &mut || Ok(signal.shallow_clone()));
            if let Some((next, jumped)) = answer.unwrap() {
                (block, tokens, own) = (next, jumped, true);
            }
            if block == self.depth {
                break;
            }
            let mut added = numbers(&tokens);
            added
                .iter_mut()
                .for_each(|x| *x = (self.adds)(block, t, *x) / 2.);
            let half = Tensor::from_slice(&added).view_as(&tokens);
            for index in [2 * block, 2 * block + 1] {
                let compute = &mut || Ok(half.shallow_clone());
                let out = reuse.run(SubModule::at(index), compute).unwrap();
                tokens = match own {
                    true => tokens.f_add_(&out).unwrap(),
                    false => &tokens + &out,
                };
                own = true;
            }
            block += 1;
        }
        numbers(&tokens)
    }

    /// All calls over these timesteps, each from the same tokens.
    fn job(&self, reuse: &mut dyn Reuse, timesteps: &[f64], x: f64) -> Vec<f64> {
        let calls = calls(timesteps);
        calls.map(|c| self.call(reuse, &c, &[x])[0]).collect()
    }
}

fn tokens_kind() -> (Kind, Device) {
    (Kind::Double, Device::Cpu)
}

fn numbers(t: &Tensor) -> Vec<f64> {
    Vec::try_from(t.flatten(0, -1)).unwrap()
}

fn calls(timesteps: &[f64]) -> impl Iterator<Item = Call> {
    let n = timesteps.len();
    timesteps.iter().enumerate().map(move |(index, &t)| Call {
        index,
        row: n - 1 - index,
        timestep: t,
    })
}

fn cache(rule: StackRule, depth: i64) -> StackCache {
    StackCache::new(rule, &conditions(2, depth).shape).unwrap()
}

/// The blocks that each call reused, as text.
fn reused(cache: &StackCache) -> Vec<String> {
    let text = |r: &Range<usize>| match r.is_empty() {
        true => String::new(),
        false => format!("{}-{}", r.start, r.end - 1),
    };
    cache.decisions().iter().map(text).collect()
}

const TIMES: [f64; 8] = [900., 800., 700., 600., 500., 400., 300., 200.];

#[test]
fn an_infinite_threshold_computes_the_forced_calls_alone() {
    let model = MadeUp {
        depth: 4,
        adds: &|i, t, x| (i as f64 + x * t).sin(),
        modulated: &|t| t,
    };
    let limited = StackRule::DualBlock {
        front: 2,
        back: 1,
        threshold: f64::INFINITY,
        warmup_steps: 3,
        max_continuous_cached_steps: Some(2),
        order: 0,
    };
    let cases: [(StackRule, [&str; 8]); 3] = [
        (
            first_block(f64::INFINITY),
            ["", "1-3", "1-3", "1-3", "1-3", "1-3", "1-3", "1-3"],
        ),
        (limited, ["", "", "", "2-2", "2-2", "", "2-2", "2-2"]),
        (
            tea(f64::INFINITY, &[1., 0.]),
            ["", "0-3", "0-3", "0-3", "0-3", "0-3", "0-3", ""],
        ),
    ];
    for (rule, expected) in cases {
        let mut cache = cache(rule, 4);
        model.job(&mut cache, &TIMES, 0.3);
        assert_eq!(reused(&cache), expected);
    }
}

#[test]
fn delta_skips_rear_blocks_first_and_front_blocks_after_the_switch() {
    let model = MadeUp {
        depth: 4,
        adds: &|i, t, x| (i as f64 + x * t).sin(),
        modulated: &|t| t,
    };
    let mut cache = cache(delta(3, 3, 0.5), 4);
    let outputs = model.job(&mut cache, &TIMES, 0.3);
    assert_eq!(
        reused(&cache),
        ["", "1-3", "1-3", "", "0-2", "0-2", "", "0-2"]
    );
    // By hand: call 1 computes block 0 and adds what blocks 1 to 3 added in call 0; call 4 adds what blocks 0 to 2 added in call 3.
    let upto =
        |blocks: Range<usize>, t: f64, x: f64| blocks.fold(x, |x, i| x + (i as f64 + x * t).sin());
    let first = upto(0..1, 900., 0.3);
    let expected = upto(0..1, 800., 0.3) + upto(1..4, 900., first) - first;
    assert!((outputs[1] - expected).abs() < 1e-12);
    let expected = upto(3..4, 500., upto(0..3, 600., 0.3));
    assert!((outputs[4] - expected).abs() < 1e-12);
}

#[test]
fn the_deviation_of_a_constant_residual_is_exact_and_what_is_in_front_is_not_lost() {
    // The first block's addition moves with t, the others' are constant: a feature cache would lose the first block's.
    let model = MadeUp {
        depth: 4,
        adds: &|i, t, _| if i == 0 { t } else { i as f64 },
        modulated: &|t| t,
    };
    let exact = model.job(&mut ComputeAll, &TIMES, 1.);
    for rule in [
        delta(4, 3, 1.),
        first_block(f64::INFINITY),
        dual_block(1, 2, 9.),
    ] {
        let mut cache = cache(rule, 4);
        assert_eq!(model.job(&mut cache, &TIMES, 1.), exact);
        assert!(cache.counts().utilisation() > 0.2);
    }
}

#[test]
fn a_residual_that_is_a_polynomial_of_the_timestep_is_forecast_exactly_by_its_order() {
    for order in 0..=1u8 {
        let model = MadeUp {
            depth: 3,
            adds: &|i, t, _| (i as f64 + 1.) * (t / 100.).powi(i32::from(order)),
            modulated: &|t| t,
        };
        let times = [900., 850., 700., 640., 400., 10.];
        let exact = model.job(&mut ComputeAll, &times, 0.5);
        let rule = |order| StackRule::DualBlock {
            front: 1,
            back: 0,
            threshold: f64::INFINITY,
            warmup_steps: 2,
            max_continuous_cached_steps: None,
            order,
        };
        let mut right = cache(rule(order), 3);
        let found = model.job(&mut right, &times, 0.5);
        for (a, b) in found.iter().zip(&exact) {
            assert!((a - b).abs() < 1e-9, "order {order}: {found:?} {exact:?}");
        }
        assert_eq!(reused(&right)[2..], ["1-2"; 4]);
        if order == 1 {
            let plain = model.job(&mut cache(rule(0), 3), &times, 0.5);
            assert!((plain[5] - exact[5]).abs() > 1., "order 0 does not");
        }
    }
}

#[test]
fn the_accumulated_distance_is_the_one_computed_by_hand() {
    // Relative moves from call to call: 0.1, 0.2, 0.25, 0.2, 0.5; the last call is computed whatever it is.
    let signal = [1., 1.1, 1.32, 0.99, 1.188, 0.594, 0.5];
    let model = MadeUp {
        depth: 2,
        adds: &|_, t, _| t,
        modulated: &|t| signal[t as usize],
    };
    let times: Vec<f64> = (0..7).map(f64::from).collect();
    let found = |rule: StackRule| {
        let mut cache = cache(rule, 2);
        model.job(&mut cache, &times, 0.);
        cache
            .decisions()
            .iter()
            .map(|r| if r.is_empty() { 'C' } else { '.' })
            .collect::<String>()
    };
    // Sums: 0.1, 0.3 → computed; 0.25, 0.45 → computed; 0.5 → computed.
    assert_eq!(found(tea(0.28, &[1., 0.])), "C.C.CCC");
    // 0.1, 0.3, 0.55 → computed; 0.2, 0.7 → computed.
    assert_eq!(found(tea(0.5, &[1., 0.])), "C..C.CC");
    // 2 d² + 0.1, highest power first: 0.12, 0.30 → computed; 0.225, 0.405 → computed; 0.6 → computed.
    assert_eq!(found(tea(0.28, &[2., 0., 0.1])), "C.C.CCC");
    // 0.12, 0.30, 0.525, 0.705, → computed at 0.7; 0.6.
    assert_eq!(found(tea(0.7, &[2., 0., 0.1])), "C...C.C");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn dual_block_gives_what_the_plain_rule_gives(
        front in 1usize..3,
        back in 0usize..2,
        threshold in 0f64..1.,
        speed in 0.0001f64..0.01,
        x in -1f64..1.,
    ) {
        let adds = |i: usize, t: f64, x: f64| (i as f64 + speed * t + 0.1 * x).sin();
        let model = MadeUp { depth: 5, adds: &adds, modulated: &|t| t };
        let mut cache = cache(dual_block(front, back, threshold), 5);
        let found = model.job(&mut cache, &TIMES, x);
        // The rule again, with numbers: (residual of the front, residual of the middle) of the last computed call.
        let mut last: Option<(f64, f64)> = None;
        for (k, t) in TIMES.into_iter().enumerate() {
            let through = |blocks: Range<usize>, x: f64| blocks.fold(x, |x, i| x + adds(i, t, x));
            let after = through(0..front, x);
            let middle = match last {
                Some((f, m)) if ((after - x) - f).abs() / f.abs() < threshold => after + m,
                _ => {
                    let middle = through(front..5 - back, after);
                    last = Some((after - x, middle - after));
                    middle
                }
            };
            prop_assert!((through(5 - back..5, middle) - found[k]).abs() < 1e-9);
        }
    }
}

/// A tenth of the prediction is taken off at each call.
struct Plain(Vec<f64>);

impl Sampler for Plain {
    fn timesteps(&self) -> &[f64] {
        &self.0
    }

    fn step(
        &self,
        _: &mut SamplerState,
        _: usize,
        x: &Tensor,
        output: &Tensor,
        _: &mut dyn NoiseSource,
    ) -> Result<Tensor> {
        Ok(x - output.narrow(1, 0, x.size()[1]) * 0.1)
    }
}

fn run(dit: &Dit, c: &Conditions, (seed, n): (u64, i64), reuse: &mut dyn Reuse) -> Tensor {
    let mut rng = random::generator(seed, Use::Sampling, &[]);
    let x = random::normal(&mut rng, &[n, 4, 8, 8]).unwrap();
    let y = random::integers(&mut rng, n, 10).unwrap();
    let sampler = Plain(c.timesteps.iter().rev().copied().collect());
    let mut denoiser = Guided::new(dit, &y, &c.guidance, reuse).unwrap();
    let mut noise = random::ImageNoise::new(0, 0..n as u64);
    sample(&sampler, &mut denoiser, &x, &mut noise, &mut |_, _| Ok(())).unwrap()
}

fn all_rules() -> [StackRule; 5] {
    [
        first_block(1.3),
        dual_block(1, 1, 1.3),
        tea(2., &[1., 0.]),
        delta(2, 2, 0.5),
        StackRule::DualBlock {
            front: 1,
            back: 0,
            threshold: f64::INFINITY,
            warmup_steps: 2,
            max_continuous_cached_steps: Some(2),
            order: 2,
        },
    ]
}

#[test]
fn a_threshold_of_zero_changes_no_bit_of_a_real_model() {
    let c = conditions(4, 3);
    let dit = dit(&c.shape);
    let whole = run(&dit, &c, (1, 2), &mut ComputeAll);
    let mut rules = all_rules().map(|rule| rule.at(0.)).to_vec();
    rules[3] = delta(1, 2, 0.5);
    for rule in rules {
        let mut cache = StackCache::new(rule.clone(), &c.shape).unwrap();
        assert_eq!(run(&dit, &c, (1, 2), &mut cache), whole, "{rule:?}");
        assert_eq!(cache.counts().utilisation(), 0.);
        assert_eq!(cache.counts().macs, 2 * c.total_macs());
    }
}

#[test]
fn counts_are_those_of_a_plan_that_skips_the_same_blocks() {
    let c = conditions(6, 3);
    let dit = dit(&c.shape);
    let whole = run(&dit, &c, (1, 2), &mut ComputeAll);
    for rule in all_rules() {
        let mut cache = StackCache::new(rule.clone(), &c.shape).unwrap();
        let out = run(&dit, &c, (1, 2), &mut cache);
        let moved = (out - &whole).abs().max().double_value(&[]);
        assert!(moved > 1e-3, "{rule:?}: {:?}", cache.decisions());
        let plan = cache.as_plan(&c).unwrap();
        let counts = cache.counts();
        assert!(plan.mac_saving() > 0.1, "{rule:?}");
        assert!((plan.mac_saving() - counts.mac_saving()).abs() < 1e-12);
        assert_eq!(plan.utilisation(), counts.utilisation());
        assert_eq!(counts.macs + counts.skipped_macs, 2 * c.total_macs());
        assert_eq!(plan.policy(), rule.name());
        assert_eq!(plan.order(0, 2) > 0, rule.order() > 0);
        assert!(cache.as_plan(&conditions(5, 3)).is_err());
    }
}

#[test]
fn the_bytes_at_the_peak_are_residuals_signal_and_the_copy_of_what_enters() {
    let c = conditions(5, 3);
    let dit = dit(&c.shape);
    // Both halves of two images: 16 tokens of 24 float32 numbers each.
    let one = 4 * 16 * 24 * 4;
    for (rule, tensors) in [
        // While blocks 1 and 2 are computed: the copy and the signal; the residual takes the copy's place.
        (first_block(0.), 2),
        (tea(f64::INFINITY, &[1., 0.]), 2),
        (delta(2, 2, 1.), 1),
        (all_rules()[4].clone(), 4),
    ] {
        let mut cache = StackCache::new(rule.clone(), &c.shape).unwrap();
        let _ = run(&dit, &c, (1, 2), &mut cache);
        assert_eq!(cache.counts().peak_bytes, tensors * one, "{rule:?}");
    }
}

#[test]
fn nothing_survives_into_the_next_job_whatever_its_batch_and_guidance() {
    let mut c = conditions(6, 3);
    for interval in [None, Some([0., 500.]), Some([300., 999.])] {
        c.guidance = Guidance {
            interval,
            ..Guidance::scale(1.5)
        };
        let dit = dit(&c.shape);
        for rule in all_rules() {
            let new = || StackCache::new(rule.clone(), &c.shape).unwrap();
            let mut cache = new();
            for job in [(1, 3), (2, 1), (3, 4), (3, 4)] {
                let out = run(&dit, &c, job, &mut cache);
                assert_eq!(out, run(&dit, &c, job, &mut new()), "{rule:?} {interval:?}");
                assert_eq!(cache.decisions().len(), 6);
                let counts = cache.counts();
                let all = counts.macs + counts.skipped_macs;
                assert_eq!(all, job.1 as u64 * c.total_macs());
            }
        }
    }
}

#[test]
fn what_was_kept_of_fewer_samples_is_computed_and_of_more_serves_its_first() {
    let model = MadeUp {
        depth: 3,
        adds: &|_, t, x| x + t,
        modulated: &|_| 1.,
    };
    for rule in [
        first_block(f64::INFINITY),
        tea(f64::INFINITY, &[1., 0.]),
        delta(9, 2, 1.),
    ] {
        let mut cache = cache(rule, 3);
        let mut sizes = Vec::new();
        for (call, samples) in calls(&TIMES[..5]).zip([1, 2, 2, 1, 2]) {
            let x: Vec<f64> = (0..samples).map(f64::from).collect();
            let out = model.call(&mut cache, &call, &x);
            sizes.push(out.len());
        }
        assert_eq!(sizes, [1, 2, 2, 1, 2]);
        let computed: Vec<bool> = cache.decisions().iter().map(Range::is_empty).collect();
        // TeaCache computes the last call.
        let last = matches!(cache.rule, StackRule::Tea { .. });
        assert_eq!(computed, [true, true, false, false, last]);
    }
}

#[test]
fn a_call_that_failed_leaves_no_residual() {
    let mut cache = cache(first_block(f64::INFINITY), 2);
    let tokens = Tensor::ones([1, 1, 1], tokens_kind());
    let mut list = calls(&TIMES[..3]);
    let modulated = &mut || Ok(Tensor::new());
    cache.begin(&list.next().unwrap());
    cache.batch(1);
    assert!(cache.enter(0, &tokens, modulated).unwrap().is_none());
    assert!(cache.enter(1, &(&tokens + 1), modulated).unwrap().is_none());
    let stop = || fewstep_diffusion::Error::Stopped("enough".into());
    assert!(cache.run(SubModule::at(2), &mut || Err(stop())).is_err());
    cache.begin(&list.next().unwrap());
    cache.batch(1);
    assert!(cache.enter(0, &tokens, modulated).unwrap().is_none());
    assert!(cache.enter(1, &(&tokens + 1), modulated).unwrap().is_none());
}

#[test]
fn settings_out_of_their_range_are_refused_with_what_was_expected() {
    let c = conditions(3, 3);
    for (rule, expected) in [
        (
            first_block(-1.),
            "threshold: expected a number from 0, found -1",
        ),
        (dual_block(0, 0, 1.), "front: expected at least 1, found 0"),
        (
            dual_block(2, 1, 1.),
            "front: expected front and back to leave some of the 3 blocks between them, found 2 and 1",
        ),
        (
            tea(1., &[]),
            "coefficients: expected finite numbers, at least one, found []",
        ),
        (delta(0, 1, 0.5), "interval: expected at least 1, found 0"),
        (
            delta(2, 4, 0.5),
            "blocks: expected 1 to the model's 3, found 4",
        ),
        (
            delta(2, 2, 1.5),
            "switch: expected a share from 0 to 1, found 1.5",
        ),
    ] {
        let e = StackCache::new(rule, &c.shape).unwrap_err();
        assert_eq!(e.to_string(), expected);
    }
}
