// Norms, normalization and its backward pass over a set of weights, the members, of different shapes, kept axes,
// storage types and eps policies. What a workgroup does is an item of a table: a stretch of one member, all of about
// equal size.
// slot access = weight/set_words
// import numbers/norm
// import numbers/lanes
//
//   set_rows     sums over contiguous rows, or over a stretch of one, of
//                  v²               the norm of its row, or a partial sum of it
//                  v² and dw * v    (DOT) the same for the backward pass
//   set_columns  the same down the columns of a member whose kept axis is not the first: partial sums
//   set_finish   norms of partial sums
//   set_rescale  w = g * v / n̂, the same with v in w's place, or (DOT) dv = g / n̂ * (dw - dg * (v / d))
//
// What is written for a norm is one of
//   OUT_NORMS   f32: n̂_j
//   OUT_SCALES  two f32, the Scale g_j / n̂_j
//   DOT         four f32, the Scales g_j / n̂_j and dg_j / d_j; and dg_j = sum dw * (v / n̂_j), or what stands there
//               and that
//
// Elements are read and written in octets, eight from a multiple of eight on, which are whole quads in every storage
// type.
// v, dw and w are reached by set_quads.wgsl or set_words.wgsl. A tensor's place is counted from the start of its
// binding, modulo 2^32: a binding need not hold the start of the tensor.

struct Params {
    count: u32,     // items
    first: u32,     // the first of them within its binding
    has_gain: u32,  // 0: no member has a gain
}

var<immediate> p: Params;

// What all items begin with: where the member's tensors are, and what is to be done.
struct Member {
    v: u32,
    dw: u32,
    g: u32,    // element
    part: u32, // partial sums, of PARTS parts each
    out: u32,  // f32 words of `out`; set_rescale: Scales of `scales`
    w: u32,    // set_rows, set_finish: f32 words of dg
    flags: u32,
    eps: f32,
}

// Fields of `flags`: the first bit, and two bits each, or one.
const OF_V = 0u;
const OF_DW = 2u;
const OF_W = 4u;
const OF_POLICY = 6u;
const OF_GAIN = 12u;
const HAS_GAIN = 0x100u;
const DIRECT = 0x200u; // a row is one norm: write it out
const HAS_DG = 0x400u;
const OCTETS = 0x800u; // set_columns: rows of whole octets; set_rescale: all elements of an octet have one norm

// Rows `count` of `length` elements, `stride` apart. Sum r goes to norm r or partial sum r.
struct Rows {
    member: Member,
    first: u32,     // element
    length: u32,
    stride: u32,
    count: u32,
    turns: u32,     // rows that a lane has a part in, up to 32
    lane_bits: u32, // log2 of the lanes of a row
    run_bits: u32,  // log2 of the neighbouring lanes that read neighbouring octets, see norms.wgsl
    end: u32,       // element behind the last row, which may be shorter
}

// `rows` rows of some neighbouring columns, in stretches of split_length rows. Stretch s of column c goes to partial
// sum s * columns + c.
struct Columns {
    member: Member,
    first: u32,        // element
    stride: u32,       // from a row to the next
    rows: u32,
    split_length: u32,
    columns: u32,      // of the stretches' partial sums
    units: u32,        // octets (OCTETS) or elements of a row, an invocation each
    unused: u32,
    unused_too: u32,
}

// Norm j is the sum of the partial sums a * a_stride + j * j_stride + b.
struct Finish {
    member: Member,
    a: u32,
    a_stride: u32,
    j_stride: u32,
    b: u32,
    count: u32, // norms
    turns: u32,
    lane_bits: u32,
    unused: u32,
}

// Whole octets, and the elements behind the last one of a member.
struct Rescale {
    member: Member,
    first: u32,    // octet
    octets: u32,
    inner: u32,    // elements from one norm to the next
    kept: u32,     // norms
    step_i: u32,   // from an octet of an invocation to its next: elements within `inner`, ..
    step_j: u32,   // .. and norms within `kept`
    run_bits: u32, // log2 of the neighbouring invocations that take neighbouring octets
    tail: u32,     // elements
}

