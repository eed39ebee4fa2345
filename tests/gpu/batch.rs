//! What looks at a whole batch: its sums, data-dependent initialization, mean-only batch normalization.
use weightnorm::internals::column_dot_sums;
use weightnorm::{
    ArgumentError, Axis, DType, DataDependentInit, Eps, Error, Gpu, Gradients, Linear, MeanOnlyBatchNorm,
    MeanOnlyBatchNormBackward, Tensor, WeightNorm, cpu,
};

use crate::common::{compare, dot_bound, gamma, storage_bound};
use crate::data::{DTYPES, Guarded, OFFSETS, all, in_turn, must_fail, norm_chain as chain, random, upload};
use crate::device::{limited, recorded, refused, small, tiny};
use crate::golden::read;
use crate::{Extent, Needs, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    let mut test = |name: &str, test: fn(&Gpu) -> Outcome| {
        suite.test(&format!("batch::{name}"), Needs::Nothing, test);
    };
    test("column_dot_sums", |gpu| all(sums_cases(), |case| case.run(gpu).map(drop)));
    test("column_dot_sums_windows", column_dot_sums_windows);
    test("column_dot_sums_dispatches", column_dot_sums_dispatches);
    test("column_dot_sums_repeat", column_dot_sums_repeat);
    test("column_dot_sums_leave_columns_apart", column_dot_sums_leave_columns_apart);
    test("data_dependent_init_normalizes", data_dependent_init_normalizes);
    test("data_dependent_init_far_from_zero", data_dependent_init_far_from_zero);
    test("data_dependent_init_windows", data_dependent_init_windows);
    test("mean_only_batch_norm_running", mean_only_batch_norm_running);
    test("errors", errors);
    let mut sampled = |name: &str, test: fn(&Gpu, Extent) -> Outcome| suite.sampled(&format!("batch::{name}"), test);
    sampled("column_dot_sums_quads", column_dot_sums_quads);
    sampled("data_dependent_init", data_dependent_init);
    sampled("data_dependent_init_of_constant_features", data_dependent_init_of_constant_features);
    sampled("mean_only_batch_norm", mean_only_batch_norm);
    sampled("mean_only_batch_norm_quads", mean_only_batch_norm_quads);
    sampled("mean_only_batch_norm_windows", mean_only_batch_norm_windows);
}

fn abs(values: &[f64]) -> Vec<f64> {
    values.iter().map(|a| a.abs()).collect()
}

fn column_sums(values: &[f64], columns: usize) -> Vec<f64> {
    (0..columns).map(|j| values.iter().skip(j).step_by(columns).sum()).collect()
}

#[derive(Debug, Clone, Copy)]
struct Sums {
    rows: usize,
    columns: usize,
    dtype: DType,
    dbias: bool,
    dg: bool,
    accumulate: bool,
    offset: u64,
}

fn sums_cases() -> Vec<Sums> {
    let sizes = [(1, 1), (2, 3), (37, 1), (128, 37), (129, 64), (257, 65), (5, 1031), (2_001, 31), (0, 5), (4_099, 1)];
    let mut cases = vec![];
    for (i, (rows, columns)) in sizes.into_iter().enumerate() {
        for (k, dtype) in DTYPES.into_iter().enumerate() {
            let accumulate = (i + k) % 2 != 0;
            let offset = OFFSETS[(i + k) % OFFSETS.len()];
            cases.push(Sums {
                rows,
                columns,
                dtype,
                dbias: (i + k) % 3 != 1,
                dg: (i + k) % 3 != 2,
                accumulate,
                offset,
            });
        }
    }
    cases
}

