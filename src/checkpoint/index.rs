//! The index of a sharded checkpoint: `{"metadata":{"total_size":..},"weight_map":{"NAME":"FILE",..}}`.
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Component, Path};

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::Error;
use super::file::{Source, failed};
use super::foreign::{self, Sample};
use super::header::MAX_HEADER;

const WEIGHT_MAP: &str = "weight_map";

#[derive(Debug)]
pub(super) struct Index {
    /// Of the file itself.
    pub name: String,
    /// All of it, in order.
    value: Map<String, Value>,
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
                shards.push(Source::open(&path.with_file_name(file))?);
                shard_of.insert(file, shards.len() - 1);
            }
        }
        let mut count = 0;
        for (file, &shard) in &shard_of {
            for tensor in &shards[shard].header.tensors {
                let listed = weight_map.get(&tensor.name).and_then(Value::as_str);
                if listed != Some(*file) {
                    let name = &tensor.name;
                    return Err(wrong(match listed {
                        Some(other) => format!("tensor {name:?} is in {file}, and should be in {other} alone"),
                        None => format!("tensor {name:?} of {file} is not listed"),
                    }));
                }
                count += 1;
            }
        }
        if count != weight_map.len() {
            // All that is there is where the index says.
            let names = shards.iter().flat_map(|shard| &shard.header.tensors).map(|tensor| &tensor.name);
            let there: HashSet<&String> = names.collect();
            let missing = weight_map.iter().find(|(name, _)| !there.contains(name));
            let (name, file) = missing.map_or(("", &Value::Null), |(name, file)| (name.as_str(), file));
            return Err(wrong(format!("tensor {name:?} is not in {file}")));
        }
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok((Index { name, value }, shards))
    }

    /// The text for another set of tensors: `renamed` has the new names of each old one, none for one that goes;
    /// `grown`: how many bytes of tensors there are more.
    pub fn rewritten(&self, renamed: &HashMap<&str, Vec<(String, String)>>, grown: i128) -> String {
        let mut value = self.value.clone();
        if let Some(Value::Object(weight_map)) = value.get_mut(WEIGHT_MAP) {
            let old = std::mem::take(weight_map);
            for (name, file) in old {
                match renamed.get(name.as_str()) {
                    None => drop(weight_map.insert(name, file)),
                    Some(new) => weight_map.extend(new.iter().map(|(name, file)| (name.clone(), file.as_str().into()))),
                }
            }
        }
        let total = value.get_mut("metadata").and_then(|metadata| metadata.get_mut("total_size"));
        if let Some((total, size)) = total.and_then(|total| total.as_u64().map(|size| (total, size))) {
            *total = Value::from(u64::try_from(i128::from(size) + grown).unwrap_or(0));
        }
        format!("{:#}\n", Value::Object(value))
    }
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
