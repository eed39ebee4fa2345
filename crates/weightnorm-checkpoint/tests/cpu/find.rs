//! Which tensors are a weight, which axis it keeps, and what is odd.
use safetensors::Dtype;
use weightnorm::Axis::{self, Kept, Whole};
use weightnorm_checkpoint::{Checkpoint, Found, Problem, Rules, Spelling};

use crate::files::{Folder, Made, made, raw, vocoder, write};

pub fn find(tensors: &[Made], rules: &Rules) -> Found {
    let folder = Folder::new("find");
    let path = folder.join("model.safetensors");
    write(&path, tensors, &[]);
    Checkpoint::open(&path).unwrap().weights(rules)
}

/// One pair, and nothing else.
fn pair(v: &[usize], g: &[usize]) -> Vec<Made> {
    vec![made("m.weight_g", Dtype::F32, g, 1), made("m.weight_v", Dtype::F32, v, 2)]
}

#[test]
fn every_weight_is_found_in_both_spellings() {
    for spelling in [Spelling::Suffixes, Spelling::Parametrizations] {
        let mut found = find(&vocoder(spelling, Dtype::BF16), &Rules::default());
        assert_eq!(found.findings, []);
        found.weights.sort_by(|a, b| a.name.cmp(&b.name));
        let got: Vec<(&str, Axis)> = found.weights.iter().map(|w| (w.name.as_str(), w.axis)).collect();
        let expected = [
            ("conv_pre.weight", Kept(0)),
            ("encoder.pos_conv.weight", Kept(2)),
            ("gain.weight", Whole),
            ("lstm.weight_hh_l0", Kept(0)),
            ("proj.bias", Kept(0)),
            ("proj.weight", Kept(0)),
            ("ups.0.weight", Kept(0)),
        ];
        assert_eq!(got, expected);
        assert!(found.weights.iter().all(|weight| weight.spelling == spelling));
    }
}

#[test]
fn names_without_a_module_too() {
    for spelling in [Spelling::Suffixes, Spelling::Parametrizations] {
        let tensors = ["weight", "a.parametrized.b"].map(|name| {
            [made(&spelling.g(name), Dtype::F32, &[3, 1], 1), made(&spelling.v(name), Dtype::F32, &[3, 2], 2)]
        });
        let mut names: Vec<String> =
            find(&tensors.concat(), &Rules::default().include("*")).weights.into_iter().map(|w| w.name).collect();
        names.sort();
        assert_eq!(names, ["a.parametrized.b", "weight"]);
    }
    assert_eq!(Spelling::Parametrizations.g("weight"), "parametrizations.weight.original0");
    assert_eq!(Spelling::Parametrizations.v("a.b"), "a.parametrizations.b.original1");
}

/// A parametrization may have modules, and these weights again; and a parameter any name but none.
#[test]
fn names_within_parametrizations() {
    let lora = "conv.parametrizations.weight.1.down.weight";
    for name in [lora, "m.parametrizations", "parametrizations", "a.parametrizations.b", "parametrizations.original0"] {
        for spelling in [Spelling::Suffixes, Spelling::Parametrizations] {
            let of = |name: &str| {
                [made(&spelling.g(name), Dtype::F32, &[3, 1], 1), made(&spelling.v(name), Dtype::F32, &[3, 2], 2)]
            };
            let found = find(&of(name), &Rules::default().include("*"));
            assert_eq!((found.weights[0].name.as_str(), found.weights[0].spelling), (name, spelling));
            assert_eq!((found.weights.len(), found.findings.len()), (1, 0));
            if name == lora {
                // It belongs to the outer parameter, which then is not weight-normalized alone.
                let outer = [Spelling::Parametrizations.g("conv.weight"), Spelling::Parametrizations.v("conv.weight")];
                let [g, v] = outer.map(|name| if name.ends_with('0') { (name, [3, 1]) } else { (name, [3, 2]) });
                let outer = [g, v].map(|(name, shape)| made(&name, Dtype::F32, &shape, 3));
                let found = find(&[outer, of(name)].concat(), &Rules::default());
                assert_eq!((found.weights.len(), &*found.findings[0].weight), (1, "conv.weight"));
                assert!(matches!(found.findings[0].problem, Problem::OtherParametrization { .. }));
            }
        }
    }
}

