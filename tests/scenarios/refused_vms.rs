//! A bundle that the host would never pack: each bad VM in it is refused with a reason, and the good one runs.

use anyhow::{Context, Result, ensure};
use lamina_tests::{Needs, Running, Scenario, Stage};
use lamina_vmm::config::{Blob, Boot, Bundle, Vga, VmConfig, seal};

pub const SCENARIO: Scenario = Scenario { name: "refused_vms", needs: Needs::Machine, limit: 300, long: false, run };

/// Where the description starts in a bundle.
const DESCRIPTION: usize = 16;

fn run(stage: &Stage) -> Result<()> {
    let packed = stage.pack(
        r#"
        [[vm]]
        name = "good"
        kernel = "guest:ticker"
        cmdline = "count=2"
        memory = "16M"
        "#,
    )?;
    let mut machine = stage.boot_bundle(&with_bad_vms(packed)?)?;
    for (name, words) in REFUSED {
        refused(&mut machine, name, words)?;
    }
    machine.expect(r"^\[good\] 200 ticks$")?;
    machine.expect(r"^\[lamina\] good stopped: .+ \(status 0\)$")?;
    machine.ends(1)
}

/// The bad VMs in the order of the bundle, and what the reason must speak of.
const REFUSED: [(&str, &str); 13] = [
    // These names are not to be had; a line of the console's is told by its number.
    ("vm-1", "name"),
    ("vm-2", "name"),
    ("beyond", "bundle"),
    ("huge", "memory"),
    ("odd", "memory"),
    ("many", "vcpus"),
    ("cut", "cut off"),
    ("told", "cmdline"),
    ("small", "memory"),
    ("torn", "firmware: .* 4097 bytes"),
    ("scratched", "cdrom: 2049 bytes"),
    ("blank", "cdrom: .* ISO 9660"),
    ("dark", "vga: no VGA BIOS"),
];

fn refused(machine: &mut Running, name: &str, words: &str) -> Result<()> {
    machine.expect(&format!(r"^\[lamina\] {name} stopped: refused: .*({words}).* \(status 0\)$")).map(drop)
}

fn with_bad_vms(mut packed: Vec<u8>) -> Result<Vec<u8>> {
    let mut bundle: Bundle = postcard::from_bytes(packed.get(DESCRIPTION..).context("no description")?)?;
    let good = bundle.vms.first().cloned().context("no VM")?;
    let (_, kernel) = good.boot.part();
    let bad = |name: &str, change: &dyn Fn(&mut VmConfig)| {
        let mut vm = VmConfig { name: name.to_owned(), ..good.clone() };
        change(&mut vm);
        vm
    };
    let firmware = |name: &str, length: u64, change: &dyn Fn(&mut VmConfig)| {
        bad(name, &|vm| {
            vm.boot = Boot::Firmware(Blob { length, ..kernel });
            vm.cmdline.clear();
            change(vm);
        })
    };
    let length = packed.len() as u64;
    bundle.vms.extend([
        bad("good", &|_| {}),
        bad("lamina", &|_| {}),
        bad("beyond", &|vm| vm.boot = Boot::Kernel(Blob { offset: kernel.offset, length: length * 2 })),
        bad("huge", &|vm| vm.memory = 1 << 40),
        bad("odd", &|vm| vm.memory = (16 << 20) + 1),
        bad("many", &|vm| vm.vcpus = 200),
        // An image whose header speaks of more than there is.
        bad("cut", &|vm| vm.boot = Boot::Kernel(Blob { length: 0x200, ..kernel })),
        // Firmware with what only a kernel is given, without memory, and that is not whole pages.
        bad("told", &|vm| vm.boot = Boot::Firmware(kernel)),
        firmware("small", 4096, &|vm| vm.memory = 4096),
        firmware("torn", 4097, &|_| {}),
        // CDs of no whole block, and without a volume.
        bad("scratched", &|vm| vm.cdrom = Some(Blob { length: 2049, ..kernel })),
        bad("blank", &|vm| vm.cdrom = Some(Blob { length: 4096, ..kernel })),
        bad("dark", &|vm| vm.vga = Some(Vga { bios: Some(Blob { length: 4096, ..kernel }) })),
    ]);
    let description = postcard::to_allocvec(&bundle)?;
    let end = DESCRIPTION + description.len();
    // The blobs stay where they are.
    ensure!(end as u64 <= kernel.offset, "the description does not fit before the blobs");
    packed[8..12].copy_from_slice(&u32::try_from(description.len())?.to_le_bytes());
    packed[DESCRIPTION..end].copy_from_slice(&description);
    seal(&mut packed);
    Ok(packed)
}
