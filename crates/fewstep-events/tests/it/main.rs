//! Hostile and damaged files, and memory: what the crate promises beyond right scores.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests

mod allocation;
mod forge;
mod messages;
mod mutations;
mod subject;

use fewstep_events::{Connection, Dense, Layer, Network, Reset, Shortcut};

/// Pools, a projection, an identity, a stride, a hidden layer and the read-out, at widths that fill no block.
fn small_network(timesteps: usize) -> Network {
    let dense = |rows: usize, outputs: usize| Dense {
        weight: (0..rows * outputs)
            .map(|i| ((i * 29 + 7) % 83) as f32 / 41. - 1.)
            .collect(),
        bias: (0..outputs).map(|i| (i % 5) as f32 / 10.).collect(),
    };
    let layer = |name: &str, connection, rows: usize, outputs: usize| Layer {
        name: name.into(),
        connection,
        outputs,
        dense: dense(rows, outputs),
        threshold: vec![0.6],
        leak: vec![0.9],
        pool: false,
        shortcut: None,
    };
    let conv = |kernel, stride| Connection::Conv {
        kernel,
        stride,
        padding: kernel / 2,
    };
    let shortcut = |from, projection| Some(Shortcut { from, projection });
    Network {
        name: "small".into(),
        input: [2, 8, 6],
        mean: vec![0.5; 2],
        std: vec![0.25; 2],
        timesteps,
        reset: Reset::Soft,
        classes: vec!["a".into(), "b".into(), "c".into()],
        layers: vec![
            Layer {
                pool: true,
                ..layer("stem", conv(3, 1), 18, 18)
            },
            Layer {
                shortcut: shortcut(0, Some((2, dense(18, 66)))),
                ..layer("down", conv(3, 2), 9 * 18, 66)
            },
            Layer {
                shortcut: shortcut(1, None),
                ..layer("same", conv(1, 1), 66, 66)
            },
            layer("hidden", Connection::Linear, 66 * 4, 20),
            Layer {
                threshold: vec![],
                leak: vec![],
                ..layer("readout", Connection::Linear, 20, 3)
            },
        ],
        ..Network::default()
    }
}
