/// Finds the threshold at which a rule saves as much as is asked. What was measured for one saving narrows the search for the next.
#[derive(Debug, Default)]
pub struct ThresholdSearch {
    /// Thresholds with their savings.
    known: Vec<(f64, f64)>,
}

/// Halvings of an interval that is at most as wide as its upper end.
const HALVINGS: usize = 8;
/// Above it every distance is below the threshold, or there is none.
const HIGHEST: f64 = 64.;

impl ThresholdSearch {
    /// Nothing measured yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A threshold whose MAC saving, as `measure` finds it, is at least `target`, and hardly more than it must be: savings are steps, one
    /// for each call that is reused. None if no threshold saves as much.
    ///
    /// # Errors
    /// Of `measure`.
    pub fn find<E>(
        &mut self,
        target: f64,
        measure: &mut dyn FnMut(f64) -> Result<f64, E>,
    ) -> Result<Option<f64>, E> {
        let mut low = 0f64;
        let mut high = f64::INFINITY;
        for &(threshold, saving) in &self.known {
            match saving >= target {
                true => high = high.min(threshold),
                false => low = low.max(threshold),
            }
        }
        // Savings need not rise with the threshold; what is known to be enough bounds the search.
        low = low.min(high / 2.);
        let mut next = (2. * low).max(1. / 64.);
        while high.is_infinite() {
            if next > HIGHEST {
                return Ok(None);
            }
            match self.measure(next, measure)? >= target {
                true => high = next,
                false => (low, next) = (next, 2. * next),
            }
        }
        for _ in 0..HALVINGS {
            let middle = (low + high) / 2.;
            match self.measure(middle, measure)? >= target {
                true => high = middle,
                false => low = middle,
            }
        }
        Ok(Some(high))
    }

    fn measure<E>(
        &mut self,
        threshold: f64,
        measure: &mut dyn FnMut(f64) -> Result<f64, E>,
    ) -> Result<f64, E> {
        if let Some((_, saving)) = self.known.iter().find(|(known, _)| *known == threshold) {
            return Ok(*saving);
        }
        let saving = measure(threshold)?;
        self.known.push((threshold, saving));
        Ok(saving)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Saves a twentieth for each tenth of threshold, up to 0.6.
    fn steps(threshold: f64) -> f64 {
        ((threshold * 10.).floor() / 20.).min(0.6)
    }

    #[test]
    fn the_threshold_found_is_the_lowest_that_saves_enough_and_earlier_measures_are_used() {
        let mut search = ThresholdSearch::new();
        let mut measured = 0;
        let mut counts = Vec::new();
        for (target, lowest) in [(0.3, 0.6), (0.4, 0.8), (0.55, 1.1), (0.32, 0.7)] {
            let found = search
                .find(target, &mut |t| -> Result<f64, ()> {
                    measured += 1;
                    Ok(steps(t))
                })
                .unwrap()
                .unwrap();
            assert!(steps(found) >= target && found < lowest + 0.01, "{found}");
            counts.push(std::mem::take(&mut measured));
        }
        assert!(counts[3] < counts[0], "{counts:?}");
    }

    #[test]
    fn a_saving_that_no_threshold_reaches_has_none_and_a_failure_is_handed_on() {
        let mut search = ThresholdSearch::new();
        let found = search.find(0.7, &mut |t| -> Result<f64, ()> { Ok(steps(t)) });
        assert_eq!(found, Ok(None));
        let failed = ThresholdSearch::new().find(0.1, &mut |_| Err("broken"));
        assert_eq!(failed, Err("broken"));
    }
}
