//! A broker in a directory: what it accepted is there again.

mod support;

mod attempts;
mod dedup;
mod ends;
mod keeping;
mod options;
mod payloads;
mod reopen;
mod settling;
mod time;
mod volume;
