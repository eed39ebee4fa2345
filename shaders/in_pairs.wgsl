// The operands of a product, both f16 or bf16, four elements, two words, at a time: their rows start at multiples of
// four elements of the binding. See in_words.wgsl.

@group(0) @binding(0) var<storage, read> a_pairs: array<vec2<u32>>; // A, words of A_DTYPE
@group(0) @binding(1) var<storage, read> b_pairs: array<vec2<u32>>; // B, words of B_DTYPE

const QUADS_MAY_END = false;

fn a_four(e: u32, left: u32) -> vec4<f32> {
    if left == 0u {
        return vec4<f32>();
    }
    let words = a_pairs[e >> 2u];
    return vec4<f32>(unpack_pair(words.x, A_DTYPE), unpack_pair(words.y, A_DTYPE));
}

fn b_four(e: u32, left: u32) -> vec4<f32> {
    if left == 0u {
        return vec4<f32>();
    }
    let words = b_pairs[e >> 2u];
    return vec4<f32>(unpack_pair(words.x, B_DTYPE), unpack_pair(words.y, B_DTYPE));
}

fn a_at(e: u32) -> f32 {
    return unpack(a_pairs[e >> 2u][(e >> 1u) & 1u], e, A_DTYPE);
}

fn b_at(e: u32) -> f32 {
    return unpack(b_pairs[e >> 2u][(e >> 1u) & 1u], e, B_DTYPE);
}

// Four elements as they are stored, for coop.wgsl.
fn a_stored(e: u32, left: u32) -> vec2<u32> {
    return a_pairs[e >> 2u];
}

fn b_stored(e: u32, left: u32) -> vec2<u32> {
    return b_pairs[e >> 2u];
}
