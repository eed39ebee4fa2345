//! Gradients of activations: the operator, and layers of which an activation is a part.
use weightnorm::{
    Activation, ActivationBackward, Axis, DType, Eps, Gpu, Gradients, Linear, LinearBackward, Tensor, Weight,
    WeightNorm, cpu,
};

use crate::common::{
    compare, derivative_bound, derivative_change, derivative_from_output_bound, dg_bound, dot_bound, dv_bound,
    dx_bound, linear_terms, pulled_back_bound, storage_bound, sum_bound,
};
use crate::data::{
    Guarded, all, gains, in_turn, must_fail, norm_chain, norm_count, norm_length, random, rounded, upload,
};
use crate::device::{counted, recorded, tiny};
use crate::{Extent, Failed, Outcome, Suite};
use crate::{Needs, golden::read};

const ALL: [Activation; 9] = [
    Activation::None,
    Activation::Relu,
    Activation::LeakyRelu(0.125),
    Activation::LeakyRelu(-0.3),
    Activation::Elu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Silu,
    Activation::Tanh,
];

pub fn register(suite: &mut Suite) {
    suite.test("activation::not_finite", Needs::Nothing, not_finite);
    suite.test("activation::dispatches", Needs::Nothing, dispatches);
    suite.test("activation::nothing_is_wrong_without_u", Needs::Nothing, nothing_is_wrong_without_u);
    suite.test("activation::two_layers", Needs::Nothing, two_layers);
    suite.test("activation::comparison_can_fail", Needs::Nothing, comparison_can_fail);
    suite.sampled("activation::operator", operator);
    suite.sampled("activation::storage_types", storage_types);
    suite.sampled("activation::in_place", in_place);
    suite.sampled("activation::layers", layers);
    suite.sampled("activation::windows", windows);
    suite.sampled("activation::columns_past_a_binding", columns_past_a_binding);
}

fn follows_from_output(activation: Activation) -> bool {
    !cpu::activate_backward_from_output(0.5, activation).is_nan()
}

/// One call of the operator.
#[derive(Debug, Clone)]
struct Case {
    activation: Activation,
    from_output: bool,
    shape: Vec<usize>,
    /// Of z or y, dy, dz.
    dtypes: [DType; 3],
    offset: u64,
    in_place: bool,
}

impl Case {
    fn new(activation: Activation, shape: &[usize]) -> Case {
        let (shape, dtypes) = (shape.to_vec(), [DType::F32; 3]);
        Case { activation, from_output: false, shape, dtypes, offset: 0, in_place: false }
    }

    /// z, or y, over all of where a derivative is neither 0 nor 1 to f32, and dy.
    fn data(&self) -> [Vec<f64>; 2] {
        let count = self.shape.iter().product();
        let z = random(51, count, DType::F32).into_iter().enumerate().map(|(i, z)| z * [1.0, 4.0, 16.0, 100.0][i % 4]);
        let at = z.map(|z| if self.from_output { cpu::activate(z, self.activation) } else { z });
        [at.map(|at| rounded(at, self.dtypes[0])).collect(), random(52, count, self.dtypes[1])]
    }

    fn run(&self, gpu: &Gpu) -> Result<(Vec<f64>, u64), Failed> {
        let [at, dy] = self.data();
        let at = Guarded::holding(gpu, &at, &self.shape, self.dtypes[0], self.offset)?;
        let dy = Guarded::holding(gpu, &dy, &self.shape, self.dtypes[1], self.offset)?;
        let dz = Guarded::poisoned(gpu, &self.shape, self.dtypes[2], self.offset)?;
        let dz = if self.in_place { &dy } else { &dz };
        let request = ActivationBackward::new(self.activation, &at.tensor, &dy.tensor);
        let request = if self.from_output { request.from_output() } else { request };
        let count = recorded(gpu, |ops| ops.activation_backward(request, &dz.tensor))?;
        Ok((dz.read()?, count))
    }

