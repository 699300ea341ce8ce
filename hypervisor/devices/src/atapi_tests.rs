use super::*;
use alloc::boxed::Box;
use alloc::vec::Vec;
use proptest::prelude::*;

/// Three and a half blocks; each byte tells its block.
pub fn image() -> &'static [u8] {
    let bytes: Vec<u8> = (0..3 * 2048 + 1024usize).map(|n| (n / 2048).to_le_bytes()[0] + 1).collect();
    Box::leak(bytes.into_boxed_slice())
}

fn drive() -> Cdrom {
    Cdrom::new(image())
}

fn packet(bytes: &[u8]) -> [u8; 12] {
    let mut packet = [0; 12];
    packet[..bytes.len()].copy_from_slice(bytes);
    packet
}

fn ask(drive: &mut Cdrom, bytes: &[u8]) -> Vec<u8> {
    match drive.command(&packet(bytes)) {
        Ok(Answer::Bytes { bytes, length }) => bytes[..length].to_vec(),
        Ok(Answer::Done) => Vec::new(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn it_is_a_cd_rom_drive() {
    let inquiry = ask(&mut drive(), &[0x12, 0, 0, 0, 36, 0]);
    assert_eq!(inquiry.len(), 36);
    assert_eq!(inquiry[..5], [5, 0x80, 0, 0x21, 31]);
    assert_eq!(&inquiry[8..], b"LAMINA  CD-ROM          1.0 ");
    assert_eq!(ask(&mut drive(), &[0x12, 0, 0, 0, 5, 0]).len(), 5, "no more than was asked for");
    assert_eq!(drive().command(&packet(&[0x12, 1, 0x80, 0, 36])), Err(Sense::INVALID_FIELD));
    let identify = Cdrom::identify();
    assert_eq!(identify[..2], [0xc0, 0x85]);
    assert_eq!(&identify[54..70], b"ALIMANC -DOR M  ", "the bytes of each word are swapped");
    assert_eq!(identify[99] & 1, 0, "no DMA");
    assert_eq!((identify[126], identify[176]), (0, 0), "no DMA modes");
}

#[test]
fn its_capacity_counts_a_part_of_a_block_as_one() {
    assert_eq!(ask(&mut drive(), &[0x25]), [0, 0, 0, 3, 0, 0, 8, 0]);
}

#[test]
fn reads_are_ranges_of_the_medium() {
    let mut drive = drive();
    let read = |start, length| Ok(Answer::Medium { start, length });
    assert_eq!(drive.command(&packet(&[0x28, 0, 0, 0, 0, 1, 0, 0, 2])), read(2048, 4096));
    assert_eq!(drive.command(&packet(&[0xa8, 0, 0, 0, 0, 3, 0, 0, 0, 1])), read(3 * 2048, 2048));
    assert_eq!(drive.command(&packet(&[0x28, 0, 0, 0, 0, 4, 0, 0, 0])), Ok(Answer::Done));
    assert_eq!(drive.command(&packet(&[0x28, 0, 0, 0, 0, 3, 0, 0, 2])), Err(Sense::OUT_OF_RANGE));
    let most = [0xa8, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    assert_eq!(drive.command(&packet(&most)), Err(Sense::OUT_OF_RANGE));
    let mut data = [0xee; 4];
    drive.read_medium(3 * 2048 + 1022, &mut data);
    assert_eq!(data, [4, 4, 0, 0], "behind the image's end are zeros");
    drive.read_medium(u64::MAX, &mut data);
    assert_eq!(data, [0; 4]);
}

#[test]
fn errors_stay_until_they_are_asked_for_or_a_command_succeeds() {
    let mut drive = drive();
    assert_eq!(drive.command(&packet(&[0xff])), Err(Sense::INVALID_COMMAND));
    let sense = ask(&mut drive, &[0x03, 0, 0, 0, 18, 0]);
    assert_eq!((sense.len(), sense[0], sense[2], sense[7], sense[12]), (18, 0x70, 5, 10, 0x20));
    assert_eq!(ask(&mut drive, &[0x03, 0, 0, 0, 18, 0])[2], 0);
    assert_eq!(drive.command(&packet(&[0xff])), Err(Sense::INVALID_COMMAND));
    assert_eq!(drive.command(&packet(&[0x00])), Ok(Answer::Done));
    assert_eq!(ask(&mut drive, &[0x03, 0, 0, 0, 18, 0])[2], 0);
}

#[test]
fn the_table_of_contents_has_one_track_of_data() {
    let mut drive = drive();
    let toc = ask(&mut drive, &[0x43, 0, 0, 0, 0, 0, 0, 0x03, 0x24]);
    assert_eq!(toc, [0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0, 0, 0x14, 0xaa, 0, 0, 0, 0, 4]);
    let times = ask(&mut drive, &[0x43, 2, 0, 0, 0, 0, 0xaa, 0, 12]);
    assert_eq!(times, [0, 10, 1, 1, 0, 0x14, 0xaa, 0, 0, 0, 2, 4], "two seconds of pre-gap");
    let session = ask(&mut drive, &[0x43, 0, 1, 0, 0, 0, 0, 0, 12]);
    assert_eq!(session, [0, 10, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0]);
    assert_eq!(ask(&mut drive, &[0x43, 0, 0, 0, 0, 0, 0, 0, 12, 0x40]), session, "the format where it was once");
    assert_eq!(drive.command(&packet(&[0x43, 0, 2, 0, 0, 0, 0, 0, 12])), Err(Sense::INVALID_FIELD));
}

#[test]
fn the_tray_opens_unless_it_is_locked() {
    let mut drive = drive();
    assert_eq!(drive.command(&packet(&[0x1e, 0, 0, 0, 1])), Ok(Answer::Done));
    assert_eq!(drive.command(&packet(&[0x1b, 0, 0, 0, 2])), Err(Sense::REMOVAL_PREVENTED));
    assert_eq!(drive.command(&packet(&[0x1e, 0, 0, 0, 0])), Ok(Answer::Done));
    assert_eq!(ask(&mut drive, &[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8]), [0, 6, 4, 0x10, 0, 2, 0, 0]);
    assert_eq!(drive.command(&packet(&[0x1b, 0, 0, 0, 2])), Ok(Answer::Done));
    assert_eq!(drive.command(&packet(&[0x00])), Err(Sense::NO_MEDIUM));
    assert_eq!(drive.command(&packet(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1])), Err(Sense::NO_MEDIUM));
    assert_eq!(ask(&mut drive, &[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8]), [0, 6, 4, 0x10, 0, 1, 0, 0]);
    assert_eq!(drive.command(&packet(&[0x1b, 0, 0, 0, 3])), Ok(Answer::Done));
    assert_eq!(drive.command(&packet(&[0x00])), Ok(Answer::Done));
    assert_eq!(Cdrom::new(&[]).command(&packet(&[0x00])), Err(Sense::NO_MEDIUM));
}

#[test]
fn mode_pages_and_configuration() {
    let mut drive = drive();
    let capabilities = ask(&mut drive, &[0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 128]);
    assert_eq!((capabilities.len(), capabilities[1], capabilities[8], capabilities[9]), (30, 28, 0x2a, 0x14));
    let recovery = ask(&mut drive, &[0x5a, 0, 0x01, 0, 0, 0, 0, 0, 128]);
    assert_eq!(recovery, [0, 14, 1, 0, 0, 0, 0, 0, 1, 6, 0, 0, 0, 0, 0, 0]);
    assert_eq!(drive.command(&packet(&[0x5a, 0, 0x0e, 0, 0, 0, 0, 0, 128])), Err(Sense::INVALID_FIELD));
    let configuration = ask(&mut drive, &[0x46, 0, 0, 0, 0, 0, 0, 0, 255]);
    assert_eq!((configuration.len(), configuration[3], configuration[7]), (32, 28, 8));
    let core = ask(&mut drive, &[0x46, 2, 0, 1, 0, 0, 0, 0, 255]);
    assert_eq!((core.len(), &core[8..]), (16, &[0, 1, 3, 4, 0, 0, 0, 2][..]));
}

proptest! {
    #[test]
    fn no_packet_panics_and_no_answer_is_outside_of_the_medium(packets in prop::collection::vec(
        any::<[u8; 12]>(), 0..50), codes in prop::collection::vec(prop::sample::select(vec![
            0x00u8, 0x03, 0x12, 0x1b, 0x1e, 0x25, 0x28, 0xa8, 0x2b, 0x43, 0x46, 0x4a, 0x51, 0x5a, 0xbd, 0xbb]), 50)) {
        let mut drive = drive();
        for (mut packet, code) in packets.into_iter().zip(codes) {
            packet[0] = code;
            match drive.command(&packet) {
                Ok(Answer::Medium { start, length }) => prop_assert!(start + length <= 4 * 2048),
                Ok(Answer::Bytes { length, .. }) => prop_assert!(0 < length && length <= ANSWER_MAX),
                Ok(Answer::Done) => {}
                Err(sense) => prop_assert!(sense.key != 0),
            }
        }
    }
}
