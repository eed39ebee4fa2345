//! A tensor that is called as a weight would be once it is folded: the pair or the tensor wins, or nobody.
use std::collections::HashSet;

use super::find::Wanted;
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
