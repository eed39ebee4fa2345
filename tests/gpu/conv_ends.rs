//! What convolutions do before and behind their sums: activations, snake, residual, scale, accumulate.
use weightnorm::{Activation, ArgumentError, Axis, Conv, ConvGeometry, DType, Error, Gpu, Gradients, Tensor, Tile};
use weightnorm::{Gate, PadMode, WeightNorm, cpu};

use crate::common::{abs, activated_bound, compare, conv_terms, dg_bound, dot_bound, dv_bound, gamma, snake_bound};
use crate::common::{derivative_bound, dx_bound, gated_bound, pulled_back_bound, sum_bound};
use crate::data::{Guarded, all, gains, must_fail, norm_count, norm_length, random, rounded, upload};
use crate::linear::ACTIVATIONS;
use crate::{Extent, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    suite.sampled("conv_ends", ends);
    suite.sampled("conv_ends_of_tiles_and_splits", tiles_and_splits);
    suite.sampled("conv_ends_of_dtypes", dtypes);
    suite.sampled("conv_ends_of_sums_out_of_range", out_of_range);
    suite.sampled("conv_backward_through_ends", backward);
    suite.test("conv_snake_over_its_range", crate::Needs::Nothing, snake_range);
    suite.test("conv_ends_rejected", crate::Needs::Nothing, rejects);
    suite.test("conv_ends_comparison_can_fail", crate::Needs::Nothing, comparison_can_fail);
}

/// Which tensor is the one more.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Extra {
    None,
    Residual,
    Snake,
    InputSnake,
}

#[derive(Debug, Clone)]
pub struct Case {
    pub transposed: bool,
    pub x_shape: Vec<usize>,
    pub v_shape: Vec<usize>,
    pub geometry: ConvGeometry,
    /// `None`: a plain weight.
    pub axis: Option<Axis>,
    /// Of x, v, y and the extra tensor.
    pub dtypes: [DType; 4],
    /// What v is multiplied by; with a norm y stays the same.
    pub size: f64,
    pub extra: Extra,
    pub input_activation: Activation,
    pub activation: Activation,
    pub scale: f32,
    pub accumulate: bool,
    /// Then the residual is its condition.
    pub gate: Option<Gate>,
    pub tile: Option<Tile>,
    pub split_length: Option<u32>,
}

const NONE: Activation = Activation::None;

fn plain() -> ConvGeometry {
    ConvGeometry::default()
}

impl Case {
    pub fn new(x_shape: &[usize], v_shape: &[usize], geometry: ConvGeometry) -> Case {
        Case {
            transposed: false,
            x_shape: x_shape.into(),
            v_shape: v_shape.into(),
            geometry,
            axis: Some(Axis::Kept(0)),
            dtypes: [DType::F32; 4],
            size: 1.0,
            extra: Extra::None,
            input_activation: NONE,
            activation: NONE,
            scale: 1.0,
            accumulate: false,
            gate: None,
            tile: Some(Tile::Tile32x32),
            split_length: None,
        }
    }

    /// Positions of an image end within quads.
    pub fn conv() -> Case {
        Case::new(&[2, 5, 21], &[9, 5, 3], plain().padding(1))
    }

    pub fn conv_transposed() -> Case {
        Case { transposed: true, ..Case::new(&[2, 5, 9], &[5, 4, 4], plain().stride(2).padding(1)) }
    }

    pub fn x(&self) -> Vec<f64> {
        random(1, self.x_shape.iter().product(), self.dtypes[0])
            .iter()
            .map(|x| rounded(3.0 * x, self.dtypes[0]))
            .collect()
    }

    pub fn v(&self) -> Vec<f64> {
        let numbers = random(2, self.v_shape.iter().product(), self.dtypes[1]);
        numbers.iter().map(|v| rounded(v * self.size, self.dtypes[1])).collect()
    }

