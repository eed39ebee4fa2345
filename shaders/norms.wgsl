// Norms of a tensor over all axes but one: n̂_j = eps policy of sqrt(sum_{o,i} v[o,j,i]^2),
// element (o, j, i) at (o * kept + j) * inner + i.
//
// Sums over contiguous stretches (row_sums), sums down the columns of a matrix (column_sums), and the sum of such
// partial sums (finish_sums); known_norms takes the norms from the caller. What is written for an index j is one of
//   OUT_NORMS   f32: n̂_j
//   OUT_SCALES  two f32, the Scale g_j / n̂_j
//   OUT_WIDE    f32 and i32 (m, e): n̂_j = m * 2^e
// and, on request, n̂_j as f32 beside it.
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
    policy: u32,
    eps: f32,
    out_kind: u32,
    has_gain: u32,
    has_norms_too: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> v: array<u32>; // words of V_DTYPE
@group(0) @binding(1) var<storage, read> g: array<f32>; // (kept)
@group(0) @binding(2) var<storage, read_write> part: array<vec2<u32>>; // Sum: f32 s, i32 c
@group(0) @binding(3) var<storage, read_write> norms: array<f32>; // (kept) or (kept, 2), see OUT_ above
@group(0) @binding(4) var<storage, read_write> norms_too: array<f32>; // (kept)

override V_DTYPE: u32 = F32;
override DIRECT: bool = true; // row_sums: one stretch is one norm: write it out
override LANES: u32 = 64u; // invocations for one stretch or norm, a power of two up to THREADS

const THREADS = 64u;
const OUT_NORMS = 0u;
const OUT_SCALES = 1u;
const OUT_WIDE = 2u;

var<workgroup> sums: array<f32, THREADS>;
var<workgroup> lifts: array<i32, THREADS>;

fn flat(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return (group.z * groups.y + group.y) * groups.x + group.x;
}

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

// Adds up the sums of the LANES invocations that work together; the result is right in their lane 0.
fn combine_lanes(own: Sum, t: u32) -> Sum {
    var total = own;
    let lane = t % LANES;
    for (var step = LANES / 2u; step > 0u; step /= 2u) { // at most 6 iterations
        // Nobody may overwrite what a slower lane still reads.
        workgroupBarrier();
        sums[t] = total.s;
        lifts[t] = total.c;
        workgroupBarrier();
        if lane < step {
            total = combine(total, Sum(sums[t + step], lifts[t + step]));
        }
    }
    return total;
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
    var sum = EMPTY;
    if task < p.count {
        let row = (p.split_first + task) / p.splits;
        let begin = (p.split_first + task) % p.splits * p.split_length;
        let length = min(p.split_length, p.length - begin);
        // The binding starts at stretch split_first of row 0.
        let first = extractBits(p.firsts, 0u, 8u) + row * p.length + begin - p.split_first * p.split_length;
        let s = stretch_squares(first, first + length, t % LANES, 1.0);
        sum = Sum(s, lift(s));
        if sum.c != 0 {
            sum.s = stretch_squares(first, first + length, t % LANES, exp2i(sum.c));
        }
    }
    sum = combine_lanes(sum, t);
    if task < p.count && t % LANES == 0u {
        if DIRECT {
            write_norm(task, effective_norm(sum, p.policy, p.eps));
        } else {
            part[p.part_first + task] = vec2<u32>(bitcast<u32>(sum.s), bitcast<u32>(sum.c));
        }
    }
}

fn square_at(e: u32, scale: f32) -> f32 {
    let a = unpack(v[select(e >> 1u, e, V_DTYPE == F32)], e, V_DTYPE) * scale;
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
    let first = extractBits(p.firsts, 0u, 8u) + row * p.stride + column;
    let s = column_squares(first, rows, 1.0);
    var sum = Sum(s, lift(s));
    if sum.c != 0 {
        sum.s = column_squares(first, rows, exp2i(sum.c));
    }
    part[p.part_first + task] = vec2<u32>(bitcast<u32>(sum.s), bitcast<u32>(sum.c));
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
    var sum = EMPTY;
    if j < p.count {
        for (var i = t % LANES; i < p.length * p.split_length; i += LANES) { // bounded by the host
            let at = p.part_first + i / p.split_length * p.stride + j * p.splits + i % p.split_length;
            sum = combine(sum, Sum(bitcast<f32>(part[at].x), bitcast<i32>(part[at].y)));
        }
    }
    sum = combine_lanes(sum, t);
    if j < p.count && t % LANES == 0u {
        write_norm(j, effective_norm(sum, p.policy, p.eps));
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
