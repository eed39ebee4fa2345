//! Tensors beside pairs that are called after them, or end as they do.
use safetensors::Dtype;
use weightnorm_checkpoint::{Checkpoint, Device, Problem, Rules, Spelling, split};

use crate::files::{Folder, made, write};

/// The weights of a file whose tensors have those names and shapes, and what is reported that is no optimizer's state.
fn found(tensors: &[(&str, &[usize])]) -> (Vec<String>, Vec<Problem>) {
    let folder = Folder::new("others");
    let path = folder.join("model.safetensors");
    let tensors: Vec<_> = tensors.iter().map(|(name, shape)| made(name, Dtype::F32, shape, 5)).collect();
    write(&path, &tensors, &[]);
    let found = Checkpoint::open(&path).unwrap().weights(&Rules::default());
    let problems = found.findings.into_iter().map(|finding| finding.problem);
    let problems = problems.filter(|problem| !matches!(problem, Problem::OptimizerState { .. })).collect();
    let mut names: Vec<String> = found.weights.into_iter().map(|weight| weight.name).collect();
    names.sort();
    (names, problems)
}

/// What an optimizer keeps of a parametrized weight is no other parametrization of it.
#[test]
fn state_behind_a_parametrization() {
    let [g, v] = ["original0", "original1"].map(|half| format!("l.parametrizations.weight.{half}"));
    for end in [".exp_avg", "_exp_avg_sq", ".momentum_buffer", ".m", "_m", ".grad"] {
        let [g_state, v_state] = [&g, &v].map(|half| format!("{half}{end}"));
        let tensors = [(&*g, &[4, 1][..]), (&v, &[4, 3]), (&g_state, &[4, 1]), (&v_state, &[4, 3])];
        assert_eq!(found(&tensors), (vec!["l.weight".to_owned()], vec![]), "{end}");
    }
    let other = found(&[(&*g, &[4, 1][..]), (&v, &[4, 3]), ("l.parametrizations.weight.1.scale", &[4])]);
    assert!(other.0.is_empty() && matches!(other.1[..], [Problem::OtherParametrization { .. }]), "{other:?}");
}

/// One moment alone, as SGD and Lion have, or all of an optimizer's under its name: beside the weights that they are
/// of.
#[test]
fn state_in_front_of_a_name_that_is_there() {
    for prefix in ["m.", "mu.", "trace.", "velocity.", "grad.", "gen_opt.", "opt_d.", "opt.state.", "adamw."] {
        let [g, v] = ["g", "v"].map(|half| format!("{prefix}layer.weight_{half}"));
        let tensors = [("layer.weight_g", &[4, 1][..]), ("layer.weight_v", &[4, 3]), (&g, &[4, 1]), (&v, &[4, 3])];
        assert_eq!(found(&tensors), (vec!["layer.weight".to_owned()], vec![]), "{prefix}");
        // Alone it is a module.
        assert_eq!(found(&tensors[2..]).0, [format!("{prefix}layer.weight")]);
    }
    for prefix in ["ema.", "shadow.", "teacher.", "model_ema.module.", "x.m."] {
        let [g, v] = ["g", "v"].map(|half| format!("{prefix}layer.weight_{half}"));
        let tensors = [("layer.weight_g", &[4, 1][..]), ("layer.weight_v", &[4, 3]), (&g, &[4, 1]), (&v, &[4, 3])];
        let mut expected = ["layer.weight".to_owned(), format!("{prefix}layer.weight")];
        expected.sort();
        assert_eq!(found(&tensors).0, expected);
    }
}

/// What is no weight is not split either, unless it is named.
#[test]
fn state_is_not_split() {
    let folder = Folder::new("others-split");
    let (from, to) = (folder.join("a.safetensors"), folder.join("b.safetensors"));
    let names = ["l.weight", "m.l.weight", "v.l.weight", "opt.l.weight", "l.weight.exp_avg", "ema.l.weight"];
    write(&from, &names.map(|name| made(name, Dtype::F32, &[2, 3], 1)), &[]);
    let checkpoint = Checkpoint::open(&from).unwrap();
    let split = |pattern: &str| {
        let rules = Rules::default().include(pattern);
        let report = split(Device::Reference, &checkpoint, &to, Spelling::Suffixes, &rules, &mut |_| ()).unwrap();
        let mut names: Vec<String> = report.weights.into_iter().map(|weight| weight.name).collect();
        names.sort();
        names
    };
    assert_eq!(split("*weight"), ["ema.l.weight", "l.weight"]);
    assert_eq!(split("m.l.weight"), ["m.l.weight"]);
}

/// Beside a key, value and gate of one shape are no pair, those of a bias too.
#[test]
fn attention_whose_parts_have_one_shape() {
    let head: [(&str, &[usize]); 2] = [("head.weight_g", &[5, 1]), ("head.weight_v", &[5, 4])];
    for (shape, g_shape, name) in [
        (&[8][..], &[8][..], "bias"),
        (&[8, 8], &[8, 8], "weight"),
        (&[8, 8], &[8], "weight"),
        (&[8, 1], &[8, 1], "weight"),
    ] {
        let [q, k, v, g] = ["q", "k", "v", "g"].map(|part| format!("att.{name}_{part}"));
        let tensors = [&head[..], &[(&q, shape), (&k, shape), (&v, shape), (&g, g_shape)]].concat();
        let (names, problems) = found(&tensors);
        assert_eq!(names, ["head.weight"], "{shape:?}");
        assert!(matches!(problems[..], [Problem::NotTaken { .. }]), "{problems:?}");
    }
}