    fn compare(&self, got: &[f64], activation: Activation) -> Result<f64, String> {
        let [at, dy] = self.data();
        let derivative: Vec<f64> = if self.from_output {
            at.iter().map(|&y| cpu::activate_backward_from_output(y, activation)).collect()
        } else {
            at.iter().map(|&z| cpu::activate_backward(z, activation)).collect()
        };
        let expected: Vec<f64> = derivative.iter().zip(&dy).map(|(derivative, dy)| derivative * dy).collect();
        let dtype = self.dtypes[if self.in_place { 1 } else { 2 }];
        compare(got, &expected, Some(dtype), |i| {
            let e = if self.from_output {
                derivative_from_output_bound(activation, at[i])
            } else {
                derivative_bound(activation, at[i])
            };
            pulled_back_bound(dy[i], derivative[i], e, dtype)
        })
    }

    fn check(&self, gpu: &Gpu) -> Outcome {
        self.compare(&self.run(gpu)?.0, self.activation)?;
        Ok(())
    }
}

/// Every activation at z and from y, in quads and word by word.
fn operator(gpu: &Gpu, extent: Extent) -> Outcome {
    let shapes = [&[33, 128][..], &[7, 11, 13], &[1], &[5], &[0, 3], &[4096 + 4]];
    let mut cases = vec![];
    for (i, activation) in ALL.into_iter().enumerate() {
        let shapes = extent.choose(&shapes[..], &shapes[i % 2..][..1]);
        for (from_output, shape) in [false, true].into_iter().flat_map(|from| shapes.iter().map(move |&s| (from, s))) {
            if !from_output || follows_from_output(activation) {
                cases.push(Case { from_output, ..Case::new(activation, shape) });
            }
        }
    }
    in_turn(gpu, extent, cases, |gpu, case| case.check(gpu))
}

/// Types in any mixture, at every place where a tensor may start.
fn storage_types(gpu: &Gpu, extent: Extent) -> Outcome {
    use DType::{Bf16, F16, F32};
    let mut cases = vec![];
    if extent == Extent::All {
        for dtypes in [F32, F16, Bf16].into_iter().flat_map(|a| [F32, F16, Bf16].map(|b| [a, b])) {
            for out in [F32, F16, Bf16] {
                for (offset, shape) in [(0, [9, 64]), (4, [9, 64]), (12, [7, 13]), (16, [3, 24]), (260, [1, 1])] {
                    let dtypes = [dtypes[0], dtypes[1], out];
                    cases.push(Case { dtypes, offset, ..Case::new(Activation::Silu, &shape) });
                }
            }
        }
    }
    for (i, dtypes) in [[F32, F16, Bf16], [F16, F16, F16], [Bf16, F32, F16], [F16, Bf16, F32]].into_iter().enumerate() {
        let few = Case { dtypes, ..Case::new(Activation::Relu, &[9, 64]) };
        // In quads, and with an odd end from a word on.
        if i % 2 == 0 || extent == Extent::All {
            cases.push(few.clone());
        }
        if i % 2 == 1 || extent == Extent::All {
            cases.push(Case { offset: 12, shape: vec![7, 13], ..few });
        }
    }
    in_turn(gpu, extent, cases, |gpu, case| case.check(gpu))
}

fn in_place(gpu: &Gpu, extent: Extent) -> Outcome {
    let of = |dtype, shape: &[usize], activation| Case {
        dtypes: [DType::F32, dtype, dtype],
        in_place: true,
        ..Case::new(activation, shape)
    };
    let mut cases = vec![of(DType::F32, &[9, 64], Activation::Relu), of(DType::F16, &[7, 13], Activation::Relu)];
    if extent == Extent::All {
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            cases.extend([&[9, 64][..], &[7, 13], &[1]].map(|shape| of(dtype, shape, Activation::GeluTanh)));
        }
    }
    in_turn(gpu, extent, cases, |gpu, case| case.check(gpu))
}

