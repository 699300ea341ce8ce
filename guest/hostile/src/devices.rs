//! Devices behind ports: every width, every value, and what leaks or locks up.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

use guest_rt::{cpu, pic, pit, port, trap};

use crate::Case;
use crate::code;
use crate::engine::{RAX, RDX, Run};
use crate::seen::{Checked, Seen, all, expect, expect_end};

/// Ports whose writing ends the VM or starts it again (cases of `ends` do), and the console's.
const LETHAL: [core::ops::RangeInclusive<u32>; 6] =
    [0x60..=0x64, 0x92..=0x92, 0x3f8..=0x3ff, 0x600..=0x60b, 0xcf9..=0xcf9, 0x8900..=0x8900];

pub const CASES: &[Case] = &[
    ("port-read-every-byte", || reads(1)),
    ("port-read-every-word", || reads(2)),
    ("port-read-every-doubleword", || reads(4)),
    ("port-write-zero-bytes", || writes(1, 0)),
    ("port-write-ones-bytes", || writes(1, u32::MAX)),
    ("port-write-zero-words", || writes(2, 0)),
    ("port-write-ones-words", || writes(2, u32::MAX)),
    ("port-write-zero-doublewords", || writes(4, 0)),
    ("port-write-ones-doublewords", || writes(4, u32::MAX)),
    ("port-read-keeps-the-rest", || {
        all(|| {
            for port in [0x40, 0x71, 0x80, 0x1234, 0xcfc] {
                let run = |code| Run::new(code).with(RDX, port).with(RAX, 0x1122_3344_5566_7788).go().gprs[RAX];
                expect("RAX after AL", run(code!("in al, dx")) >> 8, 0x11_2233_4455_6677)?;
                expect("RAX after AX", run(code!("in ax, dx")) >> 16, 0x1122_3344_5566)?;
                expect("RAX after EAX", run(code!("in eax, dx")) >> 32, 0)?;
            }
            Ok(())
        })
    }),
    ("port-nobody-reads-ones", || {
        all(|| {
            for port in [0x0, 0xe0, 0x300, 0x2f8, 0x9000, 0xffff] {
                let run = |code| Run::new(code).with(RDX, port).go().gprs[RAX];
                expect("a byte", run(code!("in al, dx")), 0xff)?;
                expect("a word", run(code!("in ax, dx")) & 0xff, 0xff)?;
            }
            Ok(())
        })
    }),
    ("port-wraps-at-the-end", || {
        Run::new(code!("in eax, dx", "out dx, eax", "in ax, dx", "out dx, ax")).with(RDX, 0xffff).go().into()
    }),
    ("pit-every-mode-count-0", || modes(0)),
    ("pit-every-mode-count-1", || modes(1)),
    ("pit-every-mode-count-2", || modes(2)),
    ("pit-every-mode-count-65535", || modes(65535)),
    ("pit-every-command", || {
        all(|| {
            for command in 0..=255 {
                out(0x43, command);
                for channel in 0..3 {
                    port::read_u8(0x40 + channel);
                    out(0x40 + channel, command);
                    port::read_u8(0x40 + channel);
                }
            }
            Ok(())
        })
    }),
    ("pit-latch-storm", || {
        all(|| {
            for _ in 0..5000 {
                out(0x43, 0);
                out(0x43, 0xc2);
            }
            port::read_u8(0x40);
            Ok(())
        })
    }),
    ("pit-gate-storm", || {
        all(|| {
            out(0x43, 0xb6);
            out(0x42, 1);
            out(0x42, 0);
            for bits in 0..5000u16 {
                out(0x61, (bits & 3) as u8);
            }
            out(0x61, 0);
            Ok(())
        })
    }),
    ("pic-every-initialization", || {
        all(|| {
            for (command, data) in [(0x20, 0x21), (0xa0, 0xa1)] {
                for first in 0x10..0x20 {
                    for word in [0, 0xff, 0x55] {
                        out(command, first);
                        (0..3).for_each(|_| out(data, word));
                        port::read_u8(command);
                        port::read_u8(data);
                    }
                }
            }
            pic::init();
            Ok(())
        })
    }),
    ("pic-every-command", || {
        all(|| {
            for value in (0..=255u8).filter(|value| value & 0x10 == 0) {
                for port in [0x20, 0xa0] {
                    out(port, value);
                    port::read_u8(port);
                }
            }
            pic::init();
            Ok(())
        })
    }),
    ("pic-illegal-vectors", || {
        // Vectors below 16 from the 8259s are not illegal, only unwise: they come as exceptions would.
        all(|| {
            out(0x20, 0x11);
            out(0x21, 0);
            out(0x21, 4);
            out(0x21, 1);
            out(0x21, 0xfe);
            trap::set_handler(0, |_| pic::end_of_interrupt());
            tick();
            let_in();
            pic::init();
            Ok(())
        })
    }),
    ("rtc-every-register", || {
        all(|| {
            for index in 0..=255 {
                out(0x70, index);
                let before = port::read_u8(0x71);
                for value in [0, 0xff, 0x5a] {
                    out(0x71, value);
                    port::read_u8(0x71);
                }
                out(0x71, before);
            }
            Ok(())
        })
    }),
    ("rtc-impossible-time", || {
        all(|| {
            for (index, value) in
                [(0, 0xff), (2, 0x99), (4, 0xff), (6, 0), (7, 0x42), (8, 0x13), (9, 0xff), (0x32, 0xff)]
            {
                out(0x70, index);
                out(0x71, value);
            }
            out(0x70, 0x0b);
            (0..=255).for_each(|mode| {
                out(0x71, mode);
                port::read_u8(0x71);
            });
            out(0x71, 2);
            Ok(())
        })
    }),
    ("rtc-every-rate", || {
        all(|| {
            for rate in 0..=255 {
                out(0x70, 0x0a);
                out(0x71, rate);
                out(0x70, 0x0b);
                out(0x71, 0x42);
                out(0x70, 0x0c);
                port::read_u8(0x71);
            }
            out(0x70, 0x0b);
            out(0x71, 2);
            out(0x70, 0x0a);
            out(0x71, 0x26);
            Ok(())
        })
    }),
    ("pci-every-function", || {
        all(|| {
            (0..0x100u32).try_for_each(|function| {
                (0..64).try_for_each(|register| {
                    let address = 0x8000_0000 | function << 8 | register << 2;
                    expect_end(
                        &Run::new(code!("out dx, eax", "mov dx, 0xcfc", "in eax, dx"))
                            .with(RDX, 0xcf8)
                            .with(RAX, address.into())
                            .go(),
                        Seen::Completes,
                    )
                })
            })
        })
    }),
    ("pci-every-bus", || {
        all(|| {
            (1..0x100u32).try_for_each(|bus| {
                out32(0xcf8, 0x8000_0000 | bus << 16);
                expect("a function on another bus", port::read_u32(0xcfc).into(), 0xffff_ffff)
            })
        })
    }),
    ("pci-base-addresses-over-everything", || {
        all(|| {
            // Over memory, over the local APIC, all ones: whatever function is there, memory stays memory.
            crate::engine::DATA.fill(0x33);
            for function in 0..0x100u32 {
                for base in 4..10 {
                    for value in [u32::MAX, 0xfee0_0000, 0x0010_0000, 0x3f9, 0] {
                        out32(0xcf8, 0x8000_0000 | function << 8 | base << 2);
                        out32(0xcfc, value);
                    }
                }
            }
            expect("memory", crate::engine::DATA.word(0), 0x3333_3333_3333_3333)?;
            let id = Run::new(code!("mov eax, [rdi + 0x30]")).with(7, 0xfee0_0000).go();
            expect("the local APIC's version", u64::from(id.gprs[RAX] == 0xffff_ffff), 0)
        })
    }),
    ("pci-commands", || {
        all(|| {
            for function in 0..0x100u32 {
                out32(0xcf8, 0x8000_0000 | function << 8 | 4);
                for value in [u32::MAX, 0, 7] {
                    out32(0xcfc, value);
                }
            }
            Ok(())
        })
    }),
    ("pci-partial-widths", || {
        all(|| {
            for offset in 0..4 {
                out32(0xcf8, 0x8000_0000);
                port::read_u8(0xcfc + offset);
                port::read_u16(0xcfc + offset);
                port::read_u32(0xcfc + offset);
                port::read_u8(0xcf8 + offset);
                port::read_u16(0xcf8 + offset);
            }
            Ok(())
        })
    }),
    ("keyboard-every-command", || {
        // All but those that pulse the reset line.
        all(|| {
            for command in (0..0xf0).chain([0xff]).filter(|command| *command != 0xd1) {
                out(0x64, command);
                port::read_u8(0x64);
                port::read_u8(0x60);
            }
            Ok(())
        })
    }),
    ("keyboard-every-device-command", || {
        all(|| {
            for command in 0..=255 {
                out(0x60, command);
                (0..4).for_each(|_| {
                    port::read_u8(0x60);
                });
            }
            Ok(())
        })
    }),
    ("keyboard-a20-off", || {
        all(|| {
            // The gate may not fold addresses of what is running.
            out(0x64, 0xd1);
            out(0x60, 0xdd);
            let code = cpu::cpuid(0, 0)[0];
            out(0x64, 0xd1);
            out(0x60, 0xdf);
            expect("the highest leaf", u64::from(code > 0), 1)
        })
    }),
    ("uart-every-register", || {
        all(|| {
            for register in [0u16, 1, 2, 3, 4, 5, 6, 7] {
                for value in [0xff, 0x80, 0, 0x1f] {
                    if register == 0 {
                        continue;
                    }
                    out(0x3f8 + register, value);
                    (0..8).for_each(|register| {
                        port::read_u8(0x3f8 + register);
                    });
                }
            }
            uart();
            Ok(())
        })
    }),
    ("uart-loopback-overrun", || {
        all(|| {
            out(0x3fc, 0x10);
            (0..200u8).for_each(|byte| out(0x3f8, byte));
            (0..40).for_each(|_| {
                port::read_u8(0x3fd);
                port::read_u8(0x3f8);
            });
            uart();
            Ok(())
        })
    }),
    ("uart-divisor-zero", || {
        all(|| {
            out(0x3fb, 0x80);
            out(0x3f8, 0);
            out(0x3f9, 0);
            out(0x3fb, 3);
            (0..100).for_each(|_| {
                port::read_u8(0x3fd);
            });
            uart();
            Ok(())
        })
    }),
    ("acpi-every-offset", || {
        all(|| {
            for offset in 0..16u16 {
                port::read_u8(0x600 + offset);
                port::read_u16(0x600 + offset);
                port::read_u32(0x600 + offset);
            }
            // Everything but the control register, which powers off.
            for value in [0, 0xff] {
                for offset in [0, 1, 2, 3, 8, 9, 10, 11] {
                    out(0x600 + offset, value);
                }
            }
            (0..4).for_each(|offset| out(0x600 + offset, 0));
            Ok(())
        })
    }),
    ("acpi-sleep-of-another-kind", || {
        all(|| {
            (0..8u32).filter(|kind| *kind != 5).try_for_each(|kind| {
                expect_end(
                    &Run::new(code!("out dx, ax")).with(RDX, 0x604).with(RAX, (kind << 10 | 1 << 13).into()).go(),
                    Seen::Completes,
                )
            })
        })
    }),
    ("edge-level-every-value", || {
        all(|| {
            for value in 0..=255 {
                out(0x4d0, value);
                out(0x4d1, value);
            }
            out(0x4d0, 0);
            out(0x4d1, 0);
            Ok(())
        })
    }),
    ("status-port-widths", || {
        all(|| {
            for code in [code!("out 0xf4, al"), code!("out 0xf4, ax"), code!("out 0xf4, eax")] {
                expect_end(&Run::new(code).with(RAX, 0xffff_ffff).go(), Seen::Completes)?;
            }
            expect_end(&Run::new(code!("out 0xf4, eax")).go(), Seen::Completes)
        })
    }),
    ("shutdown-string-broken-off", || {
        all(|| {
            for letter in *b"ShutdowShutdowX" {
                out(0x8900, letter);
            }
            Ok(())
        })
    }),
];

