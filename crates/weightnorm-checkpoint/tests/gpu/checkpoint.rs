//! Checkpoints through the GPU: folded, taken apart, checked, in windows of all kinds, and cut short by errors.
use std::collections::BTreeMap;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use weightnorm::{Axis, DType, Eps, Gpu, cpu, half};
use weightnorm_checkpoint::{self as checkpoint, Checkpoint, Error, Problem, Report, Rules, Spelling};

use crate::common::{compare, flush_bound, norm_chain, root, row_of, weight_bound};
use crate::files::{Folder, Made, made, of_numbers, vocoder, write, write_sharded};
use crate::{Failed, Needs, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    suite.test("checkpoint::fold", Needs::Nothing, fold);
    suite.test("checkpoint::fold_in_windows", Needs::Nothing, fold_in_windows);
    suite.test("checkpoint::fold_beyond_f32", Needs::Nothing, fold_beyond_f32);
    suite.test("checkpoint::fold_sharded", Needs::Nothing, fold_sharded);
    suite.test("checkpoint::fold_keeps_alignment", Needs::Nothing, fold_keeps_alignment);
    suite.test("checkpoint::fold_many", Needs::Nothing, fold_many);
    suite.test("checkpoint::fold_refuses", Needs::Nothing, fold_refuses);
    suite.test("checkpoint::fold_a_trained_network", Needs::Nothing, fold_a_trained_network);
    suite.test("checkpoint::check", Needs::Nothing, check);
    suite.test("checkpoint::device_destroyed", Needs::Nothing, device_destroyed);
}

pub fn open(path: &Path) -> Result<Checkpoint, Failed> {
    Ok(Checkpoint::open(path)?)
}

pub fn fold_to(gpu: &Gpu, from: &Path, output: &Path, rules: &Rules) -> Result<Report, Error> {
    let (mut done, mut total) = (0, 0);
    let report = checkpoint::fold(gpu, &Checkpoint::open(from)?, output, rules, &mut |p| {
        assert!(p.done > done && p.done <= p.total, "{p:?}");
        (done, total) = (p.done, p.total);
    })?;
    assert_eq!((done, total), (report.bytes, report.bytes));
    Ok(report)
}

/// The numbers of a tensor in a file, exactly.
pub fn numbers(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    let chunks = bytes.chunks(dtype.bitsize() / 8);
    match dtype {
        Dtype::F32 => chunks.map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
        Dtype::F64 => chunks.map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
        Dtype::F16 => chunks.map(|b| half::f16::from_le_bytes(b.try_into().unwrap()).into()).collect(),
        Dtype::BF16 => chunks.map(|b| half::bf16::from_le_bytes(b.try_into().unwrap()).into()).collect(),
        other => panic!("{other:?}"),
    }
}

pub fn computed(dtype: Dtype) -> (DType, Dtype) {
    match dtype {
        Dtype::F16 => (DType::F16, Dtype::F16),
        Dtype::BF16 => (DType::Bf16, Dtype::BF16),
        _ => (DType::F32, Dtype::F32),
    }
}

/// Axes as `vocoder` has them; 0 for every other weight.
pub fn axis_of(name: &str) -> Axis {
    match name {
        "encoder.pos_conv.weight" => Axis::Kept(2),
        "gain.weight" => Axis::Whole,
        _ => Axis::Kept(0),
    }
}

/// A folded file beside the tensors that it was folded from, in whatever order.
pub fn is_folded(bytes: &[u8], from: &[Made], axis_of: impl Fn(&str) -> Axis, eps: Eps) -> Outcome {
    let got = SafeTensors::deserialize(bytes)?;
    let by_name: BTreeMap<&str, &Made> = from.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let mut count = 0;
    for tensor in from {
        let parted = [Spelling::Suffixes, Spelling::Parametrizations].into_iter().find_map(|spelling| {
            let weight = got.names().into_iter().find(|name| spelling.v(name) == tensor.name)?;
            Some((weight, by_name[spelling.g(weight).as_str()]))
        });
        count += 1;
        let Some((name, g)) = parted else {
            match got.tensor(&tensor.name) {
                Ok(copy) => {
                    assert!(copy.data() == tensor.bytes, "{}", tensor.name);
                    assert_eq!((copy.dtype(), copy.shape()), (tensor.dtype, &tensor.shape[..]));
                }
                // g is gone.
                Err(_) => count -= 1,
            }
            continue;
        };
        let w = got.tensor(name)?;
        let (dtype, stored) = computed(tensor.dtype);
        assert_eq!((w.dtype(), w.shape()), (stored, &tensor.shape[..]), "{name}");
        let (v, g) = (numbers(tensor.dtype, &tensor.bytes), numbers(g.dtype, &g.bytes));
        let expected = cpu::normalize(&v, &tensor.shape, Some(&g), axis_of(name), eps)?;
        let chain = norm_chain(v.len() / g.len().max(1));
        let norms = cpu::row_norms(&v, &tensor.shape, axis_of(name), eps)?;
        let bound = |i: usize| {
            let norm = norms[row_of(i, &tensor.shape, axis_of(name))];
            weight_bound(chain, expected[i], dtype) + flush_bound(v[i], norm, expected[i])
        };
        compare(&numbers(stored, w.data()), &expected, Some(dtype), bound).map_err(|e| format!("{name}: {e}"))?;
    }
    assert_eq!(got.len(), count);
    Ok(())
}

