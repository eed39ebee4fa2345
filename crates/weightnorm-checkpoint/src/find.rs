//! Which tensors are a weight.
use std::collections::{HashMap, HashSet};

use super::dora;
use super::names::{self, Inferred, Part};
use super::state::is_state;
use super::{Checkpoint, FileDType, Finding, Prefer, Problem, Rules, Spelling, TensorInfo, header};
use weightnorm::{Axis, norms_shape};

/// A tensor of a checkpoint: (shard, position in its header).
pub(super) type At = (usize, usize);

/// A weight-normalized parameter of a checkpoint.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct FoundWeight {
    /// Its name once it is folded: `layer.weight`.
    pub name: String,
    /// How its two tensors are called.
    pub spelling: Spelling,
    /// Shape of v, and of w.
    pub shape: Vec<usize>,
    /// Shape of g.
    pub g_shape: Vec<usize>,
    /// The kept axis.
    pub axis: Axis,
    /// Storage type of v.
    pub dtype: FileDType,
    /// Storage type of g.
    pub g_dtype: FileDType,
    pub(super) v: At,
    pub(super) g: At,
}

impl FoundWeight {
    /// The name of its g: that of a tensor, or one that is tied to it.
    pub(super) fn g_name(&self) -> String {
        self.spelling.g(&self.name)
    }

    /// The name of its v.
    pub(super) fn v_name(&self) -> String {
        self.spelling.v(&self.name)
    }
}

/// What a checkpoint holds: see [`Checkpoint::weights`].
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Found {
    /// The weights that can be computed, in the order of v.
    pub weights: Vec<FoundWeight>,
    /// What is odd: of weights that cannot be computed, and warnings of those that can.
    pub findings: Vec<Finding>,
    /// Names that do not stay, by [`Rules::prefer`].
    pub(super) dropped: Vec<String>,
}

impl Checkpoint {
    pub(super) fn at(&self, (shard, position): At) -> &TensorInfo {
        &self.shards[shard].header.tensors[position]
    }

    /// All names with their places: those of the tensors, then those of the metadata that stand for one.
    pub(super) fn names(&self) -> impl Iterator<Item = (At, &str)> {
        let tensors = self.places().map(|(at, tensor)| (at, tensor.name.as_str()));
        tensors.chain(self.aliases.iter().map(|(name, at)| (*at, name.as_str())))
    }

    /// All tensors with their places.
    pub(super) fn places(&self) -> impl Iterator<Item = (At, &TensorInfo)> {
        self.shards.iter().enumerate().flat_map(|(shard, source)| {
            source.header.tensors.iter().enumerate().map(move |(position, tensor)| ((shard, position), tensor))
        })
    }
}

/// What there is of one parameter in one spelling.
#[derive(Default)]
struct Halves {
    g: Option<At>,
    v: Option<At>,
    /// A half that is there as what pruning makes of it.
    pruned: Option<String>,
}

/// What is asked of a weight.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Wanted {
    /// That it can be computed.
    Numbers,
    /// That it can be renamed: it need not be said which of several axes it keeps, and any storage type will do.
    Names,
}

const NAME: &str = "the name is none of weight norm's";
const ELEMENTWISE: &str = "g has the shape of v, a number for each";
const THREE: &str = "there are more than two of them";
const ATTENTION: &str = "they stand beside a third, _k";
const OTHER_SHAPES: &str = "the name is none of weight norm's, nor is the rest";

