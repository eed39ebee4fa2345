//! Renaming: no number is touched, and the way back gives the same bytes.
use safetensors::{Dtype, SafeTensors};
use weightnorm::checkpoint::{Checkpoint, Rules, Spelling, convert};

use super::files::{Folder, vocoder, write};

#[test]
fn convert_there_and_back_is_byte_identical() {
    let folder = Folder::new("convert");
    let [first, second, third] = ["a.safetensors", "b.safetensors", "c.safetensors"].map(|name| folder.join(name));
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64] {
        for spelling in [Spelling::Suffixes, Spelling::Parametrizations] {
            let tensors = vocoder(spelling, dtype);
            write(&first, &tensors, &[("format", "pt")]);
            let there = Checkpoint::open(&first).unwrap();
            let report = convert(&there, &second, spelling.other(), &Rules::default(), &mut |_| ()).unwrap();
            assert_eq!(report.weights.len(), 7);
            let back = Checkpoint::open(&second).unwrap();
            convert(&back, &third, spelling, &Rules::default(), &mut |_| ()).unwrap();
            let [a, b, c] = [&first, &second, &third].map(|path| std::fs::read(path).unwrap());
            assert!(a == c, "{dtype:?} {spelling:?}");
            assert_ne!(a, b);

            let converted = SafeTensors::deserialize(&b).unwrap();
            let expected = vocoder(spelling.other(), dtype);
            assert_eq!(converted.len(), expected.len());
            for tensor in expected {
                let got = converted.tensor(&tensor.name).unwrap();
                assert_eq!((got.dtype(), got.shape()), (tensor.dtype, &tensor.shape[..]), "{}", tensor.name);
                assert!(got.data() == tensor.bytes, "{}", tensor.name);
            }
        }
    }
}
