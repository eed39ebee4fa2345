//! The program by mpirun, with 1, 2 and 4 ranks on whatever device there is: the splits, the training, and what happens
//! to all when one fails.
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use safetensors::SafeTensors;

/// What a run said, and how it ended.
struct Run {
    code: Option<i32>,
    out: String,
    err: String,
}

/// One after the other: there are few cores. A run that hangs is stopped, and has the exit code 110.
fn mpirun(ranks: usize, arguments: &str) -> Run {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let output = Command::new("mpirun")
        .args(["--allow-run-as-root", "--oversubscribe", "--timeout", "110", "-n", &ranks.to_string()])
        .arg(env!("CARGO_BIN_EXE_distributed"))
        .args(arguments.split(' '))
        // Mesa's drivers on the CPU compile sooner, and run little.
        .env("GALLIVM_PERF", std::env::var("GALLIVM_PERF").unwrap_or("nopt".to_owned()))
        .output()
        .expect("mpirun is there, since MPI was to build this");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let run = Run { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) };
    println!("$ mpirun -n {ranks} distributed {arguments}\n{}{}exit code {:?}", run.out, run.err, run.code);
    run
}

/// The end of the one line that begins so, of a run that went well.
fn line(run: &Run, begin: &str) -> String {
    assert_eq!(run.code, Some(0), "{}", run.err);
    let lines: Vec<&str> = run.out.lines().filter_map(|line| line.strip_prefix(begin)).collect();
    assert_eq!(lines.len(), 1, "{begin}: {}", run.out);
    lines[0].to_owned()
}

/// An empty place for a checkpoint.
fn place(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    for path in [path.clone(), path.with_extension("safetensors.tmp")] {
        assert!(!path.exists() || std::fs::remove_file(path).is_ok());
    }
    path
}

/// The step after which it was written. It has to be whole.
fn step_of(path: &Path) -> String {
    let bytes = std::fs::read(path).expect("there is a checkpoint");
    let file = SafeTensors::deserialize(&bytes).expect("it is whole");
    assert_eq!(file.len(), 7 * 3 + 4, "tensors of seven layers, and of the optimizer");
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("it is whole");
    header.metadata().as_ref().expect("it has words")["step"].clone()
}

/// The bounds are the program's own, and it fails where they are not kept. Returns a digest of the results.
fn layer(split: &str, ranks: usize) -> String {
    let run = mpirun(ranks, &format!("layer --split {split}"));
    assert_eq!(run.out.matches("error as a part of its bound: y ").count(), ranks, "{}", run.out);
    line(&run, "results: ")
}

#[test]
fn a_layer_split_by_in_features_is_the_layer() {
    layer("in", 4);
    assert_eq!(layer("in", 2), layer("in", 2), "two runs of as many ranks have the same bits");
}

#[test]
fn a_layer_split_by_out_features_is_the_layer() {
    layer("out", 4);
    layer("out", 2);
}

/// 2 ranks without a break come to the same bits as 4 ranks, of which one is killed, and 1 that goes on from the
/// checkpoint of step 4.
#[test]
fn training_is_the_same_on_any_ranks_and_after_any_end() {
    let path = place("training.safetensors");
    let train = |more: &str| format!("train --steps 8 --every 4 {more}");
    let checked = mpirun(2, &train("--check"));
    let parameters = line(&checked, "parameters: ");
    assert_eq!(checked.out.matches("gradients are those of the whole batch in f64").count(), 2, "{}", checked.out);

    let on = format!("--resume --checkpoint {}", path.display());
    let killed = mpirun(4, &train(&format!("{on} --fail 1,6")));
    assert!(![Some(0), Some(110)].contains(&killed.code), "a killed rank ends all");
    assert!(killed.err.contains("rank 1") && killed.err.contains("signal 9"), "{}", killed.err);
    assert_eq!(step_of(&path), "4");

    let lost = mpirun(2, &train(&format!("{on} --lose 1,7")));
    assert_eq!(lost.code, Some(3), "a lost device ends all");
    assert!(lost.err.contains("rank 1 of 2: step 7: the device is lost"), "{}", lost.err);
    assert_eq!(step_of(&path), "4");

    let writing = mpirun(1, &train(&format!("{on} --fail 0,8,write")));
    assert!(![Some(0), Some(110)].contains(&writing.code), "a killed rank ends all");
    assert!(path.with_extension("safetensors.tmp").exists(), "half of a checkpoint lies beside");
    assert_eq!(step_of(&path), "4");

    let last = mpirun(1, &train(&on));
    assert!(last.out.contains("goes on after step 4"), "{}", last.out);
    assert_eq!(line(&last, "parameters: "), parameters);
    assert_eq!(step_of(&path), "8");
}

/// A rank that cannot go on says why, once, and no rank hangs.
#[test]
fn what_will_not_do_ends_all() {
    let run = mpirun(2, "train --steps 1 --checkpoint /nonexistent/folder/file");
    assert_eq!(run.code, Some(3));
    assert!(run.err.contains("rank 0 of 2: step 1: /nonexistent/folder/file: "), "{}", run.err);
    let run = mpirun(1, "train --shards 3");
    assert_eq!(run.code, Some(3));
    assert!(run.err.contains("--shards 3: expected a power of two"), "{}", run.err);
}
