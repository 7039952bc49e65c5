//! Tests on a real cluster: what a user does with orlop on Kubernetes. Run by `make e2e`, on the cluster of `tests/cluster`
//! or on the one that `KUBECONFIG` names.
//!
//! The tests in modules named `disruptive` stop orlop, a kubelet or a node, and those in `postgresql` load all processors.
//! They run one at a time, after all others. The other tests run in parallel, each in a namespace of its own. The tests in
//! modules named `on_nodes` access files and processes of the nodes, or need a pool on them, and so run on the cluster of
//! `tests/cluster` only.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]
#![expect(
    clippy::disallowed_methods,
    reason = "the scripts of the cluster are programs, and a test may poll"
)]

mod scenarios {
    mod bad_input;
    mod chart;
    mod cluster;
    mod copies;
    mod disruptive;
    mod nodes;
    mod objects;
    mod verbs;
    mod volumes;

    mod on_nodes {
        mod capacity;
        mod churn;
        mod disruptive;
        mod groups;
        mod lost_node;
        mod postgresql;
        mod volumes;
    }
}
