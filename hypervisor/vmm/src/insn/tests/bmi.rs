//! BMI1, BMI2, ADX and CRC32 with an operand in a device, against a model that goes bit by bit.

use iced_x86::code_asm::*;
use lamina_arch::cr::Rflags;
use lamina_arch::exit::Width;
use lamina_arch::regs::Gpr;

use super::machine::{DEVICE, Machine};

const VALUES: [u64; 7] =
    [0, 1, 0x8000_0000_0000_0000, u64::MAX, 0x0123_4567_89ab_cdef, 0xf0f0_0000_ffff_0010, 0x8000_0000];

/// A machine with `value` in the device and `other` in RBX; all flags set that may be cleared.
fn machine(value: u64, other: u64) -> Machine {
    let mut machine = Machine::new(64);
    machine.put(DEVICE, value, Width::B8);
    machine.set(Gpr::Rbx, other);
    machine.flags |= Rflags::CF | Rflags::OF | Rflags::ZF | Rflags::SF;
    machine
}

fn bits(value: u64, width: u32) -> impl Iterator<Item = u32> {
    (0..width).filter(move |bit| value >> bit & 1 != 0)
}

#[test]
fn counts_and_lowest_bits() {
    for value in VALUES {
        for width in [16, 32, 64] {
            let mut m = machine(value, 0);
            let part = value & (u64::MAX >> (64 - width));
            let (first, last) = (bits(part, width).next(), bits(part, width).last());
            match width {
                16 => m.does(|a| a.tzcnt(ax, word_ptr(DEVICE))),
                32 => m.does(|a| a.tzcnt(eax, dword_ptr(DEVICE))),
                _ => m.does(|a| a.tzcnt(rax, qword_ptr(DEVICE))),
            }
            assert_eq!(m.get(Gpr::Rax) & 0xff, u64::from(first.unwrap_or(width)), "{value:#x}");
            assert_eq!((m.flags.contains(Rflags::CF), m.flags.contains(Rflags::ZF)), (part == 0, first == Some(0)));
            match width {
                16 => m.does(|a| a.lzcnt(ax, word_ptr(DEVICE))),
                32 => m.does(|a| a.lzcnt(eax, dword_ptr(DEVICE))),
                _ => m.does(|a| a.lzcnt(rax, qword_ptr(DEVICE))),
            }
            let leading = last.map_or(width, |last| width - 1 - last);
            assert_eq!(m.get(Gpr::Rax) & 0xff, u64::from(leading), "{value:#x}");
            assert_eq!((m.flags.contains(Rflags::CF), m.flags.contains(Rflags::ZF)), (part == 0, leading == 0));
        }
        let mut m = machine(value, 0);
        let lowest = bits(value, 64).next().map(|bit| 1 << bit);
        m.does(|a| a.blsi(rax, qword_ptr(DEVICE)));
        assert_eq!((m.get(Gpr::Rax), m.flags.contains(Rflags::CF)), (lowest.unwrap_or(0), value != 0));
        m.does(|a| a.blsr(rax, qword_ptr(DEVICE)));
        assert_eq!((m.get(Gpr::Rax), m.flags.contains(Rflags::CF)), (value & !lowest.unwrap_or(0), value == 0));
        m.does(|a| a.blsmsk(rax, qword_ptr(DEVICE)));
        let below = lowest.map_or(u64::MAX, |bit| bit | (bit - 1));
        assert_eq!((m.get(Gpr::Rax), m.flags.contains(Rflags::CF)), (below, value == 0));
        assert!(!m.flags.contains(Rflags::OF));
        assert_eq!(m.flags.contains(Rflags::SF), below >> 63 != 0);
    }
}

