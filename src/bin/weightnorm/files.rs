//! Checkpoints: looked at, and written anew in another form.
use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use indicatif::DecimalBytes;
use serde_json::{Map, Value, json};
use weightnorm::checkpoint::{self, Checkpoint, Error, Finding, FoundWeight, Problem, Range, Spelling, TensorInfo};

use crate::device::{DeviceArguments, device_json, device_text};
use crate::output::{DTypeArgument, Failure, Kind, Report, Table, axis_json, axis_text, in_line, shape_text};
use crate::progress::Progress;
use crate::rules::{EpsArguments, RulesArguments, names};

/// Shows the weight-normalized weights of a checkpoint: shape, kept axis, norms, and what is odd about them.
///
/// One line for each weight: shape of v, kept axis, storage type of v, the range of the norms of v's rows, the range of
/// g/‖v‖ (1 where nothing was trained since the weight was split), rows of zeros, elements that are NaN or infinite, name.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  weightnorm inspect vocoder.safetensors
  weightnorm inspect folded.safetensors --all
  weightnorm inspect sharded_model/ --include 'generator.*' --json

Exit codes: 0 done, 1 some weight cannot be computed, has rows of zeros, or numbers that are NaN or
infinite, 2 usage or input error.")]
pub struct Inspect {
    /// A .safetensors file, the index of a sharded checkpoint, or the folder of either
    checkpoint: PathBuf,
    /// Lists the other tensors too
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    rules: RulesArguments,
}

impl Inspect {
    pub fn run(&self) -> Result<Report, Failure> {
        let checkpoint = Checkpoint::open(&self.checkpoint)?;
        let progress = Progress::bytes("reading");
        let inspection = checkpoint::inspect(&checkpoint, &self.rules.rules(), &mut |p| progress.show(p))?;
        drop(progress);
        let idle = self.rules.idle(&names(&checkpoint));

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
        if self.all {
            let parts: HashSet<String> = inspection.rows.iter().flat_map(|row| parts(&row.weight)).collect();
            let mut others = Table::new(&["shape", "type", "other tensor"]);
            for TensorInfo { name, dtype, shape, .. } in checkpoint.tensors().filter(|t| !parts.contains(&t.name)) {
                others.row(vec![shape_text(shape), dtype.name().to_lowercase(), name.clone()]);
            }
            let _ = writeln!(text, "{}{others}", if text.is_empty() { "" } else { "\n" });
        }
        let _ = writeln!(text, "{} weight-normalized, {} other tensors", inspection.rows.len(), inspection.others);
        write_findings(&mut text, &inspection.findings, is_problem, &idle);

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
        Ok(Report { problems, text, json })
    }
}

/// Where a command writes to.
#[derive(Args)]
pub struct Target {
    /// A .safetensors file, the index of a sharded checkpoint, or the folder of either
    input: PathBuf,
    /// The file to write; for a sharded checkpoint a folder, which must not be there. May be the input, with --force
    output: PathBuf,
    /// Replaces the output if it is there. It is written beside it and renamed, so that at any time the old file is there
    /// or the whole new one
    #[arg(long)]
    force: bool,
}

impl Target {
    /// Opens the input, having seen that the output may be written.
    fn open(&self) -> Result<Checkpoint, Failure> {
        let checkpoint = Checkpoint::open(&self.input)?;
        let is_folder = self.output.is_dir();
        if is_folder || (!self.force && self.output.symlink_metadata().is_ok()) {
            let advice = match (checkpoint.is_sharded(), is_folder) {
                (true, _) => "name a new folder",
                (false, true) => "it is a folder: name a file in it",
                (false, false) => "--force replaces it",
            };
            let message = format!("{}: it is there already; {advice}", self.output.display());
            return Err(Failure { kind: Kind::Output, message });
        }
        let folder = self.output.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        if !folder.is_dir() {
            let message = format!("{}: there is no folder {}", self.output.display(), folder.display());
            return Err(Failure { kind: Kind::Output, message });
        }
        Ok(checkpoint)
    }

