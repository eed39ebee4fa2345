//! Gradients of convolutions through a gate, and through the snake of x.
use weightnorm::{ArgumentError, Axis, Conv, DType, Error, Gate, Gpu, Gradients, Tensor, Tile, WeightNorm, cpu};

use crate::common::{abs, compare};
use crate::common::{conv_terms, dg_bound, dv_bound, dx_bound, gamma, pulled_back_bound, storage_bound, sum_bound};
use crate::conv_ends::{Case, Extra};
use crate::data::{Guarded, all, must_fail, norm_length, random, upload};
use crate::device::recorded;
use crate::{Extent, Failed, Needs, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    suite.sampled("conv_backward_through_gates", gates);
    suite.sampled("conv_backward_through_snakes", snakes);
    suite.test("conv_backward_through_ends_in_one_call", Needs::Nothing, in_one_call);
    suite.test("conv_backward_through_ends_rejected", Needs::Nothing, rejects);
    suite.test("conv_backward_through_gates_comparison_can_fail", Needs::Nothing, comparison_can_fail);
}

/// What is wanted, of what storage types.
#[derive(Debug, Clone)]
struct Backward {
    case: Case,
    /// Of dy and of what is written.
    dtypes: [DType; 2],
    /// Adds up dv, dg, dbias, dα.
    add: bool,
}

