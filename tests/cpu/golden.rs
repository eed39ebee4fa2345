//! Every case of the folder of reference cases on the CPU reference.
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use weightnorm::{Activation, Axis, Cell, cpu};

use crate::common::*;

/// Both sides compute in f64 and may add in any order: K additions of relative error 2⁻⁵³ each, twice, and a few more.
fn relative(k: usize) -> f64 {
    (2 * k + 16) as f64 * 2f64.powi(-53)
}

/// One case, forward and backward, and the names of the tensors that had a part in it; none if the operator is not
/// there yet.
fn check(case: &Golden) -> Result<&'static [&'static str], String> {
    match case.op {
        Op::WeightNorm => check_weight_norm(case).map(|()| &["v", "g", "norm", "w", "dw", "dv", "dg"][..]),
        Op::Linear => check_linear(case).map(|()| &["v", "g", "norm", "x", "b", "y", "dy", "dx", "dv", "dg", "db"][..]),
        Op::Conv | Op::ConvTransposed => {
            check_conv(case).map(|()| &["v", "g", "norm", "x", "b", "y", "dy", "dx", "dv", "dg", "db"][..])
        }
        Op::Recurrent(cell) => check_recurrent(case, cell).map(|()| &RECURRENT[..]),
        Op::Cosine => check_cosine(case).map(|()| &["x", "v", "g", "y", "dy", "dx", "dv", "dg"][..]),
        Op::Dora => check_dora(case)
            .map(|()| &["x", "w0", "a", "b", "m", "dy", "norm", "y", "dx", "dm", "da", "db", "da_full", "db_full"][..]),
        Op::Other => Ok(&[]),
    }
}

/// The weight of a case, and how far its results may be off.
struct Weights<'a> {
    case: &'a Golden,
    v: &'a Tensor,
    g: &'a Tensor,
    w: Vec<f64>,
    w_bound: Vec<f64>,
    /// The relative error of n̂ by row.
    norm_errors: Vec<f64>,
    row_length: usize,
}

