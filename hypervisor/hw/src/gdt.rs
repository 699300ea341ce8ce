//! Segments and the task-state segment (SDM vol. 3, "Task Management in 64-bit Mode", "Interrupt Stack Table").
//!
//! Owns one GDT and TSS for each processor, and the stacks that #DF, NMI and #MC switch to, each with guard pages.

use alloc::boxed::Box;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, FS, GS, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::tss::TaskStateSegment;

use crate::paging::new_stack;

/// Index into the interrupt stack table, from 0: double fault.
pub const DOUBLE_FAULT_STACK: u16 = 0;
/// Index into the interrupt stack table, from 0: non-maskable interrupt.
pub const NMI_STACK: u16 = 1;
/// Index into the interrupt stack table, from 0: machine check.
pub const MACHINE_CHECK_STACK: u16 = 2;
/// Flat data, writable.
pub const DATA_SELECTOR: u16 = 2 << 3;
/// Size of each of these stacks: a report formats numbers and looks up symbols. Unit: pages of 4 KiB.
const STACK_PAGES: u64 = 8;

/// Gives this processor a GDT and a TSS of its own and loads every segment register. Once for each processor, after
/// the page tables are ours. Sets the GS base to 0.
pub fn init() {
    let mut tss = Box::new(TaskStateSegment::new());
    for index in [DOUBLE_FAULT_STACK, NMI_STACK, MACHINE_CHECK_STACK] {
        tss.interrupt_stack_table[usize::from(index)] = VirtAddr::new(new_stack(STACK_PAGES));
    }
    let mut gdt = Box::new(GlobalDescriptorTable::new());
    let code = gdt.append(Descriptor::kernel_code_segment());
    let data = gdt.append(Descriptor::kernel_data_segment());
    assert_eq!(data.0, DATA_SELECTOR, "the data segment is the second");
    let task = gdt.append(Descriptor::tss_segment(Box::leak(tss)));
    Box::leak(gdt).load();
    // SAFETY: the selectors were just made for these descriptors: flat 64-bit code, flat data, an available TSS that
    // is never freed. FS and GS get the null selector: nothing uses FS, and GS's base is set afterwards.
    unsafe {
        CS::set_reg(code);
        SS::set_reg(data);
        DS::set_reg(data);
        ES::set_reg(data);
        FS::set_reg(SegmentSelector::NULL);
        GS::set_reg(SegmentSelector::NULL);
        load_tss(task);
    }
}
