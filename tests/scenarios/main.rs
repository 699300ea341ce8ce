//! The boot scenarios: one file each, run as ordinary tests (see `docs/guide/testing.md`).

mod acpi;
mod apic;
mod audit;
mod checker;
mod clocks;
mod conformance;
mod console;
mod contained;
mod counts;
mod cpu_models;
mod debian_amd64;
mod debian_beside_hog;
mod debian_i386;
mod debian_i386_pae;
mod debian_power_off;
mod debian_reboot;
mod demo;
mod diff;
mod dmesg;
mod dying_beside_living;
mod exit_statuses;
mod firmware_linux;
mod five_levels;
mod fpu_pair;
mod fuzz;
mod greeter;
mod grub_multiboot;
mod hello;
mod hello_status;
mod hog;
mod hog_beside_ticker;
mod ipxe;
mod large_memory;
mod lazy;
mod machine_check;
mod memtest_ia32;
mod memtest_x64;
mod mitigations;
mod multiboot;
mod outside;
mod outside_opinion;
mod planted_bugs;
mod polled_serial;
mod reference_clocks;
mod refused_bundle;
mod refused_on_host;
mod refused_processor;
mod refused_vms;
mod seabios;
mod ticker;
mod triple;
mod uefi;
mod watchdog;

fn main() {
    lamina_tests::main(&[
        refused_on_host::SCENARIO,
        acpi::SCENARIO,
        apic::SCENARIO,
        hello::SCENARIO,
        hello_status::SCENARIO,
        ticker::SCENARIO,
        hog::SCENARIO,
        greeter::SCENARIO,
        fpu_pair::SCENARIO,
        checker::SCENARIO,
        conformance::SCENARIO,
        clocks::SCENARIO,
        clocks::LONG,
        reference_clocks::SCENARIO,
        triple::SCENARIO,
        outside::SCENARIO,
        outside_opinion::SCENARIO,
        outside_opinion::CONTAINED,
        outside_opinion::PLANTED,
        exit_statuses::SCENARIO,
        console::SCENARIO,
        polled_serial::SCENARIO,
        contained::SCENARIO,
        watchdog::SCENARIO,
        counts::SCENARIO,
        mitigations::SCENARIO,
        cpu_models::SCENARIO,
        five_levels::SCENARIO,
        diff::SCENARIO,
        diff::LINUX,
        diff::LONG,
        multiboot::SCENARIO,
        dying_beside_living::SCENARIO,
        hog_beside_ticker::SCENARIO,
        fuzz::USAGE,
        fuzz::SCENARIO,
        fuzz::LONG,
        refused_vms::SCENARIO,
        refused_bundle::SCENARIO,
        audit::SCENARIO,
        audit::PLANTED,
        planted_bugs::ON_HOST,
        planted_bugs::ON_MACHINE,
        refused_processor::SCENARIO,
        uefi::SCENARIO,
        lazy::SCENARIO,
        large_memory::SCENARIO,
        machine_check::SCENARIO,
        demo::SCENARIO,
        seabios::SCENARIO,
        ipxe::SCENARIO,
        grub_multiboot::SCENARIO,
        firmware_linux::SCENARIO,
        debian_power_off::SCENARIO,
        debian_reboot::SCENARIO,
        debian_beside_hog::SCENARIO,
        debian_i386_pae::SCENARIO,
        debian_i386::SCENARIO,
        dmesg::SCENARIO,
        debian_amd64::SCENARIO,
        memtest_x64::SCENARIO,
        memtest_ia32::SCENARIO,
    ])
}