static TICKS: AtomicU32 = AtomicU32::new(0);

fn out(port: u16, value: u8) {
    // SAFETY: what devices do here is an interrupt that has a handler or is masked; none writes to memory.
    unsafe { port::write_u8(port, value) };
}

fn out32(port: u16, value: u32) {
    // SAFETY: as for `out`.
    unsafe { port::write_u32(port, value) };
}

fn let_in() {
    // SAFETY: whatever comes in has a handler.
    unsafe { asm!("sti", "nop", "nop", "cli", options(nostack)) };
}

/// The console's port as the runtime wants it.
fn uart() {
    for (register, value) in [(4, 3), (3, 0x80), (0, 1), (1, 0), (3, 3), (1, 0), (2, 7)] {
        out(0x3f8 + register, value);
    }
    while port::read_u8(0x3fd) & 1 != 0 {
        port::read_u8(0x3f8);
    }
}

fn reads(width: u32) -> Seen {
    let seen = all(|| -> Checked {
        for number in 0..=0xffffu16 {
            match width {
                1 => port::read_u8(number).into(),
                2 => port::read_u16(number).into(),
                _ => port::read_u32(number),
            };
        }
        Ok(())
    });
    pic::init();
    seen
}

fn writes(width: u32, value: u32) -> Seen {
    let seen = all(|| -> Checked {
        for number in 0..=0xffffu32 {
            if LETHAL.iter().any(|range| (number..number + width).any(|port| range.contains(&port))) {
                continue;
            }
            let run = match width {
                1 => Run::new(code!("out dx, al")),
                2 => Run::new(code!("out dx, ax")),
                _ => Run::new(code!("out dx, eax")),
            };
            // Millions of exceptions are not what this is about: most ports are written plainly.
            if number % 4096 == 0 {
                expect_end(&run.with(RDX, number.into()).with(RAX, value.into()).go(), Seen::Completes)?;
            } else {
                raw(width, number, value);
            }
        }
        Ok(())
    });
    out(0x43, 0x34);
    out(0x70, 0x0b);
    out(0x71, 2);
    out(0x4d0, 0);
    out(0x4d1, 0);
    pic::init();
    seen
}