// The table of the set, which shares its buffer with nothing: see READ in source.rs.
@group(0) @binding(0) var<storage> rows: array<Rows>;
@group(0) @binding(0) var<storage> columns: array<Columns>;
@group(0) @binding(0) var<storage> finishes: array<Finish>;
@group(0) @binding(0) var<storage> rescales: array<Rescale>;
@group(0) @binding(3) var<storage, read> g: array<u32>; // words of GAIN_DTYPE
@group(0) @binding(4) var<storage, read_write> part: array<vec2<u32>>; // Wide: f32 m, i32 e
@group(0) @binding(5) var<storage, read_write> out: array<f32>;
@group(0) @binding(5) var<storage, read> scales: array<vec2<f32>>; // Scale; with DOT two for each norm
@group(0) @binding(6) var<storage, read_write> dg: array<f32>;

const MIXED = 3u; // a storage type of each member's own

override V_DTYPE: u32 = F32;
override DW_DTYPE: u32 = F32;
override W_DTYPE: u32 = F32;
override GAIN_DTYPE: u32 = F32;
override DOT: bool = false;
override OUT: u32 = OUT_NORMS;
override IN_PLACE: bool = false;
override ADD: bool = false; // add to what dg and dv hold
override ONE_LANE: bool = false; // set_rows: no item has rows of more than one lane

override PARTS: u32 = select(1u, 2u, DOT); // sums of a partial sum
const OUT_NORMS = 0u;
const OUT_SCALES = 1u;

var<workgroup> other_sums: array<f32, THREADS>;
var<workgroup> left: array<u32, THREADS>; // bit r: the row of turn r was not plain
var<workgroup> any_left: u32;

fn v_type(m: Member) -> u32 {
    return select(V_DTYPE, extractBits(m.flags, OF_V, 2u), V_DTYPE == MIXED);
}

fn dw_type(m: Member) -> u32 {
    return select(DW_DTYPE, extractBits(m.flags, OF_DW, 2u), DW_DTYPE == MIXED);
}

fn w_type(m: Member) -> u32 {
    return select(W_DTYPE, extractBits(m.flags, OF_W, 2u), W_DTYPE == MIXED);
}

fn gain_type(m: Member) -> u32 {
    return select(GAIN_DTYPE, extractBits(m.flags, OF_GAIN, 2u), GAIN_DTYPE == MIXED);
}

fn has(m: Member, flag: u32) -> bool {
    return (m.flags & flag) != 0u;
}

// Eight elements: those at even places, and those at odd ones, as the halves of packed words have them.
struct Octet {
    low: vec4<f32>,
    high: vec4<f32>,
}

fn octet_of_f32(first: vec4<u32>, second: vec4<u32>) -> Octet {
    let a = bitcast<vec4<f32>>(first);
    let b = bitcast<vec4<f32>>(second);
    return Octet(vec4<f32>(a.xz, b.xz), vec4<f32>(a.yw, b.yw));
}

fn octet_of_packed(words: vec4<u32>, dtype: u32) -> Octet {
    return Octet(quad_low(words, dtype), quad_high(words, dtype));
}

// Octet o of v, where of f32 no quad behind `last` is read.
fn v_octet_up_to(m: Member, o: u32, last: u32) -> Octet {
    let dtype = v_type(m);
    if dtype == F32 {
        return octet_of_f32(v_quad(m.v, 2u * o), v_quad(m.v, min(2u * o + 1u, last)));
    }
    return octet_of_packed(v_quad(m.v, o), dtype);
}

fn dw_octet_up_to(m: Member, o: u32, last: u32) -> Octet {
    let dtype = dw_type(m);
    if dtype == F32 {
        return octet_of_f32(dw_quad(m.dw, 2u * o), dw_quad(m.dw, min(2u * o + 1u, last)));
    }
    return octet_of_packed(dw_quad(m.dw, o), dtype);
}

fn v_octet(m: Member, o: u32) -> Octet {
    return v_octet_up_to(m, o, 2u * o + 1u);
}

fn dw_octet(m: Member, o: u32) -> Octet {
    return dw_octet_up_to(m, o, 2u * o + 1u);
}

