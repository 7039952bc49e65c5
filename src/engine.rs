//! Every rule about volumes; synchronous; knows no protocol.

pub mod copy;
pub mod remove;
mod tree;
