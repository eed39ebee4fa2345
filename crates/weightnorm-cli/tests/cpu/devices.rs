//! The program where there is no adapter: the reference computes. And what goes to standard output.
use std::path::Path;
use std::process::Stdio;

use safetensors::Dtype;
use serde_json::{Value, json};
use weightnorm_checkpoint::{Checkpoint, Spelling};

use crate::common::File;
use crate::files::{Folder, made, of_numbers, vocoder, write, write_sharded};
use crate::program::{documented, run, run_json, without_gpu};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn data(name: &str) -> String {
    format!("{}/../weightnorm-checkpoint/tests/data/{name}/input.safetensors", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn cli_reference_needs_no_adapter() {
    let folder = Folder::new("reference");
    let (from, to, parted) = (folder.join("in.safetensors"), folder.join("out"), folder.join("parted"));
    write(&from, &vocoder(Spelling::Suffixes, Dtype::F16), &[("format", "pt")]);
    // Without it there is an error that names it, in two lines.
    for command in [&["fold", text(&from), text(&to)][..], &["check", text(&from)]] {
        let (code, document) = run_json(without_gpu(), command);
        assert_eq!((code, &document["error"]["kind"]), (2, &json!("device")));
        let message = document["error"]["message"].as_str().unwrap();
        assert!(message.contains("--device reference") && message.lines().count() <= 2, "{message}");
    }
    let reference = ["--device", "reference"];
    let (code, document) = run_json(without_gpu(), [&["fold", text(&from), text(&to)][..], &reference].concat());
    assert_eq!((code, &document["device"]["name"], &document["submissions"]), (0, &json!("reference"), &json!(0)));
    documented(&document);
    assert_eq!(document["weights"].as_array().unwrap().len(), 7);
    let split = ["split", text(&to), text(&parted), "--include", "proj.weight", "--spelling", "g-v"];
    let ran = run(without_gpu(), [&split[..], &reference].concat());
    assert!(
        ran.code == Some(0) && ran.stdout.contains("1 weight split by the reference on the CPU, 11 other"),
        "{ran:?}"
    );
    let ran = run(without_gpu(), [&["check", text(&from)][..], &reference].concat());
    assert!(
        ran.code == Some(0)
            && ran.stdout.starts_with("the reference | CPU")
            && ran.stdout.contains("7 weights, 0 wrong")
    );
    let (code, document) = run_json(without_gpu(), [&["check", text(&from)][..], &reference].concat());
    assert_eq!((code, &document["device"]["kind"]), (0, &json!("cpu")));
    documented(&document);
    for (arguments, word) in [
        (&["check", text(&from), "--device", "reference", "--backend", "gl"][..], "--backend"),
        (&["profile", "4x4", "--device", "reference"], "no adapter"),
    ] {
        let (code, document) = run_json(without_gpu(), arguments);
        assert_eq!((code, &document["error"]["kind"]), (2, &json!("usage")));
        assert!(document["error"]["message"].as_str().unwrap().contains(word), "{document}");
    }
}

/// A variable or an option that leaves no adapter: two lines that say which, and what there could be; no driver is at
/// fault.
#[test]
fn cli_choices_that_leave_no_adapter() {
    let folder = Folder::new("choices");
    let (from, to) = (folder.join("in.safetensors"), folder.join("out"));
    write(&from, &vocoder(Spelling::Suffixes, Dtype::F32), &[]);
    let elsewhere = if cfg!(windows) { "metal" } else { "dx12" };
    let with = |backend: &str| {
        let mut command = without_gpu();
        command.env("WGPU_BACKEND", backend);
        command
    };
    let fold = ["fold", text(&from), text(&to)];
    for (backend, arguments, words) in [
        ("vulcan", &fold[..], &["WGPU_BACKEND is \"vulcan\"", "no backend"][..]),
        ("vulkan,foo", &fold, &["there is no backend \"foo\""]),
        (elsewhere, &fold, &["WGPU_BACKEND is", "this system cannot have that, only"]),
        (elsewhere, &["devices"], &["WGPU_BACKEND is", "this system cannot have that, only"]),
        (
            "",
            &[&fold[..], &["--backend", elsewhere][..]].concat(),
            &["--backend", "this system cannot have that, only"],
        ),
    ] {
        let (code, document) = run_json(with(backend), arguments);
        let message = document["error"]["message"].as_str().unwrap();
        assert_eq!((code, &document["error"]["kind"]), (2, &json!("device")), "{message}");
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
        assert!(!message.contains("Install") && !message.contains("0x0") && message.lines().count() <= 2, "{message}");
    }
    // A backend that has none: a driver may be missing.
    let (code, document) = run_json(with("vulkan"), fold);
    let message = document["error"]["message"].as_str().unwrap();
    assert!(code == 2 && message.starts_with("no GPU adapter found (tried vulkan)"), "{message}");
    assert!(!to.exists());
}

/// PyTorch's formula is the default, and another policy is told.
#[test]
fn cli_eps_that_changes_rows_is_told() {
    let folder = Folder::new("eps");
    let (from, to) = (data("norm_below_1e-12"), folder.join("out"));
    let fold = |options: &[&str]| {
        run_json(without_gpu(), [&["fold", &from, text(&to), "--device", "reference", "--force"], options].concat())
    };
    let w = || File::load(&to).unwrap().tensor("l.weight").unwrap().data.clone();
    let (code, document) = fold(&[]);
    assert_eq!((code, &document["findings"]), (0, &json!([])));
    assert!((w()[0] - 1.2).abs() < 1e-6 && (w()[5] - 0.4).abs() < 1e-6, "{:?}", w());
    let (code, document) = fold(&["--eps", "clamp:1e-12"]);
    assert_eq!((code, &document["findings"][0]["kind"]), (0, &json!("guarded")));
    assert!((w()[0] - 0.6).abs() < 1e-6, "{:?}", w());
    let ran = run(without_gpu(), ["check", &from, "--device", "reference", "--eps", "clamp:1e-12"]);
    assert!(ran.code == Some(0) && ran.stdout.contains("warning: l.weight: the eps policy changes 2 rows"), "{ran:?}");
}

#[test]
fn cli_prefer_says_which_stays() {
    let folder = Folder::new("prefer");
    let (from, to) = (data("stale_weight_beside_the_pair"), folder.join("out"));
    let fold = ["fold", &from, text(&to), "--device", "reference", "--force"];
    for command in [&["inspect", &from][..], &fold, &["check", &from, "--device", "reference"]] {
        let (code, document) = run_json(without_gpu(), command);
        let finding = &document["findings"][0];
        assert_eq!((code, &finding["kind"], &finding["weight"]), (1, &json!("name_taken"), &json!("l.weight")));
        let ran = run(without_gpu(), command);
        assert!(ran.code == Some(1) && ran.stdout.contains("--prefer pair or --prefer weight"), "{ran:?}");
        for (which, weights) in [("pair", 1), ("weight", 0)] {
            let (code, document) = run_json(without_gpu(), [command, &["--prefer", which]].concat());
            assert_eq!((code, &document["findings"][0]["kind"]), (0, &json!("left_out")), "{document}");
            assert_eq!(document["weights"].as_array().map(Vec::len), Some(weights));
        }
    }
    let split = ["split", &from, text(&to), "--include", "l.weight", "--spelling", "g-v", "--force"];
    let ran = run(without_gpu(), [&split[..], &["--device", "reference"]].concat());
    assert!(ran.code == Some(1) && ran.stdout.contains("--prefer pair or --prefer weight"), "{ran:?}");
    let before = Checkpoint::open(Path::new(&from)).unwrap().read_bytes("l.weight").unwrap();
    assert_eq!(Checkpoint::open(&to).unwrap().read_bytes("l.weight").unwrap(), before);
    assert_eq!(run_json(without_gpu(), [&fold[..], &["--prefer", "pair"]].concat()).0, 0);
    let written = Checkpoint::open(&to).unwrap();
    assert!(written.tensors().count() == 2 && written.read_bytes("l.weight").unwrap() != before);
}

/// NaN and infinity are a problem where a file is looked at, and a warning where it is written.
#[test]
fn cli_numbers_that_are_none_are_told() {
    let folder = Folder::new("nan");
    let (from, to) = (folder.join("in"), folder.join("out"));
    let tensors = [
        made("a.weight_g", Dtype::F32, &[2, 1], 1),
        of_numbers("a.weight_v", Dtype::F32, &[2, 2], [f32::NAN, 1.0, 1.0, 1.0]),
    ];
    write(&from, &tensors, &[]);
    let finding = |arguments: &[&str]| {
        let (code, document) = run_json(without_gpu(), arguments);
        assert_eq!(document["findings"][0]["kind"], "non_finite", "{document}");
        (code, document["findings"][0]["message"].as_str().unwrap().to_owned())
    };
    assert_eq!(finding(&["inspect", text(&from)]), (1, "1 element is NaN or infinite".to_owned()));
    assert_eq!(
        finding(&["check", text(&from), "--device", "reference"]),
        (1, "1 element is NaN or infinite".to_owned())
    );
    let fold = ["fold", text(&from), text(&to), "--device", "reference"];
    assert_eq!(finding(&fold), (0, "2 elements are NaN or infinite".to_owned()));
}

/// `-`: the file and nothing else, which is the file that a name would have had.
#[test]
fn cli_writes_to_standard_output() {
    let folder = Folder::new("stdout");
    let (from, to, scratch) = (folder.join("in.safetensors"), folder.join("out"), folder.join("scratch"));
    std::fs::create_dir(&scratch).unwrap();
    write(&from, &vocoder(Spelling::Suffixes, Dtype::F32), &[("format", "pt")]);
    let command = || {
        let mut command = without_gpu();
        command.current_dir(&folder.0).env("TMPDIR", &scratch);
        command
    };
    let fold = |output| ["fold", text(&from), output, "--device", "reference"];
    let convert = |output| ["convert", text(&from), output, "--spelling", "parametrizations"];
    for (named, piped) in [(fold(text(&to)), fold("-")), (convert(text(&to)), convert("-"))] {
        let ran = run(command(), [&named[..], &["--force"]].concat());
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
        let output = command().args(piped).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        assert!(output.stdout == std::fs::read(&to).unwrap());
        assert!(stderr.starts_with("standard output: 7 weights ") && stderr.lines().count() == 1, "{stderr}");
        // With --json there would be two things on it.
        let (code, document) = run_json(command(), piped);
        assert_eq!((code, &document["error"]["kind"]), (2, &json!("usage")));
    }
    // Nothing is sent where nothing is to be written.
    let odd = folder.join("odd.safetensors");
    write(&odd, &[made("a.weight_g", Dtype::F32, &[4, 1], 1)], &[]);
    let ran = run(command(), ["fold", text(&odd), "-", "--device", "reference"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""));
    assert!(ran.stderr.contains("nothing was written") && ran.stderr.contains("a.weight_v is missing"), "{ran:?}");
    #[cfg(unix)]
    {
        let ran = run(command(), ["fold", text(&from), "/dev/stdout", "--device", "reference", "--force"]);
        assert!(ran.code == Some(2) && ran.stderr.contains("- is standard output"), "{ran:?}");
    }
    // A folder is no stream.
    let index = write_sharded(&folder.join("model"), &[("1.safetensors", vocoder(Spelling::Suffixes, Dtype::F32))]);
    let ran = run(command(), ["fold", text(&index), "-", "--device", "reference"]);
    assert!(ran.code == Some(2) && ran.stderr.contains("sharded") && ran.stdout.is_empty(), "{ran:?}");
    // A reader that leaves has not got the file.
    #[cfg(unix)]
    {
        let large = folder.join("large.safetensors");
        write(
            &large,
            &[made("a.weight_g", Dtype::F32, &[1 << 9, 1], 1), made("a.weight_v", Dtype::F32, &[1 << 9, 1 << 9], 2)],
            &[],
        );
        let arguments = ["convert", text(&large), "-", "--spelling", "parametrizations"];
        let mut child = command().args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && stderr.contains("standard output"), "{stderr}");
    }
    assert!(!folder.join("-").exists() && std::fs::read_dir(&scratch).unwrap().next().is_none());
}

#[test]
fn cli_counts_one_and_many() {
    let folder = Folder::new("plural");
    let path = folder.join("in.safetensors");
    let tensors = [
        made("a.weight_g", Dtype::F32, &[2, 1], 1),
        of_numbers("a.weight_v", Dtype::F32, &[2, 2], [0.0, 0.0, 1.0, 1.0]),
        made("b", Dtype::F32, &[1], 2),
    ];
    write(&path, &tensors, &[]);
    let shown = run(without_gpu(), ["inspect", text(&path)]).stdout;
    assert!(shown.contains("1 weight-normalized, 1 other tensor\n") && shown.contains("1 row is zero\n"), "{shown}");
    let shown = run(without_gpu(), ["check", text(&path), "--device", "reference", "--allow-zero-rows"]).stdout;
    assert!(shown.contains("1 weight, 0 wrong"), "{shown}");
}

/// A folder that takes no file: the error names the output and the folder, and no file that nobody has heard of.
#[test]
#[cfg(target_os = "linux")]
fn cli_names_the_output_and_its_folder() {
    let folder = Folder::new("sealed");
    let path = folder.join("in.safetensors");
    write(&path, &vocoder(Spelling::Suffixes, Dtype::F32), &[]);
    let (code, document) =
        run_json(without_gpu(), ["convert", text(&path), "/proc/out.safetensors", "--spelling", "parametrizations"]);
    let Value::String(message) = &document["error"]["message"] else { panic!("{document}") };
    assert_eq!((code, &document["error"]["kind"]), (2, &json!("output")));
    assert!(message.contains("/proc/out.safetensors") && message.contains("folder /proc"), "{message}");
    assert!(!message.contains(".weightnorm-"), "{message}");
}