fn w_octet(m: Member, o: u32) -> Octet {
    let dtype = w_type(m);
    if dtype == F32 {
        return octet_of_f32(w_quad(m.w, 2u * o), w_quad(m.w, 2u * o + 1u));
    }
    return octet_of_packed(w_quad(m.w, o), dtype);
}

fn put_octet(m: Member, o: u32, x: Octet) {
    let dtype = w_type(m);
    if dtype == F32 {
        let first = vec4<f32>(x.low.x, x.high.x, x.low.y, x.high.y);
        put_quad(m.w, 2u * o, bitcast<vec4<u32>>(first));
        put_quad(m.w, 2u * o + 1u, bitcast<vec4<u32>>(vec4<f32>(x.low.z, x.high.z, x.low.w, x.high.w)));
    } else {
        put_quad(m.w, o, quad_of(x.low, x.high, dtype));
    }
}

fn v_at(m: Member, e: u32) -> f32 {
    let dtype = v_type(m);
    return unpack(v_word(m.v, word_holding(e, dtype)), e, dtype);
}

fn dw_at(m: Member, e: u32) -> f32 {
    let dtype = dw_type(m);
    return unpack(dw_word(m.dw, word_holding(e, dtype)), e, dtype);
}

fn w_at(m: Member, e: u32) -> f32 {
    let dtype = w_type(m);
    return unpack(w_word(m.w, word_holding(e, dtype)), e, dtype);
}

// What octet o holds of the elements first .. end - 1, and zeros.
fn masked(x: Octet, o: u32, first: u32, end: u32) -> Octet {
    // What lies before the first wraps around.
    let low = vec4<u32>(8u * o - first) + vec4<u32>(0u, 2u, 4u, 6u);
    let length = vec4<u32>(end - first);
    return Octet(
        select(vec4<f32>(), x.low, low < length),
        select(vec4<f32>(), x.high, low + vec4<u32>(1u) < length),
    );
}

fn gain_of(m: Member, j: u32) -> f32 {
    if p.has_gain == 0u || !has(m, HAS_GAIN) {
        return 1.0;
    }
    let dtype = gain_type(m);
    return unpack(g[word_holding(m.g + j, dtype)], m.g + j, dtype);
}

// What becomes of the sums of norm j.
fn finish(m: Member, j: u32, squares: Wide, products: Wide) {
    let policy = extractBits(m.flags, OF_POLICY, 2u);
    if DOT {
        let factors = factors_of_products(products, divisor_of(squares, policy, m.eps), gain_of(m, j), policy, m.eps);
        if has(m, HAS_DG) {
            dg[m.w + j] = select(0.0, dg[m.w + j], ADD) + narrow(factors.dg);
        }
        put_scale(m.out + 4u * j, factors.a);
        put_scale(m.out + 4u * j + 2u, factors.share);
        return;
    }
    let norm = effective_norm(squares, policy, m.eps);
    if OUT == OUT_NORMS {
        out[m.out + j] = narrow(norm);
    } else {
        put_scale(m.out + 2u * j, scale_of(quotient(wide(gain_of(m, j)), norm)));
    }
}

fn put_scale(at: u32, scale: Scale) {
    out[at] = scale.t;
    out[at + 1u] = scale.m;
}

// `finish` of a sum of squares, where neither it nor what is made of it is near the ends of f32's range. False where
// that is not so; then nothing was written.
fn finish_plain(m: Member, j: u32, squares: f32) -> bool {
    let norm = plain_norm(squares, extractBits(m.flags, OF_POLICY, 2u), m.eps);
    let scale = gain_of(m, j) / norm;
    if norm == 0.0 || (OUT == OUT_SCALES && !is_normal(scale)) {
        return false;
    }
    if OUT == OUT_NORMS {
        out[m.out + j] = norm;
    } else {
        out[m.out + 2u * j] = 1.0;
        out[m.out + 2u * j + 1u] = scale;
    }
    return true;
}

fn put_part(at: u32, squares: Wide, products: Wide) {
    part[PARTS * at] = vec2<u32>(bitcast<u32>(squares.m), bitcast<u32>(squares.e));
    if DOT {
        part[PARTS * at + 1u] = vec2<u32>(bitcast<u32>(products.m), bitcast<u32>(products.e));
    }
}

