//! How fast the operators run, beside the most that the adapter can do.
use std::fmt::Write as _;
use std::iter::repeat_n;
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use half::{bf16, f16};
use serde_json::{Value, json};
use weightnorm::checkpoint::{Checkpoint, FoundWeight, Rules};
use weightnorm::{
    Axis, Cost, DType, Decompose, Gpu, Gradients, Linear, LinearBackward, NormalizeBackward, Recorder, Roofline,
    SetMember, Tensor, Timing, WeightNorm, WeightSet,
};

use crate::device::{DeviceArguments, device_json, device_text};
use crate::output::{
    DTypeArgument, Failure, Kind, Report, Table, axis_json, axis_text, count, dtype_name, seconds_text, shape_text,
};
use crate::progress::Progress;
use crate::rules::parse_axis;

/// Measures the throughput of the operators, beside the roof of the adapter.
///
/// GB/s and GFLOP/s count the least that an operator has to move and to do; the roof is what kernels reach that only copy,
/// only read, or only multiply and add; `roof` in a line is the part of it that the operator reaches.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  weightnorm profile 1024x1024 --batch 1,64,1024
  weightnorm profile 512x256x7 --op row_norms,normalize --dtype f16
  weightnorm profile vocoder.safetensors --json

Exit codes: 0 done, 2 usage, input or device error.")]
pub struct Profile {
    /// Shapes of weights such as 1024x512 (out x in) or 512x256x7, or checkpoints whose weights give the shapes
    #[arg(required = true, value_name = "SHAPE|FILE")]
    what: Vec<PathBuf>,
    /// Operators [default: row_norms, normalize, linear, linear_backward; files: row_norms_set and normalize_set too]
    #[arg(long = "op", value_name = "OPERATOR", value_delimiter = ',')]
    operators: Vec<Operator>,
    /// Rows of x in products
    #[arg(long, value_name = "B", value_delimiter = ',', default_value = "64", value_parser = parse_batch)]
    batch: Vec<usize>,
    /// The kept axis of shapes: a number, or `whole` [files: their own]
    #[arg(long, value_parser = parse_axis, default_value = "0")]
    axis: Axis,
    /// The storage type of weights, x, y and their gradients [default: f32; files: their own]
    #[arg(long, value_name = "TYPE")]
    dtype: Option<DTypeArgument>,
    /// Calls of each operator; their median counts
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    #[command(flatten)]
    device: DeviceArguments,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Operator {
    /// The norms of v
    RowNorms,
    /// w = g·v/n̂
    Normalize,
    /// v and g of an ordinary w
    Split,
    /// dv and dg of a given dw
    NormalizeBackward,
    /// The norms of all weights at once
    RowNormsSet,
    /// w of all weights at once
    NormalizeSet,
    /// dv and dg of all weights at once
    NormalizeBackwardSet,
    /// y = x·wᵀ + bias, w never stored
    Linear,
    /// The same, with what the backward pass wants
    LinearSaved,
    /// dx, dv, dg and dbias
    LinearBackward,
}

fn parse_batch(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&batch| batch > 0).ok_or_else(|| "expected a number from 1 on".to_owned())
}

impl Operator {
    fn is_product(self) -> bool {
        matches!(self, Operator::Linear | Operator::LinearSaved | Operator::LinearBackward)
    }

