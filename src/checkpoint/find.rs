//! Which tensors are a weight.
use std::collections::{HashMap, HashSet};

use super::names::{self, Inferred, Part};
use super::{Checkpoint, FileDType, Finding, Problem, Rules, Spelling, TensorInfo, prefer};
use crate::Axis;
use crate::contract::norms_shape;

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

/// What a checkpoint holds: see [`Checkpoint::weights`].
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Found {
    /// The weights that can be computed, in the order of v.
    pub weights: Vec<FoundWeight>,
    /// What is odd: of weights that cannot be computed, and warnings of those that can.
    pub findings: Vec<Finding>,
    /// Tensors that do not stay, by [`Rules::prefer`].
    pub(super) dropped: Vec<At>,
}

impl Checkpoint {
    pub(super) fn at(&self, (shard, position): At) -> &TensorInfo {
        &self.shards[shard].header.tensors[position]
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
}

/// What is asked of a weight.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Wanted {
    /// That it can be computed.
    Numbers,
    /// That it can be renamed: it need not be said which of several axes it keeps, and any storage type will do.
    Names,
}

pub(super) fn find(checkpoint: &Checkpoint, rules: &Rules, wanted: Wanted) -> Found {
    let mut halves: HashMap<(String, Spelling), Halves> = HashMap::new();
    let mut order = vec![];
    let mut strangers: HashMap<String, &str> = HashMap::new();
    for (at, tensor) in checkpoint.places() {
        if let Some((spelling, name, part)) = Spelling::parse(&tensor.name)
            && rules.chooses(&name)
        {
            let key = (name, spelling);
            let pair = halves.entry(key.clone()).or_insert_with(|| {
                order.push(key);
                Halves::default()
            });
            *(if part == Part::G { &mut pair.g } else { &mut pair.v }) = Some(at);
        }
        for (name, _) in names::parametrized(&tensor.name).filter(|(_, rest)| names::half(rest).is_none()) {
            strangers.entry(name).or_insert(&tensor.name);
        }
    }
    let pairs: HashSet<_> =
        halves.iter().filter(|(_, pair)| pair.g.is_some() && pair.v.is_some()).map(|(k, _)| k).collect();
    let mut found = Found::default();
    let mut both = HashSet::new();
    for key in &order {
        let (name, spelling) = key;
        let mut report = |problem| found.findings.push(Finding { weight: name.clone(), problem });
        let (g, v) = match halves[key] {
            Halves { g: Some(g), v: Some(v) } => (g, v),
            Halves { g, .. } => {
                if names::is_telling(*spelling, name) {
                    let (there, missing) = if g.is_some() { (Part::G, Part::V) } else { (Part::V, Part::G) };
                    let [found, missing] = [there, missing].map(|part| spelling.spell(name, part));
                    report(Problem::MissingPartner { found, missing });
                }
                continue;
            }
        };
        if pairs.contains(&(name.clone(), spelling.other())) {
            if both.insert(name) {
                report(Problem::BothSpellings);
            }
            continue;
        }
        if let (Spelling::Parametrizations, Some(tensor)) = (spelling, strangers.get(name)) {
            report(Problem::OtherParametrization { tensor: tensor.to_string() });
            continue;
        }
        match weight(checkpoint, rules, wanted, name, *spelling, (g, v)) {
            Ok(weight) => {
                if wanted == Wanted::Numbers && [weight.dtype, weight.g_dtype].contains(&FileDType::F64) {
                    report(Problem::Narrowed);
                }
                found.weights.push(weight);
            }
            Err(problem) => report(problem),
        }
    }
    found.weights.sort_by_key(|weight| weight.v);
    prefer::settle(checkpoint, rules, wanted, &mut found);
    found
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
    for info in [g_info, v_info] {
        if wanted == Wanted::Numbers && info.dtype.computed().is_none() {
            return Err(Problem::NotComputable { tensor: info.name.clone(), dtype: info.dtype.name() });
        }
    }
    let axis = match kept_axis(&v_info.shape, &g_info.shape, rules.axis_of(name)) {
        Err(Problem::AmbiguousAxis { axes, .. }) if wanted == Wanted::Names => Axis::Kept(axes[0]),
        other => other?,
    };
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
    match (wanted, names::infer_axis(v, g)) {
        (Some(Axis::Kept(axis)), _) if axis >= v.len() => Err(Problem::NoSuchAxis { axis, rank: v.len() }),
        (Some(axis), _) if names::fits(v, g, axis) => Ok(axis),
        (Some(axis), _) => {
            let shape = norms_shape(v, axis);
            Err(misfit(format!("{shape:?} or [{}]", shape.iter().product::<usize>())))
        }
        (None, Inferred::Axis(axis)) => Ok(axis),
        (None, Inferred::Several(axes)) => Err(Problem::AmbiguousAxis { v: v.to_vec(), g: g.to_vec(), axes }),
        (None, Inferred::None) => Err(misfit("one element, or as many as one axis of v and ones beside them".into())),
    }
}
