//! What exits cost, one kind at a time: `guest/bench` natively and as the only VM, and two VMs in turns.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use regex::Regex;

use super::native;
use super::table::{Beside, EVENTS, Figure, Row, Table};
use crate::artifacts;
use crate::backend::Backend;
use crate::machine::Machine;
use crate::report::{self, say};
use crate::session::Request;

/// One run takes a fraction of this.
const LIMIT: Duration = Duration::from_secs(300);
/// Memory of the machine natively. Unit: MiB.
const MEMORY: u64 = 512;

/// A row of the table: what it is called, KVM's stored figures, what must not and would better not be exceeded.
struct Bound {
    id: &'static str,
    kvm: Option<[f64; 2]>,
    must: Option<f64>,
    aim: Option<f64>,
}

const fn bound(id: &'static str, kvm: Option<[f64; 2]>, must: f64, aim: f64) -> Bound {
    Bound { id, kvm, must: Some(must), aim: Some(aim) }
}

const fn shown(id: &'static str, kvm: Option<[f64; 2]>) -> Bound {
    Bound { id, kvm, must: None, aim: None }
}

/// In the order of the table. KVM's `port/uart` stands for a device in user space, and its `hypercall/nop` for one that
/// it does not know.
const BOUNDS: &[Bound] = &[
    shown("empty", Some([4.0, 4.0])),
    shown("nop/100", None),
    bound("cpuid/0", Some([970.0, 1066.0]), 150.0, 100.0),
    bound("cpuid/1", Some([976.0, 1072.0]), 150.0, 100.0),
    bound("hypercall/nop", Some([1005.0, 1101.0]), 120.0, 64.0),
    bound("rdmsr/apic-base", Some([1084.0, 1180.0]), 160.0, 110.0),
    bound("wrmsr/apic-base", Some([1261.0, 1355.0]), 160.0, 110.0),
    bound("rdmsr/misc-enable", Some([1079.0, 1175.0]), 160.0, 110.0),
    bound("port/pit", Some([1284.0, 1386.0]), 250.0, 130.0),
    bound("port/pic", Some([1252.0, 1356.0]), 250.0, 130.0),
    bound("port/uart", Some([3081.0, 7378.0]), 250.0, 130.0),
    // Without an exit.
    bound("port/post", None, 10.0, 2.0),
    shown("mmio/apic-version", Some([7160.0, 15734.0])),
    bound("mmio/apic-eoi", Some([3867.0, 8160.0]), 900.0, 450.0),
    bound("ipi/x2apic-self", Some([2450.0, 2544.0]), 500.0, 250.0),
    shown("wrmsr/tsc-deadline", Some([908.0, 1002.0])),
    bound("deadline/spinning", Some([1901.0, 1996.0]), 500.0, 300.0),
    bound("deadline/halted", Some([6016.0, 10643.0]), 900.0, 500.0),
    // The same with the local APIC by the processor.
    shown("mmio/apic-version/virtualized", None),
    shown("mmio/apic-eoi/virtualized", None),
    shown("ipi/x2apic-self/virtualized", None),
    shown("wrmsr/tsc-deadline/virtualized", None),
    shown("deadline/spinning/virtualized", None),
    shown("deadline/halted/virtualized", None),
    bound("touch/first", Some([2869.0, 3008.0]), 800.0, 400.0),
    // What `touch/first` would cost more without a stock of cleared frames.
    shown("clear/page", None),
    bound(SWITCH, None, 700.0, 350.0),
    bound(CREATE, Some([1_510_000.0, 1_510_000.0]), 300_000.0, 50_000.0),
];

/// From one VM to another: half of the way there and back.
const SWITCH: &str = "vm/switch";
const THERE_AND_BACK: &str = "switch/there-and-back";

/// A VM of 16 MiB, backed on first touch, from its configuration to its first instruction: made, and switched to.
const CREATE: &str = "vm/create";
/// Behind the names of what was measured with `apic = "virtualized"`: where the processor can.
const VIRTUALIZED: &str = "/virtualized";
/// VMs that are made for it.
const CREATED: usize = 16;

/// Figures by name.
pub type Figures = BTreeMap<String, Figure>;

