//! A model file: read, checked from end to end, and turned into layers whose sizes fit together.
use std::collections::HashMap;
use std::path::Path;

use tinyjson::JsonValue;
use weightnorm::half;

/// A DeepSDF decoder as its file describes it (`tests/data/README.md`).
pub struct Model {
    pub layers: Vec<Layer>,
    pub latent_codes: Matrix,
    pub points: Matrix,
    /// The network's output for latent code 0 at each point, in float64.
    pub expected_sdf: Vec<f64>,
    pub use_tanh: bool,
}

/// y = x·wᵀ + bias with w = g·v/‖v‖ row by row, or w = v without g.
pub struct Layer {
    pub v: Matrix,
    pub g: Option<Vec<f32>>,
    pub bias: Vec<f32>,
    /// The layer's input is [h, latent, point] instead of h.
    pub skip: bool,
}

/// Row-major numbers.
pub struct Matrix {
    pub rows: usize,
    pub columns: usize,
    pub data: Vec<f32>,
}

impl Matrix {
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.columns..][..self.columns]
    }
}

impl Model {
    /// Reads a file. Every error names it and says what is wrong.
    pub fn load(path: &Path) -> Result<Model, String> {
        let bytes = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
        Model::parse(&bytes).map_err(|e| format!("{}: {e}", path.display()))
    }

    /// The same of a file's bytes.
    pub fn parse(bytes: &[u8]) -> Result<Model, String> {
        File::parse(bytes).map_err(|e| format!("not a safetensors file: {e}"))?.model()
    }

    /// The width of [latent, point].
    pub fn input_width(&self) -> usize {
        self.latent_codes.columns + self.points.columns
    }

    /// [latent, point] for each of `points`.
    pub fn inputs(&self, latent: usize, points: &[f32]) -> Vec<f32> {
        let latent = self.latent_codes.row(latent);
        points.chunks_exact(self.points.columns).flat_map(|point| latent.iter().chain(point).copied()).collect()
    }

    /// Multiply-adds for one point.
    pub fn work(&self) -> usize {
        self.layers.iter().map(|layer| layer.v.data.len()).sum()
    }

    /// The sizes of the layers, `4→128→124 (+4)→128→1`; a layer without weight normalization has a star.
    pub fn summary(&self) -> String {
        let input = self.input_width();
        self.layers.iter().fold(input.to_string(), |text, layer| {
            let skip = if layer.skip { format!(" (+{input})") } else { String::new() };
            let plain = if layer.g.is_none() { "*" } else { "" };
            format!("{text}{skip}→{}{plain}", layer.v.rows)
        })
    }
}

/// A `.safetensors` file: the length of the header in 8 bytes, the header in JSON, and the bytes of all tensors.
struct File<'a> {
    metadata: HashMap<String, String>,
    tensors: HashMap<String, View<'a>>,
}

struct View<'a> {
    dtype: String,
    shape: Vec<usize>,
    bytes: &'a [u8],
}

