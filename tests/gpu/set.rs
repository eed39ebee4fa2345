//! Operators on sets of weights of different shapes, kept axes, storage types and policies.
use weightnorm::{
    ArgumentError, Axis, DType, Eps, Error, Gpu, LimitError, NormalizeBackward, SetMember, SetOperator, Tensor,
    WeightNorm, WeightSet, cpu,
};

use crate::common::{compare, dg_bound, dv_bound, norm_bound, normalize_terms, weight_bound};
use crate::data::{
    DTYPES, POISON, POLICIES, axes, from_bytes, gains, in_turn, must_fail, norm_chain, norm_count, norm_length,
    norm_of, random, rounded, to_bytes,
};
use crate::device::{counted, limited, recorded, refused, small, tiny};
use crate::norms::{LARGE, QUADS, SHAPES};
use crate::{Extent, Failed, Needs, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    let mut test = |name: &str, test: fn(&Gpu) -> Outcome| {
        suite.test(&format!("set::{name}"), Needs::Nothing, test);
    };
    test("zero_rows", zero_rows);
    test("not_finite", not_finite);
    test("dispatches", dispatches);
    test("of_nothing", of_nothing);
    test("allocating", allocating);
    test("same_bits", same_bits);
    test("as_one_by_one", as_one_by_one);
    test("errors", errors);
    test("comparison_can_fail", comparison_can_fail);
    let mut sampled = |name: &str, test: fn(&Gpu, Extent) -> Outcome| suite.sampled(&format!("set::{name}"), test);
    sampled("range", range);
    sampled("mixed", |gpu, extent| {
        let parts =
            extent.choose(vec![mixed()], vec![extent.of(mixed(), 4), extent.of(mixed().into_iter().skip(2), 4)]);
        in_turn(gpu, extent, parts, |gpu, layers| Layers::new(layers.clone()).check_some(gpu, extent))
    });
    sampled("mixed_from_any_word", |gpu, extent| {
        Layers { align: 4, ..Layers::new(extent.of(mixed().into_iter().skip(1), 4)) }.check_some(gpu, extent)
    });
    sampled("of_one_dtype", of_one_dtype);
    sampled("small_bindings", |gpu, extent| {
        Layers::new(extent.of(past_a_mebibyte(), 2)).check_some(&small(gpu)?, extent)
    });
    sampled("tiny_bindings", tiny_bindings);
    sampled("large_tensors", large_tensors);
    sampled("long_rows", long_rows);
}

/// One member of a set.
#[derive(Debug, Clone)]
struct Layer {
    shape: Vec<usize>,
    axis: Axis,
    eps: Eps,
    /// Of v, w and dv, dw.
    dtypes: [DType; 3],
    gain: bool,
    /// Each element of v and of dw is multiplied by these.
    scales: Vec<[f64; 2]>,
}

impl Layer {
    fn new(shape: &[usize], axis: Axis) -> Layer {
        let dtypes = [DType::F32; 3];
        Layer { shape: shape.to_vec(), axis, eps: Eps::default(), dtypes, gain: true, scales: vec![[1.0; 2]] }
    }

    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    fn count(&self) -> usize {
        norm_count(&self.shape, self.axis)
    }

    /// Numbers away from zero where they are scaled, so that none of them is subnormal then.
    fn numbers(&self, seed: u64, which: usize) -> Vec<f64> {
        let dtype = self.dtypes[2 * which];
        let of = norm_of(&self.shape, self.axis);
        let random = random(seed + self.len() as u64, self.len(), dtype);
        if self.scales.len() == 1 && self.scales[0] == [1.0; 2] {
            return random;
        }
        let scale = |i: usize| self.scales[of(i) % self.scales.len()][which];
        let one = |r: f64| (0.5 + r.abs() / 2.0).copysign(r);
        random.iter().enumerate().map(|(i, &r)| rounded(one(r) * scale(i), dtype)).collect()
    }

    fn v(&self) -> Vec<f64> {
        self.numbers(11, 0)
    }

    fn dw(&self) -> Vec<f64> {
        self.numbers(12, 1)
    }

    fn g(&self) -> Option<Vec<f64>> {
        self.gain.then(|| gains(13 + self.len() as u64, self.count()))
    }

    /// What dv and dg hold before something is added.
    fn held(&self) -> [Vec<f64>; 2] {
        [random(14, self.len(), self.dtypes[1]), random(15, self.count(), DType::F32)]
    }
}

/// Tensors of one kind in one buffer, with guards between them.
struct Shared {
    whole: Tensor,
    tensors: Vec<Tensor>,
}

/// What a tensor holds, if it is no output, its shape and storage type.
type Part<'a> = (Option<Vec<f64>>, &'a [usize], DType);

