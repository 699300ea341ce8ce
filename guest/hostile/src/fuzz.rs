//! A random stream of privileged and device operations: states that are nearly valid, not noise. The seed decides all of
//! it, so that a run can be repeated.
//!
//! What an operation may do to this program is kept in bounds: vectors have handlers, ports that end the VM are left
//! out, and registers that the program stands on are put back. Everything else is as wild as it comes.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

use guest_rt::{cpu, pic, port, probe, trap};

use crate::calls::either;
use crate::code;
use crate::engine::{DATA, RAX, RBX, RCX, RDI, RDX, RSI, Run};
use crate::registers;
use crate::window::{self, KERNEL, USER};

const LAPIC: u64 = 0xfee0_0000;
const IOAPIC: u64 = 0xfec0_0000;
const APIC_EOI: u64 = LAPIC + 0xb0;
const TRAP: u64 = 1 << 8;
/// How often it says where it is: so many times, but no fewer than each so many steps.
const REPORTS: u64 = 10;
const REPORT_STEPS: u64 = 100_000;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    fn of<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }

    /// Values at borders more often than others.
    fn value(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => (1 << self.below(64)) - 1,
            4 => self.below(256),
            5 => 0xffff_ffff,
            _ => self.next(),
        }
    }
}

/// Does `steps` operations.
pub fn run(seed: u64, steps: u64) {
    for vector in trap::FIRST_IRQ_VECTOR..64 {
        trap::set_handler(vector, end_of_interrupt);
    }
    trap::set_handler(1, |_| {});
    trap::set_handler(trap::NMI_VECTOR, |_| count());
    let _ = guest_rt::extended::Extended::enable();
    pic::init();
    let mut random = Random(seed);
    // Asked for once: to find out takes exits, which are none of the operations.
    let call = either(code!("vmcall"), code!("vmmcall"));
    let every = (steps / REPORTS).clamp(1, REPORT_STEPS);
    for step in 0..steps {
        if step % every == 0 {
            report!("fuzz step {step} of {steps}");
        }
        one(&mut random, call);
    }
    registers::calm();
    report!("fuzz seed {seed}: {steps} steps done");
}

/// Interrupts and NMIs since interrupts were last let in.
static BURST: AtomicU32 = AtomicU32::new(0);
/// So many are enough: where each is followed by the next, the program would never go on, as on any machine.
const BURST_MAX: u32 = 20;

/// Another interrupt or NMI.
fn count() {
    if BURST.fetch_add(1, Ordering::Relaxed) >= BURST_MAX {
        quiet();
    }
}

fn end_of_interrupt(_: &mut trap::Frame) {
    count();
    pic::end_of_interrupt();
    out(0xa0, 0x20);
    // SAFETY: a device's register, where the local APIC is in memory; it always is here.
    unsafe { (APIC_EOI as *mut u32).write_volatile(0) };
}

/// Masks all that interrupts.
fn quiet() {
    out(0x21, 0xff);
    out(0xa1, 0xff);
    for lvt in (0x320..=0x370).step_by(16) {
        // SAFETY: registers of the local APIC, which is in memory.
        unsafe { ((LAPIC + lvt) as *mut u32).write_volatile(1 << 16) };
    }
    for pin in 0..24 {
        // SAFETY: registers of the I/O APIC.
        unsafe {
            (IOAPIC as *mut u32).write_volatile(0x10 + 2 * pin);
            ((IOAPIC + 0x10) as *mut u32).write_volatile(1 << 16);
        }
    }
}

fn out(port: u16, value: u8) {
    // SAFETY: no device here writes to memory.
    unsafe { port::write_u8(port, value) };
}

fn one(random: &mut Random, call: &[u8]) {
    match random.below(16) {
        0 | 1 => ports(random),
        2 => interrupt_controllers(random),
        3 => msrs(random),
        4 => control_registers(random),
        5 => extended_state(random),
        6 | 7 => local_apic(random),
        8 => io_apic(random),
        9 => string_ports(random),
        10 | 11 => on_device(random),
        12 => {
            let leaf = random.of(&[0, 0x4000_0000, 0x8000_0000, 0xc000_0000]) + random.below(0x30);
            cpu::cpuid((leaf & 0xffff_ffff) as u32, (random.value() & 0xffff_ffff) as u32);
        }
        13 => hypercall(random, call),
        14 => level_3(random),
        _ => {
            BURST.store(0, Ordering::Relaxed);
            // SAFETY: whatever comes in has a handler.
            unsafe { asm!("sti", "nop", "nop", "cli", options(nostack)) };
        }
    }
}

