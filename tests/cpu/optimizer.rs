//! The optimizer steps against PyTorch's, against closed forms and against a loop written another way.
use serde_json::Value;
use weightnorm::{Adam, ArgumentError, Axis, Eps, Error, ParamGroup, Sgd, cpu};

use crate::common::{compare, own_golden_dir};
use crate::ranges;

#[track_caller]
fn assert_close(got: &[f64], expected: &[f64], bound: f64) {
    compare(got, expected, None, |i| bound * (1.0 + expected[i].abs())).unwrap();
}

/// The gradient of step t: given, not a function of the parameters, whose feedback would make roundings grow.
fn gradient(t: usize, n: usize) -> Vec<f64> {
    (0..n).map(|i| (1.3 * i as f64 + 0.7 * t as f64).sin() + (i * 7 % 5) as f64 / 4.0 - 0.5).collect()
}

const STEPS: usize = 50;
const G: [f64; 3] = [1.0, -0.5, 0.0];
const V: [f64; 6] = [0.3, -1.2, 0.0, 2.0, -0.1, 0.7];

/// One parameter at a time, with its history of gradients: m of step t is the sum of all of them, with their weights.
fn sgd_by_history(sgd: &Sgd, group: ParamGroup, start: &[f64]) -> Vec<f64> {
    let mut parameters = start.to_vec();
    let mut history: Vec<Vec<f64>> = Vec::new();
    for t in 0..STEPS {
        let d = gradient(t, parameters.len());
        history.push(d.iter().zip(&parameters).map(|(d, p)| d + group.weight_decay * p).collect());
        for i in 0..parameters.len() {
            let weight = |s: usize| if s == 0 { 1.0 } else { 1.0 - sgd.dampening };
            let m: f64 = (0..=t).map(|s| sgd.momentum.powi((t - s) as i32) * weight(s) * history[s][i]).sum();
            let direction = match (sgd.momentum == 0.0, sgd.nesterov) {
                (true, _) => history[t][i],
                (false, false) => m,
                (false, true) => history[t][i] + sgd.momentum * m,
            };
            parameters[i] -= group.learning_rate * direction;
        }
    }
    parameters
}

#[test]
fn sgd_step_equals_the_loop_over_50_steps() {
    let groups =
        [ParamGroup { learning_rate: 0.05, weight_decay: 0.1 }, ParamGroup { learning_rate: 0.02, weight_decay: 0.0 }];
    for (momentum, dampening, nesterov) in
        [(0.0, 0.0, false), (0.9, 0.0, false), (0.9, 0.0, true), (0.8, 0.3, false), (0.8, 0.3, true), (0.0, 0.3, true)]
    {
        let sgd = Sgd { g: groups[0], v: groups[1], momentum, dampening, nesterov };
        let (mut g, mut v) = (G, V);
        let mut state = cpu::SgdState::new(3, 6);
        for t in 0..STEPS {
            let (dg, dv) = (gradient(t, g.len()), gradient(t, v.len()));
            cpu::sgd_step(&sgd, &mut g, &dg, &mut v, &dv, &mut state, None).unwrap();
        }
        assert_eq!(state.step, STEPS as u64);
        assert_close(&g, &sgd_by_history(&sgd, groups[0], &G), 1e-13);
        assert_close(&v, &sgd_by_history(&sgd, groups[1], &V), 1e-13);
    }
}

/// The moments as sums over the history, the corrections as the sums of their weights, 1 − βᵗ = (1 − β)Σβˢ.
fn adam_by_history(adam: &Adam, group: ParamGroup, start: &[f64]) -> Vec<f64> {
    let mut parameters = start.to_vec();
    let mut history: Vec<Vec<f64>> = Vec::new();
    for t in 0..STEPS {
        let mut d = gradient(t, parameters.len());
        for (d, p) in d.iter_mut().zip(&mut parameters) {
            if adam.decoupled {
                *p -= group.learning_rate * group.weight_decay * *p;
            } else {
                *d += group.weight_decay * *p;
            }
        }
        history.push(d);
        for i in 0..parameters.len() {
            let mean = |beta: f64, value: &dyn Fn(f64) -> f64| {
                let weights: f64 = (0..=t).map(|s| beta.powi(s as i32)).sum();
                (0..=t).map(|s| beta.powi((t - s) as i32) * value(history[s][i])).sum::<f64>() / weights
            };
            let (m, s) = (mean(adam.beta1, &|d| d), mean(adam.beta2, &|d| d * d));
            parameters[i] -= group.learning_rate * m / (s.sqrt() + adam.eps);
        }
    }
    parameters
}

