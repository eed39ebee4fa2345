// What the kernels share that normalize contiguous rows in one dispatch, out of the registers of their invocations, where v
// and w start with aligned elements and are of one storage type: normalize_rows.wgsl, normalize_blocks.wgsl.

@group(0) @binding(0) var<storage, read> v: array<vec4<u32>>; // quads of V_DTYPE
@group(0) @binding(1) var<storage, read> g: array<f32>; // one for each row
@group(0) @binding(2) var<storage, read_write> w: array<vec4<u32>>; // quads of V_DTYPE

override V_DTYPE: u32 = F32;
override IN_PLACE: bool = false; // v is w

override QUAD: u32 = select(8u, 4u, V_DTYPE == F32); // elements

const THREADS = 64u;
// Quads of an invocation at most. Loops over them that have to be unrolled run to here: a compiler does so for certain where
// a loop ends with its array.
const MAX_HELD = 32u;

fn quad_at(q: u32) -> vec4<u32> {
    if IN_PLACE {
        return w[extractBits(p.firsts, 8u, 8u) / QUAD + q];
    }
    return v[extractBits(p.firsts, 0u, 8u) / QUAD + q];
}

fn put(q: u32, words: vec4<u32>) {
    w[extractBits(p.firsts, 8u, 8u) / QUAD + q] = words;
}
