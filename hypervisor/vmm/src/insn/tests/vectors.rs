//! Moves of vector registers, form by form.

use std::vec;
use std::vec::Vec;

use iced_x86::code_asm::*;
use lamina_arch::event::GuestFault;

use super::machine::{DEVICE, Machine, Page, Seen};

/// What the device's bytes are from `offset` on.
fn device(machine: &Machine, offset: usize, length: usize) -> Vec<u8> {
    machine.device[offset..offset + length].to_vec()
}

#[test]
fn loads_of_16_bytes_keep_the_upper_half() {
    type Assemble = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;
    let forms: [Assemble; 8] = [
        |a| a.movaps(xmm3, xmmword_ptr(DEVICE)),
        |a| a.movapd(xmm3, xmmword_ptr(DEVICE)),
        |a| a.movups(xmm3, xmmword_ptr(DEVICE)),
        |a| a.movupd(xmm3, xmmword_ptr(DEVICE)),
        |a| a.movdqa(xmm3, xmmword_ptr(DEVICE)),
        |a| a.movdqu(xmm3, xmmword_ptr(DEVICE)),
        |a| a.lddqu(xmm3, xmmword_ptr(DEVICE)),
        |a| a.movntdqa(xmm3, xmmword_ptr(DEVICE)),
    ];
    for assemble in forms {
        let mut machine = Machine::new(64);
        machine.does(assemble);
        assert_eq!(machine.ymm[3][..16], device(&machine, 0, 16));
        assert_eq!(machine.ymm[3][16..], [0x13; 16]);
        assert_eq!(machine.seen, [Seen::Read(0, 16)]);
    }
}

#[test]
fn stores_of_16_bytes() {
    type Assemble = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;
    let forms: [Assemble; 9] = [
        |a| a.movaps(xmmword_ptr(DEVICE), xmm9),
        |a| a.movapd(xmmword_ptr(DEVICE), xmm9),
        |a| a.movups(xmmword_ptr(DEVICE), xmm9),
        |a| a.movupd(xmmword_ptr(DEVICE), xmm9),
        |a| a.movdqa(xmmword_ptr(DEVICE), xmm9),
        |a| a.movdqu(xmmword_ptr(DEVICE), xmm9),
        |a| a.movntdq(xmmword_ptr(DEVICE), xmm9),
        |a| a.movntps(xmmword_ptr(DEVICE), xmm9),
        |a| a.vmovups(xmmword_ptr(DEVICE), xmm9),
    ];
    for assemble in forms {
        let mut machine = Machine::new(64);
        machine.does(assemble);
        assert_eq!(machine.seen, [Seen::Write(0, vec![0x19; 16])]);
    }
}

#[test]
fn narrow_loads_clear_or_keep_the_rest() {
    let mut machine = Machine::new(64);
    machine.does(|a| a.movd(xmm1, dword_ptr(DEVICE + 4)));
    machine.does(|a| a.movq(xmm2, qword_ptr(DEVICE + 8)));
    machine.does(|a| a.movsd_2(xmm4, qword_ptr(DEVICE + 8)));
    machine.does(|a| a.movlps(xmm5, qword_ptr(DEVICE)));
    machine.does(|a| a.movhpd(xmm6, qword_ptr(DEVICE)));
    let part = |n: usize| (machine.ymm[n][..8].to_vec(), machine.ymm[n][8..16].to_vec(), machine.ymm[n][16]);
    let (four, eight) = ([device(&machine, 4, 4), vec![0; 4]].concat(), device(&machine, 8, 8));
    assert_eq!(part(1), (four, vec![0; 8], 0x11));
    assert_eq!(part(2), (eight.clone(), vec![0; 8], 0x12));
    assert_eq!(part(4), (eight, vec![0; 8], 0x14));
    assert_eq!(part(5), (device(&machine, 0, 8), vec![0x15; 8], 0x15));
    assert_eq!(part(6), (vec![0x16; 8], device(&machine, 0, 8), 0x16));
}

#[test]
fn narrow_stores() {
    let mut machine = Machine::new(64);
    for (i, byte) in machine.ymm[7].iter_mut().enumerate() {
        *byte = u8::try_from(i).unwrap();
    }
    machine.does(|a| a.movss(dword_ptr(DEVICE), xmm7));
    machine.does(|a| a.movq(qword_ptr(DEVICE + 8), xmm7));
    machine.does(|a| a.movhps(qword_ptr(DEVICE + 16), xmm7));
    let expected = [(0, 0..4), (8, 0..8), (16, 8..16)].map(|(at, bytes)| Seen::Write(at, bytes.collect()));
    assert_eq!(machine.seen, expected);
}

#[test]
fn vex_clears_the_upper_half_and_moves_32_bytes() {
    let mut machine = Machine::new(64);
    machine.does(|a| a.vmovdqu(xmm1, xmmword_ptr(DEVICE + 1)));
    assert_eq!((machine.ymm[1][..16].to_vec(), machine.ymm[1][16..].to_vec()), (device(&machine, 1, 16), vec![0; 16]));
    machine.does(|a| a.vmovaps(ymm2, ymmword_ptr(DEVICE + 32)));
    assert_eq!(machine.ymm[2].to_vec(), device(&machine, 32, 32));
    machine.does(|a| a.vmovdqu(ymmword_ptr(DEVICE + 65), ymm3));
    assert_eq!(machine.seen.last(), Some(&Seen::Write(65, vec![0x13; 32])));
}

#[test]
fn mmx_registers() {
    let mut machine = Machine::new(32);
    machine.does(|a| a.movq(mm1, qword_ptr(DEVICE)));
    assert_eq!(machine.mm[1][..8], device(&machine, 0, 8));
    machine.does(|a| a.movd(mm2, dword_ptr(DEVICE)));
    assert_eq!(machine.mm[2][..8], [device(&machine, 0, 4), vec![0; 4]].concat());
    machine.does(|a| a.movntq(qword_ptr(DEVICE), mm3));
    assert_eq!(machine.seen.last(), Some(&Seen::Write(0, vec![0x83; 8])));
}

#[test]
fn alignment_counts_where_the_form_wants_it() {
    let mut machine = Machine::new(64);
    machine.faults(GuestFault::GP0, |a| a.movaps(xmm1, xmmword_ptr(DEVICE + 8)));
    machine.faults(GuestFault::GP0, |a| a.movntdq(xmmword_ptr(DEVICE + 4), xmm1));
    machine.faults(GuestFault::GP0, |a| a.vmovdqa(ymm1, ymmword_ptr(DEVICE + 16)));
    machine.does(|a| a.movups(xmm1, xmmword_ptr(DEVICE + 8)));
}

#[test]
fn both_pages_are_there_before_either_is_used() {
    let mut machine = Machine::new(64);
    machine.pages.insert(0xf, Page::At(DEVICE));
    machine.pages.insert(0x10, Page::Absent);
    machine.faults(GuestFault::page_fault(0x1_0000, 2), |a| a.movups(xmmword_ptr(0xfff8u64), xmm1));
    machine.pages.insert(0x10, Page::At(0x5000));
    machine.does(|a| a.movups(xmmword_ptr(0xfff8u64), xmm1));
    assert_eq!(machine.seen, [Seen::Write(0xff8, vec![0x11; 8])]);
    assert_eq!(machine.memory[0x5000..0x5008], [0x11; 8]);
}
