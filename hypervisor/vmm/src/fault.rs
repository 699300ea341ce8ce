//! Bugs on demand: places in the hypervisor where a build for that panics or hangs, to see what becomes of the others.
//!
//! Owns the list of places, and which of them is armed for which VM. In every other build [`point`] is nothing.

#[cfg(feature = "fault")]
use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

macro_rules! sites {
    ($($site:ident $name:literal $doc:literal,)*) => {
        /// A place.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Site {
            $(#[doc = $doc] $site,)*
        }

        impl Site {
            /// All of them.
            pub const ALL: &[Site] = &[$(Site::$site),*];

            /// What it is called.
            pub const fn name(self) -> &'static str {
                match self { $(Site::$site => $name),* }
            }
        }
    };
}

sites! {
    PicRead "pic-read" "A read of the 8259s.",
    PicWrite "pic-write" "A write to the 8259s.",
    PitRead "pit-read" "A read of the 8254.",
    PitWrite "pit-write" "A write to the 8254.",
    RtcRead "rtc-read" "A read of the real-time clock.",
    RtcWrite "rtc-write" "A write to the real-time clock.",
    UartRead "uart-read" "A read of the serial port.",
    UartWrite "uart-write" "A write to the serial port.",
    UartOutput "uart-output" "The serial port gives its output to the console.",
    KeyboardRead "keyboard-read" "A read of the keyboard's controller.",
    PmRead "pm-read" "A read of ACPI's registers.",
    PmWrite "pm-write" "A write to ACPI's registers.",
    PciRead "pci-read" "A read of PCI's configuration space.",
    PciWrite "pci-write" "A write to PCI's configuration space.",
    LapicRead "lapic-read" "A read of the local APIC.",
    LapicWrite "lapic-write" "A write to the local APIC.",
    IoApicRead "ioapic-read" "A read of the I/O APIC.",
    IoApicWrite "ioapic-write" "A write to the I/O APIC.",
    HpetRead "hpet-read" "A read of the HPET.",
    HpetWrite "hpet-write" "A write to the HPET.",
    Timer "timer" "A timer of the chipset's is due.",
    Acknowledge "acknowledge" "The processor takes an interrupt from the chipset.",
    Fetch "fetch" "The emulator fetches an instruction.",
    Execute "execute" "The emulator executes an instruction.",
    Load "load" "The emulator reads memory or a device.",
    Store "store" "The emulator writes memory or a device.",
    Walk "walk" "The guest's page tables are walked.",
    Cpuid "cpuid" "CPUID is answered.",
    Rdmsr "rdmsr" "RDMSR is answered.",
    Wrmsr "wrmsr" "WRMSR is answered.",
    PortIn "port-in" "IN is answered.",
    PortOut "port-out" "OUT is answered.",
    Nested "nested" "An access that the nested tables refused is looked at.",
    Touch "touch" "A page is backed at its first touch.",
    Hypercall "hypercall" "A hypercall is answered.",
    Control "control" "An access to a control register is answered.",
    Xsetbv "xsetbv" "XSETBV is answered.",
    Inject "inject" "An event is made ready for the guest.",
    Look "look" "Timers and interrupts are looked at on the short way.",
    HangDevice "hang-device" "A read of the 8254 never returns.",
    HangEmulator "hang-emulator" "The emulator never comes to an end.",
}

/// Most VMs that a place can be armed for.
#[cfg(feature = "fault")]
const VMS: usize = 64;
/// No place.
#[cfg(feature = "fault")]
const NONE: u8 = u8::MAX;
/// Which place is armed for each VM, by its position in [`Site::ALL`].
#[cfg(feature = "fault")]
static ARMED: [AtomicU8; VMS] = [const { AtomicU8::new(NONE) }; VMS];
/// The VM that is worked for, from 1; 0 for none.
#[cfg(feature = "fault")]
static WORKED_FOR: AtomicUsize = AtomicUsize::new(0);

/// A place is reached.
#[inline(always)]
#[cfg_attr(feature = "fault", track_caller)]
pub fn point(site: Site) {
    #[cfg(feature = "fault")]
    reached(site);
    #[cfg(not(feature = "fault"))]
    let _ = site;
}

/// What is done from here on is done for this VM, or for none.
#[inline(always)]
pub fn working_for(vm: Option<usize>) {
    #[cfg(feature = "fault")]
    WORKED_FOR.store(vm.map_or(0, |vm| vm + 1), Ordering::Relaxed);
    #[cfg(not(feature = "fault"))]
    let _ = vm;
}

/// Arms the place that a VM's command line names, as in `fault=pit-read`.
pub fn arm(vm: usize, cmdline: &str) {
    #[cfg(feature = "fault")]
    if let Some(name) = cmdline.split_ascii_whitespace().find_map(|word| word.strip_prefix("fault="))
        && let Some(at) = Site::ALL.iter().position(|site| site.name() == name)
        && let Some(armed) = ARMED.get(vm)
    {
        armed.store(u8::try_from(at).unwrap_or(NONE), Ordering::Relaxed);
    }
    #[cfg(not(feature = "fault"))]
    let _ = (vm, cmdline);
}

#[cfg(feature = "fault")]
#[track_caller]
fn reached(site: Site) {
    let Some(vm) = WORKED_FOR.load(Ordering::Relaxed).checked_sub(1) else { return };
    let Some(armed) = ARMED.get(vm) else { return };
    if armed.load(Ordering::Relaxed) != site as u8 {
        return;
    }
    armed.store(NONE, Ordering::Relaxed);
    if matches!(site, Site::HangDevice | Site::HangEmulator) {
        loop {
            core::hint::spin_loop();
        }
    }
    panic!("the fault {} was asked for", site.name());
}
