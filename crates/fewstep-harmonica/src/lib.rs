//! HarmoniCa (arXiv 2410.01723): a diffusion transformer learns which of its sub-modules to skip at which sampling step.
//!
//! A [`CachePlan`] says for every call of the model and every sub-module whether to compute it or to reuse its last output.
//! [`policy`] makes plans, [`CachedReuse`] runs them, a [`Router`] is what a learned plan is read from. A [`StackCache`] decides from what
//! it sees in the model, and skips runs of whole blocks.
//!
//! ```
//! use fewstep_diffusion::{Dit, DitConfig, Guidance};
//! use fewstep_harmonica::{CachedReuse, Conditions, Planned, policy};
//!
//! let config = DitConfig { depth: 2, width: 24, heads: 3, ..DitConfig::named("S/2", 8, 4).unwrap() };
//! let dit = Dit::new(&config, 0)?;
//! let timesteps = [999., 666., 333., 0.];
//! let conditions = Conditions::new(&dit, "ddim", &timesteps, &Guidance::scale(1.5))?;
//! let plan = policy::fora(&conditions, 2)?;
//! assert_eq!(plan.utilisation(), 0.5);
//! // Goes into `fewstep_diffusion::Guided`, which a sampler calls.
//! let cache = CachedReuse::new(Planned(&plan), &config);
//! # Ok::<(), fewstep_harmonica::Error>(())
//! ```

mod cache;
mod conditions;
mod error;
mod history;
pub mod learn;
mod plan;
pub mod planner;
pub mod policy;
mod router;
mod stack;
#[cfg(test)]
mod testing;

pub use cache::{CacheCounts, CachedReuse};
pub use conditions::Conditions;
pub use error::{Error, Result};
pub use history::{Forecast, Formula, MAX_ORDER, Weights, weights};
pub use learn::{LearnOptions, Setting, learn};
pub use plan::{CachePlan, PlanDifference, PlanDifferences};
pub use policy::{CachePolicy, Decision, Planned};
pub use router::{LOGIT_LIMIT, Router, RouterInit, published};
pub use stack::{StackCache, StackRule, ThresholdSearch};
