//! PyTorch's files, in both spellings.
use burn::module::Module;
use burn::store::{ModuleSnapshot, PytorchStore, SafetensorsStore};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use safetensors::SafeTensors;
use weightnorm_burn::{WeightNormLinear, WeightNormLinearConfig, pytorch_names};

use crate::data::{cpu, folder, numbers, random, read, wgpu};

/// `examples/decode`: 7 layers, the input again before the third.
#[derive(Module, Debug)]
struct Decoder {
    lin: Vec<WeightNormLinear>,
}

impl Decoder {
    fn new(device: &Device) -> Decoder {
        let sizes = [(4, 128), (128, 124), (128, 128), (128, 128), (128, 128), (128, 128), (128, 1)];
        Decoder { lin: sizes.map(|(ins, outs)| WeightNormLinearConfig::new(ins, outs).init(device)).to_vec() }
    }

    fn forward(&self, input: Tensor<2>) -> Tensor<2> {
        let mut x = input.clone();
        for (i, layer) in self.lin.iter().enumerate() {
            if i == 2 {
                x = Tensor::cat(vec![x, input.clone()], 1);
            }
            x = layer.forward(x);
            if i + 1 < self.lin.len() {
                x = relu(x);
            }
        }
        x
    }
}

#[test]
fn parametrizations() {
    let path = folder("tests/data/round_cross.safetensors");
    let bytes = std::fs::read(&path).expect("the file");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let (_, points) = read(&file, "points").expect("points");
    let (_, expected) = read(&file, "expected_sdf").expect("results");
    let (_, codes) = read(&file, "latent_codes").expect("codes");
    let rows: Vec<f32> = points.chunks(3).flat_map(|p| [codes[0], p[0], p[1], p[2]]).map(|x| x as f32).collect();
    for device in [wgpu(), cpu()] {
        let mut model = Decoder::new(&device);
        let names = pytorch_names().add_pattern(r"^model\.lin(\d+)\.", "lin.$1.").expect("a pattern");
        let mut store = SafetensorsStore::from_file(&path).remap(names).allow_partial(true);
        let result = model.load_from(&mut store).expect("loads");
        assert_eq!((result.applied.len(), result.missing.len(), result.errors.len()), (21, 0, 0), "{result}");
        let input: Tensor<1> = Tensor::from_floats(&rows[..], &device);
        let got = numbers(model.forward(input.reshape([-1, 4])));
        let worst = got.iter().zip(&expected).fold(0f64, |worst, (a, b)| worst.max((a - b).abs()));
        assert!(worst < 1e-6, "{worst:e}");
    }
}

/// The older spelling, also at the root of a file.
#[test]
fn weight_g_and_weight_v() {
    let device = cpu();
    let (g, v): (Tensor<2>, Tensor<2>) = (random(1, [5, 1], &device), random(2, [5, 8], &device));
    let bias: Tensor<1> = random(3, [5], &device);
    let bytes = |tensor: Vec<f64>| tensor.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect::<Vec<_>>();
    let parts = [("g", vec![5, 1], bytes(numbers(g.clone()))), ("v", vec![5, 8], bytes(numbers(v)))];
    for (spelling, prefix) in [("weight_", ""), ("weight_", "head."), ("parametrizations.weight.original", "head.")] {
        let end = |part: &str| match (spelling, part) {
            ("weight_", part) => part.to_owned(),
            (_, "g") => "0".to_owned(),
            _ => "1".to_owned(),
        };
        let mut views = vec![];
        for (part, shape, bytes) in &parts {
            let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
            views.push((format!("{prefix}{spelling}{}", end(part)), view.expect("a view")));
        }
        let bias_bytes = bytes(numbers(bias.clone()));
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![5], &bias_bytes);
        views.push((format!("{prefix}bias"), view.expect("a view")));
        let file = safetensors::serialize(views, None).expect("a file");
        let names = pytorch_names().add_pattern(r"^head\.", "").expect("a pattern");
        let mut store = SafetensorsStore::from_bytes(Some(file)).remap(names);
        let mut layer = WeightNormLinearConfig::new(8, 5).init(&device);
        let result = layer.load_from(&mut store).expect("loads");
        assert_eq!((result.applied.len(), result.missing.len(), result.unused.len()), (3, 0, 0), "{result}");
        assert_eq!(numbers(layer.g.val()), numbers(g.clone()));
    }
}

/// A file of `torch.save`, of a whole training run: the state lies under a key of its own.
#[test]
fn files_of_torch_save() {
    let folder = folder("crates/weightnorm-checkpoint/tests/data/torch_save");
    let bytes = std::fs::read(folder.join("training.safetensors")).expect("the file");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    for device in [wgpu(), cpu()] {
        let mut layer = WeightNormLinearConfig::new(2, 3).init(&device);
        let names = pytorch_names().add_pattern(r"^3\.", "").expect("a pattern");
        let store = PytorchStore::from_file(folder.join("training.ckpt")).with_top_level_key("state_dict");
        let result = layer.load_from(&mut store.remap(names).allow_partial(true)).expect("loads");
        assert_eq!((result.applied.len(), result.missing.len(), result.errors.len()), (3, 0, 0), "{result}");
        let expected = |name: &str| read(&file, &format!("3.{name}")).expect("a tensor").1;
        assert_eq!(numbers(layer.g.val()), expected("parametrizations.weight.original0"));
        assert_eq!(numbers(layer.v.val()), expected("parametrizations.weight.original1"));
        assert_eq!(numbers(layer.bias.expect("a bias").val()), expected("bias"));
    }
}
