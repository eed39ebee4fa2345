//! Checkpoints of the kinds that people have, in `tests/data/checkpoints`, folded by the program beside what PyTorch makes of them;
//! and tied tensors, folded and taken apart.
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use weightnorm_checkpoint::{self as checkpoint, Checkpoint, Report, Rules, Spelling};
use weightnorm::{Axis, DType, Eps, Gpu, cpu};

use crate::common::files::{Folder, Made, made, write, write_sharded};
use crate::common::program::{command, run, run_json};
use crate::common::{compare, weight_bound};
use crate::data::norm_chain;
use crate::{Failed, Needs, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    suite.test("cases::as_pytorch_folds_them", Needs::Nothing, as_pytorch_folds_them);
    suite.test("cases::odd_ones_are_told", Needs::Nothing, odd_ones_are_told);
    suite.test("cases::tied_fold", Needs::Nothing, tied_fold);
    suite.test("cases::tied_split", Needs::Nothing, tied_split);
    suite.test_with_pytorch("cases::tied_pytorch", tied_pytorch);
}

fn case(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/checkpoints").join(name);
    let file = folder.join("input.safetensors");
    if file.exists() { file } else { folder.join("input") }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("names of the tests")
}

/// What a checkpoint holds, as the `safetensors` crate reads it.
#[derive(Default)]
struct Content {
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
    metadata: BTreeMap<String, String>,
}

impl Content {
    fn read(path: &Path) -> Result<Content, Failed> {
        let mut content = Content::default();
        for file in Checkpoint::open(path)?.files() {
            let bytes = std::fs::read(file)?;
            for (name, t) in SafeTensors::deserialize(&bytes)?.tensors() {
                let there = content.tensors.insert(name, (t.dtype(), t.shape().to_vec(), t.data().to_vec()));
                assert!(there.is_none());
            }
            content.metadata.extend(SafeTensors::read_metadata(&bytes)?.1.metadata().clone().unwrap_or_default());
        }
        Ok(content)
    }

    /// The tied names too, each of which has to name a tensor.
    fn with_tied(mut self) -> Content {
        for (name, of) in self.metadata.iter().filter(|(name, _)| *name != "format") {
            let tensor =
                self.tensors.get(of).unwrap_or_else(|| panic!("{name} is tied to {of}, which is gone")).clone();
            assert!(self.tensors.insert(name.clone(), tensor).is_none(), "{name}");
        }
        self
    }

    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn numbers(&self, name: &str) -> Vec<f64> {
        let (dtype, _, bytes) = &self.tensors[name];
        assert_eq!(*dtype, Dtype::F32, "{name}");
        bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect()
    }
}

/// Every tensor of the input that is there afterwards, byte for byte; the folded ones within rounding of PyTorch's.
fn is_expected(before: &Content, after: &Content, expected: &Content) -> Outcome {
    assert_eq!(after.names(), expected.names());
    for (name, (dtype, shape, bytes)) in &expected.tensors {
        let got = &after.tensors[name];
        assert_eq!((&got.0, &got.1), (dtype, shape), "{name}");
        if before.tensors.contains_key(name) {
            assert!(got.2 == *bytes && before.tensors[name].2 == *bytes, "{name}");
            continue;
        }
        let (numbers, expected) = (after.numbers(name), expected.numbers(name));
        // PyTorch's are rounded to f32 too.
        let bound = |i: usize| 2.0 * weight_bound(norm_chain(expected.len()), expected[i], DType::F32);
        compare(&numbers, &expected, Some(DType::F32), bound).map_err(|e| format!("{name}: {e}"))?;
    }
    Ok(())
}

/// The kinds of findings with the weights that they are of.
fn findings(document: &Value) -> Vec<String> {
    let all = document["findings"].as_array().into_iter().flatten();
    let mut all: Vec<String> =
        all.map(|f| format!("{} {}", f["kind"].as_str().unwrap(), f["weight"].as_str().unwrap())).collect();
    all.sort();
    all
}

