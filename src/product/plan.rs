//! How a product is cut, by numbers alone: windows of rows and columns, pieces of k.
use super::selection::{Problem, Selection};
use super::shape::{BK, TileShape};
use super::tile::Tile;
use crate::choose::Traits;
use crate::product::epilogue::{FINISH_THREADS, ProductWindow};
use crate::windows::{Capacities, MAX_ITERATIONS, can_be_added_up, windows};
use crate::{Error, LimitError};

/// Bytes of a partial sum.
pub(crate) const PARTIAL_BYTES: u64 = 8;

/// What a plan depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProductFacts {
    pub problem: Problem,
    /// Bytes of an element of the widest tensor shaped as C.
    pub c_bytes: u64,
    /// Whether cooperative matrices can do it.
    pub cooperative: bool,
    /// Bytes that one step of k needs in a binding of the epilogue, if any.
    pub bytes_per_step: u64,
    /// Whether sums of squares are kept beside the partial sums of C: one for each column and split.
    pub column_sums: bool,
    /// The same of the rows of A: one for each row and split.
    pub row_sums: bool,
    /// Whether all of A, B and C is known to fit bindings.
    pub bound: bool,
    /// Whether an operand is read through a view, whose rows and elements have places to be kept.
    pub gathered: bool,
}

/// How a product is cut: steps of rows, columns and k that one dispatch takes, and the length of a split if the sum is
/// split.
#[derive(Debug)]
pub(crate) struct ProductPlan {
    pub tile: TileShape,
    pub rows: u64,
    pub columns: u64,
    pub split_length: Option<u64>,
    /// Splits in one dispatch.
    pub split_step: u64,
}

/// A or B in numbers.
struct OperandFacts {
    along_k: bool,
    /// Its elements that a binding holds.
    elements: u64,
    /// Of the product, not of the matrix as it is stored.
    rows: u64,
    depth: u64,
}

impl OperandFacts {
    /// Rows of the product, with `steps` of k each, that a binding holds.
    fn rows_in_binding(&self, steps: u64) -> u64 {
        let &OperandFacts { along_k, elements, rows, depth } = self;
        if along_k {
            if steps > elements { 0 } else { ((elements - steps) / depth.max(1) + 1).min(rows) }
        } else {
            elements.saturating_sub(steps.saturating_sub(1) * rows).min(rows)
        }
    }

    /// Steps of k that a binding holds together with all the rows (k along the columns), or with one row (k along the
    /// rows).
    fn steps_in_binding(&self) -> u64 {
        let &OperandFacts { along_k, elements, rows, .. } = self;
        if along_k { elements } else { (elements.saturating_sub(rows) / rows + 1).max(1) }
    }

    /// Where k lies along the columns, windows of k keep the rows whole: the other way round they would be many.
    fn has_to_be_cut(&self, fitting: u64) -> bool {
        fitting == 0 || (!self.along_k && fitting < self.rows)
    }
}

impl ProductFacts {
    fn operands(&self, capacities: Capacities) -> [OperandFacts; 2] {
        let Problem { along_k, dtypes, size: [rows, columns, depth] } = self.problem;
        let elements = dtypes.map(|dtype| capacities.bound(dtype.size()));
        [(0, rows), (1, columns)].map(|(i, rows)| {
            let (along_k, elements) = (along_k[i], elements[i]);
            OperandFacts { along_k, elements, rows, depth }
        })
    }

    /// Rows and columns of C for one dispatch: those that fit the bindings with `steps` of k each.
    fn fitting(&self, capacities: Capacities, steps: u64) -> (u64, u64) {
        let [a, b] = self.operands(capacities);
        let (rows, columns) = (a.rows_in_binding(steps), b.rows_in_binding(steps));
        let c = capacities.bound(self.c_bytes);
        // What an epilogue knows of each row or column: factors of the norms take most.
        let each = capacities.bound(16);
        let columns = columns.min(c).min(each);
        (rows.min(c.saturating_sub(columns) / self.problem.size[1] + 1).min(each), columns)
    }
}

