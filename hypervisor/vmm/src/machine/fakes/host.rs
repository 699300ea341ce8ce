//! The machine around the scripted processors: memory, one clock for all, and a serial port with a bounded ring.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::string::String;
use std::vec::Vec;

use lamina_arch::addr::Hpa;
use lamina_arch::time::{Frequency, Tsc};

use super::step::Program;
use super::trace::Trace;
use super::vcpu::FakeVcpu;
use crate::fake_memory::FakeMemory;
use crate::frames::FrameStock;
use crate::host::{Bug, Host, HostMemory};

/// Rate of the machine's TSC. Unit: ticks per second.
pub const HZ: u64 = 100_000_000;
/// The machine's vector of its serial port.
pub const SERIAL_VECTOR: u8 = 0x24;

/// One halt of the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Idle {
    /// When it halted.
    pub from: Tsc,
    /// When it was to wake at the latest.
    pub until: Option<Tsc>,
    /// When it woke.
    pub woke: Tsc,
}

/// The serial port: bytes leave the ring one by one, and an interrupt tells when it is empty.
#[derive(Debug)]
struct Serial {
    ring: VecDeque<u8>,
    capacity: usize,
    byte_ticks: u64,
    /// When the ring's first byte will have left.
    next: Tsc,
    /// The ring has run empty, and nobody was told.
    empty: bool,
    sent: Vec<u8>,
    typed: VecDeque<(Tsc, u8)>,
    received: VecDeque<u8>,
}

impl Serial {
    fn pass(&mut self, now: Tsc) {
        while self.next <= now
            && let Some(byte) = self.ring.pop_front()
        {
            self.sent.push(byte);
            self.next = self.next + self.byte_ticks;
            self.empty = self.ring.is_empty();
        }
    }

    /// When the port interrupts next.
    fn next_interrupt(&self) -> Option<Tsc> {
        let left = (self.ring.len() as u64).checked_sub(1);
        let sent = left.map(|bytes| self.next + bytes * self.byte_ticks);
        let empty = self.empty.then_some(Tsc(0));
        self.typed.front().map(|typed| typed.0).into_iter().chain(sent).chain(empty).min()
    }
}

/// What the fakes share.
pub(super) struct Shared {
    pub(super) memory: FakeMemory,
    pub(super) traces: BTreeMap<u16, Trace>,
    /// The vCPU that is loaded.
    pub(super) loaded: Option<u16>,
    /// What the guests do, by the number of the VM (from 1), for each start of it.
    pub(super) programs: BTreeMap<u16, VecDeque<Program>>,
    /// VMs for which there is no vCPU.
    pub(super) no_vcpu: Vec<u16>,
    /// The processor virtualizes local APICs.
    pub(super) virtualizes_apic: bool,
    clock: Tsc,
    serial: Serial,
    idles: Vec<Idle>,
    log: VecDeque<String>,
    nmis: u32,
    /// What each look at the console costs. Unit: ticks.
    overhead: u64,
}

impl Shared {
    pub(super) fn next_interrupt(&self) -> Option<Tsc> {
        self.serial.next_interrupt()
    }

    fn handle_interrupt(&mut self) {
        self.serial.empty = false;
        while self.serial.typed.front().is_some_and(|typed| typed.0 <= self.clock) {
            self.serial.received.extend(self.serial.typed.pop_front().map(|typed| typed.1));
        }
    }
}

/// What has happened so far.
#[derive(Clone)]
pub struct World(Rc<RefCell<Shared>>);

impl core::fmt::Debug for World {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "World at {:?}", self.now())
    }
}

impl World {
    /// A machine with `memory` bytes, and a serial port that keeps `ring` bytes and sends one in `byte_ticks` ticks.
    pub(super) fn new(memory: u64, ring: usize, byte_ticks: u64) -> World {
        World(Rc::new(RefCell::new(Shared {
            memory: FakeMemory::new(memory),
            traces: BTreeMap::new(),
            loaded: None,
            programs: BTreeMap::new(),
            no_vcpu: Vec::new(),
            virtualizes_apic: false,
            clock: Tsc(1_000),
            serial: Serial {
                ring: VecDeque::new(),
                capacity: ring,
                byte_ticks: byte_ticks.max(1),
                next: Tsc(0),
                empty: false,
                sent: Vec::new(),
                typed: VecDeque::new(),
                received: VecDeque::new(),
            },
            idles: Vec::new(),
            log: VecDeque::new(),
            nmis: 0,
            overhead: 0,
        })))
    }

