//! Any bytes as a checkpoint: an error, or a file whose weights can be found, looked at and renamed; never a panic.
//!
//! `cargo +nightly fuzz run checkpoint`. The first byte of an input says whether the rest is a `.safetensors` file or an
//! index, beside which a file of its own lies.
#![no_main]

use std::path::PathBuf;

use libfuzzer_sys::fuzz_target;
use weightnorm::checkpoint::{Checkpoint, Rules, Spelling, convert, inspect};

/// A file for the index to name.
const SHARD: &[u8] = b"\x88\0\0\0\0\0\0\0{\"m.weight_g\":{\"dtype\":\"F16\",\"shape\":[1,1],\"data_offsets\":[0,2]},\
\"m.weight_v\":{\"dtype\":\"F16\",\"shape\":[1,2],\"data_offsets\":[2,6]}}       \0<\0<\0<";

/// In memory where the system has a place for that.
fn folder() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    let parent = if memory.is_dir() { memory } else { std::env::temp_dir() };
    parent.join(format!("weightnorm-fuzz-{}", std::process::id()))
}

fuzz_target!(init: { std::fs::create_dir_all(folder().join("shards")).expect("the folder of the inputs can be made") }, |data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let folder = folder();
    let sharded = kind % 2 == 1;
    let (path, output) = match sharded {
        false => (folder.join("a.safetensors"), folder.join("b.safetensors")),
        true => (folder.join("shards/a.safetensors.index.json"), folder.join("b")),
    };
    std::fs::write(&path, data).expect("the input can be written");
    if sharded {
        std::fs::write(folder.join("shards/s.safetensors"), SHARD).expect("the shard can be written");
    }
    let Ok(checkpoint) = Checkpoint::open(&path) else { return };
    let rules = Rules::default();
    inspect(&checkpoint, &rules, &mut |_| ()).expect("a file that opens can be read");
    for spelling in [Spelling::Suffixes, Spelling::Parametrizations] {
        if convert(&checkpoint, &output, spelling, &rules, &mut |_| ()).is_ok() {
            let written = Checkpoint::open(&output).expect("what was written can be read");
            assert_eq!(written.tensors().count(), checkpoint.tensors().count());
            if sharded {
                std::fs::remove_dir_all(&output).expect("the output can be removed");
            }
        }
    }
});
