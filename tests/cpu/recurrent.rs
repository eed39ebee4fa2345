//! Recurrent cells on the CPU: by hand, gradients against finite differences, and what relates them to each other.
//! Plans of those on GPUs.
use weightnorm::wgpu::Backend;
use weightnorm::{
    ArgumentError, Axis, Cell, DType, Eps, Error, Gradients, Recorder, Recurrent, RecurrentSaved, WeightNorm, cpu,
};

use crate::plans::{Buffers, devices, writes_all};

const CELLS: [Cell; 3] = [Cell::Lstm, Cell::Gru, Cell::Rnn];

/// The same numbers on every run, in -1 .. 1.
fn numbers(seed: usize, count: usize) -> Vec<f64> {
    (0..count).map(|i| ((seed * 7919 + i * 104_729 + i * i * 31) % 2003) as f64 / 1001.0 - 1.0).collect()
}

/// All numbers of a layer of 3 steps, 2 sequences, 2 features and 3 units.
#[derive(Clone)]
struct Numbers {
    cell: Cell,
    axis: Axis,
    /// x, v and g of the input, v and g of the hidden weight, both biases, h0, c0.
    all: [Vec<f64>; 9],
}

const STEPS: usize = 3;
const BATCH: usize = 2;
const FEATURES: usize = 2;
const UNITS: usize = 3;

impl Numbers {
    fn new(cell: Cell, axis: Axis) -> Numbers {
        let rows = cell.gates() * UNITS;
        let gains = |width| match axis {
            Axis::Kept(0) => rows,
            Axis::Kept(_) => width,
            Axis::Whole => 1,
        };
        let counts = [
            STEPS * BATCH * FEATURES,
            rows * FEATURES,
            gains(FEATURES),
            rows * UNITS,
            gains(UNITS),
            rows,
            rows,
            BATCH * UNITS,
            BATCH * UNITS,
        ];
        let mut seed = 0;
        let all = counts.map(|count| {
            seed += 1;
            numbers(seed, count)
        });
        Numbers { cell, axis, all }
    }

    fn layer(&self) -> cpu::Recurrent<'_> {
        let [x, v_in, g_in, v_hidden, g_hidden, bias, hidden_bias, h0, c0] = &self.all;
        let (axis, eps) = (self.axis, Eps::None);
        cpu::Recurrent {
            cell: self.cell,
            x,
            x_shape: [STEPS, BATCH, FEATURES],
            units: UNITS,
            input: cpu::Weight::Normalized { v: v_in, g: Some(g_in), axis, eps },
            hidden: cpu::Weight::Normalized { v: v_hidden, g: Some(g_hidden), axis, eps },
            bias: Some(bias),
            hidden_bias: Some(hidden_bias),
            h0: Some(h0),
            c0: (self.cell == Cell::Lstm).then_some(c0),
        }
    }

    /// Σ dy·y + Σ dc·c.
    fn loss(&self, dy: &[f64], dc: &[f64]) -> f64 {
        let cpu::Sequence { y, c } = cpu::recurrent(&self.layer()).unwrap();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        dot(&y, dy) + c.map_or(0.0, |c| dot(&c, dc))
    }
}

/// Each gradient is that of Σ dy·y + Σ dc·c, by fourth-order differences of a step of 1e-3: off by some 1e-11.
#[test]
fn recurrent_backward_is_the_derivative() {
    let (dy, dc) = (numbers(20, STEPS * BATCH * UNITS), numbers(21, BATCH * UNITS));
    for cell in CELLS {
        for axis in [Axis::Kept(0), Axis::Kept(1), Axis::Whole] {
            let numbers = Numbers::new(cell, axis);
            let all = cpu::recurrent_backward(&numbers.layer(), &dy, Some(&dc)).unwrap();
            let cpu::RecurrentGradients { input, hidden, dc: dc0 } = all;
            let gradients = [
                input.dx,
                input.dv,
                input.dg.unwrap(),
                hidden.dv,
                hidden.dg.unwrap(),
                input.dbias,
                hidden.dbias,
                hidden.dx,
                dc0.unwrap_or_default(),
            ];
            for (which, gradient) in gradients.iter().enumerate() {
                for (at, got) in gradient.iter().enumerate() {
                    let moved = |by: f64| {
                        let mut moved = numbers.clone();
                        moved.all[which][at] += by;
                        moved.loss(&dy, &dc)
                    };
                    let h = 1e-3;
                    let difference = |h: f64| moved(h) - moved(-h);
                    let expected = (8.0 * difference(h) - difference(2.0 * h)) / (12.0 * h);
                    assert!((got - expected).abs() < 1e-8, "{cell:?} {axis:?} {which} {at}: {got} for {expected}");
                }
            }
        }
    }
}

