//! What a caller is told on the way.

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// The tensor at work.
    pub tensor: &'a str,
    /// Bytes of the output done; where nothing is written, of v.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// Counts bytes for a caller.
pub(super) struct Meter<'a> {
    pub report: &'a mut dyn FnMut(Progress<'_>),
    pub done: u64,
    pub total: u64,
}

impl Meter<'_> {
    pub fn add(&mut self, tensor: &str, bytes: u64) {
        self.done += bytes;
        (self.report)(Progress { tensor, done: self.done, total: self.total });
    }
}
