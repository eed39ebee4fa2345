// What becomes of a forward product: y[b,j] = activation(sum_k x[b,k] * w[j,k] + bias_j), w from v by one of these
// ways.
// slot scale = product/scale_pairs
// slot family = product/tile
// slot c = product/c_matrix
// import product/split
// import numbers/norm
//
//   NORM_PLAIN  w = v
//   NORM_FUSED  w = g_j * v / n̂_j, the norm of row j summed up beside the product: y = g_j * u + bias_j, where
//               u = (x·v_j) / n̂_j
//   NORM_GIVEN  the same with norms that are known: given[j]
//   NORM_WHOLE  w = g * v / n̂, one norm for all of v: `given` holds it as f32 m and i32 e, m * 2^e
//   NORM_IN     w = g_k * v / n̂_k: SCALED_B, the Scales g_k / n̂_k
//
// With ROW_SQUARES, beside NORM_FUSED or NORM_GIVEN, x is divided by the effective norms of its rows as well, which
// are summed up beside the product: u = (x_b·v_j) / (n̂_b * n̂_j).
//
// With ONTO, beside NORM_GIVEN, the sums are added to what u holds, which becomes u. They are not formed again then:
// f32 has to hold them.
//
// whole_sums does all of it in one dispatch. Where in_features is split, partial_sums leaves the partial sums of each
// split in `partials`, and finish_sum adds them up in order.
//
// The product is that of shape.wgsl, with A = x and B = v. Columns of a group and channels of y are the same but for
// convolutions. With NORM_FUSED (SQUARES) an invocation adds up the
// squares of what it reads of v anyway, so that v is read no more often than by the plain product; the workgroups of
// the first rows of y write the norms out.

// (out_features), or one element with NORM_WHOLE; words of GAIN_DTYPE.
@group(0) @binding(2) var<storage, read> g: array<u32>;
@group(0) @binding(3) var<storage, read> bias: array<u32>; // (out_features), words of BIAS_DTYPE

override NORM: u32 = NORM_PLAIN;
override HAS_GAIN: bool = true;
override GAIN_DTYPE: u32 = F32;
override BIAS_DTYPE: u32 = F32;
override HAS_BIAS: bool = true;
override WRITE_U: bool = false;

const NORM_PLAIN = 0u;
const NORM_FUSED = 1u;
const NORM_GIVEN = 2u;
const NORM_WHOLE = 3u;
const NORM_IN = 4u;

override NORMED: bool = NORM == NORM_FUSED || NORM == NORM_GIVEN || NORM == NORM_WHOLE;

// The sum of squares of column c of those that start at column0. Call stage_squares before.
fn column_sum(c: u32, column0: u32, k_first: u32, k_end: u32) -> Wide {
    var s = column_square(c);
    let up = scale_exponent(s);
    if up != 0 {
        s = exact_squares(column0 + c, k_first, k_end, up);
    }
    return Wide(s, -2 * up);
}

// The sum of squares of row r of those that start at row0, likewise.
fn row_sum(r: u32, row0: u32, k_first: u32, k_end: u32) -> Wide {
    var s = row_square(r);
    let up = scale_exponent(s);
    if up != 0 {
        s = exact_row_squares(row0 + r, k_first, k_end, up);
    }
    return Wide(s, -2 * up);
}

// ROW_SQUARES: the norms of the tile's rows, the first of which is tile_row.
override ROW_NORMS: u32 = select(1u, BM, ROW_SQUARES);
var<workgroup> row_m: array<f32, ROW_NORMS>;
var<workgroup> row_e: array<i32, ROW_NORMS>;
var<private> tile_row: u32;

fn row_norm(row: u32) -> Wide {
    return Wide(row_m[row - tile_row], row_e[row - tile_row]);
}

// Bits of the rows from `row` on, of a block, whose norms f32 does not hold safely, all columns of each.
fn unsafe_rows(row: u32) -> u32 {
    var found = 0u;
    for (var i = 0u; i < min(left_of(row, p.rows, true), BLOCK); i += 1u) { // BLOCK iterations
        let norm = row_norm(row + i);
        let bad = unsafe_distance(vec4<f32>(norm.m)).x >= UNSAFE || norm.e != 0;
        found |= select(0u, 0xfu << (4u * i), bad);
    }
    return found;
}

