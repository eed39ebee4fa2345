// The matrix product of a few rows of A, as fast as memory brings B.
// import product/exact
// import product/shared_norms
//
// Fills the slot `family`: see tile.wgsl.
//
// A workgroup computes WY rows by 4 WX columns. Its invocations are WX teams of WK: an invocation takes every WK-th
// quad of k, of the four columns of its team and of all the rows. So a workgroup reads each element of B once,
// straight into registers, and A, which all workgroups read, comes from a cache. Where B runs along k, an
// invocation's neighbours are those of its team, and read neighbouring quads of a row of B; where it runs across,
// they are the other teams.
//
// What a team summed up is then added up in workgroup memory, always in the same order, and WX WY invocations carry
// on as in other families: a row and a quad of columns each (TM = 1, TN = 4), while the others hold columns past
// every edge.

override WK: u32 = 8u; // a multiple of 8; THREADS = WX * WK, which the host says
override AHEAD: u32 = select(2u, 4u, WY == 1u); // quads of k that an invocation has on their way at a time: 2 or 4
override STRIDE: u32 = 4u * WK; // steps of k from one of its quads to the next

const NO_COLUMN = 0x80000000u; // a multiple of BN

// Sums of quads that an invocation holds: of columns, and from ROW_SUMS on squares of four rows of A each.
override ROW_SUMS: u32 = WY + select(0u, 1u, SQUARES);
override SUM_ROWS: u32 = ROW_SUMS + select(0u, (WY + 3u) / 4u, ROW_SQUARES);
override HELD_ROWS: u32 = min(4u, 512u / THREADS); // of them in workgroup memory at a time: 8 KiB
override STAGED: u32 = HELD_ROWS * THREADS;
override EIGHTH: u32 = THREADS / 8u;

var<private> acc: array<vec4<f32>, 11>; // [m] of a team's columns; behind the last row the squares of B, of A
var<private> own_sums: vec4<f32>; // of the invocation's own element of C
var<workgroup> staged: array<vec4<f32>, STAGED>; // [m][quad of k][team]
var<workgroup> staged_squares: array<vec4<f32>, WX>;
var<workgroup> staged_row_squares: array<vec4<f32>, 2>;

fn own_row(t: u32) -> u32 {
    return t / WX * TM;
}

fn own_column(t: u32) -> u32 {
    return t % WX * 4u + select(NO_COLUMN, 0u, t < WX * WY);
}

fn own_norms(t: u32) -> u32 {
    return own_column(t) % BN;
}

fn take_block(block: u32) {
    sums[0] = own_sums;
}

// Adds up four steps of k, of which `left` are there.
fn add_quad(k: u32, left: u32, row0: u32, column: u32) {
    let along = select(4u, left, QUADS_MAY_END);
    prepare_b(k, k + left);
    if QUADS_MAY_END {
        // What is not there is 0, and 0 times an infinite scale would be NaN.
        step_m = select(vec4<f32>(), step_m, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(left));
    }
    var b: mat4x4<f32>; // a column for each step
    if B_ALONG_K {
        let last = p.columns - 1u;
        let x = b_four(b_place(min(column, last), k), along);
        let y = b_four(b_place(min(column + 1u, last), k), along);
        let z = b_four(b_place(min(column + 2u, last), k), along);
        let w = b_four(b_place(min(column + 3u, last), k), along);
        b = transpose(mat4x4<f32>(scaled_along(x), scaled_along(y), scaled_along(z), scaled_along(w)));
        if SQUARES {
            acc[WY] += b[0] * b[0] + b[1] * b[1] + b[2] * b[2] + b[3] * b[3];
        }
    } else {
        let there = min(column, p.columns - WHOLE);
        let columns_left = select(4u, p.columns - there, QUADS_MAY_END);
        b = mat4x4<f32>(
            scaled_across(b_four(b_place(there, k), columns_left), 0u),
            scaled_across(b_four(b_place(there, k + 1u), select(0u, columns_left, left > 1u)), 1u),
            scaled_across(b_four(b_place(there, k + 2u), select(0u, columns_left, left > 2u)), 2u),
            scaled_across(b_four(b_place(there, k + 3u), select(0u, columns_left, left > 3u)), 3u),
        );
    }
    // Written out, since drivers unroll a loop of this size only by luck.
    add_row(0u, k, left, row0, b);
    if WY > 1u {
        add_row(1u, k, left, row0, b);
    }
    if WY > 2u {
        add_row(2u, k, left, row0, b);
        add_row(3u, k, left, row0, b);
    }
    if WY > 4u {
        add_row(4u, k, left, row0, b);
        add_row(5u, k, left, row0, b);
        add_row(6u, k, left, row0, b);
        add_row(7u, k, left, row0, b);
    }
}

