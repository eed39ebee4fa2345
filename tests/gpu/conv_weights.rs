//! dv and dg of convolutions: one product in pieces, and one dispatch that adds these up row by row.
use weightnorm::internals::Kind;
use weightnorm::{Activation, Axis, Conv, ConvGeometry, DType, Eps, Gpu, Gradients, Tensor, Tile, WeightNorm, cpu};

use crate::common::{compare, conv_terms, dg_bound, dv_bound};
use crate::data::{
    Guarded, POLICIES, all, gains, must_fail, norm_count, norm_length, norm_of, random, rounded, upload,
};
use crate::device::{of_kind, recorded, small};
use crate::{Extent, Failed, Needs, Outcome, Suite};

const ROWS: Axis = Axis::Kept(0);
/// Below it a device may take a number for zero.
const SUBNORMAL: f64 = f32::MIN_POSITIVE as f64;

pub fn register(suite: &mut Suite) {
    suite.sampled("conv_weights::rows", rows);
    suite.sampled("conv_weights::policies", policies);
    suite.sampled("conv_weights::numbers", numbers);
    suite.sampled("conv_weights::dtypes", dtypes);
    suite.test("conv_weights::nan_stays_in_its_row", Needs::Nothing, nan);
    suite.test("conv_weights::dispatches", Needs::Nothing, dispatches);
    suite.test("conv_weights::same_bits", Needs::Nothing, same_bits);
    suite.test("conv_weights::limits", Needs::Nothing, limits);
    suite.test("conv_weights::comparison_can_fail", Needs::Nothing, comparison_can_fail);
}

/// One layer, of which dv and dg are looked at.
#[derive(Clone)]
struct Layer {
    transposed: bool,
    x_shape: Vec<usize>,
    v_shape: Vec<usize>,
    geometry: ConvGeometry,
    axis: Axis,
    eps: Eps,
    /// Of v, dv, dg.
    dtypes: [DType; 3],
    gain: bool,
    known: bool,
    add: bool,
    /// dv, dg.
    wanted: [bool; 2],
    split_length: Option<u32>,
    v: Option<Vec<f64>>,
    dy_scale: f64,
}

impl std::fmt::Debug for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Layer { transposed, x_shape, v_shape, axis, eps, dtypes, gain, known, add, wanted, split_length, .. } =
            self;
        write!(f, "{x_shape:?} {v_shape:?} transposed {transposed}, {axis:?} {eps:?} {dtypes:?} gain {gain}, ")?;
        write!(f, "known {known}, add {add}, wanted {wanted:?}, pieces of {split_length:?}")
    }
}

/// dv and dg, each if it is wanted, and the dispatches.
type Got = ([Option<Vec<f64>>; 2], u64);

impl Layer {
    fn new(x_shape: &[usize], v_shape: &[usize], geometry: ConvGeometry) -> Layer {
        Layer {
            transposed: false,
            x_shape: x_shape.into(),
            v_shape: v_shape.into(),
            geometry,
            axis: ROWS,
            eps: Eps::default(),
            dtypes: [DType::F32; 3],
            gain: true,
            known: false,
            add: false,
            wanted: [true; 2],
            split_length: Some(16),
            v: None,
            dy_scale: 1.0,
        }
    }

    fn transposed(self) -> Layer {
        Layer { transposed: true, ..self }
    }

    fn v(&self) -> Vec<f64> {
        self.v.clone().unwrap_or_else(|| random(51, self.v_shape.iter().product(), self.dtypes[0]))
    }

    /// v with each row times a scale of its own.
    fn scaled(&self, scale: impl Fn(usize) -> f64) -> Layer {
        let row = norm_of(&self.v_shape, self.axis);
        let v = self.v().iter().enumerate().map(|(i, v)| rounded(v * scale(row(i)), self.dtypes[0])).collect();
        Layer { v: Some(v), ..self.clone() }
    }

    fn g(&self) -> Option<Vec<f64>> {
        self.gain.then(|| gains(52, norm_count(&self.v_shape, self.axis)))
    }