fn as_pytorch_folds_them(_: &Gpu) -> Outcome {
    type Case<'a> = (&'a str, &'a [&'a str], usize, &'a [&'a str]);
    let cases: [Case<'_>; 7] = [
        ("spectral_norm_beside_weight_norm", &[], 6, &[]),
        ("rwkv5_time_mix_and_a_head", &[], 1, &["not_taken blocks.0.att.time_mix", "not_taken blocks.1.att.time_mix"]),
        ("tied_layers_saved_by_save_model", &[], 2, &[]),
        ("index_lists_a_tied_tensor", &[], 2, &["not_in_files lm_head.weight"]),
        ("total_size_is_a_float", &[], 2, &[]),
        ("metadata_is_null", &[], 1, &[]),
        ("g_of_another_rank", &["--axis", "0"], 2, &[]),
    ];
    let folder = Folder::new("cases");
    for (name, options, weights, told) in cases {
        let (input, output) = (case(name), folder.join(name));
        let (code, document) = run_json(command(), [&["fold", text(&input), text(&output)], options].concat());
        assert_eq!(
            (code, findings(&document)),
            (0, told.iter().map(|s| s.to_string()).collect()),
            "{name}: {document}"
        );
        assert_eq!(document["weights"].as_array().map(Vec::len), Some(weights), "{name}");
        let expected = Content::read(&case(name).with_file_name("expected.safetensors"))?;
        let after = Content::read(&output)?.with_tied();
        is_expected(&Content::read(&input)?, &after, &expected)
            .map_err(|e| format!("{name}: {}", e.message().unwrap()))?;
        // Looked at, they are as fine; and they can be written in the other spelling.
        let (code, document) = run_json(command(), [&["inspect", text(&input)], options].concat());
        assert_eq!((code, findings(&document).len()), (0, told.len()), "{name}");
        assert_eq!(document["weights"].as_array().map(Vec::len), Some(weights), "{name}");
        let other = folder.join("other");
        let convert = ["convert", text(&input), text(&other), "--spelling", "parametrizations"];
        assert_eq!(run_json(command(), convert).0, 0, "{name}");
        let before = Content::read(&input)?.with_tied().tensors.len();
        assert_eq!(Content::read(&other)?.with_tied().tensors.len(), before, "{name}");
        if other.is_dir() {
            std::fs::remove_dir_all(other)?
        } else {
            std::fs::remove_file(other)?
        };

        if output.is_dir() {
            let index = std::fs::read_to_string(output.join("model.safetensors.index.json"))?;
            let index: Value = serde_json::from_str(&index)?;
            let total: usize = expected.tensors.values().map(|(.., bytes)| bytes.len()).sum();
            assert_eq!(index["metadata"]["total_size"].as_f64(), Some(total as f64), "{name}");
            for (tensor, file) in index["weight_map"].as_object().unwrap() {
                let bytes = std::fs::read(output.join(file.as_str().unwrap()))?;
                SafeTensors::deserialize(&bytes)?.tensor(tensor)?;
            }
            assert_eq!(index["weight_map"].as_object().unwrap().len(), expected.tensors.len());
        }
    }
    // Included, the others are a weight as any.
    let (input, output) = (case("rwkv5_time_mix_and_a_head"), folder.join("included"));
    let include = ["fold", text(&input), text(&output), "--include", "*.0.att.time_mix"];
    assert_eq!(run_json(command(), include).1["weights"][0]["name"], "blocks.0.att.time_mix");
    let shown = run(command(), ["inspect", text(&input)]).stdout;
    for words in ["note: blocks.0.att.time_mix: not taken for weight norm, ", "--include 'NAME'"] {
        assert!(shown.contains(words), "{shown}");
    }
    Ok(())
}

fn odd_ones_are_told(_: &Gpu) -> Outcome {
    let folder = Folder::new("cases");
    let output = folder.join("output");
    for (name, kinds, words) in [
        ("pruned_v", &["pruned conv.weight"][..], &["torch.nn.utils.prune.remove(module, \"weight_v\")"][..]),
        ("g_of_another_rank", &["other_shape a.weight", "other_shape b.weight"], &["--axis 'NAME=AXIS'"]),
    ] {
        let fold = ["fold", text(&case(name)), text(&output)].map(str::to_owned);
        let (code, document) = run_json(command(), &fold);
        assert_eq!((code, findings(&document)), (1, kinds.iter().map(|s| s.to_string()).collect()), "{name}");
        assert_eq!(document["written"], json!(false));
        let shown = run(command(), &fold).stdout;
        assert!(words.iter().all(|word| shown.contains(word)), "{shown}");
        assert_eq!(run_json(command(), ["inspect", text(&case(name))]).0, 1);
    }
    assert_eq!(folder.names(), [""; 0]);
    Ok(())
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
            Content::read(&to)
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
