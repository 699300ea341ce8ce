//! The wire to the machine's serial port: one thread that reads, one that writes.
//!
//! The emulator connects to us, so that no port has to be guessed free. Input waits until the machine listens: what is
//! sent to a serial port before that is lost.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Event;
use super::lines::Transcript;

/// The real port's queue; more at once may be lost by a machine that is busy.
const PIECE: usize = 16;
/// The pause between two pieces.
const PAUSE: Duration = Duration::from_millis(4);

/// Holds input back until the machine listens.
#[derive(Debug, Default)]
struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn open(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_while(open, |open| !*open));
    }
}

/// The end of the wire that this program holds.
#[derive(Debug)]
pub struct Serial {
    address: SocketAddr,
    input: Sender<Vec<u8>>,
}

impl Serial {
    /// Waits for the machine to connect; what it sends goes to `events`. Before it begins a line with `first_words` it
    /// has set its port up; from then on the emulators hold back what it does not fetch.
    ///
    /// # Errors
    /// No socket can be had.
    pub fn listen(events: Sender<Event>, first_words: &'static str) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no socket for the serial port")?;
        let address = listener.local_addr()?;
        let (input, pieces) = channel();
        thread::spawn(move || serve(&listener, &events, pieces, first_words));
        Ok(Self { address, input })
    }

    /// The port that the machine is to connect to.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Where to send what is to be typed.
    pub fn input(&self) -> Sender<Vec<u8>> {
        self.input.clone()
    }
}

impl Drop for Serial {
    fn drop(&mut self) {
        // Ends a wait for a machine that never connected. One that has is in nobody's queue any more.
        drop(TcpStream::connect_timeout(&self.address, Duration::from_millis(100)));
    }
}

fn serve(listener: &TcpListener, events: &Sender<Event>, input: Receiver<Vec<u8>>, first_words: &str) {
    // Whoever waits for events learns from the channel's end that there will be none.
    let Ok((mut stream, _)) = listener.accept() else { return };
    drop(stream.set_nodelay(true));
    let gate = Arc::new(Gate::default());
    if let Ok(out) = stream.try_clone() {
        let gate = Arc::clone(&gate);
        thread::spawn(move || {
            gate.wait();
            write(out, &input);
        });
    }
    let mut watched = Some(Transcript::default());
    let mut buffer = vec![0; 4096];
    // An error is an end like any other: the emulator was killed, say.
    while let Ok(length) = stream.read(&mut buffer) {
        let Some(bytes) = buffer.get(..length).filter(|bytes| !bytes.is_empty()) else { break };
        if let Some(transcript) = &mut watched {
            transcript.push(bytes);
            if transcript.lines().iter().any(|line| line.starts_with(first_words)) {
                gate.open();
                watched = None;
            }
        }
        if events.send(Event::Serial(bytes.to_vec())).is_err() {
            break;
        }
    }
    drop(stream.shutdown(Shutdown::Both));
    gate.open();
    drop(events.send(Event::SerialClosed));
}

fn write(mut out: TcpStream, input: &Receiver<Vec<u8>>) {
    while let Ok(bytes) = input.recv() {
        for piece in bytes.chunks(PIECE) {
            if out.write_all(piece).is_err() {
                return;
            }
            thread::sleep(PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_both_ways_and_input_is_held_back() {
        let (sender, events) = channel();
        let serial = Serial::listen(sender, "[lamina] ").unwrap();
        let mut machine = TcpStream::connect((Ipv4Addr::LOCALHOST, serial.port())).unwrap();
        serial.input().send(b"typed".to_vec()).unwrap();
        machine.write_all(b"Booting\n[lamina]").unwrap();
        machine.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut buffer = [0; 5];
        assert!(machine.read(&mut buffer).is_err(), "input came before the machine listens");
        machine.set_read_timeout(None).unwrap();
        machine.write_all(b" hello\n").unwrap();
        machine.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"typed");
        drop(machine);
        let mut received = Vec::new();
        loop {
            match events.recv().unwrap() {
                Event::Serial(bytes) => received.extend(bytes),
                Event::SerialClosed => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(received, b"Booting\n[lamina] hello\n");
    }
}
