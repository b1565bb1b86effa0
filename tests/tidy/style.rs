//! Size, unfinished work, and what may not be allowed without a reason.

use crate::assert_none;
use crate::source::{Source, library, line, read, root, words};

const MOST_LINES: usize = 800;

/// What people wrote.
fn everything() -> Vec<Source> {
    let mut all = read(
        &["src", "tests", "benches", "ffi", "scripts", "docs", "build.rs"],
        &[".rs", ".c", ".h", ".sh", ".py", ".md"],
    );
    all.extend(read(&["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"], &[".md"]));
    all.extend(read(&[".ci"], &[""]));
    all
}

fn size(sources: &[Source]) -> Vec<String> {
    let lines = |s: &Source| s.text.lines().count();
    let long = sources.iter().filter(|s| lines(s) > MOST_LINES);
    long.map(|s| format!("{}: {} lines, {MOST_LINES} is the most", s.path, lines(s))).collect()
}

fn unfinished(sources: &[Source]) -> Vec<String> {
    // Written so that this file does not find itself.
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("to", "do!")];
    let marks = marks.into_iter().chain([concat!("unimplemented", "!"), concat!("dbg", "!(")]);
    let mut complaints = Vec::new();
    for mark in marks {
        for source in sources {
            let found = source.text.find(mark).map(|at| line(&source.text, at));
            complaints.extend(found.map(|at| format!("{}:{at}: {mark}", source.path)));
        }
    }
    complaints
}

/// A lint that is switched off says why: on its line or on the one above.
fn silent_allows(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources {
        let lines: Vec<&str> = source.text.lines().collect();
        let code = source.code();
        for (at, text) in code.lines().enumerate() {
            let off = text.contains("[allow(") || text.contains("[expect(");
            let above = at > 0 && lines[at - 1].trim_start().starts_with("//");
            if off && !lines[at].contains("//") && !above {
                complaints.push(format!("{}:{}: allowed without a reason", source.path, at + 1));
            }
        }
    }
    complaints
}

fn headless(sources: &[Source]) -> Vec<String> {
    let headless = sources.iter().filter(|s| !s.is_test() && !s.text.starts_with("//!"));
    headless.map(|s| format!("{}: begins without a line that says what it is", s.path)).collect()
}

/// A library never ends its process.
fn exits(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources {
        let code = source.code();
        for word in ["exit", "abort"] {
            for at in words(&code, word).filter(|&at| code[..at].ends_with("process::")) {
                complaints.push(format!("{}:{}: ends the process", source.path, line(&code, at)));
            }
        }
    }
    complaints
}

/// The lints that hold the whole code to account are on.
fn missing_lints(manifest: &str) -> Vec<String> {
    let lints = ["undocumented_unsafe_blocks", "unwrap_used", "expect_used", "unsafe_op_in_unsafe_fn"];
    let denied = |lint: &str| manifest.lines().any(|l| l.trim() == format!("{lint} = \"deny\""));
    lints.iter().filter(|l| !denied(l)).map(|l| format!("Cargo.toml does not deny {l}")).collect()
}

#[test]
fn files_can_be_read_in_one_go() {
    assert_none(size(&everything()));
}

#[test]
fn a_long_file_is_found() {
    let long = |lines: usize| size(&[Source::new("src/x.rs", &"x\n".repeat(lines))]).len();
    assert_eq!((long(MOST_LINES), long(MOST_LINES + 1)), (0, 1));
}

#[test]
fn nothing_is_left_for_later() {
    assert_none(unfinished(&everything()));
}

#[test]
fn unfinished_work_is_found() {
    let text = concat!("fn f() {\n    // TO", "DO: write\n}");
    assert_eq!(unfinished(&[Source::new("src/x.rs", text)]).len(), 1);
}

#[test]
fn what_is_allowed_has_a_reason() {
    assert_none(silent_allows(&library()));
}

#[test]
fn a_silent_allow_is_found() {
    let plant = |text: &str| silent_allows(&[Source::new("src/x.rs", text)]).len();
    assert_eq!(plant("#[allow(clippy::unwrap_used)]\nfn f() {}"), 1);
    assert_eq!(plant("#[allow(clippy::unwrap_used)] // checked above\nfn f() {}"), 0);
    assert_eq!(plant("// Checked above.\n#[allow(clippy::unwrap_used)]\nfn f() {}"), 0);
}

#[test]
fn every_file_says_what_it_is() {
    assert_none(headless(&library()));
}

#[test]
fn a_file_without_head_is_found() {
    assert_eq!(
        headless(&[Source::new("src/x.rs", "use a;\n"), Source::new("src/y.rs", "//! Y.\n")]).len(),
        1
    );
}

#[test]
fn the_library_never_ends_its_process() {
    assert_none(exits(&library()));
}

#[test]
fn an_exit_is_found() {
    assert_eq!(exits(&[Source::new("src/x.rs", "fn f() { std::process::exit(1) }")]).len(), 1);
}

#[test]
fn the_strict_lints_are_on() {
    assert_none(missing_lints(&std::fs::read_to_string(root().join("Cargo.toml")).unwrap()));
}

#[test]
fn a_missing_lint_is_found() {
    assert_eq!(missing_lints("unwrap_used = \"deny\"\nexpect_used = \"warn\"\n").len(), 3);
}
