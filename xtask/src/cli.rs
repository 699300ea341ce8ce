//! The command line, and the exit statuses that scripts rely on.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::ConfigError;
use crate::report::say;
use crate::{bench, check, diff, doctor, fuzz, image, run, testing};

/// Usage or configuration is wrong.
const USAGE: u8 = 2;

#[derive(Parser, Debug)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Builds, boots and tests Lamina",
    after_help = "What is missing on this host is set up by the commands themselves. The machine's serial output goes to \
                  standard output, everything else to standard error.\n\n\
                  Exit status: 0 success, 1 failure, 2 usage or configuration, 124 timeout.\n\n\
                  Environment:\n  \
                  LAMINA_CACHE   where downloads and slow builds are kept (default: ~/.cache/lamina)\n  \
                  LAMINA_BOCHS   `built` (from source, faster), `packaged` (Debian's), or the path of a bochs"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Boot a configuration and talk to Lamina's console
    Run(run::Arguments),
    /// Say what this host offers to boot on, and what would be faster
    Doctor,
    /// Make disk images for a real machine (BIOS and UEFI)
    Image(image::Arguments),
    /// Run the host tests, then the boot scenarios
    Test(testing::Arguments),
    /// Check formatting, lints, documentation, dependencies and the project's own rules
    Check(check::Arguments),
    /// Measure what Lamina costs
    Bench(bench::Arguments),
    /// Random privileged and device operations in a guest, from a seed
    Fuzz(fuzz::Arguments),
    /// Run a guest on VMX and on SVM, and show the first thing that it sees differently
    Diff(diff::Arguments),
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(arguments) => run::command(&arguments),
        Command::Doctor => doctor::command(),
        Command::Image(arguments) => image::command(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Test(arguments) => testing::command(&arguments),
        Command::Check(arguments) => check::command(&arguments),
        Command::Bench(arguments) => bench::command(&arguments),
        Command::Fuzz(arguments) => fuzz::command(&arguments),
        Command::Diff(arguments) => diff::command(&arguments),
    };
    result.unwrap_or_else(|error| {
        say(format_args!("error: {error:#}"));
        status(&error)
    })
}

/// The exit status for an error.
fn status(error: &anyhow::Error) -> ExitCode {
    let usage = error.downcast_ref::<ConfigError>().is_some() || error.downcast_ref::<bench::Usage>().is_some();
    if usage { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::backend::{Name, Refusal};

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_of_run_names_what_is_tried() {
        let cli = Cli::command();
        let on =
            cli.find_subcommand("run").unwrap().get_arguments().find(|argument| argument.get_id() == "on").unwrap();
        let [first, second, third] = Name::TRIED;
        let help = on.get_help().unwrap().to_string();
        assert!(help.contains(&format!("the first of {first}, {second} and {third} that works")), "{help}");
    }

    #[test]
    fn what_is_refused_is_a_usage_error() {
        let missing = ConfigError::Missing { file: "f".into(), key: "k".into(), reason: "r".into() };
        assert_eq!(status(&missing.into()), ExitCode::from(2));
        let reason = "why not".to_owned();
        assert_eq!(status(&Refusal::Unusable { name: Name::Tcg, reason }.into()), ExitCode::FAILURE);
        assert_eq!(status(&anyhow::anyhow!("other")), ExitCode::FAILURE);
    }

    #[test]
    fn run_takes_what_it_promises() {
        let parsed = Cli::try_parse_from([
            "xtask",
            "run",
            "--config",
            "f",
            "--on",
            "bochs-svm",
            "--cpus",
            "2",
            "--memory",
            "1G",
            "--until",
            "a|b",
            "--timeout",
            "900",
        ]);
        let Command::Run(run) = parsed.unwrap().command else { panic!("not run") };
        assert_eq!((run.on, run.cpus, run.memory), (Some(Name::BochsSvm), 2, Some(1 << 30)));
        for wrong in [["--until", "("], ["--cpus", "0"], ["--on", "vbox"], ["--memory", "1Q"], ["--timeout", "soon"]] {
            let error = Cli::try_parse_from(["xtask", "run", wrong[0], wrong[1]]).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{wrong:?}");
        }
    }
}
