//! Checkpoints looked at: what is in them, and whether the device computes them rightly.
use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value, json};
use weightnorm_checkpoint::{self as checkpoint, DoraLayer, FoundWeight, Range, TensorInfo};

use crate::device::DeviceArguments;
use crate::findings::{dora_json, finding_json, is_problem, lossy, weight_json, write_findings};
use crate::output::{Failure, Report, Table, axis_text, count, shape_text};
use crate::progress::Progress;
use crate::rules::{EpsArguments, KeyArgument, RulesArguments, names, notes};

/// Shows the weight-normalized weights of a checkpoint: shape, kept axis, norms, and what is odd about them.
///
/// One line for each weight: shape of v, kept axis, storage type of v, the range of the norms of v's rows, the range of
/// g/‖v‖ (1 where nothing was trained since the weight was split), rows of zeros, elements that are NaN or infinite,
/// name. Layers of DoRA are listed by themselves, by the names of their tensors: shape and storage type of W0, rank.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  weightnorm inspect vocoder.safetensors
  weightnorm inspect folded.safetensors --all
  weightnorm inspect training.ckpt --key state_dict
  weightnorm inspect sharded_model/ --include 'generator.*' --json

Exit codes: 0 done, 1 some weight cannot be computed, has rows of zeros, or numbers that are NaN or
infinite, 2 usage or input error.")]
pub struct Inspect {
    /// A .safetensors file, the index of a sharded checkpoint, a file of PyTorch's own (.pt, .pth, .ckpt, .bin), or the
    /// folder of one
    checkpoint: PathBuf,
    #[command(flatten)]
    key: KeyArgument,
    /// Lists the other tensors too
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    rules: RulesArguments,
}

impl Inspect {
    pub fn run(&self) -> Result<Report, Failure> {
        let checkpoint = self.key.open(&self.checkpoint)?;
        let progress = Progress::bytes("reading");
        let inspection = checkpoint::inspect(&checkpoint, &self.rules.rules(), &mut |p| progress.show(p))?;
        drop(progress);
        let idle = notes(&checkpoint, self.rules.idle(&names(&checkpoint)));

        let headers = ["shape", "axis", "type", " norms", " g/norm", " zeros", " NaN/inf", "weight"];
        let mut table = Table::new(&headers);
        for row in &inspection.rows {
            let FoundWeight { name, shape, axis, dtype, .. } = &row.weight;
            table.row(vec![
                shape_text(shape),
                axis_text(*axis),
                dtype.name().to_lowercase(),
                range_text(row.norm),
                range_text(row.ratio),
                row.zero_rows.to_string(),
                row.non_finite.to_string(),
                name.clone(),
            ]);
        }
        let mut text = if inspection.rows.is_empty() { String::new() } else { table.to_string() };
        if !inspection.dora.is_empty() {
            let mut layers = Table::new(&["shape", "type", " rank", "layer of DoRA"]);
            for layer in &inspection.dora {
                let DoraLayer { name, adapter, base, shape, rank, dtype, .. } = layer;
                let of = if adapter.is_empty() { String::new() } else { format!(" ({adapter})") };
                let elsewhere = if base.is_none() { ", its weight is elsewhere" } else { "" };
                let name = format!("{name}{of}{elsewhere}");
                layers.row(vec![shape_text(shape), dtype.name().to_lowercase(), rank.to_string(), name]);
            }
            let _ = writeln!(text, "{}{layers}", if text.is_empty() { "" } else { "\n" });
        }
        if self.all {
            let parts: HashSet<String> = inspection.rows.iter().flat_map(|row| parts(&row.weight)).collect();
            let mut others = Table::new(&["shape", "type", "other tensor"]);
            for TensorInfo { name, dtype, shape, .. } in checkpoint.tensors().filter(|t| !parts.contains(&t.name)) {
                others.row(vec![shape_text(shape), dtype.name().to_lowercase(), name.clone()]);
            }
            let _ = writeln!(text, "{}{others}", if text.is_empty() { "" } else { "\n" });
        }
        let (found, others) = (inspection.rows.len(), count(inspection.others, "other tensor"));
        let _ = writeln!(text, "{found} weight-normalized, {others}");
        if !inspection.dora.is_empty() {
            let layers = count(inspection.dora.len(), "layer");
            let _ = writeln!(text, "{layers} of DoRA: `weightnorm merge` makes ordinary weights of them");
        }
        write_findings(&mut text, &inspection.findings, is_problem, &idle, true);

        let weights = inspection.rows.iter().map(|row| {
            let mut json = weight_json(&row.weight);
            json["norm"] = range_json(row.norm);
            json["g_over_norm"] = range_json(row.ratio);
            json["zero_rows"] = row.zero_rows.into();
            json["non_finite"] = row.non_finite.into();
            json
        });
        let metadata: Map<String, Value> = checkpoint.metadata().map(|(k, v)| (k.to_owned(), v.into())).collect();
        let mut json = json!({
            "path": lossy(checkpoint.path()),
            "files": checkpoint.files().map(lossy).collect::<Vec<_>>(),
            "metadata": metadata,
            "weights": weights.collect::<Vec<_>>(),
            "dora": inspection.dora.iter().map(dora_json).collect::<Vec<_>>(),
            "other_tensors": inspection.others,
            "findings": inspection.findings.iter().map(finding_json).collect::<Vec<_>>(),
            "notes": idle,
        });
        if self.all {
            let tensors = checkpoint.tensors().map(|TensorInfo { name, dtype, shape, .. }| {
                json!({ "name": name, "shape": shape, "dtype": dtype.name().to_lowercase() })
            });
            json["tensors"] = tensors.collect();
        }
        let problems = inspection.findings.iter().any(is_problem);
        Ok(Report::new(problems, text, json))
    }
}

