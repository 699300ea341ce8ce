//! The chipset of a VM as the run loop sees it: everything of the PC that is not processor or memory.
//!
//! Implemented by `lamina-devices` and, in tests, by fakes. A chipset is a pure state machine: it never touches guest
//! memory, never waits, and learns the time only from its arguments.

use alloc::borrow::Cow;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bitflags::bitflags;
use lamina_arch::addr::Gpa;
use lamina_arch::event::GuestFault;
use lamina_arch::time::{Frequency, Tsc};

use crate::apic::{ApicMode, ApicPage};
use crate::dma::{DmaRequest, TRANSFER_MAX};

/// A named file that firmware asks for (QEMU's firmware configuration device).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirmwareFile {
    /// Its name, such as `etc/sercon-port`. Unit: at most 55 bytes.
    pub name: String,
    /// What is in it.
    pub bytes: Cow<'static, [u8]>,
}

impl FirmwareFile {
    /// A file of `bytes`.
    pub fn new(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> FirmwareFile {
        FirmwareFile { name: name.into(), bytes: bytes.into() }
    }

    /// A file that holds a number, as SeaBIOS reads them: 8 bytes, little-endian.
    pub fn number(name: &str, value: u64) -> FirmwareFile {
        FirmwareFile::new(name, value.to_le_bytes().to_vec())
    }
}

/// What a PC may have beyond what every VM has. The default is none of it.
#[derive(Clone, Debug, Default)]
pub struct Extras {
    /// The VM starts in firmware: there are the firmware configuration device with these files (and some of its own)
    /// and the power management function on PCI.
    pub firmware: Option<Vec<FirmwareFile>>,
    /// A VGA display adapter, as its firmware leaves it: in text mode 3.
    pub vga: bool,
    /// A high precision event timer.
    pub hpet: bool,
    /// An IDE controller with a CD-ROM drive, in which this image lies.
    pub cdrom: Option<&'static [u8]>,
    /// The port where firmware writes what it does ([`layout::DEBUG_PORT`]).
    ///
    /// [`layout::DEBUG_PORT`]: crate::layout::DEBUG_PORT
    pub debug_port: bool,
}

/// What a chipset is made from.
#[derive(Clone, Debug)]
pub struct ChipsetSetup {
    /// Rate of the time-stamp counter, the machine's and the guest's alike.
    pub tsc: Frequency,
    /// The guest's TSC at power-on.
    pub now: Tsc,
    /// Wall-clock time at power-on, for the RTC. Unit: seconds since 1970-01-01 00:00 UTC.
    pub unix_seconds: u64,
    /// Guest memory, for the sizes that CMOS reports. Unit: bytes.
    pub memory: u64,
    /// Local APIC ID of the boot processor.
    pub apic_id: u8,
    /// Devices that not every VM has.
    pub extras: Extras,
}

/// What a write to a device asks of the VM.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Nothing.
    None,
    /// Power off (ACPI S5, or `Shutdown` on its port).
    PowerOff,
    /// Reset (0xcf9, or the keyboard controller's pulse).
    Reset,
    /// The guest records its status; it goes on running.
    Status(u32),
    /// Firmware has written a line to its debug port: [`Chipset::take_debug_line`].
    DebugLine,
    /// A device wants to transfer from or to guest memory: [`crate::dma::serve`] before the guest runs again.
    Dma,
}

bitflags! {
    /// What the run loop has to do for a chipset before the guest runs again.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Attention: u8 {
        /// Deliver an interrupt: [`Chipset::acknowledge`].
        const INTERRUPT = 1 << 0;
        /// Tell the processor that virtualizes the local APIC: [`Chipset::take_apic_change`].
        const APIC = 1 << 1;
    }
}

/// A key of the keyboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// What types this character on a keyboard of the US layout: ASCII's printable characters, the control characters
    /// that Ctrl and a letter give, `\n`, `\r`, `\t`, 0x08 and 0x7f (both the backspace key) and 0x1b (Esc).
    Char(char),
    /// Cursor up.
    Up,
    /// Cursor down.
    Down,
    /// Cursor left.
    Left,
    /// Cursor right.
    Right,
    /// Home.
    Home,
    /// End.
    End,
    /// Page up.
    PageUp,
    /// Page down.
    PageDown,
    /// Insert.
    Insert,
    /// Delete.
    Delete,
    /// F1 to F12.
    Function(u8),
}

/// The devices of one VM.
///
/// `now` is always the ticks since the VM started, without what the guest adds to its own TSC, and never runs backwards between two calls. Data is little-endian, and its length
/// is the width of the access: 1, 2, 4 or (MMIO only) 8 bytes.
pub trait Chipset: Sized {
    /// A chipset as after power-on.
    fn new(setup: &ChipsetSetup) -> Self;

    /// IN from `port`. Where no device answers, all ones; counted in [`Chipset::unclaimed`].
    fn port_read(&mut self, now: Tsc, port: u16, data: &mut [u8]);

    /// IN of one byte from a register whose reading changes nothing that the run loop goes by, where that is quick to
    /// tell; `None` where nothing was done, so that [`Chipset::port_read`] is to be asked.
    fn port_peek(&mut self, now: Tsc, port: u16) -> Option<u8> {
        let _ = (now, port);
        None
    }

    /// Several INs from `port` at once, of `width` bytes each, as far as they can be told from one after the other by
    /// nobody: how many bytes of `data` were filled, a multiple of `width`; 0 where they are to be made singly.
    fn port_read_block(&mut self, now: Tsc, port: u16, width: usize, data: &mut [u8]) -> usize {
        let _ = (now, port, width, data);
        0
    }

