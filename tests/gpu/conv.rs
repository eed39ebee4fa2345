//! conv and conv_transposed: geometries, axes, storage types, tiles, against the CPU reference.
use weightnorm::{Activation, ArgumentError, Axis, Conv, ConvGeometry, DType, Eps, Error, Gpu, Gradients, LimitError};
use weightnorm::{Linear, PadMode, SetMember, Tensor, Tile, WeightNorm, cpu};

use crate::common::{abs, activated_bound, compare, conv_terms, norm_bound};
use crate::common::{dg_bound, dot_bound, dv_bound, dx_bound, sum_bound};
use crate::data::{
    DTYPES, Guarded, OFFSETS, all, gains, must_fail, norm_chain, norm_count, norm_length, random, upload,
};
use crate::{Extent, Needs, Outcome, Suite};

const OUT: Option<Axis> = Some(Axis::Kept(0));
const PLAIN: Option<Axis> = None;

pub fn register(suite: &mut Suite) {
    suite.sampled("conv_shapes", shapes);
    suite.sampled("conv_in_2d", two_dimensions);
    suite.sampled("conv_transposed_shapes", transposed_shapes);
    suite.sampled("conv_axes", axes);
    suite.sampled("conv_dtypes", dtypes);
    suite.sampled("conv_tiles_and_splits", tiles_and_splits);
    suite.sampled("conv_by_subgroups", by_subgroups);
    suite.sampled("conv_of_few_channels", few_channels);
    suite.sampled("conv_backward", backward);
    suite.test("conv_backward_adds", Needs::Nothing, backward_adds);
    suite.test("conv_with_scales_of_a_set", Needs::Nothing, scales_of_a_set);
    suite.test("conv_numbers", Needs::Nothing, numbers);
    suite.test("conv_with_one_tap_is_linear", Needs::Nothing, one_tap_is_linear);
    suite.test("conv_of_groups_is_a_concatenation", Needs::Nothing, groups);
    suite.test("conv_of_a_shift_is_a_shift", Needs::Nothing, shifts);
    suite.test("conv_dispatch_count", Needs::Nothing, dispatch_count);
    suite.test("conv_of_empty_tensors", Needs::Nothing, empty);
    suite.test("conv_rejects_what_it_cannot", Needs::Nothing, rejects);
    suite.test("conv_rejects_what_loops_too_long", Needs::Nothing, rejects_long_paddings);
    suite.test("conv_gives_the_same_bits_again", Needs::Nothing, same_bits);
    suite.test("conv_comparison_can_fail", Needs::Nothing, comparison_can_fail);
}

/// One layer, its data and what it should use.
#[derive(Debug, Clone)]
pub struct Case {
    pub transposed: bool,
    pub x_shape: Vec<usize>,
    pub v_shape: Vec<usize>,
    pub geometry: ConvGeometry,
    /// `None`: a plain weight.
    pub axis: Option<Axis>,
    pub eps: Eps,
    /// Of x, v and y.
    pub dtypes: [DType; 3],
    pub gain: bool,
    pub bias: bool,
    pub known: bool,
    pub write_norms: bool,
    pub activation: Activation,
    pub tile: Option<Tile>,
    pub split_length: Option<u32>,
    /// Small ones, so that every sum of a plain weight is exact.
    pub integers: bool,
    pub seed: u64,
}

pub fn plain() -> ConvGeometry {
    ConvGeometry::default()
}

impl Case {
    /// Fused, in f32, with gain and bias, by the tile of 32 by 32.
    pub fn new(x_shape: &[usize], v_shape: &[usize], geometry: ConvGeometry) -> Case {
        Case {
            transposed: false,
            x_shape: x_shape.into(),
            v_shape: v_shape.into(),
            geometry,
            axis: OUT,
            eps: Eps::default(),
            dtypes: [DType::F32; 3],
            gain: true,
            bias: true,
            known: false,
            write_norms: false,
            activation: Activation::None,
            tile: Some(Tile::Tile32x32),
            split_length: None,
            integers: false,
            seed: 11,
        }
    }

    /// Ordinary weights and integers: whatever is wrong with an index shows.
    pub fn exact(x_shape: &[usize], v_shape: &[usize], geometry: ConvGeometry) -> Case {
        Case { axis: PLAIN, integers: true, ..Case::new(x_shape, v_shape, geometry) }
    }

    pub fn transposed(self) -> Case {
        Case { transposed: true, ..self }
    }

    fn numbers(&self, salt: u64, count: usize, dtype: DType) -> Vec<f64> {
        let numbers = random(self.seed + salt, count, dtype);
        if self.integers { numbers.into_iter().map(|x| (x * 4.0).round()).collect() } else { numbers }
    }

    fn x(&self) -> Vec<f64> {
        self.numbers(0, self.x_shape.iter().product(), self.dtypes[0])
    }

    fn v(&self) -> Vec<f64> {
        self.numbers(1, self.v_shape.iter().product(), self.dtypes[1])
    }

    fn g(&self) -> Option<Vec<f64>> {
        self.axis.filter(|_| self.gain).map(|axis| gains(13, norm_count(&self.v_shape, axis)))
    }

    pub fn y_shape(&self) -> Vec<usize> {
        let shape = if self.transposed { ConvGeometry::conv_transposed_shape } else { ConvGeometry::conv_shape };
        shape(&self.geometry, &self.x_shape, &self.v_shape).unwrap_or_else(|e| panic!("{self:?}: {e}"))
    }

    fn biases(&self) -> Option<Vec<f64>> {
        self.bias.then(|| self.numbers(3, self.y_shape()[1], DType::F32))
    }

    fn norms(&self) -> Option<Vec<f64>> {
        self.axis.map(|axis| cpu::row_norms(&self.v(), &self.v_shape, axis, self.eps).expect("shapes that fit"))
    }

