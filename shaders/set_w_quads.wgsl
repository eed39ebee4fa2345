// How set.wgsl reaches w or dv beside set_quads.wgsl: always in words of 32 bits, since invocations share quads
// where rows end within one.

@group(0) @binding(7) var<storage, read_write> w: array<vec4<u32>>; // quads of each member's storage type

fn w_quad(place: u32, q: u32) -> vec4<u32> {
    return w[place + q];
}

fn w_word(place: u32, i: u32) -> u32 {
    return w[place + i / 4u][i % 4u];
}

fn put_quad(place: u32, q: u32, words: vec4<u32>) {
    w[place + q] = words;
}

fn put_word(place: u32, i: u32, word: u32) {
    w[place + i / 4u][i % 4u] = word;
}
