//! Sharded checkpoints: as a whole, and in parts.
use std::path::Path;

use safetensors::Dtype;
use serde_json::json;
use weightnorm_checkpoint::Spelling;

use crate::cli::{quiet, text};
use crate::files::{Folder, Made, vocoder, write_sharded};
use crate::program::{documented, run_json, without_gpu};

#[test]
fn cli_sharded_checkpoints() {
    let folder = Folder::new("sharded");
    let (first, second): (Vec<Made>, Vec<Made>) =
        vocoder(Spelling::Suffixes, Dtype::BF16).into_iter().partition(|tensor| tensor.name.as_str() < "g");
    write_sharded(&folder.join("model"), &[("a.safetensors", first), ("b.safetensors", second)]);
    let (input, output) = (folder.join("model"), folder.join("new"));
    let (code, document) = run_json(without_gpu(), ["inspect", text(&input)]);
    assert_eq!((code, document["files"].as_array().unwrap().len()), (0, 2));
    let arguments = ["convert", text(&input), text(&output), "--spelling", "parametrizations"];
    assert_eq!(quiet(&arguments).code, Some(0));
    assert_eq!(run_json(without_gpu(), ["inspect", text(&output)]).1["weights"].as_array().unwrap().len(), 7);
    // A folder that is there is not replaced, --force or not.
    for options in [&[][..], &["--force"]] {
        let (code, document) = run_json(without_gpu(), [&arguments[..], options].concat());
        assert_eq!((code, &document["error"]["kind"]), (2, &json!("output")), "{document}");
    }
}

/// Two tasks and the index, as a job array does them.
#[test]
fn cli_parts_of_sharded_checkpoints() {
    let folder = Folder::new("parts");
    let (first, second): (Vec<Made>, Vec<Made>) =
        vocoder(Spelling::Suffixes, Dtype::BF16).into_iter().partition(|tensor| tensor.name.ends_with("_v"));
    write_sharded(&folder.join("model"), &[("a.safetensors", first), ("b.safetensors", second)]);
    let (input, whole, output) = (folder.join("model"), folder.join("whole"), folder.join("new"));
    let fold = |output: &Path, options: &[&str]| {
        let arguments = ["fold", text(&input), text(output), "--device", "reference"];
        run_json(without_gpu(), [&arguments[..], options].concat())
    };
    assert_eq!(fold(&whole, &[]).0, 0);
    for (part, skipped) in [("2/2", 0), ("1/2", 0), ("2/2", 1)] {
        let (code, document) = fold(&output, &["--shard", part]);
        assert!(code == 0 && document["skipped_files"] == skipped, "{document}");
        documented(&document);
    }
    let (code, document) = run_json(without_gpu(), ["index", text(&output)]);
    assert!(code == 0 && document["files"] == 2, "{document}");
    documented(&document);
    for name in ["a.safetensors", "b.safetensors"] {
        assert!(std::fs::read(whole.join(name)).unwrap() == std::fs::read(output.join(name)).unwrap(), "{name}");
    }
    let (code, document) = run_json(without_gpu(), ["index", text(&output)]);
    assert_eq!((code, &document["error"]["kind"]), (2, &json!("output")), "{document}");
    for part in ["0/2", "3/2", "1", "a/b", "-1/2", "1/0"] {
        let (code, document) = fold(&output, &["--shard", part]);
        assert_eq!((code, &document["error"]["kind"]), (2, &json!("usage")), "{document}");
    }
}