    /// On the GPU, into outputs between guards.
    pub fn run(&self, gpu: &Gpu) -> Result<(Vec<f64>, Vec<u8>, u64), libtest_mimic::Failed> {
        let seed = self.x_shape.iter().chain(&self.v_shape).sum::<usize>();
        let x = upload(gpu, &self.x(), &self.x_shape, self.dtypes[0], seed)?;
        let v = upload(gpu, &self.v(), &self.v_shape, self.dtypes[1], seed + 1)?;
        let vector = |values: Option<Vec<f64>>, seed| -> Result<Option<Tensor>, Error> {
            values.map(|values| upload(gpu, &values, &[values.len()], DType::F32, seed)).transpose()
        };
        let (g, bias) = (vector(self.g(), seed + 2)?, vector(self.biases(), seed + 3)?);
        let known = vector(self.norms().filter(|_| self.known), seed)?;
        let y = Guarded::poisoned(gpu, &self.y_shape(), self.dtypes[2], OFFSETS[(seed / 4) % OFFSETS.len()])?;
        let norms = match self.axis.filter(|_| self.write_norms) {
            Some(axis) => Some(Guarded::poisoned(gpu, &[norm_count(&self.v_shape, axis)], DType::F32, 4)?),
            None => None,
        };
        let request = match self.axis {
            None => Conv::new(&x, &v),
            Some(axis) => {
                let unit = WeightNorm::unit(&v);
                let weight = g.as_ref().map_or(unit, |g| WeightNorm::new(&v, g)).axis(axis).eps(self.eps);
                Conv::new(&x, known.as_ref().map_or(weight, |known| weight.norms(known)))
            }
        };
        let request = request.bias(bias.as_ref()).geometry(self.geometry).activation(self.activation);
        let request = request.norms(norms.as_ref().map(|n| &n.tensor)).tile(self.tile).split_length(self.split_length);
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        let mut ops = gpu.record(&mut encoder);
        if self.transposed {
            ops.conv_transposed(request, &y.tensor)?;
        } else {
            ops.conv(request, &y.tensor)?;
        }
        let dispatches = ops.dispatch_count();
        drop(ops);
        gpu.queue().submit([encoder.finish()]);
        if let (Some(norms), Some(expected), Some(axis)) = (norms, self.norms(), self.axis) {
            let chain = norm_chain(norm_length(&self.v_shape, axis));
            let bound = |j: usize| norm_bound(chain, expected[j]);
            compare(&norms.read()?, &expected, Some(DType::F32), bound).map_err(|e| format!("norms: {e}"))?;
        }
        Ok((y.read()?, y.bytes()?, dispatches))
    }

    /// The CPU reference.
    fn reference(&self, x: &[f64], w: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
        let conv = if self.transposed { cpu::conv_transposed } else { cpu::conv };
        conv(x, &self.x_shape, w, &self.v_shape, bias, &self.geometry, &cpu::ConvEnds::default())
            .expect("shapes that fit")
    }

    fn judge(&self, got: &[f64]) -> Result<(), String> {
        let (x, v, g, bias) = (self.x(), self.v(), self.g(), self.biases());
        let normalize = |axis| cpu::normalize(&v, &self.v_shape, g.as_deref(), axis, self.eps);
        let w = self.axis.map_or(Ok(v.clone()), normalize).map_err(|e| e.to_string())?;
        let before = self.reference(&x, &w, bias.as_deref());
        if self.integers && self.axis.is_none() {
            return compare(got, &before, Some(self.dtypes[2]), |_| 0.0).map(drop);
        }
        let sums = self.reference(&abs(&x), &abs(&w), None);
        let expected: Vec<f64> = before.iter().map(|&y| cpu::activate(y, self.activation)).collect();
        let chain = self.axis.map_or(0, |axis| norm_chain(norm_length(&self.v_shape, axis))).max(v.len());
        let bound = |i: usize| {
            let plain = dot_bound(chain, sums[i], before[i], DType::F32);
            match self.activation {
                Activation::None => dot_bound(chain, sums[i], before[i], self.dtypes[2]),
                activation => activated_bound(activation, before[i], plain, self.dtypes[2]),
            }
        };
        compare(got, &expected, Some(self.dtypes[2]), bound).map(drop)
    }

    /// Gradients into outputs between guards; with `add` onto ones, but for dx.
    pub fn check_backward(&self, gpu: &Gpu, add: bool) -> Outcome {
        let (dtype, y_shape) = (self.dtypes[2], self.y_shape());
        let (x64, v64, g64) = (self.x(), self.v(), self.g());
        let dy64 = self.numbers(5, y_shape.iter().product(), dtype);
        let x = upload(gpu, &x64, &self.x_shape, self.dtypes[0], 1)?;
        let v = upload(gpu, &v64, &self.v_shape, self.dtypes[1], 2)?;
        let dy = upload(gpu, &dy64, &y_shape, dtype, 3)?;
        let vector = |values: Option<Vec<f64>>| -> Result<Option<Tensor>, Error> {
            values.map(|values| upload(gpu, &values, &[values.len()], DType::F32, 4)).transpose()
        };
        let (g, known) = (vector(g64.clone())?, vector(self.norms().filter(|_| self.known))?);
        let output = |shape: &[usize], dtype, ones: bool| match ones {
            true => Guarded::holding(gpu, &vec![1.0; shape.iter().product()], shape, dtype, 4),
            false => Guarded::poisoned(gpu, shape, dtype, 12),
        };
        let dx = output(&self.x_shape, self.dtypes[0], false)?;
        let dv = output(&self.v_shape, self.dtypes[1], add)?;
        let dbias = output(&y_shape[1..2], DType::F32, add)?;
        let dg = self.axis.map(|axis| output(&[norm_count(&self.v_shape, axis)], DType::F32, add)).transpose()?;
        let wanted = Gradients::default().dv(&dv.tensor).dbias(&dbias.tensor).accumulate(add);
        let wanted = wanted.dx(&dx.tensor).dg(dg.as_ref().map(|dg| &dg.tensor));
        let request = match self.axis {
            None => Conv::new(&x, &v),
            Some(axis) => {
                let unit = WeightNorm::unit(&v);
                let weight = g.as_ref().map_or(unit, |g| WeightNorm::new(&v, g)).axis(axis).eps(self.eps);
                Conv::new(&x, known.as_ref().map_or(weight, |known| weight.norms(known)))
            }
        };
        let request = request.geometry(self.geometry).tile(self.tile);
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        let mut ops = gpu.record(&mut encoder);
        if self.transposed {
            ops.conv_transposed_backward(request, &dy, &wanted)?;
        } else {
            ops.conv_backward(request, &dy, &wanted)?;
        }
        drop(ops);
        gpu.queue().submit([encoder.finish()]);

        let weight = match self.axis {
            None => cpu::Weight::Plain(&v64),
            Some(axis) => cpu::Weight::Normalized { v: &v64, g: g64.as_deref(), axis, eps: self.eps },
        };
        let backward = if self.transposed { cpu::conv_transposed_backward } else { cpu::conv_backward };
        let expected = backward(&x64, &self.x_shape, weight, &self.v_shape, &dy64, &self.geometry, Activation::None)?;
        let operands = (&x64[..], &self.x_shape[..]);
        let (_, terms) = conv_terms(self.transposed, &self.geometry, operands, weight, &self.v_shape, None, &dy64);
        let exact = self.integers && self.axis.is_none();
        let norm_chain = self.axis.map_or(1, |axis| norm_length(&self.v_shape, axis));
        let chain = v64.len() + dy64.len();
        let named = |name: &str, got: &Guarded, expected: &[f64], added: bool, bound: &dyn Fn(usize, f64) -> f64| {
            let before = if added { 1.0 } else { 0.0 };
            let expected: Vec<f64> = expected.iter().map(|e| e + before).collect();
            let slack = |i: usize| if exact { 0.0 } else { bound(i, expected[i].abs() + before) };
            let values = got.read().map_err(|e| format!("{name}: {e}"))?;
            compare(&values, &expected, Some(got.tensor.dtype()), slack).map_err(|e| format!("{name}: {e}"))
        };
        let bound = |i: usize, e: f64| dx_bound(norm_chain, chain, terms.dx[i], e, self.dtypes[0]);
        named("dx", &dx, &expected.dx, false, &bound)?;
        let bound = |i: usize, e: f64| dv_bound(norm_chain, chain, terms.dv[i], e, self.dtypes[1]);
        named("dv", &dv, &expected.dv, add, &bound)?;
        let bound = |i: usize, e: f64| sum_bound(chain, terms.dbias[i], e, DType::F32);
        named("dbias", &dbias, &expected.dbias, add, &bound)?;
        if let (Some(dg), Some(expected), Some(terms)) = (&dg, &expected.dg, &terms.dg) {
            let bound = |i: usize, e: f64| dg_bound(norm_chain, chain, terms[i], e);
            named("dg", dg, expected, add, &bound)?;
        }
        Ok(())
    }

