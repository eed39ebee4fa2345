//! The program on a machine without any GPU driver, and its arguments.
use std::process::{Command, Output};

/// Where no adapter can be found.
fn characters(arguments: &[&str]) -> Output {
    let nowhere = "/nonexistent.json";
    Command::new(env!("CARGO_BIN_EXE_characters"))
        .args(arguments)
        .envs([("WGPU_BACKEND", "vulkan"), ("VK_DRIVER_FILES", nowhere), ("VK_ICD_FILENAMES", nowhere)])
        .env_remove("WGPU_ADAPTER_NAME")
        .output()
        .expect("it runs")
}

#[test]
fn characters_without_a_driver_says_so_in_a_line() {
    let output = characters(&[]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), error.lines().count()), (Some(2), 1), "{output:?}");
    assert!(error.starts_with("characters: no GPU adapter found") && output.stdout.is_empty(), "{output:?}");
}

#[test]
fn characters_tells_what_is_wrong_with_its_arguments() {
    for (arguments, part) in [
        (&["--sgd", "0.1,x"][..], "--sgd 0.1,x: "),
        (&["--adam", "0.1,-1"], "--adam: expected numbers above 0"),
        (&["--sgd", "nan"], "--sgd: expected numbers above 0"),
        (&["--sgd", "none", "--adam", "none"], "nothing is left to compare"),
        (&["--steps", "0"], "--steps 0: expected 1 to"),
        (&["--units", "2049"], "--units 2049: expected 1 to 2048"),
        (&["--length", "65"], "--length 65: expected 1 to 64"),
        (&["--temperature", "0"], "--temperature 0: expected 0.01 to 100"),
        (&["--what"], "--what"),
    ] {
        let output = characters(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(error.contains(part), "{arguments:?}: {error}");
    }
}
