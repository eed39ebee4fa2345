//! The backward pass: linear_saved, linear_backward, normalize_backward.
use weightnorm::internals::Kind;
use weightnorm::{
    Activation, ArgumentError, Axis, DType, Eps, Error, Gpu, Gradients, LimitError, Linear, LinearBackward,
    NormalizeBackward, Recorder, Tensor, Tile, Weight, WeightNorm, cpu,
};

use crate::common::{compare, dg_bound, dot_bound, dv_bound, dx_bound, norm_bound, sum_bound};
use crate::common::{linear_terms, normalize_terms};
use crate::data::{
    DTYPES, Guarded, OFFSETS, POISON, POLICIES, Rng, all, axes, from_bytes, gains, in_turn, must_fail, norm_chain,
    norm_count, norm_length, norm_of, random, rounded, to_bytes, upload,
};
use crate::device::{counted, limited, of_kind, recorded, refused, small, tiny};
use crate::{Extent, Failed, Needs, Outcome, Suite};

const OUT: Option<Axis> = Some(Axis::Kept(0));
const IN: Option<Axis> = Some(Axis::Kept(1));
const WHOLE: Option<Axis> = Some(Axis::Whole);
const PLAIN: Option<Axis> = None;
const AXES: [Option<Axis>; 4] = [OUT, IN, WHOLE, PLAIN];
/// dx, dv, dg, dbias.
const ALL: [bool; 4] = [true; 4];
const NAMES: [&str; 4] = ["dx", "dv", "dg", "dbias"];
/// Below it a device may take a number for zero.
const SUBNORMAL: f64 = f32::MIN_POSITIVE as f64;

pub fn register(suite: &mut Suite) {
    let mut test = |name: &str, test: fn(&Gpu) -> Outcome| {
        suite.test(&format!("backward::{name}"), Needs::Nothing, test);
    };
    test("dispatches", dispatches);
    test("policies", policies);
    test("scaled_gains", scaled_gains);
    test("dw_out_of_range", dw_out_of_range);
    test("zero_rows", zero_rows);
    test("clamp_and_after", clamp_and_after);
    test("not_finite", not_finite);
    test("dead_units", dead_units);
    test("dv_is_orthogonal_to_v", dv_is_orthogonal_to_v);
    test("scaled_v_divides_dv", scaled_v_divides_dv);
    test("errors", errors);
    test("comparison_can_fail", comparison_can_fail);
    test("normalize_wanted", normalize_wanted);
    test("normalize_held_rows", normalize_held_rows);
    test("normalize_scaled", normalize_scaled);
    test("normalize_zero_rows", normalize_zero_rows);
    test("normalize_not_finite", normalize_not_finite);
    test("normalize_errors", normalize_errors);
    test("normalize_comparison_can_fail", normalize_comparison_can_fail);
    let mut sampled = |name: &str, test: fn(&Gpu, Extent) -> Outcome| suite.sampled(&format!("backward::{name}"), test);
    sampled("empty", empty);
    sampled("normalize_axes_and_policies", normalize_axes_and_policies);
    sampled("wanted", wanted);
    sampled("packed_rows_share_words", packed_rows_share_words);
    sampled("scaled_rows", scaled_rows);
    sampled("sparse", sparse);
    sampled("normalize_long_rows", normalize_long_rows);
    sampled("normalize_longest_loops", normalize_longest_loops);
    sampled("saved", saved);
    sampled("sizes", sizes);
    sampled("dtypes", dtypes);
    sampled("tiles_and_splits", tiles_and_splits);
    sampled("tiles_in_quads", tiles_in_quads);
    sampled("accumulation", accumulation);
    sampled("no_buffer_of_dw", no_buffer_of_dw);
    sampled("fused_is_normalize_backward_of_dw", fused_is_normalize_backward_of_dw);
    sampled("dg_out_of_range", dg_out_of_range);
    sampled("zero_sums", zero_sums);
    sampled("few_rows", few_rows);
    sampled("same_bits", same_bits);
    sampled("windows", windows);
    sampled("normalize_dtypes", normalize_dtypes);
    sampled("normalize_windows", normalize_windows);
    sampled("normalize_uneven_lanes", normalize_uneven_lanes);
    sampled("normalize_quads", normalize_quads);
}

/// Outputs in one buffer, each between guards; those that are not asked for have to stay as they are.
struct Outputs {
    whole: Tensor,
    tensors: Vec<Tensor>,
    before: Vec<u8>,
    /// Whether an output was poisoned, so that all of it has to be written.
    poisoned: bool,
}

impl Outputs {
    fn new(gpu: &Gpu, parts: &[(Vec<usize>, DType)], held: Option<&[Vec<f64>]>, seed: usize) -> Result<Self, Failed> {
        Outputs::aligned(gpu, parts, held, seed, 4)
    }

    /// Each of them starts at a multiple of so many bytes.
    fn aligned(
        gpu: &Gpu,
        parts: &[(Vec<usize>, DType)],
        held: Option<&[Vec<f64>]>,
        seed: usize,
        alignment: usize,
    ) -> Result<Self, Failed> {
        let mut before = POISON.repeat(OFFSETS[seed % OFFSETS.len()] as usize / 4 + 1);
        let mut places = vec![];
        for (i, (shape, dtype)) in parts.iter().enumerate() {
            while !before.len().is_multiple_of(alignment) {
                before.extend(POISON);
            }
            places.push(before.len());
            let count = shape.iter().product::<usize>();
            let bytes = count * dtype.size() as usize;
            match held {
                Some(held) => before.extend(to_bytes(&held[i], *dtype)),
                None => before.extend(&POISON.repeat(bytes.div_ceil(4))[..bytes]),
            }
            // The second half of the last word, and a guard.
            while !before.len().is_multiple_of(4) {
                before.push(POISON[before.len() % 4]);
            }
            before.extend(POISON.repeat(16 + i));
        }
        let words: Vec<f32> = bytemuck::pod_collect_to_vec(&before);
        let whole = gpu.upload(&words, &[words.len()])?;
        let tensor = |(&place, (shape, dtype)): (&usize, &(Vec<usize>, DType))| {
            Tensor::from_buffer(gpu, whole.buffer()?, place as u64, shape, *dtype)
        };
        let tensors = places.iter().zip(parts).map(tensor).collect::<Result<_, _>>()?;
        Ok(Outputs { whole, tensors, before, poisoned: held.is_none() })
    }

    /// The elements of the wanted ones.
    fn read(&self, wanted: &[bool]) -> Result<Vec<Option<Vec<f64>>>, Failed> {
        let words = self.whole.read::<f32>()?;
        let mut after: Vec<u8> = bytemuck::cast_slice(&words).to_vec();
        let mut found = vec![];
        for (i, tensor) in self.tensors.iter().enumerate() {
            let size = tensor.dtype().size() as usize;
            let place = tensor.offset() as usize..tensor.offset() as usize + tensor.len() * size;
            if !wanted[i] {
                found.push(None);
                continue;
            }
            let elements = after[place.clone()].to_vec();
            if let Some(at) = elements.chunks_exact(size).position(|e| self.poisoned && e == &POISON[..size]) {
                return Err(format!("output {i}: element {at} was not written").into());
            }
            after[place.clone()].copy_from_slice(&self.before[place]);
            found.push(Some(from_bytes(&elements, tensor.dtype())));
        }
        match after.iter().zip(&self.before).position(|(a, b)| a != b) {
            None => Ok(found),
            Some(at) => {
                let places: Vec<_> = self.tensors.iter().map(Tensor::offset).collect();
                Err(format!("byte {at} was overwritten; the outputs start at {places:?}, wanted {wanted:?}").into())
            }
        }
    }
}

/// A layer, its data, and what is wanted of it.
#[derive(Clone)]
struct Case {
    /// batch, out_features, in_features
    size: [usize; 3],
    /// `None`: a plain weight.
    axis: Option<Axis>,
    eps: Eps,
    /// Of x, v, dy.
    dtypes: [DType; 3],
    /// Of dx, dv.
    gradient_dtypes: [DType; 2],
    gain: bool,
    /// The norms of the forward pass are handed over.
    known: bool,
    wanted: [bool; 4],
    accumulate: bool,
    tile: Option<Tile>,
    split_length: Option<u32>,
    /// Tensors start at multiples of so many bytes.
    alignment: usize,
    x: Option<Vec<f64>>,
    v: Option<Vec<f64>>,
    g: Option<Vec<f64>>,
    dy: Option<Vec<f64>>,
}

/// What has to come out, and of what size the terms of each element are.
struct Reference {
    values: [Vec<f64>; 4],
    terms: [Vec<f64>; 4],
    /// What flushing a subnormal u, w or quotient changes.
    flushed: [Vec<f64>; 4],
}

struct Got {
    gradients: Vec<Option<Vec<f64>>>,
    dispatches: u64,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Case {
            size, axis, eps, dtypes, gradient_dtypes, gain, known, wanted, accumulate, tile, split_length, ..
        } = self;
        write!(f, "{size:?} {axis:?} {eps:?} {dtypes:?} to {gradient_dtypes:?}, gain {gain}, known {known}, ")?;
        write!(f, "wanted {wanted:?}, {accumulate:?} {tile:?} {split_length:?}")
    }
}

/// A case with all of it, each product computed as the device's choices or the table say.
pub fn check_as_chosen(gpu: &Gpu, size: [usize; 3]) -> Outcome {
    Case { tile: None, ..Case::new(size) }.check(gpu)
}

/// A case with all of it, by one tile.
pub fn by_tile(gpu: &Gpu, size: [usize; 3], tile: Tile) -> Outcome {
    Case { tile: Some(tile), ..Case::new(size) }.check(gpu)
}

impl Case {
    /// Kept axis out, everything f32 and wanted, random data. One tile for all, unless a test is about tiles: each
    /// takes a pipeline of its own.
    fn new(size: [usize; 3]) -> Case {
        Case {
            size,
            axis: OUT,
            eps: Eps::default(),
            dtypes: [DType::F32; 3],
            gradient_dtypes: [DType::F32; 2],
            gain: true,
            known: true,
            wanted: ALL,
            accumulate: false,
            tile: Some(Tile::Tile32x32),
            split_length: None,
            alignment: 4,
            x: None,
            v: None,
            g: None,
            dy: None,
        }
    }

    fn of(axis: Option<Axis>, size: [usize; 3]) -> Case {
        Case { axis, ..Case::new(size) }
    }

    /// All in one storage type.
    fn stored(self, dtype: DType) -> Case {
        Case { dtypes: [dtype; 3], gradient_dtypes: [dtype; 2], ..self }
    }

    fn v_shape(&self) -> [usize; 2] {
        [self.size[1], self.size[2]]
    }

    fn norm_count(&self) -> usize {
        self.axis.map_or(0, |axis| norm_count(&self.v_shape(), axis))
    }

    fn x(&self) -> Vec<f64> {
        self.x.clone().unwrap_or_else(|| random(21, self.size[0] * self.size[2], self.dtypes[0]))
    }

    fn v(&self) -> Vec<f64> {
        self.v.clone().unwrap_or_else(|| random(22, self.size[1] * self.size[2], self.dtypes[1]))
    }

    fn dy(&self) -> Vec<f64> {
        self.dy.clone().unwrap_or_else(|| random(23, self.size[0] * self.size[1], self.dtypes[2]))
    }

    fn g(&self) -> Option<Vec<f64>> {
        let wanted = self.axis.is_some() && self.gain;
        wanted.then(|| self.g.clone().unwrap_or_else(|| gains(24, self.norm_count())))
    }

    /// What the outputs hold before, with `accumulate`.
    fn held(&self) -> [Vec<f64>; 4] {
        let [batch, outs, ins] = self.size;
        let [dx, dv] = self.gradient_dtypes;
        let parts = [(batch * ins, dx), (outs * ins, dv), (self.norm_count(), DType::F32), (outs, DType::F32)];
        let mut seed = 30;
        parts.map(|(count, dtype)| {
            seed += 1;
            random(seed, count, dtype)
        })
    }