fn fold(gpu: &Gpu) -> Outcome {
    let folder = Folder::new("fold");
    let (from, output) = (folder.join("a.safetensors"), folder.join("b.safetensors"));
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64] {
        for spelling in [Spelling::Suffixes, Spelling::Parametrizations] {
            let tensors = vocoder(spelling, dtype);
            write(&from, &tensors, &[("format", "pt")]);
            let report = fold_to(gpu, &from, &output, &Rules::default())?;
            assert_eq!((report.weights.len(), report.copied, report.submissions), (7, 5, 1));
            assert_eq!(report.warnings.len(), if dtype == Dtype::F64 { 7 } else { 0 });
            let bytes = std::fs::read(&output)?;
            is_folded(&bytes, &tensors, axis_of, Eps::default())?;
            let metadata = SafeTensors::read_metadata(&bytes)?.1.metadata().clone().unwrap_or_default();
            assert_eq!(metadata.get("format").map(String::as_str), Some("pt"));
            // The order of what is left of the input.
            let order: Vec<String> = open(&from)?.tensors().map(|tensor| tensor.name.clone()).collect();
            let kept: Vec<String> = open(&output)?.tensors().map(|tensor| tensor.name.clone()).collect();
            let expected = order.into_iter().filter_map(|name| match kept.contains(&name) {
                true => Some(name),
                false => kept.iter().find(|weight| spelling.v(weight) == name).cloned(),
            });
            assert_eq!(kept, expected.collect::<Vec<_>>());
        }
    }
    // In place; and in mixed storage types, g narrower than v and wider.
    let v = made("m.weight_v", Dtype::F32, &[5, 7], 1);
    for g in [Dtype::F16, Dtype::BF16, Dtype::F64] {
        for (v, g) in [(v.dtype, g), (g, v.dtype)] {
            let tensors = [made("m.weight_g", g, &[5], 2), made("m.weight_v", v, &[5, 7], 1)];
            write(&from, &tensors, &[]);
            fold_to(gpu, &from, &from, &Rules::default().eps(Eps::None))?;
            is_folded(&std::fs::read(&from)?, &tensors, axis_of, Eps::None)?;
        }
    }
    assert_eq!(folder.names(), ["a.safetensors", "b.safetensors"]);
    Ok(())
}

/// Weights that are cut into slices, into rows and into parts of rows, which takes known norms, along every axis.
fn fold_in_windows(gpu: &Gpu) -> Outcome {
    let folder = Folder::new("windows");
    let (from, output) = (folder.join("a.safetensors"), folder.join("b.safetensors"));
    let shapes: [(&[usize], Axis); 8] = [
        (&[700, 9], Axis::Kept(0)),     // many rows in a window
        (&[3, 5001], Axis::Kept(0)),    // windows in a row
        (&[97, 31], Axis::Kept(1)),     // slices, and the norms known
        (&[7, 3001], Axis::Kept(1)),    // parts of slices
        (&[3, 4, 1501], Axis::Kept(1)), // parts of rows of slices
        (&[24, 12, 16], Axis::Kept(2)),
        (&[13, 700], Axis::Whole),
        (&[5000], Axis::Kept(0)),
    ];
    let axis = |name: &str| shapes[name[1..name.len() - 7].parse::<usize>().unwrap()].1;
    let mut rules = Rules::default().window(4096);
    for (i, &(_, axis)) in shapes.iter().enumerate() {
        rules = rules.axis(format!("w{i}.weight"), axis);
    }
    for dtype in [Dtype::F32, Dtype::BF16, Dtype::F64] {
        let mut tensors = vec![];
        for (i, &(shape, axis)) in shapes.iter().enumerate() {
            let count = match axis {
                Axis::Kept(k) => shape[k],
                Axis::Whole => 1,
            };
            tensors.push(made(&format!("w{i}.weight_g"), dtype, &[count], i as u64 + 1));
            tensors.push(made(&format!("w{i}.weight_v"), dtype, shape, i as u64 + 50));
        }
        tensors.push(made("large", Dtype::F32, &[5000], 99));
        write(&from, &tensors, &[]);
        for eps in [Eps::default(), Eps::After(0.5)] {
            let report = fold_to(gpu, &from, &output, &rules.clone().eps(eps))?;
            assert!(report.submissions > 20, "{}", report.submissions);
            is_folded(&std::fs::read(&output)?, &tensors, axis, eps)?;
        }
    }
    Ok(())
}