    pub fn check(&self, gpu: &Gpu) -> Outcome {
        let judged = self.run(gpu).and_then(|(y, ..)| Ok(self.judge(&y)?));
        judged.map_err(|e| format!("{self:?}: {}", e.message().unwrap_or_default()).into())
    }
}

/// Positions that end within quads, one tap, even kernels, gaps, few channels, groups: with integers, exactly.
fn shapes(gpu: &Gpu, extent: Extent) -> Outcome {
    let cases = [
        Case::exact(&[1, 1, 1], &[1, 1, 1], plain()),
        Case::exact(&[3, 2, 9], &[3, 2, 1], plain()),
        Case::exact(&[2, 3, 10], &[5, 3, 2], plain().padding((1, 0))),
        Case::exact(&[3, 4, 11], &[5, 4, 3], plain().padding(1)),
        Case::exact(&[2, 5, 8], &[7, 5, 4], plain().padding((1, 2))),
        Case::exact(&[1, 1, 63], &[1, 1, 1], plain()),
        Case::exact(&[1, 1, 64], &[1, 1, 3], plain().padding(1)),
        Case::exact(&[2, 1, 65], &[4, 1, 4], plain().padding((3, 0))),
        Case::exact(&[2, 3, 31], &[6, 3, 3], plain().stride(2).padding(1)),
        Case::exact(&[2, 3, 31], &[6, 3, 2], plain().stride(5)),
        Case::exact(&[2, 3, 5], &[6, 3, 7], plain().dilation(3).padding(9)),
        Case::exact(&[2, 3, 1], &[6, 3, 3], plain().padding(1)),
        Case::exact(&[1, 3, 7], &[6, 3, 7], plain()),
        Case::exact(&[2, 8, 41], &[12, 4, 3], plain().stride(2).dilation(2).padding(2).groups(2)),
        Case::exact(&[3, 20, 29], &[20, 1, 7], plain().padding(3).groups(20)),
        Case::exact(&[2, 12, 17], &[144, 4, 3], plain().padding(1).groups(3)),
        Case::exact(&[2, 33, 37], &[34, 33, 3], plain().padding(2).dilation(2)),
        Case::exact(&[70, 2, 3], &[3, 2, 2], plain()),
        Case::exact(&[2, 2, 9], &[3, 2, 3], plain().padding((3, 2)).pad_mode(PadMode::Reflect)),
        Case::exact(&[2, 2, 3], &[3, 2, 3], plain().padding((2, 1)).stride(2).pad_mode(PadMode::Reflect)),
        Case::exact(&[2, 2, 5], &[3, 2, 4], plain().padding((7, 6)).dilation(2).pad_mode(PadMode::Replicate)),
    ];
    all(extent.of(cases, 1), |case| {
        case.check(gpu)?;
        if extent == Extent::All {
            Case { axis: OUT, integers: false, ..case.clone() }.check(gpu)?;
            Case { tile: None, ..case.clone() }.check(gpu)?;
        }
        Ok(())
    })
}

fn two_dimensions(gpu: &Gpu, extent: Extent) -> Outcome {
    let cases = [
        Case::exact(&[2, 6, 13, 11], &[8, 6, 3, 3], plain().padding(1)),
        Case::exact(&[2, 4, 37, 3], &[5, 4, 5, 1], plain().stride([3, 1]).padding([2, 0])),
        Case::exact(&[2, 3, 15, 22], &[10, 3, 3, 9], plain().stride([1, 2]).dilation([2, 1]).padding([2, 4])),
        Case::exact(&[2, 3, 9, 1], &[4, 3, 2, 1], plain()),
        Case::exact(&[3, 4, 1, 9], &[4, 2, 1, 3], plain().groups(2).padding([(0, 0), (2, 0)])),
        Case::exact(&[2, 2, 4, 5], &[3, 2, 3, 3], plain().padding([(2, 1), (3, 2)]).pad_mode(PadMode::Reflect)),
        Case::exact(&[2, 2, 4, 5], &[3, 2, 3, 2], plain().padding(4).pad_mode(PadMode::Replicate)),
        Case::exact(&[2, 8, 7, 6], &[8, 5, 4, 4], plain().stride(2).padding(1)).transposed(),
        Case::exact(&[1, 6, 4, 5], &[6, 2, 3, 5], plain().stride([2, 3]).padding([(0, 1), (2, 0)]).groups(3))
            .transposed(),
        Case::exact(&[1, 2, 4, 5], &[2, 3, 3, 2], plain().stride([2, 1]).dilation([2, 3])).transposed(),
    ];
    all(extent.of(cases, 1), |case| {
        case.check(gpu)?;
        if extent == Extent::All {
            all([0, 1, 2, 3].map(Axis::Kept), |&axis| {
                Case { axis: Some(axis), integers: false, ..case.clone() }.check(gpu)
            })?;
        }
        Ok(())
    })
}

