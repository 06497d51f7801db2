//! What a plan or a router is bound to: it says nothing about any other model, sampler, number of steps or guidance.

use std::collections::BTreeMap;

use fewstep_diffusion::{Dit, DitConfig, Guidance, SubModule};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, Result};

/// The conditions that a plan or a router was made for. T is the number of calls of the model, N that of its sub-modules.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conditions {
    /// Fingerprint of the model ([`Dit::fingerprint`]); none where it is not known, as for published routers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The sampler and its settings, as the program labels them.
    pub sampler: String,
    /// Timestep of each row; row 0 is the last call.
    pub timesteps: Vec<f64>,
    /// Guidance.
    pub guidance: Guidance,
    /// Shape of the model, with the resolution it runs at.
    pub shape: DitConfig,
}

impl Conditions {
    /// For this model. `timesteps` are in the order of execution, as the sampler has them.
    ///
    /// # Errors
    /// No timesteps, or guidance out of range.
    pub fn new(
        dit: &Dit,
        sampler: impl Into<String>,
        timesteps: &[f64],
        guidance: &Guidance,
    ) -> Result<Self> {
        let conditions = Self {
            model: Some(dit.fingerprint()?),
            sampler: sampler.into(),
            timesteps: timesteps.iter().rev().copied().collect(),
            guidance: guidance.clone(),
            shape: dit.config().clone(),
        };
        conditions.validate()?;
        Ok(conditions)
    }

    /// # Errors
    /// The first thing that is out of range, in a sentence.
    pub fn validate(&self) -> Result<()> {
        let within = |table: &'static str| {
            move |(key, reason)| Error::Invalid {
                key: format!("{table}.{key}"),
                reason,
            }
        };
        self.shape.validate().map_err(within("shape"))?;
        self.guidance.validate().map_err(within("guidance"))?;
        // JSON knows no infinity, and routers carry their conditions as JSON.
        if let Some(bound) = self
            .guidance
            .interval
            .into_iter()
            .flatten()
            .find(|b| b.is_infinite())
        {
            return Err(Error::option(
                "guidance.interval",
                "two finite timesteps",
                bound,
            ));
        }
        if self.timesteps.is_empty() {
            return Err(Error::option("timesteps", "at least one", "none"));
        }
        match self.timesteps.iter().find(|t| !t.is_finite()) {
            Some(t) => Err(Error::option("timesteps", "finite numbers", t)),
            None => Ok(()),
        }
    }

    /// T.
    pub fn steps(&self) -> usize {
        self.timesteps.len()
    }

    /// N.
    pub fn modules(&self) -> usize {
        self.shape.sub_modules()
    }

    /// Multiply-accumulate operations of a sub-module in the call of this row, for one image: twice those of a forward pass
    /// where guidance needs two.
    pub fn macs(&self, row: usize, module: usize) -> u64 {
        self.passes(row) * self.shape.macs().of(SubModule::at(module))
    }

    /// Multiply-accumulate operations of all calls for one image when everything is computed.
    pub fn total_macs(&self) -> u64 {
        (0..self.steps()).map(|row| self.macs_of_call(row)).sum()
    }

    /// Multiply-accumulate operations of the call of this row for one image when everything is computed.
    pub fn macs_of_call(&self, row: usize) -> u64 {
        self.passes(row) * self.shape.macs().total()
    }

    /// Whether nothing can be reused in the call of this row: the first executed one, and one where guidance begins, whose second half has no
    /// output yet.
    pub fn must_compute(&self, row: usize) -> bool {
        row + 1 >= self.steps() || self.passes(row) > self.passes(row + 1)
    }

    fn passes(&self, row: usize) -> u64 {
        1 + u64::from(self.guidance.applies(self.timesteps[row]))
    }

    /// Whether something made for these conditions (`what`, as errors name it) may be used in `job`.
    ///
    /// # Errors
    /// Names everything that differs. A model without a fingerprint is taken for any of its shape.
    pub fn check_fits(&self, job: &Self, what: &str) -> Result<()> {
        let mut differ = Vec::new();
        if self.steps() != job.steps() {
            differ.push(differs("steps", self.steps(), job.steps()));
        } else if let Some(row) = (0..self.steps()).find(|&r| self.timesteps[r] != job.timesteps[r])
        {
            let key = format!("the timestep of row {row}");
            differ.push(differs(&key, self.timesteps[row], job.timesteps[row]));
        }
        if let (Some(own), Some(other)) = (&self.model, &job.model)
            && own != other
        {
            differ.push(differs("model", own, other));
        }
        if self.sampler != job.sampler {
            differ.push(differs("sampler", &self.sampler, &job.sampler));
        }
        let pairs = [
            ("guidance", entries(&self.guidance), entries(&job.guidance)),
            ("shape", entries(&self.shape), entries(&job.shape)),
        ];
        for (name, own, other) in pairs {
            let keys: std::collections::BTreeSet<_> = own.keys().chain(other.keys()).collect();
            for key in keys {
                let value = |of: &BTreeMap<String, Value>| {
                    of.get(key).map_or("none".to_owned(), Value::to_string)
                };
                if own.get(key) != other.get(key) {
                    differ.push(differs(
                        &format!("{name}.{key}"),
                        value(&own),
                        value(&other),
                    ));
                }
            }
        }
        if differ.is_empty() {
            return Ok(());
        }
        Err(Error::Mismatch {
            what: what.into(),
            reason: differ.join("; "),
        })
    }
}

