//! Hardware task switches (SDM vol. 3, "Task Management": "Task Switching", "Task-State Segment (TSS)", "16-Bit
//! Task-State Segment (TSS)").
//!
//! Under virtualization no processor does them. Owns the switch from the checks of the new task's descriptor to the
//! first instruction of the new task, error code pushed. What comes before, the processor has done: the rights of a
//! task gate, and of the descriptor that CALL and JMP name. A fault up to the point of no return leaves the old task as
//! it was; one behind it belongs to the new task.

use lamina_arch::addr::{Gla, PAGE_4K};
use lamina_arch::cr::{Cr0, Rflags};
use lamina_arch::event::{GuestFault, vector};
use lamina_arch::exit::TaskSource;
use lamina_arch::regs::{Gpr, SysReg};
use lamina_arch::segment::{AccessRights, Segment, SegmentName};

use super::descriptor::{self, Descriptor};
use super::segment::accessed;
use super::{Processor, Purpose};

/// A task switch to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// Selector of the new TSS.
    pub selector: u16,
    /// What asked for it.
    pub source: TaskSource,
    /// The instruction pointer that the old task goes on with.
    pub next_ip: u64,
    /// The event was none of the program's: faults on the way have the EXT flag set in their error codes.
    pub external: bool,
    /// The error code to push, where the event has one.
    pub error: Option<u32>,
}

/// Offsets in a 32-bit TSS. Unit: bytes.
mod tss32 {
    pub const SIZE: usize = 104;
    pub const CR3: usize = 28;
    pub const EIP: usize = 32;
    pub const EFLAGS: usize = 36;
    pub const EAX: usize = 40;
    pub const ES: usize = 72;
    pub const LDT: usize = 96;
    pub const TRAP: usize = 100;
}

/// Offsets in a 16-bit TSS. Unit: bytes.
mod tss16 {
    pub const SIZE: usize = 44;
    pub const IP: usize = 14;
    pub const FLAGS: usize = 16;
    pub const AX: usize = 18;
    pub const ES: usize = 34;
    pub const LDT: usize = 42;
}

/// Nested task.
const NT: u64 = 1 << 14;
/// The flags that a TSS can set.
const FLAGS: u64 = 0x003f_7fd5;
/// A descriptor's busy flag, of the TSS types.
const BUSY: u64 = 1 << 41;
/// DR7: the local enables, which a task switch clears.
const LOCAL_ENABLES: u64 = 0x155;
/// A segment of virtual-8086 mode: writable data, present, DPL 3, accessed.
const VIRTUAL_8086: AccessRights = AccessRights(0xf3);

/// The segment registers in the order of a TSS.
const ORDER: [SegmentName; 6] =
    [SegmentName::Es, SegmentName::Cs, SegmentName::Ss, SegmentName::Ds, SegmentName::Fs, SegmentName::Gs];

/// The general-purpose registers in the order of a TSS.
const REGISTERS: [Gpr; 8] = [Gpr::Rax, Gpr::Rcx, Gpr::Rdx, Gpr::Rbx, Gpr::Rsp, Gpr::Rbp, Gpr::Rsi, Gpr::Rdi];

/// A TSS in linear memory, and what of it was read.
struct Tss {
    base: u64,
    wide: bool,
    bytes: [u8; tss32::SIZE],
}

impl Tss {
    fn size(wide: bool) -> usize {
        if wide { tss32::SIZE } else { tss16::SIZE }
    }

    fn number(&self, at: usize, width: usize) -> u64 {
        self.bytes.iter().skip(at).take(width).rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
    }

    fn set(&mut self, at: usize, width: usize, value: u64) {
        for (byte, new) in self.bytes.iter_mut().skip(at).take(width).zip(value.to_le_bytes()) {
            *byte = new;
        }
    }

    fn width(&self) -> usize {
        if self.wide { 4 } else { 2 }
    }

    /// Selector `n` of [`ORDER`]. A 16-bit TSS has no FS and GS.
    fn selector(&self, n: usize) -> u16 {
        let value = match self.wide {
            true => self.number(tss32::ES + 4 * n, 2),
            false if n < 4 => self.number(tss16::ES + 2 * n, 2),
            false => 0,
        };
        u16::try_from(value).unwrap_or(0)
    }
}

struct Switch<'a, P> {
    processor: &'a mut P,
    external: u32,
}

/// Switches tasks. Returns whether the new task wants a debug trap before its first instruction.
///
/// # Errors
/// The fault that the guest gets: in the old task, with nothing changed, or in the new one.
pub fn switch<P: Processor>(processor: &mut P, task: &Task) -> Result<bool, GuestFault> {
    Switch { processor, external: u32::from(task.external) }.run(task)
}

