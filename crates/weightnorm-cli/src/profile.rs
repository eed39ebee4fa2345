//! How fast the operators run, beside the most that the adapter can do.
mod call;
mod case;
mod report;

use std::path::{Path, PathBuf};

use clap::Args;
use weightnorm::{Axis, DType, Gpu, Recorder};
use weightnorm_checkpoint::{Checkpoint, FoundWeight, Rules};

use crate::device::DeviceArguments;
use crate::output::{DTypeArgument, Failure, Kind, Report, shape_text};
use crate::progress::Progress;
use crate::rules::parse_axis;
use call::{Call, set};
use case::{Case, Operator, Weight, cases};
use report::{Measured, report, weights_text};

/// Measures the throughput of the operators, beside the roof of the adapter.
///
/// GB/s and GFLOP/s count the least that an operator has to move and to do; the roof is what kernels reach that only
/// copy, only read, or only multiply and add; `roof` in a line is the part of it that the operator reaches.
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

fn parse_batch(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&batch| batch > 0).ok_or_else(|| "expected a number from 1 on".to_owned())
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
