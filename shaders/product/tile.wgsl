// The matrix product in register tiles, from workgroup memory.
// import product/exact
// import product/shared_norms
// import product/block
//
// Slot `family`. What every family declares:
//   own_row(t), own_column(t)    the first row and column of invocation t within its tile
//   product(..)                  computes the tile at (row0, column0) over k_first .. k_end - 1
//   take_block(block)            puts the invocation's sums of a block of rows into `sums`, `more_sums` of exact.wgsl
//   stage_squares(t), column_square(c)
//                                with SQUARES: the sum of squares of column c, once all invocations have staged
//   row_square(r)                with ROW_SQUARES, likewise: that of row r, for invocation r % THREADS
//   NORMS, SHARE, norm_m, norm_e, first_norm(t), norms_column(column0, t), own_norms(t), share_norms()
//                                the norms of the tile's columns, and who finds which: see shared_norms.wgsl
//
// BK steps of k are staged in workgroup memory at a time, as vectors across the rows of A and of B, so that a step
// of an invocation's 8 by 8 elements takes four wide reads. Neighbouring invocations lie in squares of the tile
// (Morton order): of those that a GPU serves together, lanes i and i ^ 1 read the same of A, i and i ^ 2 the same of B.

// Sums of up to 16 elements an invocation in pieces of SUM_PIECE steps of k, which are then added up: a long sum of
// terms of one sign loses bits with each of them. (TM is 4, TN too.)
override IN_PIECES: bool = false;
const SUM_PIECE = 128u; // a multiple of BK

override BK4: u32 = BK / 4u;
override BM4: u32 = BM / 4u;
override BN4: u32 = BN / 4u;
// What is staged for BK steps of k, in blocks of 4 rows by 4 steps: those of A, then no more of B than there are
// invocations. STAGES blocks of an invocation, at most 3; at most one is of B.
override A_BLOCKS: u32 = BM4 * BK4;
override BLOCKS: u32 = A_BLOCKS + BN4 * BK4;
override STAGES: u32 = (BLOCKS + THREADS - 1u) / THREADS;

// Vectors from a step to the next: one more than there are, so that invocations that stage together write into
// different banks.
override A_ROW: u32 = BM4 + 1u;
override B_ROW: u32 = BN4 + 1u;
// Sizes of workgroup memory have names, since naga 30 panics where an override is declared behind an array whose size
// is an expression of overrides.
override A_STAGED: u32 = A_ROW * BK;
override B_STAGED: u32 = B_ROW * BK;

var<workgroup> staged_as: array<vec4<f32>, A_STAGED>; // [k][m / 4]
var<workgroup> staged_bs: array<vec4<f32>, B_STAGED>; // [k][n / 4]

var<private> acc: array<vec4<f32>, 16>; // [m][quad of n]
var<private> totals: array<vec4<f32>, 4>; // IN_PIECES: of the pieces before
var<private> ahead: array<Block, 3>; // on their way
var<private> squares: vec4<f32>; // SQUARES: of the four rows of B that this invocation staged
var<private> row_squares: array<vec4<f32>, 3>; // ROW_SQUARES: of the rows of A, by blocks

// The place of an invocation among the WX by WY of the tile: every other bit of its number, as long as WX has some
// left.
fn lane_n(t: u32) -> u32 {
    return ((t & 1u) | ((t >> 1u) & 2u) | ((t >> 2u) & 4u) | ((t >> 3u) & 8u)) & (WX - 1u);
}

fn lane_m(t: u32) -> u32 {
    if WX == 2u {
        return t >> 1u;
    }
    return ((t >> 1u) & 1u) | ((t >> 2u) & 2u) | ((t >> 3u) & 4u) | ((t >> 4u) & 8u);
}

fn own_row(t: u32) -> u32 {
    return lane_m(t) * TM;
}

// STEP is 4 WX: neighbouring invocations read neighbouring quads of B, and write those of C.
fn own_column(t: u32) -> u32 {
    return lane_n(t) * 4u;
}

