//! The inputs of the fuzz target that are kept, where nothing is fuzzed too.
use crate::common::root;
use crate::files::Folder;

#[path = "../../../../fuzz/any_bytes.rs"]
pub mod any_bytes;

#[test]
fn corpus_is_refused_or_read() {
    let (folder, gpu) = (Folder::new("corpus"), any_bytes::noop());
    let (mut read, mut refused) = (vec![], vec![]);
    for entry in std::fs::read_dir(root().join("fuzz/corpus/checkpoint")).unwrap() {
        let entry = entry.unwrap();
        let bytes = std::fs::read(entry.path()).unwrap();
        let is_read = any_bytes::holds(&gpu, &folder.0, &bytes);
        let name = entry.file_name().to_string_lossy().into_owned();
        // What the fuzzer found by itself has a hash for a name, or the first digits of one.
        if !name.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            if is_read { &mut read } else { &mut refused }.push(name);
        }
    }
    read.sort();
    refused.sort();
    assert_eq!(
        read,
        [
            "empty",
            "fields",
            "flat",
            "index",
            "parametrizations",
            "plain",
            "rows",
            "slices",
            "suffixes",
            "tied",
            "torch",
            "torch_state"
        ]
    );
    assert_eq!(refused, ["cut", "index_outside", "index_twice", "torch_cut", "twice"]);
}
