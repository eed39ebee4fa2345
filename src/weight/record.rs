//! The dispatches on one weight.
use crate::binding::{Bound, View, offsets};
use crate::kernel::Constants;
use crate::memory::Memory;
use crate::record::Dispatch;
use crate::weight::cut::{Cut, DIRECT, KEEPS, Kind, OF_KNOWN, Operand, Params, Part, WHOLE};
use crate::windows::Capacities;
use crate::{Error, Recorder, Tensor};

/// What the dispatches on one weight bind, and what they have in common.
pub(crate) struct Operands<'a> {
    pub v: Option<&'a Tensor>,
    pub dw: Option<&'a Tensor>,
    pub w: Option<&'a Tensor>,
    /// Or the bias.
    pub gain: Option<View<'a>>,
    pub sums: Option<View<'a>>,
    /// What is written or read for the norms, in f32: `words` for each.
    pub out: Option<View<'a>>,
    pub words: u64,
    pub beside: Option<View<'a>>,
    pub known: Option<View<'a>>,
    /// Whether v, dw and w are reached in quads.
    pub in_quads: bool,
    pub flags: u32,
    pub eps: f32,
    pub constants: Constants,
}

/// Whether these tensors can be read and written in whole quads.
pub(crate) fn are_in_quads<'a>(mut tensors: impl Iterator<Item = &'a Tensor>) -> bool {
    tensors.all(|t| t.offset().is_multiple_of(16) && t.offset() + t.bytes().next_multiple_of(16) <= end_of_memory(t))
}

/// Bytes of the buffer that a tensor lies in, as far as they are known.
fn end_of_memory(tensor: &Tensor) -> u64 {
    match tensor.memory() {
        Memory::Buffer(buffer) => buffer.size() / 4 * 4,
        Memory::Numbered(_) => tensor.end(),
    }
}

impl<'a> Operands<'a> {
    /// Elements of a tensor, as far as whole quads go; their place in words or quads.
    fn elements(&self, capacities: Capacities, tensor: Option<&'a Tensor>, cut: &Cut) -> Bound<'a> {
        let (Some(tensor), part) = (tensor, cut.elements) else { return (None, 0) };
        let size = tensor.dtype().size();
        let begin = tensor.offset() + part.first * size;
        let room = end_of_memory(tensor);
        let end = (begin + (part.count.next_multiple_of(cut.unit) * size)).min(room);
        let count = if part.count == 0 { 0 } else { (end - begin) / size };
        let (span, place) = View::of(tensor).bind(capacities, part.first, count);
        (span, (u64::from(place) * size / if self.in_quads { 16 } else { 4 }) as u32)
    }

    fn bind(&self, capacities: Capacities, operand: Operand, cut: &Cut) -> Bound<'a> {
        let Part { first, count } = cut.norms;
        let of_norms = |view: &Option<View<'a>>, words: u64| {
            view.as_ref().map_or((None, 0), |view| view.bind(capacities, words * first, words * count))
        };
        let elementwise = cut.kind == Kind::Rescale;
        match operand {
            Operand::V => self.elements(capacities, self.v, cut),
            Operand::Dw => self.elements(capacities, self.dw, cut),
            Operand::W => self.elements(capacities, self.w, cut),
            Operand::G => of_norms(&self.gain, 1),
            Operand::Sums => {
                // Its place is in the parameters, as a whole.
                let sums = self.sums.as_ref().filter(|_| cut.sums.count > 0);
                sums.map_or((None, 0), |sums| sums.bind(capacities, cut.sums.first, cut.sums.count))
            }
            Operand::Out => of_norms(&self.out, self.words),
            Operand::Centers if elementwise && self.words == 1 => of_norms(&self.out, 1),
            Operand::Scales if self.words > 1 => {
                let (span, place) = of_norms(&self.out, self.words);
                (span, place / 2)
            }
            Operand::Centers | Operand::Scales => (None, 0),
            Operand::Beside => of_norms(&self.beside, 1),
            Operand::Known => of_norms(&self.known, 1),
        }
    }

    fn constants(&self, cut: &Cut) -> Constants {
        let mut constants = self.constants.clone();
        let dtype = |name, tensor: Option<&Tensor>| tensor.map(|t| (name, t.dtype().code()));
        let has = |flag: u32| u32::from(cut.params.flags & flag != 0);
        let operands = cut.kind.operands();
        if operands.contains(&Operand::V) {
            // A weight that is rescaled in place has no v.
            constants.extend(dtype("V_DTYPE", self.v.or(self.w)));
            constants.extend(dtype("DW_DTYPE", self.dw));
        }
        match cut.kind {
            Kind::HeldRows => constants.extend([("HELD", cut.held as u32), ("FULL", cut.full.into())]),
            Kind::RowSums => {
                constants.extend([("ALL_DIRECT", has(DIRECT)), ("ONE_LANE", (cut.lane_bits == 0).into())]);
            }
            Kind::Rescale => {
                constants.extend(dtype("W_DTYPE", self.w));
                constants.push(("ALL_KEEP", has(KEEPS)));
            }
            Kind::ColumnSums | Kind::FinishSums | Kind::KnownNorms => {}
        }
        if matches!(cut.kind, Kind::RowSums | Kind::ColumnSums | Kind::Rescale) {
            constants.push(("ALL_WHOLE", has(WHOLE)));
        }
        constants.extend([("LANE_BITS", cut.lane_bits), ("RUN_BITS", cut.run_bits)]);
        constants
    }
}

/// Records them.
pub(crate) fn record(ops: &mut Recorder<'_, '_>, operands: &Operands<'_>, cuts: &[Cut]) -> Result<(), Error> {
    let capacities = ops.facts().capacities;
    for cut in cuts {
        let bound = cut.kind.operands().iter().map(|&operand| (operand, operands.bind(capacities, operand, cut)));
        let bound: Vec<_> = bound.collect();
        let place = |all: &[Operand]| {
            let places = bound.iter().filter(|(operand, _)| all.contains(operand)).map(|(_, (_, place))| *place);
            places.max().unwrap_or(0)
        };
        use Operand::{Beside, Centers, Dw, G, Known, Out, Scales, Sums, V, W};
        let buffers: Vec<_> = bound.iter().map(|(_, (span, _))| span.clone()).collect();
        ops.dispatch(&Dispatch {
            kernel: cut.kind.kernels()[0],
            module: cut.kind.module(false, operands.in_quads),
            constants: &operands.constants(cut),
            buffers: &buffers,
            params: Params {
                part: place(&[Sums]),
                places: offsets([place(&[V]), place(&[Dw]), place(&[G]), place(&[Out, Centers, Scales])]),
                more_places: cut.params.more_places | place(&[W, Beside]),
                flags: cut.params.flags | operands.flags | place(&[Known]) << OF_KNOWN,
                eps: operands.eps,
                ..cut.params
            },
            groups: cut.params.count.into(),
            work: cut.work,
        })?;
    }
    Ok(())
}
