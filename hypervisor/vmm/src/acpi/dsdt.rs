//! The DSDT: what of the PC cannot be found by probing, in AML (ACPI Specification 6.5, "ACPI Machine Language (AML)
//! Specification").

use alloc::vec;
use alloc::vec::Vec;

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Arg, Device, EISAName, IO, If, Interrupt, Memory32Fixed, Method, Name,
    Package, Path, ResourceTemplate, Return, Scope, Store,
};
use acpi_tables::sdt::Sdt;
use lamina_arch::addr::Gpa;
use spin::Once;

use super::{DSDT_REVISION, OEM_ID, OEM_REVISION, OEM_TABLE_ID, low32};
use crate::layout::{
    COM1_IRQ, COM1_PORT, ECAM, ECAM_SIZE, IOAPIC, KEYBOARD_IRQ, PCI_HOLE, PIRQ_GSI, PIRQ_ISA_IRQS, PM1A_EVENT_PORT,
    RTC_IRQ, S5_SLP_TYP, pirq,
};

/// Ports of mechanism 1, in the middle of what the host bridge passes on.
const CONFIG_PORT: u16 = 0xcf8;
const CONFIG_PORT_COUNT: u8 = 8;
/// Ports of the ACPI fixed hardware, all blocks together.
const PM_PORT_COUNT: u8 = 12;
const KEYBOARD_DATA_PORT: u16 = 0x60;
const KEYBOARD_COMMAND_PORT: u16 = 0x64;
const CMOS_PORT: u16 = 0x70;
const CMOS_PORT_COUNT: u8 = 2;

/// A consumed ISA interrupt: edge-triggered, active high, not shared.
fn isa_interrupt(irq: u8) -> Interrupt {
    Interrupt::new(true, true, false, false, u32::from(irq))
}

/// `count` fixed ports from `first` on.
fn ports(first: u16, count: u8) -> IO {
    IO::new(first, first, 1, count)
}

/// Addresses that the host bridge passes on, from `start` to before `end`.
fn memory(start: Gpa, end: Gpa) -> AddressSpace<u32> {
    AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, low32(start), low32(end) - 1, None)
}

/// A device with a hardware ID and resources. `path` is a name of 4 characters, `id` an EISA ID.
fn device(path: &str, id: &str, unique_id: u8, resources: Vec<&dyn Aml>) -> Made {
    let hid = Name::new("_HID".into(), &EISAName::new(id));
    let uid = Name::new("_UID".into(), &unique_id);
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(resources));
    let mut bytes = Vec::new();
    Device::new(path.into(), vec![&hid, &uid, &crs]).to_aml_bytes(&mut bytes);
    Made(bytes)
}

/// AML that is made already.
struct Made(Vec<u8>);

