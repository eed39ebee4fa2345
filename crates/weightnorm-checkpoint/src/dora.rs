//! Layers that DoRA adapts, by the names that peft gives their tensors.
use std::collections::BTreeMap;

use super::{Checkpoint, FileDType, Finding, Problem};

/// A, B and the magnitude.
pub(super) const MARKS: [&str; 3] = [".lora_A", ".lora_B", ".lora_magnitude_vector"];
const PREFIX: &str = "base_model.model.";
pub(super) const BASE_LAYER: &str = ".base_layer.";

/// A layer that DoRA adapts: [`Checkpoint::dora_layers`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DoraLayer {
    /// The name of its weight once it is merged: `layer.weight`.
    pub name: String,
    /// The name of the adapter; empty where no name stands in those of its tensors.
    pub adapter: String,
    /// The name of W0, if it is in the checkpoint.
    pub base: Option<String>,
    /// Shape of W0; `[out, in]` of B and A where it is not there.
    pub shape: Vec<usize>,
    /// Rows of A.
    pub rank: usize,
    /// Storage type of W0; of A where that is not there.
    pub dtype: FileDType,
}

impl Checkpoint {
    /// The layers that have all three tensors of DoRA as peft calls them, `MODULE.lora_A`, `MODULE.lora_B` and
    /// `MODULE.lora_magnitude_vector`, in the order of their names: for each adapter of a layer one. Plain LoRA has no
    /// magnitude, and is none of them. Reads nothing. [`merge`](crate::merge) makes ordinary weights of them.
    pub fn dora_layers(&self) -> Vec<DoraLayer> {
        let mut all: BTreeMap<(&str, &str), [Option<_>; 3]> = BTreeMap::new();
        for (at, info) in self.places() {
            if let Some((module, mark, adapter)) = parse(&info.name) {
                all.entry((module, adapter)).or_insert([None; 3])[mark].get_or_insert(at);
            }
        }
        let is_there: BTreeMap<&str, _> = self.names().map(|(at, name)| (name, at)).collect();
        let layer = |((module, adapter), parts): ((&str, &str), [Option<_>; 3])| {
            let [Some(a), Some(b), Some(_)] = parts else { return None };
            let (a, b) = (self.at(a), self.at(b));
            let rank = a.shape.first().copied().unwrap_or(0);
            let outs = b.shape.first().copied().unwrap_or(0);
            let ins = a.shape.get(1..).unwrap_or_default().iter().product();
            let base = bases(module).find_map(|(m, name)| Some((m, *is_there.get(name.as_str())?, name)));
            let own = base.as_ref().map_or(without_prefix(module), |&(module, ..)| module);
            let (shape, dtype) = match &base {
                Some((_, at, _)) => (self.at(*at).shape.clone(), self.at(*at).dtype),
                None => (vec![outs, ins], a.dtype),
            };
            let (name, base) = (format!("{own}.weight"), base.map(|(.., name)| name));
            Some(DoraLayer { name, adapter: adapter.to_owned(), base, shape, rank, dtype })
        };
        all.into_iter().filter_map(layer).collect()
    }
}

/// The module of a tensor of an adapter, which of the three it is, and the adapter's name.
pub(super) fn parse(name: &str) -> Option<(&str, usize, &str)> {
    let (at, mark) = MARKS.iter().enumerate().find_map(|(i, mark)| Some((name.rfind(mark)?, i)))?;
    let rest = &name[at + MARKS[mark].len()..];
    let rest = rest.strip_suffix(".weight").unwrap_or(rest);
    let of = rest.strip_prefix('.').unwrap_or(rest);
    ((rest.is_empty() || rest.starts_with('.')) && !of.contains('.')).then_some((&name[..at], mark, of))
}

/// That there are such layers, which stay as they are wherever they are not merged.
pub(super) fn finding(checkpoint: &Checkpoint) -> Option<Finding> {
    let layers = checkpoint.dora_layers();
    let first = layers.first()?.name.clone();
    Some(Finding { weight: first, problem: Problem::Dora { count: layers.len() } })
}

fn without_prefix(module: &str) -> &str {
    module.strip_prefix(PREFIX).unwrap_or(module)
}

/// What W0 of a module may be called, each with the module that it would be of.
pub(super) fn bases(module: &str) -> impl Iterator<Item = (&str, String)> {
    let ends = [".weight", ".base_layer.weight"];
    [module, without_prefix(module)].into_iter().flat_map(move |m| ends.map(|end| (m, format!("{m}{end}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_an_adapter_are_known_by_their_names() {
        let known = [
            ("base_model.model.l.q.lora_A.weight", ("base_model.model.l.q", 0, "")),
            ("l.lora_B.default.weight", ("l", 1, "default")),
            ("l.lora_magnitude_vector", ("l", 2, "")),
            ("l.lora_magnitude_vector.default", ("l", 2, "default")),
            ("l.lora_magnitude_vector.default.weight", ("l", 2, "default")),
        ];
        for (name, parsed) in known {
            assert_eq!(parse(name), Some(parsed), "{name}");
        }
        for name in
            ["l.weight", "l.lora_embedding_A", "l.lora_Above.weight", "l.lora_A.one.two.weight", "lora_A.weight"]
        {
            assert_eq!(parse(name), None, "{name}");
        }
    }
}
