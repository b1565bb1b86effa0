//! Memory that tables will need, told before they do.

use std::sync::Arc;

use super::Core;
use crate::mem::Page;

impl Core {
    /// See [`crate::store::Shard::next_to_supply`].
    pub fn next_to_supply(&mut self) -> Option<Arc<Page>> {
        self.shard.next_to_supply()
    }
}
