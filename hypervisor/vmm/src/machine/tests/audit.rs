//! The audit: quiet about what is sound, and each kind of harm is found.

use super::*;

/// What the console says of an audit after `kind` was planted in a machine of two VMs, one of them lazy.
fn planted(kind: Option<&str>) -> (Vec<String>, u32) {
    let (mut machine, world) = Bench::new()
        .vm("a", script([]))
        .memory(4 * MIB)
        .vm("b", script([]))
        .memory(8 * MIB)
        .lazy()
        .typed(1, &kind.map_or("vms\n".into(), |kind| std::format!("plant {kind}\n")))
        .typed(2, "audit\nquit\n")
        .boot::<FakeChipset>();
    // A frame that is freed while a VM has it is freed again with the VM; the pool says so in tests.
    let status = finish(&mut machine);
    let lines = world.lines_of("lamina");
    (lines.into_iter().filter(|line| line.starts_with("audit") || line.starts_with("plant")).collect(), status)
}

#[test]
fn a_sound_machine_has_no_violations() {
    let (lines, status) = planted(None);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].ends_with("nested pages: 0 violations"), "{lines:?}");
    assert_eq!(status, 0);
}

#[test]
fn each_kind_of_harm_is_found_on_demand_and_at_the_end() {
    for (kind, found) in [
        ("shared-frame", "audit: a: 4 KiB at guest address 0xd0000000 are mapped to "),
        ("table-frame", "audit: a: 4 KiB at guest address 0xd0000000 are mapped to "),
        ("hypervisor-frame", "audit: a: 4 KiB at guest address 0xd0000000 are mapped to 0x1000 for rwx"),
        ("lost-frame", "audit: 1 frames are taken and nobody has them"),
        ("freed-frame", " is free"),
        ("dirty-frame", " is not clear"),
        ("mapped-frame", "audit: memory of VMs at 0x"),
        ("writable-code", "audit: code can be written"),
    ] {
        let (lines, status) = planted(Some(kind));
        assert_eq!(lines[0], std::format!("plant: {kind} is done"));
        assert!(lines[1].ends_with(": 1 violations"), "{lines:?}");
        assert!(lines[2].contains(found), "{kind}: {lines:?}");
        assert_eq!(lines[2], lines[3], "the same at the machine's end");
        assert_eq!(status, 1);
    }
    assert_eq!(planted(Some("nonsense")).0[0], "plant: nonsense cannot be done");
}

#[test]
fn what_a_vm_kept_after_its_end_is_found() {
    let (mut machine, world) = Bench::new().vm("a", script([power_off()])).boot::<FakeChipset>();
    machine.pool.allocate(crate::frames::FrameSize::Size2M).unwrap();
    assert_eq!(finish(&mut machine), 1);
    let lines = world.lines_of("lamina");
    assert!(lines.iter().any(|l| l.starts_with("audit: 512 frames are taken and nobody has them")), "{lines:?}");
}
