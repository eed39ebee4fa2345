//! Files as `torch.save` writes them, made by hand: a pickle of protocol 2 in a zip archive of stored entries.
#![allow(dead_code, reason = "each test binary uses its own part of this file")]

use safetensors::Dtype;

use crate::files::Made;

/// A value of Python.
#[derive(Clone)]
pub enum Py {
    None,
    Int(i64),
    Float(f64),
    Text(String),
    Tuple(Vec<Py>),
    List(Vec<Py>),
    Dict(Vec<(Py, Py)>),
    /// An `OrderedDict` with `_metadata`, as a state dict is.
    State(Vec<(String, Py)>),
    /// An object of another class, with its attributes.
    Object(&'static str, Vec<(Py, Py)>),
    Tensor(View),
    /// `torch.nn.Parameter`.
    Parameter(View),
    /// Opcodes as they are.
    Raw(Vec<u8>),
}

/// A tensor: a view of a storage.
#[derive(Clone)]
pub struct View {
    pub class: &'static str,
    pub key: String,
    /// Of the storage, in elements.
    pub count: i64,
    pub offset: i64,
    pub shape: Vec<i64>,
    pub strides: Vec<i64>,
}

pub fn text(text: &str) -> Py {
    Py::Text(text.to_owned())
}

/// A dictionary with keys of text.
pub fn dict<const N: usize>(entries: [(&str, Py); N]) -> Py {
    Py::Dict(entries.into_iter().map(|(key, value)| (text(key), value)).collect())
}

pub fn class(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "FloatStorage",
        Dtype::F64 => "DoubleStorage",
        Dtype::F16 => "HalfStorage",
        Dtype::BF16 => "BFloat16Storage",
        Dtype::I64 => "LongStorage",
        Dtype::U8 => "ByteStorage",
        other => panic!("{other:?}"),
    }
}

pub fn row_major(shape: &[i64]) -> Vec<i64> {
    (1..=shape.len()).map(|axis| shape[axis..].iter().product()).collect()
}

/// A file that is being made.
#[derive(Default)]
pub struct Torch {
    pub storages: Vec<Vec<u8>>,
}

impl Torch {
    /// A storage, by its key.
    pub fn storage(&mut self, bytes: &[u8]) -> String {
        self.storages.push(bytes.to_vec());
        (self.storages.len() - 1).to_string()
    }

    /// A tensor with a storage of its own.
    pub fn view(&mut self, made: &Made) -> View {
        let shape: Vec<i64> = made.shape.iter().map(|&d| d as i64).collect();
        let strides = row_major(&shape);
        let count = shape.iter().product();
        View { class: class(made.dtype), key: self.storage(&made.bytes), count, offset: 0, shape, strides }
    }

    pub fn tensor(&mut self, made: &Made) -> Py {
        Py::Tensor(self.view(made))
    }

    /// A state dict of those tensors.
    pub fn state(&mut self, tensors: &[Made]) -> Py {
        Py::State(tensors.iter().map(|made| (made.name.clone(), self.tensor(made))).collect())
    }

    pub fn entries(&self, root: &Py) -> Vec<(String, Vec<u8>)> {
        let entry = |name: &str, bytes: &[u8]| (format!("archive/{name}"), bytes.to_vec());
        let mut entries = vec![
            entry("data.pkl", &pickle(root)),
            entry(".format_version", b"1"),
            entry(".storage_alignment", b"64"),
            entry("byteorder", b"little"),
        ];
        entries.extend(self.storages.iter().enumerate().map(|(i, bytes)| entry(&format!("data/{i}"), bytes)));
        entries.extend([entry("version", b"3\n"), entry(".data/serialization_id", b"0123")]);
        entries
    }

