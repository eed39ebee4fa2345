//! The program on the adapter of the tests: what it computes, against PyTorch's cases and the trained network; what it
//! says of devices and of speed.
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use weightnorm::{Axis, DType, Eps, Gpu, Tile, Timing, cpu};
use weightnorm_checkpoint::Spelling;

use crate::common::{self, File, Golden, compare, flush_bound, norm_bound, row_of, weight_bound};
use crate::files::{Folder, Made, made, of_numbers, vocoder, write};
use crate::program::{command, documented, keys, run, run_json};
use crate::{Failed, Needs, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    suite.test("cli::devices", Needs::Nothing, devices);
    suite.test("cli::device_is_chosen", Needs::Nothing, device_is_chosen);
    suite.test("cli::fold_golden", Needs::Nothing, fold_golden);
    suite.test("cli::fold_the_trained_network", Needs::Nothing, fold_the_trained_network);
    suite.test("cli::split_and_fold", Needs::Nothing, split_and_fold);
    suite.test("cli::zero_rows", Needs::Nothing, zero_rows);
    suite.test("cli::check", Needs::Nothing, check);
    suite.test("cli::profile", Needs::Time, profile);
}

fn text(path: &Path) -> &str {
    path.to_str().expect("names of the tests")
}

/// A run that has to succeed.
fn done(arguments: &[&str]) -> Result<Value, Failed> {
    match run_json(command(), arguments) {
        (0, document) => Ok(document),
        (code, document) => Err(format!("{arguments:?}: exit code {code}: {document}").into()),
    }
}

/// What it says would be used is what is used.
fn devices(gpu: &Gpu) -> Outcome {
    let document = done(&["devices"])?;
    documented(&document);
    let listed = document["devices"].as_array().ok_or("no list")?;
    let report = gpu.report();
    // The first is the one that `Gpu::new` takes, unless WGPU_ADAPTER_NAME asks for another one.
    let same = |d: &&Value| d["name"] == report.info.name && d["backend"] == report.info.backend.to_str();
    let device = listed.iter().find(same).ok_or_else(|| format!("{document}"))?;
    if std::env::var_os("WGPU_ADAPTER_NAME").is_none() {
        assert!(same(&&listed[0]), "{document}");
    }
    let expected = "name kind backend driver vendor_id device_id usable reason features limits uses";
    assert_eq!(keys(device).join(" "), expected);
    let uses = &device["uses"];
    let tiles: Vec<String> = Tile::all_on(gpu).map(|tile| tile.to_string()).collect();
    assert_eq!((&device["usable"], &device["reason"]), (&json!(true), &Value::Null));
    assert_eq!(uses["tiles"], json!(tiles));
    assert_eq!(uses["clock"] == "timestamps", gpu.timing() == Timing::Timestamps);
    if ["WEIGHTNORM_NO_IMMEDIATES", "WEIGHTNORM_REVERSED"].iter().all(|name| std::env::var_os(name).is_none()) {
        assert_eq!(uses["parameters"] == "immediates", report.immediates);
    }
    assert_eq!(device["limits"]["binding_bytes"], report.limits.max_storage_buffer_binding_size);
    let shown = run(command(), ["devices"]);
    assert!(shown.stdout.contains(&report.info.name) && shown.stdout.contains(&tiles.join(" ")), "{shown:?}");
    Ok(())
}

fn device_is_chosen(gpu: &Gpu) -> Outcome {
    let info = gpu.report().info;
    let folder = Folder::new("cli");
    let path = folder.join("a.safetensors");
    write(&path, &[made("a.weight_g", Dtype::F32, &[4, 1], 1), made("a.weight_v", Dtype::F32, &[4, 3], 2)], &[]);
    let backend = info.backend.to_str();
    let half = &info.name[..info.name.len().div_ceil(2)];
    for device in ["0", half, &info.name.to_uppercase()] {
        let document = done(&["check", text(&path), "--device", device, "--backend", backend])?;
        assert_eq!(document["device"]["backend"], backend);
    }
    for device in ["99", "no such adapter"] {
        let (code, document) = run_json(command(), ["check", text(&path), "--device", device]);
        assert_eq!((code, &document["error"]["kind"]), (2, &json!("device")));
        assert!(document["error"]["message"].as_str().is_some_and(|m| m.contains(&info.name)), "{document}");
    }
    Ok(())
}