// n̂ of the columns of the tile into norm_m, norm_e, and of its rows into row_m, row_e.
fn find_norms(column0: u32, t: u32, write: bool) {
    if NORM == NORM_FUSED || ROW_SQUARES {
        stage_squares(t);
    }
    if ROW_SQUARES {
        for (var r = t; r < BM; r += THREADS) { // BM / THREADS iterations
            if tile_row + r < p.rows {
                let norm = effective_norm(row_sum(r, tile_row, 0u, p.depth), p.policy, p.eps);
                row_m[r] = norm.m;
                row_e[r] = norm.e;
            }
        }
    }
    let base = norms_column(column0, t);
    var found = 0u; // a bit for each round whose sum of squares left the safe range
    for (var c = first_norm(t); c < NORMS; c += SHARE) { // at most NORMS / SHARE iterations
        if base + c < p.columns {
            if NORM == NORM_FUSED {
                let s = column_square(c);
                let at = (c - first_norm(t)) / SHARE;
                found |= select(0u, 1u << at, scale_exponent(s) != 0);
                put_norm(c, base, Wide(norm_in_range(s, p.policy, p.eps), 0), write);
            } else {
                put_norm(c, base, known_norm(base + c), false);
            }
        }
    }
    // Once more for what is out of range: a loop of its own, since a CPU driver runs through its body in any case.
    while found != 0u { // at most NORMS / SHARE iterations
        let c = first_norm(t) + countTrailingZeros(found) * SHARE;
        found &= found - 1u;
        put_norm(c, base, effective_norm(column_sum(c, base, 0u, p.depth), p.policy, p.eps), write);
    }
    share_norms();
}

fn put_norm(c: u32, base: u32, norm: Wide, write: bool) {
    if write {
        keep_norm(base + c, norm);
    }
    norm_m[c] = norm.m;
    norm_e[c] = norm.e;
}

fn known_norm(column: u32) -> Wide {
    let first = extractBits(p.more_offsets, 16u, 8u);
    if NORM == NORM_WHOLE {
        return Wide(given[first], bitcast<i32>(given[first + 1u]));
    }
    return Wide(given[first + norm_index(column)], 0);
}

fn gain_of(column: u32) -> f32 {
    if !HAS_GAIN {
        return 1.0;
    }
    let at = extractBits(p.more_offsets, 0u, 8u) + select(norm_index(column), 0u, NORM == NORM_WHOLE);
    return unpack(g[word_holding(at, GAIN_DTYPE)], at, GAIN_DTYPE);
}

fn bias_of(column: u32) -> f32 {
    if !HAS_BIAS {
        return 0.0;
    }
    let at = extractBits(p.more_offsets, 8u, 8u) + channel_of(column);
    return unpack(bias[word_holding(at, BIAS_DTYPE)], at, BIAS_DTYPE);
}

// Four of them, for the columns that exist.
fn gains_of(column: u32) -> vec4<f32> {
    let last = p.columns - 1u;
    return vec4<f32>(
        gain_of(min(column, last)), gain_of(min(column + 1u, last)),
        gain_of(min(column + 2u, last)), gain_of(min(column + 3u, last)),
    );
}

fn biases_of(column: u32) -> vec4<f32> {
    let last = p.columns - 1u;
    return vec4<f32>(
        bias_of(min(column, last)), bias_of(min(column + 1u, last)),
        bias_of(min(column + 2u, last)), bias_of(min(column + 3u, last)),
    );
}

// u = (x·v_j) / n̂_j, whatever the exponents.
fn quotient_of(dot: Wide, norm: Wide) -> Wide {
    if NORM == NORM_PLAIN || NORM == NORM_IN {
        return dot;
    }
    return quotient(dot, norm);
}

// The same divided by the norm of the row.
fn quotient_in_row(of_column: Wide, row: u32) -> Wide {
    if !ROW_SQUARES {
        return of_column;
    }
    return quotient(of_column, row_norm(row));
}

// Writes one element of y out of u, and u.
fn put_one(row: u32, column: u32, quotient: Wide) {
    var value = f32_of(quotient);
    if WRITE_U {
        keep_one(row, column, value);
    }
    if HAS_GAIN && NORM != NORM_PLAIN && NORM != NORM_IN {
        value = f32_of(product_of(wide_of(gain_of(column)), quotient));
    }
    put_result(row, column, value + bias_of(column));
}

