// Products whose sums over k are split: partial sums of each split, then their sum in order.
// slot family = product/tile
// slot partials = product/partials_wide

const FINISH_THREADS = 64u;

// Where a workgroup computes: a split of a tile.
struct Piece {
    row: u32,    // the first ones of the tile
    column: u32,
    split: u32,  // of all dispatches
    k_first: u32,
    k_end: u32,  // k_first where there is none
}

fn piece_of(group: u32) -> Piece {
    let split = group / tile_count();
    let origin = tile_origin(group % tile_count());
    let k_first = min(split_begin(split), p.depth);
    return Piece(origin.x, origin.y, p.split_first + split, k_first, min(k_first + p.split_length, p.depth));
}

// Writes a block as partial sums of a split; the block's first element is at (row, column). Bits of its sums that left
// the safe range.
fn put_partial_block(block: u32, split: u32, row: u32, column: u32) -> u32 {
    take_block(block);
    var all_found = 0u;
    for (var q = 0u; q < QUADS; q += 1u) {
        var found = 0u;
        for (var i = 0u; i < BLOCK; i += 1u) {
            found |= look_at(i, q);
            let four = sum_at(i, q);
            for (var c = 0u; c < 4u; c += 1u) {
                let n = column + STEP * q + c;
                if row + i < p.rows && n < p.columns {
                    put_partial(partial_place(split, row + i, column_of_all(n)), Wide(four[c], 0));
                }
            }
        }
        unsafe_bits[q] = found;
        all_found |= found;
    }
    return all_found;
}

// Computes a piece and writes the invocation's partial sums. With `exact`, those that left the safe range are formed
// again.
fn put_partial_sums(piece: Piece, t: u32, exact: bool) {
    product(piece.row, piece.column, piece.k_first, piece.k_end, t);
    let row0 = piece.row + own_row(t);
    let column = piece.column + own_column(t);
    var found = 0u;
    for (var block = 0u; block < TM / BLOCK; block += 1u) { // TM / BLOCK iterations
        found |= put_partial_block(block, piece.split, row0 + block * BLOCK, column);
    }
    if !exact {
        return;
    }
    for (var block = first_block(found); block < TM / BLOCK; block += 1u) { // TM / BLOCK iterations
        let row = row0 + block * BLOCK;
        if TM > BLOCK {
            take_block(block);
            look_at_all();
        }
        var redo = elements_to_redo(row, column, 0u, piece.k_first, piece.k_end);
        while any_of(redo) { // at most BLOCK * TN iterations
            let at = lowest(redo);
            redo = without_lowest(redo);
            let sum = exact_dot(row + at.x, column + at.y, piece.k_first, piece.k_end);
            put_partial(partial_place(piece.split, row + at.x, column_of_all(column + at.y)), sum);
        }
    }
}

// The partial sums of one element of C, of a column of all groups, added up in order.
fn sum_of_partials(row: u32, column: u32) -> Wide {
    var sum = Wide(0.0, NOTHING);
    for (var s = 0u; s < p.splits; s += 1u) { // splits iterations
        sum = sum_of(sum, partial_at(partial_place(s, row, column)));
    }
    return sum;
}
