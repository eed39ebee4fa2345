//! Plans of convolutions, without any device.
use weightnorm::wgpu::Features;
use weightnorm::{
    Activation, Axis, Conv, ConvGeometry, DType, Error, Facts, Gate, Gradients, LimitError, Recorder, SCRATCH_BUFFERS,
    WeightNorm,
};

use crate::plans::{Buffers, Listing, devices, writes_all};

/// Convolutions bind whole images, or groups or channels of one, and say so where a single channel does not fit.
#[test]
fn plans_of_convolutions_keep_every_limit() -> Result<(), Error> {
    for (x_shape, v_shape, groups) in [
        (&[2, 32, 44_000][..], &[32, 32, 11][..], 1),
        (&[1, 64, 300], &[512, 64, 129], 1),
        (&[16, 1024, 64], &[1024, 1, 41], 1024),
        (&[3, 1, 1_000_001], &[1, 1, 7], 1),
        (&[4, 512, 152, 2], &[64, 512, 5, 1], 1),
        (&[5, 64, 30_001], &[48, 64, 3], 1),
        (&[1, 40, 1_000_001], &[36, 40, 3], 1),
        (&[1, 40, 1_000_001], &[70, 4, 3], 10),
        (&[1, 4, 10_000_000], &[3, 4, 5], 1),
        (&[3, 900, 70], &[1000, 900, 1], 1),
    ] {
        for axis in [Axis::Kept(0), Axis::Kept(1), Axis::Kept(2), Axis::Whole] {
            let mut buffers = Buffers::default();
            let kept = if let Axis::Kept(kept) = axis { v_shape[kept] } else { 1 };
            let mut f32s = |shape: &[usize]| buffers.tensor(shape, DType::F32);
            let geometry = ConvGeometry::default().groups(groups);
            let y_shape = geometry.conv_shape(x_shape, v_shape)?;
            let (x, v, y, dx, dv) = (f32s(x_shape)?, f32s(v_shape)?, f32s(&y_shape)?, f32s(x_shape)?, f32s(v_shape)?);
            let (g, dg, bias, dbias) = (f32s(&[kept])?, f32s(&[kept])?, f32s(&y_shape[1..2])?, f32s(&y_shape[1..2])?);
            let (back, dback) = (f32s(x_shape)?, f32s(x_shape)?);
            let layer = Conv::new(&x, WeightNorm::new(&v, &g).axis(axis)).geometry(geometry);
            let gradients = Gradients::default().dx(&dx).dv(&dv).dg(&dg).dbias(&dbias);
            for device in devices() {
                let record = |ops: &mut Recorder<'_, '_>| {
                    ops.conv(layer.bias(&bias), &y)?;
                    ops.conv_transposed(Conv::new(&y, WeightNorm::new(&v, &g).axis(axis)).geometry(geometry), &back)?;
                    ops.conv_backward(layer, &y, &gradients)?;
                    let gradients = Gradients::default().dv(&dv).dg(&dg);
                    let again = Conv::new(&y, WeightNorm::new(&v, &g).axis(axis)).geometry(geometry);
                    ops.conv_transposed_backward(again, &dback, &gradients)
                };
                let channel = 4 * x_shape[2..].iter().product::<usize>() as u64;
                let listed = match buffers.list(&device, record) {
                    Err(Error::Limit(LimitError::TooLarge { what: "a channel of an image in bytes", size, limit })) => {
                        assert!(size == channel && size > limit, "{size} of {limit}");
                        continue;
                    }
                    listed => listed?,
                };
                if axis == Axis::Kept(0) {
                    assert_eq!(listed, buffers.list(&device, record)?);
                }
                for (number, bytes) in [(2, y.len()), (3, x.len()), (4, v.len()), (6, kept), (8, y_shape[1])] {
                    writes_all(&listed, number, 4 * bytes as u64);
                }
            }
        }
    }
    Ok(())
}

/// dv and dg of contiguous rows: pieces of dw, and what adds them up. Besides these no dw is in scratch memory.
#[test]
fn plans_of_gradients_keep_dw_in_pieces() -> Result<(), Error> {
    const SUMS: usize = 0;
    const FACTORS: usize = 3;
    for (x_shape, v_shape, transposed, pieces) in [
        (&[16, 32, 8192][..], &[32, 32, 11][..], false, 46),
        (&[16, 128, 1024], &[128, 64, 16], true, 4),
        (&[16, 512, 32], &[512, 512, 3], false, 1),
    ] {
        let mut buffers = Buffers::default();
        let mut f32s = |shape: &[usize]| buffers.tensor(shape, DType::F32);
        let geometry = ConvGeometry::default();
        let shape = if transposed { ConvGeometry::conv_transposed_shape } else { ConvGeometry::conv_shape };
        let (x, v, dy) = (f32s(x_shape)?, f32s(v_shape)?, f32s(&shape(&geometry, x_shape, v_shape)?)?);
        let (g, dv, dg) = (f32s(&v_shape[..1])?, f32s(v_shape)?, f32s(&v_shape[..1])?);
        let (device, limits) = &devices()[0];
        let (facts, scratch) = (Facts::new(device, limits, Features::empty())?, [0; SCRATCH_BUFFERS]);
        let mut listing = Listing { limits, buffers: &buffers.0, scratch, listed: vec![] };
        let mut ops = Recorder::launching(facts, &mut listing);
        let (conv, wanted) = (Conv::new(&x, WeightNorm::new(&v, &g)), Gradients::default().dv(&dv).dg(&dg));
        match transposed {
            true => ops.conv_transposed_backward(conv, &dy, &wanted)?,
            false => ops.conv_backward(conv, &dy, &wanted)?,
        }
        drop(ops);
        let product = if pieces > 1 { "conv_partial" } else { "conv" };
        let names: Vec<_> = listing.listed.iter().map(|l| l.entry).collect();
        assert_eq!(names, [product, "held_gradients"]);
        let bytes = 4 * v.len() as u64;
        let expected = if pieces > 1 { [pieces * bytes, 0] } else { [0, bytes] };
        assert_eq!([listing.scratch[SUMS], listing.scratch[FACTORS]], expected, "{v_shape:?}");
    }
    Ok(())
}

