//! The device of a rank.
use weightnorm::{Error, Gpu, Options};

/// The ranks of a machine take its GPUs in turn, those of the best kind. `WGPU_BACKEND` and `WGPU_ADAPTER_NAME` narrow the
/// choice. Where there is one GPU, or a CPU that stands for one, all of them share it, each with a device of its own.
pub fn gpu(local: usize) -> Result<Gpu, Error> {
    let first = Gpu::new()?;
    let info = first.report().info;
    let alike = |adapter: &wgpu::Adapter| {
        let other = adapter.get_info();
        (other.name, other.vendor, other.device) == (info.name.clone(), info.vendor, info.device)
    };
    let adapters = pollster::block_on(Gpu::adapters(wgpu::Backends::from(info.backend)));
    let adapters: Vec<_> = adapters.into_iter().filter(alike).collect();
    match adapters.len() {
        0 | 1 => Ok(first),
        count => pollster::block_on(Gpu::on_adapter(&adapters[local % count], Options::default())),
    }
}
