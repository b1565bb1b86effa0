//! Cuts a child's output into lines that can be mixed with those of others. Sans-io.

/// The longest line that is held back until its end arrives, in bytes; longer ones are passed on in such pieces.
pub(super) const LONGEST_LINE: usize = 64 * 1024;

/// The unfinished line of one stream, and what to write before each line.
pub(super) struct LineCutter {
    prefix: Option<Vec<u8>>,
    held: Vec<u8>,
}

impl LineCutter {
    /// A cutter that writes `[name] ` before each line, or passes the bytes on unchanged.
    pub(super) fn new(name: Option<&str>) -> LineCutter {
        LineCutter { prefix: name.map(|name| format!("[{name}] ").into_bytes()), held: Vec::new() }
    }

    /// Takes what the child wrote and appends the lines that are complete to `out`.
    pub(super) fn push(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            let room = &bytes[..bytes.len().min(LONGEST_LINE - self.held.len())];
            match room.iter().position(|&byte| byte == b'\n') {
                Some(end) => {
                    self.held.extend_from_slice(&bytes[..=end]);
                    bytes = &bytes[end + 1..];
                    self.emit(out);
                }
                None => {
                    self.held.extend_from_slice(room);
                    bytes = &bytes[room.len()..];
                    if self.held.len() >= LONGEST_LINE {
                        self.emit(out);
                    }
                }
            }
        }
    }

    /// The stream ended: appends the last line even if it has no end.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>) {
        if !self.held.is_empty() {
            self.emit(out);
        }
    }

    fn emit(&mut self, out: &mut Vec<u8>) {
        if let Some(prefix) = &self.prefix {
            out.extend_from_slice(prefix);
        }
        out.extend_from_slice(&self.held);
        // A prefixed piece is a line of its own, or the next child's prefix would stand in the middle of it.
        if self.prefix.is_some() && !self.held.ends_with(b"\n") {
            out.push(b'\n');
        }
        self.held.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relay(name: Option<&str>, parts: &[&[u8]]) -> Vec<u8> {
        let (mut cutter, mut out) = (LineCutter::new(name), Vec::new());
        for part in parts {
            cutter.push(part, &mut out);
        }
        cutter.finish(&mut out);
        out
    }

    #[test]
    fn lines_are_prefixed_however_they_arrive() {
        assert_eq!(
            relay(Some("worker 0"), &[b"a\nb", b"c\n", b"\nlast"]),
            b"[worker 0] a\n[worker 0] bc\n[worker 0] \n[worker 0] last\n"
        );
    }

    #[test]
    fn an_unfinished_line_is_held_back() {
        let (mut cutter, mut out) = (LineCutter::new(Some("w")), Vec::new());
        cutter.push(b"half", &mut out);
        assert!(out.is_empty());
    }

    #[test]
    fn binary_bytes_pass_unchanged_without_prefix() {
        let bytes: Vec<u8> = (0..=255u8).cycle().take(3 * LONGEST_LINE + 17).collect();
        assert_eq!(relay(None, &[&bytes[..70_001], &bytes[70_001..]]), bytes);
        let endless = vec![b'x'; 2 * LONGEST_LINE + 5];
        assert_eq!(relay(None, &[&endless]), endless);
    }

    #[test]
    fn an_overlong_line_is_cut_and_not_kept() {
        let (mut cutter, mut out) = (LineCutter::new(Some("w")), Vec::new());
        cutter.push(&vec![b'x'; LONGEST_LINE + 3], &mut out);
        assert_eq!(out.len(), 4 + LONGEST_LINE + 1);
        assert_eq!(cutter.held, b"xxx");
    }
}
