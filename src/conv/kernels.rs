//! Kernels, modules and parameters of convolutions. Shaders: `product/conv.wgsl` and its views.
use super::cut::{CHANNELS, IMAGES, WIDE};
use crate::DType;
use crate::kernel::{kernels, params};
use crate::product::epilogue::FINISH_THREADS;
use crate::product::plan::PARTIAL_BYTES;
use crate::product::tile::Family;
use crate::product::variant::RESULTS;
use crate::source::Module;

params! {
    /// `Params` of `product/params_windows.wgsl`. What is packed has height in the upper 16 bits, width in the lower.
    pub(crate) struct ConvParams {
        rows: u32,
        columns: u32,
        depth: u32,
        split_length: u32,
        split_first: u32,
        splits: u32,
        offsets: u32,
        more_offsets: u32,
        policy: u32,
        eps: f32,
        slope: f32,
        window_split: u32,
        group_count: u32,
        v_row: u32,
        row_first: u32,
        column_first: u32,
        a_image: u32,
        a_width: u32,
        heights: u32,
        positions: u32,
        width: u32,
        channels: u32,
        taps: u32,
        kernel: u32,
        phases: u32,
        stride: u32,
        reach: u32,
        lead: u32,
        c_image: u32,
        c_width: u32,
        input_slope: f32,
        scale: f32,
    }
}

params! {
    /// `Params` of `conv/channel_sums.wgsl`.
    pub(crate) struct ChannelParams {
        channels: u32,
        positions: u32,
        images: u32,
        image: u32,
        channel: u32,
        dy_first: u32,
        out_first: u32,
        x_first: u32,
        alpha_first: u32,
    }
}

params! {
    /// `Params` of `conv/fold.wgsl`.
    pub(crate) struct FoldParams {
        begin: u32,
        end: u32,
        height: u32,
        width: u32,
        padded_height: u32,
        padded_width: u32,
        before_y: u32,
        before_x: u32,
        padded_first: u32,
        dx_first: u32,
    }
}

params! {
    /// `Params` of `conv/gate_gradient.wgsl`.
    pub(crate) struct GateParams {
        begin: u32,
        end: u32,
        half: u32,
        dy_first: u32,
        scale: f32,
    }
}

params! {
    /// `Params` of `conv/snake_gradient.wgsl`.
    pub(crate) struct SnakeParams {
        begin: u32,
        end: u32,
        count: u32,
        channels: u32,
        positions: u32,
        x_first: u32,
        alpha_first: u32,
        d_first: u32,
    }
}

/// `THREADS` of the other shaders in `conv`.
pub(crate) const CHANNEL_THREADS: u64 = 128;
/// And of `conv/fold.wgsl`.
pub(crate) const FOLD_THREADS: u64 = 64;

kernels! {
    CHANNEL_SUMS = "conv/channel_sums" "channel_sums", Some(CHANNEL_THREADS), ChannelParams,
        [0 Read, 1 Write, 2 Read, 3 Read];
    GATE_GRADIENT = "conv/gate_gradient" "gate_gradient", Some(CHANNEL_THREADS), GateParams, [0 Read, 1 Write];
    SNAKE_GRADIENT = "conv/snake_gradient" "snake_gradient", Some(CHANNEL_THREADS), SnakeParams,
        [0 Read, 1 Read, 2 Write];
    FOLD = "conv/fold" "fold", Some(FOLD_THREADS), FoldParams, [0 Read, 5 Write];
    CONV_WHOLE = "product/conv" "conv", None, ConvParams,
        [0 Read, 1 Read, 2 Read, 3 Read, 4 Read, 5 Write, 6 Write, 7 Read];
    CONV_PARTIAL = "product/conv" "conv_partial", None, ConvParams, [0 Read, 1 Read, 4 Read, 7 Read, 8 Write];
    CONV_FINISH = "product/conv" "conv_finish", Some(FINISH_THREADS), ConvParams,
        [2 Read, 3 Read, 4 Read, 5 Write, 6 Write, 7 Read, 8 Write];
}

/// How the operands lie.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Pass {
    /// c of a: a convolution.
    Windows,
    /// a of c: a transposed one.
    Phases,
    /// The gradient of v.
    Taps,
}

/// How v is read: its file, and whether four elements at a time.
pub(crate) const READS: [&str; 3] = ["product/b_scalar", "product/b_quad", "product/b_pair"];

impl Pass {
    /// What rows, columns and steps of k are made of.
    pub fn axes(self) -> [usize; 3] {
        match self {
            Pass::Windows => [IMAGES, WIDE, CHANNELS],
            Pass::Phases => [IMAGES, CHANNELS, WIDE],
            Pass::Taps => [CHANNELS, WIDE, IMAGES],
        }
    }

    pub fn module(self, family: Family, read: &'static str, result: &'static str) -> Module {
        let (view, c) = match self {
            Pass::Windows => ("product/view_windows", "product/c_windows"),
            Pass::Phases => ("product/view_phases", "product/c_phases"),
            Pass::Taps => ("product/view_taps", "product/c_taps"),
        };
        let module = Module::new("product/conv").fill("view", view).fill("c", c).fill("b", read).fill("result", result);
        let module = module.fill("params", "product/params_windows").fill("family", family.file());
        if self == Pass::Taps { module.fill("partials", "product/partials_plain") } else { module }
    }

    /// Bytes of a partial sum.
    pub fn partial_bytes(self) -> u64 {
        if self == Pass::Taps { 4 } else { PARTIAL_BYTES }
    }
}

/// The modules of [`CHANNEL_SUMS`], [`GATE_GRADIENT`] and [`SNAKE_GRADIENT`].
pub(crate) const CHANNEL_MODULE: Module = Module::new("conv/channel_sums");
pub(crate) const GATE_MODULE: Module = Module::new("conv/gate_gradient");
pub(crate) const SNAKE_MODULE: Module = Module::new("conv/snake_gradient");

/// The module of [`FOLD`] for a dx of such a type.
pub(crate) fn fold_module(dx: DType) -> Module {
    Module::new("conv/fold").fill("result", if dx == DType::F32 { RESULTS[0] } else { RESULTS[1] })
}

/// Every module.
pub(crate) fn modules() -> Vec<Module> {
    let families = [Family::Tile, Family::Subgroup].into_iter();
    let windows = families.clone().flat_map(|family| {
        READS.into_iter().flat_map(move |read| RESULTS.map(|result| Pass::Windows.module(family, read, result)))
    });
    // Elsewhere neighbours of the product lie apart.
    let others = families.flat_map(|family| [Pass::Phases, Pass::Taps].map(|pass| (family, pass)));
    let others = others.flat_map(|(family, pass)| RESULTS[..2].iter().map(move |r| pass.module(family, READS[0], r)));
    let narrow = RESULTS.map(|result| Pass::Windows.module(Family::Narrow, READS[0], result)).into_iter();
    let narrow = narrow.chain(RESULTS[..2].iter().map(|r| Pass::Phases.module(Family::Narrow, READS[0], r)));
    let folds = [DType::F32, DType::F16].map(fold_module);
    let own = [CHANNEL_MODULE, GATE_MODULE, SNAKE_MODULE].into_iter().chain(folds);
    own.chain(windows).chain(others).chain(narrow).collect()
}
