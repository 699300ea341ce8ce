//! What is read, and what is refused with which words.

use std::path::Path;

use lamina_vmm::config::LogLevel;
use lamina_vmm::memory::Backing;

use super::*;
use crate::setup::debian::Package;

/// A configuration whose kernel is this very crate's manifest: the images themselves are checked elsewhere.
fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, "some.toml", Path::new(env!("CARGO_MANIFEST_DIR")))
}

fn one(extra: &str) -> Result<Config, ConfigError> {
    parse(&format!("[[vm]]\nname = \"a\"\nkernel = \"Cargo.toml\"\n{extra}\n"))
}

/// The message must hold all of these.
fn refused(result: Result<Config, ConfigError>, parts: &[&str]) {
    let message = result.expect_err("accepted").to_string();
    assert!(message.starts_with("some.toml: "), "{message}");
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

#[test]
fn defaults() {
    let config = one("").unwrap();
    let vm = &config.vms[0];
    assert_eq!((vm.memory, vm.vcpus, vm.weight), (128 << 20, 1, 100));
    assert_eq!((vm.cpu.as_str(), vm.cmdline.as_str()), ("host", ""));
    assert_eq!(vm.kernel, Source::File(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")));
    assert!(vm.initrd.is_none() && vm.modules.is_empty());
    assert_eq!(config.log, LogLevel::Info);
}

#[test]
fn everything_at_once() {
    let config = parse(
        r#"
        [lamina]
        log = "debug"
        [[vm]]
        name = "debian"
        kernel = "debian:linux-image-cloud-amd64"
        initrd = "builtin:busybox"
        cmdline = "console=ttyS0"
        memory = "256M"
        vcpus = 1
        weight = 50
        cpu = "host"
        [[vm]]
        name = "second-1"
        kernel = "src/lib.rs"
        modules = [{ path = "Cargo.toml", cmdline = "env" }]
        memory = 8192
        backing = "lazy"
        "#,
    )
    .unwrap();
    assert_eq!(config.log, LogLevel::Debug);
    let package = Package::amd64("linux-image-cloud-amd64");
    assert_eq!(config.vms[0].kernel, Source::Debian { package, file: None });
    assert_eq!(config.vms[0].initrd, Some(Source::Busybox("amd64")));
    assert_eq!((config.vms[0].memory, config.vms[0].weight), (256 << 20, 50));
    assert_eq!(config.vms[1].modules[0].cmdline, "env");
    assert_eq!([config.vms[0].backing, config.vms[1].backing], [Backing::Eager, Backing::Lazy]);
    assert_eq!([Backing::Eager, Backing::Lazy].map(|b| config.memory(b)), [256 << 20, 8192]);
}

#[test]
fn unknown_keys() {
    refused(one("kernle = \"x\""), &["[[vm]] \"a\": kernle = \"x\"", "unknown key", "kernel"]);
    refused(parse("virtual = 1\n[[vm]]\nname=\"a\"\nkernel=\"Cargo.toml\""), &["virtual = 1", "unknown key"]);
    refused(one("[lamina]\nlogs = 1"), &["[lamina]: logs = 1"]);
    refused(one("modules = [{ path = \"Cargo.toml\", x = 1 }]"), &["modules: x = 1"]);
}

#[test]
fn names() {
    for (name, reason) in [
        ("lamina", "reserved"),
        ("", "must match"),
        ("Debian", "must match"),
        ("1st", "must match"),
        ("a_b", "must match"),
        ("-a", "must match"),
        ("ä", "must match"),
        (&"a".repeat(32), "longer than 31"),
    ] {
        let text = format!("[[vm]]\nname = {name:?}\nkernel = \"Cargo.toml\"");
        refused(parse(&text), &["[[vm]] number 1: name = ", name, reason]);
    }
    assert!(parse(&format!("[[vm]]\nname = {:?}\nkernel = \"Cargo.toml\"", "a".repeat(31))).is_ok());
    let twice = "[[vm]]\nname = \"a\"\nkernel = \"Cargo.toml\"\n".repeat(2);
    refused(parse(&twice), &["number 2: name = \"a\"", "another VM has this name"]);
}

#[test]
fn memory_sizes() {
    refused(one("memory = 0"), &["memory = 0", "needs memory"]);
    refused(one("memory = \"0M\""), &["memory = \"0M\"", "needs memory"]);
    refused(one("memory = \"5000\""), &["memory = \"5000\"", "multiple of 4K"]);
    refused(one("memory = \"1X\""), &["memory = \"1X\"", "not a size"]);
    refused(one("memory = -4096"), &["memory = -4096", "not a size"]);
    refused(one("memory = \"16777215T\""), &["memory = \"16777215T\"", "which is the most"]);
    refused(one("memory = 1.5"), &["memory = 1.5", "not a size"]);
}

#[test]
fn what_is_missing() {
    refused(parse(""), &["vm is missing"]);
    refused(parse("vm = []"), &["vm is missing"]);
    refused(parse("[[vm]]\nkernel = \"Cargo.toml\""), &["[[vm]] number 1: name is missing"]);
    refused(parse("[[vm]]\nname = \"a\""), &["[[vm]] \"a\": kernel is missing"]);
    refused(parse("[[vm]]\nname = \"a\"\nkernel = \"no-such\""), &["kernel = \"no-such\"", "No such file"]);
    refused(one("initrd = \"no-such\""), &["initrd = \"no-such\"", "No such file"]);
    refused(one("initrd = \"src\""), &["initrd = \"src\"", "not a file"]);
    refused(one("modules = [{ path = \"no-such\" }]"), &["modules: path = \"no-such\""]);
    let absent = Config::load(Path::new("/no/such.toml")).unwrap_err().to_string();
    assert!(absent.starts_with("/no/such.toml: cannot be read"), "{absent}");
}

#[test]
fn sources() {
    let kernel = |source: &str| parse(&format!("[[vm]]\nname = \"a\"\nkernel = {source:?}"));
    refused(kernel("guest:no-such-program"), &["kernel = \"guest:no-such-program\"", "no such guest program"]);
    refused(kernel("guest:rt"), &["no such guest program"]);
    refused(kernel("debian:-x"), &["kernel = \"debian:-x\"", "not the name"]);
    refused(kernel("debian:linux-image-arm64:arm64"), &["\"arm64\" is no architecture", "amd64, i386"]);
    refused(kernel("debian:memtest86+/"), &["not the end of a path"]);
    refused(kernel("debian:memtest86+/../x"), &["\"../x\"", "not the end of a path"]);
    refused(kernel("debian:../x"), &["not the name"]);
    refused(kernel("builtin:busybox"), &["not taken here"]);
    refused(kernel("http://x"), &["\"http\" is not taken here"]);
    refused(one("initrd = \"builtin:toybox\""), &["no such built-in"]);
    refused(one("initrd = \"debian:busybox\""), &["not taken here"]);
}

#[test]
fn packages_of_another_architecture_and_files_in_packages() {
    let vm = |kernel: &str, initrd: &str| {
        let text = format!("[[vm]]\nname = \"a\"\nkernel = {kernel:?}\ninitrd = {initrd:?}");
        parse(&text).map(|config| config.vms[0].clone())
    };
    let pae = vm("debian:linux-image-686-pae:i386", "builtin:busybox").unwrap();
    let package = Package { name: "linux-image-686-pae".to_owned(), architecture: "i386" };
    assert_eq!(pae.kernel, Source::Debian { package, file: None });
    assert_eq!(pae.kernel.to_string(), "\"debian:linux-image-686-pae:i386\"");
    assert_eq!(pae.initrd, Some(Source::Busybox("i386")), "as the kernel");
    let explicit = vm("debian:linux-image-686-pae:i386", "builtin:busybox:amd64").unwrap();
    assert_eq!(explicit.initrd, Some(Source::Busybox("amd64")));
    let named = vm("Cargo.toml", "builtin:busybox:i386").unwrap();
    assert_eq!(named.initrd, Some(Source::Busybox("i386")));
    refused(vm("Cargo.toml", "builtin:busybox:z80").map(|_| unreachable!()), &["\"z80\" is no architecture"]);

    let memtest = vm("debian:memtest86+/memtest86+x64.bin", "builtin:busybox").unwrap();
    let file = Some("memtest86+x64.bin".to_owned());
    assert_eq!(memtest.kernel, Source::Debian { package: Package::amd64("memtest86+"), file });
    let deep = vm("debian:multiboot:i386/multiboot/examples/kernel", "builtin:busybox").unwrap();
    assert_eq!(deep.kernel.to_string(), "\"debian:multiboot:i386/multiboot/examples/kernel\"");
}

#[test]
fn types_and_what_is_not_there_yet() {
    refused(one("cmdline = 1"), &["cmdline = 1", "must be a string"]);
    refused(one("cmdline = \"a\\u0000b\""), &["cmdline = ", "NUL"]);
    refused(one("vcpus = 2"), &["vcpus = 2", "not supported yet"]);
    refused(one("vcpus = 0"), &["vcpus = 0", "from 1"]);
    refused(one("backing = \"soon\""), &["backing = \"soon\"", "\"lazy\""]);
    refused(one("backing = 1"), &["backing = 1"]);
    refused(one("weight = 0"), &["weight = 0", "from 1"]);
    refused(one("weight = 4294967295"), &["weight = 4294967295", "from 1"]);
    refused(one("weight = \"x\""), &["weight = \"x\"", "whole number"]);
    refused(one("cpu = \"nehalem\""), &["cpu = \"nehalem\"", "not supported yet"]);
    refused(one("modules = 1"), &["modules = 1", "list of tables"]);
    refused(one("[lamina]\nlog = \"loud\""), &["[lamina]: log = \"loud\"", "must be one of"]);
    for key in ["firmware", "cdrom", "disk"] {
        refused(one(&format!("{key} = \"x\"")), &[&format!("{key} = \"x\""), "not supported yet"]);
    }
    refused(parse("[vm]\nname = \"a\""), &["vm = ", "list of tables"]);
    refused(parse("[[vm]\n"), &["line 1"]);
}
