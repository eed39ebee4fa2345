//! What can go wrong with a file, and what can be odd about a weight in it.
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::Prefer;

/// Everything that can go wrong with checkpoints. Whatever it is, no file is left half written: the output is what it
/// was before, or not there. With one exception it is whole and new: where the folder cannot be synced after the output
/// was renamed, which [`Error::Io`] then says. All that is missing is the certainty that it stays so if the machine
/// stops.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused something.
    #[error("{}: {doing}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is of another kind, which is known.
    #[error("{}: it is {what}\n{advice}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: String,
        /// What to do.
        advice: String,
    },
    /// A file is not of the format, or is damaged.
    #[error("{}: {reason}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The entry of one tensor in the header of a file is wrong.
    #[error("{}: tensor {tensor:?}: {reason}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of PyTorch's own has no dictionary of tensors of that key, or several and none was named:
    /// [`Checkpoint::open_key`](crate::Checkpoint::open_key).
    #[error("{}: {reason}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
        /// The keys that there are.
        keys: Vec<String>,
    },
    /// The index of a sharded checkpoint is wrong, or does not fit its files.
    #[error("{}: {reason}", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no such part: [`Rules::part`](crate::Rules::part).
    #[error("{}: {reason}", path.display())]
    Part {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Weights that cannot be computed as the rules say. Exclude them, override their axis, or allow it.
    #[error("{}", list(findings))]
    Findings {
        /// All that was found, at least one.
        findings: Vec<Finding>,
    },
    /// No tensor of the checkpoint is one that the patterns choose.
    #[error("{}: {what}", path.display())]
    NothingChosen {
        /// The checkpoint.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// The output is there already, and is not to be replaced: a folder, a file without write permission,
    /// a device or a pipe.
    #[error("{}: {reason}", path.display())]
    Occupied {
        /// The output.
        path: PathBuf,
        /// Why it is not replaced.
        reason: &'static str,
    },
    /// The GPU failed.
    #[error("{tensor}: {source}")]
    Gpu {
        /// The first of the weights that were being computed.
        tensor: String,
        /// What it said.
        source: weightnorm::Error,
    },
}

/// Something about a weight that a reader should know: see [`Problem`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Finding {
    /// The weight's name, as it is called once it is folded.
    pub weight: String,
    /// What was found.
    pub problem: Problem,
}

