//! Single instructions, and what they raise.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use guest_rt::trap::{self, Frame};

/// Where execution goes on after the next exception; 0: where it was.
pub static RESUME: AtomicU64 = AtomicU64::new(0);
/// How many events there were, and of the last one: vector, error code, saved RIP.
static COUNT: AtomicU64 = AtomicU64::new(0);
static LAST: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
/// How many debug exceptions there were.
pub static STEPS: AtomicU32 = AtomicU32::new(0);
/// The vectors of the last eight events, the latest in the lowest byte.
pub static ORDER: AtomicU64 = AtomicU64::new(0);
/// The flags that the last event saved.
static FLAGS: AtomicU64 = AtomicU64::new(0);

/// Local interrupt vectors that tests may use.
pub const VECTOR: u8 = 0x35;
/// A second one, of a higher priority class only by [`VECTOR`]'s measure.
pub const SECOND: u8 = 0x25;

/// The flag that keeps an instruction's own breakpoint from stopping it again.
pub const RESUME_FLAG: u64 = 1 << 16;

/// Has everything that tests raise recorded.
pub fn install() {
    // Spurious ones want no end of interrupt, and count for nothing.
    trap::set_handler(0x3f, |_| {});
    // What firmware has left running must not come between.
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    for vector in (0..32).chain([VECTOR, SECOND]) {
        trap::set_handler(vector, record);
    }
}

fn record(frame: &mut Frame) {
    COUNT.fetch_add(1, Ordering::Relaxed);
    let cr2: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr2", out(reg) cr2, options(nomem, nostack, preserves_flags)) };
    for (slot, value) in LAST.iter().zip([frame.vector, frame.error, frame.rip, cr2]) {
        slot.store(value, Ordering::Relaxed);
    }
    ORDER.store(order() << 8 | frame.vector & 0xff, Ordering::Relaxed);
    FLAGS.store(frame.rflags, Ordering::Relaxed);
    if super::user::leave(frame) {
        return;
    }
    let resume = RESUME.swap(0, Ordering::Relaxed);
    if resume != 0 {
        frame.rip = resume;
    } else if frame.vector == UD >> 32 && code_at(frame.rip) == ICEBP {
        // Not every emulator knows it.
        frame.rip += 1;
    }
    if frame.vector == 1 {
        STEPS.fetch_add(1, Ordering::Relaxed);
        if frame.rflags & 1 << 8 == 0 {
            // A breakpoint on an instruction would come again.
            frame.rflags |= 1 << 16;
        }
    }
    if frame.vector >= 32 {
        super::apic::end_of_interrupt();
    }
}

/// INT1.
const ICEBP: u8 = 0xf1;

/// The first byte of the instruction that raised something.
fn code_at(rip: u64) -> u8 {
    // SAFETY: the processor has just fetched it from there.
    unsafe { (rip as *const u8).read() }
}

/// What was recorded last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raised {
    /// Vector.
    pub vector: u64,
    /// Error code, 0 without one.
    pub error: u64,
    /// The saved RIP.
    pub rip: u64,
    /// CR2 at that time.
    pub cr2: u64,
}

/// Forgets what was recorded.
pub fn forget() {
    COUNT.store(0, Ordering::Relaxed);
    STEPS.store(0, Ordering::Relaxed);
    ORDER.store(0, Ordering::Relaxed);
}

/// The vectors of the events since [`forget`], up to eight of them, the latest in the lowest byte.
pub fn order() -> u64 {
    ORDER.load(Ordering::Relaxed)
}

/// RFLAGS as the last event saved them.
pub fn saved_flags() -> u64 {
    FLAGS.load(Ordering::Relaxed)
}

/// How many events there were since [`forget`].
pub fn count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// The last event.
pub fn last() -> Raised {
    let [vector, error, rip, cr2] = [0, 1, 2, 3].map(|n| LAST[n].load(Ordering::Relaxed));
    Raised { vector, error, rip, cr2 }
}

/// The vector that was raised, shifted up, with its error code; all ones where nothing was.
pub fn raised() -> u64 {
    RESUME.store(0, Ordering::Relaxed);
    let last = last();
    if count() == 0 { u64::MAX } else { last.vector << 32 | last.error }
}

/// Executes instructions that may raise an exception; it goes on behind them then. Value: as [`raised`]. The
/// instructions must leave the stack as it is.
#[macro_export]
macro_rules! raises {
    ([$($instruction:expr),+] $($operands:tt)*) => {{
        $crate::machine::forget();
        // SAFETY: what the instructions touch is the test's; an exception is recorded and goes on behind them.
        unsafe {
            core::arch::asm!(
                "lea {resume}, [rip + 77f]",
                "mov [rip + {at}], {resume}",
                $($instruction,)+
                "77:",
                resume = out(reg) _,
                at = sym $crate::machine::RESUME,
                $($operands)*
            )
        };
        $crate::machine::raised()
    }};
}

/// Nothing was raised.
pub const NOTHING: u64 = u64::MAX;
/// #GP(0).
pub const GP: u64 = 13 << 32;
/// #UD.
pub const UD: u64 = 6 << 32;

/// RDMSR; the value, or what it raised.
pub fn rdmsr(msr: u32) -> Result<u64, u64> {
    let (low, high): (u32, u32);
    match raises!(["rdmsr"] in("ecx") msr, inout("eax") 0 => low, inout("edx") 0 => high,) {
        NOTHING => Ok(u64::from(high) << 32 | u64::from(low)),
        raised => Err(raised),
    }
}

/// WRMSR; what it raised.
pub fn wrmsr(msr: u32, value: u64) -> u64 {
    raises!(["wrmsr"] in("ecx") msr, in("eax") value & 0xffff_ffff, in("edx") value >> 32,)
}

/// A doubleword of a device.
pub fn read32(at: u64) -> u32 {
    // SAFETY: the address is a device's register.
    unsafe { (at as *const u32).read_volatile() }
}

/// A doubleword to a device.
pub fn write32(at: u64, value: u32) {
    // SAFETY: as above; the test knows what the register does.
    unsafe { (at as *mut u32).write_volatile(value) };
}

/// A byte to a port.
pub fn outb(port: u16, value: u8) {
    // SAFETY: the test knows what the port does.
    unsafe { guest_rt::port::write_u8(port, value) };
}

/// Lets interrupts in for some instructions.
pub fn breathe() {
    // SAFETY: every vector that a test uses has a handler.
    unsafe { asm!("sti", "nop", "nop", "nop", "cli", options(nostack)) };
}
