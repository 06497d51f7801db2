//! Caches that skip runs of whole blocks and decide from what they see in the model.
//!
//! What is kept is a residual: the tokens that leave a run of blocks less those that entered it. Where the run is skipped, it is added to
//! the tokens of now, so that what the blocks in front found out is not lost (as it would be if tokens were kept).

mod rule;
mod search;

use std::ops::Range;

use fewstep_diffusion::dit::Macs;
use fewstep_diffusion::sampler::Call;
use fewstep_diffusion::{DitConfig, Result, Reuse, SubModule};
use tch::Tensor;

use crate::history::{Forecast, Formula, History};
use crate::{CacheCounts, CachePlan, Conditions, Error};

pub use rule::StackRule;
pub use search::ThresholdSearch;

/// A run of blocks and its last residuals.
#[derive(Debug)]
struct Span {
    blocks: Range<usize>,
    residuals: History,
    /// The tokens that entered it in this call; there while it is computed and will be kept.
    before: Option<Tensor>,
}

/// A cache of runs of blocks, by a [`StackRule`]. It serves one sampling call at a time, as [`CachedReuse`](crate::CachedReuse) does, and
/// treats batches that change in the same way: what was kept of more samples serves with its first, of fewer not at all.
///
/// A decision is one of the whole batch, both halves of guidance together: the distance is that of all its numbers, so an image depends
/// on those it is sampled with. Each distance is read on the host, which waits for the device once a call.
#[derive(Debug)]
pub struct StackCache {
    rule: StackRule,
    macs: Macs,
    spans: Vec<Span>,
    call: Option<Call>,
    samples: i64,
    /// Tokens that entered the first block in this call; nobody writes to them.
    input: Option<Tensor>,
    /// What the next call is compared with.
    signal: Option<Tensor>,
    /// Distance since the last computed call.
    distance: f64,
    /// Reused calls in a row.
    in_a_row: usize,
    reused: Vec<Range<usize>>,
    counts: CacheCounts,
}

impl StackCache {
    /// An empty cache for models of this shape.
    ///
    /// # Errors
    /// A setting of the rule that is out of its range for this shape.
    pub fn new(rule: StackRule, shape: &DitConfig) -> crate::Result<Self> {
        let depth = shape.sub_modules() / 2;
        rule.validate(Some(depth))
            .map_err(|(key, reason)| Error::Invalid {
                key: key.into(),
                reason,
            })?;
        let spans = rule.spans(depth).into_iter().map(|blocks| Span {
            blocks,
            residuals: History::default(),
            before: None,
        });
        Ok(Self {
            spans: spans.collect(),
            rule,
            macs: shape.macs(),
            call: None,
            samples: 0,
            input: None,
            signal: None,
            distance: 0.,
            in_a_row: 0,
            reused: vec![],
            counts: CacheCounts::new(shape.sub_modules()),
        })
    }

    /// What the current or last sampling call did.
    pub fn counts(&self) -> &CacheCounts {
        &self.counts
    }

    /// The blocks that each call of the current or last sampling call reused, in the order of execution; an empty range where it computed
    /// everything.
    pub fn decisions(&self) -> &[Range<usize>] {
        &self.reused
    }

    /// The decisions as a plan that skips the same work at the same calls, without looking. It is not the same arithmetic: a plan keeps
    /// outputs before the adaLN gate, each of its own, and so applies the gates of now.
    ///
    /// # Errors
    /// Conditions of another number of calls or another shape.
    pub fn as_plan(&self, made_for: &Conditions) -> crate::Result<CachePlan> {
        let (steps, modules) = (self.reused.len(), self.counts.computed.len());
        if made_for.steps() != steps || made_for.modules() != modules {
            let expected = format!("{steps} calls of {modules} sub-modules");
            let found = format!("{} of {}", made_for.steps(), made_for.modules());
            return Err(Error::option("made_for", expected, found));
        }
        let settings = toml::Table::try_from(&self.rule).map_err(|e| Error::Invalid {
            key: self.rule.name().into(),
            reason: e.to_string(),
        })?;
        let order = self.rule.order();
        CachePlan::new(self.rule.name(), settings, made_for, |row, column| {
            self.reused[steps - 1 - row].contains(&(column / 2))
        })?
        .with_orders(Formula::Taylor, |_, _| order)
    }