    pub fn g(&self) -> Option<Vec<f64>> {
        let mut g = self.axis.map(|axis| gains(3, norm_count(&self.v_shape, axis)));
        // Before a gate not so large that it is open or shut everywhere.
        let most = if self.gate.is_some() { 3.0 } else { f64::INFINITY };
        g.iter_mut().flatten().for_each(|g| *g = g.clamp(-most, most));
        g
    }

    pub fn y_shape(&self) -> Vec<usize> {
        let mut shape = self.z_shape();
        shape[1] /= if self.gate.is_some() { 2 } else { 1 };
        shape
    }

    /// Of the sums.
    pub fn z_shape(&self) -> Vec<usize> {
        let shape = if self.transposed { ConvGeometry::conv_transposed_shape } else { ConvGeometry::conv_shape };
        shape(&self.geometry, &self.x_shape, &self.v_shape).unwrap_or_else(|e| panic!("{self:?}: {e}"))
    }

    pub fn biases(&self) -> Vec<f64> {
        random(4, self.z_shape()[1], DType::F32)
    }

    /// What y held.
    fn old(&self) -> Vec<f64> {
        random(5, self.y_shape().iter().product(), self.dtypes[2])
    }

    /// α of all sizes and both signs, or what is added.
    pub fn extra(&self) -> Vec<f64> {
        let alphas = |count| {
            let some = [0.5, 1.0, -0.75, 7.0, 0.01, 30.0, -3.0];
            (0..count).map(|i| rounded(some[i % some.len()], self.dtypes[3])).collect()
        };
        match self.extra {
            Extra::None => vec![],
            Extra::Residual => random(6, self.z_shape().iter().product(), self.dtypes[3]),
            Extra::Snake => alphas(self.y_shape()[1]),
            Extra::InputSnake => alphas(self.x_shape[1]),
        }
    }

    /// On the GPU, between guards; poison where nothing is added to.
    pub fn run(&self, gpu: &Gpu) -> Result<Vec<f64>, libtest_mimic::Failed> {
        let x = upload(gpu, &self.x(), &self.x_shape, self.dtypes[0], 3)?;
        let v = upload(gpu, &self.v(), &self.v_shape, self.dtypes[1], 4)?;
        let g = self.g().map(|g| upload(gpu, &g, &[g.len()], DType::F32, 5)).transpose()?;
        let bias = self.biases();
        let bias = upload(gpu, &bias, &[bias.len()], DType::F32, 6)?;
        let (shape, extra) = (self.y_shape(), self.extra());
        let extra_shape = if self.extra == Extra::Residual { self.z_shape() } else { vec![1, extra.len(), 1] };
        let extra = upload(gpu, &extra, &extra_shape, self.dtypes[3], 7)?;
        let y = match self.accumulate {
            true => Guarded::holding(gpu, &self.old(), &shape, self.dtypes[2], 4)?,
            false => Guarded::poisoned(gpu, &shape, self.dtypes[2], 12)?,
        };
        let of = |wanted: Extra| (self.extra == wanted).then_some(&extra);
        let request = match (self.axis, &g) {
            (Some(axis), Some(g)) => Conv::new(&x, WeightNorm::new(&v, g).axis(axis)),
            _ => Conv::new(&x, &v),
        };
        let request = request.bias(&bias).geometry(self.geometry).tile(self.tile).split_length(self.split_length);
        let request = request.input_activation(self.input_activation).input_snake(of(Extra::InputSnake));
        let request = request.residual(of(Extra::Residual)).scale(self.scale).accumulate(self.accumulate);
        let request = request.activation(self.activation).snake(of(Extra::Snake)).gate(self.gate);
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        let mut ops = gpu.record(&mut encoder);
        if self.transposed {
            ops.conv_transposed(request, &y.tensor)?;
        } else {
            ops.conv(request, &y.tensor)?;
        }
        drop(ops);
        gpu.queue().submit([encoder.finish()]);
        Ok(y.read()?)
    }

