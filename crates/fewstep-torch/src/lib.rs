//! Everything that is about libtorch itself, so that no other crate has to know it: opening the CUDA part at run time,
//! choosing a device, seeds, checkpoints, files of `torch.save`, optimisers whose state can be saved, and the fused
//! operators written in C++.
//!
//! This crate knows nothing of networks, data sets or configs.
//!
//! ```
//! use fewstep_torch::{Checkpoint, DeviceChoice, device};
//! use tch::{Kind, Tensor};
//!
//! let device = device::resolve(DeviceChoice::Cpu)?;
//! let weight = Tensor::f_ones([2, 3], (Kind::Float, device))?;
//! let file = std::env::temp_dir().join(format!("fewstep-doc-{}.safetensors", std::process::id()));
//! Checkpoint::new().with("weight", &weight).save(&file)?;
//! assert_eq!(Checkpoint::load(&file)?.tensor("weight")?.size(), [2, 3]);
//! # std::fs::remove_file(&file).ok();
//! # Ok::<(), fewstep_torch::Error>(())
//! ```

pub mod checkpoint;
pub mod device;
mod error;
mod graph;
mod group;
mod library;
pub mod memory;
pub mod ops;
pub mod optim;
pub mod options;
mod precision;
pub mod profile;
mod resident;
pub mod seed;
pub mod torch_file;
mod unread;

/// The libtorch that tch 0.24 is made for; its build refuses any other.
pub const LIBTORCH_VERSION: &str = "2.11.0";

pub use checkpoint::Checkpoint;
pub use device::DeviceChoice;
pub use error::{Error, Result};
pub use graph::Replay;
pub use group::{Group, Messages, Part, Ranks, Reduce, Reducer, Store};
pub use library::libtorch_bytes;
pub use optim::{LearningRate, Optimiser, OptimiserConfig, ParameterGroup};
pub use precision::{Precision, Tf32};
pub use resident::{Augmenter, Resident};
pub use unread::{ReadLoss, UnreadLosses};
