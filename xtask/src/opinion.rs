//! What a module inside Bochs says of a run (`xtask/instrument`): whether guests stayed in their own memory, and what lay
//! between exits and entries.
//!
//! Owns how its words are read and shown. Whether an access was right, the module has judged.

use std::fmt;

use anyhow::{Context, Result, bail, ensure};

/// A count's least, its median and its most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    /// Least.
    pub least: u64,
    /// Median.
    pub median: u64,
    /// Most; the module knows no larger number than 4095.
    pub most: u64,
}

/// What lay between exits for one reason and the entries behind them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exits {
    /// The basic exit reason (SDM vol. 3, appendix "VMX Basic Exit Reasons").
    pub reason: u16,
    /// How many.
    pub count: u64,
    /// Instructions, one for a string instruction however often it repeats.
    pub instructions: Spread,
    /// Accesses to data; VMREAD and VMWRITE are none.
    pub accesses: Spread,
    /// Lines of 64 bytes of the hypervisor's data.
    pub data_lines: Spread,
    /// Lines of 64 bytes that instructions were fetched from.
    pub code_lines: Spread,
    /// Lines of 64 bytes of VMs' memory.
    pub guest_lines: Spread,
    /// INVEPT, INVVPID, INVLPG, INVPCID and MOV to CR3.
    pub invalidations: Spread,
    /// WRMSR.
    pub msr_writes: Spread,
}

/// The opinion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opinion {
    /// What was wrong, a sentence each; the first ones only.
    pub told: Vec<String>,
    /// How much was wrong.
    pub violations: u64,
    /// What the hypervisor said of who owns what.
    pub announcements: u64,
    /// VM entries.
    pub entries: u64,
    /// Accesses of guests to data that were checked.
    pub data: u64,
    /// Instructions of guests whose page was checked.
    pub fetches: u64,
    /// The processor's accesses to guests' own page tables that were checked.
    pub walks: u64,
    /// Those to the hypervisor's structures for a guest.
    pub structures: u64,
    /// Exits, by reason.
    pub exits: Vec<Exits>,
}

impl Opinion {
    /// Reads what the module wrote.
    ///
    /// # Errors
    /// It is not whole, or not as the module writes it. What it says is wrong is in the error then.
    pub fn parse(text: &str) -> Result<Opinion> {
        let mut opinion = Opinion::default();
        let mut whole = false;
        for line in text.lines() {
            let (word, rest) = line.split_once(' ').with_context(|| format!("no words of who looked on: {line}"))?;
            let number = || rest.parse::<u64>().with_context(|| format!("no number: {line}"));
            match word {
                "violation" => opinion.told.push(rest.to_owned()),
                "announcements" => opinion.announcements = number()?,
                "entries" => opinion.entries = number()?,
                "data" => opinion.data = number()?,
                "fetches" => opinion.fetches = number()?,
                "walks" => opinion.walks = number()?,
                "structures" => opinion.structures = number()?,
                "exit" => opinion.exits.push(exits(rest).with_context(|| format!("no exits: {line}"))?),
                // The last line.
                "violations" => {
                    opinion.violations = number()?;
                    whole = true;
                }
                _ => bail!("no words of who looked on: {line}"),
            }
        }
        ensure!(whole, "who looked on did not come to an end; violations so far: {:?}", opinion.told);
        Ok(opinion)
    }

    /// Whether there was something to see, and nothing was wrong.
    pub fn is_good(&self) -> bool {
        self.violations == 0 && self.entries > 0
    }
}

/// `REASON COUNT NAME=LEAST/MEDIAN/MOST...`, in this order of names.
fn exits(text: &str) -> Option<Exits> {
    let mut words = text.split_ascii_whitespace();
    let (reason, count) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let mut next = |name: &str| {
        let mut numbers = words.next()?.strip_prefix(name)?.strip_prefix('=')?.split('/').map(str::parse);
        let mut number = || numbers.next()?.ok();
        Some(Spread { least: number()?, median: number()?, most: number()? })
    };
    Some(Exits {
        reason,
        count,
        instructions: next("instructions")?,
        accesses: next("accesses")?,
        data_lines: next("data-lines")?,
        code_lines: next("code-lines")?,
        guest_lines: next("guest-lines")?,
        invalidations: next("invalidations")?,
        msr_writes: next("msr-writes")?,
    })
}

