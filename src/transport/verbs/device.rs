//! Devices, ports, and the choice of the GID under which a port is reached.

use std::ffi::CStr;
use std::fmt;
use std::io;
use std::net::Ipv6Addr;
use std::os::raw::c_int;
use std::sync::{Arc, OnceLock};

use rdma_sys::{
    ibv_close_device, ibv_context, ibv_device, ibv_device_attr, ibv_fork_init, ibv_free_device_list,
    ibv_get_device_list, ibv_get_device_name, ibv_open_device, ibv_port_state, ibv_query_device,
};

use super::ffi::{self, RawPort};
use crate::config::Rdma;
use crate::config::rdma::Mtu;
use crate::error::{Error, Result};
use crate::transport::Side;
use crate::transport::pairing::{Address, GidKind};
use crate::transport::topology::RailPort;

/// One entry of a port's GID table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gid {
    /// Place in the table; `VerbsConfig::gid_index` chooses by it.
    pub index: u8,
    /// How peers reach it.
    pub kind: GidKind,
    /// In network byte order; an IPv4 address is mapped into `::ffff:0:0/96`.
    pub raw: [u8; 16],
}

impl Gid {
    /// Whether it stands for an IPv4 address.
    pub fn is_ipv4(&self) -> bool {
        Ipv6Addr::from(self.raw).to_ipv4_mapped().is_some()
    }

    /// Lower is better: RoCE v2 over IPv4, v2 over a routable IPv6 address, v2 link-local, then v1.
    fn rank(&self) -> u8 {
        match self.kind {
            GidKind::InfiniBand => 0,
            GidKind::RoceV2 if self.is_ipv4() => 0,
            GidKind::RoceV2 if !Ipv6Addr::from(self.raw).is_unicast_link_local() => 1,
            GidKind::RoceV2 => 2,
            GidKind::RoceV1 => 3,
        }
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            GidKind::InfiniBand => "InfiniBand",
            GidKind::RoceV1 => "RoCE v1",
            GidKind::RoceV2 => "RoCE v2",
        };
        let address = Ipv6Addr::from(self.raw);
        match address.to_ipv4_mapped() {
            Some(v4) => write!(f, "{kind} {v4} (gid {})", self.index),
            None => write!(f, "{kind} {address} (gid {})", self.index),
        }
    }
}

/// The best of a port's GIDs, or the one with the index asked for.
pub(super) fn choose_gid(gids: &[Gid], wanted: Option<u8>) -> Option<Gid> {
    match wanted {
        Some(index) => gids.iter().find(|g| g.index == index).copied(),
        None => gids.iter().min_by_key(|g| (g.rank(), g.index)).copied(),
    }
}

/// One port of one device, for `windlass info`.
#[derive(Debug, Clone)]
pub struct DeviceInfo {
    /// The device, as the system names it.
    pub name: String,
    /// From 1.
    pub port: u8,
    /// Whether the link is up.
    pub active: bool,
    /// Whether it is Ethernet (RoCE); else InfiniBand.
    pub ethernet: bool,
    /// Payload of one packet in bytes.
    pub mtu: usize,
    /// Longest message in bytes.
    pub max_message: u32,
    /// What the link can carry, in Gbit/s; `None` when the driver gives codes that this program does not know.
    pub gigabits: Option<f32>,
    /// All entries of its GID table.
    pub gids: Vec<Gid>,
    /// The one that would be chosen by itself.
    pub chosen: Option<Gid>,
}

/// The ports that `rdma` makes rails of: each of a list that can be used, of `any` the first. And why others of a list can't be.
pub fn rails(rdma: &Rdma) -> Result<(Vec<RailPort>, Vec<Error>)> {
    let any = rdma.device.is_any();
    let Found { ports, failures } = Port::search(rdma, if any { 1 } else { usize::MAX })?;
    let rail =
        |(context, port): &(Arc<Context>, Port)| RailPort { device: context.name.clone(), port: port.number };
    Ok((ports.iter().map(rail).collect(), if any { Vec::new() } else { failures }))
}

/// Every port of every device that can be opened. Empty where there is no RDMA at all.
pub fn available() -> Result<Vec<DeviceInfo>> {
    let mut found = Vec::new();
    for name in device_names()? {
        let context = Context::open(&name)?;
        for port in 1..=context.attributes.phys_port_cnt {
            let raw = context.query_port(port)?;
            let gids = context.gids(port, raw.gids);
            found.push(DeviceInfo {
                name: name.clone(),
                port,
                active: is_active(&raw),
                ethernet: raw.link_layer == ETHERNET,
                mtu: mtu_bytes(raw.mtu),
                max_message: raw.max_message,
                gigabits: gigabits(raw.width, raw.speed),
                chosen: choose_gid(&gids, None),
                gids,
            });
        }
    }
    Ok(found)
}

