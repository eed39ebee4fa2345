//! Checkpoints for the tests, made by the `safetensors` crate or by hand.
#![allow(dead_code, reason = "each test binary uses its own part of this file")]

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use weightnorm::half;
use weightnorm_checkpoint::{Checkpoint, Spelling};

/// A folder that goes when the test is over.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Folder {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("weightnorm-{name}-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// What lies in it.
    pub fn names(&self) -> Vec<String> {
        names_in(&self.0)
    }
}

/// What lies in a folder.
pub fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().to_string_lossy().into()).collect();
    names.sort();
    names
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A tensor to be written.
#[derive(Clone)]
pub struct Made {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// Numbers that look like weights, of any storage type.
pub fn made(name: &str, dtype: Dtype, shape: &[usize], seed: u64) -> Made {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let numbers = (0..shape.iter().product::<usize>()).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    });
    of_numbers(name, dtype, shape, numbers)
}

pub fn of_numbers(name: &str, dtype: Dtype, shape: &[usize], numbers: impl IntoIterator<Item = f32>) -> Made {
    let mut bytes = vec![];
    for x in numbers {
        match dtype {
            Dtype::F32 => bytes.extend(x.to_le_bytes()),
            Dtype::F64 => bytes.extend(f64::from(x).to_le_bytes()),
            Dtype::F16 => bytes.extend(half::f16::from_f32(x).to_le_bytes()),
            Dtype::BF16 => bytes.extend(half::bf16::from_f32(x).to_le_bytes()),
            Dtype::I64 => bytes.extend(((x * 100.0) as i64).to_le_bytes()),
            Dtype::U8 => bytes.push((x.abs() * 100.0) as u8),
            other => panic!("{other:?} is not made here"),
        }
    }
    Made { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes }
}

/// Numbers that f32 does not have.
pub fn of_f64(name: &str, dtype: Dtype, shape: &[usize], numbers: &[f64]) -> Made {
    let bytes = match dtype {
        Dtype::F64 => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Dtype::F16 => numbers.iter().flat_map(|&x| half::f16::from_f64(x).to_le_bytes()).collect(),
        Dtype::BF16 => numbers.iter().flat_map(|&x| half::bf16::from_f64(x).to_le_bytes()).collect(),
        other => return of_numbers(name, other, shape, numbers.iter().map(|&x| x as f32)),
    };
    Made { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes }
}

/// A weight `m.weight` of six rows that each go down to the smallest numbers of the type, of which a device may take
/// some for zero: in v, in g or in w. Row by row [g, v ..].
pub fn tiny_rows(dtype: Dtype) -> [[f64; 6]; 6] {
    // The smallest, and one with some digits, where f32 and so a device has a subnormal number if the type has one.
    let large = if dtype == Dtype::F16 { 1e3 } else { 1e10 };
    let (least, small) = match dtype {
        Dtype::F16 => (2f64.powi(-24), 2f64.powi(-20)),
        Dtype::BF16 => (2f64.powi(-133), 2f64.powi(-128)),
        Dtype::F64 => (2f64.powi(-400), 1e-100),
        _ => (2f64.powi(-149), 1e-39),
    };
    [
        [2.0, least, 2.0 * least, -3.0 * least, 0.0, 5.0 * least],
        [-0.5, 3.0 * small, 4.0 * small, 0.0, -small, 0.0],
        [large, 1.0, 3.0 * least, 0.0, -2.0, 0.5],
        [1.0, 3e-6, 4e-6, 0.0, 0.0, -0.0],
        [3.0, 0.25, -1.0, 2.0, 7.0, 0.125],
        [1e-40, 1.0, 1.0, -2.0, 0.5, 0.0],
    ]
}