struct Sums {
    squares: f32,
    products: f32,
}

fn add(sums: ptr<function, Sums4>, x: Octet, y: Octet) {
    (*sums).squares += x.low * x.low + x.high * x.high;
    if DOT {
        (*sums).products += x.low * y.low + x.high * y.high;
    }
}

struct Sums4 {
    squares: vec4<f32>,
    products: vec4<f32>,
}

fn total_of(a: Sums4, b: Sums4) -> Sums {
    let squares = a.squares + b.squares;
    let products = a.products + b.products;
    return Sums(
        (squares.x + squares.y) + (squares.z + squares.w),
        (products.x + products.y) + (products.z + products.w),
    );
}

fn dw_beside(m: Member, o: u32) -> Octet {
    if DOT {
        return dw_octet(m, o);
    }
    return Octet();
}

// A lane's part of the sums over the elements first .. first + length - 1.
fn part_of_row(item: Rows, first: u32, lane: u32) -> Sums {
    let m = item.member;
    let end = min(first + item.length, item.end);
    let begin = (first + 7u) / 8u;
    let stop = max(end / 8u, begin);
    let run = 1u << item.run_bits;
    // Every `run` lanes share a piece.
    let piece = ((stop - begin + (1u << item.lane_bits) - 1u) >> item.lane_bits) << item.run_bits;
    let own = begin + (lane >> item.run_bits) * piece;
    let own_end = min(own + piece, stop);
    var a = Sums4();
    var b = Sums4();
    var o = own + (lane & (run - 1u));
    for (; ONE_LANE && o + 3u * run < own_end; o += 4u * run) { // length / 32 iterations
        add(&a, v_octet(m, o), dw_beside(m, o));
        add(&b, v_octet(m, o + run), dw_beside(m, o + run));
        add(&a, v_octet(m, o + 2u * run), dw_beside(m, o + 2u * run));
        add(&b, v_octet(m, o + 3u * run), dw_beside(m, o + 3u * run));
    }
    for (; o + run < own_end; o += 2u * run) { // length / (16 lanes) iterations
        add(&a, v_octet(m, o), dw_beside(m, o));
        add(&b, v_octet(m, o + run), dw_beside(m, o + run));
    }
    for (; o < own_end; o += run) { // at most 1 iteration
        add(&a, v_octet(m, o), dw_beside(m, o));
    }
    // Octets that the row shares with its neighbours: the first and the last one, or one in all.
    let shares_first = first % 8u != 0u;
    let shares_last = end % 8u != 0u && (end / 8u != first / 8u || !shares_first);
    let whole = item.length == 0u || !(shares_first || shares_last);
    for (var k = select(lane, 2u, whole); k < 2u; k += 1u << item.lane_bits) { // at most 2 iterations
        if select(shares_first, shares_last, k == 1u) {
            let edge = select(first, end, k == 1u) / 8u;
            var y = Octet();
            if DOT {
                y = masked(dw_octet_up_to(m, edge, (end - 1u) / 4u), edge, first, end);
            }
            add(&b, masked(v_octet_up_to(m, edge, (end - 1u) / 4u), edge, first, end), y);
        }
    }
    var total = total_of(a, b);
    let touched = own + (lane & (run - 1u)) < own_end || (lane < 2u && !whole);
    // What is to be formed again shows in the sum of squares, which lane 0 sees: as the largest f32, since WGSL
    // knows no constant that is infinite.
    if DOT && touched && !is_safe(total.products) {
        total.squares = bitcast<f32>(INFINITY - 1u);
    }
    return total;
}

// The same of v² with v scaled, element by element.
fn squares_of_row(item: Rows, first: u32, lane: u32, scale: f32) -> f32 {
    let end = min(first + item.length, item.end);
    var sum = vec4<f32>();
    var n = 0u;
    for (var e = first + lane; e < end; e += 1u << item.lane_bits) { // length / lanes iterations
        let a = v_at(item.member, e) * scale;
        sum[n] += a * a;
        n = (n + 1u) % 4u;
    }
    return (sum.x + sum.y) + (sum.z + sum.w);
}

