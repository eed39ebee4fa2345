//! How what is done to each element is cut, likewise.
use bytemuck::Zeroable;

use crate::choose::Facts;
use crate::contract::Layout;
use crate::weight::item::{Cut, KEEPS, Kind, Params, Part, THREADS, WHOLE, flag};
use crate::weight::sums::{Problem, SLACK, at, base};
use crate::windows::windows;
use crate::{Error, LimitError};

/// What becomes of each element.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Norms {
    /// It does not depend on norms.
    Ignored,
    Read,
}

/// Something done to each element.
pub(crate) fn rescale(facts: Facts, problem: &Problem, norms: Norms) -> Result<Vec<Cut>, Error> {
    let Facts { traits, capacities } = facts;
    let Layout { outer, kept, inner } = match norms {
        Norms::Read => problem.layout,
        Norms::Ignored => {
            let Layout { outer, kept, inner } = problem.layout;
            Layout { outer: 1, kept: 1, inner: outer * kept * inner }
        }
    };
    let total = outer * kept * inner;
    if total == 0 {
        return Ok(vec![]);
    }
    let unit = problem.unit;
    let target = problem.target.unwrap_or_else(|| traits.elements_of_an_item(total));
    let norms_in_binding = capacities.bound(problem.norm_bytes);
    let all_norms = kept <= norms_in_binding;
    if !all_norms && problem.target.is_some() && outer > 1 {
        let (size, limit) = (kept * problem.norm_bytes, capacities.binding);
        return Err(LimitError::TooLarge { what: "scales in a binding in bytes", size, limit }.into());
    }
    // Windows start and end with whole units, but where norms do.
    let in_binding = (capacities.binding - if all_norms { 0 } else { SLACK }) / problem.widest;
    let limits = capacities.step().at_most(in_binding).work(1);
    let shape = Shape { kept, inner, whole: kept == 1 || inner.is_multiple_of(unit), all_norms };
    let row = kept * inner;
    if all_norms && kept > 1 && inner.is_multiple_of(unit) && inner / unit >= traits.least_units_along() {
        return Ok(along(facts, problem, shape, target, total, limits.get()));
    }
    if all_norms && kept > 1 && outer > 1 && row.is_multiple_of(unit) {
        let repeats = THREADS.div_ceil(row / unit);
        if outer >= 4 * repeats && repeats * row <= limits.get() {
            return Ok(down(facts, problem, shape, repeats * row, total, limits.get()));
        }
    }
    // Anywhere: items of `target` elements.
    let each = (target / unit).next_multiple_of(THREADS) * unit;
    let most = limits.at_most(capacities.groups.saturating_mul(each)).get() / 8 * 8;
    // Where their scales do not fit one binding, a window holds neighbouring norms only.
    let (slab, most) = if all_norms {
        (total, most)
    } else {
        (if outer > 1 { row } else { total }, most.min((norms_in_binding - 2).saturating_mul(inner)).max(8) / 8 * 8)
    };
    let mut cuts = vec![];
    for slab_first in (0..total / slab).map(|i| i * slab) {
        for (e, count) in windows(slab, most) {
            let (begin, first) = base(problem, slab_first + e);
            let (j, of_window, position) = if all_norms {
                (0, kept, begin % row)
            } else {
                let j = e / inner;
                // Modulo 2^32: the first unit may begin before the first of these norms.
                (j, (e + count - 1) / inner - j + 1, (e - j * inner).wrapping_sub(first))
            };
            let length = first + count;
            cuts.push(Cut {
                params: Params {
                    count: length.div_ceil(each) as u32,
                    across: length.div_ceil(each) as u32,
                    each: each as u32,
                    all: length as u32,
                    length: each as u32,
                    stride: length as u32,
                    step: traits.run(THREADS) as u32,
                    inner: inner as u32,
                    kept: of_window as u32,
                    position: position as u32,
                    more_places: at(first),
                    flags: flag(shape.whole, WHOLE) | flag(kept == 1, KEEPS),
                    ..Params::zeroed()
                },
                run_bits: traits.run(THREADS).ilog2(),
                elements: Part::new(begin, length),
                norms: Part::new(j, of_window),
                work: count,
                ..Cut::none(Kind::Rescale, problem.unit)
            });
        }
    }
    Ok(cuts)
}

/// A weight to be rescaled.
#[derive(Clone, Copy)]
struct Shape {
    kept: u64,
    inner: u64,
    /// Whether all elements of a unit have one norm.
    whole: bool,
    all_norms: bool,
}

/// Items within rows of one norm each.
fn along(facts: Facts, problem: &Problem, shape: Shape, target: u64, total: u64, most: u64) -> Vec<Cut> {
    debug_assert!(shape.all_norms && shape.whole);
    let Facts { traits, capacities } = facts;
    let Shape { kept, inner, .. } = shape;
    let unit = problem.unit;
    let across = inner.div_ceil(target.max(unit));
    let each = inner.div_ceil(across).next_multiple_of(unit);
    let across = inner.div_ceil(each);
    // Whole rows in a window, or windows within each row.
    let rows = (most / inner).min(capacities.groups / across);
    let windows: Vec<_> = if rows > 0 {
        windows(total / inner, rows).map(|(row, count)| (row * inner, count, inner)).collect()
    } else {
        let most = most.min(capacities.groups.saturating_mul(each)) / unit * unit;
        let in_row = |row: u64| windows(inner, most).map(move |(e, count)| (row * inner + e, 1, count));
        (0..total / inner).flat_map(in_row).collect()
    };
    let cut_of = |(e, rows, length): (u64, u64, u64)| {
        let across = length.div_ceil(each);
        Cut {
            params: Params {
                count: (rows * across) as u32,
                across: across as u32,
                each: each as u32,
                all: (rows * length) as u32,
                length: each as u32,
                stride: length as u32,
                step: traits.run(THREADS) as u32,
                inner: inner as u32,
                kept: kept as u32,
                position: (e % (kept * inner)) as u32,
                flags: WHOLE | KEEPS,
                ..Params::zeroed()
            },
            run_bits: traits.run(THREADS).ilog2(),
            elements: Part::new(e, rows * length),
            norms: Part::new(0, kept),
            work: rows * length,
            ..Cut::none(Kind::Rescale, problem.unit)
        }
    };
    windows.into_iter().map(cut_of).collect()
}