    /// The reference of a forward pass.
    fn sums_of(&self, x: &[f64], w: &[f64], bias: Option<&[f64]>, ends: &cpu::ConvEnds) -> Vec<f64> {
        let conv = if self.transposed { cpu::conv_transposed } else { cpu::conv };
        conv(x, &self.x_shape, w, &self.v_shape, bias, &self.geometry, ends).expect("shapes that fit")
    }

    /// The channel of an element.
    pub fn channel(at: usize, shape: &[usize]) -> usize {
        at / shape[2..].iter().product::<usize>() % shape[1]
    }

    /// x as it enters, and by how much that is off.
    pub fn entered(&self) -> (Vec<f64>, Vec<f64>) {
        let alphas = self.extra();
        let enter = |(at, &x): (usize, &f64)| match self.extra {
            Extra::InputSnake => {
                let alpha = alphas[Case::channel(at, &self.x_shape)];
                (cpu::snake(x, alpha), snake_bound(alpha, x, 0.0, DType::F32))
            }
            _ if self.input_activation == NONE => (x, 0.0),
            _ => {
                let bound = activated_bound(self.input_activation, x, 0.0, DType::F32);
                (cpu::activate(x, self.input_activation), bound)
            }
        };
        self.x().iter().enumerate().map(enter).unzip()
    }

    pub fn w(&self) -> Vec<f64> {
        let (v, g) = (self.v(), self.g());
        let normalize = |axis| cpu::normalize(&v, &self.v_shape, g.as_deref(), axis, Default::default());
        self.axis.map_or(Ok(v.clone()), normalize).expect("shapes that fit")
    }

    /// What there is before the activation, the snake or the gate of y, and by how much it may be off; y.
    pub fn reference(&self) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let (x, w, v, bias) = (self.x(), self.w(), self.v(), self.biases());
        let (extra, old) = (self.extra(), self.old());
        let none = cpu::ConvEnds::default();
        let of = |wanted: Extra| (self.extra == wanted).then_some(&extra[..]);
        // With all but what comes last, then with that.
        let before = cpu::ConvEnds {
            input_activation: self.input_activation,
            input_snake: of(Extra::InputSnake),
            residual: of(Extra::Residual),
            scale: self.scale.into(),
            onto: self.accumulate.then_some(&old[..]),
            ..none
        };
        let (activation, snake) = (self.activation, of(Extra::Snake));
        let behind = cpu::ConvEnds { activation, snake, gate: self.gate, ..before };
        let expected = self.sums_of(&x, &w, Some(&bias), &behind);
        let before = self.sums_of(&x, &w, Some(&bias), &before);
        let (entered, entered_off) = self.entered();
        let sums = self.sums_of(&abs(&entered), &abs(&w), None, &none);
        let signed = self.sums_of(&entered, &w, Some(&bias), &none);
        let from_x = self.sums_of(&entered_off, &abs(&w), None, &none);
        let chain = v.len();
        let scale = f64::from(self.scale.abs());
        let before_bound = |i: usize| {
            let residual = of(Extra::Residual).map_or(0.0, |residual| residual[i].abs());
            let old = if self.accumulate { old[i].abs() } else { 0.0 };
            // A rounding each of residual, scale and what is added to.
            let sum = dot_bound(chain, sums[i], signed[i], DType::F32) + from_x[i] * (1.0 + gamma(chain as f64));
            scale * sum + gamma(3.0) * (scale * (signed[i].abs() + sum + residual) + old)
        };
        let off = (0..before.len()).map(before_bound).collect();
        (before, off, expected)
    }

    pub fn judge(&self, got: &[f64]) -> Result<(), String> {
        let ((before, off, expected), extra, shape) = (self.reference(), self.extra(), self.y_shape());
        let bound = |i: usize| {
            if let Some(gate) = self.gate {
                let half = shape[1..].iter().product::<usize>();
                let first = i + i / half * half;
                let [a, b] = [first, first + half].map(|at| (before[at], off[at]));
                return gated_bound(gate, a, b, self.dtypes[2]);
            }
            let e = off[i];
            match self.extra {
                Extra::Snake => snake_bound(extra[Case::channel(i, &shape)], before[i], e, self.dtypes[2]),
                _ => activated_bound(self.activation, before[i], e, self.dtypes[2]),
            }
        };
        compare(got, &expected, Some(self.dtypes[2]), bound).map(drop)
    }

    pub fn check(&self, gpu: &Gpu) -> Outcome {
        let judged = self.run(gpu).and_then(|y| Ok(self.judge(&y)?));
        judged.map_err(|e| format!("{self:?}: {}", e.message().unwrap_or_default()).into())
    }
}