    fn reference(&self) -> Result<Reference, Error> {
        let [batch, outs, ins] = self.size;
        let (x, v, dy, g) = (self.x(), self.v(), self.dy(), self.g());
        let weight = match self.axis {
            None => cpu::Weight::Plain(&v),
            Some(axis) => cpu::Weight::Normalized { v: &v, g: g.as_deref(), axis, eps: self.eps },
        };
        let gradients = cpu::linear_backward(&x, &[batch, ins], weight, &self.v_shape(), None, Activation::None, &dy)?;
        let terms = linear_terms(&x, weight, &self.v_shape(), &dy);
        let lists = |g: cpu::LinearGradients| [g.dx, g.dv, g.dg.unwrap_or_default(), g.dbias];
        let (values, mut terms) = (lists(gradients), lists(terms));
        // They do not know of a batch without outputs.
        terms[0].resize(values[0].len(), 0.0);
        let mut flushed = values.clone().map(|list| vec![0.0; list.len()]);
        if let Some(axis) = self.axis {
            let norms = cpu::row_norms(&v, &self.v_shape(), axis, self.eps)?;
            let mut factors = vec![1.0; norms.len()];
            let of = norm_of(&self.v_shape(), axis);
            if axis == Axis::Kept(1) {
                x.iter().enumerate().for_each(|(at, x)| factors[at % ins] += x.abs());
            } else {
                let of_output = |at: usize| if axis == Axis::Whole { 0 } else { at % outs };
                dy.iter().enumerate().for_each(|(at, dy)| factors[of_output(at)] += dy.abs());
            }
            flushed[2] = factors.iter().map(|f| f * SUBNORMAL).collect();
            // dg itself has an exponent of its own.
            let scale = |j: usize| (g.as_ref().map_or(1.0, |g| g[j].abs()) / norms[j]) * (factors[j] - 1.0);
            flushed[1] = (0..v.len()).map(|at| 2.0 * SUBNORMAL * scale(of(at))).collect();
        }
        let dy_of_row = |b: usize| dy[b * outs..(b + 1) * outs].iter().map(|dy| 1.0 + dy.abs()).sum::<f64>();
        flushed[0] = (0..batch * ins).map(|at| dy_of_row(at / ins) * SUBNORMAL).collect();
        Ok(Reference { values, terms, flushed })
    }

    /// For element `i` of gradient `which`, of which `held` stood there before.
    fn bound(&self, reference: &Reference, which: usize, i: usize, held: f64) -> f64 {
        let [batch, outs, ins] = self.size;
        let value = reference.values[which][i] + held;
        let terms = reference.terms[which][i] + held.abs();
        let norms = self.axis.map_or(0, |axis| norm_chain(norm_length(&self.v_shape(), axis)));
        let [dx_dtype, dv_dtype] = self.gradient_dtypes;
        // u or q, and then dg.
        let to_dg = match self.axis {
            Some(Axis::Kept(1)) => outs + norm_chain(batch),
            Some(Axis::Whole) => ins + norm_chain(batch * outs),
            _ => ins + norm_chain(batch),
        };
        let bound = match (which, self.axis) {
            (0, None) => sum_bound(outs, terms, value, dx_dtype),
            (0, Some(_)) => dx_bound(norms, outs, terms, value, dx_dtype),
            (1, None) => sum_bound(batch, terms, value, dv_dtype),
            (1, Some(_)) => dv_bound(norms, to_dg.max(batch), terms, value, dv_dtype),
            (2, _) => dg_bound(norms, to_dg, terms, value),
            _ => sum_bound(norm_chain(batch), terms, value, DType::F32),
        };
        bound + reference.flushed[which][i]
    }

    /// Into outputs between guards. What the forward pass saves is the reference's, rounded to f32.
    fn run(&self, gpu: &Gpu) -> Result<Got, Failed> {
        let (outputs, wanted, dispatches) = self.launch(gpu, true)?;
        Ok(Got { gradients: outputs.read(&wanted)?, dispatches })
    }

    /// Recorded and, if it is to be, submitted: the outputs, which of them are wanted, how many dispatches.
    fn launch(&self, gpu: &Gpu, submit: bool) -> Result<(Outputs, [bool; 4], u64), Failed> {
        let [batch, outs, ins] = self.size;
        let seed = batch + outs + 3 * ins;
        let upload = |gpu: &Gpu, values: &[f64], shape: &[usize], dtype, seed: usize| {
            let offset = OFFSETS[seed % OFFSETS.len()].next_multiple_of(self.alignment as u64);
            Ok::<_, Error>(Guarded::holding(gpu, values, shape, dtype, offset)?.tensor)
        };
        let x = upload(gpu, &self.x(), &[batch, ins], self.dtypes[0], seed)?;
        let v = upload(gpu, &self.v(), &self.v_shape(), self.dtypes[1], seed + 1)?;
        let dy = upload(gpu, &self.dy(), &[batch, outs], self.dtypes[2], seed + 2)?;
        let g = self.g().map(|g| upload(gpu, &g, &[g.len()], DType::F32, seed + 3)).transpose()?;
        let has_u = (self.axis == OUT || self.axis == WHOLE) && (self.wanted[1] || self.wanted[2]);
        let normalized = self
            .axis
            .map(|axis| g.as_ref().map_or(WeightNorm::unit(&v), |g| WeightNorm::new(&v, g)).axis(axis).eps(self.eps));
        let saved = match self.axis {
            None => cpu::Saved { norms: vec![], u: None },
            Some(axis) => cpu::linear_saved(&self.x(), &[batch, ins], &self.v(), &self.v_shape(), axis, self.eps)?,
        };
        let norms = upload(gpu, &saved.norms, &[self.norm_count()], DType::F32, seed + 1)?;
        let u = saved.u.filter(|_| has_u);
        let u = u.map(|u| upload(gpu, &u, &[batch, outs], DType::F32, seed + 2)).transpose()?;
        let weight = match normalized {
            None => Weight::Plain(&v),
            Some(weight) if self.known => weight.norms(&norms).into(),
            Some(weight) => weight.into(),
        };
        let [dx_dtype, dv_dtype] = self.gradient_dtypes;
        let parts = [
            (vec![batch, ins], dx_dtype),
            (vec![outs, ins], dv_dtype),
            (vec![self.norm_count()], DType::F32),
            (vec![outs], DType::F32),
        ];
        let held = self.held();
        let held = (self.accumulate).then_some(&held[..]);
        let outputs = Outputs::aligned(gpu, &parts, held, seed, self.alignment)?;
        let mut wanted = self.wanted;
        wanted[2] &= self.axis.is_some();
        let of = |i: usize| wanted[i].then_some(&outputs.tensors[i]);
        let gradients = Gradients::default().dx(of(0)).dv(of(1)).dg(of(2)).dbias(of(3)).accumulate(self.accumulate);
        let backward = LinearBackward::new(&x, weight, &dy).u(u.as_ref());
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        let mut ops = gpu.record(&mut encoder);
        ops.linear_backward(backward.tile(self.tile).split_length(self.split_length), &gradients)?;
        let dispatches = ops.dispatch_count();
        drop(ops);
        if submit {
            gpu.queue().submit([encoder.finish()]);
        }
        Ok((outputs, wanted, dispatches))
    }

    fn check(&self, gpu: &Gpu) -> Outcome {
        self.check_against(gpu, &self.reference()?).map(drop)
    }

    fn check_against(&self, gpu: &Gpu, reference: &Reference) -> Result<Got, Failed> {
        let got = self.run(gpu)?;
        self.compare(&got, reference)?;
        Ok(got)
    }

    fn compare(&self, got: &Got, reference: &Reference) -> Result<(), String> {
        let held = self.held();
        let [dx, dv] = self.gradient_dtypes;
        for (which, dtype) in [dx, dv, DType::F32, DType::F32].into_iter().enumerate() {
            let Some(gradient) = &got.gradients[which] else { continue };
            // dx is replaced.
            let held = |i: usize| if self.accumulate && which != 0 { held[which][i] } else { 0.0 };
            let expected: Vec<f64> = reference.values[which].iter().enumerate().map(|(i, &e)| e + held(i)).collect();
            compare(gradient, &expected, Some(dtype), |i| self.bound(reference, which, i, held(i)))
                .map_err(|e| format!("{}: {e}", NAMES[which]))?;
        }
        Ok(())
    }
}

fn is_same(what: &str, a: &[f64], b: &[f64]) -> Outcome {
    match a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits()) {
        None if a.len() == b.len() => Ok(()),
        at => Err(format!("{what}: differs at {at:?}").into()),
    }
}

/// What training keeps: u and the norms, without another dispatch, and the same y.
fn saved(gpu: &Gpu, extent: Extent) -> Outcome {
    let sizes = [[9, 33, 39], [129, 5, 259], [1, 1, 1], [3, 129, 1], [2, 3, 0], [0, 3, 5], [2, 0, 5]];
    let kinds = |size| [(size, OUT, None), (size, WHOLE, None), (size, OUT, Some(16))];
    let mut cases: Vec<_> = sizes.into_iter().flat_map(kinds).collect();
    if extent == Extent::Few {
        // By one tile. Those with nothing in them have a pipeline more.
        cases.retain(|&(size, axis, split)| size == sizes[0] || (axis == OUT && split.is_none()));
        cases.retain(|&(size, ..)| size != [2, 0, 5]);
    }
    let tile = extent.choose(None, Some(Tile::Tile32x32));
    all(cases, |case| {
        let (size @ [batch, outs, ins], axis, split_length) = *case;
        let axis = axis.ok_or("normalized")?;
        let case = Case::new(size);
        let (x64, v64) = (case.x(), case.v());
        let g64 = gains(24, norm_count(&case.v_shape(), axis));
        let x = upload(gpu, &x64, &[batch, ins], DType::F32, 1)?;
        let v = upload(gpu, &v64, &case.v_shape(), DType::F32, 2)?;
        let g = upload(gpu, &g64, &[g64.len()], DType::F32, 3)?;
        let bias = upload(gpu, &random(25, outs, DType::F32), &[outs], DType::F32, 4)?;
        let weight = WeightNorm::new(&v, &g).axis(axis);
        let u = Guarded::poisoned(gpu, &[batch, outs], DType::F32, 12)?;
        let norms = Guarded::poisoned(gpu, &[g64.len()], DType::F32, 4)?;
        let y = Guarded::poisoned(gpu, &[batch, outs], DType::F32, 4)?;
        let plain_y = Guarded::poisoned(gpu, &[batch, outs], DType::F32, 4)?;
        let linear = Linear::new(&x, weight).bias(&bias).tile(tile).split_length(split_length);
        let plain = recorded(gpu, |ops| ops.linear(linear, &plain_y.tensor))?;
        let all = recorded(gpu, |ops| ops.linear(linear.u(&u.tensor).norms(&norms.tensor), &y.tensor))?;
        // Without a product there is nothing for the norms to come out of.
        if all != plain && batch * outs * ins != 0 {
            return Err(format!("{all} dispatches, {plain} of the plain product").into());
        }
        is_same("y", &y.read()?, &plain_y.read()?)?;
        let expected = cpu::linear_saved(&x64, &[batch, ins], &v64, &case.v_shape(), axis, Eps::default())?;
        let chain = norm_chain(norm_length(&case.v_shape(), axis));
        compare(&norms.read()?, &expected.norms, Some(DType::F32), |i| norm_bound(chain, expected.norms[i]))?;
        let magnitudes = |values: &[f64]| values.iter().map(|a| a.abs()).collect::<Vec<_>>();
        let sums = cpu::linear_saved(
            &magnitudes(&x64),
            &[batch, ins],
            &magnitudes(&v64),
            &case.v_shape(),
            axis,
            Eps::default(),
        )?;
        let (expected, sums) = (expected.u.ok_or("no u")?, sums.u.ok_or("no u")?);
        compare(&u.read()?, &expected, Some(DType::F32), |i| {
            dot_bound(chain.max(ins), sums[i], expected[i], DType::F32)
        })?;
        // And as a user calls it.
        if tile.is_none() && size == [9, 33, 39] && split_length.is_none() {
            let (eager_y, saved) = gpu.linear_saved(Linear::new(&x, weight).bias(&bias))?;
            is_same("eager y", &crate::golden::read(&eager_y)?, &y.read()?)?;
            is_same("eager u", &crate::golden::read(&saved.u.ok_or("no u")?)?, &u.read()?)?;
        }
        Ok(())
    })?;
    if extent == Extent::Few {
        return Ok(());
    }
    let (x, v) = (gpu.zeros(&[2, 3], DType::F32)?, gpu.zeros(&[4, 3], DType::F32)?);
    let (_, of_columns) = gpu.linear_saved(Linear::new(&x, WeightNorm::unit(&v).axis(Axis::Kept(1))))?;
    assert!(of_columns.u.is_none() && of_columns.norms.is_some_and(|n| n.shape() == [1, 3]));
    let (_, plain) = gpu.linear_saved(Linear::new(&x, &v))?;
    assert!(plain.u.is_none() && plain.norms.is_none());
    Ok(())
}

fn sizes(gpu: &Gpu, extent: Extent) -> Outcome {
    let mut cases: Vec<Case> = vec![];
    for axis in AXES {
        cases.extend([1, 2, 7, 64, 129, 1000].map(|batch| Case::of(axis, [batch, 33, 39])));
        cases.extend([1, 3, 5, 128, 259].map(|ins| Case::of(axis, [7, 33, ins])));
        cases.extend([1, 3, 129].map(|outs| Case::of(axis, [7, outs, 39])));
        cases.push(Case::of(axis, [1, 1, 1]));
    }
    // The tiles that the crate chooses.
    let sizes = [[129, 129, 259], [7, 5, 13], [7, 129, 39], [129, 5, 3]];
    // Few: `few_rows` has some of them.
    let sizes = extent.choose(&sizes[..], &[]);
    cases.extend(sizes.iter().map(|&size| Case { tile: None, ..Case::new(size) }));
    all(cases, |case| case.check(gpu))
}

