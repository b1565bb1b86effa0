//! What one line of a LIBSVM file may hold.
//!
//! - Nothing, or only a comment: no row. A comment goes from `#` to the end of the line.
//! - The label: a number equal to 1 (label 1), or to 0 or −1 (label 0).
//! - Any number of `index:value`. Values are finite fp32 numbers, rounded to nearest.
//! - A missing value is a feature that the line does not name, or one written `index:` or `index:?`; all three mean the
//!   same. `nan` is refused: it is more often a defect of whatever wrote the file than a missing value.
//! - With indices from 1, they may come in any order (LIBSVM asks for ascending ones) but none twice. Hashed without a
//!   number of features likewise; reduced modulo a number of features, features that meet in one key are added up, as is
//!   usual with feature hashing.

use super::IndexMode;
use crate::data::Dataset;
use crate::types::mix64;

/// The key of a token by which a feature is named, before it is reduced modulo the number of features.
///
/// A token of decimal digits that fits 64 bits is that number, taken as a hash that was made before. Any other token is
/// hashed: the first 8 bytes, little-endian, of its BLAKE3 hash. Both are stable: the keys of a saved model stay valid.
pub fn hash_token(token: &[u8]) -> u64 {
    match parse_u64(token) {
        Some(number) => number,
        None => {
            let mut first = [0; 8];
            first.copy_from_slice(&blake3::hash(token).as_bytes()[..8]);
            u64::from_le_bytes(first)
        }
    }
}

/// What is wrong in a line.
#[derive(Debug)]
pub(super) struct Fault {
    /// Of the first byte of the label, index or value at fault; in bytes, from 0.
    pub column: usize,
    pub expected: String,
    pub found: String,
}

/// Parses lines, keeping its scratch memory between them.
pub(super) struct LineParser {
    mode: IndexMode,
    row: Vec<Entry>,
}

#[derive(Clone, Copy)]
struct Entry {
    key: u64,
    value: f32,
    column: usize,
}

/// A run of bytes without separators, and where it begins in the line.
#[derive(Clone, Copy)]
struct Token<'a> {
    column: usize,
    bytes: &'a [u8],
}

impl LineParser {
    pub fn new(mode: IndexMode) -> LineParser {
        LineParser { mode, row: Vec::new() }
    }

