//! Profiles: every dispatch is timed, the results are those of an ordinary recording, the roof is one. And a pipeline
//! cache of the caller's.
use libtest_mimic::Completion;
use weightnorm::{
    ArgumentError, Axis, Cost, DType, DeviceError, Eps, Error, Gpu, Gradients, Linear, LinearBackward, Options,
    Recorder, Tensor, Timing, WeightNorm,
};

use crate::problem::{adapter_of, device, halves, options};
use crate::{Failed, Needs, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    suite.test_if_able("profile::timestamps", |gpu| match gpu.timing() {
        Timing::Timestamps => clocked(gpu, Timing::Timestamps).map(|()| Completion::Completed),
        Timing::Wall => Ok(Completion::ignored_with("this adapter has no timestamps")),
    });
    suite.test("profile::wall_clock", Needs::Nothing, |gpu| clocked(gpu, Timing::Wall));
    suite.test("profile::many_dispatches", Needs::Nothing, many_dispatches);
    suite.test("profile::own_dispatches", Needs::Nothing, own_dispatches);
    suite.test("profile::lacking_timestamps", Needs::Nothing, lacking_timestamps);
    suite.test("profile::roof", Needs::Nothing, roof);
    suite.test("profile::awaited", Needs::Nothing, awaited);
    suite.test_if_able("profile::pipeline_cache", pipeline_cache);
    suite.test("profile::pipeline_cache_is_refused", Needs::Nothing, pipeline_cache_is_refused);
}

/// A training step of one layer and the norms of a tensor in the middle: operators of one dispatch and of several.
struct Step {
    x: Tensor,
    v: Tensor,
    g: Tensor,
    outputs: Vec<Tensor>,
}

impl Step {
    fn new(gpu: &Gpu) -> Result<Step, Failed> {
        let data = |seed, count| halves(seed, count).into_iter().map(|a| a as f32).collect::<Vec<_>>();
        let shapes: [&[usize]; 8] = [&[33, 65], &[65], &[33, 65], &[33, 70], &[65, 70], &[65], &[65], &[70]];
        Ok(Step {
            x: gpu.upload(&data(1, 33 * 70), &[33, 70])?,
            v: gpu.upload(&data(2, 65 * 70), &[65, 70])?,
            g: gpu.upload(&data(3, 65), &[65])?,
            outputs: shapes.iter().map(|shape| gpu.zeros(shape, DType::F32)).collect::<Result<_, _>>()?,
        })
    }

    fn record(&self, ops: &mut Recorder<'_, '_>) -> Result<(), Error> {
        let [y, norms, u, dx, dv, dg, dbias, columns] = &self.outputs[..] else { unreachable!("eight of them") };
        let weight = WeightNorm::new(&self.v, &self.g);
        ops.linear(Linear::new(&self.x, weight).bias(&self.g).norms(norms).u(u), y)?;
        let wanted = Gradients::default().dx(dx).dv(dv).dg(dg).dbias(dbias);
        ops.linear_backward(LinearBackward::new(&self.x, weight.norms(norms), y).u(u), &wanted)?;
        ops.row_norms(WeightNorm::unit(&self.v).axis(Axis::Kept(1)), columns)
    }

    fn bits(&self) -> Result<Vec<u32>, Failed> {
        let mut bits = vec![];
        for output in &self.outputs {
            bits.extend(output.read::<f32>()?.into_iter().map(f32::to_bits));
        }
        Ok(bits)
    }
}

fn clocked(gpu: &Gpu, clock: Timing) -> Outcome {
    let (plain, profiled) = (Step::new(gpu)?, Step::new(gpu)?);
    let mut encoder = crate::problem::encoder(gpu);
    let mut ops = gpu.record(&mut encoder);
    plain.record(&mut ops)?;
    let count = ops.dispatch_count();
    drop(ops);
    gpu.queue().submit([encoder.finish()]);
    let expected = plain.bits()?;
    assert!(expected.iter().any(|&bits| bits != 0));
    gpu.roofline()?;

    let start = std::time::Instant::now();
    let mut counted = 0;
    let profile = gpu.profile_by(clock, |ops| {
        profiled.record(ops)?;
        counted = ops.dispatch_count();
        Ok(())
    })?;
    let elapsed = start.elapsed().as_secs_f64();
    assert!(profiled.bits()? == expected, "profiling changes the results");
    assert_eq!((profile.timing, profile.dispatch_count() as u64, counted), (clock, count, count));
    let names: Vec<&str> = profile.operators.iter().map(|o| o.name.as_str()).collect();
    assert_eq!(names, ["linear", "linear_backward", "row_norms"]);
    for dispatch in profile.operators.iter().flat_map(|o| &o.dispatches) {
        assert!(dispatch.label.starts_with("weightnorm."), "{dispatch:?}");
        assert!(dispatch.seconds > 0.0, "{dispatch:?}");
    }
    let sum = profile.seconds();
    assert!(sum <= elapsed, "{sum} s of {elapsed} s");
    let table = profile.to_string();
    for part in ["linear: linear_", "gradient_", "row_norms", "% of roof"] {
        assert!(table.contains(part), "{part} is missing:\n{table}");
    }
    Ok(())
}

