// The result of a transposed convolution, (image, channel, height, width): a row is a window's position, a column a
// channel and a phase. What lies before the lead or behind the end is dropped.
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
    let i = p.row_first + row;
    let image = i / rows_of_image();
    let u = i - image * rows_of_image();
    let phase = (p.column_first + column) % area_of(p.phases);
    let phase_y = phase / width_of(p.phases);
    let y = u / p.width * height_of(p.phases) + phase_y - height_of(p.lead); // wraps below 0
    let x = u % p.width * width_of(p.phases) + (phase - phase_y * width_of(p.phases)) - width_of(p.lead);
    let height = height_of(p.heights);
    if u < p.positions && y < height && x < p.c_width {
        let first = image * p.c_image + channel_of(column) * (height * p.c_width);
        put_ended(first + y * p.c_width + x, channel_of(column), value);
    }
}
