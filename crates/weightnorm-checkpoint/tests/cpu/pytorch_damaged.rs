//! Files of PyTorch's own that are cut off, changed or made to do harm: errors, in bounded time and memory.
use std::path::Path;

use safetensors::Dtype;
use weightnorm_checkpoint::{Checkpoint, Error, Rules, inspect};

use crate::files::{Folder, made};
use crate::torch::{Py, Torch, View, dict, pickle, text, zip};

/// A file with a pair in it, small enough for every way of cutting it.
fn small() -> (Torch, Py) {
    let mut torch = Torch::default();
    let pair = [made("l.weight_g", Dtype::F32, &[2, 1], 1), made("l.weight_v", Dtype::F32, &[2, 3], 2)];
    let state = torch.state(&pair);
    (torch, dict([("generator", state), ("epoch", Py::Int(3))]))
}

fn error_of(path: &Path, bytes: &[u8]) -> Error {
    std::fs::write(path, bytes).unwrap();
    Checkpoint::open_key(path, "").map(drop).unwrap_err()
}

/// The error of a value that stands beside nothing else.
fn error_of_value(path: &Path, torch: &Torch, value: Py) -> Error {
    error_of(path, &torch.file(&dict([("t", value)])))
}

/// Everything that is read of a checkpoint, where a file opens. Nothing may panic.
fn read_all(path: &Path) -> bool {
    let Ok(checkpoint) = Checkpoint::open_key(path, "") else { return false };
    let _ = Checkpoint::open(path);
    for tensor in checkpoint.tensors() {
        assert_eq!(checkpoint.read_bytes(&tensor.name).unwrap().len() as u64, tensor.bytes());
    }
    let _ = inspect(&checkpoint, &Rules::default(), &mut |_| ());
    true
}

#[test]
fn pytorch_cut_off_anywhere_is_an_error() {
    let folder = Folder::new("cut-torch");
    let path = folder.join("a.pt");
    let (torch, root) = small();
    let whole = torch.file(&root);
    std::fs::write(&path, &whole).unwrap();
    assert!(read_all(&path));
    for length in 0..whole.len() {
        let error = error_of(&path, &whole[..length]);
        // Known for what it is once its first name is there.
        let is_known = length < 60 || error.to_string().contains("PyTorch's own (torch.save), and damaged");
        assert!(is_known, "{length}: {error}");
    }
    // With bytes behind its end it is no archive any more.
    assert!(matches!(error_of(&path, &[&whole[..], &[1; 9]].concat()), Error::Header { .. }));
}

/// Of the old form too, where each storage says how long it is.
#[test]
fn pytorch_old_form_that_is_damaged_is_an_error() {
    let folder = Folder::new("cut-old-torch");
    let path = folder.join("a.pt");
    let ((torch, root), counts) = (small(), [2, 6]);
    let whole = torch.old_file(&root, &counts);
    std::fs::write(&path, &whole).unwrap();
    assert!(read_all(&path));
    for length in 0..whole.len() {
        let error = error_of(&path, &whole[..length]);
        let is_known = length < 22 || error.to_string().contains("PyTorch's own (torch.save), and damaged");
        assert!(is_known, "{length}: {error}");
    }
    let at = |what: &[u8]| whole.windows(what.len()).position(|bytes| bytes == what).unwrap();
    let changed = |at: usize, byte: u8| {
        let mut bytes = whole.clone();
        bytes[at] = byte;
        error_of(&path, &bytes)
    };
    // little_endian: false, and no truth value. (The text, its end, and an opcode and a number of the memo.)
    let order = at(b"little_endian") + 13 + 2;
    assert_eq!(whole[order], 0x88);
    assert!(matches!(changed(order, 0x89), Error::Foreign { .. }));
    assert!(changed(order, b'N').to_string().contains("byte order"));
    // Another version, another count, a part of another storage.
    assert!(changed(at(b"J\xe9\x03") + 1, 0xea).to_string().contains("1001"));
    let first = whole.len() - torch.storages.iter().map(|bytes| 8 + bytes.len()).sum::<usize>();
    assert!(changed(first, whole[first] + 1).to_string().contains("elements"));
    assert!(changed(at(b"NtQ"), 0x88).to_string().contains("part of another"));

    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let (mut read, mut refused) = (0, 0);
    for _ in 0..1500 {
        let mut bytes = whole.clone();
        for _ in 0..3 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (state >> 33) as usize % bytes.len();
            bytes[at] ^= 1 << (state >> 20 & 7);
        }
        std::fs::write(&path, bytes).unwrap();
        if read_all(&path) { read += 1 } else { refused += 1 }
    }
    assert!(read > 20 && refused > 200, "{read} read, {refused} refused");
}

