//! Every case of the folder of reference cases on the CPU reference.
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use weightnorm::{Activation, Axis, cpu};

use crate::common::*;

/// Both sides compute in f64 and may add in any order: K additions of relative error 2⁻⁵³ each, twice, and a few more.
fn relative(k: usize) -> f64 {
    (2 * k + 16) as f64 * 2f64.powi(-53)
}

/// The forward outputs of one case, and the names of the tensors that had a part in it; none if the operator is not
/// there yet.
fn check(case: &Golden) -> Result<&'static [&'static str], String> {
    let checked: &[&str] = match case.op {
        Op::WeightNorm => &["v", "g", "norm", "w"],
        Op::Linear => &["v", "g", "norm", "x", "b", "y"],
        Op::Conv1d | Op::Conv2d | Op::ConvTranspose1d => return Ok(&[]),
    };
    let failed = |e: weightnorm::Error| case.file.fail(e);
    let off = |name: &'static str| move |e: String| case.file.fail(format_args!("{name}: {e}"));
    let (v, g, norm) = (case.tensor("v")?, case.tensor("g")?, case.tensor("norm")?);
    let normalize = |g: &[f64]| cpu::normalize(&v.data, &v.shape, Some(g), case.axis, case.eps).map_err(failed);

    let norms = cpu::row_norms(&v.data, &v.shape, case.axis, case.eps).map_err(failed)?;
    let norm_bound = |n: f64| relative(v.data.len()) * n + case.eps_slack(n);
    compare(&norms, &norm.data, None, |j| norm_bound(norm.data[j])).map_err(off("norm"))?;

    // w is off by the relative error of its row's norm and a few roundings: normalize with the gain made so small.
    let w = normalize(&g.data)?;
    let relative_error = |n: f64| {
        if n > 0.0 && n.is_finite() { norm_bound(n) / n + relative(0) } else { 0.0 }
    };
    let w_bound = abs(&normalize(&g.data.iter().zip(&norms).map(|(g, &n)| g * relative_error(n)).collect::<Vec<_>>())?);
    if case.op == Op::WeightNorm {
        compare(&w, &case.tensor("w")?.data, None, |i| w_bound[i]).map_err(off("w"))?;
        return Ok(checked);
    }

    // y is off by Σ|x|·(error of w), and by the roundings of its own sum.
    let x = case.tensor("x")?;
    let linear = |x_data: &[f64], w: &[f64], bias: Option<&[f64]>| {
        cpu::linear(x_data, &x.shape, w, &v.shape, bias, Activation::None).map_err(failed)
    };
    let bias = case.optional("b").map(|b| b.data.as_slice());
    let y = linear(&x.data, &w, bias)?;
    let from_w = linear(&abs(&x.data), &w_bound, None)?;
    let terms = linear(&abs(&x.data), &abs(&w), bias.map(abs).as_deref())?;
    let y_bound = |i: usize| from_w[i] + relative(v.shape[1]) * terms[i];
    compare(&y, &case.tensor("y")?.data, None, y_bound).map_err(off("y"))?;
    Ok(checked)
}

fn abs(values: &[f64]) -> Vec<f64> {
    values.iter().map(|a| a.abs()).collect()
}

#[derive(Debug, Default, PartialEq)]
struct Report {
    files: usize,
    /// Files of which nothing is checked yet.
    untouched: Vec<String>,
    /// Tensors of the other files that are not looked at yet.
    tensors: BTreeSet<String>,
}

/// All cases of a folder; every failure is reported, not only the first.
fn check_folder(dir: &Path) -> Result<Report, String> {
    let mut failures = Vec::new();
    let mut report = Report::default();
    for path in golden_files(dir)? {
        report.files += 1;
        match Golden::load(&path).and_then(|case| Ok((check(&case)?, case))) {
            Err(failure) => failures.push(failure),
            Ok(([], _)) => report.untouched.push(path.file_stem().unwrap_or_default().to_string_lossy().into()),
            Ok((checked, case)) => {
                let rest = case.file.tensors.keys().filter(|name| !checked.contains(&name.as_str()));
                report.tensors.extend(rest.map(|name| format!("{:?} {name}", case.op)));
            }
        }
    }
    if failures.is_empty() { Ok(report) } else { Err(failures.join("\n")) }
}

/// What of our own folder is not checked yet: the convolutions, and the gradients until the backward pass is there.
fn not_yet_covered() -> Report {
    let untouched =
        ["conv1d_16x8x7", "conv1d_dilated_grouped", "conv1d_tap_24x6x16", "conv2d_8x6x3x3", "conv_transpose1d_16x8x4"];
    let tensors = [
        "Linear db",
        "Linear dg",
        "Linear dv",
        "Linear dx",
        "Linear dy",
        "WeightNorm dg",
        "WeightNorm dv",
        "WeightNorm dw",
    ];
    Report {
        files: 27,
        untouched: untouched.map(String::from).into(),
        tensors: tensors.map(String::from).into_iter().collect(),
    }
}