fn differs(key: &str, own: impl ToString, other: impl ToString) -> String {
    format!(
        "{key}: made for {}, found {}",
        own.to_string(),
        other.to_string()
    )
}

fn entries<T: Serialize>(of: &T) -> BTreeMap<String, Value> {
    match serde_json::to_value(of) {
        Ok(Value::Object(map)) => map.into_iter().collect(),
        _ => BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::conditions;

    #[test]
    fn other_conditions_are_refused_with_everything_that_differs() {
        let made = conditions(4, 2);
        made.check_fits(&made, "plan.toml").unwrap();
        let mut job = made.clone();
        job.model = None;
        made.check_fits(&job, "plan.toml").unwrap();
        job.model = Some("other".into());
        job.sampler = "ddpm".into();
        job.guidance.interval = Some([0., 500.]);
        job.shape.input_size = 16;
        assert_eq!(
            made.check_fits(&job, "plan.toml").unwrap_err().to_string(),
            "plan.toml does not fit: model: made for 0123456789abcdef, found other; sampler: made for ddim, found ddpm; \
             guidance.interval: made for none, found [0.0,500.0]; shape.input_size: made for 8, found 16"
        );
        let e = made.check_fits(&conditions(5, 2), "it").unwrap_err();
        assert_eq!(e.to_string(), "it does not fit: steps: made for 4, found 5");
        job = made.clone();
        job.timesteps[2] += 1.;
        let e = made.check_fits(&job, "it").unwrap_err().to_string();
        assert_eq!(
            e,
            "it does not fit: the timestep of row 2: made for 666, found 667"
        );
    }

    #[test]
    fn guidance_doubles_the_operations_of_the_calls_it_applies_to() {
        let mut c = conditions(4, 2);
        let macs = c.shape.macs();
        assert_eq!(c.total_macs(), 8 * macs.total());
        c.guidance.interval = Some([500., 900.]);
        assert_eq!(c.total_macs(), 5 * macs.total());
        assert_eq!(c.macs(2, 0), 2 * macs.attention);
        let computed: Vec<bool> = (0..4).map(|row| c.must_compute(row)).collect();
        assert_eq!(computed, [false, false, true, true]);
        assert_eq!(c.macs(3, 1), macs.mlp);
    }
}
