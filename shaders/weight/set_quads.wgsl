// How set.wgsl reaches tensors that start at multiples of 16 bytes, in buffers of whole 16 bytes. A place is a quad
// of four words. (set_words.wgsl: all else.)
// import numbers/storage

@group(0) @binding(1) var<storage, read> v: array<vec4<u32>>; // quads of each member's storage type
@group(0) @binding(2) var<storage, read> dw: array<vec4<u32>>; // the same
@group(0) @binding(7) var<storage, read_write> w: array<vec4<u32>>; // w or dv, the same

// Quad q and word i of the tensor at `place`.
fn v_quad(place: u32, q: u32) -> vec4<u32> {
    return v[place + q];
}

fn dw_quad(place: u32, q: u32) -> vec4<u32> {
    return dw[place + q];
}

fn v_word(place: u32, i: u32) -> u32 {
    return v[place + i / 4u][i % 4u];
}

fn dw_word(place: u32, i: u32) -> u32 {
    return dw[place + i / 4u][i % 4u];
}

fn w_quad(place: u32, q: u32) -> vec4<u32> {
    return w[place + q];
}

fn w_word(place: u32, i: u32) -> u32 {
    return w[place + i / 4u][i % 4u];
}

fn put_quad(place: u32, q: u32, words: vec4<u32>) {
    w[place + q] = words;
}

// The first `count` words of quad q, in which no other tensor of the set starts.
fn put_words(place: u32, q: u32, words: vec4<u32>, count: u32) {
    let there = vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(count);
    w[place + q] = select(w[place + q], words, there);
}
