//! What a network is given, and what it should make of it.
use crate::file::File;
use crate::network::Network;
use crate::random::Random;

/// Frames, and the samples that are known to become of them.
pub struct Sound {
    pub frames: usize,
    /// `[1, channels, frames]`.
    pub input: Vec<f32>,
    pub expected: Option<Vec<f64>>,
}

impl Sound {
    /// The tensors `input`, and `expected` if there is one.
    pub fn of_file(file: &File<'_>, network: &Network) -> Result<Sound, String> {
        let (shape, input) = file.numbers("input")?;
        let frames = match shape[..] {
            [1, channels, frames] if channels == network.channels && frames > 0 => frames,
            _ => return Err(format!("tensor input has shape {shape:?}, expected [1, {}, frames]", network.channels)),
        };
        let samples = network.samples(frames).map_err(|e| e.to_string())?;
        let expected = file.tensors.contains_key("expected").then(|| file.numbers("expected")).transpose()?;
        if let Some((shape, _)) = expected.as_ref().filter(|(shape, _)| shape[..] != [1, 1, samples]) {
            return Err(format!("tensor expected has shape {shape:?}, expected [1, 1, {samples}]"));
        }
        let input = input.into_iter().map(|x| x as f32).collect();
        Ok(Sound { frames, input, expected: expected.map(|(_, data)| data) })
    }

    /// A second of noise.
    pub fn noise(network: &Network) -> Sound {
        let frames = (network.sampling_rate / network.hop()).max(1);
        Sound { frames, input: Random(2).numbers(network.channels * frames, 1.0), expected: None }
    }

    /// The first frames.
    pub fn first(&self, frames: usize) -> Vec<f32> {
        self.input.chunks(self.frames).flat_map(|row| &row[..frames]).copied().collect()
    }
}
