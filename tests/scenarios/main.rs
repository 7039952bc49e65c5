//! What a person does with orlop on Kubernetes, on the real cluster of `tests/cluster`: each test is named for what it
//! proves. Run by `make e2e`, which brings the cluster up.
//!
//! Those in `disturbing` take orlop, a kubelet or a node away, so they run alone and last; all others run at once, each
//! in a namespace of its own.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]
#![expect(clippy::disallowed_methods, reason = "scripts of the cluster are programs; a poll sleeps")]

mod bad_input;
mod chart;
mod churn;
mod copies;
mod disturbing;
mod lost_node;
mod nodes;
mod objects;
#[path = "../ground/stop.rs"]
mod stop;
mod volumes;
mod world;