#[test]
fn the_axis_follows_from_the_shapes() {
    type Case<'a> = (&'a [usize], &'a [usize], Result<Axis, &'a [usize]>);
    let cases: [Case<'_>; 17] = [
        (&[4, 3], &[4, 1], Ok(Kept(0))),
        (&[4, 3], &[1, 3], Ok(Kept(1))),
        (&[4, 3], &[4], Ok(Kept(0))),
        (&[4, 3], &[3], Ok(Kept(1))),
        (&[4, 4], &[4, 1], Ok(Kept(0))),
        (&[4, 4], &[1, 4], Ok(Kept(1))),
        (&[4, 4], &[4], Err(&[0, 1])),
        (&[4, 3, 4], &[4], Err(&[0, 2])),
        (&[4, 3, 4], &[3], Ok(Kept(1))),
        (&[4, 3], &[1, 1], Ok(Whole)),
        (&[4, 3], &[1], Ok(Whole)),
        (&[4, 3], &[], Ok(Whole)),
        (&[1, 3], &[1, 1], Ok(Kept(0))),
        (&[1, 1], &[1, 1], Ok(Kept(0))),
        (&[5], &[5], Ok(Kept(0))),
        (&[5], &[], Ok(Whole)),
        (&[], &[], Ok(Whole)),
    ];
    for (v, g, expected) in cases {
        let found = find(&pair(v, g), &Rules::default());
        match expected {
            Ok(axis) => assert_eq!((found.weights[0].axis, &found.findings[..]), (axis, &[][..]), "{v:?} {g:?}"),
            Err(axes) => {
                assert_eq!(found.weights, []);
                let (v, g, axes) = (v.to_vec(), g.to_vec(), axes.to_vec());
                assert_eq!(found.findings[0].problem, Problem::AmbiguousAxis { v, g, axes });
            }
        }
    }
    for (v, g) in [(&[4, 3][..], &[2, 1][..]), (&[4, 3], &[12]), (&[], &[2])] {
        let found = find(&pair(v, g), &Rules::default());
        assert!(matches!(found.findings[0].problem, Problem::Shape { .. }), "{v:?} {g:?}");
        assert_eq!((found.weights.len(), found.findings.len()), (0, 1));
    }
}

#[test]
fn rules_override_the_axis() {
    let square = pair(&[4, 4], &[4]);
    let rules = Rules::default().axis("other*", Kept(0)).axis("m.*", Kept(1)).axis("*", Kept(0));
    assert_eq!(find(&square, &rules).weights[0].axis, Kept(1));
    // What the shape of g rules out stays out.
    let found = find(&square, &Rules::default().axis("m.weight", Whole));
    assert!(matches!(&found.findings[0].problem, Problem::Shape { expected, .. } if expected == "[1, 1] or [1]"));
    let found = find(&square, &Rules::default().axis("m.weight", Kept(2)));
    assert_eq!(found.findings[0].problem, Problem::NoSuchAxis { axis: 2, rank: 2 });
}

#[test]
fn odd_weights_are_findings() {
    let f32 = |name: &str, shape: &[usize]| made(name, Dtype::F32, shape, 7);
    let problem = |tensors: &[Made]| {
        let found = find(tensors, &Rules::default());
        assert_eq!((found.weights.len(), found.findings.len()), (0, 1), "{found:?}");
        let finding = found.findings[0].clone();
        assert_eq!(finding.weight, "m.weight");
        assert!(!finding.problem.is_warning());
        finding.problem
    };
    let missing = |found: &str, missing: &str| Problem::MissingPartner { found: found.into(), missing: missing.into() };
    assert_eq!(problem(&[f32("m.weight_v", &[2, 2])]), missing("m.weight_v", "m.weight_g"));
    assert_eq!(
        problem(&[f32("m.parametrizations.weight.original0", &[2, 1])]),
        missing("m.parametrizations.weight.original0", "m.parametrizations.weight.original1")
    );
    let both = [
        f32("m.weight_g", &[2, 1]),
        f32("m.weight_v", &[2, 2]),
        f32("m.parametrizations.weight.original0", &[2, 1]),
        f32("m.parametrizations.weight.original1", &[2, 2]),
    ];
    assert_eq!(problem(&both), Problem::BothSpellings);
    let more = [&both[2..], &[f32("m.parametrizations.weight.1._u", &[2])]].concat();
    let tensor = "m.parametrizations.weight.1._u".to_owned();
    assert_eq!(problem(&more), Problem::OtherParametrization { tensor });
    let integers = [made("m.weight_g", Dtype::F32, &[2, 1], 1), made("m.weight_v", Dtype::I64, &[2, 2], 1)];
    assert_eq!(problem(&integers), Problem::NotComputable { tensor: "m.weight_v".into(), dtype: "I64" });
}