fn raw(width: u32, number: u32, value: u32) {
    // SAFETY: as for `out`.
    unsafe {
        match width {
            1 => asm!("out dx, al", in("edx") number, in("eax") value, options(nostack)),
            2 => asm!("out dx, ax", in("edx") number, in("eax") value, options(nostack)),
            _ => asm!("out dx, eax", in("edx") number, in("eax") value, options(nostack)),
        }
    }
}

/// Every mode of every channel, binary and decimal, with this count, while interrupts may come.
fn modes(count: u16) -> Seen {
    pic::init();
    // Where one interrupt is always followed by the next, nothing else would ever run again: some are enough.
    trap::set_handler(trap::FIRST_IRQ_VECTOR, |_| {
        pic::end_of_interrupt();
        if TICKS.fetch_add(1, Ordering::Relaxed) >= 1000 {
            out(0x21, 0xff);
        }
    });
    TICKS.store(0, Ordering::Relaxed);
    pic::unmask(0);
    let [low, high] = count.to_le_bytes();
    for channel in 0..3u8 {
        for mode in 0..16 {
            out(0x43, channel << 6 | 0x30 | mode);
            out(0x40 + u16::from(channel), low);
            out(0x40 + u16::from(channel), high);
            for _ in 0..20 {
                out(0x43, channel << 6);
                port::read_u8(0x40 + u16::from(channel));
                port::read_u8(0x40 + u16::from(channel));
                let_in();
            }
        }
    }
    pic::init();
    out(0x43, 0x34);
    Seen::Behaves
}

/// One edge of the timer's line.
pub fn tick() {
    out(0x43, 0x30);
    out(0x40, 1);
    out(0x40, 0);
    (0..20).for_each(|_| {
        port::read_u8(0x40);
    });
}

/// Interrupts as fast as the timer makes them.
pub fn interrupt_storm() -> Seen {
    pic::init();
    trap::set_handler(trap::FIRST_IRQ_VECTOR, |_| pic::end_of_interrupt());
    pit::interrupt_at(u16::MAX);
    out(0x43, 0x34);
    out(0x40, 2);
    out(0x40, 0);
    pic::unmask(0);
    loop {
        let_in();
    }
}

/// Halts, woken as often as the timer can.
pub fn halt_storm() -> Seen {
    pic::init();
    trap::set_handler(trap::FIRST_IRQ_VECTOR, |_| pic::end_of_interrupt());
    out(0x43, 0x34);
    out(0x40, 10);
    out(0x40, 0);
    pic::unmask(0);
    loop {
        cpu::wait_for_interrupt();
    }
}
