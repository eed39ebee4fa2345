// What an adapter can do at most: the roof that kernels are held against.
// import numbers/storage
//
//   probe_copy          results[i] = source[i]
//   probe_read          sums[t] = sum of the PER vectors of source that invocation t reads
//   probe_multiply_add  x = x * scale + offset, in twelve chains that do not depend on each other
//
// A workgroup takes THREADS * PER vectors that lie together. The host sees to it that every workgroup has all of its
// vectors.

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
const PER = 8u;
const ROUNDS = 128u; // of 16 steps in each chain

// The vectors of an invocation lie together, as CPUs like it; else those of its neighbours.
override CONTIGUOUS: bool = false;
override FUSED: bool = false;      // fma(), or a product and a sum: drivers differ in which of them is fast

fn group_of(id: vec3<u32>, count: vec3<u32>) -> u32 {
    return (id.z * count.y + id.y) * count.x + id.x;
}

// The i-th vector of invocation t.
fn vector(group: u32, t: u32, i: u32) -> u32 {
    return group * THREADS * PER + select(t + i * THREADS, t * PER + i, CONTIGUOUS);
}

@compute @workgroup_size(THREADS)
fn probe_copy(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
    let group = group_of(id, count);
    if group >= p.groups {
        return;
    }
    for (var i = 0u; i < PER; i++) { // 8 iterations
        let at = vector(group, t, i);
        results[at] = source[at];
    }
}

@compute @workgroup_size(THREADS)
fn probe_read(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
    let group = group_of(id, count);
    if group >= p.groups {
        return;
    }
    var sum = vec4<f32>();
    for (var i = 0u; i < PER; i++) { // 8 iterations
        sum += source[vector(group, t, i)];
    }
    sums[group * THREADS + t] = sum.x + sum.y + sum.z + sum.w;
}

// Three vectors of chains: enough to hide the latency of a multiply-add, few enough for 16 registers.
struct Chains {
    x: vec4<f32>,
    y: vec4<f32>,
    z: vec4<f32>,
}

fn multiply_add(x: vec4<f32>, scale: f32, offset: f32) -> vec4<f32> {
    if FUSED {
        return fma(x, vec4(scale), vec4(offset));
    }
    return x * scale + offset;
}

fn step(c: Chains, a: f32, b: f32) -> Chains {
    return Chains(multiply_add(c.x, a, b), multiply_add(c.y, a, b), multiply_add(c.z, a, b));
}

fn four_steps(c: Chains, a: f32, b: f32) -> Chains {
    return step(step(step(step(c, a, b), a, b), a, b), a, b);
}

@compute @workgroup_size(THREADS)
fn probe_multiply_add(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
    let group = group_of(id, count);
    if group >= p.groups {
        return;
    }
    let first = vec4(f32(t)) + vec4(1.0, 2.0, 3.0, 4.0);
    var c = Chains(first, first + 5.0, first + 10.0);
    let a = p.scale;
    let b = p.offset;
    for (var i = 0u; i < ROUNDS; i++) { // 128 iterations
        c = four_steps(four_steps(four_steps(four_steps(c, a, b), a, b), a, b), a, b);
    }
    let all = c.x + c.y + c.z;
    sums[group * THREADS + t] = all.x + all.y + all.z + all.w;
}
