//! Documents keep up with the code: places to read exist, links lead somewhere, flags are real.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use windlass::proto::handshake::{VERSION_MAJOR, VERSION_MINOR};

use crate::assert_none;
use crate::source::{Source, read, root, words};

/// The rows of the reading list: `| 1 | `src/file.rs` | `Type::method` | why |`.
fn reading_list(text: &str) -> Vec<(String, String)> {
    let section = text.split("\n## ").find(|s| s.starts_with("Read the code in this order")).unwrap_or("");
    let code = |cell: &str| cell.trim().trim_matches('`').to_owned();
    let rows = section.lines().map(|l| l.split('|').collect::<Vec<_>>());
    rows.filter(|cells| cells.len() == 6 && cells[1].trim().parse::<u32>().is_ok())
        .map(|cells| (code(cells[2]), code(cells[3])))
        .collect()
}

/// Whether `code` declares `item`, which is `name` or `Owner::name`.
fn declares(code: &str, item: &str) -> bool {
    let kinds = ["fn", "struct", "enum", "trait", "mod", "const", "type", "macro_rules!"];
    let declared = |name: &str| {
        words(code, name).any(|at| kinds.iter().any(|kind| code[..at].trim_end().ends_with(kind)))
    };
    match item.split_once("::") {
        None => declared(item),
        Some((owner, name)) => {
            let block = code.split("\nimpl").skip(1).find(|b| {
                let head = b.split('{').next().unwrap_or("");
                words(head, owner).next().is_some() && b.contains(&format!("fn {name}"))
            });
            block.is_some() || declared(owner) && declared(name)
        }
    }
}

fn unresolved(list: &[(String, String)], file: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, item) in list {
        match file(path) {
            None => complaints.push(format!("ARCHITECTURE.md: {path} is not there")),
            Some(text) if !declares(&Source::new(path, &text).code(), item) => {
                complaints.push(format!("ARCHITECTURE.md: {path} declares no {item}"));
            }
            Some(_) => {}
        }
    }
    complaints
}

/// Relative links of Markdown, and paths of the repository in backquotes, that lead nowhere.
fn dead_links(documents: &[Source], exists: impl Fn(&str) -> bool) -> Vec<String> {
    let mut complaints = Vec::new();
    for document in documents {
        let folder = document.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let links = document.text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(l, _)| l);
        for link in links.filter(|l| !l.contains("://") && !l.starts_with('#')) {
            let target = link.split('#').next().unwrap_or("");
            let target = if folder.is_empty() { target.to_owned() } else { format!("{folder}/{target}") };
            if !exists(&target) {
                complaints.push(format!("{}: the link {link} leads nowhere", document.path));
            }
        }
        let quoted = document.text.split('`').skip(1).step_by(2);
        let places = ["src/", "tests/", "docs/", "scripts/", "benches/", "ffi/", ".ci/"];
        for path in quoted.filter(|q| places.iter().any(|p| q.starts_with(p)) && !q.contains([' ', '*', '…']))
        {
            let path = path.split("::").next().unwrap_or(path);
            if !exists(path) {
                complaints.push(format!("{}: {path} is not there", document.path));
            }
        }
    }
    complaints
}

/// The commands that a document tells its readers to type: subcommand and long flags.
fn commands(text: &str) -> Vec<(String, Vec<String>)> {
    let blocks =
        text.split("```").skip(1).step_by(2).filter(|b| !b.starts_with("rust") && !b.starts_with("toml"));
    let mut found = Vec::new();
    for line in blocks.flat_map(|b| b.replace("\\\n", " ").lines().map(str::to_owned).collect::<Vec<_>>()) {
        let line = line.split(" #").next().unwrap_or("").to_owned();
        let Some((_, ours)) = line
            .split_once("cargo run --release -- ")
            .or_else(|| line.split_once("cargo run --release --features verbs -- "))
            .or_else(|| line.split_once("windlass "))
        else {
            continue;
        };
        let ours = ours.split(" -- ").next().unwrap_or("");
        let words: Vec<&str> = ours.split_whitespace().collect();
        let subcommand: Vec<&str> =
            words.iter().copied().take_while(|w| !w.starts_with('-') && !w.starts_with('>')).collect();
        let flags = words.iter().filter(|w| w.starts_with("--"));
        let flags = flags.map(|f| f.split('=').next().unwrap_or(f).to_owned()).collect();
        found.push((subcommand.join(" "), flags));
    }
    found
}

