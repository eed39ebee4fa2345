// The matrix product in cooperative matrices, whose elements are spread over a subgroup as the device likes: A and B are
// f16, C is f32. Joined behind coop8.wgsl or coop16.wgsl, which say how large they are, and product.wgsl.
//
// A workgroup has the tile in 2 by 2 parts of 2 by 2 matrices of SIDE by SIDE. A subgroup multiplies one part; one that
// has twice the LANES of the device's smallest multiplies the two parts beside each other; one of four times as many those
// below, in a second pass.
//
// BK steps of k are staged in workgroup memory at a time, as they are stored. C goes through workgroup memory too, a
// matrix of each part at a time, so that each invocation gets its own elements: nobody but the device knows which lane
// holds what. The ends are those of every other family then.
//
// B cannot be scaled before it is multiplied (SCALED_B): it would not be f16 any more. The host sees to that.
//
// Every coop operation is reached by all invocations of the workgroup together.

override LANES: u32 = 32u; // of the smallest subgroup that the device may take; THREADS = 4 LANES

const BK = 2u * SIDE;
const BK4 = BK / 4u;
const PART = 2u * SIDE; // rows and columns of a part

// Elements from a row of what is staged to the next: not a multiple of the number of banks.
override A_STRIDE: u32 = select(BM, BK, A_ALONG_K) + 8u;
override B_STRIDE: u32 = select(BN, BK, B_ALONG_K) + 8u;
override A_STAGED: u32 = A_STRIDE * select(BK, BM, A_ALONG_K);
override B_STAGED: u32 = B_STRIDE * select(BK, BN, B_ALONG_K);
override A_STAGES: u32 = (BM * BK4 + THREADS - 1u) / THREADS;
override B_STAGES: u32 = (BN * BK4 + THREADS - 1u) / THREADS; // at most 16
const C_STAGED = 4u * SIDE * SIDE;
override RUN: u32 = min(TM, SIDE); // rows of an invocation within one matrix

var<workgroup> staged_as: array<f16, A_STAGED>; // [m][k], or [k][m]
var<workgroup> staged_bs: array<f16, B_STAGED>; // [n][k], or [k][n]
var<workgroup> staged_cs: array<f32, C_STAGED>; // [part][m][n]; squares before
var<workgroup> parts_each: u32; // of a subgroup

var<private> squares: array<f32, 16>; // SQUARES: of what this invocation staged of B
var<private> acc: array<vec4<f32>, 32>; // the invocation's own elements of C, by rows

const STEP = 4u;

fn own_column(t: u32) -> u32 {
    return t % WX * TN;
}

fn stage_a(row0: u32, k0: u32, k_end: u32, t: u32) {
    for (var stage = 0u; stage < A_STAGES; stage += 1u) {
        let quad = stage * THREADS + t;
        if quad < BM * BK4 {
            var m = quad / BK4;
            var k = quad % BK4 * 4u;
            if !A_ALONG_K {
                k = quad / (BM / 4u);
                m = quad % (BM / 4u) * 4u;
            }
            let along = left_of(k0 + k, k_end, row0 + m < p.rows);
            let across = left_of(row0 + m, p.rows, k0 + k < k_end);
            let four = vec4<f16>(a_four(a_place(row0 + m, k0 + k), select(across, along, A_ALONG_K)));
            let at = select(k * A_STRIDE + m, m * A_STRIDE + k, A_ALONG_K);
            staged_as[at] = four.x;
            staged_as[at + 1u] = four.y;
            staged_as[at + 2u] = four.z;
            staged_as[at + 3u] = four.w;
        }
    }
}

fn stage_b(column0: u32, k0: u32, k_end: u32, t: u32) {
    for (var stage = 0u; stage < B_STAGES; stage += 1u) {
        let quad = stage * THREADS + t;
        if quad < BN * BK4 {
            var n = quad / BK4;
            var k = quad % BK4 * 4u;
            if !B_ALONG_K {
                k = quad / (BN / 4u);
                n = quad % (BN / 4u) * 4u;
            }
            let along = left_of(k0 + k, k_end, column0 + n < p.columns);
            let across = left_of(column0 + n, p.columns, k0 + k < k_end);
            let raw = b_four(b_place(column0 + n, k0 + k), select(across, along, B_ALONG_K));
            if SQUARES {
                squares[stage] += dot(raw, raw);
            }
            let four = vec4<f16>(raw);
            let at = select(k * B_STRIDE + n, n * B_STRIDE + k, B_ALONG_K);
            staged_bs[at] = four.x;
            staged_bs[at + 1u] = four.y;
            staged_bs[at + 2u] = four.z;
            staged_bs[at + 3u] = four.w;
        }
    }
}

// What is staged of rows m .. m + SIDE - 1, steps k .. k + SIDE - 1.
fn fragment_a(m: u32, k: u32) -> FragmentA {
    if A_ALONG_K {
        return coopLoadT<FragmentA>(&staged_as[m * A_STRIDE + k], A_STRIDE);
    }
    return coopLoad<FragmentA>(&staged_as[k * A_STRIDE + m], A_STRIDE);
}

fn fragment_b(n: u32, k: u32) -> FragmentB {
    if B_ALONG_K {
        return coopLoad<FragmentB>(&staged_bs[n * B_STRIDE + k], B_STRIDE);
    }
    return coopLoadT<FragmentB>(&staged_bs[k * B_STRIDE + n], B_STRIDE);
}