/// Bytes changed at random, in all of the file or in the pickle alone: an error, or tensors that can be read.
#[test]
fn pytorch_changed_at_random_never_panics() {
    changed_at_random(1500, 0x2545_f491_4f6c_dd1d);
}

#[test]
#[ignore = "minutes"]
fn pytorch_changed_at_random_never_panics_in_full() {
    changed_at_random(150_000, 0x9e37_79b9_7f4a_7c15);
}

fn changed_at_random(rounds: usize, seed: u64) {
    let folder = Folder::new("changed-torch");
    let path = folder.join("a.pt");
    let (torch, root) = small();
    let (whole, pickled) = (torch.file(&root), pickle(&root));
    let mut state = seed;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let interesting = [0, 1, 0x7f, 0x80, 0xff, b'.', b'(', b'R', b'Q', b'q', b'h', b't', b'u', b'b', b'2', 0x85, 0x8a];
    let (mut read, mut refused) = (0, 0);
    for round in 0..rounds {
        let mut bytes = if round % 2 == 0 { whole.clone() } else { pickled.clone() };
        for _ in 0..=random(4) {
            let (at, value) = (random(bytes.len()), interesting[random(interesting.len())]);
            match random(4) {
                0 => bytes[at] ^= 1 << random(8),
                1 => bytes[at] = value,
                2 => bytes.insert(at, value),
                _ => drop(bytes.drain(at..(at + 1 + random(6)).min(bytes.len()))),
            }
            bytes.push(b'.');
        }
        if round % 2 == 1 {
            let mut entries = torch.entries(&root);
            entries[0].1 = bytes;
            bytes = zip(&entries);
        }
        std::fs::write(&path, bytes).unwrap();
        if read_all(&path) { read += 1 } else { refused += 1 }
    }
    assert!(read > rounds / 40 && refused > rounds / 4, "{read} read, {refused} refused");
}

type Entries = Vec<(String, Vec<u8>)>;

/// Where something stands for the last time.
fn last(bytes: &[u8], what: &[u8]) -> usize {
    bytes.windows(what.len()).rposition(|at| at == what).unwrap()
}