impl Shared {
    /// Each from a multiple of 16 bytes on, or (`align` 4) from one of 4 that is none of 16.
    fn new(gpu: &Gpu, parts: &[Part<'_>], align: usize, guards: bool) -> Result<Shared, Failed> {
        let guard = if guards { 16 } else { 0 };
        let skew = |i: usize| if align == 16 { 0 } else { 4 * (1 + i % 3) };
        let mut bytes = POISON.repeat(8);
        let mut places = vec![];
        for (i, (values, shape, dtype)) in parts.iter().enumerate() {
            let begin = bytes.len().next_multiple_of(16) + skew(i);
            let size = shape.iter().product::<usize>() * dtype.size() as usize;
            bytes.resize(begin, 0);
            bytes.extend(POISON.repeat(size.div_ceil(4)));
            if let Some(values) = values {
                bytes[begin..begin + size].copy_from_slice(&to_bytes(values, *dtype));
            }
            bytes.resize(bytes.len() + guard, 0);
            places.push(begin);
        }
        // Between the tensors as well.
        let mut inside = vec![false; bytes.len()];
        for (place, (_, shape, dtype)) in places.iter().zip(parts) {
            let size = shape.iter().product::<usize>() * dtype.size() as usize;
            inside[*place..place + size].fill(true);
        }
        for (i, byte) in bytes.iter_mut().enumerate().filter(|(i, _)| !inside[*i]) {
            *byte = POISON[i % 4];
        }
        let words: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
        let whole = gpu.upload(&words, &[words.len()])?;
        let tensor = |(&place, &(_, shape, dtype)): (&usize, &(_, &[usize], DType))| {
            Tensor::from_buffer(gpu, whole.buffer()?, place as u64, shape, dtype)
        };
        let tensors = places.iter().zip(parts).map(tensor).collect::<Result<_, _>>()?;
        Ok(Shared { whole, tensors })
    }

    /// All tensors, once it is sure that all of them were written and nothing between them.
    fn read(&self) -> Result<Vec<Vec<f64>>, String> {
        let words = self.whole.read::<f32>().map_err(|e| e.to_string())?;
        let bytes: &[u8] = bytemuck::cast_slice(&words);
        let mut at = 0;
        let mut all = vec![];
        for (i, tensor) in self.tensors.iter().enumerate() {
            let begin = tensor.offset() as usize;
            let size = tensor.dtype().size() as usize;
            let end = begin + tensor.len() * size;
            if let Some(hurt) = (at..begin).find(|&i| bytes[i] != POISON[i % 4]) {
                return Err(format!("byte {hurt} in front of tensor {i} was overwritten; it begins at {begin}"));
            }
            if bytes[begin..end].chunks_exact(size).any(|e| e == &POISON[..size]) {
                return Err(format!("tensor {i} was not written whole"));
            }
            all.push(from_bytes(&bytes[begin..end], tensor.dtype()));
            at = end;
        }
        match (at..bytes.len()).find(|&i| bytes[i] != POISON[i % 4]) {
            Some(hurt) => Err(format!("byte {hurt} behind the last tensor was overwritten")),
            None => Ok(all),
        }
    }
}

/// A set to be checked.
struct Layers {
    layers: Vec<Layer>,
    align: usize,
    guards: bool,
}

/// The tensors of a set.
struct Tensors {
    v: Shared,
    in_place: Shared,
    g: Shared,
    dw: Shared,
    norms: Shared,
    w: Shared,
    dv: Shared,
    dg: Shared,
}

impl Tensors {
    /// Every operator that writes into tensors of its own.
    fn run_all(&self, gpu: &Gpu, layers: &[Layer], accumulate: bool) -> Outcome {
        let set = self.set(gpu, layers)?;
        recorded(gpu, |ops| {
            ops.row_norms_set(&set)?;
            ops.normalize_set(&set)?;
            ops.normalize_backward_set(&set, accumulate)
        })?;
        Ok(())
    }

    /// norms, w, dv, dg
    fn outputs(&self) -> [&Shared; 4] {
        [&self.norms, &self.w, &self.dv, &self.dg]
    }

    fn members<'a>(&'a self, layers: &'a [Layer], v: &'a Shared) -> impl Iterator<Item = SetMember<'a>> {
        layers.iter().enumerate().map(move |(i, layer)| {
            let v = &v.tensors[i];
            let weight = if layer.gain { WeightNorm::new(v, &self.g.tensors[i]) } else { WeightNorm::unit(v) };
            SetMember::new(weight.axis(layer.axis).eps(layer.eps))
        })
    }

    fn set<'a>(&'a self, gpu: &Gpu, layers: &'a [Layer]) -> Result<WeightSet, Error> {
        let with_tensors = |(i, member): (usize, SetMember<'a>)| {
            let member = member.w(&self.w.tensors[i]).norms(&self.norms.tensors[i]).dw(&self.dw.tensors[i]);
            member.dv(&self.dv.tensors[i]).dg(&self.dg.tensors[i])
        };
        let members: Vec<_> = self.members(layers, &self.v).enumerate().map(with_tensors).collect();
        gpu.weight_set(&members)
    }
}

impl Layers {
    fn new(layers: Vec<Layer>) -> Layers {
        Layers { layers, align: 16, guards: true }
    }

    fn shared(&self, gpu: &Gpu, part: impl Fn(&Layer) -> Part<'_>) -> Result<Shared, Failed> {
        Shared::new(gpu, &self.layers.iter().map(part).collect::<Vec<_>>(), self.align, self.guards)
    }

