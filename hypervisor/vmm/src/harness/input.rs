//! What comes from outside: images, bundles, keys, code. Whatever the bytes are, nothing panics and nothing happens by
//! halves.

use std::collections::BTreeSet;
use std::format;
use std::string::String;
use std::vec::Vec;

use bolero::check;
use bolero::generator::bolero_generator::TypeGenerator;
use bolero::generator::bolero_generator::driver::{ByteSliceDriver, Options};
use lamina_arch::addr::{Gpa, Hpa};
use lamina_arch::time::{Frequency, Tsc};

use crate::acpi::{self, Parts};
use crate::config::{Blob, MAGIC, blob_bytes, parse};
use crate::console::Console;
use crate::fake_memory::FakeMemory;
use crate::frames::FramePool;
use crate::layout::{FIRMWARE_TABLES, SMBIOS};
use crate::load::{self, LoadArgs};
use crate::memory::{Backing, GuestMemory};

const MEMORY: u64 = 4 << 20;

/// What the host says of an image is what the hypervisor finds, and a refused image writes nothing.
fn loads(image: &[u8]) {
    let args = LoadArgs { cmdline: "a=b", ..LoadArgs::default() };
    let checked = load::check(image, MEMORY, &args);
    let mut host = FakeMemory::new(8 << 20);
    let mut pool = FramePool::new(&[(Hpa(0x1000), (8 << 20) - 0x1000)]);
    let mut memory = GuestMemory::allocate(MEMORY, Backing::Eager, &mut pool, &mut host).unwrap();
    host.recording = true;
    let loaded = load::load(image, &args, &mut memory, &mut host);
    assert_eq!(loaded.is_ok(), checked.is_ok(), "the host and the hypervisor disagree");
    assert!(loaded.is_ok() || host.log.is_empty(), "a refused image was written");
}

/// `fields`, each at its place, in front of and among `bytes`.
fn image(bytes: &[u8], least: usize, fields: &[(usize, &[u8])]) -> Vec<u8> {
    let mut image = bytes.to_vec();
    image.resize(image.len().max(least), 0);
    for (at, field) in fields {
        image[*at..*at + field.len()].copy_from_slice(field);
    }
    image
}

type BzImage = (Vec<u8>, u8, u16);

fn bzimage((bytes, sectors, version): &BzImage) -> Vec<u8> {
    let version = if version & 1 == 0 { 0x20c } else { *version };
    let fields: [(usize, &[u8]); 4] =
        [(0x1f1, &[*sectors]), (0x1fe, &[0x55, 0xaa]), (0x202, b"HdrS"), (0x206, &version.to_le_bytes())];
    let mut whole = image(&[], 0x1f1, &[]);
    whole.extend_from_slice(bytes);
    image(&whole, 0x268 + usize::from(*sectors) * 16, &fields)
}

#[test]
fn bzimage_bytes() {
    check!().with_type::<BzImage>().for_each(|input| loads(&bzimage(input)));
}

type Multiboot1 = (Vec<u8>, u32, [u32; 5]);

fn multiboot1((bytes, flags, addresses): &Multiboot1) -> Vec<u8> {
    let flags = flags & 0x1_0007 | 0x1_0000;
    let sum = 0u32.wrapping_sub(0x1bad_b002).wrapping_sub(flags);
    let mut header = Vec::from(0x1bad_b002u32.to_le_bytes());
    header.extend(flags.to_le_bytes());
    header.extend(sum.to_le_bytes());
    for address in addresses {
        // Near 1 MiB more often than not.
        let address = if address & 1 == 0 { 0x10_0000 + (address >> 1 & 0xfff) } else { *address };
        header.extend(address.to_le_bytes());
    }
    header.extend_from_slice(bytes);
    header
}

#[test]
fn multiboot1_bytes() {
    check!().with_type::<Multiboot1>().for_each(|input| loads(&multiboot1(input)));
}

type Multiboot2 = (Vec<(u16, u16, Vec<u8>)>, Vec<u8>);

fn multiboot2((tags, rest): &Multiboot2) -> Vec<u8> {
    let mut body = Vec::new();
    for (kind, size, content) in tags {
        body.extend((kind % 12).to_le_bytes());
        body.extend((size & 1).to_le_bytes());
        let length = if size & 0x8000 == 0 { content.len() + 8 } else { usize::from(*size) };
        body.extend(u32::try_from(length).unwrap().to_le_bytes());
        body.extend_from_slice(content);
        body.resize(body.len().next_multiple_of(8), 0);
    }
    body.extend([0, 0, 0, 0, 8, 0, 0, 0]);
    let length = u32::try_from(body.len() + 16).unwrap();
    let mut header = Vec::from(0xe852_50d6u32.to_le_bytes());
    header.extend(0u32.to_le_bytes());
    header.extend(length.to_le_bytes());
    header.extend(0u32.wrapping_sub(0xe852_50d6).wrapping_sub(length).to_le_bytes());
    header.extend_from_slice(&body);
    header.extend_from_slice(rest);
    header
}

#[test]
fn multiboot2_bytes() {
    check!().with_type::<Multiboot2>().for_each(|input| loads(&multiboot2(input)));
}

type Elf = (Vec<u8>, u64, Vec<[u32; 5]>);

