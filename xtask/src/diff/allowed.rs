//! The differences that are allowed, each with its reason: `tests/diff-allowed.toml`.
//!
//! Owns the file's syntax. A rule names what it explains; nothing is left out of the comparison without one.

use std::collections::BTreeMap;
use std::path::Path;

use lamina_vmm::trace::REGISTERS;
use regex::Regex;
use toml::{Table, Value};

use crate::config::ConfigError;
use crate::paths;

/// The file, from the workspace's root.
pub const FILE: &str = "tests/diff-allowed.toml";

/// What a rule explains.
#[derive(Clone, Debug)]
pub enum Explains {
    /// The exit is there on one side only.
    OneSided,
    /// The exit is repeated at the same instruction, a different number of times.
    Repeats,
    /// What the exit made of these bits of these registers (an index and a mask) differs.
    Registers(Vec<(usize, u64)>),
    /// The guest itself came to the exit with differences in these bits of these registers.
    Computed(Vec<(usize, u64)>),
    /// The guest gets different events.
    Event,
    /// Different memory was written.
    Stores,
    /// The same exit is at another instruction.
    Place,
    /// The guest goes another way from here until both sides do the same again.
    Detour,
    /// From the first such exit on nothing is compared.
    Ends,
}

/// One rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// What reports call it.
    pub name: String,
    /// The exits it is for, by [`lamina_vmm::trace::Record::what`].
    pub what: Regex,
    /// The guests it is for; all where there is none.
    pub guests: Vec<String>,
    /// What it explains.
    pub explains: Explains,
    /// Why that is no mistake of anybody's.
    pub reason: String,
}

/// How a guest is run.
#[derive(Clone, Debug, Default)]
pub struct Guest {
    /// In the notation of the configuration; `guest:NAME` where it says nothing.
    pub kernel: Option<String>,
    /// Likewise.
    pub initrd: Option<String>,
    /// Its command line.
    pub cmdline: String,
    /// In the notation of the configuration.
    pub memory: Option<String>,
    /// The CPU model, likewise.
    pub cpu: Option<String>,
    /// How many records are compared at most.
    pub records: Option<u32>,
    /// Why it is not compared at all.
    pub refused: Option<String>,
}

/// The file.
#[derive(Clone, Debug, Default)]
pub struct Allowed {
    /// The rules, in order: the first that fits counts.
    pub rules: Vec<Rule>,
    /// How guests are run that need more than their name.
    pub guests: BTreeMap<String, Guest>,
}

impl Allowed {
    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be read, or something in it is refused.
    pub fn load() -> Result<Self, ConfigError> {
        Self::load_from(&paths::workspace().join(FILE))
    }

    fn load_from(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Unreadable { file: FILE.to_owned(), reason: error.to_string() })?;
        Self::parse(&text)
    }

    /// Reads a text.
    ///
    /// # Errors
    /// Something in it is refused.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut top: Table = toml::from_str(text)
            .map_err(|error| ConfigError::Syntax { file: FILE.to_owned(), reason: error.to_string() })?;
        let mut allowed = Self::default();
        if let Some(value) = top.remove("guest") {
            for (name, value) in table("guest", value)? {
                let key = format!("[guest.{name}]");
                let guest = guest(&key, table(&key, value)?)?;
                allowed.guests.insert(name, guest);
            }
        }
        match top.remove("allow") {
            None => {}
            Some(Value::Array(values)) => {
                for (number, value) in values.into_iter().enumerate() {
                    let key = format!("[[allow]] number {}", number + 1);
                    allowed.rules.push(rule(&key, table(&key, value)?)?);
                }
            }
            Some(other) => return Err(refused("allow", &other, "must be a list of tables: [[allow]]")),
        }
        finish("", top)?;
        Ok(allowed)
    }

    /// The rules for one guest.
    pub fn rules_for(&self, guest: &str) -> Vec<Rule> {
        let fits = |rule: &&Rule| rule.guests.is_empty() || rule.guests.iter().any(|name| name == guest);
        self.rules.iter().filter(fits).cloned().collect()
    }
}

fn refused(key: &str, value: &Value, reason: impl Into<String>) -> ConfigError {
    ConfigError::Refused { file: FILE.into(), key: key.into(), value: value.to_string(), reason: reason.into() }
}

fn table(key: &str, value: Value) -> Result<Table, ConfigError> {
    match value {
        Value::Table(table) => Ok(table),
        other => Err(refused(key, &other, "must be a table")),
    }
}

fn text(section: &str, key: &str, table: &mut Table) -> Result<Option<String>, ConfigError> {
    match table.remove(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(refused(&format!("{section}: {key}"), &other, "must be a string")),
    }
}

fn needed(section: &str, key: &str, table: &mut Table) -> Result<String, ConfigError> {
    let missing = || ConfigError::Missing {
        file: FILE.into(),
        key: format!("{section}: {key}"),
        reason: "every rule has a name, the exits that it is for, and a reason".into(),
    };
    text(section, key, table)?.filter(|text| !text.is_empty()).ok_or_else(missing)
}

