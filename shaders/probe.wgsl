// What an adapter can do at most: the roof that kernels are held against.
//
//   probe_copy          results[i] = source[i]
//   probe_read          sums[t] = sum of the PER vectors of source that invocation t reads
//   probe_multiply_add  x = x * scale + offset, in CHAINS chains that do not depend on each other
//
// A workgroup takes THREADS * PER vectors that lie together, THREADS at a time. The host sees to it that every workgroup
// has all of its vectors.

struct Params {
    groups: u32,
    scale: f32,  // below 1, so that the chains stay finite
    offset: f32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> source: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> results: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> sums: array<f32>; // (groups, THREADS)

const THREADS = 64u;
const PER = 16u;
const ROUNDS = 512u; // of 4 steps in each chain

// fma() or a product and a sum: drivers differ in which of them is fast.
override FUSED: bool = false;

fn group_of(id: vec3<u32>, count: vec3<u32>) -> u32 {
    return (id.z * count.y + id.y) * count.x + id.x;
}

@compute @workgroup_size(THREADS)
fn probe_copy(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let group = group_of(id, count);
    if group >= p.groups {
        return;
    }
    let first = group * THREADS * PER + t;
    for (var i = 0u; i < PER; i++) {
        results[first + i * THREADS] = source[first + i * THREADS];
    }
}

@compute @workgroup_size(THREADS)
fn probe_read(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let group = group_of(id, count);
    if group >= p.groups {
        return;
    }
    let first = group * THREADS * PER + t;
    var sum = vec4<f32>();
    for (var i = 0u; i < PER; i++) {
        sum += source[first + i * THREADS];
    }
    sums[group * THREADS + t] = sum.x + sum.y + sum.z + sum.w;
}

fn step(x: vec4<f32>) -> vec4<f32> {
    if FUSED {
        return fma(x, vec4(p.scale), vec4(p.offset));
    }
    return x * p.scale + p.offset;
}

// CHAINS is 12: enough to hide the latency of a multiply-add, few enough for 16 registers.
@compute @workgroup_size(THREADS)
fn probe_multiply_add(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let group = group_of(id, count);
    if group >= p.groups {
        return;
    }
    var x = vec4(f32(t)) + vec4(1.0, 2.0, 3.0, 4.0);
    var y = x + 5.0;
    var z = x + 10.0;
    for (var i = 0u; i < ROUNDS; i++) { // 512 iterations
        x = step(x);
        y = step(y);
        z = step(z);
        x = step(x);
        y = step(y);
        z = step(z);
        x = step(x);
        y = step(y);
        z = step(z);
        x = step(x);
        y = step(y);
        z = step(z);
    }
    let all = x + y + z;
    sums[group * THREADS + t] = all.x + all.y + all.z + all.w;
}