// The same of dw * v, whatever the exponents.
fn wide_part_of_row(item: Rows, first: u32, lane: u32) -> Wide {
    let end = min(first + item.length, item.end);
    var sum = Wide(0.0, NOTHING);
    for (var e = first + lane; e < end; e += 1u << item.lane_bits) { // length / lanes iterations
        sum = sum_of(sum, product_of(wide(v_at(item.member, e)), wide(dw_at(item.member, e))));
    }
    return sum;
}

// The sums over the lanes of a row; the result is right in their lane 0.
fn sum_of_lanes(own: Sums, t: u32, lanes: u32) -> Sums {
    var total = own;
    let lane = t & (lanes - 1u);
    for (var step = lanes / 2u; step > 0u; step /= 2u) { // at most 6 iterations
        // Nobody may overwrite what a slower lane still reads.
        workgroupBarrier();
        sums[t] = total.squares;
        other_sums[t] = total.products;
        workgroupBarrier();
        if lane < step {
            total.squares += sums[t + step];
            total.products += other_sums[t + step];
        }
    }
    return total;
}

// What becomes of the sums of row r.
fn put_sums(item: Rows, r: u32, squares: Wide, products: Wide) {
    if has(item.member, DIRECT) {
        finish(item.member, r, squares, products);
    } else {
        put_part(item.member.part + r, squares, products);
    }
}

// The same of sums that f32 holds safely. False where it does not; then the row has to be summed up again.
fn put_plain(item: Rows, r: u32, sum: Sums) -> bool {
    if !DOT && has(item.member, DIRECT) {
        return finish_plain(item.member, r, sum.squares);
    }
    let plain = lift(sum.squares) == 0;
    if plain {
        if DOT {
            put_sums(item, r, Wide(sum.squares, 0), Wide(sum.products, 0));
        } else {
            // All of `finish` would be run for nothing by drivers that run both sides of a branch.
            put_part(item.member.part + r, Wide(sum.squares, 0), Wide(0.0, 0));
        }
    }
    return plain;
}

// `turns` neighbouring rows of an item, which lie together in memory, without a barrier: drivers on CPUs have none
// at all then.
fn rows_of_a_lane(item: Rows, t: u32) {
    let begin = t * item.turns;
    let end = min(begin + item.turns, item.count);
    var again = 0u;
    for (var r = begin; r < end; r += 1u) { // at most 32 iterations
        let fine = put_plain(item, r, part_of_row(item, item.first + r * item.stride, 0u));
        again |= select(1u << (r - begin), 0u, fine);
    }
    // Rarely: the ends of f32's range.
    for (var r = select(begin, end, again == 0u); r < end; r += 1u) { // at most 32 iterations
        if ((again >> (r - begin)) & 1u) == 1u {
            let first = item.first + r * item.stride;
            let up = lift(squares_of_row(item, first, 0u, 1.0));
            let squares = squares_of_row(item, first, 0u, exp2i(up));
            var products = Wide(0.0, NOTHING);
            if DOT {
                products = wide_part_of_row(item, first, 0u);
            }
            put_sums(item, r, Wide(squares, -2 * up), products);
        }
    }
}