    fn tensors(&self, gpu: &Gpu, accumulate: bool) -> Result<Tensors, Failed> {
        let counts: Vec<[usize; 1]> = self.layers.iter().map(|l| [l.count()]).collect();
        let per_norm = |values: &dyn Fn(&Layer) -> Option<Vec<f64>>| {
            let parts: Vec<_> =
                self.layers.iter().zip(&counts).map(|(l, count)| (values(l), &count[..], DType::F32)).collect();
            Shared::new(gpu, &parts, self.align, self.guards)
        };
        let held = |which: usize| move |l: &Layer| (accumulate).then(|| l.held()[which].clone());
        Ok(Tensors {
            v: self.shared(gpu, |l| (Some(l.v()), &l.shape, l.dtypes[0]))?,
            in_place: self.shared(gpu, |l| (Some(l.v()), &l.shape, l.dtypes[0]))?,
            g: per_norm(&|l| Some(l.g().unwrap_or_else(|| vec![f64::NAN; l.count()])))?,
            dw: self.shared(gpu, |l| (Some(l.dw()), &l.shape, l.dtypes[2]))?,
            norms: per_norm(&|_| None)?,
            w: self.shared(gpu, |l| (None, &l.shape, l.dtypes[1]))?,
            dv: self.shared(gpu, |l| (held(0)(l), &l.shape, l.dtypes[1]))?,
            dg: per_norm(&|l| held(1)(l))?,
        })
    }

    fn check(&self, gpu: &Gpu) -> Outcome {
        self.check_forward(gpu)?;
        self.check_backward(gpu, false)?;
        self.check_backward(gpu, true)
    }

    /// Few: gradients that are added alone.
    fn check_some(&self, gpu: &Gpu, extent: Extent) -> Outcome {
        self.check_forward(gpu)?;
        if extent == Extent::All {
            self.check_backward(gpu, false)?;
        }
        self.check_backward(gpu, true)
    }

    fn check_forward(&self, gpu: &Gpu) -> Outcome {
        let tensors = self.tensors(gpu, false)?;
        let set = tensors.set(gpu, &self.layers)?;
        let own: Vec<_> = tensors.members(&self.layers, &tensors.in_place).collect();
        let own = gpu.weight_set(&own)?;
        for project in [false, true] {
            recorded(gpu, |ops| {
                if project {
                    return ops.normalize_direction_set(&own);
                }
                ops.row_norms_set(&set)?;
                ops.normalize_set(&set)?;
                ops.normalize_set_in_place(&own)
            })?;
            if project {
                continue;
            }
            let (norms, w, in_place) = (tensors.norms.read()?, tensors.w.read()?, tensors.in_place.read()?);
            for (i, layer) in self.layers.iter().enumerate() {
                self.compare(layer, &norms[i], &w[i], &in_place[i]).map_err(|e| format!("{i}, {layer:?}: {e}"))?;
            }
        }
        // The projection of what is normalized: rows of norm 1, or n̂ of that under other policies.
        let (before, after) = (tensors.w.read()?, tensors.in_place.read()?);
        for (i, layer) in self.layers.iter().enumerate() {
            if layer.dtypes[0] != layer.dtypes[1] || layer.dtypes[0] != DType::F32 || layer.eps != POLICIES[2] {
                continue;
            }
            let w = cpu::normalize(&before[i], &layer.shape, None, layer.axis, layer.eps)?;
            let chain = norm_chain(norm_length(&layer.shape, layer.axis));
            compare(&after[i], &w, Some(DType::F32), |k| weight_bound(2 * chain, w[k], DType::F32))
                .map_err(|e| format!("projection of {i}, {layer:?}: {e}"))?;
        }
        Ok(())
    }

    fn compare(&self, layer: &Layer, norms: &[f64], w: &[f64], in_place: &[f64]) -> Result<(), String> {
        let failed = |e: Error| e.to_string();
        let (v, g) = (layer.v(), layer.g());
        let chain = norm_chain(norm_length(&layer.shape, layer.axis));
        let expected = cpu::row_norms(&v, &layer.shape, layer.axis, layer.eps).map_err(failed)?;
        compare(norms, &expected, Some(DType::F32), |j| norm_bound(chain, expected[j]))
            .map_err(|e| format!("norms: {e}"))?;
        let expected = cpu::normalize(&v, &layer.shape, g.as_deref(), layer.axis, layer.eps).map_err(failed)?;
        for (name, got, dtype) in [("w", w, layer.dtypes[1]), ("in place", in_place, layer.dtypes[0])] {
            compare(got, &expected, Some(dtype), |i| weight_bound(chain, expected[i], dtype))
                .map_err(|e| format!("{name}: {e}"))?;
        }
        Ok(())
    }

    fn check_backward(&self, gpu: &Gpu, accumulate: bool) -> Outcome {
        let tensors = self.tensors(gpu, accumulate)?;
        let set = tensors.set(gpu, &self.layers)?;
        recorded(gpu, |ops| ops.normalize_backward_set(&set, accumulate))?;
        let (dv, dg) = (tensors.dv.read()?, tensors.dg.read()?);
        for (i, layer) in self.layers.iter().enumerate() {
            compare_gradients(layer, accumulate, &dv[i], &dg[i])
                .map_err(|e| format!("{i}, {layer:?}, {accumulate:?}: {e}"))?;
        }
        Ok(())
    }
}

