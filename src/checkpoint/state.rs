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

/// Whether a tensor of that name belongs to an optimizer: a moment, which tells itself or stands under an optimizer's name, or
/// anything else under that name. Averages of weights (`ema`, `averaged`, `swa`) are weights, unless they are moments.
pub(super) fn is_optimizer_state(name: &str) -> bool {
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
    let is_average = |word: &str| ["ema", "averaged", "average", "swa"].contains(&word);
    let is_optimizer = |word: &str| ["optimizer", "optimizers", "optim"].contains(&word);
    (has_word(&is_optimizer) || has_part(&|part| part == "opt_state")) && !has_word(&is_average)
}

/// Whether a tensor `m.NAME` or `v.NAME`, `NAME.m` or `NAME_v`, stands beside the other one and NAME itself: they are both moments of
/// it, called after nothing else.
pub(super) fn is_moment_of_another(name: &str, present: &HashSet<&str>) -> bool {
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
