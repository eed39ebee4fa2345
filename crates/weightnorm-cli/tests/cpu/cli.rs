//! The program, without an adapter: what it prints, its exit codes, its errors, and what it does to files.
use std::ffi::OsString;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;

use safetensors::Dtype;
use serde_json::{Value, json};
use weightnorm_checkpoint::Spelling;

use crate::files::{Folder, Made, made, of_numbers, raw, vocoder, write};
use crate::program::{Ran, documented, keys, run, run_json, without_gpu};

const COMMANDS: [&str; 10] =
    ["inspect", "fold", "split", "convert", "merge", "check", "index", "devices", "profile", "completions"];

pub fn quiet(arguments: &[&str]) -> Ran {
    run(without_gpu(), arguments)
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A small checkpoint with nothing odd about it.
fn good(folder: &Folder) -> String {
    let path = folder.join("good.safetensors");
    write(&path, &vocoder(Spelling::Suffixes, Dtype::F32), &[("format", "pt")]);
    text(&path).to_owned()
}

#[test]
fn cli_help_fits_and_names_the_exit_codes() {
    let all = quiet(&["--help"]);
    assert_eq!((all.code, all.stderr.as_str()), (Some(0), ""));
    for word in ["Exit codes:", "  0  done", "  1  ", "  2  ", "WGPU_BACKEND", "--json"].iter().chain(&COMMANDS) {
        assert!(all.stdout.contains(word), "{word}");
    }
    for command in COMMANDS {
        for flag in ["-h", "--help"] {
            let Ran { code, stdout, stderr } = quiet(&[command, flag]);
            assert_eq!((code, stderr.as_str()), (Some(0), ""));
            assert!(stdout.lines().all(|line| line.chars().count() <= 100), "{stdout}");
            assert!(flag == "-h" || command == "completions" || stdout.contains("Exit codes: 0 done"), "{stdout}");
        }
    }
    let version = quiet(&["--version"]);
    assert_eq!(version.stdout, concat!("weightnorm ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn cli_completions_know_every_command() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = quiet(&["completions", shell]);
        assert_eq!(script.code, Some(0));
        assert!(COMMANDS.iter().all(|command| script.stdout.contains(command)), "{shell}");
        assert_eq!(run_json(without_gpu(), ["completions", shell]).1["script"], script.stdout);
    }
}

#[test]
fn cli_inspect_shows_every_weight() {
    let folder = Folder::new("inspect");
    let path = good(&folder);
    let Ran { code, stdout, stderr } = quiet(&["inspect", &path]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(stdout.lines().all(|line| line.chars().count() <= 100), "{stdout}");
    let lines: Vec<Vec<&str>> = stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0][..3], ["shape", "axis", "type"]);
    let shown: Vec<_> = lines[1..8].iter().map(|l| (l[0], l[1], *l.last().unwrap())).collect();
    let expected = [
        ("16x8x7", "0", "conv_pre.weight"),
        ("24x6x16", "2", "encoder.pos_conv.weight"),
        ("9x20x3", "whole", "gain.weight"),
        ("40x10", "0", "lstm.weight_hh_l0"),
        ("33", "0", "proj.bias"),
        ("33x57", "0", "proj.weight"),
        ("16x8x4", "0", "ups.0.weight"),
    ];
    assert!(expected.iter().all(|line| shown.contains(line)), "{stdout}");
    assert_eq!(stdout.lines().last(), Some("7 weight-normalized, 5 other tensors"));

    let (code, document) = run_json(without_gpu(), ["inspect", &path]);
    assert_eq!(code, 0);
    let top = "command status path files metadata weights dora other_tensors findings notes";
    assert_eq!(keys(&document).join(" "), top);
    assert_eq!((&document["metadata"], &document["files"]), (&json!({ "format": "pt" }), &json!([path])));
    let weights = document["weights"].as_array().unwrap();
    assert_eq!(weights.len(), 7);
    for weight in weights {
        let expected = "name spelling shape g_shape axis dtype g_dtype norm g_over_norm zero_rows non_finite";
        assert_eq!(keys(weight).join(" "), expected);
    }
    let whole = weights.iter().find(|w| w["name"] == "gain.weight").unwrap();
    assert_eq!((&whole["axis"], &whole["shape"]), (&json!("whole"), &json!([9, 20, 3])));
    let norm = whole["norm"]["min"].as_f64().unwrap();
    // 540 numbers between -1 and 1.
    assert!((10.0..18.0).contains(&norm) && whole["norm"]["max"].as_f64() == Some(norm), "{norm}");
}

#[test]
fn cli_inspect_finds_problems() {
    let folder = Folder::new("problems");
    let path = folder.join("odd.safetensors");
    let ones = |name: &str, shape: &[usize]| of_numbers(name, Dtype::F32, shape, vec![1.0; shape.iter().product()]);
    let tensors = [
        ones("lonely.weight_g", &[4, 1]),
        ones("square.weight_g", &[4]),
        ones("square.weight_v", &[4, 4]),
        ones("zero.weight_g", &[2, 1]),
        of_numbers("zero.weight_v", Dtype::F32, &[2, 2], [0.0, 0.0, 1.0, 1.0]),
        ones("nan.weight_g", &[2, 1]),
        of_numbers("nan.weight_v", Dtype::F32, &[2, 2], [f32::NAN, 0.0, 1.0, f32::INFINITY]),
        ones("wide.weight_g", &[2, 1]),
        of_numbers("wide.weight_v", Dtype::F64, &[2, 2], [1.0; 4]),
    ];
    write(&path, &tensors, &[]);
    let kinds = |options: &[&str]| {
        let (code, document) = run_json(without_gpu(), [&["inspect", text(&path)], options].concat());
        let findings = document["findings"].as_array().unwrap();
        assert!(findings.iter().all(|finding| keys(finding) == ["weight", "kind", "message"]));
        let mut kinds: Vec<String> =
            findings.iter().map(|f| format!("{} {}", f["weight"], f["kind"]).replace('"', "")).collect();
        kinds.sort();
        (code, kinds, document)
    };
    let (code, all, document) = kinds(&[]);
    let [lonely, nan, square, wide, zero] = [
        "lonely.weight missing_partner",
        "nan.weight non_finite",
        "square.weight ambiguous_axis",
        "wide.weight narrowed",
        "zero.weight zero_rows",
    ];
    assert_eq!((code, all), (1, [lonely, nan, square, wide, zero].map(String::from).to_vec()));
    let nan_weight = document["weights"].as_array().unwrap().iter().find(|w| w["name"] == "nan.weight").unwrap();
    assert_eq!((&nan_weight["norm"], &nan_weight["non_finite"]), (&Value::Null, &json!(2)));

    // f64 that becomes f32 is a warning, no problem.
    assert_eq!(kinds(&["--include", "wide*"]).0, 0);
    // The axis named, the odd ones left out.
    let rest = ["--axis", "sq*=1", "--exclude", "lonely*", "--exclude", "nan.*", "--exclude", "zero?weight"];
    assert_eq!(kinds(&rest).0, 0);
    // A pattern that fits nothing is told.
    let (code, _, document) = kinds(&["--include", "wide*", "--exclude", "mistyped.*", "--axis", "w?de.weight=0"]);
    assert_eq!((code, &document["notes"]), (0, &json!(["--exclude mistyped.* fits no weight"])));

    let shown = quiet(&["inspect", text(&path)]);
    assert_eq!(shown.code, Some(1));
    for advice in ["--axis 'NAME=AXIS'", "--allow-zero-rows", "--exclude 'NAME'"] {
        assert!(shown.stdout.contains(advice), "{}", shown.stdout);
    }
}

#[test]
fn cli_convert_there_and_back() {
    let folder = Folder::new("convert");
    let path = good(&folder);
    let (there, back) = (folder.join("there"), folder.join("back"));
    let (code, document) = run_json(without_gpu(), ["convert", &path, text(&there), "--spelling", "parametrizations"]);
    let expected =
        "command status output written weights copied_tensors bytes skipped_files submissions findings notes";
    assert_eq!((code, keys(&document).join(" ")), (0, expected.to_owned()));
    assert_eq!((&document["written"], document["weights"].as_array().unwrap().len()), (&json!(true), 7));
    let names = |path: &Path| {
        let bytes = std::fs::read(path).unwrap();
        safetensors::SafeTensors::deserialize(&bytes).unwrap().names().join(" ")
    };
    assert!(names(&there).contains("proj.parametrizations.weight.original1") && !names(&there).contains("weight_v"));
    let ran = quiet(&["convert", text(&there), text(&back), "--spelling", "g-v"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    assert!(std::fs::read(&back).unwrap() == std::fs::read(&path).unwrap());

    // What is there is replaced only on demand; then it may be the input itself.
    let before = std::fs::read(&there).unwrap();
    let arguments = ["convert", text(&there), text(&there), "--spelling", "g-v"];
    let (code, document) = run_json(without_gpu(), arguments);
    assert_eq!((code, &document["error"]["kind"]), (2, &json!("output")));
    assert!(document["error"]["message"].as_str().unwrap().contains("--force"));
    assert!(std::fs::read(&there).unwrap() == before);
    assert_eq!(quiet(&[&arguments[..], &["--force"]].concat()).code, Some(0));
    assert!(std::fs::read(&there).unwrap() == std::fs::read(&path).unwrap());
    assert_eq!(folder.names(), ["back", "good.safetensors", "there"]);
}

#[test]
fn cli_convert_writes_nothing_where_there_are_problems() {
    let folder = Folder::new("refused");
    let (path, output) = (folder.join("in.safetensors"), folder.join("out.safetensors"));
    write(&path, &[made("a.weight_g", Dtype::F32, &[4, 1], 1), made("b.bias", Dtype::F32, &[4], 2)], &[]);
    let (code, document) =
        run_json(without_gpu(), ["convert", text(&path), text(&output), "--spelling", "parametrizations"]);
    assert_eq!((code, &document["written"]), (1, &json!(false)));
    assert_eq!(keys(&document), ["command", "status", "output", "written", "findings", "notes"]);
    assert_eq!(document["findings"][0]["kind"], "missing_partner");
    assert_eq!(folder.names(), ["in.safetensors"]);
}

/// Each wrong in one way: exit code 2, the kind, and a word of the message that says what to do or what is wrong.
#[test]
fn cli_errors() {
    let folder = Folder::new("errors");
    let path = good(&folder);
    let file = |name: &str, bytes: &[u8]| {
        std::fs::write(folder.join(name), bytes).unwrap();
        text(&folder.join(name)).to_owned()
    };
    let whole = std::fs::read(&path).unwrap();
    let cut = file("cut.safetensors", &whole[..whole.len() - 1]);
    let empty = file("empty.safetensors", b"");
    let zip = file("torch.pt", b"PK\x03\x04 and so on: archive/data.pkl, and on");
    let garbage = file("garbage.safetensors", &raw("{\"a\": [1}", b""));
    let long = file("long.safetensors", &[0xff; 64]);
    let plain = file("plain.safetensors", &raw("{}", b""));
    let (gone, out) = (text(&folder.join("gone.safetensors")).to_owned(), text(&folder.join("out")).to_owned());
    let nested = text(&folder.join("gone/out")).to_owned();
    let in_a_file = text(&folder.join("good.safetensors/out")).to_owned();
    std::fs::create_dir(folder.join("folder")).unwrap();
    let a_folder = text(&folder.join("folder")).to_owned();
    let read_only = file("read_only", b"as it is");
    let mut permissions = std::fs::metadata(&read_only).unwrap().permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(&read_only, permissions).unwrap();

    let convert =
        |input: &str, output: &str| ["convert", input, output, "--spelling", "g-v"].map(String::from).to_vec();
    let words = |words: &str| words.split(' ').map(String::from).collect::<Vec<_>>();
    let with = |mut arguments: Vec<String>, more: &str| {
        arguments.extend(words(more));
        arguments
    };
    let inspect = |path: &str| vec!["inspect".to_owned(), path.to_owned()];
    let cases = [
        (words("frobnicate"), "usage", "frobnicate"),
        (words("inspect"), "usage", "CHECKPOINT"),
        (words("inspect a b"), "usage", "b"),
        (words("inspect a --axis x=-1"), "usage", "`whole`"),
        (words("inspect a --axis 1.5"), "usage", "`whole`"),
        (words("fold a b --eps clamp"), "usage", "clamp:1e-12"),
        (words("fold a b --eps clamp:-1"), "usage", "clamp:1e-12"),
        (words("fold a b --eps inside:1e-40"), "usage", "1.2e-38"),
        (words("fold a b --eps after:1e38"), "usage", "8.5e37"),
        (words("fold a b --eps none:1"), "usage", "after:E"),
        (words("fold a b --eps max"), "usage", "after:E"),
        (words("fold a b --backend cuda"), "usage", "vulkan"),
        (words("convert a b"), "usage", "--spelling"),
        (words("convert a b --spelling x"), "usage", "g-v"),
        (words("split a b --spelling g-v"), "usage", "--include"),
        (words("profile"), "usage", "SHAPE"),
        (words("profile 4x4 --op frob"), "usage", "row_norms"),
        (words("profile 4x4 --batch 0"), "usage", "from 1 on"),
        (words("profile 4x4 --runs 0"), "usage", "1..=1000"),
        (words("profile 4x4 --axis 2"), "usage", "no such axis"),
        (words("profile 4x4x4 --op linear"), "usage", "nothing to measure"),
        (words("profile 4y4"), "input", "1024x512"),
        (words("profile 0x4"), "input", "1024x512"),
        (vec!["profile".to_owned(), plain.clone()], "input", "no weight-normalized weight"),
        (words("completions tcsh"), "usage", "fish"),
        (inspect(&gone), "input", "No such file"),
        (inspect(&a_folder), "input", "no *.safetensors"),
        (inspect(&cut), "input", "cut.safetensors"),
        (inspect(&empty), "input", "0 bytes"),
        (inspect(&zip), "input", "cut off"),
        (inspect(&garbage), "input", "garbage.safetensors"),
        (inspect(&long), "input", "header"),
        (convert(&gone, &out), "input", "No such file"),
        (convert(&plain, &out), "input", "weightnorm inspect"),
        (with(convert(&path, &out), "--include x*"), "input", "weightnorm inspect"),
        (convert(&path, &a_folder), "output", "a file in it"),
        (with(convert(&path, &a_folder), "--force"), "output", "a file in it"),
        (convert(&path, &nested), "output", "no folder"),
        (convert(&path, &in_a_file), "output", "no folder"),
        (with(convert(&path, &read_only), "--force"), "output", "write permission"),
        (vec!["fold".into(), path.clone(), out.clone()], "device", "no GPU adapter found"),
        (with(vec!["split".into(), plain.clone(), out.clone()], "--include * --spelling g-v"), "device", "apt install"),
        (vec!["check".into(), path.clone()], "device", "no GPU adapter found"),
        (words("profile 4x4 --device 3"), "device", "no GPU adapter found"),
    ];
    let before = folder.names();
    for (arguments, kind, word) in &cases {
        let (code, document) = run_json(without_gpu(), arguments);
        let error = &document["error"];
        assert_eq!((code, keys(error)), (2, vec!["kind", "message"]), "{arguments:?}: {document}");
        let message = error["message"].as_str().unwrap();
        assert!(error["kind"] == *kind && message.contains(word), "{arguments:?}: {document}");
        // Those of the arguments come with the usage.
        assert!(*kind == "usage" || message.lines().count() <= 2, "{message}");
        // Without --json it is the same, and stdout is empty.
        let ran = run(without_gpu(), arguments);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(ran.stderr.contains(message.lines().next().unwrap()), "{arguments:?}: {ran:?}");
    }
    assert_eq!(folder.names(), before);
    assert_eq!(std::fs::read(&read_only).unwrap(), b"as it is");
}

#[test]
fn cli_devices_without_any() {
    let (code, document) = run_json(without_gpu(), ["devices"]);
    assert_eq!((code, &document["devices"]), (1, &json!([])));
    assert!(document["hint"].as_str().unwrap().contains("Install a Vulkan driver"));
    let ran = quiet(&["devices"]);
    assert!(ran.code == Some(1) && ran.stdout.starts_with("no GPU adapter found"), "{ran:?}");
}

/// Names come from strangers: a terminal must not obey them.
#[test]
fn cli_prints_no_control_characters() {
    let folder = Folder::new("control");
    let path = folder.join("in.safetensors");
    let names = ["\u{1b}[2Ja.weight_g", "\u{1b}[2Ja.weight_v", "\u{7}\u{202e}b\nproblem: c.weight_g"];
    let shapes: [&[usize]; 3] = [&[2, 1], &[2, 2], &[2, 1]];
    let tensors: Vec<Made> = names.iter().zip(shapes).map(|(name, shape)| made(name, Dtype::F32, shape, 5)).collect();
    write(&path, &tensors, &[]);
    let shown = quiet(&["inspect", text(&path)]);
    assert_eq!(shown.code, Some(1));
    assert!(shown.stdout.contains("[2Ja.weight") && shown.stdout.contains("c.weight"), "{shown:?}");
    assert!(shown.stdout.chars().all(|c| c == '\n' || !(c.is_control() || c == '\u{202e}')), "{shown:?}");
    assert!(!shown.stdout.contains("\nproblem: c"), "{shown:?}");
    // A program gets the name as it is.
    let document = run_json(without_gpu(), ["inspect", text(&path)]).1;
    assert_eq!(document["weights"][0]["name"], "\u{1b}[2Ja.weight");
}

/// What is to be split is found by looking at all there is.
#[test]
fn cli_inspect_all() {
    let folder = Folder::new("all");
    let path = good(&folder);
    let (code, document) = run_json(without_gpu(), ["inspect", &path, "--all"]);
    documented(&document);
    let all = document["tensors"].as_array().unwrap();
    assert_eq!((code, all.len()), (0, 7 * 2 + 5));
    assert!(all.contains(&json!({ "name": "table", "shape": [3, 5], "dtype": "u8" })), "{document}");
    let shown = quiet(&["inspect", &path, "--all"]).stdout;
    let words: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(words.contains(&vec!["3x5", "u8", "table"]) && !shown.contains("proj.weight_v"), "{shown}");
}

/// A reader that leaves early, like `head`, is no error, and a full disk one that is told.
#[test]
#[cfg(unix)]
fn cli_stdout_may_close() {
    let folder = Folder::new("pipe");
    let path = good(&folder);
    for arguments in [&["inspect", &path][..], &["completions", "bash"], &["--help"], &["inspect", &path, "--json"]] {
        let mut child = without_gpu().args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(0), ""), "{arguments:?}");
    }
    let Ok(full) = std::fs::File::options().write(true).open("/dev/full") else { return };
    let output = without_gpu().args(["inspect", &path]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && stderr.contains("standard output"), "{stderr}");
}

#[test]
#[cfg(target_os = "linux")]
fn cli_paths_need_not_be_utf8() {
    use std::os::unix::ffi::OsStringExt;
    let folder = Folder::new("utf8");
    let path = |name: &[u8]| folder.0.join(OsString::from_vec(name.to_vec())).into_os_string();
    let (input, output) = (path(b"in\xff.safetensors"), path(b"out\xfe"));
    write(Path::new(&input), &vocoder(Spelling::Suffixes, Dtype::F16), &[]);
    let arguments = ["convert".into(), input.clone(), output.clone(), "--spelling=parametrizations".into()];
    let (code, document) = run_json(without_gpu(), &arguments);
    assert_eq!(code, 0);
    assert!(document["output"].as_str().unwrap().contains("out\u{fffd}"));
    assert!(Path::new(&output).is_file());
    let ran = run(without_gpu(), &["inspect".into(), path(b"gone\xff")]);
    assert!(ran.code == Some(2) && ran.stderr.contains("gone\u{fffd}"), "{ran:?}");
    // An option that is not UTF-8 is an error of the arguments.
    assert_eq!(run(without_gpu(), &["inspect".into(), input, path(b"--axis=\xff")]).code, Some(2));
}

/// Of the commands that need no adapter; the other ones are in the tests that have one.
#[test]
fn cli_keys_are_documented() {
    let folder = Folder::new("keys");
    let path = good(&folder);
    let output = folder.join("out");
    documented(&run_json(without_gpu(), ["inspect", &path]).1);
    documented(&run_json(without_gpu(), ["convert", &path, text(&output), "--spelling", "parametrizations"]).1);
    documented(&run_json(without_gpu(), ["devices"]).1);
    documented(&run_json(without_gpu(), ["inspect", "/nonexistent"]).1);
    documented(&run_json(without_gpu(), ["completions", "fish"]).1);
}

/// An adapter in a file of its own, with s from alpha and the rank.
#[test]
fn cli_merge_makes_ordinary_weights() {
    let folder = Folder::new("cli-merge");
    let [model, adapter, output] = ["model", "adapter", "out"].map(|name| folder.join(name));
    write(&model, &[made("l.weight", Dtype::F32, &[4, 6], 1), made("l.bias", Dtype::F32, &[4], 2)], &[]);
    let parts = [
        made("base_model.model.l.lora_A.weight", Dtype::F32, &[2, 6], 3),
        made("base_model.model.l.lora_B.weight", Dtype::F32, &[4, 2], 4),
        made("base_model.model.l.lora_magnitude_vector", Dtype::F32, &[4], 5),
    ];
    write(&adapter, &parts, &[]);
    let arguments = ["merge", text(&model), text(&output), "--adapter", text(&adapter), "--device", "reference"];
    let (code, document) = run_json(without_gpu(), arguments.iter().chain(&["--alpha", "4"]));
    assert_eq!(
        (code, &document["weights"][0]["name"], &document["copied_tensors"]),
        (0, &json!("l.weight"), &json!(1))
    );
    let weight = document["weights"][0].as_object().unwrap();
    assert_eq!(weight.keys().collect::<Vec<_>>(), ["name", "shape", "dtype", "rank", "adapter", "base"]);
    documented(&document);
    // s is not guessed.
    assert_eq!(quiet(&arguments).code, Some(2));
    let twice = quiet(&[&arguments[..], &["--force", "--alpha", "4", "--scaling", "2"]].concat());
    assert_eq!(twice.code, Some(2));
    let scaled = quiet(&[&arguments[..], &["--force", "--scaling", "2"]].concat());
    assert!(scaled.code == Some(0) && scaled.stdout.contains("1 weight merged by the reference"), "{scaled:?}");

    // The layers of a file, by the way.
    let (code, document) = run_json(without_gpu(), ["inspect", text(&adapter)]);
    assert_eq!(
        (code, &document["dora"][0]["name"], &document["dora"][0]["base"]),
        (0, &json!("l.weight"), &json!(null))
    );
    documented(&document);
    assert!(quiet(&["inspect", text(&adapter)]).stdout.contains("1 layer of DoRA"));
    let fold = quiet(&["fold", text(&adapter), text(&output), "--force", "--device", "reference"]);
    assert!(fold.code == Some(2) && fold.stderr.contains("merge makes ordinary weights"), "{fold:?}");
    // A row of W0 without a number but zeros, and of B: told, or computed.
    let mut zero = [made("l.weight", Dtype::F32, &[4, 6], 1), parts[1].clone()];
    zero[0].bytes[..24].fill(0);
    zero[1].bytes[..8].fill(0);
    write(&model, &zero[..1], &[]);
    write(&adapter, &[parts[0].clone(), zero[1].clone(), parts[2].clone()], &[]);
    let arguments = [&arguments[..], &["--force", "--scaling", "2"]].concat();
    let refused = quiet(&arguments);
    assert!(refused.code == Some(1) && refused.stdout.contains("--allow-zero-rows"), "{refused:?}");
    assert!(!refused.stdout.contains("--exclude"), "{refused:?}");
    let allowed = quiet(&[&arguments[..], &["--allow-zero-rows", "--eps", "clamp:1e-12"]].concat());
    assert!(allowed.code == Some(0) && allowed.stdout.contains("1 row is zero"), "{allowed:?}");
}
