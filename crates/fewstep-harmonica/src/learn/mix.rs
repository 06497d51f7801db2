//! What stands for a sub-module's output while a router is learned.

use fewstep_diffusion::{Result, Reuse, SubModule};
use tch::Tensor;

use crate::history::{Forecast, Formula, History};

/// The last stored outputs of each sub-module; detached. Replaced, never written into, so a copy of the table is a snapshot.
pub(super) struct Slots {
    modules: Vec<History>,
    forecast: Forecast,
}

impl Slots {
    /// Empty, for forecasts of this order.
    pub(super) fn new(modules: usize, order: u8) -> Self {
        Self {
            modules: std::iter::repeat_with(History::default)
                .take(modules)
                .collect(),
            forecast: Forecast::Order(order, Formula::Polynomial),
        }
    }

    pub(super) fn snapshot(&self) -> Self {
        Self {
            modules: self.modules.iter().map(History::shallow_clone).collect(),
            forecast: self.forecast,
        }
    }

    fn put(&mut self, module: SubModule, timestep: f64, output: &Tensor) -> Result<()> {
        let history = &mut self.modules[module.index()];
        history.make_room(self.forecast.outputs());
        history.push(timestep, output.f_detach()?);
        Ok(())
    }

    /// What reuse gives. Where guidance ended, the conditional half comes first; where it begins, nothing fits.
    fn value(&self, module: SubModule, timestep: f64, samples: i64) -> Result<Option<Tensor>> {
        self.modules[module.index()].value(&self.forecast, timestep, samples)
    }
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
pub(super) struct Fill<'a> {
    pub(super) slots: &'a mut Slots,
    pub(super) timestep: f64,
}

impl Reuse for Fill<'_> {
    fn run(
        &mut self,
        module: SubModule,
        compute: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let out = compute()?;
        self.slots.put(module, self.timestep, &out)?;
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
    /// The student of the call at `timestep`.
    pub(super) fn student<'a>(&'a self, slots: &'a mut Slots, timestep: f64) -> Student<'a> {
        Student {
            gates: self,
            slots,
            timestep,
            write: true,
            first: None,
        }
    }
}

/// The student: every sub-module is computed and mixed with its slot.
pub(super) struct Student<'a> {
    gates: &'a Gates,
    slots: &'a mut Slots,
    timestep: f64,
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
        let cached = self
            .slots
            .value(module, self.timestep, computed.size()[0])?;
        let Some(cached) = cached else {
            if self.write {
                self.slots.put(module, self.timestep, &computed)?;
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
            self.slots.put(module, self.timestep, &mixed)?;
        }
        Ok(mixed)
    }
}