#[test]
fn names_of_others_are_left_alone() {
    let tensors = ["pos_bias_v", "attention.log_g", "_g", "_v", "m._g", "m._v", "parametrizations.weight"]
        .map(|name| made(name, Dtype::F32, &[2, 2], 3));
    assert_eq!(find(&tensors, &Rules::default()), Found::default());
    // A spectral norm has no pair.
    let spectral =
        ["original", "0._u", "0._v"].map(|n| made(&format!("m.parametrizations.weight.{n}"), Dtype::F32, &[2], 3));
    assert_eq!(find(&spectral, &Rules::default()), Found::default());
}

/// What is reported of a file whose tensors have those names and shapes, and the names of its weights.
fn reported(tensors: &[(&str, &[usize])], rules: &Rules) -> (Vec<String>, Vec<String>) {
    let tensors: Vec<Made> = tensors.iter().map(|(name, shape)| made(name, Dtype::F32, shape, 5)).collect();
    let Found { weights, findings, .. } = find(&tensors, rules);
    let kind = |problem: &Problem| match problem {
        Problem::NotTaken { .. } => "not taken",
        Problem::OptimizerState { .. } => "optimizer",
        Problem::Pruned { .. } => "pruned",
        Problem::OtherShape { .. } => "other shape",
        Problem::MissingPartner { .. } => "missing",
        Problem::Shape { .. } => "shape",
        other => panic!("{other}"),
    };
    let mut names: Vec<String> = weights.into_iter().map(|weight| weight.name).collect();
    let mut found: Vec<String> = findings.iter().map(|f| format!("{} {}", f.weight, kind(&f.problem))).collect();
    names.sort();
    found.sort();
    (names, found)
}

/// RWKV's, a gated unit's, attention's: they end in `_g` and `_v` by chance.
#[test]
fn pairs_of_other_names_are_taken_only_if_they_are_included() {
    let head: [(&str, &[usize]); 2] = [("head.weight_g", &[5, 1]), ("head.weight_v", &[5, 4])];
    type Case<'a> = (&'a str, &'a [usize], &'a [usize], bool);
    let cases: [Case<'_>; 8] = [
        ("att.time_mix", &[1, 1, 40], &[1, 1, 40], true),
        ("att.x", &[40], &[40], true),
        ("mlp.up", &[8, 1], &[8, 40], true),
        ("in_proj_weight", &[8, 1], &[8, 4], true),
        ("weights", &[8, 1], &[8, 4], true),
        ("weight_", &[8, 1], &[8, 4], true),
        // A gate and a value: no axis of v has such a g, included or not.
        ("mlp.gate", &[8, 40], &[8, 40], false),
        ("mlp.weight", &[8, 40], &[8, 40], false),
    ];
    for (name, g, v, can_be_taken) in cases {
        let [g_name, v_name] = ["g", "v"].map(|half| format!("{name}_{half}"));
        let tensors = [&head[..], &[(&g_name, g), (&v_name, v)]].concat();
        let not_taken = format!("{name} not taken");
        assert_eq!(reported(&tensors, &Rules::default()), (vec!["head.weight".into()], vec![not_taken.clone()]));
        let (taken, found) = reported(&tensors, &Rules::default().include(name));
        match can_be_taken {
            true => assert_eq!((taken, found), (vec![name.to_owned()], vec![])),
            false => assert_eq!((taken, found), (vec![], vec![not_taken])),
        }
        // Who leaves them out is not told of them.
        assert_eq!(reported(&tensors, &Rules::default().exclude(name)).1, [""; 0]);
    }
    for name in ["weight", "bias", "weight_1", "bias2", "weight_hh_l0", "weight_ih_l12_reverse", "weight_hr_l0"] {
        let [g, v] = ["g", "v"].map(|half| format!("a.{name}_{half}"));
        assert_eq!(reported(&[(&g, &[8, 1]), (&v, &[8, 4])], &Rules::default()).0, [format!("a.{name}")]);
    }
}

