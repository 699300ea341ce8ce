//! What a person or a script can ask of the hypervisor, as a table.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::keys;
use crate::chipset::Key;

/// A command for the run loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// List the VMs.
    Vms,
    /// Tell the exits of the VM of this name (as typed: not checked).
    Exits(String),
    /// Tell what the VM of this name (as typed: not checked) takes of memory.
    Memory(String),
    /// Tell which MSRs the VM of this name (as typed: not checked) tried and did not get.
    Msrs(String),
    /// Stop the VM of this name (as typed: not checked).
    Stop(String),
    /// Give the input to the VM of this name (as typed: not checked).
    Attach(String),
    /// Look whether what isolates the VMs is as it should be.
    Audit,
    /// Do a harm that the audit must find.
    #[cfg(any(test, feature = "plant"))]
    Plant(String),
    /// Show the text on the screen of the VM of this name (as typed: not checked).
    Screen(String),
    /// Type keys on the keyboard of a VM.
    Type {
        /// The VM's name (as typed: not checked).
        name: String,
        /// What to type.
        keys: Vec<Key>,
    },
    /// End the machine.
    Quit,
}

/// What a line of input turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// A command for the run loop.
    Command(Command),
    /// The console answers with these lines itself.
    Answer(Vec<String>),
    /// Nothing but blanks.
    Nothing,
}

/// One row of the table.
struct Entry {
    name: &'static str,
    action: Action,
    help: &'static str,
}

/// What a row does.
enum Action {
    Help,
    Plain(fn() -> Command),
    /// With the name of its argument.
    WithArgument(&'static str, fn(String) -> Command),
    Type,
}

/// How many there are.
const COUNT: usize = if cfg!(any(test, feature = "plant")) { 12 } else { 11 };
const COMMANDS: [Entry; COUNT] = [
    Entry { name: "help", action: Action::Help, help: "list the commands" },
    Entry { name: "vms", action: Action::Plain(|| Command::Vms), help: "list the virtual machines" },
    Entry {
        name: "exits",
        action: Action::WithArgument("NAME", Command::Exits),
        help: "count a virtual machine's exits by reason",
    },
    Entry {
        name: "memory",
        action: Action::WithArgument("NAME", Command::Memory),
        help: "tell what memory a virtual machine takes, its own and the hypervisor's for it",
    },
    Entry {
        name: "msrs",
        action: Action::WithArgument("NAME", Command::Msrs),
        help: "count a virtual machine's accesses to MSRs that were refused",
    },
    Entry { name: "stop", action: Action::WithArgument("NAME", Command::Stop), help: "stop a virtual machine" },
    Entry {
        name: "attach",
        action: Action::WithArgument("NAME", Command::Attach),
        help: "give this terminal to a virtual machine until Ctrl-A d",
    },
    Entry {
        name: "audit",
        action: Action::Plain(|| Command::Audit),
        help: "check that every frame of memory has one owner, and is mapped for nobody else",
    },
    #[cfg(any(test, feature = "plant"))]
    Entry {
        name: "plant",
        action: Action::WithArgument("KIND", Command::Plant),
        help: "do a harm for the audit to find",
    },
    Entry {
        name: "screen",
        action: Action::WithArgument("NAME", Command::Screen),
        help: "show the text on a virtual machine's screen",
    },
    Entry { name: "type", action: Action::Type, help: "type on a virtual machine's keyboard; <enter> is a key" },
    Entry { name: "quit", action: Action::Plain(|| Command::Quit), help: "stop everything and end" },
];

impl Entry {
    fn usage(&self) -> String {
        match self.action {
            Action::WithArgument(argument, _) => format!("{} {argument}", self.name),
            Action::Type => format!("{} NAME TEXT", self.name),
            _ => self.name.to_string(),
        }
    }
}

/// Finds the command that `words` ask for.
pub(super) fn parse(words: &[String]) -> Parsed {
    let Some((name, arguments)) = words.split_first() else {
        return Parsed::Nothing;
    };
    let Some(entry) = COMMANDS.iter().find(|entry| entry.name == name) else {
        return Parsed::Answer([format!("unknown command '{name}'; 'help' lists the commands")].into());
    };
    match (&entry.action, arguments) {
        (Action::Help, []) => Parsed::Answer(help()),
        (Action::Plain(command), []) => Parsed::Command(command()),
        (Action::WithArgument(_, command), [argument]) => Parsed::Command(command(argument.clone())),
        (Action::Type, [vm, text @ ..]) if !text.is_empty() => match keys::parse(&text.join(" ")) {
            Ok(keys) => Parsed::Command(Command::Type { name: vm.clone(), keys }),
            Err(problem) => Parsed::Answer([problem].into()),
        },
        _ => Parsed::Answer([format!("usage: {}", entry.usage())].into()),
    }
}

fn help() -> Vec<String> {
    COMMANDS.iter().map(|entry| format!("{:14} {}", entry.usage(), entry.help)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Parsed {
        parse(&line.split_whitespace().map(str::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn finds_commands_with_their_arguments() {
        assert_eq!(parsed("vms"), Parsed::Command(Command::Vms));
        assert_eq!(parsed(" stop  ticker "), Parsed::Command(Command::Stop("ticker".into())));
        assert_eq!(parsed("attach debian"), Parsed::Command(Command::Attach("debian".into())));
        assert_eq!(parsed("quit"), Parsed::Command(Command::Quit));
        assert_eq!(parsed("screen bios"), Parsed::Command(Command::Screen("bios".into())));
        let keys = [Key::Char('l'), Key::Char('s'), Key::Char(' '), Key::Char('-'), Key::Char('l'), Key::Char('\n')];
        let typed = Command::Type { name: "bios".into(), keys: keys.into() };
        assert_eq!(parsed("type bios ls  -l<enter>"), Parsed::Command(typed));
        assert_eq!(parsed("  "), Parsed::Nothing);
    }

    #[test]
    fn says_what_is_wrong() {
        assert_eq!(parsed("stop"), Parsed::Answer(vec!["usage: stop NAME".into()]));
        assert_eq!(parsed("type bios"), Parsed::Answer(vec!["usage: type NAME TEXT".into()]));
        assert!(matches!(parsed("type bios <nokey>"), Parsed::Answer(_)));
        assert_eq!(parsed("quit now"), Parsed::Answer(vec!["usage: quit".into()]));
        assert_eq!(parsed("Vms"), Parsed::Answer(vec!["unknown command 'Vms'; 'help' lists the commands".into()]));
    }

    #[test]
    fn help_names_every_command() {
        let Parsed::Answer(lines) = parsed("help") else { panic!("help answers") };
        assert_eq!(lines.len(), COMMANDS.len());
        for (line, entry) in lines.iter().zip(&COMMANDS) {
            assert!(line.starts_with(&entry.usage()) && line.ends_with(entry.help), "{line}");
        }
    }
}
