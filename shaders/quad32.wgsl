// Memory in quads of 32-bit words: what a wide load or store takes.

alias Quad = vec4<u32>;

const PARTS = 1u; // vectors of 32-bit words in a quad

// quad64.wgsl: words 0, 2, 4, 6 or 1, 3, 5, 7. Here all four.
fn words_of(quad: Quad, i: u32) -> vec4<u32> {
    return quad;
}

// The quad of these parts.
fn joined(a: vec4<u32>, b: vec4<u32>) -> Quad {
    return a;
}

// Word i of a quad, of 32 bits.
fn word_of(quad: Quad, i: u32) -> u32 {
    return quad[i];
}

// Word i of a quad.
fn with_word(quad: Quad, i: u32, word: u32) -> Quad {
    var result = quad;
    result[i] = word;
    return result;
}
