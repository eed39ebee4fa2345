//! What is wrong with a text.
use super::text::Short;

/// A text is not what it is read as.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseError {
    /// No tile has this name.
    #[error("no tile is called {:?}, expected one of {expected}", Short(got))]
    Tile {
        /// The name given.
        got: String,
        /// The names there are.
        expected: String,
    },
    /// A text is not that of a [`TuningTable`](crate::TuningTable).
    #[error("line {line} of the tuning table is {:?}, expected {expected}", Short(got))]
    TuningTable {
        /// The number of the line, from 1.
        line: usize,
        /// The line.
        got: String,
        /// What would fit.
        expected: String,
    },
}
