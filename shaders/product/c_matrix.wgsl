// The result of a forward product as a matrix, (rows, c_stride).
// slot params = product/params
// slot result = product/result_scalar
//
// Slot `c`, which c_windows.wgsl and c_phases.wgsl fill too.

fn u_place(row: u32, column: u32) -> u32 {
    return extractBits(p.offsets, 24u, 8u) + row * p.c_stride + column;
}

// Puts `count` of four neighbouring columns of a row, the i-th of its block, whose rows come one after another.
fn put_row(i: u32, row: u32, column: u32, values: vec4<f32>, count: u32) {
    put_four(extractBits(p.offsets, 16u, 8u) + row * p.c_stride + column, values, count);
}

// Puts one element.
fn put_result(row: u32, column: u32, value: f32) {
    put_element(extractBits(p.offsets, 16u, 8u) + row * p.c_stride + column, value);
}
