//! What a command says: a text for people or one JSON document for programs, and its exit code.
use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::ValueEnum;
use serde_json::{Value, json};
use weightnorm::{Axis, DType};

/// What a command has to say when it is done.
pub struct Report {
    /// Whether it found problems: exit code 1.
    pub problems: bool,
    /// For people.
    pub text: String,
    /// For programs, an object.
    pub json: Value,
    /// Whether stdout holds something else, so that the text goes to stderr.
    pub aside: bool,
}

impl Report {
    pub fn new(problems: bool, text: String, json: Value) -> Report {
        Report { problems, text, json, aside: false }
    }
}

/// So many of something.
pub fn count(number: usize, one: &str) -> String {
    format!("{number} {one}{}", if number == 1 { "" } else { "s" })
}

/// Why a command could not do its work: exit code 2.
#[derive(Debug)]
pub struct Failure {
    pub kind: Kind,
    pub message: String,
}

/// What is to blame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// The arguments.
    Usage,
    /// A file that was to be read, or its content.
    Input,
    /// What was to be written.
    Output,
    /// No adapter, or what it or its driver said.
    Device,
}

impl Failure {
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure { kind: Kind::Usage, message: message.into() }
    }
}

impl From<weightnorm::Error> for Failure {
    fn from(error: weightnorm::Error) -> Failure {
        let message = match &error {
            // The library's words are for those who write programs.
            weightnorm::Error::Device(weightnorm::DeviceError::OutOfMemory { .. })
            | weightnorm::Error::Limit(weightnorm::LimitError::TooLarge { .. })
            | weightnorm::Error::Limit(weightnorm::LimitError::TensorTooLarge { .. }) => {
                format!("{error}. Another --device may hold more: see `weightnorm devices`")
            }
            _ => error.to_string(),
        };
        Failure { kind: Kind::Device, message }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Usage => "usage",
            Kind::Input => "input",
            Kind::Output => "output",
            Kind::Device => "device",
        })
    }
}

/// Says what came of a command, and gives its exit code. An error goes to stderr, and with `json` to stdout too, so
/// that a program finds one document there in any case.
pub fn conclude(command: &str, json: bool, result: Result<Report, Failure>) -> ExitCode {
    let printed = match &result {
        Ok(report) if json => {
            let status = if report.problems { "problems" } else { "done" };
            print(&document(Some(command), status, &report.json))
        }
        // Nobody can be told where stderr is closed.
        Ok(report) if report.aside => {
            let _ = io::stderr().write_all(printable(&report.text).as_bytes());
            Ok(())
        }
        Ok(report) => print(&printable(&report.text)),
        Err(failure) => {
            complain(&failure.message);
            if json { print_error(Some(command), failure.kind, &failure.message) } else { Ok(()) }
        }
    };
    if let Err(error) = printed {
        complain(&format!("standard output: {error}"));
        return ExitCode::from(2);
    }
    ExitCode::from(result.map_or(2, |report| report.problems.into()))
}

/// Nobody can be told where stderr is closed.
pub fn complain(message: &str) {
    let _ = writeln!(io::stderr(), "weightnorm: {}", printable(message));
}

/// Without control characters, nor those that turn the direction of writing: names come from files of strangers, and a
/// terminal would obey them.
fn printable(text: &str) -> String {
    let turns = |c| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let plain = |c: char| c == '\n' || !(c.is_control() || turns(c));
    text.chars().map(|c| if plain(c) { c } else { char::REPLACEMENT_CHARACTER }).collect()
}

/// What holds a name from a file, and is to stay the part of a line that it is.
pub fn in_line(text: &str) -> String {
    text.replace('\n', "\u{fffd}")
}

/// The document of an error. Without a command if it is that of the arguments.
pub fn print_error(command: Option<&str>, kind: Kind, message: &str) -> io::Result<()> {
    let error = json!({ "error": { "kind": kind.to_string(), "message": message } });
    print(&document(command, "error", &error))
}

/// Puts `command` and `status` in front.
fn document(command: Option<&str>, status: &str, value: &Value) -> String {
    let mut all = serde_json::Map::new();
    all.insert("command".to_owned(), command.into());
    all.insert("status".to_owned(), status.into());
    if let Value::Object(map) = value {
        all.extend(map.clone());
    }
    Value::Object(all).to_string() + "\n"
}

/// Writes to stdout. A reader that has left, such as `head`, is no error.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Columns of text. Those whose header starts with a blank are numbers, to the right; the last one may be of any
/// length.
pub struct Table {
    headers: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(headers: &[&'static str]) -> Table {
        Table { headers: headers.to_vec(), rows: vec![] }
    }

    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells.iter().map(|cell| in_line(cell)).collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header: Vec<String> = self.headers.iter().map(|h| h.trim_start().to_owned()).collect();
        let width = |i: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(i)).chain(header.get(i));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..header.len()).map(width).collect();
        for row in std::iter::once(&header).chain(&self.rows) {
            let mut line = String::new();
            for ((cell, &width), name) in row.iter().zip(&widths).zip(&self.headers) {
                if name.starts_with(' ') {
                    write!(line, "{cell:>width$}  ")?;
                } else {
                    write!(line, "{cell:<width$}  ")?;
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// `[512, 512, 7]` as `512x512x7`, as shapes are given on the command line too.
pub fn shape_text(shape: &[usize]) -> String {
    match shape {
        [] => "scalar".to_owned(),
        _ => shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x"),
    }
}

/// A time in three digits.
pub fn seconds_text(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.1} µs", s * 1e6),
        s if s < 1.0 => format!("{:.2} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

pub fn axis_text(axis: Axis) -> String {
    match axis {
        Axis::Kept(axis) => axis.to_string(),
        Axis::Whole => "whole".to_owned(),
    }
}

/// A number or "whole".
pub fn axis_json(axis: Axis) -> Value {
    match axis {
        Axis::Kept(axis) => axis.into(),
        Axis::Whole => "whole".into(),
    }
}

/// A storage type as an argument.
#[derive(Clone, Copy, ValueEnum)]
pub enum DTypeArgument {
    F32,
    F16,
    Bf16,
}

impl DTypeArgument {
    pub fn dtype(self) -> DType {
        match self {
            DTypeArgument::F32 => DType::F32,
            DTypeArgument::F16 => DType::F16,
            DTypeArgument::Bf16 => DType::Bf16,
        }
    }
}

pub fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "f32",
        DType::F16 => "f16",
        DType::Bf16 => "bf16",
    }
}