const ETHERNET: u8 = 2;

fn is_active(port: &RawPort) -> bool {
    u32::from(port.state) == ibv_port_state::IBV_PORT_ACTIVE
}

/// The bytes of an `enum ibv_mtu`.
pub(super) fn mtu_bytes(code: u8) -> usize {
    128 << code.clamp(1, 5)
}

/// Lanes times the signalling rate that the codes of the InfiniBand specification stand for.
fn gigabits(width: u8, speed: u8) -> Option<f32> {
    let lanes = match width {
        1 => 1.0,
        2 => 4.0,
        4 => 8.0,
        8 => 12.0,
        16 => 2.0,
        _ => return None,
    };
    let lane = match speed {
        1 => 2.5,
        2 => 5.0,
        4 | 8 => 10.0,
        16 => 14.0,
        32 => 25.0,
        64 => 50.0,
        128 => 100.0,
        _ => return None,
    };
    Some(lanes * lane)
}

fn device_error(operation: &'static str, device: &str, reason: impl fmt::Display) -> Error {
    Error::Device { operation, device: device.to_owned(), reason: reason.to_string() }
}

/// Prepares the library for processes that fork. Has to come before every other verb; done once.
fn prepare() -> Result<()> {
    static PREPARED: OnceLock<c_int> = OnceLock::new();
    // SAFETY: takes no arguments, and the lock keeps two threads from calling it at once.
    match PREPARED.get_or_init(|| unsafe { ibv_fork_init() }) {
        0 => Ok(()),
        &errno => Err(device_error("ibv_fork_init", "any", io::Error::from_raw_os_error(errno.abs()))),
    }
}

/// The system's list of devices, freed on drop.
struct DeviceList {
    first: *mut *mut ibv_device,
    count: usize,
}

impl DeviceList {
    fn new() -> Result<DeviceList> {
        prepare()?;
        let mut count: c_int = 0;
        // SAFETY: `count` is written before the call returns.
        let first = unsafe { ibv_get_device_list(&mut count) };
        if first.is_null() {
            let error = io::Error::last_os_error();
            // What the library says where the kernel has no RDMA at all.
            if error.raw_os_error() == Some(libc::ENOSYS) {
                return Ok(DeviceList { first, count: 0 });
            }
            return Err(device_error("ibv_get_device_list", "any", error));
        }
        Ok(DeviceList { first, count: usize::try_from(count).unwrap_or(0) })
    }

    fn iter(&self) -> impl Iterator<Item = (*mut ibv_device, String)> + '_ {
        (0..self.count).map(|i| {
            // SAFETY: the list has `count` entries, each a device that lives until the list is freed.
            let device = unsafe { *self.first.add(i) };
            // SAFETY: the name of a live device is a NUL-terminated string; it is copied here.
            let name = unsafe { CStr::from_ptr(ibv_get_device_name(device)) };
            (device, name.to_string_lossy().into_owned())
        })
    }
}

impl Drop for DeviceList {
    fn drop(&mut self) {
        if !self.first.is_null() {
            // SAFETY: the pointer came from ibv_get_device_list and is freed once.
            unsafe { ibv_free_device_list(self.first) }
        }
    }
}

/// Whether this machine has any device, usable or not. True also where it can't be asked: then something is in the way.
pub fn are_there() -> bool {
    !device_names().is_ok_and(|names| names.is_empty())
}

fn device_names() -> Result<Vec<String>> {
    Ok(DeviceList::new()?.iter().map(|(_, name)| name).collect())
}

/// An open device. Everything made on it holds an `Arc` of it, so it is closed last.
pub(super) struct Context {
    raw: *mut ibv_context,
    pub name: String,
    pub attributes: ibv_device_attr,
}