    /// What came of writing it.
    fn report(
        &self,
        done: &str,
        result: Result<checkpoint::Report, Error>,
        idle: Vec<String>,
    ) -> Result<Report, Failure> {
        let output = lossy(&self.output);
        let written = match result {
            Ok(written) => written,
            Err(Error::Findings { findings }) => {
                let mut text = "nothing was written\n".to_owned();
                write_findings(&mut text, &findings, |_| true, &idle);
                let json = json!({
                    "output": output,
                    "written": false,
                    "findings": findings.iter().map(finding_json).collect::<Vec<_>>(),
                    "notes": idle,
                });
                return Ok(Report { problems: true, text, json });
            }
            Err(other) => return Err(other.into()),
        };
        let mut text = String::new();
        let size = DecimalBytes(written.bytes);
        let (count, copied) = (written.weights.len(), written.copied);
        let _ = writeln!(text, "{output}: {count} weights {done}, {copied} other tensors copied, {size}");
        write_findings(&mut text, &written.warnings, |_| false, &idle);
        let json = json!({
            "output": output,
            "written": true,
            "weights": written.weights.iter().map(weight_json).collect::<Vec<_>>(),
            "copied_tensors": copied,
            "bytes": written.bytes,
            "submissions": written.submissions,
            "findings": written.warnings.iter().map(finding_json).collect::<Vec<_>>(),
            "notes": idle,
        });
        Ok(Report { problems: false, text, json })
    }
}

/// Writes a checkpoint with its weights folded: w = g·v/n̂ in place of g and v, other tensors and metadata byte for byte.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  weightnorm fold vocoder.safetensors folded.safetensors
  weightnorm fold model.safetensors model.safetensors --force
  weightnorm fold old.safetensors new.safetensors --axis 'encoder.*=2' --exclude 'discriminator.*'
  weightnorm fold sharded_model/ folded_model/ --eps none

w has the storage type of v; f64 becomes f32.
Exit codes: 0 done, 1 some weight cannot be folded or has rows of zeros, and nothing was written,
2 usage, input, output or device error.")]
pub struct Fold {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    rules: RulesArguments,
    #[command(flatten)]
    eps: EpsArguments,
    #[command(flatten)]
    device: DeviceArguments,
}

impl Fold {
    pub fn run(&self) -> Result<Report, Failure> {
        let checkpoint = self.target.open()?;
        let idle = self.rules.idle(&names(&checkpoint));
        let (rules, gpu) = (self.eps.apply(self.rules.rules()), self.device.open()?);
        let progress = Progress::bytes("folding");
        let result = checkpoint::fold(&gpu, &checkpoint, &self.target.output, &rules, &mut |p| progress.show(p));
        drop(progress);
        self.target.report("folded", result, idle)
    }
}

/// Writes a checkpoint with ordinary weights split: v = w and g = n̂ in place of w.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  weightnorm split folded.safetensors trainable.safetensors --include '*.weight' \\
      --spelling parametrizations
  weightnorm split in.safetensors out.safetensors --include 'encoder.*.weight' --exclude '*norm*' \\
      --axis 'encoder.pos_conv.*=2' --spelling g-v

Weights keep axis 0 unless --axis says otherwise. --include has to name those to split.
Exit codes: 0 done, 1 some weight cannot be split or has rows of zeros, and nothing was written,
2 usage, input, output or device error.")]
pub struct Split {
    #[command(flatten)]
    target: Target,
    /// How g and v are called in the output
    #[arg(long)]
    spelling: SpellingArgument,
    #[command(flatten)]
    rules: RulesArguments,
    /// The storage type of g [default: that of w]
    #[arg(long, value_name = "TYPE", help_heading = "Weights")]
    gain: Option<DTypeArgument>,
    #[command(flatten)]
    eps: EpsArguments,
    #[command(flatten)]
    device: DeviceArguments,
}

