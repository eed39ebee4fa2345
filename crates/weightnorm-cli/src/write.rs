//! Checkpoints written anew in another form.
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use indicatif::DecimalBytes;
use serde_json::json;
use weightnorm_checkpoint::{self as checkpoint, Checkpoint, Error, Part, Rules, Scaling, Spelling};

use crate::device::{Chosen, DeviceArguments};
use crate::findings::{dora_json, finding_json, weight_json, write_findings};
use crate::output::{DTypeArgument, Failure, Kind, Report, count};
use crate::place::Place;
use crate::progress::Progress;
use crate::rules::{EpsArguments, KeyArgument, RulesArguments, names, notes};

/// Where a command writes to.
#[derive(Args)]
pub struct Target {
    /// A .safetensors file, the index of a sharded checkpoint, a file of PyTorch's own (.pt, .pth, .ckpt, .bin), or the
    /// folder of one
    input: PathBuf,
    /// The .safetensors file to write, or - for standard output; for a sharded checkpoint a folder, which must not be there. May be
    /// the input, with --force
    output: PathBuf,
    /// Replaces the output if it is there. It is written beside it and renamed, so that at any time the old file is
    /// there or the whole new one
    #[arg(long)]
    force: bool,
    /// Of a sharded checkpoint writes one part alone, such as 3/32: the third file of 32, or of any number of files
    /// every 32nd from the third on. The folder may be there; files that are there whole are skipped. `weightnorm
    /// index` is the last step
    #[arg(long, value_name = "NUMBER/COUNT", value_parser = parse_part)]
    shard: Option<Part>,
    #[command(flatten)]
    key: KeyArgument,
}

fn parse_part(text: &str) -> Result<Part, String> {
    let part = text.split_once('/').and_then(|(number, count)| {
        let part = Part { number: number.parse().ok()?, count: count.parse().ok()? };
        (1..=part.count).contains(&part.number).then_some(part)
    });
    part.ok_or_else(|| "expected NUMBER/COUNT, NUMBER from 1 to COUNT, such as 3/32".to_owned())
}

impl Target {
    /// Opens the input, having seen that the output may be written.
    fn open(&self, json: bool) -> Result<(Checkpoint, Place), Failure> {
        let checkpoint = self.key.open(&self.input)?;
        if Place::is_stdout(&self.output) {
            let place = Place::stdout(&checkpoint, json)?;
            return Ok((checkpoint, place));
        }
        if checkpoint.key().is_some() && self.is_called_as_of_pytorch() {
            let message = format!(
                "{}: what is written is a .safetensors file, which PyTorch would not read under that name\n\
                 give it a name that ends in .safetensors",
                self.output.display()
            );
            return Err(Failure { kind: Kind::Output, message });
        }
        let is_folder = self.output.is_dir();
        if self.shard.is_some() && (is_folder || self.output.symlink_metadata().is_err()) {
            return Ok((checkpoint, Place::Named(self.output.clone())));
        }
        if !is_folder && self.output.metadata().is_ok_and(|status| !status.is_file()) {
            let message =
                format!("{}: it is no file that can be replaced\n- is standard output", self.output.display());
            return Err(Failure { kind: Kind::Output, message });
        }
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
        Ok((checkpoint, Place::Named(self.output.clone())))
    }

    /// The rules, for the part that is wanted.
    fn apply(&self, rules: Rules) -> Rules {
        match self.shard {
            Some(part) => rules.part(part.number, part.count),
            None => rules,
        }
    }

    /// By its ending; or it is the input, which may have none.
    fn is_called_as_of_pytorch(&self) -> bool {
        let ending = self.output.extension().map(|ending| ending.to_ascii_lowercase());
        let is_theirs =
            ["pt", "pth", "th", "ckpt", "bin"].iter().any(|theirs| ending.as_deref() == Some(theirs.as_ref()));
        is_theirs || self.output.canonicalize().is_ok_and(|output| self.input.canonicalize().is_ok_and(|i| i == output))
    }
}

const MERGED: &str = "merged";