/// More dispatches than a query set has room for.
fn many_dispatches(gpu: &Gpu) -> Outcome {
    let v = gpu.upload(&[3f32, 4.0], &[1, 2])?;
    let norms = gpu.zeros(&[1], DType::F32)?;
    let profile =
        gpu.profile(|ops| (0..2050).try_for_each(|_| ops.row_norms(WeightNorm::unit(&v).eps(Eps::None), &norms)))?;
    assert_eq!(profile.dispatch_count(), 2050);
    assert!(profile.operators.iter().all(|o| o.seconds() > 0.0));
    assert_eq!(norms.read::<f32>()?, [5.0]);
    Ok(())
}

/// A dispatch of the caller's among the operators, profiled and not.
fn own_dispatches(gpu: &Gpu) -> Outcome {
    let own = crate::recording::Increment::new(gpu)?;
    let norm = gpu.zeros(&[1], DType::F32)?;
    let work = Cost { read: 4, written: 4, operations: 1 };
    let record = |ops: &mut Recorder<'_, '_>| {
        ops.custom("increment", work, |pass| own.record(pass))?;
        ops.row_norms(WeightNorm::unit(&own.counter).axis(Axis::Whole).eps(Eps::None), &norm)?;
        assert_eq!(ops.dispatch_count(), 2);
        Ok(())
    };
    let profile = gpu.profile(record)?;
    let operators: Vec<(&str, Cost)> = profile.operators.iter().map(|o| (o.name.as_str(), o.cost)).collect();
    assert_eq!(operators, [("increment", work), ("row_norms", Cost { read: 4, written: 4, operations: 2 })]);
    assert_eq!(norm.read::<f32>()?, [2.0]);
    let mut encoder = crate::problem::encoder(gpu);
    record(&mut gpu.record(&mut encoder))?;
    gpu.queue().submit([encoder.finish()]);
    assert_eq!(norm.read::<f32>()?, [3.0]);
    Ok(())
}

fn lacking_timestamps(gpu: &Gpu) -> Outcome {
    let (_instance, adapter) = adapter_of(gpu, wgpu::MemoryBudgetThresholds::default())?;
    let (device, queue) = device(&adapter, |features, _| features.remove(wgpu::Features::TIMESTAMP_QUERY))?;
    let gpu = Gpu::from_wgpu(device, queue, options(gpu))?;
    assert_eq!(gpu.timing(), Timing::Wall);
    let refused = gpu.profile_by(Timing::Timestamps, |_| Ok(()));
    assert!(
        matches!(&refused, Err(Error::Device(DeviceError::Unsupported { what })) if what == "timestamps"),
        "{refused:?}"
    );
    let (v, norms) = (gpu.upload(&[3f32, 4.0], &[1, 2])?, gpu.zeros(&[1], DType::F32)?);
    let profile = gpu.profile(|ops| {
        ops.row_norms(WeightNorm::unit(&v).eps(Eps::None), &norms)?;
        ops.row_norms(WeightNorm::unit(&v).axis(Axis::Whole).eps(Eps::None), &norms)
    })?;
    assert_eq!(profile.timing, Timing::Wall);
    assert!(profile.dispatch_count() == 2 && profile.operators.iter().all(|o| o.seconds() > 0.0));
    Ok(())
}