/// A number of g for each of v is no gain, unless the axis is named, or rows of axis 0 have one element as those of a
/// bias.
#[test]
fn elementwise_pairs_are_left() {
    let of = |g: &'static [usize], v: &'static [usize]| [("m.weight_g", g), ("m.weight_v", v)];
    let not_taken = (vec![], vec!["m.weight not taken".to_owned()]);
    let taken = (vec!["m.weight".to_owned()], vec![]);
    for shape in [&[1, 1, 40][..], &[1, 3], &[4, 3], &[4, 4, 1]] {
        let pair = [("m.weight_g", shape), ("m.weight_v", shape)];
        assert_eq!(reported(&pair, &Rules::default()), not_taken, "{shape:?}");
        let axis = shape.iter().rposition(|&n| n > 1).unwrap();
        let fits = shape.iter().filter(|&&n| n > 1).count() == 1;
        // Where the rules ask for it, and it can be.
        for rules in [Rules::default().axis("*", Kept(axis)), Rules::default().include("m.*")] {
            assert_eq!(reported(&pair, &rules), if fits { taken.clone() } else { not_taken.clone() }, "{shape:?}");
        }
        assert_eq!(reported(&pair, &Rules::default().axis("*", Kept(0))), not_taken, "{shape:?}");
    }
    for (g, v) in [(&[5][..], &[5][..]), (&[5, 1], &[5, 1]), (&[1, 1], &[1, 1]), (&[7, 1, 1], &[7, 1, 1])] {
        assert_eq!(reported(&of(g, v), &Rules::default()), taken, "{g:?}");
    }
    // The biases of a gate and a value.
    for (name, shape) in [("weight", &[4, 3][..]), ("up", &[4, 3]), ("x", &[4])] {
        let [g, v] = ["g", "v"].map(|half| format!("m.{name}_{half}"));
        let unit: [(&str, &[usize]); 4] = [(&g, shape), (&v, shape), ("m.bias_g", &[4]), ("m.bias_v", &[4])];
        let both = ["bias", name].map(|name| format!("m.{name} not taken")).to_vec();
        assert_eq!(reported(&unit, &Rules::default()), (vec![], both));
        let rest = reported(&unit, &Rules::default().exclude(format!("m.{name}")));
        assert_eq!(rest, (vec![], vec!["m.bias not taken".into()]));
    }
}

/// `parametrizations.NAME.original0` may belong to weight norm whatever the name, or to a parametrization of somebody's
/// own.
#[test]
fn parametrizations_of_other_names_are_taken_by_their_shapes() {
    let pair = |name: &str, g: &[usize], v: &[usize]| {
        let [g_name, v_name] = ["original0", "original1"].map(|half| format!("m.parametrizations.{name}.{half}"));
        reported(&[(&g_name, g), (&v_name, v)], &Rules::default())
    };
    assert_eq!(pair("kernel", &[8, 1], &[8, 4]), (vec!["m.kernel".into()], vec![]));
    assert_eq!(pair("kernel", &[8, 8], &[8, 8]), (vec![], vec!["m.kernel not taken".into()]));
    assert_eq!(pair("kernel", &[8, 3], &[3, 8]), (vec![], vec!["m.kernel not taken".into()]));
    assert_eq!(pair("weight", &[8, 3], &[3, 8]), (vec![], vec!["m.weight shape".into()]));
    let three = [
        ("m.parametrizations.weight.original0", &[8, 1][..]),
        ("m.parametrizations.weight.original1", &[8, 4]),
        ("m.parametrizations.weight.original2", &[4]),
    ];
    assert_eq!(reported(&three, &Rules::default()), (vec![], vec!["m.weight not taken".into()]));
    assert_eq!(reported(&[("m.parametrizations.kernel.original0", &[2])], &Rules::default()), (vec![], vec![]));
}

