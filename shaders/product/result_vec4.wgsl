// The result of a product and the tensors shaped as it, all f32, four elements at a time: rows of whole quads that
// start at multiples of four elements of the binding.
// import numbers/storage
//
// Fills the slot `result`: see result_scalar.wgsl.

@group(0) @binding(5) var<storage, read_write> y: array<vec4<u32>>; // C
@group(0) @binding(6) var<storage, read> v: array<vec4<u32>>; // gradient.wgsl: the weight
@group(0) @binding(7) var<storage, read_write> u: array<vec4<u32>>; // linear.wgsl: what the gain multiplies

// All four with one of them replaced: whoever puts an element owns its quad.
fn with_element(four: vec4<u32>, i: u32, value: f32) -> vec4<u32> {
    var numbers = bitcast<vec4<f32>>(four);
    numbers[i] = value;
    return bitcast<vec4<u32>>(numbers);
}

fn put_element(e: u32, value: f32) {
    y[e >> 2u] = with_element(y[e >> 2u], e & 3u, value);
}

fn put_four(e: u32, values: vec4<f32>, count: u32) {
    y[e >> 2u] = bitcast<vec4<u32>>(values);
}

// Adds those of four neighbouring elements that are kept.
fn add_four(e: u32, values: vec4<f32>, kept: vec4<bool>) {
    let before = bitcast<vec4<f32>>(y[e >> 2u]);
    y[e >> 2u] = bitcast<vec4<u32>>(select(before, before + values, kept));
}

fn old(e: u32) -> f32 {
    return bitcast<vec4<f32>>(y[e >> 2u])[e & 3u];
}

const WHOLE_C = 4u; // neighbouring elements that are there or not together

fn put_u_element(e: u32, value: f32) {
    u[e >> 2u] = with_element(u[e >> 2u], e & 3u, value);
}

fn put_u(e: u32, values: vec4<f32>, count: u32) {
    u[e >> 2u] = bitcast<vec4<u32>>(values);
}

fn u_four(e: u32, count: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(u[e >> 2u]);
}

fn v_element(e: u32) -> f32 {
    return bitcast<vec4<f32>>(v[e >> 2u])[e & 3u];
}

fn v_four(e: u32, count: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(v[e >> 2u]);
}
