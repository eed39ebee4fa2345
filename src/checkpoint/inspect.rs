//! A look at the numbers of weights, in f64 on the CPU.
use std::collections::HashSet;

use half::{bf16, f16};

use super::compute::{Input, steps};
use super::file::{buffer, reserve};
use super::find::At;
use super::{Checkpoint, Error, FileDType, Finding, FoundWeight, Meter, Problem, Progress, Rules};
use crate::contract::Layout;

/// What [`inspect`] found.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Inspection {
    /// One row for each weight that can be computed.
    pub rows: Vec<Row>,
    /// What is odd, warnings included.
    pub findings: Vec<Finding>,
    /// The number of tensors that belong to no weight.
    pub others: usize,
}

/// The numbers of one weight.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Row {
    /// The weight.
    pub weight: FoundWeight,
    /// The norms of the rows of v that are finite; `None` if none is.
    pub norm: Option<Range>,
    /// g/‖v‖ of the rows where it is finite. 1 throughout, up to the sign of g, in a model that was just taken apart.
    pub ratio: Option<Range>,
    /// Rows of v without a number but zeros.
    pub zero_rows: u64,
    /// Elements of v and g that are NaN or infinite.
    pub non_finite: u64,
}

/// The smallest and the largest of some numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Range {
    /// That has room for the finite ones among them too.
    fn with(range: Option<Range>, numbers: impl Iterator<Item = f64>) -> Option<Range> {
        let widen = |range: Option<Range>, x: f64| {
            let Range { min, max } = range.unwrap_or(Range { min: x, max: x });
            Some(Range { min: min.min(x), max: max.max(x) })
        };
        numbers.filter(|x| x.is_finite()).fold(range, widen)
    }
}

