//! System calls on sockets: options, and moving bytes between a socket and arena memory through raw pointers.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::RawFd;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::error::{Error, Result};

/// Kernel's queue of connections that were not accepted yet.
const BACKLOG: i32 = 1024;
/// Retransmissions or probes without an answer before silence counts as loss.
const UNANSWERED: u8 = 3;

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
    // SAFETY: all-zero is a valid `msghdr`: null pointers with length 0.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len();
    // SAFETY: `message` points at `parts.len()` parts, which the caller vouches for; a bad `fd` is only an error.
    let got = unsafe { libc::recvmsg(fd, &mut message, libc::MSG_DONTWAIT) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// Sends `parts`, in order; how many bytes the kernel took. Never raises SIGPIPE.
///
/// # Safety
/// Every part must be readable memory for the length of the call.
pub(super) unsafe fn send(fd: RawFd, parts: &mut [Part]) -> io::Result<usize> {
    // SAFETY: all-zero is a valid `msghdr`: null pointers with length 0.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len();
    // SAFETY: `message` points at `parts.len()` parts, which the caller vouches for; the kernel only reads them.
    let sent = unsafe { libc::sendmsg(fd, &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Sends all of a short message on a connection whose send buffer is empty; less than all is an error.
pub(super) fn send_short(fd: RawFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the part is `bytes`, borrowed for the length of the call.
    let sent = unsafe { send(fd, &mut [part(bytes.as_ptr(), bytes.len())]) }?;
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

/// What [`set_congestion`] comes to on this host.
pub(super) fn congestion(ip: IpAddr) -> Result<String> {
    let probe = Socket::new(Domain::for_address(SocketAddr::new(ip, 0)), Type::STREAM, Some(Protocol::TCP))
        .map_err(|e| Error::io("socket", ip, e))?;
    Ok(set_congestion(&SockRef::from(&probe)))
}

/// Options of every connection. Buffer sizes are left to the kernel: naming one would end its tuning and cap it at
/// `net.core.{r,w}mem_max`, which is below what a 100 Gb/s path needs. An idle connection to a vanished host is noticed
/// by keepalive within about `lost_after`; one with bytes under way by [`is_lost`].
pub(super) fn set_options(socket: &SockRef<'_>, lost_after: Duration) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    set_congestion(socket);
    let keepalive = TcpKeepalive::new()
        .with_time((lost_after / 2).max(Duration::from_secs(1)))
        .with_interval((lost_after / 10).max(Duration::from_secs(1)))
        .with_retries(5);
    socket.set_tcp_keepalive(&keepalive)
}

/// A non-blocking socket on its way to `address`.
pub(super) fn dial(address: SocketAddr, lost_after: Duration) -> io::Result<mio::net::TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    set_options(&SockRef::from(&socket), lost_after)?;
    match socket.connect(&address.into()) {
        Ok(()) => {}
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(e) => return Err(e),
    }
    Ok(mio::net::TcpStream::from_std(socket.into()))
}

/// A listener on the first free port of `ports` (any free port without them).
pub(super) fn listen(ip: IpAddr, ports: Option<&RangeInclusive<u16>>) -> Result<mio::net::TcpListener> {
    let attempt = |port: u16| -> io::Result<mio::net::TcpListener> {
        let address = SocketAddr::new(ip, port);
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        // Otherwise a port would stay unusable for a minute after its last connection.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(mio::net::TcpListener::from_std(socket.into()))
    };
    let ports = ports.cloned().unwrap_or(0..=0);
    let subject = format!("{ip}, ports {}-{}", ports.start(), ports.end());
    let mut last = io::Error::from(io::ErrorKind::InvalidInput);
    for port in ports {
        match attempt(port) {
            Ok(listener) => return Ok(listener),
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => last = e,
            Err(e) => return Err(Error::io("bind", SocketAddr::new(ip, port), e)),
        }
    }
    Err(Error::io("bind", subject, last))
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
        let ip = IpAddr::from([127, 0, 0, 1]);
        let first = listen(ip, None).unwrap();
        let port = first.local_addr().unwrap().port();
        let error = listen(ip, Some(&(port..=port))).unwrap_err();
        assert!(error.to_string().contains(&port.to_string()), "{error}");
        #[allow(clippy::reversed_empty_ranges)]
        let empty = 2..=1;
        assert!(listen(ip, Some(&empty)).is_err());
    }
}