/// Such a weight with its rows along an axis, each as often as `times` says, and what its v and g are as f64.
pub fn tiny_weight(dtype: Dtype, axis: usize, times: usize) -> ([Made; 2], Vec<f64>, Vec<f64>) {
    let rows = tiny_rows(dtype);
    let (count, length) = (rows.len(), 5 * times);
    let element = |j: usize, i: usize| rows[j][1 + i % 5];
    let (shape, v): (_, Vec<f64>) = match axis {
        0 => ([count, length], (0..count * length).map(|at| element(at / length, at % length)).collect()),
        _ => ([length, count], (0..count * length).map(|at| element(at % count, at / count)).collect()),
    };
    let g: Vec<f64> = rows.iter().map(|row| row[0]).collect();
    let g_dtype = if dtype == Dtype::F64 { Dtype::F64 } else { Dtype::F32 };
    let made = [of_f64("m.weight_g", g_dtype, &[count], &g), of_f64("m.weight_v", dtype, &shape, &v)];
    let stored = |numbers: &[f64], dtype| -> Vec<f64> {
        let round = |&x: &f64| match dtype {
            Dtype::F64 => x,
            Dtype::F16 => half::f16::from_f64(x).into(),
            Dtype::BF16 => half::bf16::from_f64(x).into(),
            _ => f64::from(x as f32),
        };
        numbers.iter().map(round).collect()
    };
    let (v, g) = (stored(&v, dtype), stored(&g, g_dtype));
    (made, v, g)
}