#[test]
fn other_tensors_that_end_in_v_miss_nothing() {
    for name in ["weight", "weight_hh_l0", "conv.weight", "lstm.weight_ih_l0_reverse"] {
        let [orig, u, v, bar] = ["orig", "u", "v", "bar"].map(|ending| format!("{name}_{ending}"));
        let spectral = [(&*orig, &[4, 3][..]), (&u, &[4]), (&v, &[3])];
        assert_eq!(reported(&spectral, &Rules::default()), (vec![], vec![]), "{name}");
        let theirs = [(&*bar, &[4, 3][..]), (&u, &[4]), (&v, &[3])];
        assert_eq!(reported(&theirs, &Rules::default()), (vec![], vec![]), "{name}");
    }
    let attention = ["bias_k", "bias_v", "m.weight_q", "m.weight_k", "m.weight_v"].map(|name| (name, &[4, 4][..]));
    assert_eq!(reported(&attention, &Rules::default()), (vec![], vec![]));
    // Grouped keys and values, and a gate.
    let gated = [("m.weight_k", &[2, 8][..]), ("m.weight_v", &[2, 8]), ("m.weight_g", &[8, 8])];
    assert_eq!(reported(&gated, &Rules::default()), (vec![], vec!["m.weight not taken".into()]));
    let spectral = [("m.parametrizations.weight.original", &[4, 3][..]), ("m.parametrizations.weight.0._v", &[3])];
    assert_eq!(reported(&spectral, &Rules::default()), (vec![], vec![]));
    let lone = [("m.weight_v", &[4, 3][..]), ("n.weight_u", &[4])];
    assert_eq!(reported(&lone, &Rules::default()), (vec![], vec!["m.weight missing".into()]));
}

#[test]
fn optimizer_state_is_left_and_averages_are_taken() {
    let pair = |prefix: &str| [format!("{prefix}m.weight_g"), format!("{prefix}m.weight_v")];
    for prefix in ["optimizer.state.exp_avg.", "exp_avg_sq.", "optimizer.m.", "adam_v.", "momentum_buffer."] {
        let [g, v] = pair(prefix);
        let tensors = [("m.weight_g", &[4, 1][..]), ("m.weight_v", &[4, 3]), (&g, &[4, 1]), (&v, &[4, 3])];
        let expected = (vec!["m.weight".to_owned()], vec![format!("{g} optimizer")]);
        assert_eq!(reported(&tensors, &Rules::default()), expected);
        assert_eq!(reported(&tensors, &Rules::default().include("*")), expected);
        // A half of it misses nothing, and alone it is no weight.
        assert_eq!(reported(&tensors[2..3], &Rules::default()), (vec![], vec![]));
        // Somebody's module of such a name.
        let name = format!("{prefix}m.weight");
        assert_eq!(reported(&tensors, &Rules::default().include(&*name)).0, [name]);
    }
    // Moments that are called after nothing else: beside each other, and beside what they are of.
    let names = ["", "state.m.", "state.v."].map(pair).concat();
    let tensors: Vec<(&str, &[usize])> =
        names.iter().map(|name| (&**name, if name.ends_with('g') { &[4, 1][..] } else { &[4, 3] })).collect();
    let expected = (vec!["m.weight".to_owned()], vec!["state.m.m.weight_g optimizer".to_owned()]);
    assert_eq!(reported(&tensors, &Rules::default()), expected);
    // Two modules of such names.
    assert_eq!(reported(&tensors[2..], &Rules::default()).0, ["state.m.m.weight", "state.v.m.weight"]);
    let names = ["m.weight_g", "m.weight_v", "m.weight_v_m", "m.weight_v_v", "m.weight_g.m", "m.weight_g.v"];
    let tensors = names.map(|name| (name, if name.contains("_g") { &[4, 1][..] } else { &[4, 3] }));
    let expected = (vec!["m.weight".to_owned()], vec!["m.weight_g.m optimizer".to_owned()]);
    assert_eq!(reported(&tensors, &Rules::default()), expected);
    for prefix in ["ema.", "ema_model.module.", "model_ema.", "averaged.", "swa."] {
        let [g, v] = pair(prefix);
        let name = format!("{prefix}m.weight");
        assert_eq!(reported(&[(&g, &[4, 1]), (&v, &[4, 3])], &Rules::default()), (vec![name], vec![]));
    }
    let suffixes = [
        ("m.weight_g", &[4, 1][..]),
        ("m.weight_v", &[4, 3]),
        ("m.weight_g.exp_avg", &[4, 1]),
        ("m.weight_v_exp_avg", &[4, 3]),
    ];
    let (names, found) = reported(&suffixes, &Rules::default());
    assert_eq!((names.len(), found.len()), (1, 1));
}

