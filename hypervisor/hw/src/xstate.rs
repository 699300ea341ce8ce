//! Extended state: x87, SSE, AVX and AVX-512 registers (SDM vol. 1, "Managing State Using the XSAVE Feature Set").
//!
//! Owns one save area for each virtual processor. The hypervisor itself uses none of these registers, so they move
//! only when another vCPU comes in. XCR0 is the guest's while its vCPU is loaded and everything guests may have
//! otherwise.

use alloc::alloc::{alloc_zeroed, dealloc, handle_alloc_error};
use core::alloc::Layout;
use core::arch::asm;
use core::ptr::NonNull;

use lamina_arch::regs::ExtendedRegister;
use lamina_vmm::cpuid::switched_components;
use raw_cpuid::native_cpuid::cpuid_count;
use spin::Once;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags};

/// Offset of MXCSR in the save area, with its mask behind it. Unit: bytes.
const MXCSR_OFFSET: usize = 24;
/// MXCSR after reset.
const MXCSR_RESET: u32 = 0x1f80;

/// Offset of ST0 to ST7 in the save area, 16 bytes each. Unit: bytes.
const ST_OFFSET: usize = 32;
/// Offset of XMM0 to XMM15. Unit: bytes.
const XMM_OFFSET: usize = 160;
/// Offset of the bit map of the components that the area holds. Unit: bytes.
const XSTATE_BV: usize = 512;

/// State components, by number (SDM vol. 1, "XSAVE-Supported Features and State-Component Bitmaps").
mod component {
    pub const X87: usize = 0;
    pub const SSE: usize = 1;
    /// The upper halves of YMM0 to YMM15.
    pub const AVX: usize = 2;
    pub const OPMASK: usize = 5;
    /// The upper halves of ZMM0 to ZMM15.
    pub const ZMM_HI256: usize = 6;
    /// ZMM16 to ZMM31.
    pub const HI16_ZMM: usize = 7;
    pub const PKRU: usize = 9;
    /// How many there are up to the last of these.
    pub const COUNT: usize = 10;
}

/// The components that are switched, and how large an area they need.
#[derive(Clone, Copy, Debug)]
struct Components {
    mask: u64,
    size: usize,
    /// Where in the area the components from the third on are; 0 for those that are not switched. Unit: bytes.
    offsets: [usize; component::COUNT],
}

static COMPONENTS: Once<Components> = Once::new();

/// Turns XSAVE on for the processor and finds out what there is to switch. Before the first VMCS is set up: CR4 is part
/// of its host state.
pub fn enable() {
    // SAFETY: the caller checked that the processor has XSAVE; nothing of ours uses the x87 or SSE registers.
    unsafe {
        Cr4::update(|cr4| *cr4 |= Cr4Flags::OSXSAVE | Cr4Flags::OSFXSR | Cr4Flags::OSXMMEXCPT_ENABLE);
        Cr0::update(|cr0| {
            *cr0 |= Cr0Flags::MONITOR_COPROCESSOR;
            *cr0 -= Cr0Flags::EMULATE_COPROCESSOR | Cr0Flags::TASK_SWITCHED;
        });
    }
    let leaf = cpuid_count(0xd, 0);
    let mask = switched_components(u64::from(leaf.edx) << 32 | u64::from(leaf.eax));
    set_xcr0(mask);
    let size = cpuid_count(0xd, 0).ebx as usize;
    let offsets = core::array::from_fn(|n| match n {
        component::AVX.. if mask & 1 << n != 0 => cpuid_count(0xd, u32::try_from(n).unwrap_or(0)).ebx as usize,
        _ => 0,
    });
    COMPONENTS.call_once(|| Components { mask, size, offsets });
}

/// Everything that is switched; 0 before [`enable`].
fn components() -> Components {
    COMPONENTS.get().copied().unwrap_or(Components { mask: 1, size: 576, offsets: [0; component::COUNT] })
}

