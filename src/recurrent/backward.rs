//! Gradients through time, checked and recorded.
use super::Recurrent;
use super::record::{Sizes, check_layer, expect_c_apart, expect_steps_apart};
use super::step::{StepBack, StepScale, Steps, Zeros};
use crate::arguments::{Arguments, expect_gain, expect_shape};
use crate::contract::norms_shape;
use crate::memory::Scratch;
use crate::vectors;
use crate::weight::backward::gradients_of_weight;
use crate::weight::job::NormOutput;
use crate::weight::norms::scales;
use crate::weight::rescale::copy;
use crate::{
    ArgumentError, Axis, Cell, DType, Error, Gpu, Gradients, LinearBackward, LinearGradients, Recorder, RecurrentSaved,
    Tensor, Weight, WeightNorm,
};

const OP: &str = "recurrent_backward";

/// The gradients of a layer of recurrent cells, as [`Gpu::recurrent_backward`] returns them.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RecurrentGradients {
    /// dx, and the gradients of W and its bias.
    pub input: LinearGradients,
    /// The gradient of h0 as dx, and those of U and its bias.
    pub hidden: LinearGradients,
    /// Of c before the first step, of an LSTM: [`Recurrent::dc`], if there is one.
    pub dc: Option<Tensor>,
}

impl Gpu {
    /// All gradients of a layer of recurrent cells, given dy: see [`Recorder::recurrent_backward`].
    ///
    /// # Errors
    /// As [`Recorder::recurrent_backward`].
    pub fn recurrent_backward(&self, layer: Recurrent<'_>, dy: &Tensor) -> Result<RecurrentGradients, Error> {
        let sizes = Sizes::of(OP, &layer)?;
        let of_weight = |weight: &Weight<'_>, dx: Tensor| -> Result<LinearGradients, Error> {
            let v = weight.v();
            let dg = weight.normalized().map(|w| self.zeros(&norms_shape(v.shape(), w.axis), DType::F32));
            Ok(LinearGradients {
                dx,
                dv: self.zeros(v.shape(), v.dtype())?,
                dg: dg.transpose()?,
                dbias: self.zeros(&[sizes.steps.rows()], DType::F32)?,
            })
        };
        let state = sizes.state_shape();
        let h0_type = layer.h0.map_or(DType::F32, Tensor::dtype);
        let input = of_weight(&layer.input, self.zeros(layer.x.shape(), layer.x.dtype())?)?;
        let hidden = of_weight(&layer.hidden, self.zeros(&state, h0_type)?)?;
        let dc = match (layer.dc, layer.cell) {
            (Some(dc), _) => Some(dc.clone()),
            (None, Cell::Lstm) => Some(self.zeros(&state, DType::F32)?),
            (None, _) => None,
        };
        self.run(|ops| ops.recurrent_backward(layer.dc(&dc), dy, &all_of(&input), &all_of(&hidden)))?;
        Ok(RecurrentGradients { input, hidden, dc })
    }
}

