//! Whose a buffer, a queue or a pipeline cache is: things of another device are typed errors, and nothing of anybody's
//! changes.
use libtest_mimic::Completion;
use weightnorm::{ArgumentError, DType, DeviceError, Eps, Error, Gpu, Tensor, WeightNorm};

use crate::problem::{adapter_of, adopted, device, options};
use crate::{Failed, Needs, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    suite.test("owner::two_handles_of_the_crate", Needs::Nothing, two_handles_of_the_crate);
    suite.test("owner::foreign_buffers", Needs::Nothing, foreign_buffers);
    suite.test("owner::one_device", Needs::Nothing, one_device);
    suite.test("owner::own_buffers", Needs::Nothing, own_buffers);
    suite.test("owner::foreign_queue", Needs::Nothing, foreign_queue);
    suite.test_if_able("owner::foreign_cache", foreign_cache);
}

fn is_foreign<T: std::fmt::Debug>(result: Result<T, Error>, arg: &str) -> Outcome {
    match result {
        Err(Error::Argument(ArgumentError::OtherGpu { arg: named, .. })) if named == arg => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

const NUMBERS: [f32; 4] = [30.0, 40.0, 60.0, 80.0];

/// A tensor in a buffer of another device, in the place of which in `gpu` there may be anything.
fn refuses(gpu: &Gpu, buffer: &wgpu::Buffer) -> Outcome {
    let mine = gpu.upload(&NUMBERS, &[2, 2])?;
    is_foreign(Tensor::from_buffer(gpu, buffer, 0, &[2, 2], DType::F32), "the buffer")?;
    assert_eq!(mine.read::<f32>()?, NUMBERS);
    gpu.check()?;
    Ok(())
}

fn two_handles_of_the_crate(_: &Gpu) -> Outcome {
    let (a, b) = (Gpu::new()?, Gpu::new()?);
    let of_a = a.upload(&[1f32, 2.0, 2.0, 4.0], &[2, 2])?;
    let of_b = b.upload(&NUMBERS, &[2, 2])?;
    is_foreign(Tensor::from_buffer(&b, of_a.buffer()?, 0, &[2, 2], DType::F32), "the buffer")?;
    is_foreign(b.normalize_in_place(WeightNorm::unit(&of_a)), "v")?;
    is_foreign(b.row_norms(WeightNorm::unit(&of_a).eps(Eps::None)), "v")?;
    assert_eq!((of_a.read::<f32>()?, of_b.read::<f32>()?), (vec![1.0, 2.0, 2.0, 4.0], NUMBERS.to_vec()));
    // Neither hears of it as an error of its own.
    a.check()?;
    b.check()?;
    Ok(())
}

/// Between the crate's device and callers' devices of other instances, whose numbers are the same.
fn foreign_buffers(shared: &Gpu) -> Outcome {
    let (first, second) = (adopted(shared, |_| ())?, adopted(shared, |_| ())?);
    let all = [shared, &first, &second];
    for (i, gpu) in all.iter().enumerate() {
        for (j, other) in all.iter().enumerate().filter(|&(j, _)| j != i) {
            let foreign = other.upload(&NUMBERS, &[2, 2])?;
            refuses(gpu, foreign.buffer()?).map_err(|e| format!("{j} to {i}: {:?}", e.message()))?;
            assert_eq!(foreign.read::<f32>()?, NUMBERS);
        }
    }
    // Of a device that no handle has: its handler hears of it, and here catches it.
    let (_instance, adapter) = adapter_of(shared, wgpu::MemoryBudgetThresholds::default())?;
    let (stranger, _queue) = device(&adapter, |_, _| ())?;
    stranger.on_uncaptured_error(std::sync::Arc::new(|_| ()));
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
    let descriptor = wgpu::BufferDescriptor { label: None, size: 1 << 16, usage, mapped_at_creation: false };
    refuses(shared, &stranger.create_buffer(&descriptor))?;
    // And of one that has no handler either: wgpu's panics, which is caught.
    let (stranger, _queue) = device(&adapter, |_, _| ())?;
    refuses(shared, &stranger.create_buffer(&descriptor))
}

/// Handles of one device are one device, also of a device that the crate made; equal numbers alone are not.
fn one_device(shared: &Gpu) -> Outcome {
    let own = adopted(shared, |_| ())?;
    for gpu in [shared, &own] {
        let again = Gpu::from_wgpu(gpu.device().clone(), gpu.queue().clone(), options(shared))?;
        let v = gpu.upload(&NUMBERS, &[2, 2])?;
        assert_eq!(again.row_norms(WeightNorm::unit(&v).eps(Eps::None))?.read::<f32>()?, [50.0, 100.0]);
        let norms = again.zeros(&[2], DType::F32)?;
        crate::device::recorded(gpu, |ops| ops.row_norms(WeightNorm::unit(&v).eps(Eps::None), &norms))?;
        assert_eq!(norms.read::<f32>()?, [50.0, 100.0]);
        Tensor::from_buffer(&again, v.buffer()?, 0, &[2, 2], DType::F32)?;
    }
    // Marked as lost, it is lost for every handle.
    let again = Gpu::from_wgpu(own.device().clone(), own.queue().clone(), options(shared))?;
    own.mark_lost("the owner said so");
    assert!(matches!(again.check(), Err(Error::Device(DeviceError::Lost { .. }))));
    let other = adopted(shared, |_| ())?;
    other.check()?;
    Ok(())
}

/// Whatever state a buffer of the device itself is in, it stays in it.
fn own_buffers(shared: &Gpu) -> Outcome {
    for gpu in [shared, &adopted(shared, |_| ())?] {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
        let make = |mapped_at_creation| {
            let descriptor = wgpu::BufferDescriptor { label: None, size: 16, usage, mapped_at_creation };
            gpu.device().create_buffer(&descriptor)
        };
        let adopt = |buffer: &wgpu::Buffer| Tensor::from_buffer(gpu, buffer, 0, &[2, 2], DType::F32);
        assert_eq!(adopt(&make(false))?.read::<f32>()?, [0.0; 4]);
        let mapped = make(true);
        let tensor: Tensor = {
            let mut view = mapped.get_mapped_range_mut(..).map_err(|e| e.to_string())?;
            let tensor = adopt(&mapped)?;
            view.slice(..).copy_from_slice(&NUMBERS.map(f32::to_le_bytes).concat());
            tensor
        };
        adopt(&mapped)?;
        mapped.unmap();
        assert_eq!(adopt(&mapped)?.read::<f32>()?, NUMBERS);
        assert_eq!(tensor.read::<f32>()?, NUMBERS);
        // Destroyed: the error comes from the operator.
        let gone = make(false);
        gone.destroy();
        let tensor = adopt(&gone)?;
        assert!(matches!(
            gpu.row_norms(WeightNorm::unit(&tensor).eps(Eps::None)),
            Err(Error::Device(DeviceError::Wgpu { .. }))
        ));
        gpu.check()?;
    }
    Ok(())
}

fn foreign_queue(shared: &Gpu) -> Outcome {
    let (_instance, adapter) = adapter_of(shared, wgpu::MemoryBudgetThresholds::default())?;
    let make = || -> Result<_, Failed> {
        let made = device(&adapter, |_, _| ())?;
        made.0.on_uncaptured_error(std::sync::Arc::new(|_| ()));
        Ok(made)
    };
    let ((first, own), (_second, of_another)) = (make()?, make()?);
    let adopt = |queue: &wgpu::Queue| Gpu::from_wgpu(first.clone(), queue.clone(), options(shared));
    is_foreign(adopt(&of_another), "the queue")?;
    is_foreign(adopt(shared.queue()), "the queue")?;
    is_foreign(adopt(adopted(shared, |_| ())?.queue()), "the queue")?;
    let gpu = adopt(&own)?;
    let v = gpu.upload(&NUMBERS, &[2, 2])?;
    assert_eq!(gpu.row_norms(WeightNorm::unit(&v).eps(Eps::None))?.read::<f32>()?, [50.0, 100.0]);
    Ok(())
}

#[expect(unsafe_code, reason = "wgpu's constructor is unsafe for the sake of data from elsewhere; here there are none")]
fn foreign_cache(shared: &Gpu) -> Result<Completion, Failed> {
    let (_instance, adapter) = adapter_of(shared, wgpu::MemoryBudgetThresholds::default())?;
    let (_other_instance, other_adapter) = adapter_of(shared, wgpu::MemoryBudgetThresholds::default())?;
    let feature = wgpu::Features::PIPELINE_CACHE;
    if !adapter.features().contains(feature) {
        return Ok(Completion::ignored_with("this adapter has no pipeline caches"));
    }
    let descriptor = wgpu::PipelineCacheDescriptor { label: None, data: None, fallback: true };
    // SAFETY: there are no data.
    let new_cache = |device: &wgpu::Device| unsafe { device.create_pipeline_cache(&descriptor) };
    let make = |adapter| device(adapter, |features, _| *features |= feature);
    let ((first, queue), (second, _), (elsewhere, _)) = (make(&adapter)?, make(&adapter)?, make(&other_adapter)?);
    let adopt = |cache| Gpu::from_wgpu(first.clone(), queue.clone(), options(shared).pipeline_cache(cache));
    // wgpu panics on one of another instance, whose number this one lacks.
    is_foreign(adopt(new_cache(&elsewhere)), "the pipeline cache")?;
    is_foreign(adopt(new_cache(&second)), "the pipeline cache")?;
    let gpu = adopt(new_cache(&first))?;
    let v = gpu.upload(&NUMBERS, &[2, 2])?;
    assert_eq!(gpu.row_norms(WeightNorm::unit(&v).eps(Eps::None))?.read::<f32>()?, [50.0, 100.0]);
    Ok(Completion::Completed)
}
