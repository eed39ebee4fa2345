//! The inputs of the fuzz target that are kept, where nothing is fuzzed too.
use crate::common::files::Folder;

#[path = "../../../fuzz/any_bytes.rs"]
mod any_bytes;

#[test]
fn corpus_is_refused_or_read() {
    let folder = Folder::new("corpus");
    let (mut read, mut refused) = (vec![], vec![]);
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/checkpoint")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        // What a run of the fuzzer found by itself has a hash for a name.
        if name.len() < 40 {
            let bytes = std::fs::read(entry.path()).unwrap();
            if any_bytes::check(&folder.0, &bytes) { &mut read } else { &mut refused }.push(name);
        }
    }
    read.sort();
    refused.sort();
    assert_eq!(read, ["empty", "flat", "index", "parametrizations", "suffixes"]);
    assert_eq!(refused, ["cut", "index_outside", "index_twice", "twice"]);
}
