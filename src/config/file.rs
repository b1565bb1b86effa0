//! A configuration file: TOML, one key for each setting.

use std::path::Path;

use super::settings::all;
use super::{Environment, Setting, variable};
use crate::error::{Error, Result};

impl Environment {
    /// The same with what the configuration file says where neither a flag nor a variable says anything. The file is `flag`, or
    /// the one that `WINDLASS_CONFIG` names.
    pub fn with_file(self, flag: Option<&Path>) -> Result<Environment> {
        let environment = self.with(variable::CONFIG, flag.map(Path::display));
        let Some(path) = environment.text(variable::CONFIG).map(str::to_owned) else {
            return Ok(environment);
        };
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
        environment.under(&path, &text)
    }

    /// The same with `text`, the contents of the configuration file `path`, below everything else.
    pub(super) fn under(mut self, path: &str, text: &str) -> Result<Environment> {
        let table: toml::Table = text.parse().map_err(|e| malformed(path, text, &e))?;
        for (key, value) in table {
            let Some(setting) = all().find(|setting| setting.key() == key) else {
                let known: Vec<String> = all().map(Setting::key).collect();
                return Err(Error::config(
                    path,
                    format!("one of {}", known.join(", ")),
                    format!("the key {key}"),
                ));
            };
            let name = format!("{key} in {path}");
            let text = match value {
                toml::Value::String(text) => text,
                toml::Value::Integer(number) => number.to_string(),
                other => return Err(Error::config(name, "a string or an integer", other)),
            };
            if let Err(error) = setting.check_form(&text) {
                return Err(match error {
                    Error::Config { expected, found, .. } => Error::Config { setting: name, expected, found },
                    other => other,
                });
            }
            self.fill(setting.variable, text, path);
        }
        Ok(self)
    }
}

/// Where the text stops being TOML.
fn malformed(path: &str, text: &str, error: &toml::de::Error) -> Error {
    let at = error.span().map_or(0, |span| span.start).min(text.len());
    let before = text.as_bytes().split_at(at).0;
    let line_start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
    Error::Data {
        file: path.to_owned(),
        line: 1 + before.iter().filter(|&&byte| byte == b'\n').count() as u64,
        column: 1 + (at - line_start) as u64,
        expected: "TOML".to_owned(),
        found: error.message().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::{PEER_TIMEOUT, PIN, POLL, SLOTS, STAGING_BYTES};

    #[test]
    fn a_flag_outdoes_a_variable_outdoes_the_file_outdoes_the_default() {
        let file = "peer_timeout = 1\npoll = \"spin\"\nslots = 3\nstaging_bytes = \"1M\"\n";
        let environment = Environment::from_pairs([(variable::PEER_TIMEOUT, "2"), (variable::POLL, "block")])
            .with(variable::PEER_TIMEOUT, Some(4))
            .under("some.toml", file)
            .unwrap();
        assert_eq!(environment.number(&PEER_TIMEOUT).unwrap(), 4);
        assert_eq!(environment.setting(&POLL), "block");
        assert_eq!(environment.number(&SLOTS).unwrap(), 3);
        assert_eq!(environment.number(&STAGING_BYTES).unwrap(), 1 << 20);
        assert_eq!(environment.setting(&PIN), "auto");
        let shown = environment.effective([&PEER_TIMEOUT, &POLL, &SLOTS, &STAGING_BYTES, &PIN]).unwrap();
        assert_eq!(
            shown,
            "peer_timeout = 4  # flag --peer-timeout\n\
             poll = \"block\"  # environment WINDLASS_POLL\n\
             slots = 3  # file some.toml\n\
             staging_bytes = 1048576  # file some.toml\n\
             pin = \"auto\"  # default\n"
        );
    }

    #[test]
    fn what_is_shown_means_the_same_when_it_is_read() {
        let first = Environment::from_pairs([
            (variable::PIN, "0,2-5"),
            (variable::STAGING_BYTES, "3M"),
            (variable::INTERFACE, "a \"quoted\" \\ name"),
            (variable::PORT_RANGE, "9-10"),
        ]);
        let values = |shown: &str| -> Vec<String> {
            shown.lines().map(|line| line.rsplit_once("  # ").unwrap().0.to_owned()).collect()
        };
        let shown = first.effective(all()).unwrap();
        let second = Environment::default().under("shown.toml", &shown).unwrap();
        let again = second.effective(all()).unwrap();
        assert_eq!(values(&again), values(&shown));
        assert!(again.lines().all(|line| line.ends_with("  # file shown.toml")), "{again}");
        for setting in all() {
            assert_eq!(second.setting(setting).is_empty(), first.setting(setting).is_empty());
        }
    }

    #[test]
    fn what_is_no_setting_or_no_value_is_refused_with_key_and_file() {
        let refused = |text: &str| Environment::default().under("my.toml", text).unwrap_err().to_string();
        let unknown = refused("slots = 2\nslotz = 3\n");
        assert!(
            unknown.starts_with("my.toml: expected one of transport, ")
                && unknown.ends_with("found the key slotz")
        );
        assert_eq!(refused("slots = 2.5"), "slots in my.toml: expected a string or an integer, found 2.5");
        assert_eq!(refused("poll = \"never\""), "poll in my.toml: expected auto, spin or block, found never");
        assert_eq!(refused("slots = -1"), "slots in my.toml: expected a number, found -1");
        let malformed = refused("slots = 2\nslots = \n");
        assert!(malformed.starts_with("my.toml:2:"), "{malformed}");
        let out_of_bounds = Environment::default().under("my.toml", "slots = 99").unwrap();
        let error = out_of_bounds.number(&SLOTS).unwrap_err().to_string();
        assert_eq!(error, "slots in my.toml: expected 1 to 64, found 99");
    }
}
