//! The sums of a step where U is past a binding, by a product of their own before it: that of linear layers.
use crate::binding::View;
use crate::linear::epilogue::{LinearEpilogue, NormSource};
use crate::memory::Scratch;
use crate::product::record::{Operand, Product, multiply};
use crate::product::selection::Selection;
use crate::{Activation, DType, Error, Recorder, Tensor};

/// The sums of a step by a product of their own.
pub(crate) struct Apart<'a> {
    pub a: &'a Tensor,
    pub b: Operand<'a>,
    pub norm: NormSource,
    pub norms_in: Option<View<'a>>,
    pub g: Option<&'a Tensor>,
    pub bias: Option<&'a Tensor>,
    pub columns: usize,
    pub selection: Selection,
}

impl Apart<'_> {
    /// `[batch, columns]`, in scratch memory, of sums over `depth` terms.
    pub fn record(self, ops: &mut Recorder<'_, '_>, batch: usize, depth: usize) -> Result<Tensor, Error> {
        let Apart { a, b, norm, norms_in, g, bias, columns, selection } = self;
        let memory = ops.scratch(Scratch::Vectors, (batch * columns) as u64 * DType::F32.size())?;
        let sums = Tensor::in_scratch(ops.gpu(), memory, 0, &[batch, columns]);
        let epilogue = LinearEpilogue {
            norm,
            norms_in,
            g,
            bias,
            y: &sums,
            norms_out: None,
            u: None,
            onto: None,
            policy: (0, 0.0),
            activation: Activation::None,
            unit_rows: false,
            columns: columns as u64,
        };
        let product = Product {
            a: Operand { tensor: a, along_k: true },
            b,
            c_bytes: DType::F32.size(),
            rows: batch as u64,
            columns: columns as u64,
            depth: depth as u64,
            selection,
            epilogue: &epilogue,
        };
        multiply(ops, &product)?;
        Ok(sums)
    }
}
