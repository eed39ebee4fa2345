//! Tied tensors, folded and taken apart.
use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::Path;

use safetensors::Dtype;
use weightnorm::{Axis, DType, Eps, Gpu, cpu};
use weightnorm_checkpoint::{self as checkpoint, Checkpoint, Report, Rules, Spelling};

use crate::common::{compare, norm_chain, weight_bound};
use crate::files::{Content, Folder, Made, made, write, write_sharded};
use crate::{Failed, Needs, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    suite.test("tied::fold", Needs::Nothing, tied_fold);
    suite.test("tied::split", Needs::Nothing, tied_split);
    suite.test_with_pytorch("tied::pytorch", tied_pytorch);
}

/// Layers `a`, `b` and `c` of which some names are tied to tensors of others; tensors by name, with the tied ones.
fn write_tied(path: &Path, tied: &[(&str, &str)], tensors: &[Made]) -> Result<HashMap<String, Made>, Failed> {
    write(path, tensors, &[&[("format", "pt")], tied].concat());
    let mut all: HashMap<String, Made> = tensors.iter().map(|t| (t.name.clone(), t.clone())).collect();
    for (name, of) in tied {
        all.insert(name.to_string(), all[*of].clone());
    }
    Ok(all)
}

fn fold(gpu: &Gpu, from: &Path, to: &Path, rules: &Rules) -> Result<Report, Failed> {
    Ok(checkpoint::fold(gpu, &Checkpoint::open(from)?, to, rules, &mut |_| ())?)
}

/// w of g and v as the reference computes it.
fn is_folded(after: &Content, name: &str, [g, v]: [&Made; 2], axis: Axis) -> Outcome {
    let numbers = |made: &Made| -> Vec<f64> {
        made.bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect()
    };
    let expected = cpu::normalize(&numbers(v), &v.shape, Some(&numbers(g)), axis, Eps::default())?;
    let bound = |i: usize| weight_bound(norm_chain(expected.len()), expected[i], DType::F32);
    let got = after.numbers(name);
    compare(&got, &expected, Some(DType::F32), bound).map_err(|e| format!("{name}: {e}"))?;
    Ok(())
}

fn tied_fold(gpu: &Gpu) -> Outcome {
    let folder = Folder::new("tied");
    let (from, to) = (folder.join("a.safetensors"), folder.join("b.safetensors"));
    let of = |name: &str, seed| {
        let shape: &[usize] = if name.ends_with('g') { &[6, 1] } else { &[6, 4] };
        made(name, Dtype::F32, shape, seed)
    };
    let all = ["a.weight_g", "a.weight_v", "b.weight_g", "b.weight_v", "c.weight_g", "c.weight_v"];
    // (what is tied to what, the names of the tensors that are written)
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);
    let cases: [Case<'_>; 6] = [
        (&[("b.weight_g", "a.weight_g"), ("b.weight_v", "a.weight_v")], &["a.weight", "c.weight"]),
        (&[("b.weight_v", "a.weight_v")], &["a.weight", "b.weight", "c.weight"]),
        (&[("b.weight_g", "a.weight_g")], &["a.weight", "b.weight", "c.weight"]),
        // Each has one of its own.
        (&[("b.weight_g", "a.weight_g"), ("a.weight_v", "b.weight_v")], &["b.weight", "c.weight"]),
        (
            &[
                ("b.weight_g", "c.weight_g"),
                ("b.weight_v", "c.weight_v"),
                ("a.weight_g", "c.weight_g"),
                ("a.weight_v", "c.weight_v"),
            ],
            &["c.weight"],
        ),
        // Another name for what is folded: the tensor stays under it.
        (
            &[("direction", "a.weight_v"), ("b.weight_g", "a.weight_g"), ("b.weight_v", "a.weight_v")],
            &["a.weight", "c.weight", "direction"],
        ),
    ];
    for (tied, written) in cases {
        let is_tied = |name: &str| tied.iter().any(|(key, _)| *key == name);
        let tensors: Vec<Made> =
            all.iter().zip(1..).filter(|(n, _)| !is_tied(n)).map(|(n, seed)| of(n, seed)).collect();
        let before = write_tied(&from, tied, &tensors)?;
        let report = fold(gpu, &from, &to, &Rules::default())?;
        assert_eq!((report.weights.len(), &report.warnings[..]), (3, &[][..]));
        let after = Content::read(&to)?;
        assert_eq!(after.names(), written, "{tied:?}");
        let after = after.with_tied();
        for layer in ["a.weight", "b.weight", "c.weight"] {
            let parts = ["g", "v"].map(|half| &before[&format!("{layer}_{half}")]);
            is_folded(&after, layer, parts, Axis::Kept(0))
                .map_err(|e| format!("{tied:?}: {}", e.message().unwrap()))?;
        }
        if let Some(direction) = before.get("direction") {
            assert!(after.tensors["direction"].2 == direction.bytes);
        }
        // One layer that is left: it keeps its g and v, whoever had them.
        for left in ["a", "b", "c"] {
            fold(gpu, &from, &to, &Rules::default().exclude(format!("{left}.*")))?;
            let after = Content::read(&to)?.with_tied();
            for layer in ["a", "b", "c"] {
                let halves = ["g", "v"].map(|half| format!("{layer}.weight_{half}"));
                let parts = [&before[&halves[0]], &before[&halves[1]]];
                match layer == left {
                    true => assert!(halves.iter().zip(parts).all(|(name, part)| after.tensors[name].2 == part.bytes)),
                    false => is_folded(&after, &format!("{layer}.weight"), parts, Axis::Kept(0))?,
                }
            }
            assert_eq!(after.tensors.len(), 4 + usize::from(before.contains_key("direction")), "{left} {tied:?}");
        }
    }
    // In files with an index, as huggingface_hub writes them: each has the names of all.
    let folder_of = |name: &str| folder.join(name);
    let index =
        write_sharded(&folder_of("shards"), &[("1.safetensors", vec![of("a.weight_g", 1)]), ("2.safetensors", vec![])]);
    let tied = [("b.weight_g", "a.weight_g"), ("b.weight_v", "a.weight_v"), ("format", "pt")];
    write(&folder_of("shards").join("1.safetensors"), &[of("a.weight_g", 1)], &tied);
    write(&folder_of("shards").join("2.safetensors"), &[of("a.weight_v", 2), of("c.bias", 3)], &tied);
    let map = r#"{"a.weight_g":"1.safetensors","a.weight_v":"2.safetensors","b.weight_v":"2.safetensors","c.bias":"2.safetensors"}"#;
    std::fs::write(&index, format!("{{\"weight_map\":{map}}}"))?;
    let report = fold(gpu, &index, &folder_of("folded"), &Rules::default())?;
    assert_eq!((report.weights.len(), &report.warnings[..]), (2, &[][..]));
    let after = Content::read(&folder_of("folded"))?;
    assert_eq!((after.names(), after.metadata["b.weight"].as_str()), (vec!["a.weight", "c.bias"], "a.weight"));
    assert_eq!(after.metadata.len(), 2);
    fold(gpu, &index, &folder_of("half"), &Rules::default().exclude("b.*"))?;
    assert_eq!(Content::read(&folder_of("half"))?.names(), ["a.weight", "b.weight_g", "b.weight_v", "c.bias"]);

    // The same tensors along another axis are another weight.
    let (g, v) = (made("a.weight_g", Dtype::F32, &[4], 1), made("a.weight_v", Dtype::F32, &[4, 4], 2));
    write_tied(&from, &[("b.weight_g", "a.weight_g"), ("b.weight_v", "a.weight_v")], &[g.clone(), v.clone()])?;
    fold(gpu, &from, &to, &Rules::default().axis("a.*", Axis::Kept(0)).axis("b.*", Axis::Kept(1)))?;
    let after = Content::read(&to)?;
    assert_eq!(after.names(), ["a.weight", "b.weight"]);
    is_folded(&after, "a.weight", [&g, &v], Axis::Kept(0))?;
    is_folded(&after, "b.weight", [&g, &v], Axis::Kept(1))
}

