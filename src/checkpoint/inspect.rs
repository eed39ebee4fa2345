//! A look at the numbers of weights, in f64 on the CPU.
use half::{bf16, f16};

use super::compute::Input;
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
    /// Of the finite ones among them.
    fn of(numbers: impl Iterator<Item = f64>) -> Option<Range> {
        let widen = |range: Option<Range>, x: f64| {
            let Range { min, max } = range.unwrap_or(Range { min: x, max: x });
            Some(Range { min: min.min(x), max: max.max(x) })
        };
        numbers.filter(|x| x.is_finite()).fold(None, widen)
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
    let mut inspection = Inspection {
        rows: vec![],
        findings: found.findings,
        others: checkpoint.tensors().count() - 2 * found.weights.len(),
    };
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
    let name = weight.name.clone();
    let sums = Sums::read(checkpoint, &Input::of(&weight, None), rules, &mut |bytes| meter.add(&name, bytes))?;
    let g = read_gain(checkpoint, &weight)?;
    let norms = || sums.squares.iter().map(|square| square.sqrt());
    Ok(Row {
        norm: Range::of(norms()),
        ratio: Range::of(g.iter().zip(norms()).map(|(g, norm)| g / norm)),
        zero_rows: sums.zero_rows(),
        non_finite: sums.non_finite + g.iter().filter(|g| !g.is_finite()).count() as u64,
        weight,
    })
}

/// All of g, widened.
fn read_gain(checkpoint: &Checkpoint, weight: &FoundWeight) -> Result<Vec<f64>, Error> {
    let info = checkpoint.at(weight.g);
    let mut bytes = vec![0; info.bytes() as usize];
    checkpoint.shards[weight.g.0].read(info.begin, &mut bytes)?;
    let mut gain = vec![];
    widen(info.dtype, &bytes, |x| gain.push(x));
    Ok(gain)
}

/// Of the rows of v.
pub(super) struct Sums {
    /// Sums of squares: in f64 they neither overflow nor underflow for numbers in the range of f32.
    pub squares: Vec<f64>,
    /// Whether there is a number but zeros, or no number at all.
    non_zero: Vec<bool>,
    pub non_finite: u64,
}

impl Sums {
    /// In one pass, window by window.
    pub fn read(
        checkpoint: &Checkpoint,
        weight: &Input,
        rules: &Rules,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Sums, Error> {
        let info = checkpoint.at(weight.v);
        let Layout { kept, inner, .. } = weight.layout;
        let mut sums = Sums { squares: vec![0.0; kept], non_zero: vec![info.bytes() == 0; kept], non_finite: 0 };
        let size = info.dtype.bits() / 8;
        let window = rules.window_bytes().min(4 << 20) / size * size;
        let mut buffer = vec![0; window.min(info.bytes()) as usize];
        let (mut done, run) = (0, inner as u64 * size);
        while done < info.bytes() {
            let count = (info.bytes() - done).min(window);
            let bytes = &mut buffer[..count as usize];
            checkpoint.shards[weight.v.0].read(info.begin + done, bytes)?;
            let mut at = 0;
            while at < count {
                let run_number = (done + at) / run;
                let end = ((run_number + 1) * run - done).min(count);
                sums.add((run_number % kept as u64) as usize, info.dtype, &bytes[at as usize..end as usize]);
                at = end;
            }
            done += count;
            progress(count);
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
