//! What records say.

use std::collections::BTreeMap;

use crate::Listing;
use crate::archive::Extent;
use crate::reader::number;

#[derive(Default)]
pub(crate) struct Found {
    pub(crate) checkpoint: Option<u64>,
    pub(crate) names: BTreeMap<u64, String>,
    pub(crate) messages: BTreeMap<(u64, u64), Vec<u8>>,
    pub(crate) units: u64,
    /// The files of their own that topics have, by number.
    pub(crate) extents: BTreeMap<u64, Extent>,
    /// How many messages lie there.
    pub(crate) archived: u64,
}

impl Found {
    pub(crate) fn units(&mut self, base: u64, count: u64, start: u64, mut body: &[u8]) {
        for position in base..base + count {
            let len = number(body, 0, 4) as usize;
            if position >= start {
                self.records(&body[4..4 + len]);
                self.units += 1;
            }
            body = &body[4 + len..];
        }
        assert!(body.is_empty(), "the units fill the body");
    }

    pub(crate) fn records(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (kind, len) = (bytes[0], number(bytes, 1, 3) as usize);
            let mut words = Words(&bytes[4..4 + len]);
            bytes = &bytes[4 + len..];
            match kind {
                0x10 => {
                    let (topic, _next) = (words.varint(), words.varint());
                    let name = words.text();
                    self.names.entry(topic).or_insert(name);
                }
                0x12 => {
                    let topic = words.varint();
                    self.names.remove(&topic);
                    self.messages.retain(|(of, _), _| *of != topic);
                }
                0x30 => {
                    let (topic, mut sequence, _at) = (words.varint(), words.varint(), words.varint());
                    while !words.0.is_empty() {
                        let payload = words.message().to_vec();
                        self.messages.entry((topic, sequence)).or_insert(payload);
                        sequence += 1;
                    }
                }
                0x14 => {
                    let topic = words.varint();
                    let (first, end, len) = (words.varint(), words.varint(), words.varint());
                    self.extents.insert(topic, Extent { first, end, len, next: words.varint() });
                    assert!(words.0.is_empty(), "a body is read to its end");
                }
                0x01..=0x03 | 0x11 | 0x13 | 0x15 | 0x20..=0x27 | 0x31..=0x34 | 0x80.. => {}
                kind => panic!("a record of kind {kind:#04x}"),
            }
        }
    }

    pub(crate) fn listing(&self) -> Listing {
        let kept = self.messages.iter().filter_map(|((topic, sequence), payload)| {
            Some(((self.names.get(topic)?.clone(), *sequence), payload.clone()))
        });
        kept.collect()
    }
}

pub(crate) struct Words<'a>(pub(crate) &'a [u8]);

impl<'a> Words<'a> {
    pub(crate) fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        taken
    }

    pub(crate) fn varint(&mut self) -> u64 {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)[0];
            number |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return number;
            }
        }
        panic!("a varint has at most ten bytes");
    }

    pub(crate) fn bytes(&mut self) -> &'a [u8] {
        let len = self.varint() as usize;
        self.take(len)
    }

    pub(crate) fn text(&mut self) -> String {
        String::from_utf8(self.bytes().to_vec()).expect("texts are UTF-8")
    }

    /// Gives the payload.
    pub(crate) fn message(&mut self) -> &'a [u8] {
        let flags = self.take(1)[0];
        assert_eq!(flags & 0x80, 0, "a flag that means nothing");
        if flags & 1 != 0 {
            self.varint();
        }
        if flags & 2 != 0 {
            for _ in 0..self.varint() {
                self.text();
                self.text();
            }
        }
        if flags & 4 != 0 {
            self.text();
        }
        if flags & 8 != 0 {
            match self.take(1)[0] {
                0 => drop(self.take(16)),
                1 => drop(self.text()),
                form => panic!("an idempotency id of form {form}"),
            }
            self.take(8);
        }
        for duration in [16, 32] {
            if flags & duration != 0 {
                self.varint();
                self.varint();
            }
        }
        if flags & 64 != 0 {
            self.varint();
            self.varint();
        }
        self.bytes()
    }
}
