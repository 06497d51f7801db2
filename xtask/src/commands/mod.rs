//! One file a command.

pub mod bench;
pub mod ci;
pub mod doctor;
pub mod drive;
mod licences;
pub mod setup;
pub mod test;