/// XSETBV of register 0.
fn set_xcr0(value: u64) {
    // SAFETY: CR4.OSXSAVE is set, and the value is a combination that the run loop (or `enable`) found valid for this
    // processor; our own code uses none of the registers.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") value & 0xffff_ffff, in("edx") value >> 32, options(nostack, nomem));
    }
}

/// XGETBV of register 0.
fn xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: CR4.OSXSAVE is set, and reading the register changes nothing.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nostack, nomem)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Makes the addresses of the last x87 instruction and its operand ours: on a processor whose XRSTOR leaves them where no
/// exception waits, the next guest would read those of the last (APM vol. 2, "Media and x87 Processor State", of FXRSTOR).
/// While no guest's state is in the registers.
pub fn overwrite_pointers() {
    static OPERAND: i32 = 0;
    // SAFETY: nothing of ours is in the registers, nor is the value that is left on their stack anybody's: this target's
    // code uses none of them, and whoever comes in loads all.
    unsafe { asm!("fnclex", "emms", "fild dword ptr [{}]", in(reg) &raw const OPERAND, options(nostack, readonly)) };
}

/// The state that is in the registers is nobody's any more: XCR0 is what it is while none is loaded.
pub fn forget() {
    set_xcr0(components().mask);
}

/// Where the parts of `register` are in a save area: the component, the offset, how many bytes.
fn parts(register: ExtendedRegister) -> impl Iterator<Item = (usize, usize, usize)> {
    let components = components();
    let of = move |number: usize, offset: usize, length: usize| {
        // A component that is not switched has no place.
        match components.offsets.get(number) {
            Some(&0) | None => None,
            Some(start) => Some((number, start + offset, length)),
        }
    };
    let parts = match register {
        ExtendedRegister::X87 => {
            [Some((component::X87, 0, MXCSR_OFFSET)), Some((component::X87, ST_OFFSET, 128)), None]
        }
        ExtendedRegister::Mxcsr => [Some((component::SSE, MXCSR_OFFSET, 8)), None, None],
        ExtendedRegister::Zmm(n @ ..16) => {
            let n = usize::from(n);
            let low = Some((component::SSE, XMM_OFFSET + 16 * n, 16));
            [low, of(component::AVX, 16 * n, 16), of(component::ZMM_HI256, 32 * n, 32)]
        }
        ExtendedRegister::Zmm(n) => [of(component::HI16_ZMM, 64 * usize::from(n & 15), 64), None, None],
        ExtendedRegister::Mask(n) => [of(component::OPMASK, 8 * usize::from(n & 7), 8), None, None],
        ExtendedRegister::Pkru => [of(component::PKRU, 0, 4), None, None],
    };
    parts.into_iter().flatten()
}

/// The extended state of one virtual processor.
#[derive(Debug)]
pub struct ExtendedState {
    area: NonNull<u8>,
    layout: Layout,
    /// The guest's, as far as it is known: see [`ExtendedState::follow_xcr0`].
    xcr0: u64,
    /// All components that are switched.
    mask: u64,
    loaded: bool,
}

// SAFETY: the area is owned, like the contents of a `Box`.
unsafe impl Send for ExtendedState {}

impl ExtendedState {
    /// State as after reset: every component in its initial configuration, XCR0 = 1.
    pub fn new() -> ExtendedState {
        let size = components().size.max(576);
        // The size that the processor tells is below 2^32, so this is a layout.
        let Ok(layout) = Layout::from_size_align(size, 64) else { unreachable!("{size} bytes are no layout") };
        // SAFETY: the layout's size is not 0.
        let Some(area) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        // SAFETY: the area is at least 576 bytes long, ours, and aligned to 64 bytes. XRSTOR loads MXCSR from here
        // whatever XSTATE_BV says, and the zero in XSTATE_BV initializes the rest.
        unsafe { area.add(MXCSR_OFFSET).cast::<u32>().write(MXCSR_RESET) };
        ExtendedState { area, layout, xcr0: 1, mask: components().mask, loaded: false }
    }

