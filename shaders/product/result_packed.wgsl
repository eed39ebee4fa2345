// The result of a product stored as f16 or bf16, two elements to a word.
// import product/result_beside
//
// Fills the slot `result`: see result_scalar.wgsl.
//
// A word may hold the end of one row and the start of the next, written by different invocations. Such a half is
// written by atomicAnd, then atomicOr, of its own bits: each half has one owner, so the order does not matter.

const WHOLE_C = 1u;

override Y_DTYPE: u32 = F16;

@group(0) @binding(5) var<storage, read_write> y: array<atomic<u32>>; // C, two to a word

fn put_bits(e: u32, bits: u32) {
    let shift = 16u * (e & 1u);
    atomicAnd(&y[e >> 1u], 0xffff0000u >> shift);
    atomicOr(&y[e >> 1u], bits << shift);
}

fn put_element(e: u32, value: f32) {
    put_bits(e, pack(value, Y_DTYPE));
}

// The first `count` of four neighbouring elements.
fn put_four(e: u32, values: vec4<f32>, count: u32) {
    let bits = vec4<u32>(
        pack(values.x, Y_DTYPE), pack(values.y, Y_DTYPE), pack(values.z, Y_DTYPE), pack(values.w, Y_DTYPE),
    );
    if count == 4u && (e & 1u) == 0u {
        // Whole words are ours alone.
        atomicStore(&y[e >> 1u], bits.x | (bits.y << 16u));
        atomicStore(&y[(e >> 1u) + 1u], bits.z | (bits.w << 16u));
        return;
    }
    put_bits(e, bits.x);
    if count > 1u {
        put_bits(e + 1u, bits.y);
    }
    if count > 2u {
        put_bits(e + 2u, bits.z);
    }
    if count > 3u {
        put_bits(e + 3u, bits.w);
    }
}

fn old(e: u32) -> f32 {
    return unpack(atomicLoad(&y[e >> 1u]), e, Y_DTYPE);
}

// Adds those of four neighbouring elements that are kept.
fn add_four(e: u32, values: vec4<f32>, kept: vec4<bool>) {
    for (var c = 0u; c < 4u; c += 1u) { // 4 iterations
        if kept[c] {
            put_element(e + c, old(e + c) + values[c]);
        }
    }
}