impl ProductPlan {
    /// `selection`: what is asked for; the table says the rest.
    pub fn new(
        facts: &ProductFacts,
        traits: Traits,
        capacities: Capacities,
        selection: Selection,
    ) -> Result<ProductPlan, Error> {
        let Problem { along_k, size: [_, columns, depth], .. } = facts.problem;
        let partial_sums = capacities.partial_sums(PARTIAL_BYTES);
        let (tile, split_length) = match selection.tile {
            Some(tile) => (tile, selection.split_length),
            None => {
                let (tile, length) = Tile::choose(traits, facts.cooperative, &facts.problem);
                // The table's pieces only where each has a place for a row of tiles.
                let fits = |&length: &u32| {
                    let sums = depth.div_ceil(length.into()) * (tile.grid(traits, along_k[1], 1, 1).1 + 1);
                    sums <= partial_sums
                };
                (tile, selection.split_length.or(length.filter(fits)))
            }
        };
        let tile = tile.shape(traits, along_k[1]).for_columns(columns);
        let tile = tile.for_registers(traits, facts.gathered, along_k == [false; 2]);
        let groups = capacities.groups;
        let capacities = if facts.bound { Capacities { binding: u64::MAX, ..capacities } } else { capacities };
        let epilogue_steps = capacities.bound(facts.bytes_per_step);
        let (rows, columns) = facts.fitting(capacities, depth);
        let [a, b] = facts.operands(capacities);
        // Sums of squares of rows that are formed again take a tenth more at most.
        let longest = tile.max_length();
        let longest = if facts.row_sums { longest * 9 / 10 / BK * BK } else { longest };
        // A sum of nothing, as over an empty batch, has no pieces, however large the result is.
        let whole = depth == 0
            || (split_length.is_none()
                && depth <= longest.min(epilogue_steps)
                && !a.has_to_be_cut(rows)
                && !b.has_to_be_cut(columns));
        let (splits, mut plan) = if whole {
            (1, ProductPlan { tile, rows, columns, split_length: None, split_step: 1 })
        } else {
            let steps = a.steps_in_binding().min(b.steps_in_binding()).min(epilogue_steps);
            let longest = longest.min(steps / BK * BK).max(BK);
            let even = depth.div_ceil(depth.div_ceil(longest).max(1)).next_multiple_of(BK);
            let wanted = split_length.map(|length| u64::from(length).next_multiple_of(BK));
            let split_length = wanted.unwrap_or(even).min(longest);
            let splits = depth.div_ceil(split_length);
            let in_work = capacities.work(tile.rows() * tile.columns() * split_length);
            let split_step = (steps / split_length).min(in_work).clamp(1, splits);
            let (rows, columns) = facts.fitting(capacities, (split_step * split_length).min(depth));
            (splits, ProductPlan { tile, rows, columns, split_length: Some(split_length), split_step })
        };
        let too_large = |what, size, limit| Err(LimitError::TooLarge { what, size, limit }.into());
        if plan.rows == 0 || plan.columns == 0 {
            // Steps of k that lie apart by a row of the matrix: those that a tile takes at once have to fit.
            let rows = [&a, &b]
                .map(|operand| if operand.along_k { 0 } else { operand.rows * capacities.binding / operand.elements });
            return too_large("16 rows of a matrix in bytes", BK * rows[0].max(rows[1]), capacities.binding);
        }
        if !can_be_added_up(splits * (1 + u64::from(facts.row_sums)), 1) {
            return too_large("splits of a sum", splits, MAX_ITERATIONS / 2);
        }
        // Windows of whole tiles, as long as there is one.
        let in_tiles = |count: u64, size: u64| if count < size { count.max(1) } else { count / size * size };
        let steps = if whole { depth } else { plan.split_step * plan.split_length.unwrap_or(0) }.max(1);
        let in_work = |work: u64, size: u64| in_tiles(capacities.work(work).max(size), size);
        plan.columns = plan.columns.min(groups * tile.columns()).min(in_work(tile.rows() * steps, tile.columns()));
        let tiles_n = plan.columns.div_ceil(tile.columns());
        plan.rows = plan.rows.min((groups / tiles_n).max(1) * tile.rows());
        plan.rows = plan.rows.min(in_work(tiles_n * tile.columns() * steps, tile.rows()));
        if plan.split_length.is_some() {
            // Sums of squares of rows are one column more.
            let of_rows = u64::from(facts.row_sums);
            let beside = u64::from(facts.column_sums).max(of_rows);
            let rows = plan.rows.min(tile.rows());
            let columns = (partial_sums / (splits * (rows + beside))).saturating_sub(of_rows);
            plan.columns = plan.columns.min(in_tiles(columns, tile.columns()));
            plan.rows = plan.rows.min((groups * FINISH_THREADS / plan.columns).max(1));
            let rows = (partial_sums / (splits * (plan.columns + of_rows))).saturating_sub(beside);
            plan.rows = plan.rows.min(in_tiles(rows, tile.rows()));
            if splits * (plan.columns + of_rows) * (plan.rows + beside) > partial_sums {
                return too_large("partial sums", splits * (1 + beside), partial_sums);
            }
            let tiles = plan.rows.div_ceil(tile.rows()) * plan.columns.div_ceil(tile.columns());
            plan.split_step = plan.split_step.min((groups / tiles).max(1));
        }
        Ok(plan)
    }

