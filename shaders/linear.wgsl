// y[b,j] = activation(sum_k x[b,k] * w[j,k] + bias_j),   x: (batch, in_features)   v, w: (out_features, in_features)
//
//   NORM_PLAIN  w = v
//   NORM_FUSED  w = g_j * v / n̂_j, the norm of row j summed up beside the product: y = g_j * u + bias_j, u = (x·v_j) / n̂_j
//   NORM_GIVEN  the same with norms that are known: norms_in[j]
//   NORM_WHOLE  w = g * v / n̂, one norm for all of v: norms_in holds it as f32 m and i32 e, m * 2^e
//   NORM_IN     w = g_k * v / n̂_k: norms_in[2k], norms_in[2k + 1] hold the Scale g_k / n̂_k
//
// `linear` does all of it in one dispatch. Where in_features is split, `linear_partial` leaves the partial sums of
// each split in `part`, and `linear_finish` adds them up in order.
//
// The product is that of product.wgsl, with A = x and B = v. With NORM_FUSED an invocation adds up the squares of what it
// reads of v anyway, so that v is read no more often than by the plain product; the workgroups of the first rows of y
// write the norms out.

@group(0) @binding(2) var<storage, read> g: array<u32>; // (out_features), or one element with NORM_WHOLE; words of GAIN_DTYPE
@group(0) @binding(3) var<storage, read> bias: array<u32>; // (out_features), words of BIAS_DTYPE
@group(0) @binding(4) var<storage, read> norms_in: array<f32>; // see NORM_ above
@group(0) @binding(6) var<storage, read_write> norms_out: array<f32>; // (out_features): n̂
@group(0) @binding(8) var<storage, read_write> part: array<vec2<u32>>; // (splits, rows, columns) of C, (splits, columns) of v²

override NORM: u32 = NORM_FUSED;
override ACTIVATION: u32 = 0u;
override HAS_GAIN: bool = true;
override GAIN_DTYPE: u32 = F32;
override BIAS_DTYPE: u32 = F32;
override HAS_BIAS: bool = true;
override WRITE_NORMS: bool = false;
override WRITE_U: bool = false;

const NORM_PLAIN = 0u;
const NORM_FUSED = 1u;
const NORM_GIVEN = 2u;
const NORM_WHOLE = 3u;
const NORM_IN = 4u;

const ACT_RELU = 1u;
const ACT_LEAKY_RELU = 2u;
const ACT_GELU = 3u;
const ACT_SILU = 4u;
const ACT_TANH = 5u;

override SQUARES: bool = NORM == NORM_FUSED;
override SCALED_B: bool = NORM == NORM_IN;
override NORMED: bool = NORM == NORM_FUSED || NORM == NORM_GIVEN || NORM == NORM_WHOLE;

fn step_scale(k: u32, part: u32) -> f32 {
    return norms_in[extractBits(p.more_firsts, 16u, 8u) + 2u * k + part];
}

// The sum of squares of one row of v over k_first .. k_end - 1, scaled by 2^c.
fn redo_squares(column: u32, k_first: u32, k_end: u32, c: i32) -> f32 {
    let scale = exp2i(c);
    var s = vec4<f32>();
    for (var k = k_first; k < k_end; k += REDO_STEPS) { // split_length / REDO_STEPS iterations
        s += squares_of_steps(column, k, k_end, scale);
        if REDO_STEPS > 4u {
            s += squares_of_steps(column, k + 4u, k_end, scale);
        }
        if REDO_STEPS > 8u {
            s += squares_of_steps(column, k + 8u, k_end, scale) + squares_of_steps(column, k + 12u, k_end, scale);
        }
    }
    return (s.x + s.y) + (s.z + s.w);
}

fn squares_of_steps(column: u32, k: u32, k_end: u32, scale: f32) -> vec4<f32> {
    let four = b_along_k(column, k, left_of(k, k_end, true)) * scale;
    return four * four;
}

