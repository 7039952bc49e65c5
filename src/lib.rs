//! orlop: named, sized volumes kept as plain directories.
//!
//! # The map
//!
//! | layer | modules | |
//! |---|---|---|
//! | assembly | [`cli`], [`flags`], [`settings`], [`run`], [`check`] | puts the parts together; knows all |
//! | doors | [`csi`], [`http`], `kube` | a protocol in: parse, call the engine once, answer; async |
//! | beside them | [`socket`], [`telemetry`], [`metrics`], [`health`], [`quantity`] | what doors use |
//! | engine | [`engine`] | every rule about volumes; synchronous; knows no protocol |
//! | pool | [`pool`], [`store`], [`backend`] | a directory that describes itself: marker, records, drafts, trash |
//! | mount | [`mount`] | a directory at a path; the kernel's table is the truth |
//! | words | [`volume`], [`error`] | no I/O; every layer may use them |
//! | kernel | [`sys`] | the only `unsafe` |
//!
//! # The rule
//!
//! A module knows only those below it. `tests/layers.rs` has the table of who may name whom, and which foreign crate
//! belongs to whom; ARCHITECTURE.md has the reasons and every file.
//!
//! # The way of a request
//!
//! A handler of [`csi`] parses its message into a type of [`engine::request`], with every check of form. `Driver::run`
//! takes it to a thread of its own, which goes on when the caller hangs up. A method of [`engine::Engine`] reads *lock,
//! look, act, record*: it takes the object's lock, asks the disk or the kernel what is there, does the work in `work/`
//! or in the mount table, and makes it visible by one rename. An [`error::Error`] has a kind named for the remedy;
//! `csi/status.rs` has the one table to gRPC codes.

pub mod backend;
pub mod check;
pub mod cli;
pub mod config;
pub mod csi;
pub mod engine;
pub mod error;
pub mod fs;
pub mod health;
pub mod http;
#[cfg(feature = "kube")]
pub mod kube;
pub mod metrics;
pub mod mount;
pub mod pool;
pub mod quantity;
pub mod run;
pub mod socket;
pub mod sys;
pub mod telemetry;
pub mod volume;