/// Kernels that are no multiple of the stride, gaps, crops, output padding, dilations with and without a stride.
fn transposed_shapes(gpu: &Gpu, extent: Extent) -> Outcome {
    let cases = [
        Case::exact(&[1, 1, 1], &[1, 1, 1], plain()),
        Case::exact(&[2, 16, 21], &[16, 8, 4], plain().stride(2).padding(1)),
        Case::exact(&[2, 24, 19], &[24, 12, 16], plain().stride(8).padding(4)),
        Case::exact(&[2, 6, 17], &[6, 4, 5], plain().stride(3).padding(1).output_padding(2)),
        Case::exact(&[2, 5, 16], &[5, 6, 3], plain().stride(3).dilation(2).padding(1)),
        Case::exact(&[1, 12, 23], &[12, 3, 4], plain().stride(2).padding(1).groups(3)),
        Case::exact(&[2, 3, 9], &[3, 2, 2], plain().stride(5)),
        Case::exact(&[2, 3, 9], &[3, 2, 3], plain().dilation(4).padding((5, 3))),
        Case::exact(&[3, 3, 1], &[3, 70, 7], plain().stride(2).padding((0, 4))),
        Case::exact(&[3, 2, 66], &[2, 1, 4], plain().stride(4)),
        Case::exact(&[2, 7, 20], &[7, 7, 1], plain()),
    ];
    all(extent.of(cases, 1), |case| {
        let case = case.clone().transposed();
        case.check(gpu)?;
        if extent == Extent::All {
            all([0, 1, 2].map(Axis::Kept), |&axis| {
                Case { axis: Some(axis), integers: false, ..case.clone() }.check(gpu)
            })?;
            Case { tile: None, ..case.clone() }.check(gpu)?;
        }
        Ok(())
    })
}

/// Every kept axis and the whole tensor, with groups, with norms that are known, written out, or neither.
fn axes(gpu: &Gpu, extent: Extent) -> Outcome {
    let one = Case::new(&[2, 12, 23], &[18, 4, 5], plain().padding(2).groups(3));
    let back = Case::new(&[2, 12, 15], &[12, 5, 4], plain().stride(2).padding(1).groups(3)).transposed();
    let still = Case::new(&[2, 12, 15], &[12, 5, 4], plain().padding(1).groups(3)).transposed();
    let axes = [Axis::Kept(0), Axis::Kept(1), Axis::Kept(2), Axis::Whole];
    all([one, back, still], |case| {
        all(axes, |&axis| {
            let case = Case { axis: Some(axis), write_norms: true, ..case.clone() };
            case.check(gpu)?;
            if extent == Extent::All || axis == Axis::Kept(0) {
                Case { known: true, ..case.clone() }.check(gpu)?;
                Case { gain: false, bias: false, write_norms: false, eps: Eps::InsideSqrt(1e-3), ..case }.check(gpu)?;
            }
            Ok(())
        })
    })
}

/// Odd lengths of f16 and bf16, in every mixture.
fn dtypes(gpu: &Gpu, extent: Extent) -> Outcome {
    let mixes = (0..27).map(|i| [i / 9, i / 3 % 3, i % 3]).collect();
    all(extent.choose(mixes, vec![[0, 1, 2], [1, 2, 0], [2, 0, 1]]), |mix| {
        let dtypes = mix.map(|i: usize| DTYPES[i]);
        Case { dtypes, ..Case::new(&[3, 18, 45], &[34, 18, 3], plain().padding(2).dilation(2)) }.check(gpu)?;
        Case { dtypes, ..Case::new(&[3, 8, 12], &[6, 8, 3], plain().padding(1)) }.check(gpu)?;
        Case { dtypes, ..Case::new(&[3, 7, 11], &[7, 5, 3], plain().stride(2).padding(1)).transposed() }.check(gpu)
    })
}

/// The layers whose gradients are looked at.
fn layers() -> Vec<Case> {
    let reflected = plain().padding((2, 3)).pad_mode(PadMode::Reflect);
    vec![
        Case::exact(&[1, 1, 1], &[1, 1, 1], plain()),
        Case::exact(&[3, 4, 11], &[5, 4, 3], plain().padding((2, 0))),
        Case::exact(&[2, 8, 41], &[12, 4, 3], plain().stride(2).dilation(2).padding(2).groups(2)),
        Case::exact(&[3, 20, 29], &[20, 1, 7], plain().padding(3).groups(20)),
        Case::exact(&[2, 3, 31], &[6, 3, 2], plain().stride(5)),
        Case::exact(&[2, 3, 700], &[40, 3, 5], plain().padding(2)),
        Case::exact(&[2, 6, 9], &[4, 6, 4], reflected),
        Case::exact(&[2, 3, 5], &[4, 3, 4], plain().padding((7, 6)).stride(2).pad_mode(PadMode::Replicate)),
        Case::exact(&[2, 2, 5, 6], &[3, 2, 3, 2], plain().padding([(2, 1), (3, 2)]).pad_mode(PadMode::Reflect)),
        Case::exact(&[2, 3, 9, 8], &[4, 3, 3, 2], plain().stride([2, 1]).padding([(1, 0), (1, 1)])),
        Case::exact(&[2, 6, 17], &[6, 4, 5], plain().stride(3).padding(1).output_padding(2)).transposed(),
        Case::exact(&[1, 12, 23], &[12, 3, 4], plain().stride(2).padding(1).groups(3)).transposed(),
        Case::exact(&[2, 5, 16], &[5, 6, 3], plain().stride(3).dilation(2).padding(1)).transposed(),
        Case::exact(&[2, 8, 7, 6], &[8, 5, 4, 4], plain().stride(2).padding(1)).transposed(),
    ]
}

