// w = g * v / n̂ for every element, or a plain copy, with a change of storage type where v and w differ.
// Element e belongs to norm j = e / inner % kept.
// import numbers/wide
//
// One invocation per four elements; it owns the words of w they lie in. The half behind the last element stays, and
// so does the first element if it is to be skipped.

struct Params {
    count: u32,       // elements
    inner: u32,       // elements from one j to the next
    kept: u32,        // norms
    position: u32,    // place of the first element that is not skipped, within kept * inner
    skip: u32,        // elements at the start that belong to somebody else: 1 where w starts within a word
    scale_first: u32, // the j whose scale stands first in its binding
    offsets: u32,      // 8 bits each: the first element of v, of w, of the scales' first word within its binding
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> v: array<u32>; // words of V_DTYPE
@group(0) @binding(1) var<storage, read> scales: array<f32>; // (kept, 2): see norms.wgsl, OUT_SCALES
@group(0) @binding(2) var<storage, read_write> w: array<u32>; // words of W_DTYPE

override V_DTYPE: u32 = F32;
override W_DTYPE: u32 = F32;
override COPY: bool = false;

const THREADS = 64u;

fn put(e: u32, value: vec2<f32>, count: u32) {
    let at = extractBits(p.offsets, 8u, 8u) + e;
    if W_DTYPE == F32 {
        w[at] = bitcast<u32>(value.x);
        if count > 1u {
            w[at + 1u] = bitcast<u32>(value.y);
        }
        return;
    }
    var upper = pack(value.y, W_DTYPE) << 16u;
    if count == 1u {
        upper = w[at >> 1u] & 0xffff0000u;
    }
    var lower = pack(value.x, W_DTYPE);
    if e < p.skip {
        lower = w[at >> 1u] & 0xffffu;
    }
    w[at >> 1u] = lower | upper;
}

// The four elements from e on, scaled; those at count and above are not used.
fn scaled_four(e: u32, raw: vec4<f32>) -> vec4<f32> {
    if COPY {
        return raw;
    }
    let first = select(0u, p.skip, e == 0u);
    let position = p.position + e + first - p.skip;
    var i = position % p.inner;
    var j = position / p.inner % p.kept;
    var values = raw;
    for (var n = first; n < 4u; n += 1u) { // at most 4 iterations
        let at = extractBits(p.offsets, 16u, 8u) + 2u * (j - p.scale_first);
        values[n] = scaled(values[n], Scale(scales[at], scales[at + 1u]));
        i += 1u;
        if i == p.inner {
            i = 0u;
            j = select(j + 1u, 0u, j + 1u == p.kept);
        }
        if e + n + 1u >= p.count {
            break;
        }
    }
    return values;
}

fn put_four(e: u32, values: vec4<f32>) {
    put(e, values.xy, p.count - e);
    if e + 2u < p.count {
        put(e + 2u, values.zw, p.count - e - 2u);
    }
}

fn element_of(group: vec3<u32>, groups: vec3<u32>, t: u32) -> u32 {
    return 4u * (flat(group, groups) * THREADS + t);
}

fn v_at(e: u32) -> f32 {
    let at = extractBits(p.offsets, 0u, 8u) + min(e, p.count - 1u);
    return unpack(v[select(at >> 1u, at, V_DTYPE == F32)], at, V_DTYPE);
}

@compute @workgroup_size(THREADS)
fn normalize(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
    let e = element_of(group, groups, t);
    if e < p.count {
        put_four(e, scaled_four(e, vec4<f32>(v_at(e), v_at(e + 1u), v_at(e + 2u), v_at(e + 3u))));
    }
}

fn w_at(e: u32) -> f32 {
    let at = extractBits(p.offsets, 8u, 8u) + min(e, p.count - 1u);
    return unpack(w[select(at >> 1u, at, W_DTYPE == F32)], at, W_DTYPE);
}

// The same with v in w's place: the tensor is bound once.
@compute @workgroup_size(THREADS)
fn normalize_in_place(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
    let e = element_of(group, groups, t);
    if e < p.count {
        put_four(e, scaled_four(e, vec4<f32>(w_at(e), w_at(e + 1u), w_at(e + 2u), w_at(e + 3u))));
    }
}

@group(0) @binding(3) var<storage, read> dw: array<u32>; // words of G_DTYPE

override G_DTYPE: u32 = F32;
override ADD: bool = false; // add to what dv holds

fn dw_at(e: u32) -> f32 {
    let at = extractBits(p.offsets, 24u, 8u) + min(e, p.count - 1u);
    return unpack(dw[select(at >> 1u, at, G_DTYPE == F32)], at, G_DTYPE);
}

// dv = g / n̂ * (dw - dg * (v / d)), w standing for dv. `scales`: (kept, 4), g / n̂ and dg / d (norms.wgsl, DOT).
@compute @workgroup_size(THREADS)
fn normalize_backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
    let e = element_of(group, groups, t);
    if e >= p.count {
        return;
    }
    var values = vec4<f32>();
    for (var n = select(0u, p.skip, e == 0u); n < min(4u, p.count - e); n += 1u) { // at most 4 iterations
        let j = (p.position + e + n - p.skip) / p.inner % p.kept;
        let at = extractBits(p.offsets, 16u, 8u) + 4u * (j - p.scale_first);
        let scale = Scale(scales[at], scales[at + 1u]);
        let share = Scale(scales[at + 2u], scales[at + 3u]);
        values[n] = scaled(dw_at(e + n) - scaled(v_at(e + n), share), scale);
        if ADD {
            values[n] += w_at(e + n);
        }
    }
    put_four(e, values);
}