/// The manual's name of a basic exit reason, shortened.
fn name(reason: u16) -> Option<&'static str> {
    Some(match reason {
        0 => "exception or NMI",
        1 => "external interrupt",
        2 => "triple fault",
        7 => "interrupt window",
        8 => "NMI window",
        9 => "task switch",
        10 => "CPUID",
        12 => "HLT",
        13 => "INVD",
        18 => "VMCALL",
        28 => "control register",
        29 => "MOV DR",
        30 => "I/O instruction",
        31 => "RDMSR",
        32 => "WRMSR",
        44 => "APIC access",
        45 => "virtualized EOI",
        48 => "EPT violation",
        52 => "preemption timer",
        54 => "WBINVD",
        55 => "XSETBV",
        56 => "APIC write",
        _ => return None,
    })
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.least, self.median))
    }
}

impl fmt::Display for Opinion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<20} {:>9} {:>12} {:>11} {:>11} {:>11} {:>11} {:>8} {:>8}",
            "exit", "count", "instructions", "accesses", "data lines", "code lines", "VMs' lines", "TLB inv.", "WRMSRs"
        )?;
        for exits in &self.exits {
            let reason = name(exits.reason).map_or_else(|| format!("reason {}", exits.reason), str::to_owned);
            writeln!(
                f,
                "{reason:<20} {:>9} {:>12} {:>11} {:>11} {:>11} {:>11} {:>8} {:>8}",
                exits.count,
                exits.instructions,
                exits.accesses,
                exits.data_lines,
                exits.code_lines,
                exits.guest_lines,
                exits.invalidations,
                exits.msr_writes
            )?;
        }
        writeln!(f, "from an exit to the next entry: least/median; a line has 64 bytes")?;
        writeln!(
            f,
            "checked in guests: {} accesses to data, {} instructions, {} accesses to their page tables; {} to structures \
             of the hypervisor's; {} entries, {} announcements",
            self.data, self.fetches, self.walks, self.structures, self.entries, self.announcements
        )?;
        for violation in &self.told {
            writeln!(f, "violation: {violation}")?;
        }
        write!(f, "violations: {}", self.violations)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: &str = "\
        violation VM 1 reads 0x5000 (data), which is memory of VM 2; rip 0x100\n\
        exit 10 7 instructions=143/143/150 accesses=30/31/40 data-lines=5/5/6 code-lines=9/9/9 guest-lines=0/0/1 \
        invalidations=0/0/0 msr-writes=0/0/2\n\
        announcements 4\nentries 8\ndata 100\nfetches 200\nwalks 3\nstructures 9\nviolations 1\n";

    #[test]
    fn what_the_module_writes_is_read() {
        let opinion = Opinion::parse(WORDS).unwrap();
        assert_eq!((opinion.violations, opinion.entries, opinion.data, opinion.fetches), (1, 8, 100, 200));
        assert_eq!((opinion.walks, opinion.structures, opinion.announcements), (3, 9, 4));
        assert_eq!(opinion.told, ["VM 1 reads 0x5000 (data), which is memory of VM 2; rip 0x100"]);
        let [exits] = opinion.exits.as_slice() else { panic!("{:?}", opinion.exits) };
        assert_eq!((exits.reason, exits.count), (10, 7));
        assert_eq!(exits.accesses, Spread { least: 30, median: 31, most: 40 });
        assert_eq!(exits.msr_writes.most, 2);
        assert!(!opinion.is_good());
        let shown = opinion.to_string();
        assert!(shown.contains("CPUID") && shown.contains("143/143"), "{shown}");
        assert!(shown.ends_with("violations: 1"), "{shown}");
    }

    #[test]
    fn what_is_cut_off_or_strange_is_no_opinion() {
        let cut = WORDS.strip_suffix("violations 1\n").unwrap();
        let error = Opinion::parse(cut).unwrap_err().to_string();
        assert!(error.contains("did not come to an end") && error.contains("VM 1 reads"), "{error}");
        for strange in ["", "hello", "entries many\n", "other 1\n", "exit 10 7 accesses=1/2/3\n"] {
            assert!(Opinion::parse(strange).is_err(), "{strange}");
        }
    }

    #[test]
    fn a_run_without_guests_is_not_good() {
        let opinion = Opinion::parse("entries 0\nviolations 0\n").unwrap();
        assert!(!opinion.is_good());
        assert!(Opinion::parse("entries 1\nviolations 0\n").unwrap().is_good());
    }
}
