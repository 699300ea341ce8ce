use alloc::string::ToString;

use proptest::prelude::*;

use super::*;

fn vm(name: &str, kernel: Blob) -> VmConfig {
    VmConfig {
        name: name.to_string(),
        boot: Boot::Kernel(kernel),
        initrd: None,
        modules: Vec::new(),
        cmdline: "console=ttyS0".to_string(),
        backing: Backing::Eager,
        memory: 128 << 20,
        vcpus: 1,
        weight: 100,
        cpu: CPU_HOST.to_string(),
        apic: Apic::default(),
        cdrom: None,
        vga: None,
        hpet: false,
        fw_cfg: Vec::new(),
        trace: 0,
    }
}

fn blob(vm: &VmConfig) -> Blob {
    vm.boot.part().1
}

fn bundle(vms: Vec<VmConfig>) -> Bundle {
    Bundle { interactive: true, screen: false, log: LogLevel::Debug, mitigations: Mitigations::Full, vms }
}

fn small() -> Vec<u8> {
    encode(&[b"kernel", b"", b"ramdisk"], |blobs| {
        let initrd = VmConfig { initrd: Some(blobs[2]), ..vm("b", blobs[0]) };
        let modules = vec![ModuleConfig { blob: blobs[1], cmdline: "empty".to_string() }];
        bundle(vec![VmConfig { modules, ..vm("a", blobs[0]) }, initrd])
    })
    .unwrap()
}

#[test]
fn what_is_encoded_is_parsed() {
    let bytes = small();
    let bundle = parse(&bytes).unwrap();
    let [a, b] = bundle.vms.as_slice() else { panic!("{bundle:?}") };
    assert_eq!(a.boot, b.boot);
    assert!([blob(a), a.modules[0].blob, b.initrd.unwrap()].iter().all(|blob| blob.offset % BLOB_ALIGN == 0));
    assert_eq!(blob_bytes(&bytes, blob(a)), Some(&b"kernel"[..]));
    assert_eq!(blob_bytes(&bytes, a.modules[0].blob), Some(&b""[..]));
    assert_eq!(blob_bytes(&bytes, b.initrd.unwrap()), Some(&b"ramdisk"[..]));
    assert_eq!((a.name.as_str(), a.modules[0].cmdline.as_str(), b.memory), ("a", "empty", 128 << 20));
    assert_eq!((bundle.interactive, bundle.log), (true, LogLevel::Debug));
    assert_eq!(bundle.mitigations, Mitigations::Full);
    let length = bytes.len() as u64;
    assert_eq!(validate(a, [], length), Ok(()));
    assert_eq!(validate(b, ["a"], length), Ok(()));
}

#[test]
fn a_long_description_moves_the_blobs() {
    for length in [3900, 4000, 4050, 4095, 4096, 4097, 9000] {
        let bytes =
            encode(&[b"kernel"], |blobs| bundle(vec![VmConfig { cmdline: "c".repeat(length), ..vm("a", blobs[0]) }]));
        let bytes = bytes.unwrap();
        let bundle = parse(&bytes).unwrap();
        assert_eq!(bundle.vms[0].cmdline.len(), length);
        assert_eq!(blob_bytes(&bytes, blob(&bundle.vms[0])), Some(&b"kernel"[..]));
    }
}

#[test]
fn what_was_damaged_on_its_way_is_found() {
    let bytes = small();
    assert_eq!(check(&bytes), Ok(()));
    for at in [16, bytes.len() / 2, bytes.len() - 1] {
        let mut bytes = bytes.clone();
        bytes[at] ^= 4;
        assert!(matches!(check(&bytes), Err(BundleError::Damaged { .. })));
    }
    // What was not read is zeros.
    let mut short = bytes.clone();
    short[bytes.len() - 3..].fill(0);
    assert!(matches!(check(&short), Err(BundleError::Damaged { .. })));
    assert!(matches!(check(&bytes[..bytes.len() - 1]), Err(BundleError::Damaged { .. })));
    assert_eq!(check(&bytes[..15]), Err(BundleError::NoHeader(15)));
}

