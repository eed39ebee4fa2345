//! Gradients of activations, for whoever has one: what is checked, and its dispatches. Shaders: `shaders/activation`.
use crate::binding::{View, bind, offsets};
use crate::choose::{self, Facts};
use crate::contract::stored_as;
use crate::kernel::{Constants, kernels, params};
use crate::memory::Scratch;
use crate::record::Dispatch;
use crate::source::Module;
use crate::windows::windows;
use crate::{Activation, DType, Error, Recorder, Tensor};

const WORDS: Module = Module::new("activation/gradient");
const QUADS: Module = WORDS.fill("access", "activation/quads");
pub(crate) const MODULES: [Module; 2] = [WORDS, QUADS];

params! {
    struct ActivationParams {
        begin: u32,
        end: u32,
        run: u32,
        columns: u32,
        first_column: u32,
        gain_step: u32,
        same_columns: u32,
        offsets: u32,
        more_offsets: u32,
        scale: f32,
        slope: f32,
    }
}

kernels! {
    ACTIVATION_GRADIENT = "activation/gradient" "activation_gradient", Some(THREADS), ActivationParams,
        [0 Read, 1 Read, 2 Read, 3 Read, 4 Write];
}

/// Invocations in a workgroup of `activation/gradient.wgsl`.
const THREADS: u64 = 64;
/// Units of an invocation.
const EACH: u64 = 4;
/// Windows start at multiples of so many elements, which are whole units and whole quads of every storage type.
const WHOLE: u64 = 8;

/// scale · d ⊙ act'(z), where z = g_j·u + bias_j by columns, or z itself, or the derivative follows from y. All of it
/// is checked.
#[derive(Clone, Copy)]
pub(crate) struct ActivationGradient<'a> {
    pub activation: Activation,
    /// u, z or y; not read without an activation.
    pub at: Option<&'a Tensor>,
    pub from_output: bool,
    /// One element, or one for each column, which is the last axis.
    pub g: Option<&'a Tensor>,
    /// `[columns]`
    pub bias: Option<&'a Tensor>,
    pub d: &'a Tensor,
    pub scale: f32,
}

impl<'a> ActivationGradient<'a> {
    /// At z, unscaled.
    pub fn new(activation: Activation, at: Option<&'a Tensor>, d: &'a Tensor) -> Self {
        ActivationGradient { activation, at, from_output: false, g: None, bias: None, d, scale: 1.0 }
    }

    /// Records it into scratch memory, in d's storage type, which nothing else writes within an operator.
    pub fn record_into_scratch(&self, ops: &mut Recorder<'_, '_>) -> Result<Tensor, Error> {
        let scratch = ops.scratch(Scratch::ActivationGradient, self.d.bytes().next_multiple_of(4))?;
        let out = Tensor::in_scratch_as(ops.gpu(), scratch, self.d.shape(), self.d.dtype());
        self.record(ops, &out)?;
        Ok(out)
    }