impl Sums {
    /// The dispatches it took.
    fn run(&self, gpu: &Gpu) -> Result<u64, crate::Failed> {
        let &Sums { rows, columns, dtype, accumulate, offset, .. } = self;
        let (dy, u) = (random(1, rows * columns, dtype), random(2, rows * columns, DType::F32));
        let products: Vec<f64> = dy.iter().zip(&u).map(|(dy, u)| dy * u).collect();
        let old = random(3, columns, DType::F32);
        let output = |wanted: bool| match (wanted, accumulate) {
            (false, _) => Ok(None),
            (true, false) => Guarded::poisoned(gpu, &[columns], DType::F32, offset).map(Some),
            (true, true) => Guarded::holding(gpu, &old, &[columns], DType::F32, offset).map(Some),
        };
        let (dbias, dg) = (output(self.dbias)?, output(self.dg)?);
        let dy_tensor = upload(gpu, &dy, &[rows, columns], dtype, offset as usize / 4)?;
        let u_tensor = upload(gpu, &u, &[rows, columns], DType::F32, usize::from(offset != 0))?;
        let (dbias_tensor, dg_tensor) = (dbias.as_ref().map(|d| &d.tensor), dg.as_ref().map(|d| &d.tensor));
        let count = recorded(gpu, |ops| {
            column_dot_sums(ops, &dy_tensor, self.dg.then_some(&u_tensor), dbias_tensor, dg_tensor, accumulate)
        })?;
        for (got, terms) in [(dbias, &dy), (dg, &products)] {
            let Some(got) = got else { continue };
            let (mut expected, magnitudes) = (column_sums(terms, columns), column_sums(&abs(terms), columns));
            if accumulate {
                expected.iter_mut().zip(&old).for_each(|(sum, old)| *sum += old);
            }
            let bound = |j: usize| {
                gamma(chain(rows) as f64 + 2.0) * magnitudes[j] + storage_bound(DType::F32, expected[j].abs())
            };
            compare(&got.read()?, &expected, Some(DType::F32), bound)?;
        }
        Ok(count)
    }
}

fn column_dot_sums_windows(gpu: &Gpu) -> Outcome {
    let (small, tiny) = (small(gpu)?, tiny(gpu)?);
    for dtype in [DType::F32, DType::F16] {
        let case = Sums { rows: 0, columns: 0, dtype, dbias: true, dg: true, accumulate: true, offset: 12 };
        for (device, rows, columns) in [
            (&small, 1_501, 401),
            (&small, 3, 150_001),
            (&small, 2, 300_001),
            (&small, 300_001, 1),
            (&tiny, 61, 67),
            (&tiny, 3, 4_001),
            (&tiny, 4_001, 1),
            (&tiny, 901, 5),
        ] {
            let case = Sums { rows, columns, ..case };
            let count = case.run(device).map_err(|e| format!("{case:?}: {}", e.message().unwrap_or("failed")))?;
            assert!(count > 2, "{case:?}: {count} dispatches");
        }
    }
    Ok(())
}

/// What is read four words at once, as on either kind of device.
fn column_dot_sums_quads(gpu: &Gpu, extent: Extent) -> Outcome {
    let sizes = [(1, 8), (64, 40), (129, 264), (300, 1_032), (4_001, 8), (70, 512)];
    let mut cases = vec![];
    for (i, (rows, columns)) in sizes.into_iter().enumerate() {
        for dtype in DTYPES {
            for dg in [false, true] {
                let accumulate = (i % 2 == 0) != dg;
                cases.push(Sums { rows, columns, dtype, dbias: true, dg, accumulate, offset: 0 });
            }
        }
    }
    in_turn(gpu, extent, extent.of(&cases, 5), |gpu, case| case.run(gpu).map(drop))
}

fn column_dot_sums_dispatches(gpu: &Gpu) -> Outcome {
    for (rows, columns, expected) in [(1, 7, 1), (128, 4_000, 1), (129, 40, 2), (1_000, 360, 2), (0, 4, 1), (4, 0, 0)] {
        let dtype = DType::F32;
        let case = Sums { rows, columns, dtype, dbias: true, dg: true, accumulate: false, offset: 0 };
        assert_eq!(case.run(gpu)?, expected, "{case:?}");
    }
    Ok(())
}

fn column_dot_sums_repeat(gpu: &Gpu) -> Outcome {
    let (rows, columns) = (3_001, 67);
    let dy = upload(gpu, &random(1, rows * columns, DType::F16), &[rows, columns], DType::F16, 0)?;
    let u = upload(gpu, &random(2, rows * columns, DType::F32), &[rows, columns], DType::F32, 0)?;
    let run = || -> Result<Vec<u32>, crate::Failed> {
        let (dbias, dg) = (gpu.zeros(&[columns], DType::F32)?, gpu.zeros(&[columns], DType::F32)?);
        recorded(gpu, |ops| column_dot_sums(ops, &dy, Some(&u), Some(&dbias), Some(&dg), false))?;
        Ok([dbias.read::<f32>()?, dg.read()?].concat().iter().map(|x| x.to_bits()).collect())
    };
    let first = run()?;
    for _ in 0..3 {
        assert!(run()? == first, "another result");
    }
    Ok(())
}

