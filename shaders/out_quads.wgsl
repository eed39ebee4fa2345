// The tensors shaped as C, all f32, four elements at a time: rows of whole quads that start at multiples of four elements
// of the binding. See out_words.wgsl. Joined behind four32.wgsl or four64.wgsl.

@group(0) @binding(5) var<storage, read_write> y: array<Four>; // C
@group(0) @binding(6) var<storage, read> v: array<Four>; // gradient.wgsl: the weight
@group(0) @binding(7) var<storage, read_write> u: array<Four>; // linear.wgsl: what the gain multiplies

// All four with one of them replaced: whoever puts an element owns its quad.
fn with_element(four: Four, i: u32, value: f32) -> Four {
    var numbers = four_numbers(four);
    numbers[i] = value;
    return four_of_numbers(numbers);
}

fn put_element(e: u32, value: f32) {
    y[e >> 2u] = with_element(y[e >> 2u], e & 3u, value);
}

fn put_four(e: u32, values: vec4<f32>, count: u32) {
    y[e >> 2u] = four_of_numbers(values);
}

// Adds those of four neighbouring elements that are kept.
fn add_four(e: u32, values: vec4<f32>, kept: vec4<bool>) {
    let before = four_numbers(y[e >> 2u]);
    y[e >> 2u] = four_of_numbers(select(before, before + values, kept));
}

fn old(e: u32) -> f32 {
    return four_numbers(y[e >> 2u])[e & 3u];
}

const WHOLE_C = 4u; // neighbouring elements that are there or not together

fn put_u_element(e: u32, value: f32) {
    u[e >> 2u] = with_element(u[e >> 2u], e & 3u, value);
}

fn put_u(e: u32, values: vec4<f32>, count: u32) {
    u[e >> 2u] = four_of_numbers(values);
}

fn v_element(e: u32) -> f32 {
    return four_numbers(v[e >> 2u])[e & 3u];
}

fn v_four(e: u32, count: u32) -> vec4<f32> {
    return four_numbers(v[e >> 2u]);
}
