// The matrix product in cooperative matrices, whose elements are spread over a subgroup as the device likes: A and B
// are f16, C is f32.
// slot a = product/a_pair
// slot b = product/b_pair
// slot matrix = product/matrix16
// import product/exact
// import product/shared_norms
//
// Fills the slot `family`: see tile.wgsl.
//
// A workgroup has the tile in 2 by 2 parts of 2 by 2 matrices of SIDE by SIDE. A subgroup multiplies one part; one that
// has twice the lanes of the device's smallest multiplies the two parts beside each other; one of four times as many
// those below, in a second pass.
//
// STEPS steps of k are staged in workgroup memory at a time, as they are stored. C goes through workgroup memory too, a
// matrix of each part at a time, so that each invocation gets its own elements: nobody but the device knows which lane
// holds what. The ends are those of every other family then.
//
// B cannot be scaled before it is multiplied (SCALED_B): it would not be f16 any more. The host sees to that.
//
// Every coop operation is reached by all invocations of the workgroup together.

override LEAST_LANES: u32 = 32u; // of the smallest subgroup that the device may take; THREADS = 4 LEAST_LANES

const STEPS = 2u * SIDE;
const STEPS4 = STEPS / 4u;
const PART = 2u * SIDE; // rows and columns of a part

// Elements from a row of what is staged to the next, whole vectors: not a multiple of the number of banks.
const STRIDE = STEPS + 8u;
override A_STAGED: u32 = STRIDE * BM;
override B_STAGED: u32 = STRIDE * BN;
override A_STAGES: u32 = BM * STEPS4 / THREADS; // 1 to 16: the host keeps LEAST_LANES such that there is no rest
override B_STAGES: u32 = BN * STEPS4 / THREADS;
const C_STAGED = 4u * SIDE * SIDE;
override SIDE_ROWS: u32 = min(TM, SIDE); // rows of an invocation within one matrix

var<workgroup> staged_as: array<f16, A_STAGED>; // [m][k]
var<workgroup> staged_bs: array<f16, B_STAGED>; // [n][k]
var<workgroup> staged_cs: array<f32, C_STAGED>; // [part][m][n]; squares before
var<workgroup> parts_each: u32; // of a subgroup

var<private> fetched_as: array<vec2<u32>, 16>; // the quads that this invocation stages next
var<private> fetched_bs: array<vec2<u32>, 16>;
var<private> squares: array<f32, 16>; // SQUARES: of what this invocation staged of B
var<private> acc: array<vec4<f32>, 32>; // the invocation's own elements of C, by rows

fn own_row(t: u32) -> u32 {
    return t / WX * TM;
}

fn own_column(t: u32) -> u32 {
    return t % WX * TN;
}

fn own_norms(t: u32) -> u32 {
    return own_column(t) % BN;
}

// Where quad i of a matrix with so many `rows` in the tile is staged, (row, step of k).
fn spot(i: u32, rows: u32, along_k: bool) -> vec2<u32> {
    let across = vec2<u32>(i % (rows / 4u) * 4u, i / (rows / 4u));
    return select(across, vec2<u32>(i / STEPS4, i % STEPS4 * 4u), along_k);
}

// How many elements there are of the quad at (row, step of k), none past the last row and step.
fn left_at(at: vec2<u32>, rows: u32, k_end: u32, along_k: bool) -> u32 {
    return select(left_of(at.x, rows, at.y < k_end), left_of(at.y, k_end, at.x < rows), along_k);
}

// The quad itself, or one that is there.
fn quad_within(at: vec2<u32>, rows: u32, k_end: u32, along_k: bool) -> vec2<u32> {
    return min(at, vec2<u32>(rows, k_end) - select(vec2<u32>(WHOLE, 1u), vec2<u32>(1u, WHOLE), along_k));
}

// Reads STEPS steps of k from k0 on, which are there. Without branches, so that the reads do not wait for each other.
fn fetch(row0: u32, column0: u32, k0: u32, k_end: u32, t: u32) {
    for (var stage = 0u; stage < A_STAGES; stage += 1u) {
        let at = vec2<u32>(row0, k0) + spot(stage * THREADS + t, BM, A_ALONG_K);
        let there = quad_within(at, p.rows, k_end, A_ALONG_K);
        fetched_as[stage] = a_packed(a_place(there.x, there.y), left_at(at, p.rows, k_end, A_ALONG_K));
    }
    for (var stage = 0u; stage < B_STAGES; stage += 1u) {
        let at = vec2<u32>(column0, k0) + spot(stage * THREADS + t, BN, B_ALONG_K);
        let there = quad_within(at, p.columns, k_end, B_ALONG_K);
        fetched_bs[stage] = b_packed(b_place(there.x, there.y), left_at(at, p.columns, k_end, B_ALONG_K));
    }
}

// Four elements, zero from the `left`-th on.
fn unpacked(quad: vec2<u32>, left: u32) -> vec4<f32> {
    var low = select(0u, quad.x, left > 0u);
    var high = select(0u, quad.y, left > 0u);
    if QUADS_MAY_END {
        low = select(low & 0xffffu, low, left > 1u);
        high = select(select(0u, high & 0xffffu, left > 2u), high, left > 3u);
    }
    return vec4<f32>(unpack2x16float(low), unpack2x16float(high));
}