#[test]
fn golden() {
    let dir = golden_dir();
    let report = check_folder(&dir).unwrap_or_else(|failures| panic!("\n{failures}"));
    // Written past the test harness, which would swallow it: what is not covered must be seen.
    let Report { files, untouched, tensors } = &report;
    let covered = files - untouched.len();
    let note =
        format!("golden: {covered} of {files} files; not yet covered: {untouched:?}, in the others {tensors:?}\n");
    let _ = std::io::stderr().write_all(note.as_bytes());
    if dir == own_golden_dir() {
        assert_eq!(report, not_yet_covered());
    }
}

#[test]
fn golden_fails_without_cases() {
    let nowhere = own_golden_dir().join("nowhere");
    assert!(check_folder(&nowhere).unwrap_err().contains("nowhere"));
    let empty = std::env::temp_dir().join(format!("weightnorm-empty-{}", std::process::id()));
    std::fs::create_dir_all(&empty).unwrap();
    let result = check_folder(&empty);
    std::fs::remove_dir(&empty).unwrap();
    assert!(result.unwrap_err().contains("no .safetensors file"));
}

/// The negative control: one element of each kind of output changed in its tenth digit.
#[test]
fn golden_catches_a_wrong_value() {
    for (file, name) in [
        ("wn_middle_3x5x17", "norm"),
        ("wn_middle_3x5x17", "w"),
        ("wn_zero_row_clamp", "norm"),
        ("linear_33x257x129", "norm"),
        ("linear_33x257x129", "y"),
    ] {
        let path = own_golden_dir().join(format!("{file}.safetensors"));
        let mut case = Golden::load(&path).unwrap();
        check(&case).unwrap();
        case.file.tensors.get_mut(name).unwrap().data[3] *= 1.0 + 1e-10;
        let message = check(&case).unwrap_err();
        assert!(message.contains(&format!("{file}.safetensors: {name}: 1 of")), "{message}");
    }
}

/// A wrong axis or policy does not pass either.
#[test]
fn golden_catches_a_wrong_axis() {
    let mut case = Golden::load(&own_golden_dir().join("linear_in_17x48x40.safetensors")).unwrap();
    case.axis = Axis::Whole;
    assert!(check(&case).is_err());
}

/// Files that somebody else made: each defect is an error that names the file and the field.
#[test]
fn golden_names_the_defect_of_a_file() {
    let dir = std::env::temp_dir().join(format!("weightnorm-golden-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("strange.safetensors");
    let good = [("op", "weight_norm"), ("dim", "0"), ("dtype", "f32"), ("eps_policy", "clamp"), ("eps", "1e-12")];
    let defect = |metadata: &[(&str, &str)], tensors: &[&str], element: safetensors::Dtype| -> String {
        let bytes = vec![0; element.bitsize() / 8 * 4];
        let view = safetensors::tensor::TensorView::new(element, vec![2, 2], &bytes).unwrap();
        let metadata = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        safetensors::serialize_to_file(tensors.iter().map(|name| (*name, &view)), Some(metadata), &path).unwrap();
        Golden::load(&path).and_then(|case| check(&case)).unwrap_err()
    };
    let f32 = safetensors::Dtype::F32;
    let mut messages = Vec::new();
    for field in 0..good.len() {
        let (name, _) = good[field];
        let mut strange = good;
        strange[field].1 = "strange";
        messages.push((name, defect(&strange, &["v"], f32)));
        let missing: Vec<_> = good.iter().copied().filter(|(other, _)| *other != name).collect();
        messages.push((name, defect(&missing, &["v"], f32)));
    }
    messages.push(("tensor v is missing", defect(&good, &["g"], f32)));
    messages.push(("tensor norm is missing", defect(&good, &["v", "g"], f32)));
    messages.push(("tensor v is F16, metadata dtype", defect(&good, &["v", "g"], safetensors::Dtype::F16)));
    messages.push(("tensor g has the unknown dtype I8", defect(&good, &["g"], safetensors::Dtype::I8)));
    messages.push(("eps is 0e0", {
        let mut zero = good;
        zero[4].1 = "0";
        defect(&zero, &["v", "g", "norm", "w"], f32)
    }));
    std::fs::write(&path, b"not safetensors").unwrap();
    messages.push(("header", Golden::load(&path).unwrap_err()));
    std::fs::remove_dir_all(&dir).unwrap();

    for (field, message) in messages {
        assert!(message.contains("strange.safetensors") && message.contains(field), "{field}: {message}");
    }
}
