//! Weights adapted by DoRA, as peft stores them, made ordinary again.
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use super::aliases::{Edit, New};
use super::compute::computed;
use super::dora::{BASE_LAYER, MARKS, bases, parse};
use super::find::At;
use super::numbers::{narrow, widen};
use super::plan::{Plan, Report, sort_out};
use super::{
    Checkpoint, Device, DoraLayer, Error, FileDType, Finding, FoundWeight, Meter, Problem, Progress, Rules, Spelling,
};
use weightnorm::half::{bf16, f16};
use weightnorm::{Axis, DType, DoraWeight, Gpu, cpu};

/// s of W = W0 + s·B·A, which no tensor has: peft keeps it in `adapter_config.json`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scaling {
    /// s itself.
    Factor(f32),
    /// `lora_alpha`: s = alpha / rank, each layer with its own rank.
    Alpha(f32),
    /// `lora_alpha` with `use_rslora`: s = alpha / √rank.
    RankStabilized(f32),
}

impl Scaling {
    fn of(self, rank: usize) -> f32 {
        match self {
            Scaling::Factor(s) => s,
            Scaling::Alpha(alpha) => (f64::from(alpha) / rank as f64) as f32,
            Scaling::RankStabilized(alpha) => (f64::from(alpha) / (rank as f64).sqrt()) as f32,
        }
    }
}

const NOTHING: &str = "no adapter of DoRA is there (lora_A, lora_B, lora_magnitude_vector)";

