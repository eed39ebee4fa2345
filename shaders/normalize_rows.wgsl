// w = g * v / n̂ in one dispatch, for contiguous rows of whole quads that a workgroup can hold: v is read once.
//
// Joined behind held.wgsl; across_workgroup.wgsl or across_subgroup.wgsl adds up between lanes. v and w are (rows, length)
// quads: LANES invocations a row and HELD quads of it each, THREADS / LANES rows in a workgroup.

struct Params {
    count: u32,  // rows
    length: u32, // quads of a row, at most LANES * HELD
    firsts: u32, // 8 bits each: the first element of v, w, g within its binding
    policy: u32,
    eps: f32,
    has_gain: u32,
}

var<immediate> p: Params;

override THREADS: u32 = 64u;
override LANES: u32 = 64u; // a power of two up to THREADS
override RUN: u32 = 64u; // neighbouring lanes that read neighbouring quads, see norms.wgsl
override HELD: u32 = 16u; // up to 32; length where LANES is 1
override WHOLE: bool = false; // length is LANES * HELD

// What take and give of held.wgsl go by.
var<private> part: Part;
var<private> sum: vec4<f32>; // of squares
var<private> factor: f32;

fn squares_of(words: vec4<u32>, scale: f32) -> vec4<f32> {
    let a = quad_low(words, V_DTYPE) * scale;
    if V_DTYPE == F32 {
        return a * a;
    }
    let b = quad_high(words, V_DTYPE) * scale;
    return a * a + b * b;
}

fn squares(quad: Quad, scale: f32) -> vec4<f32> {
    var terms = squares_of(words_of(quad, 0u), scale);
    if PARTS == 2u {
        terms += squares_of(words_of(quad, 1u), scale);
    }
    return terms;
}

fn total_of(terms: vec4<f32>) -> f32 {
    return (terms.x + terms.y) + (terms.z + terms.w);
}

fn scaled_words(words: vec4<u32>, scale: Scale) -> vec4<u32> {
    var high = vec4<f32>();
    if V_DTYPE != F32 {
        high = ((quad_high(words, V_DTYPE) * scale.t) * scale.m) * scale.t;
    }
    return quad_of(((quad_low(words, V_DTYPE) * scale.t) * scale.m) * scale.t, high, V_DTYPE);
}

fn scaled_quad(quad: Quad, scale: Scale) -> Quad {
    let a = scaled_words(words_of(quad, 0u), scale);
    if PARTS == 1u {
        return joined(a, a);
    }
    return joined(a, scaled_words(words_of(quad, 1u), scale));
}

fn plainly_scaled_words(words: vec4<u32>, factor: f32) -> vec4<u32> {
    var high = vec4<f32>();
    if V_DTYPE != F32 {
        high = quad_high(words, V_DTYPE) * factor;
    }
    return quad_of(quad_low(words, V_DTYPE) * factor, high, V_DTYPE);
}

fn plainly_scaled_quad(quad: Quad, factor: f32) -> Quad {
    let a = plainly_scaled_words(words_of(quad, 0u), factor);
    if PARTS == 1u {
        return joined(a, a);
    }
    return joined(a, plainly_scaled_words(words_of(quad, 1u), factor));
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
    let at = extractBits(p.firsts, 16u, 8u) + row;
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
fn take(k: u32) {
    if k < HELD {
        let q = part.first + k * RUN;
        held[k] = quad_at(select(min(q, part.end - 1u), q, WHOLE));
        sum += select(vec4<f32>(), squares(held[k], 1.0), WHOLE || q < part.end);
    }
}

fn give(k: u32) {
    if k < HELD {
        let q = part.first + k * RUN;
        if WHOLE || q < part.end {
            put(q, plainly_scaled_quad(held[k], factor));
        }
    }
}

// Of `row`, the part of this invocation, whose neighbours do the rest. Whether the row was too near the ends of f32's range, and was
// left.
fn normalize_row(row: u32, t: u32) -> bool {
    part = part_of(row, t);
    sum = vec4<f32>();
    take_all();
    let norm = plain_norm(sum_of_lanes(total_of(sum), t, 0u), p.policy, p.eps);
    factor = gain_of(part.row) / norm;
    let is_plain = norm != 0.0 && is_normal(factor);
    if is_plain && part.exists {
        give_all();
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
    @builtin(local_invocation_index) t: u32,
) {
    let is_left = normalize_row(flat(group, groups) * (THREADS / LANES) + t / LANES, t);
    if is_any_left(is_left, t) {
        normalize_again(t, is_left);
    }
}
