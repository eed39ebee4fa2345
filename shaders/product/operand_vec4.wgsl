// The operands of a product, four elements at a time, of any storage types: their rows start at multiples of four elements
// of the binding.
// import numbers/storage
//
// Fills the slot `operand`: see operand_scalar.wgsl.

override A_DTYPE: u32 = F32;
override B_DTYPE: u32 = F32;

// In words of 8 bytes, four packed elements. (Compilers read two of them, four of f32, by one instruction.)
@group(0) @binding(0) var<storage, read> a_pairs: array<vec2<u32>>; // A
@group(0) @binding(1) var<storage, read> b_pairs: array<vec2<u32>>; // B

const QUADS_MAY_END = false;

alias Raw = vec4<u32>;

fn a_raw(e: u32, left: u32) -> Raw {
    if A_DTYPE == F32 {
        return vec4<u32>(a_pairs[e >> 1u], a_pairs[(e >> 1u) + 1u]);
    }
    return vec4<u32>(a_pairs[e >> 2u], vec2<u32>());
}

fn a_values(raw: Raw) -> vec4<f32> {
    if A_DTYPE == F32 {
        return bitcast<vec4<f32>>(raw);
    }
    return vec4<f32>(unpack_pair(raw.x, A_DTYPE), unpack_pair(raw.y, A_DTYPE));
}

fn a_four(e: u32, left: u32) -> vec4<f32> {
    if left == 0u {
        return vec4<f32>();
    }
    return a_values(a_raw(e, left));
}

fn a_at(e: u32) -> f32 {
    return a_values(a_raw(e & 0xfffffffcu, 4u))[e & 3u];
}

fn a_packed(e: u32, left: u32) -> vec2<u32> {
    return a_pairs[e >> 2u];
}

fn b_raw(e: u32, left: u32) -> Raw {
    if B_DTYPE == F32 {
        return vec4<u32>(b_pairs[e >> 1u], b_pairs[(e >> 1u) + 1u]);
    }
    return vec4<u32>(b_pairs[e >> 2u], vec2<u32>());
}

fn b_values(raw: Raw) -> vec4<f32> {
    if B_DTYPE == F32 {
        return bitcast<vec4<f32>>(raw);
    }
    return vec4<f32>(unpack_pair(raw.x, B_DTYPE), unpack_pair(raw.y, B_DTYPE));
}

fn b_four(e: u32, left: u32) -> vec4<f32> {
    if left == 0u {
        return vec4<f32>();
    }
    return b_values(b_raw(e, left));
}

fn b_at(e: u32) -> f32 {
    return b_values(b_raw(e & 0xfffffffcu, 4u))[e & 3u];
}

fn b_packed(e: u32, left: u32) -> vec2<u32> {
    return b_pairs[e >> 2u];
}