/// How an eps policy is written.
fn eps_text(eps: Eps) -> String {
    match eps {
        Eps::None => "none".to_owned(),
        Eps::InsideSqrt(e) => format!("inside:{e:e}"),
        Eps::Clamp(e) => format!("clamp:{e:e}"),
        Eps::After(e) => format!("after:{e:e}"),
    }
}

/// Every case of PyTorch of one weight, the convolutions too, in files of either spelling; the axes are found by the shapes.
fn fold_golden(_: &Gpu) -> Outcome {
    let folder = Folder::new("cli");
    let (from, to) = (folder.join("from.safetensors"), folder.join("to.safetensors"));
    let paths = common::golden_files(&common::golden_dir())?;
    let mut cases = paths.iter().map(|path| Golden::load(path)).collect::<Result<Vec<_>, _>>()?;
    cases.retain(|case| ["v", "g", "norm"].iter().all(|name| case.optional(name).is_some()));
    let mut policies: Vec<Eps> = vec![];
    cases.iter().for_each(|case| {
        if !policies.contains(&case.eps) {
            policies.push(case.eps);
        }
    });
    let mut worst: f64 = 0.0;
    for (eps, spelling) in policies
        .iter()
        .flat_map(|&eps| [Spelling::Suffixes, Spelling::Parametrizations].map(|spelling| (eps, spelling)))
    {
        let chosen: Vec<(String, &Golden)> = cases
            .iter()
            .enumerate()
            .filter(|(_, c)| c.eps == eps)
            .map(|(i, c)| (format!("case{i}.weight"), c))
            .collect();
        let mut tensors = vec![];
        for (name, case) in &chosen {
            for (name, part) in [(spelling.g(name), "g"), (spelling.v(name), "v")] {
                let common::Tensor { dtype, shape, bytes, .. } = case.tensor(part)?;
                tensors.push(Made { name, dtype: *dtype, shape: shape.clone(), bytes: bytes.to_vec() });
            }
        }
        write(&from, &tensors, &[]);
        let policy = eps_text(eps);
        let options = ["--force", "--allow-zero-rows", "--eps", &policy];
        done(&[&["fold", text(&from), text(&to)], &options[..]].concat())?;
        let folded = File::load(&to)?;
        assert_eq!(folded.tensors.len(), chosen.len());
        for (name, case) in &chosen {
            let (v, g, norm) = (case.tensor("v")?, case.tensor("g")?, case.tensor("norm")?);
            let expected: Vec<f64> = v
                .data
                .iter()
                .enumerate()
                .map(|(at, v)| {
                    let row = row_of(at, &v_shape(case), case.axis);
                    g.data[row] * (v / norm.data[row])
                })
                .collect();
            let chain = v.data.len() / g.data.len();
            // The file's e is a float64 and the program's the nearest f32.
            let slack = |at: usize| {
                let norm = norm.data[row_of(at, &v_shape(case), case.axis)];
                expected[at].abs() * case.eps_slack(norm) / norm
            };
            let bound = |at: usize| weight_bound(chain, expected[at], case.dtype) + slack(at);
            let got = &folded.tensor(name)?.data;
            let part = compare(got, &expected, Some(case.dtype), bound).map_err(|e| format!("{name} {policy}: {e}"))?;
            worst = worst.max(part);
            if let Some(w) = case.optional("w") {
                compare(got, &w.data, Some(case.dtype), bound).map_err(|e| format!("{name} {policy}: {e}"))?;
            }
        }
    }
    // The comparison can fail: nothing here is exact.
    assert!(worst > 0.0);
    Ok(())
}

