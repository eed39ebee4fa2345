//! Which weights, and what to do with them, as written on the command line.
use std::path::Path;

use clap::{Args, ValueEnum};
use weightnorm::{Axis, Eps};
use weightnorm_checkpoint::{Checkpoint, Pattern, Prefer, Rules};

use crate::output::Failure;

/// Which dictionary of a file of PyTorch's own.
#[derive(Args)]
pub struct KeyArgument {
    /// Of a file of PyTorch's own, the dictionary whose tensors are taken, such as generator, state_dict or
    /// model.generator; "" for all that are in the file [default: the only dictionary of weights]
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
}

impl KeyArgument {
    pub fn open(&self, path: &Path) -> Result<Checkpoint, Failure> {
        let opened = match &self.key {
            Some(key) => Checkpoint::open_key(path, key),
            None => Checkpoint::open(path),
        };
        Ok(opened?)
    }
}

/// The choice of weights.
#[derive(Args)]
pub struct RulesArguments {
    /// The kept axis: a number, or `whole` for one norm in all. With a pattern for the weights that it fits, of which
    /// the first decides; may be given several times [default: what the shape of g says]
    #[arg(long, value_name = "[PATTERN=]AXIS", value_parser = parse_axis_rule, help_heading = "Weights")]
    axis: Vec<(String, Axis)>,
    /// Takes only weights whose name fits, and pairs NAME_g and NAME_v of any other name too; may be given several
    /// times. In patterns `*` stands for any characters, `?` for one [default: the names of PyTorch's layers: weight,
    /// bias, weight_hh_l0]
    #[arg(long, value_name = "PATTERN", help_heading = "Weights")]
    include: Vec<String>,
    /// Leaves weights as they are whose name fits; may be given several times
    #[arg(long, value_name = "PATTERN", help_heading = "Weights")]
    exclude: Vec<String>,
    /// Where a pair of tensors stands beside a tensor of the weight's own name, which of the two stays
    #[arg(long, value_name = "WHICH", help_heading = "Weights")]
    prefer: Option<PreferArgument>,
}

#[derive(Clone, Copy, ValueEnum)]
enum PreferArgument {
    /// The pair: the tensor beside it is old
    Pair,
    /// The weight: the pair beside it is old
    Weight,
}

/// What keeps a zero row finite.
#[derive(Args)]
pub struct EpsArguments {
    /// How the norm n is guarded: `none`, as PyTorch's weight_norm; `clamp:E`, max(n, E); `inside:E`, sqrt(n² + E), as
    /// Flax; `after:E`, n + E. Rows that a policy changes are told
    #[arg(long, value_name = "POLICY", value_parser = parse_eps, default_value = "none", help_heading = "Weights")]
    eps: Eps,
    /// Computes weights with rows of zeros too: w is NaN there, as in PyTorch, under another --eps 0
    #[arg(long, help_heading = "Weights")]
    allow_zero_rows: bool,
}

impl RulesArguments {
    pub fn rules(&self) -> Rules {
        let mut rules = Rules::default();
        rules.axes = self.axis.iter().map(|(pattern, axis)| (Pattern::new(pattern), *axis)).collect();
        rules.include = self.include.iter().map(Pattern::new).collect();
        rules.exclude = self.exclude.iter().map(Pattern::new).collect();
        rules.prefer = self.prefer.map(|prefer| match prefer {
            PreferArgument::Pair => Prefer::Pair,
            PreferArgument::Weight => Prefer::Weight,
        });
        rules
    }

    pub fn includes_some(&self) -> bool {
        !self.include.is_empty()
    }

    /// Patterns that fit none of these names, which are all there are: mistyped, in all likelihood.
    pub fn idle(&self, names: &[String]) -> Vec<String> {
        let all = [
            ("axis", self.axis.iter().map(|(pattern, _)| pattern).collect::<Vec<_>>()),
            ("include", self.include.iter().collect()),
            ("exclude", self.exclude.iter().collect()),
        ];
        let patterns = all.into_iter().flat_map(|(option, patterns)| patterns.into_iter().map(move |p| (option, p)));
        let idle = patterns.filter(|(_, pattern)| !names.iter().any(|name| Pattern::new(*pattern).matches(name)));
        idle.map(|(option, pattern)| format!("--{option} {pattern} fits no weight")).collect()
    }
}

/// What is said besides: which dictionary is read, where it is not the file's own value; and what else there is.
pub fn notes(checkpoint: &Checkpoint, others: Vec<String>) -> Vec<String> {
    let key = checkpoint.key().filter(|key| !key.is_empty());
    key.map(|key| format!("the tensors are those of the key {key}")).into_iter().chain(others).collect()
}

/// The names of all weights of a checkpoint, in order, also of those that cannot be computed.
pub fn names(checkpoint: &Checkpoint) -> Vec<String> {
    let found = checkpoint.weights(&Rules::default());
    let computable = found.weights.into_iter().map(|weight| weight.name);
    computable.chain(found.findings.into_iter().map(|finding| finding.weight)).collect()
}

impl EpsArguments {
    pub fn apply(&self, rules: Rules) -> Rules {
        let rules = rules.eps(self.eps);
        if self.allow_zero_rows { rules.allow_zero_rows() } else { rules }
    }
}

pub fn parse_axis(text: &str) -> Result<Axis, String> {
    match text {
        "whole" => Ok(Axis::Whole),
        number => number.parse().map(Axis::Kept).map_err(|_| "expected a number from 0 on, or `whole`".to_owned()),
    }
}

fn parse_axis_rule(text: &str) -> Result<(String, Axis), String> {
    let (pattern, axis) = text.rsplit_once('=').unwrap_or(("*", text));
    Ok((pattern.to_owned(), parse_axis(axis)?))
}

fn parse_eps(text: &str) -> Result<Eps, String> {
    let (name, number) = text.split_once(':').unwrap_or((text, ""));
    let policy: fn(f32) -> Eps = match name {
        "none" if number.is_empty() => return Ok(Eps::None),
        "clamp" => Eps::Clamp,
        "inside" => Eps::InsideSqrt,
        "after" => Eps::After,
        _ => return Err("expected none, clamp:E, inside:E or after:E, such as clamp:1e-12".to_owned()),
    };
    // The bounds are those of the library.
    match number.parse::<f32>() {
        Ok(e) if e.is_normal() && e > 0.0 && e <= 2f32.powi(126) => Ok(policy(e)),
        _ => Err(format!("expected {name}:E with a number E from 1.2e-38 to 8.5e37, such as {name}:1e-12")),
    }
}