    /// Adds the row of `line` (without LF) to `data`, if there is one.
    pub fn parse(&mut self, line: &[u8], data: &mut Dataset) -> Result<(), Fault> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let comment = line.iter().position(|byte| *byte == b'#').unwrap_or(line.len());
        let mut tokens = Tokens { line: &line[..comment], column: 0 };
        let Some(first) = tokens.next() else { return Ok(()) };
        let label = label(first)?;
        self.row.clear();
        for token in tokens {
            self.feature(token)?;
        }
        self.sort()?;
        data.push_row(label, self.row.iter().map(|entry| (entry.key, entry.value)));
        Ok(())
    }

    fn feature(&mut self, token: Token<'_>) -> Result<(), Fault> {
        // The last colon, so that a hashed token may hold others: `site:example.org:1`.
        let Some(colon) = token.bytes.iter().rposition(|byte| *byte == b':') else {
            return Err(token.fault("index:value"));
        };
        let index = Token { bytes: &token.bytes[..colon], ..token };
        let value = Token { column: token.column + colon + 1, bytes: &token.bytes[colon + 1..] };
        let key = self.key(index)?;
        if value.bytes.is_empty() || value.bytes == b"?" {
            return Ok(());
        }
        let value = finite(value.bytes).ok_or_else(|| {
            value
                .fault("a finite fp32 number (a missing value is left out, or written `index:` or `index:?`)")
        })?;
        self.row.push(Entry { key, value, column: token.column });
        Ok(())
    }

    fn key(&self, index: Token<'_>) -> Result<u64, Fault> {
        match self.mode {
            IndexMode::OneBased { features } => {
                let limit = features.map_or(u64::MAX, u64::from);
                match parse_u64(index.bytes) {
                    Some(number @ 1..) if number <= limit => Ok(number - 1),
                    Some(0) => Err(index.fault("an index from 1 (indices count from 1 here)")),
                    Some(_) => {
                        Err(index.fault(format!("an index from 1 to {limit}, the number of features")))
                    }
                    None => Err(index.fault("an index from 1: decimal digits, at most 2^64 − 1")),
                }
            }
            IndexMode::Hashed { .. } if index.bytes.is_empty() => {
                Err(index.fault("a token before the colon"))
            }
            IndexMode::Hashed { features: None } => Ok(hash_token(index.bytes)),
            // Numbers in a row would fall on keys in a row, and multiples of `features` all on one: mix them first.
            IndexMode::Hashed { features: Some(features) } => Ok(mix64(hash_token(index.bytes)) % features),
        }
    }

    /// Puts the row in ascending order of keys, each once.
    fn sort(&mut self) -> Result<(), Fault> {
        if self.row.windows(2).all(|pair| pair[0].key < pair[1].key) {
            return Ok(());
        }
        // Stable: of two entries with one key the earlier stays in front, so sums and faults follow the line's order.
        self.row.sort_by_key(|entry| entry.key);
        if let IndexMode::Hashed { features: Some(_) } = self.mode {
            return self.add_up();
        }
        let repeated =
            self.row.windows(2).filter(|pair| pair[0].key == pair[1].key).map(|pair| pair[1].column);
        match repeated.min() {
            None => Ok(()),
            Some(column) => Err(Fault {
                column,
                expected: "each index once in a line".into(),
                found: "one that came before".into(),
            }),
        }
    }

    /// Adds up the values of entries with the same key.
    fn add_up(&mut self) -> Result<(), Fault> {
        self.row.dedup_by(|later, first| {
            let same = later.key == first.key;
            if same {
                first.value += later.value;
            }
            same
        });
        match self.row.iter().find(|entry| !entry.value.is_finite()) {
            None => Ok(()),
            Some(entry) => Err(Fault {
                column: entry.column,
                expected: "a finite sum of the values of features that share a key".into(),
                found: entry.value.to_string(),
            }),
        }
    }
}

fn label(token: Token<'_>) -> Result<f32, Fault> {
    match number::<f64>(token.bytes) {
        Some(1.0) => Ok(1.0),
        Some(-1.0 | 0.0) => Ok(0.0),
        _ => Err(token.fault("a label: −1, 0 or +1")),
    }
}

/// A finite fp32 number, rounded to nearest.
fn finite(bytes: &[u8]) -> Option<f32> {
    /// Every number of this many digits is below 2^24, so fp32 holds it exactly.
    const EXACT_DIGITS: usize = 7;
    match parse_u64(bytes) {
        // Most data sets are full of ones: spare them the general parser.
        Some(whole) if bytes.len() <= EXACT_DIGITS => Some(whole as f32),
        _ => number(bytes).filter(|number: &f32| number.is_finite()),
    }
}

fn number<T: std::str::FromStr>(bytes: &[u8]) -> Option<T> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// A number of decimal digits and nothing else.
fn parse_u64(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() {
        return None;
    }
    bytes.iter().try_fold(0u64, |number, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        number.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

impl Token<'_> {
    fn fault(&self, expected: impl Into<String>) -> Fault {
        const SHOWN: usize = 40;
        let shown = &self.bytes[..self.bytes.len().min(SHOWN)];
        let found = match self.bytes.len() {
            0 => "nothing".into(),
            length if length <= SHOWN => format!("`{}`", shown.escape_ascii()),
            length => format!("`{}…` ({length} bytes)", shown.escape_ascii()),
        };
        Fault { column: self.column, expected: expected.into(), found }
    }
}

struct Tokens<'a> {
    line: &'a [u8],
    column: usize,
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        let separator = |byte: &u8| matches!(byte, b' ' | b'\t');
        let rest = &self.line[self.column..];
        let begin = self.column + rest.iter().position(|byte| !separator(byte))?;
        let length = self.line[begin..].iter().position(separator).unwrap_or(self.line.len() - begin);
        self.column = begin + length;
        Some(Token { column: begin, bytes: &self.line[begin..begin + length] })
    }
}