    fn is_of_set(self) -> bool {
        matches!(self, Operator::RowNormsSet | Operator::NormalizeSet | Operator::NormalizeBackwardSet)
    }

    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// A weight, with those of a file that are like it.
struct Weight {
    shape: Vec<usize>,
    axis: Axis,
    dtype: DType,
    names: Vec<String>,
}

/// What is to be measured.
struct Case {
    operator: Operator,
    /// One; of a set all.
    weights: Range<usize>,
    batch: Option<usize>,
}

/// What was measured.
struct Measured {
    case: Case,
    work: Cost,
    /// Of a whole call, the median of all.
    seconds: f64,
    least: f64,
    /// Label and seconds of each dispatch, of the median call.
    dispatches: Vec<(String, f64)>,
}

impl Profile {
    pub fn run(&self) -> Result<Report, Failure> {
        let weights = self.weights()?;
        let mut operators = self.operators.clone();
        if operators.is_empty() {
            operators = vec![Operator::RowNorms, Operator::Normalize, Operator::Linear, Operator::LinearBackward];
            let of_files = weights.iter().any(|weight| !weight.names.is_empty());
            operators.extend(of_files.then_some([Operator::RowNormsSet, Operator::NormalizeSet]).into_iter().flatten());
        }
        let cases = cases(&weights, &operators, &self.batch);
        if cases.is_empty() {
            let shapes: Vec<String> = weights.iter().map(|w| shape_text(&w.shape)).collect();
            let message = format!(
                "nothing to measure: products want a weight of two axes, out x in, with --axis 0, 1 or whole; given {}",
                shapes.join(" ")
            );
            return Err(Failure::usage(message));
        }
        let gpu = self.device.open()?;
        let progress = Progress::steps("measuring", cases.len() as u64);
        let mut results = vec![];
        for case in cases {
            // Sets that were not asked for may be larger than a buffer: the rest is worth showing.
            let unasked = self.operators.is_empty() && case.operator.is_of_set();
            let name = case.operator.name();
            match self.measure(&gpu, case, &weights) {
                Ok(measured) => results.push(measured),
                Err(failure) if unasked => crate::output::complain(&format!("{name} is left out: {}", failure.message)),
                Err(failure) => return Err(failure),
            }
            progress.step();
        }
        let roof = gpu.roofline()?; // known from the profiles
        Ok(report(&gpu, &weights, self.runs, roof, &results))
    }

    fn weights(&self) -> Result<Vec<Weight>, Failure> {
        let mut weights = vec![];
        for what in &self.what {
            match what.to_str().and_then(parse_shape) {
                Some(shape) => {
                    if let Axis::Kept(axis) = self.axis
                        && axis >= shape.len()
                    {
                        let message = format!("--axis {axis}: the shape {} has no such axis", shape_text(&shape));
                        return Err(Failure::usage(message));
                    }
                    let dtype = self.dtype.map_or(DType::F32, DTypeArgument::dtype);
                    weights.push(Weight { shape, axis: self.axis, dtype, names: vec![] });
                }
                None => self.weights_of_file(what, &mut weights)?,
            }
        }
        Ok(weights)
    }

    /// Those of one shape, axis and type together.
    fn weights_of_file(&self, path: &Path, weights: &mut Vec<Weight>) -> Result<(), Failure> {
        let found = match Checkpoint::open(path) {
            Ok(checkpoint) => checkpoint.weights(&Rules::default()),
            Err(error) if path.symlink_metadata().is_err() => {
                let message = format!("{error}. Shapes are written as 1024x512");
                return Err(Failure { message, ..error.into() });
            }
            Err(error) => return Err(error.into()),
        };
        if found.weights.is_empty() {
            let message = format!("{}: there is no weight-normalized weight in it", path.display());
            return Err(Failure { kind: Kind::Input, message });
        }
        let start = weights.len();
        for FoundWeight { name, shape, axis, dtype, .. } in found.weights {
            let computed = dtype.computed().unwrap_or(DType::F32);
            let dtype = self.dtype.map_or(computed, DTypeArgument::dtype);
            let same = |w: &&mut Weight| w.shape == shape && w.axis == axis && w.dtype == dtype;
            match weights[start..].iter_mut().find(same) {
                Some(weight) => weight.names.push(name),
                None => weights.push(Weight { shape, axis, dtype, names: vec![name] }),
            }
        }
        Ok(())
    }

    fn measure(&self, gpu: &Gpu, case: Case, weights: &[Weight]) -> Result<Measured, Failure> {
        let weights = &weights[case.weights.clone()];
        let operator = case.operator;
        if operator.is_of_set() {
            let set = set(gpu, operator, weights)?;
            return self.time(gpu, case, weights, |ops| match operator {
                Operator::RowNormsSet => ops.row_norms_set(&set),
                Operator::NormalizeSet => ops.normalize_set(&set),
                _ => ops.normalize_backward_set(&set, false),
            });
        }
        let call = Call::new(gpu, operator, &weights[0], case.batch.unwrap_or(0))?;
        self.time(gpu, case, weights, |ops| call.record(ops))
    }

