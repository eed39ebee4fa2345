// The matrix product in the registers of subgroups, without workgroup memory in the sum: for software drivers, where
// a load from memory costs as much as many multiply-adds and a shuffle next to nothing.
// import product/exact
//
// Fills the slot `family`: see tile.wgsl.
//
// A workgroup is one subgroup of WX lanes, 8 or 16 (WY = 1). A lane has TN columns of C and all TM rows. A turn
// takes eight k, or four:
// a lane reads its own columns of B; the rows of A are read by the subgroup together, spread over its lanes, and handed
// round by shuffles. Where k does not run along the rows, and they are fewer than lanes, every lane reads all of them.
//
// What is done within the loop over k is written out, or has drivers unroll it.

override SPREAD: bool = TM >= WX || A_ALONG_K;
override SPREAD_ROWS: u32 = min(TM, WX); // rows that a read brings to the lanes
override A_READS: u32 = select(TM, TM / SPREAD_ROWS, SPREAD);
override LANE_QUADS: u32 = WX / 4u; // A across: neighbouring lanes that read a step of k together
override RAGGED: bool = true; // depth is no multiple of eight, or quads may end
// Steps of k a turn. Ragged ones, whose reads are the work, gain next to nothing by more, and drivers would take
// twice as long to compile them.
override TURN: u32 = select(8u, 4u, RAGGED);

var<private> acc: array<vec4<f32>, 128>; // [m][quad of n], in registers, since only constants index it
var<private> squares: array<f32, 8>; // SQUARES: of each own column of B
var<private> row_squares: array<f32, 8>; // ROW_SQUARES: of the lane's row of each read

// Fetches the scales of four steps of k, the lanes together.
fn prepare_b(k: u32, t: u32) {
    if !SCALED_B {
        return;
    }
    let own_k = min(k + t % 4u, p.depth - 1u);
    let own = step_scale(own_k);
    for (var i = 0u; i < 4u; i += 1u) {
        step_t[i] = subgroupShuffle(own.x, i);
        step_m[i] = subgroupShuffle(own.y, i);
    }
}

// By constants alone, so that acc stays in registers: where an index is found while a shader runs, Mesa reads each
// lane by itself, and takes ten times as long to compile it.
fn take_block(block: u32) {
    take_if(block, 0u);
    if TM > 8u {
        take_if(block, 1u);
    }
    if TM > 16u {
        take_if(block, 2u);
        take_if(block, 3u);
    }
    if TM > 32u {
        take_if(block, 4u);
        take_if(block, 5u);
        take_if(block, 6u);
        take_if(block, 7u);
    }
}

fn take_if(block: u32, own: u32) {
    let taken = block == own;
    for (var i = 0u; i < BLOCK; i += 1u) {
        let at = (own * BLOCK + i) * QUADS;
        sums[i] = select(sums[i], acc[at], taken);
        if QUADS == 2u {
            more_sums[i] = select(more_sums[i], acc[at + 1u], taken);
        }
    }
}

fn own_row(t: u32) -> u32 {
    return t / WX * TM;
}

fn own_column(t: u32) -> u32 {
    return t * TN;
}

// A turn of the lane's columns, a column of a matrix for each step of k.
struct Steps {
    first: mat4x4<f32>, // of quad 0, steps 0 to 3
    later: mat4x4<f32>, // steps 4 to 7, of a turn of eight
    second_first: mat4x4<f32>, // of quad 1
    second_later: mat4x4<f32>,
}

