//! The example on a machine without any GPU driver.
use std::process::{Command, Output};

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
    let line: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one line of JSON");
    assert_eq!((&line["device"], &line["adapter"]), (&"reference".into(), &serde_json::Value::Null), "{line}");
    assert_eq!(line["within_bound"], true, "{line}");
    let (error, bound) = (line["max_abs_error"].as_f64().unwrap(), line["bound"].as_f64().unwrap());
    assert!(error <= bound && bound < 1e-9, "{line}");
    assert!(line["points"].as_u64() > Some(0) && line["points_per_second"].as_u64() > Some(0), "{line}");
}