/// Gradients of ordinary weights with integers, exactly; of normalized ones within their bounds.
fn backward(gpu: &Gpu, extent: Extent) -> Outcome {
    all(layers(), |case| {
        case.check_backward(gpu, false)?;
        if extent == Extent::All {
            let axes = (0..case.v_shape.len()).map(Axis::Kept).chain([Axis::Whole]);
            all(axes, |&axis| {
                let normalized = Case { axis: Some(axis), integers: false, ..case.clone() };
                normalized.check_backward(gpu, false)?;
                Case { known: true, gain: false, ..normalized.clone() }.check_backward(gpu, false)?;
                Case { dtypes: [DType::F16, DType::Bf16, DType::F32], ..normalized }.check_backward(gpu, false)
            })?;
            Case { tile: None, ..case.clone() }.check_backward(gpu, false)?;
        }
        Ok(())
    })?;
    // dv of an ordinary weight in halves of words, some of which hold two rows.
    let packed = Case { dtypes: [DType::F16; 3], ..layers().swap_remove(1) };
    Case { integers: false, ..packed }.check_backward(gpu, false)?;
    all([Axis::Kept(0), Axis::Kept(1), Axis::Whole], |&axis| {
        let of = |case: Case| Case { axis: Some(axis), integers: false, ..case };
        of(Case::exact(&[2, 8, 41], &[12, 4, 3], plain().padding(2).groups(2))).check_backward(gpu, false)?;
        of(Case::exact(&[1, 12, 23], &[12, 3, 4], plain().stride(2).groups(3)).transposed()).check_backward(gpu, false)
    })
}

fn backward_adds(gpu: &Gpu) -> Outcome {
    let forward = Case::exact(&[2, 8, 41], &[12, 4, 3], plain().padding(2).groups(2));
    let back = Case::exact(&[2, 6, 17], &[6, 4, 5], plain().stride(3)).transposed();
    all([forward, back], |case| {
        case.check_backward(gpu, true)?;
        Case { axis: OUT, integers: false, ..case.clone() }.check_backward(gpu, true)
    })
}

fn tiles_and_splits(gpu: &Gpu, extent: Extent) -> Outcome {
    let tiles = [None, Some(Tile::Tile64x64), Some(Tile::Tile32x32), Some(Tile::Tile128x8), Some(Tile::Tile128x128)];
    all(extent.of(tiles, 1), |&tile| {
        if tile.is_some_and(|tile| !tile.runs_on(gpu)) {
            return Ok(());
        }
        let forward = Case::new(&[2, 24, 70], &[66, 24, 3], plain().padding(1));
        let back = Case::new(&[2, 24, 35], &[24, 17, 4], plain().stride(2).padding(1)).transposed();
        let groups = Case::new(&[2, 24, 35], &[12, 8, 5], plain().groups(3));
        all([forward, back, groups], |case| {
            let case = Case { tile, ..case.clone() };
            case.check(gpu)?;
            if tile.is_some() && (extent == Extent::All || tile == Some(Tile::Tile32x32)) {
                Case { split_length: Some(16), write_norms: true, ..case.clone() }.check(gpu)?;
                Case { split_length: Some(32), axis: PLAIN, integers: true, ..case }.check(gpu)?;
            }
            Ok(())
        })
    })
}

/// What a CPU takes: windows, phases of the stride, and gradients of weights. Few: without the larger tiles, which
/// drivers on CPUs take a minute each to compile.
fn by_subgroups(gpu: &Gpu, extent: Extent) -> Outcome {
    let tiles =
        extent.choose(&[Tile::Subgroup64, Tile::Subgroup16, Tile::Subgroup8, Tile::Subgroup4][..], &[Tile::Subgroup4]);
    all(tiles.iter().copied(), |&tile| {
        if !tile.runs_on(gpu) {
            return Ok(());
        }
        let whole = Case::new(&[2, 24, 70], &[66, 24, 3], plain().padding(1));
        let ragged = Case::exact(&[3, 6, 41], &[10, 3, 3], plain().stride(2).dilation(2).padding(2).groups(2));
        let two = Case::exact(&[2, 4, 7, 5], &[5, 4, 2, 3], plain().padding([1, 2]));
        let back = Case::exact(&[3, 10, 20], &[10, 3, 5], plain().stride(3).padding((1, 2)).groups(2)).transposed();
        let scaled = Case { axis: OUT, integers: false, ..back.clone() };
        all([whole.clone(), ragged.clone(), two, back.clone(), scaled], |case| {
            Case { tile: Some(tile), ..case.clone() }.check(gpu)?;
            match case.axis {
                Some(_) => Ok(()),
                None => Case { tile: Some(tile), dtypes: [DType::F16; 3], integers: false, ..case.clone() }.check(gpu),
            }
        })?;
        Case { tile: Some(tile), split_length: Some(32), ..whole.clone() }.check(gpu)?;
        all([whole, ragged, back], |case| Case { tile: Some(tile), ..case.clone() }.check_backward(gpu, false))
    })
}

/// Up to eight channels of a group, by registers alone: as few columns are computed as there are.
fn few_channels(gpu: &Gpu, extent: Extent) -> Outcome {
    let of = |outs: usize, tile| Case {
        tile: Some(tile),
        write_norms: true,
        ..Case::new(&[2, 6, 300], &[outs, 6, 3], plain().padding(1))
    };
    let exact = |case: Case| Case { axis: PLAIN, integers: true, write_norms: false, ..case };
    let depthwise = Case::new(&[3, 20, 29], &[20, 1, 7], plain().padding(3).groups(20));
    let up = Case::new(&[2, 6, 41], &[6, 2, 5], plain().stride(2).padding(1)).transposed();
    let two = Case::exact(&[2, 4, 7, 5], &[5, 4, 2, 3], plain().padding([1, 2]).stride([2, 1]));
    let cases = [
        of(1, Tile::Narrow4),
        of(7, Tile::Narrow8),
        exact(of(1, Tile::Narrow4)),
        Case { tile: None, ..depthwise.clone() },
        Case { tile: Some(Tile::Narrow4), ..up.clone() },
        exact(Case { tile: Some(Tile::Narrow8), ..up }),
    ];
    all(cases, |case| case.check(gpu))?;
    if extent == Extent::Few {
        return Ok(());
    }
    all([1, 2, 3, 4, 5, 8, 11], |&outs| {
        all([Tile::Narrow4, Tile::Narrow8], |&tile| {
            of(outs, tile).check(gpu)?;
            exact(of(outs, tile)).check(gpu)?;
            Case { dtypes: [DType::F16, DType::Bf16, DType::F16], write_norms: false, ..of(outs, tile) }.check(gpu)?;
            Case { axis: Some(Axis::Kept(1)), write_norms: false, ..of(outs, tile) }.check(gpu)?;
            Case { split_length: Some(16), ..of(outs, tile) }.check(gpu)?;
            Case { tile: Some(tile), ..two.clone() }.check(gpu)?;
            Case { tile: Some(tile), ..depthwise.clone() }.check(gpu)
        })
    })
}

