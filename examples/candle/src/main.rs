//! For users of candle: a weight-normalized checkpoint is folded once, and is an ordinary one then.
//!
//!     cargo run --release --manifest-path examples/candle/Cargo.toml
//!
//! The model is the distance field of tests/data, 4 → 128 → 124, (+4) → 128, 3 x 128 → 128 → 1. Its file also has points,
//! and what PyTorch computed for them in float64.
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Module, VarBuilder, linear};
use weightnorm_checkpoint::{self as checkpoint, Checkpoint, Rules};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Fold: w = g·v/‖v‖ in place of g and v, in either spelling of PyTorch. On a GPU: `&Gpu::new()?` in place of Reference.
    let model =
        Checkpoint::open(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/round_cross.safetensors")))?;
    let folded = std::env::temp_dir().join("round_cross.folded.safetensors");
    checkpoint::fold(checkpoint::Device::Reference, &model, &folded, &Rules::default(), &mut |_| ())?;
    // Load: `model.lin0.weight` and `model.lin0.bias` are there now.
    let vb = VarBuilder::from_buffered_safetensors(std::fs::read(&folded)?, DType::F32, &Device::Cpu)?;
    let sizes = [(4, 128), (128, 124), (128, 128), (128, 128), (128, 128), (128, 128), (128, 1)];
    let layers = (0..).zip(sizes).map(|(i, (ins, outs))| linear(ins, outs, vb.pp(format!("model.lin{i}"))));
    let layers = layers.collect::<Result<Vec<_>, _>>()?;
    // Run: latent code 0 and a point, 2048 times.
    let points = vb.get((2048, 3), "points")?;
    let code = vb.get((20, 1), "latent_codes")?.narrow(0, 0, 1)?.expand((2048, 1))?;
    let x = Tensor::cat(&[&code, &points], 1)?;
    let mut h = x.clone();
    for (i, layer) in layers.iter().enumerate() {
        let input = if i == 2 { Tensor::cat(&[&h, &x], 1)? } else { h };
        h = layer.forward(&input)?;
        h = if i < 6 { h.relu()? } else { h };
    }

    let expected = vb.get_with_hints_dtype((2048, 1), "expected_sdf", Default::default(), DType::F64)?;
    let error = (h.to_dtype(DType::F64)? - expected)?.abs()?.max_all()?.to_scalar::<f64>()?;
    println!("2048 points, largest difference from PyTorch's float64: {error:.1e}");
    if error < 1e-6 { Ok(()) } else { Err("that is more than rounding".into()) }
}
