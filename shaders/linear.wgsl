// y[b,j] = activation(sum_k x[b,k] * w[j,k] + bias_j),   x: (batch, in_features)   v, w: (out_features, in_features)
//
//   NORM_PLAIN  w = v
//   NORM_FUSED  w = g_j * v / n̂_j, the norm of row j summed up beside the product: y = g_j * (x·v_j) / n̂_j + bias_j
//   NORM_GIVEN  the same with norms that are known: norms_in[j]
//   NORM_WHOLE  w = g * v / n̂, one norm for all of v: norms_in holds it as f32 m and i32 e, m * 2^e
//   NORM_IN     w = g_k * v / n̂_k: norms_in[2k..] holds (t, m) with w = ((v * t) * m) * t
//
// `linear` does all of it in one dispatch. Where in_features is split, `linear_partial` leaves the partial sums of
// each split in `part`, and `linear_finish` adds them up in order.
//
// A workgroup computes BM rows by BN columns of y, an invocation TM rows by TN neighbouring columns. BK columns of x
// and v are staged in workgroup memory at a time. With NORM_FUSED an invocation adds up the squares of what it stages
// of v, so that v is read no more often than by the plain product; the workgroups of the first rows of y write the
// norms out.
//
// Where a sum left the range in which f32 keeps it exact enough, the invocation that owns it forms it again with
// exponents of its own (redo_*), without barriers. Nothing else pays for that.
// No invocation loops more often than the host allows (linear.rs, Tile::max_length).

