// Both products in the gradients of a linear layer with a batch of a few rows, in one read of the weight:
//
//   dx[b,k] = sum_j dy[b,j] * w[j,k]        dv[j,k] = a_j * (sum_b dy[b,j] * x[b,k] - s_j * v[j,k])
//
//   x, dx: (rows, ins)    dy: (rows, outs)    v, w, dv: (outs, ins)
//
// with w = a_j * v and the factors a = g / n̂ and s = dg / d of each norm (batch.wgsl, write_factors). NORMED = false: w = v,
// a = 1, s = 0. All f32; rows of ins elements are whole quads that start at multiples of four elements of the binding.
//
// A workgroup is one subgroup of WX lanes. It has WX * QUADS quads of columns and goes down the rows of v of a split, WX at
// a time: a lane fetches what belongs to one of them, and the lanes hand it round. What they have of x and dx stays in
// registers. Neighbouring workgroups have neighbouring columns of the same rows, since a page of memory that is left and
// come back to later costs as much as reading it. Of several splits each leaves its dx in `part`, and `few_finish` adds
// them up in order.
//
// What of dv may leave the range in which f32 keeps it exact enough is formed again with exponents of its own (redo_quad).
// No invocation loops more often than the host allows: SPLIT_LENGTH of few.rs bounds it.

