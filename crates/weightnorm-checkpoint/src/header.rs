//! The header of a `.safetensors` file: read without trust, written in the order it was read in.
//!
//! A file is the length of the header (8 bytes, little-endian), the header (JSON, padded with spaces to a multiple of
//! 8), and the bytes of the tensors, one behind the other without holes. The header has an entry
//! `"NAME":{"dtype":"F32","shape":[2,3],"data_offsets":[BEGIN,END]}` for each tensor, offsets from the end of the
//! header on, and maybe `"__metadata__"`, an object of strings.
use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use weightnorm::DType;

/// The longest header that the `safetensors` crate reads.
pub(super) const MAX_HEADER: u64 = 100_000_000;
/// Of the length in front of the header.
pub(super) const LENGTH_BYTES: u64 = 8;
pub(super) const METADATA: &str = "__metadata__";

macro_rules! dtypes {
    ($($variant:ident $name:literal $bits:literal $doc:literal,)*) => {
        /// The storage type of a tensor in a file.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
        #[non_exhaustive]
        pub enum FileDType {
            $(#[doc = $doc] #[serde(rename = $name)] $variant,)*
        }

        impl FileDType {
            /// As it is called in files.
            pub fn name(self) -> &'static str {
                match self { $(FileDType::$variant => $name,)* }
            }

            /// Bits of one element.
            pub fn bits(self) -> u64 {
                match self { $(FileDType::$variant => $bits,)* }
            }
        }
    };
}

dtypes! {
    Bool "BOOL" 8 "A byte, 0 or 1.",
    F4 "F4" 4 "MXFP4.",
    F6E2M3 "F6_E2M3" 6 "MXFP6.",
    F6E3M2 "F6_E3M2" 6 "MXFP6.",
    U8 "U8" 8 "Unsigned.",
    I8 "I8" 8 "Signed.",
    F8E5M2 "F8_E5M2" 8 "FP8.",
    F8E4M3 "F8_E4M3" 8 "FP8.",
    F8E8M0 "F8_E8M0" 8 "Exponents alone.",
    F8E4M3Fnuz "F8_E4M3FNUZ" 8 "FP8.",
    F8E5M2Fnuz "F8_E5M2FNUZ" 8 "FP8.",
    I16 "I16" 16 "Signed.",
    U16 "U16" 16 "Unsigned.",
    F16 "F16" 16 "IEEE half precision.",
    Bf16 "BF16" 16 "bfloat16.",
    I32 "I32" 32 "Signed.",
    U32 "U32" 32 "Unsigned.",
    F32 "F32" 32 "IEEE single precision.",
    C64 "C64" 64 "Complex, two F32.",
    F64 "F64" 64 "IEEE double precision.",
    I64 "I64" 64 "Signed.",
    U64 "U64" 64 "Unsigned.",
}

impl FileDType {
    /// What the crate computes it in: f64 in f32; nothing but floating-point numbers of 16, 32 and 64 bits.
    pub fn computed(self) -> Option<DType> {
        match self {
            FileDType::F32 | FileDType::F64 => Some(DType::F32),
            FileDType::F16 => Some(DType::F16),
            FileDType::Bf16 => Some(DType::Bf16),
            _ => None,
        }
    }
}

impl FileDType {
    /// Whether its elements are floating-point numbers of any width.
    pub(super) fn is_float(self) -> bool {
        self.name().starts_with(['F', 'B']) && self != FileDType::Bool
    }
}

impl From<DType> for FileDType {
    fn from(dtype: DType) -> FileDType {
        match dtype {
            DType::F32 => FileDType::F32,
            DType::F16 => FileDType::F16,
            DType::Bf16 => FileDType::Bf16,
        }
    }
}

impl fmt::Display for FileDType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A tensor of a file, as its header describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// The storage type of its elements.
    pub dtype: FileDType,
    /// The sizes of its axes.
    pub shape: Vec<usize>,
    /// The first byte, from the end of the header on.
    pub begin: u64,
    /// The byte behind the last.
    pub end: u64,
    /// Fields of its entry that the format does not have, and their JSON as it stands there.
    pub(super) more: Vec<(String, String)>,
}

impl TensorInfo {
    /// The number of its bytes.
    pub fn bytes(&self) -> u64 {
        self.end - self.begin
    }

    /// The number of its elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&d| d as u64).product()
    }
}

/// What is said about the tensors of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// In their order; `None` where there is no such entry.
    pub metadata: Option<Vec<(String, String)>>,
    /// Tensors in front of the metadata.
    pub metadata_at: usize,
    /// In the order of the header.
    pub tensors: Vec<TensorInfo>,
}

