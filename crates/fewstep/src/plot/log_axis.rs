//! A number axis on which equal distances are equal ratios.

/// An axis of positive numbers; ticks at powers of ten, or at 1, 2 and 5 times those where it is short.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LogAxis {
    /// log10 of the lowest value.
    low: f64,
    /// log10 of the highest.
    high: f64,
}

impl LogAxis {
    /// An axis around all `values` that are finite and above 0, never shorter than half a decade. Without any it runs
    /// from 1 to 10.
    pub(super) fn around(values: impl IntoIterator<Item = f64>) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.into_iter().filter(|&value| shown(value)) {
            low = low.min(value.log10());
            high = high.max(value.log10());
        }
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        let pad = (0.06 * (high - low)).max(0.25 - (high - low) / 2.0);
        Self {
            low: low - pad,
            high: high + pad,
        }
    }

    /// `None` where the axis has no place for the value.
    pub(super) fn share(&self, value: f64) -> Option<f64> {
        shown(value).then(|| self.at(value.log10()))
    }

    fn at(&self, exponent: f64) -> f64 {
        (exponent - self.low) / (self.high - self.low)
    }

    /// Share of the length and label of each tick.
    pub(super) fn ticks(&self) -> Vec<(f64, String)> {
        let decades = self.high - self.low;
        let factors: &[u32] = if decades <= 2.5 { &[1, 2, 5] } else { &[1] };
        let every = ((decades / 10.0).ceil() as i32).max(1);
        let mut ticks = Vec::new();
        for power in self.low.floor() as i32..=self.high.ceil() as i32 {
            for &factor in factors {
                let exponent = f64::from(power) + f64::from(factor).log10();
                if power % every == 0 && (self.low..=self.high).contains(&exponent) {
                    ticks.push((self.at(exponent), label(factor, power)));
                }
            }
        }
        ticks
    }
}

fn shown(value: f64) -> bool {
    value.is_finite() && value > 0.0
}

/// "0.02", "500", and from 10⁻³ down and 10⁴ up "2·10⁻³".
fn label(factor: u32, power: i32) -> String {
    if (-2..=3).contains(&power) {
        let decimals = (-power).max(0) as usize;
        return format!("{:.decimals$}", f64::from(factor) * 10_f64.powi(power));
    }
    const DIGITS: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    let power = power.to_string();
    let raised = power.chars().map(|letter| {
        let digit = letter.to_digit(10).map(|digit| DIGITS[digit as usize]);
        digit.unwrap_or('⁻')
    });
    let power: String = raised.collect();
    match factor {
        1 => format!("10{power}"),
        _ => format!("{factor}·10{power}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_powers_of_ten_or_simple_multiples_inside_of_the_axis() {
        let labels = |values: &[f64]| -> Vec<String> {
            let ticks = LogAxis::around(values.iter().copied()).ticks();
            assert!(ticks.iter().all(|(share, _)| (0.0..=1.0).contains(share)));
            ticks.into_iter().map(|(_, label)| label).collect()
        };
        assert_eq!(labels(&[2e-6, 3e-2]), ["10⁻⁵", "10⁻⁴", "10⁻³", "0.01"]);
        assert_eq!(
            labels(&[0.012, 0.3]),
            ["0.01", "0.02", "0.05", "0.1", "0.2"]
        );
        assert_eq!(labels(&[3e-4]), ["2·10⁻⁴", "5·10⁻⁴"]);
        assert_eq!(labels(&[f64::NAN, 0.0, -1.0]), ["1", "2", "5", "10"]);
        assert!(labels(&[1e-300, 1e300]).len() <= 11);
    }
}
