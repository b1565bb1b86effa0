//! System calls on sockets: options, and moving bytes between a socket and arena memory through raw pointers.

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::config::{Lending, TcpConfig};
use crate::config::settings;
use crate::error::{Error, Result};

/// Kernel's queue of connections that were not accepted yet.
const BACKLOG: i32 = 1024;
/// Retransmissions or probes without an answer before silence counts as loss.
const UNANSWERED: u8 = 3;

/// What is not longer is put together and leaves by a call for one part: to copy it takes less time than the kernel's look at a list of
/// parts, and it is what requests and answers of a few values come to.
const SHORT: usize = 512;

/// Bytes in memory, for a vectored call.
pub(super) type Part = libc::iovec;

/// A vectored part of nothing.
pub(super) const NO_PART: Part = Part { iov_base: std::ptr::null_mut(), iov_len: 0 };

/// A part of `length` bytes at `base`.
pub(super) fn part(base: *const u8, length: usize) -> Part {
    Part { iov_base: base.cast_mut().cast(), iov_len: length }
}

/// Receives into `parts`, in order; 0 is the end of the stream.
///
/// # Safety
/// Every part must be writable memory for the length of the call, and no reference to any of it may exist.
pub(super) unsafe fn receive(fd: RawFd, parts: &mut [Part]) -> io::Result<usize> {
    if let [only] = parts {
        // SAFETY: the caller vouches for the part; a bad `fd` is only an error.
        return count(unsafe { libc::recv(fd, only.iov_base, only.iov_len, libc::MSG_DONTWAIT) });
    }
    // SAFETY: all-zero is a valid `msghdr`: null pointers with length 0.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len();
    // SAFETY: `message` points at `parts.len()` parts, which the caller vouches for; a bad `fd` is only an error.
    count(unsafe { libc::recvmsg(fd, &mut message, libc::MSG_DONTWAIT) })
}

/// What a call says: bytes, or a negative number and an error.
fn count(said: isize) -> io::Result<usize> {
    usize::try_from(said).map_err(|_| io::Error::last_os_error())
}

/// How bytes leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// As they are, at once.
    Now,
    /// More follow, with which they may leave.
    WithMore,
    /// The kernel reads them where they lie until it says so on the error queue (MSG_ZEROCOPY).
    Lent,
}

/// Sends `parts`, in order; how many bytes the kernel took. Never raises SIGPIPE.
///
/// # Safety
/// Every part must be readable memory for the length of the call; of those that are lent the pages must not go to anything else,
/// and their bytes stay as they are, until [`told`] names the call or the connection is broken off.
pub(super) unsafe fn send(fd: RawFd, parts: &mut [Part], how: How) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | how.flag();
    let length = parts.iter().map(|p| p.iov_len).sum();
    if length <= SHORT && how != How::Lent {
        let (mut all, mut end) = ([MaybeUninit::<u8>::uninit(); SHORT], 0);
        for part in parts {
            // SAFETY: the caller vouches for the part, and there is room for all of them.
            unsafe {
                std::ptr::copy_nonoverlapping(part.iov_base.cast(), all.as_mut_ptr().add(end), part.iov_len)
            };
            end += part.iov_len;
        }
        // SAFETY: the bytes are our own, and the first `length` were written; a bad `fd` is only an error.
        return count(unsafe { libc::send(fd, all.as_ptr().cast(), length, flags) });
    }
    // SAFETY: all-zero is a valid `msghdr`: null pointers with length 0.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len();
    // SAFETY: `message` points at `parts.len()` parts, which the caller vouches for; the kernel only reads them.
    count(unsafe { libc::sendmsg(fd, &message, flags) })
}

/// Calls with [`How::Lent`] that the kernel has done with: from one number to another, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Told {
    pub first: u32,
    pub last: u32,
    /// It copied the bytes after all.
    pub copied: bool,
}