/// Items that go down the columns of a matrix with rows of `row` elements, after which the norms repeat.
fn down(facts: Facts, problem: &Problem, shape: Shape, row: u64, total: u64, most: u64) -> Vec<Cut> {
    let Facts { traits, capacities } = facts;
    let Shape { kept, inner, whole, .. } = shape;
    let unit = problem.unit;
    let units = row / unit;
    let across = units.div_ceil(THREADS);
    let each = units.div_ceil(across);
    let across = units.div_ceil(each);
    let enough = total / unit / (traits.enough_groups() * THREADS);
    let rows_each = enough.clamp(4, traits.most_rows_down()).min((most / row).max(1));
    let stride = rows_each * row;
    let step = (most / stride).max(1).min(capacities.groups / across) * stride;
    let cut_of = |(e, count): (u64, u64)| Cut {
        params: Params {
            count: (count.div_ceil(stride) * across) as u32,
            across: across as u32,
            each: (each * unit) as u32,
            all: count as u32,
            length: stride as u32,
            stride: stride as u32,
            step: units as u32,
            inner: inner as u32,
            kept: kept as u32,
            position: (e % (kept * inner)) as u32,
            flags: KEEPS | flag(whole, WHOLE),
            ..Params::zeroed()
        },
        run_bits: THREADS.ilog2(),
        elements: Part::new(e, count),
        norms: Part::new(0, kept),
        work: count,
        ..Cut::none(Kind::Rescale, problem.unit)
    };
    windows(total, step).map(cut_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choose::{Kind as DeviceKind, Traits};
    use crate::windows::Capacities;

    fn facts(kind: DeviceKind, bytes: u64) -> Facts {
        let capacities = Capacities {
            binding: bytes,
            groups: 1 << 20,
            whole_binding: bytes + 256,
            alignment: 256,
            apart: 256,
            groups_along: 65_535,
            gl: false,
        };
        let traits = Traits {
            kind,
            integrated: false,
            subgroup: None,
            workgroup_bytes: 16 << 10,
            registers: 255,
            invocations: 256,
            cooperative: [None; 2],
        };
        Facts { traits, capacities }
    }

    /// The elements that an item's invocations take, as `rescale.wgsl` does.
    fn elements_of(cut: &Cut, words: [u32; 8]) -> Vec<u64> {
        let [begin, end, _, _, _, step, width, run_bits] = words.map(u64::from);
        let unit = cut.unit;
        let first = begin.div_ceil(unit);
        let stop = (end / unit).max(first);
        let (run, mut all) = (1 << run_bits, vec![]);
        for t in 0..width.min(THREADS) {
            let piece = (stop - first).div_ceil(THREADS) * run;
            let own = first + t / run * piece;
            let own_end = if run == THREADS { stop } else { (own + piece).min(stop) };
            let units = (own + t % run..own_end).step_by(step as usize);
            all.extend(units.flat_map(|u| u * unit..(u + 1) * unit));
        }
        all.extend((begin..(first * unit).min(end)).chain((stop * unit).max(begin)..end));
        all.iter().map(|e| e + cut.elements.first).collect()
    }

    #[test]
    fn items_take_each_element_once_and_know_its_norm() {
        for (outer, kept, inner) in [(1, 37, 17), (1, 8, 4096), (5, 3, 64), (9, 12, 1), (300, 7, 4), (1, 1, 1001)] {
            for (kind, bytes) in [(DeviceKind::Gpu, 1 << 20), (DeviceKind::Software, 1 << 20), (DeviceKind::Gpu, 7936)]
            {
                for unit in [4, 8] {
                    let layout = Layout { outer, kept, inner };
                    let problem =
                        Problem { layout, widest: 4, unit, norm_bytes: 8, sum_bytes: 8, target: None, first_sum: 0 };
                    let mut taken = vec![0; (outer * kept * inner) as usize];
                    for cut in rescale(facts(kind, bytes), &problem, Norms::Read).unwrap() {
                        assert!(cut.elements.count * 4 <= bytes, "{layout:?} {cut:?}");
                        for item in (0..cut.params.count.into()).map(|id| cut.item(id)) {
                            let [inner, kept, position] = [2, 3, 4].map(|i| item.words[i]);
                            for e in elements_of(&cut, item.words) {
                                taken[e as usize] += 1;
                                let own = position.wrapping_add((e - cut.elements.first) as u32);
                                let norm = cut.norms.first + u64::from(own / inner % kept);
                                assert_eq!(norm, e / layout.inner % layout.kept, "{layout:?} {cut:?}");
                            }
                        }
                    }
                    assert!(taken.iter().all(|&times| times == 1), "{layout:?} {kind:?} {bytes} {unit}");
                }
            }
        }
    }
}
