//! Checkpoints through the GPU: folded, taken apart, checked, in windows of all kinds, and cut short by errors.
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;

use libtest_mimic::Completion;
use safetensors::{Dtype, SafeTensors};
use weightnorm::{Axis, DType, Eps, Gpu, cpu, half};
use weightnorm_checkpoint::{self as checkpoint, Checkpoint, Error, FileDType, Problem, Report, Rules, Spelling};

use crate::common::{compare, flush_bound, norm_bound, norm_chain, peak, reset_peak, root, row_of, weight_bound};
use crate::files::{Folder, Made, made, of_numbers, vocoder, write, write_sharded};
use crate::{Failed, Needs, Outcome, Suite, killed};

pub fn register(suite: &mut Suite) {
    suite.test("checkpoint::fold", Needs::Nothing, fold);
    suite.test("checkpoint::fold_in_windows", Needs::Nothing, fold_in_windows);
    suite.test("checkpoint::fold_beyond_f32", Needs::Nothing, fold_beyond_f32);
    suite.test("checkpoint::fold_sharded", Needs::Nothing, fold_sharded);
    suite.test("checkpoint::fold_keeps_alignment", Needs::Nothing, fold_keeps_alignment);
    suite.test("checkpoint::fold_many", Needs::Nothing, fold_many);
    suite.test("checkpoint::fold_refuses", Needs::Nothing, fold_refuses);
    suite.test("checkpoint::fold_a_trained_network", Needs::Nothing, fold_a_trained_network);
    suite.test("checkpoint::split_and_fold", Needs::Nothing, split_and_fold);
    suite.test("checkpoint::split_refuses", Needs::Nothing, split_refuses);
    suite.test("checkpoint::check", Needs::Nothing, check);
    suite.test("checkpoint::device_destroyed", Needs::Nothing, device_destroyed);
    suite.test_if_able("checkpoint::disk_full", disk_full);
    suite.test_with_pytorch("checkpoint::pytorch", pytorch);
    suite.test_with_pytorch("checkpoint::foreign_pytorch_lines_run", foreign_pytorch_lines_run);
    suite.test("checkpoint::larger_than_the_window", Needs::Time, larger_than_the_window);
    suite.test("checkpoint::killed_at_many_moments", Needs::Time, killed_at_many_moments);
    suite.test(CHILD, Needs::Time, child);
}

fn open(path: &Path) -> Result<Checkpoint, Failed> {
    Ok(Checkpoint::open(path)?)
}

fn fold_to(gpu: &Gpu, from: &Path, output: &Path, rules: &Rules) -> Result<Report, Error> {
    let (mut done, mut total) = (0, 0);
    let report = checkpoint::fold(gpu, &Checkpoint::open(from)?, output, rules, &mut |p| {
        assert!(p.done > done && p.done <= p.total, "{p:?}");
        (done, total) = (p.done, p.total);
    })?;
    assert_eq!((done, total), (report.bytes, report.bytes));
    Ok(report)
}

/// The numbers of a tensor in a file, exactly.
fn numbers(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    let chunks = bytes.chunks(dtype.bitsize() / 8);
    match dtype {
        Dtype::F32 => chunks.map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
        Dtype::F64 => chunks.map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
        Dtype::F16 => chunks.map(|b| half::f16::from_le_bytes(b.try_into().unwrap()).into()).collect(),
        Dtype::BF16 => chunks.map(|b| half::bf16::from_le_bytes(b.try_into().unwrap()).into()).collect(),
        other => panic!("{other:?}"),
    }
}

fn computed(dtype: Dtype) -> (DType, Dtype) {
    match dtype {
        Dtype::F16 => (DType::F16, Dtype::F16),
        Dtype::BF16 => (DType::Bf16, Dtype::BF16),
        _ => (DType::F32, Dtype::F32),
    }
}

/// Axes as `vocoder` has them; 0 for every other weight.
fn axis_of(name: &str) -> Axis {
    match name {
        "encoder.pos_conv.weight" => Axis::Kept(2),
        "gain.weight" => Axis::Whole,
        _ => Axis::Kept(0),
    }
}