#[test]
fn adam_step_equals_the_loop_over_50_steps() {
    let groups =
        [ParamGroup { learning_rate: 0.05, weight_decay: 0.1 }, ParamGroup { learning_rate: 0.02, weight_decay: 0.01 }];
    for decoupled in [false, true] {
        for (beta1, beta2, eps) in [(0.9, 0.999, 1e-8), (0.5, 0.9, 1e-3), (0.0, 0.99, 1e-8)] {
            let adam = Adam { g: groups[0], v: groups[1], beta1, beta2, eps, decoupled };
            let (mut g, mut v) = (G, V);
            let mut state = cpu::AdamState::new(3, 6);
            for t in 0..STEPS {
                let (dg, dv) = (gradient(t, g.len()), gradient(t, v.len()));
                cpu::adam_step(&adam, &mut g, &dg, &mut v, &dv, &mut state, None).unwrap();
            }
            assert_eq!(state.step, STEPS as u64);
            assert_close(&g, &adam_by_history(&adam, groups[0], &G), 1e-13);
            assert_close(&v, &adam_by_history(&adam, groups[1], &V), 1e-13);
        }
    }
}

/// g and v of a step in `optimizer.json`.
fn pair(of: &Value) -> [Vec<f64>; 2] {
    ["g", "v"].map(|name| of[name].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect())
}

/// Every step of one of the file's cases, and the parameters compared where PyTorch's are kept.
fn follow_pytorch(file: &Value, case: &Value) -> Result<(), String> {
    let number = |name: &str| case[name].as_f64().unwrap();
    let group = |name: &str| {
        let of = |what: &str| case[name][what].as_f64().unwrap();
        ParamGroup { learning_rate: of("rate"), weight_decay: of("weight_decay") }
    };
    let [mut g, mut v] = pair(&file["start"]);
    let mut sgd_state = cpu::SgdState::new(g.len(), v.len());
    let mut adam_state = cpu::AdamState::new(g.len(), v.len());
    let mut kept = case["after"].as_array().unwrap().iter().peekable();
    for (t, gradients) in file["gradients"].as_array().unwrap().iter().enumerate() {
        let [dg, dv] = pair(gradients);
        match case["optimizer"].as_str().unwrap() {
            "SGD" => {
                let sgd = Sgd {
                    g: group("g"),
                    v: group("v"),
                    momentum: number("momentum"),
                    dampening: number("dampening"),
                    nesterov: case["nesterov"].as_bool().unwrap(),
                };
                cpu::sgd_step(&sgd, &mut g, &dg, &mut v, &dv, &mut sgd_state, None).unwrap();
            }
            name => {
                let adam = Adam {
                    g: group("g"),
                    v: group("v"),
                    beta1: number("beta1"),
                    beta2: number("beta2"),
                    eps: number("eps"),
                    decoupled: name == "AdamW",
                };
                cpu::adam_step(&adam, &mut g, &dg, &mut v, &dv, &mut adam_state, None).unwrap();
            }
        }
        let step = t as u64 + 1;
        if let Some(after) = kept.next_if(|after| after["step"] == step) {
            for (got, expected) in [&g, &v].into_iter().zip(pair(after)) {
                compare(got, &expected, None, |i| 1e-13 * (1.0 + expected[i].abs()))
                    .map_err(|e| format!("step {step}: {e}"))?;
            }
        }
    }
    assert_eq!(kept.next(), None);
    Ok(())
}

