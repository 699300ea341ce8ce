//! Rules for the guest's segment registers.

use super::Mode;
use crate::segment::{AccessRights, SegmentName};
use crate::vmx::field;
use crate::vmx::rules::{Checker, Reader};

/// Type 3, read/write data and accessed: what CS holds after a reset, and keeps in real mode.
const DATA: u32 = 3;

pub(super) fn check<R: Reader>(c: &mut Checker<'_, R>, mode: Mode) {
    use SegmentName::{Cs, Ds, Es, Fs, Gs, Ss};
    for name in [Es, Cs, Ss, Ds, Fs, Gs] {
        if mode.virtual_8086 {
            virtual_8086(c, name);
        } else {
            base(c, name);
            // Only CS is always in use; the others may be null.
            if name == Cs || !rights(c, name).is_unusable() {
                common(c, name, true);
                kind(c, name, mode);
            }
        }
    }
    if !mode.virtual_8086 {
        privilege(c, mode);
    }
    local_descriptor_table(c);
    task_register(c, mode);
}

fn rights<R: Reader>(c: &Checker<'_, R>, name: SegmentName) -> AccessRights {
    AccessRights(c.read(field::segment(name).3))
}

fn selector<R: Reader>(c: &Checker<'_, R>, name: SegmentName) -> u16 {
    c.read(field::segment(name).0)
}

/// Requested privilege level of a selector.
fn rpl<R: Reader>(c: &Checker<'_, R>, name: SegmentName) -> u8 {
    (selector(c, name) & 3) as u8
}

fn virtual_8086<R: Reader>(c: &mut Checker<'_, R>, name: SegmentName) {
    let (selector, base, limit, rights) = field::segment(name);
    let holds = c.read(base) == u64::from(c.read(selector)) << 4;
    c.rule(base, holds, "In virtual-8086 mode a base is its selector times 16.");
    let holds = c.read(limit) == 0xffff;
    c.rule(limit, holds, "In virtual-8086 mode a limit is 0xffff.");
    let holds = c.read(rights) == 0xf3;
    c.rule(rights, holds, "In virtual-8086 mode access rights are 0xf3.");
}

fn base<R: Reader>(c: &mut Checker<'_, R>, name: SegmentName) {
    let (_, base, _, _) = field::segment(name);
    match name {
        SegmentName::Fs | SegmentName::Gs => c.canonical(base),
        SegmentName::Cs => {
            let holds = c.read(base) >> 32 == 0;
            c.rule(base, holds, "Bits 63:32 of the base of CS are 0.");
        }
        _ => {
            let holds = rights(c, name).is_unusable() || c.read(base) >> 32 == 0;
            c.rule(base, holds, "Bits 63:32 of the base of a usable SS, DS or ES are 0.");
        }
    }
}

/// What all segments in use have in common; `code_or_data` tells them from LDTR and TR.
fn common<R: Reader>(c: &mut Checker<'_, R>, name: SegmentName, code_or_data: bool) {
    let (_, _, limit, field) = field::segment(name);
    let rights = rights(c, name);
    if code_or_data {
        c.rule(field, rights.bit(4), "S is 1: CS, SS, DS, ES, FS and GS hold code or data.");
    } else {
        c.rule(field, !rights.bit(4), "S is 0: LDTR and TR hold system segments.");
    }
    c.rule(field, rights.bit(7), "A segment in use is present.");
    c.rule(field, rights.0 & 0xfffe_0f00 == 0, "Bits 11:8 and 31:17 of access rights are 0.");
    let limit = c.read(limit);
    c.rule(field, limit & 0xfff == 0xfff || !rights.bit(15), "G is 0 where any of the limit's bits 11:0 is 0.");
    c.rule(field, limit >> 20 == 0 || rights.bit(15), "G is 1 where any of the limit's bits 31:20 is 1.");
}

