// The gradients of a linear layer that are matrix products.
// slot scale = product/scale_factors
// slot family = product/tile
// slot result = product/result_scalar
// import product/split
//
//   dx = dy · w      A = dy (batch, out), B = v as (out, in), scaled to w before it is multiplied:
//                    w = v, or SCALED_B: g_k * v / n̂_k of the sum's own index k, or g * v / n̂
//   dv = a * ((dyᵀ x) - dg * (v / d))      A = dy as (batch, out), B = x as (batch, in), both with k along the columns:
//                    a = g / n̂, one for each row (GROUP_ROWS), column (GROUP_COLUMNS), or for all of v (GROUP_WHOLE)
//   dw = dyᵀ x       the same with GROUP_NONE
//
// The two factors of each norm, a and dg / d (see batch/statistics.wgsl, write_factors), are there already.
//
// `gradient` does it in one dispatch. Where the sum is split, `gradient_partial` leaves the partial sums of each split
// in `partials`, and `gradient_finish` adds them up in order.

override GROUPING: u32 = GROUP_ROWS;
override ACCUMULATE: bool = false; // add to what C holds
override SCALED_C: bool = false; // with GROUP_NONE: sums are multiplied by p.slope, which no activation has here

const GROUP_NONE = 0u;
const GROUP_ROWS = 1u;
const GROUP_COLUMNS = 2u;
const GROUP_WHOLE = 3u;

// The factors of the norm that an element of C belongs to.
fn factors_of(row: u32, column: u32) -> vec4<f32> {
    let norm = select(select(row, column, GROUPING == GROUP_COLUMNS), 0u, GROUPING == GROUP_WHOLE);
    return factors[extractBits(p.more_offsets, 16u, 8u) + norm];
}

fn v_place(row: u32, column: u32) -> u32 {
    return extractBits(p.more_offsets, 8u, 8u) + row * p.c_stride + column;
}

fn c_place(row: u32, column: u32) -> u32 {
    return extractBits(p.offsets, 16u, 8u) + row * p.c_stride + column;
}

fn put_one(row: u32, column: u32, value: f32) {
    let e = c_place(row, column);
    if ACCUMULATE {
        put_element(e, value + old(e));
    } else {
        put_element(e, value);
    }
}

// Of four elements of a row: their a, their dg / d, and its t. That is negative where dg is out of the safe range,
// or one of the factors is no normal number: each element takes exponents of its own then.
struct Factors {
    a: vec4<f32>,
    share: vec4<f32>,
    share_t: vec4<f32>,
}

// Those of the invocation's columns, for GROUP_COLUMNS and GROUP_WHOLE.
var<private> own_factors: array<Factors, 2>;
// GROUP_ROWS: the least share_t of the invocation's rows.
var<private> least_share: f32;

// The elements of a block that lie in rows whose share_t is negative, bits as in `unsafe_bits`.
fn rows_out_of_range(row: u32) -> u32 {
    var found = 0u;
    let count = select(0u, min(left_of(row, p.rows, true), BLOCK), least_share < 0.0);
    for (var i = 0u; i < count; i += 1u) { // BLOCK iterations
        found |= select(0u, 0xfu << (4u * i), factors[extractBits(p.more_offsets, 16u, 8u) + row + i].z < 0.0);
    }
    return found;
}

// The elements of a block whose dg * (v / d) may be too small for f32 and yet count when a has multiplied it.
fn raised(row: u32) -> Elements {
    if GROUPING == GROUP_ROWS {
        var of_rows = 0u;
        let count = min(left_of(row, p.rows, true), BLOCK);
        for (var i = 0u; i < count; i += 1u) { // BLOCK iterations
            let of_row = factors[extractBits(p.more_offsets, 16u, 8u) + row + i];
            of_rows |= select(0u, 0xfu << (4u * i), abs(of_row.y) > 1.0 && of_row.w != 0.0);
        }
        return Elements(of_rows, of_rows);
    }
    return Elements(raised_columns(own_factors[0]), raised_columns(own_factors[1]));
}

