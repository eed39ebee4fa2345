//! `.safetensors` files: the length of the header in 8 bytes, the header in JSON, and the bytes of all tensors.
use std::borrow::Cow;
use std::collections::BTreeMap;

use tinyjson::JsonValue;
use weightnorm::half;

use crate::network::{Source, Weight};

/// A file, or a part of one: its tensors by their names.
pub struct File<'a> {
    pub metadata: BTreeMap<String, String>,
    pub tensors: BTreeMap<String, View<'a>>,
}

#[derive(Clone)]
pub struct View<'a> {
    pub dtype: String,
    pub shape: Vec<usize>,
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> View<'a> {
    /// What an entry of the header says, of the bytes behind the header.
    fn new(entry: JsonValue, data: &'a [u8]) -> Option<View<'a>> {
        let mut entry: std::collections::HashMap<String, JsonValue> = entry.try_into().ok()?;
        let (shape, offsets) = (sizes(&entry.remove("shape")?)?, sizes(&entry.remove("data_offsets")?)?);
        let &[begin, end] = &offsets[..] else { return None };
        Some(View { dtype: entry.remove("dtype")?.try_into().ok()?, shape, bytes: data.get(begin..end)?.into() })
    }

    /// As many as the shape says.
    pub fn numbers(&self) -> Option<Vec<f64>> {
        let bytes = &self.bytes;
        let data: Vec<f64> = match &self.dtype[..] {
            "F64" => bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect(),
            "F32" => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b).into()).collect(),
            "F16" => bytes.as_chunks().0.iter().map(|&b| half::f16::from_le_bytes(b).into()).collect(),
            "BF16" => bytes.as_chunks().0.iter().map(|&b| half::bf16::from_le_bytes(b).into()).collect(),
            _ => return None,
        };
        let count = self.shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size));
        (count == Some(data.len())).then_some(data)
    }
}

/// A list of whole numbers.
pub fn sizes(value: &JsonValue) -> Option<Vec<usize>> {
    value.get::<Vec<JsonValue>>()?.iter().map(size).collect()
}

/// A whole number.
pub fn size(value: &JsonValue) -> Option<usize> {
    value.get::<f64>().filter(|x| **x >= 0.0 && x.fract() == 0.0).map(|x| *x as usize)
}

impl<'a> File<'a> {
    /// Reads a file's header.
    pub fn parse(bytes: &'a [u8]) -> Result<File<'a>, String> {
        let (length, rest) = bytes.split_first_chunk().ok_or("not a safetensors file: it has no header")?;
        let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let (header, data) =
            rest.split_at_checked(length).ok_or("not a safetensors file, or cut off: its header is not all there")?;
        let wrong = |e: String| format!("not a safetensors file: {e}");
        let header: JsonValue = str::from_utf8(header)
            .map_err(|e| wrong(e.to_string()))?
            .parse()
            .map_err(|e: tinyjson::JsonParseError| wrong(e.to_string()))?;
        let mut header: std::collections::HashMap<String, JsonValue> =
            header.try_into().map_err(|_| wrong("its header is no object".to_owned()))?;
        let metadata: std::collections::HashMap<String, JsonValue> =
            header.remove("__metadata__").and_then(|metadata| metadata.try_into().ok()).unwrap_or_default();
        let metadata = metadata.into_iter().filter_map(|(key, text)| Some((key, text.try_into().ok()?))).collect();
        let view = |(name, entry)| {
            let view = View::new(entry, data)
                .ok_or_else(|| format!("tensor {name} is not all there, or the header is wrong about it"))?;
            Ok((name, view))
        };
        Ok(File { metadata, tensors: header.into_iter().map(view).collect::<Result<_, String>>()? })
    }

    /// The object in JSON under `config` of the metadata.
    pub fn config(&self) -> Result<Config, String> {
        let text = self.metadata.get("config").ok_or("metadata config is missing")?;
        let value = text.parse().map_err(|e: tinyjson::JsonParseError| format!("metadata config: {e}"))?;
        match value {
            JsonValue::Object(fields) => Ok(Config(fields.into_iter().collect())),
            _ => Err("metadata config is no object".to_owned()),
        }
    }

    pub fn numbers(&self, name: &str) -> Result<(Vec<usize>, Vec<f64>), String> {
        let view = self.tensors.get(name).ok_or_else(|| format!("tensor {name} is missing"))?;
        let wrong = || {
            let View { dtype, shape, bytes } = view;
            let bytes = bytes.len();
            format!("tensor {name}, {dtype} {shape:?} in {bytes} bytes: expected F64, F32, F16 or BF16 of that size")
        };
        Ok((view.shape.clone(), view.numbers().ok_or_else(wrong)?))
    }
}

/// The fields of a configuration.
pub struct Config(BTreeMap<String, JsonValue>);

impl Config {
    pub fn has(&self, field: &str) -> bool {
        self.0.contains_key(field)
    }

