//! Layers of recurrent cells, checked and recorded.
use super::multiplied::{Multiplied, part_bytes};
use super::step::{Step, Steps, Zeros};
use super::{Recurrent, RecurrentSaved};
use crate::arguments::{Arguments, expect_dtype, expect_shape};
use crate::binding::View;
use crate::contract::norms_shape;
use crate::linear::epilogue::NormSource;
use crate::memory::Scratch;
use crate::weight::job::NormOutput;
use crate::weight::norms::{norms_into, scales};
use crate::weight::place::Region;
use crate::weight::rescale::copy;
use crate::{ArgumentError, Axis, Cell, DType, Error, Gpu, Linear, Recorder, Tensor, Weight, WeightNorm};

const OP: &str = "recurrent";

impl Gpu {
    /// A layer of recurrent cells: y of [`Recurrent`], in x's storage type.
    ///
    /// # Errors
    /// As [`Recurrent`].
    pub fn recurrent(&self, layer: Recurrent<'_>) -> Result<Tensor, Error> {
        let y = self.zeros_of("recurrent: y", &Sizes::of(OP, &layer)?.y_shape(&layer), layer.x.dtype())?;
        self.run(|ops| ops.recurrent(layer, &y))?;
        Ok(y)
    }

    /// [`Gpu::recurrent`] for training: y, and what the gradients want of the forward pass.
    ///
    /// # Errors
    /// As [`Recurrent`].
    pub fn recurrent_saved(&self, layer: Recurrent<'_>) -> Result<(Tensor, RecurrentSaved), Error> {
        let make = |shape: &[usize]| self.zeros_of("recurrent: what is saved", shape, DType::F32);
        let saved = RecurrentSaved::new(&layer, make)?;
        let y = self.recurrent(layer.saved(&saved))?;
        Ok((y, saved))
    }
}

impl Recorder<'_, '_> {
    /// Records [`Recurrent`] into `y`: `[T, B, H]`, or `[B, H]` of one step; any storage type.
    ///
    /// # Errors
    /// As [`Recurrent`].
    pub fn recurrent(&mut self, layer: Recurrent<'_>, y: &Tensor) -> Result<(), Error> {
        let sizes = check(self, &layer, y)?;
        record(self, &layer, y, sizes)
    }
}

