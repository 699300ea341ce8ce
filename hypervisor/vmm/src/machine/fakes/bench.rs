//! What a test sets up: VMs, their guests, and what is typed.

use std::string::String;
use std::vec;
use std::vec::Vec;

use lamina_arch::addr::{Hpa, PAGE_2M};

use super::host::{FakeHost, World};
use super::step::Program;
use crate::chipset::Chipset;
use crate::config::{self, Apic, Blob, Boot, Bundle, CPU_HOST, LogLevel, Mitigations, VmConfig};
use crate::frames::{FramePool, FrameStock};
use crate::machine::Machine;
use crate::memory::Backing;

/// Where guests start.
pub const ENTRY: u64 = 0x10_0000;

/// Memory of a VM that says nothing else. Unit: bytes.
const MEMORY: u64 = 2 << 20;

/// A 64-bit ELF file with `code` at [`ENTRY`].
pub fn elf_image(code: &[u8]) -> Vec<u8> {
    let mut image = Vec::new();
    image.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // Executable, x86-64, version 1.
    image.extend_from_slice(&[2, 0, 0x3e, 0, 1, 0, 0, 0]);
    for value in [ENTRY, 64, 0] {
        image.extend_from_slice(&value.to_le_bytes());
    }
    // Flags, sizes of this header and of the one program header, no sections.
    image.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    // Loadable; readable, writable, executable.
    image.extend_from_slice(&[1, 0, 0, 0, 7, 0, 0, 0]);
    let length = code.len() as u64;
    for value in [120, ENTRY, ENTRY, length, length + 0x1000, 0x1000] {
        image.extend_from_slice(&value.to_le_bytes());
    }
    image.extend_from_slice(code);
    image
}

struct Guest {
    name: String,
    image: Vec<u8>,
    memory: u64,
    backing: Backing,
    weight: u32,
    initrd: Option<Blob>,
    apic: Apic,
    trace: u32,
}

/// A machine to be.
pub struct Bench {
    world: World,
    guests: Vec<Guest>,
    interactive: bool,
    memory: u64,
}

impl Default for Bench {
    fn default() -> Self {
        Self::new()
    }
}

impl Bench {
    /// A machine without VMs, with 32 MiB for them.
    pub fn new() -> Bench {
        Bench::with_serial(4096, 100)
    }

    /// The same, with a serial port that keeps `ring` bytes and sends one in `byte_ticks` ticks.
    pub fn with_serial(ring: usize, byte_ticks: u64) -> Bench {
        let memory = 16 * PAGE_2M;
        Bench { world: World::new(PAGE_2M + memory, ring, byte_ticks), guests: Vec::new(), interactive: false, memory }
    }

    fn last(&mut self) -> &mut Guest {
        self.guests.last_mut().expect("there is a VM")
    }

    /// Adds a VM whose guest does `program`.
    #[must_use]
    pub fn vm(mut self, name: &str, program: Program) -> Bench {
        let image = elf_image(&[0xf4; 16]);
        let (memory, backing) = (MEMORY, Backing::Eager);
        let (initrd, apic) = (None, Apic::Virtualized);
        self.guests.push(Guest { name: name.into(), image, memory, backing, weight: 100, initrd, apic, trace: 0 });
        self.restarted(program)
    }

    /// When the VM that was added last starts once more, it does `program`.
    #[must_use]
    pub fn restarted(self, program: Program) -> Bench {
        let id = u16::try_from(self.guests.len()).expect("few VMs");
        self.world.with_mut(|w| w.programs.entry(id).or_default().push_back(program));
        self
    }

    /// The VM that was added last has `code` at [`ENTRY`].
    #[must_use]
    pub fn code(self, code: &[u8]) -> Bench {
        self.image(elf_image(code))
    }

    /// The VM that was added last starts from `image`.
    #[must_use]
    pub fn image(mut self, image: Vec<u8>) -> Bench {
        self.last().image = image;
        self
    }

