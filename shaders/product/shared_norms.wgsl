// What families share whose invocations meet in workgroup memory: scales of B, and the norms of a tile's columns.
// import product/shape

// Fetches the scales of the four steps from k on. Those behind k_end are those of the last.
fn prepare_b(k: u32, k_end: u32) {
    if !SCALED_B {
        return;
    }
    let last = k_end - 1u;
    let at = vec4<u32>(min(k, last), min(k + 1u, last), min(k + 2u, last), min(k + 3u, last));
    let scales = transpose(mat4x2<f32>(step_scale(at.x), step_scale(at.y), step_scale(at.z), step_scale(at.w)));
    step_t = scales[0];
    step_m = scales[1];
}

// Norms of the columns of the tile, norm_m * 2^norm_e, found by all invocations together: an invocation takes those
// from first_norm on, SHARE apart, of NORMS. The first of them all belongs to norms_column; own_norms, of the
// family, is the invocation's first.
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

fn share_norms() {
    workgroupBarrier();
}
