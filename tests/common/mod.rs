//! What every test binary needs: files of reference cases, error bounds from arithmetic, and a comparer.
#![allow(dead_code, reason = "each test binary uses its own part of this file")]

pub mod cosine;
pub mod dora;
pub mod recurrent;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use weightnorm::{Activation, Axis, Cell, ConvGeometry, DType, Element, Eps, Gate, PadMode, cpu, half};

/// A tensor of a file: its values as f64, exactly, and its bytes as they stand there, for upload.
#[derive(Debug)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub dtype: Dtype,
    pub data: Vec<f64>,
    pub bytes: Vec<u8>,
}

/// A `.safetensors` file. Its accessors name the file in every error.
#[derive(Debug)]
pub struct File {
    pub path: PathBuf,
    pub metadata: HashMap<String, String>,
    pub tensors: BTreeMap<String, Tensor>,
}

impl File {
    pub fn load(path: &Path) -> Result<File, String> {
        File::of_bytes(path, &std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?)
    }

    /// The same of bytes that are there.
    pub fn of_bytes(path: &Path, bytes: &[u8]) -> Result<File, String> {
        let fail = |what: String| format!("{}: {what}", path.display());
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| fail(e.to_string()))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let mut tensors = BTreeMap::new();
        for (name, view) in SafeTensors::deserialize(bytes).map_err(|e| fail(e.to_string()))?.iter() {
            let (dtype, bytes) = (view.dtype(), view.data().to_vec());
            let data = match dtype {
                Dtype::F64 => bytes.chunks_exact(8).map(|c| f64::from_le_bytes(c.try_into().unwrap())).collect(),
                Dtype::F32 => widen::<f32, 4>(&bytes, f32::from_le_bytes),
                Dtype::F16 => widen::<half::f16, 2>(&bytes, half::f16::from_le_bytes),
                Dtype::BF16 => widen::<half::bf16, 2>(&bytes, half::bf16::from_le_bytes),
                other => return Err(fail(format!("tensor {name} has the unknown dtype {other:?}"))),
            };
            tensors.insert(name.to_string(), Tensor { shape: view.shape().to_vec(), dtype, data, bytes });
        }
        Ok(File { path: path.into(), metadata, tensors })
    }

    pub fn fail(&self, what: impl std::fmt::Display) -> String {
        format!("{}: {what}", self.path.display())
    }

    pub fn tensor(&self, name: &str) -> Result<&Tensor, String> {
        self.tensors.get(name).ok_or_else(|| self.fail(format_args!("tensor {name} is missing")))
    }

    pub fn meta(&self, field: &str) -> Result<&str, String> {
        let value = self.metadata.get(field).map(String::as_str);
        value.ok_or_else(|| self.fail(format_args!("metadata {field} is missing")))
    }

    fn unknown(&self, field: &str, value: &str) -> String {
        self.fail(format_args!("metadata {field} is {value:?}, which is unknown"))
    }
}

fn widen<T: Element + Into<f64>, const SIZE: usize>(bytes: &[u8], read: impl Fn([u8; SIZE]) -> T) -> Vec<f64> {
    let values: Vec<T> = bytes.chunks_exact(SIZE).map(|c| read(c.try_into().unwrap())).collect();
    cpu::widen(&values)
}

/// The operator of a reference case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    WeightNorm,
    Linear,
    /// In 1-D or 2-D.
    Conv,
    ConvTransposed,
    Recurrent(Cell),
    Cosine,
    Dora,
    /// One that the crate does not have.
    Other,
}

/// One reference case; tests/golden/README.md describes the files.
#[derive(Debug)]
pub struct Golden {
    pub file: File,
    pub op: Op,
    pub axis: Axis,
    pub eps: Eps,
    pub dtype: DType,
    /// Of a convolution.
    pub geometry: ConvGeometry,
    eps_exact: f64,
}

impl Golden {
    pub fn load(path: &Path) -> Result<Golden, String> {
        Golden::of(File::load(path)?)
    }