fn raised_columns(f: Factors) -> u32 {
    let is_raised = (abs(f.a) > vec4<f32>(1.0)) & (f.share != vec4<f32>());
    return bits_of(is_raised) * 0x11111111u;
}

fn factors_of_columns(column: u32) -> Factors {
    let last = p.columns - 1u;
    let four = transpose(mat4x4<f32>(
        factors_of(0u, min(column, last)), factors_of(0u, min(column + 1u, last)),
        factors_of(0u, min(column + 2u, last)), factors_of(0u, min(column + 3u, last)),
    ));
    return Factors(four[1], four[3], four[2]);
}

// a * (c - dg * (v / d)) inside the range of f32.
fn corrected_four(c: vec4<f32>, v: vec4<f32>, f: Factors) -> vec4<f32> {
    return (c - v * f.share) * f.a;
}

// The same, whatever the exponents.
fn corrected(c: Wide, v: f32, factors: vec4<f32>) -> f32 {
    let part = product_of(wide_of(v), wide_of_scale(Scale(factors.z, factors.w)));
    return f32_of(product_of(sum_of(c, Wide(-part.m, part.e)), wide_of_scale(Scale(factors.x, factors.y))));
}

// Writes a block of C, or adds to it; the block's first element is at (row, column). With ACCUMULATE the unsafe sums
// are left out: each element is added to once. Bits of the sums that left the safe range.
fn put_block(block: u32, row: u32, column: u32) -> u32 {
    take_block(block);
    var all_found = 0u;
    for (var q = 0u; q < QUADS; q += 1u) {
        let n = column + STEP * q;
        let left = left_of(n, p.columns, true);
        var found = 0u;
        for (var first = 0u; first < BLOCK; first += 4u) { // 1 or 2 iterations
            // The reads of some rows together, without branches, so that they do not wait for each other. Past the edge
            // anything.
            var some: array<vec4<f32>, 4>;
            var shares_t: array<vec4<f32>, 4>;
            for (var i = 0u; i < min(BLOCK, 4u); i += 1u) {
                let m = min(row + first + i, p.rows - 1u);
                var f = own_factors[q];
                if GROUPING == GROUP_ROWS {
                    let of_row = factors_of(m, 0u);
                    f = Factors(vec4<f32>(of_row.y), vec4<f32>(of_row.w), vec4<f32>(of_row.z));
                    least_share = min(least_share, of_row.z);
                }
                some[i] = sum_at(first + i, q);
                if SCALED_C {
                    some[i] *= p.slope;
                }
                if GROUPING != GROUP_NONE {
                    let v_quad = v_four(v_place(m, min(n, p.columns - WHOLE_C)), max(left, 1u));
                    some[i] = corrected_four(some[i], v_quad, f);
                    found |= look_at(first + i, q);
                }
                shares_t[i] = f.share_t;
            }
            for (var i = 0u; i < min(BLOCK, 4u); i += 1u) {
                let m = row + first + i;
                if m < p.rows && left > 0u {
                    if ACCUMULATE {
                        let places = vec4<u32>(0u, 1u, 2u, 3u);
                        let skipped = (vec4<u32>(found >> (4u * (first + i))) >> places) & vec4<u32>(1u);
                        var kept = (places < vec4<u32>(left)) & (skipped == vec4<u32>());
                        if GROUPING != GROUP_NONE {
                            kept &= shares_t[i] >= vec4<f32>();
                        }
                        add_four(c_place(m, n), some[i], kept);
                    } else {
                        put_four(c_place(m, n), some[i], left);
                    }
                }
            }
        }
        unsafe_bits[q] = found;
        all_found |= found;
    }
    return all_found;
}

