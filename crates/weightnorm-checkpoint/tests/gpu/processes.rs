//! Checkpoints in a process of their own: on a full disk, past the memory that is allowed, killed.
use std::path::Path;

use libtest_mimic::Completion;
use safetensors::Dtype;
use weightnorm::{Axis, DType, Eps, Gpu};
use weightnorm_checkpoint::{self as checkpoint, Error, Rules, Spelling};

use crate::checkpoint::{fold_to, is_folded, numbers, open};
use crate::common::{compare, norm_chain, peak, reset_peak, weight_bound};
use crate::files::{Folder, made, vocoder, write};
use crate::{Failed, Needs, Outcome, Suite, killed};

pub fn register(suite: &mut Suite) {
    suite.test_if_able("processes::disk_full", disk_full);
    suite.test("processes::larger_than_the_window", Needs::Time, larger_than_the_window);
    suite.test("processes::killed_at_many_moments", Needs::Time, killed_at_many_moments);
    suite.test(CHILD, Needs::Time, child);
}

/// A file system of 1 MiB in a mount namespace of its own, where the system grants one.
fn disk_full(gpu: &Gpu) -> Result<Completion, Failed> {
    let folder = Folder::new("full");
    let mount = folder.join("small");
    std::fs::create_dir(&mount)?;
    let script = format!("mount -t tmpfs -o size=1m tmpfs '{}' && exec \"$@\"", mount.display());
    let run = |program: &[&std::ffi::OsStr]| {
        std::process::Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh"])
            .args(program)
            .env("WEIGHTNORM_TEST_FULL", &folder.0)
            .output()
    };
    match run(&["true".as_ref()]) {
        Ok(output) if output.status.success() => {}
        _ => return Ok(Completion::ignored_with("no file system of one's own can be mounted here")),
    }
    let mut tensors = vocoder(Spelling::Suffixes, Dtype::F32);
    tensors.push(made("m.weight_v", Dtype::F32, &[1 << 9, 1 << 10], 1));
    tensors.push(made("m.weight_g", Dtype::F32, &[1 << 9, 1], 2));
    write(&folder.join("a.safetensors"), &tensors, &[]);
    let _ = gpu;
    let me = std::env::current_exe()?;
    let output = run(&[me.as_os_str(), CHILD.as_ref(), "--exact".as_ref(), "--ignored".as_ref()])?;
    let text = String::from_utf8_lossy(&output.stdout);
    if output.status.success() && text.contains("1 passed") {
        return Ok(Completion::Completed);
    }
    Err(format!("{text}\n{}", String::from_utf8_lossy(&output.stderr)).into())
}

const CHILD: &str = "processes::child";

/// Started by the tests that need a process of their own.
fn child(gpu: &Gpu) -> Outcome {
    if let Some(folder) = std::env::var_os("WEIGHTNORM_TEST_FULL") {
        return on_a_full_disk(gpu, Path::new(&folder));
    }
    if let Some(folder) = std::env::var_os("WEIGHTNORM_TEST_LARGE") {
        return fold_a_large_file(gpu, Path::new(&folder));
    }
    if let Some(folder) = std::env::var_os("WEIGHTNORM_TEST_ROWS") {
        return fold_many_rows(gpu, Path::new(&folder));
    }
    if let Some(folder) = std::env::var_os("WEIGHTNORM_TEST_KILLED") {
        killed::write_for_ever(Path::new(&folder), |_, checkpoint, output| {
            checkpoint::fold(gpu, checkpoint, output, &small_windows(), &mut |_| ()).unwrap();
        });
    }
    Ok(())
}

fn small_windows() -> Rules {
    Rules::default().window(64 << 10)
}

/// Killed while it folds in windows, 120 times.
fn killed_at_many_moments(gpu: &Gpu) -> Outcome {
    let folder = Folder::new("killed");
    for (name, dtype) in [("a", Dtype::F32), ("b", Dtype::BF16)] {
        let mut tensors = vocoder(Spelling::Suffixes, dtype);
        tensors.push(made("rows.weight_v", dtype, &[256, 1 << 10], 1));
        tensors.push(made("rows.weight_g", dtype, &[256, 1], 2));
        tensors.push(made("columns.weight_v", dtype, &[1 << 10, 256], 3));
        tensors.push(made("columns.weight_g", dtype, &[1, 256], 4));
        killed::prepare(&folder.0, name, tensors);
        let to = format!("{name}-folded");
        fold_to(
            gpu,
            &folder.join(&format!("{name}.safetensors")),
            &folder.join(&format!("{to}.safetensors")),
            &small_windows(),
        )?;
        let report = fold_to(gpu, &folder.join(name), &folder.join(&to), &small_windows())?;
        assert!(report.submissions > 16, "{}", report.submissions);
    }
    let mut child = std::process::Command::new(std::env::current_exe()?);
    child.args([CHILD, "--exact", "--ignored"]).env("WEIGHTNORM_TEST_KILLED", &folder.0);
    let unfinished = killed::kill(120, &folder, &mut child, ["a-folded", "b-folded"]);
    println!("{unfinished} of 120 killed while they wrote");
    assert!(unfinished > 30, "only {unfinished} of 120 were killed while they wrote");
    Ok(())
}

fn on_a_full_disk(gpu: &Gpu, folder: &Path) -> Outcome {
    let (from, small) = (folder.join("a.safetensors"), folder.join("small"));
    let output = small.join("b.safetensors");
    std::fs::write(&output, "the old file")?;
    let is_full = |error: Error| match error {
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => Ok(()),
        other => Err(format!("{other:?}")),
    };
    is_full(fold_to(gpu, &from, &output, &Rules::default()).unwrap_err())?;
    let (rules, spelling) = (Rules::default(), Spelling::Parametrizations);
    is_full(checkpoint::convert(&open(&from)?, &output, spelling, &rules, &mut |_| ()).unwrap_err())?;
    assert_eq!(std::fs::read(&output)?, b"the old file");
    let names: Vec<_> = std::fs::read_dir(&small)?.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["b.safetensors"]);
    Ok(())
}

