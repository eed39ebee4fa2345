//! Any model in one line, and back in one line.
use burn::module::Module;
use burn::nn::conv::{Conv1d, Conv1dConfig, ConvTranspose1d, ConvTranspose1dConfig};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::{Device, Int, Tensor};
use weightnorm_burn::{Gain, WeightNormalization};

use crate::data::{assert_close, cpu, numbers, random, wgpu};

#[derive(Module, Debug)]
struct Model {
    embedding: Embedding,
    up: ConvTranspose1d,
    conv: Conv1d,
    head: Linear,
}

impl Model {
    fn new(device: &Device) -> Model {
        device.seed(7);
        Model {
            embedding: EmbeddingConfig::new(10, 6).init(device),
            up: ConvTranspose1dConfig::new([6, 8], 4).with_stride(2).init(device),
            conv: Conv1dConfig::new(8, 12, 3).init(device),
            head: LinearConfig::new(12, 5).init(device),
        }
    }

    fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let x = self.embedding.forward(tokens).swap_dims(1, 2);
        self.head.forward(self.conv.forward(self.up.forward(x)).swap_dims(1, 2))
    }
}

fn tokens(device: &Device) -> Tensor<2, Int> {
    Tensor::from_ints([[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]], device)
}

#[test]
fn a_model_in_one_line_and_back() {
    for device in [wgpu(), cpu()] {
        let tracked = device.clone().autodiff();
        let plain = Model::new(&tracked);
        let before = numbers(plain.forward(tokens(&tracked)).inner());
        let model = plain.clone().apply_reparameterization(WeightNormalization::new().axis("embedding.weight", 0));
        assert_close("y", &numbers(model.forward(tokens(&tracked)).inner()), &before, 64);
        assert_eq!(model.num_params(), plain.num_params() + 10 + 6 + 12 + 5);

        let gradients = model.forward(tokens(&tracked)).powi_scalar(2).sum().backward();
        let gain = |param: Option<&Gain>| numbers(param.expect("a gain").g.val().grad(&gradients).expect("dg"));
        assert_eq!(gain(model.head.weight.reparameterization::<Gain>()).len(), 5);
        assert_eq!(gain(model.up.weight.reparameterization::<Gain>()).len(), 6);
        assert!(gain(model.conv.weight.reparameterization::<Gain>()).iter().any(|dg| dg.abs() > 1e-3));
        assert!(model.conv.weight.base().grad(&gradients).is_some());
        assert!(model.conv.bias.as_ref().expect("a bias").val().grad(&gradients).is_some());

        let folded = model.valid().materialize();
        assert!(folded.head.weight.reparameterization::<Gain>().is_none());
        assert_close("folded", &numbers(folded.forward(tokens(&device))), &before, 64);
    }
}

/// dv and dg of every kept axis are those of Burn's operators.
#[test]
fn gradients_are_those_of_operators() {
    for axis in 0..3 {
        let results = |device: &Device| {
            let device = device.clone().autodiff();
            let v: Tensor<3> = random(1, [6, 5, 8], &device).require_grad();
            let g: Tensor<1> = random(2, [[6, 5, 8][axis]], &device).require_grad();
            let w = weightnorm_burn::weight(v.clone(), g.clone(), axis).expect("fits");
            let gradients = (w.clone() * random(3, [6, 5, 8], &device)).sum().backward();
            let [dv, dg] = [numbers(v.grad(&gradients).expect("dv")), numbers(g.grad(&gradients).expect("dg"))];
            [numbers(w.inner()), dv, dg]
        };
        for (name, (got, expected)) in ["w", "dv", "dg"].iter().zip(results(&wgpu()).iter().zip(&results(&cpu()))) {
            assert_close(&format!("{name} of axis {axis}"), got, expected, 48);
        }
    }
}
