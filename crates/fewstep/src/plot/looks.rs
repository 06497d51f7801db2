//! One colour and marker for each policy, the same in every plot.

use super::canvas::{BLUE, GREEN, GREY, INK, Marker, ORANGE, PURPLE, Rgb, SKY, VERMILION};

/// Policies with a look of their own; others take what is left.
const KNOWN: [(&str, Rgb, Marker); 12] = [
    ("none", INK, Marker::Disc),
    ("fewer-steps", ORANGE, Marker::Diamond),
    ("fora", GREEN, Marker::Triangle),
    ("random", GREY, Marker::Cross),
    ("l2c", BLUE, Marker::Square),
    ("harmonica", VERMILION, Marker::Disc),
    ("interval", GREEN, Marker::Square),
    ("taylorseer", BLUE, Marker::Triangle),
    ("first-block", SKY, Marker::Disc),
    ("dual-block", SKY, Marker::Square),
    ("tea", PURPLE, Marker::Disc),
    ("delta", PURPLE, Marker::Diamond),
];

const OTHERS: [(Rgb, Marker); 4] = [
    (PURPLE, Marker::Square),
    (SKY, Marker::Triangle),
    (VERMILION, Marker::Square),
    (SKY, Marker::Diamond),
];

/// The families in the order of their first appearance, with their looks.
pub(super) fn looks<'a>(
    families: impl IntoIterator<Item = &'a str>,
) -> Vec<(&'a str, Rgb, Marker)> {
    let mut found: Vec<(&str, Rgb, Marker)> = Vec::new();
    let mut others = OTHERS.iter().cycle();
    for family in families {
        if found.iter().any(|(name, ..)| *name == family) {
            continue;
        }
        let known = KNOWN.iter().find(|(name, ..)| *name == family);
        let look = known.map(|&(_, colour, marker)| (colour, marker));
        if let Some((colour, marker)) = look.or_else(|| others.next().copied()) {
            found.push((family, colour, marker));
        }
    }
    found
}

/// The look of one of `looks`.
pub(super) fn look_of(looks: &[(&str, Rgb, Marker)], family: &str) -> (Rgb, Marker) {
    let found = looks.iter().find(|(name, ..)| *name == family);
    found.map_or((INK, Marker::Disc), |&(_, colour, marker)| (colour, marker))
}
