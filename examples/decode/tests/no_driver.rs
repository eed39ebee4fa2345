//! The example on a machine without any GPU driver.
use std::process::{Command, Output};

use tinyjson::JsonValue;

/// Where no adapter can be found.
fn decode(arguments: &[&str]) -> Output {
    let nowhere = "/nonexistent.json";
    Command::new(env!("CARGO_BIN_EXE_decode"))
        .args(arguments)
        .envs([("WGPU_BACKEND", "vulkan"), ("VK_DRIVER_FILES", nowhere), ("VK_ICD_FILENAMES", nowhere)])
        .env_remove("WGPU_ADAPTER_NAME")
        .output()
        .expect("it runs")
}

#[test]
fn decode_without_a_driver_says_so_and_how_to_get_one() {
    let output = decode(&[]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let first = text.lines().next().unwrap_or_default();
    for part in ["CPU reference", "no GPU adapter found", "apt install"] {
        assert!(first.contains(part), "{text}");
    }
    assert!(text.contains("every point is within its own") && !text.contains("NOT every"), "{text}");
}

#[test]
fn decode_without_a_driver_computes_in_f64() {
    let output = decode(&["--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let line: JsonValue = String::from_utf8(output.stdout).expect("text").parse().expect("one line of JSON");
    let number = |key: &str| *line[key].get::<f64>().expect("a number");
    assert_eq!(line["device"], JsonValue::String("reference".into()), "{line:?}");
    assert_eq!(line["adapter"], JsonValue::Null, "{line:?}");
    assert_eq!(line["within_bound"], JsonValue::Boolean(true), "{line:?}");
    assert!(number("max_abs_error") <= number("bound") && number("bound") < 1e-9, "{line:?}");
    assert!(number("points") > 0.0 && number("points_per_second") > 0.0, "{line:?}");
}