    /// OUT to `port`.
    fn port_write(&mut self, now: Tsc, port: u16, data: &[u8]) -> Signal;

    /// A read of memory-mapped registers at `gpa`. False where no device answers there; `data` is all ones then.
    fn mmio_read(&mut self, now: Tsc, gpa: Gpa, data: &mut [u8]) -> bool;

    /// A write to memory-mapped registers at `gpa`. False where no device answers there.
    fn mmio_write(&mut self, now: Tsc, gpa: Gpa, data: &[u8]) -> bool;

    /// RDMSR of one of the local APIC's MSRs: IA32_APIC_BASE, IA32_TSC_DEADLINE, the x2APIC's range.
    ///
    /// # Errors
    /// #GP(0) as the manual says for each.
    fn msr_read(&mut self, now: Tsc, msr: u32) -> Result<u64, GuestFault>;

    /// WRMSR of one of the local APIC's MSRs.
    ///
    /// # Errors
    /// #GP(0) as the manual says for each.
    fn msr_write(&mut self, now: Tsc, msr: u32, value: u64) -> Result<(), GuestFault>;

    /// CR8: bits 7:4 of the task priority register.
    fn cr8(&self) -> u64;

    /// MOV to CR8.
    ///
    /// # Errors
    /// #GP(0) where a bit above the low four is set.
    fn set_cr8(&mut self, value: u64) -> Result<(), GuestFault>;

    /// Whether an interrupt waits that the processor would take now if RFLAGS.IF allowed: from the local APIC, by its
    /// priorities, or from the 8259 pair through LINT0. It wakes a processor that has halted.
    fn interrupt_pending(&self) -> bool;

    /// What is to be done before the guest runs again. While the processor virtualizes the local APIC, the interrupts
    /// of that are no longer the run loop's.
    fn attention(&self) -> Attention {
        if self.interrupt_pending() { Attention::INTERRUPT } else { Attention::empty() }
    }

    /// Takes the interrupt that [`Attention::INTERRUPT`] told of: what the INTA cycle or the local APIC's delivery does.
    /// `None` where there is none after all.
    fn acknowledge(&mut self) -> Option<u8>;

    /// The processor can virtualize the local APIC from now on: its registers. `None` where there is none whose
    /// registers could be given away. The first change is there to be taken then.
    fn virtualize_apic(&mut self) -> Option<Arc<ApicPage>> {
        None
    }

    /// Takes the change that [`Attention::APIC`] told of: how the local APIC is to be virtualized now. Requests, interrupts
    /// in service and their trigger modes may have changed too.
    fn take_apic_change(&mut self) -> Option<ApicMode> {
        None
    }

    /// The guest has written the register at `offset` of the virtualized local APIC; the value is there already.
    fn apic_written(&mut self, now: Tsc, offset: u16) {
        let _ = (now, offset);
    }

    /// The processor has ended the level-triggered interrupt `vector` of the virtualized local APIC.
    fn apic_ended(&mut self, now: Tsc, vector: u8) {
        let _ = (now, vector);
    }

    /// Takes a pending NMI, if there is one.
    fn take_nmi(&mut self) -> bool;

    /// Whether a timer that runs, or a device, can raise an NMI: what a processor that halted with interrupts off still
    /// waits for.
    fn nmi_possible(&self) -> bool {
        false
    }

    /// Brings every timer up to `now`, raising what is due.
    fn advance(&mut self, now: Tsc);

    /// When [`Chipset::advance`] must next be called for an interrupt to be raised in time; `None` where no timer that
    /// can interrupt is running. Guest's TSC.
    fn next_deadline(&self) -> Option<Tsc>;

    /// Gives bytes that the serial port transmits to `sink`, in order, until the sink returns false (it has not taken
    /// that byte) or nothing is left. Bytes not taken stay, and the transmitter shows busy.
    fn take_output(&mut self, now: Tsc, sink: &mut dyn FnMut(u8) -> bool);

    /// Whether [`Chipset::take_output`] would give anything.
    fn has_output(&self) -> bool;

    /// Gives received bytes to the serial port; returns how many it had room for.
    fn give_input(&mut self, now: Tsc, bytes: &[u8]) -> usize;

    /// What a device wants to transfer next. Where it goes to memory, the first [`DmaRequest::length`] bytes of `data`
    /// are what is to be written. Each request is answered by one [`Chipset::dma_complete`] before the next is asked
    /// for.
    fn dma_request(&mut self, data: &mut [u8; TRANSFER_MAX]) -> Option<DmaRequest> {
        let _ = data;
        None
    }

    /// The transfer that was asked for is done; `data` is what was read or written. `None` where it was not, because
    /// not all of it is memory.
    fn dma_complete(&mut self, data: Option<&[u8]>) {
        let _ = data;
    }

    /// The line that [`Signal::DebugLine`] told of.
    fn take_debug_line(&mut self) -> Option<String> {
        None
    }

    /// Presses and releases `key`. False where there is no such key, or the keyboard has no room for it.
    fn type_key(&mut self, now: Tsc, key: Key) -> bool {
        let _ = (now, key);
        false
    }

    /// The lines of the screen in text mode, without trailing blanks; `None` where there is no screen, or it shows
    /// graphics.
    fn screen(&self) -> Option<Vec<String>> {
        None
    }

    /// Accesses so far that no device answered (ports and MMIO).
    fn unclaimed(&self) -> u64;
}