    fn x(&self) -> Vec<f64> {
        random(53, self.x_shape.iter().product(), DType::F32)
    }

    fn y_shape(&self) -> Vec<usize> {
        let shape = if self.transposed { ConvGeometry::conv_transposed_shape } else { ConvGeometry::conv_shape };
        shape(&self.geometry, &self.x_shape, &self.v_shape).unwrap_or_else(|e| panic!("{self:?}: {e}"))
    }

    fn dy(&self) -> Vec<f64> {
        let dy = random(54, self.y_shape().iter().product(), DType::F32);
        dy.iter().map(|dy| rounded(dy * self.dy_scale, DType::F32)).collect()
    }

    /// Into outputs between guards, which hold NaN or, with `add`, ones.
    fn run(&self, gpu: &Gpu) -> Result<Got, Failed> {
        let count = norm_count(&self.v_shape, self.axis);
        let v64 = self.v();
        let x = upload(gpu, &self.x(), &self.x_shape, DType::F32, 1)?;
        let v = upload(gpu, &v64, &self.v_shape, self.dtypes[0], self.v_shape.len())?;
        let dy = upload(gpu, &self.dy(), &self.y_shape(), DType::F32, 3)?;
        let norms = self.known.then(|| cpu::row_norms(&v64, &self.v_shape, self.axis, self.eps)).transpose()?;
        let vector = |values: Option<Vec<f64>>| -> Result<Option<Tensor>, weightnorm::Error> {
            values.map(|values| upload(gpu, &values, &[count], DType::F32, 2)).transpose()
        };
        let (g, known) = (vector(self.g())?, vector(norms)?);
        let output = |shape: &[usize], dtype, offset| match self.add {
            true => Guarded::holding(gpu, &vec![1.0; shape.iter().product()], shape, dtype, offset),
            false => Guarded::poisoned(gpu, shape, dtype, offset),
        };
        let outputs = [output(&self.v_shape, self.dtypes[1], 12)?, output(&[count], self.dtypes[2], 4)?];
        let of = |i: usize| self.wanted[i].then_some(&outputs[i].tensor);
        let wanted = Gradients::default().dv(of(0)).dg(of(1)).accumulate(self.add);
        let unit = WeightNorm::unit(&v);
        let weight = g.as_ref().map_or(unit, |g| WeightNorm::new(&v, g)).axis(self.axis).eps(self.eps);
        let conv = Conv::new(&x, known.as_ref().map_or(weight, |known| weight.norms(known))).geometry(self.geometry);
        let conv = conv.tile(Tile::Tile32x32).split_length(self.split_length);
        let dispatches = recorded(gpu, |ops| match self.transposed {
            true => ops.conv_transposed_backward(conv, &dy, &wanted),
            false => ops.conv_backward(conv, &dy, &wanted),
        })?;
        let read = |i: usize| self.wanted[i].then(|| outputs[i].read()).transpose();
        Ok(([read(0)?, read(1)?], dispatches))
    }

