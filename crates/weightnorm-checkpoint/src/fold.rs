//! Weights made of g and v, and taken apart again.
use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::aliases::{Edit, New, Tied};
use super::compute::{self, computed};
use super::dora;
use super::file::Sink;
use super::find::{Wanted, left_out};
use super::names::is_parameter;
use super::numbers::{Input, narrow, read_as, widen};
use super::plan::{Place, Plan, Report, chosen, no_weight, sort_out};
use super::state::is_state;
use super::{
    Checkpoint, Device, Error, FileDType, Finding, Found, FoundWeight, Meter, Prefer, Problem, Progress, Rules,
    Spelling,
};
use weightnorm::{Axis, DType, norms_shape};

/// Writes the checkpoint with every weight that the rules choose folded: w in place of g and v.
///
/// ```text
/// w = g·(v/n̂)
/// ```
///
/// w has the name of the parameter, the shape and the storage type of v (f32 for f64), and v's place in the file.
///
/// Rows with numbers that a GPU may flush to zero (subnormal f32, in v, g or w) are computed by the reference,
/// wherever the others are.
///
/// # Errors
/// [`Error::Findings`] if there is anything odd about a chosen weight, zero rows too unless
/// [`Rules::allow_zero_rows`]; [`Error::NothingChosen`], [`Error::Io`], [`Error::Occupied`]; [`Error::Gpu`].
pub fn fold<'a>(
    device: impl Into<Device<'a>>,
    checkpoint: &Checkpoint,
    output: &Path,
    rules: &Rules,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Report, Error> {
    check_rules(rules)?;
    let Found { weights, findings: mut warnings, dropped } = chosen(checkpoint, rules, Wanted::Numbers)?;
    let firsts = firsts(checkpoint, &weights);
    // The weights that are computed, by their numbers, and the places of their tensors.
    let (mut edit, mut computing, mut numbers) = (Edit::without(dropped), vec![], vec![]);
    for (i, weight) in weights.iter().enumerate() {
        edit.names.insert(weight.g_name(), None);
        edit.names.insert(weight.v_name(), None);
        let (name, shape) = (weight.name.clone(), weight.shape.clone());
        if firsts[i] == i {
            let dtype = computed(weight.dtype).into();
            numbers.push(edit.add(weight.v, New { weight: i, name, dtype, shape, copy: None }));
            computing.push(i);
        } else {
            let tied = Tied { weight: i, name, tensor: weights[firsts[i]].name.clone() };
            edit.tied.entry(weight.v_name()).or_default().push(tied);
        }
    }
    let plan = Plan::new(checkpoint, &edit, &weights)?;
    let target = plan.target(output, rules)?;
    let (device, mut submissions) = (device.into(), 0);
    plan.write(&target, rules, progress, |files, sinks, meter| {
        let place = |&(i, number): &(usize, usize)| plan.places[&(weights[i].v, number)];
        let here: Vec<_> = computing.iter().copied().zip(numbers.iter().copied()).collect();
        let here: Vec<_> = here.into_iter().filter(|one| files.has(place(one).0)).collect();
        let inputs: Vec<Input> = here.iter().map(|&(i, _)| Input::of(&weights[i], Some(weights[i].g))).collect();
        let mut non_finite = vec![0; inputs.len()];
        let (seen, submitted) = compute::run(device, checkpoint, &inputs, rules, &mut |done| {
            let input = &inputs[done.input];
            let dtype = computed(input.dtype);
            widen(dtype.into(), done.result, |w| non_finite[done.input] += u64::from(!w.is_finite()));
            let (file, begin) = place(&here[done.input]);
            meter.add(&input.name, done.result.len() as u64);
            files.sink(sinks, file).write(begin + done.window.first * dtype.size(), done.result)
        })?;
        submissions += submitted;
        sort_out(rows(&inputs, &seen).collect(), rules, &mut warnings)?;
        report_non_finite(&inputs, &non_finite, &mut warnings);
        Ok(())
    })?;
    Ok(plan.report(&target, weights, warnings, submissions))
}

fn report_non_finite(inputs: &[Input], counts: &[u64], warnings: &mut Vec<Finding>) {
    for (input, &count) in inputs.iter().zip(counts).filter(|&(_, &count)| count > 0) {
        warnings.push(Finding { weight: input.name.clone(), problem: Problem::NonFinite { count } });
    }
}