fn v_shape(case: &Golden) -> Vec<usize> {
    case.tensor("v").map(|v| v.shape.clone()).unwrap_or_default()
}

/// The weights are those of the CPU, and what is no weight is as it was.
fn fold_the_trained_network(_: &Gpu) -> Outcome {
    let folder = Folder::new("cli");
    let from = common::root().join("tests/data/round_cross.safetensors");
    let to = folder.join("to.safetensors");
    let document = done(&["fold", text(&from), text(&to)])?;
    assert_eq!((&document["written"], document["weights"].as_array().map(Vec::len)), (&json!(true), Some(7)));
    let (old, new) = (std::fs::read(&from)?, std::fs::read(&to)?);
    let (before, after) = (SafeTensors::deserialize(&old)?, SafeTensors::deserialize(&new)?);
    for (name, tensor) in before.tensors().iter().filter(|(name, _)| !name.contains("parametrizations")) {
        assert!(after.tensor(name)?.data() == tensor.data(), "{name}");
    }
    let (file, folded) = (File::load(&from)?, File::load(&to)?);
    assert_eq!(folded.meta("latent_in")?, file.meta("latent_in")?);
    let mut largest: f64 = 0.0;
    for i in 0..7 {
        let [g, v] = [0, 1].map(|part| file.tensor(&format!("model.lin{i}.parametrizations.weight.original{part}")));
        let (g, v) = (g?, v?);
        let norms = cpu::row_norms(&v.data, &v.shape, Axis::Kept(0), Eps::None)?;
        let expected = cpu::normalize(&v.data, &v.shape, Some(&g.data), Axis::Kept(0), Eps::None)?;
        let columns = v.shape[1];
        let bound = |at: usize| {
            weight_bound(columns, expected[at], DType::F32) + flush_bound(v.data[at], norms[at / columns], expected[at])
        };
        let got = &folded.tensor(&format!("model.lin{i}.weight"))?.data;
        largest = largest.max(compare(got, &expected, Some(DType::F32), bound)?);
    }
    assert!(largest > 0.0);
    Ok(())
}

/// Ordinary weights taken apart, along axes of their own, come back.
fn split_and_fold(_: &Gpu) -> Outcome {
    let folder = Folder::new("cli");
    let [plain, parted, back] = ["plain", "parted", "back"].map(|name| folder.join(name));
    for (dtype, as_dtype) in [(Dtype::F32, DType::F32), (Dtype::F16, DType::F16), (Dtype::BF16, DType::Bf16)] {
        let shapes: [(&str, &[usize]); 3] = [("a.weight", &[16, 24]), ("b.weight", &[8, 6, 5]), ("c.weight", &[7, 9])];
        let mut tensors: Vec<Made> =
            shapes.iter().zip(1..).map(|(&(name, shape), seed)| made(name, dtype, shape, seed)).collect();
        tensors.push(made("a.bias", dtype, &[16], 9));
        write(&plain, &tensors, &[]);
        let axes = ["--axis", "b.*=2", "--axis", "c.weight=whole", "--gain", "f32", "--force"];
        let arguments = ["split", text(&plain), text(&parted), "--include", "*.weight", "--spelling", "g-v"];
        let document = done(&[&arguments[..], &axes].concat())?;
        let g = |i: usize| &document["weights"][i]["g_shape"];
        assert_eq!((g(0), g(1), g(2)), (&json!([16, 1]), &json!([1, 1, 5]), &json!([])));
        // g is the norm.
        let inspection = done(&["inspect", text(&parted)])?;
        for weight in inspection["weights"].as_array().into_iter().flatten() {
            let ratio = ["min", "max"].map(|end| weight["g_over_norm"][end].as_f64().unwrap_or(f64::NAN));
            let bound = norm_bound(540, 1.0);
            assert!(ratio.iter().all(|r| (r - 1.0).abs() <= bound), "{weight}");
        }
        done(&["fold", text(&parted), text(&back), "--force"])?;
        let (old, new) = (File::load(&plain)?, File::load(&back)?);
        for (name, tensor) in &old.tensors {
            // A norm twice, and one rounding of g.
            let bound = |at: usize| 2.0 * weight_bound(540, tensor.data[at], as_dtype);
            compare(&new.tensor(name)?.data, &tensor.data, Some(as_dtype), bound)
                .map_err(|e| format!("{name}: {e}"))?;
        }
    }
    // Biases were not meant.
    let arguments = ["split", text(&plain), text(&parted), "--include", "*", "--spelling", "g-v", "--force"];
    let document = done(&arguments)?;
    assert!(document["notes"][0].as_str().is_some_and(|note| note.contains("a.bias")), "{document}");
    Ok(())
}