fn compare_gradients(layer: &Layer, accumulate: bool, got_dv: &[f64], got_dg: &[f64]) -> Result<(), String> {
    let failed = |e: Error| e.to_string();
    let Layer { shape, axis, eps, dtypes, .. } = layer;
    let (dw, v, g, held) = (layer.dw(), layer.v(), layer.g(), layer.held());
    let held = |which: usize, i: usize| if accumulate { held[which][i] } else { 0.0 };
    let (dv, dg) = cpu::normalize_backward(&dw, &v, shape, g.as_deref(), *axis, *eps).map_err(failed)?;
    let (dv_terms, dg_terms) = normalize_terms(&dw, &v, shape, g.as_deref(), *axis, *eps);
    let norms = cpu::row_norms(&v, shape, *axis, *eps).map_err(failed)?;
    let of = norm_of(shape, *axis);
    let chain = norm_chain(norm_length(shape, *axis));
    let expected: Vec<f64> = dg.iter().enumerate().map(|(j, dg)| dg + held(1, j)).collect();
    let bound = |j: usize| dg_bound(chain, chain, dg_terms[j] + held(1, j).abs(), expected[j]);
    compare(got_dg, &expected, Some(DType::F32), bound).map_err(|e| format!("dg: {e}"))?;
    let expected: Vec<f64> = dv.iter().enumerate().map(|(i, dv)| dv + held(0, i)).collect();
    // A subnormal that was flushed on the way.
    let scale = |i: usize| g.as_ref().map_or(1.0, |g| g[of(i)].abs()) / norms[of(i)];
    let bound = |i: usize| {
        let terms = dv_terms[i] + held(0, i).abs();
        dv_bound(chain, chain, terms, expected[i], dtypes[1]) + 2.0 * f64::from(f32::MIN_POSITIVE) * scale(i)
    };
    compare(got_dv, &expected, Some(dtypes[1]), bound).map(drop).map_err(|e| format!("dv: {e}"))
}

/// Every shape with every axis, all policies, storage types in all mixtures.
fn mixed() -> Vec<Layer> {
    let shapes = SHAPES.iter().chain(QUADS).filter(|shape| shape.iter().product::<usize>() <= 1 << 16);
    let cases = shapes.flat_map(|shape| axes(shape).map(move |axis| Layer::new(shape, axis)));
    cases
        .enumerate()
        .map(|(i, layer)| Layer {
            eps: if layer.len() == 0 { Eps::default() } else { POLICIES[i % 4] },
            dtypes: [DTYPES[i % 3], DTYPES[i / 3 % 3], DTYPES[i / 5 % 3]],
            gain: i % 5 != 0,
            ..layer
        })
        .collect()
}

/// Few: all in f32, and some in each other type.
fn of_one_dtype(gpu: &Gpu, extent: Extent) -> Outcome {
    for (i, dtype) in DTYPES.into_iter().enumerate() {
        let shapes: [(&[usize], Axis); 8] = [
            (&[64, 100], Axis::Kept(0)),
            (&[100, 64], Axis::Kept(1)),
            (&[31, 5, 3], Axis::Kept(1)),
            (&[16, 33], Axis::Kept(0)),
            (&[9], Axis::Kept(0)),
            (&[3, 4096], Axis::Kept(0)),
            (&[8, 4, 1000], Axis::Kept(1)),
            (&[5, 7, 11], Axis::Whole),
        ];
        let layers = shapes.map(|(shape, axis)| Layer { dtypes: [dtype; 3], ..Layer::new(shape, axis) });
        let step = if dtype == DType::F32 { 1 } else { 3 };
        Layers::new(extent.of(layers.into_iter().skip(extent.choose(0, i)), step)).check_some(gpu, extent)?;
    }
    Ok(())
}

fn large_tensors(gpu: &Gpu, extent: Extent) -> Outcome {
    let cases = LARGE.iter().flat_map(|shape| axes(shape).map(move |axis| Layer::new(shape, axis)));
    let with_dtype = |(i, layer)| Layer { dtypes: [DTYPES[i % 3]; 3], ..layer };
    Layers::new(extent.of(cases.enumerate().map(with_dtype), 2)).check_some(gpu, extent)
}

/// Rows that are split over workgroups, beside short ones.
fn long_rows(gpu: &Gpu, extent: Extent) -> Outcome {
    let cases: [(&[usize], Axis, DType); 6] = [
        (&[3, 400_003], Axis::Kept(0), DType::F32),
        (&[100, 3], Axis::Kept(0), DType::F32),
        (&[1, 1_000_001], Axis::Kept(0), DType::Bf16),
        (&[262_144, 8], Axis::Kept(1), DType::F32),
        (&[2, 3, 100_000], Axis::Kept(1), DType::F16),
        (&[1001, 301], Axis::Whole, DType::F32),
    ];
    let layer = |(shape, axis, dtype): (&[usize], Axis, DType)| Layer { dtypes: [dtype; 3], ..Layer::new(shape, axis) };
    Layers::new(cases.map(layer).to_vec()).check_some(gpu, extent)
}

