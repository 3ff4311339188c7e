//! Places of connections: in all, and of each address.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{lock, Shared};

#[derive(Debug, Default)]
pub(super) struct Places {
    pub(super) total: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl Places {
    /// Takes one of the places of an address; false where it has all that it may have.
    fn take_of(&mut self, address: IpAddr, most: usize) -> bool {
        let count = self.by_address.get(&address).copied().unwrap_or(0);
        if count >= most {
            return false;
        }
        self.by_address.insert(address, count + 1);
        true
    }

    fn give_back_of(&mut self, address: IpAddr) {
        if let Some(count) = self.by_address.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.by_address.remove(&address);
            }
        }
    }
}

/// A place among the counted connections, given back when dropped.
#[derive(Debug)]
pub struct Slot {
    shared: Arc<Shared>,
    /// None while only a PROXY header can tell whose connection it is.
    address: Option<IpAddr>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut places = lock(&self.shared.places);
        places.total -= 1;
        if let Some(address) = self.address {
            places.give_back_of(address);
        }
    }
}

impl Slot {
    /// Counts the connection for the address of its peer, too. Where the address has all its places, that is told.
    pub(super) fn count_for(&mut self, peer: SocketAddr) -> bool {
        let most = self.shared.limits.per_address;
        let is_free = lock(&self.shared.places).take_of(peer.ip(), most);
        if is_free {
            self.address = Some(peer.ip());
        } else {
            self.shared.refuse_for_address(peer);
        }
        is_free
    }
}

impl Shared {
    /// A place for a connection, counted for the address of its peer unless a PROXY header is to name another one. Where there
    /// is none, that is told.
    pub(super) fn take_place(self: &Arc<Self>, peer: SocketAddr, awaits_header: bool) -> Option<Slot> {
        let address = (!awaits_header).then(|| peer.ip());
        let mut places = lock(&self.places);
        if address.is_some_and(|address| !places.take_of(address, self.limits.per_address)) {
            drop(places);
            self.refuse_for_address(peer);
            return None;
        }
        places.total += 1;
        let is_free = places.total <= self.limits.connections;
        drop(places);
        // Gives both counts back where it goes no further.
        let slot = Slot {
            shared: Arc::clone(self),
            address,
        };
        if !is_free {
            self.refuse(
                &self.counters.connections,
                Some(peer),
                "connections",
                String::new(),
            );
        }
        is_free.then_some(slot)
    }

    fn refuse_for_address(&self, peer: SocketAddr) {
        let counter = &self.counters.per_address;
        self.refuse(counter, Some(peer), "connections_per_address", String::new());
    }
}