/// The dispatches that the docs of `conv` and `conv_backward` tell of, forward and backward, each kind of layer.
#[test]
fn plans_of_convolutions_have_the_dispatches_of_the_docs() -> Result<(), Error> {
    let mut buffers = Buffers::default();
    let mut f32s = |shape: &[usize]| buffers.tensor(shape, DType::F32);
    let (x, y) = (f32s(&[2, 64, 4096])?, f32s(&[2, 64, 4096])?);
    let (v, g, kept1, one) = (f32s(&[64, 64, 3])?, f32s(&[64])?, f32s(&[64])?, f32s(&[])?);
    let half = f32s(&[2, 32, 4096])?;
    let (dx, dv, dg, bias, dbias) =
        (f32s(&[2, 64, 4096])?, f32s(&[64, 64, 3])?, f32s(&[64])?, f32s(&[64])?, f32s(&[64])?);
    let device = &devices()[0];
    let geometry = ConvGeometry::default().padding(1);
    let names = |record: &dyn Fn(&mut Recorder<'_, '_>) -> Result<(), Error>| {
        Ok::<_, Error>(buffers.list(device, |ops| record(ops))?.iter().map(|l| l.entry).collect::<Vec<_>>())
    };
    let normed = Conv::new(&x, WeightNorm::new(&v, &g)).geometry(geometry).bias(&bias);
    let plain = Conv::new(&x, &v).geometry(geometry);
    let whole = Conv::new(&x, WeightNorm::new(&v, &one).axis(Axis::Whole)).geometry(geometry);
    let second = Conv::new(&x, WeightNorm::new(&v, &kept1).axis(Axis::Kept(1))).geometry(geometry);
    let known = Conv::new(&x, WeightNorm::new(&v, &g).norms(&kept1)).geometry(geometry);
    // One, and the norms where they are on the sum, or one for all.
    let forward = |conv: Conv<'_>| names(&|ops| ops.conv(conv, &y));
    let transposed = |conv: Conv<'_>| names(&|ops| ops.conv_transposed(conv, &y));
    for (what, found, expected) in [
        ("kept axis 0", forward(normed)?, &["conv"][..]),
        ("ordinary", forward(plain)?, &["conv"]),
        ("activated", forward(normed.input_activation(Activation::Relu).residual(&x))?, &["conv"]),
        ("gated", names(&|ops| ops.conv(normed.gate(Gate::Glu), &half))?, &["conv"]),
        ("one norm", forward(whole)?, &["row_sums", "conv"]),
        ("kept axis 1", forward(second)?, &["column_sums", "finish_sums", "conv"]),
        ("known norms", forward(known)?, &["conv"]),
        ("transposed", transposed(normed)?, &["row_sums", "conv"]),
        ("transposed, axis 1", transposed(second)?, &["column_sums", "finish_sums", "conv"]),
        ("transposed, known norms", transposed(known)?, &["known_norms", "conv"]),
        ("transposed, ordinary", transposed(plain)?, &["conv"]),
    ] {
        assert_eq!(found, expected, "{what}");
    }
    let weights = Gradients::default().dv(&dv).dg(&dg);
    let all = weights.dx(&dx).dbias(&dbias);
    let backward = |conv: Conv<'_>, wanted: Gradients<'_>| names(&|ops| ops.conv_backward(conv, &y, &wanted));
    let of_weights = ["conv_partial", "held_gradients"];
    for (what, found, expected) in [
        ("all", backward(normed, all)?, &[&["row_sums", "conv"][..], &of_weights, &["channel_sums"]].concat()[..]),
        ("dx", backward(normed, Gradients::default().dx(&dx))?, &["row_sums", "conv"]),
        ("dv and dg", backward(normed, weights)?, &of_weights),
        ("dbias", backward(normed, Gradients::default().dbias(&dbias))?, &["channel_sums"]),
        ("ordinary", backward(plain, Gradients::default().dx(&dx).dv(&dv))?, &["conv", "conv_partial", "conv_finish"]),
    ] {
        assert_eq!(found, expected, "{what}");
    }
    Ok(())
}