    /// Records it into `out`, of d's shape; in place, if that is d.
    pub fn record(&self, ops: &mut Recorder<'_, '_>, out: &Tensor) -> Result<(), Error> {
        let Facts { traits, capacities } = ops.facts();
        let &ActivationGradient { activation, at, d, .. } = self;
        let at = at.filter(|_| activation != Activation::None);
        let (in_place, all) = (are_one(d, out), out.len() as u64);
        let tensors = || at.into_iter().chain([d, out]);
        let unit = if tensors().all(|t| t.dtype() == DType::F32) { 4 } else { WHOLE };

        // What belongs to columns, and how long they are.
        let by_column = |tensor: Option<&'a Tensor>| tensor.filter(|t| t.len() > 1);
        let columns = by_column(self.g).or(by_column(self.bias)).map_or(1, |t| t.len() as u64);
        let step = capacities.step().bound(DType::F32.size()).in_groups(THREADS * unit).work(1).get();
        let step = (step / WHOLE * WHOLE).max(WHOLE);
        // Where a binding cannot hold all columns, windows are parts of rows.
        let in_rows = columns > step;
        let pieces: Vec<Piece> = if in_rows {
            let parts = |row: u64| windows(columns, step - WHOLE).map(move |part| (row, part));
            let piece =
                |(row, (column, count)): (u64, (u64, u64))| Piece { first: row * columns + column, count, column };
            (0..all / columns).flat_map(parts).map(piece).collect()
        } else {
            windows(all, step).map(|(first, count)| Piece { first, count, column: 0 }).collect()
        };
        let quads = !in_rows && all.is_multiple_of(unit) && tensors().all(|t| choose::in_quads([t], WHOLE));
        let same_columns = !in_rows && columns.is_multiple_of(unit);
        // Neighbouring units, a whole number of rows where that spares reading g and bias again.
        let run = traits.run(THREADS);
        let run = if same_columns { run.next_multiple_of(columns / unit) } else { run };

        let mut constants: Constants = vec![("ACTIVATION", activation.code())];
        constants.extend(stored_as("AT_DTYPE", at).into_iter().chain(stored_as("OUT_DTYPE", Some(out))));
        if in_place {
            constants.push(("IN_PLACE", 1));
        }
        // In place too: units depend on it.
        constants.extend(stored_as("D_DTYPE", Some(d)));
        let follows = matches!(activation, Activation::Elu | Activation::Tanh);
        if self.from_output && follows {
            constants.push(("FROM_OUTPUT", 1));
        }
        for (has, dtype, tensor) in [("HAS_GAIN", "GAIN_DTYPE", self.g), ("HAS_BIAS", "BIAS_DTYPE", self.bias)] {
            constants.extend(tensor.map(|_| (has, 1)));
            constants.extend(stored_as(dtype, tensor));
        }
        for Piece { first, count, column } in pieces {
            // From a whole unit on, some elements of which may belong to the window before.
            let begin = first % WHOLE;
            let end = begin + count;
            let bound = |tensor: Option<&'a Tensor>| bind(capacities, tensor, first - begin, end);
            let (at, d) = (bound(at), bound(Some(d).filter(|_| !in_place)));
            let (out, out_place) = View::of(out).bind(capacities, first - begin, end);
            let here = if in_rows { count } else { columns };
            let of_columns = |tensor: Option<&'a Tensor>| match tensor {
                Some(t) if t.len() == 1 => bind(capacities, tensor, 0, 1),
                _ => bind(capacities, tensor, column, here),
            };
            let (g, bias) = (of_columns(self.g), of_columns(self.bias));
            let units = end.div_ceil(unit);
            ops.dispatch(&Dispatch {
                kernel: &ACTIVATION_GRADIENT,
                module: if quads { QUADS } else { WORDS },
                constants: &constants,
                buffers: &[at.0, d.0, g.0, bias.0, out],
                params: ActivationParams {
                    begin: begin as u32,
                    end: end as u32,
                    run: run as u32,
                    columns: here as u32,
                    first_column: (if in_rows { here - begin % here } else { first } % here) as u32,
                    gain_step: by_column(self.g).is_some().into(),
                    same_columns: same_columns.into(),
                    offsets: offsets([at.1, d.1, out_place, 0]),
                    more_offsets: offsets([g.1, bias.1, 0, 0]),
                    scale: self.scale,
                    slope: activation.slope(),
                },
                groups: (units.div_ceil(EACH * run) * run).div_ceil(THREADS),
                work: count,
            })?;
        }
        Ok(())
    }
}

/// A window: its elements, and the column of the first of g and bias that are bound.
struct Piece {
    first: u64,
    count: u64,
    column: u64,
}

/// Whether two tensors are the same one.
pub(crate) fn are_one(a: &Tensor, b: &Tensor) -> bool {
    (a.memory(), a.offset(), a.len(), a.dtype()) == (b.memory(), b.offset(), b.len(), b.dtype())
}
