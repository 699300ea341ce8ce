//! The VM as the instruction emulator sees it: the seam's registers, the guest's paging, its memory and its devices.
//!
//! Owns the answer to an exit whose instruction is finished in software, and what the processor does not tell of the
//! instruction that exited: its length, the control register that it uses. What the exit told of the instruction is used
//! as a translation that the processor has just made, and as the permission to use a port; what is to be done comes
//! from the instruction's bytes alone.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use iced_x86::{CodeSize, Mnemonic};
use lamina_arch::addr::{Gla, Gpa, PAGE_4K};
use lamina_arch::event::GuestFault;
use lamina_arch::exit::{CrAccess, Direction, IoExit, NestedFault, Width};
use lamina_arch::regs::{ExtendedRegister, Gpr, SysReg};
use lamina_arch::segment::{Segment, SegmentName};
use lamina_arch::time::Tsc;
use lamina_arch::watchpoints::Watchpoints;

use super::linear::{self, GuestTables};
use super::{Resume, chipset_now, io, mmio};
use crate::bus::open_bus;
use crate::chipset::Chipset;
use crate::fault::{self, Site};
use crate::host::Host;
use crate::insn::{self, Done, Processor, Purpose, Refused};
use crate::stop::StopReason;
use crate::vcpu::{UnknownLength, Vcpu};
use crate::vm::Vm;
use crate::walk::{Access, Paging};

/// Why the instruction exited.
#[derive(Clone, Copy, Debug)]
pub enum Cause<'a> {
    /// An access that the nested tables refused.
    Memory(&'a NestedFault),
    /// INS or OUTS.
    Port(&'a IoExit),
    /// An instruction that the processor does not describe. Most are only read.
    Undescribed,
}

/// A page of linear addresses and where it is.
#[derive(Clone, Copy, Debug)]
struct Translation {
    page: Gla,
    frame: Gpa,
}

struct Emulated<'a, H: Host, C> {
    vm: &'a mut Vm<H::Vcpu, C>,
    host: &'a mut H,
    cause: Cause<'a>,
    /// The time of all accesses to devices.
    now: Tsc,
    /// The registers that paging depends on and the privilege level, once they were needed.
    paging: Option<(Paging, u8)>,
    /// The last page that was read and the last that was written, as a translation cache would hold them: the
    /// instruction may run on with what was valid when it began.
    read: Option<Translation>,
    written: Option<Translation>,
    /// The guest's breakpoints, and which of them the instruction has met.
    watchpoints: Option<Watchpoints>,
    met: u64,
    /// What a device, or an address without one, makes of the exit.
    ended: Option<Resume>,
}

/// Finishes the instruction at RIP in software.
pub fn finish<H: Host, C: Chipset>(vm: &mut Vm<H::Vcpu, C>, host: &mut H, cause: Cause<'_>) -> Resume {
    let now = chipset_now(vm, host);
    let (mut read, mut written) = (None, None);
    if let Cause::Memory(&NestedFault { gpa, write, linear: Some(at), fetch: false, table_walk: false, .. }) = cause
        && at.offset_in(PAGE_4K) == gpa.offset_in(PAGE_4K)
    {
        let known = Some(Translation { page: at.align_down(PAGE_4K), frame: gpa.align_down(PAGE_4K) });
        read = known;
        written = known.filter(|_| write);
    }
    let watchpoints = vm.vcpu.watchpoints();
    let mut processor = Emulated { read, written, watchpoints, ..Emulated::new(vm, host, cause, now) };
    let fetched = insn::fetch(&mut processor);
    let outcome = fetched.instruction.and_then(|instruction| insn::execute(&mut processor, &instruction));
    if let Some(resume) = processor.ended.take() {
        return resume;
    }
    if processor.met != 0
        && let Ok(done) = outcome
    {
        let met = processor.met;
        match done {
            Done::Advance(length) => vm.vcpu.advance_by(length),
            Done::AdvanceIntoShadow(length) => {
                vm.vcpu.advance_by(length);
                vm.vcpu.begin_shadow();
            }
            Done::Jumped => vm.vcpu.advance_by(0),
            // Between two iterations.
            Done::Again => {}
        }
        vm.vcpu.meet(met);
        return Resume::Again;
    }
    let name = match outcome {
        Ok(Done::Advance(length)) => return Resume::AdvanceBy(length),
        Ok(Done::AdvanceIntoShadow(length)) => return Resume::AdvanceIntoShadow(length),
        Ok(Done::Jumped) => return Resume::AdvanceBy(0),
        Ok(Done::Again) | Err(Refused::Changed) => return Resume::Again,
        Err(Refused::Fault(fault)) => return Resume::Inject(fault),
        Err(Refused::Unsupported(mnemonic)) => format!("{mnemonic:?}").to_uppercase(),
        // Code that is nowhere is all ones, which is no instruction.
        Err(Refused::Undecodable) if matches!(cause, Cause::Memory(fault) if fault.fetch) => {
            return Resume::Inject(GuestFault::UD);
        }
        Err(Refused::Undecodable) => String::from("an instruction that is not known"),
    };
    Resume::Stop(not_emulated(&fetched, format!("{name} on a device is not emulated")))
}

