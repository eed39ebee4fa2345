//! GPUs whose invocations have few registers (Apple's, Qualcomm's) compute by large tiles of other shapes.
use weightnorm::{Gpu, Tile};

use crate::conv::{Case, plain};
use crate::data::all;
use crate::problem::options;
use crate::suite::{Extent, Outcome, Suite};
use crate::{backward, linear};

pub fn register(suite: &mut Suite) {
    suite.sampled("registers", registers);
}

/// Rows and columns past one tile, and some left over.
fn registers(gpu: &Gpu, extent: Extent) -> Outcome {
    let tiles = [Tile::Tile64x64, Tile::Tile128x128, Tile::Tile128x8];
    for count in extent.of([128, 192], 1) {
        let mut options = options(gpu);
        options.registers = Some(count);
        let gpu = &Gpu::from_wgpu(gpu.device().clone(), gpu.queue().clone(), options)?;
        all(extent.of(tiles, 1), |&tile| {
            if !tile.runs_on(gpu) {
                return Ok(());
            }
            let size = [67, 70, 133];
            backward::by_tile(gpu, size, tile)?;
            let forward = Case::new(&[2, 20, 70], &[68, 20, 3], plain().padding(1));
            let forward = Case { tile: Some(tile), ..forward };
            forward.check(gpu)?;
            if extent == Extent::All {
                linear::Case { tile: Some(tile), ..linear::Case::new(size) }.check(gpu)?;
                forward.check_backward(gpu, false)?;
                let back = Case::new(&[2, 20, 35], &[20, 68, 4], plain().stride(2).padding(1)).transposed();
                Case { tile: Some(tile), ..back }.check(gpu)?;
            }
            Ok(())
        })?;
    }
    Ok(())
}
