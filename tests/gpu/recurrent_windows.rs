//! Recurrent cells whose hidden weight is past a binding: sums of a step by a product of their own.
use weightnorm::{Axis, Cell, DType, Error, Gpu, LimitError, Tile};

use crate::data::all;
use crate::device;
use crate::recurrent::{CELLS, Case};
use crate::{Extent, Needs, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    suite.sampled("recurrent_windows", windows);
    suite.test("recurrent_windows_refuse_gates_past_a_binding", Needs::Nothing, too_large);
}

/// U of 4·24·24 numbers or more, past bindings of 8 KiB, in one piece and in pieces of the sums.
fn past(cell: Cell) -> Case {
    Case { units: if cell == Cell::Rnn { 52 } else { 28 }, batch: 2, gradients: true, ..Case::new(cell) }
}

/// With the bits of one dispatch, where the same tile forms the same sums.
fn windows(gpu: &Gpu, extent: Extent) -> Outcome {
    let tiny = &device::tiny(gpu)?;
    if extent == Extent::Few {
        return same_bits(gpu, tiny, &Case { length: 2, gradients: false, ..past(Cell::Lstm) });
    }
    all([past(Cell::Lstm), Case { gradients: false, states: false, ..past(Cell::Gru) }], |case| {
        same_bits(gpu, tiny, case)
    })?;
    // c of two steps past a binding, and no U.
    same_bits(gpu, tiny, &Case { units: 8, batch: 130, length: 2, ..past(Cell::Lstm) })?;
    let (full, half, brain) = (DType::F32, DType::F16, DType::Bf16);
    for cell in CELLS {
        for axis in [Some(Axis::Kept(0)), Some(Axis::Kept(1)), Some(Axis::Whole), None] {
            let case = Case { axis, ..past(cell) };
            match axis {
                // Other norms are sums of several rows, in other pieces here.
                Some(Axis::Kept(1) | Axis::Whole) => case.check(tiny)?,
                _ => same_bits(gpu, tiny, &case)?,
            }
            Case { axis, tile: None, states: false, biases: false, batch: 9, ..past(cell) }.check(tiny)?;
        }
        for dtypes in [[half; 3], [full, brain, full], [brain, full, half]] {
            Case { dtypes, units: 60, ..past(cell) }.check(tiny)?;
        }
        for tile in [Tile::Gemv2, Tile::Gemv4, Tile::Subgroup4, Tile::Subgroup16, Tile::Tile64x64] {
            if tile.runs_on(tiny) {
                Case { tile: Some(tile), ..past(cell) }.check(tiny)?;
            }
        }
        Case { length: 1, states: false, ..past(cell) }.check(tiny)?;
        // Bindings of 1 MiB.
        let units = if cell == Cell::Rnn { 520 } else { 270 };
        Case { units, length: 2, tile: None, ..past(cell) }.check(&device::small(gpu)?)?;
    }
    Ok(())
}

fn same_bits(gpu: &Gpu, tiny: &Gpu, case: &Case) -> Outcome {
    let (cut, whole) = (case.run(tiny)?, case.run(gpu)?);
    case.judge(&cut)?;
    if cut.y == whole.y && cut.c == whole.c { Ok(()) } else { Err(format!("other bits: {case:?}").into()) }
}

/// The gates of one element of the batch are past a binding.
fn too_large(gpu: &Gpu) -> Outcome {
    let tiny = &device::tiny(gpu)?;
    let case = Case { units: 600, batch: 1, length: 1, ..Case::new(Cell::Lstm) };
    let of = case.upload(tiny)?;
    match tiny.recurrent(case.layer(&of)) {
        Err(Error::Limit(LimitError::TooLarge { .. })) => Ok(()),
        other => Err(format!("{:?}", other.map(drop)).into()),
    }
}
