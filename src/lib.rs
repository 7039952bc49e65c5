//! orlop: named, sized volumes kept as plain directories.

pub mod backend;
pub mod check;
pub mod cli;
pub mod csi;
pub mod engine;
pub mod error;
pub mod health;
pub mod http;
#[cfg(feature = "kube")]
pub mod kube;
pub mod metrics;
pub mod mount;
pub mod pool;
pub mod quantity;
pub mod run;
pub mod settings;
pub mod socket;
pub mod store;
pub mod sys;
pub mod telemetry;
pub mod volume;
