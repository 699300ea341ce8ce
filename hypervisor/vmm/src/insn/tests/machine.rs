//! A processor with a little memory and one device.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::vec::Vec;

use iced_x86::code_asm::CodeAssembler;
use lamina_arch::addr::{Gla, Gpa};
use lamina_arch::cr::{Cr0, Efer, Rflags};
use lamina_arch::event::GuestFault;
use lamina_arch::exit::{Direction, Width};
use lamina_arch::regs::{ExtendedRegister, Gpr, SysReg};
use lamina_arch::segment::{AccessRights, Segment, SegmentName};

use crate::insn::{Done, Processor, Purpose, Refused, execute, fetch};

/// Bytes of memory from address 0.
pub const MEMORY: usize = 0x1_0000;
/// The device's registers begin here, right behind memory.
pub const DEVICE: u64 = MEMORY as u64;
/// Bytes of the device.
pub const DEVICE_SIZE: usize = 0x1000;
/// Where code is put.
pub const CODE: u64 = 0x4000;
/// The port that may be used.
pub const PORT: u16 = 0x1f0;

static PATTERN: OnceLock<Vec<u8>> = OnceLock::new();

/// What a device saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    In(u16, usize),
    Out(u16, Vec<u8>),
}

/// What a page allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    Absent,
    ReadOnly,
    /// For supervisors only.
    System,
    At(u64),
}

/// The processor.
#[derive(Clone, PartialEq, Eq)]
pub struct Machine {
    pub gprs: [u64; 16],
    pub rip: u64,
    pub flags: Rflags,
    pub cr0: Cr0,
    pub zmm: [[u8; 64]; 32],
    pub masks: [u64; 8],
    pub x87: [u8; 152],
    pub mxcsr: [u32; 2],
    pub cr3: u64,
    pub cr4: u64,
    pub dr7: u64,
    pub efer: Efer,
    pub gdt: (u64, u64),
    pub idt: (u64, u64),
    pub segments: [Segment; 8],
    pub memory: Vec<u8>,
    pub device: Vec<u8>,
    pub seen: Vec<Seen>,
    /// Pages that are not what their address says.
    pub pages: BTreeMap<u64, Page>,
    /// Iterations until something else must happen.
    pub patience: u32,
    pub ports_allowed: bool,
    pub nmi_blocked: bool,
    /// Bytes that the device behind the ports gives at once.
    pub ready: usize,
}

impl Machine {
    /// In a code segment of `bits`, flat, at CPL 0; registers hold values that are told apart.
    pub fn new(bits: u32) -> Machine {
        let data = Segment { selector: 0x10, base: 0, limit: 0xffff_ffff, rights: AccessRights::DATA32 };
        let code = match bits {
            64 => AccessRights::CODE64,
            32 => AccessRights::CODE32,
            _ => AccessRights(0x9b),
        };
        let mut segments = [data; 8];
        segments[SegmentName::Cs as usize] = Segment { selector: 8, base: 0, limit: 0xffff_ffff, rights: code };
        segments[SegmentName::Ldtr as usize].rights = AccessRights::UNUSABLE;
        let long = if bits == 64 { Efer::LME | Efer::LMA } else { Efer::empty() };
        Machine {
            gprs: core::array::from_fn(|i| 0x1122_3344_5566_7780 | i as u64),
            rip: CODE,
            flags: Rflags::FIXED,
            cr0: Cr0::PE | Cr0::PG | Cr0::ET,
            zmm: core::array::from_fn(|i| [u8::try_from(0x10 + i).unwrap_or(0); 64]),
            masks: core::array::from_fn(|i| 0xff << i),
            x87: initial_x87(),
            mxcsr: [0x1f80, 0xffff],
            cr3: 0,
            cr4: 0,
            dr7: 0x400,
            efer: long,
            gdt: (0x1000, 0xfff),
            idt: (0x2000, 0x7ff),
            segments,
            memory: PATTERN
                .get_or_init(|| (0..MEMORY).map(|i| u8::try_from(i * 7 % 251).unwrap_or(0)).collect())
                .clone(),
            device: (0..DEVICE_SIZE).map(|i| u8::try_from(0xff - i % 256).unwrap_or(0)).collect(),
            seen: Vec::new(),
            pages: BTreeMap::new(),
            patience: u32::MAX,
            ports_allowed: true,
            nmi_blocked: true,
            ready: 0,
        }
    }

    pub fn real() -> Machine {
        let mut machine = Machine::new(16);
        machine.cr0 = Cr0::ET;
        for segment in &mut machine.segments {
            *segment = Segment { selector: 0, base: 0, limit: 0xffff, rights: AccessRights(0x93) };
        }
        machine
    }

    pub fn bits(&self) -> u32 {
        let rights = self.segments[SegmentName::Cs as usize].rights;
        match (rights.is_long() && self.efer.contains(Efer::LMA), rights.is_default32()) {
            (true, _) => 64,
            (_, true) => 32,
            _ => 16,
        }
    }

    pub fn user(&mut self) {
        self.segments[SegmentName::Cs as usize].rights.0 |= 3 << 5;
        self.segments[SegmentName::Ss as usize].rights.0 |= 3 << 5;
    }

