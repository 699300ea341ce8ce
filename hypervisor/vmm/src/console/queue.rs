//! Bytes on their way to the machine's serial port, each run of them with its owner.

use alloc::collections::VecDeque;

/// Who wrote a run of bytes: a VM by its number, or the hypervisor (`None`).
pub(super) type Owner = Option<usize>;

/// A first-in first-out queue that knows whose bytes it holds, so that each owner can be held to a share of its own.
#[derive(Debug, Default)]
pub(super) struct Queue {
    bytes: VecDeque<u8>,
    /// Owner and length of consecutive runs; the lengths sum up to `bytes.len()`.
    runs: VecDeque<(Owner, usize)>,
}

impl Queue {
    /// Appends `bytes` of `owner`.
    pub(super) fn push(&mut self, owner: Owner, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.bytes.extend(bytes);
        match self.runs.back_mut() {
            Some((last, length)) if *last == owner => *length += bytes.len(),
            _ => self.runs.push_back((owner, bytes.len())),
        }
    }

    /// Appends everything that `other` holds, which is empty afterwards.
    pub(super) fn append(&mut self, other: &mut Queue) {
        self.bytes.append(&mut other.bytes);
        self.runs.append(&mut other.runs);
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Gives bytes to `write`, from the front, until it takes fewer than offered; tells `taken` whose bytes went and
    /// how many.
    pub(super) fn drain(&mut self, write: &mut dyn FnMut(&[u8]) -> usize, taken: &mut dyn FnMut(Owner, usize)) {
        loop {
            let offered = self.bytes.as_slices().0;
            let length = offered.len();
            if length == 0 {
                return;
            }
            let count = write(offered).min(length);
            self.bytes.drain(..count);
            self.release(count, taken);
            if count < length {
                return;
            }
        }
    }

    /// Takes `count` bytes off the runs.
    fn release(&mut self, mut count: usize, taken: &mut dyn FnMut(Owner, usize)) {
        while let Some((owner, length)) = self.runs.front_mut() {
            let part = count.min(*length);
            taken(*owner, part);
            *length -= part;
            count -= part;
            if *length > 0 {
                return;
            }
            self.runs.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_and_tells_whose_bytes_went() {
        let mut queue = Queue::default();
        queue.push(Some(0), b"abc");
        queue.push(None, b"de");
        queue.push(None, b"f");
        let mut out = Vec::new();
        let mut counts = Vec::new();
        let mut room = 4;
        let mut write = |bytes: &[u8]| {
            let count = bytes.len().min(room);
            room -= count;
            out.extend_from_slice(&bytes[..count]);
            count
        };
        queue.drain(&mut write, &mut |owner, count| counts.push((owner, count)));
        assert!(!queue.is_empty());
        assert_eq!(counts, [(Some(0), 3), (None, 1)]);
        let mut write = |bytes: &[u8]| {
            out.extend_from_slice(bytes);
            bytes.len()
        };
        counts.clear();
        queue.drain(&mut write, &mut |owner, count| counts.push((owner, count)));
        assert!(queue.is_empty());
        assert_eq!(counts, [(None, 2)]);
        assert_eq!(out, b"abcdef");
    }
}
