//! The sampler of a config.

use serde::{Deserialize, Serialize};

use super::{Ddim, Ddpm, DpmSolver, Flow, Prediction, Sampler, Variance};
use crate::noise::{NoiseSchedule, Respacing};
use crate::{Error, Result};

/// Which sampler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SamplerName {
    /// DDIM.
    Ddim,
    /// DDPM with a fixed variance.
    Ddpm,
    /// DDPM with a learned variance.
    Iddpm,
    /// DPM-Solver++ 2M.
    #[serde(rename = "dpm-solver++")]
    DpmSolver,
    /// Flow matching, Euler's method.
    Euler,
    /// Flow matching, Heun's method.
    Heun,
}

/// A sampler and its settings, as in a config: `{ name = "ddim", steps = 20 }`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplerOptions {
    /// Which one.
    pub name: SamplerName,
    /// Steps, 1 to 1000. One call of the denoiser each, two with `heun`.
    pub steps: usize,
    /// Share of DDPM's noise that `ddim` adds, 0 to 1. Default: 0, deterministic.
    #[serde(default)]
    pub eta: f64,
    /// The noise that `ddpm` adds. Default: `fixed-small`.
    #[serde(default)]
    pub variance: Variance,
    /// Let `dpm-solver++` place its steps by Karras' noise levels. Default: false.
    #[serde(default)]
    pub karras: bool,
    /// How the timesteps are chosen. `dpm-solver++` leaves out timestep 0 where diffusers does. Default: `published`.
    #[serde(default)]
    pub respacing: Respacing,
    /// What the model predicts. Flow matching always predicts a velocity. Default: `epsilon`.
    #[serde(default)]
    pub prediction: Prediction,
    /// Clamp predicted pixels to −1 … 1 (`ddim`, `ddpm`, `iddpm`; not for latents). Default: false.
    #[serde(default)]
    pub clip_denoised: bool,
}

impl SamplerOptions {
    /// With the defaults of everything else.
    pub fn new(name: SamplerName, steps: usize) -> Self {
        Self {
            name,
            steps,
            eta: 0.,
            variance: Variance::default(),
            karras: false,
            respacing: Respacing::default(),
            prediction: Prediction::default(),
            clip_denoised: false,
        }
    }

    fn is_flow(&self) -> bool {
        matches!(self.name, SamplerName::Euler | SamplerName::Heun)
    }

    /// # Errors
    /// The option that is out of range or that this sampler does not have, and a clause that says what was expected and found.
    pub fn validate(&self) -> std::result::Result<(), (&'static str, String)> {
        use SamplerName as Name;
        let name = word(&self.name);
        let only = |with: bool, unset: bool, key, found: String| match with || unset {
            true => Ok(()),
            false => Err((key, format!("expected none with {name}, found {found}"))),
        };
        let ddpm_or_ddim = matches!(self.name, Name::Ddim | Name::Ddpm | Name::Iddpm);
        let spaced = !self.is_flow() && !self.karras;
        let eta = self.eta;
        only(self.name == Name::Ddim, eta == 0., "eta", eta.to_string())?;
        if !(0. ..=1.).contains(&eta) {
            return Err(("eta", format!("expected a number from 0 to 1, found {eta}")));
        }
        only(
            self.name == Name::Ddpm,
            self.variance == Variance::default(),
            "variance",
            word(&self.variance),
        )?;
        if self.variance == Variance::LearnedRange {
            let message =
                "expected fixed-small or fixed-large (iddpm learns it), found learned-range";
            return Err(("variance", message.into()));
        }
        only(
            self.name == Name::DpmSolver,
            !self.karras,
            "karras",
            "true".into(),
        )?;
        if self.karras && self.respacing != Respacing::default() {
            let found = word(&self.respacing);
            let message = format!("expected none with karras = true, found {found}");
            return Err(("respacing", message));
        }
        only(
            spaced,
            self.respacing == Respacing::default(),
            "respacing",
            word(&self.respacing),
        )?;
        only(
            !self.is_flow(),
            self.prediction == Prediction::default(),
            "prediction",
            word(&self.prediction),
        )?;
        only(
            ddpm_or_ddim,
            !self.clip_denoised,
            "clip_denoised",
            "true".into(),
        )?;
        let expected = match spaced {
            true => self.timesteps().err(),
            false => (!(1..=1000).contains(&self.steps))
                .then(|| "a whole number from 1 to 1000".to_owned()),
        };
        match expected {
            None => Ok(()),
            Some(expected) => Err((
                "steps",
                format!("expected {expected}, found {}", self.steps),
            )),
        }
    }

    fn timesteps(&self) -> std::result::Result<Vec<usize>, String> {
        let without_zero = self.name == SamplerName::DpmSolver
            && matches!(self.respacing, Respacing::Leading | Respacing::Linspace);
        match without_zero {
            false => self.respacing.choose(self.steps),
            true if (1..1000).contains(&self.steps) => {
                Ok(self.respacing.choose(self.steps + 1)?.split_off(1))
            }
            true => Err("a whole number from 1 to 999".into()),
        }
    }