impl<'a> Weights<'a> {
    /// The effective norms, checked.
    fn check(case: &'a Golden) -> Result<Weights<'a>, String> {
        let failed = |e: weightnorm::Error| case.file.fail(e);
        let (v, g, norm) = (case.tensor("v")?, case.tensor("g")?, case.tensor("norm")?);
        let normalize = |g: &[f64]| cpu::normalize(&v.data, &v.shape, Some(g), case.axis, case.eps).map_err(failed);

        let norms = cpu::row_norms(&v.data, &v.shape, case.axis, case.eps).map_err(failed)?;
        let row_length = v.data.len() / g.data.len().max(1);
        let norm_bound = |n: f64| relative(row_length) * n + case.eps_slack(n);
        compare_named(case, "norm", &norms, |j| norm_bound(norm.data[j]))?;

        // w is off by the relative error of its row's norm and a few roundings: normalize with the gain made so small.
        let relative_error = |&n: &f64| if n > 0.0 && n.is_finite() { norm_bound(n) / n + relative(0) } else { 0.0 };
        let norm_errors: Vec<f64> = norms.iter().map(relative_error).collect();
        let w = normalize(&g.data)?;
        let w_bound = abs(&normalize(&g.data.iter().zip(&norm_errors).map(|(g, e)| g * e).collect::<Vec<_>>())?);
        Ok(Weights { case, v, g, w, w_bound, norm_errors, row_length })
    }

    /// dv and dg against the file: n̂ goes into dv three times, into dg once, and sums over a row and over `batch`
    /// besides.
    fn compare_gradients(
        &self,
        (dv, dg): (&[f64], &[f64]),
        terms: (&[f64], &[f64]),
        batch: usize,
    ) -> Result<(), String> {
        let row = |at| row_of(at, &self.v.shape, self.case.axis);
        let error = |j: usize, times: f64| times * self.norm_errors[j] + relative(self.row_length + batch);
        compare_named(self.case, "dv", dv, |at| error(row(at), 3.0) * terms.0[at])?;
        compare_named(self.case, "dg", dg, |j| error(j, 1.0) * terms.1[j])
    }
}

fn compare_named(case: &Golden, name: &str, got: &[f64], bound: impl Fn(usize) -> f64) -> Result<(), String> {
    let expected = &case.tensor(name)?.data;
    compare(got, expected, None, bound).map(drop).map_err(|e| case.file.fail(format_args!("{name}: {e}")))
}

fn check_weight_norm(case: &Golden) -> Result<(), String> {
    let weights = Weights::check(case)?;
    let Weights { v, g, w, w_bound, .. } = &weights;
    compare_named(case, "w", w, |i| w_bound[i])?;

    let dw = &case.tensor("dw")?.data;
    let (dv, dg) = cpu::normalize_backward(dw, &v.data, &v.shape, Some(&g.data), case.axis, case.eps)
        .map_err(|e| case.file.fail(e))?;
    let (dv_terms, dg_terms) = normalize_terms(dw, &v.data, &v.shape, Some(&g.data), case.axis, case.eps);
    weights.compare_gradients((&dv, &dg), (&dv_terms, &dg_terms), 0)
}

fn check_linear(case: &Golden) -> Result<(), String> {
    let failed = |e: weightnorm::Error| case.file.fail(e);
    let weights = Weights::check(case)?;
    let Weights { v, g, w, w_bound, .. } = &weights;
    // y is off by Σ|x|·(error of w), and by the roundings of its own sum.
    let x = case.tensor("x")?;
    let linear = |x_data: &[f64], w: &[f64], bias: Option<&[f64]>| {
        cpu::linear(x_data, &x.shape, w, &v.shape, bias, Activation::None).map_err(failed)
    };
    let bias = case.optional("b").map(|b| b.data.as_slice());
    let y = linear(&x.data, w, bias)?;
    let from_w = linear(&abs(&x.data), w_bound, None)?;
    let terms = linear(&abs(&x.data), &abs(w), bias.map(abs).as_deref())?;
    compare_named(case, "y", &y, |i| from_w[i] + relative(v.shape[1]) * terms[i])?;

    let dy = &case.tensor("dy")?.data;
    let weight = cpu::Weight::Normalized { v: &v.data, g: Some(&g.data), axis: case.axis, eps: case.eps };
    let gradients =
        cpu::linear_backward(&x.data, &x.shape, weight, &v.shape, None, Activation::None, dy).map_err(failed)?;
    let terms = linear_terms(&x.data, weight, &v.shape, dy);
    let batch = dy.len() / v.shape[0].max(1);
    let worst_norm = weights.norm_errors.iter().fold(0f64, |a, &b| a.max(b));
    compare_named(case, "dx", &gradients.dx, |i| (worst_norm + relative(v.shape[0])) * terms.dx[i])?;
    if bias.is_some() || case.optional("db").is_some() {
        compare_named(case, "db", &gradients.dbias, |j| relative(batch) * terms.dbias[j])?;
    }
    let dg = |gradients: &cpu::LinearGradients| gradients.dg.clone().unwrap_or_default();
    weights.compare_gradients((&gradients.dv, &dg(&gradients)), (&terms.dv, &dg(&terms)), batch)
}

fn check_conv(case: &Golden) -> Result<(), String> {
    let failed = |e: weightnorm::Error| case.file.fail(e);
    let weights = Weights::check(case)?;
    let Weights { v, g, w, w_bound, .. } = &weights;
    let transposed = case.op == Op::ConvTransposed;
    let (x, dy, bias) = (case.tensor("x")?, &case.tensor("dy")?.data, case.optional("b").map(|b| b.data.as_slice()));
    let conv = |x_data: &[f64], w: &[f64], bias: Option<&[f64]>| {
        let conv = if transposed { cpu::conv_transposed } else { cpu::conv };
        conv(x_data, &x.shape, w, &v.shape, bias, &case.geometry, &cpu::ConvEnds::default()).map_err(failed)
    };
    let weight = cpu::Weight::Normalized { v: &v.data, g: Some(&g.data), axis: case.axis, eps: case.eps };
    let (y_terms, terms) = conv_terms(transposed, &case.geometry, (&x.data, &x.shape), weight, &v.shape, bias, dy);
    // y is off by Σ|x|·(error of w), and by the roundings of its own sum.
    let y = conv(&x.data, w, bias)?;
    let from_w = conv(&abs(&x.data), w_bound, None)?;
    let steps = v.data.len();
    compare_named(case, "y", &y, |i| from_w[i] + relative(steps) * y_terms[i])?;

    let backward = if transposed { cpu::conv_transposed_backward } else { cpu::conv_backward };
    let gradients =
        backward(&x.data, &x.shape, weight, &v.shape, dy, &case.geometry, Activation::None).map_err(failed)?;
    let worst_norm = weights.norm_errors.iter().fold(0f64, |a, &b| a.max(b));
    compare_named(case, "dx", &gradients.dx, |i| (worst_norm + relative(steps)) * terms.dx[i])?;
    if bias.is_some() || case.optional("db").is_some() {
        compare_named(case, "db", &gradients.dbias, |j| relative(dy.len()) * terms.dbias[j])?;
    }
    let dg = |gradients: &cpu::LinearGradients| gradients.dg.clone().unwrap_or_default();
    weights.compare_gradients((&gradients.dv, &dg(&gradients)), (&terms.dv, &dg(&terms)), dy.len())
}

const RECURRENT: [&str; 23] = [
    "x", "v_ih", "g_ih", "v_hh", "g_hh", "b_ih", "b_hh", "h0", "c0", "y", "h_n", "c_n", "dy", "dx", "dv_ih", "dg_ih",
    "dv_hh", "dg_hh", "db_ih", "db_hh", "dh0", "dc0", "norm",
];

/// Both sides are off by what the tracked arithmetic says, in f64.
fn check_recurrent(case: &Golden, cell: Cell) -> Result<(), String> {
    let failed = |e: weightnorm::Error| case.file.fail(e);
    let layer = case.recurrent(cell)?;
    let dy = &case.tensor("dy")?.data;
    let off = recurrent::tracked(&layer, (dy, None), 2f64.powi(-53), None);
    let near = |name: &str, got: &[f64], off: &[recurrent::Off]| match case.optional(name) {
        Some(_) => compare_named(case, name, got, |i| 2.0 * off[i].e),
        None => Ok(()),
    };
    let cpu::Sequence { y, c } = cpu::recurrent(&layer).map_err(failed)?;
    let last = y.len() - y.len() / layer.x_shape[0];
    near("y", &y, &off.y)?;
    near("h_n", &y[last..], &off.y[last..])?;
    near("c_n", &c.unwrap_or_default(), &off.c)?;
    let cpu::RecurrentGradients { input, hidden, dc } = cpu::recurrent_backward(&layer, dy, None).map_err(failed)?;
    near("dx", &input.dx, &off.dx)?;
    near("dh0", &hidden.dx, &off.dh0)?;
    near("dc0", &dc.unwrap_or_default(), &off.dc)?;
    for (of, got, off) in [("ih", input, off.input), ("hh", hidden, off.hidden)] {
        near(&format!("dv_{of}"), &got.dv, &off.dv)?;
        near(&format!("dg_{of}"), &got.dg.unwrap_or_default(), &off.dg)?;
        near(&format!("db_{of}"), &got.dbias, &off.dbias)?;
    }
    Ok(())
}

fn check_cosine(case: &Golden) -> Result<(), String> {
    let failed = |e: weightnorm::Error| case.file.fail(e);
    let (x, v, g, dy) = (case.tensor("x")?, case.tensor("v")?, case.tensor("g")?, case.tensor("dy")?);
    let g = Some(&g.data[..]);
    let y = cpu::cosine(&x.data, &x.shape, &v.data, &v.shape, g, case.eps).map_err(failed)?;
    let cpu::CosineGradients { dx, dv, dg } =
        cpu::cosine_backward(&x.data, &x.shape, &v.data, &v.shape, g, case.eps, &dy.data).map_err(failed)?;
    let shape = |t: &Tensor| [t.shape[0], t.shape[1]];
    let terms = cosine::cosine_terms((&x.data, &shape(x)), (&v.data, &shape(v)), g, case.eps, &dy.data);
    // Two norms over rows of v and x, each up to three times.
    let [rows, ins] = shape(x);
    let outs = v.shape[0];
    let roundings = relative(8 * ins + rows + outs);
    // Where a norm is the file's e, that of its own row. (A row of zeros plays no part in the gradients of others.)
    let slack = |t: &Tensor| -> Result<Vec<f64>, String> {
        let norms = cpu::row_norms(&t.data, &t.shape, Axis::Kept(0), case.eps).map_err(failed)?;
        Ok(norms.iter().map(|&n| 3.0 * case.eps_slack(n) / n).collect())
    };
    let (of_x, of_v) = (slack(x)?, slack(v)?);
    let of_y = |i: usize| of_x[i / outs] + of_v[i % outs];
    compare_named(case, "y", &y, |i| (roundings + of_y(i)) * terms[0][i])?;
    compare_named(case, "dx", &dx, |i| (roundings + of_x[i / ins]) * terms[1][i])?;
    compare_named(case, "dv", &dv, |i| (roundings + of_v[i / ins]) * terms[2][i])?;
    compare_named(case, "dg", &dg, |j| (roundings + of_v[j]) * terms[3][j])
}

fn check_dora(case: &Golden) -> Result<(), String> {
    let failed = |e: weightnorm::Error| case.file.fail(e);
    let [x, dy] = [case.tensor("x")?, case.tensor("dy")?];
    let weight = case.dora_weight()?;
    let y = cpu::dora(&x.data, &x.shape, &weight, None).map_err(failed)?;
    let norms = cpu::dora_norms(&weight).map_err(failed)?;
    let [outs, ins] = weight.shape;
    let roundings = relative(4 * (ins + outs + weight.rank + x.shape[0]));
    let terms = |through| dora::dora_terms((&x.data, &x.shape), &weight, None, &dy.data, through);
    let constant = terms(false);
    // Of n̂, whose terms may be much larger than it is.
    let own = |j: usize| roundings * constant.norm_terms[j];
    let worst = (0..outs).map(own).fold(0f64, f64::max);
    compare_named(case, "norm", &norms, |j| (roundings + own(j)) * constant.norms[j])?;
    compare_named(case, "y", &y, |i| (roundings + own(i % outs)) * constant.y[i])?;
    for (through, da, db) in [(false, "da", "db"), (true, "da_full", "db_full")] {
        let terms = terms(through).gradients;
        let got = cpu::dora_backward(&x.data, &x.shape, &weight, &dy.data, through).map_err(failed)?;
        compare_named(case, "dx", &got.dx, |i| (roundings + worst) * terms.dx[i])?;
        compare_named(case, "dm", &got.dmagnitude, |j| (roundings + own(j)) * terms.dmagnitude[j])?;
        compare_named(case, da, &got.da, |i| (roundings + 4.0 * worst) * terms.da[i])?;
        compare_named(case, db, &got.db, |i| (roundings + 4.0 * own(i / weight.rank)) * terms.db[i])?;
    }
    Ok(())
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
        assert_eq!(report, Report { files: 52, ..Report::default() }, "all of our own folder is covered");
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
        ("wn_middle_3x5x17", "dv"),
        ("wn_middle_3x5x17", "dg"),
        ("wn_zero_row_clamp", "norm"),
        ("linear_33x257x129", "norm"),
        ("linear_33x257x129", "y"),
        ("linear_33x257x129", "dx"),
        ("linear_33x257x129", "dv"),
        ("linear_33x257x129", "dg"),
        ("linear_33x257x129", "db"),
        ("dora_6x40x24_r4", "y"),
        ("dora_6x40x24_r4", "db"),
        ("dora_6x40x24_r4", "da_full"),
        ("dora_6x40x24_r4", "dm"),
        ("cosine_9x33x20", "y"),
        ("cosine_9x33x20", "dx"),
        ("cosine_9x33x20", "dv"),
        ("conv1d_dilated_grouped", "y"),
        ("conv1d_reflect_16x1x7", "dx"),
        ("conv2d_mpd_5x1_s3", "dv"),
        ("conv_transpose1d_crop_k5_s3", "y"),
        ("conv_transpose1d_groups", "dg"),
        ("conv_transpose2d_k4_s2", "dx"),
        ("conv_transpose2d_k4_s2", "db"),
        ("lstm_T7_B5", "y"),
        ("lstm_T7_B5", "c_n"),
        ("lstm_T7_B5", "dc0"),
        ("lstm_T7_B5", "dg_hh"),
        ("gru_T5_B3", "h_n"),
        ("gru_T5_B3", "dh0"),
        ("gru_T5_B3", "dv_hh"),
        ("gru_T5_B3", "db_ih"),
        ("rnn_T6_B9", "y"),
        ("rnn_T6_B9", "db_hh"),
    ] {
        let path = own_golden_dir().join(format!("{file}.safetensors"));
        let mut case = Golden::load(&path).unwrap();
        check(&case).unwrap();
        case.file.tensors.get_mut(name).unwrap().data[3] *= 1.0 + 1e-10;
        let message = check(&case).expect_err(name);
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
