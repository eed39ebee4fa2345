// What the kernels share that normalize contiguous rows in one dispatch, out of the registers of their invocations, where v
// and w start with aligned elements and are of one storage type: normalize_rows.wgsl, normalize_blocks.wgsl.
// Joined behind quad32.wgsl or quad64.wgsl.

@group(0) @binding(0) var<storage, read> v: array<Quad>; // quads of V_DTYPE
@group(0) @binding(1) var<storage, read> g: array<f32>; // one for each row
@group(0) @binding(2) var<storage, read_write> w: array<Quad>; // quads of V_DTYPE

override V_DTYPE: u32 = F32;
override IN_PLACE: bool = false; // v is w

override QUAD: u32 = select(8u, 4u, V_DTYPE == F32) * PARTS; // elements

// The quads of an invocation: registers, since only constants index it. What is done to each of them is written out, since
// drivers unroll a loop of such a length only by luck.
var<private> held: array<Quad, 32>;

fn quad_at(q: u32) -> Quad {
    if IN_PLACE {
        return w[extractBits(p.firsts, 8u, 8u) / QUAD + q];
    }
    return v[extractBits(p.firsts, 0u, 8u) / QUAD + q];
}

fn put(q: u32, quad: Quad) {
    w[extractBits(p.firsts, 8u, 8u) / QUAD + q] = quad;
}