/// The first of the weights that have the same tensors and the same axis, for each: that whose v has the name of the
/// tensor, if one has. The others are tied to it.
fn firsts(checkpoint: &Checkpoint, weights: &[FoundWeight]) -> Vec<usize> {
    let key = |weight: &FoundWeight| (weight.g, weight.v, weight.axis);
    let mut first = HashMap::new();
    let is_own = |weight: &FoundWeight, name: String| checkpoint.at(weight.v).name == name;
    for (i, weight) in weights.iter().enumerate() {
        // Weights that are to be split have no g and v yet, and their own name is that of the tensor.
        if is_own(weight, weight.v_name()) || is_own(weight, weight.name.clone()) {
            first.insert(key(weight), i);
        }
        first.entry(key(weight)).or_insert(i);
    }
    weights.iter().map(|weight| first[&key(weight)]).collect()
}

/// Writes the checkpoint with ordinary weights taken apart, those whose names the rules *include*:
///
/// ```text
/// v = w        g_j = n̂_j(w)
/// ```
///
/// They keep the axis that the rules say, 0 if they say none. g stands in front of v, with ones as PyTorch has it
/// (a scalar for [`Axis::Whole`]), and has the storage type of w or that of [`Rules::gain`]; f64 becomes f32 in both.
/// Folding gives w again, up to one rounding of g and those of [`fold`].
///
/// # Errors
/// As [`fold`]; [`Problem::GainOverflow`] among the findings where a norm is beyond the type of g.
pub fn split<'a>(
    device: impl Into<Device<'a>>,
    checkpoint: &Checkpoint,
    output: &Path,
    spelling: Spelling,
    rules: &Rules,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Report, Error> {
    check_rules(rules)?;
    let Found { weights, findings: mut warnings, dropped } = plain(checkpoint, spelling, rules)?;
    let firsts = firsts(checkpoint, &weights);
    let (mut edit, mut computing, mut numbers) = (Edit::without(dropped), vec![], vec![]);
    for (i, weight) in weights.iter().enumerate() {
        edit.names.insert(weight.name.clone(), None);
        let [g, v] = [weight.g_name(), weight.v_name()];
        if firsts[i] == i {
            let dtype: FileDType = computed(weight.dtype).into();
            let new = |name, dtype, shape: &[usize], copy| New { weight: i, name, dtype, shape: shape.to_vec(), copy };
            numbers.push(edit.add(weight.v, new(g, weight.g_dtype, &weight.g_shape, None)));
            edit.add(weight.v, new(v, dtype, &weight.shape, (dtype == weight.dtype).then_some(weight.v)));
            computing.push(i);
        } else {
            let first = &weights[firsts[i]];
            let tied =
                [(g, first.g_name()), (v, first.v_name())].map(|(name, tensor)| Tied { weight: i, name, tensor });
            edit.tied.entry(weight.name.clone()).or_default().extend(tied);
        }
    }
    let plan = Plan::new(checkpoint, &edit, &weights)?;
    let target = plan.target(output, rules)?;
    let (device, mut submissions) = (device.into(), 0);
    plan.write(&target, rules, progress, |files, sinks, meter| {
        let place = |weight: &FoundWeight, number: usize| plan.places.get(&(weight.v, number)).copied();
        let here: Vec<(&FoundWeight, usize, Place)> = computing
            .iter()
            .zip(&numbers)
            .filter_map(|(&i, &number)| Some((&weights[i], number, place(&weights[i], number)?)))
            .filter(|(_, _, (file, _))| files.has(*file))
            .collect();
        let inputs: Vec<Input> = here.iter().map(|(weight, ..)| Input::of(weight, None)).collect();
        let (mut overflows, mut non_finite) = (vec![0; inputs.len()], vec![0; inputs.len()]);
        let (seen, submitted) = compute::run(device, checkpoint, &inputs, rules, &mut |done| {
            let (weight, _, (file, begin)) = here[done.input];
            let to = computed(weight.g_dtype);
            let (mut norms, mut finite) = (vec![], vec![]);
            widen(FileDType::F32, done.result, |norm| norms.push(norm));
            let mut bytes = vec![0; norms.len() * to.size() as usize];
            narrow(&norms, to, &mut bytes);
            widen(to.into(), &bytes, |g| finite.push(g.is_finite()));
            non_finite[done.input] += norms.iter().filter(|norm| !norm.is_finite()).count() as u64;
            overflows[done.input] += norms.iter().zip(&finite).filter(|(n, finite)| n.is_finite() && !**finite).count();
            meter.add(&inputs[done.input].name, bytes.len() as u64);
            files.sink(sinks, file).write(begin + done.window.rows.start as u64 * to.size(), &bytes)
        })?;
        submissions += submitted;
        let overflow = |((weight, ..), &count): (&(&FoundWeight, usize, Place), &usize)| {
            let problem = Problem::GainOverflow { count: count as u64, dtype: weight.g_dtype.name() };
            (count > 0).then(|| Finding { weight: weight.name.clone(), problem })
        };
        let overflows = here.iter().zip(&overflows).filter_map(overflow);
        sort_out(rows(&inputs, &seen).chain(overflows).collect(), rules, &mut warnings)?;
        for &(weight, number, _) in &here {
            if let Some((file, begin)) = place(weight, number + 1) {
                copy_narrowed(checkpoint, weight, begin, files.sink(sinks, file), meter)?;
            }
        }
        report_non_finite(&inputs, &non_finite, &mut warnings);
        Ok(())
    })?;
    Ok(plan.report(&target, weights, warnings, submissions))
}