/// A sequence is its steps, one after another: bit for bit, since each sum is formed in the same order.
#[test]
fn recurrent_steps_make_a_sequence() {
    for cell in CELLS {
        let numbers = Numbers::new(cell, Axis::Kept(0));
        let layer = numbers.layer();
        let cpu::Sequence { y, c } = cpu::recurrent(&layer).unwrap();
        let (mut h, mut state) = (layer.h0.unwrap().to_vec(), layer.c0.map(<[f64]>::to_vec));
        for (t, x) in layer.x.chunks(BATCH * FEATURES).enumerate() {
            let step = cpu::Recurrent { x, x_shape: [1, BATCH, FEATURES], h0: Some(&h), c0: state.as_deref(), ..layer };
            let after = cpu::recurrent(&step).unwrap();
            assert_eq!(after.y, &y[t * BATCH * UNITS..][..BATCH * UNITS], "{cell:?} {t}");
            (h, state) = (after.y, after.c);
        }
        assert_eq!(state, c);
    }
}

#[test]
fn recurrent_by_hand() {
    // One unit, one feature, plain weights.
    let layer = |cell, input, hidden, h0| cpu::Recurrent {
        cell,
        x: &[2.0],
        x_shape: [1, 1, 1],
        units: 1,
        input: cpu::Weight::Plain(input),
        hidden: cpu::Weight::Plain(hidden),
        bias: None,
        hidden_bias: None,
        h0: Some(h0),
        c0: None,
    };
    let y = |layer| cpu::recurrent(&layer).unwrap().y[0];
    assert_eq!(y(layer(Cell::Rnn, &[0.5], &[0.25], &[4.0])), 2f64.tanh());
    // Gates of zero: half of each. An LSTM from c = 0 has no more than i·g.
    let sigmoid = |z: f64| 1.0 / (1.0 + (-z).exp());
    let lstm = layer(Cell::Lstm, &[0.0, 9.0, 0.5, 1.5], &[0.0, 0.0, 0.25, -0.5], &[4.0]);
    let c = 0.5 * 2f64.tanh();
    assert_eq!(cpu::recurrent(&lstm).unwrap().c, Some(vec![c]));
    assert!((y(lstm) - sigmoid(1.0) * c.tanh()).abs() < 1e-15);
    // A GRU's r multiplies what comes of h with its bias.
    let biased = |bias: &'static [f64]| cpu::Recurrent {
        hidden_bias: Some(bias),
        ..layer(Cell::Gru, &[0.0, 0.0, 0.5], &[0.0, 0.0, 0.25], &[4.0])
    };
    assert!((y(biased(&[0.0, 0.0, 3.0])) - (0.5 * (1.0 + 0.5 * (1.0 + 3.0f64)).tanh() + 0.5 * 4.0)).abs() < 1e-15);
}

#[test]
fn recurrent_rejects_what_does_not_fit() {
    let numbers = Numbers::new(Cell::Gru, Axis::Kept(0));
    let layer = numbers.layer();
    let long = [0.0; 7];
    let refused = |layer: &cpu::Recurrent| match cpu::recurrent(layer) {
        Err(Error::Argument(ArgumentError::Length { .. } | ArgumentError::Shape { .. })) => {}
        other => panic!("{other:?}"),
    };
    refused(&cpu::Recurrent { h0: Some(&long), ..layer });
    refused(&cpu::Recurrent { hidden_bias: Some(&long), ..layer });
    refused(&cpu::Recurrent { bias: Some(&long), ..layer });
    refused(&cpu::Recurrent { x: &long, ..layer });
    refused(&cpu::Recurrent { units: 4, ..layer });
    let huge = cpu::recurrent(&cpu::Recurrent { units: usize::MAX, ..layer });
    assert!(matches!(huge, Err(Error::Limit(_))), "{huge:?}");
    let dy = cpu::recurrent_backward(&layer, &long, None);
    assert!(matches!(dy, Err(Error::Argument(ArgumentError::Length { .. }))), "{dy:?}");
}