@compute @workgroup_size(THREADS)
fn set_rows(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
    let id = flat(group, groups);
    if id >= p.count {
        return;
    }
    let item = rows[p.first + id];
    if ONE_LANE {
        rows_of_a_lane(item, t);
        return;
    }
    let lanes = 1u << item.lane_bits;
    let lane = t & (lanes - 1u);
    let side_by_side = THREADS >> item.lane_bits;
    var mine_left = 0u;
    for (var turn = 0u; turn < item.turns; turn += 1u) { // at most 32 iterations
        let r = turn * side_by_side + (t >> item.lane_bits);
        let exists = r < item.count;
        let own = part_of_row(item, item.first + min(r, item.count - 1u) * item.stride, lane);
        let sum = sum_of_lanes(own, t, lanes);
        if lane == 0u && exists {
            mine_left |= select(1u << turn, 0u, put_plain(item, r, sum));
        }
    }

    // Rarely, and for all rows of a turn together: the ends of f32's range.
    left[t] = mine_left;
    workgroupBarrier();
    if t == 0u {
        var found = 0u;
        for (var i = 0u; i < THREADS; i += lanes) { // THREADS / lanes iterations
            found |= left[i];
        }
        any_left = found;
    }
    let again = workgroupUniformLoad(&any_left);
    for (var turn = 0u; turn < 32u; turn += 1u) { // 32 iterations
        if (again >> turn) == 0u {
            break;
        }
        if ((again >> turn) & 1u) == 0u {
            continue;
        }
        let r = turn * side_by_side + (t >> item.lane_bits);
        let first = item.first + min(r, item.count - 1u) * item.stride;
        // Which scale is safe, the squares alone say, and lane 0 knows.
        let squares_alone = sum_of_lanes(Sums(squares_of_row(item, first, lane, 1.0), 0.0), t, lanes);
        workgroupBarrier();
        if lane == 0u {
            sums[t] = squares_alone.squares;
        }
        workgroupBarrier();
        let up = lift(sums[t - lane]);
        let lifted = sum_of_lanes(Sums(squares_of_row(item, first, lane, exp2i(up)), 0.0), t, lanes);
        var products = Wide(0.0, NOTHING);
        if DOT {
            products = combine_lanes(wide_part_of_row(item, first, lane), t, lanes);
        }
        if lane == 0u && ((mine_left >> turn) & 1u) == 1u {
            put_sums(item, r, Wide(lifted.squares, -2 * up), products);
        }
    }
}

// What is added up of one element, and how it is formed again where f32 does not hold it safely.
fn is_fine(squares: f32, products: f32) -> bool {
    return lift(squares) == 0 && (!DOT || is_safe(products));
}

fn put_column_again(item: Columns, at: u32, first: u32, count: u32, squares: f32) {
    let up = lift(squares);
    var sum = 0.0;
    var products = Wide(0.0, NOTHING);
    for (var row = 0u; row < count; row += 1u) { // count iterations
        let e = first + row * item.stride;
        let a = v_at(item.member, e);
        sum += (a * exp2i(up)) * (a * exp2i(up));
        if DOT {
            products = sum_of(products, product_of(wide(a), wide(dw_at(item.member, e))));
        }
    }
    put_part(at, Wide(sum, -2 * up), products);
}

@compute @workgroup_size(THREADS)
fn set_columns(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
    let id = flat(group, groups);
    if id >= p.count {
        return;
    }
    let item = columns[p.first + id];
    let m = item.member;
    let split = t / item.units;
    let begin = split * item.split_length;
    if begin >= item.rows || split >= THREADS / item.units {
        return;
    }
    let count = min(item.split_length, item.rows - begin);
    let unit = t % item.units;
    if !has(m, OCTETS) {
        let first = item.first + begin * item.stride + unit;
        var squares = 0.0;
        var products = 0.0;
        for (var row = 0u; row < count; row += 1u) { // split_length iterations
            let a = v_at(m, first + row * item.stride);
            squares += a * a;
            if DOT {
                products += a * dw_at(m, first + row * item.stride);
            }
        }
        let at = m.part + split * item.columns + unit;
        put_part(at, Wide(squares, 0), Wide(products, 0));
        // Rarely. A loop, since some drivers run all code between the braces of an `if`, and throw it away.
        for (var i = select(0u, 1u, is_fine(squares, products)); i < 1u; i += 1u) { // at most 1 iteration
            put_column_again(item, at, first, count, squares);
        }
        return;
    }
    let first = item.first + begin * item.stride + 8u * unit;
    var squares = Octet();
    var products = Octet();
    for (var row = 0u; row < count; row += 1u) { // split_length iterations
        let o = (first + row * item.stride) / 8u;
        let x = v_octet(m, o);
        squares = Octet(squares.low + x.low * x.low, squares.high + x.high * x.high);
        if DOT {
            let y = dw_octet(m, o);
            products = Octet(products.low + x.low * y.low, products.high + x.high * y.high);
        }
    }
    let at = m.part + split * item.columns + 8u * unit;
    var fine = 0u;
    for (var i = 0u; i < 8u; i += 1u) { // 8 iterations
        let s = select(squares.low[i / 2u], squares.high[i / 2u], i % 2u == 1u);
        let d = select(products.low[i / 2u], products.high[i / 2u], i % 2u == 1u);
        put_part(at + i, Wide(s, 0), Wide(d, 0));
        fine |= select(0u, 1u << i, is_fine(s, d));
    }
    for (var i = select(0u, 8u, fine == 0xffu); i < 8u; i += 1u) { // 8 iterations
        if ((fine >> i) & 1u) == 0u {
            let s = select(squares.low[i / 2u], squares.high[i / 2u], i % 2u == 1u);
            put_column_again(item, at + i, first + i, count, s);
        }
    }
}

