//! What a file or a folder is that is no checkpoint of ours, and what to do about it.
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Error;
use super::error::failed;

/// The suffix of an index.
pub(super) const INDEX: &str = ".safetensors.index.json";

/// Some bytes of a file, enough to know it by.
pub(super) struct Sample<'a> {
    pub path: &'a Path,
    /// Of the whole file.
    pub size: u64,
    /// The first ones.
    pub head: &'a [u8],
    /// The last ones: where zip archives have their list of names.
    pub tail: &'a [u8],
}

/// What `torch.save` writes.
const TORCH_ZIP: &str = "a file of PyTorch's own (torch.save)";

/// What the file is, if that can be told. Of a file that cannot be read as a checkpoint.
pub(super) fn recognize(sample: &Sample<'_>) -> Option<Error> {
    let (what, advice) = known(sample).or_else(|| text(sample))?;
    Some(Error::Foreign { path: sample.path.to_owned(), what, advice })
}

/// By the first bytes.
fn known(sample: &Sample<'_>) -> Option<(String, String)> {
    let Sample { path, size, head, .. } = *sample;
    let starts = |with: &[u8]| head.starts_with(with);
    let said = |what: &str, advice: &str| Some((what.to_owned(), advice.to_owned()));
    let lines = |what: &str, line: String| Some((what.to_owned(), format!("save it as one, in Python: {line}")));
    if size == 0 {
        return said("empty (0 bytes): a download or a copy that failed", AGAIN);
    }
    if starts(b"version https://git-lfs") || starts(b"version https://hawser") {
        let advice = "fetch the file itself: `git lfs install` and `git lfs pull` in its repository, or download it";
        return said("a Git LFS pointer, not the file that it stands for", advice);
    }
    if starts(b"PK\x03\x04") || starts(b"PK\x05\x06") {
        return zip(sample);
    }
    // The number that PyTorch's old files begin with, in any version of pickle.
    if starts(b"\x80") && head.get(2..13).is_some_and(|b| b == b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50") {
        return lines("a file of PyTorch's own (torch.save, the old form)", torch_line(path));
    }
    if starts(b"\x80") && matches!(head.get(1), Some(2..=5)) {
        let advice = "a pickle may run any code: only the program that wrote it should read it, \
                      and save its tensors with safetensors";
        return said("a Python pickle", advice);
    }
    if starts(b"GGUF") || starts(b"lmgg") || starts(b"tjgg") || starts(b"fmgg") {
        return said(
            "a GGUF or GGML file",
            "take the checkpoint that it was converted from: in there weights are folded",
        );
    }
    if starts(b"\x89HDF\r\n\x1a\n") {
        return lines("an HDF5 file (Keras, h5py)", hdf5_line(path));
    }
    if starts(b"\x93NUMPY") {
        let (from, to) = (quoted(path), quoted(&output_for(path)));
        let line =
            format!("import numpy, safetensors.numpy as s; s.save_file({{\"weight\": numpy.load({from})}}, {to})");
        return lines("a file of one NumPy array (.npy)", line);
    }
    let packed: [(&[u8], &str); 5] = [
        (b"\x1f\x8b", "gzip"),
        (b"BZh", "bzip2"),
        (b"\xfd7zXZ\0", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"7z\xbc\xaf\x27\x1c", "7-Zip"),
    ];
    if let Some((_, name)) = packed.iter().find(|(magic, _)| starts(magic)) {
        return said(&format!("compressed with {name}"), "unpack it, and name the file that was in it");
    }
    if head.get(257..262) == Some(b"ustar") {
        return said("a tar archive", "unpack it with `tar -xf`, and name the file that was in it");
    }
    if head.get(4..8) == Some(b"TFL3") {
        return said("a TensorFlow Lite model", "take the checkpoint that it was converted from");
    }
    if is_onnx(path, head) {
        let advice = "save the weights of the model that it was exported from, in Python: \
                      import safetensors.torch as s; s.save_model(model, \"model.safetensors\")";
        return said("an ONNX model", advice);
    }
    if size >= 64 && head.iter().all(|&byte| byte == 0) {
        return said("nothing but zeros where it should begin: a download or a copy that did not end", AGAIN);
    }
    None
}

