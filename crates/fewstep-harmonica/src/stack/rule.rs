use std::ops::Range;

use fewstep_diffusion::sampler::Call;
use serde::{Deserialize, Serialize};

use crate::{MAX_ORDER, policy};

/// When a [`StackCache`](crate::StackCache) skips which blocks. Thresholds are relative distances mean |a − b| / mean |b|; 0 computes
/// everything.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rule", rename_all = "kebab-case", deny_unknown_fields)]
pub enum StackRule {
    /// FBCache (ParaAttention; diffusers' FirstBlockCache): the first block is computed, and all others are reused where its residual is
    /// nearer than `threshold` to that of the last computed call.
    FirstBlock {
        /// From 0.
        threshold: f64,
        /// Of the forecast of the reused residual; 0 as published.
        order: u8,
    },
    /// DBCache (cache-dit): as above with `front` computed blocks; the last `back` are computed as well.
    DualBlock {
        /// Computed blocks in front, at least 1.
        front: usize,
        /// Computed blocks behind.
        back: usize,
        /// From 0.
        threshold: f64,
        /// Calls at the beginning that are computed whatever the distance.
        warmup_steps: usize,
        /// The most reused calls in a row, without a limit if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_continuous_cached_steps: Option<usize>,
        /// Of the forecast of the reused residual: cache-dit's TaylorSeer calibrator.
        order: u8,
    },
    /// TeaCache (arXiv 2411.19108, equations 4 to 6): the distances of the first block's modulated input from call to call are put through a
    /// polynomial and summed; until the sum reaches `threshold`, all blocks are reused. The first and the last call are computed.
    Tea {
        /// From 0.
        threshold: f64,
        /// Of the polynomial, highest power first; `[1, 0]` is the distance itself.
        coefficients: Vec<f64>,
        /// Of the forecast of the reused residual; 0 as published.
        order: u8,
    },
    /// Δ-DiT (arXiv 2406.01125, section 4): every `interval`-th call is computed; in the others the deviation of `blocks` blocks is reused,
    /// of the rear ones in the first calls, which make the outline, and of the front ones after `switch` of the calls.
    Delta {
        /// At least 1.
        interval: usize,
        /// Skipped blocks.
        blocks: usize,
        /// Share of the calls, 0 to 1.
        switch: f64,
    },
}

impl StackRule {
    /// The policy's name, as in tables and JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::FirstBlock { .. } => policy::FIRST_BLOCK,
            Self::DualBlock { .. } => policy::DUAL_BLOCK,
            Self::Tea { .. } => policy::TEA,
            Self::Delta { .. } => policy::DELTA,
        }
    }

    /// The order of the forecast of a reused residual.
    pub fn order(&self) -> u8 {
        match self {
            Self::FirstBlock { order, .. }
            | Self::DualBlock { order, .. }
            | Self::Tea { order, .. } => *order,
            Self::Delta { .. } => 0,
        }
    }

    /// The same rule at another threshold; Δ-DiT has none and stays as it is.
    #[must_use]
    pub fn at(mut self, value: f64) -> Self {
        match &mut self {
            Self::FirstBlock { threshold, .. }
            | Self::DualBlock { threshold, .. }
            | Self::Tea { threshold, .. } => *threshold = value,
            Self::Delta { .. } => {}
        }
        self
    }

    /// For models of `depth` blocks, or without what depends on it.
    ///
    /// # Errors
    /// The setting that is out of range, and a clause that says what was expected and found.
    pub fn validate(&self, depth: Option<usize>) -> Result<(), (&'static str, String)> {
        let says = |key, expected: String, found: &dyn std::fmt::Display| {
            Err((key, format!("expected {expected}, found {found}")))
        };
        let order = self.order();
        if order > MAX_ORDER {
            return says("order", format!("0 to {MAX_ORDER}"), &order);
        }
        match self {
            Self::FirstBlock { threshold, .. }
            | Self::DualBlock { threshold, .. }
            | Self::Tea { threshold, .. }
                if threshold.is_nan() || *threshold < 0. =>
            {
                return says("threshold", "a number from 0".into(), threshold);
            }
            Self::DualBlock { front: 0, .. } => return says("front", "at least 1".into(), &0),
            Self::DualBlock { front, back, .. } => {
                if let Some(depth) = depth.filter(|d| front + back >= *d) {
                    let expected =
                        format!("front and back to leave some of the {depth} blocks between them");
                    return says("front", expected, &format!("{front} and {back}"));
                }
            }
            Self::FirstBlock { .. } => {
                if depth.is_some_and(|d| d < 2) {
                    return says("first-block", "a model of at least 2 blocks".into(), &1);
                }
            }
            Self::Tea { coefficients, .. }
                if coefficients.is_empty() || !coefficients.iter().all(|c| c.is_finite()) =>
            {
                let found = format!("{coefficients:?}");
                return says(
                    "coefficients",
                    "finite numbers, at least one".into(),
                    &found,
                );
            }
            Self::Tea { .. } => {}
            Self::Delta {
                interval,
                blocks,
                switch,
            } => {
                if *interval == 0 {
                    return says("interval", "at least 1".into(), interval);
                }
                if !(0. ..=1.).contains(switch) {
                    return says("switch", "a share from 0 to 1".into(), switch);
                }
                let most = depth.unwrap_or(usize::MAX);
                if !(1..=most).contains(blocks) {
                    let expected = match depth {
                        Some(depth) => format!("1 to the model's {depth}"),
                        None => "at least 1".into(),
                    };
                    return says("blocks", expected, blocks);
                }
            }
        }
        Ok(())
    }

    /// The runs of blocks that may be skipped.
    pub(super) fn spans(&self, depth: usize) -> Vec<Range<usize>> {
        let only = match self {
            Self::FirstBlock { .. } => 1..depth,
            Self::DualBlock { front, back, .. } => *front..depth - back,
            Self::Tea { .. } => 0..depth,
            Self::Delta { blocks, .. } => return vec![depth - blocks..depth, 0..*blocks],
        };
        Vec::from([only])
    }

    pub(super) fn compares_residuals(&self) -> bool {
        matches!(self, Self::FirstBlock { .. } | Self::DualBlock { .. })
    }

    /// Which of the spans a call skips: 1, the front blocks, in the last calls of Δ-DiT.
    pub(super) fn stage(&self, call: &Call) -> usize {
        self.stage_of(call.index, call)
    }

    fn stage_of(&self, index: usize, any: &Call) -> usize {
        match self {
            Self::Delta { switch, .. } => {
                let calls = (any.index + any.row + 1) as f64;
                usize::from(index as f64 >= switch * calls)
            }
            _ => 0,
        }
    }

    /// Whether a call that computes a span leaves its residual. In Δ-DiT those do that compute everything, and of the spans that are
    /// skipped before the next such call.
    pub(super) fn keeps(&self, call: &Call, span: usize) -> bool {
        match self {
            Self::Delta { interval, .. } => {
                let calls = call.index + call.row + 1;
                let mut skipping = call.index + 1..calls.min(call.index + interval);
                call.index.is_multiple_of(*interval)
                    && skipping.any(|index| self.stage_of(index, call) == span)
            }
            _ => true,
        }
    }

    /// Whether no later call skips a span.
    pub(super) fn is_over(&self, call: &Call, span: usize) -> bool {
        span < self.stage(call)
    }
}
