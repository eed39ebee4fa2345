//! The index of a sharded checkpoint: `{"metadata":{"total_size":..},"weight_map":{"NAME":"FILE",..}}`.
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Component, Path};

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::error::failed;
use super::file::Source;
use super::foreign::{self, Sample};
use super::header::MAX_HEADER;
use super::{Error, Finding, Problem, TensorInfo};

const WEIGHT_MAP: &str = "weight_map";

#[derive(Debug)]
pub(super) struct Index {
    /// Of the file itself.
    pub name: String,
    /// All of it, in order.
    value: Map<String, Value>,
    /// Where it does not fit the files.
    pub warnings: Vec<Finding>,
}

/// What there is of tensors, for the sums of an index.
#[derive(Default, Clone, Copy, PartialEq)]
pub(super) struct Totals {
    pub bytes: u64,
    elements: u64,
    /// Those that are floating-point numbers, as parameters are.
    floats: u64,
}

impl Totals {
    pub fn add(&mut self, tensor: &TensorInfo) {
        let elements = tensor.elements();
        self.bytes = self.bytes.saturating_add(tensor.bytes());
        self.elements = self.elements.saturating_add(elements);
        if tensor.dtype.is_float() {
            self.floats = self.floats.saturating_add(elements);
        }
    }
}

impl Index {
    pub fn open(path: &Path) -> Result<(Index, Vec<Source>), Error> {
        let wrong = |reason: String| Error::Index { path: path.to_owned(), reason };
        let status = fs::metadata(path).map_err(failed("opening", path))?;
        // A pipe would be waited for, and a device may have no end.
        if !status.is_file() {
            return Err(wrong("it is not a file".to_owned()));
        }
        let size = status.len();
        if size > MAX_HEADER {
            return Err(wrong(format!("it is {size} bytes long, the limit is {MAX_HEADER}")));
        }
        let text = fs::read(path).map_err(failed("reading", path))?;
        let Unique(value) = serde_json::from_slice(&text).map_err(|e| {
            let no_json = foreign::recognize(&Sample { path, size, head: &text, tail: &[] });
            no_json.unwrap_or_else(|| wrong(format!("it is no such index: {e}")))
        })?;
        let Value::Object(value) = value else { return Err(wrong("it is no JSON object".to_owned())) };
        let Some(Value::Object(weight_map)) = value.get(WEIGHT_MAP) else {
            let advice = "name the index of a sharded checkpoint, NAME.safetensors.index.json, or a .safetensors file";
            return Err(wrong(format!("it is JSON, but no index: it has no object {WEIGHT_MAP:?}\n{advice}")));
        };
        let mut shard_of: HashMap<&str, usize> = HashMap::new();
        let mut shards: Vec<Source> = vec![];
        for (tensor, file) in weight_map {
            // A path could lead anywhere.
            let plain = |file: &&str| {
                let mut parts = Path::new(file).components();
                matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == *file)
            };
            let Some(file) = file.as_str().filter(plain) else {
                return Err(wrong(format!(
                    "tensor {tensor:?} is in {file}, which is no name of a file in this folder"
                )));
            };
            if !shard_of.contains_key(file) {
                shards.push(Source::open(&path.with_file_name(file)).map_err(|error| listed(error, tensor))?);
                shard_of.insert(file, shards.len() - 1);
            }
        }
        let files = in_order(shard_of);
        let warnings = compare(weight_map, &files, &mut shards).map_err(wrong)?;
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok((Index { name, value, warnings }, shards))
    }

    /// The text for another set of tensors: `written` has the new names and files of each old one, none for one that
    /// goes. The sums are those of what is written, in the type that they have, or left out.
    pub fn rewritten(&self, written: Vec<(&str, Vec<(String, String)>)>, before: Totals, after: Totals) -> String {
        let mut value = self.value.clone();
        if let Some(Value::Object(weight_map)) = value.get_mut(WEIGHT_MAP) {
            let old = std::mem::take(weight_map);
            let place: HashMap<&str, usize> = old.keys().map(String::as_str).zip(0..).collect();
            let mut written = written;
            // Those that the index does not list come behind the others, in their order.
            written.sort_by_key(|(name, _)| place.get(name).copied().unwrap_or(usize::MAX));
            weight_map.extend(written.into_iter().flat_map(|(_, new)| new).map(|(name, file)| (name, file.into())));
        }
        if let Some(Value::Object(metadata)) = value.get_mut("metadata") {
            total(metadata, "total_size", |_| Some(after.bytes));
            // A model's parameters may be all of its tensors, or those that are not counters; other sums are not known
            // anew.
            total(metadata, "total_parameters", |old| match old {
                _ if old == before.elements as f64 => Some(after.elements),
                _ if old == before.floats as f64 => Some(after.floats),
                _ => None,
            });
        }
        format!("{:#}\n", Value::Object(value))
    }
}

