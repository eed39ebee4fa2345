//! A tensor of the weight's own name beside the pair.
use std::path::Path;

use safetensors::Dtype;
use weightnorm_checkpoint::{
    Checkpoint, Device, Error, Finding, Prefer, Problem, Report, Rules, Spelling, check, convert, fold, inspect, split,
};

use crate::common::File;
use crate::files::{Folder, made, write_sharded};

fn problems(findings: &[Finding]) -> Vec<Problem> {
    findings.iter().map(|finding| finding.problem.clone()).collect()
}

fn taken(name: &str) -> Vec<Problem> {
    vec![Problem::NameTaken { name: name.to_owned() }]
}

fn refused(result: Result<Report, Error>) -> Vec<Problem> {
    match result {
        Err(Error::Findings { findings }) => problems(&findings),
        other => panic!("{other:?}"),
    }
}

fn names(path: &Path) -> Vec<String> {
    Checkpoint::open(path).unwrap().tensors().map(|tensor| tensor.name.clone()).collect()
}

#[test]
fn prefer_decides_between_a_pair_and_a_stale_weight() {
    let folder = Folder::new("prefer");
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/stale_weight_beside_the_pair");
    let (checkpoint, output) = (Checkpoint::open(&data.join("input.safetensors")).unwrap(), folder.join("out"));
    let folded = |rules: &Rules| fold(Device::Reference, &checkpoint, &output, rules, &mut |_| ());
    // Nobody has said what to do: looked at, checked and folded it is the same.
    let rules = Rules::default();
    let inspection = inspect(&checkpoint, &rules, &mut |_| ()).unwrap();
    assert_eq!((inspection.rows.len(), problems(&inspection.findings)), (1, taken("l.weight")));
    assert_eq!(
        problems(&check(Device::Reference, &checkpoint, &rules, &mut |_| ()).unwrap().findings),
        taken("l.weight")
    );
    assert_eq!(refused(folded(&rules)), taken("l.weight"));
    assert!(!output.exists());

    // The pair: PyTorch's w in place of the stale one, the bias as it was.
    let rules = Rules::default().prefer(Prefer::Pair);
    let report = folded(&rules).unwrap();
    let left_out = Problem::LeftOut { tensors: vec!["l.weight".to_owned()], prefer: Prefer::Pair };
    assert_eq!((problems(&report.warnings), report.weights.len(), report.copied), (vec![left_out.clone()], 1, 1));
    let (ours, theirs) = (File::load(&output).unwrap(), File::load(&data.join("expected.safetensors")).unwrap());
    assert_eq!(names(&output), ["l.bias", "l.weight"]);
    for name in ["l.bias", "l.weight"] {
        let (ours, theirs) = (&ours.tensor(name).unwrap().data, &theirs.tensor(name).unwrap().data);
        let close = |(a, b): (&f64, &f64)| (a - b).abs() <= 3e-7 * b.abs();
        assert!(ours.iter().zip(theirs).all(close), "{name}: {ours:?} {theirs:?}");
    }
    let inspection = inspect(&checkpoint, &rules, &mut |_| ()).unwrap();
    assert_eq!((inspection.rows.len(), problems(&inspection.findings)), (1, vec![left_out]));

    // The weight, byte for byte.
    let report = folded(&Rules::default().prefer(Prefer::Weight)).unwrap();
    let tensors = ["l.weight_g", "l.weight_v"].map(String::from).to_vec();
    assert_eq!(problems(&report.warnings), [Problem::LeftOut { tensors, prefer: Prefer::Weight }]);
    assert_eq!((report.weights.len(), report.copied), (0, 2));
    let kept = Checkpoint::open(&output).unwrap();
    for name in ["l.bias", "l.weight"] {
        assert_eq!(kept.read_bytes(name).unwrap(), checkpoint.read_bytes(name).unwrap());
    }
    assert_eq!(kept.tensors().count(), 2);
}

/// A weight of another pair, or in another file, in either spelling; renamed and taken apart as well.
#[test]
fn prefer_in_shards_renamed_and_split() {
    let folder = Folder::new("prefer-shards");
    for (number, spelling) in [Spelling::Suffixes, Spelling::Parametrizations].into_iter().enumerate() {
        let path = |name: &str| folder.join(&format!("{name}{number}"));
        let [g, v] = [spelling.g("a.weight"), spelling.v("a.weight")];
        let first = vec![made(&g, Dtype::F32, &[3, 1], 1), made(&v, Dtype::F32, &[3, 2], 2)];
        let second = vec![made("a.weight", Dtype::F32, &[3, 2], 3), made("b.weight", Dtype::F32, &[2, 2], 4)];
        let index = write_sharded(&path("in"), &[("1.safetensors", first), ("2.safetensors", second)]);
        let checkpoint = Checkpoint::open(&index).unwrap();
        let sorted = |path: &Path| {
            let mut names = names(path);
            names.sort();
            names
        };
        let renamed = |prefer: Option<Prefer>, output: &str| {
            let mut rules = Rules::default();
            rules.prefer = prefer;
            convert(&checkpoint, &path(output), spelling.other(), &rules, &mut |_| ()).unwrap();
            sorted(&path(output))
        };
        let mut other = vec![spelling.other().g("a.weight"), spelling.other().v("a.weight"), "b.weight".to_owned()];
        other.sort();
        assert_eq!(renamed(Some(Prefer::Pair), "pair"), other);
        assert_eq!(renamed(Some(Prefer::Weight), "weight"), ["a.weight", "b.weight"]);
        // Nothing is in anybody's way: both stay.
        other.insert(0, "a.weight".to_owned());
        other.sort();
        assert_eq!(renamed(None, "both"), other);

        let rules = Rules::default().include("*.weight");
        let parted = |rules: &Rules, spelling, output: &str| {
            split(Device::Reference, &checkpoint, &path(output), spelling, rules, &mut |_| ())
        };
        for to in [spelling, spelling.other()] {
            assert_eq!(refused(parted(&rules, to, "never")), taken(&g));
        }
        let report = parted(&rules.clone().prefer(Prefer::Weight), spelling, "anew").unwrap();
        assert_eq!(report.weights.len(), 2);
        let anew = Checkpoint::open(&path("anew")).unwrap();
        assert_eq!(anew.read_bytes(&v).unwrap(), checkpoint.read_bytes("a.weight").unwrap());
        let report = parted(&rules.prefer(Prefer::Pair), spelling, "kept").unwrap();
        assert_eq!((report.weights.len(), report.copied, report.warnings.len()), (1, 2, 1));
        let kept = Checkpoint::open(&path("kept")).unwrap();
        assert_eq!(kept.read_bytes(&v).unwrap(), checkpoint.read_bytes(&v).unwrap());
        assert!(kept.tensor("a.weight").is_none());
    }
}