    /// In the form of before PyTorch 1.6: `_legacy_save` of `torch/serialization.py`. Storages of bytes in `View::count`
    /// elements lie in the order of their names as texts.
    pub fn old_file(&self, root: &Py, counts: &[i64]) -> Vec<u8> {
        let sizes = dict([("short", Py::Int(2)), ("int", Py::Int(4)), ("long", Py::Int(4))]);
        let machine =
            dict([("protocol_version", Py::Int(1001)), ("little_endian", Py::Raw(vec![0x88])), ("type_sizes", sizes)]);
        let mut names: Vec<String> = (0..self.storages.len()).map(|i| i.to_string()).collect();
        names.sort();
        let list = Py::List(names.iter().map(|name| text(name)).collect());
        let mut value = pickle(root);
        // None stands behind the count: no part of another storage.
        let places: Vec<usize> = (1..value.len()).rev().filter(|&at| value[at - 1..=at] == *b"tQ").collect();
        places.into_iter().for_each(|at| value.insert(at - 1, b'N'));
        let number = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.".to_vec();
        let mut bytes = [number, pickle(&Py::Int(1001)), pickle(&machine), value, pickle(&list)].concat();
        for name in names {
            let storage: usize = name.parse().unwrap();
            bytes.extend(counts[storage].to_le_bytes());
            bytes.extend(&self.storages[storage]);
        }
        bytes
    }

    pub fn file(&self, root: &Py) -> Vec<u8> {
        zip(&self.entries(root))
    }
}

/// As `torch.save` writes it, but for the memo, of which some is there.
pub fn pickle(root: &Py) -> Vec<u8> {
    let mut bytes = b"\x80\x02".to_vec();
    write(root, &mut bytes);
    bytes.push(b'.');
    bytes
}

fn write_text(text: &str, bytes: &mut Vec<u8>) {
    bytes.push(b'X');
    bytes.extend((text.len() as u32).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes.extend(b"q\x07");
}

fn write_entries<'a>(entries: impl Iterator<Item = (&'a Py, &'a Py)>, bytes: &mut Vec<u8>) {
    bytes.push(b'(');
    for (key, value) in entries {
        write(key, bytes);
        write(value, bytes);
    }
    bytes.push(b'u');
}

fn write_view(view: &View, bytes: &mut Vec<u8>) {
    let sizes = |sizes: &[i64]| Py::Tuple(sizes.iter().map(|&size| Py::Int(size)).collect());
    bytes.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    write_text("storage", bytes);
    bytes.extend(format!("ctorch\n{}\n", view.class).bytes());
    write_text(&view.key, bytes);
    write_text("cpu", bytes);
    write(&Py::Int(view.count), bytes);
    bytes.extend(b"tQ");
    write(&Py::Int(view.offset), bytes);
    write(&sizes(&view.shape), bytes);
    write(&sizes(&view.strides), bytes);
    bytes.extend(b"\x89ccollections\nOrderedDict\n)RtR");
}