const THIRD: f32 = 1.0 / 3.0;

/// Every activation before and behind, snakes, and a residual, a scale, a sum into what y holds.
fn ends(gpu: &Gpu, extent: Extent) -> Outcome {
    let both = |case: Case| match extent {
        Extent::Few => vec![case],
        Extent::All => {
            let other = Case::conv_transposed();
            let (x_shape, v_shape) = (other.x_shape, other.v_shape);
            vec![case.clone(), Case { transposed: true, x_shape, v_shape, geometry: other.geometry, ..case }]
        }
    };
    let mut cases = vec![];
    for activation in ACTIVATIONS {
        let kept = matches!(activation, Activation::Elu | Activation::Gelu);
        if extent == Extent::All || kept {
            cases.extend(both(Case { input_activation: activation, activation, ..Case::conv() }));
        }
    }
    let leaky = Activation::LeakyRelu(0.1);
    let hifi = Case { input_activation: leaky, accumulate: true, scale: THIRD, ..Case::conv() };
    let residual = Case { extra: Extra::Residual, activation: Activation::Tanh, ..Case::conv() };
    cases.extend(both(Case { activation: Activation::LeakyRelu(-0.3), ..hifi.clone() }));
    cases.extend(both(Case { input_activation: leaky, accumulate: true, scale: -2.0, ..residual.clone() }));
    cases.extend(both(Case { extra: Extra::InputSnake, activation: Activation::Tanh, ..Case::conv() }));
    cases.extend(both(Case { extra: Extra::Snake, scale: 0.5, accumulate: true, ..Case::conv() }));
    let other = Case::conv_transposed();
    cases.push(Case { input_activation: leaky, extra: Extra::Residual, scale: 0.0, ..other.clone() });
    cases.push(Case { extra: Extra::InputSnake, accumulate: true, activation: leaky, ..other });
    let images = Case::new(&[2, 4, 6, 7], &[6, 2, 3, 2], plain().groups(2).padding(1));
    let images = Case { extra: Extra::Snake, input_activation: Activation::Silu, accumulate: true, ..images };
    cases.push(images.clone());
    if extent == Extent::All {
        let geometry = plain().stride([2, 1]).groups(2).padding([(1, 0), (0, 1)]);
        cases.push(Case {
            transposed: true,
            x_shape: vec![2, 6, 4, 5],
            v_shape: vec![6, 2, 3, 2],
            geometry,
            ..images.clone()
        });
        cases.push(Case { extra: Extra::InputSnake, input_activation: NONE, ..images });
        // What is reflected is activated as anything else; y by whole quads.
        for pad_mode in [PadMode::Reflect, PadMode::Replicate] {
            let case = Case::new(&[2, 5, 24], &[9, 5, 3], plain().padding(1).pad_mode(pad_mode));
            cases.push(Case { input_activation: Activation::Elu, accumulate: true, ..case.clone() });
            cases.push(Case { extra: Extra::Residual, accumulate: true, ..case });
        }
        // Where norms are on the sum, and where one is for all.
        for axis in [None, Some(Axis::Kept(1)), Some(Axis::Kept(2)), Some(Axis::Whole)] {
            cases.extend(both(Case { axis, ..hifi.clone() }));
            cases.extend(both(Case { axis, ..residual.clone() }));
        }
    }
    all(cases, |case| case.check(gpu))
}

