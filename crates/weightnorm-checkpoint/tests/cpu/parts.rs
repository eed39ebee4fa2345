//! Parts of a sharded checkpoint, done one by one, and the index at the end.
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::Value;
use weightnorm_checkpoint::{
    Checkpoint, Device, Error, Report, Rules, Spelling, convert, fold, inspect, split, write_index,
};

use crate::files::{Folder, Made, made, names_in, vocoder, write_sharded};

/// Four files: g and v of many weights lie in different ones.
fn sharded(folder: &Folder) -> PathBuf {
    let mut files: [Vec<Made>; 4] = Default::default();
    for (i, tensor) in vocoder(Spelling::Suffixes, Dtype::F32).into_iter().enumerate() {
        files[i % 4].push(tensor);
    }
    let names: Vec<String> = (1..=4).map(|i| format!("model-0000{i}-of-00004.safetensors")).collect();
    let files: Vec<(&str, Vec<Made>)> = names.iter().map(String::as_str).zip(files).collect();
    write_sharded(&folder.join("in"), &files)
}

fn folded(index: &Path, output: &Path, rules: &Rules) -> Result<Report, Error> {
    let (mut done, mut total) = (0, 0);
    let report =
        fold(Device::Reference, &Checkpoint::open(index)?, output, rules, &mut |p| (done, total) = (p.done, p.total))?;
    assert_eq!((done, total), (report.bytes, report.bytes));
    Ok(report)
}

/// Name and bytes of each file but the index.
fn files_of(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let names = names_in(folder).into_iter().filter(|name| name.ends_with(".safetensors"));
    names.map(|name| (name.clone(), fs::read(folder.join(name)).unwrap())).collect()
}

fn json(path: PathBuf) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn parts_in_any_order_are_the_whole() {
    let folder = Folder::new("parts");
    let (index, whole) = (sharded(&folder), folder.join("whole"));
    let all = folded(&index, &whole, &Rules::default()).unwrap();
    let written = files_of(&whole);
    assert!(written.len() == 4 && all.skipped == 0);
    for (count, order) in [(4, &[3, 1, 4, 2][..]), (3, &[2, 3, 1]), (1, &[1]), (9, &[9, 8, 7, 6, 5, 4, 3, 2, 1])] {
        let output = folder.join(&format!("in_{count}"));
        let (mut weights, mut copied, mut bytes) = (vec![], 0, 0);
        for &number in order {
            let report = folded(&index, &output, &Rules::default().part(number, count)).unwrap();
            weights.extend(report.weights.into_iter().map(|weight| weight.name));
            (copied, bytes) = (copied + report.copied, bytes + report.bytes);
            // Once more, nothing is left to do.
            let again = folded(&index, &output, &Rules::default().part(number, count)).unwrap();
            assert_eq!((again.weights.len(), again.copied, again.bytes), (0, 0, 0));
            assert_eq!(again.skipped, (number - 1..4).step_by(count).count());
        }
        let mut expected: Vec<String> = all.weights.iter().map(|weight| weight.name.clone()).collect();
        weights.sort();
        expected.sort();
        assert_eq!((weights, copied, bytes), (expected, all.copied, all.bytes), "{count} parts");
        assert!(files_of(&output) == written, "{count} parts");

        let gathered = write_index(&output, false, false).unwrap();
        assert_eq!((gathered.files, gathered.bytes), (4, all.bytes));
        let [whole, parts] = [&whole, &output].map(|folder| json(folder.join("model.safetensors.index.json")));
        assert_eq!(whole, parts);
        assert_eq!(gathered.tensors, parts["weight_map"].as_object().unwrap().len());
        let read = inspect(&Checkpoint::open(&output).unwrap(), &Rules::default(), &mut |_| ()).unwrap();
        assert!(read.findings.is_empty() && read.rows.is_empty(), "{:?}", read.findings);
    }
}

/// Split and convert do parts by the same code: what they write is that of the whole.
#[test]
fn parts_of_splits_and_conversions() {
    let folder = Folder::new("parts_split");
    let index = sharded(&folder);
    folded(&index, &folder.join("plain"), &Rules::default()).unwrap();
    let plain = Checkpoint::open(&folder.join("plain")).unwrap();
    let normed = Checkpoint::open(&index).unwrap();
    let splits = Rules::default().include("*.weight");
    for (name, part) in [("whole", None), ("parts", Some(2)), ("parts", Some(1)), ("parts", Some(2))] {
        let rules = |rules: Rules| part.map_or(rules.clone(), |number| rules.part(number, 2));
        let [a, b] = ["split", "convert"].map(|what| folder.join(&format!("{what}_{name}")));
        let spelling = Spelling::Parametrizations;
        split(Device::Reference, &plain, &a, spelling, &rules(splits.clone()), &mut |_| ()).unwrap();
        convert(&normed, &b, spelling, &rules(Rules::default()), &mut |_| ()).unwrap();
    }
    for what in ["split", "convert"] {
        let [whole, parts] = ["whole", "parts"].map(|name| files_of(&folder.join(&format!("{what}_{name}"))));
        assert!(whole.len() == 4 && whole == parts, "{what}");
    }
}

