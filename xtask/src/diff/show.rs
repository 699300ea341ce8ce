//! A difference, for people.

use std::fmt::Write;

use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
use lamina_vmm::trace::{REGISTERS, Store};

use super::compare::{Difference, Differs};
use super::trace::{Step, Trace};

/// How many steps before the difference are shown.
const BEFORE: usize = 4;

/// The instruction at `rip`, as text.
pub fn instruction(trace: &Trace, rip: u64) -> String {
    let Some((bits, bytes)) = trace.code(rip) else { return "(instruction not recorded)".to_owned() };
    let instruction = Decoder::with_ip(bits, bytes, rip, DecoderOptions::NONE).decode();
    let mut text = String::new();
    IntelFormatter::new().format(&instruction, &mut text);
    text
}

/// What differs, with the instruction and what led to it. `names` are those of the two sides.
pub fn difference(names: [&str; 2], traces: [&Trace; 2], difference: &Difference) -> String {
    let mut text = String::new();
    // A string takes everything.
    let _ = write_difference(&mut text, names, traces, difference);
    text
}

fn write_difference(
    text: &mut String,
    names: [&str; 2],
    traces: [&Trace; 2],
    difference: &Difference,
) -> std::fmt::Result {
    let steps = |side: usize| difference.at[side].and_then(|at| traces[side].steps.get(at));
    let place = |side: usize| match difference.at[side] {
        Some(at) => format!("record {at} of {}", names[side]),
        None => format!("the end of {}", names[side]),
    };
    writeln!(text, "first difference at {} and {}:", place(0), place(1))?;
    for side in [0, 1] {
        match steps(side) {
            Some(step) => writeln!(text, "  {:>9}: {}", names[side], line(traces[side], step))?,
            None => {
                let end = traces[side].end.as_deref().unwrap_or("no more records");
                writeln!(text, "  {:>9}: {end}", names[side])?;
            }
        }
    }
    let row = |text: &mut String, what: &str, left: String, right: String| {
        writeln!(text, "  {what:>9}: {left:>20}  {right:>20}")
    };
    if let (Some(left), Some(right)) = (steps(0), steps(1)) {
        match &difference.differs {
            Differs::Computed(indices) | Differs::Registers(indices) => {
                let is_after = matches!(difference.differs, Differs::Registers(_));
                let when = if is_after { "after it" } else { "before it" };
                row(text, when, names[0].to_owned(), names[1].to_owned())?;
                for index in indices {
                    let value = |step: &Step| {
                        let registers = if is_after { &step.after } else { &step.before };
                        format!("{:#x}", registers[*index])
                    };
                    row(text, REGISTERS[*index], value(left), value(right))?;
                }
            }
            Differs::Event => {
                let event = |step: &Step| step.record.event.clone().unwrap_or_else(|| "none".to_owned());
                row(text, "event", event(left), event(right))?;
            }
            Differs::Stores => {
                row(text, "written", stores(&left.record.stores), stores(&right.record.stores))?;
            }
            Differs::Order | Differs::End => {}
        }
    }
    for side in [0, 1] {
        let at = difference.at[side].unwrap_or(traces[side].steps.len());
        writeln!(text, "before that on {}:", names[side])?;
        for step in &traces[side].steps[at.saturating_sub(BEFORE)..at] {
            writeln!(text, "  {}", line(traces[side], step))?;
        }
    }
    Ok(())
}

/// One step in a line.
fn line(trace: &Trace, step: &Step) -> String {
    let record = &step.record;
    let mut line = format!("{:016x}  {:<24} {}", record.rip, instruction(trace, record.rip), record.what);
    if let Some(event) = &record.event {
        line.push_str(" -> ");
        line.push_str(event);
    }
    line
}

fn stores(stores: &[Store]) -> String {
    let one = |store: &Store| format!("{} at {:#x} ({:x})", store.length, store.gpa, store.digest & 0xffff_ffff);
    if stores.is_empty() { "nothing".to_owned() } else { stores.iter().map(one).collect::<Vec<_>>().join(", ") }
}