fn tiles_and_splits(gpu: &Gpu, extent: Extent) -> Outcome {
    let long = Case::new(&[2, 24, 35], &[12, 24, 5], plain().padding(2));
    let leaky = Activation::LeakyRelu(0.1);
    let whole = Case { input_activation: leaky, accumulate: true, scale: THIRD, ..long };
    let split = Case { split_length: Some(32), ..whole.clone() };
    let mut cases = vec![
        split.clone(),
        Case { tile: Some(Tile::Tile128x8), extra: Extra::InputSnake, input_activation: NONE, ..split.clone() },
        Case { extra: Extra::Residual, activation: Activation::Gelu, ..split.clone() },
    ];
    let lanes = [Tile::Subgroup4, Tile::Subgroup16, Tile::Subgroup64];
    let lanes = lanes.into_iter().filter(|tile| Tile::all_on(gpu).any(|own| own == *tile));
    for tile in lanes.take(extent.choose(1, 3)) {
        cases.push(Case { tile: Some(tile), ..whole.clone() });
        cases.push(Case { tile: Some(tile), extra: Extra::InputSnake, input_activation: NONE, ..whole.clone() });
    }
    if extent == Extent::All {
        let geometry = plain().stride(2);
        let back =
            Case { transposed: true, x_shape: vec![2, 24, 9], v_shape: vec![24, 6, 4], geometry, ..split.clone() };
        cases.push(back.clone());
        cases.push(Case { extra: Extra::InputSnake, input_activation: NONE, ..back.clone() });
        cases.push(Case { extra: Extra::Snake, ..back });
        for tile in [Tile::Tile64x64, Tile::Tile128x8, Tile::Tile128x128] {
            if Tile::all_on(gpu).any(|own| own == tile) {
                cases.push(Case { tile: Some(tile), ..whole.clone() });
                cases.push(Case { tile: Some(tile), extra: Extra::Residual, ..whole.clone() });
            }
        }
    }
    all(cases, |case| case.check(gpu))
}

fn dtypes(gpu: &Gpu, extent: Extent) -> Outcome {
    let (half, brain) = (DType::F16, DType::Bf16);
    let case = Case { accumulate: true, input_activation: Activation::Elu, ..Case::conv() };
    let mut cases = vec![
        Case { dtypes: [half, half, half, brain], extra: Extra::Residual, ..case.clone() },
        Case {
            dtypes: [brain, DType::F32, brain, half],
            extra: Extra::InputSnake,
            input_activation: NONE,
            ..case.clone()
        },
    ];
    if extent == Extent::All {
        for dtypes in [[half; 4], [brain; 4], [half, brain, DType::F32, half], [DType::F32, half, brain, brain]] {
            for extra in [Extra::Residual, Extra::Snake] {
                cases.push(Case { dtypes, extra, ..case.clone() });
                let base = Case { dtypes, extra, accumulate: true, ..Case::conv_transposed() };
                cases.push(Case { axis: None, ..base });
            }
        }
    }
    all(cases, |case| case.check(gpu))
}

/// Sums that are formed again are added to what y holds once, as are sums of zeros.
fn out_of_range(gpu: &Gpu, extent: Extent) -> Outcome {
    let accumulate = Case { accumulate: true, scale: 0.5, extra: Extra::Residual, ..Case::conv() };
    let mut cases = vec![
        Case { size: 3e24, ..accumulate.clone() },
        Case { size: 3e-24, input_activation: Activation::Elu, ..accumulate.clone() },
        Case { size: 0.0, ..accumulate.clone() },
    ];
    if extent == Extent::All {
        for size in [3e24, 3e-24, 0.0] {
            let back =
                Case { accumulate: true, extra: Extra::Snake, axis: Some(Axis::Kept(1)), ..Case::conv_transposed() };
            cases.push(Case { size, ..back.clone() });
            cases.push(Case { size, split_length: Some(16), ..accumulate.clone() });
            cases.push(Case { size, tile: Some(Tile::Tile64x64), ..accumulate.clone() });
            cases.push(Case { size, dtypes: [DType::F32, DType::F32, DType::F16, DType::F32], ..accumulate.clone() });
            if Tile::all_on(gpu).any(|own| own == Tile::Subgroup16) {
                cases.push(Case { size, tile: Some(Tile::Subgroup16), ..accumulate.clone() });
            }
        }
    }
    all(cases, |case| case.check(gpu))
}