pub(super) fn find(checkpoint: &Checkpoint, rules: &Rules, wanted: Wanted) -> Found {
    let present: HashSet<&str> = checkpoint.names().map(|(_, name)| name).collect();
    let mut halves: HashMap<(String, Spelling), Halves> = HashMap::new();
    let mut order = vec![];
    let mut strangers: HashMap<String, &str> = HashMap::new();
    let mut states: Vec<&str> = vec![];
    for (at, name) in checkpoint.names() {
        let is_state = is_state(name, &present);
        if is_state {
            states.push(name);
        }
        let whole = name.strip_suffix("_orig").filter(|whole| present.contains(format!("{whole}_mask").as_str()));
        if let Some((spelling, parameter, part)) = Spelling::parse(whole.unwrap_or(name))
            && (!is_state || rules.names(&parameter))
        {
            let key = (parameter, spelling);
            let pair = halves.entry(key.clone()).or_insert_with(|| {
                order.push(key);
                Halves::default()
            });
            match (whole, part) {
                (Some(whole), _) => pair.pruned = Some(whole.to_owned()),
                (None, Part::G) => pair.g = Some(at),
                (None, Part::V) => pair.v = Some(at),
            }
        }
        for (of, _) in names::parametrized(name).filter(|(_, rest)| !is_state && names::half(rest).is_none()) {
            strangers.entry(of).or_insert(name);
        }
    }
    let shapes = |(g, v): (At, At)| (&checkpoint.at(g).shape[..], &checkpoint.at(v).shape[..]);
    let pairs: HashMap<_, (At, At)> = halves.iter().filter_map(|(key, pair)| Some((key, (pair.g?, pair.v?)))).collect();
    // Modules with a gate and a value, by whatever name: then their biases are these too.
    let gated = pairs.iter().filter(|((name, spelling), pair)| {
        let (g, v) = shapes(**pair);
        names::is_elementwise(v, g) || (g == v && *spelling == Spelling::Suffixes && !names::is_own(name))
    });
    let gated: HashSet<&str> = gated.map(|((name, _), _)| names::module(name)).collect();
    let mut found = Found::default();
    let mut both = HashSet::new();
    for key in order.iter().filter(|(name, _)| rules.chooses(name)) {
        let (name, spelling) = key;
        let mut report = |problem| found.findings.push(Finding { weight: name.clone(), problem });
        let is_own = names::is_own(name);
        let Some(&(g, v)) = pairs.get(key) else {
            if let Some(problem) = missing(&halves[key], key, &present).filter(|_| is_own) {
                report(problem);
            }
            continue;
        };
        let [g_name, v_name] = [spelling.g(name), spelling.v(name)];
        let not_taken = |why| Problem::NotTaken { g: g_name.clone(), v: v_name.clone(), why };
        let asked = rules.includes(name);
        if *spelling == Spelling::Suffixes && !is_own && !asked {
            report(not_taken(NAME));
            continue;
        }
        if pairs.contains_key(&(name.clone(), spelling.other())) {
            if both.insert(name) {
                report(Problem::BothSpellings);
            }
            continue;
        }
        if let (Spelling::Parametrizations, Some(tensor)) = (spelling, strangers.get(name)) {
            report(match tensor.ends_with(".original2") {
                true => not_taken(THREE),
                false if !is_own && !asked => not_taken(OTHER_SHAPES),
                false => Problem::OtherParametrization { tensor: tensor.to_string() },
            });
            continue;
        }
        let (g_shape, v_shape) = shapes((g, v));
        // Keys, values and gates of attention: `weight_k` says what `weight_v` and `weight_g` are.
        let is_attention = *spelling == Spelling::Suffixes && present.contains(format!("{name}_k").as_str());
        let beside_gates = *spelling == Spelling::Suffixes && gated.contains(names::module(name));
        let is_gate = names::is_elementwise(v_shape, g_shape) || (g_shape == v_shape && (is_attention || beside_gates));
        if is_gate && !asked && rules.axis_of(name).is_none() {
            report(not_taken(ELEMENTWISE));
            continue;
        }
        match weight(checkpoint, rules, wanted, name, *spelling, (g, v)) {
            Ok(weight) => {
                if wanted == Wanted::Numbers && [weight.dtype, weight.g_dtype].contains(&FileDType::F64) {
                    report(Problem::Narrowed);
                }
                found.weights.push(weight);
            }
            Err(Problem::Shape { .. } | Problem::NoSuchAxis { .. }) if is_gate => report(not_taken(ELEMENTWISE)),
            Err(Problem::Shape { .. } | Problem::OtherShape { .. } | Problem::AmbiguousAxis { .. }) if is_attention => {
                report(not_taken(ATTENTION));
            }
            Err(_) if !is_own && !asked => report(not_taken(OTHER_SHAPES)),
            Err(problem) => report(problem),
        }
    }
    found.weights.sort_by_key(|weight| weight.v);
    settle(checkpoint, rules, wanted, &mut found);
    if let (Some(first), false) = (states.first(), found.weights.is_empty()) {
        let problem = Problem::OptimizerState { count: states.len() };
        found.findings.push(Finding { weight: first.to_string(), problem });
    }
    if !found.weights.is_empty() {
        found.findings.extend(dora::finding(checkpoint));
    }
    found.findings.extend(checkpoint.index.iter().flat_map(|index| index.warnings.iter().cloned()));
    found
}