/// The whole range of f32: beside each other, as rows and as columns.
fn range(gpu: &Gpu, extent: Extent) -> Outcome {
    let v = [1.0, 3e25, 3e-25, 1e30, 1e-30, 1e15, 1e-15];
    let scales: Vec<[f64; 2]> = v.iter().flat_map(|&v| [1.0, 1e-25, 1e25].map(|dw| [v, dw])).collect();
    let count = scales.len();
    let mut layers = vec![];
    for eps in [Eps::None, Eps::Clamp(1e-35), Eps::InsideSqrt(1e-30), Eps::After(1e-3)] {
        for length in [37, 200, 5] {
            layers.push((eps, Layer::new(&[count, length], Axis::Kept(0))));
            layers.push((eps, Layer::new(&[length, count], Axis::Kept(1))));
            layers.push((eps, Layer::new(&[length, 24], Axis::Kept(1))));
        }
        layers.push((eps, Layer::new(&[2, count, 300], Axis::Kept(1))));
        layers.push((eps, Layer::new(&[2, 150_001], Axis::Kept(0))));
    }
    let layers = layers.into_iter().map(|(eps, layer)| Layer { eps, scales: scales.clone(), ..layer });
    let mut layers: Vec<_> = layers.collect();
    let bf16 = Layer { dtypes: [DType::Bf16; 3], scales: vec![[1e20, 1.0], [1e-20, 1.0]], ..layers[0].clone() };
    layers.push(bf16);
    Layers::new(layers).check_some(gpu, extent)?;
    // Into narrower types than v, and both ends of f16: what the gradients are there, f16 does not hold.
    let [f32, f16, bf16] = [DType::F32, DType::F16, DType::Bf16];
    let narrow =
        [([f32, f16, f32], [3e25, 3e-25]), ([f32, bf16, f32], [3e25, 3e-25]), ([bf16, f16, f32], [1e30, 1e-30])];
    let both_ends = [([f16, f16, f16], [6e4, 7e-5]), ([f16, f32, f16], [6e4, 7e-5])];
    let layer = |(dtypes, scales): ([DType; 3], [f64; 2])| {
        [(&[6, 301][..], Axis::Kept(0)), (&[301, 6], Axis::Kept(1)), (&[6, 8], Axis::Whole)].map(|(shape, axis)| {
            let scales = scales.map(|scale| [scale, 1.0]).to_vec();
            Layer { dtypes, scales, eps: Eps::Clamp(1e-35), ..Layer::new(shape, axis) }
        })
    };
    Layers::new(narrow.into_iter().chain(both_ends).flat_map(layer).collect()).check_forward(gpu)
}

/// Rows of zeros, rows at which the clamp is active, rows of which it is not.
fn zero_rows(gpu: &Gpu) -> Outcome {
    let mut layers = vec![];
    for eps in POLICIES.into_iter().chain([Eps::Clamp(0.5), Eps::Clamp(1e3), Eps::After(1e3)]) {
        for (shape, axis) in [(&[9, 13][..], Axis::Kept(0)), (&[13, 8], Axis::Kept(1)), (&[16, 64], Axis::Kept(0))] {
            let scales = vec![[1.0, 1.0], [0.0, 1.0], [1e-3, 1.0], [1e3, 0.0]];
            layers.push(Layer { eps, scales, ..Layer::new(shape, axis) });
        }
    }
    Layers::new(layers).check(gpu)
}

/// NaN and infinity stay in their row, in every policy: the member beside it and the row beside it do not change.
fn not_finite(gpu: &Gpu) -> Outcome {
    for bad in [f64::NAN, f64::INFINITY] {
        let scales = vec![[1.0; 2], [1.0; 2], [bad, 1.0], [1.0, f64::NAN]];
        let cases = DTYPES.into_iter().zip(POLICIES).flat_map(|(dtype, eps)| {
            [(&[9, 13][..], Axis::Kept(0)), (&[13, 9], Axis::Kept(1)), (&[12, 64], Axis::Kept(0))]
                .map(|(shape, axis)| Layer { dtypes: [dtype; 3], eps, ..Layer::new(shape, axis) })
        });
        let clean: Vec<Layer> = cases.collect();
        let dirty: Vec<Layer> = clean.iter().map(|l| Layer { scales: scales.clone(), ..l.clone() }).collect();
        if bad.is_nan() {
            Layers::new(dirty.clone()).check_forward(gpu)?;
            Layers::new(dirty.clone()).check_backward(gpu, false)?;
        }
        let layers = Layers::new(dirty);
        let tensors = layers.tensors(gpu, false)?;
        tensors.run_all(gpu, &layers.layers, false)?;
        let [norms, w, dv, dg] = tensors.outputs().map(Shared::read);
        let (norms, w, dv, dg) = (norms?, w?, dv?, dg?);
        for (i, layer) in layers.layers.iter().enumerate() {
            let of = norm_of(&layer.shape, layer.axis);
            for j in 0..layer.count() {
                let rest = j % 4 != 2;
                assert!(norms[i][j].is_finite() == rest, "{bad}: norm {j} of {layer:?} is {}", norms[i][j]);
                assert!(j % 4 >= 2 || dg[i][j].is_finite(), "{bad}: dg {j} of {layer:?} is {}", dg[i][j]);
            }
            for k in (0..layer.len()).filter(|&k| of(k) % 4 < 2) {
                assert!(w[i][k].is_finite() && dv[i][k].is_finite(), "{bad}: element {k} of {layer:?}");
            }
        }
    }
    Ok(())
}