    fn compare(&self, [dv, dg]: &[Option<Vec<f64>>; 2]) -> Result<(), String> {
        let (x, v, g, dy) = (self.x(), self.v(), self.g(), self.dy());
        let weight = cpu::Weight::Normalized { v: &v, g: g.as_deref(), axis: self.axis, eps: self.eps };
        let backward = if self.transposed { cpu::conv_transposed_backward } else { cpu::conv_backward };
        let expected = backward(&x, &self.x_shape, weight, &self.v_shape, &dy, &self.geometry, Activation::None)
            .map_err(|e| e.to_string())?;
        let operands = (&x[..], &self.x_shape[..]);
        let (_, terms) = conv_terms(self.transposed, &self.geometry, operands, weight, &self.v_shape, None, &dy);
        let norms = cpu::row_norms(&v, &self.v_shape, self.axis, self.eps).map_err(|e| e.to_string())?;
        let (norm, chain) = (norm_length(&self.v_shape, self.axis), v.len() + dy.len());
        let before = if self.add { 1.0 } else { 0.0 };
        let of = norm_of(&self.v_shape, self.axis);
        if let Some(dv) = dv {
            let expected: Vec<f64> = expected.dv.iter().map(|e| e + before).collect();
            let scale = |i: usize| g.as_ref().map_or(1.0, |g| g[of(i)].abs()) / norms[of(i)];
            let bound = |i: usize| {
                let own = dv_bound(norm, chain, terms.dv[i] + before, expected[i], self.dtypes[1]);
                own + 2.0 * SUBNORMAL * (1.0 + scale(i))
            };
            compare(dv, &expected, Some(self.dtypes[1]), bound).map_err(|e| format!("dv: {e}"))?;
        }
        if let (Some(dg), Some(expected), Some(terms)) = (dg, &expected.dg, &terms.dg) {
            let expected: Vec<f64> = expected.iter().map(|e| e + before).collect();
            let stored = if self.dtypes[2] == DType::F32 { 0.0 } else { 2f64.powi(-8) };
            let bound = |j: usize| {
                dg_bound(norm, chain, terms[j] + before, expected[j]) + SUBNORMAL + stored * expected[j].abs()
            };
            compare(dg, &expected, Some(self.dtypes[2]), bound).map_err(|e| format!("dg: {e}"))?;
        }
        Ok(())
    }

    fn check(&self, gpu: &Gpu) -> Outcome {
        let judged = self.run(gpu).and_then(|(got, _)| Ok(self.compare(&got)?));
        judged.map_err(|e| format!("{self:?}: {}", e.message().unwrap_or_default()).into())
    }
}

fn plain() -> ConvGeometry {
    ConvGeometry::default()
}

/// Rows of one, three, four elements, of some units, of no whole ones, and longer than a workgroup holds; groups,
/// strides, two dimensions, both kinds of layer; the sums whole, in pieces, and in as many as a GPU would take.
fn rows(gpu: &Gpu, extent: Extent) -> Outcome {
    let layers = [
        Layer::new(&[2, 3, 70], &[6, 3, 4], plain().padding(1)),
        Layer::new(&[1, 1, 70], &[5, 1, 1], plain()),
        Layer::new(&[2, 6, 21], &[6, 4, 5], plain().stride(3)).transposed(),
        Layer::new(&[2, 20, 29], &[20, 1, 3], plain().padding(1).groups(20)),
        Layer::new(&[2, 8, 41], &[12, 4, 3], plain().stride(2).dilation(2).padding(2).groups(2)),
        Layer::new(&[2, 4, 9, 7], &[3, 4, 3, 3], plain().stride([2, 1]).padding(1)),
        Layer { split_length: Some(32), ..Layer::new(&[2, 160, 20], &[3, 160, 7], plain().padding(3)) },
        Layer::new(&[1, 12, 23], &[12, 3, 4], plain().stride(2).groups(3)).transposed(),
        // More than 1024 single elements, and more than 4096 in units.
        Layer { split_length: Some(32), ..Layer::new(&[1, 147, 40], &[2, 147, 7], plain()) },
        Layer { split_length: Some(32), ..Layer::new(&[1, 600, 40], &[2, 600, 8], plain()) },
    ];
    all(layers.iter().take(extent.choose(10, 6)), |layer| {
        layer.check(gpu)?;
        match extent {
            Extent::Few => Ok(()),
            Extent::All => {
                Layer { split_length: None, ..(*layer).clone() }.check(gpu)?;
                layer.check(&of_kind(gpu, Kind::Software)?)
            }
        }
    })?;
    all(layers.iter().take(extent.choose(10, 1)), |layer| Layer { split_length: None, ..(*layer).clone() }.check(gpu))?;
    all(layers.iter().skip(8), |layer| Layer { split_length: None, ..(*layer).clone() }.check(gpu))?;
    // 1,100 positions of two images are pieces enough.
    Layer { split_length: None, ..Layer::new(&[2, 4, 1100], &[6, 4, 3], plain().padding(1)) }.check(gpu)
}