/// Reads every weight that the rules choose and looks at its numbers. Needs no GPU.
///
/// ```text
/// norm_j = √(Σ v² over row j)        ratio_j = g_j / norm_j
/// ```
///
/// # Errors
/// [`Error::Io`]. What is odd about a weight is no error here, but a finding.
pub fn inspect(
    checkpoint: &Checkpoint,
    rules: &Rules,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Inspection, Error> {
    let found = checkpoint.weights(rules);
    let total = found.weights.iter().map(|weight| checkpoint.at(weight.v).bytes()).sum();
    let mut meter = Meter { report: progress, done: 0, total };
    let parts: HashSet<At> = found.weights.iter().flat_map(|weight| [weight.g, weight.v]).collect();
    let mut inspection =
        Inspection { rows: vec![], findings: found.findings, others: checkpoint.tensors().count() - parts.len() };
    for weight in found.weights {
        let row = row(checkpoint, weight, rules, &mut meter)?;
        for (count, problem) in [
            (row.zero_rows, Problem::ZeroRows { count: row.zero_rows }),
            (row.non_finite, Problem::NonFinite { count: row.non_finite }),
        ] {
            if count > 0 {
                inspection.findings.push(Finding { weight: row.weight.name.clone(), problem });
            }
        }
        inspection.rows.push(row);
    }
    Ok(inspection)
}

fn row(checkpoint: &Checkpoint, weight: FoundWeight, rules: &Rules, meter: &mut Meter<'_>) -> Result<Row, Error> {
    let (name, input) = (weight.name.clone(), Input::of(&weight, None));
    let mut row = Row { weight, norm: None, ratio: None, zero_rows: 0, non_finite: 0 };
    // A row takes 25 bytes here, whatever its length: sums, and g as it is stored and as it is compared.
    let block = (rules.window_bytes() / 32) as usize;
    for rows in steps(input.layout.kept, block) {
        let sums = Sums::read(checkpoint, &input, &rows, rules, &mut |bytes| meter.add(&name, bytes))?;
        let g = read_gain(checkpoint, &row.weight, &rows)?;
        let norms = || sums.squares.iter().map(|square| square.sqrt());
        row.norm = Range::with(row.norm, norms());
        row.ratio = Range::with(row.ratio, g.iter().zip(norms()).map(|(g, norm)| g / norm));
        row.zero_rows += sums.zero_rows();
        row.non_finite += sums.non_finite + g.iter().filter(|g| !g.is_finite()).count() as u64;
    }
    Ok(row)
}

/// Some of g, widened.
fn read_gain(checkpoint: &Checkpoint, weight: &FoundWeight, rows: &Rows) -> Result<Vec<f64>, Error> {
    let info = checkpoint.at(weight.g);
    let size = info.dtype.bits() / 8;
    let (source, mut gain) = (&checkpoint.shards[weight.g.0], vec![]);
    let mut bytes = buffer(rows.len() * size as usize, &source.path)?;
    reserve(&mut gain, rows.len(), &source.path)?;
    source.read(info.begin + rows.start as u64 * size, &mut bytes)?;
    widen(info.dtype, &bytes, |x| gain.push(x));
    Ok(gain)
}

/// Indices along the kept axis.
type Rows = std::ops::Range<usize>;

/// Of some rows of v.
pub(super) struct Sums {
    /// Sums of squares: in f64 they neither overflow nor underflow for numbers in the range of f32.
    pub squares: Vec<f64>,
    /// Whether there is a number but zeros, or no number at all.
    non_zero: Vec<bool>,
    pub non_finite: u64,
}

impl Sums {
    /// In one pass, window by window: each slice of v has those rows side by side.
    pub fn read(
        checkpoint: &Checkpoint,
        weight: &Input,
        rows: &Rows,
        rules: &Rules,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Sums, Error> {
        let (source, info) = (&checkpoint.shards[weight.v.0], checkpoint.at(weight.v));
        let Layout { outer, kept, inner } = weight.layout;
        let (squares, non_zero) = (buffer(rows.len(), &source.path)?, buffer(rows.len(), &source.path)?);
        let mut sums = Sums { squares, non_zero, non_finite: 0 };
        sums.non_zero.fill(info.bytes() == 0);
        let size = info.dtype.bits() / 8;
        let run = inner as u64 * size;
        // Where they are all the rows, there is nothing between them from one slice to the next.
        let (pieces, length) = if rows.len() == kept { (1, info.bytes()) } else { (outer, rows.len() as u64 * run) };
        let window = rules.window_bytes().min(4 << 20) / size * size;
        let mut buffer = buffer(window.min(length) as usize, &source.path)?;
        for piece in 0..pieces as u64 {
            let begin = info.begin + (piece * kept as u64 + rows.start as u64) * run;
            let mut done = 0;
            while done < length {
                let count = (length - done).min(window);
                let bytes = &mut buffer[..count as usize];
                source.read(begin + done, bytes)?;
                let mut at = 0;
                while at < count {
                    let run_number = (done + at) / run;
                    let end = ((run_number + 1) * run - done).min(count);
                    let row = (run_number % rows.len() as u64) as usize;
                    sums.add(row, info.dtype, &bytes[at as usize..end as usize]);
                    at = end;
                }
                done += count;
                progress(count);
            }
        }
        Ok(sums)
    }

    fn add(&mut self, row: usize, dtype: FileDType, bytes: &[u8]) {
        let (mut square, mut non_zero, mut non_finite) = (0.0, false, 0);
        widen(dtype, bytes, |x| {
            square += x * x;
            non_zero |= x != 0.0;
            non_finite += u64::from(!x.is_finite());
        });
        self.squares[row] += square;
        self.non_zero[row] |= non_zero;
        self.non_finite += non_finite;
    }

    pub fn zero_rows(&self) -> u64 {
        self.non_zero.iter().filter(|&&non_zero| !non_zero).count() as u64
    }
}

/// Hands over elements one by one, as f64. Nothing for types that are not computed with.
pub(super) fn widen(dtype: FileDType, bytes: &[u8], mut take: impl FnMut(f64)) {
    match dtype {
        FileDType::F32 => bytes.as_chunks().0.iter().for_each(|&x| take(f32::from_le_bytes(x).into())),
        FileDType::F64 => bytes.as_chunks().0.iter().for_each(|&x| take(f64::from_le_bytes(x))),
        FileDType::F16 => bytes.as_chunks().0.iter().for_each(|&x| take(f16::from_le_bytes(x).into())),
        FileDType::Bf16 => bytes.as_chunks().0.iter().for_each(|&x| take(bf16::from_le_bytes(x).into())),
        _ => {}
    }
}
