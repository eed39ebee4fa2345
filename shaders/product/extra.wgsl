// The one tensor more that a convolution may read: what is added to its result, or α of a snake by channel.
// slot params = product/params_windows
// import numbers/storage
// import product/snake

@group(0) @binding(7) var<storage, read> extra: array<u32>; // words of EXTRA_DTYPE

override EXTRA: u32 = EXTRA_NONE;
override EXTRA_DTYPE: u32 = F32;

const EXTRA_NONE = 0u;
const EXTRA_RESIDUAL = 1u; // shaped as y, or as what a gate is given
const EXTRA_SNAKE = 2u; // (channels of y)
const EXTRA_INPUT_SNAKE = 3u; // (channels of A)
const EXTRA_SNAKE_OF_B = 4u; // (channels of B)

fn extra_at(i: u32) -> f32 {
    let e = extractBits(p.offsets, 24u, 8u) + i;
    return unpack(extra[word_holding(e, EXTRA_DTYPE)], e, EXTRA_DTYPE);
}

// Four neighbouring elements, of which `count` are there.
fn extra_four(i: u32, count: u32) -> vec4<f32> {
    let last = count - 1u;
    return vec4<f32>(
        extra_at(i), extra_at(i + min(1u, last)), extra_at(i + min(2u, last)), extra_at(i + min(3u, last)),
    );
}