fn texts(section: &str, key: &str, table: &mut Table) -> Result<Vec<String>, ConfigError> {
    let Some(value) = table.remove(key) else { return Ok(Vec::new()) };
    let wrong = |value: &Value| refused(&format!("{section}: {key}"), value, "must be a list of strings");
    let Value::Array(values) = value else { return Err(wrong(&value)) };
    let one = |value| if let Value::String(text) = value { Ok(text) } else { Err(wrong(&value)) };
    values.into_iter().map(one).collect()
}

fn finish(section: &str, table: Table) -> Result<(), ConfigError> {
    match table.iter().next() {
        None => Ok(()),
        Some((key, value)) => Err(refused(&format!("{section}: {key}"), value, "unknown key")),
    }
}

fn guest(section: &str, mut table: Table) -> Result<Guest, ConfigError> {
    let records = match table.remove("records") {
        None => None,
        Some(value) => match value.as_integer().and_then(|number| u32::try_from(number).ok()) {
            Some(number) if number > 0 => Some(number),
            _ => return Err(refused(&format!("{section}: records"), &value, "must be a number of records")),
        },
    };
    let guest = Guest {
        kernel: text(section, "kernel", &mut table)?,
        initrd: text(section, "initrd", &mut table)?,
        cmdline: text(section, "cmdline", &mut table)?.unwrap_or_default(),
        memory: text(section, "memory", &mut table)?,
        cpu: text(section, "cpu", &mut table)?,
        records,
        refused: text(section, "refused", &mut table)?,
    };
    finish(section, table)?;
    Ok(guest)
}

fn rule(section: &str, mut table: Table) -> Result<Rule, ConfigError> {
    let name = needed(section, "name", &mut table)?;
    let what = needed(section, "what", &mut table)?;
    let what = Regex::new(&what)
        .map_err(|error| refused(&format!("{section}: what"), &Value::String(what.clone()), error.to_string()))?;
    let reason = needed(section, "reason", &mut table)?;
    let guests = texts(section, "guests", &mut table)?;
    let explains = needed(section, "explains", &mut table)?;
    let registers = texts(section, "registers", &mut table)?;
    let explains = match explains.as_str() {
        "one-sided" => Explains::OneSided,
        "repeats" => Explains::Repeats,
        "event" => Explains::Event,
        "stores" => Explains::Stores,
        "place" => Explains::Place,
        "detour" => Explains::Detour,
        "ends" => Explains::Ends,
        kind @ ("registers" | "computed") if !registers.is_empty() => {
            let parse = |text: &String| {
                register(text).ok_or_else(|| {
                    let reason = "must be a register's name, or `NAME:MASK` with the mask in hexadecimal";
                    refused(&format!("{section}: registers"), &Value::String(text.clone()), reason)
                })
            };
            let all = registers.iter().map(parse).collect::<Result<_, _>>()?;
            if kind == "computed" { Explains::Computed(all) } else { Explains::Registers(all) }
        }
        _ => {
            let reason = "must be one-sided, repeats, event, stores, place, detour, ends, or registers or computed with a list of `registers`";
            return Err(refused(&format!("{section}: explains"), &Value::String(explains), reason));
        }
    };
    finish(section, table)?;
    Ok(Rule { name, what, guests, explains, reason })
}

/// `NAME` or `NAME:MASK`.
fn register(text: &str) -> Option<(usize, u64)> {
    let (name, mask) = match text.split_once(':') {
        Some((name, mask)) => (name, u64::from_str_radix(mask.strip_prefix("0x")?, 16).ok()?),
        None => (text, u64::MAX),
    };
    Some((REGISTERS.iter().position(|known| *known == name)?, mask))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: &str = "[[allow]]\nname = \"n\"\nwhat = \"^hlt$\"\nreason = \"r\"\n";

    #[test]
    fn the_file_is_good_and_every_rule_has_a_reason() {
        let allowed = Allowed::load().unwrap();
        assert!(!allowed.rules.is_empty());
        assert!(allowed.rules.iter().all(|rule| rule.reason.len() > 20), "a reason that is none");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, words) in [
            (format!("{RULE}explains = \"everything\""), "must be one-sided"),
            (format!("{RULE}explains = \"registers\""), "list of `registers`"),
            (format!("{RULE}explains = \"registers\"\nregisters = [\"rix\"]"), "rix"),
            (format!("{RULE}explains = \"registers\"\nregisters = [\"rax:12\"]"), "rax:12"),
            (format!("{RULE}explains = \"event\"\nmore = 1"), "unknown key"),
            (RULE.replace("reason", "raison"), "reason is missing"),
            (RULE.replace("^hlt$", "("), "what"),
            ("[guest.a]\nrecords = 0".to_owned(), "number of records"),
            ("other = 1".to_owned(), "unknown key"),
            ("allow = 1".to_owned(), "list of tables"),
        ] {
            let error = Allowed::parse(&text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn rules_are_for_the_guests_that_they_name() {
        let text = format!("{RULE}explains = \"event\"\nguests = [\"a\"]\n{RULE}explains = \"one-sided\"\n");
        let allowed = Allowed::parse(&text).unwrap();
        assert_eq!((allowed.rules_for("a").len(), allowed.rules_for("b").len()), (2, 1));
        assert_eq!(register("rflags:0x10"), Some((17, 0x10)));
    }
}
