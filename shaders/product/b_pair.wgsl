// Operand B of a product, f16 or bf16, four elements, two words, at a time: its rows start at multiples of four
// elements of the binding.
// import numbers/storage
//
// Fills the slot `b`: see b_scalar.wgsl.

override B_DTYPE: u32 = F16;

@group(0) @binding(1) var<storage, read> b_pairs: array<vec2<u32>>; // B, words of B_DTYPE

const B_MAY_END = false;

fn b_raw(e: u32, left: u32) -> vec4<u32> {
    return vec4<u32>(b_pairs[e >> 2u], vec2<u32>());
}

fn b_values(raw: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(unpack_pair(raw.x, B_DTYPE), unpack_pair(raw.y, B_DTYPE));
}

fn b_four(e: u32, left: u32) -> vec4<f32> {
    if left == 0u {
        return vec4<f32>();
    }
    return b_values(b_raw(e, left));
}

fn b_at(e: u32) -> f32 {
    return unpack(b_pairs[e >> 2u][(e >> 1u) & 1u], e, B_DTYPE);
}

fn b_packed(e: u32, left: u32) -> vec2<u32> {
    return b_pairs[e >> 2u];
}