/// x of all sizes through one tap of 1: snake itself.
fn snake_range(gpu: &Gpu) -> Outcome {
    let mut x: Vec<f64> = (-600..600).map(|i| f64::from(i) * 0.0371).collect();
    let far = [0.0, 1e-30, 1e-12, 1e-4, 100.0, 355.0, 3141.5926, 20_000.0, 100_000.0, 130_000.0];
    x.extend(far.iter().flat_map(|&x| [x, -x]));
    let x: Vec<f64> = x.into_iter().map(|x| rounded(x, DType::F32)).collect();
    for alpha in [1.0, 0.3, -0.9, 1e-6] {
        let alpha = rounded(alpha, DType::F32);
        let (x_gpu, w) = (upload(gpu, &x, &[1, 1, x.len()], DType::F32, 1)?, gpu.upload(&[1.0f32], &[1, 1, 1])?);
        let alpha_gpu = gpu.upload(&[alpha as f32], &[1])?;
        let conv = Conv::new(&x_gpu, &w).tile(Tile::Tile32x32);
        let expected: Vec<f64> = x.iter().map(|&x| cpu::snake(x, alpha)).collect();
        for conv in [conv.snake(&alpha_gpu), conv.input_snake(&alpha_gpu)] {
            let y = cpu::widen(&gpu.conv(conv)?.read::<f32>()?);
            compare(&y, &expected, Some(DType::F32), |i| snake_bound(alpha, x[i], 0.0, DType::F32))
                .map_err(|e| format!("alpha {alpha}: {e}"))?;
        }
    }
    // Further away x, and something from 0 to 1/α.
    let (x, w) = (gpu.upload(&[3e7f32, -1e30], &[1, 1, 2])?, gpu.upload(&[1.0f32], &[1, 1, 1])?);
    let y = gpu.conv(Conv::new(&x, &w).snake(&gpu.upload(&[0.125f32], &[1])?))?.read::<f32>()?;
    let fits = (3e7..=3e7 + 8.0).contains(&y[0]) && y[1] == -1e30;
    if fits { Ok(()) } else { Err(format!("{y:?}").into()) }
}

/// dv, dg and dbias where x goes through an activation.
/// Gradients through the ends: dz = scale·dy·act'(z), with the derivative from y as the GPU wrote it, and dx through the
/// activation of x.
fn backward(gpu: &Gpu, extent: Extent) -> Outcome {
    let (relu, leaky) = (Activation::Relu, Activation::LeakyRelu(0.1));
    let few = vec![
        (false, Activation::Elu, NONE, 1.0),
        (true, leaky, leaky, 0.5),
        (false, Activation::GeluTanh, Activation::Tanh, -2.0),
    ];
    let every = || {
        let before = ACTIVATIONS.iter().map(|&activation| (activation, NONE));
        before.chain([relu, leaky, Activation::Elu, Activation::Tanh].map(|activation| (NONE, activation)))
    };
    let every = every().flat_map(|(a, b)| [(false, a, b, 1.0), (true, a, b, 3.0)]).collect();
    all(extent.choose(every, few), |&(transposed, input_activation, activation, scale)| {
        let case = if transposed { Case::conv_transposed() } else { Case::conv() };
        let case = Case { input_activation, activation, scale, extra: Extra::Residual, ..case };
        backward_of(gpu, &case).map_err(|e| format!("{case:?}: {}", e.message().unwrap_or_default()).into())
    })?;
    // What is reflected goes through the activation as well.
    let reflected = plain().padding((3, 2)).pad_mode(PadMode::Reflect);
    let case = Case { input_activation: leaky, extra: Extra::Residual, geometry: reflected, ..Case::conv() };
    backward_of(gpu, &case)
}

