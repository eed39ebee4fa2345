//! Tensors by name.
use safetensors::Dtype;
use weightnorm_checkpoint::{Checkpoint, Error, FileDType, Spelling};

use crate::files::{Folder, Made, made, of_f64, raw, vocoder, write, write_sharded};

fn message(result: Result<Vec<f64>, Error>) -> String {
    match result {
        Err(error @ Error::Tensor { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn read_by_name_whichever_shard_it_is_in() {
    let folder = Folder::new("read");
    let tensors = vocoder(Spelling::Suffixes, Dtype::BF16);
    let (first, second): (Vec<Made>, Vec<Made>) =
        tensors.iter().cloned().partition(|tensor| tensor.name.ends_with("_g"));
    let index = write_sharded(&folder.join("in"), &[("1.safetensors", first), ("2.safetensors", second)]);
    let checkpoint = Checkpoint::open(&index).unwrap();
    for tensor in &tensors {
        assert_eq!(checkpoint.read_bytes(&tensor.name).unwrap(), tensor.bytes, "{}", tensor.name);
        let info = checkpoint.tensor(&tensor.name).unwrap();
        assert_eq!((&info.shape, info.elements()), (&tensor.shape, tensor.shape.iter().product::<usize>() as u64));
        assert_eq!(checkpoint.read_f64(&tensor.name).unwrap().len() as u64, info.elements());
    }
    assert_eq!(checkpoint.tensor("ups.0.weight_g").unwrap().dtype, FileDType::Bf16);
    assert!(checkpoint.tensor("nobody").is_none() && checkpoint.read_bytes("nobody").is_err());
    let said = message(checkpoint.read_f64("nobody"));
    assert!(said.contains("\"nobody\"") && said.contains("model.safetensors.index.json"), "{said}");
}

/// More elements than are read at once, of every type.
#[test]
fn read_numbers_of_every_type() {
    let folder = Folder::new("types");
    let path = folder.join("a.safetensors");
    let count = 70_001;
    let numbers: Vec<f64> = (0..count).map(|i| f64::from(i % 256 - 128) / 64.0).collect();
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64] {
        write(&path, &[made("front", Dtype::U8, &[8], 1), of_f64("a", dtype, &[count as usize], &numbers)], &[]);
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.read_f64("a").unwrap(), numbers);
        assert_eq!(checkpoint.read_f32("a").unwrap(), numbers.iter().map(|&x| x as f32).collect::<Vec<_>>());
    }
    // What f32 has not is rounded, a third of f64 and the smallest numbers of both.
    write(&path, &[of_f64("a", Dtype::F64, &[3], &[1.0 / 3.0, 1e-310, -1e-45])], &[]);
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.read_f64("a").unwrap(), [1.0 / 3.0, 1e-310, -1e-45]);
    assert_eq!(checkpoint.read_f32("a").unwrap(), [1.0 / 3.0, 0.0, -1e-45]);

    for (dtype, bytes, expected) in [
        ("BOOL", vec![0u8, 1], vec![0.0, 1.0]),
        ("U8", vec![7, 255], vec![7.0, 255.0]),
        ("I8", vec![7, 255], vec![7.0, -1.0]),
        ("U16", vec![0xfe, 0xff], vec![65534.0]),
        ("I16", vec![0xfe, 0xff], vec![-2.0]),
        ("U32", vec![0xfe, 0xff, 0xff, 0xff], vec![4294967294.0]),
        ("I32", vec![0xfe, 0xff, 0xff, 0xff], vec![-2.0]),
        ("U64", vec![0xfe, 0xff, 0xff, 0xff, 1, 0, 0, 0], vec![8589934590.0]),
        ("I64", vec![0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], vec![-2.0]),
    ] {
        let shape = expected.len();
        let header = format!(r#"{{"a":{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[0,{}]}}}}"#, bytes.len());
        std::fs::write(&path, raw(&header, &bytes)).unwrap();
        assert_eq!(Checkpoint::open(&path).unwrap().read_f64("a").unwrap(), expected, "{dtype}");
    }
    let header = r#"{"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}"#;
    std::fs::write(&path, raw(header, &[1, 2])).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert!(message(checkpoint.read_f64("a")).contains("F8_E4M3"));
    assert_eq!(checkpoint.read_bytes("a").unwrap(), [1, 2]);
}