/// Every policy, with rows of zeros, with clamps that are active, with norms that are known, without gains.
fn policies(gpu: &Gpu, extent: Extent) -> Outcome {
    let layer = Layer::new(&[2, 3, 40], &[7, 3, 4], plain().padding(2)).scaled(|row| [1.0, 0.0, 1e-3, 1e3][row % 4]);
    let policies = POLICIES.into_iter().chain([Eps::Clamp(0.5), Eps::Clamp(1e3), Eps::After(1e3)]);
    all(policies, |&eps| {
        for known in [false, true] {
            Layer { eps, known, ..layer.clone() }.check(gpu)?;
            if extent == Extent::All {
                Layer { eps, known, gain: false, ..layer.clone() }.check(gpu)?;
                Layer { eps, known, split_length: None, ..layer.clone() }.check(gpu)?;
            }
        }
        Ok(())
    })?;
    // The whole weight has one norm, and is a row.
    all([Axis::Whole, Axis::Kept(1), Axis::Kept(2)], |&axis| Layer { axis, v: None, ..layer.clone() }.check(gpu))
}

/// v and dy far out of range, rows of all sizes beside each other.
fn numbers(gpu: &Gpu, extent: Extent) -> Outcome {
    let layer = Layer { eps: Eps::None, ..Layer::new(&[2, 3, 40], &[7, 3, 4], plain().padding(2)) };
    let odd = Layer { eps: Eps::None, ..Layer::new(&[2, 1, 40], &[7, 1, 3], plain()) };
    let scales = [1.0, 3e25, 3e-25, 1e15, 1e-15, 1e10, 1e-10];
    all([layer, odd], |layer| {
        for dy_scale in [1.0, 1e-12, 1e12] {
            Layer { dy_scale, ..layer.scaled(|row| scales[row]) }.check(gpu)?;
            Layer { dy_scale, ..layer.scaled(|_| 3e25) }.check(gpu)?;
            Layer { dy_scale, ..layer.scaled(|_| 3e-25) }.check(gpu)?;
        }
        if extent == Extent::All {
            Layer { split_length: None, ..layer.scaled(|row| scales[row]) }.check(gpu)?;
        }
        Ok(())
    })?;
    // Silence: sums of zeros are formed again with exponents of their own.
    let still = Layer { dy_scale: 0.0, ..Layer::new(&[2, 3, 40], &[7, 3, 4], plain().padding(2)) };
    still.check(gpu)
}

/// v, dv and dg in every mixture; dv is rounded once. Rows that fill units of eight, and that do not.
fn dtypes(gpu: &Gpu, extent: Extent) -> Outcome {
    use DType::{Bf16, F16, F32};
    let mixes = [[F16, F16, F32], [F32, Bf16, F16], [Bf16, F32, Bf16], [F16, F32, F32], [Bf16, F16, F32]];
    let whole = Layer::new(&[2, 4, 40], &[6, 4, 4], plain().padding(2));
    let ragged = Layer::new(&[2, 3, 40], &[5, 3, 3], plain().padding(2));
    all(extent.of(mixes, 1), |&dtypes| {
        all([&whole, &ragged], |layer| {
            let layer = Layer { dtypes, ..(*layer).clone() };
            layer.check(gpu)?;
            Layer { add: true, ..layer.clone() }.check(gpu)?;
            match extent {
                Extent::Few => Ok(()),
                Extent::All => Layer { split_length: None, known: true, ..layer }.check(gpu),
            }
        })
    })
}

/// NaN in a row of v reaches that row alone.
fn nan(gpu: &Gpu) -> Outcome {
    for layer in [Layer::new(&[2, 3, 40], &[7, 3, 4], plain()), Layer::new(&[2, 1, 40], &[7, 1, 3], plain())] {
        let clean = layer.run(gpu)?.0;
        let mut v = layer.v();
        let length = norm_length(&layer.v_shape, ROWS);
        v[4 * length + length - 1] = f64::NAN;
        let got = Layer { v: Some(v), ..layer.clone() }.run(gpu)?.0;
        for (which, length) in [(0, length), (1, 1)] {
            let (Some(clean), Some(got)) = (&clean[which], &got[which]) else { continue };
            for (i, (clean, got)) in clean.iter().zip(got).enumerate() {
                let fits = if i / length == 4 { got.is_nan() } else { got == clean };
                assert!(fits, "{layer:?}: output {which}, element {i} is {got}");
            }
        }
    }
    Ok(())
}