/// Timer, clock, keyboard, PCI, ACPI, and ports that nobody has.
fn ports(random: &mut Random) {
    /// Keyboard commands pulse the reset line, and a byte of ACPI's control register powers off: read only.
    const READ_ONLY: [u16; 4] = [0x60, 0x64, 0x92, 0x604];
    const PORTS: [u16; 24] = [
        0x40, 0x41, 0x42, 0x43, 0x61, 0x70, 0x71, 0x80, 0x4d0, 0x4d1, 0x600, 0x602, 0x608, 0xcf8, 0xcfa, 0xcfc, 0xcfd,
        0xcfe, 0xcff, 0xf4, 0x3fa, 0x1f0, 0x5678, 0xffff,
    ];
    let write = random.below(2) == 0;
    let port = if write { random.of(&PORTS) } else { random.of(&[random_port(&READ_ONLY, random.0), PORTS[3]]) };
    // A wider write at some of them would reach a register that is left out, or the console's.
    let width =
        if write && matches!(port, 0x600..=0x602 | 0x3fa | 0x43 | 0xcf8..=0xcfb | 0x61) { 0 } else { random.below(3) };
    let width = if write && port == 0xcf8 { 2 } else { width };
    let code = match (write, width) {
        (true, 0) => code!("out dx, al"),
        (true, 1) => code!("out dx, ax"),
        (true, _) => code!("out dx, eax"),
        (false, 0) => code!("in al, dx"),
        (false, 1) => code!("in ax, dx"),
        (false, _) => code!("in eax, dx"),
    };
    let value = if port == 0xcf8 { 0x8000_0000 | random.value() & 0xffff } else { random.value() };
    Run::new(code).with(RDX, port.into()).with(RAX, value).go();
}

fn random_port(of: &[u16], seed: u64) -> u16 {
    of[(seed % of.len() as u64) as usize]
}

/// The 8259s, without a change of their vectors.
fn interrupt_controllers(random: &mut Random) {
    let port = random.of(&[0x20, 0x21, 0xa0, 0xa1]);
    let value = (random.value() & 0xff) as u8;
    out(port, if port & 1 == 0 { value & !0x10 } else { value });
    port::read_u8(port);
    if random.below(64) == 0 {
        pic::init();
    }
}

fn msrs(random: &mut Random) {
    const MSRS: [u32; 30] = [
        0x10,
        0x3b,
        0x48,
        0x79,
        0x8b,
        0xfe,
        0x174,
        0x175,
        0x176,
        0x179,
        0x17a,
        0x1a0,
        0x1d9,
        0x200,
        0x201,
        0x20f,
        0x250,
        0x26f,
        0x277,
        0x2ff,
        0x6e0,
        0xda0,
        0xc000_0081,
        0xc000_0082,
        0xc000_0084,
        0xc000_0100,
        0xc000_0102,
        0xc000_0103,
        0x800,
        0x83f,
    ];
    let msr = if random.below(4) == 0 { (random.value() & 0xffff_ffff) as u32 } else { random.of(&MSRS) };
    let before = probe::rdmsr(msr);
    if msr == 0x1b || msr == registers::EFER {
        return;
    }
    let value = if random.below(2) == 0 { before.unwrap_or(0) ^ 1 << random.below(64) } else { random.value() };
    if registers::write(msr, value)
        && let Ok(before) = before
        && !matches!(msr, 0x10 | 0x6e0)
    {
        registers::write(msr, before);
    }
}

fn control_registers(random: &mut Random) {
    let bit = 1u64 << random.below(64);
    // What is taken is put back at once.
    let _ = match random.below(4) {
        0 => probe::cr0(|value| value ^ bit),
        1 => probe::cr4(|value| value ^ bit),
        2 => probe::cr8(|_| random.0 & 0x1f),
        _ => probe::wrmsr(registers::EFER, registers::read(registers::EFER) ^ bit),
    };
}

fn extended_state(random: &mut Random) {
    let before = probe::xgetbv().unwrap_or(1);
    let value = if random.below(4) == 0 { random.value() } else { before ^ 1 << random.below(10) };
    Run::new(code!("xsetbv")).with(RCX, random.below(2)).edx_eax(value).go();
    Run::new(code!("xsetbv")).edx_eax(before).go();
}

/// A value whose low byte is a vector that has a handler.
fn with_vector(random: &mut Random) -> u64 {
    random.value() & 0xffff_ff00 | (32 + random.below(32))
}

fn local_apic(random: &mut Random) {
    const REGISTERS: [u64; 22] = [
        0x20, 0x30, 0x80, 0x90, 0xa0, 0xb0, 0xd0, 0xe0, 0x280, 0x310, 0x380, 0x390, 0x3e0, 0x100, 0x200, 0x180, 0x400,
        0x3f0, 0xff0, 0x40, 0xc0, 0x2f0,
    ];
    const WITH_VECTOR: [u64; 8] = [0xf0, 0x300, 0x320, 0x330, 0x340, 0x350, 0x360, 0x370];
    let (register, value) = if random.below(2) == 0 {
        (random.of(&REGISTERS), random.value())
    } else {
        (random.of(&WITH_VECTOR), with_vector(random))
    };
    let code = if random.below(3) == 0 { code!("mov eax, [rdi]") } else { code!("mov [rdi], eax") };
    Run::new(code).with(RDI, LAPIC + register).with(RAX, value).go();
}

