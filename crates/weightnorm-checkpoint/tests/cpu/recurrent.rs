//! Stacked, bidirectional LSTMs and GRUs under PyTorch's names, in both spellings.
use safetensors::Dtype;
use weightnorm::Axis;
use weightnorm_checkpoint::{Checkpoint, Device, Rules, Spelling, convert, fold, inspect, split};

use crate::common::File;
use crate::files::{Content, Folder, recurrent, recurrent_weights, write};

const SPELLINGS: [Spelling; 2] = [Spelling::Suffixes, Spelling::Parametrizations];

#[test]
fn recurrent_names_are_those_of_pytorch() {
    let suffixes = recurrent(Spelling::Suffixes, Dtype::F32, 4);
    let names: Vec<&str> = suffixes.iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names.len(), 24);
    for name in ["rnn.bias_ih_l0", "rnn.weight_ih_l1_reverse_g", "rnn.weight_hh_l0_reverse_v"] {
        assert!(names.contains(&name), "{name}");
    }
    let other = recurrent(Spelling::Parametrizations, Dtype::F32, 4);
    let g = "rnn.parametrizations.weight_hh_l0_reverse.original0";
    assert!(other.iter().any(|tensor| tensor.name == g && tensor.shape == [12, 1]));
}

#[test]
fn recurrent_weights_are_folded_split_and_inspected() {
    let folder = Folder::new("recurrent");
    let [from, folded, parted, again] = ["from", "folded", "parted", "again"].map(|name| folder.join(name));
    let rules = Rules::default();
    for (gates, spelling) in [4, 3].into_iter().flat_map(|gates| SPELLINGS.map(|spelling| (gates, spelling))) {
        let tensors = recurrent(spelling, Dtype::F32, gates);
        write(&from, &tensors, &[("format", "pt")]);
        let checkpoint = Checkpoint::open(&from).unwrap();
        let inspection = inspect(&checkpoint, &rules, &mut |_| ()).unwrap();
        assert_eq!((inspection.others, &inspection.findings[..], &inspection.dora[..]), (8, &[][..], &[][..]));
        let mut rows: Vec<_> = inspection.rows.iter().map(|row| &row.weight).collect();
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        let mut expected = recurrent_weights(gates);
        expected.sort();
        assert_eq!(rows.len(), expected.len());
        for (weight, (name, shape)) in rows.iter().zip(&expected) {
            assert_eq!((&weight.name, weight.axis, weight.spelling), (name, Axis::Kept(0), spelling));
            assert_eq!((&weight.shape[..], &weight.g_shape[..]), (&shape[..], &[shape[0], 1][..]));
        }

        let report = fold(Device::Reference, &checkpoint, &folded, &rules, &mut |_| ()).unwrap();
        assert_eq!((report.weights.len(), report.copied), (8, 8));
        let (file, content) = (File::load(&folded).unwrap(), Content::read(&folded).unwrap());
        for (name, shape) in &expected {
            let [g, v] = [spelling.g(name), spelling.v(name)].map(|name| checkpoint.read_f64(&name).unwrap());
            let w = &file.tensor(name).unwrap().data;
            assert_eq!(w.len(), shape[0] * shape[1]);
            for (j, (w, v)) in w.chunks(shape[1]).zip(v.chunks(shape[1])).enumerate() {
                let norm = v.iter().map(|v| v * v).sum::<f64>().sqrt();
                for (w, v) in w.iter().zip(v) {
                    let exact = g[j] * v / norm;
                    assert!((w - exact).abs() <= exact.abs() * 1.0001 * 2f64.powi(-24), "{name}: {w} {exact}");
                }
            }
        }
        for bias in tensors.iter().filter(|tensor| tensor.name.contains("bias")) {
            assert_eq!(content.tensors[&bias.name], (bias.dtype, bias.shape.clone(), bias.bytes.clone()));
        }

        // Taken apart again g is the norm of w: |g| as it was; and it folds to w.
        let (folded, all) = (Checkpoint::open(&folded).unwrap(), Rules::default().include("*.weight_*"));
        split(Device::Reference, &folded, &parted, spelling, &all, &mut |_| ()).unwrap();
        let mut names = [&checkpoint, &Checkpoint::open(&parted).unwrap()]
            .map(|all| all.tensors().map(|tensor| tensor.name.clone()).collect::<Vec<_>>());
        names.iter_mut().for_each(|names| names.sort());
        assert_eq!(names[0], names[1]);
        let parts = Checkpoint::open(&parted).unwrap();
        fold(Device::Reference, &parts, &again, &rules, &mut |_| ()).unwrap();
        for (name, _) in &expected {
            let [g, g_again] = [&checkpoint, &parts].map(|all| all.read_f64(&spelling.g(name)).unwrap());
            assert!(g.iter().zip(&g_again).all(|(g, again)| (g.abs() - again).abs() <= g.abs() * 2f64.powi(-22)));
            let [w, w_again] = [&folded, &Checkpoint::open(&again).unwrap()].map(|all| all.read_f64(name).unwrap());
            assert!(w.iter().zip(&w_again).all(|(w, again)| (w - again).abs() <= w.abs() * 2f64.powi(-22)), "{name}");
        }
    }
}

#[test]
fn recurrent_weights_are_converted_there_and_back() {
    let folder = Folder::new("recurrent-convert");
    let [from, other, back] = ["from", "other", "back"].map(|name| folder.join(name));
    for (gates, dtype) in [(4, Dtype::F16), (3, Dtype::F32)] {
        for spelling in SPELLINGS {
            write(&from, &recurrent(spelling, dtype, gates), &[("format", "pt")]);
            let to = |from, output, spelling| {
                convert(&Checkpoint::open(from).unwrap(), output, spelling, &Rules::default(), &mut |_| ()).unwrap()
            };
            assert_eq!(to(&from, &other, spelling.other()).weights.len(), 8);
            // In the other spelling it is the same layer.
            let mut expected = recurrent(spelling.other(), dtype, gates);
            expected.sort_by(|a, b| a.name.cmp(&b.name));
            let got = Content::read(&other).unwrap().tensors;
            let same =
                got.iter().zip(&expected).all(|((name, (.., bytes)), made)| *name == made.name && *bytes == made.bytes);
            assert!(same && got.len() == 24);
            to(&other, &back, spelling);
            assert_eq!(std::fs::read(&from).unwrap(), std::fs::read(&back).unwrap());
        }
    }
}