fn write(value: &Py, bytes: &mut Vec<u8>) {
    match value {
        Py::None => bytes.push(b'N'),
        Py::Int(number @ 0..=255) => bytes.extend([b'K', *number as u8]),
        Py::Int(number) => match i32::try_from(*number) {
            Ok(number) => {
                bytes.push(b'J');
                bytes.extend(number.to_le_bytes());
            }
            Err(_) => {
                bytes.extend(b"\x8a\x08");
                bytes.extend(number.to_le_bytes());
            }
        },
        Py::Float(number) => {
            bytes.push(b'G');
            bytes.extend(number.to_be_bytes());
        }
        Py::Text(text) => write_text(text, bytes),
        Py::Tuple(values) => {
            bytes.push(b'(');
            values.iter().for_each(|value| write(value, bytes));
            bytes.push(b't');
        }
        Py::List(values) => {
            bytes.extend(b"]q\x08(");
            values.iter().for_each(|value| write(value, bytes));
            bytes.push(b'e');
        }
        Py::Dict(entries) => {
            bytes.extend(b"}q\x09");
            write_entries(entries.iter().map(|(key, value)| (key, value)), bytes);
        }
        Py::State(entries) => {
            bytes.extend(b"ccollections\nOrderedDict\nq\x0a)Rq\x0b(");
            for (key, value) in entries {
                write_text(key, bytes);
                write(value, bytes);
            }
            bytes.extend(b"u}");
            write_text("_metadata", bytes);
            bytes.extend(b"ccollections\nOrderedDict\n)R}X\x07\0\0\0versionK\x01s0sb");
        }
        Py::Object(class, attributes) => {
            bytes.extend(format!("c{class}\n)").bytes());
            bytes.extend(b"\x81}");
            write_entries(attributes.iter().map(|(key, value)| (key, value)), bytes);
            bytes.push(b'b');
        }
        Py::Tensor(view) => write_view(view, bytes),
        Py::Parameter(view) => {
            bytes.extend(b"ctorch._utils\n_rebuild_parameter\n(");
            write_view(view, bytes);
            bytes.extend(b"\x88ccollections\nOrderedDict\n)RtR");
        }
        Py::Raw(opcodes) => bytes.extend(opcodes),
    }
}

/// A zip archive with zip64 records at its end, as PyTorch writes them.
pub fn zip(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    zip_of(entries, false)
}

/// Where `is_large`, with sizes and places in zip64 fields, as they are where the file has more than 4 GiB.
pub fn zip_of(entries: &[(String, Vec<u8>)], is_large: bool) -> Vec<u8> {
    let (mut bytes, mut directory) = (vec![], vec![]);
    for (name, content) in entries {
        let header = bytes.len() as u32;
        let sizes = [content.len() as u32; 2].map(u32::to_le_bytes).concat();
        let length = (name.len() as u16).to_le_bytes();
        bytes.extend(b"PK\x03\x04\0\0\0\x08\0\0\0\0\0\0\0\0\0\0");
        bytes.extend(&sizes);
        bytes.extend(length);
        // Extra bytes, with which PyTorch aligns the storages.
        bytes.extend(*b"\x06\0");
        bytes.extend(name.as_bytes());
        bytes.extend(b"FB\x02\0ZZ");
        bytes.extend(content);
        directory.extend(b"PK\x01\x02\0\0\0\0\0\x08\0\0\0\0\0\0\0\0\0\0");
        let large = [content.len() as u64, content.len() as u64, header.into()].map(u64::to_le_bytes).concat();
        let large = [&b"FB\x01\0Z\x01\0\x18\0"[..], &large].concat();
        directory.extend(if is_large { vec![0xff; 8] } else { sizes });
        directory.extend(length);
        directory.extend([if is_large { large.len() as u8 } else { 0 }, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        directory.extend(if is_large { u32::MAX } else { header }.to_le_bytes());
        directory.extend(name.as_bytes());
        directory.extend(large.iter().filter(|_| is_large));
    }
    let (begin, length, count) = (bytes.len() as u64, directory.len() as u64, entries.len() as u64);
    bytes.extend(directory);
    let end = bytes.len() as u64;
    bytes.extend(b"PK\x06\x06\x2c\0\0\0\0\0\0\0\x1e\x03\x2d\0\0\0\0\0\0\0\0\0");
    [count, count, length, begin].iter().for_each(|number| bytes.extend(number.to_le_bytes()));
    bytes.extend(b"PK\x06\x07\0\0\0\0");
    bytes.extend(end.to_le_bytes());
    bytes.extend(b"\x01\0\0\0PK\x05\x06\0\0\0\0");
    [count as u16; 2].iter().for_each(|number| bytes.extend(number.to_le_bytes()));
    let [length, begin] = if is_large { [u32::MAX; 2] } else { [length as u32, begin as u32] };
    [length, begin].iter().for_each(|number| bytes.extend(number.to_le_bytes()));
    bytes.extend([0; 2]);
    bytes
}
