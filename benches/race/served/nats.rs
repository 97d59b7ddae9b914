//! JetStream: publishes with their acknowledgements, and a pull consumer that acknowledges each message, pipelined.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use bytes::Bytes;

use super::{PIPELINE_LEN, Payload, connect};
use crate::payload::{Payload as _, Tally};
use crate::workload::{Outcome, Task, at_once};

pub(super) fn run_in_memory(task: &Task) -> Outcome {
    run(task, "memory")
}

pub(super) fn run_on_disk(task: &Task) -> Outcome {
    run(task, "file")
}

fn run(task: &Task, storage: &str) -> Outcome {
    let stream = format!("race-{}", std::process::id());
    let mut control = Client::new(task.port, "control");
    let config = format!(r#"{{"name":"{stream}","subjects":["{stream}"],"storage":"{storage}"}}"#);
    control.request(&format!("$JS.API.STREAM.CREATE.{stream}"), &config);
    let config = format!(
        r#"{{"stream_name":"{stream}","config":{{"durable_name":"reader","ack_policy":"explicit","max_ack_pending":10000}}}}"#
    );
    control.request(&format!("$JS.API.CONSUMER.DURABLE.CREATE.{stream}.reader"), &config);
    let (mut publisher, mut receiver) =
        (Client::new(task.port, "publisher"), Client::new(task.port, "receiver"));
    let outcome = at_once(
        vec![Box::new(|| publish(&mut publisher, &stream, task.messages))],
        vec![Box::new(|| receive(&mut receiver, &stream, task.messages))],
    );
    control.request(&format!("$JS.API.STREAM.DELETE.{stream}"), "");
    outcome
}

/// Sends the next pipeline before it waits for the answers to the one before.
fn publish(client: &mut Client, stream: &str, messages: u64) {
    let mut unanswered = 0;
    for number in 0..messages {
        client.add(stream, true, &Payload::make(number));
        if (number + 1) % PIPELINE_LEN == 0 || number + 1 == messages {
            client.send();
            (0..unanswered).for_each(|_| client.expect_receipt());
            unanswered = (number % PIPELINE_LEN) + 1;
        }
    }
    (0..unanswered).for_each(|_| client.expect_receipt());
}

/// Two requests are always open, so that the server never waits for one.
fn receive(client: &mut Client, stream: &str, messages: u64) -> Tally {
    let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.reader");
    let ask = format!(r#"{{"batch":{PIPELINE_LEN}}}"#);
    let mut tally = Tally::default();
    client.add(&subject, true, ask.as_bytes());
    client.add(&subject, true, ask.as_bytes());
    client.send();
    while tally.count < messages {
        let message = client.read_message();
        tally.add::<Payload>(&message.body);
        client.add(&message.reply, false, b""); // nothing is an ack
        if tally.count.is_multiple_of(PIPELINE_LEN) {
            client.add(&subject, true, ask.as_bytes());
        }
        if client.reader.buffer().is_empty() {
            client.send();
        }
    }
    client.send();
    // The acks are taken when what was sent after them is answered.
    client.ping();
    tally
}

struct Client {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
    unsent: Vec<u8>,
    line: String,
    /// Where answers come in.
    inbox: String,
}

struct Message {
    reply: String,
    body: Bytes,
}

impl Client {
    fn new(port: u16, name: &str) -> Client {
        let writer = connect(port);
        let reader = BufReader::with_capacity(1 << 16, writer.try_clone().expect("a second handle"));
        let inbox = format!("_INBOX.{}.{name}", std::process::id());
        let mut client = Client { reader, writer, unsent: vec![], line: String::new(), inbox };
        assert!(client.read_line().starts_with("INFO "), "it is a NATS server");
        client
            .unsent
            .extend_from_slice(b"CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true}\r\n");
        let subscribe = format!("SUB {} 1\r\n", client.inbox);
        client.unsent.extend_from_slice(subscribe.as_bytes());
        client.ping();
        client
    }

    fn add(&mut self, subject: &str, is_answered: bool, body: &[u8]) {
        let reply = if is_answered { &*self.inbox } else { "" };
        let _ = write!(self.unsent, "PUB {subject} {reply} {}\r\n", body.len());
        self.unsent.extend_from_slice(body);
        self.unsent.extend_from_slice(b"\r\n");
    }

    fn send(&mut self) {
        self.writer.write_all(&self.unsent).expect("the server reads");
        self.unsent.clear();
    }

    /// Waits until the server has read all that was sent.
    fn ping(&mut self) {
        self.unsent.extend_from_slice(b"PING\r\n");
        self.send();
        while self.read_line() != "PONG" {
            if let Some(len) = self.body_len() {
                self.read_body(len);
            }
        }
    }

    fn request(&mut self, subject: &str, body: &str) {
        self.add(subject, true, body.as_bytes());
        self.send();
        let answer = self.read_message().body;
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.contains("\"error\""), "{subject}: {answer}");
    }

    fn expect_receipt(&mut self) {
        let answer = self.read_message().body;
        assert!(answer.starts_with(b"{\"stream\""), "not published: {}", String::from_utf8_lossy(&answer));
    }

    fn read_line(&mut self) -> &str {
        self.line.clear();
        self.reader.read_line(&mut self.line).expect("the server answers");
        assert!(self.line.ends_with("\r\n"), "the server went away");
        assert!(!self.line.starts_with("-ERR"), "the server says {}", self.line);
        self.line.truncate(self.line.len() - 2);
        &self.line
    }

    /// Of the message that the line announces: the last word is its length.
    fn body_len(&self) -> Option<usize> {
        let is_message = self.line.starts_with("MSG ") || self.line.starts_with("HMSG ");
        is_message.then(|| self.line.rsplit(' ').next()?.parse().ok()).flatten()
    }

    fn read_body(&mut self, len: usize) -> Bytes {
        let mut body = vec![0; len + 2];
        self.reader.read_exact(&mut body).expect("the server answers");
        body.truncate(len);
        body.into()
    }

    /// `MSG subject sid [reply] length`. Messages with headers are remarks of the server about a request: none is expected.
    fn read_message(&mut self) -> Message {
        while self.read_line() == "PING" {
            self.unsent.extend_from_slice(b"PONG\r\n");
        }
        assert!(self.line.starts_with("MSG "), "another answer than was asked for: {}", self.line);
        let words: Vec<&str> = self.line.split(' ').collect();
        let reply = if words.len() == 5 { words[3].to_string() } else { String::new() };
        let len = self.body_len().expect("a length");
        Message { reply, body: self.read_body(len) }
    }
}
