//! The network on the GPU: one dispatch for the norms of all transposed layers, and one for each convolution.
use std::collections::HashMap;
use std::ops::Deref;
#[cfg(not(target_arch = "wasm32"))]
use std::time::Instant;

use weightnorm::{Activation, Conv, DType, Eps, Error, Gpu, Recorder, SetMember, Tensor, WeightNorm, WeightSet};

use crate::network::{Before, Layer, Network, Stretch, Weight};

/// A network in GPU memory, with the buffers for so many frames at a time. `N` borrows the network, or shares it.
pub struct Vocoder<N> {
    gpu: Gpu,
    network: N,
    layers: Vec<LayerTensors>,
    /// The transposed layers, whose norms no convolution sums up by itself: their axis 0 is that of x, along the sum.
    transposed: Option<WeightSet>,
    /// All that is between the layers.
    buffers: Vec<Tensor>,
    /// The parts of them for a number of frames.
    views: HashMap<usize, Vec<Views>>,
    /// Dispatches of the last stretch.
    dispatch_count: u64,
}

struct LayerTensors {
    v: Tensor,
    g: Option<Tensor>,
    /// Of a transposed layer: g/‖v‖.
    scales: Option<Tensor>,
    bias: Tensor,
    alpha: Option<Tensor>,
}

/// What a layer reads and writes.
struct Views {
    x: Tensor,
    y: Tensor,
    residual: Option<Tensor>,
}

/// How long a run of all stretches takes: medians.
pub struct Speed {
    pub seconds: f64,
    /// The same with norms that are known, of every layer.
    pub with_known_norms: f64,
    pub runs: usize,
}

impl<N: Deref<Target = Network>> Vocoder<N> {
    pub fn new(gpu: &Gpu, network: N, frames: usize) -> Result<Vocoder<N>, Error> {
        let is_set = |layer: &Layer| layer.transposed && layer.weight.g.is_some();
        let in_set: Vec<&Layer> = network.layers.iter().filter(|layer| is_set(layer)).collect();
        let shapes: Vec<_> = in_set.iter().map(|layer| (&layer.weight.shape[..], DType::F32)).collect();
        let gains: Vec<_> = in_set.iter().map(|layer| (&layer.weight.shape[..1], DType::F32)).collect();
        let pairs: Vec<_> = in_set.iter().map(|layer| [layer.weight.shape[0], 2]).collect();
        let pairs: Vec<_> = pairs.iter().map(|shape| (&shape[..], DType::F32)).collect();
        // What one dispatch is to reach lies in one buffer.
        let [set_v, set_g, set_scales] = [gpu.tensors(&shapes)?, gpu.tensors(&gains)?, gpu.tensors(&pairs)?];
        let mut set = set_v.into_iter().zip(set_g).zip(set_scales);
        let mut layers = vec![];
        for layer in &network.layers {
            let vector = |data: &[f32]| gpu.upload(data, &[data.len()]);
            let Weight { shape, v, g } = &layer.weight;
            let (v, g, scales) = match (is_set(layer).then(|| set.next()).flatten(), g) {
                (Some(((set_v, set_g), scales)), Some(g)) => {
                    gpu.queue().write_buffer(set_v.buffer()?, set_v.offset(), bytemuck::cast_slice(v));
                    gpu.queue().write_buffer(set_g.buffer()?, set_g.offset(), bytemuck::cast_slice(g));
                    (set_v, Some(set_g), Some(scales))
                }
                _ => (gpu.upload(v, shape)?, g.as_deref().map(vector).transpose()?, None),
            };
            let alpha = if let Before::Snake(alpha) = &layer.before { Some(vector(alpha)?) } else { None };
            layers.push(LayerTensors { v, g, scales, bias: vector(&layer.bias)?, alpha });
        }
        let members: Vec<_> = layers
            .iter()
            .filter_map(|layer| Some(SetMember::new(layer.normalized()?).scales(layer.scales.as_ref()?)))
            .collect();
        let transposed = if members.is_empty() { None } else { Some(gpu.weight_set(&members)?) };
        let buffer = |elements: usize| gpu.zeros(&[elements], DType::F32);
        let buffers = network.capacities(frames)?.into_iter().map(buffer).collect::<Result<_, _>>()?;
        let gpu = gpu.clone();
        Ok(Vocoder { gpu, network, layers, transposed, buffers, views: HashMap::new(), dispatch_count: 0 })
    }

