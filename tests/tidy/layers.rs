//! Who may use whom: the table of ARCHITECTURE.md, and which crates and words belong to which files.

use crate::assert_none;
use crate::source::{Source, library, line, words};

/// From the bottom. A module uses only modules of lower layers, and its own layer's unless they are listed below.
const LAYERS: [&[&str]; 6] = [
    &["error", "config", "time", "metrics"],
    &["types", "mem", "kernels"],
    &["proto", "transport", "store"],
    &["cluster", "checkpoint", "control"],
    &["client", "server", "launch"],
    &["app", "data", "bin", "simulation"],
];

/// Neighbours in these layers know nothing of each other.
const STRANGERS: [usize; 2] = [2, 4];

/// The files that may say `unsafe`, each with what it needs it for.
const UNSAFE: &[(&str, &str)] = &[
    ("src/client/buffer.rs", "floats that no operation touches"),
    ("src/kernels/avx2.rs", "AVX2 intrinsics"),
    ("src/kernels/avx512.rs", "AVX-512 intrinsics"),
    ("src/kernels/crc.rs", "an instruction that the CPU was asked for"),
    ("src/kernels/fold.rs", "calling a path that the CPU was asked for"),
    ("src/kernels/generic.rs", "loads and stores at the edge of a slice"),
    ("src/kernels/lanes.rs", "what a vector of lanes is"),
    ("src/kernels/mod.rs", "calling a path that the CPU was asked for"),
    ("src/kernels/table.rs", "entering code for one instruction set"),
    ("src/launch/cluster/inherited.rs", "a descriptor that the launcher left open"),
    ("src/launch/cluster/pmix.rs", "a library that is opened at run time"),
    ("src/launch/guard.rs", "prctl in a new process"),
    ("src/launch/spawn.rs", "what a child does between fork and exec"),
    ("src/mem/arena.rs", "memory that peers write"),
    ("src/mem/block.rs", "floats that one thread owns"),
    ("src/mem/mapping.rs", "files of memory, mapped where huge pages can lie"),
    ("src/mem/page.rs", "the first touch of memory that nobody uses yet"),
    ("src/mem/ring.rs", "counters in memory that another process writes"),
    ("src/mem/slabs.rs", "memory that grows in place, and prefetches"),
    ("src/mem/values.rs", "floats that a peer may be changing"),
    ("src/transport/cpus.rs", "how the system schedules a thread"),
    ("src/transport/park.rs", "descriptors of somebody else"),
    ("src/transport/shm/socket.rs", "asking whose a peer is"),
    ("src/transport/tcp/rx.rs", "receiving into an arena"),
    ("src/transport/tcp/socket.rs", "socket calls on arena memory"),
    ("src/transport/tcp/tx.rs", "sending from an arena"),
    ("src/transport/timer.rs", "a timer's descriptor"),
    ("src/transport/verbs/cq.rs", "libibverbs"),
    ("src/transport/verbs/device.rs", "libibverbs"),
    ("src/transport/verbs/endpoint.rs", "keys that work for one peer"),
    ("src/transport/verbs/ffi.rs", "declarations of the C shim"),
    ("src/transport/verbs/memory.rs", "libibverbs"),
    ("src/transport/verbs/post.rs", "posting work that owns its memory"),
    ("src/transport/verbs/qp.rs", "libibverbs"),
];

/// What makes one thread wait for another. A thing that is made once is read without waiting from then on.
const LOCKS: [&str; 6] = ["Mutex", "RwLock", "Condvar", "OnceLock", "LazyLock", "parking_lot"];

/// The files that may name one of them: none is taken for each message.
const LOCKING: &[(&str, &str)] = &[
    ("src/client/control.rs", "what heartbeats carry, cuts, the first failure: not the data path"),
    (
        "src/client/driver.rs",
        "threads that share a client; taken for a call and for a look, whatever the messages",
    ),
    ("src/client/mod.rs", "the progress thread's handle"),
    ("src/kernels/table.rs", "made once: which instructions the CPU has"),
    ("src/launch/signals.rs", "who catches signals"),
    ("src/server/mod.rs", "the server's thread, for whoever joins it"),
    ("src/simulation/rig.rs", "test builds only"),
    ("src/simulation/slots.rs", "test builds only"),
    ("src/store/index.rs", "made once: a random salt"),
    ("src/transport/sim/mod.rs", "for tests: one world of many threads"),
    ("src/transport/sim/schedule.rs", "for tests: whose turn it is"),
    ("src/transport/verbs/device.rs", "made once: ibv_fork_init"),
];