struct Params {
    batch: u32,        // rows of x and y in this dispatch
    outs: u32,         // rows of v, columns of y in this dispatch
    ins: u32,          // columns of x and v in this dispatch
    stride: u32,       // in_features: elements from a row of x or v to the next
    y_stride: u32,     // out_features: elements from a row of y to the next
    split_length: u32, // columns in a split
    split_first: u32,  // the number of the first split in this dispatch
    splits: u32,       // of all dispatches
    firsts: u32,       // 8 bits each: the first element of x, v, y within its binding
    more_firsts: u32,  // 8 bits each: the first element of g, bias, norms_in, norms_out
    policy: u32,
    eps: f32,
    slope: f32,        // of ACT_LEAKY_RELU
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<u32>; // words of X_DTYPE
@group(0) @binding(1) var<storage, read> v: array<u32>; // words of V_DTYPE
@group(0) @binding(2) var<storage, read> g: array<f32>; // (out_features), or one element with NORM_WHOLE
@group(0) @binding(3) var<storage, read> bias: array<f32>; // (out_features)
@group(0) @binding(4) var<storage, read> norms_in: array<f32>; // see NORM_ above
@group(0) @binding(6) var<storage, read_write> norms_out: array<f32>; // (out_features): n̂
@group(0) @binding(7) var<storage, read_write> part: array<vec2<u32>>; // (splits, batch, outs) Wide, (splits, outs) Sum

override X_DTYPE: u32 = F32;
override V_DTYPE: u32 = F32;
override NORM: u32 = NORM_FUSED;
override ACTIVATION: u32 = 0u;
override HAS_GAIN: bool = true;
override HAS_BIAS: bool = true;
override WRITE_NORMS: bool = false;

override WX: u32 = 8u; // invocations along the columns of y
override WY: u32 = 8u; // along its rows
override TM: u32 = 8u; // rows of an invocation, at most 8
override TN: u32 = 8u; // its columns, 4 or 8

override THREADS: u32 = WX * WY;
override BM: u32 = WY * TM;
override BN: u32 = WX * TN;
override QUADS: u32 = TN / 4u;
override X_STAGES: u32 = (BM * BK / 4u + THREADS - 1u) / THREADS;
override V_STAGES: u32 = (BN * BK / 4u + THREADS - 1u) / THREADS; // at most 4

const BK = 16u;
const BK4 = BK / 4u;

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

// Sums outside of 2^-60 .. 2^60 are formed again. Both the dot products and the norms then lie where their quotient is
// a normal number, and where nothing that matters was lost below 2^-126 or overflowed.
const SAFE_LOW = 0x21800000u;
const SAFE_HIGH = 0x5d800000u;

var<workgroup> xs: array<f32, BM * BK>; // [k][row]
var<workgroup> vs: array<f32, BN * BK>; // [k][column]
var<workgroup> norm_m: array<f32, BN>; // n̂ of a column of y: norm_m * 2^norm_e
var<workgroup> norm_e: array<i32, BN>;

var<private> acc: array<vec4<f32>, 16>; // [row][quad of columns]
var<private> squares: array<f32, 4>; // of what this invocation staged of v

fn x_first() -> u32 {
    return extractBits(p.firsts, 0u, 8u);
}

fn v_first() -> u32 {
    return extractBits(p.firsts, 8u, 8u);
}

// Four elements of x from e on, zero from the `left`-th on.
fn x_four(e: u32, left: u32) -> vec4<f32> {
    if left == 0u {
        return vec4<f32>();
    }
    let last = e + min(left, 4u) - 1u;
    var four: vec4<f32>;
    if X_DTYPE == F32 {
        four = bitcast<vec4<f32>>(vec4<u32>(x[e], x[min(e + 1u, last)], x[min(e + 2u, last)], x[min(e + 3u, last)]));
    } else {
        let w = e >> 1u;
        let z = last >> 1u;
        four = unpack_quad(vec3<u32>(x[w], x[min(w + 1u, z)], x[min(w + 2u, z)]), (e & 1u) == 1u, X_DTYPE);
    }
    return select(vec4<f32>(), four, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(left));
}

// The same of v.
fn v_four(e: u32, left: u32) -> vec4<f32> {
    if left == 0u {
        return vec4<f32>();
    }
    let last = e + min(left, 4u) - 1u;
    var four: vec4<f32>;
    if V_DTYPE == F32 {
        four = bitcast<vec4<f32>>(vec4<u32>(v[e], v[min(e + 1u, last)], v[min(e + 2u, last)], v[min(e + 3u, last)]));
    } else {
        let w = e >> 1u;
        let z = last >> 1u;
        four = unpack_quad(vec3<u32>(v[w], v[min(w + 1u, z)], v[min(w + 2u, z)]), (e & 1u) == 1u, V_DTYPE);
    }
    return select(vec4<f32>(), four, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(left));
}

// How many of the elements k .. end - 1 there are, none if the row is not there.
fn left_of(k: u32, end: u32, row: u32, rows: u32) -> u32 {
    return select(0u, end - k, k < end && row < rows);
}

// w of NORM_IN for four columns of v from k on.
fn scale_columns(four: vec4<f32>, k: u32, left: u32) -> vec4<f32> {
    var values = four;
    for (var i = 0u; i < min(left, 4u); i += 1u) { // at most 4 iterations
        let at = extractBits(p.more_firsts, 16u, 8u) + 2u * (k + i);
        let t = norms_in[at];
        values[i] = ((values[i] * t) * norms_in[at + 1u]) * t;
    }
    return values;
}

// acc = x·vᵀ over the columns k_first .. k_end - 1 for the tile at (row0, column0); squares with NORM_FUSED.
fn product(row0: u32, column0: u32, k_first: u32, k_end: u32, t: u32) {
    let own_row = t / WX * TM;
    let own_column = t % WX * TN;
    for (var i = 0u; i < TM * QUADS; i += 1u) {
        acc[i] = vec4<f32>();
    }
    for (var k0 = k_first; k0 < k_end; k0 += BK) { // split_length / BK iterations
        for (var stage = 0u; stage < X_STAGES; stage += 1u) {
            let quad = stage * THREADS + t;
            if quad < BM * BK4 {
                let row = quad / BK4;
                let k = k0 + quad % BK4 * 4u;
                let left = left_of(k, k_end, row0 + row, p.batch);
                let four = x_four(x_first() + (row0 + row) * p.stride + k, left);
                let at = quad % BK4 * 4u * BM + row;
                xs[at] = four.x;
                xs[at + BM] = four.y;
                xs[at + 2u * BM] = four.z;
                xs[at + 3u * BM] = four.w;
            }
        }
        for (var stage = 0u; stage < V_STAGES; stage += 1u) {
            let quad = stage * THREADS + t;
            if quad < BN * BK4 {
                let column = quad / BK4;
                let k = k0 + quad % BK4 * 4u;
                let left = left_of(k, k_end, column0 + column, p.outs);
                var four = v_four(v_first() + (column0 + column) * p.stride + k, left);
                if NORM == NORM_FUSED {
                    squares[stage] += dot(four, four);
                }
                if NORM == NORM_IN {
                    four = scale_columns(four, k, left);
                }
                let at = quad % BK4 * 4u * BN + column;
                vs[at] = four.x;
                vs[at + BN] = four.y;
                vs[at + 2u * BN] = four.z;
                vs[at + 3u * BN] = four.w;
            }
        }
        workgroupBarrier();
        for (var k = 0u; k < BK; k += 1u) { // BK iterations
            var b: array<vec4<f32>, 2>;
            for (var q = 0u; q < QUADS; q += 1u) {
                let at = k * BN + own_column + 4u * q;
                b[q] = vec4<f32>(vs[at], vs[at + 1u], vs[at + 2u], vs[at + 3u]);
            }
            for (var i = 0u; i < TM; i += 1u) {
                let a = xs[k * BM + own_row + i];
                for (var q = 0u; q < QUADS; q += 1u) {
                    acc[i * QUADS + q] += a * b[q];
                }
            }
        }
        // The next step overwrites what slower invocations still read.
        workgroupBarrier();
    }
}

// The sum of squares of one row of v over the columns k_first .. k_end - 1, scaled by 2^c.
fn redo_squares(column: u32, k_first: u32, k_end: u32, c: i32) -> f32 {
    let first = v_first() + column * p.stride;
    let scale = exp2i(c);
    var s = vec4<f32>();
    for (var k = k_first; k < k_end; k += 16u) { // split_length / 16 iterations
        let a = v_four(first + k, left_of(k, k_end, 0u, 1u)) * scale;
        let b = v_four(first + k + 4u, left_of(k + 4u, k_end, 0u, 1u)) * scale;
        let c = v_four(first + k + 8u, left_of(k + 8u, k_end, 0u, 1u)) * scale;
        let d = v_four(first + k + 12u, left_of(k + 12u, k_end, 0u, 1u)) * scale;
        s += (a * a + b * b) + (c * c + d * d);
    }
    return (s.x + s.y) + (s.z + s.w);
}

// Exponents of four numbers; 0 for zero, subnormals, infinity and NaN, which `mantissas` leaves as they are.
fn exponents(four: vec4<f32>) -> vec4<i32> {
    let field = (bitcast<vec4<u32>>(four) & vec4<u32>(MAGNITUDE)) >> vec4<u32>(23u);
    let normal = field - 1u < vec4<u32>(254u);
    return select(vec4<i32>(), vec4<i32>(field) - 127, normal);
}

// Subnormals count as zero here.
fn mantissas(four: vec4<f32>) -> vec4<f32> {
    let bits = bitcast<vec4<u32>>(four);
    let field = (bits & vec4<u32>(MAGNITUDE)) >> vec4<u32>(23u);
    let normal = bitcast<vec4<f32>>((bits & vec4<u32>(0x807fffffu)) | vec4<u32>(0x3f800000u));
    return select(select(four, normal, field < vec4<u32>(255u)), vec4<f32>(), field == vec4<u32>());
}

fn exp2i_down(e: vec4<i32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(clamp(e, vec4<i32>(-126), vec4<i32>()) + 127) << vec4<u32>(23u));
}

