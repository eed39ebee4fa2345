//! What becomes of the products of the backward pass: factors of norms, corrections, sums with what is there. Shader:
//! `product/gradient.wgsl`.
use crate::binding::{Bound, View};
use crate::kernel::{Constants, Kernel, kernels};
use crate::product::epilogue::{Epilogue, EpilogueBindings, FINISH_THREADS, ProductParams, ProductWindow, Stage};
use crate::windows::Capacities;
use crate::{DType, Tensor};

kernels! {
    GRADIENT = "product/gradient" "gradient", None, ProductParams, [0 Read, 1 Read, 2 Read, 5 Write, 6 Read];
    GRADIENT_PARTIAL = "product/gradient" "gradient_partial", None, ProductParams, [0 Read, 1 Read, 2 Read, 8 Write];
    GRADIENT_FINISH = "product/gradient" "gradient_finish", Some(FINISH_THREADS), ProductParams,
        [2 Read, 5 Write, 6 Read, 8 Write];
}

/// Which element of C belongs to which norm: GROUPING of `product/gradient.wgsl`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Grouping {
    Nothing,
    Rows,
    Columns,
    Whole,
}

/// How B is scaled before it is multiplied.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum OperandScale {
    Nothing,
    ByK,
    Whole,
}

/// The epilogue of `product/gradient.wgsl`.
#[derive(Clone)]
pub(crate) struct GradientEpilogue<'a> {
    pub grouping: Grouping,
    pub scale: OperandScale,
    /// Four f32 a norm.
    pub factors: Option<View<'a>>,
    pub v: Option<&'a Tensor>,
    pub out: Option<&'a Tensor>,
    pub accumulate: bool,
    /// Of the sums, where they belong to no norm.
    pub factor: Option<f32>,
    /// Columns of the whole result.
    pub columns: u64,
}

impl<'a> GradientEpilogue<'a> {
    pub fn plain(accumulate: bool) -> Self {
        let (grouping, scale) = (Grouping::Nothing, OperandScale::Nothing);
        GradientEpilogue { grouping, scale, factors: None, v: None, out: None, accumulate, factor: None, columns: 0 }
    }

    pub fn c_bytes(&self) -> u64 {
        let bytes = |tensor: Option<&Tensor>| tensor.map_or(0, |t| t.dtype().size());
        bytes(self.out).max(bytes(self.v))
    }
}

impl<'a> Epilogue<'a> for GradientEpilogue<'a> {
    fn kernels(&self) -> [&'static Kernel; 3] {
        [&GRADIENT, &GRADIENT_PARTIAL, &GRADIENT_FINISH]
    }

    fn out(&self) -> DType {
        self.out.map_or(DType::F32, Tensor::dtype)
    }

    fn of(&self, capacities: Capacities, stage: Stage, window: &ProductWindow) -> EpilogueBindings<'a> {
        // The norms that the rows, columns or steps of the window belong to.
        let range = match (self.grouping, self.scale, stage) {
            (Grouping::Nothing, OperandScale::ByK, Stage::Whole | Stage::Partial) => Some((window.k, window.depth)),
            (Grouping::Nothing, OperandScale::Whole, Stage::Whole | Stage::Partial) => Some((0, 1)),
            (_, _, Stage::Partial) | (Grouping::Nothing, _, _) => None,
            (Grouping::Rows, _, _) => Some((window.row, window.rows)),
            (Grouping::Columns, _, _) => Some((window.column, window.columns)),
            (Grouping::Whole, _, _) => Some((0, 1)),
        };
        let factors: Bound<'a> = (self.factors.as_ref().zip(range))
            .map_or((None, 0), |(factors, (first, count))| factors.bind(capacities, first, count));
        let mut constants: Constants = vec![("GROUPING", self.grouping as u32)];
        constants.extend(self.factor.map(|_| ("SCALED_C", 1)));
        if self.scale == OperandScale::Whole {
            constants.push(("ONE_SCALE", 1));
        }
        if let Some(dtype @ (DType::F16 | DType::Bf16)) = self.out.map(Tensor::dtype) {
            constants.push(("Y_DTYPE", dtype.code()));
        }
        if stage == Stage::Partial {
            let more_offsets = [0, 0, factors.1, 0];
            return EpilogueBindings {
                constants,
                buffers: vec![factors.0],
                offsets: [0, 0],
                more_offsets,
                quads: false,
            };
        }
        let of_result = |tensor: Option<&'a Tensor>| -> Bound<'a> {
            tensor.map_or((None, 0), |t| window.of_result(capacities, &View::of(t), self.columns))
        };
        let (out, v) = (of_result(self.out), of_result(self.v));
        let v_dtype = self.v.map_or(DType::F32, Tensor::dtype);
        let quads =
            self.columns.is_multiple_of(4) && out.1.is_multiple_of(4) && v.1.is_multiple_of(4) && v_dtype == DType::F32;
        if !quads || stage == Stage::Finish {
            constants.push(("V_DTYPE", v_dtype.code()));
        }
        constants.push(("ACCUMULATE", self.accumulate.into()));
        let more_offsets = [0, v.1, factors.1, 0];
        EpilogueBindings { constants, buffers: vec![factors.0, out.0, v.0], offsets: [out.1, 0], more_offsets, quads }
    }

    fn scales_b(&self) -> bool {
        self.scale != OperandScale::Nothing
    }

    fn bytes_per_step(&self) -> u64 {
        if self.scale == OperandScale::ByK { 16 } else { 0 }
    }

    fn slope(&self) -> f32 {
        self.factor.unwrap_or(1.0)
    }
}
