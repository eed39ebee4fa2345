//! `weightnorm`: weight-normalized checkpoints and the devices that compute them, from the command line.
mod device;
mod files;
mod findings;
mod output;
mod place;
mod profile;
mod progress;
mod rules;
mod write;

use std::io::ErrorKind::BrokenPipe;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use serde_json::json;

use output::{Failure, Kind, Report};

const CONVENTIONS: &str = "\
Exit codes:
  0  done
  1  problems were found; the output names them
  2  the arguments, an input, an output or the device would not do

Output:
  Results go to stdout, errors and progress to stderr; where the output is -, stdout has nothing but the
  file, and results go to stderr. With --json stdout holds exactly one JSON
  document in any case: an object with \"command\" and \"status\", which is \"done\", \"problems\" or
  \"error\" (exit codes 0, 1, 2); after an error \"error\" has a \"kind\" (usage, input, output, device)
  and a \"message\". Numbers that are NaN or infinite are null. README.md of weightnorm-cli lists the keys.

Environment:
  WGPU_BACKEND       vulkan, metal, dx12 or gl, where --backend is not given
  WGPU_ADAPTER_NAME  part of an adapter's name, where --device is not given";

/// Weight-normalized checkpoints, and the devices that compute them.
#[derive(Parser)]
#[command(name = "weightnorm", version, after_long_help = CONVENTIONS, after_help = "Examples and exit codes: --help")]
#[command(max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Prints one JSON document instead of text
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    Inspect(files::Inspect),
    Fold(write::Fold),
    Split(write::Split),
    Convert(write::Convert),
    Merge(write::Merge),
    Index(write::Index),
    Check(files::Check),
    Devices(device::Devices),
    Profile(profile::Profile),
    /// Prints the completions for a shell, for its startup file
    Completions {
        shell: Shell,
    },
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let (name, result) = match &cli.command {
        Command::Inspect(command) => ("inspect", command.run()),
        Command::Fold(command) => ("fold", command.run(cli.json)),
        Command::Split(command) => ("split", command.run(cli.json)),
        Command::Check(command) => ("check", command.run()),
        Command::Convert(command) => ("convert", command.run(cli.json)),
        Command::Merge(command) => ("merge", command.run(cli.json)),
        Command::Index(command) => ("index", command.run()),
        Command::Devices(command) => ("devices", command.run()),
        Command::Profile(command) => ("profile", command.run()),
        Command::Completions { shell } => ("completions", completions(*shell)),
    };
    output::conclude(name, cli.json, result)
}

fn completions(shell: Shell) -> Result<Report, Failure> {
    let mut bytes = vec![];
    clap_complete::generate(shell, &mut Cli::command(), "weightnorm", &mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok(Report::new(false, text.clone(), json!({ "shell": shell.to_string(), "script": text })))
}

/// What clap says: help and version, or an error of the arguments, which is also a document where --json is among them.
fn usage(error: &clap::Error) -> ExitCode {
    let printed = error.print();
    if !error.use_stderr() {
        return if printed.is_err_and(|e| e.kind() != BrokenPipe) { ExitCode::from(2) } else { ExitCode::SUCCESS };
    }
    if std::env::args_os().skip(1).take_while(|a| a != "--").any(|a| a == "--json") {
        let text = error.render().to_string();
        let message = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
        let _ = output::print_error(None, Kind::Usage, message);
    }
    ExitCode::from(2)
}
