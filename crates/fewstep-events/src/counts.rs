//! What a session did, counted where it does it.

/// Of one layer, summed over all images since the counts began. A projection's operations are its layer's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerCounts {
    /// Inputs over all timesteps.
    pub inputs: u64,
    /// Spikes that reached them, each an event: behind a pool up to four an input. 0 for the first layer, which reads an image.
    pub spikes: u64,
    /// Weights added to a current: one for each spike and target that exists (a target in the padding does not), or each
    /// multiply-accumulate of a dense pass.
    pub additions: u64,
    /// Multiplications of a dense pass.
    pub multiplications: u64,
    /// What `additions` would be without dense passes; 0 for the first layer.
    pub spike_additions: u64,
    /// Bytes of weights read, each time they are.
    pub weight_bytes: u64,
    /// Images for which the layer ran densely.
    pub dense_images: u64,
    /// Time spent in the layer, summed over the threads that took images through it; without the counting itself.
    pub nanoseconds: u64,
}