/// Weight norm of both weights takes one dispatch more a sequence, however many steps it has: the norms of U. `linear`
/// and a kernel of the caller's would take two a step.
#[test]
fn plans_of_recurrent_cells_have_one_dispatch_more_for_weight_norm() -> Result<(), Error> {
    for length in [1, 2, 100] {
        let mut buffers = Buffers::default();
        let mut f32s = |shape: &[usize]| buffers.tensor(shape, DType::F32);
        let (x, y) = (f32s(&[length, 16, 64])?, f32s(&[length, 16, 96])?);
        let (v, g, u, of_u) = (f32s(&[384, 64])?, f32s(&[384])?, f32s(&[384, 96])?, f32s(&[384])?);
        let count = |layer| buffers.list(&devices()[0], |ops| ops.recurrent(layer, &y)).map(|listed| listed.len());
        let fused = count(Recurrent::lstm(&x, WeightNorm::new(&v, &g), WeightNorm::new(&u, &of_u)))?;
        assert_eq!([fused, count(Recurrent::lstm(&x, &v, &u))?], [length + 2, length + 1]);
    }
    Ok(())
}

/// A step is one dispatch for each window of the batch, and products before it where U or c of two steps are past a
/// binding; in a browser steps lie where bindings may start.
#[test]
fn plans_of_recurrent_cells_keep_every_limit() -> Result<(), Error> {
    for (cell, [length, batch, ins, units]) in [
        (Cell::Lstm, [3, 5, 7, 13]),
        (Cell::Lstm, [2, 4096, 16, 96]),
        (Cell::Lstm, [2, 2, 16, 3000]),
        (Cell::Gru, [3, 1000, 40, 192]),
        (Cell::Gru, [1, 1, 1, 1]),
        (Cell::Gru, [2, 0, 3, 4]),
        (Cell::Lstm, [2, 3, 0, 4]),
        (Cell::Rnn, [4, 70_000, 9, 24]),
    ] {
        for axis in [Axis::Kept(0), Axis::Kept(1), Axis::Whole] {
            let mut buffers = Buffers::default();
            let mut f32s = |shape: &[usize]| buffers.tensor(shape, DType::F32);
            let rows = cell.gates() * units;
            let kept = |width| match axis {
                Axis::Kept(0) => rows,
                Axis::Kept(_) => width,
                Axis::Whole => 1,
            };
            let (x, v, g) = (f32s(&[length, batch, ins])?, f32s(&[rows, ins])?, f32s(&[kept(ins)])?);
            let (u, of_u, bias) = (f32s(&[rows, units])?, f32s(&[kept(units)])?, f32s(&[rows])?);
            let (y, dy) = (f32s(&[length, batch, units])?, f32s(&[length, batch, units])?);
            let (h0, dh0) = (f32s(&[batch, units])?, f32s(&[batch, units])?);
            let (dx, dv, dg) = (f32s(&[length, batch, ins])?, f32s(&[rows, ins])?, f32s(&[kept(ins)])?);
            let (du, dbias) = (f32s(&[rows, units])?, f32s(&[rows])?);
            let (input, hidden) = (WeightNorm::new(&v, &g).axis(axis), WeightNorm::new(&u, &of_u).axis(axis));
            let layer = Recurrent::new(cell, &x, input, hidden).bias(&bias).h0(&h0);
            let saved = RecurrentSaved::new(&layer, f32s)?;
            let layer = layer.saved(&saved);
            let of_input = Gradients::default().dx(&dx).dv(&dv).dg(&dg).dbias(&dbias);
            let of_hidden = Gradients::default().dx(&dh0).dv(&du);
            for device in devices() {
                let mut steps = 0;
                let record = |ops: &mut Recorder<'_, '_>| {
                    ops.recurrent(layer, &y)?;
                    ops.recurrent_backward(layer.output(&y), &dy, &of_input, &of_hidden)
                };
                let listed = match buffers.list(&device, record) {
                    // Nothing starts at a multiple of 256 bytes here.
                    Err(Error::Argument(ArgumentError::Shape { arg: "y" | "saved", .. }))
                        if device.0.backend == Backend::BrowserWebGpu && length > 1 =>
                    {
                        continue;
                    }
                    listed => listed?,
                };
                for (number, tensor) in [(6, &y), (9, &dh0), (10, &dx), (11, &dv), (12, &dg), (13, &du), (14, &dbias)] {
                    writes_all(&listed, number, 4 * tensor.len() as u64);
                }
                for entry in ["cell", "cell_gradient"] {
                    steps += listed.iter().filter(|dispatch| dispatch.entry == entry).count();
                }
                let at_least = if batch == 0 { 0 } else { 2 * length };
                assert!(steps >= at_least, "{steps} of {at_least}");
            }
        }
    }
    Ok(())
}

