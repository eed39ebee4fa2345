// How the tensors of gradient.wgsl are reached that start at any word, or end within a unit: word by word. (quads.wgsl:
// at multiples of 16 bytes.) What is read past the end of a tensor is its last word; it is not used.
// import numbers/storage

@group(0) @binding(0) var<storage, read> at: array<u32>; // words of AT_DTYPE
@group(0) @binding(1) var<storage, read> d: array<u32>; // words of D_DTYPE
@group(0) @binding(4) var<storage, read_write> out: array<u32>; // words of OUT_DTYPE

fn four_from(word: u32, count: u32) -> vec4<u32> {
    return min(vec4<u32>(word, word + 1u, word + 2u, word + 3u), vec4<u32>(count - 1u));
}

fn at_quad(word: u32) -> vec4<u32> {
    let i = four_from(word, arrayLength(&at));
    return vec4<u32>(at[i.x], at[i.y], at[i.z], at[i.w]);
}

fn d_quad(word: u32) -> vec4<u32> {
    let i = four_from(word, arrayLength(&d));
    return vec4<u32>(d[i.x], d[i.y], d[i.z], d[i.w]);
}

fn out_quad(word: u32) -> vec4<u32> {
    let i = four_from(word, arrayLength(&out));
    return vec4<u32>(out[i.x], out[i.y], out[i.z], out[i.w]);
}

// The bits of `own`; the others stay.
fn put_word(word: u32, value: u32, own: u32) {
    if own == 0xffffffffu {
        out[word] = value;
    } else if own != 0u {
        out[word] = (out[word] & ~own) | (value & own);
    }
}

fn put_quad(word: u32, values: vec4<u32>, own: vec4<u32>) {
    put_word(word, values.x, own.x);
    put_word(word + 1u, values.y, own.y);
    put_word(word + 2u, values.z, own.z);
    put_word(word + 3u, values.w, own.w);
}
