//! Adapters of DoRA in peft's layouts, merged by the reference.
use std::path::Path;

use safetensors::Dtype;
use weightnorm_checkpoint::{Checkpoint, Device, Error, Report, Rules, Scaling, merge};

use crate::common::File;
use crate::files::{Folder, Made, made, write};

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
    write(&folder.join("model"), model, &[("format", "pt")]);
    let model = Checkpoint::open(&folder.join("model")).unwrap();
    let adapter = adapter.map(|tensors| {
        write(&folder.join("adapter"), tensors, &[]);
        Checkpoint::open(&folder.join("adapter")).unwrap()
    });
    let (output, rules) = (folder.join("out"), Rules::default());
    merge(Device::Reference, &model, adapter.as_ref(), &output, scaling, &rules, &mut |_| ())
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
        assert_eq!((report.weights.len(), report.copied, report.warnings.len()), (1, 1, 0));
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
    assert_eq!((report.weights.len(), report.copied), (1, 1));
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
