//! Adapters of DoRA in peft's layouts, merged by the reference.
use std::path::Path;

use safetensors::Dtype;
use weightnorm::Eps;
use weightnorm_checkpoint::{Checkpoint, Device, Error, Problem, Report, Rules, Scaling, Spelling};
use weightnorm_checkpoint::{fold, inspect, merge, split};

use crate::common::File;
use crate::files::{Content, Folder, Made, made, of_numbers, write};

const OUTS: usize = 6;
const INS: usize = 10;
const RANK: usize = 2;

fn base(name: &str, dtype: Dtype) -> Made {
    made(name, dtype, &[OUTS, INS], 1)
}

/// A, B and the magnitude by the names that a layout has for them.
fn parts(names: [&str; 3]) -> Vec<Made> {
    vec![
        made(names[0], Dtype::F32, &[RANK, INS], 2),
        made(names[1], Dtype::F32, &[OUTS, RANK], 3),
        made(names[2], Dtype::F32, &[OUTS], 4),
    ]
}

fn merged(folder: &Folder, model: &[Made], adapter: Option<&[Made]>, scaling: Scaling) -> Result<Report, Error> {
    merged_by(folder, model, adapter, scaling, &Rules::default())
}

fn merged_by(
    folder: &Folder,
    model: &[Made],
    adapter: Option<&[Made]>,
    scaling: Scaling,
    rules: &Rules,
) -> Result<Report, Error> {
    write(&folder.join("model"), model, &[("format", "pt")]);
    let model = Checkpoint::open(&folder.join("model")).unwrap();
    let adapter = adapter.map(|tensors| {
        write(&folder.join("adapter"), tensors, &[]);
        Checkpoint::open(&folder.join("adapter")).unwrap()
    });
    merge(Device::Reference, &model, adapter.as_ref(), &folder.join("out"), scaling, rules, &mut |_| ())
}

/// Row by row: W = W0 + s·B·A, then m·W/‖W‖.
fn expected(numbers: &dyn Fn(usize) -> Vec<f64>, s: f64) -> Vec<f64> {
    let [base, a, b, m] = [0, 1, 2, 3].map(numbers);
    let mut all = vec![];
    for j in 0..OUTS {
        let row: Vec<f64> = (0..INS)
            .map(|k| base[j * INS + k] + s * (0..RANK).map(|r| b[j * RANK + r] * a[r * INS + k]).sum::<f64>())
            .collect();
        let norm = row.iter().map(|w| w * w).sum::<f64>().sqrt();
        all.extend(row.iter().map(|w| m[j] * w / norm));
    }
    all
}

fn close(got: &[f64], expected: &[f64], relative: f64) {
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() <= relative * expected.abs(), "{got} {expected}");
    }
}

/// In alphabetical order.
fn names(path: &Path) -> Vec<String> {
    let checkpoint = Checkpoint::open(path).unwrap();
    let mut names: Vec<_> = checkpoint.tensors().map(|tensor| tensor.name.clone()).collect();
    names.sort();
    names
}

#[test]
fn merge_takes_an_adapter_of_its_own_file() {
    let folder = Folder::new("merge");
    let own = ["base_model.model.l.q.lora_A.weight", "base_model.model.l.q.lora_B.weight"];
    let adapter = parts([own[0], own[1], "base_model.model.l.q.lora_magnitude_vector"]);
    let other = made("l.q.bias", Dtype::F32, &[OUTS], 9);
    for (dtype, relative) in [(Dtype::F32, 2e-7), (Dtype::F16, 1e-3), (Dtype::BF16, 8e-3), (Dtype::F64, 2e-7)] {
        let model = [base("l.q.weight", dtype), other.clone()];
        let report = merged(&folder, &model, Some(&adapter), Scaling::Alpha(3.0)).unwrap();
        assert_eq!((report.merged.len(), report.weights.len(), report.copied, report.warnings.len()), (1, 0, 1, 0));
        let layer = &report.merged[0];
        assert_eq!((&layer.name[..], layer.rank, &layer.shape[..]), ("l.q.weight", RANK, &[OUTS, INS][..]));
        assert_eq!(names(&folder.join("out")), ["l.q.bias", "l.q.weight"]);
        let (model, adapter) = (folder.join("model"), folder.join("adapter"));
        let (model, adapter) = (File::load(&model).unwrap(), File::load(&adapter).unwrap());
        let numbers = |i: usize| match i {
            0 => model.tensor("l.q.weight").unwrap().data.clone(),
            1 | 2 => adapter.tensor(own[i - 1]).unwrap().data.clone(),
            _ => adapter.tensor("base_model.model.l.q.lora_magnitude_vector").unwrap().data.clone(),
        };
        let out = File::load(&folder.join("out")).unwrap();
        let w = out.tensor("l.q.weight").unwrap();
        close(&w.data, &expected(&numbers, 1.5), relative);
        let stored = if dtype == Dtype::F64 { Dtype::F32 } else { dtype };
        assert_eq!((w.dtype, &w.shape[..]), (stored, &[OUTS, INS][..]));
        assert_eq!(out.tensor("l.q.bias").unwrap().bytes, other.bytes);
    }
}

