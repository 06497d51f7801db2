//! The networks of the IIR-SNN paper, for any input size and width.

mod resnet;
mod vgg;

pub use resnet::resnet;
pub use vgg::{VGG_NAMES, vgg};

use crate::{Error, Plan, Result};

/// Fully connected widths of the published VGGs.
pub const PUBLISHED_HIDDEN: [i64; 2] = [4096, 4096];

/// A network by its name: `vgg5` (= `vgg6`), `vgg9`, `vgg11`, `vgg16`, `vgg16-imagenet`, `resnet12`, `resnet20`, `resnet34`, or a VGG as a
/// layer string such as `"32 A 64 64 A"`.
///
/// `hidden` are the widths of the fully connected layers of a VGG (the published ones are [`PUBLISHED_HIDDEN`]); `width` multiplies
/// every channel count and hidden width.
///
/// # Errors
/// An unknown name, a width that is not positive, or an input too small for the pools.
pub fn by_name(
    name: &str,
    input: [i64; 3],
    hidden: &[i64],
    classes: i64,
    width: f64,
    batch_norm: bool,
) -> Result<Plan> {
    match name {
        "resnet12" => resnet(name, [1, 1, 1, 1], input, classes, width, batch_norm),
        "resnet20" => resnet(name, [2, 2, 2, 2], input, classes, width, batch_norm),
        "resnet34" => resnet(name, [3, 4, 6, 3], input, classes, width, batch_norm),
        _ => vgg(name, input, hidden, classes, width, batch_norm),
    }
}

/// A channel count times the width multiplier, at least 1.
fn scaled(n: i64, width: f64) -> Result<i64> {
    if !(width > 0. && width.is_finite()) {
        return Err(Error::Option {
            option: "network.width",
            expected: "a positive number",
            found: width.to_string(),
        });
    }
    let channels = n as f64 * width;
    if channels > 65_536. {
        let found = format!("{width}, which makes a layer of {channels:.0} channels");
        return Err(Error::Option {
            option: "network.width",
            expected: "layers of at most 65536 channels",
            found,
        });
    }
    Ok((channels.round() as i64).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_totals_are_those_of_the_published_networks() {
        let c10 = |name| by_name(name, [3, 32, 32], &PUBLISHED_HIDDEN, 10, 1., false).unwrap();
        let near = |plan: &Plan, expected: f64| {
            let macs = plan.macs() as f64;
            assert!(
                (macs / expected - 1.).abs() < 1e-3,
                "{}: {macs} {expected}",
                plan.name
            );
        };
        near(&c10("vgg6"), 1.0877e8);
        near(&c10("vgg9"), 2.818e8);
        near(&c10("vgg11"), 4.045e8);
        near(&c10("vgg16"), 3.3840e8);
        near(&c10("resnet20"), 2.157e8);
        near(
            &by_name("vgg16", [3, 32, 32], &PUBLISHED_HIDDEN, 100, 1., false).unwrap(),
            3.3877e8,
        );
        near(
            &by_name(
                "vgg16-imagenet",
                [3, 224, 224],
                &PUBLISHED_HIDDEN,
                1000,
                1.,
                false,
            )
            .unwrap(),
            1.5470e10,
        );
    }

    #[test]
    fn the_layers_of_vgg16_have_the_published_macs() {
        let plan = by_name("vgg16", [3, 32, 32], &PUBLISHED_HIDDEN, 10, 1., false).unwrap();
        let millions: Vec<_> = plan
            .units
            .iter()
            .map(|u| (u.macs() as f64 / 1e3).round() / 1e3)
            .collect();
        assert_eq!(
            millions,
            [
                1.769, 37.749, 18.874, 37.749, 18.874, 37.749, 37.749, 18.874, 37.749, 37.749,
                9.437, 9.437, 9.437, 8.389, 16.777, 0.041
            ]
        );
    }

    #[test]
    fn the_first_layer_takes_the_published_share() {
        for (name, share) in [
            ("vgg6", 1.63),
            ("vgg9", 0.63),
            ("vgg11", 0.44),
            ("vgg16", 0.52),
            ("resnet20", 0.82),
        ] {
            let plan = by_name(name, [3, 32, 32], &PUBLISHED_HIDDEN, 10, 1., false).unwrap();
            let found = 100. * plan.units[0].macs() as f64 / plan.macs() as f64;
            assert!((found - share).abs() < 0.006, "{name}: {found}");
        }
    }

    #[test]
    fn flattened_sizes_and_parameters_follow_from_the_layer_table() {
        let first_linear = |name, input| {
            let plan = by_name(name, input, &PUBLISHED_HIDDEN, 10, 1., false).unwrap();
            plan.units.iter().find_map(|u| match u.connection {
                crate::plan::Connection::Linear { inputs, .. } => Some(inputs),
                crate::plan::Connection::Conv { .. } => None,
            })
        };
        for (name, flat) in [
            ("vgg6", 8192),
            ("vgg9", 2048),
            ("vgg11", 2048),
            ("vgg16", 2048),
            ("resnet20", 2048),
        ] {
            assert_eq!(first_linear(name, [3, 32, 32]), Some(flat), "{name}");
        }
        assert_eq!(first_linear("vgg16-imagenet", [3, 224, 224]), Some(25088));
        // Convolutions 14,710,464 (as in torchvision's VGG16 without biases), then 2048·4096 + 4096² + 4096·10.
        let plan = by_name("vgg16", [3, 32, 32], &PUBLISHED_HIDDEN, 10, 1., false).unwrap();
        assert_eq!(
            plan.parameters(),
            14_710_464 + 2048 * 4096 + 4096 * 4096 + 40_960
        );
        let with_norm = by_name("vgg16", [3, 32, 32], &PUBLISHED_HIDDEN, 10, 1., true).unwrap();
        assert_eq!(with_norm.parameters() - plan.parameters(), 2 * 4224);
    }

    #[test]
    fn a_resnet_has_its_number_of_weight_layers_and_three_projections() {
        for (name, layers) in [("resnet12", 12), ("resnet20", 20), ("resnet34", 36)] {
            let plan = by_name(name, [3, 32, 32], &[], 10, 1., true).unwrap();
            assert_eq!(plan.units.len(), layers, "{name}");
            assert_eq!(
                plan.units
                    .iter()
                    .filter(|u| u.shortcut.is_some_and(|s| s.projection.is_some()))
                    .count(),
                3
            );
        }
    }

    #[test]
    fn any_input_size_and_width_works_or_says_why_not() {
        assert_eq!(
            vgg("32 A 64", [1, 7, 9], &[16], 3, 0.5, true)
                .unwrap()
                .units[1]
                .output,
            [32, 3, 4]
        );
        let e = |name: &str, input, width| {
            by_name(name, input, &[8], 3, width, false)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            e("vgg16", [3, 8, 8], 1.),
            "architecture: no room for a 2×2 pool after `conv10`, whose output is 1×1"
        );
        assert_eq!(
            e("vgg7", [3, 8, 8], 1.),
            "architecture: `vgg7` is none of vgg5, vgg6, vgg9, vgg11, vgg16, vgg16-imagenet, resnet12, resnet20, resnet34, nor a layer string such as \"32 A 64 A\""
        );
        assert_eq!(
            e("8 A", [3, 8, 8], 0.),
            "network.width: expected a positive number, found 0"
        );
        assert_eq!(
            e("A 8", [3, 8, 8], 1.),
            "architecture: a pool (A) must follow a convolution"
        );
    }
}
