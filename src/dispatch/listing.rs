//! Listings over the pools of this process and of workers.

use super::{Dispatch, Lane};
use crate::engine::call::EngineCall;
use crate::engine::request::Page;
use crate::error::Result;
use crate::volume::VolumeId;

impl Dispatch {
    /// Runs a call that lists at most `max` objects after one, in each process, and returns one page.
    ///
    /// # Errors
    /// As for [`Dispatch::call`], when one of the processes cannot list its objects.
    pub async fn list<T, C>(&self, call: C, max: usize, id_of: fn(&T) -> &VolumeId) -> Result<Page<T>>
    where
        C: EngineCall<Answer = Page<T>>,
    {
        let lanes = self.lanes_of_groups();
        let mut pages = vec![self.call(&Lane::AllPools, call.clone()).await?];
        for lane in lanes {
            pages.push(self.call(&lane, call.clone()).await?);
        }
        Ok(merged(pages, max, id_of))
    }
}

/// The first `max` items of pages that begin after the same id.
fn merged<T>(pages: Vec<Page<T>>, max: usize, id_of: fn(&T) -> &VolumeId) -> Page<T> {
    let has_more = pages.iter().any(|page| page.next.is_some());
    let mut items: Vec<_> = pages.into_iter().flat_map(|page| page.items).collect();
    items.sort_by(|a, b| id_of(a).cmp(id_of(b)));
    let has_more = has_more || items.len() > max;
    items.truncate(max);
    let next = items.last().filter(|_| has_more).map(|last| id_of(last).clone());
    Page { items, next }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(ids: &[&str], has_more: bool) -> Page<VolumeId> {
        let items: Vec<VolumeId> = ids.iter().map(|id| id.parse().unwrap()).collect();
        Page { next: items.last().filter(|_| has_more).cloned(), items }
    }

    #[test]
    fn pages_of_several_processes_become_one_in_the_order_of_the_ids() {
        let merge =
            |max| merged(vec![page(&["a/v", "c/v"], false), page(&["b/v", "b/w"], false)], max, |id| id);
        assert_eq!(merge(9), page(&["a/v", "b/v", "b/w", "c/v"], false));
        assert_eq!(merge(4), page(&["a/v", "b/v", "b/w", "c/v"], false));
        assert_eq!(merge(3), page(&["a/v", "b/v", "b/w"], true));
        let merged = merged(vec![page(&["a/v", "c/v"], true), page(&[], false)], 2, |id| id);
        assert_eq!(merged, page(&["a/v", "c/v"], true));
    }
}
