// Norms of a tensor over all axes but one: n̂_j = eps policy of sqrt(sum_{o,i} v[o,j,i]^2),
// element (o, j, i) at (o * kept + j) * inner + i.
// slot access = weight/access_scalar
// slot columns = weight/columns_scalar
// import numbers/norm
//
// Sums over contiguous stretches (row_sums), sums down the columns of a matrix (column_sums), and the sum of such
// partial sums (finish_sums); known_norms takes the norms from the caller. What is written for an index j is one of
//   OUT_NORMS   f32: n̂_j
//   OUT_SCALES  two f32, the Scale g_j / n̂_j
//   OUT_WIDE    f32 and i32 (m, e): n̂_j = m * 2^e
// and, on request, n̂_j as f32 beside it.
//
// With DOT the sums are those of the backward pass, sum dw * v, and the norms are known, or with OWN_NORMS summed up
// beside them. What is written then:
//   norms_too  f32: dg_j = sum dw * (v / n̂_j), or what stands there and that
//   norms      four f32: the Scale g_j / n̂_j and the Scale dg_j / d_j, see gradient.wgsl
// No invocation loops more often than the host allows (kernel.rs, MAX_ITERATIONS).

@group(0) @binding(1) var<storage, read> g: array<u32>; // (kept), words of GAIN_DTYPE
@group(0) @binding(3) var<storage, read_write> norms: array<f32>; // (kept) or (kept, 2), see OUT_ above
@group(0) @binding(4) var<storage, read_write> norms_too: array<f32>; // (kept)
@group(0) @binding(6) var<storage, read> known: array<f32>; // (kept), n̂; with DOT n under EPS_AFTER

override GAIN_DTYPE: u32 = F32;
override OWN_NORMS: bool = false; // DOT and DIRECT only
override OUT: u32 = OUT_NORMS;
override DIRECT: bool = true; // row_sums: one stretch is one norm: write it out
override LANES: u32 = 64u; // invocations for one stretch or norm, a power of two up to THREADS

const OUT_NORMS = 0u;
const OUT_SCALES = 1u;
const OUT_WIDE = 2u;

fn gain_of(j: u32) -> f32 {
    let at = extractBits(p.offsets, 8u, 8u) + j;
    return unpack(g[word_holding(at, GAIN_DTYPE)], at, GAIN_DTYPE);
}

fn write_norm(j: u32, norm: Wide) {
    if p.has_norms_too != 0u {
        norms_too[extractBits(p.offsets, 24u, 8u) + j] = narrow(norm);
    }
    let first = extractBits(p.offsets, 16u, 8u);
    if OUT == OUT_NORMS {
        norms[first + j] = narrow(norm);
        return;
    }
    let at = first + 2u * j;
    if OUT == OUT_WIDE {
        norms[at] = norm.m;
        norms[at + 1u] = bitcast<f32>(norm.e);
        return;
    }
    var gain = 1.0;
    if p.has_gain != 0u {
        gain = gain_of(j);
    }
    let scale = scale_of(quotient(wide(gain), norm));
    norms[at] = scale.t;
    norms[at + 1u] = scale.m;
}

// What becomes of the sum that belongs to j; `squares`: with OWN_NORMS.
fn finish(j: u32, sum: Wide, squares: Wide) {
    if !DOT {
        write_norm(j, effective_norm(sum, p.policy, p.eps));
        return;
    }
    var d: Wide;
    if OWN_NORMS {
        d = divisor_of(squares, p.policy, p.eps);
    } else {
        d = wide(known[extractBits(p.more_offsets, 8u, 8u) + j]);
    }
    var gain = 1.0;
    if p.has_gain != 0u {
        gain = gain_of(j);
    }
    let factors = factors_of_products(sum, d, gain, p.policy, p.eps);
    if p.has_norms_too != 0u {
        let at = extractBits(p.offsets, 24u, 8u) + j;
        norms_too[at] = select(0.0, norms_too[at], p.has_norms_too == 2u) + narrow(factors.dg);
    }
    let at = extractBits(p.offsets, 16u, 8u) + 4u * j;
    norms[at] = factors.a.t;
    norms[at + 1u] = factors.a.m;
    norms[at + 2u] = factors.share.t;
    norms[at + 3u] = factors.share.m;
}

// Units first, first + RUN, .. below end.
struct Walk {
    first: u32,
    end: u32,
}

// The part of a lane in the units first .. end - 1: every RUN lanes share a piece of them.
fn walk_of(first: u32, end: u32, lane: u32) -> Walk {
    let piece = (end - first + LANES - 1u) / LANES * RUN;
    let begin = first + lane / RUN * piece;
    return Walk(begin + lane % RUN, min(begin + piece, end));
}