/// Each gradient alone and in every company is the same; what is not asked for stays untouched.
fn wanted(gpu: &Gpu, extent: Extent) -> Outcome {
    all(AXES, |&axis| {
        let size = [7, 33, 39];
        let case = Case::of(axis, size);
        let reference = case.reference()?;
        let full = case.check_against(gpu, &reference)?;
        for bits in 0..16usize {
            let wanted = [0, 1, 2, 3].map(|i| bits >> i & 1 == 1);
            let part = Case { wanted, ..case.clone() };
            let got = part.check_against(gpu, &reference).map_err(|e| format!("{wanted:?}: {e:?}"))?;
            for (i, name) in NAMES.into_iter().enumerate() {
                if let (Some(a), Some(b)) = (&got.gradients[i], &full.gradients[i]) {
                    is_same(name, a, b).map_err(|e| format!("{wanted:?}: {e:?}"))?;
                }
            }
        }
        // Without g, and without norms of the forward pass.
        if axis == OUT || (axis == IN && extent == Extent::All) {
            Case { gain: false, ..case.clone() }.check(gpu)?;
        }
        Case { known: false, ..case }.check(gpu)
    })
}

/// As many as the documentation of `LinearBackward` says.
fn dispatches(gpu: &Gpu) -> Outcome {
    // Recorded, and not run.
    let count = |case: Case| -> Result<u64, Failed> { Ok(case.launch(gpu, false)?.2) };
    for bits in 0..16usize {
        let wanted @ [dx, dv, dg, dbias] = [0, 1, 2, 3].map(|i| bits >> i & 1 == 1);
        let n = u64::from;
        for (batch, sums) in [(64, 1), (128, 1), (129, 2)] {
            let of = |axis| count(Case { wanted, ..Case::of(axis, [batch, 33, 39]) });
            let expected = [
                // The factors for dx come with the sums, or by themselves.
                n(dx) + n(dv) + if dg || dv || dbias { sums } else { n(dx) },
                // q once, whoever wants it.
                n(dx || dv || dg) + n(dv) + sums * n(dg || dv) + sums * n(dbias),
                // dg is a sum over all of y.
                n(dx) + n(dv) + if dg || dv { 2 } else { n(dx) } + sums * n(dbias),
                n(dx) + n(dv) + sums * n(dbias),
            ];
            for (axis, expected) in AXES.into_iter().zip(expected) {
                assert_eq!(of(axis)?, expected, "{axis:?}, batch {batch}, wanted {wanted:?}");
            }
        }
    }
    // Norms that are not known, a sum that is split.
    assert_eq!(count(Case { known: false, ..Case::new([64, 33, 39]) })?, 4);
    let split = Case { split_length: Some(16), ..Case::new([64, 33, 39]) };
    assert_eq!(count(split)?, 5, "dx and dv in two each");
    Ok(())
}

fn dtypes(gpu: &Gpu, extent: Extent) -> Outcome {
    use DType::{Bf16, F16, F32};
    let mut cases = vec![];
    let mixes = [
        ([F32, F16, Bf16], [Bf16, F32]),
        ([Bf16, F32, F16], [F16, Bf16]),
        ([F16, Bf16, F32], [F32, F16]),
        ([F16; 3], [F16; 2]),
        ([Bf16; 3], [Bf16; 2]),
        ([F16; 3], [F32; 2]),
    ];
    for (dtypes, gradient_dtypes) in mixes.into_iter().take(extent.choose(6, 3)) {
        for size in extent.of([[5, 7, 13], [129, 5, 7]], 2) {
            cases.push(Case { dtypes, gradient_dtypes, ..Case::new(size) });
        }
    }
    if extent == Extent::Few {
        // dv of x and dy in each type, dx of v and dy; written in each.
        let no_dv = [true, false, true, true];
        let no_dx = [false, true, true, true];
        (cases[0].wanted, cases[2].wanted) = (no_dv, no_dx);
        return all(cases, |case| case.check(gpu));
    }
    for axis in [IN, WHOLE, PLAIN] {
        cases.push(Case::of(axis, [5, 7, 13]).stored(Bf16));
    }
    all(cases, |case| case.check(gpu))
}

/// Odd rows of packed types, small enough that many invocations meet in a word.
fn packed_rows_share_words(gpu: &Gpu, extent: Extent) -> Outcome {
    let sizes = [[1, 3, 1], [9, 33, 1], [64, 129, 3], [65, 65, 65], [3, 1, 5], [1, 1, 1], [129, 3, 3]];
    let mut cases = vec![];
    for size in sizes {
        let case = Case::new(size).stored(DType::F16);
        // A batch of 64 takes pipelines of its own.
        let few = extent == Extent::Few;
        if few && size[0] == 64 {
            continue;
        }
        cases.push(Case { accumulate: true, ..case.clone() });
        if !few {
            cases.push(case);
        }
    }
    all(cases, |case| {
        let reference = case.reference()?;
        let first = case.check_against(gpu, &reference)?;
        // A race shows sometimes only.
        for _ in 0..4 {
            let again = case.run(gpu)?;
            for (a, b) in again.gradients.iter().flatten().zip(first.gradients.iter().flatten()) {
                is_same("again", a, b)?;
            }
        }
        Ok(())
    })
}

fn tiles_and_splits(gpu: &Gpu, extent: Extent) -> Outcome {
    let size = [67, 71, 75];
    let mut cases = vec![];
    let few = [Tile::Gemv8, Tile::Tile32x32].into_iter().collect();
    let tiles: Vec<Tile> = extent.choose(Tile::all_on(gpu).collect(), few);
    cases.extend(tiles.into_iter().map(|tile| Case { tile: Some(tile), ..Case::new(size) }));
    // More than one of the largest tile, along each of its sides.
    if Tile::Tile128x128.runs_on(gpu) && extent == Extent::All {
        cases.push(Case { tile: Some(Tile::Tile128x128), ..Case::new([131, 35, 130]) });
        cases.push(Case { tile: Some(Tile::Tile128x128), ..Case::new([35, 131, 130]) });
    }
    if extent == Extent::All {
        cases.push(Case { split_length: Some(32), ..Case::new(size).stored(DType::F16) });
    }
    for axis in extent.of(AXES, 4) {
        cases.push(Case { split_length: Some(16), ..Case::of(axis, size) });
    }
    cases.push(Case { split_length: Some(16), accumulate: true, ..Case::new(size) });
    all(cases, |case| case.check(gpu))
}

/// Tiles of every kind where operands and result are read and written in quads, at edges that are none of the tile's.
fn tiles_in_quads(gpu: &Gpu, extent: Extent) -> Outcome {
    let case = |tile, size| Case { tile: Some(tile), alignment: 16, ..Case::new(size) };
    let mut cases = vec![];
    let tiles = [
        Tile::Tile64x64,
        Tile::Tile128x8,
        Tile::Gemv8,
        Tile::Subgroup64,
        Tile::Subgroup16,
        Tile::Subgroup4,
        Tile::Subgroup1,
    ];
    for tile in extent.of(tiles, 4) {
        cases.push(case(tile, [20, 36, 44]));
    }
    // Few: `no_buffer_of_dw` has the first of them.
    for tile in [Tile::Tile32x32, Tile::Subgroup8].into_iter().skip(extent.choose(0, 1)) {
        cases.push(case(tile, [72, 40, 68]));
        if extent == Extent::All {
            cases.push(Case { accumulate: true, ..case(tile, [3, 36, 44]) });
            cases.push(case(tile, [72, 40, 68]).stored(DType::F16));
        }
    }
    cases.retain(|case| case.tile.is_none_or(|tile| tile.runs_on(gpu)));
    all(cases, |case| case.check(gpu))
}

/// All gradients of f16, by the tiles that the device's choices name.
pub fn chosen(gpu: &Gpu, size: [usize; 3]) -> Outcome {
    Case { tile: None, ..Case::new(size).stored(DType::F16) }.check(gpu)
}

/// The products that `tile`, of cooperative matrices, can do: all of f16, and no scale on what is multiplied.
pub fn in_halves(gpu: &Gpu, tile: Tile) -> Outcome {
    let no_dx = [false, true, true, true];
    let mut cases = vec![];
    for size in [[67, 71, 75], [40, 36, 32], [1, 1, 1], [3, 33, 70]] {
        for (axis, wanted) in [(None, ALL), (IN, ALL), (OUT, no_dx), (WHOLE, no_dx)] {
            let case = Case { tile: Some(tile), wanted, ..Case::of(axis, size).stored(DType::F16) };
            cases.push(Case { accumulate: true, ..case.clone() });
            cases.push(Case { split_length: Some(16), ..case.clone() });
            cases.push(case);
        }
    }
    all(cases, |case| case.check(gpu))?;
    let case = Case { tile: Some(tile), wanted: no_dx, ..Case::new([7, 33, 39]).stored(DType::F16) };
    for bad in [f64::NAN, f64::INFINITY] {
        let mut dy = case.dy();
        dy[2 * 33 + 5] = bad;
        let case = Case { dy: Some(dy), ..case.clone() };
        agrees_where_finite(&case, &case.run(gpu)?, &case.reference()?, bad)?;
    }
    let scaled = Case { wanted: ALL, ..case };
    match scaled.run(gpu) {
        Err(_) => Ok(()),
        Ok(_) => Err("dx of a normalized weight takes a scaled v".into()),
    }
}

fn policies(gpu: &Gpu) -> Outcome {
    let known = [true, false];
    let cases = POLICIES.into_iter().flat_map(|eps| {
        AXES[..3].iter().flat_map(move |&axis| known.map(|known| Case { eps, known, ..Case::of(axis, [7, 33, 39]) }))
    });
    all(cases, |case| case.check(gpu))
}

/// Few: each size with one axis, and norms that are known or not in turn.
fn empty(gpu: &Gpu, extent: Extent) -> Outcome {
    let sizes = [[0, 3, 5], [2, 3, 0], [2, 0, 5], [0, 0, 0], [0, 0, 5], [0, 3, 0], [2, 0, 0]];
    let mut cases = vec![];
    for (i, size) in sizes.into_iter().enumerate() {
        for &axis in extent.choose(&AXES[..], &AXES[i % 4..][..1]) {
            let both = [true, false].map(|known| Case { known, ..Case::of(axis, size) });
            cases.extend_from_slice(extent.choose(&both[..], &both[i / 4..][..1]));
        }
    }
    cases.push(Case { accumulate: true, ..Case::new([0, 3, 5]) });
    cases.push(Case::new([0, 3, 5]).stored(DType::F16));
    all(cases, |case| {
        let got = case.check_against(gpu, &case.reference()?)?;
        let of_nothing = case.size[0] == 0 && !case.accumulate;
        if of_nothing && !got.gradients.iter().flatten().flatten().all(|&x| x == 0.0) {
            return Err("a gradient of no rows is not zero".into());
        }
        Ok(())
    })
}

/// Add is what stood there and the gradient; micro-batches add up to the batch; dx is replaced.
fn accumulation(gpu: &Gpu, extent: Extent) -> Outcome {
    let mut cases = vec![];
    let axes = extent.of(AXES, 4);
    for &axis in &axes {
        let case = Case { accumulate: true, ..Case::of(axis, [7, 33, 39]) };
        cases.push(Case { wanted: [true, true, false, false], ..case.clone() });
        cases.push(Case { wanted: [false, false, true, true], ..case.clone() });
        cases.push(case);
    }
    for axis in extent.of([OUT, IN], 2) {
        let case = Case { accumulate: true, ..Case::of(axis, [129, 33, 39]) };
        // Few: what is added to in f16 has `packed_rows_share_words`.
        let dv = extent.choose(DType::F16, DType::F32);
        cases.push(Case { gradient_dtypes: [DType::F32, dv], ..case });
    }
    all(cases, |case| case.check(gpu))?;
    all(extent.of(axes, 2), |&axis| {
        let whole = Case::of(axis, [30, 33, 39]);
        let reference = whole.reference()?;
        let [_, outs, ins] = whole.size;
        let v = gpu.upload(&whole.v().iter().map(|&v| v as f32).collect::<Vec<_>>(), &[outs, ins])?;
        let g = whole.g().map(|g| upload(gpu, &g, &[g.len()], DType::F32, 0)).transpose()?;
        let weight = match (axis, &g) {
            (Some(axis), Some(g)) => Weight::from(WeightNorm::new(&v, g).axis(axis)),
            _ => (&v).into(),
        };
        let dv = gpu.zeros(&[outs, ins], DType::F32)?;
        let dg = axis.map(|_| gpu.zeros(&[whole.norm_count()], DType::F32)).transpose()?;
        let dbias = gpu.zeros(&[outs], DType::F32)?;
        for part in 0..3 {
            let rows = |values: Vec<f64>, width: usize| {
                upload(gpu, &values[part * 10 * width..(part + 1) * 10 * width], &[10, width], DType::F32, part)
            };
            let (x, dy) = (rows(whole.x(), ins)?, rows(whole.dy(), outs)?);
            let (_, saved) = gpu.linear_saved(Linear::new(&x, weight))?;
            let gradients = Gradients::default().dv(&dv).dg(dg.as_ref()).dbias(&dbias).accumulate(true);
            recorded(gpu, |ops| {
                ops.linear_backward(LinearBackward::new(&x, weight, &dy).u(saved.u.as_ref()), &gradients)
            })?;
        }
        let gradients = vec![
            None,
            Some(crate::golden::read(&dv)?),
            dg.map(|dg| crate::golden::read(&dg)).transpose()?,
            Some(crate::golden::read(&dbias)?),
        ];
        Ok(whole.compare(&Got { gradients, dispatches: 0 }, &reference)?)
    })
}

