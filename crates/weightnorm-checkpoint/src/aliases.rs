//! Tied tensors. `safetensors.torch.save_model` writes a tensor that a model has under several names once, and the
//! other names into the metadata: `"out.weight_v": "inp.weight_v"`.
use std::collections::{HashMap, HashSet};

use super::file::Source;
use super::find::At;
use super::header::METADATA;
use super::{Checkpoint, FileDType, Finding, FoundWeight, Problem};

/// The entries of the metadata whose value is the name of a tensor, or of another such entry, and whose key is none.
pub(super) fn find(shards: &[Source]) -> Vec<(String, At)> {
    let all = shards.iter().enumerate().flat_map(|(shard, source)| {
        source.header.tensors.iter().enumerate().map(move |(position, t)| (t.name.as_str(), (shard, position)))
    });
    let tensors: HashMap<&str, At> = all.collect();
    let entries = || shards.iter().filter_map(|shard| shard.header.metadata.as_ref()).flatten();
    let values: HashMap<&str, &str> = entries().rev().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let resolve = |value: &str| {
        let mut name = value;
        // A circle ends after as many steps as there are entries.
        for _ in 0..values.len() {
            if let Some(&at) = tensors.get(name) {
                return Some(at);
            }
            name = *values.get(name)?;
        }
        None
    };
    let mut seen = HashSet::from([METADATA]);
    let mut aliases = vec![];
    for (key, value) in entries() {
        if let Some(at) = resolve(value.as_str())
            && !tensors.contains_key(key.as_str())
            && seen.insert(key)
        {
            aliases.push((key.clone(), at));
        }
    }
    aliases
}

/// What becomes of the names of a checkpoint, those of tensors and those that are tied to one; and what is new in it.
#[derive(Default)]
pub(super) struct Edit {
    /// Their new names with the weight that gives it; `None` where a name goes. All others stay.
    pub names: HashMap<String, Option<(usize, String)>>,
    /// Tensors beside an old one, or instead.
    pub new: HashMap<At, Vec<New>>,
    /// New names that are tied to a new tensor, by the old tied name whose place they take.
    pub tied: HashMap<String, Vec<Tied>>,
}

/// A tensor of the output.
pub(super) struct New {
    /// Whose it is.
    pub weight: usize,
    pub name: String,
    pub dtype: FileDType,
    pub shape: Vec<usize>,
    /// The tensor whose bytes it has; `None`: they are computed.
    pub copy: Option<At>,
}

/// A name in the metadata for a tensor of another name.
pub(super) struct Tied {
    pub weight: usize,
    pub name: String,
    pub tensor: String,
}

impl Edit {
    /// Some names go.
    pub fn without(names: Vec<String>) -> Edit {
        Edit { names: names.into_iter().map(|name| (name, None)).collect(), ..Edit::default() }
    }

    /// Adds a tensor and returns its number.
    pub fn add(&mut self, at: At, new: New) -> usize {
        let all = self.new.entry(at).or_default();
        all.push(new);
        all.len() - 1
    }

    /// New names that something else has.
    pub fn taken(&self, checkpoint: &Checkpoint, weights: &[FoundWeight]) -> Vec<Finding> {
        let names: HashSet<&str> = checkpoint.names().map(|(_, name)| name).collect();
        let mut taken: HashSet<&str> = names.iter().copied().filter(|&name| !self.names.contains_key(name)).collect();
        taken.insert(METADATA);
        // What else stands in the metadata is in the way of tied names alone.
        let keys: HashSet<&str> =
            checkpoint.metadata().map(|(key, _)| key).filter(|key| !names.contains(key)).collect();
        let mut findings = vec![];
        let mut take = |weight: usize, name, is_tied: bool| {
            if !taken.insert(name) || (is_tied && keys.contains(name)) {
                let problem = Problem::NameTaken { name: name.to_owned() };
                findings.push(Finding { weight: weights[weight].name.clone(), problem });
            }
        };
        let tensors: HashSet<&str> = checkpoint.tensors().map(|tensor| tensor.name.as_str()).collect();
        for (_, old) in checkpoint.names() {
            if let Some(Some((weight, name))) = self.names.get(old) {
                take(*weight, name, !tensors.contains(old));
            }
            for Tied { weight, name, .. } in self.tied.get(old).into_iter().flatten() {
                take(*weight, name, true);
            }
        }
        for (at, _) in checkpoint.places() {
            for new in self.new.get(&at).into_iter().flatten() {
                take(new.weight, &new.name, false);
            }
        }
        findings
    }
}

/// The names of a checkpoint as they are after an edit.
pub(super) struct Names<'a, 'e> {
    edit: &'e Edit,
    /// Of each tensor: its own, then those that are tied to it.
    of: HashMap<At, Vec<&'a str>>,
    tensors: HashMap<&'a str, At>,
    /// The names that are tied to one.
    tied: HashMap<&'a str, At>,
}

impl<'a, 'e> Names<'a, 'e> {
    pub fn new(checkpoint: &'a Checkpoint, edit: &'e Edit) -> Names<'a, 'e> {
        let mut of: HashMap<At, Vec<&str>> = HashMap::new();
        checkpoint.names().for_each(|(at, name)| of.entry(at).or_default().push(name));
        let tensors = checkpoint.places().map(|(at, tensor)| (tensor.name.as_str(), at)).collect();
        let tied = checkpoint.aliases.iter().map(|(name, at)| (name.as_str(), *at)).collect();
        Names { edit, of, tensors, tied }
    }

    fn new_name<'n>(&'n self, old: &'n str) -> Option<&'n str> {
        match self.edit.names.get(old) {
            None => Some(old),
            Some(new) => new.as_ref().map(|(_, name)| name.as_str()),
        }
    }

    /// The name under which an old tensor stays: its own, or the first tied one that stays. `None` if none does.
    pub fn kept(&self, at: At) -> Option<&str> {
        self.of.get(&at)?.iter().find_map(|old| self.new_name(old))
    }

    /// Metadata whose tied names are those of the output. Nothing else in it is touched.
    pub fn metadata(&self, entries: &[(String, String)]) -> Vec<(String, String)> {
        let mut all = vec![];
        for (key, value) in entries {
            let direct = self.tensors.get(value.as_str());
            let as_it_was = |name: &String| self.new_name(name) == Some(name.as_str());
            let at = match (direct, self.tied.get(key.as_str())) {
                (None, Some(_)) if as_it_was(key) && as_it_was(value) => None,
                (direct, tied) => direct.or(tied),
            };
            let Some(&at) = at else {
                all.push((key.clone(), value.clone()));
                continue;
            };
            let tied = self.edit.tied.get(key).into_iter().flatten();
            all.extend(tied.map(|tied| (tied.name.clone(), tied.tensor.clone())));
            if let (Some(name), Some(tensor)) = (self.new_name(key), self.kept(at))
                && name != tensor
            {
                all.push((name.to_owned(), tensor.to_owned()));
            }
        }
        all
    }
}