/// Translates `at` as the processor does for what it reads or writes itself.
///
/// # Errors
/// The page fault that the guest gets.
pub fn translate_for_system<H: Host, C: Chipset>(
    vm: &mut Vm<H::Vcpu, C>,
    host: &mut H,
    at: Gla,
    write: bool,
) -> Result<Gpa, GuestFault> {
    let purpose = if write { Purpose::SystemWrite } else { Purpose::SystemRead };
    processor(vm, host, Cause::Undescribed).translate(at, purpose)
}

/// The VM as the emulator's processor.
pub fn processor<'a, H: Host, C: Chipset>(
    vm: &'a mut Vm<H::Vcpu, C>,
    host: &'a mut H,
    cause: Cause<'a>,
) -> impl Processor + use<'a, H, C> {
    let now = chipset_now(vm, host);
    Emulated::new(vm, host, cause, now)
}

/// Moves RIP past the instruction that exited; decodes it where the processor does not tell its length.
///
/// # Errors
/// The VM's end, where the instruction is not there any more.
pub(crate) fn step_over<H: Host, C: Chipset>(vm: &mut Vm<H::Vcpu, C>, host: &mut H) -> Result<(), StopReason> {
    let Err(UnknownLength) = vm.vcpu.advance() else { return Ok(()) };
    let length = length(vm, host)?;
    vm.vcpu.advance_by(length);
    Ok(())
}

/// The length of the instruction that exited, by decoding it. Unit: bytes.
///
/// # Errors
/// The VM's end, where the instruction is not there any more.
pub(super) fn length<H: Host, C: Chipset>(vm: &mut Vm<H::Vcpu, C>, host: &mut H) -> Result<u8, StopReason> {
    let now = chipset_now(vm, host);
    let fetched = insn::fetch(&mut Emulated::new(vm, host, Cause::Undescribed, now));
    match fetched.instruction {
        Ok(instruction) => Ok(insn::length(&instruction)),
        Err(_) => Err(not_emulated(&fetched, String::from("an instruction that exited and cannot be read"))),
    }
}

/// The instruction at RIP, as it is decoded and its bytes: for those who look on. Unit of the first: bits.
pub(crate) fn instruction_at_rip<H: Host, C: Chipset>(vm: &mut Vm<H::Vcpu, C>, host: &mut H) -> Option<(u32, Vec<u8>)> {
    let now = chipset_now(vm, host);
    let fetched = insn::fetch(&mut Emulated::new(vm, host, Cause::Undescribed, now));
    let instruction = fetched.instruction.ok()?;
    let bits = match instruction.code_size() {
        CodeSize::Code16 => 16,
        CodeSize::Code32 => 32,
        _ => 64,
    };
    Some((bits, fetched.bytes().to_vec()))
}

/// What the instruction at RIP does with a control register, and its length. Unit: bytes.
///
/// # Errors
/// What follows where it is no such instruction, or cannot be read; or is SMSW, which is finished then.
pub fn control_access<H: Host, C: Chipset>(vm: &mut Vm<H::Vcpu, C>, host: &mut H) -> Result<(CrAccess, u8), Resume> {
    let now = chipset_now(vm, host);
    let mut processor = Emulated::new(vm, host, Cause::Undescribed, now);
    let fetched = insn::fetch(&mut processor);
    if fetched.instruction.is_ok_and(|instruction| instruction.mnemonic() == Mnemonic::Smsw) {
        return Err(finish(vm, host, Cause::Undescribed));
    }
    let described = fetched
        .instruction
        .and_then(|instruction| Ok((insn::control_access(&mut processor, &instruction)?, insn::length(&instruction))));
    if let Some(resume) = processor.ended.take() {
        return Err(resume);
    }
    described.map_err(|refused| match refused {
        Refused::Fault(fault) => Resume::Inject(fault),
        _ => {
            let why = "access to a control register by an instruction that is not emulated";
            Resume::Stop(not_emulated(&fetched, String::from(why)))
        }
    })
}

