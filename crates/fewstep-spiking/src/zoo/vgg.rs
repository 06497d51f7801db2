//! VGG as in the IIR-SNN and DIET-SNN code: 3×3 convolutions, average pooling after the activation, no dropout beside a pool, three
//! fully connected layers without bias.

use super::scaled;
use crate::plan::{Builder, Plan};
use crate::{Error, Result};

/// Names and layers. The spiking code calls `vgg5` what the paper calls VGG6.
pub const VGG_NAMES: [(&str, &str); 6] = [
    ("vgg5", "64 A 128 128 A"),
    ("vgg6", "64 A 128 128 A"),
    ("vgg9", "64 A 128 256 A 256 512 A 512 A 512"),
    ("vgg11", "64 A 128 256 A 512 512 A 512 A 512 512"),
    (
        "vgg16",
        "64 64 A 128 128 A 256 256 256 A 512 512 512 A 512 512 512",
    ),
    (
        "vgg16-imagenet",
        "64 64 A 128 128 A 256 256 256 A 512 512 512 A 512 512 512 A",
    ),
];

/// A VGG by name or by a layer string: numbers are 3×3 convolutions of that many channels, `A` a 2×2 average pool.
///
/// # Errors
/// See [`by_name`](super::by_name).
pub fn vgg(
    name: &str,
    input: [i64; 3],
    hidden: &[i64],
    classes: i64,
    width: f64,
    batch_norm: bool,
) -> Result<Plan> {
    let layers = VGG_NAMES
        .iter()
        .find(|(n, _)| *n == name)
        .map_or(name, |(_, layers)| layers);
    let unknown = || {
        let names: Vec<_> = VGG_NAMES
            .iter()
            .map(|(n, _)| *n)
            .chain(["resnet12", "resnet20", "resnet34"])
            .collect();
        Error::Plan(format!(
            "`{name}` is none of {}, nor a layer string such as \"32 A 64 A\"",
            names.join(", ")
        ))
    };
    let mut b = Builder::new(name, input, batch_norm)?;
    let mut convolutions = 0;
    for token in layers.split_whitespace() {
        if token == "A" {
            if convolutions == 0 {
                return Err(Error::Plan("a pool (A) must follow a convolution".into()));
            }
            b.pool()?;
        } else {
            let channels: i64 = token.parse().ok().filter(|&n| n > 0).ok_or_else(unknown)?;
            convolutions += 1;
            b.conv(
                format!("conv{convolutions}"),
                scaled(channels, width)?,
                3,
                1,
            )?;
        }
    }
    if convolutions == 0 {
        return Err(unknown());
    }
    for (i, &n) in hidden.iter().enumerate() {
        if n < 1 {
            return Err(Error::Option {
                option: "network.hidden",
                expected: "positive widths",
                found: format!("{hidden:?}"),
            });
        }
        b.linear(format!("fc{}", i + 1), scaled(n, width)?, true)?;
    }
    b.linear(format!("fc{}", hidden.len() + 1), classes, false)?;
    Ok(b.finish())
}