    /// The sampler. Flow matching does not look at the schedule.
    ///
    /// # Errors
    /// Of [`validate`](Self::validate).
    pub fn build(&self, schedule: &NoiseSchedule) -> Result<Box<dyn Sampler>> {
        self.validate().map_err(Error::setting)?;
        let timesteps = || {
            self.timesteps()
                .map_err(|expected| Error::option("steps", expected, self.steps))
        };
        let (prediction, clip) = (self.prediction, self.clip_denoised);
        Ok(match self.name {
            SamplerName::Ddim => Box::new(Ddim::new(
                schedule,
                &timesteps()?,
                prediction,
                self.eta,
                clip,
            )?),
            SamplerName::Ddpm => Box::new(Ddpm::new(
                schedule,
                &timesteps()?,
                prediction,
                self.variance,
                clip,
            )?),
            SamplerName::Iddpm => Box::new(Ddpm::new(
                schedule,
                &timesteps()?,
                prediction,
                Variance::LearnedRange,
                clip,
            )?),
            SamplerName::DpmSolver if self.karras => {
                Box::new(DpmSolver::karras(schedule, self.steps, prediction)?)
            }
            SamplerName::DpmSolver => {
                Box::new(DpmSolver::new(schedule, &timesteps()?, prediction)?)
            }
            SamplerName::Euler => Box::new(Flow::euler(self.steps)?),
            SamplerName::Heun => Box::new(Flow::heun(self.steps)?),
        })
    }

    /// How often the denoiser is called.
    pub fn calls(&self) -> usize {
        match self.name {
            SamplerName::Heun => 2 * self.steps,
            _ => self.steps,
        }
    }

    /// For tables and file names of people: `ddim 20`, and whatever is not the default, `ddim 50 eta 1 respacing ddim`.
    pub fn label(&self) -> String {
        let mut label = format!("{} {}", word(&self.name), self.steps);
        let mut add = |set: bool, what: String| {
            if set {
                label.push(' ');
                label.push_str(&what);
            }
        };
        add(self.eta != 0., format!("eta {}", self.eta));
        add(self.variance != Variance::default(), word(&self.variance));
        add(self.karras, "karras".into());
        add(
            self.respacing != Respacing::default(),
            format!("respacing {}", word(&self.respacing)),
        );
        add(
            self.prediction != Prediction::default(),
            format!("prediction {}", word(&self.prediction)),
        );
        add(self.clip_denoised, "clipped".into());
        label
    }
}

/// How serde writes a unit variant.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_has_defaults_and_refuses_unknown_keys() {
        let read = |text: &str| serde_json::from_str::<SamplerOptions>(text);
        let options = read(r#"{"name":"dpm-solver++","steps":12,"karras":true}"#).unwrap();
        assert_eq!(options.label(), "dpm-solver++ 12 karras");
        assert_eq!(options.calls(), 12);
        assert_eq!(
            read(r#"{"name":"ddim","steps":20}"#).unwrap(),
            SamplerOptions::new(SamplerName::Ddim, 20)
        );
        assert!(read(r#"{"name":"ddim","steps":20,"etta":1}"#).is_err());
        assert!(read(r#"{"name":"ddim"}"#).is_err());
    }

    #[test]
    fn a_label_names_what_is_not_the_default() {
        let mut options = SamplerOptions::new(SamplerName::Ddim, 20);
        assert_eq!(options.label(), "ddim 20");
        options.eta = 0.5;
        options.respacing = Respacing::Ddim;
        options.prediction = Prediction::V;
        options.clip_denoised = true;
        assert_eq!(
            options.label(),
            "ddim 20 eta 0.5 respacing ddim prediction v clipped"
        );
        assert_eq!(SamplerOptions::new(SamplerName::Heun, 5).calls(), 10);
    }

    #[test]
    fn settings_that_a_sampler_does_not_have_are_refused() {
        let check = |name, change: &dyn Fn(&mut SamplerOptions)| {
            let mut options = SamplerOptions::new(name, 20);
            change(&mut options);
            let found = options.validate();
            assert_eq!(
                options.build(&NoiseSchedule::default()).is_ok(),
                found.is_ok()
            );
            found
                .map_err(|(key, reason)| format!("{key}: {reason}"))
                .err()
        };
        use SamplerName::*;
        for name in [Ddim, Ddpm, Iddpm, DpmSolver, Euler, Heun] {
            assert_eq!(check(name, &|_| ()), None);
            let steps = check(name, &|o| o.steps = 0).unwrap();
            assert!(
                steps.starts_with("steps: expected a whole number from "),
                "{steps}"
            );
        }
        let expect = |name, change: &dyn Fn(&mut SamplerOptions), message: &str| {
            assert_eq!(check(name, change).as_deref(), Some(message));
        };
        expect(
            Heun,
            &|o| o.eta = 1.,
            "eta: expected none with heun, found 1",
        );
        expect(
            Ddim,
            &|o| o.eta = 1.5,
            "eta: expected a number from 0 to 1, found 1.5",
        );
        expect(
            Ddim,
            &|o| o.karras = true,
            "karras: expected none with ddim, found true",
        );
        expect(
            Iddpm,
            &|o| o.variance = Variance::FixedLarge,
            "variance: expected none with iddpm, found fixed-large",
        );
        expect(
            Ddpm,
            &|o| o.variance = Variance::LearnedRange,
            "variance: expected fixed-small or fixed-large (iddpm learns it), found learned-range",
        );
        expect(
            Euler,
            &|o| o.respacing = Respacing::Ddim,
            "respacing: expected none with euler, found ddim",
        );
        expect(
            Euler,
            &|o| o.prediction = Prediction::V,
            "prediction: expected none with euler, found v",
        );
        expect(
            DpmSolver,
            &|o| o.clip_denoised = true,
            "clip_denoised: expected none with dpm-solver++, found true",
        );
        expect(
            DpmSolver,
            &|o| {
                o.karras = true;
                o.respacing = Respacing::Trailing;
            },
            "respacing: expected none with karras = true, found trailing",
        );
        expect(
            Ddim,
            &|o| o.steps = 1,
            "steps: expected a whole number from 2 to 1000, found 1",
        );
    }
}
