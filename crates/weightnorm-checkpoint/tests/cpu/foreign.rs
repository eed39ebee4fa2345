//! Files and folders of other kinds: the first line of the error says what it is, the second what to do.
use std::path::Path;

use safetensors::Dtype;
use weightnorm_checkpoint::{Checkpoint, Error, Spelling};

use crate::files::{Folder, vocoder, write};

/// What opening it says, in two lines of which the first names it.
fn said(path: &Path) -> [String; 2] {
    let error = Checkpoint::open(path).map(drop).unwrap_err();
    assert!(matches!(error, Error::Foreign { .. } | Error::Index { .. } | Error::Header { .. }), "{error:?}");
    let text = error.to_string();
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    assert!(lines[0].contains(&path.display().to_string()), "{text}");
    lines.try_into().unwrap_or_else(|lines| panic!("{lines:?}"))
}

/// A zip archive's first entry.
fn zip(name: &str) -> Vec<u8> {
    let mut bytes = b"PK\x03\x04".to_vec();
    bytes.extend([0; 22]);
    bytes.extend((name.len() as u16).to_le_bytes());
    bytes.extend([0; 2]);
    bytes.extend(name.as_bytes());
    bytes.extend([7; 100]);
    bytes
}

fn padded(start: &[u8]) -> Vec<u8> {
    [start, &[0x11, 0xff, 0, 0x91][..], &[0; 500]].concat()
}

/// What stands in a file, what the first line says, and the second.
fn kinds() -> Vec<(Vec<u8>, &'static str, &'static str)> {
    let tar = [&[b'a'; 100][..], &[0; 157], b"ustar\x0000", &[0; 248]].concat();
    vec![
        (include_bytes!("../data/git_lfs_pointer/input.safetensors").to_vec(), "Git LFS", "git lfs pull"),
        (vec![], "empty (0 bytes)", "again"),
        (zip("model/constants.pkl"), "TorchScript", "torch.jit.load"),
        (zip("net/models/model.json net/archive_format"), "torch.export", "torch.export.load"),
        (zip("arr_0.npy"), "NumPy", "numpy.load"),
        (zip("readme"), "zip archive", "unpack"),
        (padded(b"\x80\x04\x95"), "pickle", "safetensors"),
        (padded(b"GGUF\x03\0\0\0"), "GGUF", "converted from"),
        (padded(b"\x08\x08\x12\x07pytorch"), "ONNX", "save_model"),
        (padded(b"\x89HDF\r\n\x1a\n"), "HDF5", "h5py"),
        (padded(b"\x93NUMPY\x01\0v\0{'descr': '<f4'}"), "NumPy", "numpy.load"),
        (padded(b"\x1f\x8b\x08\0\0\0\0\0"), "gzip", "unpack"),
        (padded(b"\x28\xb5\x2f\xfd"), "zstd", "unpack"),
        (tar, "tar", "tar -xf"),
        (vec![0; 4096], "zeros", "again"),
        (b"\n<!DOCTYPE html>\n<html lang=\"en\">".to_vec(), "HTML", "browser"),
        (b"<html><body>404</body></html>".to_vec(), "HTML", "browser"),
        (b"\xef\xbb\xbf<?xml version=\"1.0\"?><Error>".to_vec(), "XML", "browser"),
        (b"<Error><Code>AccessDenied</Code></Error>".to_vec(), "XML", "browser"),
        (b"Entry not found".to_vec(), "Entry not found", "again"),
        (b"{\"error\": \"Repository not found\"}".to_vec(), "JSON", "index"),
        (b"{\"weight_map\": {\"a\": \"b.safetensors\"}}".to_vec(), "index of a sharded", ".json"),
    ]
}

#[test]
fn foreign_files_are_known_by_themselves_in_a_folder_and_as_shards() {
    let folder = Folder::new("foreign");
    let (path, index) = (folder.join("model.safetensors"), folder.join("model.safetensors.index.json"));
    for (bytes, what, todo) in kinds() {
        std::fs::write(&path, &bytes).unwrap();
        let lines = said(&path);
        assert!(lines[0].contains(what) && lines[1].contains(todo), "{what}: {lines:?}");
        assert!(Checkpoint::open(&folder.0).unwrap_err().to_string().contains(what));
        // The shard is named, not the index.
        std::fs::write(&index, r#"{"weight_map": {"a": "model.safetensors"}}"#).unwrap();
        let error = Checkpoint::open(&index).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains(todo), "{error}");
        assert!(error.contains(&path.display().to_string()), "{error}");
        std::fs::remove_file(&index).unwrap();
    }
    // One of ours is none of them.
    write(&path, &vocoder(Spelling::Suffixes, Dtype::F32), &[]);
    Checkpoint::open(&path).unwrap();
    // It is ours, and cut off: in its data, and in its header.
    let whole = std::fs::read(&path).unwrap();
    for length in [whole.len() - 1, whole.len() / 2, 100] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let lines = said(&path);
        assert!(lines[0].contains("cut off") && lines[1].contains("again"), "{lines:?}");
    }
}