// Writes once more what f32 did not hold safely in the block, or adds what was left out.
fn put_block_again(block: u32, row: u32, column: u32, bad_columns: u32) {
    if TM > BLOCK {
        take_block(block);
        look_at_all();
    }
    let there = elements_there(row, column);
    var of_rows = Elements(0u, 0u);
    if GROUPING == GROUP_ROWS {
        let bad = rows_out_of_range(row);
        of_rows = Elements(there.first & bad, select(0u, there.second & bad, QUADS == 2u));
    }
    var redo = elements_to_redo(row, column, bad_columns, 0u, p.depth);
    redo = Elements(redo.first | of_rows.first, redo.second | of_rows.second);
    // Of zero sums what is left is the correction.
    var zero = elements_zero(bad_columns);
    if ACCUMULATE {
        // All that is unsafe was left out.
        zero = elements_unsafe(bad_columns);
    } else if any_of(zero) {
        let in_doubt = raised(row);
        zero = Elements(zero.first & in_doubt.first, zero.second & in_doubt.second);
    }
    var left = Elements(redo.first | (there.first & zero.first), redo.second | (there.second & zero.second));
    while any_of(left) { // at most BLOCK * TN iterations
        let at = lowest(left);
        left = without_lowest(left);
        let m = row + at.x;
        let n = column + at.y;
        var sum = Wide(0.0, NOTHING);
        if holds(redo, at) {
            sum = exact_dot(m, n, 0u, p.depth);
        }
        put_one(m, n, corrected(sum, v_element(v_place(m, n)), factors_of(m, n)));
    }
}

@compute @workgroup_size(THREADS)
fn gradient(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
    let tile = flat(group, groups);
    let tiles_m = (p.rows + BM - 1u) / BM;
    if tile >= tiles_m * ((p.columns + BN - 1u) / BN) {
        return;
    }
    // Down the rows first: a tile's columns of B, a step of k a row of memory, are still in the cache for the next one.
    let row0 = tile % tiles_m * BM;
    let column0 = tile / tiles_m * BN;
    product(row0, column0, 0u, p.depth, t);

    let column = column0 + own_column(t);
    var bad_columns = 0u;
    if GROUPING == GROUP_COLUMNS || GROUPING == GROUP_WHOLE {
        for (var q = 0u; q < QUADS; q += 1u) {
            own_factors[q] = factors_of_columns(column + STEP * q);
            bad_columns |= bits_of(own_factors[q].share_t < vec4<f32>()) << (4u * q);
        }
    }
    let row = row0 + own_row(t);
    var found = bad_columns;
    for (var block = 0u; block < TM / BLOCK; block += 1u) { // TM / BLOCK iterations
        found |= put_block(block, row + block * BLOCK, column);
    }
    if GROUPING == GROUP_NONE {
        return;
    }
    found |= select(0u, 1u, least_share < 0.0);
    for (var block = first_block(found); block < TM / BLOCK; block += 1u) { // TM / BLOCK iterations
        put_block_again(block, row + block * BLOCK, column, bad_columns);
    }
}

// One split of one tile.
@compute @workgroup_size(THREADS)
fn gradient_partial(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let piece = piece_of(flat(group, groups));
    if piece.k_first < piece.k_end {
        put_partial_sums(piece, ordered(index, THREADS), GROUPING != GROUP_NONE);
    }
}

// One invocation an element of C.
@compute @workgroup_size(FINISH_THREADS)
fn gradient_finish(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let element = flat(group, groups) * FINISH_THREADS + t;
    let row = element / p.columns;
    let column = element % p.columns;
    if row >= p.rows {
        return;
    }
    let sum = sum_of_partials(row, column);
    var value: f32;
    if GROUPING == GROUP_NONE {
        value = f32_of(sum);
        if SCALED_C {
            value *= p.slope;
        }
    } else {
        value = corrected(sum, v_element(v_place(row, column)), factors_of(row, column));
    }
    put_one(row, column, value);
}