// Squares of a lane's part of the elements first .. end - 1, four units at a time.
fn stretch_squares(first: u32, end: u32, lane: u32, scale: f32) -> f32 {
    let walk = walk_of(first / SQUARE_UNIT, (end + SQUARE_UNIT - 1u) / SQUARE_UNIT, lane);
    var a = Terms();
    var b = Terms();
    var c = Terms();
    var d = Terms();
    var u = walk.first;
    for (; u + 3u * RUN < walk.end; u += 4u * RUN) { // (end - first) / (4 LANES) iterations
        a += squares_at(u, first, end, scale);
        b += squares_at(u + RUN, first, end, scale);
        c += squares_at(u + 2u * RUN, first, end, scale);
        d += squares_at(u + 3u * RUN, first, end, scale);
    }
    for (; u < walk.end; u += RUN) { // at most 3 iterations
        a += squares_at(u, first, end, scale);
    }
    return total_of((a + b) + (c + d));
}

// A lane's sums over a stretch: dw * v, and with OWN_NORMS the squares of v.
struct Dots {
    products: Wide,
    squares: Wide,
}

// Those of a lane's part of the elements first .. end - 1 of v; f is the one of dw beside the first.
fn stretch_dots(first: u32, end: u32, f: u32, lane: u32) -> Dots {
    let walk = walk_of(first / PRODUCT_UNIT, end / PRODUCT_UNIT, lane);
    let apart = f / PRODUCT_UNIT - first / PRODUCT_UNIT; // modulo 2^32
    var a = Terms();
    var b = Terms();
    var c = Terms();
    var d = Terms();
    var a_squares = Terms();
    var b_squares = Terms();
    var u = walk.first;
    for (; u + 3u * RUN < walk.end; u += 4u * RUN) { // (end - first) / (4 LANES) iterations
        a += products_at(u, u + apart);
        b += products_at(u + RUN, u + RUN + apart);
        c += products_at(u + 2u * RUN, u + 2u * RUN + apart);
        d += products_at(u + 3u * RUN, u + 3u * RUN + apart);
        if OWN_NORMS {
            a_squares += squares_beside(u, 1.0) + squares_beside(u + RUN, 1.0);
            b_squares += squares_beside(u + 2u * RUN, 1.0) + squares_beside(u + 3u * RUN, 1.0);
        }
    }
    for (; u < walk.end; u += RUN) { // at most 3 iterations
        a += products_at(u, u + apart);
        if OWN_NORMS {
            a_squares += squares_beside(u, 1.0);
        }
    }
    let s = total_of((a + b) + (c + d));
    var dots = Dots(Wide(s, 0), Wide(0.0, NOTHING));
    if !is_safe(s) {
        dots.products = wide_dots(walk, f - first); // modulo 2^32
    }
    if OWN_NORMS {
        var squares = total_of(a_squares + b_squares);
        let up = lift(squares);
        if up != 0 {
            squares = walk_squares(walk, exp2i(up));
        }
        dots.squares = Wide(squares, -2 * up);
    }
    return dots;
}

// The products of a walk, each with an exponent of its own; element e of v belongs to e + apart of dw.
fn wide_dots(walk: Walk, apart: u32) -> Wide {
    var sum = Wide(0.0, NOTHING);
    for (var u = walk.first; u < walk.end; u += RUN) { // a lane's part of (end - first) iterations, with those within
        for (var i = 0u; i < PRODUCT_UNIT; i += 1u) {
            let e = u * PRODUCT_UNIT + i;
            sum = sum_of(sum, exact_product(e, e + apart));
        }
    }
    return sum;
}

// The squares of a walk in units of products: of the same elements that a lane's dots took, wherever words begin.
fn walk_squares(walk: Walk, scale: f32) -> f32 {
    var a = Terms();
    var b = Terms();
    var u = walk.first;
    for (; u + 3u * RUN < walk.end; u += 4u * RUN) { // (end - first) / (4 LANES) iterations
        a += squares_beside(u, scale) + squares_beside(u + RUN, scale);
        b += squares_beside(u + 2u * RUN, scale) + squares_beside(u + 3u * RUN, scale);
    }
    for (; u < walk.end; u += RUN) { // at most 3 iterations
        a += squares_beside(u, scale);
    }
    return total_of(a + b);
}

