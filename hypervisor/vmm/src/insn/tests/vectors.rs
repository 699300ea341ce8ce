//! Moves of vector registers, form by form.

use std::vec;
use std::vec::Vec;

use iced_x86::code_asm::*;
use lamina_arch::event::GuestFault;
use lamina_arch::exit::Width;
use lamina_arch::regs::Gpr;

use super::machine::{DEVICE, Machine, Page, Seen, assembled};
use crate::insn::{Done, Refused};

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
        assert_eq!(machine.zmm[3][..16], device(&machine, 0, 16));
        assert_eq!(machine.zmm[3][16..], [0x13; 48]);
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
    let part = |n: usize| (machine.zmm[n][..8].to_vec(), machine.zmm[n][8..16].to_vec(), machine.zmm[n][16]);
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
    for (i, byte) in machine.zmm[7].iter_mut().enumerate() {
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
    assert_eq!((machine.zmm[1][..16].to_vec(), machine.zmm[1][16..].to_vec()), (device(&machine, 1, 16), vec![0; 48]));
    machine.does(|a| a.vmovaps(ymm2, ymmword_ptr(DEVICE + 32)));
    assert_eq!(machine.zmm[2].to_vec(), [device(&machine, 32, 32), vec![0; 32]].concat());
    machine.does(|a| a.vmovdqu(ymmword_ptr(DEVICE + 65), ymm3));
    assert_eq!(machine.seen.last(), Some(&Seen::Write(65, vec![0x13; 32])));
}

#[test]
fn mmx_registers() {
    let mut machine = Machine::new(32);
    machine.does(|a| a.movq(mm1, qword_ptr(DEVICE)));
    let mm = |machine: &Machine, n: usize| machine.x87[24 + 16 * n..34 + 16 * n].to_vec();
    assert_eq!(mm(&machine, 1), [device(&machine, 0, 8), vec![0xff; 2]].concat());
    machine.does(|a| a.movd(mm2, dword_ptr(DEVICE)));
    assert_eq!(mm(&machine, 2), [device(&machine, 0, 4), vec![0; 4], vec![0xff; 2]].concat());
    machine.does(|a| a.movntq(qword_ptr(DEVICE), mm3));
    assert_eq!(machine.seen.last(), Some(&Seen::Write(0, vec![0x83; 8])));
    assert_eq!(machine.x87[4], 0xff, "no register is empty");
}

#[test]
fn mmx_sees_registers_by_number_and_x87_from_the_top() {
    let mut machine = Machine::new(64);
    machine.does(|a| a.fild(word_ptr(DEVICE)));
    machine.put(DEVICE + 8, 0x1122_3344_5566_7788, Width::B8);
    machine.does(|a| a.fild(qword_ptr(DEVICE + 8)));
    // It was pushed second, to register 6.
    machine.does(|a| a.movq(qword_ptr(DEVICE + 0x40), mm6));
    assert_eq!(machine.peek(DEVICE + 0x40, Width::B8), 0x1122_3344_5566_7788 << 3);
    assert_eq!((machine.x87[3] >> 3 & 7, machine.x87[4]), (0, 0xff));
}

#[test]
fn halves_of_three_operands_take_the_other_from_the_second() {
    let mut machine = Machine::new(64);
    machine.does(|a| a.vmovhps_3(xmm1, xmm2, qword_ptr(DEVICE)));
    assert_eq!(machine.zmm[1].to_vec(), [vec![0x12; 8], device(&machine, 0, 8), vec![0; 48]].concat());
    machine.does(|a| a.vmovlpd_3(xmm1, xmm3, qword_ptr(DEVICE)));
    assert_eq!(machine.zmm[1].to_vec(), [device(&machine, 0, 8), vec![0x13; 8], vec![0; 48]].concat());
    machine.does(|a| a.vmovhpd(qword_ptr(DEVICE), xmm1));
    assert_eq!(machine.seen.last(), Some(&Seen::Write(0, vec![0x13; 8])));
}

