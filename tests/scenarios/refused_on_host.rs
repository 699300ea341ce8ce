//! Configurations that cannot work are refused on the host, before anything boots: exit status 2, and a message that
//! names the file, the key and the value.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use lamina_tests::{Needs, Scenario, Stage};
use xtask::artifacts;
use xtask::config::Source;

pub const SCENARIO: Scenario = Scenario { name: "refused_on_host", needs: Needs::Host, limit: 600, long: false, run };

fn run(stage: &Stage) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let here = directory.path();
    let hello = fs::read(artifacts::locate(&Source::Guest("hello".to_owned()))?)?;
    fs::write(here.join("hello"), &hello)?;
    fs::write(here.join("text"), "no kernel")?;
    fs::write(here.join("lies"), lying(hello))?;
    fs::write(here.join("rom"), vec![0; 17 << 20])?;
    fs::write(here.join("initrd"), vec![0; 40 << 20])?;

    let one = |keys: &str| format!("[[vm]]\nname = \"a\"\n{keys}\n");
    let two = "[[vm]]\nname = \"a\"\nkernel = \"hello\"\n".repeat(2);
    let linux = "kernel = \"debian:linux-image-cloud-amd64\"\ninitrd = \"initrd\"\nmemory = \"80M\"";
    let cases = [
        (one("kernel = \"absent\""), "kernel = \"absent\""),
        (one("kernel = \"text\""), "kernel = \"[^\"]*text\""),
        (one("kernel = \"lies\""), "kernel = \"[^\"]*lies\""),
        (one("kernel = \"hello\"\nkernle = \"hello\""), "kernle = \"hello\": unknown key"),
        (one("kernel = \"hello\"\nmemory = \"3X\""), "memory = \"3X\""),
        (one("kernel = \"hello\"\nmemory = \"5000\""), "memory = \"5000\": not a multiple of 4K"),
        (one("firmware = \"rom\""), "firmware = \"[^\"]*rom\": firmware of 17825792 bytes: .*16 MiB at most"),
        (one("kernel = \"hello\"\nmemory = \"1024G\""), "memory = \"1024G\": does not fit"),
        (one(linux), "initrd = \"[^\"]*initrd\""),
        (two, "name = \"a\": another VM"),
        ("[[vm]\n".to_owned(), "line 1"),
    ];
    for (config, words) in cases {
        fs::write(here.join("bad.toml"), &config)?;
        refused(
            stage,
            here,
            &["run", "--config", "bad.toml", "--on", "bochs"],
            &format!("bad\\.toml: (?s:.*){words}"),
        )?;
    }
    // What fits into one machine does not fit into a smaller one.
    fs::write(here.join("bad.toml"), one("kernel = \"hello\"\nmemory = \"512M\""))?;
    let arguments = ["run", "--config", "bad.toml", "--on", "bochs", "--memory", "256M"];
    refused(stage, here, &arguments, "bad\\.toml: .*memory = \"512M\": does not fit.*256M")?;
    refused(stage, here, &["run", "--config", "absent.toml"], "absent\\.toml: cannot be read")
}

fn refused(stage: &Stage, directory: &Path, arguments: &[&str], words: &str) -> Result<()> {
    let outcome = stage.xtask(arguments, directory)?;
    let refused = outcome.status == Some(2) && regex::Regex::new(words)?.is_match(&outcome.errors);
    ensure!(refused, "`{}` must be refused with {words}: {outcome:#?}", arguments.join(" "));
    ensure!(outcome.output.is_empty(), "nothing may boot: {outcome:#?}");
    Ok(())
}

/// An image whose first segment claims to hold more bytes than the file has (ELF-64: `p_filesz` of the first program
/// header, which `e_phoff` finds).
fn lying(mut image: Vec<u8>) -> Vec<u8> {
    let header = usize::from(u16::from_le_bytes([image[32], image[33]]));
    image[header + 32..header + 40].copy_from_slice(&(1u64 << 40).to_le_bytes());
    image
}
