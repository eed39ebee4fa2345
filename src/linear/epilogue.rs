//! What becomes of a forward product: scales, gain, bias, activation. Shader: `product/linear.wgsl`.
use crate::binding::{View, bind};
use crate::contract::stored_as;
use crate::kernel::{Constants, Kernel, kernels};
use crate::product::epilogue::{Epilogue, EpilogueBindings, FINISH_THREADS, ProductParams, ProductWindow, Stage};
use crate::windows::Capacities;
use crate::{Activation, DType, Tensor};

kernels! {
    LINEAR_WHOLE = "product/linear" "linear", None, ProductParams,
        [0 Read, 1 Read, 2 Read, 3 Read, 4 Read, 5 Write, 6 Write, 7 Write];
    LINEAR_PARTIAL = "product/linear" "linear_partial", None, ProductParams, [0 Read, 1 Read, 4 Read, 8 Write];
    LINEAR_FINISH = "product/linear" "linear_finish", Some(FINISH_THREADS), ProductParams,
        [2 Read, 3 Read, 4 Read, 5 Write, 6 Write, 7 Write, 8 Write];
}

/// Where the norms of a product come from: NORM of `linear.wgsl`.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum NormSource {
    Plain,
    Fused,
    Given,
    Whole,
    In,
}

/// The epilogue of `product/linear.wgsl`.
pub(crate) struct LinearEpilogue<'a> {
    pub norm: NormSource,
    pub norms_in: Option<View<'a>>,
    pub g: Option<&'a Tensor>,
    pub bias: Option<&'a Tensor>,
    pub y: &'a Tensor,
    pub norms_out: Option<&'a Tensor>,
    pub u: Option<&'a Tensor>,
    /// What the sums are added to, f32, shaped as y, of which u is made: u itself, where that is written.
    pub onto: Option<&'a Tensor>,
    pub policy: (u32, f32),
    pub activation: Activation,
    /// Whether rows of A are divided by their norms, under the same policy.
    pub unit_rows: bool,
    /// Columns of the whole y.
    pub columns: u64,
}

impl<'a> Epilogue<'a> for LinearEpilogue<'a> {
    fn kernels(&self) -> [&'static Kernel; 3] {
        [&LINEAR_WHOLE, &LINEAR_PARTIAL, &LINEAR_FINISH]
    }

    fn out(&self) -> DType {
        self.y.dtype()
    }

    fn of(&self, capacities: Capacities, stage: Stage, window: &ProductWindow) -> EpilogueBindings<'a> {
        let columns = |tensor: Option<&'a Tensor>| bind(capacities, tensor, window.column, window.columns);
        let norms_in = match (&self.norms_in, self.norm) {
            (Some(norms), NormSource::Whole) => norms.bind(capacities, 0, 2),
            // The scales are part of the partial sums.
            (Some(_), NormSource::In) if stage == Stage::Finish => (None, 0),
            (Some(norms), NormSource::In) => norms.bind(capacities, 2 * window.k, 2 * window.depth),
            (Some(norms), _) => norms.bind(capacities, window.column, window.columns),
            (None, _) => (None, 0),
        };
        let mut constants: Constants = vec![("NORM", self.norm as u32)];
        constants.extend(self.unit_rows.then_some(("ROW_SQUARES", 1)));
        if self.y.dtype() != DType::F32 {
            constants.push(("Y_DTYPE", self.y.dtype().code()));
        }
        if stage == Stage::Partial {
            let more_offsets = [0, 0, norms_in.1, 0];
            return EpilogueBindings {
                constants,
                buffers: vec![norms_in.0],
                offsets: [0; 2],
                more_offsets,
                quads: false,
            };
        }
        let norms_out = self.norms_out.filter(|_| window.row == 0);
        constants.extend([
            ("ACTIVATION", self.activation.code()),
            ("HAS_GAIN", self.g.is_some().into()),
            ("HAS_BIAS", self.bias.is_some().into()),
            ("WRITE_NORMS", norms_out.is_some().into()),
            ("WRITE_U", self.u.is_some().into()),
        ]);
        constants.extend(self.onto.map(|_| ("ONTO", 1)));
        constants.extend(stored_as("GAIN_DTYPE", self.g).into_iter().chain(stored_as("BIAS_DTYPE", self.bias)));
        let g = match self.norm {
            NormSource::Whole => bind(capacities, self.g, 0, 1),
            _ => columns(self.g),
        };
        let (bias, norms_out) = (columns(self.bias), columns(norms_out));
        let y = window.of_result(capacities, &View::of(self.y), self.columns);
        let u = self.u.or(self.onto).map_or((None, 0), |u| window.of_result(capacities, &View::of(u), self.columns));
        EpilogueBindings {
            constants,
            buffers: vec![g.0, bias.0, norms_in.0, y.0, norms_out.0, u.0],
            offsets: [y.1, u.1],
            more_offsets: [g.1, bias.1, norms_in.1, norms_out.1],
            quads: self.columns.is_multiple_of(4) && y.1.is_multiple_of(4) && u.1.is_multiple_of(4),
        }
    }

    fn scales_b(&self) -> bool {
        self.norm == NormSource::In
    }

    fn bytes_per_step(&self) -> u64 {
        if self.norm == NormSource::In { 8 } else { 0 }
    }

    fn column_sums(&self) -> bool {
        self.norm == NormSource::Fused
    }

    fn row_sums(&self) -> bool {
        self.unit_rows
    }

    fn policy(&self) -> (u32, f32) {
        self.policy
    }

    fn slope(&self) -> f32 {
        self.activation.slope()
    }
}