/// N = K = 512, batch 64, half-precision weights on a device whose largest buffer is hardly more than v: dw, a matrix
/// of f32 sums, is twice that. Where the driver's allocator tells, nothing of the size of v was allocated either.
fn no_buffer_of_dw(gpu: &Gpu, extent: Extent) -> Outcome {
    let (batch, outs, ins) = (64, 512, 512);
    let v_bytes = (outs * ins * 2) as u64;
    let device = limited(gpu, |limits| {
        // A binding holds a little less than its limit.
        limits.max_buffer_size = v_bytes + 4096;
        limits.max_storage_buffer_binding_size = v_bytes + 4096;
    })?;
    match device.zeros(&[outs, ins], DType::F32) {
        Err(Error::Limit(LimitError::TensorTooLarge { .. })) => {}
        other => return Err(format!("there is room for dw: {:?}", other.map(|t| t.len())).into()),
    }
    let allocated = || {
        let report = device.device().generate_allocator_report()?;
        Some(report.allocations.iter().map(|a| a.size).collect::<Vec<_>>())
    };
    // Of what is there now and was not before, by sizes.
    let largest_since = |before: Option<Vec<u64>>| {
        let (before, mut new) = (before?, allocated()?);
        before.iter().for_each(|size| {
            if let Some(at) = new.iter().position(|s| s == size) {
                new.swap_remove(at);
            }
        });
        Some(new.into_iter().max().unwrap_or(0))
    };
    // The control: a buffer of that size is seen.
    let before = allocated();
    let seen = device.zeros(&[outs, ins], DType::F16)?;
    let tells = gpu.report().info.backend == wgpu::Backend::Vulkan;
    assert!(largest_since(before).map_or(!tells, |largest| largest >= v_bytes), "a buffer as large as v was not seen");
    drop(seen);
    for (axis, count) in extent.of([(Axis::Kept(0), 3), (Axis::Kept(1), 4), (Axis::Whole, 5)], 3) {
        let zeros = |shape: &[usize]| device.zeros(shape, DType::F16);
        let (x, v, dy) = (zeros(&[batch, ins])?, zeros(&[outs, ins])?, zeros(&[batch, outs])?);
        let weight = WeightNorm::unit(&v).axis(axis);
        let (dx, dv) = (zeros(&[batch, ins])?, zeros(&[outs, ins])?);
        let dg = device.zeros(&[norm_count(&[outs, ins], axis)], DType::F32)?;
        let dbias = device.zeros(&[outs], DType::F32)?;
        let norms = device.zeros(&[norm_count(&[outs, ins], axis)], DType::F32)?;
        let u = device.zeros(&[batch, outs], DType::F32)?;
        let u = (axis != Axis::Kept(1)).then_some(&u);
        let gradients = Gradients::default().dx(&dx).dv(&dv).dg(&dg).dbias(&dbias);
        let before = allocated();
        let dispatches = recorded(&device, |ops| {
            let backward = LinearBackward::new(&x, weight.norms(&norms), &dy).u(u);
            ops.linear_backward(backward.tile(Tile::Tile32x32), &gradients)
        })?;
        assert_eq!(dispatches, count, "{axis:?}");
        if let Some(largest) = largest_since(before) {
            assert!(largest < v_bytes, "{axis:?}: {largest} bytes were allocated");
        }
        assert_eq!(crate::golden::read(&dv)?.len(), outs * ins);
    }
    Ok(())
}

/// dv and dg out of the product, against the product dw and then `normalize_backward`: what PyTorch does.
fn fused_is_normalize_backward_of_dw(gpu: &Gpu, extent: Extent) -> Outcome {
    all(extent.of([OUT, IN, WHOLE], 3), |&axis| {
        let case = Case::of(axis, [67, 33, 129]);
        let reference = case.reference()?;
        let [batch, outs, ins] = case.size;
        let x = upload(gpu, &case.x(), &[batch, ins], DType::F32, 0)?;
        let v = upload(gpu, &case.v(), &[outs, ins], DType::F32, 0)?;
        let dy = upload(gpu, &case.dy(), &[batch, outs], DType::F32, 0)?;
        let g = case.g().ok_or("no g")?;
        let g = upload(gpu, &g, &[g.len()], DType::F32, 0)?;
        let weight = WeightNorm::new(&v, &g).axis(axis.ok_or("normalized")?);
        let (_, nothing) = gpu.linear_saved(Linear::new(&x, &v))?;
        let dw = gpu.linear_backward(LinearBackward::new(&x, &v, &dy).saved(&nothing))?.dv;
        let (dv, dg) = gpu.normalize_backward(NormalizeBackward::new(&dw, weight))?;
        let (_, saved) = gpu.linear_saved(Linear::new(&x, weight))?;
        let fused = gpu.linear_backward(LinearBackward::new(&x, weight, &dy).saved(&saved))?;
        let pairs = [(1, &dv, &fused.dv), (2, &dg, fused.dg.as_ref().ok_or("no dg")?)];
        for (which, explicit, fused) in pairs {
            let (explicit, fused) = (crate::golden::read(explicit)?, crate::golden::read(fused)?);
            // Each is within its bound of what it should be.
            compare(&fused, &explicit, Some(DType::F32), |i| 2.0 * case.bound(&reference, which, i, 0.0))?;
        }
        Ok(())
    })
}

/// Scales of rows: the range, both sides of where sums of squares leave f32.
const SCALES: [f64; 15] =
    [1.0, 3e25, 3e-25, 1e20, 1e-20, 1e30, 1e-30, 1e15, 1e-15, 3e14, 3e-14, 1e10, 1e-10, 9e17, 9e-18];

/// Numbers of 0.5 to 1 of both signs, times scale_of(i).
fn scaled(seed: u64, count: usize, dtype: DType, scale_of: impl Fn(usize) -> f64) -> Vec<f64> {
    let mut rng = Rng::new(seed);
    let mut one = || {
        let r = rng.signed();
        (0.5 + r.abs() / 2.0).copysign(r)
    };
    (0..count).map(|i| rounded(one() * scale_of(i), dtype)).collect()
}

/// Norms from 1e-30 to 1e30: rows, columns and the whole of v.
fn scaled_rows(gpu: &Gpu, extent: Extent) -> Outcome {
    let count = SCALES.len();
    let ones = |outs, seed| Some(scaled(seed, outs, DType::F32, |_| 1.0));
    let mut cases = vec![];
    for eps in [Eps::None, Eps::Clamp(1e-35), Eps::InsideSqrt(1e-12), Eps::After(1e-3)] {
        let v = Some(scaled(40, count * 39, DType::F32, |i| SCALES[i / 39]));
        let case = Case { eps, v, g: ones(count, 41), ..Case::new([7, count, 39]) };
        cases.push(Case { known: false, ..case.clone() });
        cases.push(Case { accumulate: true, ..case.clone() });
        cases.push(Case { split_length: Some(16), ..case.clone() });
        cases.push(case);
        let v = Some(scaled(42, 33 * count, DType::F32, |i| SCALES[i % count]));
        cases.push(Case { eps, v, g: ones(count, 43), ..Case::of(IN, [7, 33, count]) });
    }
    if extent == Extent::All {
        let v = Some(scaled(44, 2 * 39, DType::Bf16, |i| [1e20, 1e-20][i / 39]));
        cases.push(Case { v, g: ones(2, 45), eps: Eps::None, ..Case::new([7, 2, 39]).stored(DType::Bf16) });
    }
    for scale in SCALES {
        let v = Some(scaled(46, 5 * 13, DType::F32, |_| scale));
        cases.push(Case { v, g: ones(1, 47), eps: Eps::None, ..Case::of(WHOLE, [7, 5, 13]) });
    }
    all(cases, |case| case.check(gpu))
}

/// g from 1e-30 to 1e30 and 0, of both signs, with rows as extreme.
fn scaled_gains(gpu: &Gpu) -> Outcome {
    let gains = [1e-30, 1e-15, 1.0, 0.0, 1e15, 1e30];
    let pairs: Vec<(f64, f64)> = gains.iter().flat_map(|&g| SCALES.iter().map(move |&v| (g, v))).collect();
    let outs = pairs.len();
    let g = Some(scaled(48, outs, DType::F32, |j| pairs[j].0));
    let v = Some(scaled(49, outs * 13, DType::F32, |i| pairs[i / 13].1));
    let case = Case { g, v, eps: Eps::None, ..Case::new([7, outs, 13]) };
    let g = Some(scaled(50, outs, DType::F32, |k| pairs[k].0));
    let v = Some(scaled(51, 5 * outs, DType::F32, |i| pairs[i % outs].1));
    let columns = Case { g, v, eps: Eps::None, ..Case::of(IN, [7, 5, outs]) };
    all([case.clone(), Case { accumulate: true, ..case }, columns], |case| case.check(gpu))
}

/// dv within the range of f32 where dyᵀx is not: small gains with large dw, large gains with small dw. dg, which f32
/// has to hold, does not see these elements: v is zero there.
fn dw_out_of_range(gpu: &Gpu) -> Outcome {
    let (batch, outs, ins) = (7, 9, 39);
    let wild = |i: usize| i % ins % 4 == 3;
    let v = Some(scaled(52, outs * ins, DType::F32, |i| if wild(i) { 0.0 } else { 1.0 }));
    let case = |x_scale: f64, dy_scale: f64, g_scale: f64| Case {
        x: Some(scaled(53, batch * ins, DType::F32, |i| if wild(i) { x_scale } else { 1.0 })),
        dy: Some(scaled(54, batch * outs, DType::F32, |_| dy_scale)),
        g: Some(scaled(55, outs, DType::F32, |_| g_scale)),
        v: v.clone(),
        wanted: [false, true, true, true],
        ..Case::new([batch, outs, ins])
    };
    let mut cases = vec![];
    for (x, dy, g) in [(1e30, 1e15, 1e-20), (1e-25, 1e-20, 1e20), (1e25, 1e25, 1e-30), (1e-30, 1e-30, 1e30)] {
        let case = case(x, dy, g);
        cases.push(Case { accumulate: true, ..case.clone() });
        cases.push(Case { split_length: Some(16), ..case.clone() });
        cases.push(case);
    }
    all(cases, |case| case.check(gpu))
}

/// dv within the range of f32 where dg is not, and with it no dyᵀx: large sums with small gains and the other way
/// round, every third norm an ordinary one. Features of x that are zero leave the correction alone.
fn dg_out_of_range(gpu: &Gpu, extent: Extent) -> Outcome {
    let mut cases = vec![];
    let sizes = [
        ([7, 9, 39], OUT),
        ([7, 9, 39], IN),
        ([7, 9, 39], WHOLE),
        // dy and u in quads, where they start at one.
        ([100, 64, 12], OUT),
        ([300, 9, 39], OUT),
        ([300, 64, 12], OUT),
        ([300, 12, 64], IN),
    ];
    for (size, axis) in sizes.into_iter().take(extent.choose(7, 4)) {
        let [batch, outs, ins] = size;
        let base = Case::of(axis, size);
        let ordinary = move |j: usize| axis != WHOLE && j % 3 == 1;
        // Of an element of x, dy: whether its norm is ordinary.
        let of_x = move |i: usize| axis == IN && ordinary(i % ins);
        let of_dy = move |i: usize| axis == OUT && ordinary(i % outs);
        for (x, dy, g) in [(1e10, 1e30, 1e-20), (1e-12, 1e-30, 1e25), (1e25, 1e25, 1e-30), (1e-25, 1e-25, 1e30)] {
            let (x_scale, dy_scale) = if axis == IN { (x, dy) } else { (dy, x) };
            let case = Case {
                x: Some(scaled(56, batch * ins, DType::F32, |i| {
                    let kept = if i % ins % 5 == 4 { 0.0 } else { 1.0 };
                    kept * if of_x(i) { 1.0 } else { x_scale }
                })),
                dy: Some(scaled(57, batch * outs, DType::F32, |i| if of_dy(i) { 1.0 } else { dy_scale })),
                g: Some(scaled(58, base.norm_count(), DType::F32, |j| if ordinary(j) { 1.0 } else { g })),
                wanted: [false, true, true, true],
                alignment: 16,
                ..base.clone()
            };
            cases.push(case.clone());
            if extent == Extent::Few && (size != [7, 9, 39] || axis != OUT) || axis == WHOLE {
                continue;
            }
            cases.push(Case { accumulate: true, ..case.clone() });
            cases.push(Case { split_length: Some(16), ..case.clone() });
            if extent == Extent::Few {
                continue;
            }
            let dy = case.dy().into_iter().map(|dy| rounded(dy, DType::Bf16)).collect();
            cases.push(Case { dtypes: [DType::F32, DType::F32, DType::Bf16], dy: Some(dy), ..case });
        }
    }
    all(cases, |case| case.check(gpu))
}