// sum + x·v, the exponent of the sum following the largest term.
fn add_terms(sum: Wide, x: vec4<f32>, v: vec4<f32>) -> Wide {
    let m = mantissas(x) * mantissas(v);
    let zero = (bitcast<vec4<u32>>(m) & vec4<u32>(MAGNITUDE)) == vec4<u32>();
    let e = select(exponents(x) + exponents(v), vec4<i32>(NOTHING), zero);
    let top = max(max(max(e.x, e.y), max(e.z, e.w)), sum.e);
    let terms = m * exp2i_down(e - top);
    let old = sum.m * exp2i(clamp(sum.e - top, -126, 0));
    return Wide(old + ((terms.x + terms.y) + (terms.z + terms.w)), top);
}

// x_row · v_column over the columns k_first .. k_end - 1, whatever the exponents.
fn redo_dot(row: u32, column: u32, k_first: u32, k_end: u32) -> Wide {
    let xe = x_first() + row * p.stride;
    let ve = v_first() + column * p.stride;
    var sum = Wide(0.0, NOTHING);
    for (var k = k_first; k < k_end; k += 16u) { // split_length / 16 iterations
        let a = left_of(k, k_end, 0u, 1u);
        let b = left_of(k + 4u, k_end, 0u, 1u);
        let c = left_of(k + 8u, k_end, 0u, 1u);
        let d = left_of(k + 12u, k_end, 0u, 1u);
        sum = add_terms(sum, x_four(xe + k, a), v_four(ve + k, a));
        sum = add_terms(sum, x_four(xe + k + 4u, b), v_four(ve + k + 4u, b));
        sum = add_terms(sum, x_four(xe + k + 8u, c), v_four(ve + k + 8u, c));
        sum = add_terms(sum, x_four(xe + k + 12u, d), v_four(ve + k + 12u, d));
    }
    return sum;
}

