// The gradient of a weight, (channel of c, channel of a in a group, tap): rows are (channel of a, tap), columns are
// channels of c.
// slot params = product/params_windows
// import product/conv_ends
//
// Fills the slot `c`: see c_matrix.wgsl.

fn put_row(i: u32, row: u32, column: u32, values: vec4<f32>, count: u32, skipped: u32) {
    for (var c = 0u; c < 4u; c += 1u) { // 4 iterations
        if c < count && !(ADD && extractBits(skipped, c, 1u) == 1u) {
            put_result(row, column + c, values[c]);
        }
    }
}

fn put_result(row: u32, column: u32, value: f32) {
    put_ended(channel_of(column) * b_stride() + p.row_first + row, channel_of(column), value);
}
