// The result of a convolution, (image, channel, position): rows are positions, columns channels.
// slot params = product/params_windows
// slot result = product/result_scalar
//
// Fills the slot `c`: see c_matrix.wgsl. Neighbouring rows are neighbours in memory, so four of them are put together.
// No four rows of a block belong to two images.

var<private> gathered: mat4x4<f32>; // [row][column]

fn u_place(row: u32, column: u32) -> u32 {
    return 0u; // nothing is kept
}

fn result_place(row: u32, column: u32) -> vec2<u32> {
    let i = p.row_first + row;
    let image = i / rows_of_image();
    let u = i - image * rows_of_image();
    return vec2<u32>(extractBits(p.offsets, 16u, 8u) + image * p.c_image + channel_of(column) * p.positions + u, u);
}

fn put_row(i: u32, row: u32, column: u32, values: vec4<f32>, count: u32) {
    gathered[i % 4u] = values;
    if i % 4u < 3u {
        return;
    }
    let at = result_place(row - 3u, column);
    let columns = transpose(gathered);
    let rows = min(p.positions - at.y, 4u);
    for (var c = 0u; c < 4u; c += 1u) { // 4 iterations
        if c < count {
            put_four(at.x + c * p.positions, columns[c], rows);
        }
    }
}

fn put_result(row: u32, column: u32, value: f32) {
    let at = result_place(row, column);
    if at.y < p.positions {
        put_element(at.x, value);
    }
}
