// The matrix product in the registers of subgroups, without workgroup memory in the sum: for adapters that compute on
// a CPU, where a load from memory costs as much as many multiply-adds and a shuffle next to nothing.
// Joined behind product.wgsl.
//
// A workgroup is one subgroup of WX lanes (WY = 1). A lane has TN columns of C and all TM rows. Each step takes four k:
// a lane reads its own columns of B; the rows of A are read once by the subgroup, spread over its lanes, and handed
// round by shuffles. With fewer rows than lanes every lane reads all of A.
//
// Every loop within that over k has a constant number of iterations, at most 32, and is unrolled.

override SPREAD: bool = TM >= WX;
override A_READS: u32 = select(TM, TM / WX, SPREAD);
override LANE_QUADS: u32 = max(WX / 4u, 1u); // A across: neighbouring lanes that read a step of k together
override RAGGED: bool = true; // depth is no multiple of four

var<private> acc: array<vec4<f32>, 32>; // [m][quad of n], in registers while they are only indexed by constants
var<private> sums: array<vec4<f32>, 32>; // its copy, for any index
var<private> squares: array<f32, 8>; // NORM_FUSED: of each own column of B
var<workgroup> staged_squares: array<f32, BN>;

// Row i and quad q of the invocation's elements of C.
fn sum_at(i: u32, q: u32) -> vec4<f32> {
    return sums[i * QUADS + q];
}

// B[n, k .. k + 3]. Columns past the edge repeat the last one; what comes of them is dropped.
fn b_along(n: u32, k: u32, left: u32) -> vec4<f32> {
    return b_four(b_place(min(n, p.columns - 1u), k), left);
}

// B[n .. n + 3, k].
fn b_across(n: u32, k: u32, there: bool) -> vec4<f32> {
    if QUADS_MAY_END {
        return b_four(b_place(n, k), left_of(n, p.columns, there));
    }
    return b_four(b_place(min(n, p.columns - 4u), k), select(0u, 4u, there));
}

// A[m .. m + 3, k].
fn a_across(m: u32, k: u32, there: bool) -> vec4<f32> {
    if QUADS_MAY_END {
        return a_four(a_place(m, k), left_of(m, p.rows, there));
    }
    return a_four(a_place(min(m, p.rows - 4u), k), select(0u, 4u, there));
}

// acc = A·Bᵀ over k_first .. k_end - 1 for the tile at (row0, column0).
fn product(row0: u32, column0: u32, k_first: u32, k_end: u32, t: u32) {
    let column = column0 + t * 4u;
    for (var i = 0u; i < TM * QUADS; i += 1u) {
        acc[i] = vec4<f32>();
    }
    for (var k = k_first; k < k_end; k += 4u) { // split_length / 4 iterations
        let left = select(4u, k_end - k, RAGGED);
        let along = select(4u, left, QUADS_MAY_END);
        prepare_b(k, left);
        var b: array<vec4<f32>, 8>; // [quad of n][step]
        for (var q = 0u; q < QUADS; q += 1u) {
            let n = column + STEP * q;
            if B_ALONG_K {
                let x = b_along(n, k, along);
                let y = b_along(n + 1u, k, along);
                let z = b_along(n + 2u, k, along);
                let w = b_along(n + 3u, k, along);
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
                    b[4u * q + step] = scaled_across(b_across(n, k + step, step < left), step);
                }
            }
        }
        for (var r = 0u; r < A_READS; r += 1u) {
            var a: vec4<f32>;
            if !SPREAD {
                let m = min(row0 + r, p.rows - 1u);
                if A_ALONG_K {
                    a = a_four(a_place(m, k), along);
                } else {
                    a = a_along_k(m, k, left);
                }
                add_row(r, a, b);
            } else if A_ALONG_K {
                a = a_four(a_place(min(row0 + r * WX + t, p.rows - 1u), k), along);
                for (var i = 0u; i < WX; i += 1u) {
                    add_row(r * WX + i, subgroupShuffle(a, i), b);
                }
            } else {
                let step = t / LANE_QUADS;
                a = a_across(row0 + r * WX + t % LANE_QUADS * 4u, k + step, step < left);
                for (var i = 0u; i < WX; i += 1u) {
                    let row = vec4<f32>(
                        subgroupShuffle(a[i % 4u], i / 4u), subgroupShuffle(a[i % 4u], LANE_QUADS + i / 4u),
                        subgroupShuffle(a[i % 4u], 2u * LANE_QUADS + i / 4u),
                        subgroupShuffle(a[i % 4u], 3u * LANE_QUADS + i / 4u),
                    );
                    add_row(r * WX + i, row, b);
                }
            }
        }
    }
    sums = acc;
}

// Four steps of k of row i: all of them at once, so that its elements are fetched and put back once.
fn add_row(i: u32, a: vec4<f32>, b: array<vec4<f32>, 8>) {
    for (var q = 0u; q < QUADS; q += 1u) {
        let at = i * QUADS + q;
        acc[at] = (((acc[at] + a.x * b[4u * q]) + a.y * b[4u * q + 1u]) + a.z * b[4u * q + 2u]) + a.w * b[4u * q + 3u];
    }
}

// Puts the squares of each invocation where column_square finds them.
fn stage_squares(t: u32) {
    for (var c = 0u; c < TN; c += 1u) {
        staged_squares[c / 4u * STEP + t * 4u + c % 4u] = squares[c];
    }
    workgroupBarrier();
}

// The sum of squares of column c of the tile.
fn column_square(c: u32) -> f32 {
    return staged_squares[c];
}
