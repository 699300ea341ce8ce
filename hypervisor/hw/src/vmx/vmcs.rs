//! The VMCS, and the proof that one is current (SDM vol. 3, "Virtual-Machine Control Structures").
//!
//! Fields can be read and written only through [`Current`], which exists only while its VMCS is the current one of
//! this processor. Keeps no copy of any field.

use core::arch::asm;
use core::sync::atomic::Ordering;

use lamina_arch::vmx::field::{Field, ReadWrite, Width};

use crate::events::{self, Event};
use crate::memory::HostPage;
use crate::percpu;

/// One VMCS region. The bytes are the processor's.
pub struct Vmcs {
    /// Only kept: the processor reaches it by its address.
    _region: HostPage,
    /// The region's address.
    address: u64,
    /// VMLAUNCH has succeeded since the last VMCLEAR.
    launched: bool,
}

/// The VMCS that is current on this processor.
pub struct Current<'a>(&'a mut Vmcs);

impl Vmcs {
    /// A cleared VMCS.
    pub fn new(revision: u32) -> Vmcs {
        let mut region = HostPage::new();
        region.bytes_mut()[..4].copy_from_slice(&revision.to_le_bytes());
        let address = region.hpa().0;
        let mut vmcs = Vmcs { _region: region, address, launched: false };
        vmcs.clear();
        vmcs
    }

    /// Makes it this processor's current VMCS, if it is not.
    #[inline(always)]
    pub fn current(&mut self) -> Current<'_> {
        let address = self.address;
        let cpu = percpu::current();
        if cpu.current_vmcs.load(Ordering::Relaxed) != address {
            self.make_current();
        }
        Current(self)
    }

    #[cold]
    fn make_current(&mut self) {
        let address = self.address;
        // SAFETY: VMX is on (a `Vmcs` is made by `Vmx` only), the region has the revision identifier and was
        // cleared; it belongs to this processor alone, as `Vmcs` is not shared.
        let failed = unsafe { vmptrld(&self.address) };
        assert!(!failed, "VMPTRLD of {address:#x} failed");
        percpu::current().current_vmcs.store(address, Ordering::Relaxed);
    }

    /// Writes it back to memory and makes it current nowhere: VMCLEAR.
    pub fn clear(&mut self) {
        let address = self.address;
        let failed: u8;
        // SAFETY: VMX is on, and the region is a page of ours.
        unsafe { asm!("vmclear [{}]", "setna {}", in(reg) &raw const address, out(reg_byte) failed, options(nostack)) };
        assert!(failed == 0, "VMCLEAR of {address:#x} failed");
        self.launched = false;
        let cpu = percpu::current();
        if cpu.current_vmcs.load(Ordering::Relaxed) == address {
            cpu.current_vmcs.store(0, Ordering::Relaxed);
        }
    }
}

impl Drop for Vmcs {
    fn drop(&mut self) {
        // The processor may hold the region's data until it is cleared; the page must not be used again before.
        self.clear();
    }
}

/// Reads a field of whatever VMCS is current on this processor; `None` where none is.
pub fn peek<W: Width, A: lamina_arch::vmx::field::Access>(field: Field<W, A>) -> Option<W::Value> {
    if percpu::try_current()?.current_vmcs.load(Ordering::Relaxed) == 0 {
        return None;
    }
    let value: u64;
    // SAFETY: a VMCS is current, so VMX is on; VMREAD changes nothing else.
    unsafe {
        asm!("vmread {value}, {field}", value = out(reg) value, field = in(reg) u64::from(field.encoding()),
            options(nostack, nomem));
    }
    Some(W::from_vmread(value))
}

/// VMPTRLD; true where it failed.
///
/// # Safety
/// VMX is on, and `address` is that of a cleared VMCS region that no other processor uses.
unsafe fn vmptrld(address: &u64) -> bool {
    let failed: u8;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("vmptrld [{}]", "setna {}", in(reg) core::ptr::from_ref(address), out(reg_byte) failed, options(nostack));
    }
    failed != 0
}