/// Measures all of it.
pub fn measure(backend: &Backend, table: &mut Table) -> Result<()> {
    let _activity = report::activity("exits");
    let guest = artifacts::build("guest-bench", "bench")?;
    say(format_args!("exits: ten boots, 5 to 20 s each"));
    let natively = figures(native::start(backend, &guest, &[], "", MEMORY, LIMIT)?).context("natively")?;
    let alone = r#"
        [[vm]]
        name = "bench"
        kernel = "guest:bench"
        memory = "64M"
        backing = "lazy"
        apic = "emulated"
        "#;
    let mut lamina = figures(boot(backend, alone)?).context("under Lamina")?;
    let virtualized = alone.replace("emulated", "virtualized");
    let by_processor = figures(boot(backend, &virtualized)?).context("with a virtualized APIC")?;
    lamina.extend(by_processor.into_iter().map(|(name, figure)| (name + VIRTUALIZED, figure)));
    let two = r#"
        [[vm]]
        name = "bench"
        kernel = "guest:bench"
        cmdline = "role=switch"
        memory = "16M"
        [[vm]]
        name = "partner"
        kernel = "guest:bench"
        cmdline = "role=partner"
        memory = "16M"
        "#;
    let switches = figures(boot(backend, two)?).context("two VMs")?;
    lamina.extend(switches.get(SWITCH).map(|figure| (SWITCH.to_owned(), *figure)));
    let switch = lamina.get(SWITCH).map_or(0.0, |figure| figure.median);
    let (created, memory) = creation(backend, switch).context("VMs being made")?;
    lamina.insert(CREATE.to_owned(), created);
    let with_all = |config: &str| figures(boot(backend, &format!("{FULL}{config}"))?);
    let mut defended = with_all(alone).context("with all defences")?;
    defended.extend(with_all(two).context("two VMs, with all defences")?);
    let mut events = events(backend, alone, two).context("counting")?;
    let by_processor = counted(backend, &counting(&virtualized)).context("counting with a virtualized APIC")?;
    events.extend(by_processor.into_iter().map(|(name, counts)| (name + VIRTUALIZED, counts)));
    for bound in BOUNDS {
        let figure = lamina.get(bound.id).with_context(|| format!("the guest has said nothing of {}", bound.id))?;
        let native = natively.get(bound.id).copied();
        table.push(Row {
            native,
            full: defended.get(bound.id).copied(),
            kvm: bound.kvm.map(Beside::Stored),
            must: bound.must,
            aim: bound.aim,
            events: events.get(bound.id).copied(),
            ..Row::new(bound.id, "ticks", *figure)
        });
    }
    let row = |id, unit, figure, config: &str| Row { config: config.to_owned(), ..Row::new(id, unit, figure) };
    let beside = "of the hypervisor's, for a VM of 16 MiB backed when it is touched: heap, nested tables, directory";
    table.push(row("vm/memory", "bytes", memory.beside, beside));
    let bringup = "from the loader until the first of 17 VMs is entered; most of it measures the TSC against the PIT";
    table.push(row("boot/to-guest", "ticks", memory.bringup, bringup));
    let size = std::fs::metadata(artifacts::stripped(&artifacts::hypervisor()?)?)?.len();
    #[expect(clippy::cast_precision_loss, reason = "a few megabytes")]
    let size = Figure::of(&[size as f64]);
    table.push(row("binary/stripped", "bytes", size, "the hypervisor without symbols"));
    Ok(())
}

/// What `mitigations` is for the column of that name; for all others it is what it is by default.
const FULL: &str = "[lamina]\nmitigations = \"full\"\n";

/// What is read from the machine that makes VMs, beside the time that takes.
struct Taken {
    beside: Figure,
    bringup: Figure,
}

/// What making a VM costs, with `switch` for the way to its first instruction. The first VM that is made is not in it:
/// it finds nothing warm.
fn creation(backend: &Backend, switch: f64) -> Result<(Figure, Taken)> {
    let vm = |index| {
        format!(
            "[[vm]]\nname = \"vm{index}\"\nkernel = \"guest:bench\"\ncmdline = \"role=partner\"\nmemory = \"16M\"\n\
             backing = \"lazy\"\n"
        )
    };
    let mut machine = boot(backend, &(0..=CREATED).map(vm).collect::<String>())?;
    let bringup =
        told(&mut machine, 0, r"^\[lamina\] 17 virtual machines made, (\d+) ticks after the loader$")? + switch;
    let (mut ticks, mut bytes) = (Vec::new(), Vec::new());
    for index in 1..=CREATED {
        let mut ask = |command: &str, pattern: &str| {
            let first = machine.transcript().lines().len();
            machine.send(format!("{command} vm{index}\n"));
            told(&mut machine, first, pattern)
        };
        ticks.push(ask("exits", r"^\[lamina\] made in (\d+) ticks; ")? + switch);
        bytes.push(ask("memory", r"^\[lamina\] \d+ bytes of memory are its own; beside them (\d+) bytes: ")?);
    }
    let taken = Taken { beside: Figure::of(&bytes), bringup: Figure::of(&[bringup]) };
    Ok((Figure::of(&ticks), taken))
}

/// The number in the first line from `first` on that matches.
fn told(machine: &mut Machine, first: usize, pattern: &str) -> Result<f64> {
    let pattern = Regex::new(pattern)?;
    let line = match machine.wait_for_from(first, &pattern) {
        Ok(line) => line.text,
        Err(stop) => anyhow::bail!("{stop}, and there was no line like {pattern}\n{}", machine.report(60)),
    };
    let found = pattern.captures(&line).context("a line that has just matched")?;
    Ok(found[1].parse()?)
}

/// Counts by name, in the order of [`EVENTS`].
type Events = BTreeMap<String, [u64; EVENTS.len()]>;