// The sum of squares of column c of those that start at column0. Call stage_squares before.
fn column_sum(c: u32, column0: u32, k_first: u32, k_end: u32) -> Wide {
    var s = column_square(c);
    let up = lift(s);
    if up != 0 {
        s = redo_squares(column0 + c, k_first, k_end, up);
    }
    return Wide(s, -2 * up);
}

// n̂ of the columns of the tile into norm_m, norm_e.
fn find_norms(column0: u32, t: u32, write: bool) {
    if NORM == NORM_FUSED {
        stage_squares(t);
    }
    let base = norms_column(column0, t);
    var wild = 0u; // a bit for each round whose sum of squares left the safe range
    for (var c = first_norm(t); c < NORMS; c += SHARE) { // at most NORMS / SHARE iterations
        if base + c < p.columns {
            if NORM == NORM_FUSED {
                let s = column_square(c);
                let at = (c - first_norm(t)) / SHARE;
                wild |= select(0u, 1u << at, lift(s) != 0);
                put_norm(c, base, Wide(safe_norm(s), 0), write);
            } else {
                put_norm(c, base, known_norm(base + c), false);
            }
        }
    }
    // Once more for what is out of range: a loop of its own, since a CPU driver runs through its body in any case.
    while wild != 0u { // at most NORMS / SHARE iterations
        let c = first_norm(t) + countTrailingZeros(wild) * SHARE;
        wild &= wild - 1u;
        put_norm(c, base, effective_norm(column_sum(c, base, 0u, p.depth), p.policy, p.eps), write);
    }
    share_norms();
}

// effective_norm of a sum of squares in the safe range.
fn safe_norm(s: f32) -> f32 {
    let n = sqrt(select(s, s + p.eps, p.policy == EPS_INSIDE_SQRT));
    let clamped = select(n, max(n, p.eps), p.policy == EPS_CLAMP);
    return select(clamped, n + p.eps, p.policy == EPS_AFTER);
}

fn put_norm(c: u32, base: u32, norm: Wide, write: bool) {
    if WRITE_NORMS && write {
        norms_out[extractBits(p.more_firsts, 24u, 8u) + base + c] = narrow(norm);
    }
    norm_m[c] = norm.m;
    norm_e[c] = norm.e;
}

fn known_norm(column: u32) -> Wide {
    let first = extractBits(p.more_firsts, 16u, 8u);
    if NORM == NORM_WHOLE {
        return Wide(norms_in[first], bitcast<i32>(norms_in[first + 1u]));
    }
    return Wide(norms_in[first + column], 0);
}

fn gain_of(column: u32) -> f32 {
    if !HAS_GAIN {
        return 1.0;
    }
    let at = extractBits(p.more_firsts, 0u, 8u) + select(column, 0u, NORM == NORM_WHOLE);
    return unpack(g[word_holding(at, GAIN_DTYPE)], at, GAIN_DTYPE);
}

