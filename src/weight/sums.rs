//! How sums are cut: into dispatches within the limits, and these into items, all in numbers.
use bytemuck::Zeroable;

use crate::choose::{self, Facts, HeldRows, QUAD_WORDS, lanes_for};
use crate::contract::Layout;
use crate::weight::item::{Cut, DIRECT, Kind, Params, Part, THREADS, WHOLE, flag};
use crate::windows::{MAX_ITERATIONS, can_be_added_up, windows};
use crate::{DType, Error, LimitError};

/// The shortest stretch of one weight that is worth a workgroup of its own, in elements.
const SHORTEST_STRETCH: u64 = 16_384;
/// Inner sizes from which stretches before the kept axis are summed up as rows; shorter ones as columns.
const ROW_FROM: u64 = 256;
/// Rows of a column that are added up one after the other, where no limit wants more: of one weight, of a set.
const COLUMN_CHAINS: [u64; 2] = [512, 96];
/// `turns` of the shaders.
const MAX_TURNS: u64 = 32;
/// How often the loops over a stretch go over its elements: in fours, to find the scale, with it, and for its products.
const PASSES: u64 = 4;
/// Pieces of dw that are added up as they are read: an invocation goes through them for each unit that it holds, where
/// products are formed again.
const MOST_PIECES: u64 = 2048;
/// Bytes by which a binding may begin earlier and end later than elements that are no whole units.
pub(super) const SLACK: u64 = 64;

/// What the work on a weight is, in numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Problem {
    pub layout: Layout<u64>,
    /// Bytes of the widest element.
    pub widest: u64,
    /// Elements of a unit.
    pub unit: u64,
    /// Bytes that are written or read for a norm.
    pub norm_bytes: u64,
    /// Bytes of a partial sum.
    pub sum_bytes: u64,
    /// Elements of an item, if the weight is one of a set.
    pub target: Option<u64>,
    /// Partial sums that others have before.
    pub first_sum: u64,
}

/// Dispatches, and the partial sums that they need.
#[derive(Debug)]
pub(crate) struct Plan {
    pub cuts: Vec<Cut>,
    pub sums: u64,
}

/// A window of sums: rows of stretches, or stretches of a row.
struct Stretches {
    direct: bool,
    lanes: u64,
    length: u64,
    splits: u64,
    each: u64,
}

/// The place of the first element in `more_places`.
pub(super) fn at(first: u64) -> u32 {
    (first as u32) << 8
}

/// The first multiple of a unit before element `e`, and how far behind that it is.
pub(super) fn base(problem: &Problem, e: u64) -> (u64, u64) {
    (e / problem.unit * problem.unit, e % problem.unit)
}

/// Norms of a weight, or its sums of products.
pub(crate) fn sums(facts: Facts, problem: &Problem) -> Result<Plan, Error> {
    let Layout { outer, kept, inner } = problem.layout;
    let binding = facts.capacities.binding - SLACK;
    let stretches = stretches(facts, problem);
    let sums_in_binding = binding / problem.sum_bytes;
    let fit = outer * kept * stretches.splits <= sums_in_binding && fits(outer * stretches.splits);
    match outer {
        1 if stretches.splits > 1 && (!fits(stretches.splits) || stretches.splits > sums_in_binding) => {
            Err(too_many(stretches.splits, sums_in_binding.min(THREADS * MAX_ITERATIONS / 2)))
        }
        1 => Ok(rows(facts, problem, &stretches)),
        _ if inner >= ROW_FROM && fit => Ok(rows(facts, problem, &stretches)),
        _ => columns(facts, problem),
    }
}

/// Whether one norm's partial sums can be added up by one workgroup.
fn fits(sums: u64) -> bool {
    can_be_added_up(sums, THREADS)
}

fn too_many(size: u64, limit: u64) -> Error {
    Error::Limit(LimitError::TooLarge { what: "partial sums of one norm", size, limit })
}

