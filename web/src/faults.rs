//! What goes wrong on purpose, on a device of its own: how errors of a browser reach the page.
use wasm_bindgen::prelude::*;
use weightnorm::{DType, Error, Gpu, Options, WeightNorm};

use crate::text;

/// Makes a mistake, and gives the error that comes of it: an error that does not come is the one that is thrown.
#[wasm_bindgen]
pub async fn fault(kind: &str) -> Result<String, JsError> {
    let gpu = Gpu::new_async(Options::default()).await?;
    let result = match kind {
        "buffer" => destroyed_buffer(&gpu).await,
        "pipeline" => wrong_pipeline(&gpu).await,
        "memory" => too_much_memory(&gpu).await,
        other => return Err(text(format!("there is no fault {other:?}"))),
    };
    let error = result.err().ok_or_else(|| text("no error came"))?;
    // One mistake may have several errors. Once all are told, the device is as good as before.
    for _ in 0..4 {
        if later(&gpu).await.is_ok() {
            break;
        }
    }
    let v = gpu.upload(&[3.0f32, 4.0], &[1, 2])?;
    let norm = gpu.row_norms(WeightNorm::unit(&v))?.read_async::<f32>().await?;
    if norm != [5.0] {
        return Err(text(format!("afterwards the norm of [3, 4] is {norm:?}")));
    }
    Ok(error.to_string())
}

/// An operator on a buffer that its owner has destroyed.
async fn destroyed_buffer(gpu: &Gpu) -> Result<(), Error> {
    let v = gpu.upload(&[1.0f32; 64], &[8, 8])?;
    v.buffer()?.destroy();
    let norms = gpu.row_norms(WeightNorm::unit(&v))?;
    norms.read_async::<f32>().await.map(drop)
}

/// A shader of the page's own that does not compile, on the device of the crate.
async fn wrong_pipeline(gpu: &Gpu) -> Result<(), Error> {
    let source = wgpu::ShaderSource::Wgsl("@compute @workgroup_size(1) fn main() { let x: u32 = 1.5; }".into());
    let module =
        gpu.device().create_shader_module(wgpu::ShaderModuleDescriptor { label: Some("faults.wrong"), source });
    let _ = gpu.device().create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some("faults.wrong"),
        layout: None,
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions::default(),
        cache: None,
    });
    later(gpu).await
}

/// More memory than the browser grants.
async fn too_much_memory(gpu: &Gpu) -> Result<(), Error> {
    let mut held = vec![];
    // Each within the limits of the device.
    let elements = (gpu.report().limits.max_buffer_size / 4).min(1 << 28) as usize;
    for _ in 0..64 {
        held.push(gpu.zeros(&[elements], DType::F32)?);
        later(gpu).await?;
    }
    Ok(())
}

/// The browser tells of errors when it comes to them: waits until it has come to all so far.
async fn later(gpu: &Gpu) -> Result<(), Error> {
    gpu.upload(&[0.0f32], &[1])?.read_async::<f32>().await?;
    gpu.check()
}
