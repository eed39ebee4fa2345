//! The signed distance field of `examples/decode`, looked at from any side.
use std::cell::Cell;
use std::rc::Rc;

use decode::decoder::Decoder;
use decode::model::Model;
use wasm_bindgen::prelude::*;

use crate::march::{Camera, Level};
use crate::{Device, text};

/// A decoder on the GPU.
#[wasm_bindgen]
pub struct Field {
    shared: Rc<Shared>,
}

pub(crate) struct Shared {
    decoder: Decoder,
    model: Model,
    /// Points decoded so far.
    points: Cell<f64>,
}

/// Points are decoded in multiples of this many: so the crate chooses among few kernels.
const STEP: usize = 64;
/// Numbers of points that need different kernels, for the warm-up.
const WARM: [usize; 4] = [STEP, 512, 2048, 16_384];

#[wasm_bindgen]
impl Field {
    /// The decoder of a `.safetensors` file, as `tests/data/README.md` describes it.
    #[wasm_bindgen(constructor)]
    pub fn new(device: &Device, bytes: &[u8]) -> Result<Field, JsError> {
        let model = Model::parse(bytes).map_err(text)?;
        if model.points.columns != 3 {
            return Err(text(format!("a field of {} dimensions, expected 3", model.points.columns)));
        }
        let decoder = Decoder::new(&device.gpu, &model).map_err(text)?;
        Ok(Field { shared: Rc::new(Shared { decoder, model, points: Cell::new(0.0) }) })
    }

    /// The sizes of its layers.
    pub fn summary(&self) -> String {
        self.shared.model.summary()
    }

    /// The latent codes of the file, one after the other, each of `width` numbers.
    pub fn latent_codes(&self) -> Vec<f32> {
        self.shared.model.latent_codes.data.clone()
    }

    /// Numbers of a latent code.
    pub fn width(&self) -> usize {
        self.shared.model.latent_codes.columns
    }

    /// Points decoded so far.
    pub fn points(&self) -> f64 {
        self.shared.points.get()
    }

    /// The largest error to PyTorch's float64, over the file's points, at latent code 0.
    pub async fn error(&self) -> Result<f64, JsError> {
        let shared = self.shared.clone();
        let model = &shared.model;
        let sdf = shared.decoder.decode_async(&model.inputs(0, &model.points.data)).await?;
        if sdf.len() != model.expected_sdf.len() {
            return Err(text("not as many distances as points"));
        }
        let errors = sdf.iter().zip(&model.expected_sdf).map(|(&got, expected)| (f64::from(got) - expected).abs());
        Ok(errors.fold(0.0, |most, error| if error > most || error.is_nan() { error } else { most }))
    }

    /// How many times [`Field::warm_up`] is to be called.
    pub fn warm_ups(&self) -> usize {
        // A driver that computes on the CPU would take long for more points, and is given few at a time.
        if self.shared.decoder.batch() < WARM[WARM.len() - 1] { 2 } else { WARM.len() }
    }

    /// Has the kernels compiled that a number of points needs.
    pub async fn warm_up(&self, i: usize) -> Result<(), JsError> {
        let shared = self.shared.clone();
        shared.decode(&vec![0.5; 3 * WARM[i]], shared.model.latent_codes.row(0)).await?;
        Ok(())
    }

    /// Looks at the field from a place on a sphere around it; `latent` is one code, `cut` the largest z that is shown.
    pub fn look(&self, yaw: f32, pitch: f32, distance: f32, latent: Vec<f32>, cut: f32) -> Look {
        Look { shared: self.shared.clone(), latent, camera: Camera::new(yaw, pitch, distance, cut), level: None }
    }
}

impl Shared {
    /// The distances at points (x, y, z).
    pub async fn decode(&self, points: &[f32], latent: &[f32]) -> Result<Vec<f32>, weightnorm::Error> {
        let count = points.len() / 3;
        let mut inputs: Vec<f32> =
            points.chunks_exact(3).flat_map(|point| latent.iter().chain(point)).copied().collect();
        inputs.resize(count.next_multiple_of(STEP) * self.model.input_width(), 0.0);
        let mut sdf = self.decoder.decode_async(&inputs).await?;
        sdf.truncate(count);
        self.points.set(self.points.get() + count as f64);
        Ok(sdf)
    }
}

/// One view of the field, made finer and finer.
#[wasm_bindgen]
pub struct Look {
    shared: Rc<Shared>,
    latent: Vec<f32>,
    camera: Camera,
    level: Option<Level>,
}

#[wasm_bindgen]
impl Look {
    /// Follows the rays of a picture of `size` by `size`, from where those of the coarser one before led.
    pub async fn march(&mut self, size: usize) -> Result<(), JsError> {
        let mut level = Level::new(&self.camera, size, self.level.as_ref());
        loop {
            let points = level.points();
            if points.is_empty() {
                break;
            }
            let sdf = self.shared.decode(&points, &self.latent).await?;
            level.advance(&sdf);
        }
        self.level = Some(level);
        Ok(())
    }

    /// The picture of the rays, as RGBA; where nothing was hit it is transparent.
    pub async fn shade(&self) -> Result<Vec<u8>, JsError> {
        let Some(level) = &self.level else { return Ok(vec![]) };
        let around = self.shared.decode(&level.around_hits(), &self.latent).await?;
        Ok(level.shade(&around))
    }
}
