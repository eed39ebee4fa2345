// The operands of a product, both f32, four elements at a time: their rows start at multiples of four elements of the
// binding. See in_words.wgsl.

@group(0) @binding(0) var<storage, read> a_quads: array<vec4<u32>>; // A
@group(0) @binding(1) var<storage, read> b_quads: array<vec4<u32>>; // B

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

// Four elements as they are read, and what they are: with nothing to be done in between, many reads are on their way at once.
alias Held = vec4<u32>;

fn a_held(e: u32, left: u32) -> Held {
    return a_quads[e >> 2u];
}

fn b_held(e: u32, left: u32) -> Held {
    return b_quads[e >> 2u];
}

fn a_of_held(held: Held) -> vec4<f32> {
    return bitcast<vec4<f32>>(held);
}

fn b_of_held(held: Held) -> vec4<f32> {
    return bitcast<vec4<f32>>(held);
}

fn a_at(e: u32) -> f32 {
    return a_of_held(a_quads[e >> 2u])[e & 3u];
}

fn b_at(e: u32) -> f32 {
    return b_of_held(b_quads[e >> 2u])[e & 3u];
}