fn tied_split(gpu: &Gpu) -> Outcome {
    let folder = Folder::new("tied-split");
    let (from, to) = (folder.join("a.safetensors"), folder.join("b.safetensors"));
    for dtype in [Dtype::F32, Dtype::F64] {
        let w = made("a.weight", dtype, &[6, 4], 1);
        write_tied(&from, &[("b.weight", "a.weight")], std::slice::from_ref(&w))?;
        let split = |rules: &Rules| -> Result<Content, Failed> {
            checkpoint::split(gpu, &Checkpoint::open(&from)?, &to, Spelling::Suffixes, rules, &mut |_| ())?;
            Ok(Content::read(&to)?)
        };
        let both = split(&Rules::default().include("*"))?;
        assert_eq!(both.names(), ["a.weight_g", "a.weight_v"]);
        assert_eq!(both.metadata["b.weight_v"], "a.weight_v");
        let first = split(&Rules::default().include("a.*"))?;
        assert_eq!(first.names(), ["a.weight_g", "a.weight_v", "b.weight"]);
        assert!(first.tensors["b.weight"].2 == w.bytes && !first.metadata.contains_key("b.weight"));
        let second = split(&Rules::default().include("b.*"))?;
        assert_eq!(second.names(), ["a.weight", "b.weight_g", "b.weight_v"]);
        let apart = split(&Rules::default().include("*").axis("b.*", Axis::Kept(1)))?;
        assert_eq!(apart.names(), ["a.weight_g", "a.weight_v", "b.weight_g", "b.weight_v"]);
        assert_eq!(apart.tensors["b.weight_g"].1, [1, 4]);
        for content in [&both, &first, &apart] {
            assert!(content.numbers("a.weight_v") == apart.numbers("b.weight_v"));
        }
        // And together again.
        fold(gpu, &to, &from, &Rules::default())?;
        assert_eq!(Content::read(&from)?.names(), ["a.weight", "b.weight"]);
    }
    Ok(())
}

/// `save_model` of PyTorch's tied layers, folded, for `load_model` of the plain model.
fn tied_pytorch(gpu: &Gpu, python: &OsStr) -> Outcome {
    let folder = Folder::new("tied-pytorch");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu/tied.py");
    let python = |step: &str| -> Outcome {
        let output = std::process::Command::new(python).arg(&script).arg(step).arg(&folder.0).output()?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(stderr.into()) }
    };
    python("save")?;
    for spelling in ["suffixes", "parametrizations"] {
        let [from, to, converted] =
            ["", ".folded", ".converted"].map(|kind| folder.join(&format!("{spelling}{kind}.safetensors")));
        assert_eq!(fold(gpu, &from, &to, &Rules::default())?.weights.len(), 3);
        let other = if spelling == "suffixes" { Spelling::Parametrizations } else { Spelling::Suffixes };
        checkpoint::convert(&Checkpoint::open(&from)?, &converted, other, &Rules::default(), &mut |_| ())?;
    }
    python("load")
}