/// A folded file beside the tensors that it was folded from, in whatever order.
fn is_folded(bytes: &[u8], from: &[Made], axis_of: impl Fn(&str) -> Axis, eps: Eps) -> Outcome {
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

/// g is within the bound of a norm, v is w byte for byte, and folded they are w within the roundings of both.
fn split_and_fold(gpu: &Gpu) -> Outcome {
    let folder = Folder::new("split");
    let [from, output, back] = ["a", "b", "c"].map(|name| folder.join(&format!("{name}.safetensors")));
    let shapes: [(&str, &[usize], Axis, &[usize]); 4] = [
        ("conv.weight", &[16, 8, 7], Axis::Kept(0), &[16, 1, 1]),
        ("pos.weight", &[24, 6, 16], Axis::Kept(2), &[1, 1, 16]),
        ("whole.weight", &[9, 200], Axis::Whole, &[]),
        ("row.weight", &[3, 2501], Axis::Kept(0), &[3, 1]),
    ];
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64] {
        let mut tensors: Vec<Made> =
            shapes.iter().enumerate().map(|(i, &(name, shape, ..))| made(name, dtype, shape, i as u64 + 1)).collect();
        tensors.push(made("conv.bias", dtype, &[16], 9));
        tensors.push(made("norm.scale_v", dtype, &[4], 10));
        write(&from, &tensors, &[("format", "pt")]);
        for (spelling, window, gain) in
            [(Spelling::Suffixes, 1 << 20, None), (Spelling::Parametrizations, 4096, Some(DType::F32))]
        {
            let mut rules = Rules::default().include("*.weight").window(window);
            rules.gain = gain;
            for (name, _, axis, _) in shapes {
                rules = rules.axis(name, axis);
            }
            let report = checkpoint::split(gpu, &open(&from)?, &output, spelling, &rules, &mut |_| ())?;
            assert_eq!((report.weights.len(), report.copied), (4, 2));
            let bytes = std::fs::read(&output)?;
            let parted = SafeTensors::deserialize(&bytes)?;
            let (storage, stored) = computed(dtype);
            let g_storage = gain.unwrap_or(storage);
            for (tensor, (name, shape, axis, g_shape)) in tensors.iter().zip(shapes) {
                let (g, v) = (parted.tensor(&spelling.g(name))?, parted.tensor(&spelling.v(name))?);
                assert_eq!((g.shape(), v.shape(), v.dtype()), (g_shape, shape, stored));
                let w = numbers(dtype, &tensor.bytes);
                assert_eq!(numbers(stored, v.data()), w);
                let norms = cpu::row_norms(&w, shape, axis, Eps::default())?;
                let chain = norm_chain(w.len() / norms.len());
                let bound = |j: usize| norm_bound(chain, norms[j]) + storage_error(g_storage, norms[j]);
                compare(&numbers(g.dtype(), g.data()), &norms, Some(g_storage), bound)?;
            }
            // The other spelling would do as well: the names say which it is.
            let axes = rules.axes.clone();
            let mut rules = Rules::default().window(window);
            rules.axes = axes;
            fold_to(gpu, &output, &back, &rules)?;
            let bytes = std::fs::read(&back)?;
            let folded = SafeTensors::deserialize(&bytes)?;
            for (tensor, (name, ..)) in tensors.iter().zip(shapes) {
                let (w, got) = (numbers(dtype, &tensor.bytes), folded.tensor(name)?);
                let chain = norm_chain(w.len());
                let bound = |i: usize| weight_bound(2 * chain, w[i], storage) + storage_error(g_storage, w[i]) * 1.01;
                compare(&numbers(stored, got.data()), &w, Some(storage), bound)?;
            }
        }
    }
    Ok(())
}

/// Half a unit in the last place.
fn storage_error(dtype: DType, x: f64) -> f64 {
    x.abs()
        * 2f64.powi(match dtype {
            DType::F32 => -24,
            DType::F16 => -11,
            DType::Bf16 => -8,
        })
}

