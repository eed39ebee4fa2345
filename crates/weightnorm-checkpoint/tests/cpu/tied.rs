//! Tied tensors, as `safetensors.torch.save_model` writes them, and fields and metadata that are kept.
use std::collections::BTreeMap;

use safetensors::{Dtype, SafeTensors};
use weightnorm_checkpoint::{Checkpoint, Device, Error, Prefer, Problem, Rules, Spelling, convert, fold, inspect};

use crate::files::{Folder, Made, made, raw, write, write_sharded};

/// A layer `inp` and one that is tied to it: the tensors, and the metadata for those that have the name `out`.
fn layers(tied: &[&str]) -> (Vec<Made>, Vec<(String, String)>) {
    let (mut tensors, mut metadata) = (vec![], vec![("format".to_owned(), "pt".to_owned())]);
    for (seed, (half, shape)) in [("g", [6, 1]), ("v", [6, 4])].into_iter().enumerate() {
        tensors.push(made(&format!("inp.weight_{half}"), Dtype::F32, &shape, seed as u64 + 1));
        match tied.contains(&half) {
            true => metadata.push((format!("out.weight_{half}"), format!("inp.weight_{half}"))),
            false => tensors.push(made(&format!("out.weight_{half}"), Dtype::F32, &shape, seed as u64 + 5)),
        }
    }
    (tensors, metadata)
}

fn write_layers(path: &std::path::Path, tied: &[&str]) {
    let (tensors, metadata) = layers(tied);
    let metadata: Vec<(&str, &str)> = metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    write(path, &tensors, &metadata);
}

/// Names of tensors, and metadata.
fn content(path: &std::path::Path) -> (Vec<String>, BTreeMap<String, String>) {
    let bytes = std::fs::read(path).unwrap();
    let metadata = SafeTensors::read_metadata(&bytes).unwrap().1.metadata().clone().unwrap_or_default();
    let mut names: Vec<String> =
        SafeTensors::deserialize(&bytes).unwrap().names().into_iter().map(str::to_owned).collect();
    names.sort();
    (names, metadata.into_iter().collect())
}

#[test]
fn tied_layers_are_found() {
    let folder = Folder::new("tied");
    let path = folder.join("a.safetensors");
    for tied in [&["g", "v"][..], &["v"], &["g"], &[]] {
        write_layers(&path, tied);
        let checkpoint = Checkpoint::open(&path).unwrap();
        let inspection = inspect(&checkpoint, &Rules::default(), &mut |_| ()).unwrap();
        let mut names: Vec<&str> = inspection.rows.iter().map(|row| row.weight.name.as_str()).collect();
        names.sort();
        assert_eq!((names, inspection.others, inspection.findings), (vec!["inp.weight", "out.weight"], 0, vec![]));
    }
}