/// The next notification on the error queue; what else is there is passed over.
pub(super) fn told(fd: RawFd) -> io::Result<Option<Told>> {
    /// Control messages lie at multiples of 8; one with an error and an address takes less than 128 bytes.
    #[repr(align(8))]
    struct Control([u8; 128]);
    loop {
        let mut control = Control([0; 128]);
        // SAFETY: all-zero is a valid `msghdr`: null pointers with length 0.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = control.0.len();
        // SAFETY: `message` points at `control`, which is as long as it says, and at nothing else; a bad `fd` is only an error.
        if unsafe { libc::recvmsg(fd, &mut message, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) } < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
        }
        // SAFETY: the kernel has filled in a `msghdr` whose control memory is `control`.
        let mut next = unsafe { libc::CMSG_FIRSTHDR(&message) };
        while !next.is_null() {
            // SAFETY: FIRSTHDR and NXTHDR give headers that lie wholly in `control`.
            let header = unsafe { &*next };
            let holds = header.cmsg_len >= size_of::<libc::cmsghdr>() + size_of::<libc::sock_extended_err>();
            let kind = (header.cmsg_level, header.cmsg_type);
            if holds
                && matches!(kind, (libc::SOL_IP, libc::IP_RECVERR) | (libc::SOL_IPV6, libc::IPV6_RECVERR))
            {
                // SAFETY: the header's length was found to hold one behind it; it may lie unaligned.
                let error: libc::sock_extended_err =
                    unsafe { libc::CMSG_DATA(next).cast::<libc::sock_extended_err>().read_unaligned() };
                if error.ee_origin == SO_EE_ORIGIN_ZEROCOPY && error.ee_errno == 0 {
                    let copied = error.ee_code == SO_EE_CODE_ZEROCOPY_COPIED;
                    return Ok(Some(Told { first: error.ee_info, last: error.ee_data, copied }));
                }
            }
            // SAFETY: `next` is a header of `message`.
            next = unsafe { libc::CMSG_NXTHDR(&message, next) };
        }
    }
}

/// linux/errqueue.h
const SO_EE_ORIGIN_ZEROCOPY: u8 = 5;
const SO_EE_CODE_ZEROCOPY_COPIED: u8 = 1;

impl How {
    fn flag(self) -> i32 {
        match self {
            How::Now => 0,
            How::WithMore => libc::MSG_MORE,
            How::Lent => libc::MSG_ZEROCOPY,
        }
    }
}

