//! A model file: read, checked from end to end, and turned into layers whose sizes fit together.
use std::collections::BTreeMap;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
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
        let file = File::parse(&bytes).map_err(|e| format!("{}: not a safetensors file: {e}", path.display()))?;
        file.model().map_err(|e| format!("{}: {e}", path.display()))
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

struct File<'a> {
    metadata: BTreeMap<String, String>,
    tensors: SafeTensors<'a>,
}

impl<'a> File<'a> {
    fn parse(bytes: &'a [u8]) -> Result<File<'a>, safetensors::SafeTensorError> {
        let (_, header) = SafeTensors::read_metadata(bytes)?;
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        Ok(File { metadata, tensors: SafeTensors::deserialize(bytes)? })
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
        let Some(last) = self.tensors.names().into_iter().filter_map(number).max() else {
            return Err("no tensor model.lin0.*: no layers".into());
        };
        let latent_in: Vec<usize> =
            self.meta("latent_in", "a list of layers", |text| serde_json::from_str(text).ok())?;
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
        let there = |end: &str| self.tensors.tensor(&name(end)).is_ok();
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
        let view = self.tensors.tensor(name).map_err(|_| format!("tensor {name} is missing"))?;
        let bytes = view.data();
        let data = match view.dtype() {
            Dtype::F64 => bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect(),
            Dtype::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b).into()).collect(),
            Dtype::F16 => bytes.as_chunks().0.iter().map(|&b| half::f16::from_le_bytes(b).into()).collect(),
            Dtype::BF16 => bytes.as_chunks().0.iter().map(|&b| half::bf16::from_le_bytes(b).into()).collect(),
            other => return Err(format!("tensor {name} is {other:?}, expected F64, F32, F16 or BF16")),
        };
        Ok((view.shape().to_vec(), data))
    }
}

pub fn narrow(data: Vec<f64>) -> Vec<f32> {
    data.into_iter().map(|x| x as f32).collect()
}