/// Nothing points to a tensor that is gone, and the way back gives the same bytes.
#[test]
fn tied_names_are_converted() {
    let folder = Folder::new("tied-convert");
    let [a, b, c] = ["a", "b", "c"].map(|name| folder.join(&format!("{name}.safetensors")));
    let to = |from: &std::path::Path, to: &std::path::Path, spelling, rules: &Rules| {
        convert(&Checkpoint::open(from).unwrap(), to, spelling, rules, &mut |_| ())
    };
    let (there, back) = (Spelling::Parametrizations, Spelling::Suffixes);
    for tied in [&["g", "v"][..], &["v"], &["g"]] {
        write_layers(&a, tied);
        assert_eq!(to(&a, &b, there, &Rules::default()).unwrap().weights.len(), 2);
        to(&b, &c, back, &Rules::default()).unwrap();
        assert!(std::fs::read(&a).unwrap() == std::fs::read(&c).unwrap());
        let (names, metadata) = content(&b);
        for (name, of) in metadata.iter().filter(|(name, _)| *name != "format") {
            assert!(names.contains(of) && !names.contains(name) && name.starts_with("out.parametrizations"), "{name}");
        }
        assert_eq!((names.len(), metadata.len()), (4 - tied.len(), 1 + tied.len()));
    }
    // One of the two alone: the other keeps its name.
    write_layers(&a, &["g", "v"]);
    to(&a, &b, there, &Rules::default().exclude("out.*")).unwrap();
    let (names, metadata) = content(&b);
    assert_eq!(names, ["inp.parametrizations.weight.original0", "inp.parametrizations.weight.original1"]);
    assert_eq!(metadata["out.weight_g"], "inp.parametrizations.weight.original0");
    to(&a, &b, there, &Rules::default().exclude("inp.*")).unwrap();
    let (names, metadata) = content(&b);
    assert_eq!(names, ["inp.weight_g", "inp.weight_v"]);
    assert_eq!(metadata["out.parametrizations.weight.original1"], "inp.weight_v");
    // A name that something else in the metadata has.
    let v = [made("inp.weight_v", Dtype::F32, &[6, 4], 1), made("out.weight_v", Dtype::F32, &[6, 4], 2)];
    let tensors = [&layers(&["g", "v"]).0[..1], &v].concat();
    write(&a, &tensors, &[("out.weight_g", "inp.weight_g"), ("out.parametrizations.weight.original0", "x")]);
    match to(&a, &b, there, &Rules::default()).unwrap_err() {
        Error::Findings { findings } => {
            let name = "out.parametrizations.weight.original0".to_owned();
            assert_eq!(findings[0].problem, Problem::NameTaken { name });
        }
        other => panic!("{other}"),
    }
}