/// What is no number comes out where the reference has it, and a ReLU drops it where it is shut.
fn not_finite(gpu: &Gpu) -> Outcome {
    let (nan, infinity) = (f64::NAN, f64::INFINITY);
    let z = [nan, -nan, infinity, -infinity, 0.0, -0.0, 1.5, -1.5, 1e38, -1e38, 20.0, -20.0];
    let dy = [1.0, -2.0, nan, infinity, -infinity, 0.0];
    let pairs: Vec<(f64, f64)> = z.iter().flat_map(|&z| dy.iter().map(move |&dy| (z, dy))).collect();
    // Where a derivative leaves the range of f32, f64 may have infinity times what is almost zero.
    let pairs: Vec<_> = pairs.into_iter().filter(|(z, dy)| dy.is_finite() || z.abs() != 20.0).collect();
    let (z, dy): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
    let tensor = |values: &[f64]| upload(gpu, values, &[values.len()], DType::F32, 0);
    let (z_tensor, dy_tensor) = (tensor(&z)?, tensor(&dy)?);
    all(ALL, |&activation| {
        let got = gpu.activation_backward(ActivationBackward::new(activation, &z_tensor, &dy_tensor))?;
        let expected = cpu::activation_backward(activation, &z, &dy)?;
        compare(&read(&got)?, &expected, Some(DType::F32), |i| {
            let derivative = cpu::activate_backward(z[i], activation);
            // At NaN, where it is a number, it is 1 or the slope.
            let e = if z[i].is_nan() { 0.0 } else { derivative_bound(activation, z[i]) };
            if dy[i].is_finite() { pulled_back_bound(dy[i], derivative, e, DType::F32) } else { 0.0 }
        })?;
        Ok(())
    })
}

/// A linear layer with an activation.
#[derive(Debug, Clone)]
struct Layer {
    /// batch, out_features, in_features
    size: [usize; 3],
    /// `None`: a plain weight.
    axis: Option<Axis>,
    activation: Activation,
    gain: bool,
    bias: Option<DType>,
    /// Of x, v, dy.
    dtypes: [DType; 3],
}

/// Its elements, and how far each may be off.
type Gradient = (Vec<f64>, Vec<f64>);

/// A layer's numbers.
struct Numbers {
    x: Vec<f64>,
    v: Vec<f64>,
    g: Option<Vec<f64>>,
    bias: Option<Vec<f64>>,
    dy: Vec<f64>,
}

impl Layer {
    fn new(axis: Option<Axis>, activation: Activation) -> Layer {
        let (bias, dtypes) = (Some(DType::F32), [DType::F32; 3]);
        Layer { size: [5, 7, 13], axis, activation, gain: axis.is_some(), bias, dtypes }
    }

    fn v_shape(&self) -> [usize; 2] {
        [self.size[1], self.size[2]]
    }

    fn norm_count(&self) -> usize {
        self.axis.map_or(0, |axis| norm_count(&self.v_shape(), axis))
    }

    fn numbers(&self) -> Numbers {
        let [batch, outs, ins] = self.size;
        let [x, v, dy] = self.dtypes;
        Numbers {
            x: random(61, batch * ins, x),
            v: random(62, outs * ins, v),
            g: self.gain.then(|| gains(63, self.norm_count()).iter().map(|g| g.clamp(-3.0, 3.0)).collect()),
            bias: self.bias.map(|dtype| random(64, outs, dtype)),
            dy: random(65, batch * outs, dy),
        }
    }