fn io_apic(random: &mut Random) {
    let index = random.below(0x50);
    Run::new(code!("mov [rdi], eax")).with(RDI, IOAPIC).with(RAX, index).go();
    let value = if index >= 0x10 && index & 1 == 0 { with_vector(random) } else { random.value() };
    let code = if random.below(3) == 0 { code!("mov eax, [rdi]") } else { code!("mov [rdi], eax") };
    Run::new(code).with(RDI, IOAPIC + 0x10).with(RAX, value).go();
}

fn string_ports(random: &mut Random) {
    let code = match random.below(8) {
        0 => code!("rep insb"),
        1 => code!("rep insw"),
        2 => code!("rep insd"),
        3 => code!("insd"),
        4 => code!("rep outsb"),
        5 => code!("rep outsw"),
        6 => code!("rep outsd"),
        _ => code!("addr32 rep outsb"),
    };
    // Upwards from the beginning or downwards from the end of two pages.
    let down = random.below(4) == 0;
    let at = DATA.address() + if down { 8000 } else { random.below(64) };
    let port = random.of(&[0x40, 0x71, 0x80, 0xcfc, 0x5678]);
    let flags = if down { 1 << 10 } else { 0 } | if random.below(8) == 0 { TRAP } else { 0 };
    let run = Run::new(code).with(RDI, at).with(RSI, at).with(RCX, random.below(200)).with(RDX, port).flags(flags);
    run.go();
}

/// Instructions on devices, and on what is nearly one.
fn on_device(random: &mut Random) {
    let code = match random.below(20) {
        0 => code!("add [rdi], eax"),
        1 => code!("xchg [rdi], eax"),
        2 => code!("lock cmpxchg [rdi], ebx"),
        3 => code!("lock xadd [rdi], eax"),
        4 => code!("bts dword ptr [rdi], 5"),
        5 => code!("movzx eax, byte ptr [rdi]"),
        6 => code!("movsx rax, word ptr [rdi]"),
        7 => code!("mov rax, [rdi]"),
        8 => code!("mov [rdi], al"),
        9 => code!("mov [rdi], ax"),
        10 => code!("cmp [rdi], eax"),
        11 => code!("test [rdi], eax"),
        12 => code!("shl dword ptr [rdi], cl"),
        13 => code!("not dword ptr [rdi]"),
        14 => code!("movsd"),
        15 => code!("lodsq"),
        16 => code!("scasd"),
        17 => code!("sbb [rdi], ebx"),
        18 => code!("imul eax, [rdi]"),
        _ => code!("setz [rdi]"),
    };
    // Registers that are no more than registers: identity, remote, the timer's counts, reserved ones, open bus.
    let place =
        random.of(&[LAPIC + 0x20, LAPIC + 0xc0, LAPIC + 0x380, LAPIC + 0x390, LAPIC + 0x3a0, 0xd000_0000, 0xfed0_0000]);
    let place = place + random.below(16);
    let through_window = random.below(3) == 0;
    let place = if through_window {
        let bits = random.of(&[KERNEL, USER, window::PRESENT, 0]);
        window::map(window::FREE, place & !0xfff, bits) + (place & 0xfff)
    } else {
        place
    };
    let flags = if random.below(8) == 0 { TRAP } else { 0 };
    let run = Run::new(code).with(RDI, place).with(RSI, place).with(RAX, random.value()).with(RBX, random.value());
    let run = run.with(RCX, random.value()).flags(flags).at(random.of(&[0, 4090, 4095]));
    if through_window && random.below(2) == 0 {
        run.user().go()
    } else {
        run.go()
    };
}

fn hypercall(random: &mut Random, call: &[u8]) {
    let number = if random.below(2) == 0 { random.below(8) } else { random.value() };
    // 1 prints, which would be heard; 4 ends the VM, as it should.
    if matches!(number, 1 | 4) {
        return;
    }
    let run = Run::new(call).with(RAX, number).with(RDI, random.value()).with(RSI, random.value());
    if random.below(2) == 0 {
        run.user().go()
    } else {
        run.go()
    };
}

/// One instruction of random bytes, at privilege level 3.
fn level_3(random: &mut Random) {
    let mut bytes = [0; 16];
    for (at, word) in [0, 8].into_iter().zip([random.next(), random.next()]) {
        bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
    if random.below(2) == 0 {
        // Two-byte instructions, where most of the privileged ones are.
        bytes[0] = 0x0f;
    }
    let mut run = Run::new(&bytes).flags(TRAP).user();
    for register in [RAX, RBX, RCX, RDX, RSI, RDI] {
        run.gprs[register] = random.value();
    }
    run.go();
}
