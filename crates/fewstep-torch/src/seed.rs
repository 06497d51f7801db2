//! Seeds: every random stream of a run is derived from one number and the place where it is used, so that a run that resumes
//! at an epoch draws what the uninterrupted one drew there.

/// A seed for one use: SplitMix64 over the run's seed and the place (a stage's number, an epoch …).
pub fn derive(seed: u64, place: &[u64]) -> u64 {
    place
        .iter()
        .fold(mix(seed), |state, &p| mix(state ^ mix(p)))
}

/// Seeds libtorch's generators on every device.
pub fn set_libtorch(seed: u64) {
    // libtorch takes a signed number; the bits are what matters.
    tch::manual_seed(seed.cast_signed());
}

fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_of_other_places_differ_and_the_same_place_repeats() {
        assert_eq!(derive(0, &[1, 2]), derive(0, &[1, 2]));
        let all = [
            derive(0, &[1, 2]),
            derive(0, &[2, 1]),
            derive(1, &[1, 2]),
            derive(0, &[1]),
            derive(0, &[]),
        ];
        assert_eq!(
            all.iter().collect::<std::collections::HashSet<_>>().len(),
            all.len()
        );
    }
}