    fn time(
        &self,
        gpu: &Gpu,
        case: Case,
        weights: &[Weight],
        record: impl Fn(&mut Recorder<'_, '_>) -> Result<(), weightnorm::Error>,
    ) -> Result<Measured, Failure> {
        gpu.profile(&record)?; // builds the pipelines
        let profile = gpu.profile(|ops| (0..self.runs).try_for_each(|_| record(ops)))?;
        let mut calls: Vec<_> = profile.operators.iter().collect();
        calls.sort_by(|a, b| a.seconds().total_cmp(&b.seconds()));
        let (Some(first), Some(median)) = (calls.first(), calls.get(calls.len() / 2)) else {
            let (name, what) = (case.operator.name(), weights_text(weights));
            return Err(Failure::usage(format!("{name} of {what} takes no dispatch: nothing to measure")));
        };
        Ok(Measured {
            case,
            work: median.cost,
            // A clock that is too coarse shows no time at all.
            seconds: median.seconds().max(1e-9),
            least: first.seconds().max(1e-9),
            dispatches: median.dispatches.iter().map(|d| (d.label.clone(), d.seconds)).collect(),
        })
    }
}

/// `1024x512`; None for what does not look like a shape.
fn parse_shape(text: &str) -> Option<Vec<usize>> {
    text.split('x').map(|size| size.parse().ok().filter(|&size| size > 0)).collect()
}

/// What is to be measured: products for each batch, and only where the weight is a matrix.
fn cases(weights: &[Weight], operators: &[Operator], batches: &[usize]) -> Vec<Case> {
    let mut cases = vec![];
    for &operator in operators {
        if operator.is_of_set() {
            cases.push(Case { operator, weights: 0..weights.len(), batch: None });
            continue;
        }
        for (place, weight) in weights.iter().enumerate() {
            let case = |batch| Case { operator, weights: place..place + 1, batch };
            match operator.is_product() {
                true if weight.shape.len() == 2 => cases.extend(batches.iter().map(|&batch| case(Some(batch)))),
                true => {}
                false => cases.push(case(None)),
            }
        }
    }
    cases
}

/// All weights, each as often as there is one like it, with the tensors of the operator.
fn set(gpu: &Gpu, operator: Operator, weights: &[Weight]) -> Result<WeightSet, weightnorm::Error> {
    let all: Vec<&Weight> = weights.iter().flat_map(|w| repeat_n(w, w.names.len().max(1))).collect();
    let kept: Vec<Vec<usize>> = all.iter().map(|w| norms_shape(&w.shape, w.axis)).collect();
    let like_v: Vec<_> = all.iter().map(|w| (&w.shape[..], w.dtype)).collect();
    let per_norm: Vec<_> = kept.iter().map(|shape| (&shape[..], DType::F32)).collect();
    let like_v_if = |wanted: bool| gpu.tensors(if wanted { &like_v } else { &[] });
    let (v, out) = (gpu.tensors(&like_v)?, like_v_if(operator != Operator::RowNormsSet)?);
    let dw = like_v_if(operator == Operator::NormalizeBackwardSet)?;
    let (g, norms) = (gpu.tensors(&per_norm)?, gpu.tensors(&per_norm)?);
    v.iter().chain(&g).chain(&dw).try_for_each(|tensor| fill(gpu, tensor))?;
    let member = |i: usize| {
        let member = SetMember::new(WeightNorm::new(&v[i], &g[i]).axis(all[i].axis));
        match operator {
            Operator::RowNormsSet => member.norms(&norms[i]),
            Operator::NormalizeSet => member.w(&out[i]),
            _ => member.dw(&dw[i]).dv(&out[i]).dg(&norms[i]),
        }
    };
    gpu.weight_set(&(0..all.len()).map(member).collect::<Vec<_>>())
}

fn norms_shape(shape: &[usize], axis: Axis) -> Vec<usize> {
    shape.iter().enumerate().map(|(i, &d)| if axis == Axis::Kept(i) { d } else { 1 }).collect()
}

/// The tensors of a call.
struct Call {
    operator: Operator,
    axis: Axis,
    v: Tensor,
    /// Of v's shape: where the result goes.
    out: Tensor,
    g: Tensor,
    norms: Tensor,
    dg: Tensor,
    /// For the operator that takes it.
    dw: Option<Tensor>,
    product: Option<Sides>,
}

/// Those of a product.
struct Sides {
    x: Tensor,
    dx: Tensor,
    y: Tensor,
    u: Tensor,
    bias: Tensor,
    dbias: Tensor,
}

impl Call {
    fn new(gpu: &Gpu, operator: Operator, weight: &Weight, batch: usize) -> Result<Call, weightnorm::Error> {
        let Weight { shape, axis, dtype, .. } = weight;
        let kept = norms_shape(shape, *axis);
        let product = match shape[..] {
            [outs, ins] if operator.is_product() => Some(Sides {
                x: filled(gpu, &[batch, ins], *dtype)?,
                dx: gpu.zeros(&[batch, ins], *dtype)?,
                y: filled(gpu, &[batch, outs], *dtype)?,
                u: filled(gpu, &[batch, outs], DType::F32)?,
                bias: filled(gpu, &[outs], DType::F32)?,
                dbias: gpu.zeros(&[outs], DType::F32)?,
            }),
            _ => None,
        };
        let dw = (operator == Operator::NormalizeBackward).then(|| filled(gpu, shape, *dtype)).transpose()?;
        Ok(Call {
            operator,
            axis: *axis,
            v: filled(gpu, shape, *dtype)?,
            out: gpu.zeros(shape, *dtype)?,
            g: filled(gpu, &kept, DType::F32)?,
            norms: filled(gpu, &kept, DType::F32)?,
            dg: gpu.zeros(&kept, DType::F32)?,
            dw,
            product,
        })
    }