/// Folds the weights of a checkpoint on the device and, in f64, on the CPU, and compares. Writes nothing.
///
/// One line for each weight: the largest error, and the largest error in parts of the bound that follows from the
/// arithmetic for its element: up to 1 is right.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  weightnorm check vocoder.safetensors
  weightnorm check vocoder.safetensors --device 1 --json

Exit codes: 0 done, 1 some element is beyond its bound, or some weight cannot be computed, has rows of
zeros, or numbers that are NaN or infinite, 2 usage, input or device error.")]
pub struct Check {
    /// A .safetensors file, the index of a sharded checkpoint, a file of PyTorch's own (.pt, .pth, .ckpt, .bin), or the
    /// folder of one
    checkpoint: PathBuf,
    #[command(flatten)]
    key: KeyArgument,
    #[command(flatten)]
    rules: RulesArguments,
    #[command(flatten)]
    eps: EpsArguments,
    #[command(flatten)]
    device: DeviceArguments,
}

impl Check {
    pub fn run(&self) -> Result<Report, Failure> {
        let checkpoint = self.key.open(&self.checkpoint)?;
        let idle = notes(&checkpoint, self.rules.idle(&names(&checkpoint)));
        let rules = self.eps.apply(self.rules.rules());
        let chosen = self.device.choose()?;
        let progress = Progress::bytes("checking");
        let check = checkpoint::check(chosen.device(), &checkpoint, &rules, &mut |p| progress.show(p))?;
        drop(progress);

        let mut text = chosen.text() + "\n\n";
        let headers = ["shape", "axis", "type", " error", " of bound", "", "weight"];
        let mut table = Table::new(&headers);
        for checked in &check.weights {
            let FoundWeight { name, shape, axis, dtype, .. } = &checked.weight;
            table.row(vec![
                shape_text(shape),
                axis_text(*axis),
                dtype.name().to_lowercase(),
                format!("{:.1e}", checked.error),
                format!("{:.2}", checked.part),
                if checked.is_right() { "ok" } else { "WRONG" }.to_owned(),
                name.clone(),
            ]);
        }
        let wrong = check.weights.iter().filter(|checked| !checked.is_right()).count();
        let _ = writeln!(text, "{table}{}, {wrong} wrong", count(check.weights.len(), "weight"));
        write_findings(&mut text, &check.findings, is_problem, &idle, true);
        let weights = check.weights.iter().map(|checked| {
            let mut json = weight_json(&checked.weight);
            json["error"] = checked.error.into();
            json["of_bound"] = checked.part.into();
            json["right"] = checked.is_right().into();
            json
        });
        let json = json!({
            "path": lossy(checkpoint.path()),
            "device": chosen.json(),
            "weights": weights.collect::<Vec<_>>(),
            "wrong": wrong,
            "submissions": check.submissions,
            "findings": check.findings.iter().map(finding_json).collect::<Vec<_>>(),
            "notes": idle,
        });
        let problems = wrong > 0 || check.findings.iter().any(is_problem);
        Ok(Report::new(problems, text, json))
    }
}

/// The names of its two tensors.
fn parts(weight: &FoundWeight) -> [String; 2] {
    [weight.spelling.g(&weight.name), weight.spelling.v(&weight.name)]
}

fn range_json(range: Option<Range>) -> Value {
    range.map_or(Value::Null, |range| json!({ "min": range.min, "max": range.max }))
}

/// Two numbers in three digits, or one where they do not differ.
fn range_text(range: Option<Range>) -> String {
    let number = |x: f64| match x.abs() {
        0.0 => "0".to_owned(),
        1e-2..1e4 => format!("{x:.3}"),
        _ => format!("{x:.1e}"),
    };
    match range.map(|range| [range.min, range.max].map(number)) {
        None => "-".to_owned(),
        Some([min, max]) if min == max => min,
        Some([min, max]) => format!("{min}..{max}"),
    }
}
