//! Convolutions: what is asked of them.
pub(crate) mod geometry;
