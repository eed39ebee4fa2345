// The gradient of a weight, (channel of c, channel of a in a group, tap): rows are (channel of a, tap), columns are
// channels of c.
// slot params = product/params_windows
// slot result = product/result_scalar
//
// Fills the slot `c`: see c_matrix.wgsl.

override ADD: bool = false; // add to what is there; of sums that are not formed again

fn u_place(row: u32, column: u32) -> u32 {
    return 0u; // nothing is kept
}

fn put_row(i: u32, row: u32, column: u32, values: vec4<f32>, count: u32) {
    for (var c = 0u; c < 4u; c += 1u) { // 4 iterations
        if c < count {
            put_result(row, column + c, values[c]);
        }
    }
}

fn put_result(row: u32, column: u32, value: f32) {
    let e = extractBits(p.offsets, 16u, 8u) + channel_of(column) * b_stride() + p.row_first + row;
    if ADD {
        put_element(e, old(e) + value);
    } else {
        put_element(e, value);
    }
}