    /// dx, dv, dg (where it is there), dbias: by way of what the forward pass saved.
    fn run(&self, gpu: &Gpu) -> Result<Vec<Vec<f64>>, Failed> {
        let [batch, outs, ins] = self.size;
        let Numbers { x, v, g, bias, dy } = self.numbers();
        let [x_dtype, v_dtype, dy_dtype] = self.dtypes;
        let x = upload(gpu, &x, &[batch, ins], x_dtype, 1)?;
        let v = upload(gpu, &v, &[outs, ins], v_dtype, 2)?;
        let dy = upload(gpu, &dy, &[batch, outs], dy_dtype, 3)?;
        let g = g.map(|g| upload(gpu, &g, &[g.len()], DType::F32, 1)).transpose()?;
        let bias = self.bias.zip(bias).map(|(dtype, bias)| upload(gpu, &bias, &[outs], dtype, 2)).transpose()?;
        let weight: Weight<'_> = match self.axis {
            None => (&v).into(),
            Some(axis) => g.as_ref().map_or(WeightNorm::unit(&v), |g| WeightNorm::new(&v, g)).axis(axis).into(),
        };
        let linear = Linear::new(&x, weight).bias(bias.as_ref()).activation(self.activation);
        let (_, saved) = gpu.linear_saved(linear)?;
        let d = gpu.linear_backward(LinearBackward::new(&x, weight, &dy).saved(&saved))?;
        let gradients = [Some(d.dx), Some(d.dv), d.dg, Some(d.dbias)];
        Ok(gradients.iter().flatten().map(read).collect::<Result<_, _>>()?)
    }

    /// The gradients of f64, and how far those of f32 may be from them.
    fn reference(&self, activation: Activation) -> Result<Vec<Gradient>, Failed> {
        let [batch, outs, ins] = self.size;
        let Numbers { x, v, g, bias, dy } = self.numbers();
        let (x_shape, shape) = ([batch, ins], self.v_shape());
        let (weight, w) = match self.axis {
            None => (cpu::Weight::Plain(&v), v.clone()),
            Some(axis) => {
                let eps = Eps::default();
                let w = cpu::normalize(&v, &shape, g.as_deref(), axis, eps)?;
                (cpu::Weight::Normalized { v: &v, g: g.as_deref(), axis, eps }, w)
            }
        };
        let gradients = cpu::linear_backward(&x, &x_shape, weight, &shape, bias.as_deref(), activation, &dy)?;
        // z of f32, its error, and that of dz.
        let z = cpu::linear(&x, &x_shape, &w, &shape, bias.as_deref(), Activation::None)?;
        let abs = |values: &[f64]| values.iter().map(|a| a.abs()).collect::<Vec<f64>>();
        let sums =
            cpu::linear(&abs(&x), &x_shape, &abs(&w), &shape, bias.as_deref().map(abs).as_deref(), Activation::None)?;
        let norms = self.axis.map_or(0, |axis| norm_chain(norm_length(&shape, axis)));
        let mut dz = vec![];
        let mut e = vec![];
        for (i, &z) in z.iter().enumerate() {
            let of_z = 2.0 * dot_bound(ins.max(norms), sums[i], z, DType::F32);
            let of_derivative = derivative_bound(activation, z) + derivative_change(activation, z, of_z);
            let derivative = cpu::activate_backward(z, activation);
            dz.push(dy[i] * derivative);
            e.push(pulled_back_bound(dy[i], derivative, of_derivative, self.dtypes[2]));
        }
        let terms = linear_terms(&x, weight, &shape, &dz);
        let propagated = linear_terms(&x, weight, &shape, &e);
        let to_dg = match self.axis {
            Some(Axis::Kept(1)) => outs + norm_chain(batch),
            Some(Axis::Whole) => ins + norm_chain(batch * outs),
            _ => ins + norm_chain(batch),
        };
        let [x_dtype, v_dtype, _] = self.dtypes;
        let bounds = |values: &[f64], terms: &[f64], e: &[f64], bound: &dyn Fn(f64, f64) -> f64| {
            (0..values.len()).map(|i| bound(terms[i] + e[i], values[i]) + e[i]).collect::<Vec<f64>>()
        };
        let plain = self.axis.is_none();
        let dx = bounds(&gradients.dx, &terms.dx, &propagated.dx, &|terms, value| match plain {
            true => sum_bound(outs, terms, value, x_dtype),
            false => dx_bound(norms, outs, terms, value, x_dtype),
        });
        let dv = bounds(&gradients.dv, &terms.dv, &propagated.dv, &|terms, value| match plain {
            true => sum_bound(batch, terms, value, v_dtype),
            false => dv_bound(norms, to_dg.max(batch), terms, value, v_dtype),
        });
        let dbias = bounds(&gradients.dbias, &terms.dbias, &propagated.dbias, &|terms, value| {
            sum_bound(norm_chain(batch), terms, value, DType::F32)
        });
        let mut all = vec![(gradients.dx, dx), (gradients.dv, dv)];
        if let (Some(values), Some(terms), Some(e)) = (gradients.dg, terms.dg, propagated.dg) {
            let bound = bounds(&values, &terms, &e, &|terms, value| dg_bound(norms, to_dg, terms, value));
            all.push((values, bound));
        }
        all.push((gradients.dbias, dbias));
        Ok(all)
    }

    fn compare(&self, got: &[Vec<f64>], activation: Activation) -> Outcome {
        let expected = self.reference(activation)?;
        assert_eq!(got.len(), expected.len());
        for (which, (got, (expected, bounds))) in got.iter().zip(expected).enumerate() {
            let dtype = [self.dtypes[0], self.dtypes[1]].get(which).copied().unwrap_or(DType::F32);
            // What a device takes for zero.
            let bound = |i: usize| bounds[i] + 64.0 * storage_bound(DType::F32, 0.0);
            compare(got, &expected, Some(dtype), bound).map_err(|e| format!("gradient {which}: {e}"))?;
        }
        Ok(())
    }

    fn check(&self, gpu: &Gpu) -> Outcome {
        self.compare(&self.run(gpu)?, self.activation)
    }
}