fn elf((bytes, entry, segments): &Elf) -> Vec<u8> {
    let mut whole = Vec::from(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0");
    whole.extend(if entry & 1 == 0 { 0x10_0000 + (entry >> 1 & 0xffff) } else { *entry }.to_le_bytes());
    whole.extend(64u64.to_le_bytes());
    whole.extend([0; 12]);
    whole.extend([64, 0, 56, 0, u8::try_from(segments.len() & 0xff).unwrap(), 0, 64, 0, 0, 0, 0, 0]);
    for [flags, offset, address, file, memory] in segments {
        let wild = flags & 8 != 0;
        let near = |value: u32, mask: u32| u64::from(if wild { value } else { value & mask });
        whole.extend(1u32.to_le_bytes());
        whole.extend((flags & 7).to_le_bytes());
        let at = 0x10_0000 + near(*address, 0x1f_ffff);
        for field in [near(*offset, 0xff), at, at, near(*file, 0xff), near(*memory, 0xffff), 1] {
            whole.extend(field.to_le_bytes());
        }
    }
    whole.extend_from_slice(bytes);
    whole
}

#[test]
fn elf_bytes() {
    check!().with_type::<Elf>().for_each(|input| loads(&elf(input)));
}

#[test]
fn bundle_bytes() {
    check!().with_type::<(Vec<u8>, i8, u64, u64)>().for_each(|(description, lie, offset, length)| {
        let mut bytes = Vec::from(MAGIC);
        let told = description.len().wrapping_add_signed(isize::from(*lie) / 64);
        bytes.extend(u32::try_from(told & 0xffff_ffff).unwrap().to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend_from_slice(description);
        if let Ok(bundle) = parse(&bytes) {
            for vm in &bundle.vms {
                let _ = crate::config::validate(vm, std::iter::empty(), bytes.len() as u64);
            }
        }
        let blob = Blob { offset: *offset, length: *length };
        if let Some(found) = blob_bytes(&bytes, blob) {
            assert_eq!(found.len() as u64, *length);
        }
    });
}

#[test]
fn console_input() {
    check!().with_type::<(bool, Vec<(u8, u8)>)>().for_each(|(interactive, steps)| {
        let mut console = Console::new(*interactive, Frequency::from_hz(1_000_000));
        let vm = console.add_vm("a");
        let (mut sent, mut now) = (0u64, 0);
        for &(kind, byte) in steps {
            now += u64::from(kind) * 1000;
            match kind % 5 {
                0 => sent += u64::from(console.guest_byte(vm, byte, Tsc(now))),
                1 => console.attach(vm),
                2 => console.detach(),
                _ => drop(console.input(byte)),
            }
            console.poll(Tsc(now));
            assert!(console.attached().is_none_or(|attached| attached == vm));
        }
        let mut out = Vec::new();
        // One byte at a time, as a slow line takes it.
        console.drain(&mut |bytes| {
            out.extend_from_slice(&bytes[..bytes.len().min(1)]);
            bytes.len().min(1)
        });
        if sent == 0 && !interactive {
            assert!(out.iter().all(|byte| byte.is_ascii()), "{}", String::from_utf8_lossy(&out));
        }
    });
}

#[test]
fn acpi_tables_fit_and_sum_to_zero() {
    check!().with_type::<(Vec<u8>, bool, bool, bool)>().for_each(|(ids, keyboard, vga, hpet)| {
        let ids = &ids[..ids.len().min(16)];
        let parts = Parts { apic_ids: ids, keyboard: *keyboard, vga: *vga, hpet: *hpet };
        let tables = acpi::build(&parts);
        assert!(FIRMWARE_TABLES.0 + tables.bytes.len() as u64 <= SMBIOS.0 && tables.rsdp == FIRMWARE_TABLES);
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
        let rsdp = tables.rsdp_bytes();
        assert_eq!((&rsdp[..8], sum(&rsdp[..20]), sum(rsdp)), (&b"RSD PTR "[..], 0, 0));
        assert!(Gpa(u64::from_le_bytes(rsdp[24..32].try_into().unwrap())) > FIRMWARE_TABLES);
    });
}

/// The files that a harness begins with: each gets another answer of the loader, as long as the harness makes the same
/// image of it.
#[test]
fn each_file_of_a_corpus_gets_an_answer_of_its_own() {
    fn answers<T: TypeGenerator>(harness: &str, image: impl Fn(&T) -> Vec<u8>) {
        let directory = format!("{}/src/harness/__fuzz__/harness__input__{harness}/corpus", env!("CARGO_MANIFEST_DIR"));
        let args = LoadArgs { cmdline: "a=b", ..LoadArgs::default() };
        let (mut answers, mut files) = (BTreeSet::new(), 0);
        for file in std::fs::read_dir(directory).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            let value = T::generate(&mut ByteSliceDriver::new(&bytes, &Options::default())).unwrap();
            let answer = match load::check(&image(&value), MEMORY, &args) {
                Ok(_) => String::from("loaded"),
                // Without its numbers.
                Err(error) => format!("{error:?}").chars().filter(|c| !c.is_ascii_digit()).collect(),
            };
            answers.insert(answer);
            files += 1;
        }
        assert!(files >= 6 && answers.len() == files, "{harness}: {files} files, {answers:#?}");
    }
    answers::<BzImage>("bzimage_bytes", bzimage);
    answers::<Multiboot1>("multiboot1_bytes", multiboot1);
    answers::<Multiboot2>("multiboot2_bytes", multiboot2);
}
