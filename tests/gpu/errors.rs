//! Errors that need a real device: nothing recorded, out of memory, a lost device, errors of wgpu itself.
use std::task::{Context, Poll, Waker};

use libtest_mimic::Completion;
use weightnorm::{Axis, DType, Decompose, DeviceError, Eps, Error, Gpu, Linear, WeightNorm};

use crate::problem::{Op, Problem, adapter_of, adopted, device, encoder, options};
use crate::{Failed, Needs, Outcome, Suite};
use crate::{misuse, ranges};

pub fn register(suite: &mut Suite) {
    suite.test("errors::misuse", Needs::Nothing, |gpu| Ok(misuse::is_refused(gpu, &adopted(gpu, |_| ())?)?));
    suite.test("errors::ranges", Needs::Nothing, |gpu| Ok(ranges::are_refused(gpu)?));
    suite.test("errors::tensors", Needs::Nothing, |gpu| Ok(misuse::tensors_are_refused(gpu)?));
    suite.test_if_able("errors::out_of_memory", out_of_memory);
    suite.test("errors::lost_own", Needs::Nothing, lost_own);
    suite.test("errors::lost_adopted", Needs::Nothing, lost_adopted);
    suite.test("errors::lost_while_reading", Needs::Nothing, lost_while_reading);
    suite.test("errors::uncaptured", Needs::Nothing, uncaptured);
}

/// wgpu refuses memory past a part of the budget that the driver names, before it asks for any. The driver may count
/// what others use: the part is the smallest that leaves room for a device.
fn out_of_memory(gpu: &Gpu) -> Result<Completion, Failed> {
    if gpu.report().info.backend == wgpu::Backend::Gl {
        return Ok(Completion::ignored_with("GL names no memory budget"));
    }
    for part in [1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90] {
        let thresholds = wgpu::MemoryBudgetThresholds { for_resource_creation: Some(part), for_device_loss: None };
        let (_instance, adapter) = adapter_of(gpu, thresholds)?;
        let Ok((device, queue)) = device(&adapter, |_, _| ()) else { continue };
        let Ok(gpu) = Gpu::from_wgpu(device, queue, options(gpu)) else { continue };
        let Ok(v) = gpu.upload(&[1f32; 64], &[64]) else { continue };
        let largest = (gpu.report().limits.max_buffer_size / 16 * 16).min(1 << 30);
        let Err(error) = gpu.reserve(largest) else {
            return Ok(Completion::ignored_with("this driver names no memory budget"));
        };
        let is_memory = |e: &Error| matches!(e, Error::Device(DeviceError::OutOfMemory { .. }));
        assert!(is_memory(&error), "reserve: {error:?}");
        let elements = (largest / 4).min(u64::from(u32::MAX)) as usize;
        let zeros = gpu.zeros(&[elements], DType::F32).map(drop);
        assert!(zeros.as_ref().is_err_and(is_memory), "zeros: {zeros:?}");
        // The device works on.
        gpu.row_norms(WeightNorm::unit(&v).axis(Axis::Whole).eps(Eps::None))?;
        return Ok(Completion::Completed);
    }
    Ok(Completion::ignored_with("no device fits any part of this driver's memory budget"))
}

type Call<'a> = (&'static str, Box<dyn Fn() -> Result<(), Error> + 'a>);

/// Every call that touches the device, by name.
fn every_call(gpu: &Gpu) -> Result<Vec<Call<'_>>, Error> {
    let (x, v) = (gpu.upload(&[1f32; 15], &[3, 5])?, gpu.upload(&[1f32; 20], &[4, 5])?);
    let (y, w, g) = (gpu.zeros(&[3, 4], DType::F32)?, gpu.zeros(&[4, 5], DType::F32)?, gpu.upload(&[1f32; 4], &[4])?);
    let eps = Eps::default();
    let (v2, v3, v4, v5, v6, g2) = (v.clone(), v.clone(), v.clone(), v.clone(), v.clone(), g.clone());
    let tensor = v.clone();
    let recorded = move || {
        let mut encoder = encoder(gpu);
        let mut ops = gpu.record(&mut encoder);
        let all = [
            ops.row_norms(WeightNorm::unit(&v6).eps(eps), &g2),
            ops.normalize(WeightNorm::unit(&v6), &w),
            ops.normalize_in_place(WeightNorm::unit(&w)),
            ops.decompose(Decompose::new(&v6).eps(eps), &w, &g2),
            ops.linear(Linear::new(&x, WeightNorm::unit(&v6)), &y),
            ops.linear(Linear::new(&x, WeightNorm::unit(&v6).axis(Axis::Kept(1))), &y),
            ops.linear(Linear::new(&x, &v6), &y),
        ];
        drop(ops);
        gpu.queue().submit([encoder.finish()]);
        all.into_iter().collect()
    };
    let x = gpu.upload(&[1f32; 15], &[3, 5])?;
    Ok(vec![
        ("upload", Box::new(move || gpu.upload(&[1f32], &[1]).map(drop))),
        ("zeros", Box::new(move || gpu.zeros(&[1], DType::F16).map(drop))),
        ("reserve", Box::new(move || gpu.reserve(1 << 20))),
        ("row_norms", Box::new(move || gpu.row_norms(WeightNorm::unit(&v).eps(eps)).map(drop))),
        ("normalize", Box::new(move || gpu.normalize(WeightNorm::new(&v2, &g)).map(drop))),
        ("normalize_in_place", Box::new(move || gpu.normalize_in_place(WeightNorm::unit(&v3)))),
        ("decompose", Box::new(move || gpu.decompose(Decompose::new(&v4).axis(Axis::Whole).eps(eps)).map(drop))),
        ("linear", Box::new(move || gpu.linear(Linear::new(&x, WeightNorm::unit(&v5))).map(drop))),
        ("recorded", Box::new(recorded)),
        (
            "read",
            Box::new({
                let tensor = tensor.clone();
                move || tensor.read::<f32>().map(drop)
            }),
        ),
        ("read_async", Box::new(move || pollster::block_on(tensor.read_async::<f32>()).map(drop))),
    ])
}