    /// The dispatches of the last stretch.
    pub fn dispatch_count(&self) -> u64 {
        self.dispatch_count
    }

    /// The samples of a stretch of `input`, `[1, channels, frames]`: one submission, on GL several.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn vocode(&mut self, input: &[f32], stretch: &Stretch) -> Result<Vec<f32>, Error> {
        let Some(y) = self.submit(input, stretch, None)? else { return Ok(vec![]) };
        Ok(y.read::<f32>()?[stretch.kept.clone()].to_vec())
    }

    /// [`Vocoder::vocode`] without blocking: a browser cannot wait.
    pub async fn vocode_async(&mut self, input: &[f32], stretch: &Stretch) -> Result<Vec<f32>, Error> {
        let Some(y) = self.submit(input, stretch, None)? else { return Ok(vec![]) };
        Ok(y.read_async::<f32>().await?[stretch.kept.clone()].to_vec())
    }

    /// Has the kernels of a stretch compiled, layer by layer: after each it calls `done` with the part that is done.
    pub async fn warm_up(&mut self, stretch: &Stretch, done: impl Fn(f64)) -> Result<(), Error> {
        let frames = stretch.frames.len();
        let views = self.views(frames)?;
        if let Some(set) = &self.transposed {
            self.gpu.run(|ops| ops.row_norms_set(set))?;
        }
        let count = self.layers.len();
        for (i, (layer, tensors)) in self.network.layers.iter().zip(&self.layers).enumerate() {
            self.gpu.run(|ops| tensors.record(ops, layer, &views[i], None))?;
            // The first element, for it to be over.
            let y = &views[i].y;
            Tensor::from_buffer(&self.gpu, y.buffer()?, y.offset(), &[1], DType::F32)?.read_async::<f32>().await?;
            done((i + 1) as f64 / count as f64);
        }
        self.views.insert(frames, views);
        Ok(())
    }

    /// Submits a stretch. What it makes, with what is beside the wanted samples, is overwritten by the next one.
    fn submit(
        &mut self,
        input: &[f32],
        stretch: &Stretch,
        known: Option<&[Option<Tensor>]>,
    ) -> Result<Option<Tensor>, Error> {
        let (network, frames) = (&*self.network, stretch.frames.len());
        if !self.views.contains_key(&frames) {
            let views = self.views(frames)?;
            self.views.insert(frames, views);
        }
        let views = &self.views[&frames];
        let rows = input.chunks(input.len() / network.channels);
        let x: Vec<f32> = rows.flat_map(|row| &row[stretch.frames.clone()]).copied().collect();
        self.gpu.queue().write_buffer(self.buffers[network.input].buffer()?, 0, bytemuck::cast_slice(&x));
        self.dispatch_count = self.gpu.run(|ops| {
            if let (Some(set), None) = (&self.transposed, known) {
                ops.row_norms_set(set)?;
            }
            for (i, (layer, tensors)) in network.layers.iter().zip(&self.layers).enumerate() {
                tensors.record(ops, layer, &views[i], known.and_then(|known| known[i].as_ref()))?;
            }
            Ok(ops.dispatch_count())
        })?;
        Ok(views.last().map(|last| last.y.clone()))
    }

    fn views(&self, frames: usize) -> Result<Vec<Views>, Error> {
        let view = |slot: usize, shape: &[usize; 3]| {
            let buffer = &self.buffers[slot];
            Tensor::from_buffer(&self.gpu, buffer.buffer()?, buffer.offset(), shape, DType::F32)
        };
        let of_layer = |(layer, [x, y]): (&Layer, &[[usize; 3]; 2])| {
            let residual = layer.residual.map(|slot| view(slot, y)).transpose()?;
            Ok(Views { x: view(layer.x, x)?, y: view(layer.y, y)?, residual })
        };
        self.network.layers.iter().zip(&self.network.shapes(frames)?).map(of_layer).collect()
    }

    /// Times all stretches, from the upload of frames to the samples on the host: with the norms as they are summed up
    /// in every run, and in turn with known ones, as a measure of what they cost.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn speed(&mut self, input: &[f32], stretches: &[Stretch]) -> Result<Speed, Error> {
        // The transposed layers have their scales from the runs before.
        let norms = |layer: &LayerTensors| {
            let weight = layer.normalized().filter(|_| layer.scales.is_none());
            weight.map(|weight| self.gpu.row_norms(weight)).transpose()
        };
        let known = self.layers.iter().map(norms).collect::<Result<Vec<_>, _>>()?;
        let mut times = [vec![], vec![]];
        let start = Instant::now();
        // The first run of each is the warm-up.
        while times[0].len() <= LEAST_RUNS || times[0].len() <= MOST_RUNS && start.elapsed().as_secs_f64() < ENOUGH {
            for (times, known) in times.iter_mut().zip([None, Some(&known[..])]) {
                let start = Instant::now();
                for stretch in stretches {
                    if let Some(y) = self.submit(input, stretch, known)? {
                        y.read::<f32>()?;
                    }
                }
                times.push(start.elapsed().as_secs_f64());
            }
        }
        let runs = times[0].len() - 1;
        let [seconds, with_known_norms] = times.map(|mut times| {
            times.remove(0);
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        });
        // Of the last run with norms as they are.
        self.dispatch_count += u64::from(self.transposed.is_some());
        Ok(Speed { seconds, with_known_norms, runs })
    }
}