fn bias_of(column: u32) -> f32 {
    if !HAS_BIAS {
        return 0.0;
    }
    let at = extractBits(p.more_firsts, 8u, 8u) + column;
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

// tanh to a few 2^-24: WGSL promises 1e-5 only, and some drivers give NaN for large arguments.
fn tanh_of(a: vec4<f32>) -> vec4<f32> {
    let size = abs(clamp(a, vec4<f32>(-15.0), vec4<f32>(15.0)));
    let e = exp(-2.0 * size);
    let large = (1.0 - e) / (1.0 + e);
    let s2 = size * size;
    let small = size * (1.0 - s2 * (1.0 / 3.0 - s2 * (2.0 / 15.0 - s2 * (17.0 / 315.0))));
    let value = select(large, small, size < vec4<f32>(0.25)) * sign(a);
    // clamp may turn NaN into a number.
    let nan = (bitcast<vec4<u32>>(a) & vec4<u32>(MAGNITUDE)) > vec4<u32>(INFINITY);
    return select(value, a, nan);
}

fn activate(a: vec4<f32>) -> vec4<f32> {
    // By the bits: Mesa's GL makes max(a, 0) of a float comparison, and 0 of NaN.
    let negative = bitcast<vec4<u32>>(a) - vec4<u32>(0x80000000u) <= vec4<u32>(INFINITY);
    if ACTIVATION == ACT_RELU {
        return select(a, vec4<f32>(), negative);
    }
    if ACTIVATION == ACT_LEAKY_RELU {
        return select(a, a * p.slope, negative);
    }
    if ACTIVATION == ACT_GELU {
        // From |a| = 10 on tanh is ±1 in f32, and a³ may overflow.
        let b = clamp(a, vec4<f32>(-10.0), vec4<f32>(10.0));
        return 0.5 * a * (1.0 + tanh_of(0.7978845608 * (b + 0.044715 * b * b * b)));
    }
    if ACTIVATION == ACT_SILU {
        // exp(80) is far from overflow. Below -80, 1 + exp(-a) is exp(-a) to f32, and exp(a) falls to 0.
        let near = a / (1.0 + exp(-clamp(a, vec4<f32>(-80.0), vec4<f32>(80.0))));
        let far = a * exp(clamp(a, vec4<f32>(-200.0), vec4<f32>()));
        return select(near, far, a < vec4<f32>(-80.0));
    }
    if ACTIVATION == ACT_TANH {
        return tanh_of(a);
    }
    return a;
}

// u = (x·v_j) / n̂_j, whatever the exponents.
fn quotient_of(dot: Wide, norm: Wide) -> Wide {
    if NORM == NORM_PLAIN || NORM == NORM_IN {
        return dot;
    }
    return quotient(dot, norm);
}

// Writes one element of y out of u, and u.
fn put_one(row: u32, column: u32, quotient: Wide) {
    var value = narrow(quotient);
    if WRITE_U {
        put_u_element(u_place(row, column), value);
    }
    if HAS_GAIN && NORM != NORM_PLAIN && NORM != NORM_IN {
        value = narrow(product_of(wide(gain_of(column)), quotient));
    }
    let act = activate(vec4<f32>(value + bias_of(column)));
    put_element(extractBits(p.firsts, 16u, 8u) + row * p.c_stride + column, act.x);
}

fn u_place(row: u32, column: u32) -> u32 {
    return extractBits(p.firsts, 24u, 8u) + row * p.c_stride + column;
}

fn put(row: u32, column: u32, values: vec4<f32>, count: u32) {
    put_four(extractBits(p.firsts, 16u, 8u) + row * p.c_stride + column, activate(values), count);
}

// Of the invocation's columns: 1 / n̂, g, bias.
var<private> reciprocals: array<vec4<f32>, 2>;
var<private> gains: array<vec4<f32>, 2>;
var<private> biases: array<vec4<f32>, 2>;

// Writes a block of y, and of u; the invocation's first element is at (row, column).
fn put_block(block: u32, row: u32, column: u32) {
    take_block(block);
    for (var q = 0u; q < QUADS; q += 1u) {
        let c = column + STEP * q;
        let left = left_of(c, p.columns, true);
        var found = 0u;
        for (var i = 0u; i < BLOCK; i += 1u) {
            let m = row + block * BLOCK + i;
            if NORMED {
                found |= look_at(i, q);
            }
            if m < p.rows && left > 0u {
                var values = sum_at(i, q);
                if NORMED {
                    values *= reciprocals[q];
                }
                if WRITE_U {
                    put_u(u_place(m, c), values, left);
                }
                if NORMED {
                    values *= gains[q];
                }
                put(m, c, values + biases[q], left);
            }
        }
        unsafe_bits[QUADS * block + q] = found;
    }
}

@compute @workgroup_size(THREADS)
fn linear(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let tile = flat(group, groups);
    if tile >= tile_count() {
        return;
    }
    let origin = tile_origin(tile);
    let row0 = origin.x;
    let column0 = origin.y;
    product(row0, column0, 0u, p.depth, t);

    let row = row0 + t / WX * TM;
    let column = column0 + own_column(t);
    var bad_columns = 0u;
    if NORMED {
        find_norms(column0, t, row0 == 0u);
        for (var q = 0u; q < QUADS; q += 1u) {
            let c = own_norms(t) + STEP * q;
            let m = vec4<f32>(norm_m[c], norm_m[c + 1u], norm_m[c + 2u], norm_m[c + 3u]);
            let e = vec4<i32>(norm_e[c], norm_e[c + 1u], norm_e[c + 2u], norm_e[c + 3u]);
            reciprocals[q] = 1.0 / m;
            let bad = (unsafe_distance(m) >= vec4<u32>(UNSAFE)) | (e != vec4<i32>());
            bad_columns |= any_bits(select(vec4<u32>(), vec4<u32>(1u, 2u, 4u, 8u), bad)) << (4u * q);
        }
    }
    for (var q = 0u; q < QUADS; q += 1u) {
        gains[q] = gains_of(min(column + STEP * q, p.columns - 1u));
        biases[q] = biases_of(min(column + STEP * q, p.columns - 1u));
    }
    put_block(0u, row, column);
    if TM > 8u {
        put_block(1u, row, column);
    }
    if TM > 16u {
        put_block(2u, row, column);
        put_block(3u, row, column);
    }
    if TM > 32u {
        put_block(4u, row, column);
        put_block(5u, row, column);
        put_block(6u, row, column);
        put_block(7u, row, column);
    }
    if !NORMED {
        return;
    }
    for (var block = first_block(bad_columns); block < TM / BLOCK; block += 1u) { // TM / BLOCK iterations
        var redo = elements_to_redo(block, row, column, bad_columns, 0u, p.depth);
        while any_of(redo) { // at most BLOCK * TN iterations
            let at = lowest(redo);
            redo = without_lowest(redo);
            let m = row + block * BLOCK + at.x;
            let norm = Wide(norm_m[own_norms(t) + at.y], norm_e[own_norms(t) + at.y]);
            put_one(m, column + at.y, quotient_of(redo_dot(m, column + at.y, 0u, p.depth), norm));
        }
    }
}

// One split of one tile of y: its dot products and, from the tiles of the first rows, its sums of squares.
@compute @workgroup_size(THREADS)
fn linear_partial(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let tile = flat(group, groups);
    let split = tile / tile_count();
    let k_first = split * p.split_length;
    if k_first >= p.depth {
        return;
    }
    let k_end = min(k_first + p.split_length, p.depth);
    let origin = tile_origin(tile % tile_count());
    let row0 = origin.x;
    let column0 = origin.y;
    product(row0, column0, k_first, k_end, t);

    if NORM == NORM_FUSED {
        stage_squares(t);
        let base = norms_column(column0, t);
        for (var c = first_norm(t); c < NORMS; c += SHARE) { // at most NORMS / SHARE iterations
            if row0 == 0u && base + c < p.columns {
                let sum = column_sum(c, base, k_first, k_end);
                let at = (p.splits * p.rows + p.split_first + split) * p.columns + base + c;
                part[at] = vec2<u32>(bitcast<u32>(sum.m), bitcast<u32>(sum.e));
            }
        }
    }
    let row = row0 + t / WX * TM;
    let column = column0 + own_column(t);
    put_parts((p.split_first + split) * p.rows, row, column, k_first, k_end, NORMED);
}

// One invocation an element of y.
@compute @workgroup_size(FINISH_THREADS)
fn linear_finish(
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
    let dot = sum_of_parts(row, column);
    var norm = Wide(1.0, 0);
    if NORM == NORM_FUSED {
        var sum = Wide(0.0, NOTHING);
        for (var s = 0u; s < p.splits; s += 1u) { // splits iterations
            let bits = part[(p.splits * p.rows + s) * p.columns + column];
            sum = sum_of(sum, Wide(bitcast<f32>(bits.x), bitcast<i32>(bits.y)));
        }
        norm = effective_norm(sum, p.policy, p.eps);
        if WRITE_NORMS && row == 0u {
            norms_out[extractBits(p.more_firsts, 24u, 8u) + column] = narrow(norm);
        }
    }
    if NORM == NORM_GIVEN || NORM == NORM_WHOLE {
        norm = known_norm(column);
    }
    put_one(row, column, quotient_of(dot, norm));
}