    pub fn of(file: File) -> Result<Golden, String> {
        let op = match file.meta("op")? {
            "weight_norm" => Op::WeightNorm,
            "linear" => Op::Linear,
            "conv1d" | "conv2d" => Op::Conv,
            "conv_transpose1d" | "conv_transpose2d" => Op::ConvTransposed,
            "lstm" => Op::Recurrent(Cell::Lstm),
            "gru" => Op::Recurrent(Cell::Gru),
            "rnn" => Op::Recurrent(Cell::Rnn),
            "dora" => Op::Dora,
            "cosine" => Op::Cosine,
            other => return Err(file.unknown("op", other)),
        };
        let axis = match file.meta("dim")? {
            "none" => Axis::Whole,
            dim => Axis::Kept(dim.parse().map_err(|_| file.unknown("dim", dim))?),
        };
        let (dtype, stored) = match file.meta("dtype")? {
            "f32" => (DType::F32, Dtype::F32),
            "f16" => (DType::F16, Dtype::F16),
            "bf16" => (DType::Bf16, Dtype::BF16),
            other => return Err(file.unknown("dtype", other)),
        };
        for name in ["v", "x", "dw", "dy"] {
            if let Some(tensor) = file.tensors.get(name)
                && tensor.dtype != stored
            {
                return Err(
                    file.fail(format_args!("tensor {name} is {:?}, metadata dtype says {stored:?}", tensor.dtype))
                );
            }
        }
        let e = || -> Result<f64, String> {
            let e = file.meta("eps")?;
            e.parse().map_err(|_| file.unknown("eps", e))
        };
        let (eps, eps_exact) = match file.meta("eps_policy")? {
            "none" => (Eps::None, 0.0),
            "inside_sqrt" => (Eps::InsideSqrt(e()? as f32), e()?),
            "clamp" => (Eps::Clamp(e()? as f32), e()?),
            "after" => (Eps::After(e()? as f32), e()?),
            other => return Err(file.unknown("eps_policy", other)),
        };
        let geometry = match op {
            Op::Conv | Op::ConvTransposed => geometry(&file)?,
            _ => ConvGeometry::default(),
        };
        Ok(Golden { file, op, axis, eps, dtype, geometry, eps_exact })
    }

    pub fn tensor(&self, name: &str) -> Result<&Tensor, String> {
        self.file.tensor(name)
    }

    /// The layer of a case of recurrent cells.
    pub fn recurrent(&self, cell: Cell) -> Result<cpu::Recurrent<'_>, String> {
        let data = |name: &str| self.tensor(name).map(|tensor| &tensor.data[..]);
        let optional = |name: &str| self.optional(name).map(|tensor| &tensor.data[..]);
        let weight = |v: &str, g: &str| -> Result<cpu::Weight<'_>, String> {
            Ok(cpu::Weight::Normalized { v: data(v)?, g: Some(data(g)?), axis: self.axis, eps: self.eps })
        };
        let x = self.tensor("x")?;
        let &[steps, batch, features] = &x.shape[..] else { return Err(self.file.fail("x is no sequence")) };
        Ok(cpu::Recurrent {
            cell,
            x: &x.data,
            x_shape: [steps, batch, features],
            units: *self.tensor("v_hh")?.shape.last().unwrap_or(&0),
            input: weight("v_ih", "g_ih")?,
            hidden: weight("v_hh", "g_hh")?,
            bias: optional("b_ih"),
            hidden_bias: optional("b_hh"),
            h0: optional("h0"),
            c0: optional("c0"),
        })
    }

    /// The weight of a case of DoRA.
    pub fn dora_weight(&self) -> Result<cpu::DoraWeight<'_>, String> {
        let [base, a, b, m] = ["w0", "a", "b", "m"].map(|name| self.tensor(name));
        let (base, a, b, magnitude) = (base?, a?, b?, &m?.data);
        let scaling = self.file.meta("scaling")?;
        let scaling = scaling.parse().map_err(|_| self.file.unknown("scaling", scaling))?;
        let shape = [base.shape[0], base.shape[1]];
        let (rank, eps) = (a.shape[0], self.eps);
        Ok(cpu::DoraWeight { base: &base.data, a: &a.data, b: &b.data, magnitude, shape, rank, scaling, eps })
    }

    /// A tensor that need not be there: the bias.
    pub fn optional(&self, name: &str) -> Option<&Tensor> {
        self.file.tensors.get(name)
    }

    /// By how much an effective norm `norm` may differ because the file's e is a float64 and ours the nearest f32:
    /// |Δe| where e is added to or replaces n, |d√(n² + e)| ≤ |Δe| / n̂ where it is inside the root.
    pub fn eps_slack(&self, norm: f64) -> f64 {
        let change = (f64::from(self.eps.value()) - self.eps_exact).abs();
        match self.eps {
            Eps::None => 0.0,
            Eps::InsideSqrt(_) => change / norm,
            Eps::Clamp(_) | Eps::After(_) => change,
        }
    }
}