impl Recorder<'_, '_> {
    /// Records the gradients of a layer of recurrent cells into the wanted ones of `input`, of x, W and its bias, and
    /// of `hidden`, of U and its bias, whose dx is the gradient of h0. With dh and dc what comes back to a step from
    /// behind:
    ///
    /// ```text
    /// LSTM   dc += dh·o·(1 − tanh²c)    di = dc·g·i(1−i)    df = dc·c[t−1]·f(1−f)    dg = dc·i·(1−g²)
    ///        do = dh·tanh(c)·o(1−o)     dc[t−1] = dc·f
    /// GRU    dn = dh·(1−z)(1−n²)        dz = dh·(h[t−1] − n)·z(1−z)    dr = dn·q·r(1−r)
    ///        of q: dr, dz, dn·r         dh[t−1] = dh·z + ..
    /// RNN    dh·(1 − h²)
    /// dh[t−1] = dy[t−1] + Uᵀ·dq[t]      dx = Wᵀ·dz      dW = Σ dz·xᵀ      dU = Σ dq·h[t−1]ᵀ
    /// ```
    ///
    /// - `layer`: what the forward pass was asked for, with [`Recurrent::saved`], which it wrote and this writes over,
    ///   and y as [`Recurrent::output`]. `dy`: y's shape, any storage type. The gradient of h behind the last step, if
    ///   there is one, is part of dy's last step; that of c is [`Recurrent::dc`].
    /// - dv and dg are those of [`NormalizeBackward`](crate::NormalizeBackward), of dW and dU over all steps, which lie
    ///   in scratch memory, f32.
    /// - Where sequences are cut for truncated back-propagation, each part is a layer of its own, h0 and c being what
    ///   the part before left.
    ///
    /// # Dispatches
    /// One for each step (as in [`Recurrent`] a product more past a binding), and one before for the scales of U. Then, over all steps together: dx as of
    /// [`LinearBackward`]; dv and dg of W one product and those of `NormalizeBackward`, of U one product more with h0;
    /// one or two for each dbias; for dh0 as for a dx.
    ///
    /// # Errors
    /// As [`Recurrent`]; [`ArgumentError::Missing`] without `saved` or y; [`ArgumentError::Shape`] for a sequence of no
    /// steps, and where the gates of a step are no multiple of what has to lie apart.
    pub fn recurrent_backward(
        &mut self,
        layer: Recurrent<'_>,
        dy: &Tensor,
        input: &Gradients<'_>,
        hidden: &Gradients<'_>,
    ) -> Result<(), Error> {
        let backward = check(self, &layer, dy, input, hidden)?;
        backward.record(self, input, hidden)
    }
}

fn all_of(gradients: &LinearGradients) -> Gradients<'_> {
    let LinearGradients { dx, dv, dg, dbias } = gradients;
    Gradients::default().dx(dx).dv(dv).dg(dg).dbias(dbias)
}

struct Backward<'a> {
    layer: &'a Recurrent<'a>,
    sizes: Sizes,
    saved: &'a RecurrentSaved,
    y: &'a Tensor,
    dy: &'a Tensor,
}

/// The weight with the norms of the forward pass.
fn with_norms<'a>(weight: Weight<'a>, norms: &'a Option<Tensor>) -> Weight<'a> {
    match (weight, norms) {
        (Weight::Normalized(weight), Some(norms)) => weight.norms(norms).into(),
        (weight, _) => weight,
    }
}