/// Norms that f32 does not hold, of rows that do not fit into a window.
fn fold_beyond_f32(gpu: &Gpu) -> Outcome {
    let folder = Folder::new("beyond");
    let (from, output) = (folder.join("a.safetensors"), folder.join("b.safetensors"));
    for scale in [2e38, 1e-38, 1e-30] {
        let v = made("m.weight_v", Dtype::F32, &[2, 3001], 3);
        let v = of_numbers(
            "m.weight_v",
            Dtype::F32,
            &[2, 3001],
            numbers(v.dtype, &v.bytes).iter().map(|x| *x as f32 * scale),
        );
        let tensors = [made("m.weight_g", Dtype::F32, &[2, 1], 2), v];
        write(&from, &tensors, &[]);
        for window in [4096, 1 << 20] {
            fold_to(gpu, &from, &output, &Rules::default().window(window).eps(Eps::None))?;
            is_folded(&std::fs::read(&output)?, &tensors, axis_of, Eps::None)?;
        }
    }
    Ok(())
}

/// A g and its v in different files, and a file that has nothing but a g.
fn fold_sharded(gpu: &Gpu) -> Outcome {
    let folder = Folder::new("shards");
    let tensors = vocoder(Spelling::Parametrizations, Dtype::F16);
    let is_lone = |tensor: &Made| tensor.name.starts_with("ups.0") && tensor.name.ends_with("original0");
    let lone: Vec<Made> = tensors.iter().filter(|tensor| is_lone(tensor)).cloned().collect();
    let mut rest: Vec<Made> = tensors.iter().filter(|tensor| !is_lone(tensor)).cloned().collect();
    let second = rest.split_off(6);
    assert_eq!(lone.len(), 1);
    let index = write_sharded(
        &folder.join("a"),
        &[("1.safetensors", rest), ("2.safetensors", second), ("3.safetensors", lone)],
    );
    let output = folder.join("b");
    let report = fold_to(gpu, &index, &output, &Rules::default())?;
    assert_eq!((report.weights.len(), report.submissions), (7, 1));
    let folded = open(&output)?;
    assert_eq!(folded.files().count(), 2);
    let files: Vec<Vec<u8>> = folded.files().map(std::fs::read).collect::<Result<_, _>>()?;
    let all: Vec<Made> = files
        .iter()
        .flat_map(|bytes| SafeTensors::deserialize(bytes).unwrap().tensors())
        .map(|(name, t)| Made { name, dtype: t.dtype(), shape: t.shape().to_vec(), bytes: t.data().to_vec() })
        .collect();
    let total: usize = all.iter().map(|tensor| tensor.bytes.len()).sum();
    let text = std::fs::read_to_string(output.join("model.safetensors.index.json"))?;
    assert!(text.contains(&format!("\"total_size\": {total}\n")), "{text}");
    assert_eq!(report.bytes, total as u64);
    let joined = folder.join("joined.safetensors");
    write(&joined, &all, &[]);
    is_folded(&std::fs::read(joined)?, &tensors, axis_of, Eps::default())?;
    assert!(matches!(fold_to(gpu, &index, &output, &Rules::default()), Err(Error::Occupied { .. })));
    assert_eq!(folder.names(), ["a", "b", "joined.safetensors"]);
    Ok(())
}