/// NaN and infinity stay in their column; and the comparison above notices one element that is off.
fn column_dot_sums_leave_columns_apart(gpu: &Gpu) -> Outcome {
    let (rows, columns) = (300, 9);
    let mut values = random(1, rows * columns, DType::Bf16);
    values[4 * columns + 3] = f64::NAN;
    values[7 * columns + 5] = f64::INFINITY;
    let dy = upload(gpu, &values, &[rows, columns], DType::Bf16, 1)?;
    let dbias = gpu.zeros(&[columns], DType::F32)?;
    recorded(gpu, |ops| column_dot_sums(ops, &dy, None, Some(&dbias), None, false))?;
    let expected = column_sums(&values, columns);
    let bound = |_: usize| gamma(rows as f64) * rows as f64;
    compare(&read(&dbias)?, &expected, Some(DType::F32), bound)?;
    let mut wrong = expected.clone();
    wrong[8] += 0.1;
    must_fail("a wrong sum", compare(&read(&dbias)?, &wrong, Some(DType::F32), bound).map(drop))
}

/// (t, and the largest error of t by column) of x·v/n̂ as `linear` computes it.
fn products(x: &[f64], v: &[f64], [rows, ins, outs]: [usize; 3], eps: Eps) -> Result<(Vec<f64>, Vec<f64>), Error> {
    let unit = cpu::normalize(v, &[outs, ins], None, Axis::Kept(0), eps)?;
    let product =
        |x: &[f64], w: &[f64]| cpu::linear(x, &[rows, ins], w, &[outs, ins], None, weightnorm::Activation::None);
    let (t, sums) = (product(x, &unit)?, product(&abs(x), &abs(&unit))?);
    let errors: Vec<f64> = t.iter().zip(&sums).map(|(&t, &sum)| dot_bound(ins, sum, t, DType::F32)).collect();
    let largest = |j: usize| errors.iter().skip(j).step_by(outs).fold(0f64, |a, &b| a.max(b));
    Ok((t, (0..outs).map(largest).collect()))
}

/// Bounds of (g, bias): σ is off by as much as t, and by the roundings of differences from a mean and of their sum.
fn init_bounds(t: &[f64], errors: &[f64], rows: usize) -> Vec<[f64; 2]> {
    let columns = errors.len();
    let bound = |j: usize| {
        let column: Vec<f64> = t.iter().skip(j).step_by(columns).copied().collect();
        let mean = column.iter().sum::<f64>() / rows as f64;
        let deviation = (column.iter().map(|t| (t - mean).powi(2)).sum::<f64>() / rows as f64).sqrt();
        let roundings = gamma(2.0 * chain(rows) as f64 + 20.0);
        let largest = column.iter().fold(0f64, |a, t| a.max(t.abs()));
        let mean_error = errors[j] + roundings * largest;
        let relative = mean_error / deviation + roundings;
        let relative = relative / (1.0 - relative.min(0.5));
        [relative / deviation, mean_error / deviation * (1.0 + relative) + mean.abs() / deviation * relative]
    };
    (0..columns).map(bound).collect()
}