fn stretches(Facts { traits, capacities }: Facts, problem: &Problem) -> Stretches {
    let Layout { outer, kept, inner } = problem.layout;
    let all = outer * kept;
    let in_binding = (capacities.binding - SLACK) / problem.widest;
    let units = |length: u64| length.div_ceil(problem.unit);
    let (splits, lanes) = match problem.target {
        None => {
            let useful = inner.div_ceil(SHORTEST_STRETCH).min(traits.enough_groups().div_ceil(all.max(1))).max(1);
            let of_lane = MAX_ITERATIONS / PASSES;
            let least = inner.div_ceil(useful * of_lane).next_power_of_two().min(THREADS);
            let lanes = traits.lanes(all * useful, units(inner)).max(least);
            (useful.max(inner.div_ceil((of_lane * lanes).min(in_binding))), lanes)
        }
        Some(target) => {
            let stretch = traits.stretch_of_a_set(target);
            let most = (2 * stretch).min(in_binding - 8);
            (if inner > most { inner.div_ceil(stretch.min(most)) } else { 1 }, 0)
        }
    };
    let length = if splits > 1 { inner.div_ceil(splits).next_multiple_of(8) } else { inner };
    let splits = inner.div_ceil(length.max(1)).max(1);
    let (lanes, each) = match problem.target {
        None => (lanes, THREADS / lanes),
        Some(target) => {
            let lanes = traits.lanes_of_a_set(length.div_ceil(8));
            let most = traits.rows_of_a_set(target, length).min((in_binding / length.max(1)).max(1));
            (lanes, most.min(MAX_TURNS * (THREADS / lanes)).min((capacities.binding - SLACK) / 16).max(1))
        }
    };
    Stretches { direct: outer == 1 && splits == 1, lanes, length, splits, each }
}

/// Contiguous rows, each in some stretches.
fn rows(facts: Facts, problem: &Problem, stretches: &Stretches) -> Plan {
    let Facts { traits, capacities } = facts;
    let Layout { outer, kept, inner } = problem.layout;
    let &Stretches { direct, lanes, length, splits, each } = stretches;
    let all = outer * kept;
    let whole = length.is_multiple_of(problem.unit) && inner.is_multiple_of(problem.unit);
    let in_binding = (capacities.binding - if whole { 0 } else { SLACK }) / problem.widest;
    let out = if direct { problem.norm_bytes } else { problem.sum_bytes };
    let limits = capacities.step().at_most(in_binding / length.max(1)).bound(out);
    let most = limits.work(length).in_groups(each).get().max(1);
    // (first row, rows, first stretch, stretches side by side)
    let windows: Vec<_> = if splits == 1 {
        windows(all, most).map(|(row, count)| (row, 1, 0, count)).collect()
    } else if most >= splits {
        let in_groups = (capacities.groups / splits.div_ceil(each)).max(1);
        windows(all, (most / splits).min(in_groups)).map(|(row, rows)| (row, rows, 0, splits)).collect()
    } else {
        (0..all).flat_map(|row| windows(splits, most).map(move |(s, count)| (row, 1, s, count))).collect()
    };
    let cuts = windows.into_iter().map(|(row, rows, s, count)| {
        let (begin, first) = base(problem, row * inner + s * length);
        let stride = if splits == 1 || rows == 1 {
            (count * length).min(if splits == 1 { u64::MAX } else { inner - s * length })
        } else {
            inner
        };
        let across = count.div_ceil(each);
        Cut {
            params: Params {
                count: (rows * across) as u32,
                across: across as u32,
                each: each as u32,
                all: count as u32,
                length: length as u32,
                stride: stride as u32,
                more_places: at(first),
                flags: flag(direct, DIRECT) | flag(whole, WHOLE),
                ..Params::zeroed()
            },
            lane_bits: lanes.ilog2(),
            run_bits: traits.run(lanes).ilog2(),
            elements: Part::new(begin, if inner == 0 { 0 } else { first + rows * stride }),
            norms: if direct { Part::new(row, count) } else { Part::default() },
            sums: if direct { Part::default() } else { Part::new(problem.first_sum + row * splits + s, rows * count) },
            work: rows * stride,
            ..Cut::none(Kind::RowSums, problem.unit)
        }
    });
    let mut cuts: Vec<_> = cuts.collect();
    if direct {
        return Plan { cuts, sums: 0 };
    }
    let partial = Partial { first: problem.first_sum, a: outer, a_stride: kept * splits, b: splits };
    cuts.extend(finish(facts, problem, &partial, 0, kept));
    Plan { cuts, sums: all * splits }
}

