//! Cooperative matrices: products of f16 on a device that was asked for them. Each test runs every size there is, and
//! is ignored where there is none.
use libtest_mimic::{Completion, Failed};
use weightnorm::{Activation, ArgumentError, DType, Eps, Error, Gpu, Linear, Options, Tile, WeightNorm, cpu};

use crate::backward;
use crate::common::{compare, dot_bound};
use crate::data::{Guarded, POLICIES, all, norm_chain, random, upload};
use crate::linear::{ACTIVATIONS, Case, IN, OUT, PLAIN, WHOLE};
use crate::norms::simple;
use crate::{Outcome, Suite, problem};

const F16: [DType; 3] = [DType::F16; 3];

pub fn register(suite: &mut Suite) {
    let mut test = |name: &str, test: fn(&Gpu, Tile) -> Outcome| {
        suite.test_if_able(&format!("coop::{name}"), move |gpu| {
            let gpu = cooperative(gpu)?;
            let tiles = [Tile::Cooperative8, Tile::Cooperative16].into_iter().filter(|tile| tile.runs_on(&gpu));
            let mut completion = Completion::ignored_with("no cooperative matrices of f16 with sums in f32");
            for tile in tiles {
                test(&gpu, tile).map_err(|e| format!("{tile:?}: {}", e.message().unwrap_or_default()))?;
                completion = Completion::Completed;
            }
            Ok(completion)
        });
    };
    test("sizes", sizes);
    test("ends", ends);
    test("splits_and_longest_loops", splits_and_longest_loops);
    test("norms_out_of_range", norms_out_of_range);
    test("not_finite", not_finite);
    test("u", u);
    test("gradients", backward::in_halves);
    test("same_bits", same_bits);
    test("refused", refused);
    test("subgroups_of_several_parts", several_parts);
    test("choices", choices);
    test("adopted", adopted);
}

#[expect(unsafe_code, reason = "the token of who accepts experimental features: here that is the point")]
fn options(gpu: &Gpu, properties: Vec<wgpu::CooperativeMatrixProperties>) -> Options {
    // SAFETY: what may go wrong within a driver is what these tests are to find.
    let token = unsafe { wgpu::ExperimentalFeatures::enabled() };
    problem::options(gpu).cooperative_matrices(token, properties)
}

fn cooperative(gpu: &Gpu) -> Result<Gpu, Failed> {
    Ok(pollster::block_on(Gpu::new_async(options(gpu, vec![])))?)
}

fn case(tile: Tile, size: [usize; 3]) -> Case {
    Case { tile: Some(tile), dtypes: F16, ..Case::new(size) }
}

/// Whole tiles, ragged ones, and rows whose neighbours share words; to f16 and f32.
fn sizes(gpu: &Gpu, tile: Tile) -> Outcome {
    let sizes = [
        [1, 1, 1],
        [64, 64, 64],
        [63, 65, 17],
        [130, 67, 50],
        [5, 7, 13],
        [33, 3, 259],
        [3, 129, 4],
        [32, 36, 40],
        [65, 129, 1023],
        [1000, 1, 3],
    ];
    all(sizes, |&size| {
        case(tile, size).check(gpu)?;
        let to_f32 = Case { dtypes: [DType::F16, DType::F16, DType::F32], ..case(tile, size) };
        to_f32.check(gpu)?;
        Case { axis: PLAIN, ..to_f32 }.check(gpu)
    })
}

fn ends(gpu: &Gpu, tile: Tile) -> Outcome {
    let base = case(tile, [37, 70, 45]);
    let mut cases = vec![];
    for axis in [OUT, WHOLE, PLAIN] {
        for known in [false, axis != PLAIN] {
            cases.push(Case { axis, known, ..base.clone() });
            cases.push(Case { axis, known, gain: false, bias: false, write_norms: false, ..base.clone() });
        }
    }
    cases.extend(POLICIES.map(|eps| Case { eps, ..base.clone() }));
    cases.extend(ACTIVATIONS.map(|activation| Case { activation, ..base.clone() }));
    cases.push(Case { dtypes: [DType::F16, DType::F16, DType::Bf16], ..base });
    all(cases, |case| case.check(gpu))
}