    pub(super) fn with<T>(&self, look: impl FnOnce(&Shared) -> T) -> T {
        look(&self.0.borrow())
    }

    pub(super) fn with_mut<T>(&self, change: impl FnOnce(&mut Shared) -> T) -> T {
        change(&mut self.0.borrow_mut())
    }

    /// Lets `ticks` pass.
    pub fn pass(&self, ticks: u64) {
        self.with_mut(|w| {
            w.clock = w.clock + ticks;
            w.serial.pass(w.clock);
        });
    }

    /// The machine's time.
    pub fn now(&self) -> Tsc {
        self.with(|w| w.clock)
    }

    /// What vCPU `id` (from 1, in the order of the bundle) was asked to do.
    pub fn trace(&self, id: u16) -> Trace {
        self.with(|w| w.traces.get(&id).cloned().unwrap_or_default())
    }

    /// When the processor halted.
    pub fn idles(&self) -> Vec<Idle> {
        self.with(|w| w.idles.clone())
    }

    /// Has each round of the loop cost `ticks` before a VM runs.
    pub fn set_overhead(&self, ticks: u64) {
        self.with_mut(|w| w.overhead = ticks);
    }

    /// How many of the machine's NMIs the loop has passed on.
    pub fn nmis(&self) -> u32 {
        self.with(|w| w.nmis)
    }

    /// What the serial port has sent, and what its ring holds.
    pub fn text(&self) -> String {
        self.with(|w| {
            let bytes: Vec<u8> = w.serial.sent.iter().chain(&w.serial.ring).copied().collect();
            String::from_utf8_lossy(&bytes).into_owned()
        })
    }

    /// The same, as lines.
    pub fn lines(&self) -> Vec<String> {
        self.text().lines().map(String::from).collect()
    }

    /// The lines that start with `prefix`, without it.
    pub fn lines_of(&self, name: &str) -> Vec<String> {
        let prefix = std::format!("[{name}] ");
        self.lines().iter().filter_map(|line| line.strip_prefix(&prefix)).map(String::from).collect()
    }

    /// Somebody types `text` at `at`: later than what was typed before.
    pub fn type_at(&self, at: u64, text: &str) {
        self.with_mut(|w| w.serial.typed.extend(text.bytes().map(|byte| (Tsc(at), byte))));
    }

    /// The hypervisor logs a line.
    pub fn log(&self, line: &str) {
        self.with_mut(|w| w.log.push_back(line.into()));
    }
}

/// The machine.
#[derive(Debug)]
pub struct FakeHost {
    pub(super) world: World,
    pub(super) stock: FrameStock,
    /// The hypervisor's code can be written.
    pub(super) writable_code: bool,
    /// A VM's memory that the machine keeps mapped.
    pub(super) within_reach: Option<Hpa>,
}

impl HostMemory for FakeHost {
    fn read(&self, from: Hpa, data: &mut [u8]) {
        self.world.with(|w| w.memory.read(from, data));
    }

    fn write(&mut self, to: Hpa, data: &[u8]) {
        self.world.with_mut(|w| w.memory.write(to, data));
    }

    fn zero(&mut self, at: Hpa, length: u64) {
        self.world.with_mut(|w| w.memory.zero(at, length));
    }

    fn read_u64(&self, at: Hpa) -> u64 {
        self.world.with(|w| w.memory.read_u64(at))
    }

    fn write_u64(&mut self, at: Hpa, value: u64) {
        self.world.with_mut(|w| w.memory.write_u64(at, value));
    }

    fn stock(&mut self) -> &mut FrameStock {
        &mut self.stock
    }
}

thread_local! {
    /// The VM that is worked for, and the bug for which work was abandoned.
    static WORK: Cell<Option<usize>> = const { Cell::new(None) };
    static BUG: RefCell<Option<Bug>> = const { RefCell::new(None) };
}

impl Host for FakeHost {
    type Vcpu = FakeVcpu;

