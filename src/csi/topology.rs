//! Where volumes are: on this node, under one topology key.

use super::Identity;
use super::proto::{Topology, TopologyRequirement};
use crate::error::{Error, Kind, Result};
use crate::volume::shorten;

impl Identity {
    fn key(&self) -> String {
        format!("{}/node", self.driver)
    }

    /// This node.
    pub(super) fn here(&self) -> Topology {
        Topology { segments: [(self.key(), self.node.clone())].into() }
    }

    /// Whether a topology names this node. Keys are compared without case, as the specification asks.
    pub(super) fn is_here(&self, topology: &Topology) -> bool {
        let key = self.key();
        topology.segments.iter().any(|(found, value)| found.eq_ignore_ascii_case(&key) && *value == self.node)
    }

    /// Checks that a volume for these places may be made on this node. The answer says whether the caller can go
    /// to another node: only then has it chosen from several.
    ///
    /// # Errors
    /// `NoSpace` when no place that was asked for is this node: the provisioner then asks the scheduler for another.
    pub(super) fn check(&self, asked: Option<&TopologyRequirement>) -> Result<bool> {
        let Some(asked) = asked else { return Ok(false) };
        let mut places = asked.requisite.iter().chain(&asked.preferred).peekable();
        if places.peek().is_some() && !places.any(|place| self.is_here(place)) {
            let named: Vec<_> = asked.requisite.iter().chain(&asked.preferred).take(4).map(shown).collect();
            return Err(Error::new(
                Kind::NoSpace,
                format!("this is node {:?}, and {} was asked for", self.node, named.join(" or ")),
            ));
        }
        Ok(!asked.requisite.is_empty())
    }
}

fn shown(place: &Topology) -> String {
    let mut segments: Vec<_> =
        place.segments.iter().map(|(key, value)| format!("{}={}", shorten(key), shorten(value))).collect();
    segments.sort();
    segments.truncate(4);
    if segments.is_empty() { "(no segments)".to_owned() } else { segments.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(key: &str, value: &str) -> Topology {
        Topology { segments: [(key.to_owned(), value.to_owned())].into() }
    }

    #[test]
    fn only_places_that_name_this_node_are_here() {
        let identity =
            Identity { driver: "dir.orlop.dev".into(), node: "n1".into(), controller_expand: true };
        let ask = |requisite: &[Topology], preferred: &[Topology]| {
            let asked = TopologyRequirement { requisite: requisite.to_vec(), preferred: preferred.to_vec() };
            identity.check(Some(&asked)).map_err(|error| error.kind())
        };
        let here = identity.here();
        let upper = place("DIR.orlop.dev/Node", "n1");
        let there = place("dir.orlop.dev/node", "n2");
        let zone = place("topology.kubernetes.io/zone", "n1");
        assert!(!identity.check(None).unwrap());
        assert_eq!(ask(&[], &[]), Ok(false));
        assert_eq!(ask(std::slice::from_ref(&here), &[]), Ok(true));
        assert_eq!(ask(&[there.clone(), upper], &[]), Ok(true));
        assert_eq!(ask(&[], &[here]), Ok(false));
        assert_eq!(ask(std::slice::from_ref(&there), &[]), Err(Kind::NoSpace));
        assert_eq!(ask(&[], &[there]), Err(Kind::NoSpace));
        assert_eq!(ask(&[zone, Topology::default()], &[]), Err(Kind::NoSpace));
    }
}
