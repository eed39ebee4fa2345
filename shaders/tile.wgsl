// The matrix product in register tiles, from workgroup memory: for GPUs, and for CPUs without subgroups.
// Joined behind product.wgsl.
//
// BK steps of k are staged in workgroup memory at a time.

override A_STAGES: u32 = (BM * BK / 4u + THREADS - 1u) / THREADS;
override B_STAGES: u32 = (BN * BK / 4u + THREADS - 1u) / THREADS; // at most 4

// Sizes of workgroup memory have names, since naga 30 panics where an override is declared behind an array whose size
// is an expression of overrides.
override A_STAGED: u32 = BM * BK;
override B_STAGED: u32 = BN * BK;

const BK = 16u;
const BK4 = BK / 4u;

var<workgroup> staged_as: array<f32, A_STAGED>; // [k][m]
var<workgroup> staged_bs: array<f32, B_STAGED>; // [k][n]

var<private> acc: array<vec4<f32>, 16>; // [m][quad of n]
var<private> squares: array<f32, 4>; // NORM_FUSED: of what this invocation staged of B

// Fetches the scale of one step of k, or of four.
fn prepare_b(k: u32, left: u32) {
    if !SCALED_B {
        return;
    }
    for (var i = 0u; i < 4u; i += 1u) { // 4 iterations
        if i < left {
            step_t[i] = step_scale(k + i, 0u);
            step_m[i] = step_scale(k + i, 1u);
        }
    }
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

// acc = A·Bᵀ over k_first .. k_end - 1 for the tile at (row0, column0).
fn product(row0: u32, column0: u32, k_first: u32, k_end: u32, t: u32) {
    let own_row = t / WX * TM;
    let own_column = t % WX * TN;
    for (var i = 0u; i < TM * QUADS; i += 1u) {
        acc[i] = vec4<f32>();
    }
    for (var k0 = k_first; k0 < k_end; k0 += BK) { // split_length / BK iterations
        for (var stage = 0u; stage < A_STAGES; stage += 1u) {
            let quad = stage * THREADS + t;
            if quad < BM * BK4 {
                if A_ALONG_K {
                    let m = quad / BK4;
                    let k = quad % BK4 * 4u;
                    let left = left_of(k0 + k, k_end, row0 + m < p.rows);
                    let four = a_four(a_place(row0 + m, k0 + k), left);
                    let at = k * BM + m;
                    staged_as[at] = four.x;
                    staged_as[at + BM] = four.y;
                    staged_as[at + 2u * BM] = four.z;
                    staged_as[at + 3u * BM] = four.w;
                } else {
                    let k = quad / (BM / 4u);
                    let m = quad % (BM / 4u) * 4u;
                    let left = left_of(row0 + m, p.rows, k0 + k < k_end);
                    let four = a_four(a_place(row0 + m, k0 + k), left);
                    let at = k * BM + m;
                    staged_as[at] = four.x;
                    staged_as[at + 1u] = four.y;
                    staged_as[at + 2u] = four.z;
                    staged_as[at + 3u] = four.w;
                }
            }
        }
        for (var stage = 0u; stage < B_STAGES; stage += 1u) {
            let quad = stage * THREADS + t;
            if quad < BN * BK4 {
                if B_ALONG_K {
                    let n = quad / BK4;
                    let k = quad % BK4 * 4u;
                    let left = left_of(k0 + k, k_end, column0 + n < p.columns);
                    let raw = b_four(b_place(column0 + n, k0 + k), left);
                    if SQUARES {
                        squares[stage] += dot(raw, raw);
                    }
                    prepare_b(k0 + k, left);
                    let four = scaled_along(raw);
                    let at = k * BN + n;
                    staged_bs[at] = four.x;
                    staged_bs[at + BN] = four.y;
                    staged_bs[at + 2u * BN] = four.z;
                    staged_bs[at + 3u * BN] = four.w;
                } else {
                    let k = quad / (BN / 4u);
                    let n = quad % (BN / 4u) * 4u;
                    let left = left_of(column0 + n, p.columns, k0 + k < k_end);
                    prepare_b(k0 + k, min(left, 1u));
                    let four = scaled_across(b_four(b_place(column0 + n, k0 + k), left), 0u);
                    let at = k * BN + n;
                    staged_bs[at] = four.x;
                    staged_bs[at + 1u] = four.y;
                    staged_bs[at + 2u] = four.z;
                    staged_bs[at + 3u] = four.w;
                }
            }
        }
        workgroupBarrier();
        for (var k = 0u; k < BK; k += 1u) { // BK iterations
            var b: array<vec4<f32>, 2>;
            for (var q = 0u; q < QUADS; q += 1u) {
                let at = k * BN + own_column + 4u * q;
                b[q] = vec4<f32>(staged_bs[at], staged_bs[at + 1u], staged_bs[at + 2u], staged_bs[at + 3u]);
            }
            for (var i = 0u; i < TM; i += 1u) {
                let a = staged_as[k * BM + own_row + i];
                for (var q = 0u; q < QUADS; q += 1u) {
                    acc[i * QUADS + q] += a * b[q];
                }
            }
        }
        // The next step overwrites what slower invocations still read.
        workgroupBarrier();
    }
}

// Norms of the columns of the tile, norm_m * 2^norm_e, found by all invocations together: an invocation takes those from
// first_norm on, SHARE apart, of NORMS. The first of them all belongs to norms_column; own_norms is the invocation's first.
override NORMS: u32 = BN;
override SHARE: u32 = THREADS;
var<workgroup> norm_m: array<f32, NORMS>;
var<workgroup> norm_e: array<i32, NORMS>;

fn first_norm(t: u32) -> u32 {
    return t;
}

fn norms_column(column0: u32, t: u32) -> u32 {
    return column0;
}

fn own_norms(t: u32) -> u32 {
    return t % WX * TN;
}

fn share_norms() {
    workgroupBarrier();
}

// Puts the squares of each invocation where column_square finds them.
fn stage_squares(t: u32) {
    for (var stage = 0u; stage < B_STAGES; stage += 1u) {
        let quad = stage * THREADS + t;
        if quad < BN * BK4 {
            staged_bs[quad] = squares[stage];
        }
    }
    workgroupBarrier();
}

// The sum of squares of column c of the tile.
fn column_square(c: u32) -> f32 {
    var s = 0.0;
    for (var i = 0u; i < BK4; i += 1u) { // 4 iterations
        s += staged_bs[c * BK4 + i];
    }
    return s;
}
