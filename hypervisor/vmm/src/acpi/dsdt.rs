//! The DSDT: what of the PC cannot be found by probing, in AML (ACPI Specification 6.5, "ACPI Machine Language (AML)
//! Specification").

use alloc::vec;
use alloc::vec::Vec;

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Name, Package, ResourceTemplate, Scope,
};
use acpi_tables::sdt::Sdt;
use spin::Once;

use super::{DSDT_REVISION, OEM_ID, OEM_REVISION, OEM_TABLE_ID, low32};
use crate::layout::{COM1_IRQ, COM1_PORT, IOAPIC, KEYBOARD_IRQ, PCI_HOLE, PM1A_EVENT_PORT, RTC_IRQ, S5_SLP_TYP};

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
            &AddressSpace::new_memory(
                AddressSpaceCacheable::NotCacheable,
                true,
                low32(PCI_HOLE),
                low32(IOAPIC) - 1,
                None,
            ),
        ]),
    );
    let mut bytes = Vec::new();
    Device::new("PCI0".into(), vec![&hid, &uid, &crs, isa_bridge]).to_aml_bytes(&mut bytes);
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

    let mut aml = Vec::new();
    Scope::new("\\_SB_".into(), vec![&host_bridge]).to_aml_bytes(&mut aml);
    let sleep_types = Package::new(vec![&S5_SLP_TYP, &S5_SLP_TYP, &0u8, &0u8]);
    Name::new("\\_S5_".into(), &sleep_types).to_aml_bytes(&mut aml);

    let mut dsdt = Sdt::new(*b"DSDT", 36, DSDT_REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&aml);
    dsdt.as_slice().to_vec()
}