/// What the metadata say of a convolution: each one number, or one for each axis, of a padding one or two sides.
fn geometry(file: &File) -> Result<ConvGeometry, String> {
    let numbers = |field: &str, text: &str, between: char| -> Result<[usize; 2], String> {
        let parsed: Result<Vec<usize>, _> = text.split(between).map(str::parse).collect();
        match parsed.as_deref() {
            Ok(&[all]) => Ok([all, all]),
            Ok(&[first, second]) => Ok([first, second]),
            _ => Err(file.unknown(field, text)),
        }
    };
    let one = |field: &str| numbers(field, file.meta(field)?, ',');
    let text = file.meta("padding")?;
    let sides = |part: &str| numbers("padding", part, ':').map(|[before, after]| (before, after));
    let each: Vec<_> = text.split(',').map(sides).collect::<Result<_, _>>()?;
    let &[height, .., width] = &[&each[..], &each[..]].concat()[..] else { return Err(file.unknown("padding", text)) };
    let pad_mode = match file.metadata.get("pad_mode").map(String::as_str) {
        None | Some("zero") => PadMode::Zero,
        Some("reflect") => PadMode::Reflect,
        Some("replicate") => PadMode::Replicate,
        Some(other) => return Err(file.unknown("pad_mode", other)),
    };
    let output = file.metadata.get("output_padding").map_or("0", String::as_str);
    let output = numbers("output_padding", output, ',')?;
    let groups = one("groups")?[0];
    let geometry = ConvGeometry::default().pad_mode(pad_mode).groups(groups);
    let (stride, dilation) = (one("stride")?, one("dilation")?);
    Ok(if file.tensor("v")?.shape.len() == 3 {
        geometry.stride(stride[1]).dilation(dilation[1]).output_padding(output[1]).padding(width)
    } else {
        geometry.stride(stride).dilation(dilation).output_padding(output).padding([height, width])
    })
}

/// The folder of reference cases: `WEIGHTNORM_GOLDEN`, or our own.
pub fn golden_dir() -> PathBuf {
    std::env::var_os("WEIGHTNORM_GOLDEN").map_or_else(own_golden_dir, PathBuf::from)
}

pub fn own_golden_dir() -> PathBuf {
    root().join("tests/golden")
}

/// The folder of the workspace, whichever of its packages is tested.
pub fn root() -> &'static Path {
    let mut folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    folders.find(|folder| folder.join("Cargo.lock").exists()).expect("the workspace has one")
}