/// Crates that only some places may name.
const CRATES: &[(&str, &[&str])] = &[
    ("rdma_sys", &["src/transport/verbs/"]),
    // Two system calls are outside the three layers: a secret's file has to belong to us, and no other cut may be replaced by one.
    (
        "rustix",
        &["src/mem/", "src/transport/", "src/launch/", "src/proto/secret.rs", "src/checkpoint/storage.rs"],
    ),
    ("libc", &["src/mem/", "src/transport/", "src/launch/"]),
];

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|names| names.contains(&module))
}

/// `src/client/engine.rs` is `["client", "engine"]`; `src/client/mod.rs` and `src/client.rs` are `["client"]`.
fn module_path(file: &str) -> Vec<&str> {
    let path = file.trim_start_matches("src/").trim_end_matches(".rs");
    path.split('/').filter(|&part| part != "mod").collect()
}

/// The top-level modules that a file names, each with its line.
fn named(source: &Source) -> Vec<(String, usize)> {
    let code = source.code();
    let depth = module_path(&source.path).len();
    // As many `super` as there are modules around the file lead to the root, too.
    let up = "super::".repeat(depth);
    let mut found = Vec::new();
    for root in ["crate", "windlass", "super"] {
        for at in words(&code, root) {
            let rest = &code[at..];
            let inner = code[..at].ends_with("super::");
            let after = match root {
                "super" if inner || !rest.starts_with(&up) => continue,
                "super" => rest[up.len()..].trim_start(),
                _ => match rest[root.len()..].trim_start().strip_prefix("::") {
                    Some(after) => after.trim_start(),
                    None => continue,
                },
            };
            found.extend(heads(after).into_iter().map(|head| (head, line(&code, at))));
        }
    }
    found
}

/// The first names of a path or of a group `{a::b, c::{d, e}}`.
fn heads(path: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let Some(group) = path.strip_prefix('{') else { return vec![name(path)] };
    let mut depth = 0;
    let mut names = vec![name(group)];
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(name(&group[at + 1..])),
            _ => {}
        }
    }
    names.retain(|n| !n.is_empty());
    names
}

fn layering(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|s| !s.is_test() && s.path != "src/lib.rs") {
        let own = module_path(&source.path)[0];
        let Some(layer) = layer_of(own) else {
            complaints.push(format!("{}: the module {own} has no layer", source.path));
            continue;
        };
        for (other, at) in named(source) {
            let allowed = match layer_of(&other) {
                _ if other == own => true,
                Some(theirs) => theirs < layer || theirs == layer && !STRANGERS.contains(&layer),
                // What lib.rs lifts to the root hides where it comes from.
                None => false,
            };
            if !allowed {
                complaints.push(format!("{}:{at}: {own} (layer {layer}) must not use {other}", source.path));
            }
        }
    }
    complaints
}

/// Where one of `names` stands outside the `allowed` files, and what of the list is stale.
fn only_where_listed(sources: &[Source], names: &[&str], allowed: &[(&str, &str)]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|s| !s.is_test()) {
        let code = source.code();
        let found = names.iter().find_map(|name| Some((name, words(&code, name).next()?)));
        let listed = allowed.iter().any(|(path, _)| *path == source.path);
        match found {
            Some((name, at)) if !listed => {
                complaints.push(format!("{}:{}: {name} is not allowed here", source.path, line(&code, at)));
            }
            None if listed => {
                complaints.push(format!("{}: needs no {}: off the list", source.path, names.join(", ")));
            }
            _ => {}
        }
    }
    let missing = allowed.iter().filter(|(path, _)| sources.iter().all(|s| s.path != *path));
    let names = names.join(", ");
    complaints.extend(missing.map(|(path, _)| format!("{path}: is on a list ({names}), and not there")));
    complaints
}

fn crates(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|s| !s.is_test()) {
        let code = source.code();
        for (name, places) in CRATES {
            let Some(at) = words(&code, name).next() else { continue };
            if !places.iter().any(|place| source.path.starts_with(place)) {
                complaints.push(format!("{}:{}: {name} is not allowed here", source.path, line(&code, at)));
            }
        }
    }
    complaints
}

fn environment(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|s| !s.is_test() && s.path != "src/config.rs") {
        let code = source.code();
        for word in ["var", "var_os", "vars", "vars_os", "env", "option_env"] {
            for at in words(&code, word) {
                let found = match word {
                    "env" | "option_env" => code[at + word.len()..].starts_with("!(") && word != "env",
                    _ => code[..at].ends_with("env::"),
                };
                if found {
                    let at = line(&code, at);
                    complaints.push(format!("{}:{at}: only config reads the environment", source.path));
                }
            }
        }
        if code.contains("use std::env::") {
            complaints.push(format!("{}: say `std::env::…` in full, so that it can be found", source.path));
        }
    }
    complaints
}

#[test]
fn modules_use_only_lower_layers() {
    assert_none(layering(&library()));
}