/// A device that the crate made: every call says that it is lost, the first one too.
fn lost_own(_: &Gpu) -> Outcome {
    for first in 0..11 {
        let gpu = Gpu::new()?;
        let calls = every_call(&gpu)?;
        assert_eq!(calls.len(), 11);
        gpu.device().destroy();
        for i in 0..calls.len() {
            let (name, call) = &calls[(first + i) % calls.len()];
            match call() {
                Err(Error::Device(DeviceError::Lost { .. })) => {}
                other => return Err(format!("{name}, call {i} on a lost device: {other:?}").into()),
            }
        }
        assert!(matches!(gpu.check(), Err(Error::Device(DeviceError::Lost { .. }))));
    }
    Ok(())
}

/// An adopted device: nothing panics, readbacks report it, and after `mark_lost` every call does.
fn lost_adopted(shared: &Gpu) -> Outcome {
    let gpu = adopted(shared, |_| ())?;
    let calls = every_call(&gpu)?;
    gpu.device().destroy();
    for (name, call) in &calls {
        match call() {
            Err(Error::Device(DeviceError::Lost { .. })) => {}
            Ok(()) if !name.starts_with("read") => {}
            other => return Err(format!("{name} on a lost device: {other:?}").into()),
        }
    }
    gpu.mark_lost("the owner said so");
    for (name, call) in &calls {
        match call() {
            Err(Error::Device(DeviceError::Lost { reason })) if reason == "the owner said so" => {}
            other => return Err(format!("{name} on a device marked as lost: {other:?}").into()),
        }
    }
    Ok(())
}

/// The device goes while a readback waits for it: the readback ends, with the data or with the error.
fn lost_while_reading(shared: &Gpu) -> Outcome {
    for gpu in [Gpu::new()?, adopted(shared, |_| ())?] {
        let problem = Problem::new(Op::Linear, &[512, 512], Axis::Kept(0), 512, DType::F32).prepare(&gpu)?;
        let mut encoder = encoder(&gpu);
        problem.record(&mut gpu.record(&mut encoder))?;
        let tensor = gpu.upload(&vec![1f32; 1 << 20], &[1 << 20])?;
        gpu.queue().submit([encoder.finish()]);
        let mut reading = Box::pin(tensor.read_async::<f32>());
        // Started, not finished.
        let started = reading.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        gpu.device().destroy();
        let result = match started {
            Poll::Ready(result) => result,
            Poll::Pending => pollster::block_on(reading),
        };
        match result {
            Ok(data) => assert!(data.iter().all(|&a| a == 1.0), "wrong data from a lost device"),
            Err(Error::Device(DeviceError::Lost { .. })) => {}
            Err(other) => return Err(other.into()),
        }
    }
    Ok(())
}

/// What the handler of a device of ours hears reaches the next call, once.
fn uncaptured(_: &Gpu) -> Outcome {
    let gpu = Gpu::new()?;
    let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::MAP_WRITE;
    let descriptor = wgpu::BufferDescriptor { label: Some("wrong"), size: 4, usage, mapped_at_creation: false };
    drop(gpu.device().create_buffer(&descriptor));
    match gpu.zeros(&[1], DType::F32) {
        Err(Error::Device(DeviceError::Wgpu { message })) if message.contains("wrong") => {}
        other => return Err(format!("{other:?}").into()),
    }
    gpu.zeros(&[1], DType::F32)?;
    // From another thread, and an error of a submission.
    std::thread::scope(|scope| scope.spawn(|| drop(gpu.device().create_buffer(&descriptor))).join().expect("no panic"));
    assert!(matches!(gpu.check(), Err(Error::Device(DeviceError::Wgpu { .. }))));
    gpu.check()?;
    Ok(())
}
