// Operand B of a product as the weight of a transposed convolution, (channel of c, channel of a in a group, tap): a
// column is a channel of a and a phase of the stride, a step a channel of c and every stride-th tap, from the phase
// on.
// slot params = product/params_windows
// slot b = product/b_scalar
// import product/block
//
// A tap past the kernel is zero.

// Four neighbouring columns: their first element, and the taps of their phase.
struct Columns {
    first: vec4<u32>,
    y: vec4<u32>,
    x: vec4<u32>,
}

struct Weights {
    e: vec4<u32>,
    there: vec4<bool>,
}

var<private> columns_of: array<Columns, 3>; // of the invocation's blocks
var<private> b_marks: array<vec4<u32>, 3>; // as `marks` of a_windows.wgsl

fn columns_from(n: u32) -> Columns {
    let column = p.column_first + min(vec4<u32>(n) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(p.columns - 1u));
    let channel = column / area_of(p.phases);
    let phase = column - channel * area_of(p.phases);
    let y = phase / width_of(p.phases);
    return Columns(channel * area_of(p.kernel), y, phase - y * width_of(p.phases));
}

fn weights(c: Columns, k: u32) -> Weights {
    let channel = divided(k, area_of(p.taps));
    let at = k - channel * area_of(p.taps);
    let tap = divided(at, width_of(p.taps));
    let y = c.y + tap * height_of(p.phases);
    let x = c.x + (at - tap * width_of(p.taps)) * width_of(p.phases);
    let there = (y < vec4<u32>(height_of(p.kernel))) & (x < vec4<u32>(width_of(p.kernel)));
    let row = (group * p.channels + channel) * p.v_row;
    let e = row + c.first + y * width_of(p.kernel) + x;
    return Weights(extractBits(p.offsets, 8u, 8u) + select(vec4<u32>(), e, there), there);
}

fn weight_words(e: vec4<u32>) -> vec4<u32> {
    return vec4<u32>(b_word(e.x), b_word(e.y), b_word(e.z), b_word(e.w));
}

fn weight_mark(w: Weights) -> u32 {
    let bits = vec4<u32>(1u, 2u, 4u, 8u);
    let there = select(vec4<u32>(), bits, w.there);
    let upper = (w.e & vec4<u32>(1u)) * bits;
    return (there.x | there.y | there.z | there.w) | ((upper.x | upper.y | upper.z | upper.w) << 4u);
}

fn b_begin(stage: u32, n: u32, dk: u32) {
    columns_of[stage] = columns_from(n);
}

fn b_fetch(stage: u32, n: u32, dk: u32, k0: u32, k_end: u32) -> Block {
    let k = min(vec4<u32>(k0 + dk) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(k_end - 1u));
    let c = columns_of[stage];
    let first = weights(c, k.x);
    let second = weights(c, k.y);
    let third = weights(c, k.z);
    let fourth = weights(c, k.w);
    b_marks[stage] = vec4<u32>(weight_mark(first), weight_mark(second), weight_mark(third), weight_mark(fourth));
    return Block(weight_words(first.e), weight_words(second.e), weight_words(third.e), weight_words(fourth.e));
}

fn weight_values(words: vec4<u32>, marked: u32) -> vec4<f32> {
    let there = (vec4<u32>(marked) & vec4<u32>(1u, 2u, 4u, 8u)) != vec4<u32>();
    var values = quad_low(words, B_DTYPE);
    if B_DTYPE != F32 {
        let upper = (vec4<u32>(marked) & vec4<u32>(16u, 32u, 64u, 128u)) != vec4<u32>();
        values = select(values, quad_high(words, B_DTYPE), upper);
    }
    return select(vec4<f32>(), values, there);
}

fn b_steps(stage: u32, block: Block) -> mat4x4<f32> {
    let m = b_marks[stage];
    return mat4x4<f32>(
        weight_values(block[0], m.x), weight_values(block[1], m.y),
        weight_values(block[2], m.z), weight_values(block[3], m.w),
    );
}

fn weight_element(c: Columns, k: u32) -> f32 {
    let w = weights(c, k);
    return select(0.0, b_at(w.e.x), w.there.x);
}

fn b_along_k(n: u32, k: u32, left: u32) -> vec4<f32> {
    if left == 0u {
        return vec4<f32>();
    }
    let c = columns_from(n);
    let last = left - 1u;
    let four = vec4<f32>(
        weight_element(c, k), weight_element(c, k + min(1u, last)),
        weight_element(c, k + min(2u, last)), weight_element(c, k + min(3u, last)),
    );
    return select(vec4<f32>(), four, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(left));
}

var<private> lane_columns: array<Columns, 2>; // of the quads of columns of a lane of subgroup.wgsl

fn b_lane_begin(c: u32, n: u32) {
    if c % 4u == 0u {
        lane_columns[c / 4u] = columns_from(n);
    }
}

fn b_lane_step(c: u32, k: u32, there: bool) -> vec4<f32> {
    let w = weights(lane_columns[c / 4u], min(k, p.depth - 1u));
    return select(vec4<f32>(), weight_values(weight_words(w.e), weight_mark(w)), there);
}

fn b_lane_steps(c: u32, n: u32, k: u32, left: u32) -> mat4x4<f32> {
    return mat4x4<f32>(
        b_lane_step(c, k, left > 0u), b_lane_step(c, k + 1u, left > 1u),
        b_lane_step(c, k + 2u, left > 2u), b_lane_step(c, k + 3u, left > 3u),
    );
}