/// Every kind of weight behind an activation, through `linear_saved`.
fn layers(gpu: &Gpu, extent: Extent) -> Outcome {
    let (out, whole, ins) = (Some(Axis::Kept(0)), Some(Axis::Whole), Some(Axis::Kept(1)));
    let mut cases = vec![
        Layer::new(out, Activation::Silu),
        Layer { bias: None, ..Layer::new(None, Activation::Relu) },
        Layer::new(ins, Activation::Tanh),
        Layer { bias: Some(DType::F16), ..Layer::new(whole, Activation::LeakyRelu(0.125)) },
    ];
    if extent == Extent::All {
        for axis in [out, None, ins, whole] {
            for activation in ALL {
                for size in [[5, 7, 13], [16, 32, 16], [1, 1, 1], [129, 3, 5], [3, 65, 33]] {
                    cases.push(Layer { size, ..Layer::new(axis, activation) });
                }
            }
            for dtype in [DType::F16, DType::Bf16] {
                let layer = Layer::new(axis, Activation::Gelu);
                cases.push(Layer { dtypes: [dtype; 3], bias: Some(dtype), ..layer.clone() });
                cases.push(Layer { dtypes: [DType::F32, DType::F32, dtype], size: [16, 32, 16], ..layer });
            }
            cases.push(Layer { gain: false, bias: None, ..Layer::new(axis, Activation::Elu) });
        }
    }
    in_turn(gpu, extent, cases, |gpu, case| case.check(gpu))
}

