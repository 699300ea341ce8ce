//! What is read, and what is refused with which words.

use std::path::Path;

use lamina_vmm::config::{LogLevel, Mitigations};
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

fn kernel(vm: &Vm) -> &Source {
    match &vm.boot {
        Boot::Kernel(source) => source,
        Boot::Firmware(source) => panic!("firmware: {source}"),
    }
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
    assert_eq!(*kernel(vm), Source::File(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")));
    assert!(vm.cdrom.is_none() && vm.vga.is_none() && !vm.hpet);
    assert!(vm.initrd.is_none() && vm.modules.is_empty());
    assert_eq!((config.log, config.mitigations), (LogLevel::Info, Mitigations::Auto));
}

#[test]
fn everything_at_once() {
    let config = parse(
        r#"
        [lamina]
        log = "debug"
        mitigations = "full"
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
        apic = "virtualized"
        "#,
    )
    .unwrap();
    assert_eq!((config.log, config.mitigations), (LogLevel::Debug, Mitigations::Full));
    let package = Package::amd64("linux-image-cloud-amd64");
    assert_eq!(*kernel(&config.vms[0]), Source::Debian { package, file: None });
    assert_eq!(config.vms[0].initrd, Some(Source::Busybox("amd64")));
    assert_eq!((config.vms[0].memory, config.vms[0].weight), (256 << 20, 50));
    assert_eq!(config.vms[1].modules[0].cmdline, "env");
    assert_eq!([config.vms[0].backing, config.vms[1].backing], [Backing::Eager, Backing::Lazy]);
    assert_eq!([config.vms[0].apic, config.vms[1].apic], [None, Some(Apic::Virtualized)]);
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
    assert_eq!(*kernel(&pae), Source::Debian { package, file: None });
    assert_eq!(kernel(&pae).to_string(), "\"debian:linux-image-686-pae:i386\"");
    assert_eq!(pae.initrd, Some(Source::Busybox("i386")), "as the kernel");
    let explicit = vm("debian:linux-image-686-pae:i386", "builtin:busybox:amd64").unwrap();
    assert_eq!(explicit.initrd, Some(Source::Busybox("amd64")));
    let named = vm("Cargo.toml", "builtin:busybox:i386").unwrap();
    assert_eq!(named.initrd, Some(Source::Busybox("i386")));
    refused(vm("Cargo.toml", "builtin:busybox:z80").map(|_| unreachable!()), &["\"z80\" is no architecture"]);

    let memtest = vm("debian:memtest86+/memtest86+x64.bin", "builtin:busybox").unwrap();
    let file = Some("memtest86+x64.bin".to_owned());
    assert_eq!(*kernel(&memtest), Source::Debian { package: Package::amd64("memtest86+"), file });
    let deep = vm("debian:multiboot:i386/multiboot/examples/kernel", "builtin:busybox").unwrap();
    assert_eq!(kernel(&deep).to_string(), "\"debian:multiboot:i386/multiboot/examples/kernel\"");
}

#[test]
fn types_and_what_is_not_there_yet() {
    refused(one("cmdline = 1"), &["cmdline = 1", "must be a string"]);
    refused(one("cmdline = \"a\\u0000b\""), &["cmdline = ", "NUL"]);
    refused(one("vcpus = 2"), &["vcpus = 2", "not supported yet"]);
    refused(one("vcpus = 0"), &["vcpus = 0", "from 1"]);
    refused(one("backing = \"soon\""), &["backing = \"soon\"", "\"lazy\""]);
    refused(one("backing = 1"), &["backing = 1"]);
    refused(one("apic = \"x2apic\""), &["apic = \"x2apic\"", "\"emulated\""]);
    refused(one("weight = 0"), &["weight = 0", "from 1"]);
    refused(one("trace = 0"), &["trace = 0", "from 1"]);
    refused(one("trace = 1000001"), &["trace = 1000001", "to 1000000"]);
    refused(one("weight = 4294967295"), &["weight = 4294967295", "from 1"]);
    refused(one("weight = \"x\""), &["weight = \"x\"", "whole number"]);
    refused(one("cpu = \"nehalem\""), &["cpu = \"nehalem\"", "must be one of"]);
    refused(one("modules = 1"), &["modules = 1", "list of tables"]);
    refused(one("[lamina]\nlog = \"loud\""), &["[lamina]: log = \"loud\"", "must be one of"]);
    refused(one("[lamina]\nmitigations = \"on\""), &["[lamina]: mitigations = \"on\"", "\"full\""]);
    refused(one("disk = \"x\""), &["disk = \"x\"", "not supported yet"]);
    refused(parse("[vm]\nname = \"a\""), &["vm = ", "list of tables"]);
    refused(parse("[[vm]\n"), &["line 1"]);
}

#[test]
fn firmware_and_what_belongs_to_it() {
    let vm = |keys: &str| parse(&format!("[[vm]]\nname = \"a\"\n{keys}")).map(|config| config.vms[0].clone());
    let file = |name: &str| Source::Debian { package: Package::amd64("seabios"), file: Some(name.to_owned()) };
    let plain = vm("firmware = \"debian:seabios\"\nvga = true\nhpet = true").unwrap();
    assert_eq!(plain.boot, Boot::Firmware(file("bios-256k.bin")));
    assert_eq!((plain.vga, plain.hpet), (Some(Vga { bios: Some(file("vgabios-isavga.bin")) }), true));
    let other = vm("firmware = \"debian:seabios/bios.bin\"\nvga = \"debian:seabios/vgabios-stdvga.bin\"").unwrap();
    assert_eq!(other.boot, Boot::Firmware(file("bios.bin")));
    assert_eq!(other.vga, Some(Vga { bios: Some(file("vgabios-stdvga.bin")) }));
    assert!(matches!(vm("firmware = \"Cargo.toml\"\ncdrom = \"Cargo.toml\"").unwrap().cdrom, Some(Source::File(_))));
    assert_eq!(vm("kernel = \"Cargo.toml\"\nvga = true").unwrap().vga, Some(Vga { bios: None }));

    let firmware = |keys: &str| vm(&format!("firmware = \"debian:seabios\"\n{keys}")).map(|_| unreachable!());
    refused(firmware("kernel = \"Cargo.toml\""), &["firmware = \"debian:seabios\"", "the one or the other"]);
    refused(firmware("initrd = \"builtin:busybox\""), &["initrd = \"builtin:busybox\"", "not with firmware"]);
    refused(firmware("cmdline = \"quiet\""), &["cmdline = \"quiet\"", "not with firmware"]);
    refused(firmware("modules = [{ path = \"Cargo.toml\" }]"), &["modules: path = ", "not with firmware"]);
    refused(firmware("cdrom = \"no-such.iso\""), &["cdrom = \"no-such.iso\"", "No such file"]);
    refused(firmware("cdrom = \"src\""), &["cdrom = \"src\"", "not a file"]);
    refused(firmware("cdrom = 1"), &["cdrom = 1", "must be a path"]);
    refused(firmware("vga = 1"), &["vga = 1", "must be true"]);
    refused(firmware("hpet = \"yes\""), &["hpet = \"yes\"", "true or false"]);
    refused(firmware("fw_cfg = 1"), &["fw_cfg = 1", "must be a table"]);
    refused(firmware("fw_cfg = { a = -1 }"), &["fw_cfg: \"a\" = -1", "from 0 on"]);
    refused(firmware("fw_cfg = { \"\" = 1 }"), &["fw_cfg: \"\" = 1", "1 to 55"]);
    refused(one("fw_cfg = { a = 1 }").map(|_| unreachable!()), &["fw_cfg = ", "only firmware"]);
    let files = vm("firmware = \"Cargo.toml\"\nfw_cfg = { \"etc/a\" = 258, b = \"x\" }").unwrap().fw_cfg;
    let expected: [(&str, &[u8]); 2] = [("b", b"x"), ("etc/a", &[2, 1, 0, 0, 0, 0, 0, 0])];
    assert!(expected.iter().all(|(name, bytes)| files.contains(&((*name).to_owned(), bytes.to_vec()))), "{files:?}");
    refused(one("vga = \"Cargo.toml\"").map(|_| unreachable!()), &["vga = \"Cargo.toml\"", "for firmware"]);
    for (value, reason) in
        [("no-such", "No such file"), ("debian:memtest86+", "name the file"), ("guest:hello", "not taken")]
    {
        refused(
            vm(&format!("firmware = {value:?}")).map(|_| unreachable!()),
            &[&format!("firmware = {value:?}"), reason],
        );
    }
}

#[test]
fn a_cd_that_grub_boots_from() {
    let vm = |cd: &str| parse(&format!("[[vm]]\nname = \"a\"\nfirmware = \"Cargo.toml\"\ncdrom = {cd}"));
    let config =
        vm("{ grub = \"boot\", files = { \"boot/x\" = \"Cargo.toml\", \"boot/init\" = \"builtin:busybox\" } }")
            .unwrap();
    let Some(Source::Rescue { menu, files }) = &config.vms[0].cdrom else { panic!("{config:?}") };
    assert_eq!(menu, "boot");
    let mut names: Vec<_> = files.iter().map(|(path, _)| path.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["boot/init", "boot/x"]);
    refused(vm("{}"), &["cdrom: grub is missing"]);
    refused(vm("{ grub = 1 }"), &["cdrom: grub = 1", "string"]);
    refused(vm("{ grub = \"\", file = {} }"), &["cdrom: file = ", "unknown key"]);
    refused(vm("{ grub = \"\", files = [] }"), &["cdrom: files = []", "must be a table"]);
    refused(vm("{ grub = \"\", files = { a = 1 } }"), &["files: \"a\" = 1", "string"]);
    refused(vm("{ grub = \"\", files = { a = \"no-such\" } }"), &["files: \"a\" = \"no-such\"", "No such file"]);
    for path in ["/a", "a/../b", "a//b", ""] {
        refused(vm(&format!("{{ grub = \"\", files = {{ {path:?} = \"Cargo.toml\" }} }}")), &["not a path on a CD"]);
    }
}