#[test]
fn pruned_halves_are_told() {
    for (tensors, expected) in [
        (
            [("m.weight_g", &[4, 1][..]), ("m.weight_v_orig", &[4, 3]), ("m.weight_v_mask", &[4, 3])].to_vec(),
            "m.weight pruned",
        ),
        (
            [("m.weight_v", &[4, 3][..]), ("m.weight_g_orig", &[4, 1]), ("m.weight_g_mask", &[4, 1])].to_vec(),
            "m.weight pruned",
        ),
        (
            [
                ("m.parametrizations.weight.original0", &[4, 1][..]),
                ("m.parametrizations.weight.original1_orig", &[4, 3]),
                ("m.parametrizations.weight.original1_mask", &[4, 3]),
            ]
            .to_vec(),
            "m.weight pruned",
        ),
    ] {
        assert_eq!(reported(&tensors, &Rules::default()), (vec![], vec![expected.to_owned()]));
        assert_eq!(reported(&tensors, &Rules::default().exclude("m.*")), (vec![], vec![]));
    }
    let plain = [("m.weight_orig", &[4, 3][..]), ("m.weight_mask", &[4, 3])];
    assert_eq!(reported(&plain, &Rules::default()), (vec![], vec![]));
    let tensors = [made("m.weight_g", Dtype::F32, &[4, 1], 1), made("m.weight_v_orig", Dtype::F32, &[4, 3], 1)];
    let mask = made("m.weight_v_mask", Dtype::F32, &[4, 3], 1);
    let message = find(&[&tensors[..], &[mask]].concat(), &Rules::default()).findings[0].to_string();
    assert!(message.contains("m.weight_v is pruned (weight_v_orig, weight_v_mask)"), "{message}");
    assert!(message.contains("torch.nn.utils.prune.remove(module, \"weight_v\")"), "{message}");
}

/// PyTorch reads g as so many numbers.
#[test]
fn a_g_of_another_shape_is_taken_where_the_axis_is_named() {
    for (v, g, axis) in [
        (&[4, 6, 3][..], &[4, 1][..], Kept(0)),
        (&[4, 6], &[1, 4], Kept(0)),
        (&[4, 3], &[4, 1, 1], Kept(0)),
        (&[4, 6, 3], &[1, 6], Kept(1)),
        (&[4, 4], &[2, 2], Kept(1)),
        (&[4, 3], &[1, 1, 1], Whole),
    ] {
        let pair = [("m.weight_g", g), ("m.weight_v", v)];
        assert_eq!(reported(&pair, &Rules::default()), (vec![], vec!["m.weight other shape".into()]), "{v:?} {g:?}");
        assert_eq!(reported(&pair, &Rules::default().axis("*", axis)).0, ["m.weight"], "{v:?} {g:?}");
    }
    // A g that says which axis it is of.
    let other = [("m.weight_g", &[1, 4][..]), ("m.weight_v", &[4, 4])];
    assert_eq!(reported(&other, &Rules::default().axis("*", Kept(0))), (vec![], vec!["m.weight shape".into()]));
}

#[test]
fn numbers_of_8_bits_are_told() {
    let folder = Folder::new("f8");
    let path = folder.join("a.safetensors");
    let header = r#"{"m.weight_g":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"m.weight_v":{"dtype":"F8_E4M3","shape":[2,4],"data_offsets":[8,16]}}"#;
    std::fs::write(&path, raw(header, &[0; 16])).unwrap();
    let found = Checkpoint::open(&path).unwrap().weights(&Rules::default());
    assert_eq!(found.findings[0].problem, Problem::NotComputable { tensor: "m.weight_v".into(), dtype: "F8_E4M3" });
    let message = found.findings[0].to_string();
    assert!(
        message.contains("m.weight_v is F8_E4M3, which is not computed: write it as BF16 or F32 first"),
        "{message}"
    );
}

#[test]
fn f64_is_a_warning() {
    let found = find(&vocoder(Spelling::Suffixes, Dtype::F64), &Rules::default());
    assert_eq!((found.weights.len(), found.findings.len()), (7, 7));
    assert!(found.findings.iter().all(|f| f.problem == Problem::Narrowed && f.problem.is_warning()));
}