/// v of an f64 weight.
fn copy_narrowed(
    checkpoint: &Checkpoint,
    weight: &FoundWeight,
    begin: u64,
    sink: &Sink,
    meter: &mut Meter<'_>,
) -> Result<(), Error> {
    const STEP: u64 = 1 << 18;
    let mut bytes = vec![0; 4 * STEP as usize];
    let elements = checkpoint.at(weight.v).elements();
    for first in (0..elements).step_by(STEP as usize) {
        let part = &mut bytes[..4 * (elements - first).min(STEP) as usize];
        read_as(checkpoint, weight.v, first, DType::F32, part, &mut |_| ())?;
        sink.write(begin + 4 * first, part)?;
        meter.add(&weight.name, part.len() as u64);
    }
    Ok(())
}

/// Ordinary weights that are to be taken apart, with the g that they will have.
fn plain(checkpoint: &Checkpoint, spelling: Spelling, rules: &Rules) -> Result<Found, Error> {
    let nothing = |what| Error::NothingChosen { path: checkpoint.path.clone(), what };
    if rules.include.is_empty() {
        return Err(nothing("no pattern says which weights to take apart"));
    }
    let pairs = checkpoint.weights(&Rules::default()).weights;
    let halves: HashSet<String> = pairs.iter().flat_map(|weight| [weight.g_name(), weight.v_name()]).collect();
    let pairs: HashMap<&str, &FoundWeight> = pairs.iter().map(|pair| (pair.name.as_str(), pair)).collect();
    let present: HashSet<&str> = checkpoint.names().map(|(_, name)| name).collect();
    let (mut weights, mut findings, mut dropped, mut warnings) = (vec![], vec![], vec![], vec![]);
    for (at, name) in checkpoint.names() {
        let is_state = (is_state(name, &present) || dora::parse(name).is_some()) && !rules.names(name);
        if !rules.chooses(name) || halves.contains(name) || !is_parameter(name) || is_state {
            continue;
        }
        let tensor = checkpoint.at(at);
        let mut report = |problem| findings.push(Finding { weight: name.to_owned(), problem });
        match (pairs.get(name), rules.prefer) {
            (None, _) => {}
            (Some(pair), None) => {
                report(Problem::NameTaken { name: pair.g_name() });
                continue;
            }
            (Some(pair), Some(prefer)) => {
                let names = left_out(pair, prefer);
                dropped.extend(names.clone());
                report(Problem::LeftOut { tensors: names, prefer });
                if prefer == Prefer::Pair {
                    continue;
                }
            }
        }
        let axis = rules.axis_of(name).unwrap_or(Axis::Kept(0));
        let rank = tensor.shape.len();
        match (tensor.dtype.computed(), axis) {
            (None, _) => {
                let problem = Problem::NotComputable { tensor: tensor.name.clone(), dtype: tensor.dtype.name() };
                report(problem);
            }
            (_, Axis::Kept(axis)) if axis >= rank => report(Problem::NoSuchAxis { axis, rank }),
            (Some(dtype), _) => {
                if tensor.dtype == FileDType::F64 {
                    report(Problem::Narrowed);
                }
                let g_shape = if axis == Axis::Whole { vec![] } else { norms_shape(&tensor.shape, axis) };
                let rows = g_shape.iter().map(|&n| n as u64).product();
                // Of a tensor of no bytes there may be more rows than any disk holds norms.
                if rows > 0 && tensor.elements() == 0 {
                    report(Problem::ZeroRows { count: rows });
                }
                weights.push(FoundWeight {
                    name: name.to_owned(),
                    spelling,
                    shape: tensor.shape.clone(),
                    g_shape,
                    axis,
                    dtype: tensor.dtype,
                    g_dtype: rules.gain.unwrap_or(dtype).into(),
                    v: at,
                    g: at,
                });
            }
        }
    }
    findings.extend(dora::finding(checkpoint));
    findings.extend(checkpoint.index.iter().flat_map(|index| index.warnings.iter().cloned()));
    sort_out(findings, rules, &mut warnings)?;
    if weights.is_empty() && dropped.is_empty() {
        return Err(nothing("the patterns choose no tensor"));
    }
    Ok(Found { weights, findings: warnings, dropped })
}

