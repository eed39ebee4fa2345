// How tensors that start at multiples of 16 bytes, in buffers of whole 16 bytes, are reached. A place is a quad of four
// words. (words.wgsl: all else, and what the functions are.)
// import numbers/storage

@group(0) @binding(1) var<storage, read> v: array<vec4<u32>>; // quads of each weight's storage type
@group(0) @binding(2) var<storage, read> dw: array<vec4<u32>>; // the same
@group(0) @binding(7) var<storage, read_write> w: array<vec4<u32>>; // w or dv, the same

fn v_quad(place: u32, q: u32) -> vec4<u32> {
    return v[place + q];
}

fn dw_quad(place: u32, q: u32) -> vec4<u32> {
    return dw[place + q];
}

fn w_quad(place: u32, q: u32) -> vec4<u32> {
    return w[place + q];
}

fn v_word(place: u32, i: u32) -> u32 {
    return v[place + i / 4u][i % 4u];
}

fn dw_word(place: u32, i: u32) -> u32 {
    return dw[place + i / 4u][i % 4u];
}

fn w_word(place: u32, i: u32) -> u32 {
    return w[place + i / 4u][i % 4u];
}

fn put_quad(place: u32, q: u32, words: vec4<u32>) {
    w[place + q] = words;
}

// Some words of quad q, whose others nobody else writes meanwhile.
fn put_words(place: u32, q: u32, words: vec4<u32>, which: vec4<bool>) {
    w[place + q] = select(w[place + q], words, which);
}
