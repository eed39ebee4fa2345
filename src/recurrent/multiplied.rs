//! What stands for h in the product of a multiplicative LSTM: m = (Wm·x) ⊙ (Um·h).
use super::Recurrent;
use super::step::{Step, Steps, Zeros};
use crate::arguments::expect_shape;
use crate::binding::View;
use crate::linear::epilogue::NormSource;
use crate::memory::Memory;
use crate::weight::job::NormOutput;
use crate::weight::norms::norms_into;
use crate::weight::place::Region;
use crate::{ArgumentError, Axis, Cell, DType, Error, Linear, Recorder, Tensor, Weight};

/// Where parts of scratch memory start, so that bindings of them do not overlap.
const ALIGNMENT: u64 = 256;

pub(crate) fn part_bytes(elements: usize) -> u64 {
    (elements as u64 * DType::F32.size()).next_multiple_of(ALIGNMENT)
}

/// Sizes of a layer, and the weights of m.
#[derive(Clone, Copy)]
pub(crate) struct Multiplied<'a> {
    pub length: usize,
    pub batch: usize,
    pub units: usize,
    pub weights: [Weight<'a>; 2],
}

/// Wm·x of all steps, `[T, B, H]`, m of one, and the norms of Um, in scratch memory.
pub(crate) struct MultipliedSteps<'a> {
    of: Multiplied<'a>,
    of_input: Tensor,
    pub m: Tensor,
    norms: Tensor,
}

impl<'a> Multiplied<'a> {
    pub fn check(&self, op: &'static str, layer: &Recurrent<'_>) -> Result<(), Error> {
        let features = layer.x.shape().last().copied().unwrap_or(0);
        let widths = [("input weight of m", features), ("hidden weight of m", self.units)];
        for (weight, (arg, width)) in self.weights.iter().zip(widths) {
            expect_shape(op, arg, weight.v(), &[self.units, width])?;
            weight.normalized().map_or(Ok(()), |weight| weight.check(op))?;
        }
        let refused = |arg, got: &Tensor, expected: &str| {
            let (got, expected) = (got.shape().to_vec(), expected.to_owned());
            Err(Error::from(ArgumentError::Shape { op, arg, got, expected }))
        };
        match (self.weights[1].normalized(), layer.saved) {
            (_, Some(saved)) => refused("saved", &saved.gates, "none: a multiplicative LSTM has no gradients here"),
            (Some(weight), _) if weight.axis != Axis::Kept(0) => refused("hidden weight of m", weight.v, "kept axis 0"),
            _ => Ok(()),
        }
    }

    fn state(&self) -> [usize; 2] {
        [self.batch, self.units]
    }

    /// Those of m alone.
    pub fn steps(&self) -> Steps {
        Steps { cell: Cell::Rnn, batch: self.batch, units: self.units }
    }

    /// Scratch memory that it takes.
    pub fn bytes(&self) -> u64 {
        let of_step = self.batch * self.units;
        part_bytes(self.length * of_step) + part_bytes(of_step) + part_bytes(self.units)
    }

    /// What there is before the first step, in such memory from that byte on.
    pub fn record(
        self,
        ops: &mut Recorder<'_, '_>,
        layer: &Recurrent<'_>,
        memory: &Memory,
        first: u64,
    ) -> Result<MultipliedSteps<'a>, Error> {
        let Multiplied { length, batch, units, weights: [of_input, of_hidden] } = self;
        let mut next = first;
        let mut part = |shape: &[usize]| {
            let tensor = Tensor::in_scratch(ops.gpu(), memory.clone(), next, shape);
            next += part_bytes(shape.iter().product());
            tensor
        };
        let shape = [&layer.x.shape()[..layer.x.shape().len() - 1], &[units]].concat();
        let (z, m, norms) = (part(&shape), part(&[batch, units]), part(&[units]));
        ops.nested(|ops| ops.linear(Linear::new(layer.x, of_input).tile(layer.tile), &z))?;
        if let Some(weight) = of_hidden.normalized() {
            norms_into(ops, weight, NormOutput::Norms, Region::of(&norms))?;
        }
        Ok(MultipliedSteps { of: self, of_input: z.reshape(&[length, batch, units])?, m, norms })
    }
}

impl MultipliedSteps<'_> {
    /// m of a step, of h before.
    pub fn step(
        &self,
        ops: &mut Recorder<'_, '_>,
        layer: &Recurrent<'_>,
        t: usize,
        h: Option<&Tensor>,
        zeros: Zeros,
    ) -> Result<(), Error> {
        let (steps, state) = (self.of.steps(), self.of.state());
        let weight = self.of.weights[1];
        let normalized = weight.normalized();
        let gates = self.of_input.part(t * state[0] * state[1], &state);
        let dtypes = [h.unwrap_or(&self.m).dtype(), weight.v().dtype()];
        let plan = steps.forward_plan(ops, dtypes, layer.selection(), false, false)?;
        let step = Step {
            steps,
            h,
            v: weight.v(),
            norm: if normalized.is_some() { NormSource::Given } else { NormSource::Plain },
            norms_in: normalized.map(|_| View::of(&self.norms)),
            g: normalized.and_then(|weight| weight.g),
            bias: None,
            y: &self.m,
            gates: &gates,
            beside: None,
            next: 0,
            zeros,
            keep: false,
            times: true,
            ready: None,
            c_behind: None,
            c_apart: false,
        };
        step.record(ops, &plan, layer.selection())
    }
}