/// An activation is one dispatch more, whatever is wanted; without one there is none, and without a gradient neither.
fn dispatches(gpu: &Gpu) -> Outcome {
    let zeros = |shape: &[usize]| gpu.zeros(shape, DType::F32);
    let (x, v, dy, u, bias) =
        (zeros(&[64, 39])?, zeros(&[33, 39])?, zeros(&[64, 33])?, zeros(&[64, 33])?, zeros(&[33])?);
    let (dx, dv, dbias) = (zeros(&[64, 39])?, zeros(&[33, 39])?, zeros(&[33])?);
    let norms = [zeros(&[33])?, zeros(&[39])?, zeros(&[1])?];
    let weights: [Weight<'_>; 4] = [
        WeightNorm::unit(&v).norms(&norms[0]).into(),
        WeightNorm::unit(&v).axis(Axis::Kept(1)).norms(&norms[1]).into(),
        WeightNorm::unit(&v).axis(Axis::Whole).norms(&norms[2]).into(),
        (&v).into(),
    ];
    for weight in weights {
        for wanted in 0..8usize {
            let of = |bit: usize, tensor| (wanted >> bit & 1 == 1).then_some(tensor);
            let wants = Gradients::default().dx(of(0, &dx)).dv(of(1, &dv)).dbias(of(2, &dbias));
            let backward = LinearBackward::new(&x, weight, &dy).u(&u).bias(&bias);
            let count = |activation| counted(gpu, |ops| ops.linear_backward(backward.activation(activation), &wants));
            let (plain, activated) = (count(Activation::None)?, count(Activation::Relu)?);
            assert_eq!(activated, plain + u64::from(wanted != 0), "{weight:?}, wanted {wanted}");
        }
    }
    let once = counted(gpu, |ops| ops.activation_backward(ActivationBackward::new(Activation::Relu, &u, &dy), &dy))?;
    assert_eq!(once, 1);
    // The forward pass writes u of every weight, in no dispatch more.
    let y = zeros(&[64, 33])?;
    for weight in weights {
        let count = |u: Option<&Tensor>| counted(gpu, |ops| ops.linear(Linear::new(&x, weight).u(u), &y));
        assert_eq!(count(None)?, count(Some(&u))?, "{weight:?}");
    }
    Ok(())
}

/// `linear_saved` keeps all that the backward pass needs, and a recorder that forgets u is told so.
fn nothing_is_wrong_without_u(gpu: &Gpu) -> Outcome {
    let layer = Layer::new(None, Activation::Relu);
    let [batch, outs, ins] = layer.size;
    let Numbers { x, v, bias, dy, .. } = layer.numbers();
    let x = upload(gpu, &x, &[batch, ins], DType::F32, 1)?;
    let v = upload(gpu, &v, &[outs, ins], DType::F32, 2)?;
    let dy = upload(gpu, &dy, &[batch, outs], DType::F32, 3)?;
    let bias = upload(gpu, &bias.expect("it has one"), &[outs], DType::F32, 2)?;
    let (_, saved) = gpu.linear_saved(Linear::new(&x, &v).bias(&bias))?;
    assert!(saved.u.is_none() && saved.bias.is_none() && saved.activation == Activation::None);
    let (_, saved) = gpu.linear_saved(Linear::new(&x, &v).bias(&bias).activation(Activation::Relu))?;
    assert!(saved.u.is_some() && saved.bias.is_some() && saved.activation == Activation::Relu);
    let error = gpu.linear_backward(LinearBackward::new(&x, &v, &dy).activation(Activation::Relu)).unwrap_err();
    assert_eq!(error.to_string(), "linear_backward: u is missing: the forward pass saves it (Linear::u)");
    Ok(())
}