// Whether row `row` of x is zero: padding is common, and its dot products need no second look.
fn is_zero_row(row: u32, k_first: u32, k_end: u32) -> bool {
    let xe = x_first() + row * p.stride;
    var bits = vec4<u32>();
    for (var k = k_first; k < k_end; k += 16u) { // split_length / 16 iterations
        bits |= bitcast<vec4<u32>>(x_four(xe + k, left_of(k, k_end, 0u, 1u)));
        bits |= bitcast<vec4<u32>>(x_four(xe + k + 4u, left_of(k + 4u, k_end, 0u, 1u)));
        bits |= bitcast<vec4<u32>>(x_four(xe + k + 8u, left_of(k + 8u, k_end, 0u, 1u)));
        bits |= bitcast<vec4<u32>>(x_four(xe + k + 12u, left_of(k + 12u, k_end, 0u, 1u)));
    }
    return ((bits.x | bits.y | bits.z | bits.w) & MAGNITUDE) == 0u;
}

// The sum of squares of a column of y, from what `product` left in `squares`. Call staged_squares before.
fn column_sum(c: u32, column0: u32, k_first: u32, k_end: u32) -> Sum {
    var s = 0.0;
    for (var i = 0u; i < BK4; i += 1u) { // 4 iterations
        s += vs[c * BK4 + i];
    }
    let sum = Sum(s, lift(s));
    if sum.c == 0 {
        return sum;
    }
    return Sum(redo_squares(column0 + c, k_first, k_end, sum.c), sum.c);
}

// Puts the squares of each invocation where column_sum finds them.
fn stage_squares(t: u32) {
    for (var stage = 0u; stage < V_STAGES; stage += 1u) {
        let quad = stage * THREADS + t;
        if quad < BN * BK4 {
            vs[quad] = squares[stage];
        }
    }
    workgroupBarrier();
}

