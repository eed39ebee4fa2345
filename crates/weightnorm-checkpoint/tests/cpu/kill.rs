//! Killed while it converts.
use std::path::Path;
use std::process::Command;

use safetensors::Dtype;
use weightnorm_checkpoint::{Rules, Spelling, convert};

use crate::files::{Folder, made, vocoder};
use crate::killed;

const FOLDER: &str = "WEIGHTNORM_TEST_KILLED";

/// Started by the tests below.
#[test]
#[ignore = "does nothing by itself"]
fn killed_child() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        let rules = Rules::default();
        killed::write_for_ever(Path::new(&folder), |from, checkpoint, output| {
            let spelling = if from == "a" { Spelling::Parametrizations } else { Spelling::Suffixes };
            convert(checkpoint, output, spelling, &rules, &mut |_| ()).unwrap();
        });
    }
}

fn kill(times: usize) -> usize {
    let folder = Folder::new("killed");
    for (name, spelling) in [("a", Spelling::Suffixes), ("b", Spelling::Parametrizations)] {
        let mut tensors = vocoder(spelling, Dtype::F32);
        // Large enough that writing it takes some time.
        tensors.push(made("large", Dtype::F32, &[1 << 19], 5));
        killed::prepare(&folder.0, name, tensors);
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["kill::killed_child", "--exact", "--ignored"]).env(FOLDER, &folder.0);
    // What converting the one gives is the other, byte for byte.
    killed::kill(times, &folder, &mut child, ["b", "a"])
}

#[test]
fn killed_at_some_moments() {
    kill(6);
}

#[test]
#[ignore = "takes half a minute"]
fn killed_at_many_moments() {
    let unfinished = kill(150);
    assert!(unfinished > 30, "only {unfinished} of 150 were killed while they wrote");
}