fn own_norms(t: u32) -> u32 {
    return own_column(t) % BN;
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

// An invocation stages blocks of 4 rows by 4 steps of k. Neighbours take two blocks along k, then further rows: so
// whole 32-byte sectors are read, and few invocations of a cycle write into the same banks.
fn block_of(i: u32, quads: u32) -> vec2<u32> {
    return vec2<u32>(i / 2u % quads, i % 2u + i / (2u * quads) * 2u);
}

// Finds what belongs to the rows of the invocation's blocks.
fn begin_blocks(row0: u32, column0: u32, t: u32) {
    for (var stage = 0u; stage < STAGES; stage += 1u) {
        let i = stage * THREADS + t;
        if i < A_BLOCKS {
            let at = block_of(i, BM4);
            a_begin(stage, row0 + 4u * at.x, 4u * at.y);
        } else if i < BLOCKS {
            let at = block_of(i - A_BLOCKS, BN4);
            b_begin(stage, column0 + 4u * at.x, 4u * at.y);
        }
    }
}

// Reads the invocation's blocks of the steps from k0 on; past k_end the last ones there are. Nothing is done with
// them here, which would have to wait for them.
fn fetch(row0: u32, column0: u32, k0: u32, k_end: u32, t: u32) {
    for (var stage = 0u; stage < STAGES; stage += 1u) {
        let i = stage * THREADS + t;
        if i < A_BLOCKS {
            let at = block_of(i, BM4);
            ahead[stage] = a_fetch(stage, row0 + 4u * at.x, 4u * at.y, k0, k_end);
        } else if i < BLOCKS {
            let at = block_of(i - A_BLOCKS, BN4);
            prepare_b(k0 + 4u * at.y, k_end);
            ahead[stage] = b_fetch(stage, column0 + 4u * at.x, 4u * at.y, k0, k_end);
        }
    }
}

// What `left` steps leave of a block: past the last one zeros. (Rows past the edge are no matter.)
fn steps_there(steps: mat4x4<f32>, left: u32) -> mat4x4<f32> {
    if WHOLE_STEPS {
        return steps;
    }
    let none = vec4<f32>();
    return mat4x4<f32>(
        select(none, steps[0], left > 0u), select(none, steps[1], left > 1u),
        select(none, steps[2], left > 2u), select(none, steps[3], left > 3u),
    );
}

// Puts what was fetched into workgroup memory, a vector for each step, B scaled.
fn stage_fetched(k0: u32, k_end: u32, t: u32) {
    for (var stage = 0u; stage < STAGES; stage += 1u) {
        let i = stage * THREADS + t;
        let block = ahead[stage];
        if i < A_BLOCKS {
            let at = block_of(i, BM4);
            let first = 4u * at.y * A_ROW + at.x;
            let steps = steps_there(a_steps(stage, block), left_of(k0 + 4u * at.y, k_end, true));
            if ROW_SQUARES {
                row_squares[stage] +=
                    ((steps[0] * steps[0] + steps[1] * steps[1]) + steps[2] * steps[2]) + steps[3] * steps[3];
            }
            staged_as[first] = steps[0];
            staged_as[first + A_ROW] = steps[1];
            staged_as[first + 2u * A_ROW] = steps[2];
            staged_as[first + 3u * A_ROW] = steps[3];
        } else if i < BLOCKS {
            let at = block_of(i - A_BLOCKS, BN4);
            let first = 4u * at.y * B_ROW + at.x;
            var steps = b_steps(stage, block);
            if SCALED_B {
                steps = mat4x4<f32>(
                    scaled_across(steps[0], 0u), scaled_across(steps[1], 1u),
                    scaled_across(steps[2], 2u), scaled_across(steps[3], 3u),
                );
            }
            steps = steps_there(steps, left_of(k0 + 4u * at.y, k_end, true));
            if SQUARES { // of what is not scaled
                squares += ((steps[0] * steps[0] + steps[1] * steps[1]) + steps[2] * steps[2]) + steps[3] * steps[3];
            }
            staged_bs[first] = steps[0];
            staged_bs[first + B_ROW] = steps[1];
            staged_bs[first + 2u * B_ROW] = steps[2];
            staged_bs[first + 3u * B_ROW] = steps[3];
        }
    }
}

// acc += step k of the staged A times that of the staged B, for the m-th TM rows and the n-th columns of the tile.
fn multiply(k: u32, m: u32, n: u32) {
    var b: array<vec4<f32>, 2>;
    for (var q = 0u; q < QUADS; q += 1u) {
        b[q] = staged_bs[k * B_ROW + q * WX + n];
    }
    for (var i = 0u; i < TM; i += 4u) {
        let a = staged_as[k * A_ROW + m * (TM / 4u) + i / 4u];
        for (var r = 0u; r < 4u; r += 1u) {
            for (var q = 0u; q < QUADS; q += 1u) {
                acc[(i + r) * QUADS + q] += a[r] * b[q];
            }
        }
    }
}

fn multiply_eight(k: u32, m: u32, n: u32) {
    multiply(k, m, n);
    multiply(k + 1u, m, n);
    multiply(k + 2u, m, n);
    multiply(k + 3u, m, n);
    multiply(k + 4u, m, n);
    multiply(k + 5u, m, n);
    multiply(k + 6u, m, n);
    multiply(k + 7u, m, n);
}

fn end_piece() {
    for (var i = 0u; i < 4u; i += 1u) { // 4 iterations
        totals[i] += acc[i];
        acc[i] = vec4<f32>();
    }
}

// acc = A·Bᵀ over k_first .. k_end - 1 for the tile at (row0, column0).
fn product(row0: u32, column0: u32, k_first: u32, k_end: u32, t: u32) {
    let m = lane_m(t);
    let n = lane_n(t);
    begin_blocks(row0, column0, t);
    for (var i = 0u; i < TM * QUADS; i += 1u) {
        acc[i] = vec4<f32>();
    }
    totals = array<vec4<f32>, 4>();
    if k_first < k_end {
        fetch(row0, column0, k_first, k_end, t);
    }
    for (var k0 = k_first; k0 < k_end; k0 += BK) { // split_length / BK iterations
        stage_fetched(k0, k_end, t);
        workgroupBarrier();
        // The next ones are on their way meanwhile; behind the last, what comes is not used.
        fetch(row0, column0, k0 + BK, k_end, t);
        // Without a loop, behind which RADV moves the reads.
        multiply_eight(0u, m, n);
        if BK == 16u {
            multiply_eight(8u, m, n);
        }
        if IN_PIECES && (k0 - k_first + BK) % SUM_PIECE == 0u {
            end_piece();
        }
        // The next step overwrites what slower invocations still read. (Staging by turns in two places would need no
        // second barrier, but twice the workgroup memory: on RDNA3 `tile64x64` has 8 subgroups per SIMD then for 14, on
        // RDNA4 6 for 8.)
        workgroupBarrier();
    }
    if IN_PIECES {
        end_piece();
        acc[0] = totals[0];
        acc[1] = totals[1];
        acc[2] = totals[2];
        acc[3] = totals[3];
    }
}

// Puts the squares of each invocation where column_square finds them.
fn stage_squares(t: u32) {
    for (var stage = 0u; stage < STAGES; stage += 1u) {
        let i = stage * THREADS + t;
        if i >= A_BLOCKS && i < BLOCKS {
            let at = block_of(i - A_BLOCKS, BN4);
            staged_bs[at.y * B_ROW + at.x] = squares;
        }
        if ROW_SQUARES && i < A_BLOCKS {
            let at = block_of(i, BM4);
            staged_as[at.y * A_ROW + at.x] = row_squares[stage];
        }
    }
    workgroupBarrier();
}

fn row_square(r: u32) -> f32 {
    var s = 0.0;
    for (var i = 0u; i < BK4; i += 1u) { // BK / 4 iterations
        s += staged_as[i * A_ROW + r / 4u][r % 4u];
    }
    return s;
}

// The sum of squares of column c of the tile.
fn column_square(c: u32) -> f32 {
    var s = 0.0;
    for (var i = 0u; i < BK4; i += 1u) { // BK / 4 iterations
        s += staged_bs[i * B_ROW + c / 4u][c % 4u];
    }
    return s;
}