#[test]
fn what_is_no_bundle_is_named() {
    let bytes = small();
    assert_eq!(parse(&[]), Err(BundleError::NoHeader(0)));
    assert_eq!(parse(&bytes[..15]), Err(BundleError::NoHeader(15)));
    let with = |at: usize, byte| {
        let mut bytes = bytes.clone();
        bytes[at] = byte;
        parse(&bytes)
    };
    let mut magic = MAGIC;
    magic[7] += 1;
    assert_eq!(with(7, magic[7]), Err(BundleError::Magic(magic)));
    let description = u64::from(bytes[8]) | 0xff00_0000;
    let available = bytes.len() as u64 - 16;
    assert_eq!(with(11, 0xff), Err(BundleError::Truncated { description, available }));
    // One byte less, and one byte more, than the description.
    assert_eq!(with(8, bytes[8] - 1), Err(BundleError::Description));
    assert_eq!(with(8, bytes[8] + 1), Err(BundleError::Description));
    for length in 16..16 + usize::from(bytes[8]) {
        assert!(matches!(parse(&bytes[..length]), Err(BundleError::Truncated { .. })));
    }
}

#[test]
fn names_are_those_of_the_design() {
    for good in ["a", "debian", "a-1-b", "z9", "lamina-2", &"a".repeat(31)] {
        assert_eq!(validate_name(good), Ok(()), "{good}");
    }
    for bad in ["", "1a", "-a", "A", "a_b", "a b", "a\n", "\u{e9}", "a\u{e9}", "a\x1b[1m"] {
        assert_eq!(validate_name(bad), Err(NameError::Characters), "{bad}");
    }
    assert_eq!(validate_name("lamina"), Err(NameError::Reserved));
    assert_eq!(validate_name(&"a".repeat(32)), Err(NameError::TooLong));
}

#[test]
fn each_mistake_is_named() {
    let blob = Blob { offset: 4096, length: 904 };
    let good = vm("a", blob);
    let check = |vm: &VmConfig| validate(vm, ["x", "y"], 5000);
    assert_eq!(check(&good), Ok(()));
    let error = NameError::Characters;
    assert_eq!(check(&vm("A", blob)), Err(ConfigError::Name { name: "A".to_string(), error }));
    assert_eq!(check(&vm("y", blob)), Err(ConfigError::DuplicateName("y".to_string())));
    for (offset, length) in [(4096, 905), (5000, 1), (0, 5001), (u64::MAX, 1), (1, u64::MAX), (u64::MAX, u64::MAX)] {
        let blob = Blob { offset, length };
        let refused = |key| Err(ConfigError::Blob { key, blob, bundle: 5000 });
        assert_eq!(check(&vm("a", blob)), refused("kernel"));
        assert_eq!(check(&VmConfig { boot: Boot::Firmware(blob), ..good.clone() }), refused("firmware"));
        assert_eq!(check(&VmConfig { initrd: Some(blob), ..good.clone() }), refused("initrd"));
        assert_eq!(check(&VmConfig { cdrom: Some(blob), ..good.clone() }), refused("cdrom"));
        let vga = Some(Vga { bios: Some(blob) });
        assert_eq!(check(&VmConfig { vga, ..good.clone() }), refused("vga"));
        let modules = vec![ModuleConfig { blob, cmdline: String::new() }];
        assert_eq!(check(&VmConfig { modules, ..good.clone() }), refused("modules"));
        assert_eq!(blob_bytes(&[0; 5000], blob), None);
    }
    for memory in [0, 1, 4095, 4097, MEMORY_MAX + 4096, u64::MAX, !4095] {
        assert_eq!(check(&VmConfig { memory, ..good.clone() }), Err(ConfigError::Memory(memory)));
    }
    for vcpus in [0, 2, u32::MAX] {
        assert_eq!(check(&VmConfig { vcpus, ..good.clone() }), Err(ConfigError::Vcpus(vcpus)));
    }
    for weight in [0, WEIGHT_MAX + 1, u32::MAX] {
        assert_eq!(check(&VmConfig { weight, ..good.clone() }), Err(ConfigError::Weight(weight)));
    }
    let trace = crate::trace::RECORDS_MAX;
    assert_eq!(check(&VmConfig { trace, ..good.clone() }), Ok(()));
    assert_eq!(check(&VmConfig { trace: trace + 1, ..good.clone() }), Err(ConfigError::Trace(trace + 1)));
    let cpu = "486".to_string();
    assert_eq!(check(&VmConfig { cpu: cpu.clone(), ..good.clone() }), Err(ConfigError::Cpu(cpu)));
    let cmdline = "a\0".to_string();
    let refused = |key| Err(ConfigError::CommandLine { key });
    assert_eq!(check(&VmConfig { cmdline: cmdline.clone(), ..good.clone() }), refused("cmdline"));
    let modules = vec![ModuleConfig { blob, cmdline }];
    assert_eq!(check(&VmConfig { modules, ..good }), refused("modules"));
}

