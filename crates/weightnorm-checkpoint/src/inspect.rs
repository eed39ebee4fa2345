//! A look at the numbers of weights, in f64 on the CPU.
use std::collections::HashSet;

use super::cut::steps;
use super::find::At;
use super::numbers::Input;
use super::numbers::{Sums, read_gain};
use super::{Checkpoint, DoraLayer, Error, Finding, FoundWeight, Meter, Problem, Progress, Rules};

/// What [`inspect`] found.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Inspection {
    /// One row for each weight that can be computed.
    pub rows: Vec<Row>,
    /// Layers that DoRA adapts, those whose weights' names the rules choose: by their names alone.
    pub dora: Vec<DoraLayer>,
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
    let mut dora = checkpoint.dora_layers();
    dora.retain(|layer| rules.chooses(&layer.name));
    let others = checkpoint.tensors().count() - parts.len();
    let mut inspection = Inspection { rows: vec![], dora, findings: found.findings, others };
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
    // A row takes 18 bytes here, whatever its length: sums, and g.
    let block = (rules.window_bytes() / 32) as usize;
    for rows in steps(input.layout.kept, block) {
        let sums = Sums::read(checkpoint, &input, &rows, rules, &mut |bytes| meter.add(&name, bytes))?;
        let g = read_gain(checkpoint, row.weight.g, &rows)?;
        let norms = || sums.squares.iter().map(|square| square.sqrt());
        row.norm = Range::with(row.norm, norms());
        row.ratio = Range::with(row.ratio, g.iter().zip(norms()).map(|(g, norm)| g / norm));
        row.zero_rows += sums.zero_rows();
        row.non_finite += sums.non_finite + g.iter().filter(|g| !g.is_finite()).count() as u64;
    }
    Ok(row)
}
