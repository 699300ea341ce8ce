//! Where things are in a VM's PC: guest-physical addresses, ports and interrupt lines.
//!
//! One place for what the loaders, the firmware tables and the chipset must agree on. Owns no state.

use lamina_arch::addr::Gpa;
use lamina_arch::msr;

/// First byte of the legacy video and ROM area: ordinary memory ends here and goes on at [`HIGH_MEMORY`].
pub const LOW_MEMORY_END: Gpa = Gpa(0xa_0000);
/// Where adapters would have their ROMs; empty, and an empty ROM reads as all ones.
pub const OPTION_ROMS: Gpa = Gpa(0xc_0000);
/// Where the firmware tables (RSDP, XSDT, …) stand: guest memory, reserved in the memory map.
pub const FIRMWARE_TABLES: Gpa = Gpa(0xe_0000);
/// Size of the area for firmware tables. Unit: bytes.
pub const FIRMWARE_TABLES_SIZE: u64 = 0x2_0000;
/// Where the SMBIOS tables of a VM without firmware stand: behind all others in that area.
pub const SMBIOS: Gpa = Gpa(0xf_0000);
/// Ordinary memory above the legacy area starts here.
pub const HIGH_MEMORY: Gpa = Gpa(0x10_0000);
/// The hole for devices below 4 GiB starts here; memory that does not fit below it goes on at [`ABOVE_4G`].
pub const PCI_HOLE: Gpa = Gpa(0xc000_0000);
/// Memory beyond the hole.
pub const ABOVE_4G: Gpa = Gpa(0x1_0000_0000);
/// The window to the memory of a display adapter.
pub const VGA_WINDOW: Gpa = LOW_MEMORY_END;
/// Size of that window. Unit: bytes.
pub const VGA_WINDOW_SIZE: u64 = 0x2_0000;
/// PCI's configuration space in memory: 4 KiB for each function of 256 buses.
pub const ECAM: Gpa = Gpa(0xe000_0000);
/// Size of it. Unit: bytes.
pub const ECAM_SIZE: u64 = 256 << 20;
/// High precision event timer, one page of which 1 KiB is used.
pub const HPET: Gpa = Gpa(0xfed0_0000);
/// What the HPET calls itself, in its first register and in its table: a revision, the number of its last timer, a
/// counter of 64 bits, legacy replacement, a vendor.
pub const HPET_BLOCK_ID: u32 = 0x8086 << 16 | 1 << 15 | 1 << 13 | 2 << 8 | 1;
/// I/O APIC registers, one page.
pub const IOAPIC: Gpa = Gpa(0xfec0_0000);
/// Local APIC registers after reset, one page.
pub const LAPIC: Gpa = Gpa(msr::APIC_BASE_AFTER_RESET);

/// ACPI PM1a event block: status (16 bits), enable (16 bits).
pub const PM1A_EVENT_PORT: u16 = 0x600;
/// ACPI PM1a control (16 bits).
pub const PM1A_CONTROL_PORT: u16 = 0x604;
/// ACPI PM timer (32 bits), 3.579545 MHz.
pub const PM_TIMER_PORT: u16 = 0x608;
/// The SLP_TYP value of S5 in our DSDT.
pub const S5_SLP_TYP: u8 = 5;
/// Reset control register of the PC (value 6 written there resets).
pub const RESET_PORT: u16 = 0xcf9;
/// Where a guest records its status (design page, "What scripts may rely on").
pub const STATUS_PORT: u16 = 0xf4;
/// Where the string `Shutdown`, bytewise, ends the VM.
pub const SHUTDOWN_PORT: u16 = 0x8900;
/// First serial port.
pub const COM1_PORT: u16 = 0x3f8;

/// Firmware configuration device: selector (16 bits), data at the next port (8 bits).
pub const FW_CFG_PORT: u16 = 0x510;
/// Firmware configuration device: address of a DMA command (64 bits, big-endian).
pub const FW_CFG_DMA_PORT: u16 = 0x514;
/// Where firmware writes what it does, for developers: a byte at a time.
pub const DEBUG_PORT: u16 = 0x402;
/// IDE task files, primary and secondary: eight ports each.
pub const IDE_PORTS: [u16; 2] = [0x1f0, 0x170];
/// IDE device control, primary and secondary: one port each.
pub const IDE_CONTROL_PORTS: [u16; 2] = [0x3f6, 0x376];
/// ISA interrupts of the IDE channels.
pub const IDE_IRQS: [u8; 2] = [14, 15];

/// ISA interrupt of the timer; on the I/O APIC it is pin 2.
pub const PIT_IRQ: u8 = 0;
/// I/O APIC pin of the timer (interrupt source override).
pub const PIT_GSI: u8 = 2;
/// ISA interrupt of the keyboard.
pub const KEYBOARD_IRQ: u8 = 1;
/// ISA interrupt of the first serial port.
pub const COM1_IRQ: u8 = 4;
/// ISA interrupt of the real-time clock.
pub const RTC_IRQ: u8 = 8;
/// Interrupt of ACPI, level-triggered, active high.
pub const SCI_IRQ: u8 = 9;
/// The ISA interrupts that PCI's four interrupt lines are routed to at first, as SeaBIOS does.
pub const PIRQ_ISA_IRQS: [u8; 4] = [10, 10, 11, 11];
/// I/O APIC pin of PCI's first interrupt line, active low, which no route concerns; the others follow.
pub const PIRQ_GSI: u8 = 16;

/// The interrupt line (0 to 3) that pin `pin` (0: INTA#) of the PCI device in `slot` is wired to: each slot begins one
/// line further than the one before.
pub const fn pirq(slot: u8, pin: u8) -> u8 {
    (slot & 3).wrapping_add(pin & 3).wrapping_add(3) & 3
}

/// What the local APIC's timer counts. Unit: ticks per second. The same number is CPUID 0x15's crystal clock (ECX).
pub const APIC_TIMER_HZ: u64 = 25_000_000;
