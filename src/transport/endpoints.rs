//! The table of a transport's endpoints. `S` is how far one has come.

use super::grants::Grants;
use super::{EndpointId, Side};
use crate::mem::RegionSlice;

/// A read whose answer has not come.
#[derive(Debug)]
pub(super) struct PendingRead {
    pub read: u64,
    pub local: RegionSlice,
    pub context: u64,
}

/// One peer.
#[derive(Debug)]
pub(super) struct Endpoint<S> {
    pub id: EndpointId,
    pub side: Side,
    /// Name and, once known, address, for messages.
    pub peer: String,
    pub grants: Grants,
    pub state: S,
}

#[derive(Debug)]
struct Slot<S> {
    generation: u32,
    endpoint: Option<Box<Endpoint<S>>>,
}

/// All endpoints. An index is reused with the next generation.
#[derive(Debug)]
pub(super) struct Endpoints<S> {
    slots: Vec<Slot<S>>,
    free: Vec<u32>,
}

impl<S> Default for Endpoints<S> {
    fn default() -> Endpoints<S> {
        Endpoints { slots: Vec::new(), free: Vec::new() }
    }
}

impl<S> Endpoints<S> {
    /// A new endpoint, which begins in `state`.
    pub fn open(&mut self, side: Side, peer: &str, state: S) -> EndpointId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, endpoint: None });
            // One endpoint costs kilobytes: memory ends long before 2^32 of them.
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        let id = EndpointId { index, generation: slot.generation };
        slot.endpoint =
            Some(Box::new(Endpoint { id, side, peer: peer.to_owned(), grants: Grants::default(), state }));
        id
    }

    /// Takes an endpoint out, so that its id means nothing from now on.
    pub fn remove(&mut self, index: u32) -> Option<Box<Endpoint<S>>> {
        let slot = self.slots.get_mut(index as usize)?;
        let endpoint = slot.endpoint.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        Some(endpoint)
    }

    /// The endpoint of this id, unless it is closed.
    pub fn get(&mut self, id: EndpointId) -> Option<&mut Endpoint<S>> {
        self.at(id.index).filter(|e| e.id == id)
    }

    /// The same, to be looked at.
    pub fn look(&self, id: EndpointId) -> Option<&Endpoint<S>> {
        self.look_at(id.index).filter(|e| e.id == id)
    }

    /// The endpoint in this place, to be looked at.
    pub fn look_at(&self, index: u32) -> Option<&Endpoint<S>> {
        self.slots.get(index as usize)?.endpoint.as_deref()
    }

    /// The endpoint in this place.
    pub fn at(&mut self, index: u32) -> Option<&mut Endpoint<S>> {
        self.slots.get_mut(index as usize)?.endpoint.as_deref_mut()
    }

    /// How many are not closed.
    #[allow(clippy::len_without_is_empty)] // nobody asks
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// All that are not closed.
    pub fn iter(&self) -> impl Iterator<Item = &Endpoint<S>> {
        self.slots.iter().filter_map(|s| s.endpoint.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_place_has_another_generation() {
        let mut endpoints = Endpoints::<()>::default();
        let first = endpoints.open(Side::Active, "a", ());
        assert!(endpoints.get(first).is_some());
        assert!(endpoints.remove(first.index).is_some());
        assert!(endpoints.get(first).is_none() && endpoints.remove(first.index).is_none());
        let second = endpoints.open(Side::Passive, "b", ());
        assert_eq!((second.index, second.generation), (first.index, first.generation + 1));
        assert!(endpoints.get(first).is_none() && endpoints.get(second).is_some());
    }
}