#[test]
fn pytorch_lying_archives_are_errors() {
    let folder = Folder::new("lying");
    let path = folder.join("a.pt");
    let (torch, root) = small();
    let entries = torch.entries(&root);
    let whole = torch.file(&root);
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = whole.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    let edited = |edit: &dyn Fn(&mut Entries)| {
        let mut entries = entries.clone();
        edit(&mut entries);
        zip(&entries)
    };
    // The entry of storage 1 in the list of names, behind 46 bytes of its own; the records at the end.
    let listed = last(&whole, b"archive/data/1") - 46;
    let (end, end_64) = (whole.len() - 22, whole.len() - 22 - 20 - 56);
    let first = 0u32.to_le_bytes();
    let cases = [
        ("twice", edited(&|entries| entries.push(entries[4].clone()))),
        ("storage 1 is missing", edited(&|entries| entries.retain(|(name, _)| !name.ends_with("data/1")))),
        ("byte order", edited(&|entries| entries[3].1 = b"middle".to_vec())),
        ("byte order", edited(&|entries| entries[3].1 = vec![b' '; 1 << 10])),
        ("two pickles", edited(&|entries| entries.push(("other/data.pkl".to_owned(), vec![])))),
        ("20 bytes", edited(&|entries| entries[5].1.truncate(20))),
        ("6 elements", edited(&|entries| entries[5].1.clear())),
        ("compressed", with(listed + 10, &[8])),
        ("compressed", with(listed + 8, &[1])),
        ("compressed", with(listed + 20, &[25])),
        ("not where", with(listed + 42, &first)),
        ("list of names", with(listed + 42, &u32::MAX.to_le_bytes())),
        ("behind the list", with(listed + 42, &(u32::MAX - 1).to_le_bytes())),
        ("behind the list", with(listed + 20, &[[0xff, 0xff, 0xff, 0x7f], [0xff, 0xff, 0xff, 0x7f]].concat())),
        ("list of names is damaged", with(listed + 28, &[0xff, 0xff])),
        ("list of names is damaged", with(listed + 30, &[0xff, 0xff])),
        ("list of names is damaged", with(listed, b"QK")),
        ("do not say the same", with(end + 16, &first)),
        ("zip64 record", with(end - 20 + 8, &[0xff; 8])),
        ("zip64 record", with(end - 20 + 8, &[0; 8])),
        ("said to lie", with(end_64 + 48, &[0xff; 8]).tap(|bytes| bytes[end + 16..end + 20].fill(0xff))),
        ("said to lie", with(end_64 + 40, &[0xff; 8]).tap(|bytes| bytes[end + 12..end + 16].fill(0xff))),
    ];
    let said = |(what, bytes): (&'static str, Vec<u8>)| {
        let error = error_of(&path, &bytes);
        assert!(matches!(error, Error::Header { .. } | Error::Tensor { .. }), "{what}: {error:?}");
        (!error.to_string().contains(what)).then(|| format!("{what}: {error}"))
    };
    let others: Vec<String> = cases.into_iter().filter_map(said).collect();
    assert!(others.is_empty(), "{others:#?}");
    // One entry in the bytes of another: what stands in front of it is its own header.
    let inner = zip(&[("archive/data/1".to_owned(), vec![0; 24])]);
    let mut nested = entries.clone();
    nested[4].1 = [&[0; 8][..], &inner[..24 + 50]].concat();
    let mut bytes = zip(&nested);
    let at = (0..bytes.len()).find(|&at| bytes[at..].starts_with(b"archive/data/1")).unwrap() - 30;
    let listed = last(&bytes, b"archive/data/1") - 46;
    bytes[listed + 42..listed + 46].copy_from_slice(&(at as u32).to_le_bytes());
    let error = error_of(&path, &bytes).to_string();
    assert!(error.contains("an entry ends at"), "{error}");

    let big = edited(&|entries| entries[3].1 = b"big".to_vec());
    let error = error_of(&path, &big);
    assert!(
        matches!(&error, Error::Foreign { what, advice, .. } if what.contains("big-endian") && advice.contains("torch.load"))
    );
    // Without the entry, as old versions write it, it is little-endian.
    std::fs::write(&path, edited(&|entries| drop(entries.remove(3)))).unwrap();
    assert!(read_all(&path));
}

trait Tap: Sized {
    fn tap(self, edit: impl FnOnce(&mut Self)) -> Self;
}

impl Tap for Vec<u8> {
    fn tap(mut self, edit: impl FnOnce(&mut Self)) -> Self {
        edit(&mut self);
        self
    }
}

