// What the kernels share that normalize contiguous rows in one dispatch, out of the registers of their invocations, where v
// and w start with aligned elements and are of one storage type: normalize_rows.wgsl, normalize_blocks.wgsl.
// Joined behind quad32.wgsl or quad64.wgsl.

@group(0) @binding(0) var<storage, read> v: array<Quad>; // quads of V_DTYPE
@group(0) @binding(1) var<storage, read> g: array<u32>; // one for each row, words of GAIN_DTYPE
@group(0) @binding(2) var<storage, read_write> w: array<Quad>; // quads of V_DTYPE

override V_DTYPE: u32 = F32;
override GAIN_DTYPE: u32 = F32;
override IN_PLACE: bool = false; // v is w

override QUAD: u32 = select(8u, 4u, V_DTYPE == F32) * PARTS; // elements

// The quads of an invocation: registers, since only constants index it.
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

// All that an invocation holds. Written out, since drivers unroll a loop of such a length only by luck; the lines past HELD are
// left out by the host (kernel.rs, Held).
fn take_all() {
    take(0u); take(1u); take(2u); take(3u);
    take(4u); take(5u); take(6u); take(7u);
    take(8u); take(9u); take(10u); take(11u);
    take(12u); take(13u); take(14u); take(15u);
    take(16u); take(17u); take(18u); take(19u);
    take(20u); take(21u); take(22u); take(23u);
    take(24u); take(25u); take(26u); take(27u);
    take(28u); take(29u); take(30u); take(31u);
}

fn give_all() {
    give(0u); give(1u); give(2u); give(3u);
    give(4u); give(5u); give(6u); give(7u);
    give(8u); give(9u); give(10u); give(11u);
    give(12u); give(13u); give(14u); give(15u);
    give(16u); give(17u); give(18u); give(19u);
    give(20u); give(21u); give(22u); give(23u);
    give(24u); give(25u); give(26u); give(27u);
    give(28u); give(29u); give(30u); give(31u);
}
