//! Recurrent layers: PyTorch's cases, with all gradients, and their parts.
use burn::module::Param;
use burn::nn::LstmState;
use burn::store::{ModuleSnapshot, SafetensorsStore};
use burn::tensor::{Device, Tensor};
use safetensors::SafeTensors;
use weightnorm_burn::{
    WeightNormGru, WeightNormGruConfig, WeightNormLinear, WeightNormLstm, WeightNormLstmConfig, pytorch_names,
};

use crate::data::{assert_close, cpu, folder, load, numbers, random, read, wgpu};

fn file(name: &str) -> Vec<u8> {
    std::fs::read(folder("tests/golden").join(name)).expect("the file")
}

/// The weight of one side, `ih` or `hh`.
fn layer(file: &SafeTensors<'_>, side: &str, device: &Device) -> WeightNormLinear {
    let load = |name: &str| load(file, &format!("{name}_{side}"), device);
    let bias = Param::from_tensor(self::load(file, &format!("b_{side}"), device));
    WeightNormLinear { v: Param::from_tensor(load("v")), g: Param::from_tensor(load("g")), bias: Some(bias) }
}

/// `[steps, batch, ..]` of the file as `[batch, steps, ..]`.
fn sequence(file: &SafeTensors<'_>, name: &str, device: &Device) -> Tensor<3> {
    load::<3>(file, name, device).swap_dims(0, 1)
}

fn compare(file: &SafeTensors<'_>, name: &str, got: Vec<f64>) {
    let (_, expected) = read(file, name).unwrap_or_else(|| panic!("{name} is missing"));
    // Sums over all steps, images and units, through as many cells.
    assert_close(name, &got, &expected, 4096);
}

fn compare_gradients(file: &SafeTensors<'_>, side: &str, layer: &WeightNormLinear, all: &burn::tensor::Gradients) {
    compare(file, &format!("dv_{side}"), numbers(layer.v.val().grad(all).expect("dv")));
    compare(file, &format!("dg_{side}"), numbers(layer.g.val().grad(all).expect("dg")));
    let bias = layer.bias.as_ref().expect("a bias");
    compare(file, &format!("db_{side}"), numbers(bias.val().grad(all).expect("dbias")));
}

#[test]
fn lstm_has_pytorchs_results() {
    let bytes = file("lstm_T7_B5.safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    for device in [wgpu(), cpu()].map(Device::autodiff) {
        let model = WeightNormLstm { input: layer(&file, "ih", &device), hidden: layer(&file, "hh", &device) };
        let x = sequence(&file, "x", &device).require_grad();
        let [c, h] = ["c0", "h0"].map(|name| load::<2>(&file, name, &device).require_grad());
        let (y, state) = model.forward(x.clone(), Some(LstmState::new(c.clone(), h.clone())));
        compare(&file, "y", numbers(y.clone().swap_dims(0, 1).inner()));
        compare(&file, "h_n", numbers(state.hidden.inner()));
        compare(&file, "c_n", numbers(state.cell.inner()));
        let all = (y * sequence(&file, "dy", &device)).sum().backward();
        compare(&file, "dx", numbers(x.grad(&all).expect("dx").swap_dims(0, 1)));
        compare(&file, "dc0", numbers(c.grad(&all).expect("dc0")));
        compare(&file, "dh0", numbers(h.grad(&all).expect("dh0")));
        compare_gradients(&file, "ih", &model.input, &all);
        compare_gradients(&file, "hh", &model.hidden, &all);
    }
}

#[test]
fn gru_has_pytorchs_results() {
    let bytes = file("gru_T5_B3.safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    for device in [wgpu(), cpu()].map(Device::autodiff) {
        let model = WeightNormGru { input: layer(&file, "ih", &device), hidden: layer(&file, "hh", &device) };
        let x = sequence(&file, "x", &device).require_grad();
        let h = load::<2>(&file, "h0", &device).require_grad();
        let y = model.forward(x.clone(), Some(h.clone()));
        compare(&file, "y", numbers(y.clone().swap_dims(0, 1).inner()));
        let all = (y * sequence(&file, "dy", &device)).sum().backward();
        compare(&file, "dx", numbers(x.grad(&all).expect("dx").swap_dims(0, 1)));
        compare(&file, "dh0", numbers(h.grad(&all).expect("dh0")));
        compare_gradients(&file, "ih", &model.input, &all);
        compare_gradients(&file, "hh", &model.hidden, &all);
    }
}

/// Passing the state on continues the sequence; without one it starts from zero.
#[test]
fn a_sequence_is_its_parts() {
    let device = cpu();
    let model = WeightNormLstmConfig::new(5, 6, true).init(&device);
    let x: Tensor<3> = random(1, [2, 7, 5], &device);
    let (whole, _) = model.forward(x.clone(), None);
    let (first, state) = model.forward(x.clone().narrow(1, 0, 3), None);
    let (second, _) = model.forward(x.clone().narrow(1, 3, 4), Some(state));
    assert_close("lstm", &numbers(Tensor::cat(vec![first, second], 1)), &numbers(whole), 16);

    let model = WeightNormGruConfig::new(5, 6, false).init(&device);
    let whole = model.forward(x.clone(), None);
    let first = model.forward(x.clone().narrow(1, 0, 3), None);
    let h = first.clone().narrow(1, 2, 1).squeeze_dim(1);
    let second = model.forward(x.narrow(1, 3, 4), Some(h));
    assert_close("gru", &numbers(Tensor::cat(vec![first, second], 1)), &numbers(whole), 16);
}

/// x of another width than the layer's.
#[test]
fn sizes_that_do_not_fit_are_errors() {
    let device = cpu();
    let model = WeightNormLstmConfig::new(5, 6, true).init(&device);
    let error = model.try_forward(random(1, [2, 3, 4], &device), None).expect_err("4 for 5 features");
    assert!(matches!(error, weightnorm_burn::Error::Argument(_)), "{error}");
}

/// PyTorch's names of both spellings.
#[test]
fn pytorchs_names_load() {
    let device = cpu();
    let bytes = file("lstm_T7_B5.safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let parts = |side: &str, spelling: [String; 2]| {
        let [g, v] = spelling;
        [(format!("g_{side}"), g), (format!("v_{side}"), v), (format!("b_{side}"), format!("bias_{side}_l0"))]
    };
    let older = |side: &str| [format!("weight_{side}_l0_g"), format!("weight_{side}_l0_v")];
    let newer = |side: &str| [0, 1].map(|number| format!("parametrizations.weight_{side}_l0.original{number}"));
    for spelling in [&older as &dyn Fn(&str) -> [String; 2], &newer] {
        let names = ["ih", "hh"].map(|side| parts(side, spelling(side))).concat();
        let views = names.iter().map(|(from, to)| (format!("rnn.{to}"), file.tensor(from).expect("a tensor")));
        let bytes = safetensors::serialize(views, None).expect("a file");
        let remapper = pytorch_names().add_pattern(r"^rnn\.", "").expect("a pattern");
        let mut model = WeightNormLstmConfig::new(11, 13, true).init(&device);
        let mut store = SafetensorsStore::from_bytes(Some(bytes)).remap(remapper);
        let result = model.load_from(&mut store).expect("loads");
        assert_eq!((result.applied.len(), result.missing.len(), result.unused.len()), (6, 0, 0), "{result}");
        let [c, h] = ["c0", "h0"].map(|name| load::<2>(&file, name, &device));
        let (y, _) = model.forward(sequence(&file, "x", &device), Some(LstmState::new(c, h)));
        compare(&file, "y", numbers(y.swap_dims(0, 1)));
    }
}
