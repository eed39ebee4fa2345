//! What PyTorch reads of what was written, and its lines for foreign files.
use std::ffi::OsStr;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use weightnorm::Gpu;
use weightnorm_checkpoint::{Checkpoint, Error, Rules};

use crate::checkpoint::{computed, fold_to, numbers};
use crate::common::{compare, norm_chain, weight_bound};
use crate::files::Folder;
use crate::{Outcome, Suite};

pub fn register(suite: &mut Suite) {
    suite.test_with_pytorch("pytorch::pytorch", pytorch);
    suite.test_with_pytorch("pytorch::foreign_pytorch_lines_run", foreign_pytorch_lines_run);
}

/// Modules of PyTorch in both spellings, folded by it in f64 and by us.
fn pytorch(gpu: &Gpu, python: &OsStr) -> Outcome {
    let folder = Folder::new("pytorch");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu/pytorch.py");
    let output = std::process::Command::new(python).arg(script).arg(&folder.0).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    for spelling in ["suffixes", "parametrizations"] {
        for (name, dtype) in
            [("float32", Dtype::F32), ("float16", Dtype::F16), ("bfloat16", Dtype::BF16), ("float64", Dtype::F64)]
        {
            let [from, theirs, ours] =
                ["", ".expected", ".ours"].map(|kind| folder.join(&format!("{spelling}-{name}{kind}.safetensors")));
            let report = fold_to(gpu, &from, &ours, &Rules::default())?;
            assert_eq!(report.weights.len(), 9);
            let (ours, theirs) = (std::fs::read(ours)?, std::fs::read(theirs)?);
            let (ours, theirs) = (SafeTensors::deserialize(&ours)?, SafeTensors::deserialize(&theirs)?);
            assert_eq!(ours.len(), theirs.len());
            let (storage, stored) = computed(dtype);
            for weight in &report.weights {
                let (got, expected) = (ours.tensor(&weight.name)?, theirs.tensor(&weight.name)?);
                assert_eq!(got.shape(), expected.shape());
                let expected = numbers(Dtype::F64, expected.data());
                let chain = norm_chain(expected.len());
                compare(&numbers(stored, got.data()), &expected, Some(storage), |i| {
                    weight_bound(chain, expected[i], storage)
                })
                .map_err(|e| format!("{spelling} {name} {}: {e}", weight.name))?;
            }
        }
    }
    Ok(())
}

/// The line of Python that is offered for PyTorch's own files, run. Nested, tied and transposed tensors, old and new
/// files, and a file that is called as ours are.
fn foreign_pytorch_lines_run(_: &Gpu, python: &OsStr) -> Outcome {
    let folder = Folder::new("foreign-torch");
    let run = |code: &str| {
        let output = std::process::Command::new(python).args(["-c", code]).current_dir(&folder.0).output().unwrap();
        assert!(output.status.success(), "{code}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run("import torch
a = torch.arange(6.).reshape(2, 3); s = {'l.weight_g': a[:, :1], 'l.weight_v': a, 'tied': a, 't': a.t()}
torch.save(s, 'plain.pth'); torch.save(s, 'old.pt', _use_new_zipfile_serialization=False)
torch.save(s, 'misnamed.safetensors'); torch.save({'state_dict': s, 'epoch': 3}, 'it\\'s \"it\".ckpt')
torch.save({'model': s, 'optimizer': {'state': {0: {'exp_avg': a}}, 'groups': [{'lr': 0.1}]}}, 'nested.bin')");
    for (name, output, prefix) in [
        ("plain.pth", "plain.safetensors", ""),
        ("old.pt", "old.safetensors", ""),
        ("misnamed.safetensors", "misnamed.new.safetensors", ""),
        ("it's \"it\".ckpt", "it's \"it\".safetensors", "state_dict."),
        ("nested.bin", "nested.safetensors", "model."),
    ] {
        let Err(error) = Checkpoint::open(&folder.join(name)) else { return Err(format!("{name} was opened").into()) };
        assert!(matches!(error, Error::Foreign { .. }), "{error:?}");
        let text = error.to_string();
        let (_, todo) = text.split_once('\n').ok_or("no second line")?;
        run(todo.split_once("in Python: ").ok_or("no line of Python")?.1);
        let saved = Checkpoint::open(&folder.join(output)).unwrap();
        let numbers = |tensor: &str| saved.read_f64(&format!("{prefix}{tensor}")).unwrap();
        for tensor in ["l.weight_v", "tied"] {
            assert_eq!(numbers(tensor), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        }
        assert_eq!((numbers("l.weight_g"), numbers("t")), (vec![0.0, 3.0], vec![0.0, 3.0, 1.0, 4.0, 2.0, 5.0]));
        let is_nested = name == "nested.bin";
        assert_eq!(saved.tensor("optimizer.state.0.exp_avg").is_some(), is_nested);
    }
    Ok(())
}