    pub fn get<T>(
        &self,
        field: &str,
        expected: &str,
        parse: impl FnOnce(&JsonValue) -> Option<T>,
    ) -> Result<T, String> {
        let value = self.0.get(field).ok_or_else(|| format!("config has no {field}: expected {expected}"))?;
        parse(value).ok_or_else(|| {
            let shown = value.stringify().unwrap_or_default();
            format!("config: {field} is {shown}, expected {expected}")
        })
    }

    /// A whole number above 0.
    pub fn size(&self, field: &str) -> Result<usize, String> {
        self.get(field, "a whole number above 0", |value| size(value).filter(|&n| n > 0))
    }

    /// A list of such numbers, of any length but 0.
    pub fn sizes(&self, field: &str) -> Result<Vec<usize>, String> {
        let parse = |value: &JsonValue| sizes(value).filter(|all| !all.is_empty() && !all.contains(&0));
        self.get(field, "a list of whole numbers above 0", parse)
    }
}

/// The spellings of a weight: g and v in the older and the newer names of PyTorch's weight norm.
const SPELLINGS: [(&str, &str); 2] =
    [("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1")];

impl Source for File<'_> {
    fn weight(&mut self, layer: &str, shape: [usize; 3]) -> Result<Weight, String> {
        let name = |end: &str| format!("{layer}.{end}");
        let there = |end: &str| self.tensors.contains_key(&name(end));
        let normalized: Vec<_> = SPELLINGS.into_iter().filter(|(g, v)| there(g) || there(v)).collect();
        match (there("weight"), &normalized[..]) {
            (true, []) => Ok(Weight { shape, v: self.tensor(&name("weight"), &shape)?, g: None }),
            (false, &[(g, v)]) => {
                let v = self.tensor(&name(v), &shape)?;
                Ok(Weight { shape, v, g: Some(self.tensor(&name(g), &[shape[0], 1, 1])?) })
            }
            (false, []) => Err(format!(
                "tensor {layer}.weight_v is missing, under its other names too ({}, {layer}.weight): expected {shape:?}",
                name(SPELLINGS[1].1)
            )),
            _ => Err(format!("{layer} has more than one weight: expected one of weight_v, {}, weight", SPELLINGS[1].1)),
        }
    }

    fn tensor(&mut self, name: &str, expected: &[usize]) -> Result<Vec<f32>, String> {
        let (shape, numbers) = match self.tensors.get(name) {
            Some(_) => self.numbers(name)?,
            None => return Err(format!("tensor {name} is missing: expected {expected:?}")),
        };
        if shape != expected {
            return Err(format!("tensor {name} has shape {shape:?}, expected {expected:?}"));
        }
        // What is left over in the end fits no layer.
        self.tensors.remove(name);
        Ok(numbers.into_iter().map(|x| x as f32).collect())
    }

    fn rest(&self, prefixes: &[&str]) -> Result<(), String> {
        match self.tensors.keys().find(|name| prefixes.iter().any(|prefix| name.starts_with(prefix))) {
            Some(name) => Err(format!("tensor {name}: the network that config describes has no such tensor")),
            None => Ok(()),
        }
    }
}
