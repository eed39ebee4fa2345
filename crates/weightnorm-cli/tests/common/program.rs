//! The program `weightnorm`, run as its users do.
#![allow(dead_code, reason = "each test binary uses its own part of this file")]

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use serde_json::Value;

/// What came of a run.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weightnorm"));
    command.stdin(Stdio::null());
    command
}

/// Where no adapter can be found.
pub fn without_gpu() -> Command {
    let mut command = command();
    let nowhere = "/nonexistent.json";
    command.env("WGPU_BACKEND", "vulkan").env("VK_ICD_FILENAMES", nowhere).env("VK_DRIVER_FILES", nowhere);
    command
}

/// Runs it. No run may panic, whatever it is given.
pub fn run(mut command: Command, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Ran {
    let output = command.args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let ran = Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) };
    assert!(ran.code.is_some_and(|code| code <= 2) && !ran.stderr.contains("panicked"), "{ran:?}");
    ran
}

/// Runs it with --json. In any case stdout is one document, whose status fits the exit code.
pub fn run_json(command: Command, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> (i32, Value) {
    let arguments: Vec<_> = arguments.into_iter().map(|a| a.as_ref().to_owned()).chain(["--json".into()]).collect();
    let ran = run(command, &arguments);
    let document: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {arguments:?}: {ran:?}"));
    let status = ["done", "problems", "error"][ran.code.unwrap() as usize];
    assert_eq!(document["status"], status, "{arguments:?}: {document}");
    if status == "error" {
        let message = document["error"]["message"].as_str().unwrap();
        assert!(!message.is_empty() && ran.stderr.contains(message.lines().next().unwrap()), "{ran:?}");
    } else {
        assert_eq!(document["command"], arguments[0].to_str().unwrap());
    }
    (ran.code.unwrap(), document)
}

/// The keys of an object, in order.
pub fn keys(value: &Value) -> Vec<&str> {
    value.as_object().map(|object| object.keys().map(String::as_str).collect()).unwrap_or_default()
}

/// The README names every key of a document.
pub fn documented(value: &Value) {
    let text = include_str!("../../README.md");
    if let Some(list) = value.as_array() {
        list.iter().for_each(documented);
    }
    for (key, value) in value.as_object().into_iter().flatten() {
        assert!(text.contains(&format!("`{key}`")), "{key} is not in the README");
        // What stands in the metadata is the file's own.
        if key != "metadata" {
            documented(value);
        }
    }
}