/// Sets an option whose value is a number.
fn set_number(fd: RawFd, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the value is an `i32`, which is as long as is said; a bad `fd` is only an error.
    let set = unsafe {
        libc::setsockopt(fd, libc::SOL_SOCKET, option, (&raw const value).cast(), size_of::<i32>() as u32)
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets calls be [`How::Lent`].
pub(super) fn allow_lending(fd: RawFd) -> io::Result<()> {
    set_number(fd, libc::SO_ZEROCOPY, 1)
}

/// Breaks a connection off: what the kernel has not sent is never sent, whoever else may hold the socket, and the peer gets a reset.
pub(super) fn break_off(fd: RawFd) {
    // SAFETY: all-zero is a valid `sockaddr`: the family AF_UNSPEC, which makes `connect` dissolve a connection.
    let nowhere: libc::sockaddr = unsafe { std::mem::zeroed() };
    // SAFETY: the address is as long as is said. A failure means that there was no connection.
    let _ = unsafe { libc::connect(fd, &nowhere, size_of::<libc::sockaddr>() as u32) };
}

/// Sends all of a short message on a connection whose send buffer is empty; less than all is an error.
pub(super) fn send_short(fd: RawFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the part is `bytes`, borrowed for the length of the call.
    let sent = unsafe { send(fd, &mut [part(bytes.as_ptr(), bytes.len())], How::Now) }?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives into `bytes`; 0 is the end of the stream.
pub(super) fn receive_short(fd: RawFd, bytes: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the part is `bytes`, borrowed exclusively and not looked at until the call returns.
    unsafe { receive(fd, &mut [part(bytes.as_mut_ptr(), bytes.len())]) }
}

/// The first of the wanted congestion controls that this host lets us use. Set per socket because a host's default may
/// be one for wide-area paths: over loopback bbr moves half of what cubic and reno do.
pub(super) fn set_congestion(socket: &SockRef<'_>) -> String {
    for wanted in ["cubic", "reno"] {
        if socket.set_tcp_congestion(wanted.as_bytes()).is_ok() {
            return wanted.to_owned();
        }
    }
    let name = socket.tcp_congestion().unwrap_or_default();
    let name = String::from_utf8_lossy(&name);
    format!("{} (system's)", name.trim_end_matches('\0'))
}

/// What the options that `config` asks for come to on this host, for logs and reports.
///
/// # Errors
/// [`Error::Config`] for a setting that the system refuses.
pub(super) fn probe(config: &TcpConfig) -> Result<String> {
    let ip = config.bind;
    let probe = Socket::new(Domain::for_address(SocketAddr::new(ip, 0)), Type::STREAM, Some(Protocol::TCP))
        .map_err(|e| Error::io("socket", ip, e))?;
    let refused = |setting: &str, expected: &str, found: &dyn std::fmt::Display| {
        Err(Error::config(setting, expected, found))
    };
    if let Err(e) = set_busy_poll(&probe, config.busy_poll) {
        let expected = "at most net.core.busy_read, or the capability CAP_NET_ADMIN";
        return refused("tcp_busy_poll", expected, &format!("{} ({e})", config.busy_poll));
    }
    if config.lending != Lending::Never
        && let Err(e) = allow_lending(probe.as_raw_fd())
    {
        return refused("tcp_zerocopy", "off: this system has no SO_ZEROCOPY", &format!("on ({e})"));
    }
    let mut detail = format!("congestion control {}", set_congestion(&SockRef::from(&probe)));
    if let Some(bytes) = config.buffer {
        set_buffers(&probe, bytes).map_err(|e| Error::io("SO_SNDBUF", ip, e))?;
        let (send, receive) = (probe.send_buffer_size(), probe.recv_buffer_size());
        // The kernel doubles what it is asked for, to account for its own structures.
        let got =
            send.and_then(|s| receive.map(|r| s.min(r) / 2)).map_err(|e| Error::io("SO_SNDBUF", ip, e))?;
        if got < bytes as usize {
            let expected = format!("at most {got} bytes (net.core.wmem_max and rmem_max)");
            return refused("tcp_buffer", &expected, &bytes);
        }
        detail += &format!(", buffers of {bytes} bytes");
    }
    if config.lending != Lending::Never {
        detail += ", zero-copy";
    }
    if config.busy_poll > 0 {
        detail += &format!(", busy polling for {} µs", config.busy_poll);
    }
    Ok(detail)
}

fn set_busy_poll(socket: &impl AsRawFd, microseconds: u32) -> io::Result<()> {
    if microseconds == 0 {
        return Ok(());
    }
    set_number(socket.as_raw_fd(), libc::SO_BUSY_POLL, microseconds.try_into().unwrap_or(i32::MAX))
}

fn set_buffers(socket: &Socket, bytes: u32) -> io::Result<()> {
    socket.set_send_buffer_size(bytes as usize)?;
    socket.set_recv_buffer_size(bytes as usize)
}

/// Options of every connection. Buffer sizes are left to the kernel unless they are given: naming one ends its tuning and caps it at
/// `net.core.{r,w}mem_max`, which is often below what a 100 Gb/s path needs. An idle connection to a vanished host is noticed
/// by keepalive within about `lost_after`; one with bytes under way by [`is_lost`].
pub(super) fn set_options(socket: &SockRef<'_>, config: &TcpConfig) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    set_congestion(socket);
    set_busy_poll(&**socket, config.busy_poll)?;
    let keepalive = TcpKeepalive::new()
        .with_time((config.lost_after / 2).max(Duration::from_secs(1)))
        .with_interval((config.lost_after / 10).max(Duration::from_secs(1)))
        .with_retries(5);
    socket.set_tcp_keepalive(&keepalive)
}

/// Whether the other end of a connection has another address than this one.
pub(super) fn other_host(stream: &mio::net::TcpStream) -> bool {
    match (stream.local_addr(), stream.peer_addr()) {
        (Ok(here), Ok(there)) => here.ip() != there.ip() && !there.ip().is_loopback(),
        _ => false,
    }
}

/// A non-blocking socket on its way to `address`.
pub(super) fn dial(address: SocketAddr, config: &TcpConfig) -> io::Result<mio::net::TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    set_options(&SockRef::from(&socket), config)?;
    if let Some(bytes) = config.buffer {
        set_buffers(&socket, bytes)?;
    }
    match socket.connect(&address.into()) {
        Ok(()) => {}
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(e) => return Err(e),
    }
    Ok(mio::net::TcpStream::from_std(socket.into()))
}

/// A listener on the first free port of those to choose from (any free port without them).
pub(super) fn listen(config: &TcpConfig) -> Result<mio::net::TcpListener> {
    let ip = config.bind;
    let attempt = |port: u16| -> io::Result<mio::net::TcpListener> {
        let address = SocketAddr::new(ip, port);
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        // Otherwise a port would stay unusable for a minute after its last connection.
        socket.set_reuse_address(true)?;
        // What is accepted has them from here, in time for the window that the first packets agree on.
        if let Some(bytes) = config.buffer {
            set_buffers(&socket, bytes)?;
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(mio::net::TcpListener::from_std(socket.into()))
    };
    let ports = config.ports.clone().unwrap_or(0..=0);
    let subject = format!("{ip}, ports {}-{}", ports.start(), ports.end());
    let failed = |subject: String, e| Error::io("bind", subject, e).chosen_by(settings::LISTENING);
    let mut last = io::Error::from(io::ErrorKind::InvalidInput);
    for port in ports {
        match attempt(port) {
            Ok(listener) => return Ok(listener),
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => last = e,
            Err(e) => return Err(failed(SocketAddr::new(ip, port).to_string(), e)),
        }
    }
    Err(failed(subject, last))
}

/// Whether the peer's host has stopped answering for `lost_after` though it was asked again and again.
///
/// TCP_USER_TIMEOUT is not used: it also kills a connection whose peer lives and merely does not read, since the kernel
/// counts the time spent in window probes even when they are answered.
pub(super) fn is_lost(fd: RawFd, lost_after: Duration) -> bool {
    // SAFETY: all-zero is a valid `tcp_info`: it consists of integers.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = std::mem::size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: `info` is `length` writable bytes; the kernel writes at most that many and says how many.
    let rc = unsafe {
        libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &mut length)
    };
    rc == 0 && stopped_answering(&info, lost_after)
}

/// An answered probe or retransmission sets its counter back, so a high one means silence; the time alone does not,
/// since probes of a closed window back off to minutes.
fn stopped_answering(info: &libc::tcp_info, lost_after: Duration) -> bool {
    let silent = Duration::from_millis(info.tcpi_last_ack_recv.into());
    silent >= lost_after && info.tcpi_retransmits.max(info.tcpi_probes) >= UNANSWERED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_silence_under_questions_is_loss() {
        let limit = Duration::from_secs(10);
        // SAFETY: all-zero is a valid `tcp_info`.
        let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
        info.tcpi_last_ack_recv = 60_000;
        assert!(!stopped_answering(&info, limit), "idle");
        info.tcpi_probes = 1;
        assert!(!stopped_answering(&info, limit), "a closed window whose probes are answered");
        info.tcpi_probes = UNANSWERED;
        assert!(stopped_answering(&info, limit));
        info.tcpi_last_ack_recv = 9_999;
        assert!(!stopped_answering(&info, limit), "too early");
        (info.tcpi_last_ack_recv, info.tcpi_probes, info.tcpi_retransmits) = (10_000, 0, UNANSWERED);
        assert!(stopped_answering(&info, limit));
    }

    #[test]
    fn a_range_of_ports_is_used_up_and_then_refused() {
        let on = |ports| listen(&TcpConfig { ports, ..TcpConfig::default() });
        let first = on(None).unwrap();
        let port = first.local_addr().unwrap().port();
        let error = on(Some(port..=port)).unwrap_err();
        assert!(error.to_string().contains(&port.to_string()), "{error}");
        #[allow(clippy::reversed_empty_ranges)]
        let empty = 2..=1;
        assert!(on(Some(empty)).is_err());
    }
}
