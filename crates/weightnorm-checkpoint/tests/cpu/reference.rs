//! The reference as a device: what PyTorch gives, down to the smallest numbers, and what is told of rows and elements.
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use weightnorm::{Axis, Eps, cpu, half};
use weightnorm_checkpoint::{Checkpoint, Device, Error, Finding, Problem, Report, Rules, Spelling, check, fold, split};

use super::corpus::any_bytes::noop;
use crate::common::File;
use crate::files::{Folder, Made, made, of_f64, of_numbers, tiny_weight, vocoder, write, write_sharded};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn folded(from: &Path, output: &Path, rules: &Rules) -> Result<Report, Error> {
    let (mut done, mut total) = (0, 0);
    let report =
        fold(Device::Reference, &Checkpoint::open(from)?, output, rules, &mut |p| (done, total) = (p.done, p.total))?;
    assert_eq!((done, total, report.submissions), (report.bytes, report.bytes, 0));
    Ok(report)
}

/// The nearest number of the type.
fn nearest(dtype: Dtype, x: f64) -> f64 {
    match dtype {
        Dtype::F16 => half::f16::from_f64(x).into(),
        Dtype::BF16 => half::bf16::from_f64(x).into(),
        _ => f64::from(x as f32),
    }
}

/// Sums of another order may lead to the other neighbour where both are as near.
fn is_nearest(dtype: Dtype, got: f64, expected: f64) -> bool {
    (got - expected).abs() <= (nearest(dtype, expected) - expected).abs() + 1e-12 * expected.abs()
}

#[test]
fn reference_gives_what_pytorch_gives_below_1e_12() {
    let folder = Folder::new("reference");
    let (from, output) = (data("norm_below_1e-12"), folder.join("out.safetensors"));
    let report = folded(&from.join("input.safetensors"), &output, &Rules::default()).unwrap();
    assert_eq!(report.warnings, []);
    let expected = File::load(&from.join("expected.safetensors")).unwrap();
    let expected: Vec<f64> =
        expected.tensor("l.weight.f64").unwrap().data.iter().map(|&w| nearest(Dtype::F32, w)).collect();
    assert_eq!(File::load(&output).unwrap().tensor("l.weight").unwrap().data, expected);
    // A policy that changes rows is told, and does so.
    let rules = Rules::default().eps(Eps::Clamp(1e-12));
    let report = folded(&from.join("input.safetensors"), &output, &rules).unwrap();
    assert_eq!(report.warnings[0].problem, Problem::Guarded { count: 2 });
    assert_eq!(report.warnings[0].to_string(), "l.weight: the eps policy changes 2 rows");
    assert_ne!(File::load(&output).unwrap().tensor("l.weight").unwrap().data, expected);
}

#[test]
fn reference_is_exact_down_to_the_smallest_numbers() {
    let folder = Folder::new("tiny");
    let (from, output) = (folder.join("a.safetensors"), folder.join("b.safetensors"));
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64] {
        for (axis, times) in [(0, 1), (1, 1), (0, 500), (1, 500)] {
            let (tensors, v, g) = tiny_weight(dtype, axis, times);
            write(&from, &tensors, &[]);
            for (eps, window) in [(Eps::None, 1 << 20), (Eps::None, 4096), (Eps::Clamp(1e-12), 4096)] {
                folded(&from, &output, &Rules::default().eps(eps).window(window)).unwrap();
                let shape = &tensors[1].shape;
                let expected = cpu::normalize(&v, shape, Some(&g), Axis::Kept(axis), eps).unwrap();
                let file = File::load(&output).unwrap();
                let got = &file.tensor("m.weight").unwrap().data;
                for (i, (&got, &expected)) in got.iter().zip(&expected).enumerate() {
                    assert!(is_nearest(dtype, got, expected), "{dtype:?} {axis} {i}: {got} {expected}");
                }
                assert!(got.iter().any(|w| w.abs() > 0.1) && got.iter().all(|w| w.is_finite()));
            }
        }
    }
}

fn guarded(findings: &[Finding]) -> Vec<(&str, u64)> {
    let count = |finding: &Finding| match finding.problem {
        Problem::Guarded { count } => Some(count),
        _ => None,
    };
    findings.iter().filter_map(|finding| Some((finding.weight.as_str(), count(finding)?))).collect()
}

