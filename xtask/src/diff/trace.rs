//! The records of one run, read from what the machine printed.

use std::collections::HashMap;

use lamina_vmm::trace::{PREFIX, REGISTERS, Record, Registers};

/// One record, with all registers before and after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What was recorded.
    pub record: Record,
    /// All registers at the exit.
    pub before: Registers,
    /// All registers at the next entry.
    pub after: Registers,
}

/// A run of one guest.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// Its records, in the guest's order.
    pub steps: Vec<Step>,
    /// How the VM ended, in the hypervisor's words; `None` where it had not yet.
    pub end: Option<String>,
    /// As many records as were asked for were made; there would be more.
    pub cut: bool,
    /// Bits and bytes of the instruction that was at this place first.
    codes: HashMap<u64, (u32, Vec<u8>)>,
}

impl Trace {
    /// Reads the lines of a run of the VM `name`.
    ///
    /// # Errors
    /// A line that should be a record is none.
    pub fn read<'a>(name: &str, lines: impl IntoIterator<Item = &'a str>) -> anyhow::Result<Self> {
        let mut trace = Self::default();
        let mut registers = [0; REGISTERS.len()];
        let own = lines.into_iter().filter_map(|line| line.strip_prefix("[lamina] "));
        for line in own {
            if let Some(rest) = line.strip_prefix(name) {
                match rest.strip_prefix(' ') {
                    // It starts again, with a recorder that knows no registers yet.
                    Some("reset") => registers = [0; REGISTERS.len()],
                    Some(rest) if rest.starts_with("stopped: ") => trace.end = Some(rest.to_owned()),
                    _ => {}
                }
            }
            let Some(text) = line.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix(name)) else { continue };
            let Some(text) = text.strip_prefix(' ') else { continue };
            if text == "end" {
                trace.cut = true;
                continue;
            }
            let record = Record::parse(text).ok_or_else(|| anyhow::anyhow!("this is no record: {line}"))?;
            let mut apply = |changes: &[(usize, u64)]| {
                for (index, value) in changes {
                    registers[*index] = *value;
                }
                registers
            };
            let (before, after) = (apply(&record.computed), apply(&record.changed));
            trace.push(Step { before, after, record });
        }
        Ok(trace)
    }

    /// Appends a record.
    pub fn push(&mut self, step: Step) {
        if let Some(code) = &step.record.code {
            self.codes.insert(step.record.rip, (code.bits, code.bytes.clone()));
        }
        self.steps.push(step);
    }

    /// The instruction at `rip`.
    pub fn code(&self, rip: u64) -> Option<(u32, &[u8])> {
        self.codes.get(&rip).map(|(bits, bytes)| (*bits, bytes.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_read_and_registers_are_put_together() {
        let lines = [
            "[lamina] Lamina 1",
            "[a] [lamina] trace a hlt 0",
            "[lamina] trace a cpuid:0 100 code64=0fa2 rax=5 rip=100 +rip=102",
            "[lamina] trace ab hlt 7",
            "[lamina] trace a hlt 102 +rip=103",
            "[lamina] a reset",
            "[lamina] trace a hlt 102 +rip=103",
            "[lamina] trace a end",
            "[lamina] a stopped: powered off (status 0)",
        ];
        let trace = Trace::read("a", lines).unwrap();
        let seen: Vec<_> = trace.steps.iter().map(|step| (step.before[0], step.after[16])).collect();
        assert_eq!(seen, [(5, 0x102), (5, 0x103), (0, 0x103)]);
        assert_eq!(trace.end.as_deref(), Some("stopped: powered off (status 0)"));
        assert!(trace.cut);
        assert_eq!(trace.code(0x100), Some((64, &[0x0f, 0xa2][..])));
        assert!(Trace::read("a", ["[lamina] trace a hlt"]).is_err());
    }
}
