//! One virtual machine under KVM: memory, the Multiboot image in it, a processor at its entry, and a serial port.
//!
//! Interrupt controllers and timer are KVM's own. Every other port reads as all ones.

use std::io::Write;

use anyhow::{Context, Result, bail};
use elf::ElfBytes;
use elf::abi::PT_LOAD;
use elf::endian::LittleEndian;
use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_MAX_CPUID_ENTRIES, kvm_guest_debug, kvm_pit_config, kvm_segment,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// The first serial port, and its line status: the transmitter is always empty.
const COM1: u16 = 0x3f8;
const LINE_STATUS: u16 = COM1 + 5;
/// Its line control; with the highest bit, the rate is where the data else is.
const LINE_CONTROL: u16 = COM1 + 3;
const DIVISOR_LATCH: u8 = 1 << 7;
const EMPTY: u8 = 0x60;
/// Where `guest/bench` yields when it does not run under Lamina.
const YIELD: u16 = 0x5e0;
/// Where a guest writes its status at its end.
const STATUS: u16 = 0xf4;

/// What the Multiboot specification (0.6.96) leaves in EAX, and the flag of a command line.
const MAGIC: u64 = 0x2bad_b002;
const HAS_COMMAND_LINE: u32 = 1 << 2;
const INFORMATION: usize = 0x9000;
const COMMAND_LINE: usize = 0xa000;
/// Below 4 GiB, where KVM keeps a task-state segment of its own.
const TASK_STATE: usize = 0xfffb_d000;
/// CPUID leaf 1, ECX, what KVM leaves to its user: the local APIC's timer has a deadline, and there is a hypervisor.
const LEAF1_ECX: u32 = 1 << 24 | 1 << 31;

/// Memory given to a VM.
struct Memory {
    start: *mut u8,
    length: usize,
}

impl Memory {
    /// Memory that is zero. Where it is `present`, it is there from the start; in pages of 4 KiB in any case.
    fn new(length: usize, present: bool) -> Result<Memory> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a mapping of its own at an address of the kernel's choice.
        let start = unsafe { mmap_anonymous(core::ptr::null_mut(), length, protection, MapFlags::PRIVATE) }?;
        // SAFETY: just mapped; both say how it is backed, and change no byte.
        unsafe {
            madvise(start, length, Advice::LinuxNoHugepage)?;
            if present {
                madvise(start, length, Advice::LinuxPopulateWrite)?;
            }
        }
        Ok(Memory { start: start.cast(), length })
    }

    fn write(&mut self, at: usize, bytes: &[u8]) -> Result<()> {
        let end = at.checked_add(bytes.len()).filter(|&end| end <= self.length);
        end.context("the image does not fit")?;
        // SAFETY: inside the mapping, and no guest runs while `&mut self` is there.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.add(at), bytes.len()) };
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and the VM that used it is gone: it is dropped first.
        let _ = unsafe { munmap(self.start.cast(), self.length) };
    }
}

/// A virtual machine. Fields are dropped in this order.
pub struct Vm {
    vcpu: VcpuFd,
    _vm: VmFd,
    _memory: Memory,
}

impl Vm {
    /// Makes a VM that is ready to enter `image`.
    pub fn new(memory: usize, present: bool, image: &[u8], cmdline: &str) -> Result<Vm> {
        let mut memory = Memory::new(memory, present)?;
        let entry = place(&mut memory, image, cmdline)?;
        let kvm = Kvm::new().context("/dev/kvm")?;
        let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
        vm.set_tss_address(TASK_STATE).context("KVM_SET_TSS_ADDR")?;
        vm.create_irq_chip().context("KVM_CREATE_IRQCHIP")?;
        vm.create_pit2(kvm_pit_config::default()).context("KVM_CREATE_PIT2")?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: memory.length as u64,
            userspace_addr: memory.start.expose_provenance() as u64,
        };
        // SAFETY: the mapping lives as long as the VM, and nothing of this program looks at it once the guest runs.
        unsafe { vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")?;
        let vcpu = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
        let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("KVM_GET_SUPPORTED_CPUID")?;
        for leaf in cpuid.as_mut_slice().iter_mut().filter(|leaf| leaf.function == 1) {
            leaf.ecx |= LEAF1_ECX;
        }
        vcpu.set_cpuid2(&cpuid).context("KVM_SET_CPUID2")?;
        enter_at(&vcpu, entry)?;
        Ok(Vm { vcpu, _vm: vm, _memory: memory })
    }