/// Tensors that no storage holds.
#[test]
fn pytorch_impossible_tensors_are_errors() {
    let folder = Folder::new("impossible");
    let path = folder.join("a.pt");
    let mut torch = Torch::default();
    let good = torch.view(&made("t", Dtype::F32, &[2, 3], 1));
    let with = |edit: &dyn Fn(&mut View)| {
        let mut view = good.clone();
        edit(&mut view);
        Py::Tensor(view)
    };
    let huge = i64::MAX;
    let cases = [
        ("beyond its storage", with(&|view| view.offset = 1)),
        ("beyond its storage", with(&|view| view.offset = huge)),
        ("begins at -1", with(&|view| view.offset = -1)),
        ("beyond its storage", with(&|view| view.strides = vec![4, 1])),
        ("beyond its storage", with(&|view| view.strides = vec![huge, huge])),
        ("-3 is no size", with(&|view| view.strides = vec![-3, 1])),
        ("-2 is no size", with(&|view| view.shape = vec![-2, 3])),
        ("2 axes and 1 strides", with(&|view| view.strides = vec![1])),
        ("no shape for F32", with(&|view| view.shape = vec![huge, huge])),
        ("no shape for F32", with(&|view| view.shape = vec![0, huge])),
        ("beyond its storage", with(&|view| view.shape = vec![2, 4])),
        ("7 elements of 4 bytes", with(&|view| view.count = 7)),
        ("elements of 4 bytes", with(&|view| view.count = huge)),
        ("-1 elements", with(&|view| view.count = -1)),
        ("6 elements of 8 bytes", with(&|view| view.class = "DoubleStorage")),
        ("is a QInt8Storage", with(&|view| view.class = "QInt8Storage")),
        ("of which type", with(&|view| view.class = "UntypedStorage")),
        ("storage ../../data.pkl is missing", with(&|view| view.key = "../../data.pkl".to_owned())),
        // An expanded number: little in the file, and more than anybody has.
        ("expanded", with(&|view| (view.shape, view.strides) = (vec![1 << 40, 3], vec![0, 1]))),
        ("70 axes", with(&|view| (view.shape, view.strides) = (vec![1; 70], vec![1; 70]))),
        ("_rebuild_sparse_tensor", Py::Raw(b"ctorch._utils\n_rebuild_sparse_tensor\n)R".to_vec())),
    ];
    for (what, value) in cases {
        let error = error_of_value(&path, &torch, value);
        assert!(matches!(&error, Error::Tensor { tensor, .. } if tensor == "t"), "{what}: {error:?}");
        assert!(error.to_string().contains(what), "{what}: {error}");
    }
    // Where nobody asks for such a tensor it does no harm.
    let bad = with(&|view| view.offset = 1);
    let root = dict([("model", dict([("t", Py::Tensor(good.clone()))])), ("old", Py::List(vec![bad]))]);
    std::fs::write(&path, torch.file(&root)).unwrap();
    assert_eq!(Checkpoint::open(&path).unwrap().tensors().count(), 1);
    // Names.
    let tensor = || Py::Tensor(View { ..good.clone() });
    let twice = dict([("a.b", tensor()), ("a", dict([("b", tensor())]))]);
    assert!(error_of(&path, &torch.file(&twice)).to_string().contains("\"a.b\": two tensors"));
    let reserved = dict([("__metadata__", tensor())]);
    assert!(error_of(&path, &torch.file(&reserved)).to_string().contains("no tensor may"));
    let long = dict([("x".repeat(1 << 20).as_str(), tensor())]);
    assert!(error_of(&path, &torch.file(&long)).to_string().contains("thousand characters"));
}

