//! Parsing against an oracle, every cut of a file, and the position of every fault.

use std::io::Write;
use std::path::Path;

use proptest::prelude::*;

use super::*;

const ONE_BASED: IndexMode = IndexMode::OneBased { features: None };

fn hashed(features: u64) -> IndexMode {
    IndexMode::Hashed { features: NonZeroU64::new(features) }
}

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn parse(bytes: &[u8], mode: IndexMode) -> Result<Dataset> {
    read(file(bytes).path(), mode)
}

/// All parts joined, each read with `threads` threads in units of `chunk` bytes.
fn join(path: &Path, parts: u64, threads: u64, chunk: usize, mode: IndexMode) -> Result<Dataset> {
    let source = Source::open(path, chunk)?;
    let mut all = Dataset::default();
    for part in 0..parts {
        all.append(&source.read_part(part, parts, mode, threads)?);
    }
    Ok(all)
}

/// A parser for well-formed text with indices from 1, written for shortness.
fn oracle(text: &str) -> Dataset {
    let mut data = Dataset::default();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap().split_whitespace();
        let Some(label) = words.next() else { continue };
        let label = if label.parse::<f32>().unwrap() > 0.0 { 1.0 } else { 0.0 };
        let mut row = std::collections::BTreeMap::new();
        for word in words {
            let (index, value) = word.split_once(':').unwrap();
            if !["", "?"].contains(&value) {
                row.insert(index.parse::<u64>().unwrap() - 1, value.parse::<f32>().unwrap());
            }
        }
        data.push_row(label, row.into_iter());
    }
    data
}

/// One line: a row with separators, missing values and comment as they come; or a comment; or nothing.
fn any_line() -> impl Strategy<Value = String> {
    let label = prop::sample::select(vec!["+1", "-1", "1", "0", "1.0", "-1.0", "0.0", "+1.0"]);
    let value = prop_oneof![
        Just(String::new()),
        Just("?".to_string()),
        Just("1".to_string()),
        (0u32..30_000_000).prop_map(|v| v.to_string()),
        (-1e6f32..1e6).prop_map(|v| v.to_string()),
        (-1e-30f32..1e30).prop_map(|v| format!("{v:e}")),
    ];
    let features =
        prop::collection::btree_map(1u64..400, value, 0..12).prop_map(Vec::from_iter).prop_shuffle();
    let gap = || prop::sample::select(vec![" ", "  ", "\t", " \t "]);
    let tail = prop::sample::select(vec!["", " ", "\t", " # note 3:4", "#", "\r", " \r", " #\r"]);
    let row = (prop::sample::select(vec!["", " "]), label, features, gap(), tail).prop_map(
        |(lead, label, row, gap, tail)| {
            let features: String = row.iter().map(|(index, value)| format!("{gap}{index}:{value}")).collect();
            format!("{lead}{label}{features}{tail}")
        },
    );
    let other =
        prop::sample::select(vec!["", " ", "\r", "# a comment", "  # 1 1:1", "#\r"]).prop_map(String::from);
    prop_oneof![4 => row, 1 => other]
}

fn any_text() -> impl Strategy<Value = String> {
    (prop::collection::vec(any_line(), 0..20), any::<bool>())
        .prop_map(|(lines, ended)| lines.join("\n") + if ended { "\n" } else { "" })
}

proptest! {
    #[test]
    fn any_cut_reads_every_line_once(
        text in any_text(), parts in 1u64..40, threads in 1u64..4, chunk in 1usize..80
    ) {
        let file = file(text.as_bytes());
        let expected = oracle(&text);
        prop_assert_eq!(&read(file.path(), ONE_BASED).unwrap(), &expected);
        prop_assert_eq!(&join(file.path(), parts, threads, chunk, ONE_BASED).unwrap(), &expected);
    }

    #[test]
    fn a_fault_has_its_position_in_the_whole_file(
        before in prop::collection::vec(any_line(), 0..12), after in prop::collection::vec(any_line(), 0..12),
        row in "1 [1-4]:2( 9:1){0,9} ", parts in 1u64..9, threads in 1u64..4, chunk in 1usize..80
    ) {
        // Later lines are at fault as well: the first one counts.
        let text = [before.clone(), vec![format!("{row}77:x"), "bad".into()], after].concat().join("\n");
        let file = file(text.as_bytes());
        let error = join(file.path(), parts, threads, chunk, ONE_BASED).unwrap_err();
        let Error::Data { line, column, found, .. } = error else { panic!("{error}") };
        // The row may also repeat index 9, which is found only after the whole line was understood.
        prop_assert_eq!((line, column), (before.len() as u64 + 1, row.len() as u64 + 4));
        prop_assert_eq!(found, "`x`");
    }

    #[test]
    fn no_bytes_make_it_panic_and_faults_lie_in_the_file(
        bytes in prop::collection::vec(prop::sample::select(b"01:.+-# \t\r\n?xeN\xff".to_vec()), 0..60),
        features in 0u64..5, parts in 1u64..5
    ) {
        let file = file(&bytes);
        for mode in [ONE_BASED, IndexMode::OneBased { features: NonZeroU64::new(features) }, hashed(features)] {
            let whole = join(file.path(), 1, 1, 7, mode);
            match (&whole, join(file.path(), parts, 2, 3, mode)) {
                (Ok(whole), Ok(cut)) => prop_assert_eq!(whole, &cut),
                (Err(whole), Err(cut)) => prop_assert_eq!(whole.to_string(), cut.to_string()),
                (whole, cut) => prop_assert!(false, "{:?} {:?}", whole, cut),
            }
            if let Err(Error::Data { line, column, .. }) = whole {
                let lines: Vec<_> = bytes.split(|byte| *byte == b'\n').collect();
                prop_assert!(line >= 1 && column >= 1 && column <= lines[line as usize - 1].len() as u64 + 1);
            }
        }
    }
}