/// Columns of a matrix of `outer` rows, some norms at a time.
fn columns(facts: Facts, problem: &Problem) -> Result<Plan, Error> {
    let Facts { traits, capacities } = facts;
    let Layout { outer, kept, inner } = problem.layout;
    let stride = kept * inner;
    let binding = capacities.binding - SLACK;
    let in_binding = binding / problem.widest;
    let block = |unit: u64| {
        // A window holds all columns of one weight, or those of an item of a set.
        let width = stride.min(if problem.target.is_some() { THREADS * unit } else { in_binding });
        let [of_one, of_set] = COLUMN_CHAINS;
        let chain = match problem.target {
            None => (outer * stride / unit / (traits.enough_groups() * THREADS)).clamp(16, of_one),
            Some(target) => (target / (THREADS * unit)).clamp(16, of_set),
        };
        let in_window = (in_binding.saturating_sub(width) / stride + 1).max(1);
        let chain = chain.min(in_window).min(outer);
        // Fewer, longer stretches, where not even one norm's partial sums fit a binding otherwise.
        let least = outer.div_ceil((binding / (inner * problem.sum_bytes)).max(1));
        let chain = chain.max(least.min(in_window));
        let splits = outer.div_ceil(chain);
        let norms = kept.min(binding / (splits * inner * problem.sum_bytes)).min(in_binding / inner);
        let norms = if unit > 1 && norms < kept { norms / unit * unit } else { norms };
        let can = norms > 0 && fits(splits * inner) && chain <= MAX_ITERATIONS / 32;
        (can && stride.is_multiple_of(unit)).then_some((unit, chain, splits, norms))
    };
    let Some((unit, chain, splits, in_block)) = block(problem.unit).or_else(|| block(1)) else {
        return Err(too_many(outer * inner, binding / problem.sum_bytes));
    };
    let (mut cuts, mut sums) = (vec![], 0);
    for (j, norms) in windows(kept, in_block) {
        let columns = norms * inner;
        let units = columns.div_ceil(unit);
        let across = units.div_ceil(THREADS);
        let each = units.div_ceil(across);
        let in_window = in_binding.saturating_sub(columns) / stride + 1;
        let side_by_side = (THREADS / each).min((in_window / chain).max(1));
        let step = chain * side_by_side;
        let limits = capacities.step().at_most(in_window).work(columns);
        let most = limits.at_most((capacities.groups / across).saturating_mul(step)).get();
        let step = step.min((most / chain).max(1) * chain);
        for (row, count) in windows(outer, (most / step).max(1) * step) {
            let (begin, first) = base(problem, row * stride + j * inner);
            cuts.push(Cut {
                params: Params {
                    count: (across * count.div_ceil(step)) as u32,
                    across: across as u32,
                    each: (each * unit) as u32,
                    all: columns as u32,
                    length: chain as u32,
                    stride: stride as u32,
                    rows: count as u32,
                    step: step as u32,
                    more_places: at(first),
                    flags: flag(unit > 1, WHOLE),
                    ..Params::zeroed()
                },
                elements: Part::new(begin, first + (count - 1) * stride + columns),
                sums: Part::new(problem.first_sum + sums + row / chain * columns, count.div_ceil(chain) * columns),
                work: count * columns,
                ..Cut::none(Kind::ColumnSums, problem.unit)
            });
        }
        let partial = Partial { first: problem.first_sum + sums, a: splits, a_stride: columns, b: inner };
        cuts.extend(finish(facts, problem, &partial, j, norms));
        sums += splits * columns;
    }
    Ok(Plan { cuts, sums })
}

/// Where the partial sums of norm j lie: first + a_stride * 0 .. a + b * j + 0 .. b.
struct Partial {
    first: u64,
    a: u64,
    a_stride: u64,
    b: u64,
}

/// Norms `j` .. of partial sums, the first of which belongs to norm `j`.
fn finish(facts: Facts, problem: &Problem, partial: &Partial, j: u64, norms: u64) -> Vec<Cut> {
    let Facts { traits, capacities } = facts;
    let &Partial { first, a, a_stride, b } = partial;
    let binding = capacities.binding - SLACK;
    // As many lanes as can add up all of them, plainly and then with exponents.
    let least = (a * b).div_ceil(MAX_ITERATIONS / 2).next_power_of_two();
    let (lanes, turns) = match problem.target {
        None => (traits.lanes(norms, a * b).max(least), 1),
        Some(_) => (lanes_for(a * b).max(least), if a * b > 4096 { 1 } else { 4 }),
    };
    let each = THREADS / lanes * turns;
    let limits = capacities.step().at_most(binding / problem.norm_bytes).work(a * b).in_groups(each);
    // With several outer ones all partial sums are in one binding.
    let limits = if a == 1 { limits.at_most((binding / problem.sum_bytes / b).max(1)) } else { limits };
    let cut_of = |(k, count): (u64, u64)| Cut {
        params: Params {
            count: count.div_ceil(each) as u32,
            across: count.div_ceil(each) as u32,
            each: each as u32,
            all: count as u32,
            length: lanes.ilog2(),
            stride: a_stride as u32,
            rows: a as u32,
            inner: b as u32,
            ..Params::zeroed()
        },
        lane_bits: lanes.ilog2(),
        norms: Part::new(j + k, count),
        sums: Part::new(first + k * b, (a - 1) * a_stride + count * b),
        work: count * a * b,
        ..Cut::none(Kind::FinishSums, problem.unit)
    };
    windows(norms, limits.get()).map(cut_of).collect()
}

