//! Which weights patterns of names choose.
use safetensors::Dtype;
use weightnorm_checkpoint::{Pattern, Rules, Spelling};

use crate::files::vocoder;
use crate::find::find;

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