#[test]
fn fields_and_scattered_bits() {
    for value in VALUES {
        for other in VALUES {
            let mut m = machine(value, other);
            m.does(|a| a.andn(rax, rbx, qword_ptr(DEVICE)));
            assert_eq!(m.get(Gpr::Rax), bits(value, 64).filter(|bit| other >> bit & 1 == 0).map(|bit| 1 << bit).sum());
            m.does(|a| a.pdep(rax, rbx, qword_ptr(DEVICE)));
            let deposited = (0..).zip(bits(value, 64)).map(|(n, bit)| (other >> n & 1) << bit).sum::<u64>();
            assert_eq!(m.get(Gpr::Rax), deposited, "{other:#x} to {value:#x}");
            m.does(|a| a.pext(rax, rbx, qword_ptr(DEVICE)));
            let extracted = (0..).zip(bits(value, 64)).map(|(n, bit)| (other >> bit & 1) << n).sum::<u64>();
            assert_eq!(m.get(Gpr::Rax), extracted, "{other:#x} from {value:#x}");
        }
        for (start, length) in [(0, 64), (4, 8), (60, 8), (64, 3), (3, 0), (0, 255), (200, 200)] {
            let mut m = machine(value, start | length << 8);
            m.does(|a| a.bextr(rax, qword_ptr(DEVICE), rbx));
            let field =
                (0..length.min(64)).filter(|n| start + n < 64).map(|n| (value >> (start + n) & 1) << n).sum::<u64>();
            assert_eq!((m.get(Gpr::Rax), m.flags.contains(Rflags::ZF)), (field, field == 0), "{start}, {length}");
        }
        for count in [0u64, 1, 31, 32, 63, 64, 200] {
            let mut m = machine(value, count);
            m.does(|a| a.bzhi(rax, qword_ptr(DEVICE), rbx));
            let low = bits(value, 64).filter(|&bit| u64::from(bit) < count).map(|bit| 1u64 << bit).sum::<u64>();
            assert_eq!((m.get(Gpr::Rax), m.flags.contains(Rflags::CF)), (low, count >= 64));
            let before = m.flags;
            m.does(|a| a.shlx(rax, qword_ptr(DEVICE), rbx));
            assert_eq!(m.get(Gpr::Rax), value << (count & 63));
            m.does(|a| a.shrx(eax, dword_ptr(DEVICE), ebx));
            assert_eq!(m.get(Gpr::Rax), (value & 0xffff_ffff) >> (count & 31));
            m.does(|a| a.sarx(eax, dword_ptr(DEVICE), ebx));
            #[allow(clippy::cast_possible_truncation)]
            let signed = (value as u32).cast_signed() >> (count & 31);
            assert_eq!(m.get(Gpr::Rax), u64::from(signed.cast_unsigned()));
            m.does(|a| a.rorx(rax, qword_ptr(DEVICE), 13));
            assert_eq!(m.get(Gpr::Rax), value.rotate_right(13));
            m.does(|a| a.rorx(eax, dword_ptr(DEVICE), 32));
            assert_eq!((m.get(Gpr::Rax), m.flags), (value & 0xffff_ffff, before));
        }
    }
}

#[test]
fn products_and_sums_that_leave_other_flags() {
    for value in VALUES {
        for other in VALUES {
            let mut m = machine(value, other);
            m.set(Gpr::Rdx, other);
            let before = m.flags;
            m.does(|a| a.mulx(rax, rcx, qword_ptr(DEVICE)));
            let product = u128::from(value) * u128::from(other);
            assert_eq!(u128::from(m.get(Gpr::Rax)) << 64 | u128::from(m.get(Gpr::Rcx)), product);
            m.does(|a| a.mulx(eax, eax, dword_ptr(DEVICE)));
            assert_eq!(m.get(Gpr::Rax), ((value & 0xffff_ffff) * (other & 0xffff_ffff)) >> 32);
            assert_eq!(m.flags, before);
            m.does(|a| a.adcx(rbx, qword_ptr(DEVICE)));
            let sum = u128::from(value) + u128::from(other) + 1;
            let mut after = before;
            after.set(Rflags::CF, sum >> 64 != 0);
            assert_eq!((u128::from(m.get(Gpr::Rbx)), m.flags), (sum & u128::from(u64::MAX), after));
            m.set(Gpr::Rbx, other);
            m.flags.remove(Rflags::OF);
            m.does(|a| a.adox(rbx, qword_ptr(DEVICE)));
            after.set(Rflags::OF, value.checked_add(other).is_none());
            assert_eq!((m.get(Gpr::Rbx), m.flags), (value.wrapping_add(other), after));
        }
    }
}

#[test]
fn the_check_value_of_crc_32c() {
    let mut m = machine(u64::from_le_bytes(*b"12345678"), 0);
    m.put(DEVICE + 8, u64::from(b'9'), Width::B1);
    m.set(Gpr::Rax, 0xffff_ffff);
    m.does(|a| a.crc32(rax, qword_ptr(DEVICE)));
    m.does(|a| a.crc32(eax, byte_ptr(DEVICE + 8)));
    assert_eq!(m.get(Gpr::Rax), 0xe306_9283 ^ 0xffff_ffff);
    let mut m = machine(u64::from_le_bytes(*b"12345678"), 0);
    m.set(Gpr::Rax, 0xffff_ffff);
    m.does(|a| a.crc32(eax, dword_ptr(DEVICE)));
    m.does(|a| a.crc32(eax, word_ptr(DEVICE + 4)));
    m.does(|a| a.crc32(eax, word_ptr(DEVICE + 6)));
    m.put(DEVICE, u64::from(b'9'), Width::B1);
    m.does(|a| a.crc32(eax, byte_ptr(DEVICE)));
    assert_eq!(m.get(Gpr::Rax), 0xe306_9283 ^ 0xffff_ffff);
}