impl Backward<'_> {
    fn record(&self, ops: &mut Recorder<'_, '_>, input: &Gradients<'_>, hidden: &Gradients<'_>) -> Result<(), Error> {
        let &Backward { layer, sizes, saved, y, .. } = self;
        let &Recurrent { cell, x, tile, h0, .. } = layer;
        let Sizes { length, steps, .. } = sizes;
        let Steps { batch, units, .. } = steps;
        let rows = steps.rows();
        // What scratch memory has to hold, at first dc or dh, then dw.
        let f32s = DType::F32.size();
        let of_weights = [(layer.input, input), (layer.hidden, hidden)].map(|(weight, gradients)| {
            if gradients.dv.is_some() || gradients.dg.is_some() { weight.v().len() } else { 0 }
        });
        let memory =
            ops.scratch(Scratch::Factors, (batch * units).max(of_weights[0].max(of_weights[1])) as u64 * f32s)?;
        let in_scratch = Tensor::in_scratch(ops.gpu(), memory, 0, &sizes.state_shape());
        let carried = match cell {
            Cell::Lstm => layer.dc.cloned().or(Some(in_scratch)),
            Cell::Gru => hidden.dx.filter(|dh0| dh0.dtype() == DType::F32).cloned().or(Some(in_scratch)),
            Cell::Rnn => None,
        };
        self.steps(ops, carried.as_ref(), hidden.dx)?;

        let of_input = saved.gates.clone();
        let of_hidden = if cell == Cell::Gru { saved.beside.as_ref() } else { None }.unwrap_or(&saved.gates).clone();
        let input_weight = with_norms(layer.input, &saved.input_norms);
        let hidden_weight = with_norms(layer.hidden, &saved.hidden_norms);
        if let (Some(dh0), false) = (hidden.dx, cell == Cell::Gru) {
            // Of x the shape alone matters.
            let (first, like) = (of_hidden.part(0, &[batch, rows]), y.part(0, &[batch, units]));
            let backward = LinearBackward::new(&like, hidden_weight, &first).tile(tile);
            ops.nested(|ops| ops.linear_backward(backward, &Gradients::default().dx(dh0)))?;
        }
        let dz = of_input.reshape(&[&x.shape()[..x.shape().len() - 1], &[rows]].concat())?;
        let backward = LinearBackward::new(x, input_weight, &dz).tile(tile);
        let wanted = Gradients { dv: None, dg: None, ..*input };
        ops.nested(|ops| ops.linear_backward(backward, &wanted))?;
        self.of_weight(ops, input_weight, &[(x.clone(), dz)], input)?;

        let like = y.reshape(&[length, batch, units])?;
        let backward = LinearBackward::new(&like, layer.hidden.v(), &of_hidden).tile(tile);
        let wanted = Gradients { dx: None, dv: None, dg: None, ..*hidden };
        ops.nested(|ops| ops.linear_backward(backward, &wanted))?;
        // h before each step but the first, and h0.
        let later = (length - 1) * batch;
        let of_later = of_hidden.part(batch * rows, &[later, rows]);
        let mut pairs = vec![(y.part(0, &[later, units]), of_later)];
        if let Some(h0) = h0 {
            pairs.push((h0.clone(), of_hidden.part(0, &[batch, rows])));
            if later == 0 {
                pairs.swap_remove(0);
            }
        }
        self.of_weight(ops, hidden_weight, &pairs, hidden)
    }

    /// The gradients of the gates of all steps in the place of the gates; dh0 of a GRU.
    fn steps(&self, ops: &mut Recorder<'_, '_>, carried: Option<&Tensor>, dh0: Option<&Tensor>) -> Result<(), Error> {
        let &Backward { layer, sizes, saved, y, dy } = self;
        let &Recurrent { cell, hidden, h0, .. } = layer;
        let Sizes { length, steps, .. } = sizes;
        if y.is_empty() {
            return Ok(());
        }
        let (state, [of_h, of_gates]) = (sizes.state_shape(), sizes.of_step());
        let plan = steps.backward_plan(ops, hidden.v().dtype(), layer.selection())?;
        let normalized = with_norms(hidden, &saved.hidden_norms).normalized();
        let (scale, of_norms) = match normalized {
            None => (StepScale::Nothing, None),
            Some(weight) => {
                let scale = match weight.axis {
                    Axis::Kept(0) => StepScale::Rows,
                    Axis::Kept(_) => StepScale::Columns,
                    Axis::Whole => StepScale::Whole,
                };
                (scale, Some(scales(ops, weight, NormOutput::Scales, None)?))
            }
        };
        let gru = cell == Cell::Gru;
        let at = |tensor: &Tensor, t: usize| tensor.part(t * of_gates, &[steps.batch, steps.rows()]);
        let hidden_gates = |t: usize| at(saved.beside.as_ref().filter(|_| gru).unwrap_or(&saved.gates), t);
        let step = StepBack {
            steps,
            behind: None,
            v: hidden.v(),
            scale,
            scales: of_norms,
            carried,
            gates: None,
            of_hidden: None,
            dy: None,
            before: None,
            next: 0,
            zeros: Zeros::default(),
            c_behind: None,
            c_apart: false,
            ready: false,
        };
        for t in (0..length).rev() {
            let last = t + 1 == length;
            let other = if last { t.checked_sub(1) } else { Some(t + 1) };
            let behind = other.map(hidden_gates);
            let gates = at(&saved.gates, t);
            let (of_hidden, of_step) = (gru.then(|| hidden_gates(t)), dy.part(t * of_h, &state));
            let before = match cell {
                Cell::Lstm => saved.beside.as_ref().map(|c| c.part(t * of_h, &state)),
                Cell::Gru if t == 0 => h0.cloned(),
                Cell::Gru => Some(y.part((t - 1) * of_h, &state)),
                Cell::Rnn => None,
            };
            let c_behind = saved.beside.as_ref().filter(|_| cell == Cell::Lstm).map(|c| c.part((t + 1) * of_h, &state));
            let from_zero = t == 0 && if gru { h0.is_none() } else { layer.c.is_none() };
            let behind_is_zero = last && (gru || layer.dc.is_none());
            let zeros = Zeros { sums: last, before: from_zero, behind: behind_is_zero, before_all: false };
            let step = StepBack {
                behind: behind.as_ref(),
                gates: Some(&gates),
                of_hidden: of_hidden.as_ref(),
                dy: Some(&of_step),
                before: before.as_ref(),
                c_behind: c_behind.as_ref(),
                next: if cell == Cell::Lstm { of_h } else { 0 },
                zeros,
                ..step.clone()
            };
            step.record(ops, &plan, layer.selection(), &saved.gates)?;
        }
        if let (Some(dh0), Some(carried), true) = (dh0, carried, gru) {
            let zeros = Zeros { before_all: true, ..Zeros::default() };
            let behind = hidden_gates(0);
            let other = (length > 1).then(|| (at(&saved.gates, 1), hidden_gates(1)));
            let (gates, of_hidden) = (other.as_ref().map(|o| &o.0), other.as_ref().map(|o| &o.1));
            let before = StepBack { behind: Some(&behind), gates, of_hidden, zeros, ..step };
            before.record(ops, &plan, layer.selection(), &saved.gates)?;
            if dh0.dtype() != DType::F32 {
                copy(ops, carried, dh0)?;
            }
        }
        Ok(())
    }

    /// dv and dg of pairs of what the weight multiplies and the gradient of what it gives.
    fn of_weight(
        &self,
        ops: &mut Recorder<'_, '_>,
        weight: Weight<'_>,
        pairs: &[(Tensor, Tensor)],
        gradients: &Gradients<'_>,
    ) -> Result<(), Error> {
        let &Gradients { dv, dg, accumulate, .. } = gradients;
        let normalized = weight.normalized();
        let dw = match (normalized, dv) {
            (None, Some(dv)) => dv.clone(),
            (Some(_), _) if dv.is_some() || dg.is_some() => {
                let memory = ops.scratch(Scratch::Factors, weight.v().len() as u64 * DType::F32.size())?;
                Tensor::in_scratch(ops.gpu(), memory, 0, weight.v().shape())
            }
            _ => return Ok(()),
        };
        for (i, (operand, dz)) in pairs.iter().enumerate() {
            let backward = LinearBackward::new(operand, weight.v(), dz).tile(self.layer.tile);
            let wanted = Gradients::default().dv(&dw).accumulate(i > 0 || (normalized.is_none() && accumulate));
            ops.nested(|ops| ops.linear_backward(backward, &wanted))?;
        }
        let Some(weight) = normalized else { return Ok(()) };
        vectors::in_f32(ops, (accumulate, true), [dg], |ops, [dg]| {
            gradients_of_weight(ops, &dw, weight, dv, dg, accumulate)
        })
    }
}