/// The long flags that `windlass SUBCOMMAND --help` names; `None` when there is no such subcommand.
fn help(subcommand: &str) -> Option<BTreeSet<String>> {
    let output = Command::new(env!("CARGO_BIN_EXE_windlass"))
        .args(subcommand.split_whitespace())
        .arg("--help")
        .output()
        .expect("the program starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let flag = |w: &str| w.trim_end_matches(|c: char| !c.is_alphanumeric()).to_owned();
    output
        .status
        .success()
        .then(|| text.split_whitespace().filter(|w| w.starts_with("--")).map(flag).collect())
}

fn unknown_flags(text: &str, help: impl Fn(&str) -> Option<BTreeSet<String>>) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut all = BTreeSet::new();
    for (subcommand, flags) in commands(text) {
        let Some(known) = help(&subcommand) else {
            complaints.push(format!("there is no `windlass {subcommand}`"));
            continue;
        };
        let unknown = flags.iter().filter(|f| !known.contains(*f));
        complaints.extend(unknown.map(|f| format!("`windlass {subcommand}` has no {f}")));
        all.extend(known);
    }
    // Flags in running text, where the subcommand is not always said.
    let quoted =
        text.split("```").step_by(2).flat_map(|t| t.split('`').skip(1).step_by(2).collect::<Vec<_>>());
    for words in quoted.filter(|q| q.starts_with("--")) {
        let flag = words.split([' ', '=']).next().unwrap_or(words);
        if !all.contains(flag) {
            complaints.push(format!("no command shown here has {flag}"));
        }
    }
    complaints
}

#[test]
fn the_reading_list_leads_to_code() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let list = reading_list(&text);
    assert!(list.len() >= 15, "only {} rows of the reading list were understood", list.len());
    assert_none(unresolved(&list, |path| fs::read_to_string(root().join(path)).ok()));
}

#[test]
fn a_stale_reading_list_is_found() {
    let text = "# A\n\n## Read the code in this order\n\n| | file | item | why |\n| --- | --- | --- | --- |
| 1 | `src/a.rs` | `Gate::push` | x |\n| 2 | `src/a.rs` | `Gone` | x |\n| 3 | `src/b.rs` | `Gate` | x |\n\n## Next\n";
    let list = reading_list(text);
    assert_eq!(list.len(), 3);
    let code = "pub struct Gate<P>(P);\nimpl<P> Gate<P> {\n    pub fn push(&self) {}\n}\n// struct Gone\n";
    let complaints = unresolved(&list, |path| (path == "src/a.rs").then(|| code.to_owned()));
    assert_eq!(complaints.len(), 2, "{complaints:?}");
}

#[test]
fn links_lead_somewhere() {
    let mut documents = read(&["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"], &[".md"]);
    documents.extend(read(&["docs"], &[".md"]));
    assert_none(dead_links(&documents, |path| root().join(path).exists()));
}

#[test]
fn a_dead_link_is_found() {
    let text = "See [a](b.md#c), [d](https://e), `src/gone.rs`, `src/here.rs` and `docs/here.md`.";
    let exists = |path: &str| path.ends_with("here.rs") || path == "docs/here.md";
    assert_eq!(dead_links(&[Source::new("docs/x.md", text)], exists).len(), 2);
}

#[test]
fn every_flag_of_the_readme_exists() {
    for (document, least) in [("README.md", 8), ("docs/rdma.md", 6)] {
        let text = fs::read_to_string(root().join(document)).unwrap();
        assert!(commands(&text).len() >= least, "{document}: {:?}", commands(&text));
        assert_none(unknown_flags(&text, help));
    }
}