    /// Unlike a machine, drops what is on the stack; what was borrowed is left as it was all the same.
    fn survive(work: &mut dyn FnMut()) -> bool {
        let Err(panic) = catch_unwind(AssertUnwindSafe(work)) else { return true };
        let Some(vm) = WORK.take() else { resume_unwind(panic) };
        let what = match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
            (Some(what), _) => String::from(*what),
            (_, Some(what)) => what.clone(),
            _ => String::from("a panic without words"),
        };
        BUG.set(Some(Bug { vm, what }));
        false
    }

    fn begin_work(&mut self, vm: usize) {
        assert_eq!(WORK.replace(Some(vm)), None, "work for one VM within that for another");
    }

    fn end_work(&mut self) {
        assert!(WORK.take().is_some(), "work ends that has not begun");
    }

    fn progress(&self) {}

    fn take_bug(&mut self) -> Option<Bug> {
        BUG.take()
    }

    fn forget_vcpu(&mut self) {
        self.world.with_mut(|w| w.loaded = None);
    }

    fn now(&self) -> Tsc {
        self.world.now()
    }

    fn tsc_frequency(&self) -> Frequency {
        Frequency::from_hz(HZ)
    }

    fn unix_seconds(&self) -> u64 {
        1_800_000_000
    }

    fn create_vcpu(&mut self, vm: u16) -> Result<FakeVcpu, String> {
        let program = self.world.with_mut(|w| {
            assert_eq!(w.loaded, None, "a vCPU is made while another is loaded");
            if w.no_vcpu.contains(&vm) {
                return Err(String::from("no vCPU can be had"));
            }
            Ok(w.programs.get_mut(&vm).and_then(VecDeque::pop_front).expect("a program for each start of the VM"))
        })?;
        Ok(FakeVcpu::new(vm, self.world.clone(), program))
    }

    fn handle_interrupt(&mut self, vector: Option<u8>) {
        assert!(vector.is_none_or(|vector| vector == SERIAL_VECTOR));
        self.world.with_mut(Shared::handle_interrupt);
    }

    fn handle_pending_interrupts(&mut self) {}

    fn handle_machine_check(&mut self) {
        panic!("the machine's machine check");
    }

    fn handle_nmi(&mut self) {
        self.world.with_mut(|w| w.nmis += 1);
    }

    fn idle(&mut self, until: Option<Tsc>) {
        let from = self.world.now();
        let interrupt = self.world.with(|w| w.next_interrupt());
        let wake = until.into_iter().chain(interrupt).min().expect("something wakes a processor that halts");
        self.world.pass(wake.since(from));
        self.world.with_mut(|w| {
            w.handle_interrupt();
            w.idles.push(Idle { from, until, woke: w.clock });
        });
    }

    fn serial_write(&mut self, bytes: &[u8]) -> usize {
        self.world.with_mut(|w| {
            let serial = &mut w.serial;
            let count = bytes.len().min(serial.capacity - serial.ring.len());
            if serial.ring.is_empty() {
                serial.next = w.clock + serial.byte_ticks;
            }
            serial.ring.extend(&bytes[..count]);
            count
        })
    }

    fn has_news(&self) -> bool {
        self.world.pass(self.world.with(|w| w.overhead));
        self.world.with(|w| !w.serial.received.is_empty() || !w.log.is_empty())
    }

    fn serial_read(&mut self) -> Option<u8> {
        self.world.with_mut(|w| w.serial.received.pop_front())
    }

    /// A processor with every feature, AVX-512 and 39 address bits.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        match (leaf, subleaf) {
            (0, _) => [0x1f, 0x756e_6547, 0x6c65_746e, 0x4965_6e69],
            (4, _) => [0; 4],
            (0xd, 0) => [0x2ff, 576, 2696, 0],
            (0xd, 2) => [256, 576, 0, 0],
            (0xd, 5) => [64, 1088, 0, 0],
            (0xd, 6) => [512, 1152, 0, 0],
            (0xd, 7) => [1024, 1664, 0, 0],
            (0xd, 9) => [8, 2688, 0, 0],
            (0x8000_0000, _) => [0x8000_0008, 0, 0, 0],
            (0x8000_0008, _) => [0x3027, 0, 0, 0],
            _ => [u32::MAX; 4],
        }
    }

    fn audit(&mut self, violation: &mut dyn FnMut(String)) {
        if self.writable_code {
            violation("code can be written".into());
        }
        if let Some(frame) = self.within_reach {
            violation(std::format!("memory of VMs at {:#x} is mapped", frame.0));
        }
    }

    #[cfg(any(test, feature = "plant"))]
    fn plant_writable_code(&mut self) -> bool {
        self.writable_code = true;
        true
    }

    #[cfg(any(test, feature = "plant"))]
    fn plant_mapping(&mut self, frame: Hpa) -> bool {
        self.within_reach = Some(frame);
        true
    }

    fn take_log_line(&mut self) -> Option<String> {
        self.world.with_mut(|w| w.log.pop_front())
    }
}