/// Sums of the product that are zero, where the correction is too small for f32 and the gain brings it back.
fn zero_sums(gpu: &Gpu, extent: Extent) -> Outcome {
    let mut cases = vec![];
    // Whole steps of the batch take pipelines of their own.
    let most = extent.choose(64, 63);
    for (batch, axis) in [(7, OUT), (16, OUT), (16, IN), (most, OUT), (most, WHOLE)] {
        // In quads, or in words as most tests are.
        let [outs, ins] = extent.choose([12, 40], [13, 39]);
        let base = Case::of(axis, [batch, outs, ins]);
        let silent = move |k: usize| k % 5 == 4;
        let case = Case {
            x: Some(scaled(59, batch * ins, DType::F32, |i| if silent(i % ins) { 0.0 } else { 1.0 })),
            v: Some(scaled(60, outs * ins, DType::F32, |i| if silent(i % ins) && axis != IN { 1e-27 } else { 1.0 })),
            dy: Some(scaled(61, batch * outs, DType::F32, |_| 1e-17)),
            g: Some(vec![1e30; base.norm_count()]),
            wanted: [false, true, true, false],
            ..base.clone()
        };
        if extent == Extent::All || axis == OUT {
            cases.push(Case { accumulate: true, ..case.clone() });
        }
        cases.push(case);
    }
    all(cases, |case| case.check(gpu))
}

/// Gradients of zero rows are finite, but under `none`.
fn zero_rows(gpu: &Gpu) -> Outcome {
    let mut cases = vec![];
    for axis in [OUT, IN, WHOLE] {
        for eps in POLICIES {
            for known in [true, false] {
                let [batch, outs, ins] = [7, 9, 13];
                let zero = move |i: usize| match axis {
                    OUT => i / ins % 3 == 1,
                    IN => i % ins % 3 == 1,
                    _ => true,
                };
                let v = Some(scaled(56, outs * ins, DType::F32, |i| if zero(i) { 0.0 } else { 1.0 }));
                cases.push(Case { eps, known, v, ..Case::of(axis, [batch, outs, ins]) });
            }
        }
    }
    all(cases, |case| {
        let reference = case.reference()?;
        if case.eps != Eps::None && !reference.values.iter().flatten().all(|v| v.is_finite()) {
            return Err("the reference is not finite".into());
        }
        case.check_against(gpu, &reference).map(drop)
    })
}

/// The clamp active in some rows and not in others; After with norms far below and far above e.
fn clamp_and_after(gpu: &Gpu) -> Outcome {
    let scales = [1.0, 1e-3, 1e3, 1e-20, 1e20, 0.0];
    let policies = [Eps::Clamp(0.5), Eps::Clamp(1e3), Eps::After(1e3), Eps::After(1e-3), Eps::InsideSqrt(1.0)];
    let mut cases = vec![];
    for eps in policies {
        for known in [true, false] {
            let v = Some(scaled(57, 6 * 13, DType::F32, |i| scales[i / 13]));
            cases.push(Case { eps, known, v, ..Case::new([7, 6, 13]) });
            let v = Some(scaled(58, 13 * 6, DType::F32, |i| scales[i % 6]));
            cases.push(Case { eps, known, v, ..Case::of(IN, [7, 13, 6]) });
            let v = Some(scaled(59, 5 * 13, DType::F32, |_| 1e-3));
            cases.push(Case { eps, known, v, ..Case::of(WHOLE, [7, 5, 13]) });
        }
    }
    all(cases, |case| case.check(gpu))
}

/// Where the reference is finite the result agrees; where it is not, the result is not.
///
/// (dy·x and then ·v/n̂, as the reference goes, makes NaN of an infinity; dy·u does not.)
fn agrees_where_finite(case: &Case, got: &Got, reference: &Reference, bad: f64) -> Outcome {
    for (which, name) in NAMES.into_iter().enumerate() {
        let Some(gradient) = &got.gradients[which] else { continue };
        for (i, (&got, &expected)) in gradient.iter().zip(&reference.values[which]).enumerate() {
            let fits = if !expected.is_finite() {
                if bad.is_nan() { got.is_nan() } else { !got.is_finite() }
            } else {
                (got - expected).abs() <= case.bound(reference, which, i, 0.0)
            };
            if !fits {
                return Err(format!("{name}[{i}] is {got:e}, expected {expected:e}").into());
            }
        }
    }
    Ok(())
}

/// NaN and infinity reach what depends on them, and nothing else.
fn not_finite(gpu: &Gpu) -> Outcome {
    let mut cases = vec![];
    for axis in AXES {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let case = Case::of(axis, [7, 33, 39]);
            let spoil = |mut values: Vec<f64>, at: usize| {
                values[at] = bad;
                Some(values)
            };
            cases.push((("dy", bad), Case { dy: spoil(case.dy(), 2 * 33 + 5), ..case.clone() }));
            cases.push((("x", bad), Case { x: spoil(case.x(), 3 * 39 + 7), ..case.clone() }));
            if axis.is_some() {
                cases.push((("v", bad), Case { v: spoil(case.v(), 4 * 39 + 6), ..case.clone() }));
                cases.push((("g", bad), Case { g: spoil(case.g().ok_or("no g")?, 0), ..case }));
            }
        }
    }
    all(cases, |((_, bad), case)| {
        let reference = case.reference()?;
        agrees_where_finite(case, &case.run(gpu)?, &reference, *bad)
    })
}

/// Where dy of a feature is zero its gradients are zero, not only small; the same for a feature of x that is zero, of a
/// plain weight.
fn dead_units(gpu: &Gpu) -> Outcome {
    all([OUT, IN, WHOLE, PLAIN], |&axis| {
        let [batch, outs, ins] = [70, 66, 65];
        let case = Case::of(axis, [batch, outs, ins]);
        let dy = case.dy().iter().enumerate().map(|(i, &dy)| if i % outs % 3 == 1 { 0.0 } else { dy }).collect();
        let x = case.x().iter().enumerate().map(|(i, &x)| if i % ins % 3 == 1 { 0.0 } else { x }).collect();
        let case = Case { dy: Some(dy), x: Some(x), ..case };
        let got = case.check_against(gpu, &case.reference()?)?;
        let zero = |which: usize, at: usize| got.gradients[which].as_ref().is_none_or(|list| list[at] == 0.0);
        for j in (0..outs).filter(|j| j % 3 == 1) {
            assert!(zero(3, j), "dbias of {j}");
            assert!(axis != OUT || zero(2, j), "dg of {j}");
            assert!(!(axis == OUT || axis == PLAIN) || (0..ins).all(|k| zero(1, j * ins + k)), "dv of {j}");
        }
        for k in (0..ins).filter(|k| k % 3 == 1) {
            assert!(axis != PLAIN || (0..outs).all(|j| zero(1, j * ins + k)), "dw of column {k}");
            assert!(axis != IN || (zero(2, k) && (0..outs).all(|j| zero(1, j * ins + k))), "dv of column {k}");
        }
        Ok(())
    })
}

/// Nine of ten elements zero, the others of every size.
fn sparse(gpu: &Gpu, extent: Extent) -> Outcome {
    let sizes = [1.0, 1e-10, 1e10, 1e-15];
    let rare = |seed: u64, count: usize| {
        let mut rng = Rng::new(seed);
        let values = scaled(seed + 1, count, DType::F32, |i| sizes[i % sizes.len()]);
        Some(values.into_iter().map(|v| if rng.signed() < 0.8 { 0.0 } else { v }).collect::<Vec<_>>())
    };
    let mut cases = vec![];
    for axis in AXES {
        let [batch, outs, ins] = [70, 33, 39];
        let case = Case { x: rare(60, batch * ins), dy: rare(62, batch * outs), ..Case::of(axis, [batch, outs, ins]) };
        cases.push(Case { v: rare(64, outs * ins), ..case.clone() });
        if extent == Extent::All || axis == OUT {
            cases.push(Case { accumulate: true, ..case.clone() });
        }
        cases.push(case);
    }
    all(cases, |case| case.check(gpu))
}

/// A batch of a few rows whose tensors can be read in quads.
fn few_rows(gpu: &Gpu, extent: Extent) -> Outcome {
    let few = |case: Case| Case { tile: None, alignment: 16, ..case };
    // All by one tile, where few cases are wanted.
    let rows = |batch: usize| extent.choose(batch, batch.clamp(3, 4));
    let new = |axis, [batch, outs, ins]: [usize; 3]| few(Case::of(axis, [rows(batch), outs, ins]));
    let mut cases = vec![];
    for batch in [1, 2, 3, 4, 5, 8] {
        for size in extent.of([[batch, 13, 36], [batch, 1, 4], [batch, 9, 1100], [batch, 1030, 8]], 4) {
            cases.extend(extent.of([OUT, PLAIN], 2).into_iter().map(|axis| new(axis, size)));
        }
    }
    cases.push(Case { eps: Eps::After(1e-3), gain: false, known: false, ..new(OUT, [3, 1100, 36]) });
    // What is added to, one product alone, one row more.
    cases.push(Case { accumulate: true, ..new(OUT, [3, 13, 36]) });
    cases.push(Case { wanted: [true, false, true, true], ..new(OUT, [3, 13, 36]) });
    if extent == Extent::All {
        cases.push(few(Case::new([9, 13, 36])));
    }
    all(&cases, |case| {
        let got = case.check_against(gpu, &case.reference()?)?;
        let norms = u64::from(!case.known);
        let products = 1 + u64::from(case.wanted[1]);
        assert_eq!(got.dispatches, norms + 1 + products);
        Ok(())
    })?;
    // The whole range: rows, gains, sums of every size.
    let gains = [1e-30, 1e-15, 1.0, 0.0, 1e15, 1e30];
    let pairs: Vec<(f64, f64)> = gains.iter().flat_map(|&g| SCALES.iter().map(move |&v| (g, v))).collect();
    let outs = pairs.len();
    let mut cases = vec![];
    for (batch, eps) in [(1, Eps::None), (7, Eps::None), (4, Eps::Clamp(1e-35)), (2, Eps::After(1e-3))] {
        let v = Some(scaled(70, SCALES.len() * 36, DType::F32, |i| SCALES[i / 36]));
        let g = Some(scaled(71, SCALES.len(), DType::F32, |_| 1.0));
        cases.push(Case { eps, v, g, ..new(OUT, [batch, SCALES.len(), 36]) });
        let v = Some(scaled(72, outs * 12, DType::F32, |i| pairs[i / 12].1));
        let g = Some(scaled(73, outs, DType::F32, |j| pairs[j].0));
        cases.push(Case { eps: Eps::None, v, g, ..new(OUT, [batch, outs, 12]) });
    }
    for (x, dy, g) in [(1e30, 1e15, 1e-20), (1e-25, 1e-20, 1e20), (1e25, 1e25, 1e-30), (1e-30, 1e-30, 1e30)] {
        // As in dw_out_of_range.
        let wild = |i: usize| i % 4 == 3;
        let case = new(OUT, [7, 9, 36]);
        cases.push(Case {
            x: Some(scaled(74, rows(7) * 36, DType::F32, |i| if wild(i) { x } else { 1.0 })),
            dy: Some(scaled(75, rows(7) * 9, DType::F32, |_| dy)),
            g: Some(scaled(76, 9, DType::F32, |_| g)),
            v: Some(scaled(77, 9 * 36, DType::F32, |i| if wild(i) { 0.0 } else { 1.0 })),
            ..case
        });
    }
    let zeros = |mut values: Vec<f64>, every: usize| {
        values.iter_mut().step_by(every).for_each(|value| *value = 0.0);
        Some(values)
    };
    let case = new(OUT, [7, 13, 36]);
    cases.push(Case { dy: zeros(case.dy(), 2), x: zeros(case.x(), 3), ..case.clone() });
    let mut v = case.v();
    v[36..72].fill(0.0);
    cases.push(Case { v: Some(v), ..case.clone() });
    all(&cases, |case| case.check(gpu))?;
    let mut cases = vec![];
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let spoil = |mut values: Vec<f64>, at: usize| {
            values[at] = bad;
            Some(values)
        };
        cases.push((bad, Case { dy: spoil(case.dy(), 2 * 13 + 5), ..case.clone() }));
        cases.push((bad, Case { x: spoil(case.x(), 3 * 36 + 7), ..case.clone() }));
        cases.push((bad, Case { v: spoil(case.v(), 4 * 36 + 6), ..case.clone() }));
        cases.push((bad, Case { g: spoil(case.g().ok_or("no g")?, 0), ..case.clone() }));
    }
    all(&cases, |(bad, case)| agrees_where_finite(case, &case.run(gpu)?, &case.reference()?, *bad))
}

