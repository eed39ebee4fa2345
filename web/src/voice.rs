//! A decoder to sound, by the library of `examples/vocode`.
use std::rc::Rc;

use js_sys::Function;
use vocode::file::File;
use vocode::network::{Network, Stretch};
use vocode::sound::Sound;
use vocode::vocoder::{Vocoder, stretches};
use wasm_bindgen::prelude::*;

use crate::{Device, text};

/// Frames of a submission.
const CHUNK: usize = 24;

/// A network, and what it is given.
#[wasm_bindgen]
pub struct Voice {
    network: Rc<Network>,
    vocoder: Vocoder<Rc<Network>>,
    sound: Sound,
    stretches: Vec<Stretch>,
    at: usize,
}

#[wasm_bindgen]
impl Voice {
    /// The network of a `.safetensors` file, with the frames of another one, or else a second of noise.
    /// `tests/data/README.md` describes both.
    #[wasm_bindgen(constructor)]
    pub fn new(device: &Device, model: &[u8], frames: Option<Vec<u8>>) -> Result<Voice, JsError> {
        let network = Rc::new(File::parse(model).and_then(|mut file| Network::of_file(&mut file)).map_err(text)?);
        let sound = match &frames {
            Some(bytes) => File::parse(bytes).and_then(|file| Sound::of_file(&file, &network)).map_err(text)?,
            None => Sound::noise(&network),
        };
        let stretches = stretches(&device.gpu, &network, sound.frames, Some(CHUNK))?;
        let most = stretches.iter().map(|stretch| stretch.frames.len()).max().unwrap_or(0);
        let vocoder = Vocoder::new(&device.gpu, network.clone(), most)?;
        Ok(Voice { network, vocoder, sound, stretches, at: 0 })
    }

    /// What the network is.
    pub fn title(&self) -> String {
        format!("{}, {} layers", self.network.title, self.network.layers.len())
    }

    /// Samples of a second.
    pub fn sampling_rate(&self) -> usize {
        self.network.sampling_rate
    }

    /// Frames that it is given.
    pub fn frames(&self) -> usize {
        self.sound.frames
    }

    /// Has the kernels compiled: `done` is told which part is done.
    pub async fn warm_up(&mut self, done: Function) -> Result<(), JsError> {
        let mut lengths: Vec<usize> = vec![];
        for stretch in self.stretches.clone() {
            if !lengths.contains(&stretch.frames.len()) {
                lengths.push(stretch.frames.len());
                let tell = |part: f64| drop(done.call1(&JsValue::NULL, &part.into()));
                self.vocoder.warm_up(&stretch, tell).await?;
            }
        }
        Ok(())
    }

    /// From the first stretch on again.
    pub fn rewind(&mut self) {
        self.at = 0;
    }

    /// The samples of the next stretch; none at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<f32>>, JsError> {
        let Some(stretch) = self.stretches.get(self.at) else { return Ok(None) };
        let samples = self.vocoder.vocode_async(&self.sound.input, stretch).await?;
        self.at += 1;
        Ok(Some(samples))
    }

    /// The largest error of all samples to those that the file of frames has, PyTorch's in float64.
    pub fn error(&self, samples: &[f32]) -> Option<f64> {
        let expected = self.sound.expected.as_ref()?;
        if expected.len() != samples.len() {
            return Some(f64::NAN);
        }
        let errors = samples.iter().zip(expected).map(|(&got, expected)| (f64::from(got) - expected).abs());
        Some(errors.fold(0.0, |most, error| if error > most || error.is_nan() { error } else { most }))
    }
}