    fn record(&self, ops: &mut Recorder<'_, '_>) -> Result<(), weightnorm::Error> {
        let Call { v, out, g, norms, dg, axis, .. } = self;
        let weight = WeightNorm::new(v, g).axis(*axis);
        let u = |u| (*axis != Axis::Kept(1)).then_some(u);
        match (self.operator, &self.product, &self.dw) {
            (Operator::RowNorms, ..) => ops.row_norms(WeightNorm::unit(v).axis(*axis), dg),
            (Operator::Normalize, ..) => ops.normalize(weight, out),
            (Operator::Split, ..) => ops.decompose(Decompose::new(v).axis(*axis), out, dg),
            (Operator::NormalizeBackward, _, Some(dw)) => {
                ops.normalize_backward(NormalizeBackward::new(dw, weight), &Gradients::default().dv(out).dg(dg))
            }
            (Operator::Linear, Some(Sides { x, y, bias, .. }), _) => ops.linear(Linear::new(x, weight).bias(bias), y),
            (Operator::LinearSaved, Some(sides), _) => {
                let Sides { x, y, bias, .. } = sides;
                ops.linear(Linear::new(x, weight).bias(bias).norms(norms).u(u(&sides.u)), y)
            }
            (Operator::LinearBackward, Some(sides), _) => {
                let Sides { x, dx, y, dbias, .. } = sides;
                let gradients = Gradients::default().dx(dx).dv(out).dg(dg).dbias(dbias);
                ops.linear_backward(LinearBackward::new(x, weight.norms(norms), y).u(u(&sides.u)), &gradients)
            }
            _ => Ok(()),
        }
    }
}

/// A tensor of ordinary numbers.
fn filled(gpu: &Gpu, shape: &[usize], dtype: DType) -> Result<Tensor, weightnorm::Error> {
    let tensor = gpu.zeros(shape, dtype)?;
    fill(gpu, &tensor)?;
    Ok(tensor)
}

/// Puts ordinary numbers there: zeros and subnormal ones would take the rare ways.
fn fill(gpu: &Gpu, tensor: &Tensor) -> Result<(), weightnorm::Error> {
    let count = tensor.len().next_multiple_of(2).min(1 << 18) as u32;
    let numbers = (0..count).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 + 0.25);
    let piece: Vec<u8> = match tensor.dtype() {
        DType::F32 => numbers.flat_map(f32::to_ne_bytes).collect(),
        DType::F16 => numbers.flat_map(|x| f16::from_f32(x).to_ne_bytes()).collect(),
        DType::Bf16 => numbers.flat_map(|x| bf16::from_f32(x).to_ne_bytes()).collect(),
    };
    // A buffer of the crate's own is as long as whole words want it.
    let end = (tensor.len() as u64 * tensor.dtype().size()).next_multiple_of(4);
    for start in (0..end).step_by(piece.len().max(1)) {
        let length = (end - start).min(piece.len() as u64) as usize;
        gpu.queue().write_buffer(tensor.buffer()?, tensor.offset() + start, &piece[..length]);
        // What is not submitted stays in memory of the host.
        gpu.queue().submit([]);
    }
    gpu.check()
}

fn report(gpu: &Gpu, weights: &[Weight], runs: u32, roof: Roofline, results: &[Measured]) -> Report {
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
fn weights_text(weights: &[Weight]) -> String {
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