// SAFETY: libibverbs documents its calls as thread-safe; `raw` is only ever passed to it, and closed by the last owner.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    pub fn open(name: &str) -> Result<Arc<Context>> {
        let list = DeviceList::new()?;
        let Some((device, _)) = list.iter().find(|(_, n)| n == name) else {
            return Err(device_error("open", name, "no such device"));
        };
        // SAFETY: `device` is in `list`, which lives until the end of this function.
        let raw = unsafe { ibv_open_device(device) };
        if raw.is_null() {
            let error = io::Error::last_os_error();
            return Err(device_error("ibv_open_device", name, format!("{error}; see /dev/infiniband")));
        }
        // SAFETY: the structure consists of integers only, for which zero is a value.
        let attributes = unsafe { std::mem::zeroed::<ibv_device_attr>() };
        let mut context = Context { raw, name: name.to_owned(), attributes };
        // SAFETY: the context is open and the structure is the caller's own.
        let errno = unsafe { ibv_query_device(raw, &mut context.attributes) };
        if errno != 0 {
            return Err(context.error("ibv_query_device", errno));
        }
        Ok(Arc::new(context))
    }

    /// The handle, valid while `self` lives.
    pub fn raw(&self) -> *mut ibv_context {
        self.raw
    }

    /// Completion vectors, at least one.
    pub fn vectors(&self) -> u32 {
        // SAFETY: the context is open; the number was set when it was opened.
        u32::try_from(unsafe { (*self.raw).num_comp_vectors }).unwrap_or(1).max(1)
    }

    /// Whether this is soft-RoCE, which calls itself this vendor.
    pub fn is_software(&self) -> bool {
        self.attributes.vendor_id == 0x00ff_ffff
    }

    /// An [`Error::Device`] from an errno.
    pub fn error(&self, operation: &'static str, errno: c_int) -> Error {
        device_error(operation, &self.name, io::Error::from_raw_os_error(errno.abs()))
    }

    /// An [`Error::Device`] from the thread's last errno.
    pub fn last_error(&self, operation: &'static str) -> Error {
        device_error(operation, &self.name, io::Error::last_os_error())
    }

    fn query_port(&self, port: u8) -> Result<RawPort> {
        let mut raw = RawPort::default();
        // SAFETY: the context is open; the structure mirrors the one that the shim fills.
        match unsafe { ffi::windlass_query_port(self.raw, port, &mut raw) } {
            0 => Ok(raw),
            errno => Err(self.error("ibv_query_port", errno)),
        }
    }

    /// The filled entries among the first `count`.
    fn gids(&self, port: u8, count: u32) -> Vec<Gid> {
        (0..=u8::MAX).take(count as usize).filter_map(|index| self.gid(port, index)).collect()
    }

    fn gid(&self, port: u8, index: u8) -> Option<Gid> {
        let (mut raw, mut kind) = ([0u8; 16], 0u32);
        // SAFETY: the context is open; the shim writes 16 bytes and one number to our own variables.
        let errno = unsafe { ffi::windlass_query_gid(self.raw, port, index.into(), &mut raw, &mut kind) };
        if errno != 0 || raw == [0; 16] {
            return None;
        }
        Some(Gid { index, kind: GidKind::from_raw(kind)?, raw })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: everything made on the context held an `Arc` of it, so nothing uses it any more; closed once.
        unsafe { ibv_close_device(self.raw) };
    }
}

/// A port that is up, and how it is reached.
#[derive(Debug, Clone)]
pub(super) struct Port {
    pub number: u8,
    pub lid: u16,
    /// 1 to 5 for 256 to 4096 bytes.
    pub mtu: u8,
    /// In bytes.
    pub max_message: u32,
    pub gid: Gid,
    /// Whether packets carry a global route header: always on Ethernet.
    pub global: bool,
}

/// What a search for ports came to.
struct Found {
    ports: Vec<(Arc<Context>, Port)>,
    /// Why others can't be used.
    failures: Vec<Error>,
}

impl Port {
    /// The address of a queue pair here.
    pub fn address(&self, side: Side, number: u32, psn: u32, reads: u8) -> Address {
        Address {
            side,
            kind: self.gid.kind,
            mtu: self.mtu,
            reads,
            lid: self.lid,
            number,
            psn,
            gid: self.gid.raw,
            max_message: self.max_message,
        }
    }

    /// Opens the first allowed port that can be used as `rdma` says.
    pub fn find(rdma: &Rdma) -> Result<(Arc<Context>, Port)> {
        let mut found = Port::search(rdma, 1)?;
        // Never without one.
        found.ports.pop().ok_or_else(|| device_error("open", "any", "no port can be used"))
    }

    /// Opens the allowed ports that can be used as `rdma` says, in the order of its list, at least one and at most `most`. Without one the
    /// error names all that were looked at.
    fn search(rdma: &Rdma, most: usize) -> Result<Found> {
        let names = device_names()?;
        if names.is_empty() {
            return Err(device_error("open", "any", "this machine has no RDMA device"));
        }
        let mut failures = Vec::new();
        let mut all = Vec::new();
        for name in &names {
            // No device has more ports than a number of one byte counts.
            if !(1..=u8::MAX).any(|port| rdma.device.allow(name, port)) {
                continue;
            }
            match Context::open(name) {
                Ok(context) => {
                    all.extend((1..=context.attributes.phys_port_cnt).map(|port| (context.clone(), port)));
                }
                Err(error) => failures.push(error),
            }
        }
        let mut found = Vec::new();
        for (context, number) in rdma.device.select(all, |(context, port)| (&context.name, *port)) {
            if found.len() == most {
                break;
            }
            match Port::on(&context, number, rdma) {
                Ok(port) => found.push((context, port)),
                Err(error) => failures.push(error),
            }
        }
        if !found.is_empty() {
            return Ok(Found { ports: found, failures });
        }
        match failures.len() {
            0 => {
                let found = format!("rdma_device {} allows none of {}", rdma.device, names.join(", "));
                Err(device_error("open", "any", found))
            }
            1 => Err(failures.remove(0)),
            _ => {
                let all: Vec<String> = failures.iter().map(Error::to_string).collect();
                Err(device_error("open", "any", all.join("; ")))
            }
        }
    }

