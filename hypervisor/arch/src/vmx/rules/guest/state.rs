//! Rules for the guest's non-register state: activity, interruptibility, pending debug exceptions, link pointer.

use crate::cr::Rflags;
use crate::event::vector;
use crate::segment::{AccessRights, SegmentName};
use crate::vmx::controls::PinBased;
use crate::vmx::field;
use crate::vmx::rules::{Checker, Injection, Reader, kind};

/// Activity states.
const HLT: u32 = 1;
const SHUTDOWN: u32 = 2;
const WAIT_FOR_SIPI: u32 = 3;

/// Bits of the interruptibility state.
const STI: u32 = 1 << 0;
const MOV_SS: u32 = 1 << 1;
const SMI: u32 = 1 << 2;
const NMI: u32 = 1 << 3;
const ENCLAVE: u32 = 1 << 4;

pub(super) fn check<R: Reader>(c: &mut Checker<'_, R>) {
    activity(c);
    interruptibility(c);
    pending_debug(c);
    link_pointer(c);
}

/// Whether `event` can be injected into a guest in activity state `state`.
fn wakes(state: u32, event: Injection) -> bool {
    let exception = |number: u8| event.kind == kind::HARDWARE_EXCEPTION && event.vector == u32::from(number);
    match state {
        HLT => {
            matches!(event.kind, kind::EXTERNAL | kind::NMI | kind::OTHER)
                || exception(vector::DB)
                || exception(vector::MC)
        }
        SHUTDOWN => event.kind == kind::NMI || exception(vector::MC),
        WAIT_FOR_SIPI => false,
        _ => true,
    }
}

fn activity<R: Reader>(c: &mut Checker<'_, R>) {
    let activity = field::GUEST_ACTIVITY;
    let state = c.read(activity);
    let supported = c.capabilities.activity_state(state);
    c.rule(activity, supported, "The activity state is one that IA32_VMX_MISC allows.");
    let stack = AccessRights(c.read(field::segment(SegmentName::Ss).3));
    c.rule(activity, state != HLT || stack.dpl() == 0, "Only a guest at privilege level 0 is halted.");
    let shadow = c.read(field::GUEST_INTERRUPTIBILITY) & (STI | MOV_SS) != 0;
    c.rule(activity, state == 0 || !shadow, "A guest in the shadow of STI or MOV SS is active.");
    if let Some(event) = c.injection {
        c.rule(activity, wakes(state, event), "The injected event is one that ends the activity state.");
    }
}

fn interruptibility<R: Reader>(c: &mut Checker<'_, R>) {
    let field = field::GUEST_INTERRUPTIBILITY;
    let state = c.read(field);
    let has = |bits: u32| state & bits != 0;
    let enabled = c.read(field::GUEST_RFLAGS) & Rflags::IF.bits() != 0;
    c.rule(field, state >> 5 == 0, "Bits 31:5 of the interruptibility state are 0.");
    c.rule(field, !(has(STI) && has(MOV_SS)), "Not both STI and MOV SS block.");
    c.rule(field, enabled || !has(STI), "STI blocks only with RFLAGS.IF 1.");
    c.rule(field, !has(SMI), "SMIs are blocked only in SMM.");
    c.rule(field, !(has(ENCLAVE) && has(MOV_SS)), "MOV SS does not block in an enclave.");
    match c.injection.map(|event| event.kind) {
        Some(kind::EXTERNAL) => {
            let holds = !has(STI | MOV_SS);
            c.rule(field, holds, "No external interrupt is injected in the shadow of STI or MOV SS.");
        }
        Some(kind::NMI) => {
            // Blocking by STI matters on some processors only; a guest that trips over it deserves to know.
            let holds = !has(STI | MOV_SS);
            c.rule(field, holds, "No NMI is injected in the shadow of MOV SS, nor on some processors of STI.");
            let holds = !(has(NMI) && c.pin.contains(PinBased::VIRTUAL_NMIS));
            c.rule(field, holds, "No virtual NMI is injected while NMIs are blocked.");
        }
        _ => (),
    }
}

fn pending_debug<R: Reader>(c: &mut Checker<'_, R>) {
    /// The processor was about to take a single-step trap.
    const SINGLE_STEP: u64 = 1 << 14;
    const ENABLED_BREAKPOINT: u64 = 1 << 12;
    const TRANSACTION: u64 = 1 << 16;
    const BRANCH_TRAP: u64 = 1 << 1;
    /// Bits 10:4, 13, 15 and 63:17; bit 11 is that of bus locks where the processor has it.
    const RESERVED: u64 = !0x1_580f;

    let field = field::GUEST_PENDING_DEBUG;
    let pending = c.read(field);
    c.rule(field, pending & RESERVED == 0, "The reserved bits of the pending debug exceptions are 0.");
    let state = c.read(field::GUEST_INTERRUPTIBILITY);
    if state & (STI | MOV_SS) != 0 || c.read(field::GUEST_ACTIVITY) == HLT {
        let traps = c.read(field::GUEST_RFLAGS) & Rflags::TF.bits() != 0;
        let branches = c.read(field::GUEST_DEBUGCTL) & BRANCH_TRAP != 0;
        let holds = (pending & SINGLE_STEP != 0) == (traps && !branches);
        c.rule(field, holds, "In a shadow or halted, BS is pending exactly if RFLAGS.TF is 1 and DEBUGCTL.BTF 0.");
    }
    if pending & TRANSACTION != 0 {
        let holds = pending == TRANSACTION | ENABLED_BREAKPOINT && state & MOV_SS == 0;
        c.rule(field, holds, "RTM is pending with bit 12 alone, and not in the shadow of MOV SS.");
    }
}

fn link_pointer<R: Reader>(c: &mut Checker<'_, R>) {
    let field = field::VMCS_LINK_POINTER;
    let pointer = c.read(field);
    let holds = pointer == u64::MAX || pointer & (0xfff | !c.capabilities.structure_mask()) == 0;
    c.rule(field, holds, "The link pointer is all ones, or a VMCS's address within the physical-address width.");
}
