// Partial sums of a product over splits of k, for the files that declare
//   part: array<vec2<u32>>   (splits, rows, columns) Wide, f32 m and i32 e
// Joined behind a family of product.wgsl.

const FINISH_THREADS = 64u;

// Writes acc as the partial sums of the rows from part_row on. With `exact`, sums that left the safe range are formed
// again.
fn put_parts(part_row: u32, row: u32, column: u32, k_first: u32, k_end: u32, exact: bool) {
    for (var i = 0u; i < TM; i += 1u) {
        for (var q = 0u; q < QUADS; q += 1u) {
            let four = bitcast<vec4<u32>>(sum_at(i, q));
            for (var c = 0u; c < 4u; c += 1u) {
                let at = column + 4u * q + c;
                if row + i < p.rows && at < p.columns {
                    part[(part_row + row + i) * p.columns + at] = vec2<u32>(four[c], 0u);
                }
            }
        }
    }
    if !exact {
        return;
    }
    var none_bad: array<vec4<bool>, 2>;
    for (var block = first_block(any_doubtful(none_bad)); block < TM; block += BLOCK) { // TM / BLOCK iterations
        let first = row + block;
        let found = doubtful_elements(block, first, column, none_bad);
        var redo = elements_to_redo(found, first, column, k_first, k_end);
        while any_of(redo) { // at most BLOCK * TN iterations
            let at = lowest(redo);
            redo = without_lowest(redo);
            let sum = redo_dot(first + at.x, column + at.y, k_first, k_end);
            let place = (part_row + first + at.x) * p.columns + column + at.y;
            part[place] = vec2<u32>(bitcast<u32>(sum.m), bitcast<u32>(sum.e));
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