fn check_init(gpu: &Gpu, x: &[f64], v: &[f64], sizes: [usize; 3], dtype: DType) -> Result<u64, crate::Failed> {
    let [rows, ins, outs] = sizes;
    let eps = Eps::default();
    let (g, bias) = cpu::data_dependent_init(x, &[rows, ins], v, &[outs, ins], eps)?;
    let (t, errors) = products(x, v, sizes, eps)?;
    let bounds = init_bounds(&t, &errors, rows);
    let (x, v) = (upload(gpu, x, &[rows, ins], dtype, 1)?, upload(gpu, v, &[outs, ins], dtype, 2)?);
    let output = || Guarded::poisoned(gpu, &[outs], DType::F32, 4);
    let (got_g, got_bias) = (output()?, output()?);
    let count = recorded(gpu, |ops| {
        ops.data_dependent_init(DataDependentInit::new(&x, &v).eps(eps), &got_g.tensor, &got_bias.tensor)
    })?;
    let (mut got_g, mut got_bias) = (got_g.read()?, got_bias.read()?);
    compare(&got_g, &g, Some(DType::F32), |j| bounds[j][0]).map_err(|e| format!("g: {e}"))?;
    compare(&got_bias, &bias, Some(DType::F32), |j| bounds[j][1]).map_err(|e| format!("bias: {e}"))?;
    // The controls.
    got_g[outs - 1] *= 1.25;
    must_fail("a wrong g", compare(&got_g, &g, Some(DType::F32), |j| bounds[j][0]).map(drop))?;
    got_bias[outs - 1] += 0.25 * bias[outs - 1].abs().max(1.0);
    must_fail("a wrong bias", compare(&got_bias, &bias, Some(DType::F32), |j| bounds[j][1]).map(drop))?;
    Ok(count)
}

/// The sizes all use one tile of the product, which has tests of its own and takes long to compile.
fn data_dependent_init(gpu: &Gpu, extent: Extent) -> Outcome {
    for dtype in DTYPES {
        let sizes = [([9, 3, 9], 2), ([128, 17, 37], 2), ([129, 33, 48], 3), ([1_001, 5, 31], 3)];
        let whole = extent == Extent::All || dtype == DType::F32;
        for ([rows, ins, outs], expected) in sizes.into_iter().take(if whole { 4 } else { 1 }) {
            let (x, v) = (random(5, rows * ins, dtype), random(6, outs * ins, dtype));
            let count = check_init(gpu, &x, &v, [rows, ins, outs], dtype);
            let count =
                count.map_err(|e| format!("{rows} {ins} {outs} {dtype:?}: {}", e.message().unwrap_or("failed")))?;
            assert_eq!(count, expected, "{rows} {ins} {outs}");
        }
    }
    Ok(())
}

/// With the gain and the bias that come out, every feature has mean 0 and variance 1.
fn data_dependent_init_normalizes(gpu: &Gpu) -> Outcome {
    let (rows, ins, outs) = (300, 20, 40);
    let shift: Vec<f64> = random(7, rows * ins, DType::F32).iter().map(|x| x + 0.5).collect();
    let x = upload(gpu, &shift, &[rows, ins], DType::F32, 0)?;
    let v = upload(gpu, &random(8, outs * ins, DType::F32), &[outs, ins], DType::F32, 0)?;
    let (g, bias) = gpu.data_dependent_init(DataDependentInit::new(&x, &v))?;
    let y = read(&gpu.linear(Linear::new(&x, WeightNorm::new(&v, &g)).bias(&bias))?)?;
    let squares: Vec<f64> = y.iter().map(|y| y * y).collect();
    for (what, terms, expected) in [("mean", &y, 0.0), ("variance", &squares, 1.0)] {
        let means: Vec<f64> = column_sums(terms, outs).iter().map(|sum| sum / rows as f64).collect();
        compare(&means, &vec![expected; outs], None, |_| 1e-4).map_err(|e| format!("{what}: {e}"))?;
    }
    Ok(())
}

/// Equal rows of x, one row, a zero row of v: σ = 0 counts as 1.
fn data_dependent_init_of_constant_features(gpu: &Gpu, extent: Extent) -> Outcome {
    let (ins, outs) = (7, 9);
    let mut v = random(9, outs * ins, DType::F32);
    v[2 * ins..3 * ins].fill(0.0);
    let row = random(10, ins, DType::F32);
    for rows in extent.of([1, 3, 64, 1_000], 3) {
        let x = row.repeat(rows);
        let (t, errors) = products(&x, &v, [rows, ins, outs], Eps::default())?;
        let x = upload(gpu, &x, &[rows, ins], DType::F32, 0)?;
        let (g, bias) =
            gpu.data_dependent_init(DataDependentInit::new(&x, &upload(gpu, &v, &[outs, ins], DType::F32, 0)?))?;
        assert_eq!(g.read::<f32>()?, [1.0; 9], "{rows} equal rows");
        let expected: Vec<f64> = t[..outs].iter().map(|t| -t).collect();
        compare(&read(&bias)?, &expected, Some(DType::F32), |j| errors[j])?;
    }
    Ok(())
}

