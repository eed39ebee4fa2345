// The output of a product, stored as f16 or bf16. Joined in front of tile.wgsl.
//
// A word may hold the end of one row and the start of the next, written by different invocations. Such a half is
// written by atomicAnd, then atomicOr, of its own bits: each half has one owner, so the order does not matter.

override Y_DTYPE: u32 = F16;

@group(0) @binding(5) var<storage, read_write> y: array<atomic<u32>>; // (batch, out_features), two to a word

fn put_single(e: u32, value: f32) {
    let shift = 16u * (e & 1u);
    atomicAnd(&y[e >> 1u], 0xffff0000u >> shift);
    atomicOr(&y[e >> 1u], pack(value, Y_DTYPE) << shift);
}

// e is even: the word is ours alone.
fn put_pair(e: u32, low: f32, high: f32) {
    atomicStore(&y[e >> 1u], pack(low, Y_DTYPE) | (pack(high, Y_DTYPE) << 16u));
}

// The first `count` of four neighbouring elements.
fn put_four(e: u32, values: vec4<f32>, count: u32) {
    if (e & 1u) == 0u {
        if count > 1u {
            put_pair(e, values.x, values.y);
        } else {
            put_single(e, values.x);
        }
        if count > 3u {
            put_pair(e + 2u, values.z, values.w);
        } else if count > 2u {
            put_single(e + 2u, values.z);
        }
        return;
    }
    put_single(e, values.x);
    if count > 2u {
        put_pair(e + 1u, values.y, values.z);
    } else if count > 1u {
        put_single(e + 1u, values.y);
    }
    if count > 3u {
        put_single(e + 3u, values.w);
    }
}

fn old(e: u32) -> f32 {
    return unpack(atomicLoad(&y[e >> 1u]), e, Y_DTYPE);
}