/// Rows beyond the range of their squares, rows of zeros, long silences, NaN of one row.
fn numbers(gpu: &Gpu) -> Outcome {
    let layer = |x: &[f64], v: &[f64], eps| -> Result<Vec<f64>, Error> {
        let (x, v) = (upload(gpu, x, &[1, 3, 40], DType::F32, 1)?, upload(gpu, v, &[5, 3, 3], DType::F32, 2)?);
        let g = upload(gpu, &[1.0, -2.0, 0.5, 3.0, 0.0], &[5], DType::F32, 3)?;
        let weight = WeightNorm::new(&v, &g).eps(eps);
        Ok(cpu::widen(&gpu.conv(Conv::new(&x, weight).padding(1).tile(Tile::Tile32x32))?.read::<f32>()?))
    };
    let reference = |x: &[f64], v: &[f64], eps| -> Result<Vec<f64>, Error> {
        let w = cpu::normalize(v, &[5, 3, 3], Some(&[1.0, -2.0, 0.5, 3.0, 0.0]), Axis::Kept(0), eps)?;
        cpu::conv(x, &[1, 3, 40], &w, &[5, 3, 3], None, &plain().padding(1), &cpu::ConvEnds::default())
    };
    let (x, v) = (random(1, 120, DType::F32), random(2, 45, DType::F32));
    let agree = |x: &[f64], v: &[f64], eps| -> Outcome {
        let expected = reference(x, v, eps)?;
        compare(&layer(x, v, eps)?, &expected, Some(DType::F32), |_| 1e-5)?;
        Ok(())
    };
    for scale in [3e25, 3e-25] {
        agree(&x, &v.iter().map(|v| f64::from((v * scale) as f32)).collect::<Vec<_>>(), Eps::None)?;
    }
    let mut silent = x.clone();
    silent[..30].fill(0.0);
    silent[45..110].fill(0.0);
    agree(&silent, &v, Eps::None)?;
    agree(&vec![0.0; 120], &v, Eps::None)?;
    let mut zero = v.clone();
    zero[9..18].fill(0.0);
    agree(&x, &zero, Eps::Clamp(1e-6))?;
    let mut broken = v.clone();
    broken[20] = f64::NAN;
    let y = layer(&x, &broken, Eps::None)?;
    let expected = reference(&x, &v, Eps::None)?;
    let wrong = (0..200).find(|&at| if at / 40 == 2 { !y[at].is_nan() } else { (y[at] - expected[at]).abs() > 1e-5 });
    wrong.map_or(Ok(()), |at| Err(format!("[{at}] of a weight with a NaN is {}", y[at]).into()))
}

/// Where the norms lie along the sum: two layers' scales in one dispatch, and the same bits as with those of each by
/// itself.
fn scales_of_a_set(gpu: &Gpu) -> Outcome {
    let (x, g) =
        (gpu.upload(&[0.5f32; 2 * 6 * 9], &[2, 6, 9])?, gpu.upload(&[3.0f32, 1.0, -2.0, 0.0, 1e30, 0.5], &[6])?);
    let v = gpu.tensors(&[(&[6, 4, 5], DType::F32), (&[3, 6, 7], DType::F32)])?;
    for (v, seed) in v.iter().zip([61, 62]) {
        let mut data: Vec<f32> = random(seed, v.len(), DType::F32).iter().map(|&x| x as f32).collect();
        if seed == 61 {
            data[80..100].iter_mut().for_each(|x| *x *= 1e-30); // beside the gain of 1e30
        }
        gpu.queue().write_buffer(v.buffer()?, v.offset(), bytemuck::cast_slice(&data));
    }
    let weights = [WeightNorm::new(&v[0], &g), WeightNorm::new(&v[1], &g).axis(Axis::Kept(1))];
    let scales = gpu.tensors(&[(&[6, 2], DType::F32), (&[6, 2], DType::F32)])?;
    let norms = gpu.tensors(&[(&[6], DType::F32), (&[6], DType::F32)])?;
    let member = |i: usize| SetMember::new(weights[i]).scales(&scales[i]).norms(&norms[i]);
    let set = gpu.weight_set(&[member(0), member(1)])?;
    gpu.run(|ops| ops.row_norms_set(&set))?;
    for (weight, norms) in weights.iter().zip(&norms) {
        if norms.read::<f32>()? != gpu.row_norms(*weight)?.read::<f32>()? {
            return Err("other norms beside the scales".into());
        }
    }
    let request = |i: usize| Conv::new(&x, weights[i]).padding(1);
    for transposed in [true, false] {
        let i = usize::from(!transposed);
        let conv = if transposed { request(i).stride(2) } else { request(i) };
        let run = |conv: Conv<'_>| if transposed { gpu.conv_transposed(conv) } else { gpu.conv(conv) };
        let (own, given) = (run(conv)?, run(conv.scales(&scales[i]))?);
        let values = given.read::<f32>()?;
        if own.read::<f32>()? != values || values.iter().any(|y| !y.is_finite()) {
            return Err(format!("transposed: {transposed}: other numbers with given scales").into());
        }
        let count = gpu.run(|ops| {
            let conv = conv.scales(&scales[i]);
            if transposed {
                ops.conv_transposed(conv, &given)?
            } else {
                ops.conv(conv, &given)?
            }
            Ok(ops.dispatch_count())
        })?;
        if count != 1 {
            return Err(format!("transposed: {transposed}: {count} dispatches with given scales").into());
        }
    }
    let wide = gpu.zeros(&[6, 3], DType::F32)?;
    let along = Conv::new(&x, WeightNorm::unit(&v[1])).scales(&scales[1]);
    for (what, refused) in [
        ("a wrong shape", gpu.conv_transposed(request(0).scales(&wide))),
        ("beside norms that are written", gpu.conv_transposed(request(0).scales(&scales[0]).norms(&norms[0]))),
        ("norms of output channels", gpu.conv(along)),
        ("a plain weight", gpu.conv_transposed(Conv::new(&x, &v[0]).scales(&scales[0]))),
    ] {
        let Err(Error::Argument(ArgumentError::Shape { .. } | ArgumentError::Variant { .. })) = refused else {
            return Err(format!("scales: {what} is not refused as it should be").into());
        };
    }
    Ok(())
}

