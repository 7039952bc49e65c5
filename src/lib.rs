//! orlop: named, sized volumes kept as plain directories.
//!
//! # Modules
//!
//! | layer | modules | role |
//! |---|---|---|
//! | assembly | [`cli`], [`config`], [`run`], [`check`] | command line, configuration, start and stop |
//! | frontends | [`csi`], [`http`], [`command`] | parse a request, call the engine once, respond; async but for commands |
//! | Kubernetes client | `kube` | releases the claims of lost nodes, relocates claims to their source |
//! | used by frontends | [`socket`], [`telemetry`], [`metrics`], [`health`], [`quantity`] | shared by frontends and configuration |
//! | dispatch | [`dispatch`] | runs engine calls on threads; each pool has its own |
//! | workers | [`worker`] | runs engine calls in another process |
//! | engine | [`engine`] | every rule about volumes; synchronous; independent of any protocol |
//! | pool | [`pool`] | a self-describing directory: marker, records, trash, index, capacity |
//! | backend | [`backend`] | what a pool's filesystem can do for its volumes |
//! | shares | [`remote`] | mounts the shares of other hosts |
//! | writers | [`pause`] | pauses the containers that write to volumes |
//! | files and mounts | [`fs`], [`mount`] | walk, copy and remove trees; attach and detach mounts; users of a mount |
//! | kernel | [`sys`] | system calls that rustix lacks; the only `unsafe` code |
//! | vocabulary | [`volume`], [`error`] | types without I/O, which every module may use |
//!
//! # Dependencies
//!
//! A module uses only modules of the rows below it, or later in its own row. `tests/rules/layers.rs` lists the modules
//! and the external crates that each module may use; ARCHITECTURE.md gives the reasons and describes every file.
//!
//! # Request flow
//!
//! 1. A handler of [`csi`] parses its message into a type of [`engine::request`] and checks the form of every field.
//! 2. [`dispatch::Dispatch::call`] runs the engine call on a blocking thread, or in a worker, where it continues if the caller disconnects.
//! 3. A method of [`engine::Engine`] reads *lock, load, act, commit*: it locks the object, loads its record or its
//!    mount, does the work in a draft or on a detached mount, and makes the result visible in one step.
//! 4. An [`error::Error`] has a kind that is named for its remedy. `csi/status.rs` maps kinds to gRPC codes.

pub mod archive;
pub mod backend;
pub mod check;
pub mod cli;
pub mod command;
pub mod config;
pub mod csi;
pub mod dispatch;
pub mod docker;
pub mod engine;
pub mod error;
pub mod fs;
pub mod health;
pub mod http;
#[cfg(feature = "kube")]
pub mod kube;
pub mod metrics;
pub mod mount;
pub mod options;
pub mod pause;
pub mod pool;
pub mod quantity;
pub mod remote;
pub mod run;
pub mod socket;
pub mod sys;
pub mod telemetry;
pub mod volume;
pub mod worker;