/// What came of writing it. `chosen`: what computed.
fn report(
    place: &Place,
    done: &str,
    chosen: Option<&Chosen>,
    result: Result<checkpoint::Report, Error>,
    idle: Vec<String>,
) -> Result<Report, Failure> {
    let output = place.text();
    let aside = matches!(place, Place::Stdout { .. });
    let written = match result {
        Ok(written) => written,
        Err(Error::Findings { findings }) => {
            let mut text = "nothing was written\n".to_owned();
            write_findings(&mut text, &findings, |_| true, &idle, done != MERGED);
            let json = json!({
                "output": output,
                "written": false,
                "findings": findings.iter().map(finding_json).collect::<Vec<_>>(),
                "notes": idle,
            });
            return Ok(Report { aside, ..Report::new(true, text, json) });
        }
        Err(other) => return Err(place.failure(other)),
    };
    place.finish()?;
    let mut text = String::new();
    let weights: Vec<_> = written.weights.iter().map(weight_json).chain(written.merged.iter().map(dora_json)).collect();
    let (number, copied) = (count(weights.len(), "weight"), count(written.copied, "other tensor"));
    let by = if let Some(Chosen::Reference) = chosen { " by the reference on the CPU" } else { "" };
    let _ = writeln!(text, "{output}: {number} {done}{by}, {copied} copied, {}", DecimalBytes(written.bytes));
    if written.skipped > 0 {
        let _ = writeln!(text, "{} skipped: there already, whole", count(written.skipped, "file"));
    }
    write_findings(&mut text, &written.warnings, |_| false, &idle, done != MERGED);
    let mut json = json!({
        "output": output,
        "written": true,
        "weights": weights,
        "copied_tensors": written.copied,
        "bytes": written.bytes,
        "skipped_files": written.skipped,
        "submissions": written.submissions,
        "findings": written.warnings.iter().map(finding_json).collect::<Vec<_>>(),
        "notes": idle,
    });
    if let Some(chosen) = chosen {
        json["device"] = chosen.json();
    }
    Ok(Report { aside, ..Report::new(false, text, json) })
}

/// Writes a checkpoint with its weights folded: w = g·v/n̂ in place of g and v, other tensors and metadata byte for
/// byte.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  weightnorm fold vocoder.safetensors folded.safetensors
  weightnorm fold model.safetensors model.safetensors --force
  weightnorm fold old.safetensors new.safetensors --axis 'encoder.*=2' --exclude 'discriminator.*'
  weightnorm fold g_02500000.pt folded.safetensors --key generator
  weightnorm fold large/ folded/ --shard 3/32   # by one of 32 tasks; then: weightnorm index folded/
  weightnorm fold vocoder.safetensors - --device reference | sha256sum

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
    pub fn run(&self, json: bool) -> Result<Report, Failure> {
        let (checkpoint, place) = self.target.open(json)?;
        let idle = notes(&checkpoint, self.rules.idle(&names(&checkpoint)));
        let rules = self.target.apply(self.eps.apply(self.rules.rules()));
        let chosen = self.device.choose()?;
        let progress = Progress::bytes("folding");
        let result = checkpoint::fold(chosen.device(), &checkpoint, place.path(), &rules, &mut |p| progress.show(p));
        drop(progress);
        report(&place, "folded", Some(&chosen), result, idle)
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
    pub fn run(&self, json: bool) -> Result<Report, Failure> {
        if !self.rules.includes_some() {
            let message = "--include PATTERN has to say which weights to split, such as --include '*.weight'";
            return Err(Failure::usage(message));
        }
        let (checkpoint, place) = self.target.open(json)?;
        let tensors: Vec<String> = checkpoint.tensors().map(|tensor| tensor.name.clone()).collect();
        let mut notes = notes(&checkpoint, self.rules.idle(&tensors));
        let mut rules = self.target.apply(self.eps.apply(self.rules.rules()));
        rules.gain = self.gain.map(DTypeArgument::dtype);
        let chosen = self.device.choose()?;
        let (spelling, device, output) = (self.spelling.spelling(), chosen.device(), place.path());
        let progress = Progress::bytes("splitting");
        let result = checkpoint::split(device, &checkpoint, output, spelling, &rules, &mut |p| progress.show(p));
        drop(progress);
        let mut vectors = result.iter().flat_map(|r| &r.weights).filter(|w| w.shape.len() < 2);
        if let Some(first) = vectors.next() {
            let (count, name) = (1 + vectors.count(), &first.name);
            notes.push(format!(
                "{count} of one axis, such as {name}: each element is a row by itself. Were they meant?"
            ));
        }
        report(&place, "split", Some(&chosen), result, notes)
    }
}

/// Merges an adapter of DoRA, as peft stores it, into the weights of its model: ordinary weights come of it.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  weightnorm merge model.safetensors merged.safetensors --adapter adapter_model.safetensors --alpha 32
  weightnorm merge model/ merged/ --adapter adapter/ --alpha 32 --rslora
  weightnorm merge whole.safetensors merged.safetensors --scaling 2