impl Split {
    pub fn run(&self) -> Result<Report, Failure> {
        if !self.rules.includes_some() {
            let message = "--include PATTERN has to say which weights to split, such as --include '*.weight'";
            return Err(Failure::usage(message));
        }
        let checkpoint = self.target.open()?;
        let tensors: Vec<String> = checkpoint.tensors().map(|tensor| tensor.name.clone()).collect();
        let mut notes = self.rules.idle(&tensors);
        let mut rules = self.eps.apply(self.rules.rules());
        rules.gain = self.gain.map(DTypeArgument::dtype);
        let gpu = self.device.open()?;
        let (spelling, output) = (self.spelling.spelling(), &self.target.output);
        let progress = Progress::bytes("splitting");
        let result = checkpoint::split(&gpu, &checkpoint, output, spelling, &rules, &mut |p| progress.show(p));
        drop(progress);
        let mut vectors = result.iter().flat_map(|r| &r.weights).filter(|w| w.shape.len() < 2);
        if let Some(first) = vectors.next() {
            let (count, name) = (1 + vectors.count(), &first.name);
            notes.push(format!(
                "{count} of one axis, such as {name}: each element is a row by itself. Were they meant?"
            ));
        }
        self.target.report("split", result, notes)
    }
}

/// Folds the weights of a checkpoint on the GPU and, in f64, on the CPU, and compares. Writes nothing.
///
/// One line for each weight: the largest error, and the largest error in parts of the bound that follows from the arithmetic
/// for its element: up to 1 is right.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  weightnorm check vocoder.safetensors
  weightnorm check vocoder.safetensors --device 1 --json

Exit codes: 0 done, 1 some element is beyond its bound, or some weight cannot be computed or has rows of
zeros, 2 usage, input or device error.")]
pub struct Check {
    /// A .safetensors file, the index of a sharded checkpoint, or the folder of either
    checkpoint: PathBuf,
    #[command(flatten)]
    rules: RulesArguments,
    #[command(flatten)]
    eps: EpsArguments,
    #[command(flatten)]
    device: DeviceArguments,
}

impl Check {
    pub fn run(&self) -> Result<Report, Failure> {
        let checkpoint = Checkpoint::open(&self.checkpoint)?;
        let idle = self.rules.idle(&names(&checkpoint));
        let rules = self.eps.apply(self.rules.rules());
        let gpu = self.device.open()?;
        let info = gpu.report().info;
        let progress = Progress::bytes("checking");
        let check = checkpoint::check(&gpu, &checkpoint, &rules, &mut |p| progress.show(p))?;
        drop(progress);

        let mut text = device_text(&info) + "\n\n";
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
        let _ = writeln!(text, "{table}{} weights, {wrong} wrong", check.weights.len());
        write_findings(&mut text, &check.findings, is_problem, &idle);
        let weights = check.weights.iter().map(|checked| {
            let mut json = weight_json(&checked.weight);
            json["error"] = checked.error.into();
            json["of_bound"] = checked.part.into();
            json["right"] = checked.is_right().into();
            json
        });
        let json = json!({
            "path": lossy(checkpoint.path()),
            "device": device_json(&info),
            "weights": weights.collect::<Vec<_>>(),
            "wrong": wrong,
            "submissions": check.submissions,
            "findings": check.findings.iter().map(finding_json).collect::<Vec<_>>(),
            "notes": idle,
        });
        let problems = wrong > 0 || check.findings.iter().any(is_problem);
        Ok(Report { problems, text, json })
    }
}

#[derive(Clone, Copy, ValueEnum)]
pub enum SpellingArgument {
    /// NAME_g and NAME_v, of torch.nn.utils.weight_norm
    #[value(name = "g-v")]
    GV,
    /// parametrizations.NAME.original0 and .original1, of torch.nn.utils.parametrizations.weight_norm
    Parametrizations,
}

impl SpellingArgument {
    fn spelling(self) -> Spelling {
        match self {
            SpellingArgument::GV => Spelling::Suffixes,
            SpellingArgument::Parametrizations => Spelling::Parametrizations,
        }
    }
}

fn spelling_name(spelling: Spelling) -> &'static str {
    match spelling {
        Spelling::Suffixes => "g-v",
        Spelling::Parametrizations => "parametrizations",
    }
}