/// Pickles that ask for code, for more than there is, or for the end of the stack.
#[test]
fn pytorch_hostile_pickles_are_errors() {
    let folder = Folder::new("hostile");
    let path = folder.join("a.pt");
    let (torch, root) = small();
    let error_of_pickle = |pickle: &[u8]| {
        let mut entries = torch.entries(&root);
        entries[0].1 = pickle.to_vec();
        error_of(&path, &zip(&entries))
    };
    // What runs a command in Python is nothing but a name here.
    let ran = folder.join("ran");
    let command = format!("touch {}", ran.display());
    let call = [b"\x80\x02cposix\nsystem\nX".to_vec(), (command.len() as u32).to_le_bytes().to_vec()].concat();
    let call = [&call[..], command.as_bytes(), b"\x85R."].concat();
    let error = error_of_pickle(&call);
    assert!(matches!(error, Error::Key { .. }) && !ran.exists(), "{error}");

    // Ten dictionaries, each holding the next ten times: as many names as nobody counts.
    let bomb = |holds: usize, levels: usize| {
        let mut bytes = b"\x80\x02}q\x00X\x01\0\0\0tX\x01\0\0\0us".to_vec();
        for level in 1..=levels {
            bytes.extend(b"}(");
            for i in 0..holds {
                bytes.extend([b"X\x02\0\0\0", &[b'a' + i as u8, b'0'][..], b"h", &[level as u8 - 1]].concat());
            }
            bytes.extend([b'u', b'q', level as u8]);
        }
        bytes.push(b'.');
        bytes
    };
    let repeated = |opcodes: &[u8], count: usize| [b"\x80\x02", &opcodes.repeat(count)[..], b"."].concat();
    let size = |opcodes: &[u8], length: u64| [b"\x80\x02", opcodes, &length.to_le_bytes()[..], b"."].concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("hold more values", bomb(10, 20)),
        ("more than 64 deep", bomb(1, 100)),
        // A list that holds itself.
        ("more than 64 deep", b"\x80\x02]q\x00h\x00a.".to_vec()),
        ("more than 8388608 values", repeated(b"N", (1 << 23) + 1)),
        ("more than 8388608 values", repeated(b"(", (1 << 23) + 1)),
        ("more than 2097152 objects", repeated(b"}", (1 << 21) + 1)),
        ("cut off", size(b"\x8d", u64::MAX)),
        ("cut off", size(b"\x8e", 1 << 40)),
        ("cut off", size(b"X", u64::MAX)),
        ("cut off", b"\x80\x02".to_vec()),
        ("cut off", vec![]),
        ("cut off", b"\x80\x02ctorch".to_vec()),
        ("none is", b"\x80\x02.".to_vec()),
        ("none is", b"\x80\x02N(0.".to_vec()),
        ("none is", b"\x80\x02N(\x85.".to_vec()),
        ("no mark", b"\x80\x02Nt.".to_vec()),
        ("without a value", b"\x80\x02}(Nu.".to_vec()),
        ("holds nothing", b"\x80\x02NNNs.".to_vec()),
        ("no dictionary", b"\x80\x02]NNs.".to_vec()),
        ("no list", b"\x80\x02}Na.".to_vec()),
        ("not there", b"\x80\x02h\x05.".to_vec()),
        ("no storage", b"\x80\x02NQ.".to_vec()),
        ("no storage", b"\x80\x02)Q.".to_vec()),
        ("name is no text", b"\x80\x04NN\x93.".to_vec()),
        ("not made of", b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.".to_vec()),
        ("protocol 6", b"\x80\x06N.".to_vec()),
        ("opcode 0x69", b"\x80\x02iposix\nsystem\n.".to_vec()),
        ("opcode 0x82", b"\x80\x02\x82\x01.".to_vec()),
        ("opcode 0x50", b"\x80\x02Pid\n.".to_vec()),
    ];
    for (what, pickle) in cases {
        let error = error_of_pickle(&pickle);
        assert!(matches!(error, Error::Header { .. }), "{what}: {error:?}");
        assert!(error.to_string().contains(what), "{what}: {error}");
    }
    let long = error_of_pickle(&vec![b'N'; (64 << 20) + 1]);
    assert!(long.to_string().contains("the limit is"), "{long}");
    // Not asked for, a value may be anything.
    let odd = Py::Raw(b"cposix\nsystem\nX\x02\0\0\0ls\x85R}X\x01\0\0\0aNsb".to_vec());
    let fine = dict([("odd", odd), ("generator", small().1), ("note", text("x"))]);
    std::fs::write(&path, torch.file(&fine)).unwrap();
    assert_eq!(Checkpoint::open(&path).unwrap().key(), Some("generator.generator"));
}