    fn on(context: &Context, number: u8, rdma: &Rdma) -> Result<Port> {
        let place = format!("{} port {number}", context.name);
        let raw = context.query_port(number)?;
        if !is_active(&raw) {
            return Err(device_error(
                "open",
                &place,
                format!("the port is not active (state {})", raw.state),
            ));
        }
        let gids = context.gids(number, raw.gids);
        let Some(gid) = choose_gid(&gids, rdma.gid_index) else {
            let have: Vec<String> = gids.iter().map(Gid::to_string).collect();
            let asked = rdma.gid_index.map_or("none at all".to_owned(), |i| format!("no index {i}"));
            return Err(device_error("choose a GID", &place, format!("{asked} among [{}]", have.join(", "))));
        };
        if rdma.pkey_index >= raw.pkeys {
            let expected = format!("0 to {} at {place}", raw.pkeys.saturating_sub(1));
            return Err(Error::config("rdma_pkey_index", expected, rdma.pkey_index));
        }
        let ethernet = raw.link_layer == ETHERNET;
        Ok(Port {
            number,
            lid: raw.lid,
            mtu: choose_mtu(raw.mtu, rdma.mtu, &place)?,
            max_message: raw.max_message,
            gid,
            global: ethernet || raw.needs_grh != 0,
        })
    }
}

/// The code of the port's MTU, or of the smaller one asked for.
fn choose_mtu(active: u8, wanted: Option<Mtu>, place: &str) -> Result<u8> {
    let active = active.clamp(1, 5);
    let Some(wanted) = wanted else { return Ok(active) };
    let most = mtu_bytes(active);
    if usize::from(wanted.bytes()) > most {
        let expected = format!("256 to {most}, the active MTU of {place}");
        return Err(Error::config("rdma_mtu", expected, wanted.bytes()));
    }
    Ok((wanted.bytes().ilog2() - 7) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gid(index: u8, kind: GidKind, address: &str) -> Gid {
        Gid { index, kind, raw: address.parse::<Ipv6Addr>().unwrap().octets() }
    }

    #[test]
    fn the_most_routable_gid_is_chosen() {
        let v1 = gid(0, GidKind::RoceV1, "fe80::1");
        let local = gid(1, GidKind::RoceV2, "fe80::1");
        let old = gid(2, GidKind::RoceV1, "::ffff:10.0.0.1");
        let v6 = gid(3, GidKind::RoceV2, "2001:db8::1");
        let v4 = gid(4, GidKind::RoceV2, "::ffff:10.0.0.1");
        assert_eq!(choose_gid(&[v1, local, old, v6, v4], None), Some(v4));
        assert_eq!(choose_gid(&[v1, local, old, v6], None), Some(v6));
        assert_eq!(choose_gid(&[v1, local, old], None), Some(local));
        assert_eq!(choose_gid(&[v1, old], None), Some(v1));
        assert_eq!(choose_gid(&[], None), None);
        assert_eq!(choose_gid(&[v1, v4], Some(0)), Some(v1));
        assert_eq!(choose_gid(&[v1, v4], Some(7)), None);
    }

    #[test]
    fn what_cannot_be_opened_is_named() {
        let error = Context::open("no-such-device").err().unwrap();
        assert!(error.to_string().contains("no-such-device"), "{error}");
    }

    #[test]
    fn link_rates() {
        assert_eq!(gigabits(2, 64), Some(200.0));
        assert_eq!(gigabits(3, 64), None);
        assert_eq!(mtu_bytes(5), 4096);
        assert_eq!(mtu_bytes(1), 256);
    }

    #[test]
    fn the_mtu_is_the_ports_or_a_smaller_one() {
        let wanted = |text: &str| choose_mtu(3, Some(text.parse().unwrap()), "rxe0 port 1");
        assert_eq!(choose_mtu(3, None, "rxe0 port 1").unwrap(), 3);
        for (text, code) in [("256", 1), ("512", 2), ("1024", 3)] {
            assert_eq!(wanted(text).unwrap(), code);
        }
        let error = wanted("2048").unwrap_err().to_string();
        assert_eq!(error, "rdma_mtu: expected 256 to 1024, the active MTU of rxe0 port 1, found 2048");
    }
}
