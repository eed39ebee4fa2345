// The matrix product in the registers of subgroups, without workgroup memory in the sum: for adapters that compute on
// a CPU, where a load from memory costs as much as many multiply-adds and a shuffle next to nothing.
// Joined behind product.wgsl.
//
// A workgroup is one subgroup of WX lanes (WY = 1). A lane has TN columns of C and all TM rows. Each step takes four k:
// a lane reads its own columns of B; the rows of A are read once by the subgroup, spread over its lanes, and handed
// round by shuffles. With fewer rows than lanes that lie across k every lane reads all of them.
//
// Every loop within that over k has a constant number of iterations and is small enough for drivers to unroll it.

override SPREAD: bool = TM >= WX || A_ALONG_K;
override SPREAD_ROWS: u32 = min(TM, WX); // rows that a read brings to the lanes
override A_READS: u32 = select(TM, TM / SPREAD_ROWS, SPREAD);
override LANE_QUADS: u32 = max(WX / 4u, 1u); // A across: neighbouring lanes that read a step of k together
override RAGGED: bool = true; // depth is no multiple of four

const BIT_WORDS = 16u;

var<private> acc: array<vec4<f32>, 128>; // [m][quad of n], in registers, since only constants index it
var<private> squares: array<f32, 8>; // NORM_FUSED: of each own column of B

// Fetches the scales of four steps of k, the lanes together.
fn prepare_b(k: u32, t: u32) {
    if !SCALED_B {
        return;
    }
    let own_k = min(k + t % 4u, p.depth - 1u);
    if WX == 4u {
        let own_t = step_scale(own_k, 0u);
        let own_m = step_scale(own_k, 1u);
        for (var i = 0u; i < 4u; i += 1u) {
            step_t[i] = subgroupShuffle(own_t, i);
            step_m[i] = subgroupShuffle(own_m, i);
        }
        return;
    }
    let own = step_scale(own_k, t / 4u % 2u);
    for (var i = 0u; i < 4u; i += 1u) {
        step_t[i] = subgroupShuffle(own, i);
        step_m[i] = subgroupShuffle(own, i + 4u);
    }
}

// For gradient.wgsl: the lanes hold what belongs to the rows of a block, one each, and hand it round.
override ROWS_SHARED: bool = WX >= BLOCK;

fn of_lane(own: vec4<f32>, i: u32) -> vec4<f32> {
    return subgroupShuffle(own, i);
}

fn take_block(block: u32) {
    for (var i = 0u; i < BLOCK; i += 1u) {
        sums[i] = acc[(block * BLOCK + i) * QUADS];
        if QUADS == 2u {
            more_sums[i] = acc[(block * BLOCK + i) * QUADS + 1u];
        }
    }
}

const STEP = 4u;

fn own_column(t: u32) -> u32 {
    return t * TN;
}