/// Elements, and by how much each may be off.
type Expected = (&'static str, Vec<f64>, Vec<f64>, DType);

impl Backward {
    fn new(case: Case) -> Backward {
        Backward { case, dtypes: [DType::F32; 2], add: false }
    }

    fn dy(&self) -> Vec<f64> {
        random(9, self.case.y_shape().iter().product(), self.dtypes[0])
    }

    /// What a gradient that is added to held.
    fn old(&self, seed: u64, count: usize) -> Vec<f64> {
        if self.add { random(seed, count, self.dtypes[1]) } else { vec![0.0; count] }
    }

    fn run(&self, gpu: &Gpu) -> Result<Vec<Vec<f64>>, Failed> {
        let Backward { case, dtypes: [dy_dtype, out], add } = self;
        let (g64, bias64, extra64) = (case.g().unwrap_or_default(), case.biases(), case.extra());
        let x = upload(gpu, &case.x(), &case.x_shape, case.dtypes[0], 1)?;
        let v = upload(gpu, &case.v(), &case.v_shape, case.dtypes[1], 2)?;
        let g = upload(gpu, &g64, &[g64.len()], DType::F32, 3)?;
        let bias = upload(gpu, &bias64, &[bias64.len()], DType::F32, 4)?;
        let (condition, snake) = (case.extra == Extra::Residual, case.extra == Extra::InputSnake);
        let extra_shape = if condition { case.z_shape() } else { vec![extra64.len()] };
        let extra = upload(gpu, &extra64, &extra_shape, case.dtypes[3], 5)?;
        let dy = upload(gpu, &self.dy(), &case.y_shape(), *dy_dtype, 6)?;
        let weight = match case.axis {
            Some(axis) => WeightNorm::new(&v, &g).axis(axis).into(),
            None => weightnorm::Weight::from(&v),
        };
        let conv = Conv::new(&x, weight).bias(&bias).geometry(case.geometry).tile(case.tile).scale(case.scale);
        let conv = conv.gate(case.gate).condition(condition.then_some(&extra)).input_snake(snake.then_some(&extra));

        let blank = |shape: &[usize]| Guarded::poisoned(gpu, shape, *out, 12);
        let onto = |seed: u64, shape: &[usize]| match add {
            true => Guarded::holding(gpu, &self.old(seed, shape.iter().product()), shape, *out, 4),
            false => blank(shape),
        };
        let (dx, dv) = (blank(&case.x_shape)?, onto(21, &case.v_shape)?);
        let (dg, dbias) = (onto(22, &[g64.len()])?, onto(23, &[bias64.len()])?);
        let (dalpha, dcondition) = (onto(24, &[extra64.len()])?, blank(&extra_shape)?);
        let wanted = Gradients::default().dx(&dx.tensor).dv(&dv.tensor).dbias(&dbias.tensor).accumulate(*add);
        let wanted = wanted.dg(case.axis.map(|_| &dg.tensor)).dalpha(snake.then_some(&dalpha.tensor));
        let wanted = wanted.dcondition(condition.then_some(&dcondition.tensor));
        recorded(gpu, |ops| match case.transposed {
            true => ops.conv_transposed_backward(conv, &dy, &wanted),
            false => ops.conv_backward(conv, &dy, &wanted),
        })?;
        let mut outs = vec![&dx, &dv, &dbias];
        outs.extend(case.axis.map(|_| &dg).into_iter().chain(snake.then_some(&dalpha)));
        outs.extend(condition.then_some(&dcondition));
        outs.into_iter().map(|out| Ok(out.read()?)).collect()
    }

    /// dz of the reference, and by how much it may be off.
    fn dz(&self) -> Result<(Vec<f64>, Vec<f64>), Failed> {
        let (case, dy) = (&self.case, self.dy());
        let (z, z_off, _) = case.reference();
        let scale = f64::from(case.scale);
        let Some(gate) = case.gate else {
            let dz: Vec<f64> = dy.iter().map(|dy| scale * dy).collect();
            let off = dz.iter().map(|dz| storage_bound(self.dtypes[0], *dz)).collect();
            return Ok((dz, off));
        };
        let dz = cpu::gate_backward(gate, &z, &case.z_shape(), &dy)?;
        let half = case.y_shape()[1..].iter().product::<usize>();
        let mut off = vec![0.0; z.len()];
        for (i, dy) in dy.iter().enumerate() {
            let [first, second] = [i + i / half * half, i + i / half * half + half];
            let e = slopes_bound(gate, (z[first], z_off[first]), (z[second], z_off[second]));
            for (at, e) in [first, second].into_iter().zip(e) {
                off[at] = (scale * dy).abs() * e + gamma(3.0) * (scale * dz[at]).abs() + f64::from(f32::MIN_POSITIVE);
            }
        }
        Ok((dz.iter().map(|dz| scale * dz).collect(), off))
    }

    fn expected(&self) -> Result<Vec<Expected>, Failed> {
        let (case, out) = (&self.case, self.dtypes[1]);
        let (x, v, g) = (case.x(), case.v(), case.g());
        let weight = match case.axis {
            Some(axis) => cpu::Weight::Normalized { v: &v, g: g.as_deref(), axis, eps: Default::default() },
            None => cpu::Weight::Plain(&v),
        };
        let ((dz, dz_off), (entered, entered_off)) = (self.dz()?, case.entered());
        let backward = if case.transposed { cpu::conv_transposed_backward } else { cpu::conv_backward };
        let none = weightnorm::Activation::None;
        let d = backward(&entered, &case.x_shape, weight, &case.v_shape, &dz, &case.geometry, none)?;
        let terms_of = |entered: &[f64], dz: &[f64]| {
            let x = (entered, &case.x_shape[..]);
            conv_terms(case.transposed, &case.geometry, x, weight, &case.v_shape, None, dz).1
        };
        let terms = terms_of(&entered, &dz);
        // What dz and x are off by reaches each gradient as they do themselves.
        let (by_dz, by_x) = (terms_of(&entered, &dz_off), terms_of(&entered_off, &dz));
        let of_norm = case.axis.map_or(1, |axis| norm_length(&case.v_shape, axis));
        let chain = v.len() + dz.len();
        let more = |by: f64| by * (1.0 + gamma(chain as f64));
        let bounds = |count: usize, bound: &dyn Fn(usize) -> f64| (0..count).map(bound).collect::<Vec<f64>>();

        let d_dtype = out;
        let d_off = |i: usize| dx_bound(of_norm, chain, terms.dx[i], d.dx[i], d_dtype) + more(by_dz.dx[i]);
        let dv_off =
            |i: usize| dv_bound(of_norm, chain, terms.dv[i], d.dv[i], DType::F32) + more(by_dz.dv[i] + by_x.dv[i]);
        let dbias_off = |i: usize| sum_bound(chain, terms.dbias[i], d.dbias[i], DType::F32) + more(by_dz.dbias[i]);
        let dv = (d.dv.clone(), bounds(v.len(), &dv_off));
        let dbias = (d.dbias.clone(), bounds(d.dbias.len(), &dbias_off));
        let (mut dx, mut dalpha) = ((d.dx.clone(), bounds(x.len(), &d_off)), None);
        if case.extra == Extra::InputSnake {
            let alphas = case.extra();
            let (through, of_alpha) = cpu::snake_backward(&x, &case.x_shape, &alphas, &d.dx)?;
            let mut offs = vec![0.0; alphas.len()];
            let mut sizes = vec![0.0; alphas.len()];
            let mut dx_offs = vec![];
            for (i, &x) in x.iter().enumerate() {
                let channel = Case::channel(i, &case.x_shape);
                let [slope, by_alpha] = cpu::snake_derivatives(x, alphas[channel]);
                let [slope_off, alpha_off] = snake_slopes_bound(x, alphas[channel]);
                let off = d_off(i);
                dx_offs.push(pulled_back_bound(d.dx[i], slope, slope_off, out) + off * (slope.abs() + slope_off));
                offs[channel] += (d.dx[i].abs() + off) * alpha_off + off * by_alpha.abs();
                sizes[channel] += (d.dx[i] * by_alpha).abs();
            }
            let dalpha_off = |i: usize| sum_bound(x.len() + 4, sizes[i], of_alpha[i], DType::F32) + more(offs[i]);
            dx = (through, dx_offs);
            dalpha = Some((of_alpha.clone(), bounds(alphas.len(), &dalpha_off)));
        }
        let mut all = vec![("dx", dx.0, dx.1, out), self.added("dv", 21, dv), self.added("dbias", 23, dbias)];
        if let (Some(dg), Some(terms), Some(by_dz), Some(by_x)) = (d.dg, terms.dg, by_dz.dg, by_x.dg) {
            let bound = |i: usize| dg_bound(of_norm, chain, terms[i], dg[i].abs()) + more(by_dz[i] + by_x[i]);
            let bounds = bounds(dg.len(), &bound);
            all.push(self.added("dg", 22, (dg, bounds)));
        }
        all.extend(dalpha.map(|dalpha| self.added("dalpha", 24, dalpha)));
        if case.extra == Extra::Residual {
            let bound = |i: usize| dz_off[i] + storage_bound(out, dz[i].abs() + dz_off[i]);
            all.push(("dcondition", dz.clone(), bounds(dz.len(), &bound), out));
        }
        Ok(all)
    }

    /// A gradient and its bound, onto what was there, and stored.
    fn added(&self, name: &'static str, seed: u64, (values, bounds): (Vec<f64>, Vec<f64>)) -> Expected {
        let out = self.dtypes[1];
        let old = self.old(seed, values.len());
        let sums: Vec<f64> = values.iter().zip(&old).map(|(a, b)| a + b).collect();
        let bound = |(i, bound): (usize, f64)| {
            let e = bound + gamma(2.0) * (old[i].abs() + values[i].abs());
            e + storage_bound(out, sums[i].abs() + e)
        };
        let bounds = bounds.into_iter().enumerate().map(bound).collect();
        (name, sums, bounds, out)
    }

    fn judge(&self, got: &[Vec<f64>]) -> Outcome {
        let expected = self.expected()?;
        assert_eq!(expected.len(), got.len());
        for (got, (name, values, bounds, dtype)) in got.iter().zip(&expected) {
            compare(got, values, Some(*dtype), |i| bounds[i]).map_err(|e| format!("{name}: {e}"))?;
        }
        Ok(())
    }

    fn check(&self, gpu: &Gpu) -> Outcome {
        self.judge(&self.run(gpu)?)
    }
}

/// By how much the derivatives of a gate by a and b are off, a and b being off themselves.
///
/// The sigmoid, its derivative s·(1 − s) and tanh's, 4 times that at 2a, are of one exponential each, as in
/// `gated_bound`; second derivatives are below 0.77 (tanh), 0.25 and 0.1 (sigmoid).
fn slopes_bound(gate: Gate, (a, a_off): (f64, f64), (b, b_off): (f64, f64)) -> [f64; 2] {
    let tiny = 2f64.powi(-120);
    let s = 1.0 / (1.0 + (-b).exp());
    let slope = s / (1.0 + b.exp());
    let evaluation = gamma(16.0 + 4.0 * b.abs().min(120.0));
    let (s_off, slope_off) = (b_off / 4.0 + evaluation * s + tiny, b_off / 10.0 + 2.0 * evaluation * slope + tiny);
    if gate == Gate::Glu {
        return [s_off, a_off * slope + (a.abs() + a_off) * slope_off + gamma(2.0) * a.abs() * slope];
    }
    let (t, t_slope) = (a.tanh().abs(), 1.0 / a.cosh().powi(2));
    let t_off = a_off + gamma(12.0) * if a.abs() < 0.25 { t } else { 1.0 };
    let t_slope_off = 0.77 * a_off + gamma(20.0 + 8.0 * a.abs().min(60.0)) * t_slope + tiny;
    [
        s_off * t_slope + (s + s_off) * t_slope_off + gamma(2.0) * s * t_slope,
        t_off * slope + (t + t_off) * slope_off + gamma(2.0) * t * slope,
    ]
}

/// The same of snake by x and by α. αx is off by a rounding and so sin(2αx) by 2u·|αx|; sine and cosine by 4u of
/// themselves and by the rounding of π/2 less αx; divisor and products by some more.
fn snake_slopes_bound(x: f64, alpha: f64) -> [f64; 2] {
    let (theta, divisor) = (alpha * x, (alpha + 1e-9).abs());
    let (sine, double) = (theta.sin().abs(), (2.0 * theta).sin().abs());
    let double_off = gamma(4.0) * theta.abs() + gamma(20.0) * double;
    let square_off = 2.0 * sine * (gamma(2.0) * theta.abs() + gamma(10.0) * sine);
    let parts = x.abs() * double / divisor + (sine / divisor).powi(2);
    let by_alpha = x.abs() * double_off / divisor + square_off / divisor.powi(2) + gamma(4.0) * parts;
    [double_off * alpha.abs() / divisor + gamma(6.0) * (1.0 + double), by_alpha]
}

fn gated(gate: Gate, half: usize, extra: Extra) -> Case {
    let case = Case::new(&[3, 5, 21], &[2 * half, 5, 3], weightnorm::ConvGeometry::default().padding(1));
    Case { gate: Some(gate), extra, ..case }
}

fn gates(gpu: &Gpu, extent: Extent) -> Outcome {
    let (full, half, brain) = (DType::F32, DType::F16, DType::Bf16);
    let scaled = Case { scale: -0.5, ..gated(Gate::TanhSigmoid, 3, Extra::Residual) };
    let mut cases = vec![
        Backward::new(scaled.clone()),
        Backward { dtypes: [brain, half], ..Backward::new(gated(Gate::Glu, 3, Extra::Residual)) },
    ];
    if extent == Extent::All {
        for gate in [Gate::TanhSigmoid, Gate::Glu] {
            for channels in [1, 3, 16, 64] {
                for extra in [Extra::None, Extra::Residual, Extra::InputSnake] {
                    cases.push(Backward { add: true, ..Backward::new(gated(gate, channels, extra)) });
                    cases.push(Backward::new(Case { tile: None, ..gated(gate, channels, extra) }));
                }
            }
        }
        for axis in [None, Some(Axis::Kept(1)), Some(Axis::Kept(2)), Some(Axis::Whole)] {
            cases.push(Backward::new(Case { axis, ..scaled.clone() }));
        }
        for dtypes in [[half, half], [brain, full], [full, brain]] {
            let case = Case { dtypes: [dtypes[0]; 4], ..scaled.clone() };
            cases.push(Backward { dtypes, ..Backward::new(case) });
        }
    }
    all(cases, |backward| backward.check(gpu))
}

fn snakes(gpu: &Gpu, extent: Extent) -> Outcome {
    let (full, half, brain) = (DType::F32, DType::F16, DType::Bf16);
    let conv = Case { extra: Extra::InputSnake, ..Case::conv() };
    let back = Case { extra: Extra::InputSnake, ..Case::conv_transposed() };
    let mut cases = vec![
        Backward { add: true, ..Backward::new(conv.clone()) },
        Backward::new(Case { scale: 3.0, ..back.clone() }),
        Backward { dtypes: [half, brain], ..Backward::new(Case { dtypes: [half; 4], ..conv.clone() }) },
    ];
    let lanes = Tile::all_on(gpu).any(|tile| tile == Tile::Subgroup16).then_some(Tile::Subgroup16);
    if extent == Extent::All {
        for case in [&conv, &back] {
            for dtypes in [[full, half], [brain, full], [half, half]] {
                let case = Case { dtypes: [dtypes[0], dtypes[1], full, brain], ..case.clone() };
                cases.push(Backward { dtypes, add: true, ..Backward::new(case) });
            }
            for axis in [None, Some(Axis::Kept(1)), Some(Axis::Kept(2)), Some(Axis::Whole)] {
                cases.push(Backward::new(Case { axis, ..case.clone() }));
            }
            cases.push(Backward::new(Case { tile: None, ..case.clone() }));
            cases.extend(lanes.map(|tile| Backward::new(Case { tile: Some(tile), ..case.clone() })));
        }
        let plain = weightnorm::ConvGeometry::default();
        let grouped = Case::new(&[2, 6, 19], &[4, 3, 3], plain.padding(2).stride(2).groups(2));
        let images = Case::new(&[2, 4, 4, 5], &[6, 2, 3, 2], plain.groups(2).padding(1));
        for case in [grouped, images] {
            cases.push(Backward::new(Case { extra: Extra::InputSnake, ..case }));
        }
        let images = Case::new(&[2, 6, 4, 5], &[6, 2, 3, 2], plain.groups(2).stride([2, 1]));
        cases.push(Backward::new(Case { extra: Extra::InputSnake, transposed: true, ..images }));
    }
    all(cases, |backward| backward.check(gpu))
}

/// What `Gpu::conv_backward` returns is what a recorder writes.
fn in_one_call(gpu: &Gpu) -> Outcome {
    for extra in [Extra::Residual, Extra::InputSnake] {
        let backward = Backward::new(gated(Gate::TanhSigmoid, 3, extra));
        let expected = backward.run(gpu)?;
        let case = &backward.case;
        let f32s = |values: Vec<f64>| values.into_iter().map(|x| x as f32).collect::<Vec<f32>>();
        let upload = |values: Vec<f64>, shape: &[usize]| gpu.upload(&f32s(values), shape);
        let (x, v) = (upload(case.x(), &case.x_shape)?, upload(case.v(), &case.v_shape)?);
        let (g, bias) = (upload(case.g().unwrap_or_default(), &[6, 1, 1])?, upload(case.biases(), &[6])?);
        let condition = extra == Extra::Residual;
        let extra_shape = if condition { case.z_shape() } else { vec![5] };
        let (extra, dy) = (upload(case.extra(), &extra_shape)?, upload(backward.dy(), &case.y_shape())?);
        let conv = Conv::new(&x, WeightNorm::new(&v, &g)).bias(&bias).geometry(case.geometry).tile(case.tile);
        let conv = conv.gate(case.gate).condition(condition.then_some(&extra));
        let all = gpu.conv_backward(conv.input_snake((!condition).then_some(&extra)), &dy)?;
        let more = all.dalpha.iter().chain(&all.dcondition);
        let outs = [&all.dx, &all.dv, &all.dbias].into_iter().chain(&all.dg).chain(more);
        let got: Result<Vec<Vec<f64>>, Error> = outs.map(|out| Ok(cpu::widen(&out.read::<f32>()?))).collect();
        if got? != expected {
            return Err(format!("condition {condition}").into());
        }
    }
    Ok(())
}

fn rejects(gpu: &Gpu) -> Outcome {
    let (x, v) = (gpu.upload(&[0.5f32; 36], &[1, 4, 9])?, gpu.upload(&[0.5f32; 72], &[6, 4, 3])?);
    let (dy, dz) = (gpu.zeros(&[1, 3, 7], DType::F32)?, gpu.zeros(&[1, 6, 7], DType::F32)?);
    let (four, six, dx) =
        (gpu.zeros(&[4], DType::F32)?, gpu.zeros(&[6], DType::F32)?, gpu.zeros(&[1, 4, 9], DType::F32)?);
    let back = gpu.upload(&[0.5f32; 72], &[4, 6, 3])?;
    let (plain, z) = (Conv::new(&x, &v), gpu.zeros(&[1, 6, 7], DType::F32)?);
    let gated = plain.gate(Gate::TanhSigmoid);
    let record = |conv: Conv<'_>, dy: &Tensor, wanted: Gradients<'_>| {
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        gpu.record(&mut encoder).conv_backward(conv, dy, &wanted)
    };
    let none = Gradients::default();
    let other = gpu.zeros(&[4], DType::F32)?;
    let cases = [
        (record(gated.condition(&z), &dy, none.dcondition(&dz)), "none"),
        (record(gated, &dy, none.dcondition(&dz)), "shape"),
        (record(gated.condition(&z), &dy, none.dcondition(&dy)), "shape"),
        (record(gated.condition(&z), &dy, none.dcondition(&z)), "alias"),
        (record(gated.condition(&dy), &dy, none.dx(&dx)), "shape"),
        (record(gated.bias(&four), &dy, none.dx(&dx)), "shape"),
        (record(gated, &dz, none.dx(&dx)), "shape"),
        (record(gated.accumulate(true), &dy, none.dx(&dx)), "variant"),
        (record(plain.input_snake(&four), &dz, none.dalpha(&other)), "missing"),
        (record(plain.input_snake(&six), &dz, none.dx(&dx)), "shape"),
        (record(plain.input_snake(&four), &dz, none.dx(&dx).dalpha(&six)), "shape"),
        (record(plain, &dz, none.dx(&dx).dalpha(&four)), "shape"),
        (record(plain.snake(&six), &dz, none.dx(&dx)), "variant"),
        (gpu.conv_transposed_backward(Conv::new(&x, &back).gate(Gate::Glu), &dy).map(drop), "variant"),
    ];
    for (i, (result, expected)) in cases.into_iter().enumerate() {
        let kind = match result {
            Ok(()) => "none",
            Err(Error::Argument(ArgumentError::Shape { .. })) => "shape",
            Err(Error::Argument(ArgumentError::Variant { .. })) => "variant",
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
    let backward = Backward::new(gated(Gate::TanhSigmoid, 3, Extra::Residual));
    let got = backward.run(gpu)?;
    backward.judge(&got)?;
    let failed = |case: Case| Backward { case, ..backward.clone() }.judge(&got).map_err(|_| String::new());
    must_fail("another gate", failed(Case { gate: Some(Gate::Glu), ..backward.case.clone() }))?;
    must_fail("another scale", failed(Case { scale: 1.0001, ..backward.case.clone() }))?;
    for (i, (name, values, bounds, _)) in backward.expected()?.into_iter().enumerate() {
        // Bounds that let nothing through but what is right.
        let worst = values.iter().zip(&bounds).map(|(value, bound)| bound / value.abs()).fold(f64::INFINITY, f64::min);
        if worst > 1e-3 || abs(&got[i]).iter().all(|&value| value == 0.0) {
            return Err(format!("{name}: {worst}").into());
        }
    }
    Ok(())
}