impl Current<'_> {
    /// Reads a field.
    #[inline(always)]
    pub fn read<W: Width, A>(&self, field: Field<W, A>) -> W::Value
    where
        A: lamina_arch::vmx::field::Access,
    {
        W::from_vmread(self.read_raw(field.encoding()))
    }

    /// Reads the field with `encoding`. One that this processor does not have, or that needs no current VMCS, is a bug
    /// of ours and ends in #UD with its report.
    #[inline(always)]
    pub fn read_raw(&self, encoding: u32) -> u64 {
        events::count(Event::Vmread);
        let value: u64;
        // SAFETY: a VMCS is current, and VMREAD changes nothing else.
        unsafe {
            asm!(
                "vmread {value}, {field}",
                "ja 2f",
                "ud2",
                "2:",
                value = out(reg) value,
                field = in(reg) u64::from(encoding),
                options(nostack, nomem),
            );
        }
        value
    }

    /// Reads a field behind another that was read since the exit: a VMCS is current then, so no check is left that could
    /// fail but whether the processor has the field, which holds for those of the short way.
    #[inline(always)]
    pub fn read_on<W: Width, A>(&self, field: Field<W, A>) -> W::Value
    where
        A: lamina_arch::vmx::field::Access,
    {
        events::count(Event::Vmread);
        let value: u64;
        // SAFETY: a VMCS is current, and VMREAD changes nothing else. Were the field not there, `value` would be what
        // the register held: a number like any other to those who ask.
        unsafe {
            asm!("vmread {value}, {field}", value = out(reg) value, field = in(reg) u64::from(field.encoding()),
                options(nostack, nomem));
        }
        W::from_vmread(value)
    }

    /// Reads the field with `encoding`, or `None` where this processor does not have it.
    pub fn try_read_raw(&self, encoding: u32) -> Option<u64> {
        let value: u64;
        let failed: u8;
        // SAFETY: a VMCS is current, and VMREAD changes nothing else.
        unsafe {
            asm!(
                "vmread {value}, {field}",
                "setna {failed}",
                value = out(reg) value,
                field = in(reg) u64::from(encoding),
                failed = out(reg_byte) failed,
                options(nostack, nomem),
            );
        }
        (failed == 0).then_some(value)
    }

    /// Writes a field.
    #[inline(always)]
    pub fn write<W: Width>(&mut self, field: Field<W, ReadWrite>, value: W::Value) {
        events::count(Event::Vmwrite);
        let value: u64 = value.into();
        // SAFETY: a VMCS is current and borrowed mutably. What the fields mean is checked by the processor at VM
        // entry; host-state fields are written by `setup` only.
        unsafe {
            asm!(
                "vmwrite {field}, {value}",
                "ja 2f",
                "ud2",
                "2:",
                value = in(reg) value,
                field = in(reg) u64::from(field.encoding()),
                options(nostack, nomem),
            );
        }
    }

    /// Writes a field behind another that was read since the exit, as [`Current::read_on`] reads one: a VMCS is current,
    /// and every processor that this runs on has the fields of the short way.
    #[inline(always)]
    pub fn write_on<W: Width>(&mut self, field: Field<W, ReadWrite>, value: W::Value) {
        events::count(Event::Vmwrite);
        let value: u64 = value.into();
        // SAFETY: as for `write`.
        unsafe {
            asm!("vmwrite {field}, {value}", value = in(reg) value, field = in(reg) u64::from(field.encoding()),
                options(nostack, nomem));
        }
    }

    /// Whether VMLAUNCH has succeeded, so that VMRESUME is due.
    pub const fn is_launched(&self) -> bool {
        self.0.launched
    }

    /// VMLAUNCH has succeeded.
    pub const fn set_launched(&mut self) {
        self.0.launched = true;
    }
}

/// INVEPT of the single context `ept_pointer` (SDM vol. 3, "INVEPT—Invalidate Translations Derived from EPT").
pub fn invalidate_ept(ept_pointer: u64) {
    events::count(Event::Invalidation);
    let descriptor = [ept_pointer, 0u64];
    let failed: u8;
    // SAFETY: VMX is on and has this type of INVEPT: `enable` asked for it. It only drops cached translations.
    unsafe {
        asm!("invept {}, [{}]", "setna {}", in(reg) 1u64, in(reg) &raw const descriptor, out(reg_byte) failed,
            options(nostack));
    }
    // To go on would be to keep translations to memory that is another guest's by now.
    assert!(failed == 0, "INVEPT of {ept_pointer:#x} failed");
}

/// INVVPID of the single context `vpid` (SDM vol. 3, "INVVPID—Invalidate Translations Based on VPID").
pub fn invalidate_vpid(vpid: u16) {
    events::count(Event::Invalidation);
    let descriptor = [u64::from(vpid), 0u64];
    let failed: u8;
    // SAFETY: VMX is on and has this type of INVVPID: `enable` asked for it. It only drops cached translations.
    unsafe {
        asm!("invvpid {}, [{}]", "setna {}", in(reg) 1u64, in(reg) &raw const descriptor, out(reg_byte) failed,
            options(nostack));
    }
    assert!(failed == 0, "INVVPID of {vpid} failed");
}
