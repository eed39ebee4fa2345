//! Files that are not to be trusted.
use std::path::Path;

use proptest::prelude::*;
use safetensors::{Dtype, SafeTensors};
use weightnorm_checkpoint::{Checkpoint, Error, Rules, Spelling, convert, inspect};

use crate::files::{Folder, made, raw, vocoder, write, write_sharded};

/// One tensor "a" of two f32 and whatever else a header has.
const GOOD: &str = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;

fn refused(path: &Path, bytes: &[u8]) -> String {
    std::fs::write(path, bytes).unwrap();
    let message = Checkpoint::open(path).map(drop).expect_err(&String::from_utf8_lossy(bytes)).to_string();
    assert!(message.contains("damaged.safetensors"), "{message}");
    message
}

#[test]
fn damaged_headers_are_errors() {
    let folder = Folder::new("damaged");
    let path = folder.join("damaged.safetensors");
    std::fs::write(&path, raw(GOOD, &[0; 8])).unwrap();
    Checkpoint::open(&path).unwrap();
    let good = raw(GOOD, &[0; 8]);
    for length in 0..good.len() {
        refused(&path, &good[..length]);
    }
    let entry = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
    };
    let two = |second: &str| format!(r#"{{"a":{},"b":{second}}}"#, entry("F32", "[2]", "[0,8]"));
    let cases: Vec<(String, usize, &str)> = vec![
        (GOOD.into(), 9, "left over"),
        (GOOD.into(), 0, "cut off"),
        ("".into(), 0, "EOF"),
        ("null".into(), 0, "object of tensors"),
        ("[]".into(), 0, "object of tensors"),
        (format!("{GOOD}x"), 8, "trailing"),
        (r#"{"a":1}"#.into(), 0, "invalid type"),
        (
            format!(r#"{{"a":{},"a":{}}}"#, entry("F32", "[2]", "[0,8]"), entry("F32", "[2]", "[8,16]")),
            16,
            "\"a\" is there twice",
        ),
        (format!(r#"{{"a":{0},"\u0061":{0}}}"#, entry("F32", "[0]", "[0,0]")), 0, "\"a\" is there twice"),
        (r#"{"__metadata__":{},"__metadata__":{}}"#.into(), 0, "\"__metadata__\" is there twice"),
        (r#"{"__metadata__":{"k":"1","k":"2"}}"#.into(), 0, "\"k\" is there twice"),
        (r#"{"__metadata__":{"k":1}}"#.into(), 0, "expected a string"),
        (
            r#"{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#.into(),
            8,
            "\"dtype\" is there twice",
        ),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"more":1e999}}"#.into(), 8, "out of range"),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"more":"\ud800"}}"#.into(), 8, "hex escape"),
        (r#"{"a":{"dtype":"F32","shape":[2]}}"#.into(), 8, "missing field"),
        (format!(r#"{{"a":{}}}"#, entry("F31", "[2]", "[0,8]")), 8, "tensor \"a\": unknown variant `F31` at"),
        (format!(r#"{{"a":{}}}"#, entry("F32", "[-2]", "[0,8]")), 8, "invalid value"),
        (format!(r#"{{"a":{}}}"#, entry("F32", "[2.0]", "[0,8]")), 8, "invalid type"),
        (format!(r#"{{"a":{}}}"#, entry("F32", "[2]", "[0]")), 8, "invalid length"),
        (format!(r#"{{"a":{}}}"#, entry("F32", "[2]", "[0,8,9]")), 8, "trailing characters"),
        (format!(r#"{{"a":{}}}"#, entry("F32", "[2]", "[8,0]")), 8, "takes 8 bytes"),
        (format!(r#"{{"a":{}}}"#, entry("F32", "[2]", "[0,7]")), 7, "takes 8 bytes"),
        (format!(r#"{{"a":{}}}"#, entry("F64", "[2]", "[0,8]")), 8, "takes 16 bytes"),
        (format!(r#"{{"a":{}}}"#, entry("F32", "[2]", "[18446744073709551608,18446744073709551616]")), 8, "header"),
        (format!(r#"{{"a":{}}}"#, entry("F32", "[2]", "[18446744073709551600,18446744073709551608]")), 8, "hole"),
        (format!(r#"{{"a":{}}}"#, entry("F4", "[3]", "[0,1]")), 1, "no shape"),
        (format!(r#"{{"a":{}}}"#, entry("F32", "[4294967296,4294967296,4294967296]", "[0,8]")), 8, "no shape"),
        (format!(r#"{{"a":{}}}"#, entry("F32", "[0,4294967296,4294967296,4294967296]", "[0,0]")), 0, "no shape"),
        (format!(r#"{{"a":{}}}"#, entry("F32", "[2]", "[4,12]")), 12, "hole"),
        (two(&entry("F32", "[2]", "[12,20]")), 20, "hole"),
        (two(&entry("F32", "[2]", "[4,12]")), 12, "overlaps"),
        (two(&entry("F32", "[2]", "[0,8]")), 8, "overlaps"),
        (two(&entry("F32", "[0]", "[4,4]")), 8, "overlaps"),
        (format!(r#"{{"a":{}}}"#, "[".repeat(100_000)), 0, "header"),
    ];
    for (header, data, expected) in cases {
        let message = refused(&path, &raw(&header, &vec![0; data]));
        assert!(message.contains(expected), "{header}: {message}");
    }
    // Lengths that no header has, none of which may be allocated.
    for (length, expected) in [(u64::MAX, "limit"), (100_000_001, "limit"), (100_000_000, "cut off"), (9999, "cut off")]
    {
        let message = refused(&path, &[&length.to_le_bytes()[..], GOOD.as_bytes()].concat());
        assert!(message.contains(expected), "{message}");
    }
    let mut bytes = good.clone();
    bytes[10] = 0xff;
    assert!(refused(&path, &bytes).contains("UTF-8"));
}

/// What the `safetensors` crate reads is read here too.
#[test]
fn odd_headers_that_are_read() {
    let folder = Folder::new("odd-headers");
    let path = folder.join("a.safetensors");
    for (header, data) in [
        ("{}", 0),
        (r#"{"__metadata__":null}"#, 0),
        (r#"{"__metadata__":{}}"#, 0),
        (" { \n\t\"__metadata__\" : { } } \n", 0),
        (r#"{"":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#, 4),
        (
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"more":[{"x":null},-1.5e3,"\u00e9"]},"__metadata__":null}"#,
            8,
        ),
        (r#"{"a":{"more":1,"more":2,"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8),
        (r#"{"a":["F32",[2],[0,8]]}"#, 8),
        (r#"{"a":{"dtype":{"F32":null},"shape":[2],"data_offsets":[0,8]}}"#, 8),
        (
            r#"{"a":{"dtype":"F4","shape":[4],"data_offsets":[0,2]},"b":{"dtype":"F32","shape":[0,3],"data_offsets":[2,2]}}"#,
            2,
        ),
        (
            r#"{"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#,
            3,
        ),
    ] {
        let bytes = raw(header, &vec![0; data]);
        let theirs = SafeTensors::deserialize(&bytes).unwrap();
        std::fs::write(&path, &bytes).unwrap();
        let ours = Checkpoint::open(&path).unwrap_or_else(|e| panic!("{header}: {e}"));
        assert_eq!(ours.tensors().count(), theirs.len(), "{header}");
    }
}

#[test]
fn damaged_things_that_are_no_files() {
    let folder = Folder::new("none");
    let open = |path: &Path| Checkpoint::open(path).map(drop).unwrap_err();
    assert!(matches!(open(&folder.join("missing.safetensors")), Error::Io { .. }));
    assert!(matches!(open(&folder.0), Error::Index { .. }));
    std::fs::create_dir(folder.join("x.safetensors")).unwrap();
    std::fs::create_dir(folder.join("x.json")).unwrap();
    assert!(matches!(open(&folder.join("x.safetensors")), Error::Index { .. }));
    #[cfg(unix)]
    {
        assert!(matches!(open(Path::new("/dev/zero")), Error::Header { .. }));
        // Nobody writes to it: to open it would take for ever.
        for name in ["pipe.safetensors", "pipe.json"] {
            let made = std::process::Command::new("mkfifo").arg(folder.join(name)).status();
            assert!(made.is_ok_and(|status| status.success()));
        }
        assert!(matches!(open(&folder.join("pipe.safetensors")), Error::Header { .. }));
        assert!(matches!(open(&folder.join("pipe.json")), Error::Index { .. }));
        std::os::unix::fs::symlink("/dev/zero", folder.join("zero.json")).unwrap();
        assert!(matches!(open(&folder.join("zero.json")), Error::Index { .. }));
    }
}

#[test]
fn damaged_indices_are_errors() {
    let folder = Folder::new("index");
    let a = || vec![made("a", Dtype::F32, &[2], 1)];
    let b = || vec![made("b", Dtype::F32, &[2], 2)];
    let index = write_sharded(&folder.0, &[("1.safetensors", a()), ("2.safetensors", b())]);
    assert_eq!(Checkpoint::open(&index).unwrap().tensors().count(), 2);
    let twice = [a(), b()].concat();
    write(&folder.join("twice.safetensors"), &twice, &[]);
    for (text, expected) in [
        ("", "it is empty"),
        ("[]", "no JSON object"),
        ("{}", "weight_map"),
        (r#"{"weight_map":[]}"#, "weight_map"),
        (r#"{"weight_map":{},"weight_map":{}}"#, "twice"),
        (r#"{"weight_map":{"a":"1.safetensors","a":"2.safetensors"}}"#, "twice"),
        (r#"{"weight_map":{"a":1}}"#, "no name of a file"),
        (r#"{"weight_map":{"a":"../index/1.safetensors"}}"#, "no name of a file"),
        (r#"{"weight_map":{"a":"/etc/passwd"}}"#, "no name of a file"),
        (r#"{"weight_map":{"a":"./1.safetensors"}}"#, "no name of a file"),
        (r#"{"weight_map":{"a":"1.safetensors/"}}"#, "no name of a file"),
        (r#"{"weight_map":{"a":".."}}"#, "no name of a file"),
        (r#"{"weight_map":{"a":""}}"#, "no name of a file"),
        (r#"{"weight_map":{"a":"missing.safetensors"}}"#, "missing.safetensors"),
        (r#"{"weight_map":{"a":"model.safetensors.index.json"}}"#, "model.safetensors.index.json"),
        // Two files have a tensor, and the index says neither.
        (r#"{"weight_map":{"b":"1.safetensors","c":"twice.safetensors"}}"#, "\"a\" is in 1.safetensors and twice"),
        (
            r#"{"weight_map":{"a":"2.safetensors","c":"1.safetensors","d":"twice.safetensors"}}"#,
            "does not say which counts",
        ),
    ] {
        std::fs::write(&index, text).unwrap();
        let message = Checkpoint::open(&index).map(drop).expect_err(text).to_string();
        assert!(message.contains(expected), "{text}: {message}");
    }
    // No tensors, no files.
    std::fs::write(&index, r#"{"weight_map":{}}"#).unwrap();
    assert_eq!(Checkpoint::open(&index).unwrap().tensors().count(), 0);
}

/// A file that becomes shorter between the header and the numbers.
#[test]
fn damaged_while_open() {
    let folder = Folder::new("shorter");
    let path = folder.join("a.safetensors");
    write(&path, &vocoder(Spelling::Suffixes, Dtype::F32), &[]);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(std::fs::metadata(&path).unwrap().len() - 10_000).unwrap();
    let output = folder.join("b.safetensors");
    let (rules, spelling) = (Rules::default(), Spelling::Parametrizations);
    assert!(matches!(inspect(&checkpoint, &rules, &mut |_| ()), Err(Error::Io { doing: "reading", .. })));
    let error = convert(&checkpoint, &output, spelling, &rules, &mut |_| ()).unwrap_err();
    assert!(matches!(error, Error::Io { doing: "reading", .. }));
    assert_eq!(folder.names(), ["a.safetensors"]);
}

/// What is done to a good file.
#[derive(Debug, Clone)]
enum Damage {
    Set(prop::sample::Index, u8),
    /// A byte of the header by one that JSON makes something of.
    Write(prop::sample::Index, char),
    Cut(prop::sample::Index),
    Remove(prop::sample::Index, usize),
    /// A piece of the header again, somewhere else.
    Repeat(prop::sample::Index, usize, prop::sample::Index),
    /// Another length, so that the rest may fit.
    Length(i64),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = || any::<prop::sample::Index>();
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        (at(), prop::sample::select("0123456789{}[]\",:-.eE\\ FUIB_gv".chars().collect::<Vec<_>>()))
            .prop_map(|(at, c)| Damage::Write(at, c)),
        at().prop_map(Damage::Cut),
        (at(), 1..80usize).prop_map(|(at, count)| Damage::Remove(at, count)),
        (at(), 1..120usize, at()).prop_map(|(from, count, to)| Damage::Repeat(from, count, to)),
        (-80i64..80).prop_map(Damage::Length),
    ]
}

fn damaged(mut bytes: Vec<u8>, damages: &[Damage]) -> Vec<u8> {
    for damage in damages {
        if bytes.len() < 9 {
            break;
        }
        // Mostly the header, which is short beside the data.
        let header = bytes.len().min(700);
        match damage {
            Damage::Set(at, byte) => bytes[at.index(header)] = *byte,
            Damage::Write(at, c) => bytes[8 + at.index(header - 8)] = *c as u8,
            Damage::Cut(at) => bytes.truncate(at.index(header)),
            Damage::Remove(at, count) => {
                let at = at.index(header);
                bytes.drain(at..(at + count).min(header));
            }
            Damage::Repeat(from, count, to) => {
                let from = from.index(header);
                let piece = bytes[from..(from + count).min(header)].to_vec();
                let to = to.index(header);
                bytes.splice(to..to, piece);
            }
            Damage::Length(by) => {
                let length = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                bytes[..8].copy_from_slice(&length.wrapping_add_signed(*by).to_le_bytes());
            }
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..Default::default() })]

    /// Whatever the bytes, an error or a file that the `safetensors` crate reads as well, and never a panic; all that
    /// can be done with it ends in an error, or in a file that it reads too.
    #[test]
    fn damaged_bytes_never_panic(damages in prop::collection::vec(damage(), 0..4), refit in any::<bool>()) {
        let folder = Folder::new("mutated");
        let (path, output) = (folder.join("a.safetensors"), folder.join("b.safetensors"));
        let tensors = [
            made("m.weight_g", Dtype::F32, &[4, 1], 1), made("m.weight_v", Dtype::F32, &[4, 3], 2),
            made("n.parametrizations.weight.original0", Dtype::BF16, &[1, 2], 3),
            made("n.parametrizations.weight.original1", Dtype::BF16, &[3, 2], 4),
            made("other", Dtype::F64, &[2, 0], 5), made("steps", Dtype::I64, &[], 6),
        ];
        write(&path, &tensors, &[("format", "pt")]);
        let good = std::fs::read(&path).unwrap();
        let data = good.len() as u64 - 8 - u64::from_le_bytes(good[..8].try_into().unwrap());
        let mut bytes = damaged(good, &damages);
        if refit && bytes.len() as u64 > 8 + data {
            let length = bytes.len() as u64 - 8 - data;
            bytes[..8].copy_from_slice(&length.to_le_bytes());
        }
        std::fs::write(&path, &bytes).unwrap();
        match (Checkpoint::open(&path), SafeTensors::deserialize(&bytes)) {
            (Err(ours), Ok(_)) => {
                let ours = ours.to_string();
                let stricter = ["twice", "no shape"];
                prop_assert!(stricter.iter().any(|word| ours.contains(word)), "we alone refuse it: {ours}");
            }
            (Ok(_), Err(theirs)) => prop_assert!(false, "we alone take it: {theirs}"),
            (Err(_), Err(_)) => {}
            (Ok(checkpoint), Ok(theirs)) => {
                prop_assert_eq!(checkpoint.tensors().count(), theirs.len());
                let rules = Rules::default();
                let inspected = inspect(&checkpoint, &rules, &mut |_| ());
                prop_assert!(inspected.is_ok());
                if convert(&checkpoint, &output, Spelling::Parametrizations, &rules, &mut |_| ()).is_ok() {
                    let written = std::fs::read(&output).unwrap();
                    let written = SafeTensors::deserialize(&written);
                    prop_assert!(written.is_ok_and(|written| written.len() == theirs.len()));
                } else {
                    prop_assert_eq!(folder.names(), ["a.safetensors"]);
                }
            }
        }
    }
}
