// The result of a forward product as a matrix, (rows, c_stride): y = activation(sums).
// slot params = product/params
// slot result = product/result_scalar
// import product/activation
// import product/norms_out
//
// Slot `c`, which c_windows.wgsl, c_phases.wgsl and c_taps.wgsl fill too.

override ACTIVATION: u32 = ACT_NONE;

const ADD = false; // see conv_ends.wgsl

// Keeps what the gain multiplies: `count` of four neighbouring columns of a row, or one element.
fn keep_row(row: u32, column: u32, values: vec4<f32>, count: u32) {
    put_u(extractBits(p.offsets, 24u, 8u) + row * p.c_stride + column, values, count);
}

fn keep_one(row: u32, column: u32, value: f32) {
    put_u_element(extractBits(p.offsets, 24u, 8u) + row * p.c_stride + column, value);
}

// What is kept, before the sums are added to it: the same of it.
override ONTO: bool = false;

fn kept_row(row: u32, column: u32, count: u32) -> vec4<f32> {
    return u_four(extractBits(p.offsets, 24u, 8u) + row * p.c_stride + column, count);
}

// Puts `count` of four neighbouring columns of a row, the i-th of its block, whose rows come one after another. With
// ADD those of which a bit of `skipped` is set are left out.
fn put_row(i: u32, row: u32, column: u32, values: vec4<f32>, count: u32, skipped: u32) {
    let e = extractBits(p.offsets, 16u, 8u) + row * p.c_stride + column;
    put_four(e, activated(values, ACTIVATION, p.slope), count);
}

// Puts one element.
fn put_result(row: u32, column: u32, value: f32) {
    let e = extractBits(p.offsets, 16u, 8u) + row * p.c_stride + column;
    put_element(e, activated(vec4<f32>(value), ACTIVATION, p.slope).x);
}