/// A mean that is 1,000 times σ, and t near 1e18: x has one column, so that t is x itself.
fn data_dependent_init_far_from_zero(gpu: &Gpu) -> Outcome {
    for (scale, mean) in [(1.0, 1_000.0), (1e18, 0.0), (1e18, 3.0), (1e-12, 1.0)] {
        let rows = 1_024;
        let x = random(11, rows, DType::F32).iter().map(|x| f64::from((scale * (x + mean)) as f32)).collect::<Vec<_>>();
        check_init(gpu, &x, &[2.0; 9], [rows, 1, 9], DType::F32)?;
    }
    // σ = 1 around 1e5, where a mean is off by a few roundings of 2⁻⁸, and σ and its mean by no more. The control:
    // E[t²] − μ², of squares with roundings of 512.
    let (rows, far) = (1_024, 1e5);
    let x: Vec<f64> = (0..rows).map(|b| if b % 2 == 0 { far - 1.0 } else { far + 1.0 }).collect();
    let mean_of = |values: &mut dyn Iterator<Item = f32>| values.sum::<f32>() / rows as f32;
    let square = mean_of(&mut x.iter().map(|&x| (x as f32).powi(2)));
    let naive = f64::from(square - mean_of(&mut x.iter().map(|&x| x as f32)).powi(2)).max(0.0).sqrt();
    let x = upload(gpu, &x, &[rows, 1], DType::F32, 0)?;
    let (g, bias) =
        gpu.data_dependent_init(DataDependentInit::new(&x, &upload(gpu, &[1.0; 9], &[9, 1], DType::F32, 0)?))?;
    let (g, bias) = (read(&g)?, read(&bias)?);
    let is_one = |deviation: f64| compare(&[deviation], &[1.0], None, |_| 0.05).map(drop);
    for (g, bias) in g.into_iter().zip(bias) {
        is_one(1.0 / g)?;
        compare(&[-bias / g], &[far], None, |_| 0.05)?;
    }
    must_fail("E[t²] − μ²", is_one(naive))
}

fn data_dependent_init_windows(gpu: &Gpu) -> Outcome {
    for (device, [rows, ins, outs]) in [(small(gpu)?, [6_001, 3, 45]), (tiny(gpu)?, [301, 5, 31])] {
        let (x, v) = (random(5, rows * ins, DType::F16), random(6, outs * ins, DType::F16));
        let count = check_init(&device, &x, &v, [rows, ins, outs], DType::F16)?;
        assert!(count > 3, "{count} dispatches");
    }
    Ok(())
}

/// Forward in training and evaluation, backward; the dispatches of forward and backward.
fn check_batch_norm(gpu: &Gpu, shape: &[usize], dtype: DType, y_dtype: DType) -> Result<[u64; 3], crate::Failed> {
    check_batch_norm_at(gpu, shape, dtype, y_dtype, [1, 2, 3, 12, 4])
}