// n̂ of every column of the tile into norm_m, norm_e.
fn column_norms(column0: u32, t: u32, write: bool) {
    if NORM == NORM_FUSED {
        stage_squares(t);
    }
    for (var c = t; c < BN; c += THREADS) { // at most BN / THREADS iterations
        if column0 + c < p.outs {
            var norm: Wide;
            if NORM == NORM_FUSED {
                norm = effective_norm(column_sum(c, column0, 0u, p.ins), p.policy, p.eps);
                if WRITE_NORMS && write {
                    norms_out[extractBits(p.more_firsts, 24u, 8u) + column0 + c] = narrow(norm);
                }
            } else {
                norm = known_norm(column0 + c);
            }
            norm_m[c] = norm.m;
            norm_e[c] = norm.e;
        }
    }
    workgroupBarrier();
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
    return g[extractBits(p.more_firsts, 0u, 8u) + select(column, 0u, NORM == NORM_WHOLE)];
}

fn bias_of(column: u32) -> f32 {
    if !HAS_BIAS {
        return 0.0;
    }
    return bias[extractBits(p.more_firsts, 8u, 8u) + column];
}

// f(0 .. 3), for the columns that exist.
fn gains_of(column: u32) -> vec4<f32> {
    let last = p.outs - 1u;
    return vec4<f32>(
        gain_of(min(column, last)), gain_of(min(column + 1u, last)),
        gain_of(min(column + 2u, last)), gain_of(min(column + 3u, last)),
    );
}