/// Rows of norms 5e-13, 5e-4, 5 and 0, in windows of all kinds.
#[test]
fn reference_tells_how_many_rows_a_policy_changes() {
    let folder = Folder::new("guarded");
    let (from, output) = (folder.join("a.safetensors"), folder.join("b.safetensors"));
    for length in [2, 3001] {
        let row = |norm: f64| (0..length).map(move |i| [norm * 0.6, norm * 0.8].get(i).copied().unwrap_or(0.0));
        let v: Vec<f64> = [5e-13, 5e-4, 5.0, 0.0].into_iter().flat_map(row).collect();
        let tensors = [
            of_numbers("m.weight_g", Dtype::F32, &[4, 1], [1.0; 4]),
            of_f64("m.weight_v", Dtype::F32, &[4, length], &v),
            made("n.weight_g", Dtype::F32, &[2, 1], 1),
            made("n.weight_v", Dtype::F32, &[2, 5], 2),
        ];
        write(&from, &tensors, &[]);
        for (eps, count) in [
            (Eps::None, None),
            (Eps::Clamp(1e-12), Some(1)),
            (Eps::InsideSqrt(1e-12), Some(2)),
            (Eps::After(1e-12), Some(1)),
            (Eps::After(1e-4), Some(3)),
        ] {
            for window in [4096, 1 << 20] {
                let rules = Rules::default().eps(eps).window(window);
                match folded(&from, &output, &rules) {
                    Err(Error::Findings { findings }) => {
                        assert_eq!((findings.len(), &findings[0].problem), (1, &Problem::ZeroRows { count: 1 }));
                    }
                    other => panic!("{other:?}"),
                }
                let report = folded(&from, &output, &rules.clone().allow_zero_rows()).unwrap();
                let changed: Vec<(&str, u64)> =
                    guarded(&report.warnings).into_iter().filter(|(weight, _)| *weight == "m.weight").collect();
                assert_eq!(changed, count.map(|count| ("m.weight", count)).into_iter().collect::<Vec<_>>(), "{eps:?}");
                let checked = check(Device::Reference, &Checkpoint::open(&from).unwrap(), &rules, &mut |_| ()).unwrap();
                assert_eq!(guarded(&checked.findings), guarded(&report.warnings));
                // A row of zeros is NaN as in PyTorch, and told, or 0.
                let w = &File::load(&output).unwrap();
                let zeros = &w.tensor("m.weight").unwrap().data[3 * length..];
                let not_finite =
                    report.warnings.iter().any(|f| f.problem == Problem::NonFinite { count: length as u64 });
                let is_right = |w: &f64| if eps == Eps::None { w.is_nan() } else { *w == 0.0 };
                assert!(zeros.iter().all(is_right) && not_finite == (eps == Eps::None), "{eps:?}");
            }
        }
    }
}

/// One NaN in v, an infinity in another, a NaN in a g.
#[test]
fn reference_tells_of_numbers_that_are_none() {
    let folder = Folder::new("none");
    let (from, output) = (folder.join("a.safetensors"), folder.join("b.safetensors"));
    let (nan, infinity) = (f32::NAN, f32::INFINITY);
    for length in [2, 3001] {
        let v = |first: f32| (0..2 * length).map(move |i| if i == 0 { first } else { 1.0 });
        let g = |name: &str, first| of_numbers(name, Dtype::F32, &[2, 1], [first, 1.0]);
        let tensors = [
            g("a.weight_g", 1.0),
            of_numbers("a.weight_v", Dtype::F32, &[2, length], v(nan)),
            g("b.weight_g", 1.0),
            of_numbers("b.weight_v", Dtype::F32, &[2, length], v(infinity)),
            g("c.weight_g", nan),
            of_numbers("c.weight_v", Dtype::F32, &[2, length], v(1.0)),
            g("d.weight_g", 1.0),
            of_numbers("d.weight_v", Dtype::F32, &[2, length], v(1.0)),
        ];
        write(&from, &tensors, &[]);
        let counts = |findings: &[Finding]| -> Vec<(String, u64)> {
            let count = |finding: &Finding| match finding.problem {
                Problem::NonFinite { count } => (finding.weight.clone(), count),
                ref other => panic!("{other:?}"),
            };
            findings.iter().map(count).collect()
        };
        for window in [4096, 1 << 20] {
            let rules = Rules::default().window(window);
            let checked = check(Device::Reference, &Checkpoint::open(&from).unwrap(), &rules, &mut |_| ()).unwrap();
            let expected = [("a.weight", 1), ("b.weight", 1), ("c.weight", 1)].map(|(w, n)| (w.to_owned(), n));
            assert_eq!(counts(&checked.findings), expected);
            // Where the norm is infinite the other elements are 0.
            let report = folded(&from, &output, &rules).unwrap();
            let row = length as u64;
            let expected = [("a.weight", row), ("b.weight", 1), ("c.weight", row)].map(|(w, n)| (w.to_owned(), n));
            assert_eq!(counts(&report.warnings), expected);
        }
    }
}