/// t, bias and running mean at these places of [`OFFSETS`]; y at these.
fn check_batch_norm_at(
    gpu: &Gpu,
    shape: &[usize],
    dtype: DType,
    y_dtype: DType,
    places: [usize; 5],
) -> Result<[u64; 3], crate::Failed> {
    let columns = *shape.last().ok_or("a rank")?;
    let len = shape.iter().product::<usize>();
    let rows = len / columns;
    let (t, bias) = (random(12, len, dtype), random(13, columns, DType::F32));
    let old = random(14, columns, DType::F32);
    let magnitudes = column_sums(&abs(&t), columns);
    let mean_error = |j: usize| (gamma(chain(rows) as f64 + 3.0)) * magnitudes[j] / rows as f64;
    let largest = 4.0;
    let y_bound = |y: f64, mean_error: f64| {
        let e = mean_error + gamma(3.0) * largest;
        e + storage_bound(y_dtype, y.abs() + e)
    };

    let t_tensor = upload(gpu, &t, shape, dtype, places[0])?;
    let bias_tensor = upload(gpu, &bias, &[columns], DType::F32, places[1])?;
    let y = Guarded::poisoned(gpu, shape, y_dtype, places[3] as u64)?;
    let running = Guarded::holding(gpu, &old, &[columns], DType::F32, 4)?;
    let forward = recorded(gpu, |ops| {
        ops.mean_only_batch_norm(
            MeanOnlyBatchNorm::new(&t_tensor).bias(&bias_tensor).running_mean(&running.tensor, 0.25),
            &y.tensor,
        )
    })?;
    let (expected, mean) = cpu::mean_only_batch_norm(&t, shape, Some(&bias))?;
    let is_y = |y: &[f64]| compare(y, &expected, Some(y_dtype), |i| y_bound(expected[i], mean_error(i % columns)));
    is_y(&y.read()?)?;
    let mut wrong = y.read()?;
    wrong[len - 1] += 0.1;
    must_fail("a wrong y", is_y(&wrong).map(drop))?;
    let mut expected = old.clone();
    cpu::update_running_mean(&mut expected, &mean, 0.25)?;
    let bound = |j: usize| mean_error(j) + gamma(4.0) * (expected[j].abs() + old[j].abs() + mean[j].abs());
    compare(&running.read()?, &expected, Some(DType::F32), bound).map_err(|e| format!("running mean: {e}"))?;

    let running = upload(gpu, &old, &[columns], DType::F32, places[2])?;
    let y = Guarded::poisoned(gpu, shape, y_dtype, places[4] as u64)?;
    let eval = recorded(gpu, |ops| {
        ops.mean_only_batch_norm(MeanOnlyBatchNorm::new(&t_tensor).bias(&bias_tensor).eval(&running), &y.tensor)
    })?;
    let expected = cpu::subtract_running_mean(&t, shape, &old, Some(&bias))?;
    compare(&y.read()?, &expected, Some(y_dtype), |i| y_bound(expected[i], 0.0))?;

    let dt = Guarded::poisoned(gpu, shape, y_dtype, 0)?;
    let dbias = Guarded::holding(gpu, &old, &[columns], DType::F32, 12)?;
    let backward = recorded(gpu, |ops| {
        ops.mean_only_batch_norm_backward(
            MeanOnlyBatchNormBackward::new(&t_tensor),
            &Gradients::default().dx(&dt.tensor).dbias(&dbias.tensor).accumulate(true),
        )
    })?;
    let (expected, mut sums) = cpu::mean_only_batch_norm_backward(&t, shape)?;
    compare(&dt.read()?, &expected, Some(y_dtype), |i| y_bound(expected[i], mean_error(i % columns)))?;
    sums.iter_mut().zip(&old).for_each(|(sum, old)| *sum += old);
    let bound = |j: usize| mean_error(j) * rows as f64 + gamma(2.0) * (sums[j].abs() + old[j].abs());
    compare(&dbias.read()?, &sums, Some(DType::F32), bound).map_err(|e| format!("dbias: {e}"))?;
    let mut wrong = dbias.read()?;
    wrong[columns - 1] += 1e-3 * magnitudes[columns - 1] + 1e-6;
    must_fail("a wrong dbias", compare(&wrong, &sums, Some(DType::F32), bound).map(drop))?;
    Ok([forward, eval, backward])
}

/// Few: each storage type into one other.
fn mean_only_batch_norm(gpu: &Gpu, extent: Extent) -> Outcome {
    let mixed = |(i, k): (usize, usize)| extent == Extent::All || k == (i + 1) % 3;
    for (i, k) in (0..9).map(|n| (n / 3, n % 3)).filter(|&pair| mixed(pair)) {
        let (dtype, y_dtype) = (DTYPES[i], DTYPES[k]);
        for (shape, expected) in
            [(&[1, 1][..], 2), (&[3, 5], 2), (&[37, 65], 2), (&[2, 64, 33], 2), (&[129, 7], 3), (&[1_031, 3], 3)]
        {
            let counts = check_batch_norm(gpu, shape, dtype, y_dtype);
            let counts =
                counts.map_err(|e| format!("{shape:?} {dtype:?} {y_dtype:?}: {}", e.message().unwrap_or("failed")))?;
            assert_eq!(counts, [expected, 1, expected], "{shape:?}");
        }
    }
    Ok(())
}

