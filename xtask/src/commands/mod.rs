//! One file a command.

pub mod bench;
pub mod book;
pub mod bundle;
pub mod ci;
pub mod doctor;
pub mod drive;
pub mod launch;
mod licences;
pub mod setup;
pub mod test;
