//! Random streams that depend on what is drawn and never on which thread draws it.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// What a stream is for; streams of different use never meet.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stream {
    Pixels = 1,
    Shuffle = 2,
    Augment = 3,
    Split = 4,
}

/// The stream of one item: ChaCha with 8 rounds, keyed by (seed, epoch, index, use).
pub(crate) fn stream(seed: u64, epoch: u64, index: u64, of: Stream) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    for (slot, value) in key.chunks_exact_mut(8).zip([seed, epoch, index, of as u64]) {
        slot.copy_from_slice(&value.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}
