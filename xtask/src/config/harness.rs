//! Whatever a configuration says, it is read, or refused with words that name the file; never anything else.

use std::fmt::Write;
use std::path::Path;

use bolero::check;

use super::Config;

/// Every key that there is, and some that there are not.
const KEYS: [&str; 24] = [
    "name",
    "kernel",
    "initrd",
    "cmdline",
    "modules",
    "memory",
    "vcpus",
    "weight",
    "cpu",
    "cdrom",
    "firmware",
    "backing",
    "trace",
    "hpet",
    "vga",
    "on-triple-fault",
    "log",
    "mitigations",
    "path",
    "x",
    "\"\"",
    "a.b",
    "vm",
    "rtc",
];

/// Values that mean something somewhere; what is missing here comes from the bytes.
const WORDS: [&str; 16] = [
    "Cargo.toml",
    "debian:linux-image-cloud-amd64",
    "debian:seabios/x",
    "debian:",
    "guest:hello",
    "guest:",
    "builtin:busybox",
    "builtin:busybox:i386",
    "16M",
    "18446744073709551615G",
    "4K",
    "lazy",
    "eager",
    "host",
    "corei7_skylake_x",
    "info",
];

#[test]
fn a_configuration_is_read_or_refused_by_name() {
    check!().with_type::<(u8, Vec<(u8, u8, Vec<u8>)>)>().for_each(|(raw, keys)| {
        let mut text = String::new();
        if raw & 3 != 0 {
            text.push_str("[[vm]]\nname = \"a\"\nkernel = \"Cargo.toml\"\n");
        }
        for (key, kind, bytes) in keys {
            let (key, words) = (KEYS[usize::from(*key) % KEYS.len()], String::from_utf8_lossy(bytes));
            let number = bytes.iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte)).cast_signed();
            let word = WORDS[usize::from(*kind >> 3) % WORDS.len()];
            match kind & 7 {
                0 => writeln!(text, "[[vm]]"),
                1 => writeln!(text, "{key} = {number}"),
                2 => writeln!(text, "{key} = {words:?}"),
                3 => writeln!(text, "{key} = {}", kind & 0x80 != 0),
                4 => writeln!(text, "{key} = [{{ {key} = {word:?} }}, {number}]"),
                5 if raw & 4 != 0 => writeln!(text, "{words}"),
                _ => writeln!(text, "{key} = {word:?}"),
            }
            .unwrap();
        }
        match Config::parse(&text, "some.toml", Path::new(env!("CARGO_MANIFEST_DIR"))) {
            Ok(config) => {
                assert!(config.vms.iter().all(|vm| !vm.name.is_empty() && vm.vcpus > 0 && vm.memory > 0), "{text}");
                assert!(config.vms.iter().enumerate().all(|(n, vm)| config.vms[..n].iter().all(|v| v.name != vm.name)));
            }
            Err(error) => assert!(error.to_string().starts_with("some.toml: "), "{error}"),
        }
    });
}
