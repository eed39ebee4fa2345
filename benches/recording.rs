//! What recording costs on the CPU: a forward pass of seven layers, and single operators, into an encoder that is never
//! submitted, or into one that is. On wgpu's `noop` backend, which leaves the crate's and wgpu's own work, and on the
//! adapter of `Gpu::new`.
//!
//! `cargo bench --bench recording`; the rates are operators in a second.
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use weightnorm::{DType, Error, Gpu, Linear, Options, Recorder, Tensor, WeightNorm};

const LAYERS: usize = 7;
const WIDTH: usize = 128;
const BATCH: usize = 8;

fn noop() -> Gpu {
    let descriptor = wgpu::DeviceDescriptor {
        required_features: wgpu::Features::IMMEDIATES,
        required_limits: wgpu::Limits { max_immediate_size: 64, ..wgpu::Limits::default() },
        ..Default::default()
    };
    let (device, queue) = wgpu::Device::noop(&descriptor);
    Gpu::from_wgpu(device, queue, Options::default()).expect("WebGPU's default limits will do")
}

/// A network of equal layers.
struct Network {
    weights: Vec<[Tensor; 3]>,
    activations: Vec<Tensor>,
    norms: Tensor,
}

impl Network {
    fn new(gpu: &Gpu) -> Result<Network, Error> {
        let zeros = |shape: &[usize]| gpu.zeros(shape, DType::F32);
        let layer = |_| Ok([zeros(&[WIDTH, WIDTH])?, zeros(&[WIDTH])?, zeros(&[WIDTH])?]);
        Ok(Network {
            weights: (0..LAYERS).map(layer).collect::<Result<_, Error>>()?,
            activations: (0..=LAYERS).map(|_| zeros(&[BATCH, WIDTH])).collect::<Result<_, Error>>()?,
            norms: zeros(&[WIDTH])?,
        })
    }

    fn forward(&self, ops: &mut Recorder<'_, '_>) -> Result<(), Error> {
        self.weights.iter().zip(self.activations.windows(2)).try_for_each(|([v, g, bias], between)| {
            ops.linear(Linear::new(&between[0], WeightNorm::new(v, g)).bias(bias), &between[1])
        })
    }

    fn norms(&self, ops: &mut Recorder<'_, '_>) -> Result<(), Error> {
        self.weights.iter().try_for_each(|[v, ..]| ops.row_norms(WeightNorm::unit(v), &self.norms))
    }
}

fn encoder(gpu: &Gpu) -> wgpu::CommandEncoder {
    gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
}

fn recording(criterion: &mut Criterion) {
    let devices = [("noop", Ok(noop())), ("adapter", Gpu::new())];
    for (name, gpu) in devices {
        let gpu = match gpu {
            Ok(gpu) => gpu,
            Err(error) => {
                println!("{name}: {error}");
                continue;
            }
        };
        let network = Network::new(&gpu).expect("a small network");
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(LAYERS as u64));
        let recorded = |record: &dyn Fn(&mut Recorder<'_, '_>) -> Result<(), Error>,
                        mut encoder: wgpu::CommandEncoder| {
            record(&mut gpu.record(&mut encoder)).expect("checked arguments");
            encoder
        };
        group.bench_function("linear", |bench| {
            let record = |encoder| recorded(&|ops| network.forward(ops), encoder);
            bench.iter_batched(|| encoder(&gpu), record, BatchSize::SmallInput);
        });
        group.bench_function("row_norms", |bench| {
            let record = |encoder| recorded(&|ops| network.norms(ops), encoder);
            bench.iter_batched(|| encoder(&gpu), record, BatchSize::SmallInput);
        });
        group.bench_function("linear, finished", |bench| {
            let record = |encoder| recorded(&|ops| network.forward(ops), encoder).finish();
            bench.iter_batched(|| encoder(&gpu), record, BatchSize::SmallInput);
        });
        group.finish();
    }
}

criterion_group!(benches, recording);
criterion_main!(benches);
