//! Text of the repository's files, and Rust text reduced to what the compiler would see of it.

use std::fs;
use std::path::{Path, PathBuf};

/// One file.
pub struct Source {
    /// From the repository's root, with `/`.
    pub path: String,
    pub text: String,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned() }
    }

    pub fn is_test(&self) -> bool {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        name == "tests.rs" || name.ends_with("_tests.rs")
    }

    /// The Rust code without comments, contents of literals, and items of test builds. Lines keep their numbers.
    pub fn code(&self) -> String {
        without_tests(&without_comments(&self.text))
    }
}

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All files under the given folders or files of the repository whose names end in one of `endings`.
pub fn read(places: &[&str], endings: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    for place in places {
        collect(&root().join(place), endings, &mut found);
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!found.is_empty(), "nothing to check in {places:?}");
    found
}

/// The library and the program.
pub fn library() -> Vec<Source> {
    read(&["src"], &[".rs"])
}

fn collect(place: &Path, endings: &[&str], found: &mut Vec<Source>) {
    if place.is_dir() {
        for entry in fs::read_dir(place).unwrap() {
            collect(&entry.unwrap().path(), endings, found);
        }
    } else if endings.iter().any(|e| place.to_string_lossy().ends_with(e)) {
        let path = place.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        found.push(Source { path, text: fs::read_to_string(place).unwrap() });
    }
}

/// Comments and what stands in literals become blanks; line breaks stay.
fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(hashes) = raw_string(rest, out.chars().next_back()) {
            let end = format!("\"{}", "#".repeat(hashes));
            let body = hashes + 2;
            rest[body..].find(&end).map_or(rest.len(), |at| body + at + end.len())
        } else if c == '"' {
            string_end(rest)
        } else {
            char_literal(rest)
        };
        if skipped == 0 {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            out.extend(rest[..skipped].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = &rest[skipped..];
        }
    }
    out
}

/// The number of hashes when a raw string begins here.
fn raw_string(text: &str, before: Option<char>) -> Option<usize> {
    if before.is_some_and(|c| c.is_alphanumeric() && c != 'b' || c == '_') {
        return None;
    }
    let after = text.strip_prefix('r')?;
    let hashes = after.chars().take_while(|&c| c == '#').count();
    after[hashes..].starts_with('"').then_some(hashes)
}

fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of a character literal; 0 for a lifetime and everything else.
fn char_literal(text: &str) -> usize {
    let mut chars = text.char_indices();
    if chars.next().map(|(_, c)| c) != Some('\'') {
        return 0;
    }
    match (chars.next().map(|(_, c)| c), chars.next()) {
        (Some('\\'), Some((at, escaped))) => {
            let after = at + escaped.len_utf8();
            text[after..].find('\'').map_or(0, |end| after + end + 1)
        }
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 0,
    }
}

fn without_tests(code: &str) -> String {
    let mut out = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = ["#[cfg(test)]", "#[cfg(all(test, "].iter().filter_map(|mark| rest.find(mark)).min()
    {
        out.push_str(&rest[..at]);
        let item = &rest[at..];
        let end = match item.find(['{', ';']) {
            Some(open) if item.as_bytes()[open] == b'{' => open + block_end(&item[open..]),
            Some(semicolon) => semicolon + 1,
            None => item.len(),
        };
        out.extend(item[..end].chars().filter(|&c| c == '\n'));
        rest = &item[end..];
    }
    out.push_str(rest);
    out
}

fn block_end(code: &str) -> usize {
    let mut depth = 0usize;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => return at + 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

/// Where `word` stands as a whole word.
pub fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        !before.is_some_and(part_of_word) && !after.is_some_and(part_of_word)
    })
}

/// The number, from 1, of the line in which byte `at` stands.
pub fn line(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

#[test]
fn code_is_what_the_compiler_sees() {
    let text = r###"
use a; // crate::x
/* crate::y
*/ let s = "crate::z \" {"; let c = '{'; let r = r#"crate::" {"#; fn f<'a>(x: &'a u8) {}
#[cfg(test)]
mod tests { fn g() { let s = "}"; unsafe {} } }
use b;
#[cfg(test)]
#[path = "x.rs"]
mod other;
use c;
"###;
    let code = Source::new("src/x.rs", text).code();
    assert!(!code.contains("crate") && !code.contains("unsafe") && !code.contains("mod"), "{code}");
    assert!(code.contains("fn f<'a>(x: &'a u8) {}"), "{code}");
    assert_eq!(line(&code, code.find("use c").unwrap()), line(text, text.find("use c").unwrap()));
    assert!(["use a", "use b"].iter().all(|u| code.contains(u)));
}

#[test]
fn words_are_whole() {
    assert_eq!(words("unsafe unsafe_op an_unsafe unsafe{", "unsafe").collect::<Vec<_>>(), [0, 27]);
}