/// Metadata that is no tied name, and what stands in an entry beside what the format has, stay as they are.
#[test]
fn what_is_not_understood_stays() {
    let folder = Folder::new("fields");
    let (a, b) = (folder.join("a.safetensors"), folder.join("b.safetensors"));
    let header = concat!(
        r#"{"m.weight_g":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},"#,
        r#""__metadata__":null,"#,
        r#""m.weight_v":{"dtype":"F32","shape":[1,2],"data_offsets":[4,12],"scale":{"a":[1, 1.50]},"big":12345678901234567890123,"note":"x"},"#,
        r#""o":["F32",[1],[12,16]]}"#
    );
    std::fs::write(&a, raw(header, &[0; 16])).unwrap();
    SafeTensors::deserialize(&std::fs::read(&a).unwrap()).unwrap();
    let checkpoint = Checkpoint::open(&a).unwrap();
    assert_eq!((checkpoint.metadata().count(), checkpoint.tensors().count()), (0, 3));
    convert(&checkpoint, &b, Spelling::Parametrizations, &Rules::default(), &mut |_| ()).unwrap();
    let bytes = std::fs::read(&b).unwrap();
    SafeTensors::deserialize(&bytes).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    assert!(
        text.contains(r#""data_offsets":[4,12],"scale":{"a":[1, 1.50]},"big":12345678901234567890123,"note":"x"}"#),
        "{text}"
    );
}

/// An index that lists what no file has, does not list what one has, or names another file; and a copy that does not
/// count.
#[test]
fn an_index_that_does_not_fit_is_a_warning() {
    let folder = Folder::new("unfit");
    let pair = |name: &str, seed| {
        let [g, v] = ["g", "v"].map(|half| format!("{name}.weight_{half}"));
        [made(&g, Dtype::F32, &[2, 1], seed), made(&v, Dtype::F32, &[2, 3], seed + 1)]
    };
    let stale = made("b.weight_v", Dtype::F32, &[2, 3], 90);
    let first = [&pair("a", 1)[..], &[stale, made("bias", Dtype::F16, &[3], 5)]].concat();
    let index = write_sharded(&folder.join("a"), &[("1.safetensors", first), ("2.safetensors", pair("b", 3).to_vec())]);
    let map = concat!(
        r#"{"a.weight_v":"1.safetensors","a.weight_g":"2.safetensors","lm_head.weight":"2.safetensors","#,
        r#""b.weight_v":"2.safetensors","b.weight_g":"2.safetensors"}"#
    );
    std::fs::write(
        &index,
        format!(r#"{{"weight_map":{map},"metadata":{{"total_size":"1.5","total_parameters":18}}}}"#),
    )
    .unwrap();
    let checkpoint = Checkpoint::open(&index).unwrap();
    let found = checkpoint.weights(&Rules::default());
    assert_eq!(found.weights.len(), 2);
    let mut problems: Vec<String> = found.findings.iter().map(|finding| finding.to_string()).collect();
    assert!(found.findings.iter().all(|finding| finding.problem.is_warning()));
    problems.sort();
    let expected = [
        "a.weight_g: it is in 1.safetensors, and the index lists it in 2.safetensors",
        "b.weight_v: it is in 1.safetensors too, which is left out: the index lists it in 2.safetensors",
        "bias: it is in 1.safetensors, and the index does not list it",
        "lm_head.weight: the index lists it in 2.safetensors, and no file has it",
    ];
    assert_eq!(problems, expected);
    let report =
        convert(&checkpoint, &folder.join("b"), Spelling::Parametrizations, &Rules::default(), &mut |_| ()).unwrap();
    assert_eq!((report.warnings.len(), report.bytes), (4, 70));
    // What is written fits.
    let written = Checkpoint::open(&folder.join("b")).unwrap();
    assert_eq!(written.weights(&Rules::default()).findings, []);
    assert_eq!(written.tensors().count(), 5);
    let text = std::fs::read_to_string(folder.join("b").join("model.safetensors.index.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    // The sum of parameters was none of these tensors'.
    assert_eq!(json["metadata"], serde_json::json!({ "total_size": "70.0" }));
    assert_eq!(json["weight_map"]["bias"], "1.safetensors");
    assert_eq!(json["weight_map"]["a.parametrizations.weight.original0"], "1.safetensors");
}

#[test]
fn sums_of_an_index_keep_their_type() {
    let folder = Folder::new("sums");
    let tensors = vec![
        made("m.weight_g", Dtype::F32, &[2, 1], 1),
        made("m.weight_v", Dtype::F32, &[2, 3], 2),
        made("steps", Dtype::I64, &[1], 3),
    ];
    let index = write_sharded(&folder.join("a"), &[("1.safetensors", tensors)]);
    let text = std::fs::read_to_string(&index).unwrap();
    let sums = |size: &str, parameters: &str| {
        let sums = format!("\"total_size\": {size}, \"total_parameters\": {parameters}, \"more\": [1]\n");
        std::fs::write(&index, text.replace("\"total_size\": 40\n", &sums)).unwrap();
        let checkpoint = Checkpoint::open(&index).unwrap();
        let output = folder.join("b");
        convert(&checkpoint, &output, Spelling::Parametrizations, &Rules::default(), &mut |_| ()).unwrap();
        let written = std::fs::read_to_string(output.join("model.safetensors.index.json")).unwrap();
        std::fs::remove_dir_all(output).unwrap();
        let json: serde_json::Value = serde_json::from_str(&written).unwrap();
        assert_eq!(json["metadata"]["more"], serde_json::json!([1]));
        ["total_size", "total_parameters"].map(|key| json["metadata"].get(key).map(|sum| sum.to_string()))
    };
    let expect = |size: Option<&str>, parameters: Option<&str>| [size, parameters].map(|sum| sum.map(str::to_owned));
    assert_eq!(sums("40", "9"), expect(Some("40"), Some("9")));
    assert_eq!(sums("41.0", "8.0"), expect(Some("40.0"), Some("8.0")));
    assert_eq!(sums("\"12\"", "\"8\""), expect(Some("\"40\""), Some("\"8\"")));
    assert_eq!(sums("\"12.0\"", "7"), expect(Some("\"40.0\""), None));
    assert_eq!(sums("null", "[9]"), expect(None, None));
    assert_eq!(sums("\"40 bytes\"", "-9"), expect(None, None));
}

/// A name that is tied to a tied one, a circle, and a name that nothing has.
#[test]
fn tied_names_may_stand_in_a_row() {
    let folder = Folder::new("tied-row");
    let [path, folded, converted] = ["a", "b", "c"].map(|name| folder.join(&format!("{name}.safetensors")));
    let (tensors, mut metadata) = layers(&["g", "v"]);
    for (name, of) in [("end.weight_g", "out.weight_g"), ("end.weight_v", "out.weight_v"), ("x", "y"), ("y", "x")] {
        metadata.push((name.to_owned(), of.to_owned()));
    }
    let metadata: Vec<(&str, &str)> = metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    write(&path, &tensors, &metadata);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let report = fold(Device::Reference, &checkpoint, &folded, &Rules::default(), &mut |_| ()).unwrap();
    assert_eq!((report.weights.len(), report.warnings), (3, vec![]));
    let expected =
        [("end.weight", "inp.weight"), ("format", "pt"), ("out.weight", "inp.weight"), ("x", "y"), ("y", "x")];
    let expected = expected.map(|(name, of)| (name.to_owned(), of.to_owned()));
    assert_eq!(content(&folded), (vec!["inp.weight".to_owned()], BTreeMap::from(expected)));
    // Where both names in a row stay, so does the entry.
    let rules = Rules::default().include("inp.*");
    convert(&checkpoint, &converted, Spelling::Parametrizations, &rules, &mut |_| ()).unwrap();
    let (_, metadata) = content(&converted);
    assert_eq!(metadata["end.weight_g"], "out.weight_g");
    assert_eq!(metadata["out.weight_g"], "inp.parametrizations.weight.original0");
    assert_eq!(Checkpoint::open(&converted).unwrap().weights(&Rules::default()).weights.len(), 3);
}

/// A tied name is read as the tensor that it stands for, and goes alone where the rules prefer another.
#[test]
fn tied_names_are_read_and_left_out() {
    let folder = Folder::new("tied-read");
    let (path, output) = (folder.join("a.safetensors"), folder.join("b.safetensors"));
    let (mut tensors, mut metadata) = layers(&["g", "v"]);
    tensors.push(made("kept", Dtype::F32, &[6, 4], 9));
    metadata.push(("inp.weight".to_owned(), "kept".to_owned()));
    let metadata: Vec<(&str, &str)> = metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    write(&path, &tensors, &metadata);
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.read_f64("out.weight_v").unwrap(), checkpoint.read_f64("inp.weight_v").unwrap());
    assert_eq!(checkpoint.tensor("out.weight_g").unwrap().shape, [6, 1]);

    let folded = |rules: &Rules| fold(Device::Reference, &checkpoint, &output, rules, &mut |_| ());
    let Err(Error::Findings { findings }) = folded(&Rules::default()) else { panic!("the name is taken") };
    assert_eq!(findings[0].problem, Problem::NameTaken { name: "inp.weight".to_owned() });
    // The pair: the old tensor is there by its own name alone.
    folded(&Rules::default().prefer(Prefer::Pair)).unwrap();
    let pair = Checkpoint::open(&output).unwrap();
    assert_eq!(pair.read_bytes("kept").unwrap(), checkpoint.read_bytes("kept").unwrap());
    assert_eq!(pair.read_bytes("inp.weight").unwrap(), pair.read_bytes("out.weight").unwrap());
    assert_ne!(pair.read_bytes("inp.weight").unwrap(), pair.read_bytes("kept").unwrap());
    // The tensor: of the pair its other name is folded.
    folded(&Rules::default().prefer(Prefer::Weight)).unwrap();
    let weight = Checkpoint::open(&output).unwrap();
    assert_eq!(weight.read_bytes("inp.weight").unwrap(), checkpoint.read_bytes("kept").unwrap());
    assert_eq!(weight.read_bytes("out.weight").unwrap(), pair.read_bytes("out.weight").unwrap());
    assert!(["inp.weight_g", "inp.weight_v", "out.weight_v"].iter().all(|name| weight.tensor(name).is_none()));
}