// ONTO: four of them by the norms from the own-th on, of sums that f32 holds.
fn quotients(four: vec4<f32>, own: u32) -> vec4<f32> {
    var result = vec4<f32>();
    for (var c = 0u; c < 4u; c += 1u) { // 4 iterations
        result[c] = f32_of(quotient(wide_of(four[c]), Wide(norm_m[own + c], norm_e[own + c])));
    }
    return result;
}

var<private> reciprocals: array<vec4<f32>, 2>; // of the invocation's columns: 1 / n̂

// Writes a block of y, and of u; the block's first element is at (row, column). Bits of its sums that left the safe
// range. With ADD these, and all of the bad columns, are left out: each element is added to once.
fn put_block(block: u32, row: u32, column: u32, bad_columns: u32, own: u32) -> u32 {
    take_block(block);
    var all_found = 0u;
    for (var q = 0u; q < QUADS; q += 1u) {
        let c = column + STEP * q;
        let left = left_of(c, p.columns, true);
        let gains = gains_of(c);
        let biases = biases_of(c);
        var found = 0u;
        for (var i = 0u; i < BLOCK; i += 1u) {
            var skipped = 0u;
            if NORMED && !ONTO {
                found |= look_at(i, q);
                skipped = extractBits((found >> (4u * i)) | (bad_columns >> (4u * q)), 0u, 4u);
            }
            if row + i < p.rows && left > 0u {
                var values = sum_at(i, q);
                if ONTO {
                    values += kept_row(row + i, c, left);
                }
                if ROW_SQUARES {
                    values *= 1.0 / row_norm(row + i).m;
                }
                if ONTO && extractBits(bad_columns, 4u * q, 4u) != 0u {
                    values = quotients(values, own + STEP * q);
                } else if NORMED {
                    values *= reciprocals[q];
                }
                if WRITE_U {
                    keep_row(row + i, c, values, left);
                }
                if NORMED {
                    values *= gains;
                }
                put_row(i, row + i, c, values + biases, left, skipped);
            }
        }
        unsafe_bits[q] = found;
        all_found |= found;
    }
    if ROW_SQUARES {
        all_found |= unsafe_rows(row);
    }
    return all_found;
}

// Writes once more what f32 did not hold safely in the block, or what was left out. `own`: of the first column's norm.
fn put_block_again(block: u32, row: u32, column: u32, bad_columns: u32, own: u32) {
    if TM > BLOCK {
        take_block(block);
        look_at_all();
    }
    var redo = elements_to_redo(row, column, bad_columns, 0u, p.depth);
    if ROW_SQUARES {
        let there = elements_there(row, column);
        let bad = unsafe_rows(row);
        redo = Elements(redo.first | (there.first & bad), redo.second | select(0u, there.second & bad, QUADS == 2u));
    }
    var left = redo;
    if ADD { // zero sums too
        let there = elements_there(row, column);
        let found = elements_unsafe(bad_columns);
        left = Elements(there.first & found.first, there.second & found.second);
    }
    if GATED { // both columns of two that meet, one after the other
        left = in_pairs(left);
    }
    var sums_again = redo;
    if FOUR_MEET { // all four, of which no sum is kept: they are formed again, unless all of them are zero for good
        let zero = of_whole_quads(Elements(left.first & ~redo.first, left.second & ~redo.second));
        left = in_quads(left);
        sums_again = Elements(left.first & ~zero.first, left.second & ~zero.second);
    }
    while any_of(left) { // at most BLOCK * TN iterations
        let at = lowest(left);
        left = without_lowest(left);
        let norm = Wide(norm_m[own + at.y], norm_e[own + at.y]);
        var sum = Wide(0.0, NOTHING);
        if !ADD || holds(sums_again, at) {
            sum = exact_dot(row + at.x, column + at.y, 0u, p.depth);
        }
        put_one(row + at.x, column + at.y, quotient_in_row(quotient_of(sum, norm), row + at.x));
    }
}