#[test]
fn evex_moves_64_bytes_and_the_upper_registers() {
    type Assemble = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;
    let loads: [Assemble; 10] = [
        |a| a.vmovdqa32(zmm20, zmmword_ptr(DEVICE + 64)),
        |a| a.vmovdqa64(zmm20, zmmword_ptr(DEVICE + 64)),
        |a| a.vmovdqu8(zmm20, zmmword_ptr(DEVICE + 64)),
        |a| a.vmovdqu16(zmm20, zmmword_ptr(DEVICE + 64)),
        |a| a.vmovdqu32(zmm20, zmmword_ptr(DEVICE + 64)),
        |a| a.vmovdqu64(zmm20, zmmword_ptr(DEVICE + 64)),
        |a| a.vmovups(zmm20, zmmword_ptr(DEVICE + 64)),
        |a| a.vmovapd(zmm20, zmmword_ptr(DEVICE + 64)),
        |a| a.vmovntdqa(zmm20, zmmword_ptr(DEVICE + 64)),
        |a| a.vmovaps(zmm20, zmmword_ptr(DEVICE + 64)),
    ];
    for assemble in loads {
        let mut machine = Machine::new(64);
        machine.does(assemble);
        assert_eq!(machine.zmm[20].to_vec(), device(&machine, 64, 64));
    }
    let mut machine = Machine::new(64);
    machine.does(|a| a.vmovdqu32(ymm21, ymmword_ptr(DEVICE + 4)));
    assert_eq!(machine.zmm[21].to_vec(), [device(&machine, 4, 32), vec![0; 32]].concat());
    machine.set(Gpr::Rsi, DEVICE);
    // VMOVSS XMM22, [RSI].
    assert_eq!(machine.run_bytes(&[0x62, 0xe1, 0x7e, 0x08, 0x10, 0x36]), Ok(Done::Advance(6)));
    assert_eq!(machine.zmm[22].to_vec(), [device(&machine, 0, 4), vec![0; 60]].concat());
    machine.does(|a| a.vmovntdq(zmmword_ptr(DEVICE), zmm5));
    assert_eq!(machine.seen.last(), Some(&Seen::Write(0, vec![0x15; 64])));
    machine.faults(GuestFault::GP0, |a| a.vmovdqa32(zmm1, zmmword_ptr(DEVICE + 32)));
    machine.faults(GuestFault::GP0, |a| a.vmovntps(zmmword_ptr(DEVICE + 32), zmm1));
}

#[test]
fn masked_loads_merge_or_clear_and_touch_only_what_they_load() {
    let start = || {
        let mut machine = Machine::new(64);
        machine.masks[3] = 0b1000_0110;
        machine
    };
    let mut machine = start();
    machine.does(|a| a.vmovdqu32(zmm1.k3(), zmmword_ptr(DEVICE)));
    let mut expected = vec![0x11; 64];
    expected[4..12].copy_from_slice(&device(&machine, 4, 8));
    expected[28..32].copy_from_slice(&device(&machine, 28, 4));
    assert_eq!(machine.zmm[1].to_vec(), expected);
    assert_eq!(machine.seen, [Seen::Read(4, 8), Seen::Read(28, 4)]);
    let mut machine = start();
    machine.does(|a| a.vmovdqu64(ymm1.k3().z(), ymmword_ptr(DEVICE)));
    let mut expected = vec![0; 64];
    expected[8..24].copy_from_slice(&device(&machine, 8, 16));
    assert_eq!((machine.zmm[1].to_vec(), machine.seen), (expected, vec![Seen::Read(8, 16)]));
    let mut machine = start();
    machine.does(|a| a.vmovdqu8(xmm1.k3(), xmmword_ptr(DEVICE)));
    assert_eq!(machine.seen, [Seen::Read(1, 2), Seen::Read(7, 1)]);
    assert_eq!(machine.zmm[1][16..], [0; 48]);
    // Scalars have one bit.
    let mut machine = start();
    machine.set(Gpr::Rsi, DEVICE);
    // VMOVSD XMM1{K3}, [RSI].
    assert_eq!(machine.run_bytes(&[0x62, 0xf1, 0xff, 0x0b, 0x10, 0x0e]), Ok(Done::Advance(6)));
    assert_eq!((machine.zmm[1].to_vec(), machine.seen), ([vec![0x11; 8], vec![0; 56]].concat(), vec![]));
    let mut machine = start();
    machine.masks[3] = 0x5555_5555_5555_5555;
    machine.does(|a| a.vmovdqu8(zmm1.k3(), zmmword_ptr(DEVICE)));
    assert_eq!(machine.seen.len(), 32);
}