/// The VM's end for what was fetched and is not emulated.
pub fn not_emulated(fetched: &insn::Fetched, why: String) -> StopReason {
    StopReason::NotEmulated { bytes: fetched.bytes().to_vec(), why, rip: fetched.rip }
}

impl<'a, H: Host, C: Chipset> Emulated<'a, H, C> {
    fn new(vm: &'a mut Vm<H::Vcpu, C>, host: &'a mut H, cause: Cause<'a>, now: Tsc) -> Self {
        Emulated {
            vm,
            host,
            cause,
            now,
            paging: None,
            read: None,
            written: None,
            watchpoints: None,
            met: 0,
            ended: None,
        }
    }

    fn meet_port(&mut self, port: u16, length: usize) {
        if let Some(watchpoints) = &self.watchpoints {
            self.met |= watchpoints.port(port, length);
        }
    }

    fn walk(&mut self, at: Gla, purpose: Purpose) -> Result<Gpa, GuestFault> {
        fault::point(Site::Walk);
        let vm = &mut *self.vm;
        let (paging, cpl) = self.paging.get_or_insert_with(|| linear::paging(&mut vm.vcpu, vm.cpuid.physical_bits()));
        let access = match purpose {
            Purpose::Read => Access::data(*cpl, false),
            Purpose::Write => Access::data(*cpl, true),
            Purpose::Fetch => Access::fetch(*cpl),
            Purpose::SystemRead => Access::system(false),
            Purpose::SystemWrite => Access::system(true),
        };
        paging.translate(at, access, &mut GuestTables { memory: &mut vm.memory, host: self.host })
    }

    /// An access to what is not memory ends the VM where a PC has no bus either.
    fn check_bus(&mut self, gpa: Gpa, access: &'static str) {
        if !mmio::is_bus(self.vm, gpa) && self.ended.is_none() {
            let rip = self.vm.vcpu.read(SysReg::Rip);
            self.ended = Some(Resume::Stop(StopReason::OutsideMemory { gpa, access, rip }));
        }
    }
}

/// The accesses that a device sees of `length` bytes at `gpa`: offset and width. One where a processor makes one;
/// what a page border has cut becomes aligned pieces.
fn pieces(gpa: Gpa, length: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut done = 0;
    core::iter::from_fn(move || {
        let left = length - done;
        let piece = match left {
            0 => return None,
            1 | 2 | 4 | 8 if done == 0 => left,
            _ => {
                let aligned = (gpa.0.wrapping_add(done as u64) | 8).trailing_zeros().min(3);
                let mut piece = 1 << aligned;
                while piece > left {
                    piece /= 2;
                }
                piece
            }
        };
        done += piece;
        Some((done - piece, piece))
    })
}

