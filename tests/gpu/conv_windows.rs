//! Convolutions whose tensors are past a binding: windows of images, groups and channels, and sums in parts.
use weightnorm::{Activation, Axis, Conv, DType, Error, Gpu, Gradients, LimitError, PadMode, Tile};

use crate::conv::{Case, plain};
use crate::conv_ends::{Case as Ended, Extra};
use crate::data::all;
use crate::device;
use crate::{Extent, Needs, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    suite.sampled("conv_windows", forward);
    suite.sampled("conv_windows_backward", backward);
    suite.sampled("conv_windows_with_ends", ends);
    suite.test("conv_windows_dispatch_count", Needs::Nothing, dispatch_count);
    suite.test("conv_windows_refuse_a_channel_past_a_binding", Needs::Nothing, too_large);
    suite.test("conv_of_ten_million_positions_in_full", Needs::Time, long);
}

/// Past bindings of 8 KiB: x and y by images, by channels, by groups; v by rows, and within a row.
fn layers() -> Vec<Case> {
    vec![
        Case::exact(&[5, 4, 100], &[6, 4, 3], plain().padding(1)),
        Case::exact(&[2, 12, 602], &[7, 12, 3], plain().padding((2, 0))),
        Case::exact(&[2, 12, 300], &[8, 3, 5], plain().groups(4)),
        Case::exact(&[3, 10, 9], &[70, 10, 3], plain().padding(1)),
        Case::exact(&[1, 900, 5], &[3, 900, 3], plain().padding(1)),
        Case::exact(&[2, 3, 40, 33], &[4, 3, 3, 2], plain().stride([2, 1]).padding([1, 0])),
        Case::exact(&[2, 3, 1_201], &[4, 3, 3], plain().padding((2, 3)).pad_mode(PadMode::Reflect)),
    ]
}

/// And of transposed ones.
fn transposed_layers() -> Vec<Case> {
    let layers = [
        Case::exact(&[5, 4, 50], &[4, 6, 4], plain().stride(2).padding(1)),
        Case::exact(&[2, 12, 301], &[12, 5, 5], plain().stride(3).padding(1)),
        Case::exact(&[2, 12, 300], &[12, 2, 4], plain().stride(2).groups(4)),
        Case::exact(&[3, 70, 9], &[70, 10, 3], plain().padding(1)),
        Case::exact(&[1, 3, 5], &[3, 900, 3], plain().padding(1)),
        Case::exact(&[1, 5, 200], &[5, 4, 3], plain().stride(2).dilation(2)),
    ];
    layers.map(Case::transposed).into()
}

/// Twice, between guards, with the same bits.
fn twice(gpu: &Gpu, case: &Case) -> Outcome {
    let bits = |case: &Case| case.run(gpu).map(|(_, bits, _)| bits);
    if bits(case)? == bits(case)? { Ok(()) } else { Err(format!("other bits: {case:?}").into()) }
}

fn forward(gpu: &Gpu, extent: Extent) -> Outcome {
    let tiny = &device::tiny(gpu)?;
    let cases = layers().into_iter().chain(transposed_layers());
    all(cases, |case| {
        case.check(tiny)?;
        if extent == Extent::All {
            twice(tiny, case)?;
            all((0..case.v_shape.len()).map(Axis::Kept).chain([Axis::Whole]), |&axis| {
                let normed = Case { axis: Some(axis), integers: false, write_norms: true, ..case.clone() };
                normed.check(tiny)?;
                Case { known: true, write_norms: false, ..normed }.check(tiny)
            })?;
            let packed = Case { axis: Some(Axis::Kept(0)), integers: false, ..case.clone() };
            Case { dtypes: [DType::F16, DType::Bf16, DType::F16], ..packed.clone() }.check(tiny)?;
            Case { split_length: Some(16), dtypes: [DType::F32, DType::F16, DType::Bf16], ..packed }.check(tiny)?;
            for tile in [None, Some(Tile::Subgroup4), Some(Tile::Narrow8), Some(Tile::Tile64x64)] {
                if tile.is_none_or(|tile| tile.runs_on(tiny)) {
                    Case { tile, ..case.clone() }.check(tiny)?;
                }
            }
        }
        Ok(())
    })?;
    // Norms of channels of several windows, on the sum, and for all; halves of words in two windows.
    let of = |case: Case, axis, dtype| Case {
        axis: Some(axis),
        integers: false,
        write_norms: true,
        dtypes: [dtype; 3],
        ..case
    };
    let long = Case::exact(&[2, 12, 601], &[7, 12, 3], plain().padding(1));
    let back = Case::exact(&[2, 12, 301], &[12, 5, 5], plain().stride(3).padding(1)).transposed();
    let cases = [
        of(long.clone(), Axis::Kept(0), DType::F32),
        of(long.clone(), Axis::Kept(1), DType::F32),
        of(Case { x_shape: vec![2, 12, 1203], ..long }, Axis::Kept(0), DType::F16),
        of(back.clone(), Axis::Kept(0), DType::F32),
        of(back, Axis::Kept(1), DType::F32),
    ];
    all(cases, |case| {
        case.check(tiny)?;
        twice(tiny, case)
    })
}

