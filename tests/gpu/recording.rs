//! Recording into the caller's encoder or pass: nothing is submitted, each dispatch keeps its own parameters, scratch
//! memory is shared safely, and nothing is allocated.
use libtest_mimic::Completion;
use weightnorm::internals::Kind;
use weightnorm::{Axis, DType, Decompose, Eps, Gpu, Linear, Options, ParameterPassing, Tensor, WeightNorm};

use crate::golden::read;
use crate::problem::{Op, Prepared, Problem, adapter_of, device, encoder, halves, options};
use crate::{Extent, Failed, Needs, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    suite.test("recording::encoder_submits_nothing", Needs::Nothing, encoder_submits_nothing);
    suite.test("recording::pass_of_the_caller", Needs::Nothing, pass_of_the_caller);
    suite.test_if_able("recording::timestamps_of_the_caller", timestamps_of_the_caller);
    suite.test("recording::faults_are_found", Needs::Nothing, faults_are_found);
    suite.test("recording::parameters_stay", Needs::Nothing, parameters_stay);
    suite.test("recording::scratch_is_shared", Needs::Nothing, scratch_is_shared);
    suite.test("recording::allocates_nothing", Needs::Nothing, allocates_nothing);
    suite.test("recording::networks_allocate_nothing", Needs::Nothing, networks_allocate_nothing);
    suite.test("recording::pipelines_are_kept", Needs::Nothing, pipelines_are_kept);
    suite.test("recording::in_order", Needs::Nothing, in_order);
    suite.sampled_if_able("recording::gl_submissions_are_short", gl_submissions_are_short);
}

/// The control of every test that judges by `Prepared`.
fn faults_are_found(gpu: &Gpu) -> Outcome {
    for dtype in [DType::F32, DType::F16] {
        let problems = mixed(gpu, dtype)?;
        let mut encoder = encoder(gpu);
        let mut ops = gpu.record(&mut encoder);
        problems.iter().try_for_each(|problem| problem.record(&mut ops))?;
        drop(ops);
        problems.iter().try_for_each(Prepared::check_untouched)?;
        gpu.queue().submit([encoder.finish()]);
        problems.iter().try_for_each(|problem| problem.check_finds_faults(gpu))?;
        // Written outputs are not untouched ones.
        if problems.iter().any(|problem| problem.check_untouched().is_ok()) {
            return Err("an output that was written passed for untouched".into());
        }
    }
    Ok(())
}

/// Of each operator one problem with outputs of their own.
fn mixed(gpu: &Gpu, dtype: DType) -> Result<Vec<Prepared>, Failed> {
    // Products of f16 have tests of their own.
    let ops: &[Op] = if dtype == DType::F32 { &Op::ALL } else { &Op::OF_TENSORS };
    let not_in_place = ops.iter().copied().filter(|&op| op != Op::NormalizeInPlace);
    not_in_place.map(|op| Problem::new(op, &[67, 75], Axis::Kept(0), 65, dtype).at(4).prepare(gpu)).collect()
}

fn encoder_submits_nothing(gpu: &Gpu) -> Outcome {
    let problems = mixed(gpu, DType::F32)?;
    let mut encoder = encoder(gpu);
    for problem in &problems {
        problem.record(&mut gpu.record(&mut encoder))?;
    }
    problems.iter().try_for_each(Prepared::check_untouched)?;
    gpu.queue().submit([encoder.finish()]);
    problems.iter().try_for_each(Prepared::check)
}

/// A kernel of the caller's: adds 1 to every word.
pub struct Increment {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    pub counter: weightnorm::Tensor,
}

impl Increment {
    pub fn new(gpu: &Gpu) -> Result<Increment, Failed> {
        let device = gpu.device();
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: None,
            source: wgpu::ShaderSource::Wgsl(
                "@group(0) @binding(0) var<storage, read_write> counter: array<f32>;
                 @compute @workgroup_size(1) fn increment() { counter[0] += 1.0; }"
                    .into(),
            ),
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: None,
            module: &module,
            entry_point: None,
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        let counter = gpu.upload(&[1f32], &[1])?;
        let resource = counter.buffer()?.as_entire_binding();
        let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &[wgpu::BindGroupEntry { binding: 0, resource }],
        });
        Ok(Increment { pipeline, bind_group, counter })
    }

    pub fn record(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(1, 1, 1);
    }
}

