//! `fewstep infer`: the event-driven engine's own command, which its small binary has as well.

pub use fewstep_events::cli::{Infer, infer};
