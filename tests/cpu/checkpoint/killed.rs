//! A process that is killed while it writes leaves the old output or the whole new one.
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use safetensors::Dtype;
use weightnorm::checkpoint::{Checkpoint, Rules, Spelling, convert};

use crate::common::files::{Folder, made, vocoder, write, write_sharded};

const FOLDER: &str = "WEIGHTNORM_TEST_KILLED";

/// Files large enough that writing them takes some time.
fn prepare(folder: &Path) {
    for (name, spelling) in [("a", Spelling::Suffixes), ("b", Spelling::Parametrizations)] {
        let mut tensors = vocoder(spelling, Dtype::F32);
        tensors.push(made("large", Dtype::F32, &[1 << 19], 5));
        write(&folder.join(format!("{name}.safetensors")), &tensors, &[]);
        let second = tensors.split_off(6);
        write_sharded(&folder.join(name), &[("1.safetensors", tensors), ("2.safetensors", second)]);
    }
}

/// What the process does that is killed: the same output over and over, and one folder after the other.
fn write_for_ever(folder: &Path) {
    let rules = Rules::default();
    for round in 0.. {
        for (from, spelling) in [("a", Spelling::Parametrizations), ("b", Spelling::Suffixes)] {
            let file = Checkpoint::open(&folder.join(format!("{from}.safetensors"))).unwrap();
            convert(&file, &folder.join("out.safetensors"), spelling, &rules, &mut |_| ()).unwrap();
            let shards = Checkpoint::open(&folder.join(from)).unwrap();
            let process = std::process::id();
            convert(&shards, &folder.join(format!("out-{process}-{round}-{from}")), spelling, &rules, &mut |_| ())
                .unwrap();
        }
    }
}

/// Started by the tests below.
#[test]
#[ignore = "does nothing by itself"]
fn killed_child() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        write_for_ever(Path::new(&folder));
    }
}

/// Returns how often it left something unfinished behind, which is what it is about.
fn kill(times: usize) -> usize {
    let folder = Folder::new("killed");
    prepare(&folder.0);
    let files = |name: &str| fs::read(folder.join(name)).unwrap();
    // What converting the one gives is the other, byte for byte.
    let (mut seed, mut unfinished) = (std::process::id() as u64, 0);
    for round in 0..times {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["checkpoint::killed::killed_child", "--exact", "--ignored"])
            .env(FOLDER, &folder.0)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let is_unfinished = |name: &String| name.starts_with('.');
        // It has begun once there is something of its own.
        let start = Instant::now();
        let own = |name: &String| name.contains(&format!("{}-", child.id()));
        while !folder.names().iter().any(own) && start.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(1));
        }
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        std::thread::sleep(Duration::from_micros((seed >> 33) % 60_000));
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        child.kill().unwrap();
        child.wait().unwrap();

        let names = folder.names();
        unfinished += usize::from(names.iter().any(is_unfinished));
        if names.iter().any(|name| name == "out.safetensors") {
            let out = files("out.safetensors");
            assert!(out == files("a.safetensors") || out == files("b.safetensors"), "round {round}: half a file");
        }
        for name in names {
            let path = folder.join(&name);
            if name.starts_with("out-") {
                let from = if name.ends_with("-a") { "b" } else { "a" };
                for file in ["1.safetensors", "2.safetensors", "model.safetensors.index.json"] {
                    // The index lists the names of another spelling in another order.
                    let same = fs::read(path.join(file)).unwrap() == files(&format!("{from}/{file}"));
                    assert!(same || file.ends_with("json"), "round {round}: {name}/{file}");
                }
                assert_eq!(Checkpoint::open(&path).unwrap().tensors().count(), 20, "round {round}: {name}");
                fs::remove_dir_all(path).unwrap();
            } else if is_unfinished(&name) {
                // The next run does not stumble over it, but there need not be hundreds.
                let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
            }
        }
    }
    unfinished
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