/// Under the policy `none` a step along dv leaves the length of each row as it is, to first order.
fn dv_is_orthogonal_to_v(gpu: &Gpu) -> Outcome {
    all([OUT, IN, WHOLE], |&axis| {
        let case = Case { eps: Eps::None, ..Case::of(axis, [67, 33, 129]) };
        let reference = case.reference()?;
        let got = case.run(gpu)?;
        let dv = got.gradients[1].as_ref().ok_or("no dv")?;
        let of = norm_of(&case.v_shape(), axis.ok_or("normalized")?);
        let mut sums = vec![(0.0, 0.0, 0.0); case.norm_count()];
        for (i, (dv, v)) in dv.iter().zip(case.v()).enumerate() {
            let sum = &mut sums[of(i)];
            sum.0 += dv * v;
            sum.1 += case.bound(&reference, 1, i, 0.0) * v.abs();
            sum.2 += (dv * v).abs();
        }
        for (j, (sum, bound, size)) in sums.into_iter().enumerate() {
            if sum.abs() > bound || bound > 1e-2 * size && size > 0.0 {
                return Err(format!("norm {j}: {sum:e}, bound {bound:e}, terms {size:e}").into());
            }
        }
        Ok(())
    })
}

/// Scaling v by c leaves y, dg and dx as they are and divides dv by c.
fn scaled_v_divides_dv(gpu: &Gpu) -> Outcome {
    all([OUT, IN, WHOLE].into_iter().flat_map(|axis| [1024.0, 3.0, 1e-6, 1e12].map(|c| (axis, c))), |&(axis, c)| {
        let case = Case { eps: Eps::None, ..Case::of(axis, [7, 33, 39]) };
        let reference = case.reference()?;
        let v = case.v().iter().map(|v| rounded(v * c, DType::F32)).collect();
        let (plain, scaled) = (case.run(gpu)?, Case { v: Some(v), ..case.clone() }.run(gpu)?);
        for (which, name) in NAMES.into_iter().enumerate() {
            let (Some(a), Some(b)) = (&plain.gradients[which], &scaled.gradients[which]) else { continue };
            let back: Vec<f64> = b.iter().map(|b| if which == 1 { b * c } else { *b }).collect();
            // Rounding v·c moves v by as much as one more rounding of each element.
            compare(&back, a, Some(DType::F32), |i| 2.5 * case.bound(&reference, which, i, 0.0))
                .map_err(|e| format!("{name}: {e}"))?;
        }
        Ok(())
    })
}

fn same_bits(gpu: &Gpu, extent: Extent) -> Outcome {
    let mut cases: Vec<_> = AXES.map(|axis| Case::of(axis, [129, 33, 39])).into();
    // Odd rows of packed types have `packed_rows_share_words`.
    let packed: &[Option<Axis>] = extent.choose(&AXES, &[]);
    cases.extend(packed.iter().map(|&axis| Case::of(axis, [5, 7, 13]).stored(DType::Bf16)));
    let split = |axis| Case { split_length: Some(16), ..Case::of(axis, [67, 71, 75]) };
    cases.extend(extent.of(AXES, 4).into_iter().map(split));
    all(cases, |case| {
        let first = case.run(gpu)?;
        for _ in 0..3 {
            let again = case.run(gpu)?;
            for (i, (a, b)) in first.gradients.iter().zip(&again.gradients).enumerate() {
                if let (Some(a), Some(b)) = (a, b) {
                    is_same(NAMES[i], a, b)?;
                }
            }
        }
        Ok(())
    })
}

/// Past a binding of 1 MiB and 64 workgroups in a dimension; windows everywhere with bindings of 8 KiB.
fn windows(gpu: &Gpu, extent: Extent) -> Outcome {
    let device = small(gpu)?;
    let mut cases = vec![];
    // x past a binding, v and dy not; then v and dv; then dy and u.
    let axes = extent.of([OUT, IN], 2);
    cases.extend(axes.iter().map(|&axis| Case::of(axis, [3_000, 17, 101])));
    cases.extend(axes.iter().map(|&axis| Case::of(axis, [5, 700, 401])));
    cases.push(Case::of(OUT, [3_000, 101, 17]));
    if extent == Extent::All {
        cases.push(Case::of(PLAIN, [5, 700, 401]));
        cases.push(Case::of(OUT, [5, 1_401, 401]).stored(DType::F16));
    }
    all(cases, |case| {
        let count = case.check_against(&device, &case.reference()?)?.dispatches;
        let without = if case.axis == IN { 5 } else { 4 };
        if count <= without {
            return Err(format!("{count} dispatches, {without} without limits: no windows").into());
        }
        Ok(())
    })?;
    let device = tiny(gpu)?;
    let mut cases = vec![];
    let (axis, batch) = (extent.choose(OUT, IN), extent.choose(131, 35));
    cases.push(Case { accumulate: true, known: false, ..Case::of(axis, [batch, 35, 41]).stored(DType::F16) });
    cases.extend([OUT, WHOLE].map(|axis| Case::of(axis, [67, 71, 75])));
    all(extent.of(cases, 3), |case| case.check(&device))
}

fn errors(gpu: &Gpu) -> Outcome {
    let f32s = |shape: &[usize]| gpu.zeros(shape, DType::F32);
    let (x, v, dy, u) = (f32s(&[2, 3])?, f32s(&[4, 3])?, f32s(&[2, 4])?, f32s(&[2, 4])?);
    let (dx, dv, dg, dbias) = (f32s(&[2, 3])?, f32s(&[4, 3])?, f32s(&[4])?, f32s(&[4])?);
    let weight = WeightNorm::unit(&v);
    let none = Gradients::default();
    let tile = Tile::Tile32x32;
    let shape = |arg: &'static str, error: Error| match error {
        Error::Argument(ArgumentError::Shape { op: "linear_backward", arg: got, .. }) if got == arg => Ok(()),
        other => Err(format!("{arg}: {other:?}")),
    };
    let backward = |x: &Tensor, weight: Weight<'_>, dy: &Tensor, u: Option<&Tensor>, gradients: &Gradients<'_>| {
        refused(gpu, |ops: &mut Recorder<'_, '_>| {
            ops.linear_backward(LinearBackward::new(x, weight, dy).u(u).tile(tile), gradients)
        })
    };
    // u is missing where dg is a sum of it.
    for axis in [Axis::Kept(0), Axis::Whole] {
        let weight = weight.axis(axis).into();
        let dg = f32s(&[norm_count(&[4, 3], axis)])?;
        for wanted in [none.dv(&dv), none.dg(&dg)] {
            let error = backward(&x, weight, &dy, None, &wanted)?;
            assert!(
                matches!(error, Error::Argument(ArgumentError::Missing { op: "linear_backward", arg: "u" })),
                "{error:?}"
            );
        }
    }
    // Not needed for dx and dbias, for kept axis in, for a plain weight.
    counted(gpu, |ops| {
        ops.linear_backward(LinearBackward::new(&x, weight, &dy).tile(tile), &none.dx(&dx).dbias(&dbias))
    })?;
    counted(gpu, |ops| {
        ops.linear_backward(LinearBackward::new(&x, weight.axis(Axis::Kept(1)), &dy).tile(tile), &none.dv(&dv))
    })?;
    counted(gpu, |ops| ops.linear_backward(LinearBackward::new(&x, &v, &dy).tile(tile), &none.dv(&dv)))?;

    let normal = Weight::from(weight);
    let wrong = f32s(&[3, 4])?;
    let halves = gpu.zeros(&[2, 4], DType::F16)?;
    shape("dy", backward(&x, normal, &wrong, Some(&u), &none.dx(&dx))?)?;
    shape("u", backward(&x, normal, &dy, Some(&wrong), &none.dv(&dv))?)?;
    shape("dx", backward(&x, normal, &dy, None, &none.dx(&wrong))?)?;
    shape("dv", backward(&x, normal, &dy, Some(&u), &none.dv(&wrong))?)?;
    shape("dg", backward(&x, normal, &dy, Some(&u), &none.dg(&wrong))?)?;
    shape("dbias", backward(&x, normal, &dy, None, &none.dbias(&f32s(&[3])?))?)?;
    shape("dg", backward(&x, (&v).into(), &dy, None, &none.dg(&dg))?)?;
    let error = backward(&f32s(&[2, 5])?, normal, &dy, None, &none.dx(&dx))?;
    assert!(matches!(error, Error::Argument(ArgumentError::Shape { arg: "x", .. })), "{error:?}");
    let dtype = |arg: &'static str, error: Error| match error {
        Error::Argument(ArgumentError::DType { arg: got, .. }) if got == arg => Ok(()),
        other => Err(format!("{arg}: {other:?}")),
    };
    dtype("u", backward(&x, normal, &dy, Some(&halves), &none.dv(&dv))?)?;

    let error = backward(&x, normal, &dy, None, &none.dx(&x))?;
    assert!(matches!(error, Error::Argument(ArgumentError::Alias { output: "dx", input: "x", .. })), "{error:?}");
    let error = backward(&x, normal, &dy, Some(&u), &none.dv(&v))?;
    assert!(matches!(error, Error::Argument(ArgumentError::Alias { output: "dv", .. })), "{error:?}");
    let in_u = u.reshape(&[8])?;
    let in_u = Tensor::from_buffer(gpu, in_u.buffer()?, 0, &[4], DType::F32)?;
    let error = backward(&x, normal, &dy, Some(&u), &none.dg(&in_u))?;
    assert!(matches!(error, Error::Argument(ArgumentError::Alias { output: "dg", input: "u", .. })), "{error:?}");
    let error = backward(&x, normal, &dy, Some(&u), &none.dg(&dg).dbias(&dg))?;
    assert!(matches!(error, Error::Argument(ArgumentError::Overlap { first: "dg", second: "dbias", .. })), "{error:?}");
    let axis = weight.axis(Axis::Kept(2)).into();
    assert!(matches!(backward(&x, axis, &dy, None, &none.dx(&dx))?, Error::Argument(ArgumentError::Axis { .. })));
    let eps = weight.eps(Eps::Clamp(0.0)).into();
    assert!(matches!(backward(&x, eps, &dy, None, &none.dx(&dx))?, Error::Argument(ArgumentError::Eps { .. })));
    let zero = LinearBackward::new(&x, normal, &dy).split_length(0);
    let error = refused(gpu, |ops| ops.linear_backward(zero, &none.dx(&dx)))?;
    assert!(matches!(error, Error::Argument(ArgumentError::Variant { .. })), "{error:?}");
    Ok(())
}

/// A wrong result is noticed: a row of the batch lost, the correction left out, an element not written.
fn comparison_can_fail(gpu: &Gpu) -> Outcome {
    for axis in AXES {
        let case = Case::of(axis, [63, 33, 39]);
        let reference = case.reference()?;
        let mut dy = case.dy();
        // dg of the whole tensor is one sum over all of them.
        let lost = if axis == WHOLE { 32 } else { 1 };
        dy[..lost * 33].fill(0.0);
        let got = Case { dy: Some(dy), ..case.clone() }.run(gpu)?;
        for which in 0..4 {
            let mut gradients = vec![None; 4];
            gradients[which] = got.gradients[which].clone();
            if gradients[which].is_some() {
                let got = Got { gradients, dispatches: 0 };
                must_fail(&format!("{axis:?}: {}", NAMES[which]), case.compare(&got, &reference))?;
            }
        }
    }
    // Where the clamp is active dv has no correction.
    let case = Case::new([63, 33, 39]);
    let got = Case { eps: Eps::Clamp(1e6), g: case.g().map(|g| g.iter().map(|g| g * 1e6).collect()), ..case.clone() };
    must_fail("no correction", case.compare(&got.run(gpu)?, &case.reference()?))?;
    let outputs = Outputs::new(gpu, &[(vec![3], DType::F16), (vec![2], DType::F32)], None, 1)?;
    must_fail("nothing written", outputs.read(&[true, false]).map(drop).map_err(|_| String::new()))
}

/// One call of normalize_backward.
#[derive(Clone)]
struct Rescale {
    shape: Vec<usize>,
    axis: Axis,
    eps: Eps,
    /// Of dw, v, dv.
    dtypes: [DType; 3],
    gain: bool,
    known: bool,
    accumulate: bool,
    /// dv, dg.
    wanted: [bool; 2],
    /// dv starts at a multiple of so many bytes; dw and v too, if these are more than 4.
    alignment: usize,
    dw: Option<Vec<f64>>,
    v: Option<Vec<f64>>,
    g: Option<Vec<f64>>,
}