@compute @workgroup_size(THREADS)
fn set_finish(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
    let id = flat(group, groups);
    if id >= p.count {
        return;
    }
    let item = finishes[p.first + id];
    let lanes = 1u << item.lane_bits;
    let lane = t & (lanes - 1u);
    for (var turn = 0u; turn < item.turns; turn += 1u) { // bounded by the host, with the loop within
        let j = turn * (THREADS >> item.lane_bits) + (t >> item.lane_bits);
        let exists = j < item.count;
        var squares = Wide(0.0, NOTHING);
        var products = Wide(0.0, NOTHING);
        let first = item.member.part + min(j, item.count - 1u) * item.j_stride;
        for (var i = lane; i < item.a * item.b; i += lanes) {
            let at = PARTS * (first + i / item.b * item.a_stride + i % item.b);
            squares = sum_of(squares, Wide(bitcast<f32>(part[at].x), bitcast<i32>(part[at].y)));
            if DOT {
                products = sum_of(products, Wide(bitcast<f32>(part[at + 1u].x), bitcast<i32>(part[at + 1u].y)));
            }
        }
        squares = combine_lanes(squares, t, lanes);
        if DOT {
            products = combine_lanes(products, t, lanes);
        }
        if lane == 0u && exists {
            finish(item.member, j, squares, products);
        }
    }
}

// The Scales of a norm: of w, and (DOT) of the share of v in dv.
struct Scales {
    t: f32,
    m: f32,
    share_t: f32,
    share_m: f32,
}

fn scales_of(m: Member, j: u32) -> Scales {
    if !DOT {
        let s = scales[m.out + j];
        return Scales(s.x, s.y, 0.0, 0.0);
    }
    let s = scales[m.out + 2u * j];
    let share = scales[m.out + 2u * j + 1u];
    return Scales(s.x, s.y, share.x, share.y);
}

// What stands to be scaled: v, or w in its place, or dw with v beside it.
fn octet_to_scale(m: Member, o: u32) -> Octet {
    if DOT {
        return dw_octet(m, o);
    }
    if IN_PLACE {
        return w_octet(m, o);
    }
    return v_octet(m, o);
}

fn put_sum(m: Member, o: u32, x: Octet) {
    if ADD {
        let y = w_octet(m, o);
        put_octet(m, o, Octet(x.low + y.low, x.high + y.high));
    } else {
        put_octet(m, o, x);
    }
}

fn four_scaled(x: vec4<f32>, t: vec4<f32>, m: vec4<f32>) -> vec4<f32> {
    return ((x * t) * m) * t;
}

fn scaled_at(m: Member, e: u32, f: Scales) -> f32 {
    if DOT {
        var value = scaled(dw_at(m, e) - scaled(v_at(m, e), Scale(f.share_t, f.share_m)), Scale(f.t, f.m));
        if ADD {
            value += w_at(m, e);
        }
        return value;
    }
    if IN_PLACE {
        return scaled(w_at(m, e), Scale(f.t, f.m));
    }
    return scaled(v_at(m, e), Scale(f.t, f.m));
}

// An element within its norm, and the norm.
struct Position {
    i: u32,
    j: u32,
}

// Further on by fewer than `inner` elements and `kept` norms, without a division; or by one element.
fn moved(start: Position, item: Rescale, i: u32, j: u32) -> Position {
    let to = start.i + i;
    let norm = start.j + j + select(0u, 1u, to >= item.inner);
    return Position(
        to - select(0u, item.inner, to >= item.inner),
        norm - select(0u, item.kept, norm >= item.kept),
    );
}

