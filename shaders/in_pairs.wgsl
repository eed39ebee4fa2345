// The operands of a product, both f16 or bf16, four elements, two words, at a time: their rows start at multiples of
// four elements of the binding. See in_words.wgsl.

@group(0) @binding(0) var<storage, read> a_pairs: array<vec2<u32>>; // A, words of A_DTYPE
@group(0) @binding(1) var<storage, read> b_pairs: array<vec2<u32>>; // B, words of B_DTYPE

const QUADS_MAY_END = false;

fn a_four(e: u32, left: u32) -> vec4<f32> {
    if left == 0u {
        return vec4<f32>();
    }
    return a_of_held(a_held(e, left));
}

fn b_four(e: u32, left: u32) -> vec4<f32> {
    if left == 0u {
        return vec4<f32>();
    }
    return b_of_held(b_held(e, left));
}

// Four elements as they are stored, and what they are: see in_quads.wgsl.
alias Held = vec2<u32>;

fn a_held(e: u32, left: u32) -> Held {
    return a_pairs[e >> 2u];
}

fn b_held(e: u32, left: u32) -> Held {
    return b_pairs[e >> 2u];
}

fn a_of_held(held: Held) -> vec4<f32> {
    let words = held;
    return vec4<f32>(unpack_pair(words.x, A_DTYPE), unpack_pair(words.y, A_DTYPE));
}

fn b_of_held(held: Held) -> vec4<f32> {
    let words = held;
    return vec4<f32>(unpack_pair(words.x, B_DTYPE), unpack_pair(words.y, B_DTYPE));
}

fn a_at(e: u32) -> f32 {
    return unpack(a_pairs[e >> 2u][(e >> 1u) & 1u], e, A_DTYPE);
}

fn b_at(e: u32) -> f32 {
    return unpack(b_pairs[e >> 2u][(e >> 1u) & 1u], e, B_DTYPE);
}

// For coop.wgsl.
fn a_stored(e: u32, left: u32) -> vec2<u32> {
    return a_held(e, left);
}

fn b_stored(e: u32, left: u32) -> vec2<u32> {
    return b_held(e, left);
}
