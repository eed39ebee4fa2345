// How the tensors of gradient.wgsl are reached that start at multiples of 16 bytes and are of whole units. (words.wgsl:
// all else, and what the functions are.)
// import numbers/storage

@group(0) @binding(0) var<storage, read> at: array<vec4<u32>>; // quads of AT_DTYPE
@group(0) @binding(1) var<storage, read> d: array<vec4<u32>>; // quads of D_DTYPE
@group(0) @binding(4) var<storage, read_write> out: array<vec4<u32>>; // quads of OUT_DTYPE

fn at_quad(word: u32) -> vec4<u32> {
    return at[word / 4u];
}

fn d_quad(word: u32) -> vec4<u32> {
    return d[word / 4u];
}

fn out_quad(word: u32) -> vec4<u32> {
    return out[word / 4u];
}

// All bits are own ones.
fn put_quad(word: u32, values: vec4<u32>, own: vec4<u32>) {
    out[word / 4u] = values;
}
