//! All tensors of an operator in one buffer, one right after the other: the same results as in buffers of their own,
//! and nothing else of the buffer changes.
use weightnorm::{
    Adam, AdamState, ArgumentError, Axis, DType, Decompose, Eps, Error, Gpu, Gradients, Linear, LinearBackward,
    MeanOnlyBatchNorm, MeanOnlyBatchNormBackward, Moments, NormalizeBackward, Parameter, Recorder, SetMember, Sgd,
    SgdState, Tensor, Tile, WeightNorm,
};

use crate::data::{random, to_bytes};
use crate::golden::read;
use crate::{Extent, Needs, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    suite.sampled("arena::linear", linear);
    suite.sampled("arena::weights", weights);
    suite.test("arena::sets", Needs::Nothing, sets);
    suite.test("arena::batches", Needs::Nothing, batches);
    suite.test("arena::optimizers", Needs::Nothing, optimizers);
    suite.test("arena::overlaps", Needs::Nothing, overlaps);
}

/// A tensor that an operator has: its shape, its type, and whether it is written.
type Wanted = (&'static [usize], DType, bool);

const F32: DType = DType::F32;

/// Records with tensors in one buffer, and in buffers of their own.
fn check(
    gpu: &Gpu,
    wanted: &[Wanted],
    record: impl Fn(&mut Recorder<'_, '_>, &[Tensor]) -> Result<(), Error>,
) -> Outcome {
    // Words of numbers that are in range in every storage type.
    let words = |len: usize, dtype| to_bytes(&random(len as u64, len, dtype), dtype);
    let (mut bytes, mut places) = (words(5, F32), vec![]);
    for (i, &(shape, dtype, _)) in wanted.iter().enumerate() {
        let len = shape.iter().product::<usize>();
        // Some from multiples of 16 on, as four words at once want it.
        bytes.resize(if i % 3 == 0 { bytes.len() } else { bytes.len().next_multiple_of(16) }, 0x3c);
        places.push(bytes.len() as u64);
        bytes.extend(words(len + i, dtype).split_off(if dtype == F32 { 4 * i } else { 2 * i }));
        bytes.resize(bytes.len().next_multiple_of(4), 0x3c);
    }
    bytes.extend(words(5, F32));
    bytes.resize(bytes.len().next_multiple_of(16), 0x3c);
    let arena = gpu.upload(&bytemuck::pod_collect_to_vec::<u8, f32>(&bytes), &[bytes.len() / 4])?;
    let mut together = vec![];
    let mut alone = vec![];
    for (&(shape, dtype, _), &place) in wanted.iter().zip(&places) {
        together.push(Tensor::from_buffer(gpu, arena.buffer()?, place, shape, dtype)?);
        let len = shape.iter().product::<usize>() * dtype.size() as usize;
        let own = &bytes[place as usize..][..len.next_multiple_of(4)];
        let own = gpu.upload(&bytemuck::pod_collect_to_vec::<u8, f32>(own), &[own.len() / 4])?;
        alone.push(Tensor::from_buffer(gpu, own.buffer()?, 0, shape, dtype)?);
    }
    for tensors in [&together, &alone] {
        let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        record(&mut gpu.record(&mut encoder), tensors)?;
        gpu.queue().submit([encoder.finish()]);
    }
    gpu.check()?;
    let after: Vec<u8> = bytemuck::cast_slice(&arena.read::<f32>()?).to_vec();
    let mut expected = bytes.clone();
    for (i, (&(_, dtype, written), &place)) in wanted.iter().zip(&places).enumerate() {
        let [values, reference] = [read(&together[i])?, read(&alone[i])?];
        let largest = reference.iter().filter(|r| r.is_finite()).fold(0.0, |m: f64, r| m.max(r.abs()));
        // Other variants may start elsewhere, and so add up in another order.
        let bound = largest * if dtype == F32 { 1e-5 } else { 1e-2 };
        for (value, reference) in values.iter().zip(&reference) {
            let near = (value - reference).abs() <= bound || (value.is_nan() && reference.is_nan());
            assert!(near, "tensor {i}: {value} in the arena, {reference} alone");
        }
        if written {
            let len = values.len() * dtype.size() as usize;
            let own = place as usize..place as usize + len;
            assert_ne!(after[own.clone()], bytes[own.clone()], "tensor {i} is written");
            expected[own.clone()].copy_from_slice(&after[own]);
        }
    }
    assert!(after == expected, "something else of the buffer has changed");
    Ok(())
}

fn linear(gpu: &Gpu, extent: Extent) -> Outcome {
    let [tile, of_gradients] = [Tile::Gemv4, Tile::Tile32x32].map(|tile| extent.choose(None, Some(tile)));
    let axes = [(Axis::Kept(0), &[65_usize][..]), (Axis::Kept(1), &[52]), (Axis::Whole, &[1])];
    for &(axis, norms) in extent.choose(&axes[..], &axes[..2]) {
        for dtype in extent.choose(&[F32, DType::F16][..], &[if axis == Axis::Kept(1) { DType::F16 } else { F32 }]) {
            let dtype = *dtype;
            // Few: gradients of rows alone, in f32.
            let backward = extent == Extent::All || axis == Axis::Kept(0);
            let wanted: [Wanted; 13] = [
                (&[33, 52], dtype, false),
                (&[33, 65], F32, true),
                (&[65, 52], dtype, false),
                (norms, F32, false),
                (&[65], dtype, false),
                (norms, F32, true),
                (&[33, 65], F32, axis != Axis::Kept(1)),
                (&[33, 65], dtype, false),
                (&[33, 52], dtype, backward),
                (&[65, 52], dtype, backward),
                (norms, F32, backward),
                (&[65], F32, backward),
                (&[33, 65], dtype, extent == Extent::All || !backward),
            ];
            check(gpu, &wanted, |ops, tensors| {
                let [x, y, v, g, bias, norms, u, dy, dx, dv, dg, dbias, plain] = tensors else { unreachable!() };
                let weight = WeightNorm::new(v, g).axis(axis);
                let u = Some(u).filter(|_| axis != Axis::Kept(1));
                ops.linear(Linear::new(x, weight).bias(bias).norms(norms).u(u).tile(tile), y)?;
                if extent == Extent::All || !backward {
                    ops.linear(Linear::new(x, v).tile(tile), plain)?;
                }
                if !backward {
                    return Ok(());
                }
                let gradients = Gradients::default().dx(dx).dv(dv).dg(dg).dbias(dbias);
                ops.linear_backward(LinearBackward::new(x, weight.norms(norms), dy).u(u).tile(of_gradients), &gradients)
            })?;
        }
    }
    Ok(())
}

fn weights(gpu: &Gpu, extent: Extent) -> Outcome {
    let cases: [(&[usize], Axis, &[usize]); 4] = [
        (&[37, 65], Axis::Kept(0), &[37]),
        (&[64, 256], Axis::Kept(0), &[64]),
        (&[9, 21, 7], Axis::Kept(1), &[21]),
        (&[3, 20_001], Axis::Whole, &[1]),
    ];
    for (i, &(shape, axis, per_norm)) in extent.choose(&cases[..], &cases[1..3]).iter().enumerate() {
        for &dtype in extent.choose(&[F32, DType::Bf16][..], &[[F32, DType::Bf16][i % 2]]) {
            let wanted: [Wanted; 9] = [
                (shape, dtype, false),
                (shape, dtype, true),
                (per_norm, F32, false),
                (per_norm, F32, true),
                (shape, dtype, false),
                (shape, dtype, true),
                (per_norm, F32, true),
                (shape, dtype, true),
                (per_norm, F32, true),
            ];
            check(gpu, &wanted, |ops, tensors| {
                let [v, w, g, norms, dw, dv, dg, in_place, decomposed] = tensors else { unreachable!() };
                let weight = WeightNorm::new(v, g).axis(axis);
                ops.row_norms(WeightNorm::unit(v).axis(axis).eps(Eps::None), norms)?;
                ops.normalize(weight, w)?;
                ops.normalize_backward(
                    NormalizeBackward::new(dw, weight),
                    &Gradients::default().dv(dv).dg(dg).accumulate(true),
                )?;
                ops.normalize_in_place(WeightNorm::new(in_place, g).axis(axis))?;
                ops.decompose(Decompose::new(v).axis(axis).eps(Eps::None), dv, decomposed)
            })?;
        }
    }
    Ok(())
}

fn sets(gpu: &Gpu) -> Outcome {
    let wanted: [Wanted; 12] = [
        (&[12, 40], F32, false),
        (&[12], F32, false),
        (&[12, 40], F32, true),
        (&[12], F32, true),
        (&[7, 5, 3], DType::F16, false),
        (&[5], F32, false),
        (&[7, 5, 3], DType::F16, true),
        (&[5], F32, true),
        (&[12, 40], F32, false),
        (&[12, 40], F32, true),
        (&[7, 5, 3], F32, false),
        (&[7, 5, 3], F32, true),
    ];
    check(gpu, &wanted, |ops, tensors| {
        let [v, g, w, norms, v2, g2, w2, norms2, dw, dv, dw2, dv2] = tensors else { unreachable!() };
        let first = SetMember::new(WeightNorm::new(v, g)).w(w).norms(norms).dw(dw).dv(dv);
        let second = SetMember::new(WeightNorm::new(v2, g2).axis(Axis::Kept(1))).w(w2).norms(norms2).dw(dw2).dv(dv2);
        let set = v_gpu(ops).weight_set(&[first, second])?;
        ops.row_norms_set(&set)?;
        ops.normalize_set(&set)?;
        ops.normalize_backward_set(&set, false)
    })
}

fn v_gpu(ops: &Recorder<'_, '_>) -> Gpu {
    ops.gpu().expect("it records for a device").clone()
}

fn batches(gpu: &Gpu) -> Outcome {
    let wanted: [Wanted; 6] = [
        (&[70, 24], F32, false),
        (&[70, 24], F32, true),
        (&[24], F32, false),
        (&[24], F32, true),
        (&[70, 24], DType::F16, true),
        (&[24], F32, true),
    ];
    check(gpu, &wanted, |ops, tensors| {
        let [t, y, bias, running, dt, dbias] = tensors else { unreachable!() };
        ops.mean_only_batch_norm(MeanOnlyBatchNorm::new(t).bias(bias).running_mean(running, 0.1), y)?;
        ops.mean_only_batch_norm_backward(MeanOnlyBatchNormBackward::new(t), &Gradients::default().dx(dt).dbias(dbias))
    })
}

fn optimizers(gpu: &Gpu) -> Outcome {
    for dtype in [F32, DType::Bf16] {
        let wanted: [Wanted; 7] = [
            (&[16, 36], dtype, true),
            (&[16, 36], F32, false),
            (&[16], F32, true),
            (&[16], F32, false),
            (&[16, 36], F32, true),
            (&[16, 36], F32, true),
            (&[16, 36], F32, true),
        ];
        check(gpu, &wanted, |ops, tensors| {
            let [v, dv, g, dg, first, second, momentum] = tensors else { unreachable!() };
            let moments = Moments { first: first.clone(), second: second.clone() };
            let state = SgdState { v: Some(momentum.clone()), g: None };
            ops.sgd_step(Parameter::new(g, dg), &SgdState { v: None, g: None }, 1, &Sgd::new(0.1))?;
            ops.sgd_step(Parameter::new(v, dv), &state, 1, &Sgd { momentum: 0.9, ..Sgd::new(0.1) })?;
            // Half of the second moments are below zero here, and give NaN either way.
            let state = AdamState { v: moments, g: None };
            ops.adam_step(Parameter::new(v, dv), &state, 1, &Adam::new(0.1))
        })?;
    }
    Ok(())
}

/// What overlaps is refused, and nothing is recorded: within a word, too.
fn overlaps(gpu: &Gpu) -> Outcome {
    let arena = gpu.zeros(&[256], F32)?;
    let part = |offset: u64, shape: &[usize], dtype| Tensor::from_buffer(gpu, arena.buffer()?, offset, shape, dtype);
    let v = part(0, &[3, 3], DType::F16)?;
    let refused = |w: &Tensor| -> Result<Error, crate::Failed> {
        let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut ops = gpu.record(&mut encoder);
        let error = ops.normalize(WeightNorm::unit(&v), w).err().ok_or("it was taken")?;
        assert_eq!(ops.dispatch_count(), 0);
        Ok(error)
    };
    for offset in [0, 4, 16] {
        let error = refused(&part(offset, &[3, 3], DType::F16)?)?;
        assert!(matches!(error, Error::Argument(ArgumentError::Alias { output: "w", input: "v", .. })), "{error:?}");
    }
    let error = gpu.normalize_in_place(WeightNorm::new(&v, &part(16, &[3], F32)?)).unwrap_err();
    assert!(matches!(error, Error::Argument(ArgumentError::Alias { .. })), "{error:?}");
    gpu.normalize_in_place(WeightNorm::new(&v, &part(20, &[3], F32)?))?;
    Ok(())
}
