// The output of a product, stored as f32. Joined in front of product.wgsl, with with_c.wgsl; out_halves.wgsl and
// out_quads.wgsl offer the same for other outputs.

@group(0) @binding(5) var<storage, read_write> y: array<f32>; // C

fn put_element(e: u32, value: f32) {
    y[e] = value;
}

// The first `count` of four neighbouring elements.
fn put_four(e: u32, values: vec4<f32>, count: u32) {
    y[e] = values.x;
    if count > 1u {
        y[e + 1u] = values.y;
    }
    if count > 2u {
        y[e + 2u] = values.z;
    }
    if count > 3u {
        y[e + 3u] = values.w;
    }
}

fn old(e: u32) -> f32 {
    return y[e];
}
