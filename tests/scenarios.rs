//! Tests on the real cluster of `tests/cluster`: what a user does with orlop on Kubernetes. Run by `make e2e`, which
//! starts the cluster.
//!
//! The tests in modules named `disruptive` stop orlop, a kubelet or a node. They run one at a time, after all others. The
//! other tests run in parallel, each in a namespace of its own.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]
#![expect(
    clippy::disallowed_methods,
    reason = "the scripts of the cluster are programs, and a test may poll"
)]

mod scenarios {
    mod bad_input;
    mod chart;
    mod churn;
    mod cluster;
    mod copies;
    mod disruptive;
    mod lost_node;
    mod nodes;
    mod objects;
    mod volumes;
}
