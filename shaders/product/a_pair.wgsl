// Operand A of a product, f16 or bf16, four elements, two words, at a time: its rows start at multiples of four
// elements of the binding.
// import numbers/storage
//
// Fills the slot `a`: see a_scalar.wgsl.

override A_DTYPE: u32 = F16;

@group(0) @binding(0) var<storage, read> a_pairs: array<vec2<u32>>; // A, words of A_DTYPE

const A_MAY_END = false;

fn a_raw(e: u32, left: u32) -> vec4<u32> {
    return vec4<u32>(a_pairs[e >> 2u], vec2<u32>());
}

fn a_values(raw: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(unpack_pair(raw.x, A_DTYPE), unpack_pair(raw.y, A_DTYPE));
}

fn a_four(e: u32, left: u32) -> vec4<f32> {
    if left == 0u {
        return vec4<f32>();
    }
    return a_values(a_raw(e, left));
}

fn a_at(e: u32) -> f32 {
    return unpack(a_pairs[e >> 2u][(e >> 1u) & 1u], e, A_DTYPE);
}

fn a_packed(e: u32, left: u32) -> vec2<u32> {
    return a_pairs[e >> 2u];
}
