//! The registered buffers that one server thread may write to: announced before a pull names them, withdrawn when they go.
//!
//! ```text
//!  unknown ──announce──▶ announced ──withdraw──▶ withdrawn ──acknowledged──▶ unknown
//!                          └─ a new endpoint: announced anew    └─ a new endpoint: unknown, since rights end with the old one
//! ```

use crate::error::{Error, Result};
use crate::mem::{RegionId, RemoteRegion, Rights};
use crate::proto::{MAX_REGIONS, WorkerMessage};
use crate::transport::{EndpointId, Transport};

/// A region that the server thread knows, or is about to be told of.
#[derive(Debug, Clone, Copy)]
struct Known {
    region: RegionId,
    bytes: usize,
    /// By what this endpoint's peer reaches it; nothing while the endpoint is already closed.
    remote: Option<RemoteRegion>,
    withdrawn: bool,
}

/// What one server thread knows of the worker's buffers, by number.
#[derive(Debug)]
pub struct Regions {
    known: [Option<Known>; MAX_REGIONS],
    /// Bit i: what became of region i is still to be told.
    due: u64,
}

impl Regions {
    /// Nothing is known.
    pub fn new() -> Regions {
        Regions { known: [None; MAX_REGIONS], due: 0 }
    }

    /// Whether the server thread may still be able to write to a region.
    pub fn knows(&self, number: u8) -> bool {
        self.known[usize::from(number)].is_some()
    }

    /// A new endpoint takes the place of the one before: all rights begin anew.
    pub fn open(&mut self, transport: &mut dyn Transport, endpoint: EndpointId) -> Result<()> {
        self.due = 0;
        for number in 1..MAX_REGIONS {
            if let Some(Known { region, bytes, withdrawn, .. }) = self.known[number].take()
                && !withdrawn
            {
                self.announce(number as u8, (region, bytes), transport, endpoint)?;
            }
        }
        Ok(())
    }

    /// Lets the server thread write to a region, unless it may already.
    pub fn announce(
        &mut self,
        number: u8,
        (region, bytes): (RegionId, usize),
        transport: &mut dyn Transport,
        endpoint: EndpointId,
    ) -> Result<()> {
        if self.knows(number) {
            return Ok(());
        }
        let remote = match transport.authorise(endpoint, region, 0, bytes, Rights::Write) {
            Ok(remote) => Some(remote),
            // The endpoint is closed, and `Closed` is on its way: its successor announces what is known.
            Err(Error::Misuse { .. }) => None,
            Err(error) => return Err(error),
        };
        self.known[usize::from(number)] = Some(Known { region, bytes, remote, withdrawn: false });
        self.due |= 1 << number;
        Ok(())
    }

    /// Takes the right back. No pull under way names the region.
    pub fn withdraw(
        &mut self,
        number: u8,
        transport: &mut dyn Transport,
        endpoint: EndpointId,
    ) -> Result<()> {
        let place = &mut self.known[usize::from(number)];
        let Some(known) = place.as_mut().filter(|k| !k.withdrawn) else { return Ok(()) };
        if self.due & 1 << number == 0 {
            known.withdrawn = true;
            self.due |= 1 << number;
            return Ok(());
        }
        // The server thread has not been told of it.
        let remote = known.remote;
        *place = None;
        self.due &= !(1 << number);
        remote.map_or(Ok(()), |remote| transport.withdraw(endpoint, &remote))
    }

    /// Whether there is something to tell.
    pub fn are_due(&self) -> bool {
        self.due != 0
    }

    /// The next message to be sent, and its region.
    pub fn due(&self) -> Option<(u8, WorkerMessage)> {
        if !self.are_due() {
            return None;
        }
        let number = self.due.trailing_zeros() as u8;
        let known = self.known[usize::from(number)]?;
        let message = match known.withdrawn {
            true => WorkerMessage::Withdraw { number },
            false => WorkerMessage::Announce { number, region: known.remote? },
        };
        Some((number, message))
    }

    /// The message about a region was sent.
    pub fn told(&mut self, number: u8) {
        self.due &= !(1 << number);
    }

    /// The server thread has let go of the regions in `mask`. False when one of them was not withdrawn.
    pub fn acknowledged(
        &mut self,
        mut mask: u64,
        transport: &mut dyn Transport,
        endpoint: EndpointId,
    ) -> Result<bool> {
        while mask != 0 {
            let number = mask.trailing_zeros() as usize;
            mask &= mask - 1;
            let told = self.due & 1 << number == 0;
            let Some(known) = self.known[number].take_if(|k| k.withdrawn && told) else { return Ok(false) };
            if let Some(remote) = known.remote {
                transport.withdraw(endpoint, &remote)?;
            }
        }
        Ok(true)
    }
}