w = m (W0 + s B A) / norm, with s of adapter_config.json: lora_alpha / r, or lora_alpha / sqrt(r)
with use_rslora. Each layer takes its own rank r; a layer with an alpha of its own (alpha_pattern)
is not known. Weights of fan_in_fan_out (GPT-2's Conv1D) are not merged.
Exit codes: 0 done, 1 a name is taken or a row of W0 + s B A is zero, and nothing was written, 2 usage,
input, output or device error.")]
pub struct Merge {
    #[command(flatten)]
    target: Target,
    /// The file with lora_A, lora_B and lora_magnitude_vector [default: the input, which has them too]
    #[arg(long, value_name = "FILE")]
    adapter: Option<PathBuf>,
    /// s itself
    #[arg(long, value_name = "S", required_unless_present = "alpha", conflicts_with = "alpha")]
    scaling: Option<f32>,
    /// lora_alpha of adapter_config.json
    #[arg(long)]
    alpha: Option<f32>,
    /// With use_rslora of adapter_config.json
    #[arg(long, requires = "alpha")]
    rslora: bool,
    #[command(flatten)]
    eps: EpsArguments,
    #[command(flatten)]
    device: DeviceArguments,
}

impl Merge {
    pub fn run(&self, json: bool) -> Result<Report, Failure> {
        let scaling = match (self.scaling, self.alpha) {
            (Some(s), _) => Scaling::Factor(s),
            (None, Some(alpha)) if self.rslora => Scaling::RankStabilized(alpha),
            (None, Some(alpha)) => Scaling::Alpha(alpha),
            (None, None) => return Err(Failure::usage("--alpha or --scaling has to say what s is")),
        };
        let (checkpoint, place) = self.target.open(json)?;
        let adapter = match &self.adapter {
            Some(path) => Some(Checkpoint::open(path).map_err(|error| place.failure(error))?),
            None => None,
        };
        let idle = notes(&checkpoint, vec![]);
        let rules = self.target.apply(self.eps.apply(Rules::default()));
        let chosen = self.device.choose()?;
        let progress = Progress::bytes("merging");
        let mut show = |p: checkpoint::Progress<'_>| progress.show(p);
        let device = chosen.device();
        let result = checkpoint::merge(device, &checkpoint, adapter.as_ref(), place.path(), scaling, &rules, &mut show);
        drop(progress);
        report(&place, MERGED, Some(&chosen), result, idle)
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

/// Writes a checkpoint whose weights are spelled the other way. No number is touched.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  weightnorm convert old.safetensors new.safetensors --spelling parametrizations
  weightnorm convert model.safetensors model.safetensors --force --spelling g-v
  weightnorm convert training.ckpt model.safetensors --spelling g-v --key state_dict

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
    pub fn run(&self, json: bool) -> Result<Report, Failure> {
        let (checkpoint, place) = self.target.open(json)?;
        let idle = notes(&checkpoint, self.rules.idle(&names(&checkpoint)));
        let progress = Progress::bytes("writing");
        let (spelling, rules) = (self.spelling.spelling(), self.target.apply(self.rules.rules()));
        let result = checkpoint::convert(&checkpoint, place.path(), spelling, &rules, &mut |p| progress.show(p));
        drop(progress);
        report(&place, "converted", None, result, idle)
    }
}

/// Writes the index of a folder of .safetensors files, once all parts of a sharded checkpoint are there.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  parallel -j4 weightnorm fold large/ folded/ --shard {}/32 ::: $(seq 32) && weightnorm index folded/
  sbatch --array=1-32 --wrap 'weightnorm fold large/ folded/ --shard $SLURM_ARRAY_TASK_ID/32'

Exit codes: 0 done, 2 a file is missing or not of the format, two have a tensor of one name, or an
index is there.")]
pub struct Index {
    /// The folder. Of files NAME-00001-of-00032.safetensors the index is NAME.safetensors.index.json, else
    /// model.safetensors.index.json
    folder: PathBuf,
    /// Replaces an index that is there
    #[arg(long)]
    force: bool,
    /// Writes it although not all files are there that their numbers tell of: where one has lost all its tensors
    #[arg(long)]
    allow_missing: bool,
}

impl Index {
    pub fn run(&self) -> Result<Report, Failure> {
        let index = checkpoint::write_index(&self.folder, self.force, self.allow_missing)?;
        let output = index.path.to_string_lossy();
        let (tensors, files) = (count(index.tensors, "tensor"), count(index.files, "file"));
        let text = format!("{output}: {tensors} in {files}, {}\n", DecimalBytes(index.bytes));
        let json = json!({ "output": output, "files": index.files, "tensors": index.tensors, "bytes": index.bytes });
        Ok(Report::new(false, text, json))
    }
}
