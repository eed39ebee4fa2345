//! What a product is told of what becomes of it.
use crate::DType;
use crate::binding::{Bound, Span, View};
use crate::kernel::{Constants, Kernel, params};
use crate::source::Module;
use crate::windows::Capacities;

params! {
    /// `Params` of `product/shape.wgsl`.
    pub(crate) struct ProductParams {
        rows: u32,
        columns: u32,
        depth: u32,
        a_stride: u32,
        b_stride: u32,
        c_stride: u32,
        split_length: u32,
        split_first: u32,
        splits: u32,
        offsets: u32,
        more_offsets: u32,
        policy: u32,
        eps: f32,
        slope: f32,
        next: u32,
        zeros: u32,
    }
}

/// `FINISH_THREADS` of `product/split.wgsl`.
pub(crate) const FINISH_THREADS: u64 = 64;

/// The part of a product that one dispatch computes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProductWindow {
    pub row: u64,
    pub rows: u64,
    pub column: u64,
    pub columns: u64,
    pub k: u64,
    pub depth: u64,
}

impl ProductWindow {
    /// Binds the part of a (.., width) matrix that has the window's rows and columns.
    pub fn of_result<'a>(&self, capacities: Capacities, view: &View<'a>, width: u64) -> Bound<'a> {
        view.bind(capacities, self.row * width + self.column, (self.rows - 1) * width + self.columns)
    }
}

/// Which of the three kernels of a product.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Stage {
    Whole,
    Partial,
    Finish,
}

/// What an epilogue wants of a dispatch, besides A, B and the partial sums.
pub(crate) struct EpilogueBindings<'a> {
    pub constants: Constants,
    /// The kernel's bindings after A and B (which `Finish` lacks), without the partial sums.
    pub buffers: Vec<Option<Span<'a>>>,
    /// The upper two places of `offsets`, and `more_offsets`.
    pub offsets: [u32; 2],
    pub more_offsets: [u32; 4],
    /// Whether all that is shaped as C is f32, in rows of whole quads that start at multiples of four elements.
    pub quads: bool,
}

/// What becomes of a product, and how B is scaled before.
pub(crate) trait Epilogue<'a> {
    /// The kernels of [`Stage::Whole`], `Partial` and `Finish`.
    fn kernels(&self) -> [&'static Kernel; 3];
    /// The storage type of the result.
    fn out(&self) -> DType;
    fn of(&self, capacities: Capacities, stage: Stage, window: &ProductWindow) -> EpilogueBindings<'a>;
    /// Whether B is scaled before it is multiplied.
    fn scales_b(&self) -> bool;
    /// Bytes that one step of k needs in a binding of the epilogue, if any.
    fn bytes_per_step(&self) -> u64 {
        0
    }
    /// Sums of squares kept beside the partial sums of C: one for each column and split, or none.
    fn column_sums(&self) -> bool {
        false
    }
    /// The same of the rows of A: one for each row and split.
    fn row_sums(&self) -> bool {
        false
    }
    fn policy(&self) -> (u32, f32) {
        (0, 0.0)
    }
    /// Of a leaky ReLU; of a gradient what its sums are multiplied by.
    fn slope(&self) -> f32 {
        0.0
    }
    /// The module, with what fills slots of the epilogue's own.
    fn fill(&self, module: Module) -> Module {
        module
    }
    /// The parameters `next` and `zeros`, of recurrent cells.
    fn of_cells(&self) -> [u32; 2] {
        [0; 2]
    }
    /// Whether the sums are zero, whatever is bound: then the pipeline is that of other sums all the same.
    fn has_no_sums(&self) -> bool {
        false
    }
}
