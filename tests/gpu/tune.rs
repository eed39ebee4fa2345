//! Tuning: choices that run, right results with them, nothing left behind.
use weightnorm::{ArgumentError, Error, Gpu, LinearShape, Tile, TuningTable};

use crate::linear::Case;
use crate::problem::{adapter_of, device, options};
use crate::{Extent, Needs, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    suite.sampled("tune::chooses_what_runs", chooses_what_runs);
    suite.sampled("tune::results_with_any_choice", any_choice);
    suite.test("tune::choices_that_cannot_run", Needs::Nothing, cannot_run);
}

/// Small, and with sums that are worth trying in pieces.
const SIZE: [usize; 3] = [2, 3, 600];

fn chooses_what_runs(shared: &Gpu, extent: Extent) -> Outcome {
    let (_instance, adapter) = adapter_of(shared, wgpu::MemoryBudgetThresholds::default())?;
    let (device, queue) = device(&adapter, |_, _| ())?;
    let gpu = Gpu::from_wgpu(device.clone(), queue.clone(), options(shared))?;
    let in_use = || -> Result<[isize; 2], wgpu::PollError> {
        gpu.device().poll(wgpu::PollType::wait_indefinitely())?;
        let counters = gpu.device().get_internal_counters().hal;
        Ok([counters.buffers.read(), counters.compute_pipelines.read()])
    };
    gpu.upload(&[0f32], &[1])?.read::<f32>()?; // after which wgpu has let go of what it began with
    let before = in_use()?;
    let [batch, outs, ins] = SIZE;
    let shape = LinearShape::new(batch, ins, outs);
    let choices = gpu.tune(&[extent.choose(shape.training(), shape)])?;
    assert_eq!((in_use()?, gpu.pipeline_count()), (before, 0), "something is left");
    assert!(before[0] > 0, "wgpu counts buffers with its feature `counters` only");
    let text = choices.to_string();
    let products = ["forward f32 f32 2 3 600 ", "input_gradient f32 f32 2 600 3 ", "weight_gradient f32 f32 3 600 2 "];
    let products = &products[..extent.choose(3, 1)];
    for product in products {
        assert!(text.contains(product), "{product} is not among\n{text}");
    }
    assert_eq!(choices.len(), products.len());

    let tuned = Gpu::from_wgpu(device, queue, options(shared).tuning_table(text.parse()?))?;
    assert_eq!(tuned.tuning_table(), &choices);
    Case::new(SIZE).check(&tuned)?;
    if extent == Extent::Few {
        return Ok(());
    }
    crate::backward::check_as_chosen(&tuned, SIZE)?;
    let awaited = pollster::block_on(tuned.tune_async(&[LinearShape::new(1, 5, 7)]))?;
    assert!(awaited.len() == 4 && awaited.to_string().contains("forward f32 f32 1 7 5 "), "{awaited}");
    Ok(())
}

/// A few tiles, chosen and not forced, whole and split: right results, and a dispatch more where it is split.
fn any_choice(shared: &Gpu, extent: Extent) -> Outcome {
    let (_instance, adapter) = adapter_of(shared, wgpu::MemoryBudgetThresholds::default())?;
    let (device, queue) = device(&adapter, |_, _| ())?;
    let origin = Gpu::from_wgpu(device.clone(), queue.clone(), options(shared))?.tuning_table().to_string();
    let tiles = [Tile::Gemv8, Tile::Tile32x32, Tile::Subgroup4].into_iter().filter(|tile| tile.runs_on(shared));
    for tile in extent.of(tiles, 3) {
        let split = if tile == Tile::Gemv8 { " split 160" } else { "" };
        let text = format!("{origin}forward f32 f32 2 3 600 {tile}{split}\nweight_gradient f32 f32 3 600 2 {tile}\n");
        let choices: TuningTable = text.parse()?;
        let gpu = Gpu::from_wgpu(device.clone(), queue.clone(), options(shared).tuning_table(choices))?;
        assert_eq!(gpu.tuning_table().len(), 2, "{text}");
        let got = Case::new(SIZE).run(&gpu)?;
        Case::new(SIZE).judge(&got).map_err(|e| format!("{tile}: {e}"))?;
        assert_eq!(got.dispatches, if split.is_empty() { 1 } else { 2 }, "{tile}");
        crate::backward::check_as_chosen(&gpu, SIZE)?;
    }
    Ok(())
}

/// Lanes on a device without the feature, by the choices of one that has it.
fn cannot_run(shared: &Gpu) -> Outcome {
    let (_instance, adapter) = adapter_of(shared, wgpu::MemoryBudgetThresholds::default())?;
    let (device, queue) = device(&adapter, |features, _| features.remove(wgpu::Features::SUBGROUP))?;
    let text = format!("{}forward f32 f32 2 3 600 subgroup32\n", shared.tuning_table());
    let refused = Gpu::from_wgpu(device, queue, options(shared).tuning_table(text.parse()?)).map(drop);
    assert!(matches!(refused, Err(Error::Argument(ArgumentError::Variant { op: "tuning_table", .. }))), "{refused:?}");
    Ok(())
}