    /// The VM that was added last has `bytes` of memory.
    #[must_use]
    pub fn memory(mut self, bytes: u64) -> Bench {
        self.last().memory = bytes;
        self
    }

    /// The VM that was added last has its memory backed on first touch.
    #[must_use]
    pub fn lazy(mut self) -> Bench {
        self.last().backing = Backing::Lazy;
        self
    }

    /// The machine has `bytes` of memory for VMs and their tables, at most what it has without this.
    #[must_use]
    pub fn pool(mut self, bytes: u64) -> Bench {
        self.memory = bytes;
        self
    }

    /// The VM that was added last has this weight.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Bench {
        self.last().weight = weight;
        self
    }

    /// The VM that was added last has an initrd there in the bundle.
    #[must_use]
    pub fn initrd(mut self, blob: Blob) -> Bench {
        self.last().initrd = Some(blob);
        self
    }

    /// The VM that was added last has its local APIC from the hypervisor, whatever the processor can.
    #[must_use]
    pub fn emulated_apic(mut self) -> Bench {
        self.last().apic = Apic::Emulated;
        self
    }

    /// The machine's processor can virtualize local APICs.
    #[must_use]
    pub fn virtualizing_apics(self) -> Bench {
        self.world.with_mut(|w| w.virtualizes_apic = true);
        self
    }

    /// This many records are made of the VM that was added last.
    #[must_use]
    pub fn traced(mut self, records: u32) -> Bench {
        self.last().trace = records;
        self
    }

    /// The machine makes no vCPU for the VM that was added last.
    #[must_use]
    pub fn without_vcpu(self) -> Bench {
        let id = u16::try_from(self.guests.len()).expect("few VMs");
        self.world.with_mut(|w| w.no_vcpu.push(id));
        self
    }

    /// Somebody types `text` when the machine's TSC is `at`.
    #[must_use]
    pub fn typed(self, at: u64, text: &str) -> Bench {
        self.world.type_at(at, text);
        self
    }

    /// A person sits at a terminal.
    #[must_use]
    pub fn interactive(mut self) -> Bench {
        self.interactive = true;
        self
    }

    /// The machine, with its VMs started.
    ///
    /// # Panics
    /// Where the bundle cannot be packed.
    pub fn boot<C: Chipset>(self) -> (Machine<FakeHost, C>, World) {
        let images: Vec<&[u8]> = self.guests.iter().map(|guest| guest.image.as_slice()).collect();
        let describe = |blobs: &[Blob]| Bundle {
            interactive: self.interactive,
            screen: false,
            log: LogLevel::Info,
            mitigations: Mitigations::Auto,
            vms: self.guests.iter().zip(blobs).map(|(guest, &kernel)| configuration(guest, kernel)).collect(),
        };
        let image: &'static [u8] = Vec::leak(config::encode(&images, describe).expect("a bundle"));
        let bundle = config::parse(image).expect("a bundle");
        let pool = FramePool::new(&[(Hpa(PAGE_2M), self.memory)]);
        let host = FakeHost {
            world: self.world.clone(),
            stock: FrameStock::default(),
            writable_code: false,
            within_reach: None,
        };
        (Machine::new(host, pool, bundle, image), self.world)
    }

    /// Runs to the end: the machine's status, and what has happened.
    pub fn run<C: Chipset>(self) -> (u32, World) {
        let (machine, world) = self.boot::<C>();
        let (status, _host) = machine.run();
        (status, world)
    }
}

fn configuration(guest: &Guest, kernel: Blob) -> VmConfig {
    VmConfig {
        name: guest.name.clone(),
        boot: Boot::Kernel(kernel),
        initrd: guest.initrd,
        modules: vec![],
        cmdline: String::new(),
        memory: guest.memory,
        backing: guest.backing,
        vcpus: 1,
        weight: guest.weight,
        cpu: CPU_HOST.into(),
        apic: guest.apic,
        cdrom: None,
        vga: None,
        hpet: false,
        fw_cfg: vec![],
        trace: guest.trace,
    }
}