/// What can be odd about a weight.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Problem {
    /// One of the two tensors is there, the other is not.
    MissingPartner {
        /// The name of the one that is there.
        found: String,
        /// The name of the other.
        missing: String,
    },
    /// The weight is there in both spellings.
    BothSpellings,
    /// A tensor and a pair are the same weight: as the rules prefer, one is left out.
    LeftOut {
        /// The tensors that are left out.
        tensors: Vec<String>,
        /// What was preferred.
        prefer: Prefer,
    },
    /// The names that it would have afterwards are taken by other tensors. Where it is the weight's own, as beside a
    /// pair, [`Rules::prefer`](crate::Rules::prefer) decides.
    NameTaken {
        /// The first of them.
        name: String,
    },
    /// More than weight normalization is registered as a parametrization of it.
    OtherParametrization {
        /// A tensor that weight normalization does not have.
        tensor: String,
    },
    /// g has another shape than any kept axis of v, or the one of the rules, gives it.
    Shape {
        /// Shape of v.
        v: Vec<usize>,
        /// Shape of g.
        g: Vec<usize>,
        /// What g would have to be.
        expected: String,
    },
    /// A flat g fits several axes of v. [`Rules::axis`](crate::Rules::axis) decides.
    AmbiguousAxis {
        /// Shape of v.
        v: Vec<usize>,
        /// Shape of g.
        g: Vec<usize>,
        /// The axes that it fits.
        axes: Vec<usize>,
    },
    /// g has as many numbers as an axis of v, but not its shape. [`Rules::axis`](crate::Rules::axis) decides.
    OtherShape {
        /// Shape of v.
        v: Vec<usize>,
        /// Shape of g.
        g: Vec<usize>,
    },
    /// g or v is pruned: it is there as a product that is still to be made.
    Pruned {
        /// The tensor that is not there: `layer.weight_v` where `layer.weight_v_orig` and `layer.weight_v_mask` are.
        tensor: String,
    },
    /// A pair by its endings alone, which is copied as it is: a warning.
    NotTaken {
        /// The one that would be g.
        g: String,
        /// The one that would be v.
        v: String,
        /// Why.
        why: &'static str,
    },
    /// Tensors of an optimizer, which are copied as they are and do not fit folded weights: a warning, of the first of
    /// them.
    OptimizerState {
        /// How many there are.
        count: usize,
    },
    /// Layers that DoRA adapts, whose tensors are copied as they are: a warning, of the first of them.
    Dora {
        /// How many there are.
        count: usize,
    },
    /// The index lists a tensor that no file has, and what is written does not list it: a warning.
    NotInFiles {
        /// The file in which it should be.
        file: String,
    },
    /// A file has a tensor that the index does not list, and what is written lists it: a warning.
    NotInIndex {
        /// The file in which it is.
        file: String,
    },
    /// A tensor is in another file than the index says, and what is written says where it is: a warning.
    Misplaced {
        /// The file in which it is.
        file: String,
        /// The file in which it should be.
        listed: String,
    },
    /// A tensor is in a second file, and the one of the file that the index names is used alone: a warning.
    SecondCopy {
        /// The file whose tensor is left out.
        file: String,
        /// The file that the index names.
        listed: String,
    },
    /// The rules name an axis that the weight does not have.
    NoSuchAxis {
        /// The axis.
        axis: usize,
        /// The number of axes.
        rank: usize,
    },
    /// A tensor's elements are not floating-point numbers that the crate computes with.
    NotComputable {
        /// The tensor.
        tensor: String,
        /// Its storage type.
        dtype: &'static str,
    },
    /// Rows of v without a number but zeros: w is not determined by them. In a tensor to be split rows without elements
    /// too; where DoRA is merged rows of W0 + s·B·A.
    ZeroRows {
        /// How many.
        count: u64,
    },
    /// Norms that are beyond the storage type of g: see [`Rules::gain`](crate::Rules::gain).
    GainOverflow {
        /// How many.
        count: u64,
        /// The storage type.
        dtype: &'static str,
    },
    /// Elements that are NaN or infinite: of v and g where the input is looked at (in [`check`](crate::check), if
    /// there are none, of the result), of the result where it is written.
    NonFinite {
        /// How many.
        count: u64,
    },
    /// Rows, zero ones not counted, that the eps policy changes: w is not what PyTorch gives there.
    Guarded {
        /// How many.
        count: u64,
    },
    /// Stored as f64, computed and written as f32.
    Narrowed,
}

