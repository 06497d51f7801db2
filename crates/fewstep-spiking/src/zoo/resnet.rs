//! The ResNet of the IIR-SNN code, which is not the CIFAR-standard one: a stem of three convolutions of 64 channels and a pool, four
//! stages of basic blocks of 64, 128, 256 and 512 channels, one fully connected layer on the flattened 512 maps. A shortcut is
//! added to the current of a block's second neurons.

use super::scaled;
use crate::Result;
use crate::plan::{Builder, Connection, Plan, Shortcut};

/// A ResNet with this many basic blocks in each of its four stages.
///
/// # Errors
/// A width that is not positive, or an input too small for its strides.
pub fn resnet(
    name: &str,
    blocks: [usize; 4],
    input: [i64; 3],
    classes: i64,
    width: f64,
    batch_norm: bool,
) -> Result<Plan> {
    let mut b = Builder::new(name, input, batch_norm)?;
    for i in 1..=3 {
        b.conv(format!("stem{i}"), scaled(64, width)?, 3, 1)?;
    }
    b.pool()?;
    for (stage, &count) in blocks.iter().enumerate() {
        let channels = scaled(64 << stage, width)?;
        for block in 0..count {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let (from, before) = (b.last(), b.shape());
            let name = format!("stage{}.block{}", stage + 1, block + 1);
            b.conv(format!("{name}.conv1"), channels, 3, stride)?;
            let second = b.conv(format!("{name}.conv2"), channels, 3, 1)?;
            second.dropout = false;
            let changes = before != second.output;
            let projection = changes.then_some(Connection::Conv {
                inputs: before[0],
                outputs: channels,
                kernel: 1,
                stride,
                padding: 0,
            });
            second.shortcut = Some(Shortcut { from, projection });
        }
    }
    b.linear("fc1".into(), classes, false)?;
    Ok(b.finish())
}
