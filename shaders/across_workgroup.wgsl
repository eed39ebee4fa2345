// How normalize_rows.wgsl adds up between the lanes of a row: through workgroup memory.

override SUMS: u32 = 2u * THREADS;

var<workgroup> sums: array<f32, SUMS>;
var<workgroup> left: array<u32, THREADS>; // 1: the row was not plain
var<workgroup> any_left: u32;

// The sum over the lanes of a row, the same in each; `half` is 0 and 1 in turn, so that nobody overwrites what a slower
// lane still reads.
fn sum_of_lanes(own: f32, t: u32, half: u32) -> f32 {
    if LANES == 1u {
        return own;
    }
    sums[half * THREADS + t] = own;
    workgroupBarrier();
    let begin = half * THREADS + t / LANES * LANES;
    if LANES == 2u {
        return sums[begin] + sums[begin + 1u];
    }
    var sum = vec4<f32>();
    for (var lane = begin; lane < begin + LANES; lane += 4u) { // LANES / 4 iterations
        sum += vec4<f32>(sums[lane], sums[lane + 1u], sums[lane + 2u], sums[lane + 3u]);
    }
    return total_of(sum);
}

// Whether a row of the workgroup is left.
fn is_any_left(own: bool, t: u32) -> bool {
    left[t] = select(0u, 1u, own);
    workgroupBarrier();
    if t == 0u {
        var found = 0u;
        for (var i = 0u; i < THREADS; i += LANES) { // THREADS / LANES iterations
            found |= left[i];
        }
        any_left = found;
    }
    return workgroupUniformLoad(&any_left) != 0u;
}