/// Operators among the caller's own dispatches, which see each other's results.
fn record_in_turn(
    gpu: &Gpu,
    encoder: &mut wgpu::CommandEncoder,
    descriptor: &wgpu::ComputePassDescriptor<'_>,
) -> Outcome {
    let own = Increment::new(gpu)?;
    let problems = mixed(gpu, DType::F32)?;
    let first = gpu.zeros(&[1], DType::F32)?;
    let second = gpu.zeros(&[1], DType::F32)?;
    let mut pass = encoder.begin_compute_pass(descriptor);
    own.record(&mut pass);
    gpu.record_pass(&mut pass).row_norms(WeightNorm::unit(&own.counter).axis(Axis::Whole).eps(Eps::None), &first)?;
    for problem in &problems {
        own.record(&mut pass);
        problem.record(&mut gpu.record_pass(&mut pass))?;
    }
    gpu.record_pass(&mut pass).row_norms(WeightNorm::unit(&own.counter).axis(Axis::Whole).eps(Eps::None), &second)?;
    drop(pass);
    problems.iter().try_for_each(Prepared::check_untouched)?;
    gpu.queue().submit([std::mem::replace(encoder, crate::problem::encoder(gpu)).finish()]);
    problems.iter().try_for_each(Prepared::check)?;
    assert_eq!(first.read::<f32>()?, [2.0]);
    assert_eq!(second.read::<f32>()?, [2.0 + problems.len() as f32]);
    Ok(())
}

fn pass_of_the_caller(gpu: &Gpu) -> Outcome {
    record_in_turn(gpu, &mut encoder(gpu), &wgpu::ComputePassDescriptor::default())
}

fn timestamps_of_the_caller(gpu: &Gpu) -> Result<Completion, Failed> {
    let (_instance, adapter) = adapter_of(gpu, wgpu::MemoryBudgetThresholds::default())?;
    if !adapter.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
        return Ok(Completion::ignored_with("this adapter has no timestamps"));
    }
    let (device, queue) = device(&adapter, |features, _| *features |= wgpu::Features::TIMESTAMP_QUERY)?;
    let gpu = Gpu::from_wgpu(device, queue, options(gpu))?;
    let query_set = gpu.device().create_query_set(&wgpu::QuerySetDescriptor {
        label: None,
        ty: wgpu::QueryType::Timestamp,
        count: 2,
    });
    let timestamp_writes = Some(wgpu::ComputePassTimestampWrites {
        query_set: &query_set,
        beginning_of_pass_write_index: Some(0),
        end_of_pass_write_index: Some(1),
    });
    record_in_turn(&gpu, &mut encoder(&gpu), &wgpu::ComputePassDescriptor { label: None, timestamp_writes })?;
    let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::STORAGE;
    let resolved =
        gpu.device().create_buffer(&wgpu::BufferDescriptor { label: None, size: 16, usage, mapped_at_creation: false });
    let mut encoder = encoder(&gpu);
    encoder.resolve_query_set(&query_set, 0..2, &resolved, 0);
    gpu.queue().submit([encoder.finish()]);
    let words = Tensor::from_buffer(&gpu, &resolved, 0, &[4], DType::F32)?.read::<f32>()?;
    let times: &[u64] = bytemuck::cast_slice(&words);
    assert!(times[0] > 0 && times[1] > times[0], "{times:?}");
    Ok(Completion::Completed)
}

/// 200 dispatches in one submission, each of another length and place, so that another one's parameters would show.
fn parameters_stay(gpu: &Gpu) -> Outcome {
    let n = 200;
    let data: Vec<f32> = halves(7, 64 * n).iter().map(|&a| a as f32).collect();
    let all = gpu.upload(&data, &[64 * n])?;
    let mut encoder = encoder(gpu);
    let mut results = vec![];
    for i in 0..n {
        let v = Tensor::from_buffer(gpu, all.buffer()?, 256 * i as u64, &[i % 63 + 1], DType::F32)?;
        let norm = gpu.zeros(&[1], DType::F32)?;
        let eps = Eps::After((i + 1) as f32);
        gpu.record(&mut encoder).row_norms(WeightNorm::unit(&v).axis(Axis::Whole).eps(eps), &norm)?;
        results.push(norm);
    }
    gpu.queue().submit([encoder.finish()]);
    for (i, norm) in results.iter().enumerate() {
        let row = &data[64 * i..][..i % 63 + 1];
        let expected = row.iter().map(|a| a * a).sum::<f32>().sqrt() + (i + 1) as f32;
        let [got] = norm.read::<f32>()?[..] else { panic!("one norm") };
        assert!((got - expected).abs() <= 4.0 * f32::EPSILON * expected, "dispatch {i}: {got}, expected {expected}");
    }
    Ok(())
}