impl Aml for Made {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

/// Whether the guest uses the I/O APIC: what it gave to `_PIC`.
const PIC_MODE: &str = "PICM";
/// Slots that a device can be in, beside the host bridge, which has no interrupts.
const SLOTS: core::ops::Range<u8> = 1..32;

/// A routing table: to which interrupt `of` takes the line of each pin of each slot.
fn routes(of: impl Fn(u8) -> u8) -> Made {
    let mut slots = Vec::new();
    for slot in SLOTS {
        for pin in 0..4u8 {
            // Any function of the slot; no link device that could move it.
            let address = u32::from(slot) << 16 | 0xffff;
            let to = of(pirq(slot, pin));
            let route = Package::new(vec![&address, &pin, &0u8, &to]);
            let mut bytes = Vec::new();
            route.to_aml_bytes(&mut bytes);
            slots.push(Made(bytes));
        }
    }
    let mut bytes = Vec::new();
    Package::new(slots.iter().map(|slot| slot as &dyn Aml).collect()).to_aml_bytes(&mut bytes);
    Made(bytes)
}

/// Where PCI's interrupts go: to pins of the I/O APIC of their own, or to the ISA interrupts that firmware routes them to.
fn routing() -> Made {
    let mode = Path::new(PIC_MODE);
    let (ioapic, pic) = (routes(|line| PIRQ_GSI + line), routes(|line| PIRQ_ISA_IRQS[usize::from(line & 3)]));
    let (to_ioapic, to_pic) = (Return::new(&ioapic), Return::new(&pic));
    let choice = If::new(&mode, vec![&to_ioapic]);
    let mut bytes = Vec::new();
    Method::new("_PRT".into(), 0, false, vec![&choice, &to_pic]).to_aml_bytes(&mut bytes);
    Made(bytes)
}

/// The host bridge: root of PCI, with what it passes on to its bus.
fn host_bridge(isa_bridge: &dyn Aml) -> Made {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0A03"));
    let uid = Name::new("_UID".into(), &0u8);
    let crs = Name::new(
        "_CRS".into(),
        &ResourceTemplate::new(vec![
            &AddressSpace::new_bus_number(0u16, 0xff),
            &ports(CONFIG_PORT, CONFIG_PORT_COUNT),
            &AddressSpace::new_io(0u16, CONFIG_PORT - 1, None),
            &AddressSpace::new_io(CONFIG_PORT + u16::from(CONFIG_PORT_COUNT), 0xffff, None),
            &memory(PCI_HOLE, ECAM),
            &memory(ECAM + ECAM_SIZE, IOAPIC),
        ]),
    );
    let routing = routing();
    let mut bytes = Vec::new();
    Device::new("PCI0".into(), vec![&hid, &uid, &crs, &routing, isa_bridge]).to_aml_bytes(&mut bytes);
    Made(bytes)
}

/// The whole table, its header too. `keyboard`: it tells of one.
pub fn build(keyboard: bool) -> &'static [u8] {
    /// Each is made for the first VM that has it, and never changes: making it anew would be a quarter of what making
    /// a VM costs. Shared by all processors.
    static MADE: [Once<Vec<u8>>; 2] = [Once::new(), Once::new()];
    MADE[usize::from(keyboard)].call_once(|| make(keyboard))
}

fn make(keyboard: bool) -> Vec<u8> {
    let com1 = device("COM1", "PNP0501", 1, vec![&ports(COM1_PORT, 8), &isa_interrupt(COM1_IRQ)]);
    let rtc = device("RTC0", "PNP0B00", 0, vec![&ports(CMOS_PORT, CMOS_PORT_COUNT), &isa_interrupt(RTC_IRQ)]);
    // A guest must not give these ports to a PCI device.
    let power = device("PMIO", "PNP0C02", 0, vec![&ports(PM1A_EVENT_PORT, PM_PORT_COUNT)]);
    let isa_address = Name::new("_ADR".into(), &0x1_0000u32);
    let mut on_isa: Vec<&dyn Aml> = vec![&isa_address, &com1, &rtc, &power];
    let (data, command) = (ports(KEYBOARD_DATA_PORT, 1), ports(KEYBOARD_COMMAND_PORT, 1));
    let keyboard_device = device("KBD0", "PNP0303", 0, vec![&data, &command, &isa_interrupt(KEYBOARD_IRQ)]);
    if keyboard {
        on_isa.push(&keyboard_device);
    }
    let isa_bridge = Device::new("ISA0".into(), on_isa);
    let host_bridge = host_bridge(&isa_bridge);
    // Reserved, so that a guest neither gives it to a device nor doubts the table that tells of it.
    let ecam_size = u32::try_from(ECAM_SIZE).unwrap_or(u32::MAX);
    let ecam = device("ECAM", "PNP0C02", 1, vec![&Memory32Fixed::new(true, low32(ECAM), ecam_size)]);

    let mut aml = Vec::new();
    let mode = Path::new(PIC_MODE);
    Name::new(PIC_MODE.into(), &0u8).to_aml_bytes(&mut aml);
    let set_mode = Store::new(&mode, &Arg(0));
    Method::new("_PIC".into(), 1, false, vec![&set_mode]).to_aml_bytes(&mut aml);
    Scope::new("\\_SB_".into(), vec![&host_bridge, &ecam]).to_aml_bytes(&mut aml);
    let sleep_types = Package::new(vec![&S5_SLP_TYP, &S5_SLP_TYP, &0u8, &0u8]);
    Name::new("\\_S5_".into(), &sleep_types).to_aml_bytes(&mut aml);

    let mut dsdt = Sdt::new(*b"DSDT", 36, DSDT_REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&aml);
    dsdt.as_slice().to_vec()
}
