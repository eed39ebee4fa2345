// The sums of a workgroup's invocations, added up in a fixed order.
// import numbers/wide

const THREADS = 64u;

var<workgroup> sums: array<f32, THREADS>;
var<workgroup> exponents: array<i32, THREADS>;

// Adds up the sums of the `lanes` invocations that work together, a power of two up to THREADS and the same in the
// whole workgroup; the result is right in their lane 0.
fn combine_lanes(own: Wide, t: u32, lanes: u32) -> Wide {
    var total = own;
    let lane = t % lanes;
    for (var step = lanes / 2u; step > 0u; step /= 2u) { // at most 6 iterations
        // Nobody may overwrite what a slower lane still reads.
        workgroupBarrier();
        sums[t] = total.m;
        exponents[t] = total.e;
        workgroupBarrier();
        if lane < step {
            total = sum_of(total, Wide(sums[t + step], exponents[t + step]));
        }
    }
    return total;
}
