//! Taking operations from the caller: what can be refused here is, with the operation given back whole.

#![allow(clippy::result_large_err)] // a rejected operation is given back whole, without an allocation

use super::endpoint::Connection;
use super::frame::Kind;
use super::{MAX_READS, Shm};
use crate::transport::arenas::Target;
use crate::transport::endpoints::PendingRead;
use crate::transport::{EndpointId, Message, Read, Refusal, Rejected, Write};

type Posted<T> = Result<(), Rejected<T>>;

impl Shm {
    pub(super) fn post_send(&mut self, endpoint: EndpointId, message: Message) -> Posted<Message> {
        match self.room(endpoint) {
            Err(refusal) => Err(Rejected { operation: message, refusal }),
            Ok(connection) => {
                let length = message.bytes().len() as u32;
                connection.tx.post(Kind::Send { length }, message.bytes(), None, None);
                Ok(())
            }
        }
    }

    pub(super) fn post_write(&mut self, endpoint: EndpointId, write: Write) -> Posted<Write> {
        let admitted = self.arenas.admit_write(&write);
        let (connection, to) = match admitted.and_then(|to| Ok((self.room(endpoint)?, to))) {
            Ok(admitted) => admitted,
            Err(refusal) => return Err(Rejected { operation: write, refusal }),
        };
        let kind = Kind::Write { key: to.key, offset: to.offset, length: to.length, imm: write.imm };
        connection.tx.post(kind, write.header.as_ref().map_or(&[], |h| h), write.body, write.context);
        Ok(())
    }

    pub(super) fn post_read(&mut self, endpoint: EndpointId, read: Read) -> Posted<Read> {
        let admitted = self.arenas.admit_read(&read);
        let (connection, from) = match admitted.and_then(|from| Ok((self.room(endpoint)?, from))) {
            Ok((connection, _)) if connection.reads.len() >= MAX_READS => {
                return Err(Rejected { operation: read, refusal: Refusal::Full });
            }
            Ok(admitted) => admitted,
            Err(refusal) => return Err(Rejected { operation: read, refusal }),
        };
        let number = connection.next_read;
        connection.next_read += 1;
        let Target { key, offset, length } = from;
        let kind = Kind::ReadRequest { key, offset, length, read: number };
        connection.tx.post(kind, &[], None, None);
        connection.reads.push_back(PendingRead { read: number, local: read.local, context: read.context });
        Ok(())
    }

    /// The connection, if it can take one more operation.
    fn room(&mut self, endpoint: EndpointId) -> Result<&mut Connection, Refusal> {
        self.unsent = true;
        let connection = self.endpoints.connection(endpoint).ok_or(Refusal::NotConnected)?;
        // `Closed` follows when the rest was received.
        if connection.rx.hung_up {
            return Err(Refusal::NotConnected);
        }
        if connection.tx.is_full() { Err(Refusal::Full) } else { Ok(connection) }
    }
}