/// The error of a file that the index lists that tensor in, with a word on what to do where the file is not there.
fn listed(error: Error, tensor: &str) -> Error {
    match error {
        Error::Io { doing, path, source } if source.kind() == io::ErrorKind::NotFound => {
            let what = format!("{source}\nthe index lists {tensor:?} in it: download or copy it too");
            Error::Io { doing, path, source: io::Error::new(source.kind(), what) }
        }
        other => other,
    }
}

/// Puts another number in place of one, as an integer, a float or a text as it was; or removes it.
fn total(metadata: &mut Map<String, Value>, key: &str, new: impl Fn(f64) -> Option<u64>) {
    let Some(old) = metadata.get_mut(key) else { return };
    let text = old.as_str().map(str::to_owned);
    let number: Option<serde_json::Number> = match (&*old, &text) {
        (Value::Number(number), _) => Some(number.clone()),
        (_, Some(text)) => serde_json::from_str(text).ok(),
        _ => None,
    };
    let new = number.as_ref().and_then(|number| new(number.as_f64()?));
    let (Some(number), Some(new)) = (number, new) else {
        metadata.shift_remove(key);
        return;
    };
    let new = if number.is_f64() { Value::from(new as f64) } else { Value::from(new) };
    *old = if text.is_some() { Value::from(new.to_string()) } else { new };
}

/// The files by their numbers.
fn in_order(shard_of: HashMap<&str, usize>) -> Vec<&str> {
    let mut files: Vec<&str> = shard_of.keys().copied().collect();
    files.sort_by_key(|file| shard_of[file]);
    files
}

/// Where index and files differ. Of a tensor that several files have, that of the file which the index names is kept
/// alone.
fn compare(weight_map: &Map<String, Value>, files: &[&str], shards: &mut [Source]) -> Result<Vec<Finding>, String> {
    let mut warnings = vec![];
    let mut warn = |name: &str, problem| warnings.push(Finding { weight: name.to_owned(), problem });
    let listed = |name: &str| weight_map.get(name).and_then(Value::as_str);
    let mut files_of: HashMap<String, Vec<usize>> = HashMap::new();
    for (shard, source) in shards.iter().enumerate() {
        for tensor in &source.header.tensors {
            files_of.entry(tensor.name.clone()).or_default().push(shard);
        }
    }
    let metadata = shards.iter().filter_map(|shard| shard.header.metadata.as_ref()).flatten();
    let tied: HashSet<&str> = metadata.filter(|(_, of)| files_of.contains_key(of)).map(|(name, _)| &**name).collect();
    for (name, file) in weight_map.iter().filter(|(name, _)| !tied.contains(name.as_str())) {
        if let (Some(file), None) = (file.as_str(), files_of.get(name)) {
            warn(name, Problem::NotInFiles { file: file.to_owned() });
        }
    }
    for (shard, source) in shards.iter_mut().enumerate() {
        let file = files[shard];
        let (mut left_out, mut position, mut twice) = (0, 0, None);
        let metadata_at = source.header.metadata_at;
        source.header.tensors.retain(|tensor| {
            let (name, here) = (tensor.name.as_str(), position);
            position += 1;
            let others = &files_of[name];
            match listed(name) {
                Some(listed) if listed == file => true,
                listed if others.len() > 1 => {
                    let Some(listed) = listed.filter(|listed| others.iter().any(|&other| files[other] == *listed))
                    else {
                        twice.get_or_insert_with(|| (name.to_owned(), others.clone()));
                        return true;
                    };
                    warn(name, Problem::SecondCopy { file: file.to_owned(), listed: listed.to_owned() });
                    left_out += usize::from(here < metadata_at);
                    false
                }
                Some(listed) => {
                    warn(name, Problem::Misplaced { file: file.to_owned(), listed: listed.to_owned() });
                    true
                }
                None => {
                    warn(name, Problem::NotInIndex { file: file.to_owned() });
                    true
                }
            }
        });
        source.header.metadata_at -= left_out;
        if let Some((name, others)) = twice {
            let others: Vec<&str> = others.iter().map(|&other| files[other]).collect();
            return Err(format!(
                "tensor {name:?} is in {}, and the index does not say which counts",
                others.join(" and ")
            ));
        }
    }
    Ok(warnings)
}

/// Any JSON, but without duplicate keys.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Value;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("JSON")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
                let mut values = vec![];
                while let Some(Unique(value)) = seq.next_element()? {
                    values.push(value);
                }
                Ok(Value::Array(values))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                let mut values = Map::new();
                while let Some((key, Unique(value))) = map.next_entry::<String, Unique>()? {
                    if values.contains_key(&key) {
                        return Err(serde::de::Error::custom(format_args!("{key:?} is there twice")));
                    }
                    values.insert(key, value);
                }
                Ok(Value::Object(values))
            }
        }
        deserializer.deserialize_any(Reader).map(Unique)
    }
}