/// Measured once, and not beyond what any machine of this time can do.
fn roof(gpu: &Gpu) -> Outcome {
    let roof = gpu.roofline()?;
    assert_eq!(gpu.roofline()?, roof);
    for (what, rate, most) in
        [("copy", roof.copy, 1e13), ("read", roof.read, 1e13), ("multiply_add", roof.multiply_add, 1e15)]
    {
        assert!(rate > 1e7 && rate < most, "{what}: {rate}");
    }
    let moved = Cost { read: 3_000_000, written: 1_000_000, operations: 0 };
    let expected = 2e6 / roof.copy + 2e6 / roof.read;
    assert!((roof.seconds(&moved) - expected).abs() <= 1e-9 * expected);
    let done = Cost { read: 4, written: 4, operations: 1_000_000_000_000 };
    assert!((roof.seconds(&done) * roof.multiply_add - 1e12).abs() <= 1.0);
    Ok(())
}

/// Without blocking, and without another poller.
fn awaited(gpu: &Gpu) -> Outcome {
    let step = Step::new(gpu)?;
    let profile = pollster::block_on(gpu.profile_async(gpu.timing(), |ops| step.record(ops)))?;
    assert_eq!(profile.operators.len(), 3);
    assert!(profile.operators.iter().all(|o| o.seconds() > 0.0));
    // An error of the recording comes back, and nothing is run.
    let failed = gpu.profile(|ops| ops.linear(Linear::new(&step.x, &step.g), &step.outputs[0]));
    assert!(matches!(failed, Err(Error::Argument(ArgumentError::Shape { .. }))), "{failed:?}");
    Ok(())
}

/// A cache that is filled, and one made of its data: the same results. That it reaches the driver shows where it
/// belongs to another device: then no pipeline is built. (lavapipe keeps nothing in a cache, so its data prove
/// nothing.)
#[expect(unsafe_code, reason = "wgpu's constructor is unsafe for the sake of data from elsewhere; here there are none")]
fn pipeline_cache(shared: &Gpu) -> Result<Completion, Failed> {
    let (_instance, adapter) = adapter_of(shared, wgpu::MemoryBudgetThresholds::default())?;
    if !adapter.features().contains(wgpu::Features::PIPELINE_CACHE) {
        return Ok(Completion::ignored_with("this adapter has no pipeline caches"));
    }
    let (device, queue) = device(&adapter, |features, _| *features |= wgpu::Features::PIPELINE_CACHE)?;
    let new_cache = |data| {
        let descriptor = wgpu::PipelineCacheDescriptor { label: None, data, fallback: true };
        // SAFETY: the data, if any, are what a cache of this device gave back.
        unsafe { device.create_pipeline_cache(&descriptor) }
    };
    let cache = new_cache(None);
    let run = |cache: &wgpu::PipelineCache| -> Result<Vec<u32>, Failed> {
        let gpu = Gpu::from_wgpu(device.clone(), queue.clone(), options(shared).pipeline_cache(cache.clone()))?;
        let step = Step::new(&gpu)?;
        let mut encoder = crate::problem::encoder(&gpu);
        step.record(&mut gpu.record(&mut encoder))?;
        gpu.queue().submit([encoder.finish()]);
        step.bits()
    };
    let bits = run(&cache)?;
    let full = cache.get_data().ok_or("no data of a used cache")?;
    assert!(run(&new_cache(Some(&full)))? == bits, "other results with a cache that has everything");
    Ok(Completion::Completed)
}

#[expect(unsafe_code, reason = "as above")]
fn pipeline_cache_is_refused(shared: &Gpu) -> Outcome {
    let (_instance, adapter) = adapter_of(shared, wgpu::MemoryBudgetThresholds::default())?;
    if !adapter.features().contains(wgpu::Features::PIPELINE_CACHE) {
        return Ok(()); // Then there is none to refuse.
    }
    let (with, _) = device(&adapter, |features, _| *features |= wgpu::Features::PIPELINE_CACHE)?;
    let descriptor = wgpu::PipelineCacheDescriptor { label: None, data: None, fallback: true };
    // SAFETY: there are no data.
    let cache = unsafe { with.create_pipeline_cache(&descriptor) };
    let (device, queue) = device(&adapter, |features, _| features.remove(wgpu::Features::PIPELINE_CACHE))?;
    let options = Options::default().pipeline_cache(cache);
    let adopted = Gpu::from_wgpu(device, queue, options.clone()).map(|_| ());
    assert!(
        matches!(&adopted, Err(Error::Device(DeviceError::Unsupported { what })) if what == "pipeline caches"),
        "{adopted:?}"
    );
    let made = pollster::block_on(Gpu::new_async(options)).map(|_| ());
    assert!(matches!(made, Err(Error::Device(DeviceError::Unsupported { .. }))), "{made:?}");
    Ok(())
}