/// A perceptron of two layers, weight-normalized, with a ReLU in between and one behind: the gradients of the GPU are
/// the differences of a loss in f64.
fn two_layers(gpu: &Gpu) -> Outcome {
    const SIZES: [usize; 3] = [6, 9, 4];
    const BATCH: usize = 5;
    let relu = Activation::Relu;
    // x, then v, g and bias of each layer.
    let counts = [BATCH * 6, 9 * 6, 9, 9, 4 * 9, 4, 4];
    let parts: Vec<Vec<f64>> = (0..7).map(|i| random(70 + i as u64, counts[i], DType::F32)).collect();
    let weights_of_loss = random(80, BATCH * 4, DType::F32);
    let loss = |parts: &[Vec<f64>]| -> Result<(f64, Vec<f64>), weightnorm::Error> {
        let (mut h, mut zs) = (parts[0].clone(), vec![]);
        for layer in 0..2 {
            let [v, g, bias] = [0, 1, 2].map(|i| &parts[1 + 3 * layer + i]);
            let (ins, outs) = (SIZES[layer], SIZES[layer + 1]);
            let w = cpu::normalize(v, &[outs, ins], Some(g), Axis::Kept(0), Eps::default())?;
            let z = cpu::linear(&h, &[BATCH, ins], &w, &[outs, ins], Some(bias), Activation::None)?;
            h = z.iter().map(|&z| cpu::activate(z, relu)).collect();
            zs.extend(z);
        }
        Ok((h.iter().zip(&weights_of_loss).map(|(y, c)| y * c).sum(), zs))
    };
    let shapes: [&[usize]; 7] = [&[BATCH, 6], &[9, 6], &[9], &[9], &[4, 9], &[4], &[4]];
    let tensors: Vec<Tensor> = parts
        .iter()
        .zip(shapes)
        .map(|(part, shape)| upload(gpu, part, shape, DType::F32, 1))
        .collect::<Result<_, _>>()?;
    let [x, v1, g1, b1, v2, g2, b2] = &tensors[..] else { unreachable!("seven of them") };
    let (first, second) = (WeightNorm::new(v1, g1), WeightNorm::new(v2, g2));
    let (h, saved1) = gpu.linear_saved(Linear::new(x, first).bias(b1).activation(relu))?;
    let (_, saved2) = gpu.linear_saved(Linear::new(&h, second).bias(b2).activation(relu))?;
    let dy = upload(gpu, &weights_of_loss, &[BATCH, 4], DType::F32, 1)?;
    let d2 = gpu.linear_backward(LinearBackward::new(&h, second, &dy).saved(&saved2))?;
    let d1 = gpu.linear_backward(LinearBackward::new(x, first, &d2.dx).saved(&saved1))?;
    let dg = |dg: Option<Tensor>| dg.expect("it has a gain");
    let got = [d1.dx, d1.dv, dg(d1.dg), d1.dbias, d2.dv, dg(d2.dg), d2.dbias];
    let (_, zs) = loss(&parts)?;
    assert!(zs.iter().any(|&z| z < 0.0) && zs.iter().any(|&z| z > 0.0));
    // Away from kinks the loss is smooth, and its third derivatives are of order 1 to 100: central differences are off
    // by some h² of them, and by 2⁻⁵²/h.
    let nearest = zs.iter().fold(f64::INFINITY, |least, z| z.abs().min(least));
    let step = 1e-6;
    assert!(nearest > 100.0 * step, "a kink is {nearest} away");
    for (which, got) in got.iter().enumerate() {
        let got = read(got)?;
        for (i, &got) in got.iter().enumerate() {
            let shifted = |by: f64| {
                let mut parts = parts.clone();
                parts[which][i] += by;
                loss(&parts)
            };
            let difference = (shifted(step)?.0 - shifted(-step)?.0) / (2.0 * step);
            assert!(
                (got - difference).abs() < 1e-5 * (1.0 + difference.abs()),
                "{which}[{i}]: {got}, not {difference}"
            );
        }
    }
    Ok(())
}

/// Bindings of 8 KiB, 27 workgroups: windows, for the operator in quads and by words, and for a layer.
fn windows(gpu: &Gpu, extent: Extent) -> Outcome {
    let (plain, small) = (gpu, tiny(gpu)?);
    let relu = Activation::Relu;
    let mut cases = vec![
        Case { dtypes: [DType::F32, DType::F16, DType::F16], offset: 12, ..Case::new(relu, &[61, 67]) },
        Case { dtypes: [DType::F16; 3], ..Case::new(relu, &[64, 128]) },
    ];
    if extent == Extent::All {
        cases.push(Case::new(relu, &[40, 801]));
        cases.push(Case { in_place: true, dtypes: [DType::Bf16; 3], ..Case::new(relu, &[12_347]) });
    }
    all(cases, |case| {
        let (got, count) = case.run(&small)?;
        case.compare(&got, case.activation)?;
        assert!(count > 1 && case.run(plain)?.1 == 1, "{count} dispatches");
        Ok(())
    })?;
    let layer = Layer { size: [61, 67, 3], ..Layer::new(None, relu) };
    layer.check(&small)
}

