// The matrix product in register tiles, from workgroup memory: for GPUs, and for CPUs without subgroups.
// Joined behind product.wgsl and workgroup.wgsl.
//
// BK steps of k are staged in workgroup memory at a time, as vectors across the rows of A and of B, so that a step of an
// invocation's 8 by 8 elements takes four wide reads.

const BIT_WORDS = 8u;
override BK: u32 = 16u; // a multiple of 8

override BK4: u32 = BK / 4u;
override BM4: u32 = BM / 4u;
override BN4: u32 = BN / 4u;
override A_BLOCKS: u32 = BM4 * BK4;
override B_BLOCKS: u32 = BN4 * BK4;
override A_STAGES: u32 = (A_BLOCKS + THREADS - 1u) / THREADS;
override B_STAGES: u32 = (B_BLOCKS + THREADS - 1u) / THREADS; // at most 2

// Sizes of workgroup memory have names, since naga 30 panics where an override is declared behind an array whose size
// is an expression of overrides.
override A_STAGED: u32 = BM4 * BK;
override B_STAGED: u32 = BN4 * BK;

var<workgroup> staged_as: array<vec4<f32>, A_STAGED>; // [k][m / 4]
var<workgroup> staged_bs: array<vec4<f32>, B_STAGED>; // [k][n / 4]

var<private> acc: array<vec4<f32>, 16>; // [m][quad of n]
var<private> squares: array<vec4<f32>, 2>; // SQUARES: of the four rows of B in each block that this invocation staged

override STEP: u32 = 4u * WX; // neighbouring invocations read neighbouring quads of B, and write those of C

fn own_column(t: u32) -> u32 {
    return t % WX * 4u;
}

// All of the invocation's rows are one block.
fn take_block(block: u32) {
    for (var i = 0u; i < TM; i += 1u) {
        sums[i] = acc[i * QUADS];
        if QUADS == 2u {
            more_sums[i] = acc[i * QUADS + 1u];
        }
    }
}

// An invocation stages blocks of 4 rows by 4 steps of k. Neighbours take two blocks along k, then further rows: so whole
// 32-byte sectors are read, and few invocations of a cycle write into the same banks.
fn block_of(i: u32, quads: u32) -> vec2<u32> {
    return vec2<u32>(i / 2u % quads, i % 2u + i / (2u * quads) * 2u);
}

// B is staged from the last invocation on, A from the first: where there is less than a block for each, all have work.
fn b_number(stage: u32, t: u32) -> u32 {
    return stage * THREADS + (THREADS - 1u - t);
}

// A[m .. m + 3, k .. k + 3], a column for each step of k, zero from k_end on. Rows past the edge are no matter.
fn a_block(m: u32, k: u32, k_end: u32) -> mat4x4<f32> {
    if A_ALONG_K {
        let left = left_of(k, k_end, true);
        let last = p.rows - 1u;
        return transpose(mat4x4<f32>(
            a_four(a_place(min(m, last), k), left), a_four(a_place(min(m + 1u, last), k), left),
            a_four(a_place(min(m + 2u, last), k), left), a_four(a_place(min(m + 3u, last), k), left),
        ));
    }
    return mat4x4<f32>(
        a_four(a_place(m, k), left_of(m, p.rows, k < k_end)),
        a_four(a_place(m, k + 1u), left_of(m, p.rows, k + 1u < k_end)),
        a_four(a_place(m, k + 2u), left_of(m, p.rows, k + 2u < k_end)),
        a_four(a_place(m, k + 3u), left_of(m, p.rows, k + 3u < k_end)),
    );
}