#[test]
fn merge_takes_the_state_of_a_whole_model() {
    let folder = Folder::new("merge-whole");
    let module = "base_model.model.l.q";
    let names_of = [".lora_A.default.weight", ".lora_B.default.weight", ".lora_magnitude_vector.default.weight"];
    let names_of = names_of.map(|end| format!("{module}{end}"));
    let mut model = vec![
        base(&format!("{module}.base_layer.weight"), Dtype::F32),
        made(&format!("{module}.base_layer.bias"), Dtype::F32, &[OUTS], 9),
        made("base_model.model.norm.weight", Dtype::F32, &[INS], 8),
    ];
    model.extend(parts([&names_of[0], &names_of[1], &names_of[2]]));
    let report = merged(&folder, &model, None, Scaling::RankStabilized(2.0)).unwrap();
    assert_eq!((report.merged.len(), report.copied, &report.merged[0].adapter[..]), (1, 1, "default"));
    let weight = format!("{module}.weight");
    let expected_names = [&format!("{module}.bias"), &weight, "base_model.model.norm.weight"];
    assert_eq!(names(&folder.join("out")), expected_names);
    let before = File::load(&folder.join("model")).unwrap();
    let numbers = |i: usize| {
        let name = if i == 0 { format!("{module}.base_layer.weight") } else { names_of[i - 1].clone() };
        before.tensor(&name).unwrap().data.clone()
    };
    let out = File::load(&folder.join("out")).unwrap();
    let s = f64::from(2f32 / 2f32.sqrt());
    close(&out.tensor(&weight).unwrap().data, &expected(&numbers, s), 3e-7);
}

/// Each with a part of what the error says, and nothing written.
#[test]
fn merge_refuses_what_it_would_lose_or_does_not_fit() {
    let folder = Folder::new("merge-refused");
    let model = [base("l.weight", Dtype::F32)];
    let adapter = parts(["l.lora_A.weight", "l.lora_B.weight", "l.lora_magnitude_vector"]);
    let with = |change: &dyn Fn(&mut Vec<Made>)| {
        let mut changed = adapter.clone();
        change(&mut changed);
        changed
    };
    let renamed = |i: usize, name: &str| with(&|parts| name.clone_into(&mut parts[i].name));
    let cases = [
        (with(&|parts| drop(parts.pop())), "there is no l.lora_magnitude_vector beside it"),
        (with(&|parts| drop(parts.remove(0))), "there is no l.lora_A beside it"),
        (with(&|parts| parts.push(made("head.weight", Dtype::F32, &[3], 5))), "would be lost"),
        (with(&|parts| parts.push(made("l.lora_A.other.weight", Dtype::F32, &[3], 5))), "has another adapter"),
        (with(&|parts| parts[0] = made("l.lora_A.weight", Dtype::F32, &[RANK, INS + 1], 2)), "do not fit"),
        (with(&|parts| parts[2] = made("l.lora_magnitude_vector", Dtype::I64, &[OUTS], 2)), "not computed"),
        (renamed(1, "m.lora_B.weight"), "there is no l.lora_B beside it"),
    ];
    for (adapter, message) in cases {
        let error = merged(&folder, &model, Some(&adapter), Scaling::Factor(1.0)).unwrap_err();
        assert!(matches!(error, Error::Tensor { .. }) && error.to_string().contains(message), "{error}");
    }
    let elsewhere = parts(["m.lora_A.weight", "m.lora_B.weight", "m.lora_magnitude_vector"]);
    let error = merged(&folder, &model, Some(&elsewhere), Scaling::Factor(1.0)).unwrap_err();
    assert!(error.to_string().contains("has no weight of it: m.weight"), "{error}");
    let nothing = merged(&folder, &model, None, Scaling::Factor(1.0)).unwrap_err();
    assert!(matches!(nothing, Error::NothingChosen { .. }), "{nothing}");
    assert!(!folder.join("out").exists());
}