/// As the documentation of `conv_backward` says.
fn dispatches(gpu: &Gpu) -> Outcome {
    let layer = Layer::new(&[2, 3, 40], &[6, 3, 4], plain());
    let back = Layer::new(&[2, 6, 21], &[6, 4, 5], plain().stride(3)).transposed();
    let long = Layer::new(&[1, 600, 40], &[2, 600, 8], plain());
    let halves = Layer { dtypes: [DType::F16, DType::F16, DType::F32], ..Layer::new(&[1, 3, 40], &[5, 3, 3], plain()) };
    for (layer, in_pieces, whole) in [(layer, 2, 2), (back, 2, 2), (long, 4, 3), (halves, 4, 3)] {
        for wanted @ [dv, dg] in [[true, true], [true, false], [false, true], [false, false]] {
            let count = |split_length| Layer { wanted, split_length, ..layer.clone() }.run(gpu);
            let less = u64::from(whole > 2 && !dv);
            // Without dv rows of any storage type are held.
            let held = layer.dtypes[1] != DType::F32 && !dv;
            for (split_length, expected) in [(Some(16), in_pieces), (None, whole)] {
                let expected = if held { 2 } else { expected - less };
                let expected = if dv || dg { expected } else { 0 };
                assert_eq!(count(split_length)?.1, expected, "{layer:?}, wanted {wanted:?}, {split_length:?}");
            }
        }
    }
    // Norms that are known are not summed up; the sums of another axis' rows take dispatches of their own.
    let layer = Layer::new(&[2, 3, 40], &[6, 3, 4], plain());
    assert_eq!(Layer { known: true, ..layer.clone() }.run(gpu)?.1, 2);
    assert_eq!(Layer { axis: Axis::Whole, ..layer.clone() }.run(gpu)?.1, 2);
    assert_eq!(Layer { axis: Axis::Kept(1), ..layer.clone() }.run(gpu)?.1, 5);
    Ok(())
}

fn same_bits(gpu: &Gpu) -> Outcome {
    for layer in [Layer::new(&[2, 3, 70], &[6, 3, 4], plain()), Layer::new(&[1, 1, 70], &[5, 1, 3], plain())] {
        let first = layer.run(gpu)?.0;
        for _ in 0..3 {
            if layer.run(gpu)?.0 != first {
                return Err(format!("two runs differ: {layer:?}").into());
            }
        }
    }
    Ok(())
}

/// Where not all pieces fit a binding, dw is added up by itself.
fn limits(gpu: &Gpu) -> Outcome {
    let layer = Layer::new(&[1, 48, 1383], &[32, 12, 8], plain().groups(4));
    let small = small(gpu)?;
    layer.check(&small)?;
    let (limited, without) = (layer.run(&small)?.1, layer.run(gpu)?.1);
    assert!(without == 2 && limited > without, "{limited} dispatches, {without} without limits");
    Ok(())
}

/// Sums of other positions, and an element off by a hundredth.
fn comparison_can_fail(gpu: &Gpu) -> Outcome {
    let layer = Layer::new(&[1, 3, 51], &[6, 3, 4], plain());
    let got = layer.run(gpu)?.0;
    layer.compare(&got)?;
    let shorter = Layer { x_shape: vec![1, 3, 35], ..layer.clone() };
    must_fail("fewer pieces", layer.compare(&shorter.run(gpu)?.0))?;
    for which in 0..2 {
        let mut wrong = got.clone();
        let values = wrong[which].as_mut().ok_or("it is wanted")?;
        values[0] += 0.01 * values.iter().fold(0f64, |most, value| most.max(value.abs()));
        must_fail(&format!("output {which}"), layer.compare(&wrong))?;
    }
    Ok(())
}
