// The one tensor more that a convolution may read: what is added to its result, or α of a snake by channel.
// slot params = product/params_windows
// import numbers/storage

@group(0) @binding(7) var<storage, read> extra: array<u32>; // words of EXTRA_DTYPE

override EXTRA: u32 = EXTRA_NONE;
override EXTRA_DTYPE: u32 = F32;

const EXTRA_NONE = 0u;
const EXTRA_RESIDUAL = 1u; // shaped as y
const EXTRA_SNAKE = 2u; // (channels of y)
const EXTRA_INPUT_SNAKE = 3u; // (channels of x)

fn extra_at(i: u32) -> f32 {
    let e = extractBits(p.offsets, 24u, 8u) + i;
    return unpack(extra[word_holding(e, EXTRA_DTYPE)], e, EXTRA_DTYPE);
}

// sin²(θ), not from 1 - cos, which would lose small ones. WGSL promises a sine to 2^-11 only. θ less a multiple k of π,
// in three parts of which the first two times k are exact for |θ| below 2^17; beyond, anything from 0 to 1.
fn sine_squared(theta: vec4<f32>) -> vec4<f32> {
    let k = round(theta * 0.3183098862);
    let rest = ((theta - k * 3.140625) - k * 0.000965118408203125) - k * 2.5351816930196946e-6;
    let r = clamp(rest, vec4<f32>(-1.5707964), vec4<f32>(1.5707964));
    let z = r * r;
    let part = z * (-0.1666666567 + z * (0.00833323039 + z * (-0.00019821235 + z * 2.629978781e-6)));
    let sine = r + r * part;
    return sine * sine;
}

// x + sin²(αx) / (α + 1e-9)
fn snake(x: vec4<f32>, alpha: f32) -> vec4<f32> {
    return x + sine_squared(alpha * x) / (alpha + 1e-9);
}
