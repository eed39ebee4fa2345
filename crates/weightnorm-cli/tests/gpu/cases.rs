//! Checkpoints of the kinds that people have, folded by the program beside what PyTorch makes of them.
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::{Value, json};
use weightnorm::{DType, Gpu};

use crate::common::{compare, norm_chain, weight_bound};
use crate::files::{Content, Folder};
use crate::program::{command, run, run_json};
use crate::{Needs, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    suite.test("cases::as_pytorch_folds_them", Needs::Nothing, as_pytorch_folds_them);
    suite.test("cases::odd_ones_are_told", Needs::Nothing, odd_ones_are_told);
}

fn case(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../weightnorm-checkpoint/tests/data").join(name);
    let file = folder.join("input.safetensors");
    if file.exists() { file } else { folder.join("input") }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("names of the tests")
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
