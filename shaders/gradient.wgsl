// The gradients of a linear layer that are matrix products.
//
//   dx = dy · w      A = dy (batch, out), B = v as (out, in), scaled to w while it is staged:
//                    w = v (SCALE_NONE), g_k * v / n̂_k of the sum's own index k (SCALE_BY_K), g * v / n̂ (SCALE_WHOLE)
//   dv = a * ((dyᵀ x) - dg * (v / d))      A = dy as (batch, out), B = x as (batch, in), both with k along the columns:
//                    a = g / n̂, one for each row (END_ROWS), column (END_COLUMNS), or for all of v (END_WHOLE)
//   dw = dyᵀ x       the same with END_PLAIN
//
// d is n̂ but under EPS_AFTER, where it is n: `norms` holds n there, and n̂ elsewhere. Where the clamp is active, or n = 0
// under EPS_AFTER, n̂ does not depend on v and dg * (v / d) is absent.
//
// `gradient` does it in one dispatch. Where the sum is split, `gradient_partial` leaves the partial sums of each split
// in `part`, and `gradient_finish` adds them up in order.

@group(0) @binding(2) var<storage, read> g: array<f32>; // one for each norm
@group(0) @binding(3) var<storage, read> norms: array<f32>; // see above
@group(0) @binding(4) var<storage, read> dg: array<f32>; // one for each norm
@group(0) @binding(6) var<storage, read> v: array<u32>; // words of V_DTYPE, shaped as C
@group(0) @binding(8) var<storage, read_write> part: array<vec2<u32>>; // (splits, rows, columns) Wide

override V_DTYPE: u32 = F32;
override END: u32 = END_ROWS;
override SCALE: u32 = SCALE_NONE;
override HAS_GAIN: bool = true;
override ADD: bool = false; // add to what C holds

override SLOTS: u32 = BM + BN;

const END_PLAIN = 0u;
const END_ROWS = 1u;
const END_COLUMNS = 2u;
const END_WHOLE = 3u;

const SCALE_NONE = 0u;
const SCALE_BY_K = 1u;
const SCALE_WHOLE = 2u;

var<workgroup> scale_t: array<f32, SLOTS>; // a of a row or column of the tile
var<workgroup> scale_m: array<f32, SLOTS>;
var<workgroup> share_t: array<f32, SLOTS>; // dg / d of it
var<workgroup> share_m: array<f32, SLOTS>;

fn gain_of(i: u32) -> Wide {
    if !HAS_GAIN {
        return Wide(1.0, 0);
    }
    return wide(g[extractBits(p.firsts, 24u, 8u) + i]);
}

fn norm_of(i: u32) -> f32 {
    return norms[extractBits(p.more_firsts, 0u, 8u) + i];
}

// a = g / n̂ of norm i.
fn scale_at(i: u32) -> Scale {
    var norm = norm_of(i);
    if p.policy == EPS_AFTER {
        norm += p.eps;
    }
    return scale_of(quotient(gain_of(i), wide(norm)));
}

// dg / d of norm i.
fn share_at(i: u32) -> Scale {
    let norm = norm_of(i);
    let size = magnitude(norm);
    if (p.policy == EPS_CLAMP && size == bitcast<u32>(p.eps)) || (p.policy == EPS_AFTER && size < SMALLEST) {
        return Scale(1.0, 0.0);
    }
    return scale_of(quotient(wide(dg[extractBits(p.more_firsts, 8u, 8u) + i]), wide(norm)));
}

const SQUARES = false;
override SCALED_B: bool = SCALE != SCALE_NONE;

fn step_scale(k: u32) -> Scale {
    return scale_at(select(k, 0u, SCALE == SCALE_WHOLE));
}

fn v_at(row: u32, column: u32) -> f32 {
    let e = extractBits(p.more_firsts, 16u, 8u) + row * p.c_stride + column;
    return unpack(v[select(e >> 1u, e, V_DTYPE == F32)], e, V_DTYPE);
}

fn c_place(row: u32, column: u32) -> u32 {
    return extractBits(p.firsts, 16u, 8u) + row * p.c_stride + column;
}

fn put_one(row: u32, column: u32, value: f32) {
    let e = c_place(row, column);
    if ADD {
        put_element(e, value + old(e));
    } else {
        put_element(e, value);
    }
}

// a and dg / d of the rows or columns of the tile.
fn stage_scales(row0: u32, column0: u32, t: u32) {
    let first = select(row0, column0, END == END_COLUMNS);
    let end = select(p.rows, p.columns, END == END_COLUMNS);
    let count = select(select(BM, BN, END == END_COLUMNS), 1u, END == END_WHOLE);
    for (var i = t; i < count; i += THREADS) { // at most max(BM, BN) / THREADS iterations
        if END == END_WHOLE || first + i < end {
            let norm = select(first + i, 0u, END == END_WHOLE);
            let scale = scale_at(norm);
            scale_t[i] = scale.t;
            scale_m[i] = scale.m;
            let share = share_at(norm);
            share_t[i] = share.t;
            share_m[i] = share.m;
        }
    }
    workgroupBarrier();
}

// Where an element of the tile finds its a and dg / d.
fn slot_of(own_row: u32, own_column: u32) -> u32 {
    return select(select(own_row, own_column, END == END_COLUMNS), 0u, END == END_WHOLE);
}