impl Problem {
    /// Whether it is worth a word, but keeps nobody from computing the weight.
    pub fn is_warning(&self) -> bool {
        matches!(
            self,
            Problem::Narrowed
                | Problem::NonFinite { .. }
                | Problem::Guarded { .. }
                | Problem::LeftOut { .. }
                | Problem::NotTaken { .. }
                | Problem::OptimizerState { .. }
                | Problem::Dora { .. }
                | Problem::NotInFiles { .. }
                | Problem::NotInIndex { .. }
                | Problem::Misplaced { .. }
                | Problem::SecondCopy { .. }
        )
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.weight, self.problem)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::MissingPartner { found, missing } => write!(f, "{found} is there, {missing} is missing"),
            Problem::BothSpellings => write!(f, "it is there in both spellings"),
            Problem::LeftOut { tensors, prefer: Prefer::Pair } => {
                write!(f, "{} as it was is left out: the pair is preferred", tensors.join(", "))
            }
            Problem::LeftOut { tensors, prefer: Prefer::Weight } => {
                write!(f, "{} are left out: the weight beside them is preferred", tensors.join(", "))
            }
            Problem::NameTaken { name } => write!(f, "the name {name} is taken"),
            Problem::OtherParametrization { tensor } => {
                write!(f, "{tensor} belongs to another parametrization of the same tensor")
            }
            Problem::Shape { v, g, expected } => write!(f, "v has shape {v:?} and g {g:?}, expected {expected}"),
            Problem::AmbiguousAxis { v, g, axes } => {
                write!(f, "g {g:?} fits the axes {axes:?} of v {v:?}: name the axis for it")
            }
            Problem::OtherShape { v, g } => {
                write!(f, "g {g:?} has as many numbers as an axis of v {v:?}, but not its shape: name the axis for it")
            }
            Problem::Pruned { tensor } => {
                let name = tensor.rsplit('.').next().unwrap_or(tensor);
                write!(f, "{tensor} is pruned ({name}_orig, {name}_mask): make that permanent first, in Python with ")?;
                write!(f, "torch.nn.utils.prune.remove(module, {name:?})")
            }
            Problem::NotTaken { why, .. } => write!(f, "not taken for weight norm, and left as it is: {why}"),
            Problem::OptimizerState { count } => {
                let more = if *count > 1 { format!(", as are {} more", count - 1) } else { String::new() };
                write!(f, "optimizer state{more}: it belongs to the weights as they were, and is copied as it is")
            }
            Problem::Dora { count } => {
                let more = if *count > 1 { format!(", as are {} more", count - 1) } else { String::new() };
                write!(f, "adapted by DoRA{more}: left as it is; merge makes ordinary weights of such layers")
            }
            Problem::NotInFiles { file } => write!(f, "the index lists it in {file}, and no file has it"),
            Problem::NotInIndex { file } => write!(f, "it is in {file}, and the index does not list it"),
            Problem::Misplaced { file, listed } => write!(f, "it is in {file}, and the index lists it in {listed}"),
            Problem::SecondCopy { file, listed } => {
                write!(f, "it is in {file} too, which is left out: the index lists it in {listed}")
            }
            Problem::NoSuchAxis { axis, rank } => write!(f, "kept axis {axis} of a tensor of rank {rank}"),
            // Floats of 8 bits and fewer.
            Problem::NotComputable { tensor, dtype } if dtype.starts_with('F') => {
                write!(f, "{tensor} is {dtype}, which is not computed: write it as BF16 or F32 first, ")?;
                write!(f, "times its scale if it has one")
            }
            Problem::NotComputable { tensor, dtype } => {
                write!(f, "{tensor} is {dtype}, expected F32, F16, BF16 or F64")
            }
            Problem::ZeroRows { count: 1 } => write!(f, "1 row is zero"),
            Problem::ZeroRows { count } => write!(f, "{count} rows are zero"),
            Problem::GainOverflow { count: 1, dtype } => write!(f, "1 norm is beyond {dtype}: keep g in f32"),
            Problem::GainOverflow { count, dtype } => write!(f, "{count} norms are beyond {dtype}: keep g in f32"),
            Problem::NonFinite { count: 1 } => write!(f, "1 element is NaN or infinite"),
            Problem::NonFinite { count } => write!(f, "{count} elements are NaN or infinite"),
            Problem::Guarded { count: 1 } => write!(f, "the eps policy changes 1 row"),
            Problem::Guarded { count } => write!(f, "the eps policy changes {count} rows"),
            Problem::Narrowed => write!(f, "f64 is computed and written as f32"),
        }
    }
}

fn list(findings: &[Finding]) -> String {
    findings.iter().map(Finding::to_string).collect::<Vec<_>>().join("\n")
}

/// The error of something that was being done to a file.
pub(super) fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { doing, path: path.to_owned(), source }
}
