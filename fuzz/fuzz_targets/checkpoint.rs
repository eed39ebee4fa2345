//! Any bytes as a checkpoint, never a panic: `cargo +nightly fuzz run checkpoint`.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use weightnorm::Gpu;

#[path = "../any_bytes.rs"]
mod any_bytes;

static GPU: LazyLock<Gpu> = LazyLock::new(any_bytes::noop);

/// In memory where the system has a place for that.
fn folder() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    let parent = if memory.is_dir() { memory } else { std::env::temp_dir() };
    parent.join(format!("weightnorm-fuzz-{}", std::process::id()))
}

fuzz_target!(
    init: std::fs::create_dir_all(folder()).expect("the folder of the inputs can be made"),
    |bytes: &[u8]| {
        any_bytes::holds(&GPU, &folder(), bytes);
    }
);