/// What [`check`] found.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Check {
    /// One for each weight that can be computed.
    pub weights: Vec<CheckedWeight>,
    /// What is odd, warnings included.
    pub findings: Vec<Finding>,
    /// Submissions to the GPU.
    pub submissions: u64,
}

/// How far the device is off for one weight.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct CheckedWeight {
    /// The weight.
    pub weight: FoundWeight,
    /// The largest |w − ŵ|, w of the device and ŵ of the CPU in f64; infinite where one of them alone is NaN or
    /// infinite.
    pub error: f64,
    /// The bound of the element with the largest error beside its bound.
    pub bound: f64,
    /// The largest error beside the bound of its element: up to 1 is right.
    pub part: f64,
}

impl CheckedWeight {
    /// Whether every element is within its bound.
    pub fn is_right(&self) -> bool {
        self.part <= 1.0
    }
}

/// Folds every weight that the rules choose on the device and, in f64, on the CPU, and compares. Writes nothing. Rows
/// that [`fold`] leaves to the reference are not compared.
///
/// The bound of an element counts the roundings to f32 on the longest way to it, with row length K and u = 2⁻²⁴: a norm
/// that is off by (K/6 + 44)·u of itself, division and product 6u (8), and the storage type's own rounding.
///
/// # Errors
/// [`Error::Io`], [`Error::Gpu`], [`Error::NothingChosen`]. Weights that cannot be computed are findings.
pub fn check<'a>(
    device: impl Into<Device<'a>>,
    checkpoint: &Checkpoint,
    rules: &Rules,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Check, Error> {
    check_rules(rules)?;
    let found = checkpoint.weights(rules);
    if found.weights.is_empty() && found.findings.is_empty() {
        return Err(no_weight(checkpoint));
    }
    let inputs: Vec<Input> = found.weights.iter().map(|weight| Input::of(weight, Some(weight.g))).collect();
    let fresh = |weight| CheckedWeight { weight, error: 0.0, bound: 0.0, part: 0.0 };
    let mut checked: Vec<CheckedWeight> = found.weights.into_iter().map(fresh).collect();
    let total = inputs.iter().map(|input| checkpoint.at(input.v).elements() * computed(input.dtype).size()).sum();
    let mut meter = Meter { report: progress, done: 0, total };
    let mut infinite = vec![0; inputs.len()];
    let (seen, submissions) = compute::run(device.into(), checkpoint, &inputs, rules, &mut |done| {
        let dtype = computed(inputs[done.input].dtype);
        meter.add(&inputs[done.input].name, done.result.len() as u64);
        widen(dtype.into(), done.result, |w| infinite[done.input] += u64::from(w.is_infinite()));
        compare(dtype, &done, &mut checked[done.input]);
        Ok(())
    })?;
    let mut findings = found.findings;
    findings.extend(rows(&inputs, &seen));
    // Of v and g; or else of w, which may be beyond its type.
    let counts =
        seen.iter().zip(&infinite).map(|(seen, &of_w)| if seen.non_finite > 0 { seen.non_finite } else { of_w });
    report_non_finite(&inputs, &counts.collect::<Vec<_>>(), &mut findings);
    Ok(Check { weights: checked, findings, submissions })
}