fn splits_and_longest_loops(gpu: &Gpu, tile: Tile) -> Outcome {
    let mut cases = vec![];
    for axis in [OUT, WHOLE, PLAIN] {
        cases.extend([1, 48, 500].map(|length| Case { axis, split_length: Some(length), ..case(tile, [67, 70, 259]) }));
    }
    let (ins, side) =
        (weightnorm::internals::longest_sum(tile, gpu) as usize, if tile == Tile::Cooperative8 { 32 } else { 64 });
    for (ins, eps) in [(ins, Eps::None), (ins + 5, Eps::None), (ins, Eps::After(2f32.powi(100)))] {
        let (x, v) = (Some(simple(side * ins)), Some(simple(side * ins)));
        let dtypes = [DType::F16, DType::F16, DType::F32];
        cases.push(Case { x, v, eps, exact_sums: true, dtypes, bias: false, ..case(tile, [side, side, ins]) });
    }
    all(cases, |case| {
        let got = case.run(gpu)?;
        let splits = case.split_length.is_some() || case.size[2] > ins;
        if case.axis != WHOLE && got.dispatches != 1 + u64::from(splits) {
            return Err(format!("{} dispatches", got.dispatches).into());
        }
        Ok(case.judge(&got)?)
    })
}

/// Norms beyond what a quotient of two f32 takes, rows of zeros, and the ends of the range of f16.
fn norms_out_of_range(gpu: &Gpu, tile: Tile) -> Outcome {
    let size @ [_, outs, ins] = [35, 40, 39];
    let scales = [1.0, 0.0, 2f64.powi(15), 2f64.powi(-14), 2f64.powi(-8)];
    let scaled = |seed, rows: usize| {
        let values = random(seed, rows * ins, DType::F16).into_iter().enumerate();
        // Whole numbers times the scale: f16 holds each.
        values.map(|(i, a)| (a * 8.0).round().abs().clamp(1.0, 1.5) * a.signum() * scales[i / ins % 5]).collect()
    };
    let base = Case {
        x: Some(scaled(6, size[0])),
        v: Some(scaled(7, outs)),
        biases: Some(vec![0.0; outs]),
        dtypes: [DType::F16, DType::F16, DType::F32],
        ..case(tile, size)
    };
    let policies = [
        Eps::Clamp(1e-12),
        Eps::Clamp(1e-30),
        Eps::Clamp(2f32.powi(100)),
        Eps::InsideSqrt(1e-36),
        Eps::InsideSqrt(2f32.powi(126)),
        Eps::After(1e-35),
        Eps::After(2f32.powi(100)),
    ];
    all(policies, |&eps| {
        Case { eps, ..base.clone() }.check(gpu)?;
        Case { eps, known: true, write_norms: false, ..base.clone() }.check(gpu)?;
        Case { eps, split_length: Some(16), ..base.clone() }.check(gpu)
    })
}

fn not_finite(gpu: &Gpu, tile: Tile) -> Outcome {
    all([f64::NAN, f64::INFINITY, f64::NEG_INFINITY], |&bad| {
        for place in [0, 33 * 39 + 38, 9 * 39 + 4] {
            let base = case(tile, [36, 34, 39]);
            let spoil = |mut values: Vec<f64>| {
                values[place] = bad;
                Some(values)
            };
            for axis in [OUT, WHOLE, PLAIN] {
                Case { axis, v: spoil(base.v()), ..base.clone() }.check(gpu)?;
                Case { axis, x: spoil(base.x()), ..base.clone() }.check(gpu)?;
            }
            Case { v: spoil(base.v()), split_length: Some(16), ..base.clone() }.check(gpu)?;
            Case { v: spoil(base.v()), activation: Activation::Relu, ..base }.check(gpu)?;
        }
        Ok(())
    })
}

fn u(gpu: &Gpu, tile: Tile) -> Outcome {
    all([[9, 33, 39], [65, 36, 40]], |&[batch, outs, ins]| {
        let (x64, v64) = (random(21, batch * ins, DType::F16), random(22, outs * ins, DType::F16));
        let x = upload(gpu, &x64, &[batch, ins], DType::F16, 1)?;
        let v = upload(gpu, &v64, &[outs, ins], DType::F16, 2)?;
        let u = Guarded::poisoned(gpu, &[batch, outs], DType::F32, 12)?;
        gpu.linear(Linear::new(&x, WeightNorm::unit(&v)).u(&u.tensor).tile(tile))?;
        let reference = |x: &[f64], v: &[f64]| -> Result<Vec<f64>, Failed> {
            let saved =
                cpu::linear_saved(x, &[batch, ins], v, &[outs, ins], weightnorm::Axis::Kept(0), Eps::default())?;
            Ok(saved.u.ok_or("no u")?)
        };
        let magnitudes = |values: &[f64]| values.iter().map(|a| a.abs()).collect::<Vec<_>>();
        let (expected, sums) = (reference(&x64, &v64)?, reference(&magnitudes(&x64), &magnitudes(&v64))?);
        let chain = norm_chain(ins).max(ins);
        compare(&u.read()?, &expected, Some(DType::F32), |i| dot_bound(chain, sums[i], expected[i], DType::F32))?;
        Ok(())
    })
}

