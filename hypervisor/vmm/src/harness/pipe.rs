//! The ring between two that run at once, here one after the other: it is a queue, whatever is done with it.

use std::collections::VecDeque;
use std::vec::Vec;

use bolero::check;

use crate::pipe::Pipe;

const CAPACITY: usize = 16;

#[test]
fn a_pipe_is_a_bounded_queue() {
    check!().with_type::<Vec<(u8, Vec<u8>)>>().for_each(|steps| {
        let pipe = Pipe::<CAPACITY>::new();
        let (mut writer, mut reader) = pipe.ends().unwrap();
        let mut queue = VecDeque::new();
        for (pops, bytes) in steps {
            let taken = writer.push(bytes);
            assert_eq!(taken, bytes.len().min(CAPACITY - queue.len()));
            queue.extend(&bytes[..taken]);
            for _ in 0..pops % 24 {
                assert_eq!(reader.pop(), queue.pop_front());
            }
            assert_eq!(pipe.is_empty(), queue.is_empty());
        }
    });
}