impl std::fmt::Debug for Rescale {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Rescale { shape, axis, eps, dtypes, gain, known, accumulate, wanted, .. } = self;
        write!(f, "{shape:?} {axis:?} {eps:?} {dtypes:?} gain {gain}, known {known}, {accumulate:?} {wanted:?}")
    }
}

impl Rescale {
    fn new(shape: &[usize], axis: Axis) -> Rescale {
        Rescale {
            shape: shape.to_vec(),
            axis,
            eps: Eps::default(),
            dtypes: [DType::F32; 3],
            gain: true,
            known: false,
            accumulate: false,
            wanted: [true; 2],
            alignment: 4,
            dw: None,
            v: None,
            g: None,
        }
    }

    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    fn data(&self) -> (Vec<f64>, Vec<f64>, Option<Vec<f64>>) {
        let dw = self.dw.clone().unwrap_or_else(|| random(71, self.len(), self.dtypes[0]));
        let v = self.v.clone().unwrap_or_else(|| random(72, self.len(), self.dtypes[1]));
        let g = || self.g.clone().unwrap_or_else(|| gains(73, norm_count(&self.shape, self.axis)));
        (dw, v, self.gain.then(g))
    }

    /// dv and dg, and the dispatches.
    #[expect(clippy::type_complexity, reason = "two gradients, each if wanted")]
    fn run(&self, gpu: &Gpu) -> Result<(Vec<Option<Vec<f64>>>, u64), Failed> {
        let (dw, v, g) = self.data();
        let seed = self.len() + self.shape.len();
        let count = norm_count(&self.shape, self.axis);
        let known = self.known.then(|| cpu::row_norms(&v, &self.shape, self.axis, self.eps)).transpose()?;
        let places = if self.alignment == 4 { [seed, seed + 1] } else { [0, 0] };
        let dw = upload(gpu, &dw, &self.shape, self.dtypes[0], places[0])?;
        let v = upload(gpu, &v, &self.shape, self.dtypes[1], places[1])?;
        let vector = |values: Option<Vec<f64>>, seed| {
            values.map(|values| upload(gpu, &values, &[count], DType::F32, seed)).transpose()
        };
        let (g, known) = (vector(g, seed + 2)?, vector(known, seed + 3)?);
        let mut weight = g.as_ref().map_or(WeightNorm::unit(&v), |g| WeightNorm::new(&v, g));
        weight = weight.axis(self.axis).eps(self.eps);
        if let Some(known) = &known {
            weight = weight.norms(known);
        }
        let parts = [(self.shape.clone(), self.dtypes[2]), (vec![count], DType::F32)];
        let held = self.held();
        let held = (self.accumulate).then_some(&held[..]);
        let outputs = Outputs::aligned(gpu, &parts, held, seed, self.alignment)?;
        let of = |i: usize| self.wanted[i].then_some(&outputs.tensors[i]);
        let dispatches = recorded(gpu, |ops| {
            ops.normalize_backward(
                NormalizeBackward::new(&dw, weight),
                &Gradients::default().dv(of(0)).dg(of(1)).accumulate(self.accumulate),
            )
        })?;
        Ok((outputs.read(&self.wanted)?, dispatches))
    }

    fn held(&self) -> [Vec<f64>; 2] {
        if !self.accumulate {
            return [vec![], vec![]];
        }
        let count = norm_count(&self.shape, self.axis);
        [random(74, self.len(), self.dtypes[2]), random(75, count, DType::F32)]
    }

    fn check(&self, gpu: &Gpu) -> Outcome {
        Ok(self.compare(&self.run(gpu)?.0)?)
    }

    /// dv and dg, each if it is there.
    fn compare(&self, got: &[Option<Vec<f64>>]) -> Result<(), String> {
        let failed = |e: Error| e.to_string();
        let (dw, v, g) = self.data();
        let (dv, dg) =
            cpu::normalize_backward(&dw, &v, &self.shape, g.as_deref(), self.axis, self.eps).map_err(failed)?;
        let (dv_terms, dg_terms) = normalize_terms(&dw, &v, &self.shape, g.as_deref(), self.axis, self.eps);
        let norms = cpu::row_norms(&v, &self.shape, self.axis, self.eps).map_err(failed)?;
        let of = norm_of(&self.shape, self.axis);
        let held = self.held();
        let held = |which: usize, i: usize| if self.accumulate { held[which][i] } else { 0.0 };
        let chain = norm_chain(norm_length(&self.shape, self.axis));
        if let Some(got) = &got[1] {
            let expected: Vec<f64> = dg.iter().enumerate().map(|(j, dg)| dg + held(1, j)).collect();
            let bound = |j: usize| dg_bound(chain, chain, dg_terms[j] + held(1, j).abs(), expected[j]);
            compare(got, &expected, Some(DType::F32), bound).map_err(|e| format!("dg: {e}"))?;
        }
        if let Some(got) = &got[0] {
            let expected: Vec<f64> = dv.iter().enumerate().map(|(i, dv)| dv + held(0, i)).collect();
            let scale = |i: usize| g.as_ref().map_or(1.0, |g| g[of(i)].abs()) / norms[of(i)];
            let bound = |i: usize| {
                let terms = dv_terms[i] + held(0, i).abs();
                dv_bound(chain, chain, terms, expected[i], self.dtypes[2]) + 2.0 * SUBNORMAL * scale(i)
            };
            compare(got, &expected, Some(self.dtypes[2]), bound).map_err(|e| format!("dv: {e}"))?;
        }
        Ok(())
    }
}

const SHAPES: [&[usize]; 9] =
    [&[37], &[1], &[13, 7], &[33, 259], &[5, 9, 7], &[3, 5, 300], &[2, 3, 5, 4], &[16, 8, 3, 3], &[2, 3, 2, 5, 3]];

/// Few: each shape and axis with one policy, once with norms of its own and once with known ones.
fn normalize_axes_and_policies(gpu: &Gpu, extent: Extent) -> Outcome {
    let mut cases = vec![];
    for shape in SHAPES {
        for axis in axes(shape) {
            let first = cases.len() / 2;
            let policies = extent.choose(&POLICIES[..], &POLICIES[first % 4..][..1]);
            for &eps in policies {
                let gain = extent == Extent::All || first % 3 != 0;
                cases.push(Rescale { eps, gain, ..Rescale::new(shape, axis) });
            }
            if extent == Extent::All {
                cases.push(Rescale { gain: false, ..Rescale::new(shape, axis) });
            }
            for &eps in policies {
                cases.push(Rescale { eps, known: true, accumulate: true, ..Rescale::new(shape, axis) });
            }
        }
    }
    for shape in [&[0][..], &[0, 3], &[3, 0], &[2, 0, 3], &[]] {
        cases.extend(axes(shape).map(|axis| Rescale::new(shape, axis)));
    }
    all(cases, |case| case.check(gpu))
}

fn normalize_dtypes(gpu: &Gpu, extent: Extent) -> Outcome {
    let mixes = DTYPES.iter().flat_map(|&dw| DTYPES.iter().flat_map(move |&v| DTYPES.map(|dv| [dw, v, dv])));
    let mut cases = vec![];
    for dtypes in mixes {
        for (shape, axis) in [(&[13, 7][..], Axis::Kept(0)), (&[5, 3, 3], Axis::Kept(1)), (&[15, 5], Axis::Kept(1))] {
            for accumulate in [false, true] {
                cases.push(Rescale { dtypes, accumulate, ..Rescale::new(shape, axis) });
            }
        }
    }
    all(extent.of(cases, 23), |case| case.check(gpu))
}

/// Only dv, only dg, neither; the dispatches that the documentation says.
fn normalize_wanted(gpu: &Gpu) -> Outcome {
    // Rows that a workgroup holds take one in all, and the norms of longer ones are summed up in one.
    let cases = [
        (&[13, 7][..], Axis::Kept(0), 1, true),
        (&[5, 9, 7], Axis::Kept(1), 2, false),
        (&[13, 7], Axis::Whole, 1, true),
        (&[3, 1027], Axis::Kept(0), 1, false),
        (&[3, 4100], Axis::Kept(0), 1, false),
    ];
    for (shape, axis, norms, held) in cases {
        for wanted @ [dv, dg] in [[true, true], [true, false], [false, true], [false, false]] {
            for known in [true, false] {
                for eps in [Eps::default(), Eps::After(1e-3)] {
                    let case = Rescale { wanted, known, eps, ..Rescale::new(shape, axis) };
                    case.check(gpu)?;
                    // The norms are summed up beside the products of dw and v.
                    let expected = u64::from(dv || dg) * norms + u64::from(dv && !held);
                    assert_eq!(case.run(gpu)?.1, expected, "{case:?}");
                }
            }
        }
    }
    Ok(())
}

/// Few and many units of a lane, few and many lanes of a row, single elements; ends of f32's range in some rows.
fn normalize_held_rows(gpu: &Gpu) -> Outcome {
    let [f32, f16, bf16] = [DType::F32, DType::F16, DType::Bf16];
    for (shape, dtypes) in [
        ([3, 4096], [f32; 3]),
        ([3, 2920], [f32, bf16, bf16]),
        ([70, 12], [f32; 3]),
        ([3, 1021], [f32, f16, f32]),
        ([200, 3], [bf16, f32, f32]),
    ] {
        let case = Rescale { dtypes, alignment: 32, ..Rescale::new(&shape, Axis::Kept(0)) };
        case.check(gpu)?;
        let sizes = if dtypes[1] == f16 { [1.0, 0.0, 1e-2] } else { [1.0, 1e25, 1e-25] };
        let v = Some(scaled(94, case.len(), dtypes[1], |i| sizes[i / shape[1] % 3]));
        let dw = Some(scaled(95, case.len(), dtypes[0], |i| [1.0, 1e-15, 1e15][i / shape[1] % 3]));
        Rescale { v, dw, eps: Eps::Clamp(1e-35), accumulate: true, ..case.clone() }.check(gpu)?;
        assert_eq!(case.run(gpu)?.1, 1, "{case:?}");
    }
    Ok(())
}

fn normalize_long_rows(gpu: &Gpu, extent: Extent) -> Outcome {
    let bf16 = [DType::Bf16; 3];
    let cases = [
        Rescale::new(&[8, 1 << 20], Axis::Kept(0)),
        Rescale { dtypes: bf16, ..Rescale::new(&[1, 4_000_000], Axis::Kept(0)) },
        Rescale::new(&[262_144, 8], Axis::Kept(0)),
        Rescale { accumulate: true, ..Rescale::new(&[262_144, 8], Axis::Kept(1)) },
        Rescale::new(&[1, 262_144], Axis::Kept(0)),
    ];
    // The last two alone, where few are wanted.
    all(cases.into_iter().skip(extent.choose(0, 3)), |case| case.check(gpu))
}

fn normalize_windows(gpu: &Gpu, extent: Extent) -> Outcome {
    let mut cases = vec![];
    for (shape, axis) in [
        (&[301, 1_001][..], Axis::Kept(0)),
        (&[301, 1_001], Axis::Kept(1)),
        (&[300_001], Axis::Kept(0)),
        (&[3, 300_000], Axis::Kept(0)),
        (&[100_001, 3], Axis::Kept(0)),
        (&[19, 53, 301], Axis::Kept(1)),
        (&[19, 53, 301], Axis::Whole),
    ] {
        cases.push(Rescale::new(shape, axis));
    }
    cases.push(Rescale { dtypes: [DType::F32, DType::F16, DType::F16], ..Rescale::new(&[601, 1_001], Axis::Kept(0)) });
    cases.push(Rescale { accumulate: true, known: true, ..Rescale::new(&[100_001, 3], Axis::Kept(0)) });
    let device = small(gpu)?;
    all(extent.of(cases, 3), |case| {
        case.check(&device)?;
        let (limited, without) = (case.run(&device)?.1, case.run(gpu)?.1);
        if limited <= without {
            return Err(format!("{limited} dispatches, {without} without limits: no windows").into());
        }
        Ok(())
    })?;
    let device = tiny(gpu)?;
    let mut cases = vec![];
    for (shape, axis) in [
        (&[4_001][..], Axis::Kept(0)),
        (&[4_001], Axis::Whole),
        (&[61, 67], Axis::Kept(0)),
        (&[61, 67], Axis::Kept(1)),
        (&[7, 11, 53], Axis::Kept(1)),
        (&[3, 5, 300], Axis::Kept(1)),
    ] {
        for dtypes in [[DType::F32; 3], [DType::Bf16; 3], [DType::F16, DType::F32, DType::F16]] {
            cases.push(Rescale { dtypes, ..Rescale::new(shape, axis) });
        }
    }
    all(extent.of(cases, 5), |case| case.check(&device))?;
    // In quads: whole rows in a window, windows within a row, down the rows, and more norms than a binding holds.
    let mut cases = vec![];
    for (shape, axis) in [
        (&[61, 64][..], Axis::Kept(0)),
        (&[61, 64], Axis::Kept(1)),
        (&[4, 3_008], Axis::Kept(0)),
        (&[31, 6, 16], Axis::Kept(1)),
        (&[9, 2, 1_024], Axis::Kept(1)),
        (&[3, 4_000], Axis::Kept(1)),
    ] {
        for (dtype, accumulate) in [(DType::F32, false), (DType::Bf16, true)] {
            cases.push(Rescale { dtypes: [dtype; 3], alignment: 32, accumulate, ..Rescale::new(shape, axis) });
        }
    }
    in_turn(&device, extent, extent.of(&cases, 5), |device, case| case.check(device))
}