#[test]
fn a_use_of_a_higher_layer_is_found() {
    let plant = |path: &str, text: &str| layering(&[Source::new(path, text)]);
    let up = "use crate::{\n    error::Error,\n    types::{Key, View},\n    client::Client,\n};\n";
    assert_eq!(plant("src/store/x.rs", up), ["src/store/x.rs:1: store (layer 2) must not use client"]);
    assert_eq!(plant("src/proto/x.rs", "fn f() { crate::transport::build() }").len(), 1);
    assert_eq!(plant("src/client/x.rs", "use crate::server::Server;").len(), 1);
    assert_eq!(plant("src/mem/deep/x.rs", "use super::super::super::store::Shard;").len(), 1);
    assert_eq!(plant("src/mem/x.rs", "use super::super::store::Shard;").len(), 1);
    assert_eq!(plant("src/mem.rs", "use super::store::Shard;").len(), 1);
    assert_eq!(plant("src/mem/mod.rs", "use super::store::Shard;").len(), 1);
    assert_eq!(plant("src/mem/x.rs", "use crate::Client;").len(), 1, "lifted to the root by lib.rs");
    assert_eq!(plant("src/new/mod.rs", ""), ["src/new/mod.rs: the module new has no layer"]);
    let fine = "//! [`crate::server`]\nuse crate::types::Key; use super::arena::Arena; use std::process;
        #[cfg(test)]\nmod tests { use crate::client::Client; }";
    assert_none(plant("src/mem/x.rs", fine));
}

#[test]
fn unsafe_stands_only_in_listed_files() {
    assert_none(only_where_listed(&library(), &["unsafe"], UNSAFE));
}

#[test]
fn stray_unsafe_and_a_stale_list_are_found() {
    let sources = [Source::new("src/a.rs", "fn f() {\n    unsafe { g() }\n}"), Source::new("src/b.rs", "")];
    let found = |allowed: &[(&str, &str)]| only_where_listed(&sources, &["unsafe"], allowed);
    assert_eq!(found(&[]), ["src/a.rs:2: unsafe is not allowed here"]);
    let stale = found(&[("src/a.rs", ""), ("src/b.rs", ""), ("src/c.rs", "")]);
    assert_eq!(stale.len(), 2, "{stale:?}");
}

/// No lock for a message: the data path has none but those of the list.
#[test]
fn locks_stand_only_in_listed_files() {
    assert_none(only_where_listed(&library(), &LOCKS, LOCKING));
}

#[test]
fn a_stray_lock_is_found() {
    let plant = |path: &str, text: &str| only_where_listed(&[Source::new(path, text)], &LOCKS, &[]);
    let path = "src/transport/verbs/post.rs";
    assert_eq!(
        plant(path, "\nuse std::sync::{Arc, Mutex};"),
        [format!("{path}:2: Mutex is not allowed here")]
    );
    assert_eq!(plant(path, "fn f(l: &parking_lot::RawMutex) {}").len(), 1);
    assert_eq!(
        plant(
            path,
            "use std::sync::Arc; // no Mutex\n#[cfg(all(test, loom))]\nmod t { use loom::sync::Mutex; }"
        ),
        [""; 0]
    );
}

#[test]
fn crates_stay_where_they_belong() {
    assert_none(crates(&library()));
}

#[test]
fn a_stray_crate_is_found() {
    let plant = |path: &str, text: &str| crates(&[Source::new(path, text)]).len();
    assert_eq!(plant("src/client/x.rs", "use rdma_sys::ibv_cq;"), 1);
    assert_eq!(plant("src/transport/tcp/x.rs", "rdma_sys::ibv_poll_cq()"), 1);
    assert_eq!(plant("src/store/x.rs", "let e = libc::EINVAL;"), 1);
    assert_eq!(plant("src/proto/x.rs", "rustix::process::geteuid()"), 1);
    assert_eq!(plant("src/transport/verbs/x.rs", "use rdma_sys::ibv_cq; // and libc"), 0);
}

#[test]
fn only_config_reads_the_environment() {
    assert_none(environment(&library()));
}

#[test]
fn a_stray_variable_is_found() {
    let plant = |path: &str, text: &str| environment(&[Source::new(path, text)]).len();
    assert_eq!(plant("src/app/x.rs", "let v = std::env::var(NAME);"), 1);
    assert_eq!(plant("src/app/x.rs", "for v in env::vars_os() {}"), 1);
    assert_eq!(plant("src/app/x.rs", "use std::env::{var};"), 1);
    assert_eq!(plant("src/app/x.rs", "std::env::current_exe(); env!(\"X\"); let var = 1;"), 0);
    assert_eq!(plant("src/config.rs", "let v = std::env::var(NAME);"), 0);
}