// The same of B, scaled; its squares go to those of the stage.
fn b_block(n: u32, k: u32, k_end: u32, stage: u32) -> mat4x4<f32> {
    prepare_b(k, left_of(k, k_end, true));
    if B_ALONG_K {
        let left = left_of(k, k_end, true);
        let last = p.columns - 1u;
        let x = b_four(b_place(min(n, last), k), left);
        let y = b_four(b_place(min(n + 1u, last), k), left);
        let z = b_four(b_place(min(n + 2u, last), k), left);
        let w = b_four(b_place(min(n + 3u, last), k), left);
        if SQUARES {
            squares[stage] += vec4<f32>(dot(x, x), dot(y, y), dot(z, z), dot(w, w));
        }
        return transpose(mat4x4<f32>(scaled_along(x), scaled_along(y), scaled_along(z), scaled_along(w)));
    }
    return mat4x4<f32>(
        scaled_across(b_four(b_place(n, k), left_of(n, p.columns, k < k_end)), 0u),
        scaled_across(b_four(b_place(n, k + 1u), left_of(n, p.columns, k + 1u < k_end)), 1u),
        scaled_across(b_four(b_place(n, k + 2u), left_of(n, p.columns, k + 2u < k_end)), 2u),
        scaled_across(b_four(b_place(n, k + 3u), left_of(n, p.columns, k + 3u < k_end)), 3u),
    );
}

// acc += step k of the staged A times that of the staged B, for the m-th TM rows and the n-th columns of the tile.
fn multiply(k: u32, m: u32, n: u32) {
    var b: array<vec4<f32>, 2>;
    for (var q = 0u; q < QUADS; q += 1u) {
        b[q] = staged_bs[k * BN4 + q * WX + n];
    }
    for (var i = 0u; i < TM; i += 4u) {
        let a = staged_as[k * BM4 + m * (TM / 4u) + i / 4u];
        for (var r = 0u; r < 4u; r += 1u) {
            for (var q = 0u; q < QUADS; q += 1u) {
                acc[(i + r) * QUADS + q] += a[r] * b[q];
            }
        }
    }
}

// acc = A·Bᵀ over k_first .. k_end - 1 for the tile at (row0, column0).
fn product(row0: u32, column0: u32, k_first: u32, k_end: u32, t: u32) {
    let m = t / WX;
    let n = t % WX;
    for (var i = 0u; i < TM * QUADS; i += 1u) {
        acc[i] = vec4<f32>();
    }
    for (var k0 = k_first; k0 < k_end; k0 += BK) { // split_length / BK iterations
        for (var stage = 0u; stage < A_STAGES; stage += 1u) {
            let i = stage * THREADS + t;
            if i < A_BLOCKS {
                let at = block_of(i, BM4);
                let block = a_block(row0 + 4u * at.x, k0 + 4u * at.y, k_end);
                let first = 4u * at.y * BM4 + at.x;
                staged_as[first] = block[0];
                staged_as[first + BM4] = block[1];
                staged_as[first + 2u * BM4] = block[2];
                staged_as[first + 3u * BM4] = block[3];
            }
        }
        for (var stage = 0u; stage < B_STAGES; stage += 1u) {
            let i = b_number(stage, t);
            if i < B_BLOCKS {
                let at = block_of(i, BN4);
                let block = b_block(column0 + 4u * at.x, k0 + 4u * at.y, k_end, stage);
                let first = 4u * at.y * BN4 + at.x;
                staged_bs[first] = block[0];
                staged_bs[first + BN4] = block[1];
                staged_bs[first + 2u * BN4] = block[2];
                staged_bs[first + 3u * BN4] = block[3];
            }
        }
        workgroupBarrier();
        for (var k = 0u; k < BK; k += 2u) { // BK / 2 iterations
            multiply(k, m, n);
            multiply(k + 1u, m, n);
        }
        // The next step overwrites what slower invocations still read.
        workgroupBarrier();
    }
}

// Puts the squares of each invocation where column_square finds them.
fn stage_squares(t: u32) {
    for (var stage = 0u; stage < B_STAGES; stage += 1u) {
        let i = b_number(stage, t);
        if i < B_BLOCKS {
            let at = block_of(i, BN4);
            staged_bs[at.y * BN4 + at.x] = squares[stage];
        }
    }
    workgroupBarrier();
}

// The sum of squares of column c of the tile.
fn column_square(c: u32) -> f32 {
    var s = 0.0;
    for (var i = 0u; i < BK4; i += 1u) { // BK / 4 iterations
        s += staged_bs[i * BN4 + c / 4u][c % 4u];
    }
    return s;
}