fn one_tap_is_linear(gpu: &Gpu) -> Outcome {
    let (x, v) = (random(1, 2 * 24 * 37, DType::F32), random(2, 40 * 24, DType::F32));
    let rows: Vec<f64> =
        (0..74).flat_map(|m| (0..24).map(move |i| (m / 37 * 24 + i) * 37 + m % 37)).map(|at| x[at]).collect();
    let g = upload(gpu, &gains(3, 40), &[40], DType::F32, 1)?;
    let rows = upload(gpu, &rows, &[74, 24], DType::F32, 2)?;
    let w = upload(gpu, &v, &[40, 24], DType::F32, 3)?;
    let expected = gpu.linear(Linear::new(&rows, WeightNorm::new(&w, &g)))?.read::<f32>()?;
    let (x, w) = (upload(gpu, &x, &[2, 24, 37], DType::F32, 1)?, upload(gpu, &v, &[40, 24, 1], DType::F32, 2)?);
    let y = gpu.conv(Conv::new(&x, WeightNorm::new(&w, &g)).tile(Tile::Tile32x32))?.read::<f32>()?;
    let expected: Vec<f64> =
        (0..y.len()).map(|at| f64::from(expected[(at / 1480 * 37 + at % 37) * 40 + at / 37 % 40])).collect();
    compare(&cpu::widen(&y), &expected, Some(DType::F32), |i| 1e-5 * (1.0 + expected[i].abs()))?;
    Ok(())
}

/// Groups are layers beside each other, to the bit.
fn groups(gpu: &Gpu) -> Outcome {
    let (x, v) = (random(1, 2 * 12 * 19, DType::F32), random(2, 15 * 4 * 3, DType::F32));
    let whole = upload(gpu, &x, &[2, 12, 19], DType::F32, 1)?;
    let w = upload(gpu, &v, &[15, 4, 3], DType::F32, 2)?;
    let conv = |conv: Conv<'_>| gpu.conv(conv.padding(1).tile(Tile::Tile32x32))?.read::<f32>();
    let y = conv(Conv::new(&whole, WeightNorm::unit(&w)).groups(3))?;
    for group in 0..3 {
        let part: Vec<f64> = (0..2).flat_map(|b| x[(b * 12 + group * 4) * 19..][..76].to_vec()).collect();
        let part = upload(gpu, &part, &[2, 4, 19], DType::F32, 3)?;
        let w = upload(gpu, &v[group * 60..][..60], &[5, 4, 3], DType::F32, 2)?;
        let own = conv(Conv::new(&part, WeightNorm::unit(&w)))?;
        let beside: Vec<f32> = (0..2).flat_map(|b| y[(b * 15 + group * 5) * 19..][..95].to_vec()).collect();
        if own != beside {
            return Err(format!("group {group} differs from a layer of its own").into());
        }
    }
    Ok(())
}

/// A shift of x is one of y, away from the borders and to the bit; by the stride less in a convolution, by the stride
/// more in a transposed one.
fn shifts(gpu: &Gpu) -> Outcome {
    for (v_shape, stride, by, transposed) in [
        ([5, 3, 1, 4], [1, 2], [0, 6], false),
        ([5, 3, 3, 2], [1, 1], [2, 3], false),
        ([3, 5, 1, 4], [1, 2], [0, 3], true),
        ([3, 5, 2, 3], [2, 1], [1, 2], true),
    ] {
        let [height, width] = [9, 24];
        let x = random(1, 2 * 3 * height * width, DType::F32);
        let shifted: Vec<f64> = (0..x.len())
            .map(|at| {
                let (row, column) = (at / width % height, at % width);
                if row < by[0] || column < by[1] { 0.0 } else { x[at - by[0] * width - by[1]] }
            })
            .collect();
        let v = random(2, v_shape.iter().product(), DType::F32);
        let v = upload(gpu, &v, &v_shape, DType::F32, 1)?;
        let conv = |x: &[f64]| -> Result<(Vec<f32>, Vec<usize>), Error> {
            let x = upload(gpu, x, &[2, 3, height, width], DType::F32, 2)?;
            let request = Conv::new(&x, WeightNorm::unit(&v)).stride(stride).padding([0, 1]).tile(Tile::Tile32x32);
            let y = if transposed { gpu.conv_transposed(request)? } else { gpu.conv(request)? };
            Ok((y.read::<f32>()?, y.shape().to_vec()))
        };
        let ((y, shape), (of_shifted, _)) = (conv(&x)?, conv(&shifted)?);
        let by = [0, 1].map(|axis| if transposed { by[axis] * stride[axis] } else { by[axis] / stride[axis] });
        let [rows, columns] = [shape[2], shape[3]];
        let mut seen = 0;
        for at in 0..y.len() {
            let (row, column) = (at / columns % rows, at % columns);
            if row < 2 || row + by[0] + 2 >= rows || column < 4 || column + by[1] + 4 >= columns {
                continue;
            }
            seen += 1;
            if y[at] != of_shifted[at + by[0] * columns + by[1]] || y[at] == 0.0 {
                return Err(format!("{v_shape:?}: [{at}] is another one").into());
            }
        }
        assert!(seen > 10, "{v_shape:?}: {seen} elements");
    }
    Ok(())
}

fn dispatch_count(gpu: &Gpu) -> Outcome {
    let forward = Case::new(&[2, 4, 9], &[6, 4, 3], plain().padding(1));
    let back = Case::new(&[2, 6, 9], &[6, 4, 4], plain().stride(2)).transposed();
    let whole = |case: &Case| Case { axis: Some(Axis::Whole), ..case.clone() };
    for (case, expected) in [
        (forward.clone(), 1),
        (Case { axis: PLAIN, ..forward.clone() }, 1),
        (Case { known: true, ..forward.clone() }, 1),
        (Case { write_norms: true, ..forward.clone() }, 1),
        (Case { split_length: Some(16), ..forward.clone() }, 1),
        (Case { geometry: plain().groups(2), v_shape: vec![6, 2, 3], ..forward.clone() }, 1),
        (whole(&forward), 2),
        (Case { axis: PLAIN, ..back.clone() }, 1),
        (back.clone(), 2),
        (Case { known: true, ..back }, 2),
    ] {
        let (_, _, dispatches) = case.run(gpu)?;
        if dispatches != expected && case.split_length.is_none() {
            return Err(format!("{dispatches} dispatches, expected {expected}: {case:?}").into());
        }
    }
    Ok(())
}

