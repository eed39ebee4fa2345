//! The program on a machine without any GPU driver, and its arguments.
use std::process::{Command, Output};

use tinyjson::JsonValue;

use crate::common::{bytes, path};

/// Where no adapter can be found.
fn vocode(arguments: &[&str]) -> Output {
    let nowhere = "/nonexistent.json";
    Command::new(env!("CARGO_BIN_EXE_vocode"))
        .args(arguments)
        .envs([("WGPU_BACKEND", "vulkan"), ("VK_DRIVER_FILES", nowhere), ("VK_ICD_FILENAMES", nowhere)])
        .env_remove("WGPU_ADAPTER_NAME")
        .output()
        .expect("it runs")
}

fn text(path: std::path::PathBuf) -> String {
    path.to_string_lossy().into_owned()
}

#[test]
fn vocode_without_a_driver_says_so_and_how_to_get_one() {
    let output = vocode(&[&text(path("dac_small.safetensors")), "--input", &text(path("dac_small.io.safetensors"))]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let first = text.lines().next().unwrap_or_default();
    for part in ["CPU reference", "no GPU adapter found", "apt install"] {
        assert!(first.contains(part), "{text}");
    }
    assert!(text.contains("every sample is within its own") && !text.contains("NOT every"), "{text}");
}

#[test]
fn vocode_without_a_driver_computes_in_f64() {
    let wav = std::env::temp_dir().join(format!("vocode-{}.wav", std::process::id()));
    let (model, io, wav_name) = (path("dac_small.safetensors"), path("dac_small.io.safetensors"), text(wav.clone()));
    let output = vocode(&[&text(model), "--input", &text(io), "--output", &wav_name, "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let line: JsonValue = String::from_utf8(output.stdout).expect("text").parse().expect("one line of JSON");
    let number = |key: &str| *line[key].get::<f64>().expect("a number");
    assert_eq!(line["device"], JsonValue::String("reference".into()), "{line:?}");
    assert_eq!(line["within_bound"], JsonValue::Boolean(true), "{line:?}");
    assert!(number("max_abs_error") <= number("bound") && number("bound") < 1e-11, "{line:?}");
    assert_eq!((number("samples"), number("dispatches")), (1280.0, 0.0), "{line:?}");
    assert!(number("seconds_per_second") > 0.0, "{line:?}");
    let sound = hound::WavReader::open(&wav).expect("a WAV");
    let spec = sound.spec();
    assert_eq!((spec.channels, spec.sample_rate, spec.bits_per_sample), (1, 24_000, 16));
    let (_, expected) = crate::common::io("dac_small");
    let samples: Vec<i16> = sound.into_samples().map(|sample| sample.expect("a sample")).collect();
    let expected: Vec<i16> = expected.iter().map(|x| (x * 32_767.0).round() as i16).collect();
    assert_eq!(samples, expected);
    std::fs::remove_file(wav).expect("it was written");
}

#[test]
fn vocode_tells_what_is_wrong_with_its_arguments() {
    let (model, io) = (text(path("dac_small.safetensors")), text(path("dac_small.io.safetensors")));
    let cut = std::env::temp_dir().join(format!("vocode-cut-{}.safetensors", std::process::id()));
    let whole = bytes("dac_small.safetensors");
    std::fs::write(&cut, &whole[..whole.len() - 100]).expect("it can be written");
    let cut_name = text(cut.clone());
    for (arguments, parts) in [
        (&[&model[..]][..], &["--input is missing"][..]),
        (&["/nonexistent", "--input", &io], &["/nonexistent: "]),
        (&[&cut_name, "--input", &io], &[&cut_name, "is not all there"]),
        (&[&model, "--input", &model], &["dac_small.safetensors", "tensor input is missing"]),
        (&["--input", &io], &["tensor input has shape [1, 32, 20]", "expected [1, 80, frames]"]),
        (&["--random", "v4"], &["expected v1, v2 or v3"]),
        (&[&model, "--input", &io, "--random", "v1"], &["not both"]),
        (&[&model, "--input", &io, "--chunk", "0"], &["--chunk 0"]),
        (&["--what"], &["--what"]),
    ] {
        let output = vocode(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(parts.iter().all(|part| error.contains(part)), "{arguments:?}: {error}");
    }
    std::fs::remove_file(cut).expect("it was written");
}