impl<H: Host, C: Chipset> Processor for Emulated<'_, H, C> {
    fn accessed(&mut self, at: Gla, length: usize, write: bool) {
        if let Some(watchpoints) = &self.watchpoints {
            self.met |= watchpoints.memory(at, length, write);
        }
    }

    fn gpr(&mut self, register: Gpr) -> u64 {
        if register == Gpr::Rsp { self.vm.vcpu.read(SysReg::Rsp) } else { self.vm.vcpu.gprs().get(register) }
    }

    fn set_gpr(&mut self, register: Gpr, value: u64) {
        if register == Gpr::Rsp {
            self.vm.vcpu.write(SysReg::Rsp, value);
        } else {
            self.vm.vcpu.gprs().set(register, value);
        }
    }

    fn read(&mut self, register: SysReg) -> u64 {
        self.vm.vcpu.read(register)
    }

    fn write(&mut self, register: SysReg, value: u64) {
        self.vm.vcpu.write(register, value);
    }

    fn segment(&mut self, name: SegmentName) -> Segment {
        self.vm.vcpu.segment(name)
    }

    fn extended(&mut self, register: ExtendedRegister, value: &mut [u8]) {
        self.vm.vcpu.extended(register, value);
    }

    fn set_extended(&mut self, register: ExtendedRegister, value: &[u8]) {
        self.vm.vcpu.set_extended(register, value);
    }

    fn switch_tables(&mut self, cr3: u64) -> Result<(), GuestFault> {
        super::control::write_cr3(self.vm, self.host, cr3)?;
        (self.paging, self.read, self.written) = (None, None, None);
        Ok(())
    }

    fn set_segment(&mut self, name: SegmentName, segment: Segment) {
        self.vm.vcpu.set_segment(name, segment);
        if name == SegmentName::Ss {
            // The privilege level is its.
            (self.paging, self.read, self.written) = (None, None, None);
        }
    }

    fn translate(&mut self, at: Gla, purpose: Purpose) -> Result<Gpa, GuestFault> {
        let page = at.align_down(PAGE_4K);
        let known = match purpose {
            Purpose::Read => self.read,
            Purpose::Write => self.written,
            _ => None,
        };
        let frame = match known {
            Some(known) if known.page == page => known.frame,
            _ => {
                let frame = self.walk(at, purpose)?.align_down(PAGE_4K);
                match purpose {
                    Purpose::Read => self.read = Some(Translation { page, frame }),
                    Purpose::Write => self.written = Some(Translation { page, frame }),
                    _ => {}
                }
                frame
            }
        };
        Ok(frame + at.offset_in(PAGE_4K))
    }

    fn load(&mut self, from: Gpa, data: &mut [u8]) {
        fault::point(Site::Load);
        if self.vm.memory.read(self.host, from, data).is_ok() {
            return;
        }
        self.check_bus(from, "read");
        open_bus(data);
        for (offset, width) in pieces(from, data.len()) {
            // An address that nobody claims reads as all ones, and the chipset counts it.
            if let Some(piece) = data.get_mut(offset..offset + width) {
                let _claimed = self.vm.chipset.mmio_read(self.now, from + offset as u64, piece);
            }
        }
    }

    fn store(&mut self, to: Gpa, data: &[u8]) {
        fault::point(Site::Store);
        if self.vm.memory.write(self.host, to, data).is_ok() {
            return;
        }
        self.check_bus(to, "write");
        for (offset, width) in pieces(to, data.len()) {
            if let Some(piece) = data.get(offset..offset + width) {
                let _claimed = self.vm.chipset.mmio_write(self.now, to + offset as u64, piece);
            }
        }
    }

    fn unblock_nmi(&mut self) {
        self.vm.vcpu.set_nmi_blocked(false);
    }

    fn may_use_port(&mut self, port: u16, direction: Direction, width: Width) -> bool {
        match self.cause {
            Cause::Port(io) => io.string.is_some() && io.port == port && io.direction == direction && io.width == width,
            Cause::Memory(_) | Cause::Undescribed => false,
        }
    }

    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        self.meet_port(port, data.len());
        self.vm.chipset.port_read(self.now, port, data);
    }

    fn port_read_block(&mut self, port: u16, width: Width, data: &mut [u8]) -> usize {
        // A breakpoint traps between two iterations.
        if self.watchpoints.is_some() {
            return 0;
        }
        self.vm.chipset.port_read_block(self.now, port, width.bytes(), data)
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        self.meet_port(port, data.len());
        let signal = self.vm.chipset.port_write(self.now, port, data);
        if self.ended.is_none() {
            self.ended = io::obey(self.vm, signal);
        }
    }

    fn must_pause(&mut self) -> bool {
        self.ended.is_some() || self.vm.dma_waits || self.met != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn a_device_sees_one_access_or_aligned_pieces() {
        let of = |gpa, length| pieces(Gpa(gpa), length).collect::<Vec<_>>();
        assert_eq!(of(0x1001, 4), [(0, 4)]);
        assert_eq!(of(0x1000, 8), [(0, 8)]);
        assert_eq!(of(0x1ffd, 3), [(0, 1), (1, 2)]);
        assert_eq!(of(0x1000, 3), [(0, 2), (2, 1)]);
        assert_eq!(of(0x1ff9, 7), [(0, 1), (1, 2), (3, 4)]);
        assert_eq!(of(0x1000, 16), [(0, 8), (8, 8)]);
        assert_eq!(of(0x1000, 0), []);
    }
}
