//! Frames of one file, read in order through one buffer, each verified before it is believed; and the search for the next one where there is none.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::disk::DiskFile;
use super::frame::{FRAME_ALIGN, FRAME_HEADER_LEN, FrameHeader};
use super::layout::read_into;

const WINDOW_LEN: usize = 256 << 10;

/// A part of a file in memory.
#[derive(Debug)]
struct Window {
    file: Arc<dyn DiskFile>,
    /// Nothing is read from here on.
    end: u64,
    start: u64,
    bytes: Bytes,
}

impl Window {
    /// None: the file ends before.
    fn get(&mut self, offset: u64, len: usize) -> io::Result<Option<&[u8]>> {
        let Some(at) = self.place(offset, len)? else { return Ok(None) };
        Ok(self.bytes.get(at..).and_then(|bytes| bytes.get(..len)))
    }

    /// The same, shared with the window: it lives as long as that.
    fn share(&mut self, offset: u64, len: usize) -> io::Result<Option<Bytes>> {
        let Some(at) = self.place(offset, len)? else { return Ok(None) };
        let is_there = at.checked_add(len).is_some_and(|end| end <= self.bytes.len());
        Ok(is_there.then(|| self.bytes.slice(at..at + len)))
    }

    /// Where in the window it is, if it is there.
    fn place(&mut self, offset: u64, len: usize) -> io::Result<Option<usize>> {
        let end = offset.saturating_add(len as u64);
        if end > self.end {
            return Ok(None);
        }
        let window_end = self.start.saturating_add(self.bytes.len() as u64);
        if offset < self.start || end > window_end {
            let left = usize::try_from(self.end - offset).unwrap_or(usize::MAX);
            let wanted = len.max(WINDOW_LEN).min(left);
            // The room of the window before, if nobody shares it.
            let room = std::mem::take(&mut self.bytes).try_into_mut().map(Vec::from).unwrap_or_default();
            self.bytes = read_into(&*self.file, offset, wanted, room)?.into();
            self.start = offset;
        }
        Ok(usize::try_from(offset - self.start).ok())
    }
}

#[derive(Debug)]
pub(super) struct FrameReader {
    window: Window,
    salt: u64,
}

impl FrameReader {
    /// Of the frames in the first `end` bytes of a file of this `salt`.
    pub(super) fn new(file: Arc<dyn DiskFile>, salt: u64, end: u64) -> io::Result<Self> {
        let end = file.len()?.min(end);
        Ok(FrameReader { window: Window { file, end, start: 0, bytes: Bytes::new() }, salt })
    }

    /// Where the file ends, or what of it counts.
    pub(super) fn end(&self) -> u64 {
        self.window.end
    }

    /// The next read is of the file, not of what was read before.
    pub(super) fn forget(&mut self) {
        self.window.bytes = Bytes::new();
    }

    /// None: there is no frame here. What is given is not known to have its body.
    pub(super) fn header(&mut self, offset: u64) -> io::Result<Option<FrameHeader>> {
        let salt = self.salt;
        let bytes = self.window.get(offset, FRAME_HEADER_LEN)?;
        Ok(bytes.and_then(|bytes| FrameHeader::decode(bytes, salt, offset)))
    }

    /// None: it is not what was written.
    pub(super) fn body(&mut self, offset: u64, header: &FrameHeader) -> io::Result<Option<&[u8]>> {
        let at = offset.saturating_add(FRAME_HEADER_LEN as u64);
        let body = self.window.get(at, header.body_len as usize)?;
        Ok(body.filter(|body| header.is_body(body)))
    }

    /// The same, to keep.
    pub(super) fn shared_body(&mut self, offset: u64, header: &FrameHeader) -> io::Result<Option<Bytes>> {
        let at = offset.saturating_add(FRAME_HEADER_LEN as u64);
        let body = self.window.share(at, header.body_len as usize)?;
        Ok(body.filter(|body| header.is_body(body)))
    }

    /// The first frame's header at or after `offset`.
    pub(super) fn search(&mut self, offset: u64) -> io::Result<Option<(u64, FrameHeader)>> {
        let mut start = offset.next_multiple_of(FRAME_ALIGN);
        loop {
            let left = usize::try_from(self.window.end.saturating_sub(start)).unwrap_or(usize::MAX);
            let Some(bytes) = self.window.get(start, left.min(WINDOW_LEN))? else { return Ok(None) };
            let mut at = start;
            let mut rest = bytes;
            while let Some(header) = rest.get(..FRAME_HEADER_LEN) {
                if let Some(header) = FrameHeader::decode(header, self.salt, at) {
                    return Ok(Some((at, header)));
                }
                at = at.saturating_add(FRAME_ALIGN);
                rest = rest.get(FRAME_ALIGN as usize..).unwrap_or_default();
            }
            if at == start {
                return Ok(None);
            }
            start = at;
        }
    }
}