/// Files of more than the default window, along axis 0 and along axis 1, in bounded memory; and with more rows than fit
/// into it.
fn larger_than_the_window(_: &Gpu) -> Outcome {
    let folder = Folder::new("large");
    for test in ["WEIGHTNORM_TEST_LARGE", "WEIGHTNORM_TEST_ROWS"] {
        let output = std::process::Command::new(std::env::current_exe()?)
            .args([CHILD, "--exact", "--ignored"])
            .env(test, &folder.0)
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        println!("{}", text.lines().filter(|line| line.contains("peak memory")).collect::<Vec<_>>().join("\n"));
        if !output.status.success() || !text.contains("1 passed") {
            return Err(format!("{text}\n{}", String::from_utf8_lossy(&output.stderr)).into());
        }
    }
    Ok(())
}

/// 4 Mi rows of two elements each, which lie far apart, and of one.
fn fold_many_rows(gpu: &Gpu, folder: &Path) -> Outcome {
    let (from, output) = (folder.join("rows.safetensors"), folder.join("folded.safetensors"));
    let write_rows = |rows| {
        let tensors = [
            made("a.weight_v", Dtype::F32, &[2, rows], 1),
            made("a.weight_g", Dtype::F32, &[1, rows], 2),
            made("b.weight_v", Dtype::F32, &[rows], 3),
            made("b.weight_g", Dtype::F32, &[rows], 4),
        ];
        write(&from, &tensors, &[]);
        tensors
    };
    let rules = Rules::default().window(1 << 20);
    // The first time for the kernels.
    write_rows(1 << 18);
    fold_to(gpu, &from, &output, &rules)?;
    let tensors = write_rows(1 << 22);
    reset_peak()?;
    let before = peak();
    fold_to(gpu, &from, &output, &rules)?;
    if let (Some(before), Some(after)) = (before, peak()) {
        println!("peak memory: {} KiB more, in windows of 1 MiB", (after - before) >> 10);
        assert!(after - before < 8 << 20, "{} KiB", (after - before) >> 10);
    }
    let axis = |name: &str| Axis::Kept(usize::from(name == "a.weight"));
    is_folded(&std::fs::read(&output)?, &tensors, axis, Eps::default())
}

fn fold_a_large_file(gpu: &Gpu, folder: &Path) -> Outcome {
    let (from, output) = (folder.join("a.safetensors"), folder.join("b.safetensors"));
    // 192 MiB each, written piece by piece.
    let (rows, columns) = (12 << 10, 4 << 10);
    let size = rows * columns * 4;
    let entry = |name: &str, shape: [usize; 2], begin: usize| {
        let end = begin + shape[0] * shape[1] * 4;
        format!("{name:?}:{{\"dtype\":\"F32\",\"shape\":{shape:?},\"data_offsets\":[{begin},{end}]}}")
    };
    let entries = [
        entry("a.weight_v", [rows, columns], 0),
        entry("b.weight_v", [rows, columns], size),
        entry("a.weight_g", [rows, 1], 2 * size),
        entry("b.weight_g", [1, columns], 2 * size + 4 * rows),
    ];
    let header = crate::files::raw(&format!("{{{}}}", entries.join(",")), &[]);
    let piece = made("", Dtype::F32, &[columns], 1).bytes;
    let mut file = std::io::BufWriter::new(std::fs::File::create(&from)?);
    use std::io::Write;
    file.write_all(&header)?;
    // Every row is the same, so that the norms are known: along axis 1 they are √rows·|v|.
    (0..2 * rows).try_for_each(|_| file.write_all(&piece))?;
    (0..rows + columns).try_for_each(|_| file.write_all(&2f32.to_le_bytes()))?;
    drop(file.into_inner()?);

    gpu.normalize(weightnorm::WeightNorm::unit(&gpu.upload(&[1f32; 4096], &[64, 64])?))?.read::<f32>()?;
    let before = peak();
    fold_to(gpu, &from, &output, &Rules::default())?;
    if let (Some(before), Some(after)) = (before, peak()) {
        println!("peak memory: {} MiB more", (after - before) >> 20);
        // Four windows on the host and four on the device, which is in the same memory where it is a CPU.
        assert!(after - before < 8 * (64 << 20), "{} MiB", (after - before) >> 20);
    }

    let v: Vec<f64> = numbers(Dtype::F32, &piece);
    let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let folded = open(&output)?;
    let file = std::fs::File::open(&output)?;
    let start = std::fs::metadata(&output)?.len() - 2 * size as u64;
    assert_eq!(folded.tensors().count(), 2);
    for (tensor, row_of) in [(0, 0u64), (0, rows as u64 - 1), (0, 5000), (1, 0), (1, rows as u64 - 1), (1, 7000)] {
        use std::io::{Read, Seek, SeekFrom};
        let mut bytes = vec![0; columns * 4];
        (&file).seek(SeekFrom::Start(start + tensor * size as u64 + row_of * bytes.len() as u64))?;
        (&file).read_exact(&mut bytes)?;
        let expected: Vec<f64> = v
            .iter()
            .map(|x| if tensor == 0 { 2.0 * x / norm } else { 2.0 * x.signum() / (rows as f64).sqrt() })
            .collect();
        let bound = |i: usize| weight_bound(norm_chain(columns.max(rows)), expected[i], DType::F32);
        compare(&numbers(Dtype::F32, &bytes), &expected, Some(DType::F32), bound)?;
    }
    Ok(())
}
