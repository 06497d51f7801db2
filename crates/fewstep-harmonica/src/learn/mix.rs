//! What stands for a sub-module's output while a router is learned.

use fewstep_diffusion::{Result, Reuse, SubModule};
use tch::Tensor;

/// A sub-module's last stored output; detached. Replaced, never written into, so a copy of the table is a snapshot.
pub(super) type Slots = Vec<Option<Tensor>>;

pub(super) fn empty(modules: usize) -> Slots {
    std::iter::repeat_with(|| None).take(modules).collect()
}

pub(super) fn snapshot(slots: &Slots) -> Slots {
    let copy = |t: &Option<Tensor>| t.as_ref().map(Tensor::shallow_clone);
    slots.iter().map(copy).collect()
}

/// The uncached model. Keeps the output of the first sub-module, whose input student and teacher share.
#[derive(Default)]
pub(super) struct Teacher {
    pub(super) first: Option<Tensor>,
}

impl Reuse for Teacher {
    fn run(
        &mut self,
        module: SubModule,
        compute: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let out = compute()?;
        if module.index() == 0 {
            self.first = Some(out.shallow_clone());
        }
        Ok(out)
    }
}

/// Computes everything and stores it.
pub(super) struct Fill<'a>(pub(super) &'a mut Slots);

impl Reuse for Fill<'_> {
    fn run(
        &mut self,
        module: SubModule,
        compute: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let out = compute()?;
        self.0[module.index()] = Some(out.f_detach()?);
        Ok(out)
    }
}

/// One row of the router and how it is applied.
pub(super) struct Gates {
    /// `[N]`; the gradient flows into it if it asks for one.
    pub(super) r: Tensor,
    /// The same as numbers.
    pub(super) numbers: Vec<f32>,
    pub(super) threshold: f64,
    /// Use cached or computed by the threshold instead of a mix, with the mix's gradient.
    pub(super) straight_through: bool,
}

impl Gates {
    pub(super) fn student<'a>(&'a self, slots: &'a mut Slots) -> Student<'a> {
        Student {
            gates: self,
            slots,
            write: true,
            first: None,
        }
    }
}

/// The student: every sub-module is computed and mixed with its slot.
pub(super) struct Student<'a> {
    gates: &'a Gates,
    slots: &'a mut Slots,
    /// Whether slots are written at all.
    pub(super) write: bool,
    /// The first sub-module's output, where somebody has computed it.
    pub(super) first: Option<Tensor>,
}

impl Reuse for Student<'_> {
    fn run(
        &mut self,
        module: SubModule,
        compute: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let index = module.index();
        let computed = match self.first.take() {
            Some(out) if index == 0 => out,
            _ => compute()?,
        };
        let Some(cached) = fitting(&self.slots[index], computed.size()[0])? else {
            if self.write {
                self.slots[index] = Some(computed.f_detach()?);
            }
            return Ok(computed);
        };
        let fresh = f64::from(self.gates.numbers[index]) > self.gates.threshold;
        let difference = computed.f_sub(&cached)?;
        let r = self.gates.r.f_get(index as i64)?;
        let mixed = if self.gates.straight_through {
            // The value is 0 or 1, the gradient that of r.
            let hard = r
                .f_sub(&r.f_detach()?)?
                .f_add_scalar(f64::from(u8::from(fresh)))?;
            cached.f_addcmul(&difference, &hard)?
        } else {
            cached.f_addcmul(&difference, &r)?
        };
        if self.write && fresh {
            self.slots[index] = Some(mixed.f_detach()?);
        }
        Ok(mixed)
    }
}

/// The slot for a batch of `n`. Where guidance ended, the conditional half comes first; where it begins, nothing fits.
fn fitting(slot: &Option<Tensor>, n: i64) -> Result<Option<Tensor>> {
    match slot {
        Some(t) if t.size()[0] == n => Ok(Some(t.shallow_clone())),
        Some(t) if t.size()[0] > n => Ok(Some(t.f_narrow(0, 0, n)?)),
        _ => Ok(None),
    }
}