@compute @workgroup_size(THREADS)
fn set_rescale(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
    let id = flat(group, groups);
    if id >= p.count {
        return;
    }
    let item = rescales[p.first + id];
    let m = item.member;
    // Every `run` invocations share a piece.
    let run = 1u << item.run_bits;
    let piece = (item.octets + THREADS - 1u) / THREADS * run;
    let begin = (t >> item.run_bits) * piece;
    let end = item.first + min(begin + piece, item.octets);
    let own = item.first + begin + (t & (run - 1u));
    var at = Position(own * 8u % item.inner, own * 8u / item.inner % item.kept);
    let one = has(m, OCTETS);
    for (var o = select(end, own, one); o < end; o += run) { // octets / THREADS iterations
        let f = scales_of(m, at.j);
        let t4 = vec4<f32>(f.t);
        let m4 = vec4<f32>(f.m);
        var x = octet_to_scale(m, o);
        if DOT {
            let y = v_octet(m, o);
            x.low -= four_scaled(y.low, vec4<f32>(f.share_t), vec4<f32>(f.share_m));
            x.high -= four_scaled(y.high, vec4<f32>(f.share_t), vec4<f32>(f.share_m));
        }
        put_sum(m, o, Octet(four_scaled(x.low, t4, m4), four_scaled(x.high, t4, m4)));
        at = moved(at, item, item.step_i, item.step_j);
    }
    for (var o = select(own, end, one); o < end; o += run) { // octets / THREADS iterations
        var element = at;
        var own_t = Octet();
        var own_m = Octet();
        var share_t = Octet();
        var share_m = Octet();
        for (var n = 0u; n < 4u; n += 1u) { // 4 iterations
            var f = scales_of(m, element.j);
            own_t.low[n] = f.t;
            own_m.low[n] = f.m;
            share_t.low[n] = f.share_t;
            share_m.low[n] = f.share_m;
            element = moved(element, item, 1u, 0u);
            f = scales_of(m, element.j);
            own_t.high[n] = f.t;
            own_m.high[n] = f.m;
            share_t.high[n] = f.share_t;
            share_m.high[n] = f.share_m;
            element = moved(element, item, 1u, 0u);
        }
        var x = octet_to_scale(m, o);
        if DOT {
            let y = v_octet(m, o);
            x.low -= four_scaled(y.low, share_t.low, share_m.low);
            x.high -= four_scaled(y.high, share_t.high, share_m.high);
        }
        put_sum(m, o, Octet(four_scaled(x.low, own_t.low, own_m.low), four_scaled(x.high, own_t.high, own_m.high)));
        at = moved(at, item, item.step_i, item.step_j);
    }
    // Behind the last whole octet of a member, a quad each; what lies behind the last element stays.
    let dtype = w_type(m);
    let per_word = select(2u, 1u, dtype == F32);
    let tail_first = 8u * (item.first + item.octets);
    let tail_end = tail_first + item.tail;
    for (var e = tail_first + 4u * per_word * t; e < tail_end; e += 4u * per_word * THREADS) { // at most 1 iteration
        var words: vec4<u32>;
        let count = min((tail_end - e + per_word - 1u) / per_word, 4u);
        for (var i = 0u; i < count; i += 1u) { // at most 4 iterations
            words[i] = word_at(m, item, e + i * per_word, tail_end);
        }
        put_words(m.w, word_holding(e, dtype) / 4u, words, count);
    }
}

// The word of w that starts with element e, its upper half as it stands where that lies behind the last element.
fn word_at(m: Member, item: Rescale, e: u32, end: u32) -> u32 {
    let dtype = w_type(m);
    let value = scaled_at(m, e, scales_of(m, e / item.inner % item.kept));
    if dtype == F32 {
        return bitcast<u32>(value);
    }
    var upper = w_word(m.w, word_holding(e, dtype)) & 0xffff0000u;
    if e + 1u < end {
        upper = pack(scaled_at(m, e + 1u, scales_of(m, (e + 1u) / item.inner % item.kept)), dtype) << 16u;
    }
    return pack(value, dtype) | upper;
}