pub(super) const AGAIN: &str = "download or copy it again";

/// Whether it is a zip archive that `torch.save` wrote, by the names that can be seen.
pub(super) fn is_torch_zip(sample: &Sample<'_>) -> bool {
    zip(sample).is_some_and(|(what, _)| what == TORCH_ZIP)
}

/// The error of numbers whose first byte is the highest.
pub(super) fn big_endian(path: &Path) -> Error {
    let what = "a file of PyTorch's own with big-endian numbers".to_owned();
    Error::Foreign { path: path.to_owned(), what, advice: format!("save it as one, in Python: {}", torch_line(path)) }
}

/// A zip archive, by the names of what is in it.
fn zip(sample: &Sample<'_>) -> Option<(String, String)> {
    let Sample { path, head, tail, .. } = *sample;
    let has = |name: &str| [head, tail].iter().any(|part| part.windows(name.len()).any(|at| at == name.as_bytes()));
    let lines = |what: &str, line: String| Some((what.to_owned(), format!("save it as one, in Python: {line}")));
    if has("constants.pkl") {
        return lines("a TorchScript archive of PyTorch", script_line(path));
    }
    if has("models/model.json") && has("archive_format") {
        return lines("a program of PyTorch's own (torch.export)", export_line(path));
    }
    if has("data.pkl") {
        return lines(TORCH_ZIP, torch_line(path));
    }
    if has(".npy") {
        let (from, to) = (quoted(path), quoted(&output_for(path)));
        let line = format!("import numpy, safetensors.numpy as s; s.save_file(dict(numpy.load({from})), {to})");
        return lines("a file of NumPy arrays (.npz)", line);
    }
    Some(("a zip archive".into(), "unpack it, and name the file that was in it".into()))
}

/// Files that people can read.
fn text(sample: &Sample<'_>) -> Option<(String, String)> {
    let head = sample.head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(sample.head);
    let part = &head[..head.len().min(1 << 10)];
    let text = match std::str::from_utf8(part) {
        Ok(text) => text,
        Err(e) if e.error_len().is_none() => std::str::from_utf8(&part[..e.valid_up_to()]).ok()?,
        Err(_) => return None,
    };
    if text.chars().any(|c| c.is_control() && !c.is_whitespace()) {
        return None;
    }
    let text = text.trim_start();
    let lower = text.to_lowercase();
    let said = |what: &str, advice: &str| Some((what.to_owned(), advice.to_owned()));
    let page = "open the address in a browser: a login or another address may be needed; then download it again";
    if lower.starts_with("<!doctype html") || lower.starts_with("<html") || lower.starts_with("<head") {
        return said("a web page (HTML): a download that failed", page);
    }
    if lower.starts_with("<?xml") || lower.starts_with('<') {
        return said("XML, maybe the message of a server: a download that failed", page);
    }
    if text.starts_with(['{', '[']) {
        if sample.path.extension().is_some_and(|extension| extension == "json") {
            return None; // what is wrong with an index is known better
        }
        return if head.windows(12).any(|at| at == b"\"weight_map\"") {
            said("JSON, the index of a sharded checkpoint by another name", "give it a name that ends in .json")
        } else {
            said("JSON", "name a .safetensors file, or the index of a sharded checkpoint, NAME.safetensors.index.json")
        };
    }
    let line: String = text.lines().next()?.chars().take(60).collect();
    if line.len() < 3 {
        return None;
    }
    said(&format!("text that begins {line:?}: maybe a download that failed"), AGAIN)
}

/// ir_version, then one of the fields of a model.
fn is_onnx(path: &Path, head: &[u8]) -> bool {
    path.extension().is_some_and(|extension| extension == "onnx")
        || matches!(head, [0x08, 1..=30, 0x12 | 0x1a | 0x22 | 0x2a | 0x32 | 0x3a | 0x42, ..])
}

/// As a text of Python.
fn quoted(path: &Path) -> String {
    Value::from(path.to_string_lossy()).to_string()
}

/// A name beside it that is not its own.
fn output_for(path: &Path) -> PathBuf {
    match path.with_extension("safetensors") {
        output if output == path => path.with_extension("new.safetensors"),
        output => output,
    }
}