    /// Which span is skipped in this call, if any may be: asked where the rule has what it decides by.
    fn wants(
        &mut self,
        call: &Call,
        block: usize,
        tokens: &Tensor,
        modulated: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Option<usize>> {
        match self.rule.clone() {
            StackRule::FirstBlock { threshold, .. } => {
                self.little_changed(tokens, threshold, call.index > 0)
            }
            StackRule::DualBlock {
                threshold,
                warmup_steps,
                max_continuous_cached_steps,
                ..
            } => {
                let allowed = call.index >= warmup_steps
                    && max_continuous_cached_steps.is_none_or(|most| self.in_a_row < most);
                self.little_changed(tokens, threshold, allowed)
            }
            StackRule::Tea {
                threshold,
                coefficients,
                ..
            } => {
                if call.row == 0 {
                    return Ok(None);
                }
                let input = modulated()?;
                let moved = match &self.signal {
                    Some(last) => relative_distance(&input, last)?,
                    None => None,
                };
                self.signal = Some(input.f_detach()?);
                let near = match moved {
                    Some(moved) if self.fits(0)? => {
                        self.distance += coefficients.iter().fold(0., |sum, c| sum * moved + c);
                        self.distance < threshold
                    }
                    _ => false,
                };
                if !near {
                    self.distance = 0.;
                }
                Ok(near.then_some(0))
            }
            StackRule::Delta { interval, .. } => {
                let span = self.rule.stage(call);
                let starts = self.spans[span].blocks.start == block;
                Ok((starts && !call.index.is_multiple_of(interval)).then_some(span))
            }
        }
    }

    /// Whether the residual of the blocks in front is nearer than `threshold` to that of the last computed call.
    fn little_changed(
        &mut self,
        tokens: &Tensor,
        threshold: f64,
        allowed: bool,
    ) -> Result<Option<usize>> {
        let Some(input) = self.input.take() else {
            return Ok(None);
        };
        let residual = tokens.f_sub(&input)?.f_detach()?;
        if allowed
            && let Some(last) = &self.signal
            && relative_distance(&residual, last)?.is_some_and(|moved| moved < threshold)
            && self.fits(0)?
        {
            return Ok(Some(0));
        }
        self.signal = Some(residual);
        Ok(None)
    }

    fn fits(&self, span: usize) -> Result<bool> {
        let kept = self.spans[span].residuals.fitting(1, self.samples)?;
        Ok(!kept.is_empty())
    }

    /// What stands for a span's residual in this call; none where there is none of as many samples.
    fn value(&self, span: usize) -> Result<Option<Tensor>> {
        let timestep = self.call.map_or(0., |call| call.timestep);
        let forecast = Forecast::Order(self.rule.order(), Formula::Taylor);
        self.spans[span]
            .residuals
            .value(&forecast, timestep, self.samples)
    }

    fn count_skipped(&mut self, blocks: &Range<usize>) {
        for index in 2 * blocks.start..2 * blocks.end {
            self.counts.reused[index] += 1;
            self.counts.skipped_macs +=
                self.macs.of(SubModule::at(index)) * self.samples.unsigned_abs();
        }
    }

    fn note_bytes(&mut self) {
        let bytes = |t: &Tensor| (t.numel() * t.kind().elt_size_in_bytes()) as u64;
        let spans = self.spans.iter().map(|span| {
            // Tokens of the first block are kept by the model anyway.
            let copied = span.before.as_ref().filter(|_| span.blocks.start > 0);
            span.residuals.bytes() + copied.map_or(0, bytes)
        });
        let held = spans.sum::<u64>() + self.signal.as_ref().map_or(0, bytes);
        self.counts.peak_bytes = self.counts.peak_bytes.max(held);
    }
}

impl Reuse for StackCache {
    fn begin(&mut self, call: &Call) {
        let follows = self.call.is_some_and(|last| last.index + 1 == call.index);
        self.call = Some(*call);
        if !follows {
            self.spans
                .iter_mut()
                .for_each(|span| span.residuals.clear());
            self.signal = None;
            (self.distance, self.in_a_row) = (0., 0);
            self.reused.clear();
            self.counts = CacheCounts::new(self.counts.computed.len());
        }
        self.reused.push(0..0);
    }