#[test]
fn masked_stores_write_only_what_is_enabled() {
    let mut machine = Machine::new(64);
    machine.masks[2] = 0b1011;
    machine.does(|a| a.vmovdqu16(zmmword_ptr(DEVICE).k2(), zmm9));
    assert_eq!(machine.seen, [Seen::Write(0, vec![0x19; 4]), Seen::Write(6, vec![0x19; 2])]);
    machine.masks[2] = 0;
    machine.seen.clear();
    machine.does(|a| a.vmovupd(zmmword_ptr(0x7fff_0000u64).k2(), zmm9));
    assert_eq!(machine.seen, []);
}

#[test]
fn what_a_mask_leaves_out_does_not_fault() {
    let mut machine = Machine::new(64);
    machine.pages.insert(0x11, Page::Absent);
    let at = DEVICE + 0xff0;
    machine.masks[1] = 0b1111;
    machine.does(|a| a.vmovdqu32(zmm1.k1(), zmmword_ptr(at)));
    machine.masks[1] = 0b1_0011;
    machine.seen.clear();
    machine.faults(GuestFault::page_fault(DEVICE + 0x1000, 0), |a| a.vmovdqu32(zmm1.k1(), zmmword_ptr(at)));
    machine.faults(GuestFault::page_fault(DEVICE + 0x1000, 2), |a| a.vmovdqu32(zmmword_ptr(at).k1(), zmm1));
}

#[test]
fn mask_registers() {
    let mut machine = Machine::new(64);
    machine.put(DEVICE, 0x8877_6655_4433_2211, Width::B8);
    machine.does(|a| a.kmovb(k1, byte_ptr(DEVICE)));
    machine.does(|a| a.kmovw(k2, word_ptr(DEVICE)));
    machine.does(|a| a.kmovd(k3, dword_ptr(DEVICE)));
    machine.does(|a| a.kmovq(k4, qword_ptr(DEVICE)));
    assert_eq!(machine.masks[1..5], [0x11, 0x2211, 0x4433_2211, 0x8877_6655_4433_2211]);
    machine.does(|a| a.kmovw(word_ptr(DEVICE + 8), k4));
    assert_eq!(machine.seen.last(), Some(&Seen::Write(8, vec![0x11, 0x22])));
}

#[test]
fn mxcsr() {
    let mut machine = Machine::new(64);
    machine.put(DEVICE, 0x1fbf, Width::B4);
    machine.does(|a| a.ldmxcsr(dword_ptr(DEVICE)));
    assert_eq!(machine.mxcsr, [0x1fbf, 0xffff]);
    machine.does(|a| a.vstmxcsr(dword_ptr(DEVICE + 4)));
    assert_eq!(machine.peek(DEVICE + 4, Width::B4), 0x1fbf);
    machine.put(DEVICE, 0x1_1f80, Width::B4);
    machine.seen.clear();
    let bytes = assembled(64, machine.rip, |a| a.ldmxcsr(dword_ptr(DEVICE)));
    assert_eq!(machine.run_bytes(&bytes), Err(Refused::Fault(GuestFault::GP0)));
    assert_eq!(machine.mxcsr[0], 0x1fbf);
    // A processor that tells no mask has no DAZ.
    machine.mxcsr[1] = 0;
    machine.put(DEVICE, 0x1fc0, Width::B4);
    assert_eq!(machine.run_bytes(&bytes), Err(Refused::Fault(GuestFault::GP0)));
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