fn same_bits(gpu: &Gpu, tile: Tile) -> Outcome {
    all([case(tile, [65, 129, 259]), case(tile, [33, 7, 5])], |case| {
        let first = case.run(gpu)?;
        for _ in 0..3 {
            let again = case.run(gpu)?;
            if again.bits != first.bits || again.norms != first.norms {
                return Err("other bits".into());
            }
        }
        Ok(())
    })
}

/// Other storage types, a scale on the contraction, and a device that was not asked for it.
fn refused(gpu: &Gpu, tile: Tile) -> Outcome {
    let base = case(tile, [5, 7, 13]);
    let mut cases = vec![Case { axis: IN, ..base.clone() }];
    for dtype in [DType::F32, DType::Bf16] {
        cases.push(Case { dtypes: [dtype, DType::F16, DType::F16], ..base.clone() });
        cases.push(Case { dtypes: [DType::F16, dtype, DType::F16], ..base.clone() });
    }
    all(cases, |case| must_be_refused(gpu, case))?;
    let without = Gpu::from_wgpu(gpu.device().clone(), gpu.queue().clone(), problem::options(gpu))?;
    must_be_refused(&without, &base)
}

fn must_be_refused(gpu: &Gpu, case: &Case) -> Outcome {
    let [batch, outs, ins] = case.size;
    let x = gpu.zeros(&[batch, ins], case.dtypes[0])?;
    let v = gpu.zeros(&[outs, ins], case.dtypes[1])?;
    let weight = WeightNorm::unit(&v).axis(case.axis.ok_or("normalized")?);
    match gpu.linear(Linear::new(&x, weight).tile(case.tile)) {
        Err(Error::Argument(ArgumentError::Variant { .. })) => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

/// Subgroups that are two and four times as large as the smallest.
fn several_parts(gpu: &Gpu, tile: Tile) -> Outcome {
    all([2, 4], |parts| {
        let mut options = options(gpu, vec![]);
        options.cooperative_lanes = Some(gpu.report().info.subgroup_min_size / parts);
        let gpu = pollster::block_on(Gpu::new_async(options))?;
        if !tile.runs_on(&gpu) {
            return Ok(()); // an invocation would have more than 32 rows
        }
        case(tile, [70, 67, 131]).check(&gpu)?;
        Case { axis: PLAIN, split_length: Some(48), ..case(tile, [33, 100, 131]) }.check(&gpu)
    })
}

/// Chosen for products of which they cannot do each: then the choice counts for nothing.
fn choices(gpu: &Gpu, tile: Tile) -> Outcome {
    let size @ [batch, outs, ins] = [33, 36, 40];
    let origin = gpu.tuning_table().to_string().lines().next().ok_or("no origin")?.to_owned();
    let all = format!(
        "{origin}\nforward f16 f16 {batch} {outs} {ins} {tile}\ninput_gradient f16 f16 {batch} {ins} {outs} {tile}\n\
         weight_gradient f16 f16 {outs} {ins} {batch} {tile}\n"
    );
    let gpu = pollster::block_on(Gpu::new_async(options(gpu, vec![]).tuning_table(all.parse()?)))?;
    Case { tile: None, ..case(tile, size) }.check(&gpu)?;
    Case { tile: None, axis: IN, ..case(tile, size) }.check(&gpu)?;
    backward::chosen(&gpu, size)
}

/// A device of the caller's, who says what its adapter has.
fn adopted(gpu: &Gpu, tile: Tile) -> Outcome {
    let (_instance, adapter) = problem::adapter_of(gpu, wgpu::MemoryBudgetThresholds::default())?;
    let properties = adapter.cooperative_matrix_properties();
    let options = options(gpu, properties);
    let descriptor = wgpu::DeviceDescriptor {
        required_features: Gpu::wanted(&adapter).features
            | wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
            | wgpu::Features::SHADER_F16,
        required_limits: adapter.limits(),
        experimental_features: options.experimental,
        ..Default::default()
    };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))?;
    let adopted = Gpu::from_wgpu(device, queue, options)?;
    if adopted.report().cooperative_matrices != gpu.report().cooperative_matrices {
        return Err(format!("{}", adopted.report()).into());
    }
    case(tile, [37, 70, 45]).check(&adopted)
}