/// All storage types, both spellings, axes of all kinds, shards; and taken apart again.
#[test]
fn reference_folds_and_splits_without_a_gpu() {
    let folder = Folder::new("whole");
    let output = |number: usize| folder.join(&format!("out{number}"));
    for (number, dtype) in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64].into_iter().enumerate() {
        let tensors = vocoder(Spelling::Parametrizations, dtype);
        let (first, second): (Vec<Made>, Vec<Made>) =
            tensors.into_iter().partition(|tensor| tensor.name.contains("original0"));
        let index =
            write_sharded(&folder.join(&format!("in{number}")), &[("g.safetensors", first), ("v.safetensors", second)]);
        let checkpoint = Checkpoint::open(&index).unwrap();
        let report = folded(&index, &output(number), &Rules::default()).unwrap();
        assert_eq!((report.weights.len(), report.copied), (7, 5));
        let plain = Checkpoint::open(&output(number)).unwrap();
        let axis = |name: &str| match name {
            "encoder.pos_conv.weight" => Axis::Kept(2),
            "gain.weight" => Axis::Whole,
            _ => Axis::Kept(0),
        };
        for weight in &report.weights {
            let [g, v] = [weight.spelling.g(&weight.name), weight.spelling.v(&weight.name)]
                .map(|name| checkpoint.read_f64(&name).unwrap());
            let w = cpu::normalize(&v, &weight.shape, Some(&g), axis(&weight.name), Eps::None).unwrap();
            let got = plain.read_f64(&weight.name).unwrap();
            assert!(got.iter().zip(&w).all(|(&got, &w)| is_nearest(dtype, got, w)), "{}", weight.name);
        }
        // The norms of w are those of its rows.
        let parted = folder.join(&format!("parted{number}"));
        let rules = Rules::default().include("proj.weight").gain(weightnorm::DType::F32);
        split(Device::Reference, &plain, &parted, Spelling::Suffixes, &rules, &mut |_| ()).unwrap();
        let (w, parted) = (plain.read_f64("proj.weight").unwrap(), Checkpoint::open(&parted).unwrap());
        assert_eq!(parted.read_f64("proj.weight_v").unwrap(), w);
        let norms = cpu::row_norms(&w, &[33, 57], Axis::Kept(0), Eps::None).unwrap();
        let got = parted.read_f64("proj.weight_g").unwrap();
        assert!(got.iter().zip(&norms).all(|(g, n)| *g == f64::from(*n as f32)), "{got:?} {norms:?}");
    }
}

/// A device that takes every number for zero: wgpu's `noop` backend, which computes nothing. Rows that a device may be
/// wrong in are right all the same, the others as it gave them, and `check` says that they are wrong.
#[test]
fn reference_computes_what_a_device_may_flush() {
    let folder = Folder::new("flushed");
    let (from, output, gpu) = (folder.join("a.safetensors"), folder.join("b.safetensors"), noop());
    for dtype in [Dtype::F32, Dtype::BF16, Dtype::F64] {
        for (axis, window) in [(0, 1 << 20), (1, 1 << 20), (0, 4096)] {
            let ([g, v], numbers, gain) = tiny_weight(dtype, axis, 1);
            // Nothing in it is subnormal but w.
            let small = [
                of_numbers("n.weight_g", Dtype::F32, &[2, 1], [1e-37, 2.0]),
                of_f64("n.weight_v", dtype, &[2, 3], &[4e3, 4.0, 0.0, 3.0, 4.0, 0.0]),
            ];
            write(&from, &[&[g, v.clone()], &small[..]].concat(), &[]);
            let (checkpoint, rules) = (Checkpoint::open(&from).unwrap(), Rules::default().window(window));
            fold(&gpu, &checkpoint, &output, &rules, &mut |_| ()).unwrap();
            let file = File::load(&output).unwrap();
            let expected = cpu::normalize(&numbers, &v.shape, Some(&gain), Axis::Kept(axis), Eps::None).unwrap();
            for (i, (&got, &expected)) in file.tensor("m.weight").unwrap().data.iter().zip(&expected).enumerate() {
                // 1e-6 is no number that a device may lose.
                let is_lost = [3, 4].contains(&if axis == 0 { i / 5 } else { i % 6 });
                assert!(if is_lost { got == 0.0 } else { is_nearest(dtype, got, expected) }, "{i}: {got} {expected}");
            }
            let n = &file.tensor("n.weight").unwrap().data;
            let expected = [4e3, 4.0].map(|v| f64::from(1e-37f32) * (v / 4e3f64.hypot(4.0)));
            assert!((0..2).all(|i| is_nearest(dtype, n[i], expected[i])), "{n:?}");
            assert_eq!(n[2..], [0.0; 4]);
            let checked = check(&gpu, &checkpoint, &rules, &mut |_| ()).unwrap();
            assert!(checked.weights.iter().all(|weight| !weight.is_right()), "{checked:?}");
        }
    }
}

/// A weight that is beyond its storage type, of a v and a g that are not: `check` tells it as `fold` does.
#[test]
fn reference_tells_of_a_weight_beyond_its_type() {
    let folder = Folder::new("beyond");
    let (from, output) = (folder.join("a.safetensors"), folder.join("b.safetensors"));
    let tensors = [
        of_numbers("a.weight_g", Dtype::F32, &[2, 1], [7e4, 6e4]),
        of_numbers("a.weight_v", Dtype::F16, &[2, 2], [1.0, 0.0, 1.0, 0.0]),
    ];
    write(&from, &tensors, &[]);
    let told = |findings: &[Finding]| findings.iter().map(|f| f.problem.clone()).collect::<Vec<_>>();
    let checked = check(Device::Reference, &Checkpoint::open(&from).unwrap(), &Rules::default(), &mut |_| ()).unwrap();
    assert_eq!(told(&checked.findings), [Problem::NonFinite { count: 1 }]);
    assert!(checked.weights[0].is_right());
    assert_eq!(told(&folded(&from, &output, &Rules::default()).unwrap().warnings), [Problem::NonFinite { count: 1 }]);
}