impl RecurrentSaved {
    /// What this layer keeps, in tensors that `make` makes: f32, of the shape that it is given.
    ///
    /// ```no_run
    /// # use weightnorm::{DType, Error, Gpu, Recurrent, RecurrentSaved};
    /// # fn f(gpu: &Gpu, layer: Recurrent<'_>) -> Result<RecurrentSaved, Error> {
    /// RecurrentSaved::new(&layer, |shape| gpu.zeros(shape, DType::F32))
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Recurrent`] for its shapes, and those of `make`.
    pub fn new(
        layer: &Recurrent<'_>,
        mut make: impl FnMut(&[usize]) -> Result<Tensor, Error>,
    ) -> Result<RecurrentSaved, Error> {
        let sizes = Sizes::of(OP, layer)?;
        let norms = |weight: &Weight<'_>| weight.normalized().map(|w| norms_shape(w.v.shape(), w.axis));
        let gates = make(&sizes.gates_shape())?;
        let mut made = |shape: Option<Vec<usize>>| shape.map(|shape| make(&shape)).transpose();
        let (beside, input_norms) = (made(sizes.beside_shape())?, made(norms(&layer.input))?);
        Ok(RecurrentSaved { gates, beside, input_norms, hidden_norms: made(norms(&layer.hidden))? })
    }
}

/// The sizes of a layer.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub length: usize,
    pub steps: Steps,
}

impl Sizes {
    /// Of x and weights that fit each other.
    pub fn of(op: &'static str, layer: &Recurrent<'_>) -> Result<Sizes, Error> {
        let (x, cell) = (layer.x, layer.cell);
        let refused = |arg, got: &[usize], expected: String| {
            Err(Error::from(ArgumentError::Shape { op, arg, got: got.to_vec(), expected }))
        };
        let (length, batch, features) = match *x.shape() {
            [length, batch, features] => (length, batch, features),
            [batch, features] => (1, batch, features),
            _ => return refused("x", x.shape(), "[steps, batch, features] or [batch, features]".to_owned()),
        };
        let gates = cell.gates();
        let hidden = layer.hidden.v().shape();
        let units = match *hidden {
            [rows, units] if rows == gates * units => units,
            _ => return refused("hidden weight", hidden, format!("[{gates} units, units]")),
        };
        let sizes = Sizes { length, steps: Steps { cell, batch, units } };
        let rows = sizes.steps.rows();
        if layer.input.v().shape() != [rows, features] {
            return refused("input weight", layer.input.v().shape(), format!("[{rows}, {features}]"));
        }
        Ok(sizes)
    }

    pub fn y_shape(&self, layer: &Recurrent<'_>) -> Vec<usize> {
        let x = layer.x.shape();
        [&x[..x.len() - 1], &[self.steps.units]].concat()
    }

    pub fn gates_shape(&self) -> Vec<usize> {
        vec![self.length, self.steps.batch, self.steps.rows()]
    }

    /// Of what is saved beside the gates.
    pub fn beside_shape(&self) -> Option<Vec<usize>> {
        let Steps { cell, batch, units } = self.steps;
        match cell {
            Cell::Lstm => Some(vec![self.length + 1, batch, units]),
            Cell::Gru => Some(self.gates_shape()),
            Cell::Rnn => None,
        }
    }

    /// Elements of h, and of the gates, of a step.
    pub fn of_step(&self) -> [usize; 2] {
        [self.steps.units, self.steps.rows()].map(|width| self.steps.batch * width)
    }

    /// What stands for h in the product of a step, if not h.
    pub fn multiplied<'a>(&self, layer: &Recurrent<'a>) -> Option<Multiplied<'a>> {
        let &Sizes { length, steps: Steps { batch, units, .. } } = self;
        layer.multiplied.map(|weights| Multiplied { length, batch, units, weights })
    }

    pub fn state_shape(&self) -> [usize; 2] {
        [self.steps.batch, self.steps.units]
    }
}

/// What forward and backward pass have in common.
pub(crate) fn check_layer(op: &'static str, layer: &Recurrent<'_>, sizes: &Sizes) -> Result<(), Error> {
    let &Recurrent { cell, input, hidden, bias, hidden_bias, h0, c, dc, saved, .. } = layer;
    for weight in [input, hidden].iter().filter_map(Weight::normalized) {
        weight.check(op)?;
    }
    let rows = sizes.steps.rows();
    for (arg, bias) in [("bias", bias), ("hidden_bias", hidden_bias)] {
        bias.map_or(Ok(()), |bias| expect_shape(op, arg, bias, &[rows]))?;
    }
    let state = sizes.state_shape();
    h0.map_or(Ok(()), |h0| expect_shape(op, "h0", h0, &state))?;
    for (arg, tensor) in [("c", c), ("dc", dc)] {
        let Some(tensor) = tensor else { continue };
        if cell != Cell::Lstm {
            let expected = "none: an LSTM alone has a cell state".to_owned();
            return Err(ArgumentError::Shape { op, arg, got: tensor.shape().to_vec(), expected }.into());
        }
        expect_dtype(op, arg, tensor, DType::F32)?;
        expect_shape(op, arg, tensor, &state)?;
    }
    sizes.multiplied(layer).map_or(Ok(()), |multiplied| multiplied.check(op, layer))?;
    let Some(saved) = saved else { return Ok(()) };
    let all = [Some(&saved.gates), saved.beside.as_ref(), saved.input_norms.as_ref(), saved.hidden_norms.as_ref()];
    all.into_iter().flatten().try_for_each(|tensor| expect_dtype(op, "saved", tensor, DType::F32))?;
    expect_shape(op, "saved", &saved.gates, &sizes.gates_shape())?;
    let norms = |weight: &Weight<'_>| weight.normalized().map(|w| norms_shape(w.v.shape(), w.axis));
    for (tensor, shape) in [
        (&saved.beside, sizes.beside_shape()),
        (&saved.input_norms, norms(&input)),
        (&saved.hidden_norms, norms(&hidden)),
    ] {
        if tensor.as_ref().map(Tensor::shape) != shape.as_deref() {
            let got = tensor.as_ref().map_or(vec![], |tensor| tensor.shape().to_vec());
            let expected = "what this layer saves".to_owned();
            return Err(ArgumentError::Shape { op, arg: "saved", got, expected }.into());
        }
    }
    Ok(())
}

/// A step reads the one before of the same tensor.
pub(crate) fn expect_steps_apart(
    ops: &Recorder<'_, '_>,
    op: &'static str,
    arg: &'static str,
    tensor: &Tensor,
    (length, of_step): (usize, usize),
) -> Result<(), Error> {
    let apart = ops.facts().capacities.apart;
    let whole = |bytes: u64| bytes.is_multiple_of(apart);
    if length > 1 && !(whole(of_step as u64 * tensor.dtype().size()) && whole(tensor.offset())) {
        let expected = format!("steps of a multiple of {apart} bytes, from such a place in its buffer");
        return Err(ArgumentError::Shape { op, arg, got: tensor.shape().to_vec(), expected }.into());
    }
    Ok(())
}

/// c before and behind a step of an LSTM lie apart where each has its own binding.
pub(crate) fn expect_c_apart(
    ops: &Recorder<'_, '_>,
    op: &'static str,
    sizes: &Sizes,
    saved: Option<&RecurrentSaved>,
) -> Result<(), Error> {
    match saved.and_then(|saved| saved.beside.as_ref()) {
        Some(c) if sizes.steps.c_is_past_a_binding(ops) => {
            expect_steps_apart(ops, op, "saved", c, (sizes.length + 1, sizes.of_step()[0]))
        }
        _ => Ok(()),
    }
}

/// Where the norms of the hidden weight come from.
fn source_of(hidden: &Weight<'_>) -> NormSource {
    match hidden.normalized().map(|weight| weight.axis) {
        None => NormSource::Plain,
        Some(Axis::Kept(0)) => NormSource::Given,
        Some(Axis::Kept(_)) => NormSource::In,
        Some(Axis::Whole) => NormSource::Whole,
    }
}

fn check<'a>(ops: &mut Recorder<'_, '_>, layer: &Recurrent<'a>, y: &'a Tensor) -> Result<Sizes, Error> {
    let &Recurrent { x, input, hidden, bias, hidden_bias, h0, c, saved, .. } = layer;
    let sizes = Sizes::of(OP, layer)?;
    expect_shape(OP, "y", y, &sizes.y_shape(layer))?;
    check_layer(OP, layer, &sizes)?;
    let [of_h, _] = sizes.of_step();
    expect_steps_apart(ops, OP, "y", y, (sizes.length, of_h))?;
    expect_c_apart(ops, OP, &sizes, saved)?;
    let selection = layer.selection();
    selection.check(OP, ops.facts().traits, false)?;
    let scaled = source_of(&hidden) == NormSource::In;
    for from in [h0.map_or(y.dtype(), Tensor::dtype), y.dtype()] {
        if let Some(multiplied) = sizes.multiplied(layer) {
            let [_, of_m] = multiplied.weights;
            multiplied.steps().forward_plan(ops, [from, of_m.v().dtype()], selection, false, false)?;
        }
        let from = if layer.multiplied.is_some() { DType::F32 } else { from };
        sizes.steps.forward_plan(ops, [from, hidden.v().dtype()], selection, scaled, saved.is_some())?;
    }
    let rows = sizes.steps.rows();
    let norms = |weight: Option<WeightNorm<'_>>| weight.map_or(0, |w| w.norms_operations());
    let (of_input, of_hidden) = (input.normalized(), hidden.normalized());
    let [of_x, of_h] = layer.multiplied.map_or([None; 2], |weights| weights.map(Some));
    let gain = |weight: Option<Weight<'a>>| weight.and_then(|w| w.normalized()).and_then(|w| w.g);
    let known = |weight: Option<Weight<'a>>| weight.and_then(|w| w.normalized()).and_then(|w| w.norms);
    let of_m = of_x.map_or(0, |_| 2 * (x.products(sizes.steps.units) + y.products(sizes.steps.units)));
    let of_m = of_m + [of_x, of_h].iter().flatten().map(|w| norms(w.normalized())).sum::<u64>();
    Arguments::new(OP)
        .input("x", x)
        .input("input weight", input.v())
        .input("input g", of_input.and_then(|w| w.g))
        .input("known norms of the input weight", of_input.and_then(|w| w.norms))
        .input("hidden weight", hidden.v())
        .input("hidden g", of_hidden.and_then(|w| w.g))
        .input("known norms of the hidden weight", of_hidden.and_then(|w| w.norms))
        .input("input weight of m", of_x.map(|w| w.v()))
        .input("input g of m", gain(of_x))
        .input("known norms of the input weight of m", known(of_x))
        .input("hidden weight of m", of_h.map(|w| w.v()))
        .input("hidden g of m", gain(of_h))
        .input("known norms of the hidden weight of m", known(of_h))
        .input("bias", bias)
        .input("hidden_bias", hidden_bias)
        .input("h0", h0)
        .output_onto(true, "c", c)
        .output("y", y)
        .output("saved", saved.map(|saved| &saved.gates))
        .output("saved", saved.and_then(|saved| saved.beside.as_ref()))
        .output("saved", saved.and_then(|saved| saved.input_norms.as_ref()))
        .output("saved", saved.and_then(|saved| saved.hidden_norms.as_ref()))
        .operations(2 * (x.products(rows) + y.products(rows)) + norms(of_input) + norms(of_hidden) + of_m)
        .begin(ops)?;
    Ok(sizes)
}

/// The norms of the hidden weight as its products want them.
fn hidden_norms<'a>(
    ops: &mut Recorder<'_, '_>,
    weight: Option<WeightNorm<'a>>,
    saved: Option<&'a Tensor>,
) -> Result<Option<View<'a>>, Error> {
    let Some(weight) = weight else { return Ok(None) };
    let view = match weight.axis {
        Axis::Kept(0) => {
            if let Some(saved) = saved {
                norms_into(ops, weight, NormOutput::Norms, Region::of(saved))?;
                View::of(saved)
            } else if let Some(norms) = weight.norms {
                View::of(norms)
            } else {
                let memory = ops.scratch(Scratch::Norms, weight.v.shape()[0] as u64 * DType::F32.size())?;
                let view = View::scratch(memory, DType::F32.size());
                norms_into(ops, weight, NormOutput::Norms, Region::view(&view))?;
                view
            }
        }
        Axis::Kept(_) => scales(ops, weight, NormOutput::Scales, saved)?,
        Axis::Whole => scales(ops, weight, NormOutput::Wide, saved)?,
    };
    Ok(Some(view))
}

fn record(ops: &mut Recorder<'_, '_>, layer: &Recurrent<'_>, y: &Tensor, sizes: Sizes) -> Result<(), Error> {
    let &Recurrent { cell, x, input, hidden, bias, hidden_bias, h0, c, saved, tile, .. } = layer;
    let Sizes { length, steps, .. } = sizes;
    let [of_h, of_gates] = sizes.of_step();
    let f32s = DType::F32.size();
    let multiplied = sizes.multiplied(layer);

    let gates = match saved {
        Some(saved) => saved.gates.clone(),
        None => {
            let bytes = part_bytes(length * of_gates) + multiplied.map_or(0, |multiplied| multiplied.bytes());
            let memory = ops.scratch(Scratch::ActivationGradient, bytes)?;
            Tensor::in_scratch(ops.gpu(), memory, 0, &sizes.gates_shape())
        }
    };
    let norms = saved.and_then(|saved| saved.input_norms.as_ref());
    let rows = [&x.shape()[..x.shape().len() - 1], &[steps.rows()]].concat();
    let z = gates.reshape(&rows)?;
    ops.nested(|ops| ops.linear(Linear::new(x, input).bias(bias).norms(norms).tile(tile), &z))?;

    let normalized = hidden.normalized();
    let norms_in = hidden_norms(ops, normalized, saved.and_then(|saved| saved.hidden_norms.as_ref()))?;
    if y.is_empty() {
        return Ok(());
    }
    // c of the first step, and how far the next one is.
    let (states, next) = match (cell, saved.and_then(|saved| saved.beside.as_ref()), c) {
        (Cell::Lstm, Some(saved), _) => (Some(saved.clone()), of_h),
        (Cell::Lstm, None, Some(c)) => (Some(c.clone()), 0),
        (Cell::Lstm, None, None) => {
            let memory = ops.scratch(Scratch::Factors, of_h as u64 * f32s)?;
            (Some(Tensor::in_scratch(ops.gpu(), memory, 0, &sizes.state_shape())), 0)
        }
        (_, saved, _) => (saved.cloned(), of_gates),
    };
    let state = sizes.state_shape();
    let saved_c = states.as_ref().filter(|_| cell == Cell::Lstm && saved.is_some()).zip(c);
    if let Some((states, c)) = saved_c {
        copy(ops, c, &states.part(0, &state))?;
    }
    let multiplied = match multiplied {
        Some(multiplied) => Some(multiplied.record(ops, layer, gates.memory(), part_bytes(length * of_gates))?),
        None => None,
    };
    let norm = source_of(&hidden);
    let g = normalized.and_then(|w| w.g).filter(|_| norm != NormSource::In);
    for t in 0..length {
        let no_sums = t == 0 && h0.is_none();
        let other = if t > 0 { Some(t - 1) } else { Some(1).filter(|_| no_sums && length > 1) };
        let before = other.map(|t| y.part(t * of_h, &state)).or(h0.cloned());
        if let Some(multiplied) = &multiplied {
            multiplied.step(ops, layer, t, before.as_ref(), Zeros { sums: no_sums, ..Zeros::default() })?;
        }
        let before = multiplied.as_ref().map(|multiplied| multiplied.m.clone()).or(before);
        let own = y.part(t * of_h, &state);
        let dtypes = [before.as_ref().unwrap_or(y).dtype(), hidden.v().dtype()];
        let scaled = norm == NormSource::In;
        let plan = steps.forward_plan(ops, dtypes, layer.selection(), scaled, saved.is_some())?;
        let gates = gates.part(t * of_gates, &[steps.batch, steps.rows()]);
        let beside = states.as_ref().map(|states| states.part(t * next, &state));
        let c_behind = saved.and(states.as_ref()).filter(|_| cell == Cell::Lstm);
        let c_behind = c_behind.map(|states| states.part((t + 1) * next, &state));
        let is_zero = t == 0 && if cell == Cell::Lstm { c.is_none() } else { h0.is_none() };
        let step = Step {
            steps,
            h: before.as_ref(),
            v: hidden.v(),
            norm,
            norms_in: norms_in.clone(),
            g,
            bias: hidden_bias,
            y: &own,
            gates: &gates,
            beside: beside.as_ref(),
            next,
            zeros: Zeros { before: is_zero, sums: no_sums, ..Zeros::default() },
            keep: saved.is_some(),
            times: false,
            ready: None,
            c_behind: c_behind.as_ref(),
            c_apart: false,
        };
        step.record(ops, &plan, layer.selection())?;
    }
    match saved_c {
        Some((states, c)) => copy(ops, &states.part(length * of_h, &state), c),
        None => Ok(()),
    }
}