    fn batch(&mut self, samples: i64) {
        self.samples = samples;
        // A call that failed leaves nothing.
        self.spans.iter_mut().for_each(|span| span.before = None);
        self.input = None;
        if self.call.is_some() {
            self.counts.macs += self.macs.rest * samples.unsigned_abs();
        }
    }

    fn enter(
        &mut self,
        block: usize,
        tokens: &Tensor,
        modulated: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Option<(usize, Tensor)>> {
        let Some(call) = self.call else {
            return Ok(None);
        };
        for span in &mut self.spans {
            if span.blocks.end == block
                && let Some(before) = span.before.take()
            {
                let residual = tokens.f_sub(&before)?.f_detach()?;
                span.residuals.push(call.timestep, residual);
            }
        }
        self.note_bytes();
        if block == 0 && self.rule.compares_residuals() {
            self.input = Some(tokens.shallow_clone());
        }
        if !self.spans.iter().any(|span| span.blocks.start == block) {
            return Ok(None);
        }
        let wanted = self.wants(&call, block, tokens, modulated)?;
        if let Some(index) = wanted
            && let Some(residual) = self.value(index)?
        {
            let blocks = self.spans[index].blocks.clone();
            self.count_skipped(&blocks);
            self.in_a_row += 1;
            if let Some(last) = self.reused.last_mut() {
                *last = blocks.clone();
            }
            return Ok(Some((blocks.end, tokens.f_add(&residual)?)));
        }
        let most = usize::from(self.rule.order()) + 1;
        for (index, span) in self.spans.iter_mut().enumerate() {
            if span.blocks.start != block {
                continue;
            }
            // What was wanted and is not there is needed from now on.
            if self.rule.keeps(&call, index) || wanted == Some(index) {
                // The oldest is freed before the new one is made, which then may take its place.
                span.residuals.make_room(most);
                span.before = Some(match block {
                    0 => tokens.shallow_clone(),
                    // The model writes to them.
                    _ => tokens.f_to_dtype(tokens.kind(), false, true)?.f_detach()?,
                });
            } else if self.rule.is_over(&call, index) {
                span.residuals.clear();
            }
        }
        self.in_a_row = 0;
        self.note_bytes();
        Ok(None)
    }

    fn run(
        &mut self,
        module: SubModule,
        compute: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let output = compute()?;
        if self.call.is_some() {
            self.counts.computed[module.index()] += 1;
            self.counts.macs += self.macs.of(module) * self.samples.unsigned_abs();
        }
        Ok(output)
    }
}

/// mean |a − b| / mean |b|, over the samples of a; none where b has fewer. Two zeros are at distance 0.
fn relative_distance(a: &Tensor, b: &Tensor) -> Result<Option<f64>> {
    let (samples, known) = (a.size()[0], b.size()[0]);
    if known < samples {
        return Ok(None);
    }
    let b = b.f_narrow(0, 0, samples)?;
    let mean = |t: Tensor| -> Result<f64> {
        Ok(t.f_abs()?.f_mean(tch::Kind::Float)?.f_double_value(&[])?)
    };
    let moved = mean(a.f_sub(&b)?)?;
    Ok(Some(match moved {
        0. => 0.,
        moved => moved / mean(b)?,
    }))
}

#[cfg(test)]
mod tests;