// acc = A·Bᵀ over k_first .. k_end - 1 for the tile at (row0, column0).
fn product(row0: u32, column0: u32, k_first: u32, k_end: u32, t: u32) {
    let column = column0 + own_column(t);
    // Rows and columns past the edge repeat the last ones; what comes of them is dropped.
    let a_last = p.rows - select(4u, 1u, A_ALONG_K || QUADS_MAY_END);
    let a_step = t / LANE_QUADS; // A across: the step of k that the lane reads
    for (var r = 0u; r < A_READS; r += 1u) {
        let m = select(r, r * WX + select(t % LANE_QUADS * 4u, t % SPREAD_ROWS, A_ALONG_K), SPREAD);
        a_lane_begin(r, min(row0 + m, a_last), select(a_step, 0u, A_ALONG_K || !SPREAD));
    }
    for (var c = 0u; c < TN; c += 1u) {
        b_lane_begin(c, column + c);
    }
    // Sums are fetched and put back for each turn, whatever it adds: with eight steps it all took seven eighths of
    // the time that it took with four.
    for (var k = k_first; k < k_end; k += TURN) { // split_length / TURN iterations
        let left = select(4u, k_end - k, RAGGED);
        var b: Steps;
        prepare_b(k, t);
        b.first = four_steps(0u, k, left, column);
        if QUADS > 1u {
            b.second_first = four_steps(4u, k, left, column);
        }
        if TURN == 8u {
            prepare_b(k + 4u, t);
            b.later = four_steps(0u, k + 4u, 4u, column);
            if QUADS > 1u {
                b.second_later = four_steps(4u, k + 4u, 4u, column);
            }
        }
        // Written out, here and below, since drivers unroll loops of this size only by luck.
        add_rows(0u, k, left, row0, t, b);
        if A_READS > 1u {
            add_rows(1u, k, left, row0, t, b);
        }
        if A_READS > 2u {
            add_rows(2u, k, left, row0, t, b);
            add_rows(3u, k, left, row0, t, b);
        }
        if A_READS > 4u {
            add_rows(4u, k, left, row0, t, b);
            add_rows(5u, k, left, row0, t, b);
            add_rows(6u, k, left, row0, t, b);
            add_rows(7u, k, left, row0, t, b);
        }
    }
}

// Steps k to k + 3 of B, of which `left` are there, in four of the lane's columns from its c-th on; prepare_b(k)
// before.
fn four_steps(c: u32, k: u32, left: u32, column: u32) -> mat4x4<f32> {
    let b = b_lane_steps(c, column + c, k, left);
    if SQUARES {
        let four = ((b[0] * b[0] + b[1] * b[1]) + b[2] * b[2]) + b[3] * b[3];
        squares[c] += four.x;
        squares[c + 1u] += four.y;
        squares[c + 2u] += four.z;
        squares[c + 3u] += four.w;
    }
    return mat4x4<f32>(
        scaled_across(b[0], 0u), scaled_across(b[1], 1u), scaled_across(b[2], 2u), scaled_across(b[3], 3u),
    );
}

// A turn of the rows that read r of A brings; `left` of its first four steps are there.
fn add_rows(r: u32, k: u32, left: u32, row0: u32, t: u32, b: Steps) {
    var x: vec4<f32>; // the lane's part of the first four steps
    var y: vec4<f32>; // and of the others
    if !SPREAD {
        let m = min(row0 + r, p.rows - 1u);
        x = a_along_k(m, k, left);
        if TURN == 8u {
            y = a_along_k(m, k + 4u, 4u);
        }
        add_row(r, x, y, b);
        return;
    }
    if A_ALONG_K {
        x = a_lane_along(r, k, select(4u, left, QUADS_MAY_END));
        if TURN == 8u {
            y = a_lane_along(r, k + 4u, 4u);
        }
        if ROW_SQUARES {
            row_squares[r] += dot(x, x) + dot(y, y);
        }
    } else {
        let rows_left = left_of(row0 + r * WX + t % LANE_QUADS * 4u, p.rows, true);
        let there = select(4u, rows_left, QUADS_MAY_END);
        let step = t / LANE_QUADS;
        x = a_lane_across(r, k, step, select(0u, there, step < left));
        if TURN == 8u {
            y = a_lane_across(r, k + 4u, step, there);
        }
    }
    add_row_of(0u, r, x, y, b);
    if SPREAD_ROWS > 1u {
        add_row_of(1u, r, x, y, b);
    }
    if SPREAD_ROWS > 2u {
        add_row_of(2u, r, x, y, b);
        add_row_of(3u, r, x, y, b);
    }
    if SPREAD_ROWS > 4u {
        add_row_of(4u, r, x, y, b);
        add_row_of(5u, r, x, y, b);
        add_row_of(6u, r, x, y, b);
        add_row_of(7u, r, x, y, b);
    }
    if SPREAD_ROWS > 8u {
        add_row_of(8u, r, x, y, b);
        add_row_of(9u, r, x, y, b);
        add_row_of(10u, r, x, y, b);
        add_row_of(11u, r, x, y, b);
        add_row_of(12u, r, x, y, b);
        add_row_of(13u, r, x, y, b);
        add_row_of(14u, r, x, y, b);
        add_row_of(15u, r, x, y, b);
    }
}

