// The product of a convolution with few columns: up to eight channels of a group, one of a depthwise one. From
// registers, nothing is staged.
// import product/exact
// import product/shared_norms
//
// Fills the slot `family`: see tile.wgsl. WX = 1, TM = 4, and A is read across its rows.
//
// An invocation has four neighbouring rows, which are four positions, and all columns of the tile. A turn takes four
// steps of k: four elements of A for each, and four steps of each column of B, which are the same for the whole
// workgroup, and so are their squares.

override COLUMNS: u32 = TN; // columns that are computed: 1, 2, 4 or 8

var<private> acc: array<vec4<f32>, 8>; // [column], across the rows
var<private> squares: array<f32, 8>; // SQUARES: of each column
var<workgroup> staged_squares: array<f32, 8>;

fn own_row(t: u32) -> u32 {
    return t * TM;
}

fn own_column(t: u32) -> u32 {
    return 0u;
}

fn own_norms(t: u32) -> u32 {
    return 0u;
}

fn take_block(block: u32) {
    let first = transpose(mat4x4<f32>(acc[0], acc[1], acc[2], acc[3]));
    let second = transpose(mat4x4<f32>(acc[4], acc[5], acc[6], acc[7]));
    for (var i = 0u; i < 4u; i += 1u) {
        sums[i] = first[i];
        more_sums[i] = second[i];
    }
}

// acc = A·Bᵀ over k_first .. k_end - 1 for the tile at (row0, column0). Rows and columns past the edge repeat the last
// ones; what comes of them is dropped.
fn product(row0: u32, column0: u32, k_first: u32, k_end: u32, t: u32) {
    a_lane_begin(0u, min(row0 + own_row(t), p.rows - 4u), 0u);
    for (var k = k_first; k < k_end; k += 4u) { // split_length / 4 iterations
        let left = k_end - k;
        prepare_b(k, k_end);
        if SCALED_B {
            // What is not there is 0, and 0 times an infinite scale would be NaN.
            step_m = select(vec4<f32>(), step_m, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(left));
        }
        let a = mat4x4<f32>(
            a_lane_across(0u, k, 0u, 4u), a_lane_across(0u, k, 1u, select(0u, 4u, left > 1u)),
            a_lane_across(0u, k, 2u, select(0u, 4u, left > 2u)), a_lane_across(0u, k, 3u, select(0u, 4u, left > 3u)),
        );
        add_column(0u, column0, k, left, a);
        if COLUMNS > 1u {
            add_column(1u, column0, k, left, a);
        }
        if COLUMNS > 2u {
            add_column(2u, column0, k, left, a);
            add_column(3u, column0, k, left, a);
        }
        if COLUMNS > 4u {
            add_column(4u, column0, k, left, a);
            add_column(5u, column0, k, left, a);
            add_column(6u, column0, k, left, a);
            add_column(7u, column0, k, left, a);
        }
    }
}

// Four steps of column c, of which `left` are there.
fn add_column(c: u32, column0: u32, k: u32, left: u32, a: mat4x4<f32>) {
    let read = b_along_k(min(column0 + c, p.columns - 1u), k, left);
    if SQUARES {
        squares[c] += dot(read, read);
    }
    acc[c] += a * scaled_along(read);
}

fn stage_squares(t: u32) {
    if t == 0u {
        for (var c = 0u; c < 8u; c += 1u) { // 8 iterations
            staged_squares[c] = squares[c];
        }
    }
    workgroupBarrier();
}

fn column_square(c: u32) -> f32 {
    return staged_squares[c];
}

// No row of A is normalized here: the host takes another family.
fn row_square(r: u32) -> f32 {
    return 0.0;
}