// acc = A·Bᵀ over k_first .. k_end - 1 for the tile at (row0, column0).
fn product(row0: u32, column0: u32, k_first: u32, k_end: u32, t: u32) {
    let column = column0 + own_column(t);
    // Where the lane reads. Rows and columns past the edge repeat the last ones; what comes of them is dropped.
    let a_last = p.rows - select(4u, 1u, A_ALONG_K || QUADS_MAY_END);
    let b_last = p.columns - select(4u, 1u, B_ALONG_K || QUADS_MAY_END);
    let a_step = t / LANE_QUADS; // A across: the step of k that the lane reads
    var a_from: array<u32, 8>;
    for (var r = 0u; r < A_READS; r += 1u) {
        let m = select(r, r * WX + select(t % LANE_QUADS * 4u, t % SPREAD_ROWS, A_ALONG_K), SPREAD);
        a_from[r] = a_place(min(row0 + m, a_last), select(a_step, 0u, A_ALONG_K || !SPREAD));
    }
    var b_from: array<u32, 8>;
    for (var c = 0u; c < TN; c += 1u) {
        b_from[c] = b_place(min(column + c, b_last), 0u);
    }
    for (var k = k_first; k < k_end; k += 4u) { // split_length / 4 iterations
        let left = select(4u, k_end - k, RAGGED);
        let along = select(4u, left, QUADS_MAY_END);
        prepare_b(k, t);
        var b: array<vec4<f32>, 8>; // [quad of n][step]
        for (var q = 0u; q < QUADS; q += 1u) {
            if B_ALONG_K {
                let x = b_four(b_from[4u * q] + k, along);
                let y = b_four(b_from[4u * q + 1u] + k, along);
                let z = b_four(b_from[4u * q + 2u] + k, along);
                let w = b_four(b_from[4u * q + 3u] + k, along);
                if SQUARES {
                    squares[4u * q] += dot(x, x);
                    squares[4u * q + 1u] += dot(y, y);
                    squares[4u * q + 2u] += dot(z, z);
                    squares[4u * q + 3u] += dot(w, w);
                }
                // From four columns, four steps each, to four steps.
                let steps = transpose(mat4x4<f32>(scaled_along(x), scaled_along(y), scaled_along(z), scaled_along(w)));
                b[4u * q] = steps[0];
                b[4u * q + 1u] = steps[1];
                b[4u * q + 2u] = steps[2];
                b[4u * q + 3u] = steps[3];
            } else {
                for (var step = 0u; step < 4u; step += 1u) {
                    let columns_left = select(4u, left_of(column + 4u * q, p.columns, true), QUADS_MAY_END);
                    let four = b_four(b_from[4u * q] + (k + step) * p.b_stride, select(0u, columns_left, step < left));
                    b[4u * q + step] = scaled_across(four, step);
                }
            }
        }
        // Written out, since drivers unroll a loop of this size only by luck.
        add_rows(0u, a_from[0], k, left, row0, t, b);
        if A_READS > 1u {
            add_rows(1u, a_from[1], k, left, row0, t, b);
        }
        if A_READS > 2u {
            add_rows(2u, a_from[2], k, left, row0, t, b);
            add_rows(3u, a_from[3], k, left, row0, t, b);
        }
        if A_READS > 4u {
            add_rows(4u, a_from[4], k, left, row0, t, b);
            add_rows(5u, a_from[5], k, left, row0, t, b);
            add_rows(6u, a_from[6], k, left, row0, t, b);
            add_rows(7u, a_from[7], k, left, row0, t, b);
        }
    }
}

// Four steps of k of the rows that read r of A brings, the lane's part of them at `a_from`.
fn add_rows(r: u32, a_from: u32, k: u32, left: u32, row0: u32, t: u32, b: array<vec4<f32>, 8>) {
    let along = select(4u, left, QUADS_MAY_END);
    if !SPREAD {
        add_row(r, a_along_k(min(row0 + r, p.rows - 1u), k, left), b);
        return;
    }
    if A_ALONG_K {
        let a = a_four(a_from + k, along);
        for (var i = 0u; i < SPREAD_ROWS; i += 1u) {
            add_row(r * WX + i, subgroupShuffle(a, i), b);
        }
        return;
    }
    let rows_left = left_of(row0 + r * WX + t % LANE_QUADS * 4u, p.rows, true);
    let there = select(0u, select(4u, rows_left, QUADS_MAY_END), t / LANE_QUADS < left);
    let a = a_four(a_from + k * p.a_stride, there);
    for (var i = 0u; i < WX; i += 1u) {
        let row = vec4<f32>(
            subgroupShuffle(a[i % 4u], i / 4u), subgroupShuffle(a[i % 4u], LANE_QUADS + i / 4u),
            subgroupShuffle(a[i % 4u], 2u * LANE_QUADS + i / 4u), subgroupShuffle(a[i % 4u], 3u * LANE_QUADS + i / 4u),
        );
        add_row(r * WX + i, row, b);
    }
}

// Four steps of k of row i: all of them at once, so that its elements are fetched and put back once.
fn add_row(i: u32, a: vec4<f32>, b: array<vec4<f32>, 8>) {
    for (var q = 0u; q < QUADS; q += 1u) {
        let at = i * QUADS + q;
        acc[at] = (((acc[at] + a.x * b[4u * q]) + a.y * b[4u * q + 1u]) + a.z * b[4u * q + 2u]) + a.w * b[4u * q + 3u];
    }
}

// Norms of the lane's own columns, norm_m * 2^norm_e: see tile.wgsl. No barrier, since a CPU driver saves and restores
// every register around one.
override NORMS: u32 = TN;
const SHARE = 1u;
var<private> norm_m: array<f32, 8>;
var<private> norm_e: array<i32, 8>;
var<private> column_squares: array<f32, 8>; // a copy of `squares`, for any index

fn first_norm(t: u32) -> u32 {
    return 0u;
}

fn norms_column(column0: u32, t: u32) -> u32 {
    return column0 + own_column(t);
}

fn own_norms(t: u32) -> u32 {
    return 0u;
}

fn share_norms() {}

fn stage_squares(t: u32) {
    for (var c = 0u; c < TN; c += 1u) {
        column_squares[c] = squares[c];
    }
}

fn column_square(c: u32) -> f32 {
    return column_squares[c];
}