/// What is wrong where g or v is missing, if it is weight norm's.
/// Where a tensor is called as a weight would be once it is folded, the pair or the tensor wins, or nobody: for all
/// weights that were found: what goes is in [`Found::dropped`] then, and told.
fn settle(checkpoint: &Checkpoint, rules: &Rules, wanted: Wanted, found: &mut Found) {
    let halves: HashSet<String> = found.weights.iter().flat_map(|weight| [weight.g_name(), weight.v_name()]).collect();
    let others: HashSet<&str> =
        checkpoint.names().map(|(_, name)| name).filter(|&name| !halves.contains(name)).collect();
    let (findings, dropped) = (&mut found.findings, &mut found.dropped);
    found.weights.retain(|weight| {
        let mut report = |problem| findings.push(Finding { weight: weight.name.clone(), problem });
        match (others.contains(weight.name.as_str()), rules.prefer) {
            (true, Some(prefer)) => {
                let names = left_out(weight, prefer);
                dropped.extend(names.clone());
                report(Problem::LeftOut { tensors: names, prefer });
                return prefer == Prefer::Pair;
            }
            (is_beside, _) if wanted == Wanted::Numbers && (is_beside || weight.name == header::METADATA) => {
                report(Problem::NameTaken { name: weight.name.clone() });
            }
            _ => {}
        }
        true
    });
}

/// The names that go of a pair and the tensor beside it.
pub(super) fn left_out(pair: &FoundWeight, prefer: Prefer) -> Vec<String> {
    match prefer {
        Prefer::Pair => vec![pair.name.clone()],
        Prefer::Weight => vec![pair.g_name(), pair.v_name()],
    }
}

fn missing(pair: &Halves, (name, spelling): &(String, Spelling), present: &HashSet<&str>) -> Option<Problem> {
    if let Some(tensor) = &pair.pruned {
        return Some(Problem::Pruned { tensor: tensor.clone() });
    }
    let has = |ending: &str| *spelling == Spelling::Suffixes && present.contains(format!("{name}_{ending}").as_str());
    let (there, missing) = match pair.g {
        Some(_) => (Part::G, Part::V),
        // Spectral norm has vectors u and v beside its weight, and attention keys and values.
        None if ["orig", "u", "bar", "k"].into_iter().any(has) => return None,
        None => (Part::V, Part::G),
    };
    let [found, missing] = [there, missing].map(|part| spelling.spell(name, part));
    Some(Problem::MissingPartner { found, missing })
}

fn weight(
    checkpoint: &Checkpoint,
    rules: &Rules,
    wanted: Wanted,
    name: &str,
    spelling: Spelling,
    (g, v): (At, At),
) -> Result<FoundWeight, Problem> {
    let (g_info, v_info) = (checkpoint.at(g), checkpoint.at(v));
    let axis = match kept_axis(&v_info.shape, &g_info.shape, rules.axis_of(name)) {
        Err(Problem::AmbiguousAxis { axes, .. }) if wanted == Wanted::Names => Axis::Kept(axes[0]),
        Err(Problem::OtherShape { v, g }) if wanted == Wanted::Names => {
            let axis = (0..v.len()).map(Axis::Kept).find(|&axis| names::counts(&v, &g, axis));
            axis.unwrap_or(Axis::Whole)
        }
        other => other?,
    };
    for info in [g_info, v_info] {
        if wanted == Wanted::Numbers && info.dtype.computed().is_none() {
            return Err(Problem::NotComputable { tensor: info.name.clone(), dtype: info.dtype.name() });
        }
    }
    Ok(FoundWeight {
        name: name.to_owned(),
        spelling,
        shape: v_info.shape.clone(),
        g_shape: g_info.shape.clone(),
        axis,
        dtype: v_info.dtype,
        g_dtype: g_info.dtype,
        v,
        g,
    })
}

fn kept_axis(v: &[usize], g: &[usize], wanted: Option<Axis>) -> Result<Axis, Problem> {
    let misfit = |expected| Problem::Shape { v: v.to_vec(), g: g.to_vec(), expected };
    let counts = |axis| names::counts(v, g, axis);
    match (wanted, names::infer_axis(v, g)) {
        (Some(Axis::Kept(axis)), _) if axis >= v.len() => Err(Problem::NoSuchAxis { axis, rank: v.len() }),
        (Some(axis), _) if names::fits(v, g, axis) => Ok(axis),
        // PyTorch reads g as so many numbers, whatever its shape; but one that names another axis is no mistake of its
        // shape.
        (Some(axis), Inferred::None) if counts(axis) => Ok(axis),
        (Some(axis), _) => {
            let shape = norms_shape(v, axis);
            Err(misfit(format!("{shape:?} or [{}]", shape.iter().product::<usize>())))
        }
        (None, Inferred::Axis(axis)) => Ok(axis),
        (None, Inferred::Several(axes)) => Err(Problem::AmbiguousAxis { v: v.to_vec(), g: g.to_vec(), axes }),
        (None, Inferred::None) if (0..v.len()).map(Axis::Kept).any(counts) || counts(Axis::Whole) => {
            Err(Problem::OtherShape { v: v.to_vec(), g: g.to_vec() })
        }
        (None, Inferred::None) => Err(misfit("one element, or as many as one axis of v and ones beside them".into())),
    }
}