impl<'a> View<'a> {
    /// What an entry of the header says, of the bytes behind the header.
    fn new(entry: JsonValue, data: &'a [u8]) -> Option<View<'a>> {
        let mut entry: HashMap<String, JsonValue> = entry.try_into().ok()?;
        let (shape, offsets) = (sizes(entry.remove("shape")?)?, sizes(entry.remove("data_offsets")?)?);
        let &[begin, end] = &offsets[..] else { return None };
        Some(View { dtype: entry.remove("dtype")?.try_into().ok()?, shape, bytes: data.get(begin..end)? })
    }

    /// As many as the shape says.
    fn numbers(&self) -> Option<Vec<f64>> {
        let bytes = self.bytes;
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
fn sizes(value: JsonValue) -> Option<Vec<usize>> {
    let numbers: Vec<JsonValue> = value.try_into().ok()?;
    let size = |number: JsonValue| f64::try_from(number).ok().filter(|x| *x >= 0.0 && x.fract() == 0.0);
    numbers.into_iter().map(|number| size(number).map(|x| x as usize)).collect()
}

impl<'a> File<'a> {
    fn parse(bytes: &'a [u8]) -> Result<File<'a>, String> {
        let (length, rest) = bytes.split_first_chunk().ok_or("it has no header")?;
        let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let (header, data) = rest.split_at_checked(length).ok_or("its header is cut off")?;
        let header: JsonValue = str::from_utf8(header)
            .map_err(|e| e.to_string())?
            .parse()
            .map_err(|e: tinyjson::JsonParseError| e.to_string())?;
        let mut header: HashMap<String, JsonValue> = header.try_into().map_err(|_| "its header is no object")?;
        let metadata: HashMap<String, JsonValue> =
            header.remove("__metadata__").and_then(|metadata| metadata.try_into().ok()).unwrap_or_default();
        let metadata = metadata.into_iter().filter_map(|(key, text)| Some((key, text.try_into().ok()?))).collect();
        let view = |(name, entry)| {
            let view = View::new(entry, data).ok_or_else(|| format!("its header is wrong about {name}"))?;
            Ok((name, view))
        };
        Ok(File { metadata, tensors: header.into_iter().map(view).collect::<Result<_, String>>()? })
    }

    fn model(&self) -> Result<Model, String> {
        let points = self.matrix("points")?;
        let latent_codes = self.matrix("latent_codes")?;
        let dimension: usize = self.meta("geom_dimension", "a number", |text| text.parse().ok())?;
        if points.columns != dimension {
            let columns = points.columns;
            return Err(format!("points have {columns} coordinates, metadata geom_dimension says {dimension}"));
        }
        let (shape, expected_sdf) = self.numbers("expected_sdf")?;
        if expected_sdf.len() != points.rows {
            return Err(format!("expected_sdf has shape {shape:?} for {} points", points.rows));
        }
        let use_tanh = self.meta("use_tanh", "True or False", |text| text.to_lowercase().parse().ok())?;
        if let Some(other) = self.metadata.get("activation").filter(|name| *name != "relu") {
            return Err(format!("metadata activation is {other:?}, only \"relu\" is known here"));
        }
        let layers = self.layers(latent_codes.columns + points.columns)?;
        Ok(Model { layers, latent_codes, points, expected_sdf, use_tanh })
    }

    /// All layers, each fitting what comes out of the one before.
    fn layers(&self, input: usize) -> Result<Vec<Layer>, String> {
        let number = |name: &str| name.strip_prefix("model.lin")?.split('.').next()?.parse::<usize>().ok();
        let Some(last) = self.tensors.keys().filter_map(|name| number(name)).max() else {
            return Err("no tensor model.lin0.*: no layers".into());
        };
        let latent_in: Vec<usize> = self.meta("latent_in", "a list of layers", |text| sizes(text.parse().ok()?))?;
        if let Some(i) = latent_in.iter().find(|&&i| i > last) {
            return Err(format!("metadata latent_in names layer {i}, the last one is {last}"));
        }
        let mut layers = vec![];
        let mut width = input;
        for i in 0..=last {
            let skip = latent_in.contains(&i);
            let layer = self.layer(i, skip)?;
            let expected = if skip { width + input } else { width };
            if layer.v.columns != expected {
                let got = layer.v.columns;
                return Err(format!("model.lin{i} takes {got} numbers, but is given {expected}"));
            }
            width = layer.v.rows;
            layers.push(layer);
        }
        if width != 1 {
            return Err(format!("the last layer, model.lin{last}, gives {width} numbers, expected 1"));
        }
        Ok(layers)
    }

    /// Layer i: plain, or weight-normalized in the newer or the older spelling of PyTorch's keys.
    fn layer(&self, i: usize, skip: bool) -> Result<Layer, String> {
        let name = |end: &str| format!("model.lin{i}.{end}");
        let there = |end: &str| self.tensors.contains_key(&name(end));
        let spellings =
            [("parametrizations.weight.original0", "parametrizations.weight.original1"), ("weight_g", "weight_v")];
        let normalized: Vec<_> = spellings.into_iter().filter(|(g, v)| there(g) || there(v)).collect();
        let (v, g) = match (there("weight"), &normalized[..]) {
            (true, []) => (self.matrix(&name("weight"))?, None),
            (false, [(g, v)]) => {
                let v = self.matrix(&name(v))?;
                (v, Some(self.vector(&name(g))?))
            }
            (false, []) => return Err(format!("model.lin{i} has no weight")),
            _ => return Err(format!("model.lin{i} has more than one weight")),
        };
        let bias = self.vector(&name("bias"))?;
        for (what, len) in [("gains", g.as_ref().map(Vec::len)), ("biases", Some(bias.len()))] {
            if len.is_some_and(|len| len != v.rows) {
                let (got, rows) = (len.unwrap_or_default(), v.rows);
                return Err(format!("model.lin{i} has {got} {what} for {rows} rows of weights"));
            }
        }
        Ok(Layer { v, g, bias, skip })
    }

    fn meta<T>(&self, field: &str, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T, String> {
        let text = self.metadata.get(field).ok_or_else(|| format!("metadata {field} is missing"))?;
        parse(text).ok_or_else(|| format!("metadata {field} is {text:?}, expected {expected}"))
    }

    fn matrix(&self, name: &str) -> Result<Matrix, String> {
        let (shape, data) = self.numbers(name)?;
        match shape[..] {
            [rows, columns] if rows * columns > 0 => Ok(Matrix { rows, columns, data: narrow(data) }),
            _ => Err(format!("tensor {name} has shape {shape:?}, expected two sizes other than 0")),
        }
    }

    /// `[n]` or `[n, 1]`.
    fn vector(&self, name: &str) -> Result<Vec<f32>, String> {
        match self.numbers(name)? {
            (shape, data) if matches!(shape[..], [_] | [_, 1]) => Ok(narrow(data)),
            (shape, _) => Err(format!("tensor {name} has shape {shape:?}, expected [n] or [n, 1]")),
        }
    }

    fn numbers(&self, name: &str) -> Result<(Vec<usize>, Vec<f64>), String> {
        let view = self.tensors.get(name).ok_or_else(|| format!("tensor {name} is missing"))?;
        let wrong = || {
            let View { dtype, shape, bytes } = view;
            let bytes = bytes.len();
            format!("tensor {name}, {dtype} {shape:?} in {bytes} bytes: expected F64, F32, F16 or BF16 of that size")
        };
        Ok((view.shape.clone(), view.numbers().ok_or_else(wrong)?))
    }
}

pub fn narrow(data: Vec<f64>) -> Vec<f32> {
    data.into_iter().map(|x| x as f32).collect()
}
