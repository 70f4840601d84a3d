//! Outbound SAs that belong to one worker each, besides the one that an adjacency always has (RFC 9611).
//!
//! A worker that seals by an SA of its own waits for nobody's turn. Resource 0 is the adjacency's fallback SA, which lies in
//! the adjacency itself; so who encapsulates alone never comes here.

use std::sync::Arc;

use crate::sa::OutboundSa;

/// The last resource, which is an encapsulating worker's index.
pub const MAX_RESOURCE: u32 = 15;

/// SAs by resource and adjacency. Each worker reads a list of its own.
#[derive(Clone, Debug, Default)]
pub(crate) struct ResourceSas(Vec<Vec<Option<Arc<OutboundSa>>>>);

impl ResourceSas {
    /// The SA of a resource from 1 on.
    #[inline]
    pub(crate) fn get(&self, adjacency: u32, resource: u32) -> Option<&OutboundSa> {
        self.0.get(resource as usize)?.get(adjacency as usize)?.as_deref()
    }

    pub(crate) fn put(&mut self, adjacency: u32, resource: u32, sa: Option<Arc<OutboundSa>>) {
        let (adjacency, resource) = (adjacency as usize, resource as usize);
        if sa.is_some() {
            self.0.resize_with(self.0.len().max(resource + 1), Vec::new);
            let list = &mut self.0[resource];
            list.resize(list.len().max(adjacency + 1), None);
        }
        if let Some(entry) = self.0.get_mut(resource).and_then(|list| list.get_mut(adjacency)) {
            *entry = sa;
        }
    }
}