// a * (c - dg * (v / d)) for four elements of a row, inside the range of f32.
fn corrected_four(c: vec4<f32>, row: u32, columns: vec4<u32>, own_row: u32, own_columns: vec4<u32>) -> vec4<f32> {
    let x = slot_of(own_row, own_columns.x);
    let y = slot_of(own_row, own_columns.y);
    let z = slot_of(own_row, own_columns.z);
    let w = slot_of(own_row, own_columns.w);
    let v = vec4<f32>(v_at(row, columns.x), v_at(row, columns.y), v_at(row, columns.z), v_at(row, columns.w));
    let share = vec4<f32>(share_t[x], share_t[y], share_t[z], share_t[w]);
    let correction = ((v * share) * vec4<f32>(share_m[x], share_m[y], share_m[z], share_m[w])) * share;
    let scale = vec4<f32>(scale_t[x], scale_t[y], scale_t[z], scale_t[w]);
    return (((c - correction) * scale) * vec4<f32>(scale_m[x], scale_m[y], scale_m[z], scale_m[w])) * scale;
}

// a * (c - dg * (v / d)), whatever the exponents.
fn corrected(c: Wide, v: f32, scale: Scale, share: Scale) -> f32 {
    let part = product_of(wide(v), wide_scale(share));
    return narrow(product_of(sum_of(c, Wide(-part.m, part.e)), wide_scale(scale)));
}

// Writes row i and quad q of the invocation's elements, the first of which is at (row, column), or adds to them those
// whose bit is not set in `without`.
fn put_values(row: u32, own_row: u32, own_column: u32, column: u32, i: u32, q: u32, without: u32) {
    let c = column + 4u * q;
    let left = p.columns - c;
    var values = sum_at(i, q);
    if END != END_PLAIN {
        let places = min(vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(left - 1u));
        values = corrected_four(values, row + i, c + places, own_row + i, own_column + 4u * q + places);
    }
    if ADD {
        for (var n = 0u; n < min(left, 4u); n += 1u) { // at most 4 iterations
            if ((without >> n) & 1u) == 0u {
                put_one(row + i, c + n, values[n]);
            }
        }
    } else {
        put_four(c_place(row + i, c), values, left);
    }
}

@compute @workgroup_size(THREADS)
fn gradient(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let tile = flat(group, groups);
    let tiles_n = (p.columns + BN - 1u) / BN;
    if tile >= tiles_n * ((p.rows + BM - 1u) / BM) {
        return;
    }
    let row0 = tile / tiles_n * BM;
    let column0 = tile % tiles_n * BN;
    product(row0, column0, 0u, p.depth, t);

    let own_row = t / WX * TM;
    let own_column = t % WX * TN;
    let row = row0 + own_row;
    let column = column0 + own_column;
    if END != END_PLAIN {
        stage_scales(row0, column0, t);
    }
    var none_bad: array<vec4<bool>, 2>;
    let doubtful = END != END_PLAIN && any_doubtful(none_bad);
    for (var q = 0u; q < QUADS; q += 1u) {
        let c = column + 4u * q;
        if c < p.columns {
            for (var i = 0u; i < TM; i += 1u) {
                if row + i < p.rows && !(ADD && doubtful) {
                    put_values(row, own_row, own_column, column, i, q, 0u);
                }
            }
        }
    }
    if END == END_PLAIN {
        return;
    }
    for (var block = first_block(doubtful); block < TM; block += BLOCK) { // TM / BLOCK iterations
        let first = row + block;
        var redo = elements_to_redo(doubtful_elements(block, first, column, none_bad), first, column, 0u, p.depth);
        if ADD {
            // Each element is added to once, by this or by what forms it again.
            for (var i = 0u; i < BLOCK; i += 1u) { // BLOCK iterations
                for (var q = 0u; q < QUADS; q += 1u) {
                    let again = (select(redo.first, redo.second, q == 1u) >> (4u * i)) & 0xfu;
                    if first + i < p.rows && column + 4u * q < p.columns {
                        put_values(row, own_row, own_column, column, block + i, q, again);
                    }
                }
            }
        }
        while any_of(redo) { // at most BLOCK * TN iterations
            let at = lowest(redo);
            redo = without_lowest(redo);
            let slot = slot_of(own_row + block + at.x, own_column + at.y);
            let sum = redo_dot(first + at.x, column + at.y, 0u, p.depth);
            let value = corrected(
                sum, v_at(first + at.x, column + at.y),
                Scale(scale_t[slot], scale_m[slot]), Scale(share_t[slot], share_m[slot]),
            );
            put_one(first + at.x, column + at.y, value);
        }
    }
}

// One split of one tile.
@compute @workgroup_size(THREADS)
fn gradient_partial(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let tile = flat(group, groups);
    let tiles_n = (p.columns + BN - 1u) / BN;
    let tiles = tiles_n * ((p.rows + BM - 1u) / BM);
    let split = tile / tiles;
    let k_first = split * p.split_length;
    if k_first >= p.depth {
        return;
    }
    let k_end = min(k_first + p.split_length, p.depth);
    let row0 = tile % tiles / tiles_n * BM;
    let column0 = tile % tiles_n * BN;
    product(row0, column0, k_first, k_end, t);
    let row = row0 + t / WX * TM;
    let column = column0 + t % WX * TN;
    put_parts((p.split_first + split) * p.rows, row, column, k_first, k_end, END != END_PLAIN);
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
    let sum = sum_of_parts(row, column);
    var value: f32;
    if END == END_PLAIN {
        value = narrow(sum);
    } else {
        let norm = slot_of(row, column);
        value = corrected(sum, v_at(row, column), scale_at(norm), share_at(norm));
    }
    put_one(row, column, value);
}