    /// Puts `bytes` where RIP is and executes them.
    pub fn run_bytes(&mut self, bytes: &[u8]) -> Result<Done, Refused> {
        for (i, &byte) in bytes.iter().enumerate() {
            let at = self.segments[SegmentName::Cs as usize].base + self.rip + i as u64;
            self.memory[usize::try_from(at).unwrap()] = byte;
        }
        self.run()
    }

    /// Executes what is at RIP.
    pub fn run(&mut self) -> Result<Done, Refused> {
        let fetched = fetch(self);
        let instruction = fetched.instruction?;
        execute(self, &instruction)
    }

    /// Executes the one instruction that `assemble` emits, and expects it to be done.
    pub fn does(&mut self, assemble: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) {
        let bytes = assembled(self.bits(), self.rip, assemble);
        let done = self.run_bytes(&bytes);
        assert_eq!(done, Ok(Done::Advance(u8::try_from(bytes.len()).unwrap())), "{bytes:02x?}");
    }

    /// Executes the one instruction that `assemble` emits, and expects `fault` and no effect.
    pub fn faults(
        &mut self,
        fault: GuestFault,
        assemble: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
    ) {
        let bytes = assembled(self.bits(), self.rip, assemble);
        let at = usize::try_from(self.rip + self.segments[SegmentName::Cs as usize].base).unwrap();
        self.memory[at..at + bytes.len()].copy_from_slice(&bytes);
        let before = self.clone();
        assert_eq!(self.run(), Err(Refused::Fault(fault)), "{bytes:02x?}");
        assert_eq!(*self, before, "a fault has no effect: {bytes:02x?}");
    }

    pub fn put(&mut self, at: u64, value: u64, width: Width) {
        let (place, offset) = match usize::try_from(at).unwrap() {
            at if at < MEMORY => (&mut self.memory, at),
            at => (&mut self.device, at - MEMORY),
        };
        place[offset..offset + width.bytes()].copy_from_slice(&value.to_le_bytes()[..width.bytes()]);
    }

    pub fn peek(&self, at: u64, width: Width) -> u64 {
        let (place, offset) = match usize::try_from(at).unwrap() {
            at if at < MEMORY => (&self.memory, at),
            at => (&self.device, at - MEMORY),
        };
        place[offset..offset + width.bytes()].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
    }

    pub fn get(&self, gpr: Gpr) -> u64 {
        self.gprs[gpr as usize]
    }

    pub fn set(&mut self, gpr: Gpr, value: u64) {
        self.gprs[gpr as usize] = value;
    }
}

/// After FNINIT: all exceptions masked, the stack empty. The registers hold what is told apart.
fn initial_x87() -> [u8; 152] {
    let mut x87 = [0; 152];
    x87[..2].copy_from_slice(&0x37fu16.to_le_bytes());
    for (n, register) in (0x80..).zip(x87[24..].chunks_mut(16)) {
        register[..8].fill(n);
    }
    x87
}

/// The bytes of the one instruction that `assemble` emits for code of `bits` at `rip`.
pub fn assembled(
    bits: u32,
    rip: u64,
    assemble: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(bits).unwrap();
    assemble(&mut assembler).unwrap();
    assembler.assemble(rip).unwrap()
}

impl core::fmt::Debug for Machine {
    // All but the bytes of memory, which nobody reads.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "rip {:#x}, {:?}, {:?}, {:#x?}, ", self.rip, self.flags, self.cr0, self.gprs)?;
        write!(f, "{:?}, {:?}, {:?}", self.segments, self.pages, self.seen)
    }
}

impl Processor for Machine {
    fn gpr(&mut self, register: Gpr) -> u64 {
        self.get(register)
    }

    fn set_gpr(&mut self, register: Gpr, value: u64) {
        self.set(register, value);
    }

    fn read(&mut self, register: SysReg) -> u64 {
        match register {
            SysReg::Rip => self.rip,
            SysReg::Rflags => self.flags.bits(),
            SysReg::Cr0 => self.cr0.bits(),
            SysReg::Cr4 => self.cr4,
            SysReg::Efer => self.efer.bits(),
            SysReg::FsBase => self.segments[SegmentName::Fs as usize].base,
            SysReg::GsBase => self.segments[SegmentName::Gs as usize].base,
            SysReg::GdtBase => self.gdt.0,
            SysReg::GdtLimit => self.gdt.1,
            SysReg::IdtBase => self.idt.0,
            SysReg::IdtLimit => self.idt.1,
            SysReg::Dr7 => self.dr7,
            other => panic!("{other:?} is read"),
        }
    }

    fn write(&mut self, register: SysReg, value: u64) {
        match register {
            SysReg::Rip => self.rip = value,
            SysReg::Rflags => self.flags = Rflags::from_bits_retain(value),
            SysReg::Cr0 => self.cr0 = Cr0::from_bits_retain(value),
            SysReg::Dr7 => self.dr7 = value,
            SysReg::GdtBase => self.gdt.0 = value,
            SysReg::GdtLimit => self.gdt.1 = value,
            SysReg::IdtBase => self.idt.0 = value,
            SysReg::IdtLimit => self.idt.1 = value,
            other => panic!("{other:?} is written"),
        }
    }