fn backward_of(gpu: &Gpu, case: &Case) -> Outcome {
    let (transposed, activation, f32s) = (case.transposed, case.activation, Some(DType::F32));
    let y64 = case.run(gpu)?;
    let (x64, v64, g64, y_shape) = (case.x(), case.v(), case.g().unwrap_or_default(), case.y_shape());
    let dy64 = random(9, y_shape.iter().product(), DType::F32);
    let x = upload(gpu, &x64, &case.x_shape, DType::F32, 1)?;
    let v = upload(gpu, &v64, &case.v_shape, DType::F32, 2)?;
    let (g, dy) = (upload(gpu, &g64, &[g64.len()], DType::F32, 3)?, upload(gpu, &dy64, &y_shape, DType::F32, 4)?);
    let y = upload(gpu, &y64, &y_shape, DType::F32, 5)?;
    let dx = Guarded::poisoned(gpu, &case.x_shape, DType::F32, 4)?;
    let dv = Guarded::poisoned(gpu, &case.v_shape, DType::F32, 4)?;
    let dg = Guarded::poisoned(gpu, &[g64.len()], DType::F32, 4)?;
    let dbias = Guarded::poisoned(gpu, &y_shape[1..2], DType::F32, 4)?;
    let wanted = Gradients::default().dx(&dx.tensor).dv(&dv.tensor).dg(&dg.tensor).dbias(&dbias.tensor);
    let conv = Conv::new(&x, WeightNorm::new(&v, &g)).geometry(case.geometry).input_activation(case.input_activation);
    let conv = conv.activation(activation).scale(case.scale).output(&y);
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    let mut ops = gpu.record(&mut encoder);
    if transposed {
        ops.conv_transposed_backward(conv, &dy, &wanted)?;
    } else {
        ops.conv_backward(conv, &dy, &wanted)?;
    }
    drop(ops);
    gpu.queue().submit([encoder.finish()]);

    let slope = |y: f64| f64::from(case.scale) * cpu::activate_backward_from_output(y, activation);
    let dz: Vec<f64> = dy64.iter().zip(&y64).map(|(dy, &y)| dy * slope(y)).collect();
    let axis = Axis::Kept(0);
    let weight = cpu::Weight::Normalized { v: &v64, g: Some(&g64), axis, eps: Default::default() };
    let backward = if transposed { cpu::conv_transposed_backward } else { cpu::conv_backward };
    let of = |activation| backward(&x64, &case.x_shape, weight, &case.v_shape, &dz, &case.geometry, activation);
    let (expected, straight) = (of(case.input_activation)?, of(NONE)?);
    // An activation is off by less than 64 roundings of what it gives and of x, dz by some more.
    let entered: Vec<f64> = x64.iter().map(|&x| cpu::activate(x, case.input_activation).abs() + x.abs()).collect();
    let operands = (&entered[..], &case.x_shape[..]);
    let (_, terms) = conv_terms(transposed, &case.geometry, operands, weight, &case.v_shape, None, &dz);
    let (of_norm, chain) = (norm_length(&case.v_shape, axis), v64.len() + dy64.len() + 64);
    let bound = |i: usize| {
        let plain = dx_bound(of_norm, chain, terms.dx[i], straight.dx[i].abs(), DType::F32);
        let derivative = cpu::activate_backward(x64[i], case.input_activation);
        let off = derivative_bound(case.input_activation, x64[i]);
        plain * (derivative.abs() + off) + pulled_back_bound(straight.dx[i], derivative, off, DType::F32)
    };
    compare(&dx.read()?, &expected.dx, f32s, bound).map_err(|e| format!("dx: {e}"))?;
    let bound = |i: usize| dv_bound(of_norm, chain, terms.dv[i], expected.dv[i].abs(), DType::F32);
    compare(&dv.read()?, &expected.dv, f32s, bound).map_err(|e| format!("dv: {e}"))?;
    let bound = |i: usize| sum_bound(chain, terms.dbias[i], expected.dbias[i].abs(), DType::F32);
    compare(&dbias.read()?, &expected.dbias, f32s, bound).map_err(|e| format!("dbias: {e}"))?;
    let (expected, terms) = (expected.dg.unwrap_or_default(), terms.dg.unwrap_or_default());
    let bound = |i: usize| dg_bound(of_norm, chain, terms[i], expected[i].abs());
    compare(&dg.read()?, &expected, f32s, bound).map_err(|e| format!("dg: {e}"))?;
    Ok(())
}

