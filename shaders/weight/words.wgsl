// How tensors that start anywhere are reached, word by word. A place is a word. (quads.wgsl: at multiples of 16 bytes.)
// Slot `access`, of which either filler declares the functions below: quad q and word i of the tensor at `place`.
// import numbers/storage

@group(0) @binding(1) var<storage, read> v: array<u32>; // words of each weight's storage type
@group(0) @binding(2) var<storage, read> dw: array<u32>; // the same
@group(0) @binding(7) var<storage, read_write> w: array<u32>; // w or dv, the same

fn v_quad(place: u32, q: u32) -> vec4<u32> {
    let at = place + 4u * q;
    return vec4<u32>(v[at], v[at + 1u], v[at + 2u], v[at + 3u]);
}

fn dw_quad(place: u32, q: u32) -> vec4<u32> {
    let at = place + 4u * q;
    return vec4<u32>(dw[at], dw[at + 1u], dw[at + 2u], dw[at + 3u]);
}

fn w_quad(place: u32, q: u32) -> vec4<u32> {
    let at = place + 4u * q;
    return vec4<u32>(w[at], w[at + 1u], w[at + 2u], w[at + 3u]);
}

fn v_word(place: u32, i: u32) -> u32 {
    return v[place + i];
}

fn dw_word(place: u32, i: u32) -> u32 {
    return dw[place + i];
}

fn w_word(place: u32, i: u32) -> u32 {
    return w[place + i];
}

fn put_quad(place: u32, q: u32, words: vec4<u32>) {
    let at = place + 4u * q;
    w[at] = words.x;
    w[at + 1u] = words.y;
    w[at + 2u] = words.z;
    w[at + 3u] = words.w;
}

// Some words of quad q.
fn put_words(place: u32, q: u32, words: vec4<u32>, which: vec4<bool>) {
    for (var i = 0u; i < 4u; i += 1u) { // 4 iterations
        if which[i] {
            w[place + 4u * q + i] = words[i];
        }
    }
}
