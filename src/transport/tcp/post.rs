//! Taking operations from the caller: what can be refused here is, with the operation given back whole.

#![allow(clippy::result_large_err)] // a rejected operation is given back whole, without an allocation

use std::sync::Arc;

use super::endpoint::{Connection, PendingRead};
use super::frame::Frame;
use super::{MAX_READS, Tcp};
use crate::mem::{RegionSlice, RemoteRegion};
use crate::transport::{EndpointId, Message, Payload, Read, Refusal, Rejected, Write};

type Posted<T> = Result<(), Rejected<T>>;

impl Tcp {
    pub(super) fn post_send(&mut self, endpoint: EndpointId, message: Message) -> Posted<Message> {
        match self.room(endpoint) {
            Err(refusal) => Err(Rejected { operation: message, refusal }),
            Ok(connection) => {
                connection.tx.send(&message);
                self.queue_tx(endpoint.index);
                Ok(())
            }
        }
    }

    pub(super) fn post_write(&mut self, endpoint: EndpointId, write: Write) -> Posted<Write> {
        let admitted = self.admit_write(&write);
        let (connection, frame) = match admitted.and_then(|frame| Ok((self.room(endpoint)?, frame))) {
            Ok(admitted) => admitted,
            Err(refusal) => return Err(Rejected { operation: write, refusal }),
        };
        connection.tx.write(frame, write.header.as_ref(), write.body, write.context);
        self.queue_tx(endpoint.index);
        Ok(())
    }

    pub(super) fn post_read(&mut self, endpoint: EndpointId, read: Read) -> Posted<Read> {
        let admitted = self.admit_read(&read);
        let (connection, (key, offset, length)) =
            match admitted.and_then(|place| Ok((self.room(endpoint)?, place))) {
                Ok((connection, _)) if connection.reads.len() >= MAX_READS => {
                    return Err(Rejected { operation: read, refusal: Refusal::Full });
                }
                Ok(admitted) => admitted,
                Err(refusal) => return Err(Rejected { operation: read, refusal }),
            };
        let number = connection.next_read;
        connection.next_read += 1;
        connection.tx.request(Frame::ReadRequest { key, offset, length, read: number });
        connection.reads.push_back(PendingRead { read: number, local: read.local, context: read.context });
        self.queue_tx(endpoint.index);
        Ok(())
    }

    /// The connection, if it can take one more operation.
    fn room(&mut self, endpoint: EndpointId) -> Result<&mut Connection, Refusal> {
        let depth = self.config.queue_depth;
        let connection = self.endpoints.connection(endpoint).ok_or(Refusal::NotConnected)?;
        // After a failed send nothing leaves any more; `Closed` follows when the rest was received.
        if connection.broken.is_some() {
            return Err(Refusal::NotConnected);
        }
        if connection.tx.posted() >= depth { Err(Refusal::Full) } else { Ok(connection) }
    }

    fn admit_write(&self, write: &Write) -> Result<Frame, Refusal> {
        match &write.body {
            None => {}
            Some(Payload::Pinned(slice)) => self.admit_local(slice)?,
            Some(Payload::Owned(buf)) => self.admit_local(&buf.slice())?,
            Some(Payload::Published(pin)) => self.admit_local(pin.slice())?,
        }
        if !write.remote.rights.may_write() {
            return Err(Refusal::OutOfBounds("the remote region may not be written".to_owned()));
        }
        let (key, offset, length) = self.admit_remote(&write.remote, write.offset, write.length())?;
        Ok(Frame::Write { key, offset, length, imm: write.imm })
    }

    fn admit_read(&self, read: &Read) -> Result<(u32, u64, u32), Refusal> {
        self.admit_local(&read.local)?;
        if !read.remote.rights.may_read() {
            return Err(Refusal::OutOfBounds("the remote region may not be read".to_owned()));
        }
        self.admit_remote(&read.remote, read.offset, read.local.length)
    }

    /// Key, offset within the grant and length, as they go into a frame.
    fn admit_remote(
        &self,
        remote: &RemoteRegion,
        offset: u64,
        length: usize,
    ) -> Result<(u32, u64, u32), Refusal> {
        if length > self.config.max_write {
            let limit = self.config.max_write;
            return Err(Refusal::OutOfBounds(format!("{length} bytes exceed the limit of {limit}")));
        }
        let outside = || {
            let room = remote.length;
            Refusal::OutOfBounds(format!(
                "{length} bytes at {offset} lie outside the remote region of {room}"
            ))
        };
        // `max_write` fits in 32 bits.
        let short = u32::try_from(length).map_err(|_| outside())?;
        if !remote.contains(offset, length as u64) {
            return Err(outside());
        }
        let within = remote.address.checked_add(offset).ok_or_else(outside)?;
        Ok((remote.key, within, short))
    }

    fn admit_local(&self, slice: &RegionSlice) -> Result<(), Refusal> {
        let registered =
            self.arenas.get(slice.region.0 as usize).is_some_and(|a| Arc::ptr_eq(a, &slice.arena));
        if !registered {
            return Err(Refusal::OutOfBounds(
                "the local bytes' arena is not registered with this transport".into(),
            ));
        }
        if slice.offset.checked_add(slice.length).is_none_or(|end| end > slice.arena.len()) {
            return Err(Refusal::OutOfBounds("the local bytes do not lie in their arena".into()));
        }
        Ok(())
    }
}