/// More outputs than a binding holds gains and biases of, an odd number of them: windows are parts of rows, and meet
/// within words. Of dbias alone, since products want 16 rows of dz in a binding.
fn columns_past_a_binding(gpu: &Gpu, extent: Extent) -> Outcome {
    let small = tiny(gpu)?;
    let shapes = extent.choose(&[[3, 4_001], [2, 4_000], [9, 2_503]][..], &[[3, 4_001]]);
    all(shapes, |&&[batch, outs]| {
        let activation = Activation::Silu;
        let (u, dy) = (random(91, batch * outs, DType::F32), random(92, batch * outs, DType::F16));
        let (g, bias) = (random(93, outs, DType::F32), random(94, outs, DType::F16));
        let at = |values: &[f64], shape: &[usize], dtype| upload(&small, values, shape, dtype, 1);
        let (x, v) = (small.zeros(&[batch, 2], DType::F32)?, small.zeros(&[outs, 2], DType::F32)?);
        let u_tensor = at(&u, &[batch, outs], DType::F32)?;
        let dy_tensor = at(&dy, &[batch, outs], DType::F16)?;
        let (g_tensor, bias_tensor) = (at(&g, &[outs], DType::F32)?, at(&bias, &[outs], DType::F16)?);
        let dbias = Guarded::poisoned(&small, &[outs], DType::F32, 4)?;
        let backward = LinearBackward::new(&x, WeightNorm::new(&v, &g_tensor), &dy_tensor);
        let backward = backward.u(&u_tensor).bias(&bias_tensor).activation(activation);
        let wanted = Gradients::default().dbias(&dbias.tensor);
        recorded(&small, |ops| ops.linear_backward(backward, &wanted))?;
        let (mut expected, mut terms, mut e) = (vec![0.0; outs], vec![0.0; outs], vec![0.0; outs]);
        for (i, (u, dy)) in u.iter().zip(&dy).enumerate() {
            let j = i % outs;
            let z = g[j] * u + bias[j];
            let derivative = cpu::activate_backward(z, activation);
            let of_z = 2f64.powi(-22) * ((g[j] * u).abs() + bias[j].abs());
            let of_derivative = derivative_bound(activation, z) + derivative_change(activation, z, of_z);
            expected[j] += dy * derivative;
            terms[j] += (dy * derivative).abs();
            e[j] += pulled_back_bound(*dy, derivative, of_derivative, DType::F16);
        }
        compare(&dbias.read()?, &expected, Some(DType::F32), |j| {
            sum_bound(norm_chain(batch), terms[j] + e[j], expected[j], DType::F32) + e[j]
        })?;
        Ok(())
    })
}

/// The bounds are tight enough to tell activations apart, and a derivative that was forgotten.
fn comparison_can_fail(gpu: &Gpu) -> Outcome {
    let case = Case::new(Activation::Gelu, &[7, 11, 13]);
    let got = case.run(gpu)?.0;
    for other in [Activation::GeluTanh, Activation::Silu, Activation::None] {
        must_fail(&format!("{other:?}"), case.compare(&got, other).map(drop))?;
    }
    let layer = Layer { bias: None, ..Layer::new(None, Activation::Relu) };
    let got = layer.run(gpu)?;
    for other in [Activation::None, Activation::LeakyRelu(0.01)] {
        must_fail(&format!("{other:?}"), layer.compare(&got, other).map_err(|_| String::new()))?;
    }
    Ok(())
}