#[test]
fn rows_and_labels_by_hand() {
    let text =
        b"# head\n\n-1 3:1 11:0.5 # tail\r\n+1\n0 2:-4e-1\t1:7\n1.0 5: 6:? 7:0\n-1.0 18446744073709551615:1";
    let data = parse(text, ONE_BASED).unwrap();
    assert_eq!(data.labels, [0.0, 1.0, 0.0, 1.0, 0.0]);
    assert_eq!(data.offsets, [0, 2, 2, 4, 5, 6]);
    assert_eq!(data.keys, [2, 10, 0, 1, 6, u64::MAX - 1]);
    assert_eq!(data.values, [1.0, 0.5, 7.0, -0.4, 0.0, 1.0]);
}

#[test]
fn empty_files_have_no_rows() {
    for text in ["", "\n", "\r\n", "#", "\n\n# x"] {
        let file = file(text.as_bytes());
        assert_eq!(join(file.path(), 3, 2, 1, ONE_BASED).unwrap(), Dataset::default(), "{text:?}");
    }
}

#[test]
fn a_line_over_many_parts_belongs_to_the_first() {
    let long: String = (1..=5000).map(|index| format!(" {index}:1")).collect();
    let text = format!("1{long}\n-1 1:1\n");
    let file = file(text.as_bytes());
    let parts: Vec<_> =
        (0..7).map(|part| read_part(file.path(), part, 7, ONE_BASED).unwrap().rows()).collect();
    assert_eq!(parts, [1, 0, 0, 0, 0, 0, 1]);
}

#[test]
fn large_files_are_read_by_several_threads_with_the_same_result() {
    let text: String =
        (0..120_000).map(|row| format!("{} {}:1 {}:2.5\n", row % 2, row + 1, row + 9)).collect();
    assert!(text.len() as u64 > 2 * BYTES_PER_THREAD);
    let file = file(text.as_bytes());
    let data = read(file.path(), ONE_BASED).unwrap();
    assert_eq!(data, oracle(&text));
    assert_eq!(join(file.path(), 1, 5, CHUNK_BYTES, ONE_BASED).unwrap(), data);
    assert_eq!(join(file.path(), 3, 1, CHUNK_BYTES, ONE_BASED).unwrap(), data);
}