/// What is read four words at once, as on either kind of device.
fn mean_only_batch_norm_quads(gpu: &Gpu, extent: Extent) -> Outcome {
    let mut cases = vec![];
    for (i, dtype) in DTYPES.into_iter().enumerate() {
        let shapes = [&[1, 8][..], &[37, 40], &[2, 64, 264], &[300, 16]];
        let some = shapes.into_iter().skip(extent.choose(0, i)).take(extent.choose(4, 2));
        cases.extend(some.map(|shape| (shape, dtype)));
    }
    in_turn(gpu, extent, cases, |gpu, &(shape, dtype)| {
        for places in [[0, 0, 3, 0, 16], [0, 1, 3, 0, 32]] {
            check_batch_norm_at(gpu, shape, dtype, dtype, places)?;
        }
        Ok(())
    })
}

fn mean_only_batch_norm_windows(gpu: &Gpu, extent: Extent) -> Outcome {
    let (small, tiny) = (small(gpu)?, tiny(gpu)?);
    let dtypes = [(DType::F32, DType::Bf16), (DType::F32, DType::F32), (DType::F16, DType::F16)];
    for (dtype, y_dtype) in extent.of(dtypes, 2) {
        for (device, shape) in [
            (&small, &[1_501, 401][..]),
            (&small, &[3, 300_001]),
            (&tiny, &[61, 67]),
            (&tiny, &[3, 4_001]),
            (&tiny, &[4_001, 1]),
        ] {
            let counts = check_batch_norm(device, shape, dtype, y_dtype);
            counts.map_err(|e| format!("{shape:?} {dtype:?} {y_dtype:?}: {}", e.message().unwrap_or("failed")))?;
        }
    }
    // In quads: windows that end within a row, and more columns than a binding holds means of.
    let dtypes = extent.of([DType::F32, DType::F16], 2);
    let shapes = [&[61, 64][..], &[301, 48], &[3, 4_000]];
    let cases = dtypes.into_iter().flat_map(|dtype| shapes.map(|shape| (shape, dtype)));
    in_turn(&tiny, extent, cases, |tiny, &(shape, dtype)| {
        check_batch_norm_at(tiny, shape, dtype, dtype, [0; 5]).map(drop)
    })
}

/// Without bias and running mean, and a running mean of momentum 1, which is the batch's.
fn mean_only_batch_norm_running(gpu: &Gpu) -> Outcome {
    let t = upload(gpu, &[1.0, 10.0, 3.0, 30.0], &[2, 2], DType::F32, 0)?;
    assert_eq!(gpu.mean_only_batch_norm(MeanOnlyBatchNorm::new(&t))?.read::<f32>()?, [-1.0, -10.0, 1.0, 10.0]);
    let mean = gpu.zeros(&[2], DType::F32)?;
    gpu.mean_only_batch_norm(MeanOnlyBatchNorm::new(&t).running_mean(&mean, 1.0))?;
    assert_eq!(mean.read::<f32>()?, [2.0, 20.0]);
    assert_eq!(
        gpu.mean_only_batch_norm(MeanOnlyBatchNorm::new(&t).eval(&mean))?.read::<f32>()?,
        [-1.0, -10.0, 1.0, 10.0]
    );
    let (dt, dbias) = gpu.mean_only_batch_norm_backward(MeanOnlyBatchNormBackward::new(&t))?;
    assert_eq!(dt.read::<f32>()?, [-1.0, -10.0, 1.0, 10.0]);
    assert_eq!(dbias.read::<f32>()?, [4.0, 40.0]);
    // An empty batch has no mean, but sums.
    let empty = gpu.zeros(&[0, 2], DType::F32)?;
    let (_, dbias) = gpu.mean_only_batch_norm_backward(MeanOnlyBatchNormBackward::new(&empty))?;
    assert_eq!(dbias.read::<f32>()?, [0.0, 0.0]);
    Ok(())
}

