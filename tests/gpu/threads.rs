//! Many threads on one device: recording, submitting, reading back, dropping what is still in flight; each result with
//! the bits that it has on one thread. And the device destroyed beneath them.
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use weightnorm::{
    Adam, Axis, DType, DataDependentInit, DeviceError, Eps, Error, Gpu, Gradients, Linear, LinearBackward,
    MeanOnlyBatchNorm, NormalizeBackward, Parameter, SetMember, Tensor, WeightNorm,
};

use crate::problem::{adopted, encoder, halves, options};
use crate::{Failed, Needs, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    let agree = |cases, seconds| move |gpu: &Gpu| agree(gpu, cases, Duration::from_secs(seconds));
    suite.test("threads::agree", Needs::NotGl, agree(&CASES[..3], 3));
    suite.test("threads::agree_for_a_minute", Needs::NotGlAndTime, agree(&CASES, 60));
    suite.test("threads::own_device_destroyed", Needs::NotGl, own_device_destroyed);
    suite.test("threads::adopted_device_destroyed", Needs::NotGl, adopted_device_destroyed);
}

const THREADS: usize = 8;
/// Longer than any of this can take: a hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// A layer whose operators go through all of the scratch memory.
#[derive(Clone, Copy)]
struct Case {
    /// batch, in_features, out_features
    sizes: [usize; 3],
    axis: Axis,
    eps: Eps,
    dtype: DType,
}

/// Of different sizes, so that scratch memory grows while others use it. The first few need few pipelines.
const CASES: [Case; 6] = [
    Case { sizes: [9, 65, 31], axis: Axis::Kept(1), eps: Eps::Clamp(1e-12), dtype: DType::F32 },
    Case { sizes: [130, 33, 21], axis: Axis::Kept(0), eps: Eps::After(1e-6), dtype: DType::F32 },
    Case { sizes: [6, 96, 80], axis: Axis::Kept(0), eps: Eps::Clamp(1e-12), dtype: DType::F16 },
    Case { sizes: [7, 40, 24], axis: Axis::Whole, eps: Eps::After(1e-6), dtype: DType::F32 },
    Case { sizes: [300, 20, 36], axis: Axis::Kept(1), eps: Eps::After(1e-6), dtype: DType::F32 },
    Case { sizes: [5, 64, 48], axis: Axis::Kept(0), eps: Eps::InsideSqrt(1e-12), dtype: DType::Bf16 },
];

/// The words of every output.
type Words = Vec<Vec<u32>>;

/// A case recorded and submitted. Its inputs are gone already, while the device still reads them.
struct Submitted(Vec<Tensor>);