/// What is wrong with a header, or with one tensor in it.
#[derive(Debug)]
pub(super) struct Flaw {
    pub tensor: Option<String>,
    pub reason: String,
}

impl Flaw {
    pub fn of_file(reason: impl Into<String>) -> Flaw {
        Flaw { tensor: None, reason: reason.into() }
    }

    fn of(tensor: &TensorInfo, reason: impl Into<String>) -> Flaw {
        Flaw { tensor: Some(tensor.name.clone()), reason: reason.into() }
    }
}

/// The length of the header by the first 8 bytes of a file, which holds at least `file_size` bytes.
pub(super) fn header_length(first: [u8; 8], file_size: u64) -> Result<u64, Flaw> {
    let length = u64::from_le_bytes(first);
    if length > MAX_HEADER {
        return Err(Flaw::of_file(format!(
            "it is no .safetensors file: its header would be {length} bytes long, the limit is {MAX_HEADER}\n\
             name a .safetensors file, or the index of a sharded checkpoint"
        )));
    }
    if length > file_size.saturating_sub(LENGTH_BYTES) {
        let reason = format!(
            "the header says it is {length} bytes long, the file is {file_size}: it is cut off\ndownload or copy it again"
        );
        return Err(Flaw::of_file(reason));
    }
    Ok(length)
}

impl Header {
    /// Of the bytes of a header, in front of `data_size` bytes of tensors.
    pub fn parse(bytes: &[u8], data_size: u64) -> Result<Header, Flaw> {
        let text = std::str::from_utf8(bytes).map_err(|e| Flaw::of_file(format!("the header is not UTF-8: {e}")))?;
        let Entries(entries) = serde_json::from_str(text)
            .map_err(|e| Flaw::of_file(format!("the header is not what it should be: {e}")))?;
        let mut header = Header { metadata: None, metadata_at: 0, tensors: vec![] };
        for entry in entries {
            match entry {
                Entry::Tensor(tensor) => header.tensors.push(tensor),
                Entry::Metadata(metadata) => {
                    header.metadata_at = header.tensors.len();
                    header.metadata = metadata;
                }
            }
        }
        header.check(data_size)?;
        Ok(header)
    }

    /// Sizes, and that the tensors cover the data without holes and overlaps.
    fn check(&self, data_size: u64) -> Result<(), Flaw> {
        let mut by_place: Vec<&TensorInfo> = self.tensors.iter().collect();
        by_place.sort_by_key(|tensor| (tensor.begin, tensor.end));
        let mut end = 0;
        for tensor in by_place {
            let size = byte_size(&tensor.shape, tensor.dtype)
                .ok_or_else(|| Flaw::of(tensor, format!("{:?} is no shape for {}", tensor.shape, tensor.dtype)))?;
            let (begin, stop) = (tensor.begin, tensor.end);
            if stop.checked_sub(begin) != Some(size) {
                let what = format!("{:?} of {} takes {size} bytes", tensor.shape, tensor.dtype);
                return Err(Flaw::of(tensor, format!("{what}, its place is {begin}..{stop}")));
            }
            if begin != end {
                let what = if begin < end { "overlaps the one in front of it" } else { "leaves a hole in front of it" };
                return Err(Flaw::of(tensor, format!("its place {begin}..{stop} {what}, which ends at {end}")));
            }
            end = stop;
        }
        if end != data_size {
            let what =
                if end > data_size { "the file is cut off\ndownload or copy it again" } else { "bytes are left over" };
            return Err(Flaw::of_file(format!("the tensors end at {end}, the data at {data_size}: {what}")));
        }
        Ok(())
    }

    /// The bytes in front of the data: length, header, spaces.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut text = String::from("{");
        for (i, tensor) in self.tensors.iter().enumerate() {
            self.write_metadata(i, &mut text);
            separate(&mut text);
            let TensorInfo { name, dtype, shape, begin, end, more } = tensor;
            text += &format!("{}:{{\"dtype\":\"{dtype}\",\"shape\":[", quoted(name));
            text += &shape.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
            text += &format!("],\"data_offsets\":[{begin},{end}]");
            for (key, value) in more {
                text += &format!(",{}:{value}", quoted(key));
            }
            text.push('}');
        }
        self.write_metadata(self.tensors.len(), &mut text);
        text.push('}');
        text += &" ".repeat(text.len().next_multiple_of(8) - text.len());
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.into_bytes());
        bytes
    }

    fn write_metadata(&self, at: usize, text: &mut String) {
        let Some(metadata) = self.metadata.as_ref().filter(|_| self.metadata_at == at) else { return };
        separate(text);
        *text += &format!("\"{METADATA}\":{{");
        *text += &metadata.iter().map(|(k, v)| format!("{}:{}", quoted(k), quoted(v))).collect::<Vec<_>>().join(",");
        text.push('}');
    }
}