fn empty(gpu: &Gpu) -> Outcome {
    Case::new(&[0, 4, 9], &[6, 4, 3], plain()).check(gpu)?;
    Case { eps: Eps::Clamp(1e-6), ..Case::new(&[2, 0, 9], &[6, 0, 3], plain()) }.check(gpu)?;
    Case::new(&[2, 4, 9], &[0, 4, 3], plain()).check(gpu)?;
    Case::new(&[0, 4, 9], &[4, 6, 3], plain()).transposed().check(gpu)?;
    // Gradients of nothing, and of what nothing became of: zeros.
    let zeros = |shape: &[usize]| gpu.zeros(shape, DType::F32);
    let ones = |shape: &[usize]| gpu.upload(&vec![1.0f32; shape.iter().product()], shape);
    for (x, v, dy) in
        [([2, 4, 9], [0, 4, 3], [2, 0, 7]), ([2, 0, 9], [6, 0, 3], [2, 6, 7]), ([0, 4, 9], [6, 4, 3], [0, 6, 7])]
    {
        let (alpha, x, v) = (ones(&[x[1]])?, ones(&x)?, ones(&v)?);
        let d = gpu.conv_backward(Conv::new(&x, &v).input_snake(&alpha), &zeros(&dy)?)?;
        for (gradient, of) in [(&d.dx, &x), (&d.dv, &v), (d.dalpha.as_ref().ok_or("no dalpha")?, &alpha)] {
            assert_eq!(gradient.shape(), of.shape());
            assert!(gradient.read::<f32>()?.iter().all(|&d| d == 0.0));
        }
        assert_eq!(d.dbias.read::<f32>()?, vec![0.0; dy[1]]);
    }
    let (x, v) = (ones(&[2, 4, 9])?, ones(&[4, 0, 3])?);
    let d = gpu.conv_transposed_backward(Conv::new(&x, &v), &zeros(&[2, 0, 11])?)?;
    assert!(d.dbias.is_empty() && d.dx.read::<f32>()?.iter().all(|&d| d == 0.0));
    Ok(())
}

/// As many loops of an invocation as an element has copies in the padding, and the rows of them besides.
fn rejects_long_paddings(gpu: &Gpu) -> Outcome {
    let (x, v) = (gpu.upload(&[1.0f32; 2], &[1, 1, 1, 2])?, gpu.upload(&[1.0f32], &[1, 1, 1, 1])?);
    let conv = Conv::new(&x, &v).pad_mode(PadMode::Replicate);
    for (copies, fits) in [(64, true), (40_000, false)] {
        let dy = gpu.zeros(&[1, 1, copies, 2], DType::F32)?;
        let found = gpu.conv_backward(conv.padding([(copies - 1, 0), (0, 0)]), &dy);
        match found {
            Err(Error::Limit(LimitError::TooLarge { limit: 60_000, .. })) if !fits => {}
            Ok(_) if fits => {}
            found => return Err(format!("{copies} copies: {found:?}").into()),
        }
    }
    Ok(())
}

fn rejects(gpu: &Gpu) -> Outcome {
    let x = gpu.upload(&[0.5f32; 36], &[1, 4, 9])?;
    let v = gpu.upload(&[0.5f32; 72], &[6, 4, 3])?;
    let g = gpu.upload(&[0.5f32; 4], &[4])?;
    let padded = gpu.zeros(&[1, 6, 9], DType::F32)?;
    let matrix = gpu.upload(&[0.5f32; 8], &[2, 4])?;
    let conv = |conv: Conv<'_>| gpu.conv(conv).map(drop);
    let errors = [
        conv(Conv::new(&x, &v).groups(5)),
        conv(Conv::new(&x, &v).padding(4).dilation(9)),
        conv(Conv::new(&x, &v).bias(&g)),
        conv(Conv::new(&x, WeightNorm::new(&v, &g))),
        conv(Conv::new(&x, &v).tile(Tile::Gemv4)),
        gpu.linear(Linear::new(&matrix, &matrix).tile(Tile::Narrow4)).map(drop),
        conv(Conv::new(&x, &v).norms(&g)),
        conv(Conv::new(&x, &v).stride(1 << 20).padding(1 << 20)),
        gpu.conv_transposed(Conv::new(&x, &v)).map(drop),
        gpu.conv_backward(Conv::new(&x, &v), &padded).map(drop),
        into_itself(gpu, &x, &v),
    ];
    for (i, result) in errors.into_iter().enumerate() {
        let kind = match result {
            Ok(()) => return Err(format!("{i} was taken").into()),
            Err(Error::Argument(ArgumentError::Shape { .. })) => "shape",
            Err(Error::Argument(ArgumentError::Variant { .. })) => "variant",
            Err(Error::Limit(LimitError::TooLarge { .. })) => "too large",
            Err(Error::Argument(ArgumentError::Alias { .. })) => "alias",
            Err(other) => return Err(format!("{i}: {other}").into()),
        };
        let expected =
            ["shape", "shape", "shape", "shape", "variant", "variant", "shape", "too large", "shape", "shape", "alias"]
                [i];
        if kind != expected {
            return Err(format!("{i}: {kind}, expected {expected}").into());
        }
    }
    Ok(())
}

/// x as a part of its own result.
fn into_itself(gpu: &Gpu, x: &Tensor, v: &Tensor) -> Result<(), Error> {
    let y = Tensor::from_buffer(gpu, x.buffer()?, 0, &[1, 6, 6], DType::F32)?;
    let short = Tensor::from_buffer(gpu, x.buffer()?, 0, &[1, 4, 8], DType::F32)?;
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    gpu.record(&mut encoder).conv(Conv::new(&short, v), &y)
}

fn same_bits(gpu: &Gpu) -> Outcome {
    let case = Case::new(&[2, 12, 41], &[18, 12, 5], plain().padding(2));
    if case.run(gpu)?.1 == case.run(gpu)?.1 { Ok(()) } else { Err("two runs differ".into()) }
}

/// One tap off by one, and one element off by a little.
fn comparison_can_fail(gpu: &Gpu) -> Outcome {
    let case = Case::exact(&[2, 3, 21], &[4, 3, 3], plain().padding(1));
    let (mut y, ..) = case.run(gpu)?;
    case.judge(&y)?;
    let shifted = Case { geometry: plain().padding((0, 2)), ..case.clone() };
    must_fail("a shift by one", case.judge(&shifted.run(gpu)?.0))?;
    must_fail(
        "another dilation",
        case.judge(&Case { geometry: plain().dilation(2).padding(2), ..case.clone() }.run(gpu)?.0),
    )?;
    y[7] += 1.0;
    must_fail("an element", case.judge(&y))
}
