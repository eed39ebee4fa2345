// The result of a product stored as f32, element by element.
// import product/result_beside
//
// Slot `result`, which result_packed.wgsl and result_vec4.wgsl fill too. e: an element, counted from the start of
// the binding.

const WHOLE_C = 1u; // neighbouring elements that are there or not together

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

// Adds those of four neighbouring elements that are kept.
fn add_four(e: u32, values: vec4<f32>, kept: vec4<bool>) {
    for (var c = 0u; c < 4u; c += 1u) { // 4 iterations
        if kept[c] {
            put_element(e + c, old(e + c) + values[c]);
        }
    }
}
