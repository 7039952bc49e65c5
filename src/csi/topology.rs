//! Topology: a volume is on one node, which the topology key `<driver>/node` names. A driver whose volumes can be used on
//! all nodes has no topology.

use super::Identity;
use super::proto::{Topology, TopologyRequirement};
use crate::error::{Error, Kind, Result};
use crate::volume::shorten;

impl Identity {
    fn topology_key(&self) -> String {
        format!("{}/node", self.driver)
    }

    /// The topology of this node and of its volumes, if they have one.
    pub(super) fn own_topology(&self) -> Option<Topology> {
        self.topology.then(|| Topology { segments: [(self.topology_key(), self.node.clone())].into() })
    }

    /// Reports whether a volume that is accessible here is accessible in this topology. The specification requires that
    /// keys are compared without case.
    pub(super) fn is_here(&self, topology: &Topology) -> bool {
        if !self.topology {
            return true;
        }
        let key = self.topology_key();
        topology.segments.iter().any(|(found, value)| found.eq_ignore_ascii_case(&key) && *value == self.node)
    }

    /// Checks that a request accepts this node. Reports whether the caller can send the request to another node:
    /// that is so only if the request has requisite topologies.
    ///
    /// # Errors
    /// `NoSpace` if the request does not accept this node: csi-provisioner then asks the scheduler for another one.
    pub(super) fn check(&self, requirement: Option<&TopologyRequirement>) -> Result<bool> {
        let Some(requirement) = requirement.filter(|_| self.topology) else { return Ok(false) };
        let topologies = || requirement.requisite.iter().chain(&requirement.preferred);
        if topologies().next().is_some() && !topologies().any(|topology| self.is_here(topology)) {
            let requested: Vec<_> = topologies().take(4).map(describe).collect();
            let text =
                format!("the request is for {}, and this is node {:?}", requested.join(" or "), self.node);
            return Err(Error::new(Kind::NoSpace, text));
        }
        Ok(!requirement.requisite.is_empty())
    }
}

fn describe(topology: &Topology) -> String {
    let segments = topology.segments.iter();
    let mut segments: Vec<_> =
        segments.map(|(key, value)| format!("{}={}", shorten(key), shorten(value))).collect();
    segments.sort();
    segments.truncate(4);
    if segments.is_empty() { "(no segments)".to_owned() } else { segments.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology(key: &str, value: &str) -> Topology {
        Topology { segments: [(key.to_owned(), value.to_owned())].into() }
    }

    fn identity(topology: bool) -> Identity {
        Identity { driver: "dir.orlop.dev".into(), node: "n1".into(), controller_expand: true, topology }
    }

    #[test]
    fn only_topologies_with_the_name_of_this_node_are_accepted() {
        let identity = identity(true);
        let check = |requisite: &[Topology], preferred: &[Topology]| {
            let (requisite, preferred) = (requisite.to_vec(), preferred.to_vec());
            let requirement = TopologyRequirement { requisite, preferred };
            identity.check(Some(&requirement)).map_err(|error| error.kind())
        };
        let here = identity.own_topology().unwrap();
        let upper = topology("DIR.orlop.dev/Node", "n1");
        let other = topology("dir.orlop.dev/node", "n2");
        let zone = topology("topology.kubernetes.io/zone", "n1");
        assert!(!identity.check(None).unwrap());
        assert_eq!(check(&[], &[]), Ok(false));
        assert_eq!(check(std::slice::from_ref(&here), &[]), Ok(true));
        assert_eq!(check(&[other.clone(), upper], &[]), Ok(true));
        assert_eq!(check(&[], &[here]), Ok(false));
        assert_eq!(check(std::slice::from_ref(&other), &[]), Err(Kind::NoSpace));
        assert_eq!(check(&[], &[other]), Err(Kind::NoSpace));
        assert_eq!(check(&[zone, Topology::default()], &[]), Err(Kind::NoSpace));
    }

    #[test]
    fn without_a_topology_every_request_is_for_this_node_and_for_no_other() {
        let identity = identity(false);
        let elsewhere = topology("dir.orlop.dev/node", "n2");
        assert_eq!(identity.own_topology(), None);
        assert!(identity.is_here(&elsewhere));
        let requirement = TopologyRequirement { requisite: vec![elsewhere], preferred: vec![] };
        assert!(!identity.check(Some(&requirement)).unwrap(), "there is no other node to ask");
    }
}