// Row i of those of read r. Along k a lane has all its steps, across it has one of them and that of its neighbours
// in a quad.
fn add_row_of(i: u32, r: u32, x: vec4<f32>, y: vec4<f32>, b: Steps) {
    if A_ALONG_K {
        add_row(r * WX + i, subgroupShuffle(x, i), subgroupShuffle(y, i), b);
    } else {
        add_row(r * WX + i, steps_of_row(x[i % 4u], i / 4u), steps_of_row(y[i % 4u], i / 4u), b);
    }
}

fn steps_of_row(own: f32, quad: u32) -> vec4<f32> {
    return vec4<f32>(
        subgroupShuffle(own, quad), subgroupShuffle(own, LANE_QUADS + quad),
        subgroupShuffle(own, 2u * LANE_QUADS + quad), subgroupShuffle(own, 3u * LANE_QUADS + quad),
    );
}

// A turn of row i: all its steps at once, so that its elements are fetched and put back once.
fn add_row(i: u32, x: vec4<f32>, y: vec4<f32>, b: Steps) {
    let at = i * QUADS;
    var sum = added(acc[at], x, b.first);
    if TURN == 8u {
        sum = added(sum, y, b.later);
    }
    acc[at] = sum;
    if QUADS > 1u {
        sum = added(acc[at + 1u], x, b.second_first);
        if TURN == 8u {
            sum = added(sum, y, b.second_later);
        }
        acc[at + 1u] = sum;
    }
}

fn added(sum: vec4<f32>, a: vec4<f32>, steps: mat4x4<f32>) -> vec4<f32> {
    return (((sum + a.x * steps[0]) + a.y * steps[1]) + a.z * steps[2]) + a.w * steps[3];
}

// Norms of the lane's own columns, norm_m * 2^norm_e: see shared_norms.wgsl. No barrier, since a CPU driver saves
// and restores every register around one.
override NORMS: u32 = TN;
const SHARE = 1u;
var<private> norm_m: array<f32, 8>;
var<private> norm_e: array<i32, 8>;
var<private> column_squares: array<f32, 8>; // a copy of `squares`, for any index
var<private> squares_of_rows: array<f32, 8>; // and of `row_squares`

fn first_norm(t: u32) -> u32 {
    return 0u;
}

fn norms_column(column0: u32, t: u32) -> u32 {
    return column0 + own_column(t);
}

fn own_norms(t: u32) -> u32 {
    return 0u;
}

fn share_norms() {
    if ROW_SQUARES { // the rows are everybody's
        workgroupBarrier();
    }
}

fn stage_squares(t: u32) {
    for (var c = 0u; c < TN; c += 1u) {
        column_squares[c] = squares[c];
    }
    if ROW_SQUARES {
        for (var r = 0u; r < A_READS; r += 1u) {
            squares_of_rows[r] = row_squares[r];
        }
    }
}

fn column_square(c: u32) -> f32 {
    return column_squares[c];
}

fn row_square(r: u32) -> f32 {
    return squares_of_rows[r / WX];
}
