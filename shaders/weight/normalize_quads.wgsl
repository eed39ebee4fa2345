// What normalize.wgsl does, four words at once: tensors of whole quads from an aligned element on, all of one storage
// type. Element e belongs to norm j = e / inner % kept.
// import numbers/wide
//
//   normalize_quads           w = g * v / n̂, or a plain copy
//   normalize_quads_in_place  the same with v in w's place
//   normalize_quads_backward  dv = g / n̂ * (dw - dg * (v / d)), w standing for dv
//   normalize_quads, CENTER   w = v - centers (+ bias): the end of mean-only batch normalization
//
// An invocation takes `each` quads, `run` apart, of a row with one norm, or down the rows of a matrix (outer, kept *
// inner): its quads share their norms.

struct Params {
    row: u32,      // quads of a row
    tasks: u32,    // invocations of a row
    count: u32,    // rows
    run: u32,      // quads from one quad of an invocation to the next; as many invocations stand side by side
    each: u32,     // quads of an invocation, a multiple of 4
    inner: u32,    // elements from one j to the next
    kept: u32,     // norms
    position: u32, // place of the first element within kept * inner
    offsets: u32,   // 8 bits each: the first element of v, w, the scales, dw (CENTER: bias) within its binding
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> v: array<vec4<u32>>; // quads of V_DTYPE
// (kept, 2) or (kept, 4), see norms.wgsl; CENTER: (kept) centers.
@group(0) @binding(1) var<storage, read> scales: array<f32>;
@group(0) @binding(2) var<storage, read_write> w: array<vec4<u32>>; // quads of V_DTYPE
@group(0) @binding(3) var<storage, read> dw: array<vec4<u32>>; // quads of V_DTYPE
@group(0) @binding(4) var<storage, read> bias: array<f32>; // CENTER, HAS_BIAS: (kept)

override V_DTYPE: u32 = F32;
override COPY: bool = false;
override CENTER: bool = false;
override HAS_BIAS: bool = false;
override ONE_EACH: bool = true; // all elements of a quad have one norm
override ADD: bool = false; // add to what dv holds

override WORD: u32 = select(2u, 1u, V_DTYPE == F32); // elements of 32 bits
override QUAD: u32 = 4u * WORD; // elements

const THREADS = 64u;

// A Scale for each element of a quad, or t its center and m its bias: vector 0 for quad_low and 1 for quad_high.
struct Scales {
    t: array<vec4<f32>, 2>,
    m: array<vec4<f32>, 2>,
}

// The Scale of norm j, or its center and bias.
fn scale_at(j: u32, words: u32, skip: u32) -> Scale {
    let first = extractBits(p.offsets, 16u, 8u);
    if !CENTER {
        return Scale(scales[first + words * j + skip], scales[first + words * j + skip + 1u]);
    }
    if HAS_BIAS {
        return Scale(scales[first + j], bias[extractBits(p.offsets, 24u, 8u) + j]);
    }
    return Scale(scales[first + j], 0.0);
}

// The scales of quad q, `words` words of them for a norm, from word `skip` of these on.
fn scales_of(q: u32, words: u32, skip: u32) -> Scales {
    let position = p.position + q * QUAD;
    var i = position % p.inner;
    var j = position / p.inner % p.kept;
    var found = Scales();
    if ONE_EACH {
        let scale = scale_at(j, words, skip);
        for (var n = 0u; n < 2u; n += 1u) { // 2 iterations
            found.t[n] = vec4<f32>(scale.t);
            found.m[n] = vec4<f32>(scale.m);
        }
        return found;
    }
    for (var n = 0u; n < QUAD; n += 1u) { // QUAD iterations
        let scale = scale_at(j, words, skip);
        found.t[n % WORD][n / WORD] = scale.t;
        found.m[n % WORD][n / WORD] = scale.m;
        // (A quad lies within kept * inner.)
        i += 1u;
        j += select(0u, 1u, i == p.inner);
        i = select(i, 0u, i == p.inner);
    }
    return found;
}

// x by vector i of the scales.
fn scaled_four(x: vec4<f32>, s: Scales, i: u32) -> vec4<f32> {
    if !CENTER {
        return ((x * s.t[i]) * s.m[i]) * s.t[i];
    }
    return select(x - s.t[i], x - s.t[i] + s.m[i], HAS_BIAS);
}

// The quads of an invocation: first, first + run, .. below end, `each` of them at most.
struct Part {
    first: u32,
    end: u32,
}

fn part_of(task: u32) -> Part {
    let row = task / p.tasks;
    let own = task % p.tasks;
    let first = own / p.run * (p.run * p.each) + own % p.run;
    if row >= p.count || first >= p.row {
        return Part(0u, 0u);
    }
    return Part(row * p.row + first, (row + 1u) * p.row);
}

fn rescaled(quad: vec4<u32>, s: Scales) -> vec4<u32> {
    if COPY {
        return quad;
    }
    var high = vec4<f32>();
    if V_DTYPE != F32 {
        high = scaled_four(quad_high(quad, V_DTYPE), s, 1u);
    }
    return quad_of(scaled_four(quad_low(quad, V_DTYPE), s, 0u), high, V_DTYPE);
}

// Where quad q of a part is read: past its end the invocation's own first one, which nobody else writes.
fn inside(q: u32, part: Part) -> u32 {
    return select(part.first, q, q < part.end);
}

fn put(q: u32, end: u32, quad: vec4<u32>) {
    if q < end {
        w[extractBits(p.offsets, 8u, 8u) / QUAD + q] = quad;
    }
}

@compute @workgroup_size(THREADS)
fn normalize_quads(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
    let part = part_of(flat(group, groups) * THREADS + t);
    if part.end == 0u {
        return;
    }
    var own: Scales;
    if !COPY {
        own = scales_of(part.first, 2u, 0u);
    }
    let origin = extractBits(p.offsets, 0u, 8u) / QUAD;
    for (var k = 0u; k < p.each; k += 4u) { // each / 4 iterations
        let q = part.first + k * p.run;
        let a = v[origin + inside(q, part)];
        let b = v[origin + inside(q + p.run, part)];
        let c = v[origin + inside(q + 2u * p.run, part)];
        let d = v[origin + inside(q + 3u * p.run, part)];
        put(q, part.end, rescaled(a, own));
        put(q + p.run, part.end, rescaled(b, own));
        put(q + 2u * p.run, part.end, rescaled(c, own));
        put(q + 3u * p.run, part.end, rescaled(d, own));
    }
}

@compute @workgroup_size(THREADS)
fn normalize_quads_in_place(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
    let part = part_of(flat(group, groups) * THREADS + t);
    if part.end == 0u {
        return;
    }
    let own = scales_of(part.first, 2u, 0u);
    let origin = extractBits(p.offsets, 8u, 8u) / QUAD;
    for (var k = 0u; k < p.each; k += 4u) { // each / 4 iterations
        let q = part.first + k * p.run;
        let a = w[origin + inside(q, part)];
        let b = w[origin + inside(q + p.run, part)];
        let c = w[origin + inside(q + 2u * p.run, part)];
        let d = w[origin + inside(q + 3u * p.run, part)];
        put(q, part.end, rescaled(a, own));
        put(q + p.run, part.end, rescaled(b, own));
        put(q + 2u * p.run, part.end, rescaled(c, own));
        put(q + 3u * p.run, part.end, rescaled(d, own));
    }
}

// dv of v and dw; `held` is what dv holds.
fn quad_backward(v: vec4<u32>, dw: vec4<u32>, held: vec4<u32>, scale: Scales, share: Scales) -> vec4<u32> {
    var low = scaled_four(quad_low(dw, V_DTYPE) - scaled_four(quad_low(v, V_DTYPE), share, 0u), scale, 0u);
    var high = vec4<f32>();
    if V_DTYPE != F32 {
        high = scaled_four(quad_high(dw, V_DTYPE) - scaled_four(quad_high(v, V_DTYPE), share, 1u), scale, 1u);
    }
    if ADD {
        low += quad_low(held, V_DTYPE);
        if V_DTYPE != F32 {
            high += quad_high(held, V_DTYPE);
        }
    }
    return quad_of(low, high, V_DTYPE);
}

// What dv holds, if it is added to.
fn held_at(q: u32) -> vec4<u32> {
    if ADD {
        return w[extractBits(p.offsets, 8u, 8u) / QUAD + q];
    }
    return vec4<u32>();
}

@compute @workgroup_size(THREADS)
fn normalize_quads_backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
    let part = part_of(flat(group, groups) * THREADS + t);
    if part.end == 0u {
        return;
    }
    let scale = scales_of(part.first, 4u, 0u);
    let share = scales_of(part.first, 4u, 2u);
    let v_origin = extractBits(p.offsets, 0u, 8u) / QUAD;
    let dw_origin = extractBits(p.offsets, 24u, 8u) / QUAD;
    for (var k = 0u; k < p.each; k += 2u) { // each / 2 iterations
        let q = part.first + k * p.run;
        let r = inside(q + p.run, part);
        let a = v[v_origin + inside(q, part)];
        let b = v[v_origin + r];
        let c = dw[dw_origin + inside(q, part)];
        let d = dw[dw_origin + r];
        put(q, part.end, quad_backward(a, c, held_at(inside(q, part)), scale, share));
        put(q + p.run, part.end, quad_backward(b, d, held_at(r), scale, share));
    }
}
