//! The network of `examples/train` in training, with and without weight norm side by side.
#[path = "../../examples/train/src/kernels.rs"]
mod kernels;
#[path = "../../examples/train/src/shape.rs"]
mod shape;
#[allow(dead_code, reason = "the other ways that the example compares")]
#[path = "../../examples/train/src/step.rs"]
mod step;

use wasm_bindgen::prelude::*;
use weightnorm::{DType, Gpu, Tensor};

use crate::Device;
use shape::Random;
use step::{INPUT, Network, Optimizer, Variant};

/// What is compared: the same first weights, the same points.
const VARIANTS: [Variant; 2] = [Variant::Plain, Variant::Normalized];
const WIDTH: usize = 32;
/// Points of a batch.
const BATCH: usize = 128;
/// Batches, which come again and again.
const BATCHES: usize = 256;
/// Steps between two waits for the GPU.
const IN_FLIGHT: usize = 16;
/// Side of a picture of what was learned, in points.
const SIDE: usize = 48;

/// The networks.
#[wasm_bindgen]
pub struct Training {
    gpu: Gpu,
    networks: Vec<Network>,
    points: Tensor,
    /// Of `IN_FLIGHT` steps of each network.
    losses: Tensor,
    /// The points of a picture, in batches.
    slice: Tensor,
    /// What a network says of them.
    field: Tensor,
    step: usize,
}

#[wasm_bindgen]
impl Training {
    /// `sgd`: SGD with a momentum of 0.9 in place of Adam.
    #[wasm_bindgen(constructor)]
    pub fn new(device: &Device, sgd: bool) -> Result<Training, JsError> {
        let gpu = device.gpu.clone();
        let optimizer = if sgd { Optimizer::Sgd } else { Optimizer::Adam };
        let network = |variant| Network::new(&gpu, variant, optimizer, WIDTH, BATCH);
        let networks = VARIANTS.into_iter().map(network).collect::<Result<Vec<_>, _>>()?;
        let points = shape::points(&mut Random::new(1 << 32), BATCHES * BATCH);
        let points = gpu.upload(&points, &[BATCHES, BATCH, INPUT])?;
        let losses = gpu.zeros(&[VARIANTS.len() * IN_FLIGHT], DType::F32)?;
        // At z = 0, for the middle one of the radii.
        let at = |i: usize| 2.0 * (i as f32 + 0.5) / SIDE as f32 - 1.0;
        let slice: Vec<f32> = (0..SIDE * SIDE).flat_map(|i| [0.35, at(i % SIDE), -at(i / SIDE), 0.0]).collect();
        let slice = gpu.upload(&slice, &[SIDE * SIDE / BATCH, BATCH, INPUT])?;
        let field = gpu.zeros(&[SIDE * SIDE], DType::F32)?;
        Ok(Training { gpu, networks, points, losses, slice, field, step: 0 })
    }

    /// Steps made so far.
    pub fn steps(&self) -> usize {
        self.step
    }

    /// Steps of a call of [`Training::run`].
    pub fn steps_of_a_run(&self) -> usize {
        IN_FLIGHT
    }

    /// Side of a picture, in points.
    pub fn side(&self) -> usize {
        SIDE
    }

    /// How many times [`Training::warm_up`] is to be called.
    pub fn warm_ups(&self) -> usize {
        2 * self.networks.len()
    }

    /// Has the kernels compiled: of the start and the forward pass of each network, and of a step. Then it wants a
    /// restart.
    pub async fn warm_up(&self, i: usize) -> Result<(), JsError> {
        let network = &self.networks[i / 2];
        if i.is_multiple_of(2) {
            network.start(0, (&self.points, 0))?;
            network.evaluate((&self.points, 0), (&self.losses, 0))?;
        } else {
            network.step((&self.points, 0), (&self.losses, 0), 1, 0.001)?;
        }
        self.losses.read_async::<f32>().await?;
        Ok(())
    }

    /// Gives all networks the first weights of a seed.
    pub fn restart(&mut self, seed: u32) -> Result<(), JsError> {
        self.step = 0;
        for network in &self.networks {
            network.start(seed.into(), (&self.points, 0))?;
        }
        Ok(())
    }

    /// Makes some steps of each network: the losses before each of them, network by network.
    pub async fn run(&mut self, rate: f64) -> Result<Vec<f32>, JsError> {
        for i in 0..IN_FLIGHT {
            for (n, network) in self.networks.iter().enumerate() {
                let batch = (&self.points, (self.step + i) % BATCHES);
                network.step(batch, (&self.losses, n * IN_FLIGHT + i), (self.step + i) as u64 + 1, rate)?;
            }
        }
        self.step += IN_FLIGHT;
        let losses = self.losses.read_async::<f32>().await?;
        self.gpu.check()?;
        Ok(losses)
    }

    /// The field that a network has learned, at z = 0: a picture in RGBA.
    pub async fn picture(&self, network: usize) -> Result<Vec<u8>, JsError> {
        let network = &self.networks[network];
        let out = &network.layers.last().expect("there are seven").h;
        for i in 0..SIDE * SIDE / BATCH {
            network.evaluate((&self.slice, i), (&self.losses, 0))?;
            let mut encoder = self.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            let bytes = 4 * BATCH as u64;
            encoder.copy_buffer_to_buffer(out.buffer()?, out.offset(), self.field.buffer()?, bytes * i as u64, bytes);
            self.gpu.queue().submit([encoder.finish()]);
        }
        let field = self.field.read_async::<f32>().await?;
        Ok(field.iter().flat_map(|&sdf| color(sdf)).collect())
    }
}

/// Inside orange, outside blue, the surface dark.
fn color(sdf: f32) -> [u8; 4] {
    let far = (sdf.abs() / 0.12).min(1.0);
    let near = [250.0, 250.0, 250.0];
    let full = if sdf < 0.0 { [225.0, 120.0, 50.0] } else { [45.0, 95.0, 165.0] };
    let edge = if sdf.abs() < 0.012 { 0.25 } else { 1.0 };
    let [r, g, b] = std::array::from_fn(|i| (edge * (near[i] + far * (full[i] - near[i]))) as u8);
    [r, g, b, 255]
}
