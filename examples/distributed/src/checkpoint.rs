//! The checkpoint: all that the training goes on from, whole at every moment.
use std::collections::HashMap;
use std::error::Error;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use bytemuck::pod_collect_to_vec;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use weightnorm::{Gpu, Tensor};

use train::step::Network;

/// The tensors of a network and of its optimizer, by their names in the file. PyTorch's names where it has some: so
/// `weightnorm inspect` and `fold` take the file.
pub fn tensors(network: &Network) -> Vec<(String, Tensor)> {
    let mut all = vec![];
    for (i, layer) in network.layers.iter().enumerate() {
        all.push((format!("lin{i}.weight_v"), layer.v.clone()));
        all.extend(layer.g.clone().map(|g| (format!("lin{i}.weight_g"), g)));
        all.push((format!("lin{i}.bias"), layer.bias.clone()));
    }
    let moments = &network.moments;
    for (of, moments) in [("v", Some(&moments.v)), ("g", moments.g.as_ref())] {
        let moments = moments.into_iter().flat_map(|m| [("exp_avg", &m.first), ("exp_avg_sq", &m.second)]);
        all.extend(moments.map(|(name, tensor)| (format!("optimizer.{name}.{of}"), tensor.clone())));
    }
    all
}

/// Writes it beside its place, has the system put it on the disk, and renames it: whoever reads `path`, and whenever the
/// process dies, finds the old file or the new one. `halfway` is called when half of it is written.
pub fn write(path: &Path, network: &Network, step: u64, halfway: impl FnOnce()) -> Result<(), Box<dyn Error>> {
    let mut data = vec![];
    for (name, tensor) in tensors(network) {
        // As PyTorch shapes a gain.
        let shape = if name.ends_with("weight_g") { vec![tensor.len(), 1] } else { tensor.shape().to_vec() };
        data.push((name, shape, pod_collect_to_vec::<f32, u8>(&tensor.read::<f32>()?)));
    }
    let views = data.iter().map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)));
    let views = views.collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    let bytes = safetensors::serialize(views, Some(HashMap::from([("step".to_owned(), step.to_string())])))?;

    let temporary = temporary(path);
    let (first, rest) = bytes.split_at(bytes.len() / 2);
    let mut file = File::create(&temporary)?;
    file.write_all(first)?;
    halfway();
    file.write_all(rest)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    // So that the new name outlives a power failure too. Not every system opens folders.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
    Ok(())
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}

/// Reads it into the network, and returns the number of steps that were made.
pub fn read(path: &Path, gpu: &Gpu, network: &Network) -> Result<u64, Box<dyn Error>> {
    let bytes = fs::read(path)?;
    let file = SafeTensors::deserialize(&bytes)?;
    for (name, tensor) in tensors(network) {
        let view = file.tensor(&name)?;
        if view.dtype() != Dtype::F32 || view.data().len() != 4 * tensor.len() {
            return Err(format!("{name} is {:?} {:?}, not of this network", view.dtype(), view.shape()).into());
        }
        gpu.queue().write_buffer(tensor.buffer()?, tensor.offset(), view.data());
    }
    let (_, header) = SafeTensors::read_metadata(&bytes)?;
    let step = header.metadata().as_ref().and_then(|words| words.get("step")).and_then(|step| step.parse().ok());
    Ok(step.ok_or("it does not say after which step it was written")?)
}