/// A killed part leaves its temporary file; the part done again does not mind it, nor does the index.
#[test]
fn parts_do_not_mind_what_a_kill_leaves() {
    let folder = Folder::new("parts_killed");
    let (index, output) = (sharded(&folder), folder.join("out"));
    fs::create_dir(&output).unwrap();
    fs::write(output.join(".weightnorm-1-0.tmp"), b"half").unwrap();
    for number in [1, 2, 3, 4] {
        folded(&index, &output, &Rules::default().part(number, 4)).unwrap();
    }
    assert_eq!(write_index(&output, false, false).unwrap().files, 4);
}

#[test]
fn parts_replace_no_other_file() {
    let folder = Folder::new("parts_other");
    let (index, output) = (sharded(&folder), folder.join("out"));
    let first = Rules::default().part(1, 4);
    folded(&index, &output, &first).unwrap();
    let path = output.join("model-00001-of-00004.safetensors");
    let right = fs::read(&path).unwrap();
    let mut renamed = right.clone();
    let at = renamed.windows(6).position(|bytes| bytes == b"weight").unwrap();
    renamed[at] = b'W';
    for other in [&right[..right.len() - 1], &[&right[..], &[0]].concat(), &renamed, b"", b"text"] {
        fs::write(&path, other).unwrap();
        let error = folded(&index, &output, &first).unwrap_err();
        assert!(matches!(&error, Error::Occupied { path: named, .. } if *named == path), "{error}");
        assert_eq!(fs::read(&path).unwrap(), other);
    }
    // A folder where the file would be, and a file where the folder would be.
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(folded(&index, &output, &first).is_err());
    fs::write(folder.join("file"), b"mine").unwrap();
    assert!(matches!(folded(&index, &folder.join("file"), &first), Err(Error::Occupied { .. })));
    assert_eq!(fs::read(folder.join("file")).unwrap(), b"mine");
}

#[test]
fn parts_that_there_are_not() {
    let folder = Folder::new("parts_wrong");
    let index = sharded(&folder);
    for (number, count) in [(0, 3), (4, 3), (1, 0), (0, 0), (usize::MAX, 1)] {
        let error = folded(&index, &folder.join("out"), &Rules::default().part(number, count)).unwrap_err();
        assert!(matches!(error, Error::Part { .. }), "{error}");
    }
    let one = index.with_file_name("model-00001-of-00004.safetensors");
    let rules = Rules::default().part(1, 1).include("*");
    let error = convert(&Checkpoint::open(&one).unwrap(), &folder.join("out"), Spelling::Suffixes, &rules, &mut |_| ());
    assert!(error.is_err());
    assert!(!folder.join("out").exists());
}

/// A part with a row of zeros is refused, and only that part.
#[test]
fn parts_are_refused_by_themselves() {
    let folder = Folder::new("parts_zeros");
    let mut zero = made("b.weight_v", Dtype::F32, &[3, 4], 1);
    zero.bytes[16..32].fill(0);
    let pair = |name: &str, seed| made(name, Dtype::F32, &[3, 1], seed);
    let a = vec![pair("a.weight_g", 2), made("a.weight_v", Dtype::F32, &[3, 4], 3)];
    let index = write_sharded(
        &folder.join("in"),
        &[("1.safetensors", a), ("2.safetensors", vec![pair("b.weight_g", 4), zero])],
    );
    let output = folder.join("out");
    assert_eq!(folded(&index, &output, &Rules::default().part(1, 2)).unwrap().weights.len(), 1);
    let error = folded(&index, &output, &Rules::default().part(2, 2)).unwrap_err();
    assert!(matches!(error, Error::Findings { .. }), "{error}");
    assert_eq!(names_in(&output), ["1.safetensors"]);
}

#[test]
fn index_of_files_that_do_not_fit() {
    let folder = Folder::new("gather");
    let (index, output) = (sharded(&folder), folder.join("out"));
    let reason = |error: Error| error.to_string();
    fs::create_dir(&output).unwrap();
    assert!(reason(write_index(&output, false, false).unwrap_err()).contains("no .safetensors file"));
    for number in [1, 2, 4] {
        folded(&index, &output, &Rules::default().part(number, 4)).unwrap();
    }
    let missing = reason(write_index(&output, false, false).unwrap_err());
    assert!(missing.contains("model-00003-of-00004.safetensors is missing"), "{missing}");
    assert_eq!(write_index(&output, false, true).unwrap().files, 3);
    folded(&index, &output, &Rules::default().part(3, 4)).unwrap();
    // One that is there stays, unless it is to be replaced.
    let path = output.join("model.safetensors.index.json");
    let old = fs::read(&path).unwrap();
    assert!(matches!(write_index(&output, false, false), Err(Error::Occupied { .. })));
    assert_eq!(fs::read(&path).unwrap(), old);
    assert_eq!(write_index(&output, true, false).unwrap().files, 4);
    // Two with tensors of one name; files of no series.
    fs::copy(output.join("model-00001-of-00004.safetensors"), output.join("copy.safetensors")).unwrap();
    assert!(reason(write_index(&output, true, false).unwrap_err()).contains("and model-00001-of-00004"));
    fs::write(output.join("copy.safetensors"), b"no such file").unwrap();
    let (error, old) = (write_index(&output, true, false).unwrap_err(), fs::read(&path).unwrap());
    assert!(matches!(error, Error::Header { .. } | Error::Foreign { .. }), "{error}");
    assert!(write_index(&output, true, false).is_err() && fs::read(&path).unwrap() == old);
}