impl Case {
    /// Forward and backward pass, the gradients of the weight alone, a set, both initializations, batch normalization,
    /// and a step of Adam with the projection of v.
    fn submit(&self, gpu: &Gpu) -> Result<Submitted, Error> {
        let Case { sizes: [batch, ins, outs], axis, eps, dtype } = *self;
        let upload = |seed: u64, shape: &[usize], dtype: DType| {
            let data = halves(seed, shape.iter().product());
            match dtype {
                DType::Bf16 => gpu.upload(&data.iter().map(|&a| half::bf16::from_f64(a)).collect::<Vec<_>>(), shape),
                DType::F16 => gpu.upload(&data.iter().map(|&a| half::f16::from_f64(a)).collect::<Vec<_>>(), shape),
                DType::F32 => gpu.upload(&data.iter().map(|&a| a as f32).collect::<Vec<_>>(), shape),
            }
        };
        let zeros = |shape: &[usize], dtype| gpu.zeros(shape, dtype);
        let kept = match axis {
            Axis::Kept(k) => [outs, ins][k],
            Axis::Whole => 1,
        };
        let (x, dy) = (upload(1, &[batch, ins], dtype)?, upload(2, &[batch, outs], dtype)?);
        let (v, dw) = (upload(3, &[outs, ins], dtype)?, upload(4, &[outs, ins], dtype)?);
        let (g, bias) = (upload(5, &[kept], DType::F32)?, upload(6, &[outs], DType::F32)?);
        let stepped = upload(3, &[outs, ins], dtype)?;
        let moments = gpu.adam_state(&stepped, None)?;
        let (y, u, norms) =
            (zeros(&[batch, outs], dtype)?, zeros(&[batch, outs], DType::F32)?, zeros(&[kept], DType::F32)?);
        let (dx, dv, dg) = (zeros(&[batch, ins], dtype)?, zeros(&[outs, ins], dtype)?, zeros(&[kept], DType::F32)?);
        let (dv_of_dw, dg_of_dw) = (zeros(&[outs, ins], dtype)?, zeros(&[kept], DType::F32)?);
        let (dbias, centered) = (zeros(&[outs], DType::F32)?, zeros(&[batch, outs], dtype)?);
        let (first_g, first_bias) = (zeros(&[outs], DType::F32)?, zeros(&[outs], DType::F32)?);
        let weight = WeightNorm::new(&v, &g).axis(axis).eps(eps);
        let (w_of_set, dv_of_set, dg_of_set) =
            (zeros(&[outs, ins], dtype)?, zeros(&[outs, ins], dtype)?, zeros(&[kept], DType::F32)?);
        let member = SetMember::new(weight).w(&w_of_set).dw(&dw).dv(&dv_of_set).dg(&dg_of_set);
        let set = gpu.weight_set(&[member])?;

        let mut encoder = encoder(gpu);
        let mut ops = gpu.record(&mut encoder);
        let saved_u = (axis != Axis::Kept(1)).then_some(&u);
        ops.linear(Linear::new(&x, weight).bias(&bias).norms(&norms).u(saved_u), &y)?;
        let gradients = Gradients::default().dx(&dx).dv(&dv).dg(&dg).dbias(&dbias);
        ops.linear_backward(LinearBackward::new(&x, weight, &dy).u(&u), &gradients)?;
        ops.normalize_backward(NormalizeBackward::new(&dw, weight), &Gradients::default().dv(&dv_of_dw).dg(&dg_of_dw))?;
        ops.normalize_set(&set)?;
        ops.normalize_backward_set(&set, false)?;
        ops.data_dependent_init(DataDependentInit::new(&x, &v).eps(eps), &first_g, &first_bias)?;
        ops.mean_only_batch_norm(MeanOnlyBatchNorm::new(&y).bias(&bias), &centered)?;
        ops.adam_step(Parameter::new(&stepped, &dv).normalize_direction(axis, eps), &moments, 1, &Adam::new(0.01))?;
        drop(ops);
        gpu.queue().submit([encoder.finish()]);
        let outputs = vec![
            y,
            u,
            norms,
            dx,
            dv,
            dg,
            dv_of_dw,
            dg_of_dw,
            w_of_set,
            dv_of_set,
            dg_of_set,
            dbias,
            centered,
            first_g,
            first_bias,
            stepped,
            moments.v.first,
        ];
        Ok(Submitted(outputs))
    }
}

impl Submitted {
    fn read(&self, gpu: &Gpu) -> Result<Words, Error> {
        let words = |tensor: &Tensor| {
            let count = (tensor.len() * tensor.dtype().size() as usize).div_ceil(4);
            let floats: Vec<f32> = Tensor::from_buffer(gpu, tensor.buffer()?, 0, &[count], DType::F32)?.read()?;
            Ok(floats.into_iter().map(f32::to_bits).collect())
        };
        self.0.iter().map(words).collect()
    }
}

/// Runs `work` on so many threads and waits for all of them: what each came back with.
fn together<T: Send + 'static>(
    count: usize,
    work: impl Fn(usize) -> T + Send + Sync + 'static,
    meanwhile: impl FnOnce(),
) -> Result<Vec<T>, Failed> {
    let (sender, receiver) = mpsc::channel();
    let work = Arc::new(work);
    for thread in 0..count {
        let (work, sender) = (work.clone(), sender.clone());
        std::thread::spawn(move || drop(sender.send(work(thread))));
    }
    drop(sender);
    meanwhile();
    let ended = |place: usize| match receiver.recv_timeout(PATIENCE) {
        Ok(result) => Ok(result),
        Err(mpsc::RecvTimeoutError::Timeout) => Err(format!("{} threads hang", count - place).into()),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(format!("{} threads panicked", count - place).into()),
    };
    (0..count).map(ended).collect()
}

