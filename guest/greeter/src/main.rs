//! Guest program: para-virtual. Finds Lamina through CPUID and talks to it by hypercalls only: console write, yield,
//! clock, exit. Greets every `every=MILLISECONDS` (2000), `count=N` times and then ends with status 0, or for ever.
//! Between greetings it halts, woken by the local APIC's timer, whose rate it knows from Lamina; with `wait=yield` it
//! gives up its time slices instead. Ends with status 1 where there is no Lamina.
#![no_std]
#![no_main]

use core::fmt::{self, Write};
use guest_rt::Boot;
use guest_rt::hypercall::{Error, Lamina};
use guest_rt::lapic::LocalApic;

guest_rt::entry!(main);

/// A line, collected so that one call writes it.
struct Line {
    bytes: [u8; 128],
    length: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.length..self.length + text.len()).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.length += text.len();
        Ok(())
    }
}

fn say(lamina: Lamina, text: fmt::Arguments) -> Result<(), Error> {
    let mut line = Line { bytes: [0; 128], length: 0 };
    // A line that is too long is cut.
    let _ = line.write_fmt(text);
    let _ = line.write_str("\n");
    lamina.console_write(&line.bytes[..line.length])
}

fn main(boot: &Boot) -> u32 {
    let Some(lamina) = Lamina::find() else {
        guest_rt::println!("no Lamina here");
        return 1;
    };
    let status = match greet(lamina, boot) {
        Ok(()) => 0,
        Err(Error(number)) => {
            guest_rt::println!("a hypercall failed with {number}");
            2
        }
    };
    lamina.exit(status)
}

fn greet(lamina: Lamina, boot: &Boot) -> Result<(), Error> {
    let every = boot.number("every").unwrap_or(2000).saturating_mul(1_000_000);
    let count = boot.number("count");
    let apic = (boot.word("wait") != Some("yield")).then(LocalApic::enable);
    let [_, apic_khz] = lamina.timing();

    let mut greetings = 0;
    let mut next = lamina.clock()?;
    loop {
        let now = lamina.clock()?;
        greetings += 1;
        say(lamina, format_args!("greeting {greetings} to Lamina, {} ms after my start", now / 1_000_000))?;
        if count.is_some_and(|count| greetings >= count) {
            return Ok(());
        }
        lamina.yield_now()?;
        next += every;
        loop {
            let left = next.saturating_sub(lamina.clock()?);
            if left == 0 {
                break;
            }
            match &apic {
                Some(apic) => {
                    let ticks = u128::from(left) * u128::from(apic_khz) / 1_000_000;
                    apic.halt_for(u32::try_from(ticks).unwrap_or(u32::MAX));
                }
                None => lamina.yield_now()?,
            }
        }
    }
}
