//! System calls on the Unix socket of a connection: it authenticates, carries descriptors, rings, and tells when the peer is gone.
//!
//! A doorbell is a byte on this socket, not an eventfd: a peer that shares an eventfd can make its writes block.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType,
};

use super::address::Name;
use crate::error::{Error, Result};

/// Kernel's queue of connections that were not accepted yet.
const BACKLOG: i32 = 1024;
/// The longest packet.
pub(super) const PACKET: usize = 64;
const FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);

/// The name in the abstract namespace.
fn address(name: &Name) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new_abstract_name(format!("windlass-{:032x}", u128::from_be_bytes(*name)).as_bytes())?)
}

fn socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)?)
}

/// A listener of this name.
pub(super) fn listen(name: &Name) -> Result<OwnedFd> {
    let listen = || -> io::Result<OwnedFd> {
        let socket = socket()?;
        rustix::net::bind(&socket, &address(name)?)?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(socket)
    };
    listen().map_err(|e| Error::io("listen", "a Unix socket", e))
}

/// A connection to a listener; it is there at once or never.
pub(super) fn dial(name: &Name) -> io::Result<OwnedFd> {
    let socket = socket()?;
    rustix::net::connect(&socket, &address(name)?)?;
    Ok(socket)
}

/// The next connection.
pub(super) fn accept(listener: &OwnedFd) -> io::Result<OwnedFd> {
    Ok(rustix::net::accept_with(listener, FLAGS)?)
}

/// Whether the process at the other end runs, or ran when it listened, as the same user as this one. Others are not talked to: they
/// can neither be shown memory nor trusted to show it.
pub(super) fn is_same_user(socket: &OwnedFd) -> io::Result<bool> {
    let mut peer = libc::ucred { pid: 0, uid: libc::uid_t::MAX, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `peer` is `length` writable bytes; the kernel writes at most that many and says how many.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &mut length,
        )
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(peer.uid == rustix::process::geteuid().as_raw())
}

/// Sends a packet, and a descriptor with it.
pub(super) fn send(socket: &OwnedFd, bytes: &[u8], file: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let files = file.map(|file| [file]);
    if let Some(files) = &files {
        ancillary.push(SendAncillaryMessage::ScmRights(files));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let sent = rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Rings; a full queue means that the peer has been rung and not looked yet.
pub(super) fn ring(socket: &OwnedFd) {
    let _ = rustix::net::send(socket, &[0], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
}

/// A packet.
#[derive(Debug)]
pub(super) struct Packet {
    pub bytes: [u8; PACKET],
    pub length: usize,
    pub file: Option<OwnedFd>,
}

impl Packet {
    /// What came.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// The next packet; `None` at the end of the connection. A longer one is an error, and EMFILE says that its descriptor found no place in
/// this process.
pub(super) fn receive(socket: &OwnedFd) -> io::Result<Option<Packet>> {
    let mut packet = Packet { bytes: [0; PACKET], length: 0, file: None };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    // The kernel closes what does not fit.
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let mut parts = [IoSliceMut::new(&mut packet.bytes)];
    let received = match rustix::net::recvmsg(socket.as_fd(), &mut parts, &mut ancillary, flags) {
        Err(Errno::CONNRESET) => return Ok(None),
        received => received?,
    };
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a packet that is too long"));
    }
    let cut = received.flags.contains(ReturnFlags::CTRUNC);
    packet.length = received.bytes;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(files) = message {
            packet.file = files.last();
        }
    }
    if cut && packet.file.is_none() {
        return Err(Errno::MFILE.into());
    }
    Ok((packet.length > 0).then_some(packet))
}

/// Ends both directions, whatever else may hold the socket (a child that was forked).
pub(super) fn shut(socket: &OwnedFd) {
    let _ = rustix::net::shutdown(socket, Shutdown::Both);
}
