//! Files of PyTorch's own: `--key`, what is said of it, and names of outputs.
use safetensors::Dtype;
use serde_json::json;
use weightnorm_checkpoint::Spelling;

use crate::cli::text;
use crate::files::{Content, Folder, vocoder};
use crate::program::{run, run_json, without_gpu};
use crate::torch::{Torch, dict};

#[test]
fn cli_files_of_pytorch() {
    let folder = Folder::new("cli-torch");
    let tensors = vocoder(Spelling::Suffixes, Dtype::F32);
    let mut torch = Torch::default();
    let [one, two] = [0; 2].map(|_| torch.state(&tensors));
    let (single, several) = (folder.join("g_02500000"), folder.join("several.ckpt"));
    std::fs::write(&single, torch.file(&dict([("generator", one.clone())]))).unwrap();
    std::fs::write(&several, torch.file(&dict([("generator", one), ("ema", two)]))).unwrap();
    let (single, several) = (text(&single), text(&several));
    let path = folder.join("out.safetensors");
    let out = text(&path);

    let note = json!(["the tensors are those of the key generator"]);
    let (code, document) = run_json(without_gpu(), ["inspect", single]);
    assert_eq!((code, document["weights"].as_array().unwrap().len()), (0, 7), "{document}");
    assert_eq!((&document["notes"], &document["metadata"]), (&note, &json!({ "format": "pt" })));
    let ran = run(without_gpu(), ["fold", single, out, "--device", "reference"]);
    assert!(
        ran.code == Some(0) && ran.stdout.ends_with("note: the tensors are those of the key generator\n"),
        "{ran:?}"
    );
    let content = Content::read(&path).unwrap();
    assert!(content.tensors.contains_key("ups.0.weight") && !content.tensors.contains_key("ups.0.weight_v"));

    // Which one is to be said where there are several, and then any command takes it.
    let (code, document) = run_json(without_gpu(), ["inspect", several]);
    let error = &document["error"];
    assert_eq!((code, &error["kind"]), (2, &json!("input")));
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("generator (19 tensors), ema (19 tensors)") && message.contains("--key"), "{message}");
    let convert = ["convert", several, out, "--spelling", "parametrizations", "--force", "--key"];
    let (code, document) = run_json(without_gpu(), convert.into_iter().chain(["ema"]));
    assert_eq!((code, &document["notes"]), (0, &json!(["the tensors are those of the key ema"])));
    assert_eq!(Content::read(&path).unwrap().tensors.len(), tensors.len());
    let split = ["split", several, out, "--include", "table", "--spelling", "g-v", "--force", "--key", "none"];
    assert!(run(without_gpu(), split).stderr.contains("its keys are generator, ema (--key KEY)"));
    let check = ["check", several, "--key", "generator", "--device", "reference"];
    assert_eq!(run_json(without_gpu(), check).0, 0);

    // What is written is no file that PyTorch would read under such a name.
    let before = folder.names();
    for (output, force) in [("x.pt", None), ("x.PTH", None), ("x.bin", None), ("g_02500000", Some("--force"))] {
        let output = folder.join(output);
        let arguments = ["fold", single, text(&output), "--device", "reference"].into_iter().chain(force);
        let (code, document) = run_json(without_gpu(), arguments);
        assert_eq!((code, &document["error"]["kind"]), (2, &json!("output")), "{document}");
        assert!(document["error"]["message"].as_str().unwrap().contains("ends in .safetensors"), "{document}");
    }
    assert_eq!(folder.names(), before);
}