    /// Runs one instruction.
    pub fn step(&mut self) -> Result<()> {
        let control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
        self.vcpu.set_guest_debug(&kvm_guest_debug { control, ..Default::default() }).context("KVM_SET_GUEST_DEBUG")?;
        match self.vcpu.run()? {
            VcpuExit::Debug(_) => Ok(()),
            other => bail!("the guest was to execute one instruction, and exited with {other:?}"),
        }
    }

    /// Runs the guest to its end, and prints what it prints.
    pub fn run(&mut self) -> Result<()> {
        let mut line = Vec::new();
        let mut latched = false;
        loop {
            match self.vcpu.run()? {
                VcpuExit::IoIn(LINE_STATUS, data) => data.fill(EMPTY),
                VcpuExit::IoIn(_, data) | VcpuExit::MmioRead(_, data) => data.fill(0xff),
                VcpuExit::IoOut(LINE_CONTROL, [control, ..]) => latched = control & DIVISOR_LATCH != 0,
                VcpuExit::IoOut(COM1, _) if latched => {}
                VcpuExit::IoOut(COM1, data) => {
                    line.extend(data.iter().filter(|&&byte| byte != b'\r'));
                    if line.ends_with(b"\n") {
                        std::io::stdout().write_all(&line)?;
                        line.clear();
                    }
                }
                VcpuExit::IoOut(YIELD, _) => rustix::thread::sched_yield(),
                VcpuExit::IoOut(STATUS, [0, ..]) => return Ok(()),
                VcpuExit::IoOut(STATUS, status) => bail!("the guest ended with status {status:?}"),
                VcpuExit::IoOut(..) | VcpuExit::MmioWrite(..) => {}
                other => bail!("the guest exited with {other:?}"),
            }
        }
    }
}

/// Puts the image and its command line into memory; its entry.
fn place(memory: &mut Memory, image: &[u8], cmdline: &str) -> Result<u64> {
    let elf = ElfBytes::<LittleEndian>::minimal_parse(image).context("the image is no ELF file")?;
    for segment in elf.segments().context("the image has no segments")?.iter().filter(|s| s.p_type == PT_LOAD) {
        // What is zero behind the bytes, memory is by itself.
        memory.write(usize::try_from(segment.p_paddr)?, elf.segment_data(&segment)?)?;
    }
    memory.write(INFORMATION, &HAS_COMMAND_LINE.to_le_bytes())?;
    memory.write(INFORMATION + 16, &u32::try_from(COMMAND_LINE)?.to_le_bytes())?;
    memory.write(COMMAND_LINE, cmdline.as_bytes())?;
    Ok(elf.ehdr.e_entry)
}

/// The processor as Multiboot has it: protected mode, flat segments, no paging.
fn enter_at(vcpu: &VcpuFd, entry: u64) -> Result<()> {
    let mut system = vcpu.get_sregs().context("KVM_GET_SREGS")?;
    let data = kvm_segment {
        limit: u32::MAX,
        selector: 16,
        type_: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    };
    system.cs = kvm_segment { selector: 8, type_: 11, ..data };
    for segment in [&mut system.ds, &mut system.es, &mut system.fs, &mut system.gs, &mut system.ss] {
        *segment = data;
    }
    system.cr0 |= 1;
    vcpu.set_sregs(&system).context("KVM_SET_SREGS")?;
    let mut registers = vcpu.get_regs().context("KVM_GET_REGS")?;
    registers.rax = MAGIC;
    registers.rbx = INFORMATION as u64;
    registers.rip = entry;
    registers.rflags = 2;
    vcpu.set_regs(&registers).context("KVM_SET_REGS")
}
