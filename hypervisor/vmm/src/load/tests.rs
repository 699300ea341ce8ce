#![allow(clippy::cast_possible_truncation)]

use lamina_arch::addr::{Hpa, PAGE_1G, PAGE_2M};
use lamina_arch::cr::{Cr0, Cr4, Efer};
use lamina_arch::regs::Gpr;
use proptest::prelude::*;

use super::*;
use crate::fake_memory::FakeMemory;
use crate::frames::FramePool;
use crate::layout::FIRMWARE_TABLES;
use crate::memory::{Backing, E820Kind, e820_of};

mod bzimage;
mod elf;
mod multiboot1;
mod multiboot2;

const MIB: u64 = 1 << 20;

/// A machine with one VM.
struct Bench {
    host: FakeMemory,
    memory: GuestMemory,
}

impl Bench {
    fn new(memory: u64) -> Bench {
        let mut host = FakeMemory::new(memory + 2 * MIB);
        let mut pool = FramePool::new(&[(Hpa(0), memory + 2 * MIB)]);
        let memory = GuestMemory::allocate(memory, Backing::Eager, &mut pool, &mut host).unwrap();
        Bench { host, memory }
    }

    fn load(&mut self, image: &[u8], args: &LoadArgs<'_>) -> Result<InitialState, LoadError> {
        let checked = check(image, self.memory.size(), args);
        let loaded = load(image, args, &mut self.memory, &mut self.host);
        assert_eq!(checked, loaded.clone().map(|_| ()), "the host and the hypervisor disagree");
        loaded
    }

    fn bytes(&self, gpa: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read(&self.host, Gpa(gpa), &mut bytes).unwrap();
        bytes
    }

    fn number(&self, gpa: u64, length: usize) -> u64 {
        self.bytes(gpa, length).iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
    }

    /// Translates a linear address by the page tables at `cr3` (SDM vol. 3, "4-Level Paging and 5-Level Paging").
    fn linear(&self, cr3: u64, linear: u64) -> Option<u64> {
        let mut table = cr3;
        for shift in [39, 30, 21, 12] {
            let entry = self.number(table + (linear >> shift & 511) * 8, 8);
            if entry & 3 != 3 {
                return None;
            }
            table = entry & 0x000f_ffff_ffff_f000;
            if shift == 12 || entry & 0x80 != 0 {
                return Some(table | linear & ((1 << shift) - 1));
            }
        }
        None
    }

    fn c_string(&self, gpa: u64) -> String {
        (gpa..).map(|at| self.bytes(at, 1)[0]).take_while(|&byte| byte != 0).map(char::from).collect()
    }
}

fn gpr(state: &InitialState, register: Gpr) -> u64 {
    state.gprs.iter().find(|(name, _)| *name == register).map_or(0, |&(_, value)| value)
}

fn set(image: &mut [u8], offset: usize, bytes: &[u8]) {
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// Checks the promises of a plan: every piece in memory that the guest may use, none over another, none made by us where
/// trampolines go.
fn check_plan(image: &[u8], memory: u64, args: &LoadArgs<'_>) -> Result<(), TestCaseError> {
    let Ok(plan) = plan(image, memory, args) else { return Ok(()) };
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (gpa, piece) in &plan.pieces {
        let length = piece.bytes().len() as u64;
        if length == 0 {
            continue;
        }
        let usable = e820_of(memory).any(|entry| entry.kind == E820Kind::Ram && entry.region.holds(*gpa, length));
        prop_assert!(usable, "{gpa:?}+{length:#x} is not usable memory");
        prop_assert!(matches!(piece, Piece::Given(_)) || *gpa >= BOOT_DATA_FLOOR, "boot data at {gpa:?}");
        ranges.push((gpa.0, gpa.0 + length));
    }
    ranges.sort_unstable();
    prop_assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "pieces overlap: {ranges:x?}");
    let entry = plan.state.rip;
    prop_assert!(e820_of(memory).any(|range| range.region.holds(Gpa(entry), 1)), "entry {entry:#x}");
    Ok(())
}

/// Every image that starts as `image` does and ends too early is refused, and none makes us panic.
fn refuses_every_prefix(image: &[u8], memory: u64, args: &LoadArgs<'_>) {
    assert_eq!(check(image, memory, args), Ok(()));
    for length in 0..image.len() {
        assert!(check(&image[..length], memory, args).is_err(), "a prefix of {length} bytes is taken");
    }
}

/// Values that a liar would put into a field of `width` bytes.
fn extremes(width: usize) -> Vec<u64> {
    let mask = u64::MAX >> (64 - 8 * width);
    let mut values = vec![0, 1, 2, 0xfff, 0x1000, mask, mask - 1, mask.saturating_sub(0xfff), mask / 2, mask / 2 + 1];
    values.extend([0x10_0000, PAGE_1G, 1 << 32, u64::from(u32::MAX), 1 << 63].map(|value| value & mask));
    values
}

/// Puts every extreme into every field, one at a time, and checks the plan where there still is one.
fn survives_lies(image: &[u8], fields: &[(usize, usize)], memory: u64, args: &LoadArgs<'_>) {
    for &(offset, width) in fields {
        for value in extremes(width) {
            let mut lying = image.to_vec();
            set(&mut lying, offset, &value.to_le_bytes()[..width]);
            check_plan(&lying, memory, args).unwrap();
        }
    }
}

/// Random changes in the first bytes of an image.
fn mutations(within: usize) -> impl Strategy<Value = Vec<(usize, u8)>> {
    prop::collection::vec((0..within, any::<u8>()), 0..12)
}

fn mutate(image: &[u8], mutations: &[(usize, u8)]) -> Vec<u8> {
    let mut mutated = image.to_vec();
    for &(offset, byte) in mutations {
        mutated[offset] = byte;
    }
    mutated
}

#[test]
fn command_lines_end_where_they_say() {
    let args = LoadArgs { cmdline: "a\0b", ..LoadArgs::default() };
    assert_eq!(check(&elf::image(), 16 * MIB, &args), Err(LoadError::ZeroInCommandLine));
}

#[test]
fn nothing_is_of_no_known_format() {
    assert_eq!(identify(&[]), Err(LoadError::UnknownFormat));
    assert_eq!(identify(&[0; 10_000]), Err(LoadError::UnknownFormat));
    assert_eq!(identify(b"\x7fELF\x01"), Err(LoadError::UnknownFormat));
}

proptest! {
    #[test]
    fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..3000), memory in 0u64..8) {
        check_plan(&bytes, memory * PAGE_1G / 2, &LoadArgs::default())?;
    }
}