// Hands round matrix `c` of the given part, the `number`-th of each subgroup's: of every part the one at the given place.
fn hand_round(c: FragmentC, place: vec2<u32>, part: u32, number: u32, t: u32) {
    coopStoreT(c, &staged_cs[part * SIDE * SIDE], SIDE);
    workgroupBarrier();
    for (var r = 0u; r < TM; r += RUN) { // TM / RUN iterations, 32 at most with those within
        let own = vec2<u32>(t / WX * TM + r, own_column(t));
        let own_part = own.x / PART * 2u + own.y / PART;
        if all(own / SIDE % 2u == place) && own_part % parts_each == number {
            let first = (own_part * SIDE + own.x % SIDE) * SIDE + own.y % SIDE;
            for (var i = 0u; i < RUN; i += 1u) {
                let at = first + i * SIDE;
                acc[r + i] = vec4<f32>(staged_cs[at], staged_cs[at + 1u], staged_cs[at + 2u], staged_cs[at + 3u]);
            }
        }
    }
    workgroupBarrier();
}

// acc = A·Bᵀ over k_first .. k_end - 1 for the given part of the tile at (row0, column0), the `number`-th of the subgroup,
// and for the one beside it, if subgroups have two. With the first the squares.
fn multiply(part: u32, number: u32, row0: u32, column0: u32, k_first: u32, k_end: u32, t: u32) {
    let m = part / 2u * PART;
    let n = part % 2u * PART;
    var c00 = FragmentC();
    var c01 = FragmentC();
    var c10 = FragmentC();
    var c11 = FragmentC();
    var d00 = FragmentC();
    var d01 = FragmentC();
    var d10 = FragmentC();
    var d11 = FragmentC();
    squares = array<f32, 16>();
    let two = workgroupUniformLoad(&parts_each) > 1u;
    for (var k0 = k_first; k0 < k_end; k0 += BK) { // split_length / BK iterations
        stage_a(row0, k0, k_end, t);
        stage_b(column0, k0, k_end, t);
        workgroupBarrier();
        for (var k = 0u; k < BK; k += SIDE) { // 2 iterations
            let a0 = fragment_a(m, k);
            let a1 = fragment_a(m + SIDE, k);
            let b0 = fragment_b(n, k);
            let b1 = fragment_b(n + SIDE, k);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
            if two {
                let b2 = fragment_b(n + PART, k);
                let b3 = fragment_b(n + PART + SIDE, k);
                d00 = coopMultiplyAdd(a0, b2, d00);
                d01 = coopMultiplyAdd(a0, b3, d01);
                d10 = coopMultiplyAdd(a1, b2, d10);
                d11 = coopMultiplyAdd(a1, b3, d11);
            }
        }
        // The next step overwrites what slower subgroups still read.
        workgroupBarrier();
    }
    if SQUARES && number == 0u {
        add_up_squares(t);
    }
    hand_round(c00, vec2<u32>(0u, 0u), part, number, t);
    hand_round(c01, vec2<u32>(0u, 1u), part, number, t);
    hand_round(c10, vec2<u32>(1u, 0u), part, number, t);
    hand_round(c11, vec2<u32>(1u, 1u), part, number, t);
    if two {
        hand_round(d00, vec2<u32>(0u, 0u), part + 1u, number + 1u, t);
        hand_round(d01, vec2<u32>(0u, 1u), part + 1u, number + 1u, t);
        hand_round(d10, vec2<u32>(1u, 0u), part + 1u, number + 1u, t);
        hand_round(d11, vec2<u32>(1u, 1u), part + 1u, number + 1u, t);
    }
}

// acc = A·Bᵀ over k_first .. k_end - 1 for the tile at (row0, column0).
fn product(row0: u32, column0: u32, k_first: u32, k_end: u32, t: u32) {
    // Subgroups take neighbouring invocations.
    let part = subgroupMin(t) / LANES;
    let last_part = subgroupMax(t) / LANES;
    if t == 0u {
        parts_each = last_part + 1u;
    }
    for (var i = 0u; i < workgroupUniformLoad(&parts_each); i += 2u) { // at most 2 iterations
        multiply(part + i, i, row0, column0, k_first, k_end, t);
    }
}

fn take_block(block: u32) {
    for (var i = 0u; i < BLOCK; i += 1u) {
        sums[i] = acc[block * BLOCK + i];
    }
}

// Norms of the columns of the tile: see tile.wgsl.
override NORMS: u32 = BN;
override SHARE: u32 = THREADS;
var<workgroup> norm_m: array<f32, NORMS>;
var<workgroup> norm_e: array<i32, NORMS>;
var<workgroup> column_squares: array<f32, NORMS>;

fn first_norm(t: u32) -> u32 {
    return t;
}

fn norms_column(column0: u32, t: u32) -> u32 {
    return column0;
}

fn own_norms(t: u32) -> u32 {
    return own_column(t);
}

fn share_norms() {
    workgroupBarrier();
}

// The squares of each column, before C takes their place in workgroup memory.
fn add_up_squares(t: u32) {
    for (var stage = 0u; stage < B_STAGES; stage += 1u) {
        let quad = stage * THREADS + t;
        if quad < BN * BK4 {
            staged_cs[quad] = squares[stage];
        }
    }
    workgroupBarrier();
    for (var c = t; c < BN; c += THREADS) { // at most 2 iterations
        var s = 0.0;
        for (var i = 0u; i < BK4; i += 1u) { // at most 8 iterations
            s += staged_cs[c * BK4 + i];
        }
        column_squares[c] = s;
    }
    workgroupBarrier();
}

fn stage_squares(t: u32) {}

fn column_square(c: u32) -> f32 {
    return column_squares[c];
}