fn split_refuses(gpu: &Gpu) -> Outcome {
    let folder = Folder::new("split-refuses");
    let (from, output) = (folder.join("a.safetensors"), folder.join("b.safetensors"));
    let split = |tensors: &[Made], rules: &Rules| {
        write(&from, tensors, &[]);
        let (mut done, mut total) = (0, 0);
        let report = checkpoint::split(gpu, &Checkpoint::open(&from)?, &output, Spelling::Suffixes, rules, &mut |p| {
            (done, total) = (p.done, p.total);
        })?;
        assert_eq!((done, total), (report.bytes, report.bytes));
        Ok(report)
    };
    let problems = |result: Result<Report, Error>| match result {
        Err(Error::Findings { findings }) => Ok(findings.into_iter().map(|f| f.problem).collect::<Vec<_>>()),
        other => Err(format!("{other:?}")),
    };
    // Norms of 1e5, beyond f16.
    let large = [of_numbers("m.weight", Dtype::F16, &[2, 4], [5e4, 5e4, 5e4, 5e4, 1.0, 1.0, 1.0, 1.0])];
    let all = Rules::default().include("*");
    assert_eq!(problems(split(&large, &all))?, [Problem::GainOverflow { count: 1, dtype: "F16" }]);
    assert_eq!(folder.names(), ["a.safetensors"]);
    assert_eq!(split(&large, &all.clone().gain(DType::F32))?.weights[0].g_dtype, FileDType::F32);
    std::fs::remove_file(&output)?;

    let zero = [of_numbers("m.weight", Dtype::F32, &[2, 2], [0.0, 0.0, 1.0, 1.0])];
    assert_eq!(problems(split(&zero, &all))?, [Problem::ZeroRows { count: 1 }]);
    let scalar = [made("m.weight", Dtype::F32, &[], 1), made("n.weight", Dtype::I64, &[2], 1)];
    assert_eq!(problems(split(&scalar, &all))?.len(), 2);
    // Rows without an element have norms as well; there may be more of them than there is memory, or room on any disk.
    let huge = [made("m.weight", Dtype::F32, &[1 << 57, 0], 1)];
    assert_eq!(problems(split(&huge, &all))?, [Problem::ZeroRows { count: 1 << 57 }]);
    let empty = [made("m.weight", Dtype::F32, &[3000, 0], 1)];
    assert_eq!(problems(split(&empty, &all))?, [Problem::ZeroRows { count: 3000 }]);
    split(&empty, &all.clone().allow_zero_rows().window(4096))?;
    let parted = std::fs::read(&output)?;
    assert_eq!(numbers(Dtype::F32, SafeTensors::deserialize(&parted)?.tensor("m.weight_g")?.data()), [0.0; 3000]);
    std::fs::remove_file(&output)?;
    let taken = [made("m.weight", Dtype::F32, &[2, 2], 1), made("m.weight_g", Dtype::F32, &[2, 2], 1)];
    let rules = Rules::default().include("m.weight");
    assert_eq!(problems(split(&taken, &rules))?, [Problem::NameTaken { name: "m.weight_g".into() }]);
    assert!(matches!(split(&taken, &Rules::default()), Err(Error::NothingChosen { .. })));
    assert!(matches!(split(&taken, &Rules::default().include("x")), Err(Error::NothingChosen { .. })));
    assert_eq!(folder.names(), ["a.safetensors"]);
    Ok(())
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

/// Modules of PyTorch in both spellings, folded by it in f64 and by us.
fn pytorch(gpu: &Gpu, python: &OsStr) -> Outcome {
    let folder = Folder::new("pytorch");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu/pytorch.py");
    let output = std::process::Command::new(python).arg(script).arg(&folder.0).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    for spelling in ["suffixes", "parametrizations"] {
        for (name, dtype) in
            [("float32", Dtype::F32), ("float16", Dtype::F16), ("bfloat16", Dtype::BF16), ("float64", Dtype::F64)]
        {
            let [from, theirs, ours] =
                ["", ".expected", ".ours"].map(|kind| folder.join(&format!("{spelling}-{name}{kind}.safetensors")));
            let report = fold_to(gpu, &from, &ours, &Rules::default())?;
            assert_eq!(report.weights.len(), 9);
            let (ours, theirs) = (std::fs::read(ours)?, std::fs::read(theirs)?);
            let (ours, theirs) = (SafeTensors::deserialize(&ours)?, SafeTensors::deserialize(&theirs)?);
            assert_eq!(ours.len(), theirs.len());
            let (storage, stored) = computed(dtype);
            for weight in &report.weights {
                let (got, expected) = (ours.tensor(&weight.name)?, theirs.tensor(&weight.name)?);
                assert_eq!(got.shape(), expected.shape());
                let expected = numbers(Dtype::F64, expected.data());
                let chain = norm_chain(expected.len());
                compare(&numbers(stored, got.data()), &expected, Some(storage), |i| {
                    weight_bound(chain, expected[i], storage)
                })
                .map_err(|e| format!("{spelling} {name} {}: {e}", weight.name))?;
            }
        }
    }
    Ok(())
}

/// The line of Python that is offered for PyTorch's own files, run. Nested, tied and transposed tensors, old and new
/// files, and a file that is called as ours are.
fn foreign_pytorch_lines_run(_: &Gpu, python: &OsStr) -> Outcome {
    let folder = Folder::new("foreign-torch");
    let run = |code: &str| {
        let output = std::process::Command::new(python).args(["-c", code]).current_dir(&folder.0).output().unwrap();
        assert!(output.status.success(), "{code}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run("import torch
a = torch.arange(6.).reshape(2, 3); s = {'l.weight_g': a[:, :1], 'l.weight_v': a, 'tied': a, 't': a.t()}
torch.save(s, 'plain.pth'); torch.save(s, 'old.pt', _use_new_zipfile_serialization=False)
torch.save(s, 'misnamed.safetensors'); torch.save({'state_dict': s, 'epoch': 3}, 'it\\'s \"it\".ckpt')
torch.save({'model': s, 'optimizer': {'state': {0: {'exp_avg': a}}, 'groups': [{'lr': 0.1}]}}, 'nested.bin')");
    for (name, output, prefix) in [
        ("plain.pth", "plain.safetensors", ""),
        ("old.pt", "old.safetensors", ""),
        ("misnamed.safetensors", "misnamed.new.safetensors", ""),
        ("it's \"it\".ckpt", "it's \"it\".safetensors", "state_dict."),
        ("nested.bin", "nested.safetensors", "model."),
    ] {
        let Err(error) = Checkpoint::open(&folder.join(name)) else { return Err(format!("{name} was opened").into()) };
        assert!(matches!(error, Error::Foreign { .. }), "{error:?}");
        let text = error.to_string();
        let (_, todo) = text.split_once('\n').ok_or("no second line")?;
        run(todo.split_once("in Python: ").ok_or("no line of Python")?.1);
        let saved = Checkpoint::open(&folder.join(output)).unwrap();
        let numbers = |tensor: &str| saved.read_f64(&format!("{prefix}{tensor}")).unwrap();
        for tensor in ["l.weight_v", "tied"] {
            assert_eq!(numbers(tensor), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        }
        assert_eq!((numbers("l.weight_g"), numbers("t")), (vec![0.0, 3.0], vec![0.0, 3.0, 1.0, 4.0, 2.0, 5.0]));
        let is_nested = name == "nested.bin";
        assert_eq!(saved.tensor("optimizer.state.0.exp_avg").is_some(), is_nested);
    }
    Ok(())
}

/// A file system of 1 MiB in a mount namespace of its own, where the system grants one.
fn disk_full(gpu: &Gpu) -> Result<Completion, Failed> {
    let folder = Folder::new("full");
    let mount = folder.join("small");
    std::fs::create_dir(&mount)?;
    let script = format!("mount -t tmpfs -o size=1m tmpfs '{}' && exec \"$@\"", mount.display());
    let run = |program: &[&std::ffi::OsStr]| {
        std::process::Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh"])
            .args(program)
            .env("WEIGHTNORM_TEST_FULL", &folder.0)
            .output()
    };
    match run(&["true".as_ref()]) {
        Ok(output) if output.status.success() => {}
        _ => return Ok(Completion::ignored_with("no file system of one's own can be mounted here")),
    }
    let mut tensors = vocoder(Spelling::Suffixes, Dtype::F32);
    tensors.push(made("m.weight_v", Dtype::F32, &[1 << 9, 1 << 10], 1));
    tensors.push(made("m.weight_g", Dtype::F32, &[1 << 9, 1], 2));
    write(&folder.join("a.safetensors"), &tensors, &[]);
    let _ = gpu;
    let me = std::env::current_exe()?;
    let output = run(&[me.as_os_str(), CHILD.as_ref(), "--exact".as_ref(), "--ignored".as_ref()])?;
    let text = String::from_utf8_lossy(&output.stdout);
    if output.status.success() && text.contains("1 passed") {
        return Ok(Completion::Completed);
    }
    Err(format!("{text}\n{}", String::from_utf8_lossy(&output.stderr)).into())
}

const CHILD: &str = "checkpoint::child";

/// Started by the tests that need a process of their own.
fn child(gpu: &Gpu) -> Outcome {
    if let Some(folder) = std::env::var_os("WEIGHTNORM_TEST_FULL") {
        return on_a_full_disk(gpu, Path::new(&folder));
    }
    if let Some(folder) = std::env::var_os("WEIGHTNORM_TEST_LARGE") {
        return fold_a_large_file(gpu, Path::new(&folder));
    }
    if let Some(folder) = std::env::var_os("WEIGHTNORM_TEST_ROWS") {
        return fold_many_rows(gpu, Path::new(&folder));
    }
    if let Some(folder) = std::env::var_os("WEIGHTNORM_TEST_KILLED") {
        killed::write_for_ever(Path::new(&folder), |_, checkpoint, output| {
            checkpoint::fold(gpu, checkpoint, output, &small_windows(), &mut |_| ()).unwrap();
        });
    }
    Ok(())
}

fn small_windows() -> Rules {
    Rules::default().window(64 << 10)
}

/// Killed while it folds in windows, 120 times.
fn killed_at_many_moments(gpu: &Gpu) -> Outcome {
    let folder = Folder::new("killed");
    for (name, dtype) in [("a", Dtype::F32), ("b", Dtype::BF16)] {
        let mut tensors = vocoder(Spelling::Suffixes, dtype);
        tensors.push(made("rows.weight_v", dtype, &[256, 1 << 10], 1));
        tensors.push(made("rows.weight_g", dtype, &[256, 1], 2));
        tensors.push(made("columns.weight_v", dtype, &[1 << 10, 256], 3));
        tensors.push(made("columns.weight_g", dtype, &[1, 256], 4));
        killed::prepare(&folder.0, name, tensors);
        let to = format!("{name}-folded");
        fold_to(
            gpu,
            &folder.join(&format!("{name}.safetensors")),
            &folder.join(&format!("{to}.safetensors")),
            &small_windows(),
        )?;
        let report = fold_to(gpu, &folder.join(name), &folder.join(&to), &small_windows())?;
        assert!(report.submissions > 16, "{}", report.submissions);
    }
    let mut child = std::process::Command::new(std::env::current_exe()?);
    child.args([CHILD, "--exact", "--ignored"]).env("WEIGHTNORM_TEST_KILLED", &folder.0);
    let unfinished = killed::kill(120, &folder, &mut child, ["a-folded", "b-folded"]);
    println!("{unfinished} of 120 killed while they wrote");
    assert!(unfinished > 30, "only {unfinished} of 120 were killed while they wrote");
    Ok(())
}

fn on_a_full_disk(gpu: &Gpu, folder: &Path) -> Outcome {
    let (from, small) = (folder.join("a.safetensors"), folder.join("small"));
    let output = small.join("b.safetensors");
    std::fs::write(&output, "the old file")?;
    let is_full = |error: Error| match error {
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => Ok(()),
        other => Err(format!("{other:?}")),
    };
    is_full(fold_to(gpu, &from, &output, &Rules::default()).unwrap_err())?;
    let (rules, spelling) = (Rules::default(), Spelling::Parametrizations);
    is_full(checkpoint::convert(&open(&from)?, &output, spelling, &rules, &mut |_| ()).unwrap_err())?;
    assert_eq!(std::fs::read(&output)?, b"the old file");
    let names: Vec<_> = std::fs::read_dir(&small)?.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["b.safetensors"]);
    Ok(())
}

/// Files of more than the default window, along axis 0 and along axis 1, in bounded memory; and with more rows than fit
/// into it.
fn larger_than_the_window(_: &Gpu) -> Outcome {
    let folder = Folder::new("large");
    for test in ["WEIGHTNORM_TEST_LARGE", "WEIGHTNORM_TEST_ROWS"] {
        let output = std::process::Command::new(std::env::current_exe()?)
            .args([CHILD, "--exact", "--ignored"])
            .env(test, &folder.0)
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        println!("{}", text.lines().filter(|line| line.contains("peak memory")).collect::<Vec<_>>().join("\n"));
        if !output.status.success() || !text.contains("1 passed") {
            return Err(format!("{text}\n{}", String::from_utf8_lossy(&output.stderr)).into());
        }
    }
    Ok(())
}

/// 4 Mi rows of two elements each, which lie far apart, and of one.
fn fold_many_rows(gpu: &Gpu, folder: &Path) -> Outcome {
    let (from, output) = (folder.join("rows.safetensors"), folder.join("folded.safetensors"));
    let write_rows = |rows| {
        let tensors = [
            made("a.weight_v", Dtype::F32, &[2, rows], 1),
            made("a.weight_g", Dtype::F32, &[1, rows], 2),
            made("b.weight_v", Dtype::F32, &[rows], 3),
            made("b.weight_g", Dtype::F32, &[rows], 4),
        ];
        write(&from, &tensors, &[]);
        tensors
    };
    let rules = Rules::default().window(1 << 20);
    // The first time for the kernels.
    write_rows(1 << 18);
    fold_to(gpu, &from, &output, &rules)?;
    let tensors = write_rows(1 << 22);
    reset_peak()?;
    let before = peak();
    fold_to(gpu, &from, &output, &rules)?;
    if let (Some(before), Some(after)) = (before, peak()) {
        println!("peak memory: {} KiB more, in windows of 1 MiB", (after - before) >> 10);
        assert!(after - before < 8 << 20, "{} KiB", (after - before) >> 10);
    }
    let axis = |name: &str| Axis::Kept(usize::from(name == "a.weight"));
    is_folded(&std::fs::read(&output)?, &tensors, axis, Eps::default())
}

fn fold_a_large_file(gpu: &Gpu, folder: &Path) -> Outcome {
    let (from, output) = (folder.join("a.safetensors"), folder.join("b.safetensors"));
    // 192 MiB each, written piece by piece.
    let (rows, columns) = (12 << 10, 4 << 10);
    let size = rows * columns * 4;
    let entry = |name: &str, shape: [usize; 2], begin: usize| {
        let end = begin + shape[0] * shape[1] * 4;
        format!("{name:?}:{{\"dtype\":\"F32\",\"shape\":{shape:?},\"data_offsets\":[{begin},{end}]}}")
    };
    let entries = [
        entry("a.weight_v", [rows, columns], 0),
        entry("b.weight_v", [rows, columns], size),
        entry("a.weight_g", [rows, 1], 2 * size),
        entry("b.weight_g", [1, columns], 2 * size + 4 * rows),
    ];
    let header = crate::files::raw(&format!("{{{}}}", entries.join(",")), &[]);
    let piece = made("", Dtype::F32, &[columns], 1).bytes;
    let mut file = std::io::BufWriter::new(std::fs::File::create(&from)?);
    use std::io::Write;
    file.write_all(&header)?;
    // Every row is the same, so that the norms are known: along axis 1 they are √rows·|v|.
    (0..2 * rows).try_for_each(|_| file.write_all(&piece))?;
    (0..rows + columns).try_for_each(|_| file.write_all(&2f32.to_le_bytes()))?;
    drop(file.into_inner()?);

    gpu.normalize(weightnorm::WeightNorm::unit(&gpu.upload(&[1f32; 4096], &[64, 64])?))?.read::<f32>()?;
    let before = peak();
    fold_to(gpu, &from, &output, &Rules::default())?;
    if let (Some(before), Some(after)) = (before, peak()) {
        println!("peak memory: {} MiB more", (after - before) >> 20);
        // Four windows on the host and four on the device, which is in the same memory where it is a CPU.
        assert!(after - before < 8 * (64 << 20), "{} MiB", (after - before) >> 20);
    }

    let v: Vec<f64> = numbers(Dtype::F32, &piece);
    let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let folded = open(&output)?;
    let file = std::fs::File::open(&output)?;
    let start = std::fs::metadata(&output)?.len() - 2 * size as u64;
    assert_eq!(folded.tensors().count(), 2);
    for (tensor, row_of) in [(0, 0u64), (0, rows as u64 - 1), (0, 5000), (1, 0), (1, rows as u64 - 1), (1, 7000)] {
        use std::io::{Read, Seek, SeekFrom};
        let mut bytes = vec![0; columns * 4];
        (&file).seek(SeekFrom::Start(start + tensor * size as u64 + row_of * bytes.len() as u64))?;
        (&file).read_exact(&mut bytes)?;
        let expected: Vec<f64> = v
            .iter()
            .map(|x| if tensor == 0 { 2.0 * x / norm } else { 2.0 * x.signum() / (rows as f64).sqrt() })
            .collect();
        let bound = |i: usize| weight_bound(norm_chain(columns.max(rows)), expected[i], DType::F32);
        compare(&numbers(Dtype::F32, &bytes), &expected, Some(DType::F32), bound)?;
    }
    Ok(())
}