/// All tensors of nested dictionaries and lists, named by the way to them, each with memory of its own.
const FLAT: &str = "f = lambda o, p=\"\": {p[:-1] or \"tensor\": o.detach().contiguous().clone()} if isinstance(o, torch.Tensor) \
                    else {k: t for n, x in (o.items() if isinstance(o, dict) else enumerate(o) if isinstance(o, \
                    (list, tuple)) else ()) for k, t in f(x, f\"{p}{n}.\").items()}";

fn torch_line(path: &Path) -> String {
    let (from, to) = (quoted(path), quoted(&output_for(path)));
    format!(
        "import torch, safetensors.torch as s; {FLAT}; \
         s.save_file(f(torch.load(open({from}, \"rb\"), map_location=\"cpu\", weights_only=True)), {to})"
    )
}

fn script_line(path: &Path) -> String {
    let (from, to) = (quoted(path), quoted(&output_for(path)));
    format!(
        "import torch, safetensors.torch as s; {FLAT}; \
         s.save_file(f(torch.jit.load({from}, map_location=\"cpu\").state_dict()), {to})"
    )
}

fn export_line(path: &Path) -> String {
    let (from, to) = (quoted(path), quoted(&output_for(path)));
    format!(
        "import torch, safetensors.torch as s; {FLAT}; \
         s.save_file(f(torch.export.load({from}).state_dict), {to})"
    )
}

fn hdf5_line(path: &Path) -> String {
    let (from, to) = (quoted(path), quoted(&output_for(path)));
    format!(
        "import h5py, safetensors.numpy as s; d = {{}}; h5py.File({from}).visititems(lambda n, x: \
         d.update({{n.replace(\"/\", \".\"): x[()]}}) if hasattr(x, \"dtype\") and x.dtype.kind in \"fiub\" else None); \
         s.save_file(d, {to})"
    )
}

/// The one checkpoint of a folder; anything but a folder is itself.
pub(super) fn in_folder(path: &Path) -> Result<PathBuf, Error> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let mut files = vec![];
    for entry in fs::read_dir(path).map_err(failed("reading the folder", path))? {
        files.push(entry.map_err(failed("reading the folder", path))?.path());
    }
    files.sort();
    let name = |file: &Path| file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let with = |suffixes: &[&str]| -> Vec<PathBuf> {
        let ends = |name: &str| suffixes.iter().any(|suffix| name.ends_with(suffix)) && !name.starts_with('.');
        files.iter().filter(|file| ends(&name(file))).cloned().collect()
    };
    let (indices, single) = (with(&[INDEX]), with(&[".safetensors"]));
    let list = |files: &[PathBuf]| {
        let more = if files.len() > 3 { ", .." } else { "" };
        files.iter().take(3).map(|file| name(file)).collect::<Vec<_>>().join(", ") + more
    };
    let torch = with(&[".bin", ".pt", ".pth", ".ckpt"]);
    let others = with(&[".gguf", ".onnx", ".h5", ".hdf5", ".keras", ".npz", ".npy", ".msgpack", ".zip", ".tar", ".gz"]);
    let reason = match (&indices[..], &single[..]) {
        ([index], _) => return Ok(index.clone()),
        ([], [file]) => return Ok(file.clone()),
        ([], []) => match (&torch[..], &others[..]) {
            ([file], _) => return Ok(file.clone()),
            ([], []) => {
                "a folder without checkpoints: it holds no *.safetensors file\nname the file, or its folder".into()
            }
            ([], others) => format!(
                "a folder without *.safetensors files, but with others: {}\nname one of them to be told what to do",
                list(others)
            ),
            ([file, ..], _) => format!(
                "a folder without *.safetensors files, but with files of PyTorch's own: {}\nsave each as one, in Python: {}",
                list(&torch),
                torch_line(file)
            ),
        },
        ([], single) => format!("a folder with several *.safetensors files and no index: {}\nname one", list(single)),
        (indices, _) => format!("a folder with several indices: {}\nname one", list(indices)),
    };
    Err(Error::Index { path: path.to_owned(), reason })
}
