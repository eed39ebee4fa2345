//! What a profile tells, and the table of it.
use std::fmt;

use crate::{Cost, Roofline};

/// How dispatches are timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Timing {
    /// By timestamps that the device writes around each dispatch, in a pass of its own. Needs
    /// [`wgpu::Features::TIMESTAMP_QUERY`].
    Timestamps,
    /// Each dispatch is submitted and waited for by itself, and what that takes is its time: some tens of microseconds
    /// more than the work. Not in a browser, where nothing can be waited for.
    Wall,
}

/// The time of one dispatch.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DispatchTime {
    /// The pipeline's label: `weightnorm.`, module, entry point, and the constants of the variant.
    pub label: String,
    /// Its time.
    pub seconds: f64,
}

/// One call of an operator.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct OperatorTime {
    /// The operator, as in `ops.linear(..)`: `linear`.
    pub name: String,
    /// The least it has to move and to do.
    pub cost: Cost,
    /// Its dispatches, in order.
    pub dispatches: Vec<DispatchTime>,
}

impl OperatorTime {
    /// The time of all its dispatches.
    pub fn seconds(&self) -> f64 {
        self.dispatches.iter().map(|d| d.seconds).sum()
    }
}

/// Where the time of a recording went. From [`Gpu::profile`](crate::Gpu::profile).
///
/// `Display` makes a table of it: the calls of each operator and variant together, longest first, with the rates that
/// follow from their [`Cost`], and the part of the [`Roofline`] that they reach: the time of that work at the roof, of
/// the time it took.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Profile {
    /// The operators, in the order in which they were recorded; those that needed no dispatch are left out.
    pub operators: Vec<OperatorTime>,
    /// How they were timed.
    pub timing: Timing,
    /// What the adapter can do at most.
    pub roofline: Roofline,
}

impl Profile {
    /// The time of all dispatches.
    pub fn seconds(&self) -> f64 {
        self.operators.iter().map(OperatorTime::seconds).sum()
    }

    /// The dispatches timed.
    pub fn dispatch_count(&self) -> usize {
        self.operators.iter().map(|o| o.dispatches.len()).sum()
    }

    /// The calls of each operator and variant together, the longest first.
    fn rows(&self) -> Vec<Row<'_>> {
        let mut rows: Vec<Row<'_>> = vec![];
        for operator in &self.operators {
            let same = |row: &&mut Row<'_>| {
                row.first.name == operator.name && row.first.dispatches.len() == operator.dispatches.len() && {
                    let mut pairs = row.first.dispatches.iter().zip(&operator.dispatches);
                    pairs.all(|(a, b)| a.label == b.label)
                }
            };
            let row = match rows.iter_mut().find(same) {
                Some(row) => row,
                None => {
                    let seconds = vec![0.0; operator.dispatches.len()];
                    rows.push(Row { first: operator, calls: 0, cost: Cost::default(), seconds });
                    rows.last_mut().expect("just pushed")
                }
            };
            row.calls += 1;
            row.cost += operator.cost;
            row.seconds.iter_mut().zip(&operator.dispatches).for_each(|(sum, d)| *sum += d.seconds);
        }
        rows.sort_by(|a, b| b.total().total_cmp(&a.total()));
        rows
    }
}

/// A row of the table.
struct Row<'a> {
    first: &'a OperatorTime,
    calls: usize,
    cost: Cost,
    /// Of each dispatch, over all calls.
    seconds: Vec<f64>,
}

impl Row<'_> {
    fn total(&self) -> f64 {
        self.seconds.iter().sum()
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.seconds();
        writeln!(f, "{:>6} {:>11} {:>5} {:>8} {:>8} {:>9}", "calls", "ms", "%", "GB/s", "GFLOP/s", "% of roof")?;
        for row in self.rows() {
            let total = row.total();
            let rate = |amount: u64| amount as f64 * 1e-9 / total;
            let (bytes, operations) = (rate(row.cost.bytes()), rate(row.cost.operations));
            let roof = 100.0 * self.roofline.seconds(&row.cost) / total;
            let share = 100.0 * total / all;
            write!(
                f,
                "{:>6} {:>11.4} {share:>5.1} {bytes:>8.2} {operations:>8.2} {roof:>9.1}  ",
                row.calls,
                1e3 * total
            )?;
            match &row.first.dispatches[..] {
                [only] => writeln!(f, "{}: {}", row.first.name, short(&only.label))?,
                several => {
                    writeln!(f, "{}", row.first.name)?;
                    for (dispatch, seconds) in several.iter().zip(&row.seconds) {
                        let label = short(&dispatch.label);
                        writeln!(f, "{:>6} {:>11.4} {:>35}{label}", "", 1e3 * seconds, "")?;
                    }
                }
            }
        }
        let clock = match self.timing {
            Timing::Timestamps => "timestamps",
            Timing::Wall => "wall clock",
        };
        let Roofline { copy, read, multiply_add } = self.roofline;
        write!(
            f,
            "{:>6} {:>11.4}        by {clock}; roof: copy {:.2} GB/s, read {:.2} GB/s, multiply-add {:.2} GFLOP/s",
            self.operators.len(),
            1e3 * all,
            copy * 1e-9,
            read * 1e-9,
            multiply_add * 1e-9
        )
    }
}

/// A label without the crate's name and without constants that are 0.
fn short(label: &str) -> String {
    let parts = label.split('.').filter(|part| !part.ends_with("=0"));
    parts.skip_while(|part| *part == "weightnorm").collect::<Vec<_>>().join(" ")
}
