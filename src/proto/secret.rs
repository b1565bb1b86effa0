//! The job's secret: what tells a node of the job from anybody else.

use std::fmt;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::error::{Error, Result};

/// 32 random bytes that the launcher makes and every node of the job knows. Wiped on drop, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    // `blake3::Hash` compares in constant time.
    bytes: blake3::Hash,
}

impl Secret {
    /// A fresh one from the system's random source.
    pub fn generate() -> Result<Secret> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)
            .map_err(|e| Error::io("getrandom", "job secret", std::io::Error::other(e.to_string())))?;
        Ok(Secret { bytes: bytes.into() })
    }

    /// From 64 hexadecimal digits; white space around them is ignored.
    pub fn from_hex(text: &str) -> Result<Secret> {
        // What was found is not shown: it may be a secret with a slip in it.
        let text = text.trim();
        let bytes = blake3::Hash::from_hex(text).map_err(|_| {
            let found = format!("{} characters that are not it", text.chars().count());
            Error::config("job secret", "64 hexadecimal digits", found)
        })?;
        Ok(Secret { bytes })
    }

    /// From a file with 64 hexadecimal digits that belongs to us and that nobody else may read.
    pub fn from_file(path: &Path) -> Result<Secret> {
        let text = private_text(path, "secret file")?;
        Secret::from_hex(&text).map_err(|_| {
            let setting = format!("secret file {}", path.display());
            Error::config(setting, "64 hexadecimal digits", format!("{} bytes that are not", text.len()))
        })
    }

    /// As hexadecimal digits, for the launcher to hand on. Don't log it.
    pub fn to_hex(&self) -> String {
        self.bytes.to_hex().to_string()
    }

    /// From its bytes, as a [`super::bootstrap::Bootstrap`] carries them.
    pub(super) fn from_bytes(bytes: [u8; 32]) -> Secret {
        Secret { bytes: bytes.into() }
    }

    pub(super) fn to_bytes(&self) -> [u8; 32] {
        *self.bytes.as_bytes()
    }

    /// A key for one purpose.
    pub(crate) fn derive(&self, context: &'static str) -> [u8; 32] {
        blake3::derive_key(context, self.bytes.as_bytes())
    }
}

/// The first KiB of a text file that belongs to us and that nobody else may read; `what` it is called in messages.
pub fn private_text(path: &Path, what: &str) -> Result<String> {
    let shown = path.display();
    let setting = || format!("{what} {shown}");
    // Before opening: a FIFO would block.
    if std::fs::metadata(path).is_ok_and(|m| !m.is_file()) {
        return Err(Error::config(setting(), "a regular file", "something else"));
    }
    let mut file = std::fs::File::open(path).map_err(|e| Error::io("open", &shown, e))?;
    // Asked of the open file, so that it can't be exchanged in between.
    let metadata = file.metadata().map_err(|e| Error::io("stat", &shown, e))?;
    let us = rustix::process::geteuid().as_raw();
    if metadata.uid() != us {
        let expected = format!("owner {us} (chown it, or make your own)");
        return Err(Error::config(setting(), expected, format!("owner {}", metadata.uid())));
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        let expected = format!("mode 600 (chmod 600 {shown})");
        return Err(Error::config(setting(), expected, format!("mode {mode:o}: others may use it")));
    }
    let mut text = String::new();
    let read = file.by_ref().take(1024).read_to_string(&mut text);
    read.map_err(|e| Error::io("read", &shown, e))?;
    Ok(text)
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.bytes = blake3::Hash::from_bytes([0; 32]);
        // Keeps the compiler from seeing that the write is dead.
        std::hint::black_box(&self.bytes);
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn hex_round_trips_and_slips_are_refused() {
        let secret = Secret::generate().unwrap();
        assert!(Secret::from_hex(&format!(" {}\n", secret.to_hex())).unwrap() == secret);
        for bad in ["", "00", &"g".repeat(64), &"0".repeat(65)] {
            assert!(Secret::from_hex(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nothing_shows_it() {
        let hex = "ab".repeat(32);
        let secret = Secret::from_hex(&hex).unwrap();
        assert!(!format!("{secret:?}").contains("ab"));
        let slip = Secret::from_hex(&"ab".repeat(33)).unwrap_err();
        assert!(!slip.to_string().contains("abab"), "{slip}");
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_mend() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "ab".repeat(32)).unwrap();
        let mode = |m| std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(m)).unwrap();
        for open in [0o640, 0o604, 0o620, 0o644] {
            mode(open);
            let error = Secret::from_file(file.path()).unwrap_err().to_string();
            assert!(error.contains("chmod 600"), "{error}");
        }
        mode(0o600);
        assert!(Secret::from_file(file.path()).is_ok());
        mode(0o400);
        assert!(Secret::from_file(file.path()).is_ok());
        assert!(Secret::from_file(&file.path().with_extension("none")).is_err());
        assert!(Secret::from_file(Path::new("/dev/null")).is_err());
        mode(0o600);
        std::fs::write(file.path(), "abcd").unwrap();
        let error = Secret::from_file(file.path()).unwrap_err().to_string();
        assert!(error.contains("4 bytes that are not") && !error.contains("abcd"), "{error}");
    }

    #[test]
    fn a_file_of_somebody_else_is_refused() {
        let us = rustix::process::geteuid().as_raw();
        let theirs = if us == 0 {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::os::unix::fs::chown(file.path(), Some(1), None).unwrap();
            Secret::from_file(file.path())
        } else {
            Secret::from_file(Path::new("/etc/hostname"))
        };
        let error = theirs.unwrap_err().to_string();
        assert!(error.contains(&format!("owner {us}")), "{error}");
    }
}