/// What `torch.save` writes is read, so that one which cannot be read is damaged. As a shard it is of another kind.
#[test]
fn foreign_damaged_files_of_pytorch() {
    let folder = Folder::new("foreign-torch");
    let (path, index) = (folder.join("model.pt"), folder.join("model.safetensors.index.json"));
    std::fs::write(&index, r#"{"weight_map": {"a": "model.pt"}}"#).unwrap();
    let late = [&zip("archive/other")[..], &[9; 200_000], b"PK\x01\x02archive/data.pkl"].concat();
    let old = |version| padded(&[b"\x80", &[version][..], b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."].concat());
    for (bytes, how) in
        [(zip("archive/data.pkl"), "cut off"), (late, "cut off"), (old(2), "opcode"), (old(4), "opcode")]
    {
        std::fs::write(&path, &bytes).unwrap();
        let lines = said(&path);
        assert!(lines[0].contains("PyTorch") && lines[0].contains(how) && lines[1].contains("again"), "{lines:?}");
        let error = Checkpoint::open(&index).unwrap_err().to_string();
        assert!(error.contains("PyTorch") && error.contains("torch.load"), "{error}");
    }
}

#[test]
fn foreign_files_in_place_of_an_index() {
    let folder = Folder::new("foreign-index");
    let index = folder.join("model.safetensors.index.json");
    for (text, what, todo) in [
        ("", "empty", "again"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0f\nsize 5\n", "Git LFS", "git lfs pull"),
        ("<!doctype html>", "HTML", "browser"),
        ("{\"model_type\": \"llama\"}", "no index", ".safetensors"),
    ] {
        std::fs::write(&index, text).unwrap();
        let lines = said(&index);
        assert!(lines[0].contains(what) && lines[1].contains(todo), "{lines:?}");
    }
}

/// A shard that is not there: the message names it, and a tensor that the index lists in it.
#[test]
fn foreign_index_whose_file_is_missing() {
    let folder = Folder::new("missing-shard");
    let index = folder.join("model.safetensors.index.json");
    std::fs::write(&index, r#"{"weight_map": {"a.weight": "2.safetensors"}}"#).unwrap();
    let text = Checkpoint::open(&index).unwrap_err().to_string();
    assert!(text.contains("2.safetensors") && text.lines().count() == 2, "{text}");
    assert!(text.contains("\nthe index lists \"a.weight\" in it"), "{text}");
    // The index itself.
    let text = Checkpoint::open(&folder.join("b.safetensors.index.json")).unwrap_err().to_string();
    assert!(!text.contains("the index lists"), "{text}");
}

#[test]
fn foreign_folders_say_what_they_hold() {
    let folder = Folder::new("foreign-folder");
    let lines = said(&folder.0);
    assert!(lines[0].contains("no *.safetensors"), "{lines:?}");
    std::fs::write(folder.join("config.json"), "{}").unwrap();
    assert!(said(&folder.0)[0].contains("without checkpoints"));
    std::fs::write(folder.join("model.gguf"), "GGUF").unwrap();
    assert!(said(&folder.0)[0].contains("model.gguf"));
    for name in ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"] {
        std::fs::write(folder.join(name), zip("archive/data.pkl")).unwrap();
    }
    let lines = said(&folder.0);
    assert!(lines[0].contains("PyTorch") && lines[0].contains("pytorch_model-00001-of-00002.bin"), "{lines:?}");
    assert!(lines[1].contains("torch.load") && lines[1].contains("weights_only=True"), "{lines:?}");
    for name in ["a.safetensors", "b.safetensors"] {
        write(&folder.join(name), &vocoder(Spelling::Suffixes, Dtype::F32), &[]);
    }
    let lines = said(&folder.0);
    assert!(lines[0].contains("a.safetensors, b.safetensors") && lines[1].contains("name one"), "{lines:?}");
}