/// z of all steps, the norms, a dispatch a step; c that is saved is copied. Back the scales, a dispatch a step, two for
/// dx and dh0 each, of W a product and its gradients, of U a product more, and what is summed up of either bias.
#[test]
fn plans_of_recurrent_cells_have_the_dispatches_of_the_docs() -> Result<(), Error> {
    let mut buffers = Buffers::default();
    let mut f32s = |shape: &[usize]| buffers.tensor(shape, DType::F32);
    let (x, y, dy) = (f32s(&[4, 3, 8])?, f32s(&[4, 3, 12])?, f32s(&[4, 3, 12])?);
    let (v, g, u, of_u, bias) = (f32s(&[48, 8])?, f32s(&[48])?, f32s(&[48, 12])?, f32s(&[48])?, f32s(&[48])?);
    let (h0, c, norms) = (f32s(&[3, 12])?, f32s(&[3, 12])?, f32s(&[48])?);
    let (dx, dv, dg, dbias) = (f32s(&[4, 3, 8])?, f32s(&[48, 8])?, f32s(&[48])?, f32s(&[48])?);
    let (dh0, du, dg_hidden, dbias_hidden) = (f32s(&[3, 12])?, f32s(&[48, 12])?, f32s(&[48])?, f32s(&[48])?);
    let hidden = WeightNorm::new(&u, &of_u);
    let layer = |hidden| Recurrent::lstm(&x, WeightNorm::new(&v, &g), hidden).bias(&bias).hidden_bias(&bias).h0(&h0);
    let saved = RecurrentSaved::new(&layer(hidden), f32s)?;
    let input = Gradients::default().dx(&dx).dv(&dv).dg(&dg).dbias(&dbias);
    let of_hidden = Gradients::default().dx(&dh0).dv(&du).dg(&dg_hidden).dbias(&dbias_hidden);
    let device = &devices()[0];
    let count = |record: &dyn Fn(&mut Recorder<'_, '_>) -> Result<(), Error>| {
        buffers.list(device, |ops| record(ops)).map(|listed| listed.len())
    };
    let last = layer(hidden).c(&c).saved(&saved).output(&y);
    let counts = [
        count(&|ops| ops.recurrent(layer(hidden).c(&c), &y))?,
        count(&|ops| ops.recurrent(layer(hidden.norms(&norms)), &y))?,
        count(&|ops| ops.recurrent(last, &y))?,
        count(&|ops| ops.recurrent_backward(last, &dy, &input, &of_hidden))?,
        count(&|ops| ops.recurrent_backward(last, &dy, &Gradients::default(), &Gradients::default()))?,
    ];
    assert_eq!(counts, [6, 5, 8, 5 + 2 + 2 + 2 + 1 + 3, 5]);
    Ok(())
}

/// U of 4,096 units is 256 MiB: past a binding of WebGPU's default its sums are made by windows of it before the step.
#[test]
fn plans_of_recurrent_cells_past_a_binding() -> Result<(), Error> {
    for (cell, expected) in [(Cell::Lstm, [3, 4]), (Cell::Gru, [2, 2])] {
        let mut buffers = Buffers::default();
        let mut f32s = |shape: &[usize]| buffers.tensor(shape, DType::F32);
        let (units, rows) = (4096, cell.gates() * 4096);
        let (x, y, dy) = (f32s(&[3, 2, 4])?, f32s(&[3, 2, units])?, f32s(&[3, 2, units])?);
        let (v, u, g) = (f32s(&[rows, 4])?, f32s(&[rows, units])?, f32s(&[rows])?);
        let layer = Recurrent::new(cell, &x, WeightNorm::new(&v, &g), WeightNorm::new(&u, &g));
        let saved = RecurrentSaved::new(&layer, f32s)?;
        let layer = layer.saved(&saved).output(&y);
        let none = Gradients::default();
        let device = &devices()[0];
        let count = |record: &dyn Fn(&mut Recorder<'_, '_>) -> Result<(), Error>| {
            let listed = buffers.list(device, |ops| record(ops))?;
            Ok::<_, Error>(
                ["linear", "linear_partial", "linear_finish", "cell", "cell_gradient"]
                    .map(|entry| listed.iter().filter(|dispatch| dispatch.entry == entry).count()),
            )
        };
        // z is one more, and before the first step a sum of nothing; behind the last one there is none.
        assert_eq!(count(&|ops| ops.recurrent(layer, &y))?, [2 + 2 * expected[0], 0, 0, 3, 0]);
        let back = count(&|ops| ops.recurrent_backward(layer, &dy, &none, &none))?;
        assert_eq!(back, [0, 2 * expected[1], 2, 0, 3]);
    }
    Ok(())
}