fn check<'a>(
    ops: &mut Recorder<'_, '_>,
    layer: &'a Recurrent<'a>,
    dy: &'a Tensor,
    input: &Gradients<'_>,
    hidden: &Gradients<'_>,
) -> Result<Backward<'a>, Error> {
    let sizes = Sizes::of(OP, layer)?;
    check_layer(OP, layer, &sizes)?;
    let saved = layer.saved.ok_or(ArgumentError::Missing { op: OP, arg: "saved" })?;
    let y = layer.output.ok_or(ArgumentError::Missing { op: OP, arg: "y" })?;
    let (x, rows) = (layer.x, sizes.steps.rows());
    if sizes.length == 0 {
        let expected = "one step at least".to_owned();
        return Err(ArgumentError::Shape { op: OP, arg: "x", got: x.shape().to_vec(), expected }.into());
    }
    let y_shape = sizes.y_shape(layer);
    expect_shape(OP, "y", y, &y_shape)?;
    expect_shape(OP, "dy", dy, &y_shape)?;
    let state = sizes.state_shape();
    for (gradients, weight, of_dx, names) in [
        (input, &layer.input, x.shape(), ["dx", "dv of the input", "dg of the input", "dbias"]),
        (
            hidden,
            &layer.hidden,
            &state[..],
            ["dh0", "dv of the hidden weight", "dg of the hidden weight", "hidden dbias"],
        ),
    ] {
        gradients.expect_none_of_conv(OP)?;
        let v = weight.v();
        let wanted = [(gradients.dx, of_dx), (gradients.dv, v.shape()), (gradients.dbias, &[rows])];
        for ((tensor, shape), name) in wanted.into_iter().zip([names[0], names[1], names[3]]) {
            tensor.map_or(Ok(()), |tensor| expect_shape(OP, name, tensor, shape))?;
        }
        match (gradients.dg, weight.normalized()) {
            (Some(dg), Some(w)) => expect_gain(OP, names[2], dg, &norms_shape(v.shape(), w.axis))?,
            (dg, _) => Gradients::expect_none(OP, &[(names[2], dg)])?,
        }
    }
    let [_, of_gates] = sizes.of_step();
    let of_hidden = saved.beside.as_ref().filter(|_| layer.cell == Cell::Gru);
    for saved in [Some(&saved.gates), of_hidden].into_iter().flatten() {
        expect_steps_apart(ops, OP, "saved", saved, (sizes.length, of_gates))?;
    }
    let selection = layer.selection();
    selection.check(OP, ops.facts().traits, false)?;
    sizes.steps.backward_plan(ops, layer.hidden.v().dtype(), selection)?;
    expect_c_apart(ops, OP, &sizes, layer.saved)?;

    let normalized = |weight: &Weight<'a>| -> Option<WeightNorm<'a>> { weight.normalized() };
    let (of_input, of_hidden) = (normalized(&layer.input), normalized(&layer.hidden));
    let weights = |gradients: &Gradients<'_>| gradients.dv.is_some() || gradients.dg.is_some();
    let lstm = layer.cell == Cell::Lstm;
    let beside = saved.beside.as_ref();
    let times = |count: bool, of: u64| if count { 2 * of } else { 0 };
    let (of_x, of_h) = (x.products(rows), y.products(rows));
    let arguments = Arguments::new(OP)
        .input_if(weights(input), "x", x)
        .input("input weight", layer.input.v())
        .input("input g", of_input.and_then(|w| w.g))
        .input("hidden weight", layer.hidden.v())
        .input("hidden g", of_hidden.and_then(|w| w.g))
        .input("norms of the input weight", saved.input_norms.as_ref())
        .input("norms of the hidden weight", saved.hidden_norms.as_ref())
        .input("h0", layer.h0)
        .input("y", y)
        .input("dy", dy)
        .input("saved", beside.filter(|_| lstm))
        .output_onto(true, "saved", &saved.gates)
        .output_onto(true, "saved", beside.filter(|_| !lstm))
        .output_onto(true, "dc", layer.dc)
        .output("dx", input.dx)
        .output_onto(input.accumulate, "dv of the input", input.dv)
        .output_onto(input.accumulate, "dg of the input", input.dg)
        .output_onto(input.accumulate, "dbias", input.dbias)
        .output("dh0", hidden.dx)
        .output_onto(hidden.accumulate, "dv of the hidden weight", hidden.dv)
        .output_onto(hidden.accumulate, "dg of the hidden weight", hidden.dg)
        .output_onto(hidden.accumulate, "hidden dbias", hidden.dbias);
    let products =
        2 * of_h + times(input.dx.is_some(), of_x) + times(weights(input), of_x) + times(weights(hidden), of_h);
    arguments.operations(products).begin(ops)?;
    Ok(Backward { layer, sizes, saved, y, dy })
}