    /// The guest's XCR0.
    pub fn xcr0(&self) -> u64 {
        // While the guest is in, the register is the truth: QEMU's emulation of SVM lets XSETBV through, intercepted or
        // not.
        if self.loaded { xcr0() } else { self.xcr0 }
    }

    /// Sets the guest's XCR0, a value that the run loop found valid.
    pub fn set_xcr0(&mut self, value: u64) {
        self.xcr0 = value;
        if self.loaded {
            set_xcr0(value);
        }
    }

    /// Reads `register` into `value`, which has its size.
    pub fn read(&mut self, register: ExtendedRegister, value: &mut [u8]) {
        value.fill(0);
        self.in_area(|area| {
            let mut left = value;
            for (_, offset, length) in parts(register) {
                let Some((part, rest)) = left.split_at_mut_checked(length) else { return };
                if let Some(from) = area.get(offset..offset + length) {
                    part.copy_from_slice(from);
                }
                left = rest;
            }
        });
    }

    /// Writes `register`.
    pub fn write(&mut self, register: ExtendedRegister, value: &[u8]) {
        self.in_area(|area| {
            let mut left = value;
            let mut held = 0u16;
            for (number, offset, length) in parts(register) {
                let Some((part, rest)) = left.split_at_checked(length) else { return };
                if let Some(to) = area.get_mut(offset..offset + length) {
                    to.copy_from_slice(part);
                }
                held |= 1 << number;
                left = rest;
            }
            // The rest of a component that was in its initial state was saved as that.
            for (byte, bits) in area.iter_mut().skip(XSTATE_BV).zip(held.to_le_bytes()) {
                *byte |= bits;
            }
        });
    }

    /// Lets `change` look at the save area while the state is in it.
    fn in_area(&mut self, change: impl FnOnce(&mut [u8])) {
        let was_loaded = self.loaded;
        if was_loaded {
            self.follow_xcr0();
            self.save();
        }
        // SAFETY: the area was allocated with this size, initialized, and is borrowed for as long as `self` is.
        change(unsafe { core::slice::from_raw_parts_mut(self.area.as_ptr(), self.layout.size()) });
        if was_loaded {
            self.load();
        }
    }

    /// Moves the state into the registers, all components, whatever the guest has enabled.
    pub fn load(&mut self) {
        let mask = self.mask;
        // SAFETY: the area was made for these components and holds what `new` or XSAVE wrote; XCR0 has them enabled.
        unsafe {
            asm!(
                "xrstor64 [{}]",
                in(reg) self.area.as_ptr(),
                in("eax") mask & 0xffff_ffff,
                in("edx") mask >> 32,
                options(nostack),
            );
        }
        // Writing it is slow, and the guests of most machines have all there is.
        if self.xcr0 != mask {
            set_xcr0(self.xcr0);
        }
        self.loaded = true;
    }

    /// Looks what XCR0 is, while loaded: for a vendor that may not see each XSETBV, before [`ExtendedState::save`].
    pub fn follow_xcr0(&mut self) {
        self.xcr0 = xcr0() & self.mask;
    }

    /// Saves the registers, all components. XCR0 must be known: each change has come by [`ExtendedState::set_xcr0`], or
    /// [`ExtendedState::follow_xcr0`] has looked.
    pub fn save(&mut self) {
        let mask = self.mask;
        if self.xcr0 != mask {
            set_xcr0(mask);
        }
        self.loaded = false;
        // SAFETY: the area is large enough for these components, aligned, and ours; XCR0 has them enabled.
        unsafe {
            asm!(
                "xsave64 [{}]",
                in(reg) self.area.as_ptr(),
                in("eax") mask & 0xffff_ffff,
                in("edx") mask >> 32,
                options(nostack),
            );
        }
    }
}

impl Default for ExtendedState {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for ExtendedState {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout, and nobody has it any more.
        unsafe { dealloc(self.area.as_ptr(), self.layout) };
    }
}