// Sums of squares over stretches: stretch s of row r holds the elements r * length + s * split_length and the
// split_length - 1 after it (fewer at the end of the row).
// LANES invocations a stretch, THREADS / LANES stretches a workgroup. Writes norms[r] if DIRECT (splits = 1), else
// part[part_first + the stretch's number in this dispatch].
@compute @workgroup_size(THREADS)
fn row_sums(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
    let task = flat(group, groups) * (THREADS / LANES) + t / LANES;
    var sum = Wide(0.0, NOTHING);
    var squares = Wide(0.0, NOTHING);
    if task < p.count {
        let row = (p.split_first + task) / p.splits;
        let begin = (p.split_first + task) % p.splits * p.split_length;
        let length = min(p.split_length, p.length - begin);
        // The binding starts at stretch split_first of row 0.
        let place = row * p.length + begin - p.split_first * p.split_length;
        let first = extractBits(p.offsets, 0u, 8u) + place;
        let lane = t % LANES;
        if DOT {
            let dots = stretch_dots(first, first + length, extractBits(p.more_offsets, 0u, 8u) + place, lane);
            sum = dots.products;
            squares = dots.squares;
        } else {
            var s = stretch_squares(first, first + length, lane, 1.0);
            let up = lift(s);
            if up != 0 {
                s = stretch_squares(first, first + length, lane, exp2i(up));
            }
            sum = Wide(s, -2 * up);
        }
    }
    sum = combine_lanes(sum, t, LANES);
    if OWN_NORMS {
        squares = combine_lanes(squares, t, LANES);
    }
    if task < p.count && t % LANES == 0u {
        if DIRECT {
            finish(task, sum, squares);
        } else {
            let stretch = settled(sum);
            part[p.part_first + task] = vec2<u32>(bitcast<u32>(stretch.m), bitcast<u32>(stretch.e));
        }
    }
}

// A lane's part of the partial sums of norm j, added up as they are, which is right if none has an exponent of its
// own: the exponent that comes of it is 0 then. In blocks, so that none of many is rounded as often as there are
// others.
fn plain_partial_sums(j: u32, lane: u32) -> Wide {
    var at = PartialSum(lane / p.split_length, lane % p.split_length);
    var sum = 0.0;
    var exponents = 0u;
    while at.a < p.length { // bounded by the host, with those within
        var block = 0.0;
        for (var i = 0u; i < PARTIAL_SUMS && at.a < p.length; i += 1u) {
            let pair = partial_sum(j, at);
            block += bitcast<f32>(pair.x);
            exponents |= pair.y;
            at = next_partial_sum(at);
        }
        sum += block;
    }
    return Wide(sum, bitcast<i32>(exponents));
}

// The same whatever the exponents.
fn wide_partial_sums(j: u32, lane: u32) -> Wide {
    var at = PartialSum(lane / p.split_length, lane % p.split_length);
    var sum = Wide(0.0, NOTHING);
    while at.a < p.length { // bounded by the host, with those within
        var block = Wide(0.0, NOTHING);
        for (var i = 0u; i < PARTIAL_SUMS && at.a < p.length; i += 1u) {
            let pair = partial_sum(j, at);
            block = sum_of(block, Wide(bitcast<f32>(pair.x), bitcast<i32>(pair.y)));
            at = next_partial_sum(at);
        }
        sum = sum_of(sum, block);
    }
    return sum;
}

const PARTIAL_SUMS = 64u; // of a block

// Number b of the inner and number a of the outer partial sums of a norm.
struct PartialSum {
    a: u32,
    b: u32,
}

fn partial_sum(j: u32, at: PartialSum) -> vec2<u32> {
    return part[p.part_first + at.a * p.stride + j * p.splits + at.b];
}

// LANES further on.
fn next_partial_sum(at: PartialSum) -> PartialSum {
    let inner = p.split_length;
    let b = at.b + LANES % inner;
    let carry = select(0u, 1u, b >= inner);
    return PartialSum(at.a + LANES / inner + carry, b - inner * carry);
}

// norms[j] from the partial sums part[part_first + a * stride + j * splits + b], a < length, b < split_length.
// LANES invocations a norm.
@compute @workgroup_size(THREADS)
fn finish_sums(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
    let j = flat(group, groups) * (THREADS / LANES) + t / LANES;
    var sum = Wide(0.0, NOTHING);
    if j < p.count {
        sum = plain_partial_sums(j, t % LANES);
        if sum.e != 0 || !is_fine(sum.m) {
            sum = wide_partial_sums(j, t % LANES);
        }
    }
    sum = combine_lanes(sum, t, LANES);
    if j < p.count && t % LANES == 0u {
        finish(j, sum, Wide());
    }
}

// norms[j] from known[j], the effective norms as f32. One invocation a norm.
@compute @workgroup_size(THREADS)
fn known_norms(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
    let j = flat(group, groups) * THREADS + t;
    if j < p.count {
        write_norm(j, wide(known[extractBits(p.more_offsets, 8u, 8u) + j]));
    }
}