/// The selector in the link field of the current TSS: where IRET leads that ends a nested task.
///
/// # Errors
/// The page fault that the guest gets.
pub fn link<P: Processor>(processor: &mut P) -> Result<u16, GuestFault> {
    let base = processor.segment(SegmentName::Tr).base;
    let mut bytes = [0; 2];
    Switch { processor, external: 0 }.read(base, &mut bytes)?;
    Ok(u16::from_le_bytes(bytes))
}

impl<P: Processor> Switch<'_, P> {
    fn run(&mut self, task: &Task) -> Result<bool, GuestFault> {
        let target = self.new_task(task)?;
        let wide = target.rights().bit(3);
        let old = self.processor.segment(SegmentName::Tr);
        let mut from = Tss { base: old.base, wide: old.rights.bit(3), bytes: [0; tss32::SIZE] };
        if (old.limit as usize) < Tss::size(from.wide) - 1 {
            return Err(self.fault(vector::TS, old.selector));
        }
        let mut to = Tss { base: target.base(), wide, bytes: [0; tss32::SIZE] };
        let nests = matches!(task.source, TaskSource::Call | TaskSource::Gate);

        // Every place is found before any is changed.
        self.read_tss(&mut from)?;
        self.read_tss(&mut to)?;
        self.check(from.base, Tss::size(from.wide), Purpose::SystemWrite)?;
        let linked = if nests { Purpose::SystemWrite } else { Purpose::SystemRead };
        self.check(to.base, 2, linked)?;
        self.check(target.at, 8, Purpose::SystemWrite)?;
        let leaves = if nests { None } else { Some(self.descriptor_of(old.selector)?) };
        if let Some(left) = leaves {
            self.check(left.at, 8, Purpose::SystemWrite)?;
        }

        if let Some(left) = leaves {
            self.write(left.at, &(left.value & !BUSY).to_le_bytes())?;
        }
        self.save(&mut from, task)?;
        if nests {
            self.write(to.base, &old.selector.to_le_bytes())?;
        }
        let mut value = target.value;
        if task.source != TaskSource::Iret {
            value |= BUSY;
            self.write(target.at, &value.to_le_bytes())?;
        }

        // From here on it is the new task that runs.
        let mut current = target.segment(task.selector);
        current.rights.0 |= 2;
        self.processor.set_segment(SegmentName::Tr, current);
        self.load(&to, nests)?;
        if let Some(error) = task.error {
            self.push(error, wide)?;
        }
        let limit = u64::from(self.processor.segment(SegmentName::Cs).limit);
        if self.processor.read(SysReg::Rip) > limit {
            return Err(self.fault(vector::GP, 0));
        }
        Ok(wide && to.number(tss32::TRAP, 2) & 1 != 0)
    }

    fn fault(&self, vector: u8, selector: u16) -> GuestFault {
        GuestFault { vector, error: Some(u32::from(selector & !3) | self.external), cr2: None }
    }

    /// The descriptor of the new task, checked.
    fn new_task(&mut self, task: &Task) -> Result<Descriptor, GuestFault> {
        let iret = task.source == TaskSource::Iret;
        let bad = self.fault(if iret { vector::TS } else { vector::GP }, task.selector);
        if task.selector & 4 != 0 || task.selector & !3 == 0 {
            return Err(bad);
        }
        let found = descriptor::find(self.processor, task.selector, 8)?.ok_or(bad)?;
        // Types 1 and 9 are available, 3 and 11 busy.
        let kinds: [u32; 2] = if iret { [3, 11] } else { [1, 9] };
        if !found.system().is_some_and(|kind| kinds.contains(&kind)) {
            return Err(bad);
        }
        if !found.is_present() {
            return Err(self.fault(vector::NP, task.selector));
        }
        if (found.limit() as usize) < Tss::size(found.rights().bit(3)) - 1 {
            return Err(self.fault(vector::TS, task.selector));
        }
        Ok(found)
    }

    fn descriptor_of(&mut self, selector: u16) -> Result<Descriptor, GuestFault> {
        let denied = self.fault(vector::TS, selector);
        descriptor::find(self.processor, selector, 8)?.ok_or(denied)
    }

    /// Calls `access` for each part of `length` bytes at `at` that is in one page and has 16 bytes at most.
    fn parts(
        &mut self,
        at: u64,
        length: usize,
        purpose: Purpose,
        mut access: impl FnMut(&mut P, lamina_arch::addr::Gpa, usize, usize),
    ) -> Result<(), GuestFault> {
        let mut done = 0;
        while done < length {
            let here = Gla(at.wrapping_add(done as u64) & 0xffff_ffff);
            let left = usize::try_from(PAGE_4K - here.offset_in(PAGE_4K)).unwrap_or(1);
            let part = (length - done).min(left).min(16);
            let gpa = self.processor.translate(here, purpose)?;
            access(self.processor, gpa, done, part);
            done += part;
        }
        Ok(())
    }

    fn check(&mut self, at: u64, length: usize, purpose: Purpose) -> Result<(), GuestFault> {
        self.parts(at, length, purpose, |_, _, _, _| {})
    }

    fn read(&mut self, at: u64, data: &mut [u8]) -> Result<(), GuestFault> {
        self.parts(at, data.len(), Purpose::SystemRead, |processor, gpa, from, length| {
            if let Some(part) = data.get_mut(from..from + length) {
                processor.load(gpa, part);
            }
        })
    }

    fn write(&mut self, at: u64, data: &[u8]) -> Result<(), GuestFault> {
        self.parts(at, data.len(), Purpose::SystemWrite, |processor, gpa, from, length| {
            if let Some(part) = data.get(from..from + length) {
                processor.store(gpa, part);
            }
        })
    }

    fn read_tss(&mut self, tss: &mut Tss) -> Result<(), GuestFault> {
        let size = Tss::size(tss.wide);
        let base = tss.base;
        match tss.bytes.get_mut(..size) {
            Some(bytes) => self.read(base, bytes),
            None => Ok(()),
        }
    }

    /// Saves the state of the old task in its TSS: from the instruction pointer to the last selector.
    fn save(&mut self, tss: &mut Tss, task: &Task) -> Result<(), GuestFault> {
        let width = tss.width();
        let (ip, flags_at, registers, selectors) = match tss.wide {
            true => (tss32::EIP, tss32::EFLAGS, tss32::EAX, tss32::ES),
            false => (tss16::IP, tss16::FLAGS, tss16::AX, tss16::ES),
        };
        let mut flags = self.processor.read(SysReg::Rflags);
        if task.source == TaskSource::Iret {
            flags &= !NT;
        }
        tss.set(ip, width, task.next_ip);
        tss.set(flags_at, width, flags);
        for (n, register) in REGISTERS.into_iter().enumerate() {
            let value = self.processor.gpr(register);
            tss.set(registers + width * n, width, value);
        }
        let saved = if tss.wide { 6 } else { 4 };
        for (n, name) in ORDER.into_iter().enumerate().take(saved) {
            let selector = self.processor.segment(name).selector;
            tss.set(selectors + width * n, 2, selector.into());
        }
        let end = selectors + width * saved;
        let (base, bytes) = (tss.base, tss.bytes);
        match bytes.get(ip..end) {
            Some(part) => self.write(base.wrapping_add(ip as u64), part),
            None => Ok(()),
        }
    }

    /// Loads the state of the new task.
    fn load(&mut self, tss: &Tss, nests: bool) -> Result<(), GuestFault> {
        let width = tss.width();
        let cr0 = self.processor.read(SysReg::Cr0);
        if tss.wide && cr0 & Cr0::PG.bits() != 0 {
            self.processor.switch_tables(tss.number(tss32::CR3, 4))?;
        }
        self.processor.write(SysReg::Cr0, cr0 | Cr0::TS.bits());
        let dr7 = self.processor.read(SysReg::Dr7);
        self.processor.write(SysReg::Dr7, dr7 & !LOCAL_ENABLES);
        let (ip, flags_at, registers, ldt) = match tss.wide {
            true => (tss32::EIP, tss32::EFLAGS, tss32::EAX, tss32::LDT),
            false => (tss16::IP, tss16::FLAGS, tss16::AX, tss16::LDT),
        };
        self.processor.write(SysReg::Rip, tss.number(ip, width));
        let nested = if nests { NT } else { 0 };
        let flags = tss.number(flags_at, width) & FLAGS | nested | Rflags::FIXED.bits();
        self.processor.write(SysReg::Rflags, flags);
        // What a 16-bit TSS does not hold, the manual leaves open.
        let high = if tss.wide { 0 } else { 0xffff_0000 };
        for (n, register) in REGISTERS.into_iter().enumerate() {
            self.processor.set_gpr(register, tss.number(registers + width * n, width) | high);
        }
        let ldt = u16::try_from(tss.number(ldt, 2)).unwrap_or(0);
        self.select(tss, ldt, flags & Rflags::VM.bits() != 0)
    }

    /// Loads LDTR and the segment registers. All selectors first: a handler of a fault sees those of the new task.
    fn select(&mut self, tss: &Tss, ldt: u16, virtual_8086: bool) -> Result<(), GuestFault> {
        let unusable = |selector| Segment { selector, rights: AccessRights::UNUSABLE, ..Segment::default() };
        self.processor.set_segment(SegmentName::Ldtr, unusable(ldt));
        for (n, name) in ORDER.into_iter().enumerate() {
            let selector = tss.selector(n);
            let segment = match name {
                _ if virtual_8086 => {
                    Segment { selector, base: u64::from(selector) << 4, limit: 0xffff, rights: VIRTUAL_8086 }
                }
                // A processor cannot be entered without a code segment and a privilege level: they stay until the new
                // ones are known to be good.
                SegmentName::Cs | SegmentName::Ss => Segment { selector, ..self.processor.segment(name) },
                _ => unusable(selector),
            };
            self.processor.set_segment(name, segment);
        }
        if ldt & !3 != 0 {
            let bad = self.fault(vector::TS, ldt);
            let found =
                if ldt & 4 == 0 { descriptor::find(self.processor, ldt, 8)?.ok_or(bad)? } else { return Err(bad) };
            if found.system() != Some(2) || !found.is_present() {
                return Err(bad);
            }
            self.processor.set_segment(SegmentName::Ldtr, found.segment(ldt));
        }
        if virtual_8086 {
            return Ok(());
        }
        let privilege = u8::try_from(tss.selector(1) & 3).unwrap_or(3);
        // The code segment decides about the privilege of the others, the stack segment first.
        for n in [1, 2, 0, 3, 4, 5] {
            self.select_one(ORDER[n], tss.selector(n), privilege)?;
        }
        Ok(())
    }

    fn select_one(&mut self, name: SegmentName, selector: u16, cpl: u8) -> Result<(), GuestFault> {
        let bad = self.fault(vector::TS, selector);
        let is_data = !matches!(name, SegmentName::Cs | SegmentName::Ss);
        if selector & !3 == 0 {
            return if is_data { Ok(()) } else { Err(bad) };
        }
        let found = descriptor::find(self.processor, selector, 8)?.ok_or(bad)?;
        let rights = found.rights();
        let (code, conforming, usable) = (rights.bit(3), rights.bit(2), rights.bit(1));
        let rpl = u8::try_from(selector & 3).unwrap_or(3);
        let good = rights.bit(4)
            && match name {
                SegmentName::Cs => code && if conforming { rights.dpl() <= cpl } else { rights.dpl() == cpl },
                SegmentName::Ss => !code && usable && rpl == cpl && rights.dpl() == cpl,
                _ => (!code || usable) && (code && conforming || rights.dpl() >= rpl.max(cpl)),
            };
        if !good {
            return Err(bad);
        }
        if !found.is_present() {
            return Err(self.fault(if name == SegmentName::Ss { vector::SS } else { vector::NP }, selector));
        }
        found.mark_accessed(self.processor)?;
        self.processor.set_segment(name, accessed(found.segment(selector)));
        if name == SegmentName::Cs {
            // Until its own descriptor is known to be good, the old stack's stands, at the new privilege.
            let mut stack = self.processor.segment(SegmentName::Ss);
            stack.rights.0 = stack.rights.0 & !(3 << 5) | u32::from(cpl) << 5;
            self.processor.set_segment(SegmentName::Ss, stack);
        }
        Ok(())
    }

    /// Pushes an error code on the new task's stack.
    fn push(&mut self, error: u32, wide: bool) -> Result<(), GuestFault> {
        let bytes = if wide { 4 } else { 2 };
        let stack = self.processor.segment(SegmentName::Ss);
        let big = stack.rights.is_default32();
        let mask = if big { 0xffff_ffff } else { 0xffff };
        let pointer = self.processor.gpr(Gpr::Rsp);
        let top = pointer.wrapping_sub(bytes as u64) & mask;
        let last = top.wrapping_add(bytes as u64 - 1);
        let limit = u64::from(stack.limit);
        let down = stack.rights.bit(2) && stack.rights.bit(4) && !stack.rights.bit(3);
        let inside = if down { top > limit && last <= mask } else { last <= limit };
        if !inside {
            return Err(self.fault(vector::SS, 0));
        }
        let at = stack.base.wrapping_add(top);
        let data = error.to_le_bytes();
        self.parts(at, bytes, Purpose::Write, |processor, gpa, from, length| {
            if let Some(part) = data.get(from..from + length) {
                processor.store(gpa, part);
            }
        })?;
        self.processor.set_gpr(Gpr::Rsp, pointer & !mask | top);
        Ok(())
    }
}
