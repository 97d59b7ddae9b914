//! Redis Streams: `XADD`, `XREADGROUP` and `XACK`, pipelined.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use bytes::Bytes;

use super::{PIPELINE_LEN, Payload, connect};
use crate::payload::{Payload as _, Tally};
use crate::workload::{Outcome, Task, at_once};

pub(super) fn run(task: &Task) -> Outcome {
    let stream = format!("race-{}", std::process::id());
    let mut control = Client::new(task.port);
    control.call(&["XGROUP", "CREATE", &stream, "group", "0", "MKSTREAM"]);
    let (mut publisher, mut receiver) = (Client::new(task.port), Client::new(task.port));
    let outcome = at_once(
        vec![Box::new(|| publish(&mut publisher, &stream, task.messages))],
        vec![Box::new(|| receive(&mut receiver, &stream, task.messages))],
    );
    control.call(&["DEL", &stream]);
    outcome
}

/// Sends the next pipeline before it waits for the answers to the one before.
fn publish(client: &mut Client, stream: &str, messages: u64) {
    let mut unanswered = 0;
    for number in 0..messages {
        client.add(&[b"XADD", stream.as_bytes(), b"*", b"event", &Payload::make(number)]);
        if (number + 1) % PIPELINE_LEN == 0 || number + 1 == messages {
            client.send();
            (0..unanswered).for_each(|_| client.skip());
            unanswered = (number % PIPELINE_LEN) + 1;
        }
    }
    (0..unanswered).for_each(|_| client.skip());
}

/// Acknowledges what it got in the same write that asks for more.
fn receive(client: &mut Client, stream: &str, messages: u64) -> Tally {
    let mut tally = Tally::default();
    let count = PIPELINE_LEN.to_string();
    let ask: Vec<&[u8]> =
        ["XREADGROUP", "GROUP", "group", "reader", "COUNT", &count, "BLOCK", "0", "STREAMS"]
            .into_iter()
            .chain([stream, ">"])
            .map(str::as_bytes)
            .collect();
    client.add(&ask);
    client.send();
    while tally.count < messages {
        let ids = client.read_entries(|event| tally.add::<Payload>(event));
        let acked = [&b"XACK"[..], stream.as_bytes(), b"group"];
        client.add(&acked.into_iter().chain(ids.iter().map(Vec::as_slice)).collect::<Vec<_>>());
        if tally.count < messages {
            client.add(&ask);
        }
        client.send();
        assert_eq!(client.read_number(b':'), ids.len() as i64, "each was acknowledged");
    }
    tally
}

struct Client {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
    unsent: Vec<u8>,
    line: Vec<u8>,
}

impl Client {
    fn new(port: u16) -> Client {
        let writer = connect(port);
        let reader = BufReader::with_capacity(1 << 16, writer.try_clone().expect("a second handle"));
        Client { reader, writer, unsent: vec![], line: vec![] }
    }

    fn call(&mut self, words: &[&str]) {
        self.add(&words.iter().map(|word| word.as_bytes()).collect::<Vec<_>>());
        self.send();
        self.skip();
    }

    fn add(&mut self, words: &[&[u8]]) {
        let _ = write!(self.unsent, "*{}\r\n", words.len());
        for word in words {
            let _ = write!(self.unsent, "${}\r\n", word.len());
            self.unsent.extend_from_slice(word);
            self.unsent.extend_from_slice(b"\r\n");
        }
    }

    fn send(&mut self) {
        self.writer.write_all(&self.unsent).expect("the server reads");
        self.unsent.clear();
    }

    /// The next line, without its end; its first byte says what it is.
    fn read_line(&mut self) -> &[u8] {
        self.line.clear();
        self.reader.read_until(b'\n', &mut self.line).expect("the server answers");
        assert!(self.line.ends_with(b"\r\n"), "the server went away");
        assert!(!self.line.starts_with(b"-"), "the server says {}", String::from_utf8_lossy(&self.line));
        &self.line[..self.line.len() - 2]
    }

    fn read_number(&mut self, kind: u8) -> i64 {
        let line = self.read_line();
        let text = std::str::from_utf8(line).expect("a line of text");
        assert_eq!(text.as_bytes()[0], kind, "another answer than was asked for: {text}");
        text[1..].parse().expect("a number")
    }

    fn read_bulk(&mut self) -> Vec<u8> {
        let len = self.read_number(b'$');
        let mut bytes = vec![0; len as usize + 2];
        self.reader.read_exact(&mut bytes).expect("the server answers");
        bytes.truncate(len as usize);
        bytes
    }

    /// One answer that is no array.
    fn skip(&mut self) {
        let line = self.read_line();
        if line.starts_with(b"$") {
            let len: usize =
                std::str::from_utf8(&line[1..]).ok().and_then(|n| n.parse().ok()).expect("a length");
            let mut bytes = vec![0; len + 2];
            self.reader.read_exact(&mut bytes).expect("the server answers");
        }
    }

    /// `[[stream, [[id, [field, value]], ..]]]`: reads the values, and returns the ids.
    fn read_entries(&mut self, mut read: impl FnMut(&Bytes)) -> Vec<Vec<u8>> {
        assert_eq!(self.read_number(b'*'), 1);
        assert_eq!(self.read_number(b'*'), 2);
        self.read_bulk();
        let count = self.read_number(b'*');
        let mut ids = Vec::with_capacity(count as usize);
        for _ in 0..count {
            assert_eq!(self.read_number(b'*'), 2);
            ids.push(self.read_bulk());
            assert_eq!(self.read_number(b'*'), 2);
            self.read_bulk();
            read(&self.read_bulk().into());
        }
        ids
    }
}