fn rejects(gpu: &Gpu) -> Outcome {
    let (x, v) = (gpu.upload(&[0.5f32; 36], &[1, 4, 9])?, gpu.upload(&[0.5f32; 72], &[6, 4, 3])?);
    let (y, four, six) =
        (gpu.zeros(&[1, 6, 7], DType::F32)?, gpu.zeros(&[1, 4, 1], DType::F32)?, gpu.zeros(&[6], DType::F32)?);
    let record = |conv: Conv<'_>, y: &Tensor| {
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        gpu.record(&mut encoder).conv(conv, y)
    };
    let (plain, relu) = (Conv::new(&x, &v), Activation::Relu);
    let nan = Activation::LeakyRelu(f32::NAN);
    let cases = [
        (record(plain.residual(&y).snake(&six), &gpu.zeros(&[1, 6, 7], DType::F32)?), "variant"),
        (record(plain.input_snake(&four).snake(&six), &y), "variant"),
        (record(plain.input_snake(&four).input_activation(relu), &y), "variant"),
        (record(plain.snake(&six).activation(relu), &y), "variant"),
        (record(plain.snake(&four), &y), "shape"),
        (record(plain.input_snake(&six), &y), "shape"),
        (record(plain.residual(&six), &y), "shape"),
        (record(plain.residual(&y), &y), "alias"),
        (record(plain.scale(f32::INFINITY), &y), "number"),
        (record(plain.input_activation(nan), &y), "number"),
        (gpu.conv_backward(plain.snake(&six), &y).map(drop), "variant"),
        (gpu.conv_backward(plain.activation(relu), &y).map(drop), "missing"),
        (gpu.conv_backward(plain.activation(relu).output(&six), &y).map(drop), "shape"),
        (gpu.conv_backward(plain.activation(Activation::Silu).output(&y), &y).map(drop), "variant"),
        (gpu.conv_backward(plain.activation(Activation::LeakyRelu(-0.1)).output(&y), &y).map(drop), "variant"),
    ];
    for (i, (result, expected)) in cases.into_iter().enumerate() {
        let kind = match result {
            Err(Error::Argument(ArgumentError::Shape { .. })) => "shape",
            Err(Error::Argument(ArgumentError::Variant { .. })) => "variant",
            Err(Error::Argument(ArgumentError::Number { .. })) => "number",
            Err(Error::Argument(ArgumentError::Alias { .. })) => "alias",
            Err(Error::Argument(ArgumentError::Missing { .. })) => "missing",
            other => return Err(format!("{i}: {other:?}").into()),
        };
        if kind != expected {
            return Err(format!("{i}: {kind}, expected {expected}").into());
        }
    }
    Ok(())
}

fn comparison_can_fail(gpu: &Gpu) -> Outcome {
    let case = Case { extra: Extra::Residual, accumulate: true, scale: 0.5, ..Case::conv() };
    let y = case.run(gpu)?;
    case.judge(&y)?;
    must_fail("another scale", Case { scale: 0.5001, ..case.clone() }.judge(&y))?;
    must_fail("nothing added to", Case { accumulate: false, ..case.clone() }.judge(&y))?;
    must_fail("no residual", Case { extra: Extra::None, ..case.clone() }.judge(&y))?;
    must_fail("another slope", Case { input_activation: Activation::LeakyRelu(0.999), ..case.clone() }.judge(&y))?;
    must_fail("a snake", Case { extra: Extra::InputSnake, ..case }.judge(&y))
}
