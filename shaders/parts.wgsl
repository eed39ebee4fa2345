// Partial sums of a product over splits of k, for the files that declare
//   part: array<vec2<u32>>   (splits, rows, columns) Wide, f32 m and i32 e
// Joined behind a family of product.wgsl.

const FINISH_THREADS = 64u;

// Writes a block as the partial sums of the rows from part_row on; the invocation's first element is at (row, column).
fn put_block_parts(block: u32, part_row: u32, row: u32, column: u32) {
    take_block(block);
    for (var q = 0u; q < QUADS; q += 1u) {
        var found = 0u;
        for (var i = 0u; i < BLOCK; i += 1u) {
            let m = row + block * BLOCK + i;
            found |= look_at(i, q);
            let four = bitcast<vec4<u32>>(sum_at(i, q));
            for (var c = 0u; c < 4u; c += 1u) {
                let n = column + STEP * q + c;
                if m < p.rows && n < p.columns {
                    part[(part_row + m) * p.columns + n] = vec2<u32>(four[c], 0u);
                }
            }
        }
        unsafe_bits[QUADS * block + q] = found;
    }
}

// Writes the invocation's partial sums. With `exact`, sums that left the safe range are formed again.
fn put_parts(part_row: u32, row: u32, column: u32, k_first: u32, k_end: u32, exact: bool) {
    put_block_parts(0u, part_row, row, column);
    if TM > 8u {
        put_block_parts(1u, part_row, row, column);
    }
    if TM > 16u {
        put_block_parts(2u, part_row, row, column);
        put_block_parts(3u, part_row, row, column);
    }
    if TM > 32u {
        put_block_parts(4u, part_row, row, column);
        put_block_parts(5u, part_row, row, column);
        put_block_parts(6u, part_row, row, column);
        put_block_parts(7u, part_row, row, column);
    }
    if !exact {
        return;
    }
    for (var block = first_block(0u); block < TM / BLOCK; block += 1u) { // TM / BLOCK iterations
        var redo = elements_to_redo(block, row, column, 0u, k_first, k_end);
        while any_of(redo) { // at most BLOCK * TN iterations
            let at = lowest(redo);
            redo = without_lowest(redo);
            let m = row + block * BLOCK + at.x;
            let sum = redo_dot(m, column + at.y, k_first, k_end);
            part[(part_row + m) * p.columns + column + at.y] = vec2<u32>(bitcast<u32>(sum.m), bitcast<u32>(sum.e));
        }
    }
}

// The partial sums of one element of C, added up in order.
fn sum_of_parts(row: u32, column: u32) -> Wide {
    var sum = Wide(0.0, NOTHING);
    for (var s = 0u; s < p.splits; s += 1u) { // splits iterations
        let bits = part[(s * p.rows + row) * p.columns + column];
        sum = sum_of(sum, Wide(bitcast<f32>(bits.x), bitcast<i32>(bits.y)));
    }
    return sum;
}
