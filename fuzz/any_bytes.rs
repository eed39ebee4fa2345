//! What has to hold of any bytes: for the fuzz target, and for the tests of the corpus.
use std::fs;
use std::path::Path;

use weightnorm::checkpoint::{Checkpoint, Rules, Spelling, convert, inspect};

/// A file for the index to name.
const SHARD: &[u8] = b"\x88\0\0\0\0\0\0\0{\"m.weight_g\":{\"dtype\":\"F16\",\"shape\":[1,1],\"data_offsets\":[0,2]},\
\"m.weight_v\":{\"dtype\":\"F16\",\"shape\":[1,2],\"data_offsets\":[2,6]}}       \0<\0<\0<";

/// An error, or a checkpoint whose weights can be found, looked at and renamed. The first byte says whether the rest is a
/// `.safetensors` file or an index, beside which a file of its own lies. Works in `folder`; returns whether it is a checkpoint.
pub fn check(folder: &Path, bytes: &[u8]) -> bool {
    let Some((kind, bytes)) = bytes.split_first() else { return false };
    let sharded = kind % 2 == 1;
    let (path, output) = match sharded {
        false => (folder.join("a.safetensors"), folder.join("b.safetensors")),
        true => (folder.join("shards/a.safetensors.index.json"), folder.join("b")),
    };
    if sharded {
        fs::create_dir_all(folder.join("shards")).expect("the folder of the shards can be made");
        fs::write(folder.join("shards/s.safetensors"), SHARD).expect("the shard can be written");
    }
    fs::write(&path, bytes).expect("the input can be written");
    let Ok(checkpoint) = Checkpoint::open(&path) else { return false };
    let rules = Rules::default();
    inspect(&checkpoint, &rules, &mut |_| ()).expect("a file that opens can be read");
    for spelling in [Spelling::Suffixes, Spelling::Parametrizations] {
        if convert(&checkpoint, &output, spelling, &rules, &mut |_| ()).is_ok() {
            let written = Checkpoint::open(&output).expect("what was written can be read");
            assert_eq!(written.tensors().count(), checkpoint.tensors().count());
            if sharded {
                fs::remove_dir_all(&output).expect("the output can be removed");
            }
        }
    }
    true
}