/// Writes a checkpoint whose weights are spelled the other way. No number is touched.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  weightnorm convert old.safetensors new.safetensors --spelling parametrizations
  weightnorm convert model.safetensors model.safetensors --force --spelling g-v

Converting back gives the bytes of the input, where the safetensors library or this program wrote it.
Exit codes: 0 done, 1 some weight cannot be converted, and nothing was written, 2 usage, input or
output error.")]
pub struct Convert {
    #[command(flatten)]
    target: Target,
    /// How g and v are called in the output
    #[arg(long)]
    spelling: SpellingArgument,
    #[command(flatten)]
    rules: RulesArguments,
}

impl Convert {
    pub fn run(&self) -> Result<Report, Failure> {
        let checkpoint = self.target.open()?;
        let idle = self.rules.idle(&names(&checkpoint));
        let progress = Progress::bytes("writing");
        let (spelling, rules) = (self.spelling.spelling(), self.rules.rules());
        let result = checkpoint::convert(&checkpoint, &self.target.output, spelling, &rules, &mut |p| progress.show(p));
        drop(progress);
        self.target.report("converted", result, idle)
    }
}

/// The names of its two tensors.
fn parts(weight: &FoundWeight) -> [String; 2] {
    [weight.spelling.g(&weight.name), weight.spelling.v(&weight.name)]
}

fn lossy(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn weight_json(weight: &FoundWeight) -> Value {
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

fn finding_json(finding: &Finding) -> Value {
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
        Problem::Narrowed => "narrowed",
        Problem::OtherShape { .. } => "other_shape",
        Problem::Pruned { .. } => "pruned",
        Problem::NotTaken { .. } => "not_taken",
        Problem::OptimizerState { .. } => "optimizer_state",
        Problem::NotInFiles { .. } => "not_in_files",
        Problem::NotInIndex { .. } => "not_in_index",
        Problem::Misplaced { .. } => "misplaced",
        Problem::SecondCopy { .. } => "second_copy",
        _ => "other",
    };
    json!({ "weight": finding.weight, "kind": kind, "message": finding.problem.to_string() })
}

/// Whether a finding about what a file holds makes the exit code 1.
fn is_problem(finding: &Finding) -> bool {
    !finding.problem.is_warning() || matches!(finding.problem, Problem::NonFinite { .. })
}

/// Lists what was found, with a word on what to do about problems.
fn write_findings(text: &mut String, findings: &[Finding], problems: fn(&Finding) -> bool, idle: &[String]) {
    for finding in findings {
        let what = match finding.problem {
            _ if problems(finding) => "problem",
            Problem::NotTaken { .. } | Problem::OptimizerState { .. } => "note",
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
        let _ = writeln!(text, "--allow-zero-rows computes weights with rows of zeros as --eps says");
    }
    if findings.iter().any(|finding| matches!(finding.problem, Problem::NotTaken { .. })) {
        let _ = writeln!(text, "--include 'NAME' takes a pair of another name, and only what is included");
    }
    if any(|p| !p.is_warning()) {
        let _ = writeln!(text, "--exclude 'NAME' leaves a weight as it is");
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let kind = match &error {
            Error::Io { doing: "opening" | "reading", .. } => Kind::Input,
            Error::Io { .. } | Error::Occupied { .. } => Kind::Output,
            Error::Gpu { .. } => Kind::Device,
            _ => Kind::Input,
        };
        let message = match &error {
            Error::Header { path, .. } if is_zip(path) => format!(
                "{error}. It looks like a file of PyTorch's own; in Python: \
                 safetensors.torch.save_file(torch.load(..), \"model.safetensors\")"
            ),
            Error::NothingChosen { .. } => format!("{error}. `weightnorm inspect` lists what is there"),
            _ => error.to_string(),
        };
        Failure { kind, message }
    }
}

/// As files of `torch.save` are.
fn is_zip(path: &Path) -> bool {
    let mut first = [0; 4];
    if !path.is_file() {
        return false; // to open a pipe is to wait for its writer
    }
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut first));
    read.is_ok() && first == *b"PK\x03\x04"
}