/// What operations cost that instructions do not show, of the guests in `alone` and `two` under a hypervisor that counts.
fn events(backend: &Backend, alone: &str, two: &str) -> Result<Events> {
    let mut events = counted(backend, &counting(alone))?;
    let switches = counted(backend, &two.replace("role=switch", "role=switch count=events"))?;
    events.extend(switches.get(THERE_AND_BACK).map(|way| (SWITCH.to_owned(), way.map(|count| count.div_ceil(2)))));
    Ok(events)
}

/// The configuration of a guest without a command line, told to count.
fn counting(config: &str) -> String {
    config.replace("memory =", "cmdline = \"count=events\"\nmemory =")
}

fn counted(backend: &Backend, config: &str) -> Result<Events> {
    let request = Request::text(config, "").on(Some(backend.name())).timeout(LIMIT).built_with(Some("count"));
    let machine = to_end(request.prepare()?.start()?)?;
    Ok(machine.transcript().lines().iter().filter_map(|line| event(line)).collect())
}

/// `C NAME` and the counts, behind a prefix or none.
fn event(line: &str) -> Option<(String, [u64; EVENTS.len()])> {
    let words = line.strip_prefix("C ").or_else(|| line.split_once("] C ").map(|(_, words)| words))?;
    let mut words = words.split_ascii_whitespace();
    let name = words.next()?.to_owned();
    let counts: Vec<u64> = words.map(str::parse).collect::<Result<_, _>>().ok()?;
    Some((name, counts.try_into().ok()?))
}

fn boot(backend: &Backend, config: &str) -> Result<Machine> {
    Request::text(config, "").on(Some(backend.name())).timeout(LIMIT).prepare()?.start()
}

/// Waits for the guest's last line.
fn to_end(mut machine: Machine) -> Result<Machine> {
    if let Err(stop) = machine.wait_for(&Regex::new(r"\bR end$")?) {
        anyhow::bail!("{stop}, and the guest has not come to its end\n{}", machine.report(60));
    }
    Ok(machine)
}

/// Waits for the guest's last line, and reads all of them.
fn figures(machine: Machine) -> Result<Figures> {
    let machine = to_end(machine)?;
    let figures = figures_of(machine.transcript().lines());
    ensure!(!figures.is_empty(), "no figures\n{}", machine.report(60));
    Ok(figures)
}

/// The figures in what a machine printed.
pub fn figures_of(lines: &[String]) -> Figures {
    let mut figures: Figures = lines.iter().filter_map(|line| figure(line)).collect();
    if let Some(way) = figures.get(THERE_AND_BACK) {
        let half = |value: f64| (value / 2.0).ceil();
        let figure =
            Figure { n: way.n, min: half(way.min), median: half(way.median), mean: half(way.mean), max: half(way.max) };
        figures.insert(SWITCH.to_owned(), figure);
    }
    figures
}

/// `R NAME ROUNDS MINIMUM MEDIAN MEAN MAXIMUM`, behind a prefix or none.
fn figure(line: &str) -> Option<(String, Figure)> {
    let words = line.strip_prefix("R ").or_else(|| line.split_once("] R ").map(|(_, words)| words))?;
    let mut words = words.split_ascii_whitespace();
    let name = words.next()?.to_owned();
    let n = words.next()?.parse().ok()?;
    let numbers: Vec<f64> = words.map(str::parse).collect::<Result<_, _>>().ok()?;
    let [min, median, mean, max] = numbers.try_into().ok()?;
    Some((name, Figure { n, min, median, mean, max }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_with_and_without_a_prefix() {
        let figure = Figure { n: 1000, min: 3.0, median: 4.0, mean: 5.0, max: 6.0 };
        for line in ["R cpuid/0 1000 3 4 5 6", "[bench] R cpuid/0 1000 3 4 5 6"] {
            assert_eq!(super::figure(line), Some(("cpuid/0".to_owned(), figure)));
        }
        for line in ["[bench] R end", "R cpuid/0 1000 3 4 5", "R cpuid/0 1000 3 4 5 6 7", "[x] cpuid/0 1 2 3 4 5"] {
            assert_eq!(super::figure(line), None, "{line}");
        }
    }

    #[test]
    fn counts_are_read_with_and_without_a_prefix() {
        for line in ["C cpuid/0 5 2 0 0 1", "[bench] C cpuid/0 5 2 0 0 1"] {
            assert_eq!(event(line), Some(("cpuid/0".to_owned(), [5, 2, 0, 0, 1])));
        }
        for line in ["C cpuid/0 5 2 0 0", "C cpuid/0 5 2 0 0 1 1", "[bench] R cpuid/0 5 2 0 0 1"] {
            assert_eq!(event(line), None, "{line}");
        }
    }

    #[test]
    fn rows_have_names_of_their_own_and_bounds_in_order() {
        for (index, bound) in BOUNDS.iter().enumerate() {
            assert!(BOUNDS[..index].iter().all(|other| other.id != bound.id), "{}", bound.id);
            assert!(bound.aim <= bound.must, "{}", bound.id);
        }
    }
}