#[test]
fn firmware_is_alone_and_needs_memory() {
    let blob = Blob { offset: 4096, length: 904 };
    let firmware = VmConfig { boot: Boot::Firmware(blob), cmdline: String::new(), ..vm("a", blob) };
    let check = |vm: &VmConfig| validate(vm, [], 5000);
    assert_eq!(check(&firmware), Ok(()));
    assert_eq!(check(&VmConfig { memory: 1 << 20, ..firmware.clone() }), Ok(()));
    let memory = (1 << 20) - 4096;
    let less = VmConfig { memory, ..firmware.clone() };
    assert_eq!(check(&less), Err(ConfigError::MemoryForFirmware(memory)));
    let refused = |key| Err(ConfigError::NotWithFirmware { key });
    assert_eq!(check(&VmConfig { initrd: Some(blob), ..firmware.clone() }), refused("initrd"));
    assert_eq!(check(&VmConfig { cmdline: "x".to_string(), ..firmware.clone() }), refused("cmdline"));
    let modules = vec![ModuleConfig { blob, cmdline: String::new() }];
    assert_eq!(check(&VmConfig { modules, ..firmware.clone() }), refused("modules"));
    let files = |name: &str| vec![(name.to_string(), Vec::new())];
    assert_eq!(check(&VmConfig { fw_cfg: files("etc/x"), ..firmware.clone() }), Ok(()));
    for name in ["", &"n".repeat(56)] {
        let refused = Err(ConfigError::FirmwareFile(name.to_string()));
        assert_eq!(check(&VmConfig { fw_cfg: files(name), ..firmware.clone() }), refused);
    }
    let kernel = VmConfig { fw_cfg: files("etc/x"), ..vm("a", blob) };
    assert_eq!(check(&kernel), Err(ConfigError::FirmwareFile("etc/x".to_string())));
}

#[test]
fn an_error_shows_a_hostile_name_without_its_control_characters() {
    let name = "\x1b[2J\n[lamina] exit 0".to_string();
    let shown = ConfigError::Name { name, error: NameError::Characters }.to_string();
    assert!(!shown.contains(['\x1b', '\n']), "{shown:?}");
}

proptest! {
    #[test]
    fn random_changes_do_no_harm(changes in prop::collection::vec((0usize..200, any::<u8>()), 0..8)) {
        let mut bytes = small();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        if let Ok(bundle) = parse(&bytes) {
            for vm in &bundle.vms {
                if validate(vm, [], bytes.len() as u64).is_ok() {
                    prop_assert!(blob_bytes(&bytes, blob(vm)).is_some());
                }
            }
        }
    }
}
