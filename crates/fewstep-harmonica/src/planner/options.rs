//! What a plan is looked for with.

use fewstep_torch::options::expect;
use serde::{Deserialize, Serialize};

use super::MOST;
use crate::MAX_ORDER;
use crate::learn::expect_saving;

/// What a plan is looked for with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlannerOptions {
    /// Share of MACs to save, above 0 and below 1. The plan saves at least as much, by at most [`TOLERANCE`] more.
    pub target_mac_saving: f64,
    /// Images of calibration noise. A few images of a model err far more than all others, so means over few images say little: what
    /// follows is picked from these by how much they err under simple plans.
    pub pool_images: u64,
    /// Images of the pool that the last few plans are chosen on.
    pub choose_images: u64,
    /// Images of the pool that plans are tried and fitted on, and cells are moved on.
    pub images: u64,
    /// Images of the pool that most patterns are tried on, enough to tell bad from good.
    pub screen_images: u64,
    /// Images of unseen noise, for each of `unseen_seeds` seeds, which the chosen plan is judged on.
    pub unseen_images: u64,
    /// Seeds of unseen noise.
    pub unseen_seeds: u64,
    /// The highest order of a forecast; order n keeps n + 1 outputs of a sub-module.
    pub max_order: u8,
    /// Trials of the search over whole-step patterns.
    pub search_trials: u32,
    /// Rounds of moving single cells.
    pub cell_rounds: u32,
    /// Rounds of refining the weights of the best plan's forecasts; 0 leaves it out.
    pub refine_rounds: u32,
    /// Random passes of a sensitivity.
    pub probes: usize,
    /// Trajectories of Step-wise Denoising Training; 0 leaves it out.
    pub learn_trajectories: u32,
    /// Seed of all noise.
    pub seed: u64,
}

impl Default for PlannerOptions {
    fn default() -> Self {
        Self {
            target_mac_saving: 0.4,
            pool_images: 768,
            choose_images: 128,
            images: 32,
            screen_images: 12,
            unseen_images: 128,
            unseen_seeds: 3,
            max_order: 3,
            search_trials: 60,
            cell_rounds: 8,
            refine_rounds: 30,
            probes: 2,
            learn_trajectories: 16,
            seed: 0,
        }
    }
}

/// How far above the target a plan may land, as a share of all MACs; or a cell, where that is more.
pub const TOLERANCE: f64 = 0.01;

impl PlannerOptions {
    /// # Errors
    /// The option that is out of range, and a clause that says what was expected and found.
    pub fn validate(&self) -> std::result::Result<(), (&'static str, String)> {
        expect_saving(self.target_mac_saving)?;
        for (key, value) in [
            ("pool_images", self.pool_images),
            ("choose_images", self.choose_images),
            ("images", self.images),
            ("screen_images", self.screen_images),
            ("unseen_images", self.unseen_images),
            ("unseen_seeds", self.unseen_seeds),
            ("probes", self.probes as u64),
        ] {
            let fits = (1..=MOST).contains(&value);
            expect(fits, key, &format!("1 to {MOST}"), &value)?;
        }
        let orders = format!("0 to {MAX_ORDER}");
        expect(
            self.max_order <= MAX_ORDER,
            "max_order",
            &orders,
            &self.max_order,
        )
    }
}
