//! Text that people and launchers give: LIBSVM files, secrets, and settings.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Seek, Write};
use std::num::NonZeroU64;

use tempfile::NamedTempFile;
use windlass::Secret;
use windlass::config::parse_ports;
use windlass::data::Dataset;
use windlass::data::libsvm::{IndexMode, read, read_part};
use windlass::types::{Consistency, KeyRange, SortedKeys};

use super::Bytes;

thread_local! {
    static SCRATCH: RefCell<NamedTempFile> = RefCell::new(NamedTempFile::new().unwrap());
}

/// A file that parses has sorted finite rows, and is the same when three readers share it.
pub fn libsvm(data: &[u8]) {
    let mut input = Bytes(data);
    let features = NonZeroU64::new(u64::from(input.u8() >> 2));
    let mode = match data.first().map(|b| b & 1) {
        Some(1) => IndexMode::Hashed { features },
        _ => IndexMode::OneBased { features },
    };
    SCRATCH.with_borrow_mut(|scratch| {
        let file: &mut File = scratch.as_file_mut();
        file.set_len(0).unwrap();
        file.rewind().unwrap();
        file.write_all(input.0).unwrap();
        let Ok(whole) = read(scratch.path(), mode) else { return };
        for row in 0..whole.rows() {
            let (keys, values) = whole.row(row);
            assert!(SortedKeys::new(keys).is_ok());
            assert!(values.iter().all(|v| v.is_finite()));
            assert!(matches!(whole.labels[row], 0.0 | 1.0));
            assert!(keys.iter().all(|key| features.is_none_or(|f| *key < f.get())));
        }
        let mut parts = Dataset::default();
        (0..3).for_each(|part| parts.append(&read_part(scratch.path(), part, 3, mode).unwrap()));
        assert_eq!(parts, whole);
    });
}

pub fn libsvm_seeds() -> Vec<Vec<u8>> {
    [
        (0, "1 1:0.5 3:2e-3 # comment\n-1 2:1\r\n\n0 7:-0.25 9:\n1 4:?\n"),
        (0x3c, "+1 15:1 2:3.5e+2\n"),
        (1, "1 site:example.org:1 17:2\n0 \u{e9}:1\n"),
        (0x41, "1 a:1 b:1 c:1 d:1 e:1\n0 f:0.5"),
    ]
    .map(|(mode, text): (u8, &str)| [&[mode][..], text.as_bytes()].concat())
    .to_vec()
}

/// Settings and secrets as text.
pub fn settings(data: &[u8]) {
    let mut input = Bytes(data);
    let kind = input.u8();
    if kind % 4 == 3 {
        let (start, end) = (input.u64(), input.u64());
        return assert_eq!(KeyRange::new(start, end).is_ok(), start < end);
    }
    let Ok(text) = std::str::from_utf8(input.0) else { return };
    match kind % 4 {
        0 => {
            if let Ok(secret) = Secret::from_hex(text) {
                assert_eq!(secret.to_hex(), text.trim().to_ascii_lowercase());
            }
        }
        1 => {
            if let Ok(ports) = parse_ports(text) {
                assert!(*ports.start() > 0 && ports.start() <= ports.end());
            }
        }
        _ => {
            if let Ok(consistency) = text.parse::<Consistency>() {
                assert_eq!(consistency.to_string().parse::<Consistency>().unwrap(), consistency);
            }
        }
    }
}

pub fn settings_seeds() -> Vec<Vec<u8>> {
    let secret = "ab".repeat(32);
    [
        (0, secret.as_str()),
        (1, "7000-7010"),
        (1, "9"),
        (2, "bsp"),
        (2, "ssp:3"),
        (2, "asp"),
        (3, "\0\0\0\0\0\0\0\0\x01"),
    ]
    .map(|(kind, text): (u8, &str)| [&[kind][..], text.as_bytes()].concat())
    .to_vec()
}
