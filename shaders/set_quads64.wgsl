// What set_quads.wgsl does, in words of 64 bits: see quad64.wgsl. A place is 16 bytes here as well.

@group(0) @binding(1) var<storage, read> v: array<vec2<u64>>; // quads of each member's storage type
@group(0) @binding(2) var<storage, read> dw: array<vec2<u64>>; // the same

fn four_words(pair: vec2<u64>) -> vec4<u32> {
    let low = vec2<u32>(pair);
    let high = vec2<u32>(pair >> vec2<u32>(32u));
    return vec4<u32>(low.x, high.x, low.y, high.y);
}

// Quad q and word i of the tensor at `place`.
fn v_quad(place: u32, q: u32) -> vec4<u32> {
    return four_words(v[place + q]);
}

fn dw_quad(place: u32, q: u32) -> vec4<u32> {
    return four_words(dw[place + q]);
}

fn v_word(place: u32, i: u32) -> u32 {
    return four_words(v[place + i / 4u])[i % 4u];
}

fn dw_word(place: u32, i: u32) -> u32 {
    return four_words(dw[place + i / 4u])[i % 4u];
}