fn biases_of(column: u32) -> vec4<f32> {
    let last = p.outs - 1u;
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

// One element of y out of the dot product and the norm, whatever their exponents, before the activation.
fn assemble(dot: Wide, norm: Wide, column: u32) -> f32 {
    if NORM == NORM_PLAIN || NORM == NORM_IN {
        return narrow(dot) + bias_of(column);
    }
    return narrow(product_of(wide(gain_of(column)), quotient(dot, norm))) + bias_of(column);
}

fn put(row: u32, column: u32, values: vec4<f32>, count: u32) {
    put_four(extractBits(p.firsts, 16u, 8u) + row * p.y_stride + column, activate(values), count);
}

// Distance of |a| from the safe range, 0 <= unsafe(a) < UNSAFE inside.
const UNSAFE = (SAFE_HIGH - SAFE_LOW) * 2u;

fn unsafe_distance(a: vec4<f32>) -> vec4<u32> {
    return (bitcast<vec4<u32>>(a) << vec4<u32>(1u)) - vec4<u32>(2u * SAFE_LOW);
}

// The elements of acc that have to be formed again, a bit each; columns marked in `bad` whatever their sums.
fn unsafe_elements(row: u32, column: u32, bad: array<vec4<bool>, 2>) -> vec2<u32> {
    var worst = vec4<u32>();
    for (var i = 0u; i < TM; i += 1u) {
        for (var q = 0u; q < QUADS; q += 1u) {
            worst = max(worst, select(unsafe_distance(acc[i * QUADS + q]), vec4<u32>(0xffffffffu), bad[q]));
        }
    }
    var bits = vec2<u32>();
    if max(max(worst.x, worst.y), max(worst.z, worst.w)) < UNSAFE {
        return bits;
    }
    for (var i = 0u; i < TM; i += 1u) {
        for (var q = 0u; q < QUADS; q += 1u) {
            let far = (unsafe_distance(acc[i * QUADS + q]) >= vec4<u32>(UNSAFE)) | bad[q];
            let there = vec4<u32>(0u, 1u, 2u, 3u) + (column + 4u * q) < vec4<u32>(p.outs);
            let redo = far & there & vec4<bool>(row + i < p.batch);
            let four = dot(select(vec4<u32>(), vec4<u32>(1u, 2u, 4u, 8u), redo), vec4<u32>(1u));
            if q == 0u {
                bits.x |= four << (4u * i);
            } else {
                bits.y |= four << (4u * i);
            }
        }
    }
    return bits;
}

// Takes the lowest bit out of `bits`: bit 4i + c of quad q stands for row i, column 4q + c.
fn lowest(bits: vec2<u32>) -> vec3<u32> { // row, column, 1 if of the second quad
    let second = bits.x == 0u;
    let bit = countTrailingZeros(select(bits.x, bits.y, second));
    return vec3<u32>(bit / 4u, bit % 4u + select(0u, 4u, second), select(0u, 1u, second));
}

fn without_lowest(bits: vec2<u32>) -> vec2<u32> {
    if bits.x != 0u {
        return vec2<u32>(bits.x & (bits.x - 1u), bits.y);
    }
    return vec2<u32>(0u, bits.y & (bits.y - 1u));
}

@compute @workgroup_size(THREADS)
fn linear(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let tile = (group.z * groups.y + group.y) * groups.x + group.x;
    let tiles_n = (p.outs + BN - 1u) / BN;
    if tile >= tiles_n * ((p.batch + BM - 1u) / BM) {
        return;
    }
    let row0 = tile / tiles_n * BM;
    let column0 = tile % tiles_n * BN;
    product(row0, column0, 0u, p.ins, t);

    let row = row0 + t / WX * TM;
    let own_column = t % WX * TN;
    let column = column0 + own_column;
    let normed = NORM == NORM_FUSED || NORM == NORM_GIVEN || NORM == NORM_WHOLE;
    var bits = vec2<u32>();
    var reciprocals: array<vec4<f32>, 2>;
    if normed {
        column_norms(column0, t, row0 == 0u);
        var bad: array<vec4<bool>, 2>;
        for (var q = 0u; q < QUADS; q += 1u) {
            let c = own_column + 4u * q;
            let m = vec4<f32>(norm_m[c], norm_m[c + 1u], norm_m[c + 2u], norm_m[c + 3u]);
            let e = vec4<i32>(norm_e[c], norm_e[c + 1u], norm_e[c + 2u], norm_e[c + 3u]);
            reciprocals[q] = 1.0 / m;
            bad[q] = (unsafe_distance(m) >= vec4<u32>(UNSAFE)) | (e != vec4<i32>());
        }
        bits = unsafe_elements(row, column, bad);
    }
    for (var q = 0u; q < QUADS; q += 1u) {
        let c = column + 4u * q;
        if c < p.outs {
            let gains = gains_of(c);
            let biases = biases_of(c);
            for (var i = 0u; i < TM; i += 1u) {
                if row + i < p.batch {
                    var values = acc[i * QUADS + q];
                    if normed {
                        values = gains * (values * reciprocals[q]);
                    }
                    put(row + i, c, values + biases, p.outs - c);
                }
            }
        }
    }
    var known_row = NOTHING;
    var zero_row = false;
    while (bits.x | bits.y) != 0u { // at most TM * TN iterations
        let at = lowest(bits);
        bits = without_lowest(bits);
        let norm = Wide(norm_m[own_column + at.y], norm_e[own_column + at.y]);
        if i32(at.x + 8u * at.z) != known_row {
            known_row = i32(at.x + 8u * at.z);
            zero_row = is_zero_row(row + at.x, 0u, p.ins);
        }
        var dot = Wide(0.0, 0);
        if !(zero_row && magnitude(norm.m) < INFINITY) {
            dot = redo_dot(row + at.x, column + at.y, 0u, p.ins);
        }
        put(row + at.x, column + at.y, vec4<f32>(assemble(dot, norm, column + at.y)), 1u);
    }
}

// One split of one tile of y: its dot products and, from the tiles of the first rows, its sums of squares.
@compute @workgroup_size(THREADS)
fn linear_partial(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let tile = (group.z * groups.y + group.y) * groups.x + group.x;
    let tiles_n = (p.outs + BN - 1u) / BN;
    let tiles = tiles_n * ((p.batch + BM - 1u) / BM);
    let split = tile / tiles;
    let k_first = split * p.split_length;
    if k_first >= p.ins {
        return;
    }
    let k_end = min(k_first + p.split_length, p.ins);
    let row0 = tile % tiles / tiles_n * BM;
    let column0 = tile % tiles_n * BN;
    product(row0, column0, k_first, k_end, t);

    let row = row0 + t / WX * TM;
    let column = column0 + t % WX * TN;
    let part_row = (p.split_first + split) * p.batch;
    var bits = vec2<u32>();
    if NORM == NORM_FUSED {
        stage_squares(t);
        for (var c = t; c < BN; c += THREADS) { // at most BN / THREADS iterations
            if row0 == 0u && column0 + c < p.outs {
                let sum = column_sum(c, column0, k_first, k_end);
                let at = (p.splits * p.batch + p.split_first + split) * p.outs + column0 + c;
                part[at] = vec2<u32>(bitcast<u32>(sum.s), bitcast<u32>(sum.c));
            }
        }
    }
    if NORM == NORM_FUSED || NORM == NORM_GIVEN || NORM == NORM_WHOLE {
        var bad: array<vec4<bool>, 2>;
        bits = unsafe_elements(row, column, bad);
    }
    for (var q = 0u; q < QUADS; q += 1u) {
        for (var i = 0u; i < TM; i += 1u) {
            for (var c = 0u; c < 4u; c += 1u) {
                let at = column + 4u * q + c;
                if row + i < p.batch && at < p.outs {
                    part[(part_row + row + i) * p.outs + at] = vec2<u32>(bitcast<u32>(acc[i * QUADS + q][c]), 0u);
                }
            }
        }
    }
    while (bits.x | bits.y) != 0u { // at most TM * TN iterations
        let at = lowest(bits);
        bits = without_lowest(bits);
        let sum = redo_dot(row + at.x, column + at.y, k_first, k_end);
        part[(part_row + row + at.x) * p.outs + column + at.y] = vec2<u32>(bitcast<u32>(sum.m), bitcast<u32>(sum.e));
    }
}

const FINISH_THREADS = 64u;

// One invocation an element of y.
@compute @workgroup_size(FINISH_THREADS)
fn linear_finish(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let element = ((group.z * groups.y + group.y) * groups.x + group.x) * FINISH_THREADS + t;
    let row = element / p.outs;
    let column = element % p.outs;
    if row >= p.batch {
        return;
    }
    var dot = Wide(0.0, NOTHING);
    for (var s = 0u; s < p.splits; s += 1u) { // splits iterations
        let bits = part[(s * p.batch + row) * p.outs + column];
        let term = Wide(bitcast<f32>(bits.x), bitcast<i32>(bits.y));
        if magnitude(term.m) != 0u {
            let top = max(dot.e, term.e);
            let old = dot.m * exp2i(clamp(dot.e - top, -126, 0));
            dot = Wide(old + term.m * exp2i(clamp(term.e - top, -126, 0)), top);
        }
    }
    if magnitude(dot.m) == 0u {
        dot.e = 0;
    }
    var norm = Wide(1.0, 0);
    if NORM == NORM_FUSED {
        var sum = EMPTY;
        for (var s = 0u; s < p.splits; s += 1u) { // splits iterations
            let bits = part[(p.splits * p.batch + s) * p.outs + column];
            sum = combine(sum, Sum(bitcast<f32>(bits.x), bitcast<i32>(bits.y)));
        }
        norm = effective_norm(sum, p.policy, p.eps);
        if WRITE_NORMS && row == 0u {
            norms_out[extractBits(p.more_firsts, 24u, 8u) + column] = narrow(norm);
        }
    }
    if NORM == NORM_GIVEN || NORM == NORM_WHOLE {
        norm = known_norm(column);
    }
    put(row, column, vec4<f32>(assemble(dot, norm, column)), 1u);
}
