// The result of a convolution, (image, channel, position): rows are positions, columns channels.
// slot params = product/params_windows
// import product/conv_ends
//
// Fills the slot `c`: see c_matrix.wgsl. Neighbouring rows are neighbours in memory, so four of them are put together.
// No four rows of a block belong to two images.

var<private> gathered: mat4x4<f32>; // [row][column]
var<private> left_out: u32; // ADD: a bit for each of them, row by row
var<private> first_half: f32; // GATED: of two columns that are put one after the other

// Element and position.
fn result_place(row: u32, column: u32) -> vec2<u32> {
    let i = p.row_first + row;
    let image = i / rows_of_image();
    let u = i - image * rows_of_image();
    let channel = select(channel_of(column), (first_column() + column) / 2u, GATED);
    return vec2<u32>(image * p.c_image + channel * p.positions + u, u);
}

fn put_row(i: u32, row: u32, column: u32, values: vec4<f32>, count: u32, skipped: u32) {
    gathered[i % 4u] = values;
    left_out = (left_out >> 4u) | (skipped << 12u);
    if i % 4u < 3u {
        return;
    }
    let at = result_place(row - 3u, column);
    let columns = transpose(gathered);
    let rows = min(p.positions - at.y, 4u);
    if GATED {
        put_halves(at.x, columns[0], columns[1], rows);
        if count > 2u {
            put_halves(at.x + p.positions, columns[2], columns[3], rows);
        }
        return;
    }
    for (var c = 0u; c < 4u; c += 1u) { // 4 iterations
        if c < count {
            let kept = (vec4<u32>(left_out >> c) & vec4<u32>(1u, 16u, 256u, 4096u)) == vec4<u32>();
            put_ended_four(at.x + c * p.positions, channel_of(column + c), columns[c], rows, kept);
        }
    }
}

fn put_result(row: u32, column: u32, value: f32) {
    let at = result_place(row, column);
    if GATED && column % 2u == 0u {
        first_half = value;
        return;
    }
    if GATED {
        if at.y < p.positions {
            put_half(at.x, first_half, value);
        }
    } else if at.y < p.positions {
        put_ended(at.x, channel_of(column), value);
    }
}