/// Operators that leave partial sums and scales in scratch memory: two encoders recorded in turn, submitted one after
/// the other, with scratch memory that grows in between; on a device whose scratch is still empty.
fn scratch_is_shared(gpu: &Gpu) -> Outcome {
    let gpu = crate::problem::adopted(gpu, |_| ())?;
    let (mut first, mut second) = (encoder(&gpu), encoder(&gpu));
    let mut problems = vec![];
    for (i, rows) in [3, 40, 200, 700].into_iter().enumerate() {
        for (op, axis) in [
            (Op::LinearSplit, Axis::Kept(0)),
            (Op::LinearSplit, Axis::Kept(1)),
            (Op::Normalize, Axis::Kept(1)),
            (Op::LinearNorms, Axis::Whole),
        ] {
            let problem = Problem::new(op, &[rows, 129], axis, 2 * rows / (i + 1), DType::F32).prepare(&gpu)?;
            problem.record(&mut gpu.record(if problems.len() % 2 == 0 { &mut first } else { &mut second }))?;
            problems.push(problem);
        }
    }
    problems.iter().try_for_each(Prepared::check_untouched)?;
    gpu.queue().submit([second.finish(), first.finish()]);
    problems.iter().try_for_each(Prepared::check)
}

/// After `reserve` recording makes no buffer that lasts. (wgpu counts handles: one that lives as long as its bind
/// group, for the parameters of a dispatch without immediates, is not seen.)
fn allocates_nothing(shared: &Gpu) -> Outcome {
    let (instance, adapter) = adapter_of(shared, wgpu::MemoryBudgetThresholds::default())?;
    let (device, queue) = device(&adapter, |_, _| ())?;
    let gpu = Gpu::from_wgpu(device, queue, options(shared))?;
    let buffers = || instance.generate_report().expect("a native instance").hub_report().buffers.num_kept_from_user;
    let large = Problem::new(Op::LinearSplit, &[700, 129], Axis::Kept(1), 65, DType::F32).prepare(&gpu)?;
    let record = |problem: &Prepared| -> Result<usize, Failed> {
        let mut encoder = encoder(&gpu);
        let before = buffers();
        problem.record(&mut gpu.record(&mut encoder))?;
        let made = buffers() - before;
        gpu.queue().submit([encoder.finish()]);
        Ok(made)
    };
    let small = Problem::new(Op::LinearSplit, &[3, 129], Axis::Kept(1), 65, DType::F32).prepare(&gpu)?;
    assert!(record(&small)? > 0, "scratch memory was there before, or is not seen");
    gpu.reserve(4 << 20)?;
    for problem in [&large, &large, &small] {
        assert_eq!(record(problem)?, 0);
        problem.check()?;
    }
    Ok(())
}

/// Recording and submitting the forward pass of seven layers makes no buffer of the device but at the first time, as
/// wgpu's own counters say while everything that was recorded is still alive. Without immediates it is one for each
/// dispatch, and those are seen.
fn networks_allocate_nothing(shared: &Gpu) -> Outcome {
    const LAYERS: usize = 7;
    for parameters in [ParameterPassing::Auto, ParameterPassing::Uniform] {
        let (_instance, adapter) = adapter_of(shared, wgpu::MemoryBudgetThresholds::default())?;
        let (device, queue) = device(&adapter, |_, _| ())?;
        let gpu = Gpu::from_wgpu(device, queue, Options::default().parameter_passing(parameters).kind(Kind::Gpu))?;
        let zeros = |shape: &[usize]| gpu.zeros(shape, DType::F32);
        let layers: Vec<_> =
            (0..LAYERS).map(|_| Ok((zeros(&[32, 32])?, zeros(&[32])?))).collect::<Result<_, Failed>>()?;
        let between: Vec<_> = (0..=LAYERS).map(|_| zeros(&[5, 32])).collect::<Result<_, _>>()?;
        let buffers = || gpu.device().get_internal_counters().hal.buffers.read();
        assert!(buffers() >= 2 * LAYERS as isize, "wgpu counts buffers with its feature `counters` only");
        let forward = || -> Result<isize, Failed> {
            let before = buffers();
            let mut encoder = encoder(&gpu);
            let mut ops = gpu.record(&mut encoder);
            for ((v, g), io) in layers.iter().zip(between.windows(2)) {
                ops.linear(Linear::new(&io[0], WeightNorm::new(v, g)), &io[1])?;
            }
            assert_eq!(ops.dispatch_count(), LAYERS as u64);
            drop(ops);
            let recorded = buffers() - before;
            gpu.queue().submit([encoder.finish()]);
            // What the submission holds is not dropped before somebody polls.
            let submitted = buffers() - before;
            gpu.device().poll(wgpu::PollType::wait_indefinitely())?;
            Ok(recorded.max(submitted))
        };
        forward()?;
        let made = [forward()?, forward()?];
        if gpu.report().immediates {
            assert_eq!(made, [0; 2]);
        } else {
            assert!(made.iter().all(|&count| count >= LAYERS as isize), "{made:?}: buffers are made, but not seen");
        }
    }
    Ok(())
}

