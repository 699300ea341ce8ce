//! A ring of bytes between two that run at once: an interrupt's handler, or another processor, puts bytes in at one end,
//! and one reader takes them out at the other. Neither waits for the other, and neither can be stopped by it.
//!
//! Owns the order of the accesses that makes this sound, and nothing else: where the bytes come from and go to is for
//! those who hold the ends. Each end there is once ([`Pipe::ends`]), so that nobody can fill or empty it twice.
//!
//! `loom` goes through every way in which the accesses of both ends can follow each other, and finds the writer's count
//! without Release, the reader's without Acquire, a place that is freed before it was read, and one byte too many. What it
//! does not find, because in its memory no load is done late, is the other pair: the reader's count without Release.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --package lamina-vmm --lib loom_tests --target-dir target/loom`

#[cfg(not(loom))]
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

/// The ring itself: at most `N` bytes, in the order in which they came.
///
/// Two counts order all accesses to the bytes, and each has one writer: who sees a count sees, or may overwrite, the bytes
/// that it tells of. Neither wraps: at a byte each nanosecond that would take 500 years.
pub struct Pipe<const N: usize> {
    bytes: [AtomicU8; N],
    /// How many bytes were ever put in. Only the writer changes it.
    put: AtomicUsize,
    /// How many of them were taken out. Only the reader changes it.
    taken: AtomicUsize,
    /// The ends were given out.
    split: AtomicBool,
}

/// Where bytes go in.
pub struct Writer<'a, const N: usize> {
    pipe: &'a Pipe<N>,
    /// The count of bytes put in, which nobody else changes.
    put: usize,
}

/// Where bytes come out.
pub struct Reader<'a, const N: usize> {
    pipe: &'a Pipe<N>,
    /// The count of bytes taken out, which nobody else changes.
    taken: usize,
}

impl<const N: usize> Pipe<N> {
    /// An empty one.
    #[cfg(not(loom))]
    #[expect(clippy::new_without_default, reason = "for a static, which Default cannot make")]
    pub const fn new() -> Self {
        Pipe {
            bytes: [const { AtomicU8::new(0) }; N],
            put: AtomicUsize::new(0),
            taken: AtomicUsize::new(0),
            split: AtomicBool::new(false),
        }
    }

    /// An empty one.
    #[cfg(loom)]
    pub fn new() -> Self {
        let bytes = core::array::from_fn(|_| AtomicU8::new(0));
        Pipe { bytes, put: AtomicUsize::new(0), taken: AtomicUsize::new(0), split: AtomicBool::new(false) }
    }

    /// Its two ends; `None` where they were given out before.
    pub fn ends(&self) -> Option<(Writer<'_, N>, Reader<'_, N>)> {
        // Relaxed: nothing is handed over by it, it is a bit that only the first caller finds clear.
        let first = !self.split.swap(true, Ordering::Relaxed);
        first.then_some((Writer { pipe: self, put: 0 }, Reader { pipe: self, taken: 0 }))
    }

    /// Whether [`Reader::pop`] would give nothing: for the reader, who asks often. A byte that comes at the same time may be
    /// missed, and is seen the next time.
    #[inline]
    pub fn is_empty(&self) -> bool {
        // Relaxed: no byte is read on its strength.
        self.put.load(Ordering::Relaxed) == self.taken.load(Ordering::Relaxed)
    }
}

impl<const N: usize> Writer<'_, N> {
    /// Puts in as many of `bytes` as there is room for, from the first; returns how many. The reader sees all of these or
    /// none.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        // Acquire: what the reader took out before it made this room, it has loaded before we overwrite it.
        let room = N - (self.put - self.pipe.taken.load(Ordering::Acquire));
        let fitting = &bytes[..bytes.len().min(room)];
        for &byte in fitting {
            self.pipe.bytes[self.put % N].store(byte, Ordering::Relaxed);
            self.put += 1;
        }
        // Release: who sees these bytes counted sees what they are.
        self.pipe.put.store(self.put, Ordering::Release);
        fitting.len()
    }
}