fn kind<R: Reader>(c: &mut Checker<'_, R>, name: SegmentName, mode: Mode) {
    let (_, _, _, field) = field::segment(name);
    let rights = rights(c, name);
    match name {
        SegmentName::Cs => {
            let code = matches!(rights.kind(), 9 | 11 | 13 | 15) || (mode.unrestricted && rights.kind() == DATA);
            c.rule(field, code, "CS is accessed code: 9, 11, 13, 15; or 3 in an unrestricted guest.");
            let holds = !(mode.code64 && rights.is_default32());
            c.rule(field, holds, "64-bit code has D/B 0.");
        }
        SegmentName::Ss => {
            let holds = matches!(rights.kind(), 3 | 7);
            c.rule(field, holds, "SS is writable and accessed data: 3 or 7.");
        }
        _ => {
            c.rule(field, rights.kind() & 1 != 0, "A data segment register holds an accessed segment.");
            let readable = rights.kind() & 8 == 0 || rights.kind() & 2 != 0;
            c.rule(field, readable, "Code in a data segment register is readable.");
            let conforming = rights.kind() >= 12;
            let holds = mode.unrestricted || conforming || rights.dpl() >= rpl(c, name);
            c.rule(field, holds, "DPL of data or non-conforming code is at least the selector's RPL.");
        }
    }
}

/// How CS and SS agree on the privilege level; the processor looks at SS here even where it is unusable.
fn privilege<R: Reader>(c: &mut Checker<'_, R>, mode: Mode) {
    let (_, _, _, cs_rights) = field::segment(SegmentName::Cs);
    let (ss_selector, _, _, ss_rights) = field::segment(SegmentName::Ss);
    let code = rights(c, SegmentName::Cs);
    let stack = rights(c, SegmentName::Ss);
    match code.kind() {
        DATA => c.rule(cs_rights, code.dpl() == 0, "CS of type 3 has DPL 0."),
        9 | 11 => c.rule(cs_rights, code.dpl() == stack.dpl(), "Non-conforming CS has the DPL of SS."),
        13 | 15 => c.rule(cs_rights, code.dpl() <= stack.dpl(), "Conforming CS has at most the DPL of SS."),
        _ => (),
    }
    if mode.unrestricted {
        let holds = stack.dpl() == 0 || (mode.protected && code.kind() != DATA);
        c.rule(ss_rights, holds, "SS has DPL 0 in real mode, and where CS has type 3.");
    } else {
        let holds = rpl(c, SegmentName::Ss) == rpl(c, SegmentName::Cs);
        c.rule(ss_selector, holds, "The selectors of SS and CS have the same RPL.");
        let holds = stack.dpl() == rpl(c, SegmentName::Ss);
        c.rule(ss_rights, holds, "DPL of SS is its selector's RPL.");
    }
}

fn local_descriptor_table<R: Reader>(c: &mut Checker<'_, R>) {
    let (selector_field, base, _, field) = field::segment(SegmentName::Ldtr);
    let rights = rights(c, SegmentName::Ldtr);
    if rights.is_unusable() {
        return;
    }
    let holds = selector(c, SegmentName::Ldtr) & 4 == 0;
    c.rule(selector_field, holds, "A usable LDTR's selector names the GDT.");
    c.canonical(base);
    c.rule(field, rights.kind() == 2, "A usable LDTR has type 2.");
    common(c, SegmentName::Ldtr, false);
}

fn task_register<R: Reader>(c: &mut Checker<'_, R>, mode: Mode) {
    let (selector_field, base, _, field) = field::segment(SegmentName::Tr);
    let rights = rights(c, SegmentName::Tr);
    let holds = selector(c, SegmentName::Tr) & 4 == 0;
    c.rule(selector_field, holds, "The selector of TR names the GDT.");
    c.canonical(base);
    let busy = rights.kind() == 11 || (!mode.ia32e && rights.kind() == 3);
    c.rule(field, busy, "TR is a busy TSS: type 11, or outside IA-32e mode 3.");
    c.rule(field, !rights.is_unusable(), "TR is usable.");
    common(c, SegmentName::Tr, false);
}
