//! What the drivers watch: a snapshot of the TUN devices and the sockets that are open.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use crate::tun::Tun;
use crate::underlay::Underlay;

/// One snapshot. Drivers hold it for a drain; a new one replaces it when a descriptor comes or goes.
#[derive(Clone, Debug, Default)]
pub struct Descriptors {
    /// By tunnel id.
    tuns: Vec<Option<Arc<Tun>>>,
    underlay: Arc<Underlay>,
}

impl Descriptors {
    pub fn tun(&self, tunnel: u32) -> Option<&Arc<Tun>> {
        self.tuns.get(tunnel as usize)?.as_ref()
    }

    /// Tunnel ids and devices.
    pub fn tuns(&self) -> impl Iterator<Item = (u32, &Arc<Tun>)> {
        self.tuns.iter().enumerate().filter_map(|(id, tun)| Some((id as u32, tun.as_ref()?)))
    }

    pub fn underlay(&self) -> &Arc<Underlay> {
        &self.underlay
    }

    /// The queues of all devices: tunnel id, device and number of the queue.
    pub fn queues(&self) -> impl Iterator<Item = (u32, &Arc<Tun>, usize)> {
        self.tuns().flat_map(|(id, tun)| (0..tun.queues()).map(move |queue| (id, tun, queue)))
    }

    /// The queue that a descriptor gives the packets of.
    pub fn queue_of(&self, descriptor: RawFd) -> Option<(u32, &Arc<Tun>, usize)> {
        self.queues().find(|(_, tun, queue)| tun.queue(*queue) == descriptor)
    }

    pub fn socket_of(&self, descriptor: RawFd) -> Option<usize> {
        self.underlay.sockets().iter().position(|socket| socket.as_raw_fd() == descriptor)
    }
}

/// The snapshot in force.
#[derive(Debug, Default)]
pub struct DescriptorTable(Mutex<Arc<Descriptors>>);

impl DescriptorTable {
    pub fn current(&self) -> Arc<Descriptors> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, edit: impl FnOnce(&mut Descriptors)) {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = Descriptors::clone(&current);
        edit(&mut next);
        *current = Arc::new(next);
    }

    /// The lowest id that no tunnel has.
    pub fn free_tunnel(&self) -> u32 {
        let current = self.current();
        let free = current.tuns.iter().position(Option::is_none);
        free.unwrap_or(current.tuns.len()) as u32
    }

    pub fn insert_tun(&self, tunnel: u32, tun: Tun) {
        self.change(|descriptors| {
            let index = tunnel as usize;
            if descriptors.tuns.len() <= index {
                descriptors.tuns.resize(index + 1, None);
            }
            descriptors.tuns[index] = Some(Arc::new(tun));
        });
    }

    pub fn remove_tun(&self, tunnel: u32) {
        self.change(|descriptors| {
            if let Some(place) = descriptors.tuns.get_mut(tunnel as usize) {
                *place = None;
            }
        });
    }

    pub fn set_underlay(&self, underlay: Underlay) {
        self.change(|descriptors| descriptors.underlay = Arc::new(underlay));
    }
}