/// Runs of [`Vocoder::speed`], and seconds after which there are no more than the least.
#[cfg(not(target_arch = "wasm32"))]
const LEAST_RUNS: usize = 3;
#[cfg(not(target_arch = "wasm32"))]
const MOST_RUNS: usize = 51;
#[cfg(not(target_arch = "wasm32"))]
const ENOUGH: f64 = 2.0;

impl LayerTensors {
    /// PyTorch's weight norm has no eps.
    fn normalized(&self) -> Option<WeightNorm<'_>> {
        self.g.as_ref().map(|g| WeightNorm::new(&self.v, g).eps(Eps::None))
    }

    fn record(
        &self,
        ops: &mut Recorder<'_, '_>,
        layer: &Layer,
        views: &Views,
        norms: Option<&Tensor>,
    ) -> Result<(), Error> {
        let weight = match (self.normalized(), norms) {
            (None, _) => weightnorm::Weight::Plain(&self.v),
            (Some(weight), None) => weightnorm::Weight::Normalized(weight),
            (Some(weight), Some(norms)) => weightnorm::Weight::Normalized(weight.norms(norms)),
        };
        let mut conv =
            Conv::new(&views.x, weight).scales(self.scales.as_ref()).bias(&self.bias).geometry(layer.geometry());
        conv = match (&layer.before, &self.alpha) {
            (Before::LeakyRelu(slope), _) => conv.input_activation(Activation::LeakyRelu(*slope as f32)),
            (Before::Snake(_), Some(alpha)) => conv.input_snake(alpha),
            _ => conv,
        };
        if let Some(residual) = &views.residual {
            conv = conv.residual(residual);
        }
        conv = conv.scale(layer.scale as f32).accumulate(layer.accumulate).activation(layer.after);
        if layer.transposed { ops.conv_transposed(conv, &views.y) } else { ops.conv(conv, &views.y) }
    }
}

/// As the user wants to have it cut, or in one piece; and in more of them where a buffer would be larger than a
/// binding.
pub fn stretches(gpu: &Gpu, network: &Network, frames: usize, chunk: Option<usize>) -> Result<Vec<Stretch>, Error> {
    let binding = gpu.report().limits.max_storage_buffer_binding_size / 4;
    let mut chunk = chunk.unwrap_or(frames).min(frames);
    loop {
        let stretches = network.stretches(frames, chunk)?;
        let most = stretches.iter().map(|stretch| stretch.frames.len()).max().unwrap_or(0);
        let largest = network.capacities(most)?.into_iter().max().unwrap_or(0) as u64;
        if largest <= binding || chunk == 1 {
            return Ok(stretches);
        }
        chunk = chunk.div_ceil(2);
    }
}
