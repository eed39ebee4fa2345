// Memory in quads of 64-bit words: for drivers on CPUs, which read and write lane by lane, and take no longer over a word of
// 64 bits than over one of 32. (u64 is naga's; WGSL knows none.) See quad32.wgsl.

alias Quad = vec4<u64>;

const PARTS = 2u;

fn words_of(quad: Quad, i: u32) -> vec4<u32> {
    return vec4<u32>(quad >> vec4<u32>(32u * i));
}

fn joined(a: vec4<u32>, b: vec4<u32>) -> Quad {
    return vec4<u64>(a) | (vec4<u64>(b) << vec4<u32>(32u));
}

fn word_of(quad: Quad, i: u32) -> u32 {
    return u32(quad[i / 2u] >> (32u * (i % 2u)));
}

fn with_word(quad: Quad, i: u32, word: u32) -> Quad {
    let shift = 32u * (i % 2u);
    var result = quad;
    result[i / 2u] = (quad[i / 2u] & (0xffffffff00000000lu >> shift)) | (u64(word) << shift);
    return result;
}