// Puts what was fetched into workgroup memory. Between f32 and f16 nothing is rounded.
fn stage_fetched(row0: u32, column0: u32, k0: u32, k_end: u32, t: u32) {
    for (var stage = 0u; stage < A_STAGES; stage += 1u) {
        let own = spot(stage * THREADS + t, BM, A_ALONG_K);
        let left = left_at(vec2<u32>(row0, k0) + own, p.rows, k_end, A_ALONG_K);
        let four = vec4<f16>(unpacked(fetched_as[stage], left));
        let at = own.x * STRIDE + own.y;
        let step = select(STRIDE, 1u, A_ALONG_K);
        staged_as[at] = four.x;
        staged_as[at + step] = four.y;
        staged_as[at + 2u * step] = four.z;
        staged_as[at + 3u * step] = four.w;
    }
    for (var stage = 0u; stage < B_STAGES; stage += 1u) {
        let own = spot(stage * THREADS + t, BN, B_ALONG_K);
        let left = left_at(vec2<u32>(column0, k0) + own, p.columns, k_end, B_ALONG_K);
        let raw = unpacked(fetched_bs[stage], left);
        if SQUARES {
            squares[stage] += dot(raw, raw);
        }
        let four = vec4<f16>(raw);
        let at = own.x * STRIDE + own.y;
        let step = select(STRIDE, 1u, B_ALONG_K);
        staged_bs[at] = four.x;
        staged_bs[at + step] = four.y;
        staged_bs[at + 2u * step] = four.z;
        staged_bs[at + 3u * step] = four.w;
    }
}

// What is staged of rows m .. m + SIDE - 1, steps k .. k + SIDE - 1.
fn fragment_a(m: u32, k: u32) -> FragmentA {
    return coopLoadT<FragmentA>(&staged_as[m * STRIDE + k], STRIDE);
}

fn fragment_b(n: u32, k: u32) -> FragmentB {
    return coopLoad<FragmentB>(&staged_bs[n * STRIDE + k], STRIDE);
}

// Hands round matrix `c` of the given part, the `number`-th of each subgroup's: of every part the one at the given
// place.
fn hand_round(c: FragmentC, place: vec2<u32>, part: u32, number: u32, t: u32) {
    coopStoreT(c, &staged_cs[part * SIDE * SIDE], SIDE);
    workgroupBarrier();
    for (var r = 0u; r < TM; r += SIDE_ROWS) { // TM / SIDE_ROWS iterations, 32 at most with those within
        let own = vec2<u32>(t / WX * TM + r, own_column(t));
        let own_part = own.x / PART * 2u + own.y / PART;
        if all(own / SIDE % 2u == place) && own_part % parts_each == number {
            let first = (own_part * SIDE + own.x % SIDE) * SIDE + own.y % SIDE;
            for (var i = 0u; i < SIDE_ROWS; i += 1u) {
                let at = first + i * SIDE;
                acc[r + i] = vec4<f32>(staged_cs[at], staged_cs[at + 1u], staged_cs[at + 2u], staged_cs[at + 3u]);
            }
        }
    }
    workgroupBarrier();
}

// acc = A·Bᵀ over k_first .. k_end - 1 for the given part of the tile at (row0, column0), the `number`-th of the
// subgroup, and for the one beside it, if subgroups have two. With the first the squares.
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
    if k_first < k_end {
        fetch(row0, column0, k_first, k_end, t);
    }
    for (var k0 = k_first; k0 < k_end; k0 += STEPS) { // split_length / STEPS iterations
        stage_fetched(row0, column0, k0, k_end, t);
        workgroupBarrier();
        // The next ones are on their way meanwhile.
        if k0 + STEPS < k_end {
            fetch(row0, column0, k0 + STEPS, k_end, t);
        }
        for (var k = 0u; k < STEPS; k += SIDE) { // 2 iterations
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
    let part = subgroupMin(t) / LEAST_LANES;
    let last_part = subgroupMax(t) / LEAST_LANES;
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

var<workgroup> column_squares: array<f32, NORMS>;

// The squares of each column, before C takes their place in workgroup memory.
fn add_up_squares(t: u32) {
    for (var stage = 0u; stage < B_STAGES; stage += 1u) {
        staged_cs[stage * THREADS + t] = squares[stage];
    }
    workgroupBarrier();
    for (var c = t; c < BN; c += THREADS) { // at most 2 iterations
        var s = 0.0;
        for (var i = 0u; i < STEPS4; i += 1u) { // at most 8 iterations
            s += staged_cs[c * STEPS4 + i];
        }
        column_squares[c] = s;
    }
    workgroupBarrier();
}

fn stage_squares(t: u32) {}

fn column_square(c: u32) -> f32 {
    return column_squares[c];
}

// No row of A is normalized here: the host takes another family.
fn row_square(r: u32) -> f32 {
    return 0.0;
}