/// Rows of which some lanes have sums outside the range that f32 holds safely and others have not: each forms again
/// what it summed up itself, wherever words of packed types begin.
fn normalize_uneven_lanes(gpu: &Gpu, extent: Extent) -> Outcome {
    let mut cases = vec![];
    let mixes = [[DType::F32, DType::Bf16, DType::F32], [DType::Bf16; 3], [DType::F32; 3], [DType::F16; 3]];
    for dtypes in extent.of(mixes, 2) {
        let large = if dtypes[1] == DType::F16 { 1e4 } else { 1e20 };
        for length in [17, 39, 257, 264] {
            let rows = |value: &dyn Fn(usize, usize) -> f64| {
                let v = (0..3 * length).map(|i| rounded(value(i / length, i % length), dtypes[1])).collect();
                Rescale { v: Some(v), dtypes, eps: Eps::None, ..Rescale::new(&[3, length], Axis::Kept(0)) }
            };
            // One number in a row, all but every eighth, every eighth large.
            cases.push(rows(&|row, k| if k == row + 1 { 1.0 } else { 0.0 }));
            cases.push(rows(&|row, k| if (k + row) % 8 == 0 { 0.0 } else { 1.0 }));
            cases.push(rows(&|row, k| if (k + row) % 8 == 0 { large } else { 1.0 }));
        }
    }
    in_turn(gpu, extent, &cases, |gpu, case| case.check(gpu))
}

/// The longest rows that one invocation sums up, with products and squares that have to be formed again.
fn normalize_longest_loops(gpu: &Gpu, extent: Extent) -> Outcome {
    let shape = [512, 20_000];
    let tiny = |seed| Some(scaled(seed, shape[0] * shape[1], DType::F32, |_| 1e-25));
    // In words, then in quads.
    for alignment in extent.of([4, 32], 2) {
        let (v, dw, wanted) = (tiny(92), tiny(93), [false, true]);
        let case = Rescale { v, dw, wanted, eps: Eps::None, alignment, ..Rescale::new(&shape, Axis::Kept(0)) };
        let gpu = &of_kind(gpu, Kind::Software)?;
        case.check(gpu)?;
        assert_eq!(case.run(gpu)?.1, 1, "one invocation a row");
    }
    Ok(())
}

/// Rows, gains and dw from 1e-30 to 1e30: dv and dg are right where f32 holds them.
fn normalize_scaled(gpu: &Gpu) -> Outcome {
    let scales = [1.0, 3e25, 3e-25, 1e30, 1e-30, 1e15, 1e-15];
    let (ones, tens) = ([1.0, 1e-30, 1e30], [1.0, 1e-25, 1e25]);
    let mut rows = vec![];
    for v in scales {
        for g in ones {
            rows.extend(tens.map(|dw| (v, g, dw)));
        }
    }
    rows.push((1.0, 0.0, 1.0));
    let (kept, length) = (rows.len(), 37);
    let mut cases = vec![];
    for eps in [Eps::None, Eps::Clamp(1e-35), Eps::InsideSqrt(1e-30), Eps::After(1e-3)] {
        let g = Some(scaled(80, kept, DType::F32, |j| rows[j].1));
        let v = Some(scaled(81, kept * length, DType::F32, |i| rows[i / length].0));
        let dw = Some(scaled(82, kept * length, DType::F32, |i| rows[i / length].2));
        let shape = [kept, length];
        cases.push(Rescale { eps, g: g.clone(), v, dw, ..Rescale::new(&shape, Axis::Kept(0)) });
        let v = Some(scaled(83, kept * length, DType::F32, |i| rows[i % kept].0));
        let dw = Some(scaled(84, kept * length, DType::F32, |i| rows[i % kept].2));
        cases.push(Rescale { eps, g, v, dw, ..Rescale::new(&[length, kept], Axis::Kept(1)) });
    }
    // All sizes within one row.
    let v = Some(scaled(85, 5 * 60, DType::F32, |i| scales[i % 7]));
    let dw = Some(scaled(86, 5 * 60, DType::F32, |i| tens[i % 3]));
    cases.push(Rescale { v, dw, eps: Eps::None, ..Rescale::new(&[5, 60], Axis::Kept(0)) });
    let v = Some(scaled(87, 2 * 39, DType::Bf16, |i| [1e20, 1e-20][i / 39]));
    cases.push(Rescale { v, dtypes: [DType::Bf16; 3], ..Rescale::new(&[2, 39], Axis::Kept(0)) });
    all(cases, |case| case.check(gpu))
}

fn normalize_zero_rows(gpu: &Gpu) -> Outcome {
    let mut cases = vec![];
    for eps in POLICIES.into_iter().chain([Eps::Clamp(0.5), Eps::Clamp(1e3), Eps::After(1e3)]) {
        for known in [true, false] {
            let v = Some(scaled(88, 7 * 13, DType::F32, |i| [1.0, 0.0, 1e-3, 1e3][i / 13 % 4]));
            cases.push(Rescale { eps, known, v, ..Rescale::new(&[7, 13], Axis::Kept(0)) });
            let v = Some(scaled(89, 13 * 7, DType::F32, |i| [1.0, 0.0, 1e-3, 1e3][i % 7 % 4]));
            cases.push(Rescale { eps, known, v, ..Rescale::new(&[13, 7], Axis::Kept(1)) });
            let v = Some(vec![0.0; 13]);
            cases.push(Rescale { eps, known, v, ..Rescale::new(&[13], Axis::Whole) });
        }
    }
    all(cases, |case| case.check(gpu))
}

/// NaN and infinity stay in their row. The other half of a packed word belongs to the next row.
fn normalize_not_finite(gpu: &Gpu) -> Outcome {
    for dtype in DTYPES {
        for bad in [f64::NAN, f64::INFINITY] {
            for of_v in [false, true] {
                let mut case = Rescale { dtypes: [dtype; 3], ..Rescale::new(&[9, 13], Axis::Kept(0)) };
                let (mut dw, mut v, _) = case.data();
                if of_v {
                    v[4 * 13 + 12] = bad
                } else {
                    dw[4 * 13 + 12] = bad
                }
                let clean = case.run(gpu)?.0;
                (case.dw, case.v) = (Some(dw), Some(v));
                let got = case.run(gpu)?.0;
                for (which, length) in [(0, 13), (1, 1)] {
                    let (Some(clean), Some(got)) = (&clean[which], &got[which]) else { continue };
                    for (i, (clean, got)) in clean.iter().zip(got).enumerate() {
                        let row = i / length;
                        let fits = if row == 4 { !got.is_finite() || bad.is_infinite() } else { got == clean };
                        assert!(fits, "{dtype:?} {bad} in v {of_v}: output {which}, element {i} is {got}");
                    }
                }
                if bad.is_nan() {
                    case.check(gpu)?;
                }
            }
        }
    }
    Ok(())
}

/// What is read four words at once, as on either kind of device: rows, columns and the middle, with sizes from where
/// sums leave the range of f32, zero rows and NaN.
fn normalize_quads(gpu: &Gpu, extent: Extent) -> Outcome {
    let mut cases = vec![];
    for (shape, axis) in [
        (&[9, 40][..], Axis::Kept(0)),
        (&[70, 520], Axis::Kept(0)),
        (&[600, 8], Axis::Kept(0)),
        (&[2, 1024], Axis::Whole),
        (&[45, 24], Axis::Kept(1)),
        (&[131, 8], Axis::Kept(1)),
        (&[3, 5, 8], Axis::Kept(1)),
        (&[20, 8, 5], Axis::Kept(1)),
        (&[131, 6, 16], Axis::Kept(1)),
        (&[131, 2, 4], Axis::Kept(1)),
        (&[131, 6, 8], Axis::Kept(1)),
    ] {
        for dtype in DTYPES {
            for (eps, accumulate, alignment) in
                [(Eps::default(), false, 32), (Eps::default(), false, 16), (Eps::After(1e-3), true, 32)]
            {
                let case = Rescale { eps, accumulate, dtypes: [dtype; 3], alignment, ..Rescale::new(shape, axis) };
                if dtype != DType::F16 {
                    let row = crate::data::norm_of(shape, axis);
                    let sizes = [1.0, 1e25, 1e-25, 0.0, 1e10];
                    let v = Some(scaled(90, case.len(), dtype, |i| sizes[row(i) % 5]));
                    let dw = Some(scaled(91, case.len(), dtype, |i| [1.0, 1e-15, 1e15][row(i) % 3]));
                    cases.push(Rescale { v, dw, eps: Eps::Clamp(1e-35), ..case.clone() });
                }
                cases.push(case);
            }
        }
    }
    in_turn(gpu, extent, extent.of(&cases, 13), |gpu, case| case.check(gpu))
}

/// One element off by a hundredth, and the correction left out where the clamp is active.
fn normalize_comparison_can_fail(gpu: &Gpu) -> Outcome {
    for dtype in [DType::F32, DType::F16] {
        for axis in [Axis::Kept(0), Axis::Kept(1), Axis::Whole] {
            let case = Rescale { dtypes: [dtype; 3], ..Rescale::new(&[13, 7], axis) };
            let got = case.run(gpu)?.0;
            case.compare(&got)?;
            for which in 0..2 {
                let mut wrong = got.clone();
                let values = wrong[which].as_mut().ok_or("it is wanted")?;
                values[0] += 0.01 * values.iter().fold(0f64, |most, value| most.max(value.abs()));
                must_fail(&format!("{case:?}: output {which}"), case.compare(&wrong))?;
            }
            let scaled = case.data().2.map(|g| g.iter().map(|g| g * 1e3).collect());
            let clamped = Rescale { eps: Eps::Clamp(1e3), g: scaled, wanted: [true, false], ..case.clone() };
            must_fail(&format!("{case:?}: no correction"), case.compare(&clamped.run(gpu)?.0))?;
        }
    }
    Ok(())
}

fn normalize_errors(gpu: &Gpu) -> Outcome {
    let f32s = |shape: &[usize]| gpu.zeros(shape, DType::F32);
    let (dw, v, dv, dg) = (f32s(&[4, 3])?, f32s(&[4, 3])?, f32s(&[4, 3])?, f32s(&[4])?);
    let wrong = f32s(&[3, 4])?;
    let weight = WeightNorm::unit(&v);
    let call = |dw: &Tensor, weight: WeightNorm<'_>, dv: Option<&Tensor>, dg: Option<&Tensor>| {
        refused(gpu, |ops| {
            ops.normalize_backward(NormalizeBackward::new(dw, weight), &Gradients::default().dv(dv).dg(dg))
        })
    };
    let shape = |arg: &'static str, error: Error| match error {
        Error::Argument(ArgumentError::Shape { op: "normalize_backward", arg: got, .. }) if got == arg => Ok(()),
        other => Err(format!("{arg}: {other:?}")),
    };
    shape("dw", call(&wrong, weight, Some(&dv), None)?)?;
    shape("dv", call(&dw, weight, Some(&wrong), None)?)?;
    shape("dg", call(&dw, weight, None, Some(&wrong))?)?;
    shape("g", call(&dw, WeightNorm::new(&v, &wrong), Some(&dv), None)?)?;
    shape("norms", call(&dw, weight.norms(&wrong), Some(&dv), None)?)?;
    let halves = gpu.zeros(&[4], DType::F16)?;
    assert!(matches!(
        call(&dw, weight.norms(&halves), Some(&dv), None)?,
        Error::Argument(ArgumentError::DType { arg: "norms", .. })
    ));
    assert!(matches!(
        call(&dw, weight, Some(&dw), None)?,
        Error::Argument(ArgumentError::Alias { output: "dv", input: "dw", .. })
    ));
    assert!(matches!(
        call(&dw, weight, Some(&v), None)?,
        Error::Argument(ArgumentError::Alias { output: "dv", input: "v", .. })
    ));
    assert!(matches!(
        call(&dw, WeightNorm::new(&v, &dg), None, Some(&dg))?,
        Error::Argument(ArgumentError::Alias { output: "dg", .. })
    ));
    assert!(matches!(
        call(&dw, weight.axis(Axis::Kept(2)), Some(&dv), None)?,
        Error::Argument(ArgumentError::Axis { .. })
    ));
    assert!(matches!(
        call(&dw, weight.eps(Eps::After(-1.0)), Some(&dv), None)?,
        Error::Argument(ArgumentError::Eps { .. })
    ));
    Ok(())
}
