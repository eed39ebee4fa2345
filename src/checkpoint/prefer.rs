//! A tensor that is called as a weight would be once it is folded: the pair or the tensor wins, or nobody.
use std::collections::{HashMap, HashSet};

use super::find::{At, Wanted};
use super::{Checkpoint, Finding, Found, FoundWeight, Problem, Rules, header};

/// Which wins where a pair of tensors stands beside a tensor of the weight's own name: see [`Rules::prefer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefer {
    /// g and v: the tensor beside them is old, and is left out.
    Pair,
    /// The tensor: g and v are left out.
    Weight,
}

/// Settles it for all weights that were found: what goes is in [`Found::dropped`] then, and told.
pub(super) fn settle(checkpoint: &Checkpoint, rules: &Rules, wanted: Wanted, found: &mut Found) {
    let halves: HashSet<At> = found.weights.iter().flat_map(|weight| [weight.g, weight.v]).collect();
    let names: HashSet<&str> = found.weights.iter().map(|weight| weight.name.as_str()).collect();
    let beside = |(at, name): &(At, &str)| names.contains(name) && !halves.contains(at);
    let all = checkpoint.places().map(|(at, tensor)| (at, tensor.name.as_str()));
    let beside: HashMap<String, At> = all.filter(beside).map(|(at, name)| (name.to_owned(), at)).collect();
    let (findings, dropped) = (&mut found.findings, &mut found.dropped);
    found.weights.retain(|weight| {
        let mut report = |problem| findings.push(Finding { weight: weight.name.clone(), problem });
        match (beside.get(&weight.name), rules.prefer) {
            (Some(&at), Some(prefer)) => {
                let (tensors, what) = left_out(weight, at, prefer);
                dropped.extend(tensors);
                report(what);
                prefer == Prefer::Pair
            }
            (Some(_), None) if wanted == Wanted::Names => true,
            (None, _) if weight.name != header::METADATA || wanted == Wanted::Names => true,
            _ => {
                report(Problem::NameTaken { name: weight.name.clone() });
                true
            }
        }
    });
}

/// The tensors that go of a pair and the one at `beside`, and what is said of that.
pub(super) fn left_out(pair: &FoundWeight, beside: At, prefer: Prefer) -> (Vec<At>, Problem) {
    let (tensors, names) = match prefer {
        Prefer::Pair => (vec![beside], vec![pair.name.clone()]),
        Prefer::Weight => (vec![pair.g, pair.v], [pair.spelling.g(&pair.name), pair.spelling.v(&pair.name)].to_vec()),
    };
    (tensors, Problem::LeftOut { tensors: names, prefer })
}