#[test]
fn optimizer_steps_follow_pytorch() {
    let text = std::fs::read_to_string(own_golden_dir().join("optimizer.json")).unwrap();
    let file: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(file["gradients"].as_array().unwrap().len(), STEPS);
    let cases = file["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 11);
    for case in cases {
        follow_pytorch(&file, case).unwrap_or_else(|e| panic!("{case}\n{e}"));
        // The negative controls: a decay a little off, the last v off in its tenth digit.
        let mut other = case.clone();
        other["g"]["weight_decay"] = (case["g"]["weight_decay"].as_f64().unwrap() + 1e-9).into();
        follow_pytorch(&file, &other).unwrap_err();
        let mut other = case.clone();
        let last = other["after"].as_array_mut().unwrap().last_mut().unwrap();
        last["v"][5] = (last["v"][5].as_f64().unwrap() * (1.0 + 1e-10)).into();
        assert!(follow_pytorch(&file, &other).unwrap_err().contains("step 50: 1 of 6"));
    }
}

/// A constant gradient d: θ moves by γd·Σ(1 − μˢ)/(1 − μ), s = 1..t.
#[test]
fn sgd_step_of_a_constant_gradient() {
    let sgd = Sgd { momentum: 0.9, ..Sgd::new(0.1) };
    let (mut v, mut state) = ([1.0], cpu::SgdState::new(0, 1));
    for _ in 0..20 {
        cpu::sgd_step(&sgd, &mut [], &[], &mut v, &[2.0], &mut state, None).unwrap();
    }
    let sum: f64 = (1..=20).map(|s| (1.0 - 0.9f64.powi(s)) / 0.1).sum();
    assert_close(&v, &[1.0 - 0.1 * 2.0 * sum], 1e-14);
}

/// The first step goes by the rate, whatever the size of the gradient; so does every one where the gradient is
/// constant.
#[test]
fn adam_step_of_a_constant_gradient_goes_by_the_rate() {
    let adam = Adam { eps: 0.0, ..Adam::new(1e-2) };
    let d = [1e-20, -3.0, 1e20, -1e-3];
    let (mut v, mut state) = ([0.0; 4], cpu::AdamState::new(0, 4));
    for t in 1..=30 {
        cpu::adam_step(&adam, &mut [], &[], &mut v, &d, &mut state, None).unwrap();
        let way = 1e-2 * f64::from(t);
        assert_close(&v, &[-way, way, -way, way], 1e-12);
    }
    // ε stands beside the corrected root: d = ε halves the step.
    let adam = Adam { eps: 1e-3, ..adam };
    let mut g = [0.0];
    cpu::adam_step(&adam, &mut g, &[1e-3], &mut [], &[], &mut cpu::AdamState::new(1, 0), None).unwrap();
    assert_close(&g, &[-5e-3], 1e-14);
}

/// Without gradients only the decay is left: AdamW's is a geometric decay of g alone.
#[test]
fn adam_step_decays_apart_from_the_gradient() {
    let adam = Adam::adamw(0.1, 0.2);
    let (mut g, mut v, mut state) = ([3.0], [5.0], cpu::AdamState::new(1, 1));
    for _ in 0..10 {
        cpu::adam_step(&adam, &mut g, &[0.0], &mut v, &[0.0], &mut state, None).unwrap();
    }
    assert_close(&g, &[3.0 * 0.98f64.powi(10)], 1e-14);
    assert_eq!(v, [5.0]);
    // Adam's decay is a gradient like any other: the first step goes by the rate.
    let adam = Adam { decoupled: false, eps: 0.0, ..adam };
    let mut g = [3.0];
    cpu::adam_step(&adam, &mut g, &[0.0], &mut [], &[], &mut cpu::AdamState::new(1, 0), None).unwrap();
    assert_close(&g, &[2.9], 1e-14);
}

/// A projection leaves w where it was and rows of norm 1, for every kept axis.
#[test]
fn optimizer_step_projects_v() {
    let shape = [2, 3];
    for axis in [Axis::Kept(0), Axis::Kept(1), Axis::Whole] {
        let kept = if let Axis::Kept(k) = axis { shape[k] } else { 1 };
        let run = |project: Option<(&[usize], Axis, Eps)>, adam: bool| {
            let (mut g, mut v) = (G[..kept].to_vec(), [0.3, -1.2, 0.4, 2.0, -0.1, 0.7]);
            let (dg, dv) = (gradient(0, kept), gradient(0, 6));
            if adam {
                let mut state = cpu::AdamState::new(kept, 6);
                cpu::adam_step(&Adam::new(0.1), &mut g, &dg, &mut v, &dv, &mut state, project).unwrap();
            } else {
                let mut state = cpu::SgdState::new(kept, 6);
                cpu::sgd_step(&Sgd::new(0.1), &mut g, &dg, &mut v, &dv, &mut state, project).unwrap();
            }
            (cpu::normalize(&v, &shape, Some(&g), axis, Eps::None).unwrap(), v)
        };
        for adam in [false, true] {
            let (w, v) = run(Some((&shape, axis, Eps::None)), adam);
            assert_close(&cpu::row_norms(&v, &shape, axis, Eps::None).unwrap(), &vec![1.0; kept], 1e-15);
            let (free_w, free_v) = run(None, adam);
            assert_close(&w, &free_w, 1e-14);
            assert!(compare(&v, &free_v, None, |_| 1e-3).is_err());
        }
    }
}

/// Salimans & Kingma, section 2.1: dv is orthogonal to v, so a plain step makes ‖v‖² larger by γ²‖dv‖².
#[test]
fn sgd_step_grows_v_by_pythagoras() {
    let (shape, axis) = ([2, 3], Axis::Kept(0));
    let mut v = [0.3, -1.2, 0.4, 2.0, -0.1, 0.7];
    let (dv, _) = cpu::normalize_backward(&gradient(0, 6), &v, &shape, Some(&[2.0, -1.0]), axis, Eps::None).unwrap();
    let norms = |v: &[f64]| cpu::row_norms(v, &shape, axis, Eps::None).unwrap();
    let expected: Vec<_> = norms(&v).iter().zip(norms(&dv)).map(|(n, d)| n.hypot(0.5 * d)).collect();
    cpu::sgd_step(&Sgd::new(0.5), &mut [], &[], &mut v, &dv, &mut cpu::SgdState::new(0, 6), None).unwrap();
    assert_close(&norms(&v), &expected, 1e-14);
}

/// Nothing has changed after an error.
#[test]
fn optimizer_step_rejects_what_does_not_fit() {
    let (mut g, mut v) = ([1.0], [2.0, 3.0]);
    let length = |got, expected| Error::Argument(ArgumentError::Length { got, expected, shape: vec![expected] });
    let (sgd, adam) = (Sgd::new(0.1), Adam::new(0.1));
    for (dg, dv, state_g, state_v, error) in
        [(2, 2, 1, 2, length(2, 1)), (1, 1, 1, 2, length(1, 2)), (1, 2, 0, 2, length(0, 1)), (1, 2, 1, 3, length(3, 2))]
    {
        let (dg, dv) = (vec![1.0; dg], vec![1.0; dv]);
        let mut state = cpu::SgdState::new(state_g, state_v);
        assert_eq!(cpu::sgd_step(&sgd, &mut g, &dg, &mut v, &dv, &mut state, None).unwrap_err(), error);
        assert_eq!(state, cpu::SgdState::new(state_g, state_v));
        let mut state = cpu::AdamState::new(state_g, state_v);
        assert_eq!(cpu::adam_step(&adam, &mut g, &dg, &mut v, &dv, &mut state, None).unwrap_err(), error);
        assert_eq!(state, cpu::AdamState::new(state_g, state_v));
    }
    for (shape, axis, eps) in [
        (&[3, 1][..], Axis::Kept(0), Eps::None),
        (&[1, 2], Axis::Kept(2), Eps::None),
        (&[1, 2], Axis::Kept(0), Eps::Clamp(0.0)),
    ] {
        let mut state = cpu::SgdState::new(1, 2);
        let project = Some((shape, axis, eps));
        cpu::sgd_step(&sgd, &mut g, &[1.0], &mut v, &[1.0; 2], &mut state, project).unwrap_err();
        let mut state = cpu::AdamState::new(1, 2);
        cpu::adam_step(&adam, &mut g, &[1.0], &mut v, &[1.0; 2], &mut state, project).unwrap_err();
    }
    assert_eq!((g, v), ([1.0], [2.0, 3.0]));
}

/// Every field with every bad value is refused before anything changes; what lies at the ends of the ranges is not.
#[test]
fn optimizer_step_rejects_numbers_out_of_range() {
    let (mut g, mut v) = ([1.0], [2.0, 3.0]);
    for (sgd, text) in ranges::bad_sgds() {
        let mut state = cpu::SgdState::new(1, 2);
        let error = cpu::sgd_step(&sgd, &mut g, &[1.0], &mut v, &[1.0; 2], &mut state, None).unwrap_err();
        assert_eq!(error.to_string(), format!("sgd_step: {text}"));
        assert_eq!(state, cpu::SgdState::new(1, 2));
    }
    for (adam, text) in ranges::bad_adams() {
        let mut state = cpu::AdamState::new(1, 2);
        let error = cpu::adam_step(&adam, &mut g, &[1.0], &mut v, &[1.0; 2], &mut state, None).unwrap_err();
        assert_eq!(error.to_string(), format!("adam_step: {text}"));
        assert_eq!(state, cpu::AdamState::new(1, 2));
    }
    assert_eq!((g, v), ([1.0], [2.0, 3.0]));

    let none = ParamGroup { learning_rate: 0.0, weight_decay: 0.0 };
    let sgd = Sgd { g: none, v: none, momentum: 1.5, dampening: -2.0, nesterov: false };
    let adam = Adam { g: none, v: none, beta1: 0.0, beta2: 1.0 - f64::EPSILON, eps: 0.0, decoupled: true };
    let (mut sgd_state, mut adam_state) = (cpu::SgdState::new(1, 2), cpu::AdamState::new(1, 2));
    // The last step that there is, again and again.
    (sgd_state.step, adam_state.step) = (u64::MAX - 1, u64::MAX - 1);
    for _ in 0..2 {
        cpu::sgd_step(&sgd, &mut g, &[1.0], &mut v, &[1.0; 2], &mut sgd_state, None).unwrap();
        cpu::adam_step(&adam, &mut g, &[1.0], &mut v, &[1.0; 2], &mut adam_state, None).unwrap();
    }
    assert_eq!((g, v, sgd_state.step, adam_state.step), ([1.0], [2.0, 3.0], u64::MAX, u64::MAX));
}