/// By the `safetensors` crate.
pub fn write(path: &Path, tensors: &[Made], metadata: &[(&str, &str)]) {
    let views: Vec<(String, TensorView<'_>)> = tensors
        .iter()
        .map(|t| (t.name.clone(), TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()))
        .collect();
    let metadata: HashMap<String, String> = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    safetensors::serialize_to_file(views, (!metadata.is_empty()).then_some(metadata), path).unwrap();
}

/// By hand: any header in front of any data.
pub fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// By hand, in the order given, which the `safetensors` crate would change.
pub fn in_order(tensors: &[Made], metadata: &[(&str, &str)]) -> Vec<u8> {
    let mut entries = vec![];
    if !metadata.is_empty() {
        let pairs: Vec<String> = metadata.iter().map(|(k, v)| format!("{k:?}:{v:?}")).collect();
        entries.push(format!("\"__metadata__\":{{{}}}", pairs.join(",")));
    }
    let mut data = vec![];
    for Made { name, dtype, shape, bytes } in tensors {
        let begin = data.len();
        data.extend(bytes);
        let shape = format!("{shape:?}").replace(' ', "");
        let place = format!("\"shape\":{shape},\"data_offsets\":[{begin},{}]", data.len());
        entries.push(format!("{name:?}:{{\"dtype\":\"{dtype:?}\",{place}}}"));
    }
    let mut header = format!("{{{}}}", entries.join(","));
    header += &" ".repeat(header.len().next_multiple_of(8) - header.len());
    raw(&header, &data)
}

/// A sharded checkpoint in a new folder; `shards`: names of files and what is in them. Returns the path of its index.
pub fn write_sharded(folder: &Path, shards: &[(&str, Vec<Made>)]) -> PathBuf {
    std::fs::create_dir_all(folder).unwrap();
    let (mut entries, mut total) = (vec![], 0);
    for (file, tensors) in shards {
        write(&folder.join(file), tensors, &[("format", "pt")]);
        for tensor in tensors {
            entries.push(format!("    {:?}: {file:?}", tensor.name));
            total += tensor.bytes.len();
        }
    }
    entries.sort();
    let map = format!("  \"weight_map\": {{\n{}\n  }}\n", entries.join(",\n"));
    let text = format!("{{\n  \"metadata\": {{\n    \"total_size\": {total}\n  }},\n{map}}}\n");
    let path = folder.join("model.safetensors.index.json");
    std::fs::write(&path, text).unwrap();
    path
}

/// The layers of a small vocoder: a convolution, a transposed one, one normed over its taps, one normed as a whole, a
/// linear layer with a bias and an LSTM's weight; beside them tensors of other types.
pub fn vocoder(spelling: Spelling, dtype: Dtype) -> Vec<Made> {
    let pair = |name: &str, shape: &[usize], g_shape: &[usize], seed| {
        [made(&spelling.g(name), dtype, g_shape, seed), made(&spelling.v(name), dtype, shape, seed + 1)]
    };
    let mut tensors = vec![made("conv_pre.bias", dtype, &[16], 1)];
    tensors.extend(pair("conv_pre.weight", &[16, 8, 7], &[16, 1, 1], 2));
    tensors.extend(pair("ups.0.weight", &[16, 8, 4], &[16, 1, 1], 4)); // a transposed convolution
    tensors.extend(pair("encoder.pos_conv.weight", &[24, 6, 16], &[1, 1, 16], 6));
    tensors.extend(pair("gain.weight", &[9, 20, 3], &[], 8));
    tensors.extend(pair("proj.weight", &[33, 57], &[33, 1], 10));
    tensors.extend(pair("proj.bias", &[33], &[33], 12));
    tensors.extend(pair("lstm.weight_hh_l0", &[40, 10], &[40, 1], 14));
    tensors.push(made("steps", Dtype::I64, &[1], 16));
    tensors.push(made("table", Dtype::U8, &[3, 5], 17));
    tensors.push(made("pos_bias_v", Dtype::F32, &[4, 8], 18));
    tensors.push(made("empty", Dtype::F32, &[0, 8], 19));
    tensors
}

/// The parameters of `torch.nn.LSTM(5, 3, num_layers=2, bidirectional=True)` (`gates` 4) or GRU (3), as `rnn`, all
/// weights of it weight-normalized: names, and shapes of v.
pub fn recurrent_weights(gates: usize) -> Vec<(String, [usize; 2])> {
    let mut all = vec![];
    for (layer, features) in [(0, 5), (1, 2 * 3)] {
        for direction in ["", "_reverse"] {
            all.push((format!("rnn.weight_ih_l{layer}{direction}"), [gates * 3, features]));
            all.push((format!("rnn.weight_hh_l{layer}{direction}"), [gates * 3, 3]));
        }
    }
    all
}

/// g and v of them and their biases.
pub fn recurrent(spelling: Spelling, dtype: Dtype, gates: usize) -> Vec<Made> {
    let mut tensors = vec![];
    for (seed, (name, shape)) in (0..).step_by(3).zip(recurrent_weights(gates)) {
        tensors.push(made(&name.replace("weight", "bias"), dtype, &shape[..1], seed));
        tensors.push(made(&spelling.g(&name), dtype, &[shape[0], 1], seed + 1));
        tensors.push(made(&spelling.v(&name), dtype, &shape, seed + 2));
    }
    tensors
}

/// What a checkpoint holds, as the `safetensors` crate reads it.
#[derive(Default)]
pub struct Content {
    pub tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
    pub metadata: BTreeMap<String, String>,
}

impl Content {
    pub fn read(path: &Path) -> Result<Content, Box<dyn Error>> {
        let mut content = Content::default();
        for file in Checkpoint::open(path)?.files() {
            let bytes = std::fs::read(file)?;
            for (name, t) in SafeTensors::deserialize(&bytes)?.tensors() {
                let there = content.tensors.insert(name, (t.dtype(), t.shape().to_vec(), t.data().to_vec()));
                assert!(there.is_none());
            }
            content.metadata.extend(SafeTensors::read_metadata(&bytes)?.1.metadata().clone().unwrap_or_default());
        }
        Ok(content)
    }

    /// The tied names too, each of which has to name a tensor.
    pub fn with_tied(mut self) -> Content {
        for (name, of) in self.metadata.iter().filter(|(name, _)| *name != "format") {
            let tensor =
                self.tensors.get(of).unwrap_or_else(|| panic!("{name} is tied to {of}, which is gone")).clone();
            assert!(self.tensors.insert(name.clone(), tensor).is_none(), "{name}");
        }
        self
    }

    pub fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    pub fn numbers(&self, name: &str) -> Vec<f64> {
        let (dtype, _, bytes) = &self.tensors[name];
        assert_eq!(*dtype, Dtype::F32, "{name}");
        bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect()
    }
}
