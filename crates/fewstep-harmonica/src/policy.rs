//! Policies: which sub-module is computed at which call. Static ones make a [`CachePlan`] once and are looked up in it while
//! sampling; one that decides from what it sees implements [`CachePolicy`] itself.

mod interval;
mod random;
mod routed;
mod table;

use fewstep_diffusion::SubModule;
use fewstep_diffusion::sampler::Call;

use crate::{CachePlan, Forecast};

pub use interval::{fora, interval, none, taylorseer};
pub use random::{random, random_at_mac_saving};
pub use routed::{harmonica, harmonica_at_mac_saving, l2c, l2c_at_mac_saving, plan_at_mac_saving};
pub use table::table;

/// Everything computed.
pub const NONE: &str = "none";
/// Everything computed at fewer calls: no plan but a setting of the sampler, and the baseline that papers forget.
pub const FEWER_STEPS: &str = "fewer-steps";
/// Every n-th call computed (FORA, arXiv 2407.01425).
pub const FORA: &str = "fora";
/// Every n-th call of a window computed, and all outside it.
pub const INTERVAL: &str = "interval";
/// Every n-th call computed, and a forecast of the others (TaylorSeer, arXiv 2503.06923).
pub const TAYLORSEER: &str = "taylorseer";
/// All but the first block reused while that one's residual changes little (FBCache, ParaAttention).
pub const FIRST_BLOCK: &str = "first-block";
/// The same with any number of computed blocks in front and behind (DBCache, cache-dit).
pub const DUAL_BLOCK: &str = "dual-block";
/// All blocks reused while the modulated input has moved little in sum (TeaCache, arXiv 2411.19108).
pub const TEA: &str = "tea";
/// The deviation of rear blocks, later of front blocks, reused between every n-th calls (Δ-DiT, arXiv 2406.01125).
pub const DELTA: &str = "delta";
/// Cells drawn at random.
pub const RANDOM: &str = "random";
/// Learning-to-Cache (arXiv 2406.01733).
pub const L2C: &str = "l2c";
/// HarmoniCa (arXiv 2410.01723).
pub const HARMONICA: &str = "harmonica";
/// Written by hand.
pub const TABLE: &str = "table";

/// What to do with a sub-module.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Decision {
    /// Compute it and keep its output.
    Compute,
    /// Take the last output that was computed, or a forecast from the last ones.
    Reuse(Forecast),
}

/// Decides for each call and sub-module.
pub trait CachePolicy {
    /// A sampling call begins; what was learned in the last one is void.
    fn begin(&mut self) {}

    /// Asked once for each sub-module of each call, in the order of execution.
    fn decide(&mut self, call: &Call, module: SubModule) -> Decision;

    /// How many outputs of a sub-module are kept: one more than the highest order of its forecasts.
    fn keeps(&self, module: SubModule) -> usize {
        let _ = module;
        1
    }
}

/// Does what a plan says. Check first that it [fits](CachePlan::check_fits): what lies outside the plan is computed.
#[derive(Debug, Clone, Copy)]
pub struct Planned<'a>(pub &'a CachePlan);

impl CachePolicy for Planned<'_> {
    fn decide(&mut self, call: &Call, module: SubModule) -> Decision {
        self.0.decision(call.row, module.index())
    }

    fn keeps(&self, module: SubModule) -> usize {
        self.0.keeps(module.index())
    }
}