/// Members past a binding, and many that fit one together.
fn past_a_mebibyte() -> Vec<Layer> {
    let shapes: [(&[usize], Axis); 10] = [
        (&[301, 1001], Axis::Kept(0)),
        (&[1001, 301], Axis::Kept(1)),
        (&[1000, 304], Axis::Kept(1)),
        (&[3, 300_001], Axis::Kept(0)),
        (&[100_001, 3], Axis::Kept(0)),
        (&[45, 91, 71], Axis::Kept(1)),
        (&[19, 53, 301], Axis::Kept(1)),
        (&[19, 53, 301], Axis::Whole),
        (&[3, 50_000], Axis::Kept(1)),
        (&[1, 9], Axis::Kept(0)),
    ];
    let layer = |(i, (shape, axis)): (usize, (&[usize], Axis))| Layer {
        dtypes: [DTYPES[i % 3], DTYPES[i / 2 % 3], DTYPES[i / 3 % 3]],
        ..Layer::new(shape, axis)
    };
    shapes.into_iter().enumerate().map(layer).collect()
}

/// Each storage type of each tensor, and each place in it, takes pipelines of its own.
fn tiny_bindings(gpu: &Gpu, extent: Extent) -> Outcome {
    let tiny = tiny(gpu)?;
    for (align, first) in [(16, 0), (4, 2)] {
        let layer = |(i, (shape, axis)): (usize, (&[usize], Axis))| Layer {
            dtypes: [DTYPES[i % 3], DTYPES[i / 2 % 3], DTYPES[i / 3 % 3]],
            ..Layer::new(shape, axis)
        };
        let layers = crate::limits::SHAPES.into_iter().enumerate().map(layer).skip(extent.choose(0, first));
        Layers { align, ..Layers::new(extent.of(layers, 4)) }.check_some(&tiny, extent)?;
    }
    // A whole binding of norms that repeat from row to row.
    let layers = Layers::new(vec![Layer::new(&[3, 1_031], Axis::Kept(1))]);
    let tensors = layers.tensors(&tiny, false)?;
    match tensors.set(&tiny, &layers.layers) {
        Err(Error::Limit(LimitError::TooLarge { .. })) => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

/// However many members, and one more for other buffers or places.
fn dispatches(gpu: &Gpu) -> Outcome {
    let rows = |count: usize| (0..count).map(|i| Layer::new(&[8 + i, 16 + 8 * i], Axis::Kept(0))).collect::<Vec<_>>();
    let counts = |gpu: &Gpu, layers: &Layers| -> Result<[u64; 4], Failed> {
        let tensors = layers.tensors(gpu, false)?;
        let set = tensors.set(gpu, &layers.layers)?;
        use SetOperator::{Backward, InPlace, Normalize, RowNorms};
        let [norms, normalize, in_place, backward] =
            [RowNorms, Normalize, InPlace, Backward].map(|op| set.dispatch_count(op));
        let counts = [norms?, normalize?, in_place?, backward?];
        let record = [
            counted(gpu, |ops| ops.row_norms_set(&set))?,
            counted(gpu, |ops| ops.normalize_set(&set))?,
            counted(gpu, |ops| ops.normalize_direction_set(&set))?,
            counted(gpu, |ops| ops.normalize_backward_set(&set, false))?,
        ];
        assert_eq!(counts, record);
        Ok(counts)
    };
    // Rows that a workgroup holds are normalized in one dispatch, those of other members in two.
    assert_eq!(counts(gpu, &Layers::new(rows(1)))?, [1, 1, 1, 2]);
    assert_eq!(counts(gpu, &Layers::new(rows(100)))?, [1, 1, 1, 2]);
    assert_eq!(counts(gpu, &Layers { align: 4, ..Layers::new(rows(100)) })?, [1, 2, 2, 2]);
    let mut layers = rows(10);
    layers.push(Layer::new(&[1, 1 << 20], Axis::Kept(0)));
    assert_eq!(counts(gpu, &Layers::new(layers.clone()))?, [2, 4, 4, 3], "a row is split");
    layers.push(Layer::new(&[64, 64], Axis::Kept(1)));
    assert_eq!(counts(gpu, &Layers::new(layers.clone()))?, [3, 5, 5, 4], "columns");
    layers.iter_mut().enumerate().for_each(|(i, l)| l.dtypes = [0, 1, 2].map(|k| DTYPES[(i + k) % 3]));
    assert_eq!(counts(gpu, &Layers::new(layers))?, [3, 4, 5, 4], "storage types");

    // Tensors with buffers of their own.
    let new = || gpu.zeros(&[5, 16], DType::F32);
    let (v, w) = ([new()?, new()?, new()?], [new()?, new()?, new()?]);
    let members: Vec<_> = v.iter().zip(&w).map(|(v, w)| SetMember::new(WeightNorm::unit(v)).w(w)).collect();
    assert_eq!(gpu.weight_set(&members)?.dispatch_count(SetOperator::Normalize)?, 3);
    let v = gpu.tensors(&[(&[5, 16], DType::F32), (&[5, 3], DType::F16), (&[7], DType::Bf16)])?;
    assert!(v.iter().all(|one| one.buffer().unwrap() == v[0].buffer().unwrap() && one.offset() % 16 == 0));
    Ok(())
}

fn of_nothing(gpu: &Gpu) -> Outcome {
    let set = gpu.weight_set(&[])?;
    let count = recorded(gpu, |ops| {
        ops.row_norms_set(&set)?;
        ops.normalize_set(&set)?;
        ops.normalize_direction_set(&set)?;
        ops.normalize_backward_set(&set, true)
    })?;
    assert_eq!(count, 0);
    assert!(gpu.tensors(&[])?.is_empty());
    Ok(())
}

/// The forms that allocate.
fn allocating(gpu: &Gpu) -> Outcome {
    let layers = Layers::new(mixed().into_iter().step_by(7).collect());
    let tensors = layers.tensors(gpu, false)?;
    let weights: Vec<WeightNorm<'_>> = (layers.layers.iter().enumerate())
        .map(|(i, l)| {
            let v = &tensors.v.tensors[i];
            let weight = if l.gain { WeightNorm::new(v, &tensors.g.tensors[i]) } else { WeightNorm::unit(v) };
            weight.axis(l.axis).eps(l.eps)
        })
        .collect();
    let with_dw = tensors.dw.tensors.iter().zip(&weights).map(|(dw, &weight)| NormalizeBackward::new(dw, weight));
    let (norms, w) = (gpu.row_norms_set(&weights)?, gpu.normalize_set(&weights)?);
    let gradients = gpu.normalize_backward_set(&with_dw.collect::<Vec<_>>())?;
    for (i, layer) in layers.layers.iter().enumerate() {
        let own = Layer { dtypes: [layer.dtypes[0], layer.dtypes[0], layer.dtypes[2]], ..layer.clone() };
        let [norms, w, dv, dg] = [&norms[i], &w[i], &gradients[i].0, &gradients[i].1].map(crate::golden::read);
        let w = w?;
        layers.compare(&own, &norms?, &w, &w)?;
        compare_gradients(&own, false, &dv?, &dg?)?;
    }
    Ok(())
}

fn same_bits(gpu: &Gpu) -> Outcome {
    let layers = Layers::new(mixed().into_iter().step_by(5).collect());
    let run = || -> Result<Vec<Vec<u32>>, Failed> {
        let tensors = layers.tensors(gpu, true)?;
        tensors.run_all(gpu, &layers.layers, true)?;
        let all = tensors.outputs().map(|s| s.whole.read::<f32>());
        let bits = |words: Result<Vec<f32>, Error>| Ok(words?.iter().map(|w| w.to_bits()).collect());
        all.into_iter().map(bits).collect()
    };
    let first = run()?;
    for _ in 0..3 {
        assert!(run()? == first, "other bits");
    }
    Ok(())
}

/// Beside the operators on single weights: one encoder, one result for the other's bound.
fn as_one_by_one(gpu: &Gpu) -> Outcome {
    let layers = Layers::new(mixed().into_iter().filter(|l| l.len() > 0).step_by(3).collect());
    let tensors = layers.tensors(gpu, false)?;
    let set = tensors.set(gpu, &layers.layers)?;
    let singles = layers.tensors(gpu, false)?;
    let taken = recorded(gpu, |ops| {
        ops.normalize_set(&set)?;
        for (i, l) in layers.layers.iter().enumerate() {
            let v = &singles.v.tensors[i];
            let weight = if l.gain { WeightNorm::new(v, &singles.g.tensors[i]) } else { WeightNorm::unit(v) };
            ops.normalize(weight.axis(l.axis).eps(l.eps), &singles.w.tensors[i])?;
        }
        Ok(())
    })?;
    assert!(taken > layers.layers.len() as u64);
    let (all, each) = (tensors.w.read()?, singles.w.read()?);
    for (i, layer) in layers.layers.iter().enumerate() {
        let chain = norm_chain(norm_length(&layer.shape, layer.axis));
        let bound = |k: usize| 2.0 * weight_bound(chain, each[i][k], layer.dtypes[1]);
        compare(&all[i], &each[i], Some(layer.dtypes[1]), bound).map_err(|e| format!("{layer:?}: {e}"))?;
    }
    Ok(())
}

fn errors(gpu: &Gpu) -> Outcome {
    let new = |shape: &[usize]| gpu.zeros(shape, DType::F32);
    let (v, g, w, norms) = (new(&[4, 5])?, new(&[4])?, new(&[4, 5])?, new(&[4])?);
    let good = SetMember::new(WeightNorm::new(&v, &g));
    let texts = |members: &[SetMember<'_>]| match gpu.weight_set(members) {
        Err(error) => error.to_string(),
        Ok(_) => "no error".to_owned(),
    };
    let other = limited(gpu, |_| {})?;
    let foreign = other.zeros(&[4, 5], DType::F32)?;
    let half = gpu.zeros(&[4], DType::F16)?;
    let two = gpu.tensors(&[(&[4, 5], DType::F32), (&[4, 5], DType::F32)])?;
    let overlapping = Tensor::from_buffer(gpu, two[0].buffer()?, 16, &[4, 5], DType::F32)?;
    let unit = |v| SetMember::new(WeightNorm::unit(v));
    let unit_two = [unit(&v), unit(&v)];
    for (got, expected) in [
        (texts(&[good, good.w(&g)]), "member 1 of the set: weight_set: w has shape [4], expected [4, 5]"),
        (texts(&[good.norms(&half)]), "member 0 of the set: weight_set: norms is F16, expected F32"),
        (texts(&[good.dg(&half)]), "member 0 of the set: weight_set: dg is F16, expected F32"),
        (texts(&[good.dg(&w)]), "member 0 of the set: weight_set: dg has shape [4, 5], expected [4, 1] or [4]"),
        (
            texts(&[unit(&v), SetMember::new(WeightNorm::unit(&v).axis(Axis::Kept(2)))]),
            "member 1 of the set: kept axis 2 of a tensor of rank 2",
        ),
        (
            texts(&[SetMember::new(WeightNorm::unit(&v).eps(Eps::Clamp(0.0)))]),
            "member 0 of the set: eps is 0e0, expected a positive normal number of at most 2^126",
        ),
        (
            texts(&[SetMember::new(WeightNorm::unit(&v).norms(&norms))]),
            "member 0 of the set: weight_set: norms are computed, known ones are not taken",
        ),
        (texts(&[good.w(&w), good]), "member 1 of the set: normalize_set: w is missing"),
        (texts(&[good.dv(&w)]), "member 0 of the set: normalize_backward_set: dw is missing"),
        (texts(&[good.dw(&w)]), "member 0 of the set: normalize_backward_set: dv is missing"),
        (texts(&[good.w(&v)]), "normalize_set: output w overlaps input v.."),
        (texts(&[unit(&two[0]).w(&overlapping)]), "normalize_set: output w overlaps input v.."),
        (texts(&[unit_two[0].w(&two[0]), unit_two[1].w(&overlapping)]), "normalize_set: outputs w and w overlap"),
        (texts(&[unit(&foreign).w(&w)]), "normalize_set: v belongs to another device"),
    ] {
        let fits = expected.strip_suffix("..").map_or(got == expected, |begin| got.starts_with(begin));
        assert!(fits, "{got}, expected {expected}");
    }
    // What was not asked for is refused when it is.
    let set = gpu.weight_set(&[good.w(&w)])?;
    assert_eq!(
        set.dispatch_count(SetOperator::RowNorms).map_err(|e| e.to_string()),
        Err("member 0 of the set: row_norms_set: norms is missing".to_owned())
    );
    refused(gpu, |ops| ops.row_norms_set(&set))?;
    refused(gpu, |ops| ops.normalize_backward_set(&set, false))?;
    assert_eq!(
        refused(&other, |ops| ops.normalize_set(&set))?,
        Error::Argument(ArgumentError::OtherGpu { op: "normalize_set", arg: "the set" })
    );
    let words = gpu.zeros(&[64], DType::F32)?;
    let part = |offset, shape: &[usize]| Tensor::from_buffer(gpu, words.buffer()?, offset, shape, DType::F32);
    let (v, g) = (part(0, &[4, 5])?, part(76, &[4])?);
    let set = gpu.weight_set(&[SetMember::new(WeightNorm::new(&v, &g)).w(&w)])?;
    recorded(gpu, |ops| ops.normalize_set(&set))?;
    let error = refused(gpu, |ops| ops.normalize_set_in_place(&set))?;
    assert!(matches!(error, Error::Argument(ArgumentError::Alias { output: "v", input: "g", .. })), "{error}");
    Ok(())
}

fn comparison_can_fail(gpu: &Gpu) -> Outcome {
    let layers = Layers::new(vec![Layer::new(&[33, 65], Axis::Kept(1)), Layer::new(&[7, 40], Axis::Kept(0))]);
    let tensors = layers.tensors(gpu, false)?;
    tensors.run_all(gpu, &layers.layers, false)?;
    let [norms, w, dv, dg] = tensors.outputs().map(Shared::read);
    let (norms, mut w, mut dv, dg) = (norms?, w?, dv?, dg?);
    let layer = &layers.layers[0];
    layers.compare(layer, &norms[0], &w[0], &w[0])?;
    compare_gradients(layer, false, &dv[0], &dg[0])?;
    w[0][1000] *= 1.0 + 1e-4;
    dv[0].swap(64, 65);
    must_fail("an element off by little", layers.compare(layer, &norms[0], &w[0], &w[0]))?;
    must_fail("two elements exchanged", compare_gradients(layer, false, &dv[0], &dg[0]))?;
    // A guard between two tensors.
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    encoder.clear_buffer(tensors.w.whole.buffer()?, tensors.w.tensors[1].offset() - 16, Some(4));
    gpu.queue().submit([encoder.finish()]);
    must_fail("a guard that was overwritten", tensors.w.read().map(drop))
}