/// Norms that are known.
pub(crate) fn known(facts: Facts, problem: &Problem) -> Vec<Cut> {
    let most = (facts.capacities.binding / problem.norm_bytes).min(facts.capacities.groups * THREADS);
    let cut_of = |(j, count): (u64, u64)| Cut {
        params: Params {
            count: count.div_ceil(THREADS) as u32,
            across: count.div_ceil(THREADS) as u32,
            each: THREADS as u32,
            all: count as u32,
            ..Params::zeroed()
        },
        norms: Part::new(j, count),
        work: count,
        ..Cut::none(Kind::KnownNorms, problem.unit)
    };
    windows(problem.layout.kept, most).map(cut_of).collect()
}

/// Norm and rescaling in one dispatch, of rows that a workgroup holds, if that can be. (All tensors are in quads, and
/// of one storage type.)
pub(crate) fn held_rows(facts: Facts, problem: &Problem, dtype: DType) -> Option<Vec<Cut>> {
    let Facts { traits, capacities } = facts;
    let Layout { outer, kept, inner } = problem.layout;
    let quad = choose::quad(dtype);
    if outer != 1 || kept == 0 || !inner.is_multiple_of(quad) {
        return None;
    }
    let quads = inner / quad;
    let HeldRows { lanes, held } = traits.held_rows(kept, quads)?;
    let each = THREADS / lanes;
    let most = capacities.step().bound(inner * problem.widest).bound(4).work(inner).in_groups(each).get();
    let cut_of = |(row, count): (u64, u64)| {
        let (begin, first) = base(problem, row * inner);
        Cut {
            params: Params { more_places: at(first), ..params_of_held(count, each, inner) },
            lane_bits: lanes.ilog2(),
            run_bits: traits.run(lanes).ilog2(),
            held,
            full: quads == lanes * held,
            elements: Part::new(begin, first + count * inner),
            norms: Part::new(row, count),
            work: count * inner,
            ..Cut::none(Kind::HeldRows, problem.unit)
        }
    };
    (most > 0).then(|| windows(kept, most).map(cut_of).collect())
}

/// Both gradients in one dispatch, of rows that a workgroup holds, if that can be. dw is `pieces` tensors, one after
/// another. Of rows that are no whole units dv is f32.
pub(crate) fn held_gradients(facts: Facts, problem: &Problem, pieces: u64, in_words: bool) -> Option<Vec<Cut>> {
    let Facts { traits, capacities } = facts;
    let Layout { outer, kept, inner } = problem.layout;
    let all = kept * inner;
    let whole = inner.is_multiple_of(problem.unit);
    let in_one_binding = pieces == 1 || pieces * all * DType::F32.size() + SLACK <= capacities.binding;
    if outer != 1 || all == 0 || pieces > MOST_PIECES || !in_one_binding || !(whole || in_words) {
        return None;
    }
    let unit = if whole { problem.unit } else { 1 };
    let HeldRows { lanes, .. } = traits.held_rows(kept, inner.div_ceil(unit.min(QUAD_WORDS)))?;
    let each = THREADS / lanes;
    let in_binding = (capacities.binding - if whole { 0 } else { SLACK }) / problem.widest;
    let limits = capacities.step().at_most(in_binding / inner).bound(4).work(inner * pieces);
    let most = limits.in_groups(each).get();
    let cut_of = |(row, count): (u64, u64)| {
        let (begin, first) = base(problem, row * inner);
        Cut {
            params: Params {
                rows: pieces as u32,
                inner: (all / unit) as u32,
                more_places: at(first),
                flags: flag(whole, WHOLE),
                ..params_of_held(count, each, inner)
            },
            lane_bits: lanes.ilog2(),
            run_bits: traits.run(lanes).ilog2(),
            held: (inner / unit).div_ceil(lanes),
            elements: Part::new(begin, first + count * inner),
            norms: Part::new(row, count),
            work: count * inner * pieces,
            ..Cut::none(Kind::HeldGradients, problem.unit)
        }
    };
    (most > 0).then(|| windows(kept, most).map(cut_of).collect())
}

/// Of `count` whole rows of `length`, `each` of which a workgroup holds.
fn params_of_held(count: u64, each: u64, length: u64) -> Params {
    Params {
        count: count.div_ceil(each) as u32,
        across: count.div_ceil(each) as u32,
        each: each as u32,
        all: count as u32,
        length: length as u32,
        stride: (count * length) as u32,
        ..Params::zeroed()
    }
}
