//! A process that is killed while it writes leaves the old output or the whole new one.
#![allow(dead_code, reason = "each test binary uses its own part of this file")]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use weightnorm_checkpoint::Checkpoint;

use super::files::{Folder, Made, names_in, write, write_sharded};

/// A checkpoint as a file and in two shards: `NAME.safetensors` and a folder.
pub fn prepare(folder: &Path, name: &str, mut tensors: Vec<Made>) {
    write(&folder.join(format!("{name}.safetensors")), &tensors, &[]);
    let second = tensors.split_off(6);
    write_sharded(&folder.join(name), &[("1.safetensors", tensors), ("2.safetensors", second)]);
}

/// What the process does that is killed, with the checkpoints "a" and "b": the same output over and over, and one
/// folder after the other.
pub fn write_for_ever(folder: &Path, write: impl Fn(&str, &Checkpoint, &Path)) {
    for round in 0.. {
        for from in ["a", "b"] {
            let file = Checkpoint::open(&folder.join(format!("{from}.safetensors"))).unwrap();
            write(from, &file, &folder.join("out.safetensors"));
            let shards = Checkpoint::open(&folder.join(from)).unwrap();
            write(from, &shards, &folder.join(format!("out-{}-{round}-{from}", std::process::id())));
        }
    }
}

/// Starts it, kills it at a random moment and looks at what is there, many times: half of them within its first output,
/// the others once it has finished two. `of`: the names of what becomes of "a" and of "b", both as a file and in
/// shards. Returns how often something unfinished was left behind, which is what it is about.
pub fn kill(times: usize, folder: &Folder, child: &mut Command, of: [&str; 2]) -> usize {
    let files = |name: &str| fs::read(folder.join(name)).unwrap();
    let there = folder.names();
    let (mut seed, mut unfinished) = (u64::from(std::process::id()), 0);
    for round in 0..times {
        let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // It has begun once there is something of its own.
        let (start, mark) = (Instant::now(), [".weightnorm-", "out-"][round % 2]);
        let own = |name: &String| name.starts_with(&format!("{mark}{}-", child.id()));
        while !folder.names().iter().any(own) && start.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(1));
        }
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        std::thread::sleep(Duration::from_micros((seed >> 33) % 60_000));
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        child.kill().unwrap();
        child.wait().unwrap();

        let temporary = format!(".weightnorm-{}-", child.id());
        let names: Vec<String> = folder.names().into_iter().filter(|name| !there.contains(name)).collect();
        unfinished += usize::from(names.iter().any(|name| name.starts_with(&temporary)));
        for name in names {
            let path = folder.join(&name);
            if name == "out.safetensors" {
                let out = files(&name);
                let whole = of.iter().any(|of| out == files(&format!("{of}.safetensors")));
                assert!(whole, "round {round}: half a file");
            } else if name.starts_with("out-") {
                let of = if name.ends_with("-a") { of[0] } else { of[1] };
                for file in names_in(&folder.join(of)) {
                    // The index lists the names of another spelling in another order.
                    let same = fs::read(path.join(&file)).unwrap() == files(&format!("{of}/{file}"));
                    assert!(same || file.ends_with("json"), "round {round}: {name}/{file}");
                }
                let count = |path: &Path| Checkpoint::open(path).unwrap().tensors().count();
                assert_eq!(count(&path), count(&folder.join(of)), "round {round}: {name}");
                fs::remove_dir_all(path).unwrap();
            } else {
                assert!(name.starts_with(&temporary) && name.ends_with(".tmp"), "round {round}: {name}");
                // The next run does not stumble over it, but there need not be hundreds.
                fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path)).unwrap();
            }
        }
    }
    unfinished
}
