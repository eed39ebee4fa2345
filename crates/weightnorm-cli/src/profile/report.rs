//! What was measured, as text and as JSON.
use std::fmt::Write as _;

use serde_json::{Value, json};
use weightnorm::{Axis, Cost, DType, Gpu, Roofline, Timing};

use super::case::{Case, Weight};
use crate::device::{device_json, device_text};
use crate::output::{Report, Table, axis_json, axis_text, count, dtype_name, seconds_text, shape_text};

/// What was measured.
pub struct Measured {
    pub case: Case,
    pub work: Cost,
    /// Of a whole call, the median of all.
    pub seconds: f64,
    pub least: f64,
    /// Label and seconds of each dispatch, of the median call.
    pub dispatches: Vec<(String, f64)>,
}

pub fn report(gpu: &Gpu, weights: &[Weight], runs: u32, roof: Roofline, results: &[Measured]) -> Report {
    let info = gpu.report().info;
    let clock = if gpu.timing() == Timing::Timestamps { "timestamps" } else { "wall" };
    let json = json!({
        "device": device_json(&info),
        "clock": clock,
        "runs": runs,
        "roof": {
            "copy_bytes_per_second": roof.copy,
            "read_bytes_per_second": roof.read,
            "operations_per_second": roof.multiply_add,
        },
        "results": results.iter().map(|r| r.json(&weights[r.case.weights.clone()], &roof)).collect::<Vec<_>>(),
    });
    let mut text = String::new();
    let _ = writeln!(text, "{}", device_text(&info));
    let _ = writeln!(
        text,
        "roof: {:.1} GB/s copying, {:.1} GB/s reading, {:.1} GFLOP/s; times by {}, median of {runs}\n",
        roof.copy * 1e-9,
        roof.read * 1e-9,
        roof.multiply_add * 1e-9,
        if clock == "wall" { "the wall clock" } else { "timestamps" },
    );
    let headers =
        ["operator", "weight", "axis", "type", " batch", " disp", " time", " GB/s", " GFLOP/s", " roof", "of"];
    let mut table = Table::new(&headers);
    for result in results {
        table.row(result.cells(&weights[result.case.weights.clone()], &roof));
    }
    let _ = write!(text, "{table}");
    Report::new(false, text, json)
}

/// What weights have in common.
struct Alike<'a> {
    shape: Option<&'a [usize]>,
    axis: Option<Axis>,
    dtype: Option<DType>,
}

fn alike(weights: &[Weight]) -> Alike<'_> {
    fn one<T: PartialEq>(mut all: impl Iterator<Item = T>) -> Option<T> {
        let first = all.next()?;
        all.all(|other| other == first).then_some(first)
    }
    Alike {
        shape: one(weights.iter().map(|w| &w.shape[..])),
        axis: one(weights.iter().map(|w| w.axis)),
        dtype: one(weights.iter().map(|w| w.dtype)),
    }
}

/// Their shape, or how many they are.
pub fn weights_text(weights: &[Weight]) -> String {
    match weights {
        [weight] => shape_text(&weight.shape),
        _ => count(weights.iter().map(|w| w.names.len().max(1)).sum(), "weight"),
    }
}

impl Measured {
    fn rates(&self, roof: &Roofline) -> [f64; 3] {
        let Measured { work, seconds, .. } = self;
        [work.bytes() as f64 / seconds, work.operations as f64 / seconds, roof.seconds(work) / seconds]
    }

    fn cells(&self, weights: &[Weight], roof: &Roofline) -> Vec<String> {
        let Case { operator, batch, .. } = self.case;
        let alike = alike(weights);
        let names: Vec<&String> = weights.iter().flat_map(|w| &w.names).collect();
        let [bytes, operations, part] = self.rates(roof);
        vec![
            operator.name(),
            weights_text(weights),
            alike.axis.map_or_else(String::new, axis_text),
            alike.dtype.map_or_else(String::new, |dtype| dtype_name(dtype).to_owned()),
            batch.map_or_else(String::new, |batch| batch.to_string()),
            self.dispatches.len().to_string(),
            seconds_text(self.seconds),
            rate_text(bytes),
            rate_text(operations),
            format!("{:.0} %", 100.0 * part),
            match names.as_slice() {
                [] => String::new(),
                [one] => (*one).clone(),
                [first, rest @ ..] => format!("{first} and {} more", rest.len()),
            },
        ]
    }

    fn json(&self, weights: &[Weight], roof: &Roofline) -> Value {
        let alike = alike(weights);
        let [bytes, operations, part] = self.rates(roof);
        let dispatches = self.dispatches.iter().map(|(label, seconds)| json!({ "label": label, "seconds": seconds }));
        json!({
            "operator": self.case.operator.name(),
            "shape": alike.shape,
            "axis": alike.axis.map(axis_json),
            "dtype": alike.dtype.map(dtype_name),
            "batch": self.case.batch,
            "weights": weights.iter().flat_map(|w| &w.names).collect::<Vec<_>>(),
            "seconds": self.seconds,
            "least_seconds": self.least,
            "bytes": self.work.bytes(),
            "operations": self.work.operations,
            "bytes_per_second": bytes,
            "operations_per_second": operations,
            "of_roof": part,
            "dispatches": dispatches.collect::<Vec<_>>(),
        })
    }
}

/// In billions.
fn rate_text(rate: f64) -> String {
    match rate * 1e-9 {
        small if small < 9.995 => format!("{small:.2}"),
        large => format!("{large:.1}"),
    }
}