fn backward(gpu: &Gpu, extent: Extent) -> Outcome {
    let tiny = &device::tiny(gpu)?;
    let cases = layers().into_iter().chain(transposed_layers()).collect::<Vec<_>>();
    let few = extent.choose(cases.clone(), [0, 1, 2, 4, 6, 8, 9].map(|i| cases[i].clone()).into());
    all(few, |case| {
        case.check_backward(tiny, false)?;
        if extent == Extent::All {
            case.check_backward(tiny, true)?;
            all((0..case.v_shape.len()).map(Axis::Kept).chain([Axis::Whole]), |&axis| {
                let normed = Case { axis: Some(axis), integers: false, ..case.clone() };
                normed.check_backward(tiny, false)?;
                Case { dtypes: [DType::F16, DType::Bf16, DType::F32], ..normed }.check_backward(tiny, false)
            })?;
        }
        Ok(())
    })
}

/// Tensors beside x and y: a residual in windows of y, α in those of channels.
fn ends(gpu: &Gpu, extent: Extent) -> Outcome {
    let tiny = &device::tiny(gpu)?;
    let leaky = Activation::LeakyRelu(0.1);
    let long = Ended::new(&[2, 12, 602], &[7, 12, 3], plain().padding(1));
    let images = Ended::new(&[5, 4, 100], &[6, 4, 3], plain().padding(1));
    let back = Ended { transposed: true, ..Ended::new(&[2, 12, 301], &[12, 5, 4], plain().stride(2)) };
    let mut cases = vec![
        Ended { extra: Extra::Residual, input_activation: leaky, accumulate: true, ..long.clone() },
        Ended { extra: Extra::InputSnake, activation: leaky, ..long.clone() },
        Ended { extra: Extra::Snake, accumulate: true, scale: 0.5, ..images.clone() },
    ];
    if extent == Extent::All {
        cases.extend([
            Ended { extra: Extra::Snake, ..long.clone() },
            Ended { extra: Extra::Residual, ..images.clone() },
            Ended { extra: Extra::InputSnake, accumulate: true, ..images },
            Ended { extra: Extra::Residual, dtypes: [DType::F16, DType::F16, DType::F16, DType::F32], ..long },
        ]);
        for extra in [Extra::Residual, Extra::Snake, Extra::InputSnake] {
            cases.push(Ended { extra, accumulate: true, ..back.clone() });
        }
    }
    all(cases, |case| case.check(tiny))
}

/// What `Conv` says of them.
fn dispatch_count(gpu: &Gpu) -> Outcome {
    let tiny = &device::tiny(gpu)?;
    let images = Case::exact(&[5, 4, 100], &[6, 4, 3], plain().padding(1));
    let groups = Case::exact(&[2, 12, 300], &[8, 3, 5], plain().groups(4));
    let rows = Case::exact(&[3, 10, 9], &[70, 10, 3], plain().padding(1));
    for (case, expected) in [
        // Three images of y, 2,400 bytes each.
        (images.clone(), 2),
        (Case { axis: Some(Axis::Kept(0)), write_norms: true, ..images }, 2),
        // Two groups of x, 3,600 bytes each, of one image.
        (groups, 4),
        // 66 rows of v.
        (rows, 2),
        // A channel of y in nine windows of its partial sums, 992 at a time, each with four channels of x and one more.
        (Case::exact(&[1, 4, 1900], &[4, 4, 1], plain()), 4 * 9 * 5),
    ] {
        let (_, _, dispatches) = case.run(tiny)?;
        if dispatches != expected {
            return Err(format!("{dispatches} dispatches, expected {expected}: {case:?}").into());
        }
    }
    Ok(())
}

/// An error before anything is recorded, forward and backward.
fn too_large(gpu: &Gpu) -> Outcome {
    let tiny = &device::tiny(gpu)?;
    let (x, short) = (tiny.zeros(&[1, 2, 2_200], DType::F32)?, tiny.zeros(&[1, 2, 1_100], DType::F32)?);
    let (v, y) = (tiny.zeros(&[2, 2, 3], DType::F32)?, tiny.zeros(&[1, 2, 2_198], DType::F32)?);
    let (up, dv) = (tiny.zeros(&[1, 2, 2_201], DType::F32)?, tiny.zeros(&[2, 2, 3], DType::F32)?);
    let errors = [
        device::refused(tiny, |ops| ops.conv(Conv::new(&x, &v), &y))?,
        device::refused(tiny, |ops| ops.conv_transposed(Conv::new(&short, &v).stride(2), &up))?,
        device::refused(tiny, |ops| {
            let leaky = Conv::new(&x, &v).activation(Activation::LeakyRelu(0.1)).output(&y);
            ops.conv_backward(leaky, &y, &Gradients::default().dv(&dv))
        })?,
    ];
    let expected = |error: &Error| matches!(error, Error::Limit(LimitError::TooLarge { .. }));
    match errors.iter().find(|error| !expected(error)) {
        Some(error) => Err(format!("refused otherwise: {error}").into()),
        None => Ok(()),
    }
}

/// One channel of 10⁷ positions, and back.
fn long(gpu: &Gpu) -> Outcome {
    let case = Case { tile: None, ..Case::exact(&[1, 1, 10_000_000], &[1, 1, 3], plain().padding(1)) };
    case.check(gpu)?;
    // Sums over all positions are no integers of f32.
    Case { integers: false, ..case.clone() }.check_backward(gpu, false)?;
    Case { x_shape: vec![1, 1, 5_000_000], geometry: plain().stride(2), ..case }.transposed().check(gpu)
}