#[test]
fn faults_name_line_column_and_what_was_expected() {
    let limited = IndexMode::OneBased { features: NonZeroU64::new(9) };
    // Text, mode, line, column, part of what was expected, part of what was found.
    type Case = (&'static [u8], IndexMode, u64, u64, &'static str, &'static str);
    let table: &[Case] = &[
        (b"x 1:1", ONE_BASED, 1, 1, "label", "`x`"),
        (b"2 1:1", ONE_BASED, 1, 1, "label", "`2`"),
        (b"nan 1:1", ONE_BASED, 1, 1, "label", "`nan`"),
        (b"1:1 2:1", ONE_BASED, 1, 1, "label", "`1:1`"),
        (b"\n# c\n  maybe", ONE_BASED, 3, 3, "label", "`maybe`"),
        (b"1 1:1\n1 5", ONE_BASED, 2, 3, "index:value", "`5`"),
        (b"1 1:1\r\n1\t\t0:1", ONE_BASED, 2, 4, "from 1", "`0`"),
        (b"1 0:", ONE_BASED, 1, 3, "from 1", "`0`"),
        (b"1 a:1", ONE_BASED, 1, 3, "decimal digits", "`a`"),
        (b"1 -3:1", ONE_BASED, 1, 3, "decimal digits", "`-3`"),
        (b"1 +3:1", ONE_BASED, 1, 3, "decimal digits", "`+3`"),
        (b"1 :1", ONE_BASED, 1, 3, "decimal digits", "nothing"),
        (b"1 qid:3 1:1", ONE_BASED, 1, 3, "decimal digits", "`qid`"),
        (b"1 18446744073709551616:1", ONE_BASED, 1, 3, "2^64", "`18446744073709551616`"),
        (b"1 9:1 10:1", limited, 1, 7, "from 1 to 9", "`10`"),
        (b"1 1:2 3:1.5x", ONE_BASED, 1, 9, "finite", "`1.5x`"),
        (b"1 1:nan", ONE_BASED, 1, 5, "finite", "`nan`"),
        (b"1 1:-inf", ONE_BASED, 1, 5, "finite", "`-inf`"),
        (b"1 1:1e39", ONE_BASED, 1, 5, "finite", "`1e39`"),
        (b"1 1:\xff\x00", ONE_BASED, 1, 5, "finite", "`\\xff\\x00`"),
        (b"1 1:1\r2:1", ONE_BASED, 1, 3, "decimal digits", "`1:1\\r2`"),
        (b"1 4:1 2:1 4:2 2:1", ONE_BASED, 1, 11, "once", "before"),
        (b"1 a:1 b:1 a:2", hashed(0), 1, 11, "once", "before"),
        (b"1 :1", hashed(0), 1, 3, "token", "nothing"),
        (b"1 a:x", hashed(8), 1, 5, "finite", "`x`"),
        (b"1 a:3e38 b:3e38", hashed(1), 1, 3, "finite sum", "inf"),
        (b"0 1:1\n0 1:1\n0 1:1\n0 1:1 1", ONE_BASED, 4, 7, "index:value", "`1`"),
    ];
    for (text, mode, line, column, expected, found) in table {
        let error = parse(text, *mode).unwrap_err();
        let message = error.to_string();
        let Error::Data { line: l, column: c, expected: e, found: f, file: name } = error else {
            panic!("{message}")
        };
        assert_eq!((l, c), (*line, *column), "{message}");
        assert!(e.contains(expected) && f.contains(found), "{message}");
        assert!(message.contains(&format!("{name}:{line}:{column}: ")), "{message}");
    }
}

#[test]
fn long_tokens_are_shortened_in_messages() {
    let text = format!("1 1:{}", "z".repeat(100_000));
    let message = parse(text.as_bytes(), ONE_BASED).unwrap_err().to_string();
    assert!(message.contains("(100000 bytes)") && message.len() < 400, "{message}");
}

#[test]
fn hashed_tokens_have_fixed_keys() {
    assert_eq!(hash_token(b"18446744073709551615"), u64::MAX);
    assert_eq!(hash_token(b"0"), 0);
    // The first 8 bytes of BLAKE3("abc"): 64 37 b3 ac 38 46 51 33.
    assert_eq!(hash_token(b"abc"), u64::from_le_bytes([0x64, 0x37, 0xb3, 0xac, 0x38, 0x46, 0x51, 0x33]));
    let data = parse(b"1 user:abc:2 77:1 0:3", hashed(0)).unwrap();
    let mut expected = [(hash_token(b"user:abc"), 2.0), (77, 1.0), (0, 3.0)];
    expected.sort_by_key(|entry| entry.0);
    assert_eq!(data.keys, expected.iter().map(|entry| entry.0).collect::<Vec<_>>());
    assert_eq!(data.values, expected.iter().map(|entry| entry.1).collect::<Vec<_>>());
}

#[test]
fn features_that_meet_in_one_key_are_added_up() {
    let data = parse(b"1 a:1 b:2 c:4\n0 a:\n", hashed(1)).unwrap();
    assert_eq!((data.keys, data.values, data.offsets), (vec![0], vec![7.0], vec![0, 1, 1]));
    let spread = parse(b"1 0:1 64:1 128:1 192:1", hashed(64)).unwrap();
    assert!(spread.keys.len() > 1, "multiples of the number of features all met in one key");
    assert!(spread.keys.iter().all(|key| *key < 64));
}

#[test]
fn what_is_no_file_or_no_part_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    assert!(matches!(read(directory.path(), ONE_BASED), Err(Error::Config { .. })));
    assert!(matches!(read(&directory.path().join("none"), ONE_BASED), Err(Error::Io { .. })));
    assert!(matches!(read_part(file(b"1").path(), 2, 2, ONE_BASED), Err(Error::Misuse { .. })));
    assert!(matches!(read_part(file(b"1").path(), 0, 0, ONE_BASED), Err(Error::Misuse { .. })));
}

#[test]
fn a_file_that_shrinks_is_an_error() {
    let file = file(&b"1 1:1\n".repeat(100));
    let source = Source::open(file.path(), 64).unwrap();
    file.as_file().set_len(300).unwrap();
    let error = source.read_part(0, 1, ONE_BASED, 1).unwrap_err();
    assert!(matches!(error, Error::Io { operation: "read", .. }), "{error}");
}
