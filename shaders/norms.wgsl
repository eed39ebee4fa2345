// Norms of a tensor over all axes but one: n̂_j = eps policy of sqrt(sum_{o,i} v[o,j,i]^2),
// element (o, j, i) at (o * kept + j) * inner + i.
//
// Sums over contiguous stretches (row_sums), sums down the columns of a matrix (column_sums), and the sum of such
// partial sums (finish_sums); known_norms takes the norms from the caller. What is written for an index j is one of
//   OUT_NORMS   f32: n̂_j
//   OUT_SCALES  two f32, the Scale g_j / n̂_j
//   OUT_WIDE    f32 and i32 (m, e): n̂_j = m * 2^e
// and, on request, n̂_j as f32 beside it.
//
// With DOT the sums are those of the backward pass, sum dw * v, and the norms are known. What is written then:
//   norms_too  f32: dg_j = sum dw * (v / n̂_j), or what stands there and that
//   norms      four f32: the Scale g_j / n̂_j and the Scale dg_j / d_j, see gradient.wgsl
// No invocation loops more often than the host allows (kernel.rs, MAX_ITERATIONS).

struct Params {
    count: u32,        // row_sums: stretches; column_sums: columns; finish_sums: norms
    length: u32,       // row_sums: elements in a row; column_sums: rows; finish_sums: outer partial sums (a)
    stride: u32,       // column_sums: elements from a row to the next; finish_sums: from an outer sum to the next
    splits: u32,       // row_sums: stretches a row; column_sums: stretches of rows; finish_sums: from j to j + 1
    split_length: u32, // elements (rows) in a stretch; finish_sums: inner partial sums (b)
    split_first: u32,  // the stretch at which this dispatch starts; row_sums: within its row
    part_first: u32,   // where the partial sums of this dispatch start
    firsts: u32,       // 8 bits each: the first element of v, g, norms, norms_too within its binding
    more_firsts: u32,  // the same of dw, known
    policy: u32,
    eps: f32,
    out_kind: u32,
    has_gain: u32,
    has_norms_too: u32, // 2: add to it
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> v: array<u32>; // words of V_DTYPE
@group(0) @binding(1) var<storage, read> g: array<f32>; // (kept)
@group(0) @binding(2) var<storage, read_write> part: array<vec2<u32>>; // Wide: f32 m, i32 e
@group(0) @binding(3) var<storage, read_write> norms: array<f32>; // (kept) or (kept, 2), see OUT_ above
@group(0) @binding(4) var<storage, read_write> norms_too: array<f32>; // (kept)
@group(0) @binding(5) var<storage, read> dw: array<u32>; // DOT: words of W_DTYPE, shaped as v
@group(0) @binding(6) var<storage, read> known: array<f32>; // DOT: (kept), n̂; n under EPS_AFTER

override V_DTYPE: u32 = F32;
override W_DTYPE: u32 = F32;
override DOT: bool = false;
override DIRECT: bool = true; // row_sums: one stretch is one norm: write it out
override LANES: u32 = 64u; // invocations for one stretch or norm, a power of two up to THREADS

const THREADS = 64u;
const OUT_NORMS = 0u;
const OUT_SCALES = 1u;
const OUT_WIDE = 2u;

var<workgroup> sums: array<f32, THREADS>;
var<workgroup> exponents: array<i32, THREADS>;

fn write_norm(j: u32, norm: Wide) {
    if p.has_norms_too != 0u {
        norms_too[extractBits(p.firsts, 24u, 8u) + j] = narrow(norm);
    }
    let first = extractBits(p.firsts, 16u, 8u);
    if p.out_kind == OUT_NORMS {
        norms[first + j] = narrow(norm);
        return;
    }
    let at = first + 2u * j;
    if p.out_kind == OUT_WIDE {
        norms[at] = norm.m;
        norms[at + 1u] = bitcast<f32>(norm.e);
        return;
    }
    var gain = 1.0;
    if p.has_gain != 0u {
        gain = g[extractBits(p.firsts, 8u, 8u) + j];
    }
    let scale = scale_of(quotient(wide(gain), norm));
    norms[at] = scale.t;
    norms[at + 1u] = scale.m;
}

// What becomes of the sum that belongs to j.
fn finish(j: u32, sum: Wide) {
    if !DOT {
        write_norm(j, effective_norm(sum, p.policy, p.eps));
        return;
    }
    let n = known[extractBits(p.more_firsts, 8u, 8u) + j];
    var norm = n;
    if p.policy == EPS_AFTER {
        norm += p.eps;
    }
    let dg = quotient(sum, wide(norm));
    if p.has_norms_too != 0u {
        let at = extractBits(p.firsts, 24u, 8u) + j;
        norms_too[at] = select(0.0, norms_too[at], p.has_norms_too == 2u) + narrow(dg);
    }
    var gain = 1.0;
    if p.has_gain != 0u {
        gain = g[extractBits(p.firsts, 8u, 8u) + j];
    }
    // Where the clamp is active, or n = 0 under EPS_AFTER, n̂ does not depend on v.
    let size = magnitude(n);
    var share = quotient(dg, wide(n));
    if (p.policy == EPS_CLAMP && size == bitcast<u32>(p.eps)) || (p.policy == EPS_AFTER && size < SMALLEST) {
        share = Wide(0.0, 0);
    }
    let at = extractBits(p.firsts, 16u, 8u) + 4u * j;
    let scale = scale_of(quotient(wide(gain), wide(norm)));
    norms[at] = scale.t;
    norms[at + 1u] = scale.m;
    let part = scale_of(share);
    norms[at + 2u] = part.t;
    norms[at + 3u] = part.m;
}

// Adds up the sums of the LANES invocations that work together; the result is right in their lane 0.
fn combine_lanes(own: Wide, t: u32) -> Wide {
    var total = own;
    let lane = t % LANES;
    for (var step = LANES / 2u; step > 0u; step /= 2u) { // at most 6 iterations
        // Nobody may overwrite what a slower lane still reads.
        workgroupBarrier();
        sums[t] = total.m;
        exponents[t] = total.e;
        workgroupBarrier();
        if lane < step {
            total = sum_of(total, Wide(sums[t + step], exponents[t + step]));
        }
    }
    return total;
}

// dw * v at element e of v and f of dw.
fn product_at(e: u32, f: u32) -> f32 {
    return v_at(e) * unpack(dw[select(f >> 1u, f, W_DTYPE == F32)], f, W_DTYPE);
}

fn v_at(e: u32) -> f32 {
    return unpack(v[select(e >> 1u, e, V_DTYPE == F32)], e, V_DTYPE);
}

fn wide_product_at(e: u32, f: u32) -> Wide {
    return product_of(wide(v_at(e)), wide(unpack(dw[select(f >> 1u, f, W_DTYPE == F32)], f, W_DTYPE)));
}

// Dot products outside of 2^-60 .. 2^60 are formed again with exponents of their own.
fn is_safe(s: f32) -> bool {
    return magnitude(s) - 0x21800000u < 0x5d800000u - 0x21800000u;
}

// sum of dw * v over `count` elements, `stride` apart, from e of v and f of dw on.
fn dot_sum(e: u32, f: u32, count: u32, stride: u32) -> Wide {
    var a = 0.0;
    var b = 0.0;
    var c = 0.0;
    var d = 0.0;
    var i = 0u;
    for (; i + 3u < count; i += 4u) { // count / 4 iterations
        a += product_at(e + i * stride, f + i * stride);
        b += product_at(e + (i + 1u) * stride, f + (i + 1u) * stride);
        c += product_at(e + (i + 2u) * stride, f + (i + 2u) * stride);
        d += product_at(e + (i + 3u) * stride, f + (i + 3u) * stride);
    }
    for (; i < count; i += 1u) { // at most 3 iterations
        a += product_at(e + i * stride, f + i * stride);
    }
    let s = (a + b) + (c + d);
    if is_safe(s) {
        return Wide(s, 0);
    }
    var sum = Wide(0.0, NOTHING);
    for (i = 0u; i < count; i += 1u) { // count iterations
        sum = sum_of(sum, wide_product_at(e + i * stride, f + i * stride));
    }
    return sum;
}

// The squares of what word w holds of the elements first .. end - 1.
fn word_square(w: u32, first: u32, end: u32, scale: f32) -> f32 {
    if V_DTYPE == F32 {
        let a = bitcast<f32>(v[w]) * scale;
        return a * a;
    }
    let pair = unpack_pair(v[w], V_DTYPE) * scale;
    // The neighbouring row may own a half of the word, and hold a NaN there.
    let a = select(0.0, pair.x, 2u * w >= first);
    let b = select(0.0, pair.y, 2u * w + 1u < end);
    return a * a + b * b;
}

// Words lane, lane + LANES, .. of the elements first .. end - 1, four at a time.
fn stretch_squares(first: u32, end: u32, lane: u32, scale: f32) -> f32 {
    let per_word = select(2u, 1u, V_DTYPE == F32);
    let word_end = (end + per_word - 1u) / per_word;
    var a = 0.0;
    var b = 0.0;
    var c = 0.0;
    var d = 0.0;
    var w = first / per_word + lane;
    for (; w + 3u * LANES < word_end; w += 4u * LANES) { // (end - first) / (4 LANES) iterations
        a += word_square(w, first, end, scale);
        b += word_square(w + LANES, first, end, scale);
        c += word_square(w + 2u * LANES, first, end, scale);
        d += word_square(w + 3u * LANES, first, end, scale);
    }
    for (; w < word_end; w += LANES) { // at most 3 iterations
        a += word_square(w, first, end, scale);
    }
    return (a + b) + (c + d);
}

// Sums of squares over stretches: stretch s of row r holds the elements r * length + s * split_length and the
// split_length - 1 after it (fewer at the end of the row).
// LANES invocations a stretch, THREADS / LANES stretches a workgroup. Writes norms[r] if DIRECT (splits = 1), else
// part[part_first + the stretch's number in this dispatch].
@compute @workgroup_size(THREADS)
fn row_sums(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let task = flat(group, groups) * (THREADS / LANES) + t / LANES;
    var sum = Wide(0.0, NOTHING);
    if task < p.count {
        let row = (p.split_first + task) / p.splits;
        let begin = (p.split_first + task) % p.splits * p.split_length;
        let length = min(p.split_length, p.length - begin);
        // The binding starts at stretch split_first of row 0.
        let place = row * p.length + begin - p.split_first * p.split_length;
        let first = extractBits(p.firsts, 0u, 8u) + place;
        let lane = t % LANES;
        if DOT {
            let count = select(0u, (length - lane + LANES - 1u) / LANES, lane < length);
            sum = dot_sum(first + lane, extractBits(p.more_firsts, 0u, 8u) + place + lane, count, LANES);
        } else {
            var s = stretch_squares(first, first + length, lane, 1.0);
            let up = lift(s);
            if up != 0 {
                s = stretch_squares(first, first + length, lane, exp2i(up));
            }
            sum = Wide(s, -2 * up);
        }
    }
    sum = combine_lanes(sum, t);
    if task < p.count && t % LANES == 0u {
        if DIRECT {
            finish(task, sum);
        } else {
            part[p.part_first + task] = vec2<u32>(bitcast<u32>(sum.m), bitcast<u32>(sum.e));
        }
    }
}

fn square_at(e: u32, scale: f32) -> f32 {
    let a = v_at(e) * scale;
    return a * a;
}

// Elements first, first + stride, .. of a column, rows of them, four at a time.
fn column_squares(first: u32, rows: u32, scale: f32) -> f32 {
    var a = 0.0;
    var b = 0.0;
    var c = 0.0;
    var d = 0.0;
    var e = first;
    var row = 0u;
    for (; row + 3u < rows; row += 4u) { // rows / 4 iterations
        a += square_at(e, scale);
        b += square_at(e + p.stride, scale);
        c += square_at(e + 2u * p.stride, scale);
        d += square_at(e + 3u * p.stride, scale);
        e += 4u * p.stride;
    }
    for (; row < rows; row += 1u) { // at most 3 iterations
        a += square_at(e, scale);
        e += p.stride;
    }
    return (a + b) + (c + d);
}

// Sums of squares down the columns of a (length, count) matrix: stretch s of a column holds split_length rows.
// One invocation a stretch, neighbours in neighbouring columns. Writes part[part_first + s * count + column].
@compute @workgroup_size(THREADS)
fn column_sums(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let task = flat(group, groups) * THREADS + t;
    let column = task % p.count;
    let split = task / p.count;
    if split >= p.splits {
        return;
    }
    let row = split * p.split_length;
    let rows = min(p.split_length, p.length - row);
    let place = row * p.stride + column;
    let first = extractBits(p.firsts, 0u, 8u) + place;
    var sum: Wide;
    if DOT {
        sum = dot_sum(first, extractBits(p.more_firsts, 0u, 8u) + place, rows, p.stride);
    } else {
        var s = column_squares(first, rows, 1.0);
        let up = lift(s);
        if up != 0 {
            s = column_squares(first, rows, exp2i(up));
        }
        sum = Wide(s, -2 * up);
    }
    part[p.part_first + task] = vec2<u32>(bitcast<u32>(sum.m), bitcast<u32>(sum.e));
}

// norms[j] from the partial sums part[part_first + a * stride + j * splits + b], a < length, b < split_length.
// LANES invocations a norm.
@compute @workgroup_size(THREADS)
fn finish_sums(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let j = flat(group, groups) * (THREADS / LANES) + t / LANES;
    var sum = Wide(0.0, NOTHING);
    if j < p.count {
        for (var i = t % LANES; i < p.length * p.split_length; i += LANES) { // bounded by the host
            let at = p.part_first + i / p.split_length * p.stride + j * p.splits + i % p.split_length;
            sum = sum_of(sum, Wide(bitcast<f32>(part[at].x), bitcast<i32>(part[at].y)));
        }
    }
    sum = combine_lanes(sum, t);
    if j < p.count && t % LANES == 0u {
        finish(j, sum);
    }
}

// norms[j] from v[j], the effective norms as f32. One invocation a norm.
@compute @workgroup_size(THREADS)
fn known_norms(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let j = flat(group, groups) * THREADS + t;
    if j < p.count {
        write_norm(j, wide(bitcast<f32>(v[extractBits(p.firsts, 0u, 8u) + j])));
    }
}