fn zero_rows(_: &Gpu) -> Outcome {
    let folder = Folder::new("cli");
    let (from, to) = (folder.join("from"), folder.join("to"));
    let tensors = [
        of_numbers("a.weight_g", Dtype::F32, &[2, 1], [3.0, 4.0]),
        of_numbers("a.weight_v", Dtype::F32, &[2, 2], [0.0, 0.0, 3.0, 4.0]),
    ];
    write(&from, &tensors, &[]);
    let (code, document) = run_json(command(), ["fold", text(&from), text(&to)]);
    assert_eq!((code, &document["written"], &document["findings"][0]["kind"]), (1, &json!(false), &json!("zero_rows")));
    assert!(!to.exists());
    let folded = |eps: &str| -> Result<Vec<f64>, Failed> {
        done(&["fold", text(&from), text(&to), "--allow-zero-rows", "--force", "--eps", eps])?;
        Ok(File::load(&to)?.tensor("a.weight")?.data.clone())
    };
    let expected = [0.0, 0.0, 2.4, 3.2];
    compare(&folded("clamp:1e-12")?, &expected, Some(DType::F32), |i| weight_bound(2, expected[i], DType::F32))?;
    assert!(folded("none")?[..2].iter().all(|w| w.is_nan()));
    Ok(())
}

fn check(_: &Gpu) -> Outcome {
    let folder = Folder::new("cli");
    let path = folder.join("model.safetensors");
    write(&path, &vocoder(Spelling::Parametrizations, Dtype::BF16), &[]);
    let document = done(&["check", text(&path)])?;
    let expected = "command status path device weights wrong submissions findings notes";
    assert_eq!(keys(&document).join(" "), expected);
    documented(&document);
    let weights = document["weights"].as_array().ok_or("no list")?;
    assert_eq!((weights.len(), &document["wrong"]), (7, &json!(0)));
    for weight in weights {
        assert!(weight["right"] == true && weight["of_bound"].as_f64().is_some_and(|part| part <= 1.0), "{weight}");
    }
    let shown = run(command(), ["check", text(&path)]);
    assert!(shown.code == Some(0) && shown.stdout.contains("7 weights, 0 wrong"), "{shown:?}");
    assert!(shown.stdout.lines().skip(1).all(|line| line.chars().count() <= 100), "{shown:?}");

    // What cannot be computed is a problem.
    write(&path, &[made("a.weight_g", Dtype::F32, &[4], 1), made("a.weight_v", Dtype::F32, &[4, 4], 2)], &[]);
    let (code, document) = run_json(command(), ["check", text(&path)]);
    assert_eq!((code, &document["findings"][0]["kind"]), (1, &json!("ambiguous_axis")));
    Ok(())
}

