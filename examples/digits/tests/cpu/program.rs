//! The program on a machine without any GPU driver, and its arguments.
use std::process::{Command, Output};

/// Where no adapter can be found.
fn digits(arguments: &[&str]) -> Output {
    let nowhere = "/nonexistent.json";
    Command::new(env!("CARGO_BIN_EXE_digits"))
        .args(arguments)
        .envs([("WGPU_BACKEND", "vulkan"), ("VK_DRIVER_FILES", nowhere), ("VK_ICD_FILENAMES", nowhere)])
        .env_remove("WGPU_ADAPTER_NAME")
        .output()
        .expect("it runs")
}

#[test]
fn digits_without_a_driver_says_so_in_a_line() {
    let output = digits(&[]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), error.lines().count()), (Some(2), 1), "{output:?}");
    assert!(error.starts_with("digits: no GPU adapter found") && output.stdout.is_empty(), "{output:?}");
}

#[test]
fn digits_tells_what_is_wrong_with_its_arguments() {
    for (arguments, part) in [
        (&["--rates", "0.1,x"][..], "--rates 0.1,x: "),
        (&["--rates", "0.1,-1"], "--rates: expected numbers above 0"),
        (&["--rates", "nan"], "--rates: expected numbers above 0"),
        (&["--epochs", "0"], "--epochs 0: expected 1 to"),
        (&["--seeds", "0"], "--seeds 0: expected 1 to"),
        (&["--batch", "1298"], "--batch 1298: expected 1 to 1297"),
        (&["--what"], "--what"),
    ] {
        let output = digits(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(error.contains(part), "{arguments:?}: {error}");
    }
}
