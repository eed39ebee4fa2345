// w = g * v / n̂ in one dispatch, for contiguous rows of whole quads that a workgroup can hold: v is read once.
// import numbers/norm
//
// v and w are (rows, length) quads of one storage type that start with aligned elements: LANES invocations a row and
// HELD quads of it each in registers, THREADS / LANES rows in a workgroup.

struct Params {
    count: u32,  // rows
    length: u32, // quads of a row, at most LANES * HELD
    offsets: u32, // 8 bits each: the first element of v, w, g within its binding
    policy: u32,
    eps: f32,
    has_gain: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> v: array<vec4<u32>>; // quads of V_DTYPE
@group(0) @binding(1) var<storage, read> g: array<u32>; // one for each row, words of GAIN_DTYPE
@group(0) @binding(2) var<storage, read_write> w: array<vec4<u32>>; // quads of V_DTYPE

override V_DTYPE: u32 = F32;
override GAIN_DTYPE: u32 = F32;
override IN_PLACE: bool = false; // v is w
override QUAD: u32 = select(8u, 4u, V_DTYPE == F32); // elements

override THREADS: u32 = 64u;
override LANES: u32 = 64u; // a power of two up to THREADS
override RUN: u32 = 64u; // neighbouring lanes that read neighbouring quads, see norms.wgsl
override HELD: u32 = 16u; // up to MAX_HELD; length where LANES is 1
override WHOLE: bool = false; // length is LANES * HELD

const MAX_HELD = 16u;

// The quads of an invocation: registers, since only constants index it.
var<private> held: array<vec4<u32>, MAX_HELD>;

// What load and store go by.
var<private> part: Part;
var<private> sum: vec4<f32>; // of squares
var<private> factor: f32;

fn quad_at(q: u32) -> vec4<u32> {
    if IN_PLACE {
        return w[extractBits(p.offsets, 8u, 8u) / QUAD + q];
    }
    return v[extractBits(p.offsets, 0u, 8u) / QUAD + q];
}

fn put(q: u32, quad: vec4<u32>) {
    w[extractBits(p.offsets, 8u, 8u) / QUAD + q] = quad;
}

fn squares(words: vec4<u32>, scale: f32) -> vec4<f32> {
    let a = quad_low(words, V_DTYPE) * scale;
    if V_DTYPE == F32 {
        return a * a;
    }
    let b = quad_high(words, V_DTYPE) * scale;
    return a * a + b * b;
}

fn total_of(terms: vec4<f32>) -> f32 {
    return (terms.x + terms.y) + (terms.z + terms.w);
}

fn scaled_quad(words: vec4<u32>, scale: Scale) -> vec4<u32> {
    var high = vec4<f32>();
    if V_DTYPE != F32 {
        high = ((quad_high(words, V_DTYPE) * scale.t) * scale.m) * scale.t;
    }
    return quad_of(((quad_low(words, V_DTYPE) * scale.t) * scale.m) * scale.t, high, V_DTYPE);
}

fn plainly_scaled_quad(words: vec4<u32>, factor: f32) -> vec4<u32> {
    var high = vec4<f32>();
    if V_DTYPE != F32 {
        high = quad_high(words, V_DTYPE) * factor;
    }
    return quad_of(quad_low(words, V_DTYPE) * factor, high, V_DTYPE);
}

// The quads of a lane: first, first + RUN, .. below end, HELD of them at most. Past the last row they are those of the
// last row, and not written.
struct Part {
    row: u32,
    exists: bool,
    first: u32,
    end: u32,
}

fn part_of(wanted: u32, t: u32) -> Part {
    let row = min(wanted, p.count - 1u);
    let lane = t % LANES;
    let first = row * p.length + lane / RUN * (RUN * HELD) + lane % RUN;
    return Part(row, wanted < p.count, first, (row + 1u) * p.length);
}

fn gain_of(row: u32) -> f32 {
    if p.has_gain == 0u {
        return 1.0;
    }
    let at = extractBits(p.offsets, 16u, 8u) + row;
    return unpack(g[word_holding(at, GAIN_DTYPE)], at, GAIN_DTYPE);
}

fn squares_again(scale: f32) -> f32 {
    var again = vec4<f32>();
    for (var q = part.first; q < min(part.end, part.first + RUN * HELD); q += RUN) { // HELD iterations
        again += squares(quad_at(q), scale);
    }
    return total_of(again);
}

// Quad k of a part: held, and its squares added up.
fn load(k: u32) {
    if k < HELD {
        let q = part.first + k * RUN;
        held[k] = quad_at(select(min(q, part.end - 1u), q, WHOLE));
        sum += select(vec4<f32>(), squares(held[k], 1.0), WHOLE || q < part.end);
    }
}

fn store(k: u32) {
    if k < HELD {
        let q = part.first + k * RUN;
        if WHOLE || q < part.end {
            put(q, plainly_scaled_quad(held[k], factor));
        }
    }
}

// All that an invocation holds. Written out, since drivers unroll a loop of such a length only by luck.
fn load_all() {
    load(0u); load(1u); load(2u); load(3u);
    load(4u); load(5u); load(6u); load(7u);
    load(8u); load(9u); load(10u); load(11u);
    load(12u); load(13u); load(14u); load(15u);
}

fn store_all() {
    store(0u); store(1u); store(2u); store(3u);
    store(4u); store(5u); store(6u); store(7u);
    store(8u); store(9u); store(10u); store(11u);
    store(12u); store(13u); store(14u); store(15u);
}

override SUMS: u32 = 2u * THREADS;

var<workgroup> sums: array<f32, SUMS>;
var<workgroup> left: array<u32, THREADS>; // 1: the row was not plain
var<workgroup> any_left: u32;

// The sum over the lanes of a row, the same in each; `half` is 0 and 1 in turn, so that nobody overwrites what a slower
// lane still reads.
fn sum_of_lanes(own: f32, t: u32, half: u32) -> f32 {
    if LANES == 1u {
        return own;
    }
    sums[half * THREADS + t] = own;
    workgroupBarrier();
    let begin = half * THREADS + t / LANES * LANES;
    if LANES == 2u {
        return sums[begin] + sums[begin + 1u];
    }
    var sum = vec4<f32>();
    for (var lane = begin; lane < begin + LANES; lane += 4u) { // LANES / 4 iterations
        sum += vec4<f32>(sums[lane], sums[lane + 1u], sums[lane + 2u], sums[lane + 3u]);
    }
    return total_of(sum);
}

// Whether a row of the workgroup is left.
fn is_any_left(own: bool, t: u32) -> bool {
    left[t] = select(0u, 1u, own);
    workgroupBarrier();
    if t == 0u {
        var found = 0u;
        for (var i = 0u; i < THREADS; i += LANES) { // THREADS / LANES iterations
            found |= left[i];
        }
        any_left = found;
    }
    return workgroupUniformLoad(&any_left) != 0u;
}

// Of `row`, the part of this invocation, whose neighbours do the rest. Whether the row was too near the ends of
// f32's range, and was left.
fn normalize_row(row: u32, t: u32) -> bool {
    part = part_of(row, t);
    sum = vec4<f32>();
    load_all();
    let norm = plain_norm(sum_of_lanes(total_of(sum), t, 0u), p.policy, p.eps);
    factor = gain_of(part.row) / norm;
    let is_plain = norm != 0.0 && is_normal(factor);
    if is_plain && part.exists {
        store_all();
    }
    return !is_plain && part.exists;
}

// The same where that was so, over the whole range of f32; lanes of other rows come along.
fn normalize_again(t: u32, is_left: bool) {
    let up = lift(sum_of_lanes(squares_again(1.0), t, 1u));
    let again = sum_of_lanes(squares_again(exp2i(up)), t, 0u);
    let scale = scale_of(quotient(wide(gain_of(part.row)), effective_norm(Wide(again, -2 * up), p.policy, p.eps)));
    let end = select(0u, part.end, is_left);
    for (var q = part.first; q < min(end, part.first + RUN * HELD); q += RUN) { // HELD iterations
        put(q, scaled_quad(quad_at(q), scale));
    }
}

@compute @workgroup_size(THREADS)
fn normalize_rows(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
    let is_left = normalize_row(flat(group, groups) * (THREADS / LANES) + t / LANES, t);
    if is_any_left(is_left, t) {
        normalize_again(t, is_left);
    }
}
