use fewstep_diffusion::random::{self, Use};
use toml::toml;

use super::{RANDOM, plan_at_mac_saving};
use crate::{CachePlan, Conditions, Error, Result, router};

/// Reuses cells drawn at random, exactly as many as make `utilisation` (of all T·N, rounded).
///
/// # Errors
/// A utilisation that the first step, which computes everything, leaves no room for.
pub fn random(made_for: &Conditions, utilisation: f64, seed: u64) -> Result<CachePlan> {
    made_for.validate()?;
    let (steps, modules) = (made_for.steps(), made_for.modules());
    let allowed = (steps - 1) * modules;
    let wanted = (utilisation * (steps * modules) as f64).round();
    if !(0. ..=allowed as f64).contains(&wanted) {
        let expected = format!("0 to {:.4}", allowed as f64 / (steps * modules) as f64);
        return Err(Error::option("utilisation", expected, utilisation));
    }
    let scores = scores(made_for, seed)?.concat();
    let mut order: Vec<usize> = (0..allowed).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    let mut reused = vec![false; steps * modules];
    for &cell in &order[..wanted as usize] {
        reused[cell] = true;
    }
    let settings = toml! {
        utilisation = utilisation
        seed = (seed_value(seed))
    };
    CachePlan::new(RANDOM, settings, made_for, |row, column| {
        reused[row * modules + column]
    })
}

/// Reuses cells drawn at random, as few as reach `mac_saving`.
///
/// # Errors
/// A saving that the first step leaves no room for.
pub fn random_at_mac_saving(
    made_for: &Conditions,
    mac_saving: f64,
    seed: u64,
) -> Result<CachePlan> {
    made_for.validate()?;
    let settings = toml! { seed = (seed_value(seed)) };
    let scores = scores(made_for, seed)?;
    plan_at_mac_saving(RANDOM, settings, made_for, &scores, mac_saving)
}

/// A number from 0 to 1 for each cell.
fn scores(made_for: &Conditions, seed: u64) -> Result<Vec<Vec<f64>>> {
    let mut rng = random::generator(seed, Use::Learning, &[router::PLACE_OF_RANDOM_PLANS]);
    let shape = [made_for.steps() as i64, made_for.modules() as i64];
    let numbers = random::uniform(&mut rng, &shape, 0.5)? + 0.5;
    Ok(Vec::<Vec<f64>>::try_from(numbers)?)
}

/// TOML's integers are signed.
fn seed_value(seed: u64) -> toml::Value {
    i64::try_from(seed).map_or_else(|_| seed.to_string().into(), toml::Value::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::conditions;

    #[test]
    fn a_random_plan_has_exactly_the_cells_asked_for_and_its_seed_decides_which() {
        let c = conditions(10, 3);
        for reused in 0..=54 {
            let plan = random(&c, f64::from(reused) / 60., 5).unwrap();
            assert_eq!(plan.reused() as u32, reused);
            assert!(plan.row(9).iter().all(|r| !r));
        }
        assert_eq!(random(&c, 0.5, 5).unwrap(), random(&c, 0.5, 5).unwrap());
        let other = random(&c, 0.5, 6).unwrap();
        assert!(
            !random(&c, 0.5, 5)
                .unwrap()
                .diff(&other)
                .unwrap()
                .cells
                .is_empty()
        );
        assert_eq!(
            random(&c, 0.95, 5).unwrap_err().to_string(),
            "utilisation: expected 0 to 0.9000, found 0.95"
        );
    }

    #[test]
    fn a_random_plan_reaches_a_saving_by_at_most_one_cell_more() {
        let c = conditions(10, 3);
        let cell = c.macs(0, 1) as f64 / c.total_macs() as f64;
        for seed in 0..20 {
            let plan = random_at_mac_saving(&c, 0.4, seed).unwrap();
            assert!(
                (0.4..0.4 + cell).contains(&plan.mac_saving()),
                "{}",
                plan.mac_saving()
            );
        }
    }
}
