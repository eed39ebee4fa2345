//! What an optimizer keeps of parameters, by the names of its tensors.
use std::collections::HashSet;

use super::names::is_own;

/// Names that nothing but a moment has.
const MOMENTS: [&str; 5] = ["exp_avg", "momentum_buffer", "exp_inf", "square_avg", "acc_delta"];
/// Optimizers whose moments `m` and `v` are called after them, as in `adam_m.layer.weight_v`.
const OPTIMIZERS: [&str; 15] = [
    "adam",
    "adamw",
    "adamax",
    "nadam",
    "radam",
    "adagrad",
    "adadelta",
    "adafactor",
    "rmsprop",
    "sgd",
    "lamb",
    "lion",
    "opt",
    "optim",
    "optimizer",
];

/// Words for averages of weights.
const AVERAGES: [&str; 4] = ["ema", "averaged", "average", "swa"];

/// Whether a tensor of that name belongs to an optimizer: a moment, which tells itself or stands under an optimizer's
/// name, or anything else under that name. Averages of weights (`ema`, `averaged`, `swa`) are weights, unless they are
/// moments.
fn is_optimizer_state(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    if MOMENTS.iter().any(|moment| name.contains(moment)) {
        return true;
    }
    // The v of `weight_v` is no moment.
    let half = name.strip_suffix("_g").or_else(|| name.strip_suffix("_v"));
    let name = half.filter(|parameter| is_own(parameter)).unwrap_or(&name);
    let has_word = |test: &dyn Fn(&str) -> bool| name.split(['.', '/', '_']).any(test);
    let has_part = |test: &dyn Fn(&str) -> bool| name.split(['.', '/']).any(test);
    // Whole parts: a momentum encoder is an average of weights, and a module may be called after moments in time.
    let moments = ["moment", "moments", "moment1", "moment2", "first_moment", "second_moment", "momentum"];
    if has_part(&|part| moments.contains(&part)) {
        return true;
    }
    let moments_of_it = ["m", "v", "mu", "nu", "momentum", "moment", "moment1", "moment2"];
    if has_word(&|word| OPTIMIZERS.contains(&word)) && has_word(&|word| moments_of_it.contains(&word)) {
        return true;
    }
    let is_average = |word: &str| AVERAGES.contains(&word);
    let is_optimizer = |word: &str| ["optimizer", "optimizers", "optim"].contains(&word);
    (has_word(&is_optimizer) || has_part(&|part| part == "opt_state")) && !has_word(&is_average)
}

/// Whether a tensor is an optimizer's, by its name and those that are there.
pub(super) fn is_state(name: &str, present: &HashSet<&str>) -> bool {
    is_optimizer_state(name) || is_state_of_another(name, present)
}

/// What stands alone in front of the name of a parameter that is there too, or behind it: moments, and gradients.
const OF_ANOTHER: [&str; 16] = [
    "m",
    "v",
    "mu",
    "nu",
    "m1",
    "m2",
    "trace",
    "velocity",
    "momenta",
    "momentum",
    "moment",
    "moments",
    "grad",
    "grads",
    "gradient",
    "gradients",
];

/// Whether a tensor is called after another one that is there, and says by that alone that it is something of it:
/// `m.layer.weight_v`, `gen_opt.layer.weight_v` or `layer.weight_v.m` beside `layer.weight_v`.
fn is_state_of_another(name: &str, present: &HashSet<&str>) -> bool {
    let lower = name.to_ascii_lowercase();
    let is_average = |words: &str| words.split(['.', '/', '_']).any(|word| AVERAGES.contains(&word));
    let in_front = |(at, _): (usize, &str)| {
        let (prefix, of) = (&lower[..at], &name[at + 1..]);
        // A module by itself may be called like a child of another.
        let is_of_optimizer = || prefix.split(['.', '/', '_']).any(|word| OPTIMIZERS.contains(&word));
        of.contains(['.', '/'])
            && present.contains(of)
            && (OF_ANOTHER.contains(&prefix) || is_of_optimizer())
            && !is_average(prefix)
    };
    let behind = |(at, mark): (usize, &str)| {
        // `weight_v` beside `weight` is the half of a pair, and the vector of a spectral norm.
        OF_ANOTHER.contains(&&lower[at + 1..])
            && (mark != "_" || &lower[at + 1..] != "v")
            && present.contains(&name[..at])
    };
    is_moment_of_another(name, present)
        || name.match_indices(['.', '/']).any(in_front)
        || name.rmatch_indices(['.', '/', '_']).take(1).any(behind)
}