/// The cases of a folder, by name. A folder that is missing or holds none is an error.
pub fn golden_files(dir: &Path) -> Result<Vec<PathBuf>, String> {
    let fail = |what: String| format!("folder of reference cases {}: {what}", dir.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| fail(e.to_string()))? {
        let path = entry.map_err(|e| fail(e.to_string()))?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() { Err(fail("no .safetensors file".into())) } else { Ok(files) }
}

// Error bounds for GPU results against f64.
//
// u = 2⁻²⁴ is the largest relative error of one rounding to f32; a result off by t ULP is off by at most 2t·u of its
// value. WGSL grants 5 ULP (10u) to sqrt, 2.5 ULP (5u) to a division, 3 + 2|x| ULP to exp, and a correctly rounded
// result to + and *. Every bound takes `chain`: the largest number of additions that one term passes through on
// its way into the sum, counting its own multiplication. Then a sum of terms tᵢ in any order is off by at
// most γ(chain)·Σ|tᵢ|. One running sum over K terms has chain K; a kernel whose lanes add K/256 terms each and then
// halve 8 times has K/256 + 8. The length of the row is always right and never tight.
//
// Scaling by powers of two is exact. What a kernel loses to subnormals inside a sum of squares that it found in its
// safe range is far below u of that sum, and is not counted.

const U: f64 = f64::from_bits((1023 - 24) << 52);

/// Roundings in n̂ besides those of the sum of squares: sqrt 10, adding e 1, a rescaling's own sum 1.
const NORM_ROUNDINGS: f64 = 12.0;

/// n roundings in a row: (1 + u)ⁿ − 1 ≤ nu / (1 − nu). Infinite where that means nothing any more.
pub fn gamma(roundings: f64) -> f64 {
    let e = roundings * U;
    if e < 1.0 { e / (1.0 - e) } else { f64::INFINITY }
}

/// The largest error of storing a number of this magnitude: half a unit in the last place, so 2⁻²⁴, 2⁻¹¹ and 2⁻⁸ of
/// it for f32, f16 and bf16. A subnormal may be flushed to zero where it is one of f32's too (below 2⁻¹²⁶), and is half
/// a step of 2⁻²⁴ off in f16, whose subnormals are normal numbers to the shader.
pub fn storage_bound(dtype: DType, magnitude: f64) -> f64 {
    let (relative, least) = match dtype {
        DType::F32 => (-24, -126),
        DType::F16 => (-11, -25),
        DType::Bf16 => (-8, -126),
    };
    (magnitude * 2f64.powi(relative)).max(2f64.powi(least))
}

/// An error `e` in f32 arithmetic, then the rounding of the storage type.
fn stored(dtype: DType, expected: f64, e: f64) -> f64 {
    e + storage_bound(dtype, expected.abs() + e)
}

/// Additions that one square passes through on its way into a norm of `length` elements. Everywhere four sums run side
/// by side (`stretch_squares`, `column_squares`), or an invocation takes four of every 16 columns (`product`), and
/// partial sums are added up in blocks of 64 (`finish_sums`), and some steps of a tree.
pub fn norm_chain(length: usize) -> usize {
    length.min(length / 3 + 64)
}

/// For an effective norm n̂, stored as f32. The squares are all positive, so their sum is off by γ(chain) of itself and
/// its root by half of that.
pub fn norm_bound(chain: usize, norm: f64) -> f64 {
    stored(DType::F32, norm, gamma(chain as f64 / 2.0 + NORM_ROUNDINGS) * norm)
}

/// For w = g·(v/n̂): the error of n̂, a division (5u), a product (u); 8 where 6 would do.
pub fn weight_bound(chain: usize, w: f64, dtype: DType) -> f64 {
    stored(dtype, w, gamma(chain as f64 / 2.0 + NORM_ROUNDINGS + 8.0) * w.abs())
}

/// By how much w = g·(v/n̂) may be off besides on a device that takes subnormal numbers for zero: by all of it where v
/// is one, or v/n̂ (or would be by a rounding).
pub fn flush_bound(v: f64, norm: f64, w: f64) -> f64 {
    let least = f64::from(f32::MIN_POSITIVE) * (1.0 + 2f64.powi(-12));
    if v.abs().min((v / norm).abs()) < least { w.abs() } else { 0.0 }
}

/// For y = g·((x·v)/n̂) + bias, `sum_abs` = Σ_k |x_k·w_k| with the normalized, scaled w, and so at least |y − bias|.
/// The dot product is off by γ(chain) of that sum, n̂ by γ(chain/2 + 12), division and product by 6 (12 allows for
/// g/n̂ made first and multiplied in), the last addition by u·|y|. A plain product is within it too.
pub fn dot_bound(chain: usize, sum_abs: f64, y: f64, dtype: DType) -> f64 {
    let e = gamma(1.5 * chain as f64 + NORM_ROUNDINGS + 12.0) * sum_abs;
    stored(dtype, y, e + 2.0 * U * (y.abs() + e))
}

// Gradients. A gradient is a sum of products whose result may cancel, so its bound is a factor times its *terms*: the
// same expression with every number replaced by its absolute value and every subtraction by an addition. Each factor
// counts the roundings of the longest path from an input to the result. `norm_chain` is the chain of the sum of
// squares in n̂; `chain` the chain of the gradient's own sums, added up where one feeds another (dg of a linear layer:
// in_features for u, then the batch; dv: the same, since dg is a part of it).
//
// A subnormal u or dw that is flushed in between changes a gradient by less than 2⁻¹²⁶ times what it is multiplied by,
// and is not counted.

/// The terms of (dv, dg) for [`cpu::normalize_backward`], element by element and by another road than it takes:
/// dg_j = Σ|dw|·|v|/n̂ and dv = |g|/n̂·(|dw| + dg_j·|v|/d).
pub fn normalize_terms(
    dw: &[f64],
    v: &[f64],
    shape: &[usize],
    g: Option<&[f64]>,
    axis: Axis,
    eps: Eps,
) -> (Vec<f64>, Vec<f64>) {
    let norms = cpu::row_norms(v, shape, axis, eps).unwrap();
    let plain = cpu::row_norms(v, shape, axis, Eps::None).unwrap();
    let row = |at| row_of(at, shape, axis);
    let mut dg = vec![0.0; norms.len()];
    for (at, (dw, v)) in dw.iter().zip(v).enumerate() {
        dg[row(at)] += dw.abs() * (v.abs() / norms[row(at)]);
    }
    let term = |(at, (dw, v)): (usize, (&f64, &f64))| {
        let j = row(at);
        let d = match eps {
            Eps::None | Eps::InsideSqrt(_) | Eps::Clamp(_) => norms[j],
            Eps::After(_) => plain[j],
        };
        let correction = if *v == 0.0 { 0.0 } else { dg[j] * (v.abs() / d) };
        g.map_or(1.0, |g| g[j].abs()) / norms[j] * (dw.abs() + correction)
    };
    let dv = dw.iter().zip(v).enumerate().map(term).collect();
    (dv, dg)
}

/// The terms of every gradient of [`cpu::linear_backward`].
pub fn linear_terms(x: &[f64], weight: cpu::Weight, w_shape: &[usize], dy: &[f64]) -> cpu::LinearGradients {
    let &[outs, ins] = w_shape else { panic!("a weight of shape {w_shape:?}") };
    let batch = dy.len().checked_div(outs).unwrap_or(0);
    let w = match weight {
        cpu::Weight::Plain(w) => w.to_vec(),
        cpu::Weight::Normalized { v, g, axis, eps } => cpu::normalize(v, w_shape, g, axis, eps).unwrap(),
    };
    let sum = |count: usize, term: &dyn Fn(usize) -> f64| (0..count).map(|i| term(i).abs()).sum::<f64>();
    let dx = (0..batch * ins).map(|at| sum(outs, &|j| dy[at / ins * outs + j] * w[j * ins + at % ins])).collect();
    let dw: Vec<f64> =
        (0..outs * ins).map(|at| sum(batch, &|b| dy[b * outs + at / ins] * x[b * ins + at % ins])).collect();
    let dbias = (0..outs).map(|j| sum(batch, &|b| dy[b * outs + j])).collect();
    let (dv, dg) = match weight {
        cpu::Weight::Plain(_) => (dw, None),
        cpu::Weight::Normalized { v, g, axis, eps } => {
            let (dv, dg) = normalize_terms(&dw, v, w_shape, g, axis, eps);
            (dv, Some(dg))
        }
    };
    cpu::LinearGradients { dx, dv, dg, dbias }
}

/// The terms of y = x·w + bias of a convolution, and of every gradient: it with absolute values.
pub fn conv_terms(
    transposed: bool,
    geometry: &ConvGeometry,
    (x, x_shape): (&[f64], &[usize]),
    weight: cpu::Weight,
    w_shape: &[usize],
    bias: Option<&[f64]>,
    dy: &[f64],
) -> (Vec<f64>, cpu::LinearGradients) {
    let w = match weight {
        cpu::Weight::Plain(w) => w.to_vec(),
        cpu::Weight::Normalized { v, g, axis, eps } => cpu::normalize(v, w_shape, g, axis, eps).unwrap(),
    };
    let (x, w, dy) = (abs(x), abs(&w), abs(dy));
    let bias = bias.map(abs);
    let (forward, backward) = if transposed {
        (
            cpu::conv_transposed as fn(_, _, _, _, _, _, _) -> _,
            cpu::conv_transposed_backward as fn(_, _, _, _, _, _, _) -> _,
        )
    } else {
        (cpu::conv as fn(_, _, _, _, _, _, _) -> _, cpu::conv_backward as fn(_, _, _, _, _, _, _) -> _)
    };
    let y: Result<Vec<f64>, weightnorm::Error> =
        forward(&x[..], x_shape, &w[..], w_shape, bias.as_deref(), geometry, &cpu::ConvEnds::default());
    let gradients: Result<cpu::LinearGradients, weightnorm::Error> =
        backward(&x[..], x_shape, cpu::Weight::Plain(&w), w_shape, &dy[..], geometry, Activation::None);
    let mut gradients = gradients.unwrap();
    if let cpu::Weight::Normalized { v, g, axis, eps } = weight {
        let (dv, dg) = normalize_terms(&gradients.dv, v, w_shape, g, axis, eps);
        (gradients.dv, gradients.dg) = (dv, Some(dg));
    }
    (y.unwrap(), gradients)
}

pub fn abs(values: &[f64]) -> Vec<f64> {
    values.iter().map(|a| a.abs()).collect()
}

/// The row of the element that lies at `at`.
pub fn row_of(at: usize, shape: &[usize], axis: Axis) -> usize {
    match axis {
        Axis::Whole => 0,
        Axis::Kept(k) => at / shape[k + 1..].iter().product::<usize>() % shape[k],
    }
}

/// For a plain sum of products: dw and dx of an ordinary layer, dbias, a running mean.
pub fn sum_bound(chain: usize, terms: f64, value: f64, dtype: DType) -> f64 {
    stored(dtype, value, gamma(chain as f64 + 2.0) * terms)
}

/// For dx of a normalized weight: n̂, the division and product of g/n̂ or of w (6), and one more product with dy, where
/// the scale is a prologue, or with the sum; 12 where 8 would do.
pub fn dx_bound(norm_chain: usize, chain: usize, terms: f64, dx: f64, dtype: DType) -> f64 {
    stored(dtype, dx, gamma(norm_chain as f64 / 2.0 + NORM_ROUNDINGS + chain as f64 + 12.0) * terms)
}

/// For dg, stored as f32: n̂, a division (5), products and the storing of u between two sums; 12 where 8 would do.
pub fn dg_bound(norm_chain: usize, chain: usize, terms: f64, dg: f64) -> f64 {
    stored(DType::F32, dg, gamma(norm_chain as f64 / 2.0 + NORM_ROUNDINGS + chain as f64 + 12.0) * terms)
}

/// For dv = (g/n̂)·(dw − dg·(v/d)): the longest path goes through dg (above), v/d (n̂ and a division, 5), their
/// product, the difference, g/n̂ (n̂ and a division) and the last product: three times n̂, and 12 + 5 + 2 + 6; 30 where
/// 25 would do.
pub fn dv_bound(norm_chain: usize, chain: usize, terms: f64, dv: f64, dtype: DType) -> f64 {
    let roundings = 3.0 * (norm_chain as f64 / 2.0 + NORM_ROUNDINGS) + chain as f64 + 30.0;
    stored(dtype, dv, gamma(roundings) * terms)
}

/// For act(y), where y itself is off by at most `e` before the activation (`dot_bound` for f32).
///
/// The error of y times the largest slope of the activation, and what evaluating it adds: one product for the leaky
/// ReLU, and for SiLU the relative error of exp (6 + 4|y| roundings) and of a sum and a quotient. Where exp(y) leaves
/// the range SiLU is 0 instead of at most 89·e⁻⁸⁸ < 2⁻¹²⁰.
///
/// tanh is ours (`tanh_of`). Below 1/4 a series, of which the terms left out are 0.022·y⁸ < 6u of it, and some 6
/// roundings. Above, with e = exp(-2|y|), (1 − e)/(1 + e): e is off by (6 + 8|y|)u·e, which the slope 2/(1 + e)² makes
/// at most 4u; 1 − e, 1 + e and the quotient add 7u. GELU's argument has 5 roundings, which z·(1 − tanh² z) < 0.45
/// makes 3u of tanh; then 1 + tanh, off by 16u in all, meets y/2.
///
/// ELU above -1/4 is a series, of which the terms left out are below 0.03u of it; what is inside of 1 + y/2 counts for
/// an eighth. Below, exp(y), off by (6 + 4|y|)u·e^y < 5.5u, minus 1.
///
/// GELU by erf is y·q below 0 and y·(1 − q) above, q the part of the normal distribution beyond s = |y|: exp(−s²/2),
/// off by 6 + 2.5s² roundings with those of its argument, times a polynomial in t (8 with the fit), which is off by 7,
/// and changes by 2.3 times as much, and two products.
pub fn activated_bound(activation: Activation, y: f64, e: f64, dtype: DType) -> f64 {
    let result = cpu::activate(y, activation);
    let (slope, evaluation) = match activation {
        Activation::None | Activation::Relu => (1.0, 0.0),
        Activation::LeakyRelu(slope) => (f64::from(slope).abs().max(1.0), U * result.abs()),
        Activation::Elu => {
            let part = if y >= 0.0 {
                0.0
            } else if y > -0.25 {
                gamma(4.0) * result.abs()
            } else {
                gamma(7.0)
            };
            (1.0, part)
        }
        Activation::Gelu => {
            let beyond = cpu::activate(-y.abs(), activation).abs();
            let roundings = 32.0 + 2.5 * y.abs().min(14.0).powi(2);
            (1.13, gamma(roundings) * beyond + gamma(2.0) * result.abs() + 2f64.powi(-120))
        }
        Activation::GeluTanh => (1.13, gamma(16.0) / 2.0 * y.abs() + gamma(3.0) * result.abs()),
        Activation::Silu => (1.1, gamma(14.0 + 4.0 * y.abs().min(89.0)) * result.abs() + 2f64.powi(-120)),
        Activation::Tanh => (1.0, gamma(12.0) * if y.abs() < 0.25 { result.abs() } else { 1.0 }),
    };
    stored(dtype, result, slope * e + evaluation)
}

/// By how much act'(z) may be off, evaluated at z itself, in the order of `derivative.wgsl`.
///
/// exp(-a) is off by (6 + 4a)u of itself, and by 2a for each rounding of a before.
///
/// GELU's tanh form and SiLU are s + z·a'·s·r with s = 1/(1 + e), r = 1 - s, e = exp(-a): s changes by r times the
/// relative error of e, r by s times it; 6 more roundings for each of s and r, 3 for the products. a has 5 roundings in
/// GELU. tanh is 4e/(1 + e)² with e = exp(-2|z|), 10 roundings more. GELU by erf is the part of the normal distribution
/// below z, as `activated_bound` has it, and z times the density, whose exponent z²/2 has two roundings. What exp makes
/// of numbers below 2⁻¹²⁶ is below 2⁻¹¹⁰ of d when it is multiplied.
pub fn derivative_bound(activation: Activation, z: f64) -> f64 {
    let gated = |a: f64, slope_of_a: f64, of_a: f64| {
        let (a, e) = (a.abs().min(200.0), (-a.abs().min(200.0)).exp());
        let (larger, smaller) = (1.0 / (1.0 + e), e / (1.0 + e));
        let (s, r) = if z < 0.0 { (smaller, larger) } else { (larger, smaller) };
        let exp = gamma(8.0 + (4.0 + 2.0 * of_a) * a);
        let gate = (z.clamp(-200.0, 200.0) * slope_of_a * r).abs();
        s * ((gamma(8.0) + r * exp) * (1.0 + gate) + gate * (gamma(14.0) + s * exp)) + 2f64.powi(-110)
    };
    match activation {
        Activation::None | Activation::Relu | Activation::LeakyRelu(_) => 0.0,
        Activation::Elu if z > 0.0 => 0.0,
        Activation::Elu => gamma(8.0 + 4.0 * z.abs().min(200.0)) * z.exp() + 2f64.powi(-110),
        Activation::Gelu => {
            let s = z.abs().min(20.0);
            let below = |z: f64| if z == 0.0 { 0.5 } else { cpu::activate(z, activation) / z };
            let density = (-s * s / 2.0).exp() * 0.4;
            gamma(34.0 + 2.5 * s * s) * below(-s)
                + gamma(3.0) * below(s.copysign(z))
                + gamma(14.0 + 4.0 * s * s) * s * density
                + 2f64.powi(-110)
        }
        Activation::GeluTanh => {
            let b = z.clamp(-20.0, 20.0);
            let c = 1.595_769_121_605_731;
            gated(c * (b + 0.044715 * b * b * b), c * (1.0 + 0.134145 * b * b), 6.0)
        }
        Activation::Silu => gated(z, 1.0, 0.0),
        Activation::Tanh => {
            gamma(18.0 + 8.0 * z.abs().min(100.0)) * cpu::activate_backward(z, activation) + 2f64.powi(-110)
        }
    }
}

/// The same of a derivative that is taken from y: y + 1, or (1 - y)·(1 + y).
pub fn derivative_from_output_bound(activation: Activation, y: f64) -> f64 {
    match activation {
        Activation::Elu | Activation::Tanh => gamma(4.0) * cpu::activate_backward_from_output(y, activation).abs(),
        _ => 0.0,
    }
}

/// By how much act'(z) changes where z is off by at most `e`: the second derivative is at most 1 (ELU's at 0, below it
/// 0.8 of all others), and a kink within reach counts in full.
pub fn derivative_change(activation: Activation, z: f64, e: f64) -> f64 {
    let kink = match activation {
        Activation::Relu => 1.0,
        Activation::LeakyRelu(slope) => (1.0 - f64::from(slope)).abs(),
        _ => 0.0,
    };
    match activation {
        Activation::None => 0.0,
        Activation::Relu | Activation::LeakyRelu(_) => {
            if z.abs() <= e {
                kink
            } else {
                0.0
            }
        }
        _ => 1.1 * e,
    }
}

/// For dz = scale·d·act'(z), where act'(z) is off by `e`: at most three products.
pub fn pulled_back_bound(d: f64, derivative: f64, e: f64, dtype: DType) -> f64 {
    let value = d * derivative;
    stored(dtype, value, d.abs() * e + gamma(3.0) * (value.abs() + d.abs() * e))
}

/// For a gate of a and b, each with what it is off by. The sigmoid is that of SiLU, whose relative error is that of an
/// exponential; tanh as in [`activated_bound`].
pub fn gated_bound(gate: Gate, (a, a_off): (f64, f64), (b, b_off): (f64, f64), dtype: DType) -> f64 {
    let (first, first_off) = match gate {
        Gate::Glu => (a.abs(), a_off),
        Gate::TanhSigmoid => {
            let first = a.tanh().abs();
            (first, a_off + gamma(12.0) * if a.abs() < 0.25 { first } else { 1.0 })
        }
    };
    let second = 1.0 / (1.0 + (-b).exp());
    let second_off = b_off / 4.0 + gamma(14.0 + 4.0 * b.abs().min(120.0)) * second + 2f64.powi(-120);
    let e = first * second_off + first_off * (second + second_off);
    stored(dtype, first * second, e * (1.0 + U) + U * first * second)
}

/// For snake, x + sin²(αx)/(α + 1e-9), of an x that is off by at most `e`, which its slope at most doubles.
///
/// αx is off by a rounding, so sin² by u·|αx|, and that by u·|x| of the result. The sine is off by 4u of itself, its
/// square by 9, the quotient and its divisor by 7; then the sum.
pub fn snake_bound(alpha: f64, x: f64, e: f64, dtype: DType) -> f64 {
    let result = cpu::snake(x, alpha);
    stored(dtype, result, 2.0 * e + gamma(2.0) * x.abs() + gamma(16.0) * (result - x).abs() + U * result.abs())
}

/// Compares element by element and returns the largest error as a part of its bound, or the first offender.
///
/// - An expected NaN wants a NaN, an expected infinity that infinity; their bounds are not looked at.
/// - An expected number wants |got − expected| ≤ bound, with a finite bound. An infinity of its sign will do where
///   expected + bound reaches what rounds to infinity in `dtype` (`None`: results in f64, nothing does).
pub fn compare(
    got: &[f64],
    expected: &[f64],
    dtype: Option<DType>,
    bound: impl Fn(usize) -> f64,
) -> Result<f64, String> {
    if got.len() != expected.len() {
        return Err(format!("{} elements, expected {}", got.len(), expected.len()));
    }
    // Half a step above the largest finite number: (2 − 2⁻ᵖ)·2^emax for p significant bits.
    let overflow = match dtype {
        None => f64::INFINITY,
        Some(DType::F32) => (2.0 - 2f64.powi(-24)) * 2f64.powi(127),
        Some(DType::F16) => 65520.0,
        Some(DType::Bf16) => (2.0 - 2f64.powi(-8)) * 2f64.powi(127),
    };
    let mut worst = 0f64;
    let mut offenders = 0;
    let mut first = None;
    for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let bound = bound(i);
        let error = (got - expected).abs();
        let fits = if expected.is_nan() {
            got.is_nan()
        } else if expected.is_infinite() {
            got == expected
        } else if !bound.is_finite() {
            false
        } else if got.is_infinite() {
            expected.abs() + bound >= overflow && got.signum() == expected.signum()
        } else {
            error <= bound // false for a NaN
        };
        if !fits {
            offenders += 1;
            first.get_or_insert_with(|| format!("[{i}] is {got:e}, expected {expected:e} ± {bound:e}"));
        } else if error > 0.0 && error.is_finite() {
            worst = worst.max(error / bound);
        }
    }
    match first {
        None => Ok(worst),
        Some(first) => Err(format!("{offenders} of {} elements are off, the first: {first}", got.len())),
    }
}

/// The most memory that this process had since [`reset_peak`], in bytes, where Linux tells.
pub fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

/// Where Linux can.
pub fn reset_peak() -> std::io::Result<()> {
    let file = Path::new("/proc/self/clear_refs");
    if file.exists() { std::fs::write(file, "5") } else { Ok(()) }
}