fn compare(dtype: DType, done: &compute::Done<'_>, checked: &mut CheckedWeight) {
    let (mut v, mut got) = (vec![], vec![]);
    widen(dtype.into(), done.v, |x| v.push(x));
    widen(dtype.into(), done.result, |w| got.push(w));
    let shape = done.window.shape();
    // Four sums run side by side everywhere. Norms of a row that is in no window as a whole are those of the reference.
    let length = (shape[0] * shape[2]) as f64;
    let chain = if done.whole_rows { length.min(length / 3.0 + 64.0) } else { 0.0 };
    for (i, (&v, &got)) in v.iter().zip(&got).enumerate() {
        let j = i / shape[2] % shape[1];
        if done.by_reference[j] {
            continue;
        }
        let (g, norm) = (f64::from(done.g[j]), done.norms[j]);
        let expected = g * (v / norm);
        let bound = bound(dtype, chain, g, norm, expected);
        let error = difference(dtype, got, expected, bound);
        checked.error = checked.error.max(error);
        let part = match error / bound {
            _ if error == 0.0 => 0.0,
            part if part.is_nan() => f64::INFINITY,
            part => part,
        };
        if part > checked.part {
            (checked.part, checked.bound) = (part, bound);
        }
    }
}

/// |got − expected|, 0 where both are NaN or the same infinity, or where rounding to the type may overflow.
fn difference(dtype: DType, got: f64, expected: f64, bound: f64) -> f64 {
    // Half a step above the largest finite number.
    let overflow = match dtype {
        DType::F32 => (2.0 - 2f64.powi(-24)) * 2f64.powi(127),
        DType::F16 => 65520.0,
        DType::Bf16 => (2.0 - 2f64.powi(-8)) * 2f64.powi(127),
    };
    let same = got == expected || (got.is_nan() && expected.is_nan());
    let overflows = got.is_infinite() && expected.abs() + bound >= overflow && got.signum() == expected.signum();
    match (got - expected).abs() {
        _ if same || overflows => 0.0,
        error if error.is_nan() => f64::INFINITY,
        error => error,
    }
}

/// As [`check`] says, where a square passes through `chain` additions on its way into the norm.
fn bound(dtype: DType, chain: f64, g: f64, norm: f64, w: f64) -> f64 {
    let u = 2f64.powi(-24);
    let roundings = (chain / 2.0 + 12.0 + 8.0) * u;
    let relative = if roundings < 1.0 { roundings / (1.0 - roundings) } else { f64::INFINITY };
    let flushed = 2f64.powi(-126) / norm * (g.abs() + (3.0 * chain).sqrt() * w.abs());
    let error = relative * w.abs() + flushed;
    let (step, least) = match dtype {
        DType::F32 => (-24, -126),
        DType::F16 => (-11, -25),
        DType::Bf16 => (-8, -126),
    };
    error + ((w.abs() + error) * 2f64.powi(step)).max(2f64.powi(least))
}

/// What was seen of the rows of each input.
fn rows<'a>(inputs: &'a [Input], seen: &'a [compute::Seen]) -> impl Iterator<Item = Finding> + 'a {
    inputs.iter().zip(seen).flat_map(|(input, seen)| seen.findings(&input.name))
}

fn check_rules(rules: &Rules) -> Result<(), Error> {
    rules.eps.check().map_err(|source| Error::Gpu { tensor: "the rules".to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The controls of a comparison: what is off by more than its bound, or is no number alone, does not pass.
    #[test]
    fn check_catches_a_wrong_value() {
        let part = |expected: f64, got: f64| {
            let bound = bound(DType::F32, 100.0, 1.0, 1.0, expected);
            difference(DType::F32, got, expected, bound) / bound
        };
        assert!(part(0.5, 0.5 + 2f64.powi(-25)) <= 1.0);
        assert!(part(0.5, 0.5 + 1e-5) > 1.0);
        assert!(part(0.0, 1e-30) > 1.0);
        assert!(part(f64::MAX, f64::INFINITY) == 0.0 && part(1.0, f64::INFINITY) > 1.0);
        assert!(difference(DType::F16, f64::NAN, 1.0, 1.0).is_infinite());
        assert!(difference(DType::F16, 1.0, f64::NAN, f64::NAN).is_infinite());
        assert_eq!(difference(DType::F16, f64::NAN, f64::NAN, f64::NAN), 0.0);
        assert_eq!(difference(DType::F16, f64::INFINITY, 65520.0, 1.0), 0.0);
        assert!(difference(DType::F16, f64::NEG_INFINITY, 65520.0, 1.0).is_infinite());
    }
}