fn profile(gpu: &Gpu) -> Outcome {
    let folder = Folder::new("cli");
    let path = folder.join("model.safetensors");
    let tensors = ["a", "b", "c"].map(|name| {
        let outs = if name == "c" { 8 } else { 16 };
        let named = |part, shape: &[usize]| made(&format!("{name}.weight_{part}"), Dtype::F16, shape, 3);
        [named("g", &[outs, 1]), named("v", &[outs, 24])]
    });
    write(&path, tensors.as_flattened(), &[]);
    let every = "row_norms,normalize,split,normalize_backward,linear,linear_saved,linear_backward,\
                 row_norms_set,normalize_set,normalize_backward_set";
    let arguments = ["profile", "24x16", "6x4x5", text(&path), "--batch", "2", "--runs", "3", "--op", every];
    let document = done(&arguments)?;
    assert_eq!(keys(&document), ["command", "status", "device", "clock", "runs", "roof", "results"]);
    assert_eq!(document["clock"] == "timestamps", gpu.timing() == Timing::Timestamps);
    documented(&document);
    let roof = &document["roof"];
    for key in ["copy_bytes_per_second", "read_bytes_per_second", "operations_per_second"] {
        assert!(roof[key].as_f64().is_some_and(|rate| rate > 0.0), "{roof}");
    }
    let results = document["results"].as_array().ok_or("no list")?;
    // Four operators on four weights, three products on the matrices among them, three operators on all of them at
    // once.
    assert_eq!(results.len(), 4 * 4 + 3 * 3 + 3);
    for result in results {
        let expected = "operator shape axis dtype batch weights seconds least_seconds bytes operations \
                        bytes_per_second operations_per_second of_roof dispatches";
        assert_eq!(keys(result).join(" "), expected);
        let number = |key: &str| result[key].as_f64().unwrap_or(f64::NAN);
        assert!(number("least_seconds") <= number("seconds"), "{result}");
        let rate = number("bytes") / number("seconds");
        assert!((number("bytes_per_second") / rate - 1.0).abs() < 1e-9 && number("of_roof") > 0.0, "{result}");
        let operator = result["operator"].as_str().unwrap_or_default();
        assert_eq!(result["batch"], if operator.starts_with("linear") { json!(2) } else { Value::Null });
    }
    let row = |operator: &str, shape: Value| {
        results.iter().find(|r| r["operator"] == operator && r["shape"] == shape).ok_or("no such row")
    };
    let linear = row("linear", json!([24, 16]))?;
    assert_eq!((&linear["operations"], &linear["axis"]), (&json!(2 * 2 * 24 * 16 + 2 * 24 * 16), &json!(0)));
    let norms = row("row_norms", json!([16, 24]))?;
    assert_eq!((&norms["weights"], &norms["dtype"]), (&json!(["a.weight", "b.weight"]), &json!("f16")));
    assert_eq!(norms["bytes"], 16 * 24 * 2 + 16 * 4);
    let set = row("row_norms_set", Value::Null)?;
    assert_eq!((&set["axis"], &set["dtype"]), (&json!(0), &Value::Null));
    assert_eq!(set["weights"], json!(["a.weight", "b.weight", "c.weight"]));
    assert_eq!(set["bytes"], (24 * 16 + 6 * 20) * 4 + (24 + 6) * 4 + 2 * (16 * 24 * 2 + 16 * 4) + 8 * 24 * 2 + 8 * 4);

    // A file's weights are measured at once as well where nothing else is asked for, shapes by themselves are not.
    for (what, sets) in [(text(&path), 2), ("9x7", 0)] {
        let document = done(&["profile", what, "--runs", "1", "--batch", "1"])?;
        let named = |r: &&Value| r["operator"].as_str().is_some_and(|name| name.ends_with("_set"));
        assert_eq!(document["results"].as_array().map(|all| all.iter().filter(named).count()), Some(sets));
    }
    for options in [&["--axis", "1"][..], &["--axis", "whole", "--dtype", "bf16"]] {
        let arguments = ["profile", "9x7", "--batch", "3,1", "--runs", "1", "--op", "linear_saved,linear_backward"];
        assert_eq!(done(&[&arguments[..], options].concat())?["results"].as_array().map(Vec::len), Some(4));
    }
    let (code, document) = run_json(command(), ["profile", "99999999999x99999999999"]);
    assert_eq!((code, &document["error"]["kind"]), (2, &json!("device")), "{document}");
    Ok(())
}