fn separate(text: &mut String) {
    if text.len() > 1 {
        text.push(',');
    }
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// `None` where no tensor can have that shape. The sizes beside a zero are held to the same limit, so that no product
/// of sizes overflows anywhere.
pub(super) fn byte_size(shape: &[usize], dtype: FileDType) -> Option<u64> {
    let limit = shape.iter().try_fold(dtype.bits(), |n, &d| n.checked_mul(d.max(1) as u64))?;
    usize::try_from(limit).ok()?;
    let bits = if shape.contains(&0) { 0 } else { limit };
    bits.is_multiple_of(8).then_some(bits / 8)
}

enum Entry {
    Tensor(TensorInfo),
    Metadata(Option<Vec<(String, String)>>),
}

/// The header as it stands there, but without duplicates: `serde_json`'s own maps would keep the last of them silently.
struct Entries(Vec<Entry>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let (mut entries, mut names) = (vec![], Names::default());
                while let Some(name) = map.next_key::<String>()? {
                    names.add(&name)?;
                    entries.push(if name == METADATA {
                        Entry::Metadata(map.next_value::<Option<Metadata>>()?.map(|Metadata(pairs)| pairs))
                    } else {
                        // Whose entry it is, without the place, which is added again, and all names of storage types.
                        let of_it = |error: A::Error| {
                            let text = error.to_string();
                            let short =
                                text.split(" at line ").next().and_then(|text| text.split(", expected one of").next());
                            A::Error::custom(format_args!("tensor {name:?}: {}", short.unwrap_or(&text)))
                        };
                        let Fields { dtype, shape, data_offsets: (begin, end), more } =
                            map.next_value().map_err(of_it)?;
                        Entry::Tensor(TensorInfo { name, dtype, shape, begin, end, more })
                    });
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

/// A tensor's entry. One of the format's fields twice is an error; others are kept as they are.
struct Fields {
    dtype: FileDType,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
    more: Vec<(String, String)>,
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with dtype, shape and data_offsets")
            }

            /// As the official reader takes it too.
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Fields, A::Error> {
                let missing = |count| move || A::Error::invalid_length(count, &"3 fields");
                Ok(Fields {
                    dtype: seq.next_element()?.ok_or_else(missing(0))?,
                    shape: seq.next_element()?.ok_or_else(missing(1))?,
                    data_offsets: seq.next_element()?.ok_or_else(missing(2))?,
                    more: vec![],
                })
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let (mut dtype, mut shape, mut data_offsets, mut more) = (None, None, None, vec![]);
                let mut names = Names::default();
                while let Some(name) = map.next_key::<String>()? {
                    match name.as_str() {
                        "dtype" => dtype = Some(map.next_value()?),
                        "shape" => shape = Some(map.next_value()?),
                        "data_offsets" => data_offsets = Some(map.next_value()?),
                        _ => {
                            let text = map.next_value::<Box<RawValue>>()?.get().to_owned();
                            // Numbers out of range and halves of characters are refused, as everywhere.
                            serde_json::from_str::<Value>(&text).map_err(A::Error::custom)?;
                            more.push((name, text));
                            continue;
                        }
                    }
                    names.add(&name)?;
                }
                Ok(Fields {
                    dtype: dtype.ok_or_else(|| A::Error::missing_field("dtype"))?,
                    shape: shape.ok_or_else(|| A::Error::missing_field("shape"))?,
                    data_offsets: data_offsets.ok_or_else(|| A::Error::missing_field("data_offsets"))?,
                    more,
                })
            }
        }
        deserializer.deserialize_struct("TensorInfo", &["dtype", "shape", "data_offsets"], Reader)
    }
}

struct Metadata(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Metadata;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                let (mut pairs, mut names) = (vec![], Names::default());
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    names.add(&key)?;
                    pairs.push((key, value));
                }
                Ok(Metadata(pairs))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

/// Names that were there already.
#[derive(Default)]
struct Names(HashSet<String>);

impl Names {
    fn add<E: serde::de::Error>(&mut self, name: &str) -> Result<(), E> {
        if !self.0.insert(name.to_owned()) {
            return Err(E::custom(format_args!("{name:?} is there twice")));
        }
        Ok(())
    }
}
