//! What was found in a checkpoint, in text and in JSON, and its errors.
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};
use weightnorm_checkpoint::{DoraLayer, Error, Finding, FoundWeight, Problem, Spelling};

use crate::output::{Failure, Kind, axis_json, in_line};

pub fn lossy(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn spelling_name(spelling: Spelling) -> &'static str {
    match spelling {
        Spelling::Suffixes => "g-v",
        Spelling::Parametrizations => "parametrizations",
    }
}

pub fn weight_json(weight: &FoundWeight) -> Value {
    json!({
        "name": weight.name,
        "spelling": spelling_name(weight.spelling),
        "shape": weight.shape,
        "g_shape": weight.g_shape,
        "axis": axis_json(weight.axis),
        "dtype": weight.dtype.name().to_lowercase(),
        "g_dtype": weight.g_dtype.name().to_lowercase(),
    })
}

pub fn dora_json(layer: &DoraLayer) -> Value {
    json!({
        "name": layer.name,
        "shape": layer.shape,
        "dtype": layer.dtype.name().to_lowercase(),
        "rank": layer.rank,
        "adapter": layer.adapter,
        "base": layer.base,
    })
}

pub fn finding_json(finding: &Finding) -> Value {
    let kind = match finding.problem {
        Problem::MissingPartner { .. } => "missing_partner",
        Problem::BothSpellings => "both_spellings",
        Problem::NameTaken { .. } => "name_taken",
        Problem::OtherParametrization { .. } => "other_parametrization",
        Problem::Shape { .. } => "shape",
        Problem::AmbiguousAxis { .. } => "ambiguous_axis",
        Problem::NoSuchAxis { .. } => "no_such_axis",
        Problem::NotComputable { .. } => "not_computable",
        Problem::ZeroRows { .. } => "zero_rows",
        Problem::NonFinite { .. } => "non_finite",
        Problem::GainOverflow { .. } => "gain_overflow",
        Problem::Guarded { .. } => "guarded",
        Problem::LeftOut { .. } => "left_out",
        Problem::OtherShape { .. } => "other_shape",
        Problem::Pruned { .. } => "pruned",
        Problem::NotTaken { .. } => "not_taken",
        Problem::OptimizerState { .. } => "optimizer_state",
        Problem::Dora { .. } => "dora",
        Problem::NotInFiles { .. } => "not_in_files",
        Problem::NotInIndex { .. } => "not_in_index",
        Problem::Misplaced { .. } => "misplaced",
        Problem::SecondCopy { .. } => "second_copy",
        Problem::Narrowed => "narrowed",
        _ => "other",
    };
    json!({ "weight": finding.weight, "kind": kind, "message": finding.problem.to_string() })
}

/// Whether a finding about what a file holds makes the exit code 1.
pub fn is_problem(finding: &Finding) -> bool {
    !finding.problem.is_warning() || matches!(finding.problem, Problem::NonFinite { .. })
}

/// Lists what was found, with a word on what to do about problems, where a command takes rules about names.
pub fn write_findings(
    text: &mut String,
    findings: &[Finding],
    problems: fn(&Finding) -> bool,
    idle: &[String],
    takes_names: bool,
) {
    for finding in findings {
        let what = match finding.problem {
            _ if problems(finding) => "problem",
            Problem::NotTaken { .. } | Problem::OptimizerState { .. } | Problem::Dora { .. } => "note",
            _ => "warning",
        };
        let _ = writeln!(text, "{what}: {}", in_line(&finding.to_string()));
    }
    for note in idle {
        let _ = writeln!(text, "note: {}", in_line(note));
    }
    let any = |test: fn(&Problem) -> bool| findings.iter().any(|f| problems(f) && test(&f.problem));
    let is_of_axis = |p: &Problem| {
        use Problem::{AmbiguousAxis, NoSuchAxis, OtherShape, Shape};
        matches!(p, AmbiguousAxis { .. } | NoSuchAxis { .. } | Shape { .. } | OtherShape { .. })
    };
    if any(is_of_axis) {
        let _ = writeln!(text, "--axis 'NAME=AXIS' says which axis a weight keeps");
    }
    if any(|p| matches!(p, Problem::ZeroRows { .. })) {
        let _ = writeln!(
            text,
            "--allow-zero-rows computes weights with rows of zeros: NaN there, or 0 with --eps clamp:1e-12"
        );
    }
    if findings.iter().any(|finding| matches!(finding.problem, Problem::NotTaken { .. })) {
        let _ = writeln!(text, "--include 'NAME' takes a pair of another name, and only what is included");
    }
    // A pair beside the weight's own name: that is taken where it is folded, and those of the pair where it is split.
    let is_pair = |f: &Finding, name: &String| {
        let spellings = [Spelling::Suffixes, Spelling::Parametrizations];
        *name == f.weight || spellings.iter().any(|spelling| *name == spelling.g(&f.weight))
    };
    let beside = |f: &Finding| matches!(&f.problem, Problem::NameTaken { name } if is_pair(f, name));
    if findings.iter().any(|finding| problems(finding) && beside(finding)) {
        let _ = writeln!(text, "--prefer pair or --prefer weight says which of the two stays");
    }
    if takes_names && any(|p| !p.is_warning()) {
        let _ = writeln!(text, "--exclude 'NAME' leaves a weight as it is");
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let kind = match &error {
            Error::Io { doing: "opening" | "reading" | "reading the folder", .. } => Kind::Input,
            Error::Io { .. } | Error::Occupied { .. } => Kind::Output,
            Error::Gpu { .. } => Kind::Device,
            _ => Kind::Input,
        };
        let message = match &error {
            Error::NothingChosen { .. } => format!("{error}. `weightnorm inspect` lists what is there"),
            Error::Key { keys, .. } if !keys.is_empty() => format!("{error} (--key KEY)"),
            _ => error.to_string(),
        };
        Failure { kind, message }
    }
}