/// Writes the checkpoint with every weight that the adapter changes as an ordinary one:
///
/// ```text
/// w_j = m_j · W_j / n̂_j        W = W0 + s·B·A
/// ```
///
/// - `adapter`: peft's `adapter_model.safetensors`, with `MODULE.lora_A.weight` `[rank, in]`, `MODULE.lora_B.weight`
///   `[out, rank]` and `MODULE.lora_magnitude_vector` `[out]`, the name of one adapter between or not, `.weight` behind
///   or not. Without it they are those of the checkpoint itself, as in the state of a whole model. MODULE may begin
///   with `base_model.model.`, which W0 need not.
/// - W0 is `MODULE.weight` or `MODULE.base_layer.weight`, `[out, in]`, which becomes `MODULE.weight`. Weights of more
///   axes (convolutions) are `[out, everything else]`. The transposed weights of `fan_in_fan_out` are not: they do not
///   fit, unless they are square.
/// - w has the storage type of W0 (f32 for f64). Of the rules the eps policy, zero rows and the part count; peft has no
///   eps ([`weightnorm::Eps::None`], the default). Rows that another policy changes are not told.
/// - A row of W is zero where W0 and the update are, or leave nothing of each other but rounding of f32.
///
/// Each weight is computed as a whole, on the GPU in f32, by the reference in f64. Reference: peft's
/// `merge_and_unload`.
///
/// # Errors
/// [`Error::Tensor`] where a tensor of the adapter has no others that belong to it or no W0, does not fit, or is none
/// of DoRA; [`Error::NothingChosen`] without any adapter; [`Error::Findings`] where a name is taken, or a row of W is
/// zero, unless [`Rules::allow_zero_rows`]; [`Error::Io`], [`Error::Occupied`], [`Error::Part`], [`Error::Gpu`].
pub fn merge<'a>(
    device: impl Into<Device<'a>>,
    checkpoint: &Checkpoint,
    adapter: Option<&Checkpoint>,
    output: &Path,
    scaling: Scaling,
    rules: &Rules,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Report, Error> {
    let own = adapter.is_none();
    let adapter = adapter.unwrap_or(checkpoint);
    let layers = layers(checkpoint, adapter, own)?;
    let (mut edit, mut weights) = (Edit::default(), vec![]);
    for (i, layer) in layers.iter().enumerate() {
        let info = checkpoint.at(layer.base);
        let dtype: FileDType = computed(info.dtype).into();
        let (name, shape) = (layer.name.clone(), info.shape.clone());
        edit.names.insert(info.name.clone(), None);
        edit.add(layer.base, New { weight: i, name: name.clone(), dtype, shape: shape.clone(), copy: None });
        let (spelling, axis, g_shape) = (Spelling::Suffixes, Axis::Kept(0), vec![shape[0]]);
        let (g_dtype, v) = (adapter.at(layer.parts[2]).dtype, layer.base);
        weights.push(FoundWeight { name, spelling, shape, g_shape, axis, dtype: info.dtype, g_dtype, v, g: v });
        if let Some((module, _)) = info.name.rsplit_once(BASE_LAYER).filter(|_| own) {
            // What else the layer has: its bias.
            let others = checkpoint.tensors().filter(|other| other.name != info.name);
            for other in others {
                if let Some(rest) = other.name.strip_prefix(&format!("{module}{BASE_LAYER}")) {
                    edit.names.insert(other.name.clone(), Some((i, format!("{module}.{rest}"))));
                }
            }
        }
        if own {
            edit.names.extend(layer.parts.map(|at| (checkpoint.at(at).name.clone(), None)));
        }
    }
    let plan = Plan::new(checkpoint, &edit, &weights)?;
    let target = plan.target(output, rules)?;
    let (device, mut warnings, mut submissions) = (device.into(), vec![], 0);
    plan.write(&target, rules, progress, |files, sinks, meter: &mut Meter<'_>| {
        let mut findings = vec![];
        for layer in &layers {
            let (file, begin) = plan.places[&(layer.base, 0)];
            if !files.has(file) {
                continue;
            }
            let s = scaling.of(layer.sizes[2]);
            let bytes = match device {
                Device::Gpu(gpu) => {
                    submissions += 1;
                    let on_gpu = layer.on_gpu(gpu, checkpoint, adapter, s, rules);
                    on_gpu.map_err(|error| error.of(layer))?
                }
                Device::Reference => layer.by_reference(checkpoint, adapter, s, rules)?,
            };
            let mut count = 0;
            widen(computed(checkpoint.at(layer.base).dtype).into(), &bytes, |w| count += u64::from(!w.is_finite()));
            let zero_rows = layer.zero_rows(checkpoint, adapter, s, &bytes)?;
            for (count, problem) in
                [(zero_rows, Problem::ZeroRows { count: zero_rows }), (count, Problem::NonFinite { count })]
            {
                if count > 0 {
                    findings.push(Finding { weight: layer.name.clone(), problem });
                }
            }
            files.sink(sinks, file).write(begin, &bytes)?;
            meter.add(&layer.name, bytes.len() as u64);
        }
        sort_out(findings, rules, &mut warnings)
    })?;
    let report = plan.report(&target, weights, warnings, submissions);
    let merged = report.weights.iter().filter_map(|weight| layers.iter().find(|layer| layer.name == weight.name));
    let merged = merged.map(|layer| layer.describe(checkpoint)).collect();
    Ok(Report { weights: vec![], merged, ..report })
}

/// A weight and its adapter.
struct Layer {
    /// Once it is merged.
    name: String,
    base: At,
    /// A, B and the magnitude, in the adapter.
    parts: [At; 3],
    /// out, in, rank
    sizes: [usize; 3],
    /// The adapter's name.
    of: String,
}

/// What goes wrong on the way to a GPU.
enum Failed {
    Checkpoint(Error),
    Gpu(weightnorm::Error),
}

impl Failed {
    fn of(self, layer: &Layer) -> Error {
        match self {
            Failed::Checkpoint(error) => error,
            Failed::Gpu(source) => Error::Gpu { tensor: layer.name.clone(), source },
        }
    }
}

impl From<weightnorm::Error> for Failed {
    fn from(error: weightnorm::Error) -> Failed {
        Failed::Gpu(error)
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        Failed::Checkpoint(error)
    }
}

