//! Memory of requests that are incomplete or wait, bounded in sum.
//!
//! The first bytes of each request are free, because connections are counted and nearly all requests are shorter. What a
//! request takes beyond them comes out of one budget, of which an address gets a part, so that a few peers with long
//! requests cost others nothing.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of each request that are not counted.
const FREE_BYTES: usize = 8 << 10;
/// Bytes of all requests beyond these, together.
const MOST_BYTES: usize = 16 << 20;
/// Those of one address: four requests of the longest kind.
const MOST_OF_ADDRESS: usize = MOST_BYTES / 4;

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Budget(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// What one request holds of the budget, given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    address: IpAddr,
    bytes: usize,
}

impl Share {
    /// Of a request that has no bytes yet.
    pub(super) fn new(budget: &Arc<Budget>, address: IpAddr) -> Self {
        Self {
            budget: Arc::clone(budget),
            address,
            bytes: 0,
        }
    }

    /// Makes it that of a request with so many bytes; false where the budget, or the part of the address, has no room.
    pub(super) fn cover(&mut self, request_bytes: usize) -> bool {
        let more = request_bytes.saturating_sub(FREE_BYTES + self.bytes);
        if more == 0 {
            return true;
        }
        let mut held = self.budget.held();
        let of_address = held.by_address.get(&self.address).copied().unwrap_or(0) + more;
        if held.total + more > MOST_BYTES || of_address > MOST_OF_ADDRESS {
            return false;
        }
        held.total += more;
        held.by_address.insert(self.address, of_address);
        self.bytes += more;
        true
    }
}

impl Budget {
    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        let mut held = self.budget.held();
        held.total -= self.bytes;
        if let Some(of_address) = held.by_address.get_mut(&self.address) {
            *of_address -= self.bytes;
            if *of_address == 0 {
                held.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn short_requests_need_no_room_and_long_ones_give_it_back() {
        let budget = Arc::<Budget>::default();
        let mut long: Vec<_> = (0..4).map(|_| Share::new(&budget, address(1))).collect();
        assert!(long.iter_mut().all(|share| share.cover(1 << 20)));
        let mut fifth = Share::new(&budget, address(1));
        assert!(!fifth.cover(1 << 20), "one address has a quarter");
        assert!(fifth.cover(FREE_BYTES));
        assert!(fifth.cover(FREE_BYTES + 4 * FREE_BYTES), "what four left of it");
        assert!(Share::new(&budget, address(2)).cover(1 << 20));
        drop((long, fifth));
        assert_eq!(budget.held().total, 0);
        assert!(budget.held().by_address.is_empty());
    }

    #[test]
    fn all_together_have_a_bound() {
        let budget = Arc::<Budget>::default();
        let mut shares = Vec::new();
        for last in 0..32 {
            let mut share = Share::new(&budget, address(last));
            let fits = share.cover(FREE_BYTES + (1 << 20));
            assert_eq!(fits, shares.len() < 16);
            if fits {
                shares.push(share);
            }
        }
        assert!(!Share::new(&budget, address(40)).cover(FREE_BYTES + 1));
        shares.pop();
        assert!(Share::new(&budget, address(40)).cover(FREE_BYTES + 1));
    }

    #[test]
    fn a_request_is_covered_piece_by_piece() {
        let budget = Arc::<Budget>::default();
        let mut share = Share::new(&budget, address(1));
        for bytes in (0..=1 << 20).step_by(64 << 10) {
            assert!(share.cover(bytes));
        }
        assert_eq!(budget.held().total, (1 << 20) - FREE_BYTES);
    }
}