    /// The windows of rows and columns of a product of this size.
    pub fn windows(&self, [rows, columns, depth]: [u64; 3]) -> impl Iterator<Item = ProductWindow> {
        let row_step = self.rows;
        windows(columns, self.columns).flat_map(move |(column, columns)| {
            windows(rows, row_step).map(move |(row, rows)| ProductWindow { row, rows, column, columns, k: 0, depth })
        })
    }

    pub fn tiles(&self, window: &ProductWindow) -> u64 {
        window.rows.div_ceil(self.tile.rows()) * window.columns.div_ceil(self.tile.columns())
    }

    /// Multiply-adds of a dispatch.
    pub fn work(&self, window: &ProductWindow) -> u64 {
        self.tiles(window) * self.tile.rows() * self.tile.columns() * window.depth.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::choose::{APPLE_REGISTERS, Kind, QUALCOMM_REGISTERS};

    const GPU: Traits = Traits {
        kind: Kind::Gpu,
        integrated: false,
        subgroup: None,
        workgroup_bytes: 32 << 10,
        registers: 255,
        invocations: 256,
        cooperative: [None; 2],
    };
    const LARGE: Capacities = Capacities::LARGE;

    fn facts(along_k: [bool; 2], size: [u64; 3]) -> ProductFacts {
        let problem = Problem { along_k, dtypes: [DType::F32; 2], size };
        ProductFacts {
            problem,
            c_bytes: 4,
            cooperative: false,
            bytes_per_step: 0,
            column_sums: true,
            row_sums: false,
            bound: false,
            gathered: false,
        }
    }

    fn plan(facts: &ProductFacts, capacities: Capacities) -> Result<ProductPlan, Error> {
        ProductPlan::new(facts, GPU, capacities, Selection::default())
    }

    #[test]
    fn a_product_that_fits_is_one_window() {
        let size = [4096, 4096, 512];
        let plan = plan(&facts([true, true], size), LARGE).unwrap();
        assert_eq!((plan.tile.tile, plan.split_length, plan.windows(size).count()), (Tile::Tile128x128, None, 1));
        let window = plan.windows(size).next().unwrap();
        assert_eq!((plan.tiles(&window), plan.work(&window)), (32 * 32, 4096 * 4096 * 512));
    }

    /// `tile128x128` where it has a workgroup for each unit of a large GPU, and 16 steps of k fit workgroup memory.
    #[test]
    fn large_products_are_computed_by_tile128x128() {
        let small_memory = Traits { workgroup_bytes: 16 << 10, ..GPU };
        let tile = |traits, size| {
            let plan = ProductPlan::new(&facts([true, true], size), traits, LARGE, Selection::default()).unwrap();
            plan.tile.tile
        };
        assert_eq!(tile(GPU, [2048, 4096, 4096]), Tile::Tile128x128);
        assert_eq!(tile(small_memory, [2048, 4096, 4096]), Tile::Tile64x64);
        assert_eq!(tile(Traits { registers: APPLE_REGISTERS, ..GPU }, [2048, 4096, 4096]), Tile::Tile128x128);
        assert_eq!(tile(GPU, [1024, 1024, 1024]), Tile::Tile64x64);
        assert_eq!(tile(Traits { integrated: true, ..GPU }, [1024, 1024, 1024]), Tile::Tile128x128);
    }

    /// The shapes for which `tools/isa` shows no spills: [columns of an invocation, steps of k].
    #[test]
    fn few_registers_take_fewer_sums_and_steps() {
        let shape = |registers, along_k, gathered| {
            let facts = ProductFacts { gathered, ..facts(along_k, [512, 512, 512]) };
            let selection = Selection { tile: Some(Tile::Tile64x64), ..Selection::default() };
            let plan = ProductPlan::new(&facts, Traits { registers, ..GPU }, LARGE, selection).unwrap();
            [plan.tile.tn, plan.tile.steps]
        };
        for (registers, layer, dv, conv) in [
            (255, [8, 16], [8, 16], [8, 16]),
            (QUALCOMM_REGISTERS, [8, 16], [8, 16], [8, 8]),
            (APPLE_REGISTERS, [8, 8], [4, 8], [4, 8]),
        ] {
            assert_eq!(shape(registers, [true, true], false), layer);
            assert_eq!(shape(registers, [true, false], false), layer);
            assert_eq!(shape(registers, [false, false], false), dv);
            assert_eq!(shape(registers, [true, true], true), conv);
        }
    }

    /// Every element of C is in one window, and what a window binds fits.
    #[test]
    fn windows_cover_c_and_fit_their_bindings() {
        for along_k in [[true, true], [true, false], [false, false]] {
            for size @ [rows, columns, depth] in [[700, 900, 64], [65, 75, 67], [1, 3000, 500], [300, 2, 1000]] {
                for capacities in [
                    LARGE,
                    Capacities { binding: 1 << 18, groups: 8, ..LARGE },
                    Capacities { binding: 1 << 20, gl: true, ..LARGE },
                ] {
                    let plan = plan(&facts(along_k, size), capacities).unwrap();
                    let windows: Vec<_> = plan.windows(size).collect();
                    let area: u64 = windows.iter().map(|w| w.rows * w.columns).sum();
                    assert_eq!(area, rows * columns, "{along_k:?} {size:?} {capacities:?}");
                    for window in windows {
                        let c = (window.rows - 1) * columns + window.columns;
                        let steps = plan.split_length.map_or(depth, |length| (plan.split_step * length).min(depth));
                        let a = if along_k[0] {
                            (window.rows - 1) * depth + steps
                        } else {
                            (steps - 1) * rows + window.rows
                        };
                        assert!(4 * c.max(a) <= capacities.binding, "{along_k:?} {size:?} {plan:?}");
                        let splits = plan.split_length.map_or(1, |_| plan.split_step);
                        assert!(plan.tiles(&window) * splits <= capacities.groups, "{along_k:?} {size:?} {plan:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn rows_longer_than_a_binding_with_no_room_for_sums_are_refused() {
        let error = plan(&facts([true, true], [1, 1, 1 << 31]), Capacities { binding: 256, ..LARGE }).unwrap_err();
        assert!(matches!(error, Error::Limit(LimitError::TooLarge { .. })), "{error}");
    }
}