/// Tensors whose place would no longer be a multiple of their element size: PyTorch cannot read such.
fn fold_keeps_alignment(gpu: &Gpu) -> Outcome {
    let folder = Folder::new("aligned");
    let (from, output) = (folder.join("a.safetensors"), folder.join("b.safetensors"));
    let tensors = [
        made("m.weight_g", Dtype::F32, &[3, 1], 1), // 12 bytes that go, in front of f64
        made("m.weight_v", Dtype::F32, &[3, 3], 2),
        made("wide", Dtype::F64, &[3], 3),
        made("half", Dtype::F16, &[3], 4),
    ];
    std::fs::write(&from, crate::files::in_order(&tensors, &[]))?;
    fold_to(gpu, &from, &output, &Rules::default())?;
    is_folded(&std::fs::read(&output)?, &tensors, axis_of, Eps::default())?;
    let folded = open(&output)?;
    let names: Vec<&str> = folded.tensors().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["m.weight", "wide", "half"]);
    assert!(folded.tensors().all(|tensor| tensor.begin.is_multiple_of(tensor.dtype.bits() / 8)));
    Ok(())
}

/// More weights than share a submission.
fn fold_many(gpu: &Gpu) -> Outcome {
    let folder = Folder::new("many");
    let (from, output) = (folder.join("a.safetensors"), folder.join("b.safetensors"));
    let pair = |i: u64| {
        let name = |half| format!("layers.{i}.weight_{half}");
        [made(&name("g"), Dtype::F32, &[2, 1], i), made(&name("v"), Dtype::F32, &[2, 3], i + 9000)]
    };
    let tensors: Vec<Made> = (0..1500).flat_map(pair).collect();
    write(&from, &tensors, &[]);
    let report = fold_to(gpu, &from, &output, &Rules::default())?;
    assert_eq!((report.weights.len(), report.submissions), (1500, 2));
    is_folded(&std::fs::read(&output)?, &tensors, axis_of, Eps::default())
}

/// Zero rows, found only while the numbers go by, and a folded weight whose name is taken: nothing is written.
fn fold_refuses(gpu: &Gpu) -> Outcome {
    let folder = Folder::new("refuses");
    let (from, output) = (folder.join("a.safetensors"), folder.join("b.safetensors"));
    std::fs::write(&output, "the old file")?;
    for dtype in [Dtype::F32, Dtype::F16] {
        let v = |zeros: [f32; 2]| (0..2 * 3001).map(move |i| if i / 3001 == 1 { zeros[i % 2] } else { 1.0 });
        let tensors = [
            made("m.weight_g", dtype, &[2, 1], 1),
            of_numbers("m.weight_v", dtype, &[2, 3001], v([0.0, -0.0])),
            made("n.weight_g", dtype, &[1, 1], 2),
            of_numbers("n.weight_v", dtype, &[1, 3], [0.0, 0.0, -1.0]),
        ];
        write(&from, &tensors, &[]);
        for window in [4096, 1 << 20] {
            let rules = Rules::default().window(window);
            match fold_to(gpu, &from, &output, &rules) {
                Err(Error::Findings { findings }) => {
                    assert_eq!((findings.len(), &findings[0].problem), (1, &Problem::ZeroRows { count: 1 }));
                    assert_eq!(findings[0].weight, "m.weight");
                }
                other => return Err(format!("{other:?}").into()),
            }
            assert_eq!(std::fs::read(&output)?, b"the old file");
            let allowed = folder.join("c.safetensors");
            for eps in [Eps::default(), Eps::None] {
                let report = fold_to(gpu, &from, &allowed, &rules.clone().allow_zero_rows().eps(eps))?;
                assert_eq!(report.warnings[0].problem, Problem::ZeroRows { count: 1 });
                let not_finite = report.warnings.get(1).map(|finding| finding.problem.clone());
                assert_eq!(not_finite, (eps == Eps::None).then_some(Problem::NonFinite { count: 3001 }));
                is_folded(&std::fs::read(&allowed)?, &tensors, axis_of, eps)?;
            }
            std::fs::remove_file(allowed)?;
        }
        let mut taken = tensors.to_vec();
        taken.push(made("m.weight", dtype, &[1], 3));
        write(&from, &taken, &[]);
        match fold_to(gpu, &from, &output, &Rules::default()) {
            Err(Error::Findings { findings }) => {
                assert_eq!(findings[0].problem, Problem::NameTaken { name: "m.weight".into() });
            }
            other => return Err(format!("{other:?}").into()),
        }
        // Left out, it is in nobody's way.
        let rules = Rules::default().exclude("m.*");
        assert_eq!(fold_to(gpu, &from, &folder.join("c.safetensors"), &rules)?.weights.len(), 1);
    }
    let bad = Rules::default().eps(Eps::Clamp(0.0));
    assert!(matches!(fold_to(gpu, &from, &output, &bad), Err(Error::Gpu { .. })));
    // The name of what is no tensor: a file with one would be no file any more.
    let pair = [made("__metadata___g", Dtype::F32, &[2, 1], 1), made("__metadata___v", Dtype::F32, &[2, 3], 2)];
    write(&from, &pair, &[]);
    match fold_to(gpu, &from, &output, &Rules::default().include("__meta*")) {
        Err(Error::Findings { findings }) => {
            assert_eq!(findings[0].problem, Problem::NameTaken { name: "__metadata__".into() });
        }
        other => return Err(format!("{other:?}").into()),
    }
    assert_eq!(std::fs::read(&output)?, b"the old file");
    assert_eq!(folder.names(), ["a.safetensors", "b.safetensors", "c.safetensors"]);
    Ok(())
}