// The same of row i. Rows past the edge repeat the last one.
fn add_row(i: u32, k: u32, left: u32, row0: u32, b: mat4x4<f32>) {
    let m = min(row0 + i, p.rows - 1u);
    var a: vec4<f32>;
    if A_ALONG_K {
        a = a_four(a_place(m, k), select(4u, left, QUADS_MAY_END));
    } else {
        a = a_along_k(m, k, left);
    }
    if ROW_SQUARES { // every team adds up all of them
        let own = vec4<u32>(0u, 1u, 2u, 3u) == vec4<u32>(i % 4u);
        acc[ROW_SUMS + i / 4u] += select(vec4<f32>(), vec4<f32>(dot(a, a)), own);
    }
    acc[i] = (((acc[i] + a.x * b[0]) + a.y * b[1]) + a.z * b[2]) + a.w * b[3];
}

// Of HELD_ROWS rows of sums from `first` on: what the invocations of each team have, added up, goes to whom it belongs.
fn add_up(first: u32, lane: u32, team: u32, t: u32) {
    for (var i = 0u; i < HELD_ROWS; i += 1u) { // HELD_ROWS iterations
        if first + i < SUM_ROWS {
            staged[i * THREADS + lane * WX + team] = acc[first + i];
        }
    }
    workgroupBarrier();
    // An eighth of the invocations each add up eight of a team.
    for (var i = t; i < HELD_ROWS * EIGHTH; i += THREADS) { // one iteration
        if first + i / EIGHTH < SUM_ROWS {
            let at = i / EIGHTH * THREADS + i % EIGHTH;
            staged[at] = ((staged[at] + staged[at + EIGHTH]) + (staged[at + 2u * EIGHTH] + staged[at + 3u * EIGHTH]))
                + ((staged[at + 4u * EIGHTH] + staged[at + 5u * EIGHTH])
                + (staged[at + 6u * EIGHTH] + staged[at + 7u * EIGHTH]));
        }
    }
    workgroupBarrier();
    let own = t / WX - first; // wraps where the invocation's row comes before
    if own < min(HELD_ROWS, SUM_ROWS - first) {
        var s = staged[own * THREADS + t % WX];
        for (var i = WX; i < EIGHTH; i += WX) { // WK / 8 - 1 iterations
            s += staged[own * THREADS + i + t % WX];
        }
        if SQUARES && first + own == WY {
            staged_squares[t % WX] = s;
        } else if ROW_SQUARES && first + own >= ROW_SUMS {
            if t % WX == 0u {
                staged_row_squares[first + own - ROW_SUMS] = s;
            }
        } else {
            own_sums = s;
        }
    }
    // The next rows overwrite what slower invocations still read; squares are read by others.
    workgroupBarrier();
}

// own_sums = A·Bᵀ over k_first .. k_end - 1 for the tile at (row0, column0).
fn product(row0: u32, column0: u32, k_first: u32, k_end: u32, t: u32) {
    let team = select(t % WX, t / WK, B_ALONG_K);
    let lane = select(t / WX, t % WK, B_ALONG_K);
    let column = column0 + 4u * team;
    for (var i = 0u; i < SUM_ROWS; i += 1u) {
        acc[i] = vec4<f32>();
    }
    var k = k_first + 4u * lane;
    while k + (AHEAD - 1u) * STRIDE + 4u <= k_end { // split_length / (AHEAD STRIDE) iterations
        add_quad(k, 4u, row0, column);
        add_quad(k + STRIDE, 4u, row0, column);
        if AHEAD == 4u {
            add_quad(k + 2u * STRIDE, 4u, row0, column);
            add_quad(k + 3u * STRIDE, 4u, row0, column);
        }
        k += AHEAD * STRIDE;
    }
    while k < k_end { // at most AHEAD iterations
        add_quad(k, k_end - k, row0, column);
        k += STRIDE;
    }
    add_up(0u, lane, team, t);
    if SUM_ROWS > HELD_ROWS {
        add_up(HELD_ROWS, lane, team, t);
    }
    if SUM_ROWS > 2u * HELD_ROWS {
        add_up(2u * HELD_ROWS, lane, team, t);
    }
}

fn stage_squares(t: u32) {}

fn column_square(c: u32) -> f32 {
    return staged_squares[c / 4u][c % 4u];
}

fn row_square(r: u32) -> f32 {
    return staged_row_squares[r / 4u][r % 4u];
}
