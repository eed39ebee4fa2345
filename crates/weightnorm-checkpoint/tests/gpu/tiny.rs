//! Checkpoints on the device: rows with numbers that it may take for zero, and tensors put there by name.
use safetensors::Dtype;
use weightnorm::{Activation, Axis, DType, Eps, Gpu, Linear, WeightNorm, cpu, half};
use weightnorm_checkpoint::{self as checkpoint, Checkpoint, Error, Problem, Rules, Spelling};

use crate::common::{File, compare, dot_bound, norm_chain, weight_bound};
use crate::files::{Folder, made, of_numbers, tiny_weight, vocoder, write};
use crate::{Needs, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    suite.test("tiny::fold", Needs::Nothing, fold);
    suite.test("tiny::split", Needs::Nothing, split);
    suite.test("tiny::check", Needs::Nothing, check);
    suite.test("tiny::upload", Needs::Nothing, upload);
}

/// Right wherever representable, whatever the device does with subnormal numbers: v, g or w, in windows of all kinds.
fn fold(gpu: &Gpu) -> Outcome {
    let folder = Folder::new("tiny");
    let (from, output) = (folder.join("a.safetensors"), folder.join("b.safetensors"));
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64] {
        for (axis, times) in [(0, 1), (1, 1), (0, 500), (1, 500)] {
            let (tensors, v, g) = tiny_weight(dtype, axis, times);
            write(&from, &tensors, &[]);
            for (eps, window) in [(Eps::None, 1 << 20), (Eps::None, 4096), (Eps::Clamp(1e-12), 1 << 20)] {
                let rules = Rules::default().eps(eps).window(window);
                checkpoint::fold(gpu, &Checkpoint::open(&from)?, &output, &rules, &mut |_| ())?;
                let expected = cpu::normalize(&v, &tensors[1].shape, Some(&g), Axis::Kept(axis), eps)?;
                let file = File::load(&output)?;
                let storage = match dtype {
                    Dtype::F16 => DType::F16,
                    Dtype::BF16 => DType::Bf16,
                    _ => DType::F32,
                };
                let bound = |i: usize| weight_bound(norm_chain(5 * times), expected[i], storage);
                compare(&file.tensor("m.weight")?.data, &expected, Some(storage), bound)
                    .map_err(|e| format!("{dtype:?} axis {axis} {eps:?} {window}: {e}"))?;
            }
        }
    }
    Ok(())
}

/// Norms that are subnormal themselves.
fn split(gpu: &Gpu) -> Outcome {
    let folder = Folder::new("tiny-split");
    let (from, output) = (folder.join("a.safetensors"), folder.join("b.safetensors"));
    for dtype in [Dtype::F32, Dtype::BF16] {
        let ([_, mut v], numbers, _) = tiny_weight(dtype, 0, 1);
        v.name = "m.weight".to_owned();
        write(&from, &[v], &[]);
        let rules = Rules::default().include("*").gain(DType::F32);
        checkpoint::split(gpu, &Checkpoint::open(&from)?, &output, Spelling::Suffixes, &rules, &mut |_| ())?;
        let norms = cpu::row_norms(&numbers, &[6, 5], Axis::Kept(0), Eps::None)?;
        let bound = |j: usize| crate::common::norm_bound(5, norms[j]);
        compare(&Checkpoint::open(&output)?.read_f64("m.weight_g")?, &norms, Some(DType::F32), bound)?;
    }
    Ok(())
}

/// What the reference computed is right, and the rest is compared; numbers that are none are told.
fn check(gpu: &Gpu) -> Outcome {
    let folder = Folder::new("tiny-check");
    let from = folder.join("a.safetensors");
    let (tensors, ..) = tiny_weight(Dtype::F32, 0, 1);
    let [g, v] = tensors;
    let nan = of_numbers("n.weight_v", Dtype::F32, &[2, 2], [f32::NAN, 1.0, f32::INFINITY, 1.0]);
    write(&from, &[g, v, made("n.weight_g", Dtype::F32, &[2, 1], 1), nan], &[]);
    let found = checkpoint::check(gpu, &Checkpoint::open(&from)?, &Rules::default(), &mut |_| ())?;
    assert!(found.weights.iter().all(|weight| weight.is_right()), "{found:?}");
    assert!(found.weights[0].error > 0.0, "{found:?}");
    let problems: Vec<_> = found.findings.iter().map(|f| (f.weight.as_str(), f.problem.clone())).collect();
    assert_eq!(problems, [("n.weight", Problem::NonFinite { count: 2 })]);
    Ok(())
}

/// v and g of a layer by name, each in its own type, and a product with them.
fn upload(gpu: &Gpu) -> Outcome {
    let folder = Folder::new("upload");
    let path = folder.join("a.safetensors");
    for (dtype, own) in
        [(Dtype::F32, DType::F32), (Dtype::F16, DType::F16), (Dtype::BF16, DType::Bf16), (Dtype::F64, DType::F32)]
    {
        write(&path, &vocoder(Spelling::Suffixes, dtype), &[]);
        let model = Checkpoint::open(&path)?;
        let v = model.upload(gpu, "proj.weight_v")?;
        assert_eq!((v.dtype(), v.shape()), (own, &[33, 57][..]));
        let numbers = model.read_f64("proj.weight_v")?;
        let got: Vec<f64> = match own {
            DType::F32 => cpu::widen(&v.read::<f32>()?),
            DType::F16 => cpu::widen(&v.read::<half::f16>()?),
            DType::Bf16 => cpu::widen(&v.read::<half::bf16>()?),
        };
        assert_eq!(got, numbers);
        assert_eq!(model.upload(gpu, "empty")?.shape(), [0, 8]);
        for odd in ["steps", "nobody"] {
            assert!(matches!(model.upload(gpu, odd), Err(Error::Tensor { .. })), "{odd}");
        }
        if dtype != Dtype::F32 {
            continue; // drivers take long to compile products
        }
        let g = model.read_f64("proj.weight_g")?;
        let x: Vec<f32> = (0..2 * 57).map(|i| (i % 11) as f32 - 5.0).collect();
        let uploaded = gpu.upload(&model.read_f32("proj.weight_g")?, &[33])?;
        let y = gpu.linear(Linear::new(&gpu.upload(&x, &[2, 57])?, WeightNorm::new(&v, &uploaded)))?;
        let w = cpu::normalize(&numbers, &[33, 57], Some(&g), Axis::Kept(0), Eps::default())?;
        let x = cpu::widen(&x);
        let expected = cpu::linear(&x, &[2, 57], &w, &[33, 57], None, Activation::None)?;
        let sum_abs = |i: usize| (0..57).map(|k| (x[i / 33 * 57 + k] * w[i % 33 * 57 + k]).abs()).sum();
        let bound = |i: usize| dot_bound(57, sum_abs(i), expected[i], y.dtype());
        compare(&cpu::widen(&y.read::<f32>()?), &expected, Some(DType::F32), bound)?;
    }
    Ok(())
}
