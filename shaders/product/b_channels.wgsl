// Operand B of a product as the channels of a tensor (image, channel, position): a row is a channel, and k goes through
// the positions of one image after another.
// slot params = product/params_windows
// slot b = product/b_scalar
// import product/block
// import product/activation
// import product/extra
//
// An image has a multiple of four steps, of which those behind its last position are zero.

override B_ACTIVATION: u32 = ACT_NONE; // of each element as it is read

struct Positions {
    image: u32, // its first element
    u: u32,     // the first of four
}

fn positions_from(k: u32) -> Positions {
    let image = k / rows_of_image();
    return Positions(image * p.c_image, k - image * rows_of_image());
}

fn own_channel(n: u32) -> u32 {
    return first_column() + min(n, p.columns - 1u);
}

fn channel_first(n: u32) -> u32 {
    return extractBits(p.offsets, 8u, 8u) + own_channel(n) * p.positions;
}

// The places of four positions of a channel; behind the last one, that one's.
fn positions_of(n: u32, at: Positions) -> vec4<u32> {
    let u = min(vec4<u32>(at.u) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(p.positions - 1u));
    return channel_first(n) + at.image + u;
}

fn position_words(e: vec4<u32>) -> vec4<u32> {
    return vec4<u32>(b_word(e.x), b_word(e.y), b_word(e.z), b_word(e.w));
}

// Those of row n as the product takes them.
fn position_values(words: vec4<u32>, n: u32, e: vec4<u32>, u: u32) -> vec4<f32> {
    var values = quad_low(words, B_DTYPE);
    if B_DTYPE != F32 {
        values = select(values, quad_high(words, B_DTYPE), (e & vec4<u32>(1u)) == vec4<u32>(1u));
    }
    if EXTRA == EXTRA_SNAKE_OF_B {
        values = snake(values, extra_at(own_channel(n)));
    } else {
        values = activated(values, B_ACTIVATION, p.input_slope);
    }
    return select(vec4<f32>(), values, vec4<u32>(u) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(p.positions));
}

var<private> rows_of: array<u32, 3>; // of the invocation's blocks
var<private> positions_at: array<Positions, 3>;

fn b_begin(stage: u32, n: u32, dk: u32) {
    rows_of[stage] = n;
}

fn b_fetch(stage: u32, n: u32, dk: u32, k0: u32, k_end: u32) -> Block {
    let at = positions_from(min(k0 + dk, p.depth - 4u));
    positions_at[stage] = at;
    return Block(
        position_words(positions_of(n, at)), position_words(positions_of(n + 1u, at)),
        position_words(positions_of(n + 2u, at)), position_words(positions_of(n + 3u, at)),
    );
}

fn b_steps(stage: u32, block: Block) -> mat4x4<f32> {
    let n = rows_of[stage];
    let at = positions_at[stage];
    return transpose(mat4x4<f32>(
        position_values(block[0], n, positions_of(n, at), at.u),
        position_values(block[1], n + 1u, positions_of(n + 1u, at), at.u),
        position_values(block[2], n + 2u, positions_of(n + 2u, at), at.u),
        position_values(block[3], n + 3u, positions_of(n + 3u, at), at.u),
    ));
}

fn b_along_k(n: u32, k: u32, left: u32) -> vec4<f32> {
    if left == 0u {
        return vec4<f32>();
    }
    let at = positions_from(k);
    let e = positions_of(n, at);
    let four = position_values(position_words(e), n, e, at.u);
    return select(vec4<f32>(), four, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(left));
}

fn b_lane_begin(c: u32, n: u32) {}

fn lane_positions(n: u32, at: Positions) -> vec4<f32> {
    let e = positions_of(n, at);
    return position_values(position_words(e), n, e, at.u);
}

// Of a lane of subgroup.wgsl. An image has whole quads of steps, so all four are there.
fn b_lane_steps(c: u32, n: u32, k: u32, left: u32) -> mat4x4<f32> {
    let at = positions_from(k);
    return transpose(mat4x4<f32>(
        lane_positions(n, at), lane_positions(n + 1u, at), lane_positions(n + 2u, at), lane_positions(n + 3u, at),
    ));
}