fn errors(gpu: &Gpu) -> Outcome {
    let zeros = |shape: &[usize], dtype| gpu.zeros(shape, dtype);
    let f32s = |shape: &[usize]| zeros(shape, DType::F32);
    let (x, v, g, bias) = (f32s(&[4, 3])?, f32s(&[2, 3])?, f32s(&[2])?, f32s(&[2])?);
    let init = |x: &Tensor, v: &Tensor, g: &Tensor, bias: &Tensor| {
        refused(gpu, |ops| ops.data_dependent_init(DataDependentInit::new(x, v), g, bias))
    };
    assert!(matches!(init(&f32s(&[0, 3])?, &v, &g, &bias)?, Error::Argument(ArgumentError::Shape { arg: "x", .. })));
    assert!(matches!(init(&f32s(&[4, 2])?, &v, &g, &bias)?, Error::Argument(ArgumentError::Shape { arg: "x", .. })));
    assert!(matches!(init(&f32s(&[])?, &v, &g, &bias)?, Error::Argument(ArgumentError::Shape { arg: "x", .. })));
    assert!(matches!(init(&x, &f32s(&[6])?, &g, &bias)?, Error::Argument(ArgumentError::Shape { arg: "v", .. })));
    assert!(matches!(init(&x, &v, &f32s(&[3])?, &bias)?, Error::Argument(ArgumentError::Shape { arg: "g", .. })));
    assert!(matches!(init(&x, &v, &g, &g)?, Error::Argument(ArgumentError::Overlap { .. })));
    assert!(matches!(init(&x, &v, &g, &v.reshape(&[6])?)?, Error::Argument(ArgumentError::Shape { arg: "bias", .. })));
    let bad_eps =
        refused(gpu, |ops| ops.data_dependent_init(DataDependentInit::new(&x, &v).eps(Eps::Clamp(0.0)), &g, &bias))?;
    assert!(matches!(bad_eps, Error::Argument(ArgumentError::Eps { .. })));

    let (t, y) = (f32s(&[4, 2])?, f32s(&[4, 2])?);
    let norm = |t: &Tensor, bias: &Tensor, running: &Tensor, y: &Tensor| {
        refused(gpu, |ops| ops.mean_only_batch_norm(MeanOnlyBatchNorm::new(t).bias(bias).running_mean(running, 0.1), y))
    };
    assert!(matches!(norm(&f32s(&[0, 2])?, &bias, &g, &y)?, Error::Argument(ArgumentError::Shape { arg: "t", .. })));
    assert!(matches!(norm(&f32s(&[])?, &bias, &g, &y)?, Error::Argument(ArgumentError::Shape { arg: "t", .. })));
    assert!(matches!(norm(&t, &f32s(&[4])?, &g, &y)?, Error::Argument(ArgumentError::Shape { arg: "bias", .. })));
    assert!(matches!(
        norm(&t, &bias, &f32s(&[2, 1])?, &y)?,
        Error::Argument(ArgumentError::Shape { arg: "running", .. })
    ));
    assert!(matches!(norm(&t, &bias, &g, &f32s(&[8])?)?, Error::Argument(ArgumentError::Shape { arg: "y", .. })));
    assert!(matches!(norm(&t, &bias, &g, &t)?, Error::Argument(ArgumentError::Alias { output: "y", .. })));
    assert!(matches!(norm(&t, &bias, &bias, &y)?, Error::Argument(ArgumentError::Alias { output: "running", .. })));
    let eval =
        refused(gpu, |ops| ops.mean_only_batch_norm(MeanOnlyBatchNorm::new(&t).eval(&zeros(&[2], DType::Bf16)?), &y))?;
    assert!(matches!(eval, Error::Argument(ArgumentError::DType { arg: "running", .. })));
    let backward = |dt: &Tensor, dbias: &Tensor| {
        refused(gpu, |ops| {
            ops.mean_only_batch_norm_backward(
                MeanOnlyBatchNormBackward::new(&t),
                &Gradients::default().dx(dt).dbias(dbias).accumulate(true),
            )
        })
    };
    assert!(matches!(backward(&f32s(&[2, 4])?, &g)?, Error::Argument(ArgumentError::Shape { arg: "dt", .. })));
    assert!(matches!(backward(&y, &f32s(&[3])?)?, Error::Argument(ArgumentError::Shape { arg: "dbias", .. })));
    assert!(matches!(backward(&t, &g)?, Error::Argument(ArgumentError::Alias { output: "dt", .. })));
    let other = limited(gpu, |_| ())?;
    assert!(matches!(
        backward(&y, &other.zeros(&[2], DType::F32)?)?,
        Error::Argument(ArgumentError::OtherGpu { arg: "dbias", .. })
    ));
    Ok(())
}