struct Params {
    rows: u32,
    outs: u32,
    quads: u32,       // of a row of v
    firsts: u32,      // 8 bits each: the first element within its binding of x, v, dy, dx
    more_firsts: u32, // of dv, factors
    split_length: u32, // rows of v in a split
    splits: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<Four>; // (rows, quads)
@group(0) @binding(1) var<storage, read> v: array<Four>; // (outs, quads)
@group(0) @binding(2) var<storage, read> dy: array<f32>; // (rows, outs)
@group(0) @binding(3) var<storage, read> factors: array<vec4<f32>>; // (outs): the Scale a, the Scale s
@group(0) @binding(4) var<storage, read_write> dx: array<Four>; // (rows, quads)
@group(0) @binding(5) var<storage, read_write> dv: array<Four>; // (outs, quads)

@group(0) @binding(6) var<storage, read_write> part: array<Four>; // (splits, rows, quads): dx of each split

override NORMED: bool = true;
override WX: u32 = 8u;
override ROWS: u32 = 8u; // of x, rounded up: 1, 2, 4 or 8
override QUADS: u32 = 4u; // of a lane: 1, 2, 4 or 8

var<private> inputs: array<vec4<f32>, 64>; // [quad][row], in registers, since only constants index them
var<private> sums: array<vec4<f32>, 64>;

// Of the lane's own row of v: dy * a / e, e, and s * a / e. e is a power of two: 1 unless a is far from 1.
var<private> own_dy: array<f32, 8>;
var<private> own_e: f32;
var<private> own_s: f32;

// The same of the row at hand.
var<private> row_dy: array<f32, 8>;
var<private> row_e: f32;
var<private> row_s: f32;

// Magnitudes, doubled bits.
const LARGE = 2u * 0x5d800000u; // 2^60
const NEAR = 30;
const FINISH_THREADS = 64u;

fn doubled(a: f32) -> u32 {
    return bitcast<u32>(a) << 1u;
}

fn largest(a: vec4<f32>) -> u32 {
    let m = bitcast<vec4<u32>>(a) << vec4<u32>(1u);
    return max(max(m.x, m.y), max(m.z, m.w));
}

fn dy_at(b: u32, j: u32) -> f32 {
    let value = dy[extractBits(p.firsts, 16u, 8u) + min(b, p.rows - 1u) * p.outs + min(j, p.outs - 1u)];
    return select(0.0, value, b < p.rows && j < p.outs);
}

// Fetches what belongs to row j. Returns the largest of dy * a / e, or more than that where the row has to be gone
// through again.
fn fetch(j: u32) -> u32 {
    for (var b = 0u; b < ROWS; b += 1u) {
        own_dy[b] = dy_at(b, j);
    }
    if !NORMED {
        return 0u;
    }
    let four = factors[extractBits(p.more_firsts, 8u, 8u) + min(j, p.outs - 1u)];
    let exponent = 2 * (i32(magnitude(four.x) >> 23u) - 127) + i32(magnitude(four.y) >> 23u) - 127;
    let near = abs(exponent) <= NEAR;
    // What e leaves of a; v * e is normal or next to nothing beside g.
    let e = select(clamp(exponent, -126, 126), 0, near);
    let a = wide(four.y).m * exp2i(clamp(exponent - e, -126, 127));
    own_e = exp2i(e);
    own_s = ((four.w * a) * four.z) * four.z;
    // Zero factors are right; what else is not normal may have lost its digits.
    var wild = !near && doubled(four.y) != 0u;
    wild |= !is_normal(own_s) && doubled(four.w) != 0u && doubled(a) != 0u;
    var most = doubled(own_s);
    for (var b = 0u; b < ROWS; b += 1u) {
        let scaled = own_dy[b] * a;
        wild |= !is_normal(scaled) && is_normal(own_dy[b]) && doubled(a) != 0u;
        own_dy[b] = scaled;
        most = max(most, doubled(scaled));
    }
    return select(most, 0xffffffffu, wild);
}

// Quad q of row j of v: what it adds to dx, and dv.
fn take_quad(q: u32, at: u32, there: bool) {
    let four = four_numbers(v[extractBits(p.firsts, 8u, 8u) / 4u + at]);
    var w = four;
    if NORMED {
        w *= row_e;
    }
    var c = row_dy[0] * inputs[q * ROWS];
    sums[q * ROWS] += row_dy[0] * w;
    for (var b = 1u; b < ROWS; b += 1u) {
        sums[q * ROWS + b] += row_dy[b] * w;
        c += row_dy[b] * inputs[q * ROWS + b];
    }
    if NORMED {
        c -= row_s * four;
    }
    if there {
        dv[extractBits(p.more_firsts, 0u, 8u) / 4u + at] = four_of_numbers(c);
    }
}

// Quads of a lane lie WX apart. Those past the last one repeat it.
fn quad_of_lane(first: u32, q: u32) -> u32 {
    return min(first + q * WX, p.quads - 1u);
}

fn load_inputs(q: u32, first: u32) -> u32 {
    var most = 0u;
    for (var b = 0u; b < ROWS; b += 1u) {
        let at = extractBits(p.firsts, 0u, 8u) / 4u + min(b, p.rows - 1u) * p.quads + quad_of_lane(first, q);
        let four = select(vec4<f32>(), four_numbers(x[at]), b < p.rows);
        inputs[q * ROWS + b] = four;
        most = max(most, largest(four));
    }
    return most;
}

fn store_sums(q: u32, first: u32, split: u32) {
    for (var b = 0u; b < ROWS; b += 1u) {
        if b < p.rows && first + q * WX < p.quads {
            let row = split * p.rows + b;
            dx[extractBits(p.firsts, 24u, 8u) / 4u + row * p.quads + first + q * WX] = four_of_numbers(sums[q * ROWS + b]);
        }
    }
}

@compute @workgroup_size(WX)
fn few(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let id = flat(group, groups);
    let blocks = (p.quads + WX * QUADS - 1u) / (WX * QUADS);
    let split = id / blocks;
    if split >= p.splits {
        return;
    }
    let begin = split * p.split_length;
    let end = min(begin + p.split_length, p.outs);
    let first = id % blocks * (WX * QUADS) + t;
    // The largest elements of x and of dy * a / e.
    var most_x = load_inputs(0u, first);
    if QUADS > 1u {
        most_x = max(most_x, load_inputs(1u, first));
    }
    if QUADS > 2u {
        most_x = max(most_x, max(load_inputs(2u, first), load_inputs(3u, first)));
    }
    if QUADS > 4u {
        most_x = max(most_x, max(load_inputs(4u, first), load_inputs(5u, first)));
        most_x = max(most_x, max(load_inputs(6u, first), load_inputs(7u, first)));
    }
    var most_dy = 0u;
    for (var row = begin; row < end; row += WX) { // split_length / WX iterations
        most_dy = max(most_dy, fetch(row + t));
        for (var i = 0u; i < WX; i += 1u) { // WX iterations
            for (var b = 0u; b < ROWS; b += 1u) {
                row_dy[b] = subgroupShuffle(own_dy[b], i);
            }
            if NORMED {
                row_e = subgroupShuffle(own_e, i);
                row_s = subgroupShuffle(own_s, i);
            }
            let j = min(row + i, p.outs - 1u) * p.quads;
            let there = row + i < end;
            take_quad(0u, j + quad_of_lane(first, 0u), there && first < p.quads);
            if QUADS > 1u {
                take_quad(1u, j + quad_of_lane(first, 1u), there && first + WX < p.quads);
            }
            if QUADS > 2u {
                take_quad(2u, j + quad_of_lane(first, 2u), there && first + 2u * WX < p.quads);
                take_quad(3u, j + quad_of_lane(first, 3u), there && first + 3u * WX < p.quads);
            }
            if QUADS > 4u {
                take_quad(4u, j + quad_of_lane(first, 4u), there && first + 4u * WX < p.quads);
                take_quad(5u, j + quad_of_lane(first, 5u), there && first + 5u * WX < p.quads);
                take_quad(6u, j + quad_of_lane(first, 6u), there && first + 6u * WX < p.quads);
                take_quad(7u, j + quad_of_lane(first, 7u), there && first + 7u * WX < p.quads);
            }
        }
    }
    store_sums(0u, first, split);
    if QUADS > 1u {
        store_sums(1u, first, split);
    }
    if QUADS > 2u {
        store_sums(2u, first, split);
        store_sums(3u, first, split);
    }
    if QUADS > 4u {
        store_sums(4u, first, split);
        store_sums(5u, first, split);
        store_sums(6u, first, split);
        store_sums(7u, first, split);
    }
    if !NORMED {
        return;
    }
    // Lanes differ in the rows whose dy they have seen.
    most_dy = subgroupMax(most_dy);
    let calm = in_range(most_dy, most_x);
    for (var j = select(begin, end, calm); j < end; j += 1u) { // split_length iterations
        let last = select(first, p.quads, in_range(fetch(j), most_x));
        for (var quad = last; quad < min(first + QUADS * WX, p.quads); quad += WX) { // QUADS iterations
            redo_quad(j, quad);
        }
    }
}

// Whether no product of dy * a / e and x, nor their sum, comes near the end of f32's range.
fn in_range(most_dy: u32, most_x: u32) -> bool {
    return most_dy < LARGE && most_x < LARGE;
}

// dv of a quad, whatever the exponents.
fn redo_quad(j: u32, quad: u32) {
    let four = four_numbers(v[extractBits(p.firsts, 8u, 8u) / 4u + j * p.quads + quad]);
    var c = array<Wide, 4>(Wide(0.0, NOTHING), Wide(0.0, NOTHING), Wide(0.0, NOTHING), Wide(0.0, NOTHING));
    redo_row(&c, j, 0u, quad);
    if ROWS > 1u {
        redo_row(&c, j, 1u, quad);
    }
    if ROWS > 2u {
        redo_row(&c, j, 2u, quad);
        redo_row(&c, j, 3u, quad);
    }
    if ROWS > 4u {
        redo_row(&c, j, 4u, quad);
        redo_row(&c, j, 5u, quad);
        redo_row(&c, j, 6u, quad);
        redo_row(&c, j, 7u, quad);
    }
    let of_row = factors[extractBits(p.more_firsts, 8u, 8u) + j];
    let a = wide_scale(Scale(of_row.x, of_row.y));
    let s = wide_scale(Scale(of_row.z, of_row.w));
    let x_part = product_of(wide(four.x), s);
    let y_part = product_of(wide(four.y), s);
    let z_part = product_of(wide(four.z), s);
    let w_part = product_of(wide(four.w), s);
    dv[extractBits(p.more_firsts, 0u, 8u) / 4u + j * p.quads + quad] = four_of_numbers(vec4<f32>(
        narrow(product_of(sum_of(c[0], Wide(-x_part.m, x_part.e)), a)),
        narrow(product_of(sum_of(c[1], Wide(-y_part.m, y_part.e)), a)),
        narrow(product_of(sum_of(c[2], Wide(-z_part.m, z_part.e)), a)),
        narrow(product_of(sum_of(c[3], Wide(-w_part.m, w_part.e)), a)),
    ));
}

fn redo_row(c: ptr<function, array<Wide, 4>>, j: u32, b: u32, quad: u32) {
    let y = wide(dy_at(b, j));
    let at = extractBits(p.firsts, 0u, 8u) / 4u + min(b, p.rows - 1u) * p.quads + quad;
    let four = select(vec4<f32>(), four_numbers(x[at]), b < p.rows);
    (*c)[0] = sum_of((*c)[0], product_of(y, wide(four.x)));
    (*c)[1] = sum_of((*c)[1], product_of(y, wide(four.y)));
    (*c)[2] = sum_of((*c)[2], product_of(y, wide(four.z)));
    (*c)[3] = sum_of((*c)[3], product_of(y, wide(four.w)));
}

// dx out of the partial sums of the splits, in order. One invocation a quad.
@compute @workgroup_size(FINISH_THREADS)
fn few_finish(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let quad = flat(group, groups) * FINISH_THREADS + t;
    let count = p.rows * p.quads;
    if quad >= count {
        return;
    }
    var sum = vec4<f32>();
    for (var split = 0u; split < p.splits; split += 1u) { // splits iterations
        sum += four_numbers(part[split * count + quad]);
    }
    dx[extractBits(p.firsts, 24u, 8u) / 4u + quad] = four_of_numbers(sum);
}
