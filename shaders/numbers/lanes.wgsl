// The sums of a workgroup's invocations, added up in a fixed order.
// import numbers/wide

const THREADS = 64u;
const PLACES = 4u;

var<workgroup> sums: array<f32, 256>; // PLACES of THREADS each
var<workgroup> exponents: array<i32, THREADS>;

// The sum over the `lanes` invocations that work together, a power of two up to THREADS and the same in the whole
// workgroup; the same in each of them. One barrier: `place` is another one than that of the last call, so that nobody
// overwrites what a slower lane still reads.
fn sum_of_lanes(own: f32, t: u32, lanes: u32, place: u32) -> f32 {
    if lanes == 1u {
        return own;
    }
    sums[place * THREADS + t] = own;
    workgroupBarrier();
    let begin = place * THREADS + t / lanes * lanes;
    if lanes == 2u {
        return sums[begin] + sums[begin + 1u];
    }
    var sum = vec4<f32>();
    for (var lane = begin; lane < begin + lanes; lane += 4u) { // at most 16 iterations
        sum += vec4<f32>(sums[lane], sums[lane + 1u], sums[lane + 2u], sums[lane + 3u]);
    }
    return (sum.x + sum.y) + (sum.z + sum.w);
}

// The same of wide numbers; the result is right in their lane 0.
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

// The same, right in all of them.
fn combine_for_all(own: Wide, t: u32, lanes: u32) -> Wide {
    let total = combine_lanes(own, t, lanes);
    workgroupBarrier();
    sums[t] = total.m;
    exponents[t] = total.e;
    workgroupBarrier();
    let first = t / lanes * lanes;
    return Wide(sums[first], exponents[first]);
}

var<workgroup> bits: array<u32, THREADS>;
var<workgroup> any_bits: u32;

// The bits that any invocation has, in all of them.
fn any_of_lanes(own: u32, t: u32) -> u32 {
    bits[t] = own;
    workgroupBarrier();
    if t == 0u {
        var found = 0u;
        for (var i = 0u; i < THREADS; i += 1u) { // THREADS iterations
            found |= bits[i];
        }
        any_bits = found;
    }
    return workgroupUniformLoad(&any_bits);
}
