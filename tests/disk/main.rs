//! A broker in a directory: what it accepted is there again.

mod support;

mod reopen;