    fn segment(&mut self, name: SegmentName) -> Segment {
        self.segments[name as usize]
    }

    fn extended(&mut self, register: ExtendedRegister, value: &mut [u8]) {
        match register {
            ExtendedRegister::X87 => value.copy_from_slice(&self.x87),
            ExtendedRegister::Mxcsr => {
                value[..4].copy_from_slice(&self.mxcsr[0].to_le_bytes());
                value[4..].copy_from_slice(&self.mxcsr[1].to_le_bytes());
            }
            ExtendedRegister::Zmm(n) => value.copy_from_slice(&self.zmm[usize::from(n)]),
            ExtendedRegister::Mask(n) => value.copy_from_slice(&self.masks[usize::from(n)].to_le_bytes()),
            ExtendedRegister::Pkru => value.fill(0),
        }
    }

    fn set_extended(&mut self, register: ExtendedRegister, value: &[u8]) {
        match register {
            ExtendedRegister::X87 => self.x87.copy_from_slice(value),
            ExtendedRegister::Mxcsr => self.mxcsr[0] = u32::from_le_bytes(value[..4].try_into().unwrap()),
            ExtendedRegister::Zmm(n) => self.zmm[usize::from(n)].copy_from_slice(value),
            ExtendedRegister::Mask(n) => self.masks[usize::from(n)] = u64::from_le_bytes(value.try_into().unwrap()),
            ExtendedRegister::Pkru => panic!("PKRU is written"),
        }
    }

    fn switch_tables(&mut self, cr3: u64) -> Result<(), GuestFault> {
        self.cr3 = cr3;
        Ok(())
    }

    fn set_segment(&mut self, name: SegmentName, segment: Segment) {
        self.segments[name as usize] = segment;
    }

    fn translate(&mut self, at: Gla, purpose: Purpose) -> Result<Gpa, GuestFault> {
        let user = self.segments[SegmentName::Ss as usize].rights.dpl() == 3;
        let write = matches!(purpose, Purpose::Write | Purpose::SystemWrite);
        let system = matches!(purpose, Purpose::SystemRead | Purpose::SystemWrite);
        let code = u32::from(write) << 1 | u32::from(user && !system) << 2;
        let frame = at.0 & !0xfff;
        match self.pages.get(&(at.0 >> 12)) {
            Some(Page::Absent) => Err(GuestFault::page_fault(at.0, code)),
            Some(Page::ReadOnly) if write => Err(GuestFault::page_fault(at.0, code | 1)),
            Some(Page::System) if user && !system => Err(GuestFault::page_fault(at.0, code | 1)),
            Some(&Page::At(frame)) => Ok(Gpa(frame | at.0 & 0xfff)),
            Some(Page::ReadOnly | Page::System) | None if frame < DEVICE + DEVICE_SIZE as u64 => Ok(Gpa(at.0)),
            _ => Err(GuestFault::page_fault(at.0, code)),
        }
    }

    fn load(&mut self, from: Gpa, data: &mut [u8]) {
        assert!(from.0 & 0xfff <= 0x1000 - data.len() as u64, "an access within a page");
        let at = usize::try_from(from.0).unwrap();
        if at < MEMORY {
            data.copy_from_slice(&self.memory[at..at + data.len()]);
        } else {
            self.seen.push(Seen::Read(from.0 - DEVICE, data.len()));
            data.copy_from_slice(&self.device[at - MEMORY..at - MEMORY + data.len()]);
        }
    }

    fn store(&mut self, to: Gpa, data: &[u8]) {
        assert!(to.0 & 0xfff <= 0x1000 - data.len() as u64, "an access within a page");
        let at = usize::try_from(to.0).unwrap();
        if at < MEMORY {
            self.memory[at..at + data.len()].copy_from_slice(data);
        } else {
            self.seen.push(Seen::Write(to.0 - DEVICE, data.into()));
            self.device[at - MEMORY..at - MEMORY + data.len()].copy_from_slice(data);
        }
    }

    fn unblock_nmi(&mut self) {
        self.nmi_blocked = false;
    }

    fn may_use_port(&mut self, port: u16, _: Direction, _: Width) -> bool {
        self.ports_allowed && port == PORT
    }

    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        self.seen.push(Seen::In(port, data.len()));
        data.fill(u8::try_from(self.seen.len() & 0xff).unwrap());
    }

    fn port_read_block(&mut self, port: u16, width: Width, data: &mut [u8]) -> usize {
        let length = self.ready.min(data.len()) / width.bytes() * width.bytes();
        if length != 0 {
            self.seen.push(Seen::In(port, length));
            data[..length].iter_mut().zip(1u8..).for_each(|(byte, value)| *byte = value);
        }
        self.ready -= length;
        length
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        self.seen.push(Seen::Out(port, data.into()));
    }

    fn must_pause(&mut self) -> bool {
        self.patience = self.patience.saturating_sub(1);
        self.patience == 0
    }
}