// A tile of y, by invocation t of its workgroup.
fn whole_sums(tile: u32, t: u32) {
    if tile >= tile_count() {
        return;
    }
    let origin = tile_origin(tile);
    tile_row = origin.x;
    product(origin.x, origin.y, 0u, p.depth, t);

    let column = origin.y + own_column(t);
    var bad_columns = 0u;
    if NORMED {
        find_norms(origin.y, t, origin.x == 0u);
        for (var q = 0u; q < QUADS; q += 1u) {
            let c = own_norms(t) + STEP * q;
            let m = vec4<f32>(norm_m[c], norm_m[c + 1u], norm_m[c + 2u], norm_m[c + 3u]);
            let e = vec4<i32>(norm_e[c], norm_e[c + 1u], norm_e[c + 2u], norm_e[c + 3u]);
            reciprocals[q] = 1.0 / m;
            bad_columns |= bits_of((unsafe_distance(m) >= vec4<u32>(UNSAFE)) | (e != vec4<i32>())) << (4u * q);
        }
    }
    let row = origin.x + own_row(t);
    var found = bad_columns;
    for (var block = 0u; block < TM / BLOCK; block += 1u) { // TM / BLOCK iterations
        found |= put_block(block, row + block * BLOCK, column, bad_columns, own_norms(t));
    }
    if !NORMED || ONTO {
        return;
    }
    for (var block = first_block(found); block < TM / BLOCK; block += 1u) { // TM / BLOCK iterations
        put_block_again(block, row + block * BLOCK, column, bad_columns, own_norms(t));
    }
}

// Where the sum of squares of a row's split is, behind those of the columns.
fn row_place(split: u32, row: u32) -> u32 {
    return partial_place(p.splits, p.splits, 0u) + split * p.rows + row;
}

// One split of one tile of y: its dot products and, from the tiles of the first rows, its sums of squares, which lie
// behind the partial sums of all splits.
fn partial_sums(number: u32, t: u32) {
    let piece = piece_of(number);
    if piece.k_first >= piece.k_end {
        return;
    }
    put_partial_sums(piece, t, NORMED);
    if NORM == NORM_FUSED || ROW_SQUARES {
        stage_squares(t);
    }
    if ROW_SQUARES {
        for (var r = t; r < BM; r += THREADS) { // BM / THREADS iterations
            if piece.column == 0u && piece.row + r < p.rows {
                put_partial(row_place(piece.split, piece.row + r), row_sum(r, piece.row, piece.k_first, piece.k_end));
            }
        }
    }
    if NORM == NORM_FUSED {
        let base = norms_column(piece.column, t);
        for (var c = first_norm(t); c < NORMS; c += SHARE) { // at most NORMS / SHARE iterations
            if piece.row == 0u && base + c < p.columns {
                let at = partial_place(p.splits, piece.split, column_of_all(base + c));
                put_partial(at, column_sum(c, base, piece.k_first, piece.k_end));
            }
        }
    }
}

// One element of y; the two columns of a gate.
fn finish_sum(element: u32) {
    let place = finished_place(element * select(1u, 2u, GATED));
    if place.x >= p.rows || place.y >= all_columns() {
        return;
    }
    finish_column(place.x, place.y);
    if GATED {
        finish_column(place.x, place.y + 1u);
    }
}

fn finish_column(row: u32, of_all: u32) {
    let column = column_in_group(of_all);
    var dot = sum_of_partials(row, of_all);
    if ONTO {
        dot = sum_of(dot, wide_of(kept_row(row, column, 1u).x));
    }
    var norm = Wide(1.0, 0);
    if NORM == NORM_FUSED {
        var sum = Wide(0.0, NOTHING);
        for (var s = 0u; s < p.splits; s += 1u) { // splits iterations
            sum = sum_of(sum, partial_at(partial_place(p.splits, s, of_all)));
        }
        norm = effective_norm(sum, p.policy, p.eps);
        if row == 0u {
            keep_norm(column, norm);
        }
    }
    if NORM == NORM_GIVEN || NORM == NORM_WHOLE {
        norm = known_norm(column);
    }
    var value = quotient_of(dot, norm);
    if ROW_SQUARES {
        var sum = Wide(0.0, NOTHING);
        for (var s = 0u; s < p.splits; s += 1u) { // splits iterations
            sum = sum_of(sum, partial_at(row_place(s, row)));
        }
        value = quotient(value, effective_norm(sum, p.policy, p.eps));
    }
    put_one(row, column, value);
}