impl Layer {
    fn on_gpu(
        &self,
        gpu: &Gpu,
        checkpoint: &Checkpoint,
        adapter: &Checkpoint,
        scaling: f32,
        rules: &Rules,
    ) -> Result<Vec<u8>, Failed> {
        let [outs, ins, rank] = self.sizes;
        let part = |i: usize, shape: &[usize]| -> Result<_, Failed> {
            Ok(adapter.upload(gpu, &adapter.at(self.parts[i]).name)?.reshape(shape)?)
        };
        let base = checkpoint.upload(gpu, &checkpoint.at(self.base).name)?.reshape(&[outs, ins])?;
        let (a, b, magnitude) = (part(0, &[rank, ins])?, part(1, &[outs, rank])?, part(2, &[outs])?);
        let w = gpu.dora_merge(DoraWeight::new(&base, &a, &b, &magnitude, scaling).eps(rules.eps))?;
        Ok(match w.dtype() {
            DType::F32 => bytemuck::cast_slice(&w.read::<f32>()?).to_vec(),
            DType::F16 => bytemuck::cast_slice(&w.read::<f16>()?).to_vec(),
            DType::Bf16 => bytemuck::cast_slice(&w.read::<bf16>()?).to_vec(),
        })
    }

    fn by_reference(
        &self,
        checkpoint: &Checkpoint,
        adapter: &Checkpoint,
        scaling: f32,
        rules: &Rules,
    ) -> Result<Vec<u8>, Error> {
        let [outs, ins, rank] = self.sizes;
        let info = checkpoint.at(self.base);
        let base = checkpoint.read_f64(&info.name)?;
        let [a, b, magnitude] = self.parts.map(|at| adapter.read_f64(&adapter.at(at).name));
        let (a, b, magnitude) = (a?, b?, magnitude?);
        let (shape, scaling) = ([outs, ins], f64::from(scaling));
        let (a, b, magnitude, eps) = (&a[..], &b[..], &magnitude[..], rules.eps);
        let weight = cpu::DoraWeight { base: &base, a, b, magnitude, shape, rank, scaling, eps };
        let failed = |source| Error::Gpu { tensor: self.name.clone(), source };
        let w = cpu::dora_merge(&weight).map_err(failed)?;
        let dtype = computed(info.dtype);
        let mut bytes = vec![0; w.len() * dtype.size() as usize];
        narrow(&w, dtype, &mut bytes);
        Ok(bytes)
    }

    /// How many rows of W are zero, given w: those that have nothing but zeros or NaN there are formed again.
    fn zero_rows(&self, checkpoint: &Checkpoint, adapter: &Checkpoint, scaling: f32, w: &[u8]) -> Result<u64, Error> {
        let [outs, ins, rank] = self.sizes;
        let info = checkpoint.at(self.base);
        let (mut is_zero, mut is_nan, mut at) = (vec![true; outs], vec![true; outs], 0);
        widen(computed(info.dtype).into(), w, |w| {
            is_zero[at / ins] &= w == 0.0;
            is_nan[at / ins] &= w.is_nan();
            at += 1;
        });
        let rows: Vec<usize> = (0..outs).filter(|&j| is_zero[j] || is_nan[j]).collect();
        if rows.is_empty() {
            return Ok(0);
        }
        let base = checkpoint.read_f64(&info.name)?;
        let [a, b] = [0, 1].map(|i| adapter.read_f64(&adapter.at(self.parts[i]).name));
        let (a, b, s) = (a?, b?, f64::from(scaling));
        let is_zero = |j: &usize| {
            let (mut sum, mut parts) = (0.0, 0.0);
            for k in 0..ins {
                let (w0, update) =
                    (base[j * ins + k], (0..rank).map(|r| s * b[j * rank + r] * a[r * ins + k]).sum::<f64>());
                sum += (w0 + update) * (w0 + update);
                parts += w0 * w0 + update * update;
            }
            sum <= parts * 2f64.powi(-44)
        };
        Ok(rows.iter().filter(|j| is_zero(j)).count() as u64)
    }

    /// As it is in the output.
    fn describe(&self, checkpoint: &Checkpoint) -> DoraLayer {
        let info = checkpoint.at(self.base);
        let (name, base, shape) = (self.name.clone(), Some(info.name.clone()), info.shape.clone());
        let (adapter, rank, dtype) = (self.of.clone(), self.sizes[2], computed(info.dtype).into());
        DoraLayer { name, adapter, base, shape, rank, dtype }
    }
}