#[test]
fn an_unknown_flag_is_found() {
    let text = "```sh\ncargo run --release -- train lr --epochs 3 \\\n    --gone 1\n./windlass gone\n```\n`--none` `--epochs 4`";
    assert_eq!(
        unknown_flags(text, |sub| (sub == "train lr").then(|| BTreeSet::from(["--epochs".to_owned()]))),
        [
            "`windlass train lr` has no --gone",
            "there is no `windlass gone`",
            "no command shown here has --none"
        ]
    );
}

/// What `text` gives as the names of tests, in backquotes, and no file declares.
fn missing_tests(text: &str, sources: &[Source]) -> Vec<String> {
    let name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    // Tests are named by sentences.
    let sentence = |quoted: &&str| quoted.chars().all(name) && quoted.matches('_').count() >= 2;
    let quoted = text.split('`').skip(1).step_by(2).filter(sentence).filter(|q| !q.starts_with("ibv_"));
    let gone = |test: &&str| sources.iter().all(|s| !s.text.contains(&format!("fn {test}(")));
    quoted.filter(gone).map(|test| format!("there is no test {test}")).collect()
}

#[test]
fn tests_that_a_document_names_exist() {
    let text = fs::read_to_string(root().join("docs/rdma.md")).unwrap();
    let table = text.split("\n## ").find(|s| s.starts_with("What shows that each rule holds")).unwrap();
    assert!(table.matches('|').count() > 100);
    assert_none(missing_tests(table, &read(&["src", "tests"], &[".rs"])));
}

#[test]
fn a_test_that_is_gone_is_found() {
    let text = "`all_is_well`, `all_was_well` (`tests/x_y_z.rs`); `ibv_post_send`, `on_verbs`";
    let sources = [Source::new("src/x.rs", "fn all_is_well() {}")];
    assert_eq!(missing_tests(text, &sources), ["there is no test all_was_well"]);
}

/// What a description of the handshake says its version is, where that is not `version`.
fn stale_version(text: &str, version: &str) -> Option<String> {
    let said = text.split_once("The present version is ").and_then(|(_, rest)| rest.split_once(';'));
    let said = said.map_or("nothing", |(said, _)| said);
    (said != version).then(|| format!("the version of the handshake is {version}, not {said}"))
}

#[test]
fn the_document_of_the_wire_has_the_version_of_the_code() {
    let text = fs::read_to_string(root().join("docs/wire.md")).unwrap();
    assert_none(stale_version(&text, &format!("{VERSION_MAJOR}.{VERSION_MINOR}")).into_iter().collect());
}

#[test]
fn a_stale_version_is_found() {
    let text = "The present version is 4.0; others";
    assert_eq!(stale_version(text, "4.0"), None);
    assert_eq!(stale_version(text, "4.1").unwrap(), "the version of the handshake is 4.1, not 4.0");
    assert_eq!(stale_version("", "4.0").unwrap(), "the version of the handshake is 4.0, not nothing");
}

/// Examples that are only compiled, or not even that, in the library's documents. One that must not compile (`compile_fail`) is tried.
fn idle_examples(sources: &[Source]) -> Vec<String> {
    let fenced = |line: &&str| line.trim_start_matches(['/', '!', ' ']).starts_with("```");
    let idle = |line: &&str| ["no_run", "ignore"].iter().any(|word| line.contains(word));
    let complain = |source: &Source| {
        let found = source.text.lines().filter(fenced).filter(idle);
        found.map(|line| format!("{}: {line}: this example does not run", source.path)).collect::<Vec<_>>()
    };
    sources.iter().flat_map(complain).collect()
}

#[test]
fn every_example_of_the_documents_runs() {
    assert_none(idle_examples(&read(&["src"], &[".rs"])));
}

#[test]
fn an_example_that_does_not_run_is_found() {
    let source = |fence: &str| [Source::new("src/x.rs", &format!("/// {fence}\n/// f();\n/// ```\n"))];
    assert_eq!(idle_examples(&source("```no_run")).len(), 1);
    assert_eq!(idle_examples(&source("```rust,ignore")).len(), 1);
    assert_eq!(idle_examples(&source("```")).len(), 0);
}