impl<const N: usize> Reader<'_, N> {
    /// Takes the oldest byte out.
    pub fn pop(&mut self) -> Option<u8> {
        // Acquire: the byte behind the count is the one that the writer stored before it counted it.
        if self.pipe.put.load(Ordering::Acquire) == self.taken {
            return None;
        }
        let byte = self.pipe.bytes[self.taken % N].load(Ordering::Relaxed);
        self.taken += 1;
        // Release: the load above is done before the writer sees that its place is free.
        self.pipe.taken.store(self.taken, Ordering::Release);
        Some(byte)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::thread;
    use std::vec::Vec;

    #[test]
    fn its_ends_are_given_out_once() {
        let pipe = Pipe::<4>::new();
        assert!(pipe.ends().is_some());
        assert!(pipe.ends().is_none());
    }

    #[test]
    fn it_keeps_order_across_its_end_and_takes_no_more_than_fits() {
        let pipe = Pipe::<8>::new();
        let (mut writer, mut reader) = pipe.ends().unwrap();
        assert!(pipe.is_empty());
        assert_eq!(writer.push(b"abcdef"), 6);
        assert_eq!([reader.pop(), reader.pop(), reader.pop()], [Some(b'a'), Some(b'b'), Some(b'c')]);
        assert_eq!(writer.push(b"ghijklm"), 5, "three are in it");
        assert_eq!(writer.push(b"x"), 0);
        let rest: Vec<u8> = core::iter::from_fn(|| reader.pop()).collect();
        assert_eq!(rest, b"defghijk");
        assert!(pipe.is_empty());
    }

    /// Two threads of the host's, which `loom` does not need and Miri looks at.
    #[test]
    fn two_threads_lose_nothing() {
        const BYTES: usize = if cfg!(miri) { 300 } else { 100_000 };
        let pipe = Pipe::<64>::new();
        let (mut writer, mut reader) = pipe.ends().unwrap();
        let sent: Vec<u8> = (0..=250).cycle().take(BYTES).collect();
        let got = thread::scope(|scope| {
            scope.spawn(|| {
                let mut rest = &sent[..];
                while !rest.is_empty() {
                    rest = &rest[writer.push(&rest[..rest.len().min(7)])..];
                    thread::yield_now();
                }
            });
            let mut got = Vec::new();
            while got.len() < BYTES {
                got.extend(reader.pop());
            }
            got
        });
        assert!(got == sent);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::thread;
    use std::boxed::Box;
    use std::vec::Vec;

    /// An interrupt's handler puts in `pushes`, one after the other, while the run loop looks for bytes `looks` times and
    /// then, when the handler is done, takes what is left. What the handler was told is in must come out, in order.
    fn race<const N: usize>(pushes: &'static [&'static [u8]], looks: usize) {
        loom::model(move || {
            // A thread of loom's wants what lives for ever, as the hypervisor's static does.
            let pipe: &'static Pipe<N> = Box::leak(Box::new(Pipe::new()));
            let (mut writer, mut reader) = pipe.ends().unwrap();
            let handler = thread::spawn(move || {
                let mut taken = Vec::new();
                for bytes in pushes {
                    let count = writer.push(bytes);
                    taken.extend_from_slice(&bytes[..count]);
                }
                taken
            });
            let mut out = Vec::new();
            for _ in 0..looks {
                // As the run loop does it: the word that says whether, and then the byte.
                let seen = !pipe.is_empty();
                let byte = reader.pop();
                assert!(!seen || byte.is_some(), "it said that there was a byte");
                out.extend(byte);
            }
            let taken = handler.join().unwrap();
            out.extend(core::iter::from_fn(|| reader.pop()));
            assert_eq!(out, taken);
            assert!(pipe.is_empty());
        });
    }

    #[test]
    fn bytes_come_out_as_they_went_in() {
        race::<4>(&[b"ab", b"c"], 3);
    }

    #[test]
    fn a_full_ring_is_not_overwritten() {
        race::<2>(&[b"ab", b"cd", b"e"], 2);
    }

    #[test]
    fn a_ring_of_one_byte_goes_round() {
        race::<1>(&[b"a", b"b", b"c"], 2);
    }

    /// Two processors that both try to have the ends.
    #[test]
    fn one_of_two_gets_the_ends() {
        loom::model(|| {
            let pipe: &'static Pipe<1> = Box::leak(Box::new(Pipe::new()));
            let other = thread::spawn(|| pipe.ends().is_some());
            let here = pipe.ends().is_some();
            assert!(here ^ other.join().unwrap());
        });
    }
}