/// One row of zeros, and one where the update takes all of W0 away.
#[test]
fn merge_tells_rows_of_zeros() {
    let folder = Folder::new("merge-zero-rows");
    let model = [of_numbers("l.weight", Dtype::F32, &[4, 2], [0.0, 0.0, 1.0, 2.0, 3.0, -1.0, 0.0, 1.0])];
    let adapter = [
        of_numbers("l.lora_A.weight", Dtype::F32, &[1, 2], [1.0, 2.0]),
        of_numbers("l.lora_B.weight", Dtype::F32, &[4, 1], [0.0, -0.5, 1.0, 0.0]),
        of_numbers("l.lora_magnitude_vector", Dtype::F32, &[4], [1.0, 2.0, 3.0, 0.0]),
    ];
    let merged = |rules: &Rules| merged_by(&folder, &model, Some(&adapter), Scaling::Factor(2.0), rules);
    let problems = |findings: Vec<weightnorm_checkpoint::Finding>| -> Vec<_> {
        findings.into_iter().map(|finding| (finding.weight, finding.problem)).collect()
    };
    let zero = ("l.weight".to_owned(), Problem::ZeroRows { count: 2 });
    let Err(Error::Findings { findings }) = merged(&Rules::default().eps(Eps::Clamp(1e-12))) else { panic!() };
    assert_eq!(problems(findings), std::slice::from_ref(&zero));
    assert!(matches!(merged(&Rules::default()), Err(Error::Findings { .. })));
    assert_eq!(folder.names(), ["adapter", "model"]);
    let rules = Rules::default().allow_zero_rows();
    let finite = problems(merged(&rules.clone().eps(Eps::Clamp(1e-12))).unwrap().warnings);
    assert_eq!(finite, std::slice::from_ref(&zero));
    let w = Content::read(&folder.join("out")).unwrap().numbers("l.weight");
    assert_eq!((&w[..4], &w[6..]), (&[0.0; 4][..], &[0.0; 2][..]));
    let length = (5f64 * 5.0 + 3.0 * 3.0).sqrt();
    close(&w[4..6], &[3.0 * 5.0 / length, 3.0 * 3.0 / length], 1e-7);
    let odd = problems(merged(&rules).unwrap().warnings);
    assert_eq!(odd, [zero, ("l.weight".to_owned(), Problem::NonFinite { count: 4 })]);
}

/// What is not merged is listed, and stays byte for byte.
#[test]
fn merge_is_for_layers_that_the_others_leave_as_they_are() {
    let folder = Folder::new("merge-others");
    let [from, output] = ["from", "out"].map(|name| folder.join(name));
    let pair = [made("n.weight_v", Dtype::F32, &[3, 4], 6), made("n.weight_g", Dtype::F32, &[3, 1], 7)];
    let lora =
        [made("m.lora_A.weight", Dtype::F32, &[RANK, INS], 8), made("m.lora_B.weight", Dtype::F32, &[OUTS, RANK], 9)];
    let mut tensors = parts(["l.q.lora_A.x.weight", "l.q.lora_B.x.weight", "l.q.lora_magnitude_vector.x.weight"]);
    tensors.push(base("l.q.base_layer.weight", Dtype::BF16));
    tensors.extend(parts([
        "base_model.model.k.lora_A.weight",
        "base_model.model.k.lora_B.weight",
        "base_model.model.k.lora_magnitude_vector",
    ]));
    tensors.extend(lora);
    write(&from, &tensors, &[]);
    let checkpoint = Checkpoint::open(&from).unwrap();
    let layers = inspect(&checkpoint, &Rules::default(), &mut |_| ()).unwrap().dora;
    let told =
        layers.iter().map(|layer| (&layer.name[..], &layer.adapter[..], layer.base.as_deref(), layer.dtype.name()));
    let expected = [("k.weight", "", None, "F32"), ("l.q.weight", "x", Some("l.q.base_layer.weight"), "BF16")];
    assert_eq!(told.collect::<Vec<_>>(), expected);
    assert!(layers.iter().all(|layer| layer.shape == [OUTS, INS] && layer.rank == RANK));
    let one = inspect(&checkpoint, &Rules::default().exclude("k.*"), &mut |_| ()).unwrap();
    assert_eq!((one.dora.len(), one.others), (1, 9));

    // Nothing else is there.
    let folded = |from: &Path| {
        fold(Device::Reference, &Checkpoint::open(from).unwrap(), &output, &Rules::default(), &mut |_| ())
    };
    let error = folded(&from).unwrap_err();
    assert!(matches!(error, Error::NothingChosen { .. }) && error.to_string().contains("merge"), "{error}");

    tensors.extend(pair);
    write(&from, &tensors, &[]);
    let report = folded(&from).unwrap();
    let problems: Vec<_> = report.warnings.iter().map(|finding| (&finding.weight[..], &finding.problem)).collect();
    assert_eq!((problems, report.copied), (vec![("k.weight", &Problem::Dora { count: 2 })], 9));
    let content = Content::read(&output).unwrap();
    for tensor in tensors.iter().filter(|tensor| !tensor.name.starts_with("n.")) {
        assert_eq!(content.tensors[&tensor.name].2, tensor.bytes);
    }
    // A wildcard takes no part of an adapter apart; its name does.
    for (rules, expected) in [
        (Rules::default().include("*q.*").include("*m.lora*"), &["l.q.base_layer.weight"][..]),
        (Rules::default().include("m.lora_A.weight"), &["m.lora_A.weight"]),
    ] {
        let checkpoint = Checkpoint::open(&from).unwrap();
        let report = split(Device::Reference, &checkpoint, &output, Spelling::Suffixes, &rules, &mut |_| ()).unwrap();
        assert_eq!(report.weights.iter().map(|weight| &weight.name[..]).collect::<Vec<_>>(), expected);
        assert!(report.warnings.iter().any(|finding| finding.problem == Problem::Dora { count: 2 }));
    }
}
