// The optimizer steps of steps.wgsl four words at once: v of whole quads, v, dv, m_v and s_v from an aligned
// element on, dv of v's storage type. (words.wgsl: all else.)
// import optimizer/steps

@group(0) @binding(0) var<storage, read_write> v: array<vec4<u32>>; // quads of V_DTYPE
@group(0) @binding(1) var<storage, read> dv: array<vec4<u32>>; // quads of V_DTYPE
@group(0) @binding(2) var<storage, read_write> m_v: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> s_v: array<vec4<u32>>;

override RUN: u32 = 64u; // neighbouring invocations that take neighbouring quads
override QUAD: u32 = select(8u, 4u, V_DTYPE == F32); // elements
override BESIDE: u32 = QUAD / 4u; // quads of m_v or s_v beside one of v

const EACH = 4u; // quads of an invocation

// One step of a quad: of its elements, or of the even or the odd ones.
fn stepped(theta: vec4<f32>, d: vec4<f32>, old: Moments) -> Moved {
    let own = decayed(theta, d, p.v_decay);
    var ms = Moments();
    if has_m() {
        ms = moments(old, own);
    }
    return Moved(moved(theta, own, ms, p.v_rate, p.v_decay), ms);
}

struct Moved {
    theta: vec4<f32>,
    ms: Moments,
}

fn quad_step(q: u32) {
    let at = extractBits(p.offsets, 0u, 8u) / QUAD + q;
    let at_m = extractBits(p.offsets, 16u, 8u) / 4u + q * BESIDE;
    let at_s = extractBits(p.offsets, 24u, 8u) / 4u + q * BESIDE;
    let old = v[at];
    let d = dv[extractBits(p.offsets, 8u, 8u) / QUAD + q];
    var first = Moments();
    var second = Moments();
    if has_m() {
        first.m = bitcast<vec4<f32>>(m_v[at_m]);
    }
    if has_s() {
        first.s = bitcast<vec4<f32>>(s_v[at_s]);
    }
    if V_DTYPE == F32 {
        let next = stepped(quad_low(old, V_DTYPE), quad_low(d, V_DTYPE), first);
        if has_m() {
            m_v[at_m] = bitcast<vec4<u32>>(next.ms.m);
        }
        if has_s() {
            s_v[at_s] = bitcast<vec4<u32>>(next.ms.s);
        }
        v[at] = quad_of(next.theta, vec4<f32>(), V_DTYPE);
        return;
    }
    if has_m() {
        second.m = bitcast<vec4<f32>>(m_v[at_m + 1u]);
    }
    if has_s() {
        second.s = bitcast<vec4<f32>>(s_v[at_s + 1u]);
    }
    let low = stepped(quad_low(old, V_DTYPE), quad_low(d, V_DTYPE), even_of(first, second));
    let high = stepped(quad_high(old, V_DTYPE), quad_high(d, V_DTYPE), odd_of(first, second));
    if has_m() {
        m_v[at_m] = bitcast<vec4<u32>>(vec4<f32>(low.ms.m.x, high.ms.m.x, low.ms.m.y, high.ms.m.y));
        m_v[at_m + 1u] = bitcast<vec4<u32>>(vec4<f32>(low.ms.m.z, high.ms.m.z, low.ms.m.w, high.ms.m.w));
    }
    if has_s() {
        s_v[at_s] = bitcast<vec4<u32>>(vec4<f32>(low.ms.s.x, high.ms.s.x, low.ms.s.y, high.ms.s.y));
        s_v[at_s + 1u] = bitcast<vec4<u32>>(vec4<f32>(low.ms.s.z, high.ms.s.z, low.ms.s.w, high.ms.s.w));
    }
    v[at] = quad_of(low.theta, high.theta, V_DTYPE);
}

fn even_of(a: Moments, b: Moments) -> Moments {
    return Moments(vec4<f32>(a.m.xz, b.m.xz), vec4<f32>(a.s.xz, b.s.xz));
}

fn odd_of(a: Moments, b: Moments) -> Moments {
    return Moments(vec4<f32>(a.m.yw, b.m.yw), vec4<f32>(a.s.yw, b.s.yw));
}

// One step.
@compute @workgroup_size(THREADS)
fn optimizer_quads(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
    let quads = p.v_count / QUAD;
    let v_groups = (quads + THREADS * EACH - 1u) / (THREADS * EACH);
    let id = flat(group, groups);
    if id >= v_groups {
        g_steps((id - v_groups) * WORDS + t);
        return;
    }
    let first = id * THREADS * EACH + t / RUN * (RUN * EACH) + t % RUN;
    for (var k = 0u; k < EACH; k += 1u) { // EACH iterations
        let q = first + k * RUN;
        if q < quads {
            quad_step(q);
        }
    }
}