fn fold_a_trained_network(gpu: &Gpu) -> Outcome {
    let folder = Folder::new("network");
    let from = root().join("tests/data/round_cross.safetensors");
    let bytes = std::fs::read(&from)?;
    let network = SafeTensors::deserialize(&bytes)?;
    let tensors: Vec<Made> = (network.tensors().into_iter())
        .map(|(name, t)| Made { name, dtype: t.dtype(), shape: t.shape().to_vec(), bytes: t.data().to_vec() })
        .collect();
    let output = folder.join("folded.safetensors");
    assert_eq!(fold_to(gpu, &from, &output, &Rules::default())?.submissions, 1);
    is_folded(&std::fs::read(output)?, &tensors, axis_of, Eps::default())
}

fn check(gpu: &Gpu) -> Outcome {
    let folder = Folder::new("check");
    let from = folder.join("a.safetensors");
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64] {
        let mut tensors = vocoder(Spelling::Suffixes, dtype);
        tensors.push(made("odd.weight_v", dtype, &[2, 2], 90));
        let nan = f32::NAN;
        tensors.push(of_numbers("nan.weight_v", dtype, &[3, 2], [nan, 1.0, f32::INFINITY, 1.0, 1.0, 1.0]));
        tensors.push(of_numbers("nan.weight_g", dtype, &[3, 1], [1.0, 1.0, nan]));
        write(&from, &tensors, &[]);
        for window in [4096, 1 << 20] {
            let rules = Rules::default().window(window);
            let found = checkpoint::check(gpu, &open(&from)?, &rules, &mut |_| ())?;
            assert_eq!(found.weights.len(), 8);
            for weight in &found.weights {
                assert!(weight.is_right() && weight.error.is_finite(), "{weight:?}");
                // It is a comparison: of 768 roundings some are off.
                assert!(weight.weight.shape.len() < 3 || (weight.error > 0.0 && weight.part > 0.0), "{weight:?}");
            }
            assert!(found.findings.iter().any(|f| matches!(f.problem, Problem::MissingPartner { .. })));
        }
    }
    write(&from, &[], &[]);
    let nothing = checkpoint::check(gpu, &open(&from)?, &Rules::default(), &mut |_| ());
    assert!(matches!(nothing, Err(Error::NothingChosen { .. })));
    Ok(())
}

/// The device goes away between two windows.
fn device_destroyed(_: &Gpu) -> Outcome {
    let folder = Folder::new("lost");
    let (from, output) = (folder.join("a.safetensors"), folder.join("b.safetensors"));
    write(&from, &vocoder(Spelling::Suffixes, Dtype::F32), &[]);
    std::fs::write(&output, "the old file")?;
    let gpu = Gpu::new()?;
    let mut windows = 0;
    let folded = checkpoint::fold(&gpu, &open(&from)?, &output, &Rules::default().window(8192), &mut |_| {
        windows += 1;
        if windows == 2 {
            gpu.device().destroy();
        }
    });
    match folded {
        Err(Error::Gpu { source: weightnorm::Error::Device(weightnorm::DeviceError::Lost { .. }), .. }) => {}
        other => return Err(format!("{other:?}").into()),
    }
    assert!(windows >= 2);
    assert_eq!(std::fs::read(&output)?, b"the old file");
    assert_eq!(folder.names(), ["a.safetensors", "b.safetensors"]);
    Ok(())
}
