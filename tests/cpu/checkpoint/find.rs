//! Which tensors are a weight, which axis it keeps, and what is odd.
use safetensors::Dtype;
use weightnorm::Axis::{self, Kept, Whole};
use weightnorm::checkpoint::{Checkpoint, Found, Pattern, Problem, Rules, Spelling};

use crate::common::files::{Folder, Made, made, vocoder, write};

fn find(tensors: &[Made], rules: &Rules) -> Found {
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
            find(&tensors.concat(), &Rules::default()).weights.into_iter().map(|weight| weight.name).collect();
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
            let found = find(&of(name), &Rules::default());
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
    let cases: [Case<'_>; 18] = [
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
        (&[1, 3], &[1, 3], Ok(Kept(1))),
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
    for (v, g) in [(&[4, 3][..], &[2, 1][..]), (&[4, 3], &[4, 3]), (&[4, 3], &[4, 1, 1]), (&[4, 3], &[12]), (&[], &[2])]
    {
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

#[test]
fn f64_is_a_warning() {
    let found = find(&vocoder(Spelling::Suffixes, Dtype::F64), &Rules::default());
    assert_eq!((found.weights.len(), found.findings.len()), (7, 7));
    assert!(found.findings.iter().all(|f| f.problem == Problem::Narrowed && f.problem.is_warning()));
}

#[test]
fn patterns_choose() {
    let tensors = vocoder(Spelling::Suffixes, Dtype::F32);
    let names = |rules: Rules| -> Vec<String> {
        let mut names: Vec<String> = find(&tensors, &rules).weights.into_iter().map(|weight| weight.name).collect();
        names.sort();
        names
    };
    let proj = Rules::default().include("proj.*");
    assert_eq!(names(proj.clone()), ["proj.bias", "proj.weight"]);
    assert_eq!(names(proj.include("ups.?.weight").exclude("*.bias")), ["proj.weight", "ups.0.weight"]);
    assert_eq!(names(Rules::default().include("nothing")), [""; 0]);
}

#[test]
fn patterns_match() {
    for (pattern, name, fits) in [
        ("", "", true),
        ("", "a", false),
        ("*", "", true),
        ("*", "a.b", true),
        ("a*", "a", true),
        ("*a", "aba", true),
        ("*ab", "aab", true),
        ("a*b*c", "a-b-b-c", true),
        ("a*b*c", "a-c-b", false),
        ("?", "é", true),
        ("?", "", false),
        ("a?c", "abc", true),
        ("**?", "ab", true),
        ("[a]", "a", false),
    ] {
        assert_eq!(Pattern::new(pattern).matches(name), fits, "{pattern} {name}");
    }
}
