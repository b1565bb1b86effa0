//! Completions on their way in: what is done, what came, and the greeting.

use super::cq::{Arrival, Entry, Status, Work};
use super::endpoint::{After, Endpoint, Operation, Phase, Shared, control, receive_offset};
use crate::error::Error;
use crate::transport::pairing::{GOODBYE, PROOF};
use crate::transport::{Completion, MAX_SEND, Message};

impl Endpoint {
    /// Takes one completion in.
    pub fn complete(&mut self, shared: &Shared, entry: Entry, out: &mut Vec<Completion>) {
        match entry.id.work {
            Work::Control => self.control_done(entry),
            Work::Send if entry.status == Status::Success => self.retire(entry.id.sequence, out),
            Work::Send => self.failed(entry.status),
            Work::Receive => {
                self.posted = self.posted.saturating_sub(1);
                if entry.status == Status::Success {
                    self.arrived(shared, entry, out);
                    self.returned.push(entry.id.sequence);
                } else {
                    self.failed(entry.status);
                }
            }
        }
    }

    /// Whether buffers wait to be posted again.
    pub fn has_returned(&self) -> bool {
        !self.returned.is_empty()
    }

    /// Lets go of all operations up to `sequence`: a queue pair completes in order.
    fn retire(&mut self, sequence: u32, out: &mut Vec<Completion>) {
        while self.operations.front().is_some_and(|o| sequence.wrapping_sub(o.sequence) as i32 >= 0) {
            if let Some(Operation { context: Some(context), .. }) = self.operations.pop_front() {
                out.push(Completion::Done { endpoint: self.id, context });
            }
        }
    }

    fn control_done(&mut self, entry: Entry) {
        match (entry.id.sequence, &mut self.phase) {
            (control::MARKER, Phase::Draining(drain)) => drain.sends_flushed = true,
            _ if entry.status != Status::Success => self.failed(entry.status),
            (control::GREETING, Phase::Connecting { refusal: refusal @ Some(_), .. }) => {
                // The peer has our proof, and sees for itself that the keys differ.
                let refusal = refusal.take();
                self.fail(After::Closed(refusal), true);
            }
            (control::GOODBYE, Phase::Leaving(_)) => self.fail(After::Closed(None), true),
            _ => {}
        }
    }

    fn arrived(&mut self, shared: &Shared, entry: Entry, out: &mut Vec<Completion>) {
        let endpoint = self.id;
        match (entry.arrival, &self.phase) {
            (Arrival::Message { length, imm: Some(PROOF) }, Phase::Connecting { .. }) => {
                let message = self.received(shared, entry.id.sequence, length);
                self.greeted(shared, message.as_ref().map_or(&[], Message::bytes), out);
            }
            (Arrival::Message { imm: Some(GOODBYE), .. }, _) => self.left(),
            (arrival, Phase::Connected | Phase::Leaving(_) | Phase::Draining(_)) => match arrival {
                Arrival::Message { length, imm: None } => {
                    if let Some(message) = self.received(shared, entry.id.sequence, length) {
                        out.push(Completion::Received { endpoint, message });
                    }
                }
                Arrival::Written { length, imm } => out.push(Completion::Written { endpoint, imm, length }),
                Arrival::Message { .. } | Arrival::Nothing => self.unexpected(arrival),
            },
            (arrival, _) => self.unexpected(arrival),
        }
    }

    fn unexpected(&mut self, arrival: Arrival) {
        let expected = "a proof, then messages and writes";
        self.abandon(Error::protocol(&self.peer, "verbs arrival", expected, format!("{arrival:?}")));
    }

    /// The peer said goodbye.
    fn left(&mut self) {
        match self.phase {
            Phase::Leaving(_) => self.fail(After::Closed(None), true),
            _ => self.abandon(Error::PeerLost {
                peer: self.peer.clone(),
                reason: "it closed the connection".to_owned(),
            }),
        }
    }

    /// Copies a message out of its receive buffer; `None` when it claims to be longer than one, which no device reports.
    fn received(&self, shared: &Shared, slot: u32, length: u32) -> Option<Message> {
        let mut bytes = [0; MAX_SEND];
        let bytes = bytes.get_mut(..length as usize)?;
        self.scratch.arena().copy_out(receive_offset(shared, slot), bytes);
        Message::new(bytes)
    }

    fn greeted(&mut self, shared: &Shared, message: &[u8], out: &mut Vec<Completion>) {
        let Phase::Connecting { greeting, refusal } = &mut self.phase else { return };
        let (accepted, first, proof) = (greeting.accepts(message), greeting.first, greeting.proof);
        let error = (!accepted).then(|| Error::Refused {
            peer: format!("this end of the connection to {}", self.peer),
            reason: "the peer's proof of the session key is wrong".to_owned(),
        });
        match (first, error) {
            (true, Some(error)) => self.fail(After::Closed(Some(error)), true),
            (false, Some(error)) => {
                // Failing at once could flush our proof before it was sent.
                *refusal = Some(error);
                self.answer(shared, &proof);
            }
            (_, None) => {
                self.phase = Phase::Connected;
                self.tell_mtu();
                out.push(Completion::Connected { endpoint: self.id });
                if !first {
                    self.answer(shared, &proof);
                }
            }
        }
    }

    fn answer(&mut self, shared: &Shared, proof: &[u8; 32]) {
        if let Err(error) = self.send_proof(shared, proof) {
            self.abandon(error);
        }
    }
}
