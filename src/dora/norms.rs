//! Norms of W0 + s·B·A. Shader: `dora/norms.wgsl`.
use super::DoraWeight;
use crate::binding::{View, bind, offsets};
use crate::contract::stored_as;
use crate::kernel::{Constants, kernels, params};
use crate::linear::backward::epilogue::GradientEpilogue;
use crate::linear::backward::record::gradient_product;
use crate::linear::epilogue::{LinearEpilogue, NormSource};
use crate::memory::Scratch;
use crate::product::record::{Operand, Product, multiply};
use crate::product::selection::Selection;
use crate::record::Dispatch;
use crate::source::Module;
use crate::windows::{MAX_ITERATIONS, windows};
use crate::{Activation, Eps, Error, LimitError, Recorder, Tensor};

params! {
    struct DoraParams {
        rows: u32,
        columns: u32,
        rank: u32,
        stride: u32,
        offsets: u32,
        more_offsets: u32,
        scaling: f32,
        policy: u32,
        eps: f32,
    }
}

kernels! {
    DORA_NORMS = "dora/norms" "dora_norms", Some(THREADS), DoraParams,
        [0 Read, 1 Read, 2 Read, 3 Read, 4 Read, 5 Read, 6 Write];
}

/// `THREADS` of `numbers/lanes.wgsl`.
const THREADS: u64 = 64;
pub(crate) const MODULE: Module = Module::new("dora/norms");
/// Norms of W0 at which the shader does not divide by them: LEAST of `dora/norms.wgsl`.
const LEAST: Eps = Eps::Clamp(1e-12);

/// Records the effective norms of a checked weight under a policy into `norms`, f32. Takes `Scratch::Norms` from its
/// [`first_free`] on, `Factors` and `Scales`.
pub(crate) fn record_norms(
    ops: &mut Recorder<'_, '_>,
    weight: &DoraWeight<'_>,
    eps: Eps,
    norms: &Tensor,
) -> Result<(), Error> {
    let &DoraWeight { base, a, b, scaling, base_norms, .. } = weight;
    let (rows, columns, rank) = weight.sizes();
    if rows == 0 {
        return Ok(());
    }
    let lanes = lanes(columns, rank)?;
    // A·W0ᵀ by columns divided by the norms of W0.
    let dots = ops.scratch(Scratch::Factors, rank * rows * 4)?;
    let dots = Tensor::in_scratch(ops.gpu(), dots, 0, &[rank as usize, rows as usize]);
    let own = ops.scratch(Scratch::Norms, 3 * rows * 4)?;
    let own = Tensor::in_scratch(ops.gpu(), own, first_free(rows), &[rows as usize]);
    let policy = (LEAST.code(), LEAST.value());
    let epilogue = LinearEpilogue {
        norm: if base_norms.is_some() { NormSource::Given } else { NormSource::Fused },
        norms_in: base_norms.map(View::of),
        g: None,
        bias: None,
        y: &dots,
        norms_out: if base_norms.is_some() { None } else { Some(&own) },
        u: None,
        onto: None,
        policy,
        activation: Activation::None,
        unit_rows: false,
        columns: rows,
    };
    let product = Product {
        a: Operand { tensor: a, along_k: true },
        b: Operand { tensor: base, along_k: true },
        c_bytes: 4,
        rows: rank,
        columns: rows,
        depth: columns,
        selection: Selection::default(),
        epilogue: &epilogue,
    };
    multiply(ops, &product)?;
    let gram = gram(ops, weight)?;

    let capacities = ops.facts().capacities;
    let most = capacities
        .step()
        .bound(columns * base.dtype().size())
        .bound(rank * b.dtype().size())
        .in_groups(THREADS / lanes)
        .work(columns * (rank + 1))
        .at_most(capacities.bound(4).saturating_sub((rank - 1) * rows))
        .get();
    let whole = capacities.bound(a.dtype().size()).min(capacities.bound(4) / rank * columns);
    if most == 0 || rank * columns > whole || rank * rank > capacities.bound(4) {
        let (what, size) = ("A, its products with W0 or a row of W0 in bytes", 4 * rank * rows.max(columns));
        return Err(LimitError::TooLarge { what, size, limit: capacities.binding }.into());
    }
    let mut constants: Constants = vec![];
    constants.extend(stored_as("BASE_DTYPE", Some(base)));
    constants.extend(stored_as("A_DTYPE", Some(a)));
    constants.extend(stored_as("B_DTYPE", Some(b)));
    let base_norms = base_norms.unwrap_or(&own);
    for (first, count) in windows(rows, most) {
        let (w0, w0_at) = bind(capacities, Some(base), first * columns, count * columns);
        let (a, a_at) = bind(capacities, Some(a), 0, rank * columns);
        let (b, b_at) = bind(capacities, Some(b), first * rank, count * rank);
        let (dots, dots_at) = bind(capacities, Some(&dots), first, (rank - 1) * rows + count);
        let (gram, gram_at) = bind(capacities, Some(&gram), 0, rank * rank);
        let (base_norms, base_norms_at) = bind(capacities, Some(base_norms), first, count);
        let (norms, norms_at) = bind(capacities, Some(norms), first, count);
        ops.dispatch(&Dispatch {
            kernel: &DORA_NORMS,
            module: MODULE,
            constants: &constants,
            buffers: &[w0, a, b, dots, gram, base_norms, norms],
            params: DoraParams {
                rows: count as u32,
                columns: columns as u32,
                rank: rank as u32,
                stride: rows as u32,
                offsets: offsets([w0_at, a_at, b_at, dots_at]),
                more_offsets: offsets([gram_at, base_norms_at, norms_at, lanes.ilog2()]),
                scaling,
                policy: eps.code(),
                eps: eps.value(),
            },
            groups: count.div_ceil(THREADS / lanes),
            work: count * columns * (rank + 1),
        })?;
    }
    Ok(())
}

/// Invocations that a row takes: few, since sums over many are most of the work where no row has to be formed, but as
/// many as it takes where one is.
fn lanes(columns: u64, rank: u64) -> Result<u64, Error> {
    let iterations = |lanes: u64| rank.div_ceil(lanes) * rank + 2 * columns.div_ceil(4 * lanes) * (rank + 1) + lanes;
    let lanes = [8, 16, 32].into_iter().find(|&lanes| iterations(lanes) <= MAX_ITERATIONS).unwrap_or(THREADS);
    let (size, limit) = (iterations(lanes), MAX_ITERATIONS);
    if size > limit { Err(LimitError::TooLarge { what: "steps over a row", size, limit }.into()) } else { Ok(lanes) }
}

/// Where [`record_norms`] puts the norms of W0 in `Scratch::Norms`, in bytes: behind those of two other sets.
fn first_free(rows: u64) -> u64 {
    2 * rows * 4
}

/// A·Aᵀ in `Scratch::Scales`.
pub(crate) fn gram(ops: &mut Recorder<'_, '_>, weight: &DoraWeight<'_>) -> Result<Tensor, Error> {
    let (_, columns, rank) = weight.sizes();
    let memory = ops.scratch(Scratch::Scales, rank * rank * 4)?;
    let gram = Tensor::in_scratch(ops.gpu(), memory, 0, &[rank as usize; 2]);
    let along_k = Operand { tensor: weight.a, along_k: true };
    let epilogue = GradientEpilogue { out: Some(&gram), ..GradientEpilogue::plain(false) };
    gradient_product(ops, [along_k; 2], [rank, rank, columns], Selection::default(), &epilogue)?;
    Ok(gram)
}
