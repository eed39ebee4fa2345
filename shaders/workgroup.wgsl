// What families share whose invocations meet in workgroup memory. Joined in front of tile.wgsl, stream.wgsl, coop.wgsl.

const ROWS_SHARED = false; // see lanes.wgsl

fn of_lane(own: vec4<f32>, i: u32) -> vec4<f32> {
    return own;
}

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
    return own_column(t) % BN;
}

fn share_norms() {
    workgroupBarrier();
}