/// The weights that an adapter changes, in the order of W0. `own`: it is in the checkpoint itself.
fn layers(checkpoint: &Checkpoint, adapter: &Checkpoint, own: bool) -> Result<Vec<Layer>, Error> {
    let refused = |tensor: &str, reason: String| Error::Tensor {
        path: adapter.path().to_owned(),
        tensor: tensor.to_owned(),
        reason,
    };
    let mut modules: BTreeMap<&str, (&str, [Option<At>; 3])> = BTreeMap::new();
    for (at, info) in adapter.places() {
        let Some((module, mark, of)) = parse(&info.name) else {
            if !own || info.name.contains(".lora_") {
                let reason = "it is none of lora_A, lora_B and lora_magnitude_vector of a layer, and would be lost";
                return Err(refused(&info.name, reason.to_owned()));
            }
            continue;
        };
        let (adapter_name, parts) = modules.entry(module).or_insert((of, [None; 3]));
        if *adapter_name != of || parts[mark].replace(at).is_some() {
            return Err(refused(&info.name, format!("{module} has another adapter, {adapter_name:?}: one is merged")));
        }
    }
    if modules.is_empty() {
        return Err(Error::NothingChosen { path: adapter.path().to_owned(), what: NOTHING });
    }
    let names_there: HashMap<&str, At> = checkpoint.names().map(|(at, name)| (name, at)).collect();
    let mut names: HashMap<At, usize> = HashMap::new();
    checkpoint.names().for_each(|(at, _)| *names.entry(at).or_default() += 1);
    let (mut layers, mut seen) = (vec![], HashSet::new());
    for (module, (of, parts)) in modules {
        let first = parts.iter().flatten().next().map_or(module, |&at| &adapter.at(at).name);
        let missing = |i: usize| refused(first, format!("there is no {module}{} beside it", MARKS[i]));
        let [a, b, m] = [0, 1, 2].map(|i| parts[i].ok_or_else(|| missing(i)));
        let parts = [a?, b?, m?];
        let found = bases(module).find_map(|(m, name)| Some((m, *names_there.get(name.as_str())?)));
        let Some((module, base)) = found else {
            let all: Vec<String> = bases(module).map(|(_, name)| name).collect();
            let reason = format!("{} has no weight of it: {}", checkpoint.path().display(), all.join(", "));
            return Err(refused(first, reason));
        };
        let info = checkpoint.at(base);
        let not_alone = names.get(&base).is_some_and(|&count| count > 1) || !seen.insert(base);
        if not_alone {
            return Err(refused(first, format!("{} is tied to another name, or adapted twice", info.name)));
        }
        let [a, b, m] = parts.map(|at| adapter.at(at));
        let wrong = [info, a, b, m].into_iter().find(|info| info.dtype.computed().is_none());
        if let Some(wrong) = wrong {
            return Err(refused(&wrong.name, format!("it is {}, which is not computed", wrong.dtype)));
        }
        let count = |shape: &[usize]| shape.iter().product::<usize>();
        let outs = info.shape.first().copied().unwrap_or(0);
        let ins = count(info.shape.get(1..).unwrap_or_default());
        let rank = a.shape.first().copied().unwrap_or(0);
        let fits = info.shape.len() >= 2
            && outs * ins * rank > 0
            && count(&a.shape) == rank * ins
            && b.shape.first() == Some(&outs)
            && count(&b.shape) == outs * rank
            && count(&m.shape) == outs;
        if !fits {
            let shapes = [&info.shape, &a.shape, &b.shape, &m.shape];
            let [base, a_shape, b_shape, m_shape] = shapes.map(|shape| format!("{shape:?}"));
            let reason = format!("W0 {base}, A {a_shape}, B {b_shape} and the magnitude {m_shape} do not fit");
            return Err(refused(&a.name, reason));
        }
        let (name, of) = (format!("{module}.weight"), of.to_owned());
        layers.push(Layer { name, base, parts, sizes: [outs, ins, rank], of });
    }
    layers.sort_by_key(|layer| layer.base);
    Ok(layers)
}
