//! Renaming: no number is touched, and the way back gives the same bytes.
use safetensors::{Dtype, SafeTensors};
use weightnorm_checkpoint::{Checkpoint, Error, Problem, Rules, Spelling, convert};

use crate::files::{Folder, Made, in_order, made, raw, vocoder, write, write_sharded};

fn to(from: &std::path::Path, output: &std::path::Path, spelling: Spelling) -> Result<usize, Error> {
    let checkpoint = Checkpoint::open(from)?;
    Ok(convert(&checkpoint, output, spelling, &Rules::default(), &mut |_| ())?.weights.len())
}

fn same_tensors(bytes: &[u8], expected: &[Made]) {
    let got = SafeTensors::deserialize(bytes).unwrap();
    assert_eq!(got.len(), expected.len());
    for tensor in expected {
        let got = got.tensor(&tensor.name).unwrap();
        assert_eq!((got.dtype(), got.shape()), (tensor.dtype, &tensor.shape[..]), "{}", tensor.name);
        assert!(got.data() == tensor.bytes, "{}", tensor.name);
    }
}

#[test]
fn convert_there_and_back_is_byte_identical() {
    let folder = Folder::new("convert");
    let [first, second, third] = ["a.safetensors", "b.safetensors", "c.safetensors"].map(|name| folder.join(name));
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64] {
        for spelling in [Spelling::Suffixes, Spelling::Parametrizations] {
            for by_crate in [true, false] {
                let tensors = vocoder(spelling, dtype);
                match by_crate {
                    true => write(&first, &tensors, &[("format", "pt"), ("\u{e9}\"\\\n\u{1}\u{7f}", "\u{1f600}/")]),
                    false => std::fs::write(&first, in_order(&tensors, &[("format", "pt")])).unwrap(),
                }
                assert_eq!(to(&first, &second, spelling.other()).unwrap(), 7);
                assert_eq!(to(&second, &third, spelling).unwrap(), 7);
                let [a, b, c] = [&first, &second, &third].map(|path| std::fs::read(path).unwrap());
                assert!(a == c, "{dtype:?} {spelling:?}");
                same_tensors(&b, &vocoder(spelling.other(), dtype));
                let metadata = |bytes: &[u8]| SafeTensors::read_metadata(bytes).unwrap().1.metadata().clone();
                assert_eq!(metadata(&a), metadata(&b));
                // In place, and in the spelling that it has already.
                assert_eq!(to(&first, &first, spelling.other()).unwrap(), 7);
                assert_eq!(to(&first, &first, spelling.other()).unwrap(), 0);
                assert!(std::fs::read(&first).unwrap() == b);
            }
        }
    }
    assert_eq!(folder.names(), ["a.safetensors", "b.safetensors", "c.safetensors"]);
}

/// The order of names in the header, with the metadata among them, and that of the data, which is another one.
#[test]
fn convert_keeps_the_order() {
    let folder = Folder::new("order");
    let header = concat!(
        r#" {"z": {"shape":[1], "data_offsets":[12,16], "dtype":"F32"}, "m.weight_v":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"#,
        r#" "__metadata__" : {"b":"2","a":"1"}, "m.weight_g":{"dtype":"F32","shape":[1,1],"data_offsets":[8,12]}}"#
    );
    let data: Vec<u8> = (0..16).collect();
    let (from, output) = (folder.join("a.safetensors"), folder.join("b.safetensors"));
    std::fs::write(&from, raw(header, &data)).unwrap();
    to(&from, &output, Spelling::Parametrizations).unwrap();
    let expected = concat!(
        r#"{"z":{"dtype":"F32","shape":[1],"data_offsets":[12,16]},"#,
        r#""m.parametrizations.weight.original1":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"#,
        r#""__metadata__":{"b":"2","a":"1"},"#,
        r#""m.parametrizations.weight.original0":{"dtype":"F32","shape":[1,1],"data_offsets":[8,12]}}"#
    );
    let padded = expected.to_owned() + &" ".repeat(expected.len().next_multiple_of(8) - expected.len());
    assert_eq!(
        String::from_utf8_lossy(&std::fs::read(&output).unwrap()),
        String::from_utf8_lossy(&raw(&padded, &data))
    );
}