/// Whether a tensor `m.NAME` or `v.NAME`, `NAME.m` or `NAME_v`, stands beside the other one and NAME itself: they are
/// both moments of it, called after nothing else.
fn is_moment_of_another(name: &str, present: &HashSet<&str>) -> bool {
    let has = |name: String| present.contains(name.as_str());
    [("m", "v"), ("v", "m"), ("mu", "nu"), ("nu", "mu")].into_iter().any(|(moment, other)| {
        let part = format!("{moment}.");
        let in_front = name.match_indices(&part).any(|(at, _)| {
            let (prefix, of) = (&name[..at], &name[at + part.len()..]);
            (prefix.is_empty() || prefix.ends_with('.')) && present.contains(of) && has(format!("{prefix}{other}.{of}"))
        });
        in_front
            || ['.', '_'].into_iter().any(|mark| {
                let of = name.strip_suffix(moment).and_then(|name| name.strip_suffix(mark));
                of.is_some_and(|of| present.contains(of) && has(format!("{of}{mark}{other}")))
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names that are there, and one that is called after one of them.
    #[test]
    fn what_is_called_after_another_is_told() {
        let present = ["layer.weight_v", "layer/weight_v", "weight", "weight_v", "l.parametrizations.weight.original0"];
        let present = HashSet::from(present);
        for name in [
            "m.layer.weight_v",
            "v.layer.weight_v",
            "mu/layer/weight_v",
            "trace.layer.weight_v",
            "velocity.layer.weight_v",
            "momenta.layer.weight_v",
            "grad.layer.weight_v",
            "gen_opt.layer.weight_v",
            "opt_g.layer.weight_v",
            "opt.state.layer.weight_v",
            "adam.layer.weight_v",
            "layer.weight_v.m",
            "layer.weight_v.v",
            "layer.weight_v_m",
            "layer.weight_v.grad",
            "m.l.parametrizations.weight.original0",
            "l.parametrizations.weight.original0_m",
        ] {
            assert!(is_state_of_another(name, &present), "{name}");
        }
        for name in [
            "layer.weight_v",
            "weight_v",
            "m.weight_v",
            "v.weight_v",
            "x.m.layer.weight_v",
            "model.layer.weight_v",
            "ema.layer.weight_v",
            "ema_opt.layer.weight_v",
            "option.layer.weight_v",
            "teacher.layer.weight_v",
            "m.other.weight_v",
            "layer.weight_v_v",
        ] {
            assert!(!is_state_of_another(name, &present), "{name}");
        }
    }

    #[test]
    fn moments_are_told_from_weights_and_their_averages() {
        for name in [
            "optimizer.state.exp_avg.layer.weight_g",
            "layer.weight_g.exp_avg",
            "layer.weight_v_exp_avg_sq",
            "optimizer.m.layer.weight_v",
            "Optimizer.V.layer.weight_g",
            "adam_m.layer.weight_v",
            "adam/v/layer/weight_v",
            "opt.m.layer.weight_g",
            "opt_state.mu.layer.weight_g",
            "layer.weight_g_adam_v",
            "momentum_buffer.layer.weight_v",
            "state.max_exp_avg_sq.layer.parametrizations.weight.original1",
            "momentum.layer.weight_v",
            "sgd_momentum.layer.weight_v",
            "moment1.layer.weight_v",
            "adam_moment1.layer.weight_v",
            "second_moment.layer.weight_g",
            "gen_optimizer.layer.weight_g",
            "ema.optimizer.exp_avg.layer.weight_v",
        ] {
            assert!(is_optimizer_state(name), "{name}");
        }
        for name in [
            "layer.weight_v",
            "m.weight_g",
            "v.weight_v",
            "ema.layer.weight_g",
            "ema_model.m.weight_v",
            "model_ema.layer.weight_v",
            "averaged.layer.weight_v",
            "swa.layer.weight_g",
            "optimizer.ema.layer.weight_v",
            "momentum_encoder.layer.weight_v",
            "moment_pool.layer.weight_v",
            "adam.layer.weight_v",
            "option.m.weight_v",
            "decoder.lstm.weight_hh_l0_v",
        ] {
            assert!(!is_optimizer_state(name), "{name}");
        }
    }
}
