//! Reading and writing of the fixed-layout handshake fields. Every read is bounded and names its field.

use crate::error::{Error, Result};

/// A cursor over a peer's bytes.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    peer: &'a str,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8], peer: &'a str) -> Reader<'a> {
        Reader { bytes, peer }
    }

    pub fn take(&mut self, field: &'static str, length: usize) -> Result<&'a [u8]> {
        let Some((head, tail)) = self.bytes.split_at_checked(length) else {
            let expected = format!("{length} bytes");
            return Err(Error::protocol(self.peer, field, expected, format!("{} bytes", self.bytes.len())));
        };
        self.bytes = tail;
        Ok(head)
    }

    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(field, N)?);
        Ok(out)
    }

    pub fn byte(&mut self, field: &'static str) -> Result<u8> {
        Ok(u8::from_le_bytes(self.array(field)?))
    }

    pub fn u16(&mut self, field: &'static str) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array(field)?))
    }

    /// UTF-8 of at most `limit` bytes, free of control characters: it ends up in logs and on terminals.
    pub fn text(&mut self, field: &'static str, limit: usize) -> Result<String> {
        let length = usize::from(self.u16(field)?);
        if length > limit {
            return Err(Error::protocol(self.peer, field, format!("at most {limit} bytes"), length));
        }
        let bytes = self.take(field, length)?;
        match std::str::from_utf8(bytes) {
            Ok(text) if !text.chars().any(char::is_control) => Ok(text.to_owned()),
            _ => {
                Err(Error::protocol(self.peer, field, "printable UTF-8", format!("{:02x?}", clip(bytes, 16))))
            }
        }
    }

    pub fn end(&self, field: &'static str) -> Result<()> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        Err(Error::protocol(self.peer, field, "the end", format!("{} more bytes", self.bytes.len())))
    }
}

fn clip(bytes: &[u8], limit: usize) -> &[u8] {
    &bytes[..bytes.len().min(limit)]
}

/// Appends a length and the text, cut at `limit` bytes (at a character's edge) so that the peer's limit always holds.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str, limit: usize) {
    let text = cut(text, limit);
    // The limits in use are far below 2^16.
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// The longest prefix of `text` that has at most `limit` bytes.
pub(super) fn cut(text: &str, limit: usize) -> &str {
    let mut end = text.len().min(limit);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