/// Every thread goes through all cases again and again: half of them with one `Gpu`, the other half with clones of it,
/// and the last with another `Gpu` on the same device.
fn agree(shared: &Gpu, cases: &'static [Case], time: Duration) -> Outcome {
    // Neither pipelines nor scratch memory are there.
    let gpu = Arc::new(adopted(shared, |_| ())?);
    let apart = Gpu::from_wgpu(gpu.device().clone(), gpu.queue().clone(), options(shared))?;
    let expected = cases.iter().map(|case| case.submit(&apart)?.read(&apart)).collect::<Result<Vec<Words>, _>>()?;
    // The control: the cases differ, and every output but u, which kept axis 1 lacks, has been written.
    for (i, words) in expected.iter().enumerate() {
        assert!(words.iter().enumerate().all(|(o, w)| o == 1 || w.iter().any(|&bits| bits << 1 != 0)), "case {i}");
        assert!(expected[..i].iter().all(|other| other != words), "case {i}");
    }
    let end = Instant::now() + time;
    let rounds = Arc::new(AtomicUsize::new(0));
    let counted = rounds.clone();
    let work = move |thread: usize| -> Result<(), String> {
        let clone = Gpu::clone(&gpu);
        let gpu: &Gpu = match thread {
            0..4 => &gpu,
            4..7 => &clone,
            _ => &apart,
        };
        for round in 0.. {
            let place = (round + thread) % cases.len();
            let submitted = cases[place].submit(gpu).map_err(|e| e.to_string())?;
            // Some are gone while in flight.
            if !(round + thread).is_multiple_of(4) {
                let words = submitted.read(gpu).map_err(|e| e.to_string())?;
                if let Some(output) = (0..words.len()).find(|&o| words[o] != expected[place][o]) {
                    return Err(format!("thread {thread}, round {round}: output {output} of case {place} differs"));
                }
            }
            counted.fetch_add(1, Ordering::Relaxed);
            // Every case at least twice, however slow the device.
            if round > 2 * cases.len() && Instant::now() >= end {
                break;
            }
        }
        Ok(())
    };
    let results = together(THREADS, work, || std::thread::sleep(time))?;
    results.into_iter().collect::<Result<(), String>>()?;
    println!("threads: {} rounds", rounds.load(Ordering::Relaxed));
    Ok(())
}

/// Eight threads work until `gpu` is destroyed. None panics or hangs, what was read is right, and each comes back with
/// the error that ended it.
fn destroyed(
    gpu: &Gpu,
    after: Duration,
    work: impl Fn(&Gpu, usize) -> Result<(), Error> + Send + Sync + 'static,
) -> Result<Vec<Error>, Failed> {
    work(gpu, 0)?;
    let destroyed = Arc::new(AtomicBool::new(false));
    let (here, there) = (gpu.clone(), destroyed.clone());
    let until_it_fails = move |thread: usize| -> Result<Error, String> {
        for round in 0.. {
            let late = there.load(Ordering::SeqCst);
            match work(&here, thread + round) {
                Ok(()) if late => return Err(format!("thread {thread} works on a destroyed device")),
                Ok(()) => {}
                Err(error) => return Ok(error),
            }
        }
        unreachable!("it goes on without end")
    };
    let results = together(THREADS, until_it_fails, || {
        std::thread::sleep(after);
        gpu.device().destroy();
        destroyed.store(true, Ordering::SeqCst);
    })?;
    Ok(results.into_iter().collect::<Result<_, String>>()?)
}

/// A device that the crate made: every thread hears that it is lost.
fn own_device_destroyed(shared: &Gpu) -> Outcome {
    for milliseconds in [1, 5, 20, 50, 90] {
        let work = |gpu: &Gpu, round: usize| {
            let v = gpu.upload(&[3f32, 4.0], &[1, 2])?;
            if round.is_multiple_of(2) {
                // The caller's own submission.
                let norms = gpu.zeros(&[1], DType::F32)?;
                let mut encoder = encoder(gpu);
                gpu.record(&mut encoder).row_norms(WeightNorm::unit(&v).eps(Eps::None), &norms)?;
                gpu.queue().submit([encoder.finish()]);
                assert_eq!(norms.read::<f32>()?, [5.0], "wrong norm from a device on its way out");
            } else {
                let y = gpu.linear(Linear::new(&v, &v))?;
                assert_eq!(y.read::<f32>()?, [25.0], "wrong product from a device on its way out");
            }
            Ok(())
        };
        let gpu = pollster::block_on(Gpu::new_async(options(shared)))?;
        for error in destroyed(&gpu, Duration::from_millis(milliseconds), work)? {
            assert!(matches!(error, Error::Device(DeviceError::Lost { .. })), "{error:?}");
        }
        assert!(matches!(gpu.check(), Err(Error::Device(DeviceError::Lost { .. }))));
    }
    Ok(())
}

/// An adopted one, by calls that submit themselves: readbacks report it.
fn adopted_device_destroyed(shared: &Gpu) -> Outcome {
    for milliseconds in [1, 5, 20, 50, 90] {
        let work = |gpu: &Gpu, _: usize| {
            let v = gpu.upload(&[3f32, 4.0], &[1, 2])?;
            let norms = gpu.row_norms(WeightNorm::unit(&v).eps(Eps::None))?;
            assert_eq!(norms.read::<f32>()?, [5.0], "wrong norm from a device on its way out");
            Ok(())
        };
        let gpu = adopted(shared, |_| ())?;
        for error in destroyed(&gpu, Duration::from_millis(milliseconds), work)? {
            assert!(matches!(error, Error::Device(DeviceError::Lost { .. })), "{error:?}");
        }
    }
    Ok(())
}