#[test]
fn convert_refuses_what_is_odd_and_writes_nothing() {
    let folder = Folder::new("odd");
    let (from, output) = (folder.join("a.safetensors"), folder.join("b.safetensors"));
    std::fs::write(&output, "the old file").unwrap();
    let findings = |tensors: &[Made]| {
        write(&from, tensors, &[]);
        match to(&from, &output, Spelling::Parametrizations).unwrap_err() {
            Error::Findings { findings } => findings.into_iter().map(|finding| finding.problem).collect::<Vec<_>>(),
            other => panic!("{other}"),
        }
    };
    let pair =
        |g: &[usize], v: &[usize]| vec![made("m.weight_g", Dtype::F32, g, 1), made("m.weight_v", Dtype::F32, v, 2)];
    let mut taken = pair(&[2, 1], &[2, 2]);
    taken.push(made("m.parametrizations.weight.original0", Dtype::F32, &[2, 1], 3));
    assert!(findings(&taken).iter().any(|p| matches!(p, Problem::NameTaken { .. } | Problem::MissingPartner { .. })));
    assert!(matches!(findings(&pair(&[3, 1], &[2, 2]))[..], [Problem::Shape { .. }]));
    assert!(matches!(findings(&pair(&[2, 1], &[2, 2])[1..])[..], [Problem::MissingPartner { .. }]));
    write(&from, &[made("m.weight", Dtype::F32, &[2, 2], 1)], &[]);
    assert!(matches!(to(&from, &output, Spelling::Suffixes).unwrap_err(), Error::NothingChosen { .. }));
    assert_eq!(std::fs::read(&output).unwrap(), b"the old file");
    assert_eq!(folder.names(), ["a.safetensors", "b.safetensors"]);

    // Names do not depend on the axis or the storage type.
    write(&from, &pair(&[4], &[4, 4]), &[]);
    assert_eq!(to(&from, &output, Spelling::Parametrizations).unwrap(), 1);
}

/// g and v of one weight in different files.
fn shards(spelling: Spelling) -> [(&'static str, Vec<Made>); 3] {
    let mut first = vocoder(spelling, Dtype::F16);
    let second = first.split_off(4);
    let alone = made("other", Dtype::F32, &[5], 9);
    [("m-1.safetensors", first), ("m-2.safetensors", second), ("m-3.safetensors", vec![alone])]
}

#[test]
fn convert_sharded_there_and_back() {
    let folder = Folder::new("sharded");
    let index = write_sharded(&folder.join("a"), &shards(Spelling::Suffixes));
    assert_eq!(to(&index, &folder.join("b"), Spelling::Parametrizations).unwrap(), 7);
    // The folder names its only index.
    assert_eq!(to(&folder.join("b"), &folder.join("c"), Spelling::Suffixes).unwrap(), 7);
    let read = |folder_name: &str, name: &str| std::fs::read(folder.join(folder_name).join(name)).unwrap();
    for name in ["m-1.safetensors", "m-2.safetensors", "m-3.safetensors", "model.safetensors.index.json"] {
        assert!(read("a", name) == read("c", name), "{name}");
    }
    for (name, tensors) in shards(Spelling::Parametrizations) {
        same_tensors(&read("b", name), &tensors);
    }
    let text = String::from_utf8(read("b", "model.safetensors.index.json")).unwrap();
    assert!(text.contains("\"ups.0.parametrizations.weight.original1\": \"m-2.safetensors\""), "{text}");

    // A folder is not replaced, not even an empty one.
    std::fs::create_dir(folder.join("d")).unwrap();
    for there in ["a", "c", "d"] {
        let error = to(&index, &folder.join(there), Spelling::Parametrizations).unwrap_err();
        assert!(matches!(error, Error::Occupied { .. }), "{error}");
    }
    assert_eq!(folder.names(), ["a", "b", "c", "d"]);
}
