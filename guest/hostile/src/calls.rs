//! Hypercalls with what no caller should give.

use guest_rt::hypercall::Lamina;
use lamina_arch::hypercall as abi;

use crate::engine::{RAX, RDI, RDX, RSI, Ran, Run};
use crate::seen::{Checked, Seen, all, expect, expect_end};
use crate::{Case, code};

const MEMORY_END: u64 = 16 << 20;

pub const CASES: &[Case] = &[
    ("call-dirty-upper-halves", || {
        all(|| (0..8u64).try_for_each(|number| answers(number | 1 << 32, 0, 0, abi::ENOSYS)))
    }),
    ("call-every-number", || all(|| (5..5000u64).try_for_each(|number| answers(number, 0, 0, abi::ENOSYS)))),
    ("call-every-high-number", || {
        all(|| {
            (0..64)
                .map(|bit| 1u64 << bit)
                .filter(|number| *number > 4)
                .try_for_each(|number| answers(number, u64::MAX, u64::MAX, abi::ENOSYS))
        })
    }),
    ("call-negative-number", || all(|| answers(u64::MAX, 0, 0, abi::ENOSYS))),
    ("call-write-nothing", || all(|| answers(abi::CONSOLE_WRITE, 0, 0, 0))),
    ("call-write-from-null", || all(|| answers(abi::CONSOLE_WRITE, 0xa_0000, 1, abi::EFAULT))),
    ("call-write-from-nowhere", || all(|| answers(abi::CONSOLE_WRITE, 0x8000_0000, 16, abi::EFAULT))),
    ("call-write-from-device", || all(|| answers(abi::CONSOLE_WRITE, 0xfee0_0000, 16, abi::EFAULT))),
    ("call-write-wraps", || all(|| answers(abi::CONSOLE_WRITE, u64::MAX - 3, 16, abi::EFAULT))),
    ("call-write-beyond-the-width", || all(|| answers(abi::CONSOLE_WRITE, 1 << 52, 16, abi::EFAULT))),
    ("call-write-off-the-end", || all(|| answers(abi::CONSOLE_WRITE, MEMORY_END - 8, 16, abi::EFAULT))),
    ("call-write-too-long", || all(|| answers(abi::CONSOLE_WRITE, 0x10_0000, abi::CONSOLE_WRITE_MAX + 1, abi::EINVAL))),
    ("call-write-endless", || all(|| answers(abi::CONSOLE_WRITE, 0x10_0000, u64::MAX, abi::EINVAL))),
    ("call-write-low-half-fits", || all(|| answers(abi::CONSOLE_WRITE, 0x10_0000, 1 << 32 | 1, abi::EINVAL))),
    ("call-at-3", || {
        all(|| {
            (1..8u64).try_for_each(|number| {
                let ran = call(number).user().go();
                expect_end(&ran, Seen::Completes)?;
                expect("RAX", ran.gprs[RAX], abi::EPERM.cast_unsigned())
            })
        })
    }),
    ("call-nop-at-3", || {
        let ran = call(abi::NOP).user().go();
        ran.into()
    }),
    ("call-from-32-bit-code", || {
        all(|| {
            // The upper halves do not count there, in neither direction.
            let ran = call(abi::CLOCK | 1 << 40).compatibility().go();
            expect_end(&ran, Seen::Completes)?;
            expect("the upper half", ran.gprs[RAX] >> 32, 0)
        })
    }),
    ("call-changes-nothing-else", || {
        all(|| {
            let mut run = call(abi::CLOCK);
            for register in [1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15] {
                run.gprs[register] = 0x1111_1111_1111_1111u64.wrapping_mul(register as u64);
            }
            let ran: Ran = run.go();
            for register in [1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15] {
                expect("a register", ran.gprs[register], run.gprs[register])?;
            }
            expect("the flags", ran.place.rflags & 0xcd5, 0)
        })
    }),
    ("call-of-the-other-vendor", || {
        let Some(lamina) = Lamina::find() else { return Seen::Lacking("Lamina") };
        let run = if lamina.uses_vmmcall() { Run::new(code!("vmcall")) } else { Run::new(code!("vmmcall")) };
        run.go().into()
    }),
    ("call-clock-goes-on", || {
        all(|| {
            let now = || call(abi::CLOCK).go().gprs[RAX];
            let mut last = now();
            for _ in 0..1000 {
                let next = now();
                expect("backwards", u64::from(next < last), 0)?;
                last = next;
            }
            Ok(())
        })
    }),
    ("call-yield-returns", || all(|| (0..100).try_for_each(|_| answers(abi::YIELD, u64::MAX, u64::MAX, 0)))),
];

/// Of instructions with the one maker's hypercall among them, and the same with the other's, those for this processor.
pub fn either(vmcall: &'static [u8], vmmcall: &'static [u8]) -> &'static [u8] {
    // The hypercall leaf says which it is.
    if Lamina::find().is_some_and(Lamina::uses_vmmcall) { vmmcall } else { vmcall }
}

fn call(number: u64) -> Run<'static> {
    Run::new(either(code!("vmcall"), code!("vmmcall"))).with(RAX, number)
}

fn answers(number: u64, first: u64, second: u64, wanted: i64) -> Checked {
    let ran = call(number).with(RDI, first).with(RSI, second).with(RDX, u64::MAX).go();
    expect_end(&ran, Seen::Completes)?;
    expect("RAX", ran.gprs[RAX], wanted.cast_unsigned())
}