fn pipelines_are_kept(gpu: &Gpu) -> Outcome {
    const OPS: [Op; 6] =
        [Op::RowNorms, Op::Normalize, Op::NormalizeKnown, Op::NormalizeInPlace, Op::Linear, Op::LinearSplit];
    let gpu = crate::problem::adopted(gpu, |_| ())?;
    let run = || -> Result<usize, Failed> {
        for op in OPS {
            Problem::new(op, &[33, 47], Axis::Kept(0), 3, DType::F32).run(&gpu)?;
        }
        Ok(gpu.pipeline_count())
    };
    let first = run()?;
    assert!(first > 5, "{first} pipelines");
    assert_eq!(run()?, first);
    // Other sizes are no other variants (of 3 and 4 rows of x, which one tile serves).
    for op in OPS {
        Problem::new(op, &[35, 41], Axis::Kept(0), 4, DType::F32).run(&gpu)?;
    }
    assert_eq!(gpu.pipeline_count(), first);
    Ok(())
}

/// An operator reads what the one before it wrote, in one recorder.
fn in_order(gpu: &Gpu) -> Outcome {
    let (outs, ins) = (33, 65);
    let w: Vec<f32> = halves(8, outs * ins).iter().map(|&a| a as f32).collect();
    let tensor = gpu.upload(&w, &[outs, ins])?;
    let v = gpu.zeros(&[outs, ins], DType::F32)?;
    let g = gpu.zeros(&[outs], DType::F32)?;
    let back = gpu.zeros(&[outs, ins], DType::F32)?;
    let mut encoder = encoder(gpu);
    let mut ops = gpu.record(&mut encoder);
    ops.decompose(Decompose::new(&tensor).eps(Eps::None), &v, &g)?;
    ops.normalize_in_place(WeightNorm::unit(&v))?;
    ops.normalize(WeightNorm::new(&v, &g), &back)?;
    drop(ops);
    gpu.queue().submit([encoder.finish()]);
    let w: Vec<f64> = w.into_iter().map(f64::from).collect();
    crate::common::compare(&read(&back)?, &w, Some(DType::F32), |i| 1e-6 * w[i].abs())?;
    Ok(())
}

/// On GL the crate's own submissions hold wgpu's context lock for about a second at most: another thread that waits for
/// it longer than six seconds panics. So no dispatch may take longer.
fn gl_submissions_are_short(gpu: &Gpu, extent: Extent) -> Result<Completion, Failed> {
    if gpu.report().info.backend != wgpu::Backend::Gl {
        return Ok(Completion::ignored_with("not GL"));
    }
    let all = &[(2048, 1024, 1024), (64, 8192, 4096), (9, 2, 1_000_000)][..];
    for &(batch, outs, ins) in extent.choose(all, &[(512, 1024, 1024), (9, 2, 400_000)]) {
        let x = gpu.zeros(&[batch, ins], DType::F32)?;
        let v = gpu.zeros(&[outs, ins], DType::F32)?;
        let y = gpu.zeros(&[batch, outs], DType::F32)?;
        let mut encoder = encoder(gpu);
        let mut ops = gpu.record(&mut encoder);
        ops.linear(Linear::new(&x, &v), &y)?;
        let count = ops.dispatch_count();
        drop(ops);
        drop(encoder);
        // The shorter of two: the first one compiles, and other programs may be in the way.
        let mut each = std::time::Duration::MAX;
        for _ in 0..2 {
            let start = std::time::Instant::now();
            gpu.linear(Linear::new(&x, &v))?.read::<f32>()?;
            each = each.min(start.elapsed() / count as u32);
        }
        println!("gl: {batch} x {outs} x {ins}: {count} dispatches, {each:?} each");
        assert!(count >= 2 && each.as_secs_f32() < 3.0, "{count} dispatches of {each:?}");
    }
    Ok(Completion::Completed)
}
