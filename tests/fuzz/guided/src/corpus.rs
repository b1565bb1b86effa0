//! The corpus as libFuzzer wants it: one file an input.
//!
//! `corpus list`, `corpus unpack TARGET DIRECTORY`, `corpus pack TARGET DIRECTORY` (what is a seed already is left out).

#![allow(clippy::unwrap_used)] // a tool for developers

use std::fs;

#[path = "../../bodies/mod.rs"]
mod bodies;
#[path = "../../corpus.rs"]
mod corpus;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let target = |name: &str| bodies::TARGETS.iter().find(|t| t.name == name).expect("a target's name");
    match arguments[..] {
        ["list"] => bodies::TARGETS.iter().for_each(|t| println!("{}", t.name)),
        ["unpack", name, directory] => {
            for (number, input) in corpus::of(target(name)).iter().enumerate() {
                fs::write(format!("{directory}/{number:05}"), input).unwrap();
            }
        }
        ["pack", name, directory] => {
            let target = target(name);
            let seeds = (target.seeds)();
            let files = fs::read_dir(directory).unwrap().map(|file| fs::read(file.unwrap().path()).unwrap());
            let mut lines: Vec<String> =
                files.filter(|f| !seeds.contains(f)).map(|f| corpus::hex(&f)).collect();
            lines.sort_unstable();
            lines.iter_mut().for_each(|line| line.push('\n'));
            fs::write(corpus::place(target), lines.concat()).unwrap();
        }
        _ => panic!("list, unpack TARGET DIRECTORY or pack TARGET DIRECTORY"),
    }
}
