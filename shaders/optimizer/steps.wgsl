// Optimizer steps, in place, on a direction v and a gain g together. θ is an element of either, d its gradient:
// import numbers/storage
//
//   RULE_SGD       θ ← θ - rate * d'                               d' = d + decay * θ
//   RULE_MOMENTUM  m ← d' in the first step, then inertia * m + fresh * d';    θ ← θ - rate * m
//   RULE_NESTEROV  the same m;                                     θ ← θ - rate * (d' + inertia * m)
//   RULE_ADAM      m ← (1 - fresh) * m + fresh * d';   s ← (1 - fresh_square) * s + fresh_square * d'²
//                  θ ← θ - rate * m / (sqrt(s) / root + eps)
//   RULE_ADAMW     the same with d' = d and θ ← decay * θ first
//
// where Adam's rate is γ / (1 - β₁ᵗ) and root is sqrt(1 - β₂ᵗ), made by the host in f64, and AdamW's decay is 1 - γλ.
// The first workgroups take v, the others g. Without a gain, or with an ordinary weight or a bias, there is only v.
//
// `optimizer` works element by element, `optimizer_quads` four words at once. `optimizer_rows` gives each row of v
// to LANES invocations and leaves it with norm 1: v ← v / n̂, the norm taken before v is rounded to its storage type.
// No invocation loops more often than the host allows (kernel.rs, MAX_ITERATIONS).

struct Params {
    v_count: u32, // elements of v; optimizer_rows: rows
    g_count: u32, // elements of g
    length: u32,  // optimizer_rows: elements of a row
    offsets: u32, // 8 bits each: the first element of v, dv, m_v, s_v within its binding
    more_offsets: u32, // the same of g, dg, m_g, s_g
    first_step: u32, // RULE_MOMENTUM, RULE_NESTEROV: 1 where m has no value yet
    v_rate: f32,
    v_decay: f32,
    g_rate: f32,
    g_decay: f32,
    inertia: f32,
    fresh: f32,
    fresh_square: f32,
    root: f32,
    eps: f32,
    norm_eps: f32, // optimizer_rows: of the policy
}

var<immediate> p: Params;

@group(0) @binding(4) var<storage, read_write> g: array<u32>; // words of G_DTYPE
@group(0) @binding(5) var<storage, read> dg: array<u32>; // words of DG_DTYPE
@group(0) @binding(6) var<storage, read_write> m_g: array<f32>;
@group(0) @binding(7) var<storage, read_write> s_g: array<f32>;

override V_DTYPE: u32 = F32;
override DV_DTYPE: u32 = F32;
override G_DTYPE: u32 = F32;
override DG_DTYPE: u32 = F32;
override RULE: u32 = RULE_SGD;

const THREADS = 64u;
const WORDS = 4u * THREADS; // of v or g, for a workgroup
const RULE_SGD = 0u;
const RULE_MOMENTUM = 1u;
const RULE_NESTEROV = 2u;
const RULE_ADAM = 3u;
const RULE_ADAMW = 4u;

fn has_m() -> bool {
    return RULE != RULE_SGD;
}

fn has_s() -> bool {
    return RULE == RULE_ADAM || RULE == RULE_ADAMW;
}

// d', the gradients of four elements with the decay in them.
fn decayed(theta: vec4<f32>, d: vec4<f32>, decay: f32) -> vec4<f32> {
    if RULE == RULE_ADAMW {
        return d;
    }
    return d + decay * theta;
}

struct Moments {
    m: vec4<f32>,
    s: vec4<f32>,
}

// The new (m, s).
fn moments(old: Moments, d: vec4<f32>) -> Moments {
    if has_s() {
        let m = (1.0 - p.fresh) * old.m + p.fresh * d;
        return Moments(m, (1.0 - p.fresh_square) * old.s + (p.fresh_square * d) * d);
    }
    if p.first_step != 0u {
        return Moments(d, vec4<f32>());
    }
    return Moments(p.inertia * old.m + p.fresh * d, vec4<f32>());
}

// The new θ, given the new (m, s).
fn moved(theta: vec4<f32>, d: vec4<f32>, ms: Moments, rate: f32, decay: f32) -> vec4<f32> {
    if has_s() {
        let start = select(theta, theta * decay, RULE == RULE_ADAMW);
        // Not max(), which would make a 0 of NaN.
        let square = select(ms.s, vec4<f32>(), ms.s < vec4<f32>());
        return start - rate * (ms.m / (sqrt(square) / p.root + p.eps));
    }
    if RULE == RULE_MOMENTUM {
        return theta - rate * ms.m;
    }
    return theta - rate * (d + p.inertia * ms.m);
}

// The word that holds element e of g.
fn g_word(e: u32) -> u32 {
    return word_holding(extractBits(p.more_offsets, 0u, 8u) + e, G_DTYPE);
}

// One step of element e of g: its new value. m and s are written.
fn g_step(e: u32) -> f32 {
    let at_d = extractBits(p.more_offsets, 8u, 8u) + e;
    let at_m = extractBits(p.more_offsets, 16u, 8u) + e;
    let at_s = extractBits(p.more_offsets, 24u, 8u) + e;
    let theta = vec4<f32>(unpack(g[g_word(e)], e, G_DTYPE));
    let gradient = unpack(dg[word_holding(at_d, DG_DTYPE)], at_d, DG_DTYPE);
    let d = decayed(theta, vec4<f32>(gradient), p.g_decay);
    var ms = Moments();
    if has_s() {
        ms = moments(Moments(vec4<f32>(m_g[at_m]), vec4<f32>(s_g[at_s])), d);
        s_g[at_s] = ms.s.x;
    } else if has_m() {
        ms = moments(Moments(vec4<f32>(m_g[at_m]), vec4<f32>()), d);
    }
    if has_m() {
        m_g[at_m] = ms.m.x;
    }
    return moved(theta, d, ms, p.g_rate, p.g_decay).x;
}

// Words begin, begin + THREADS, .. of g, each of which one invocation owns. g starts with a whole word; the half behind
// its last element stays.
fn g_steps(begin: u32) {
    for (var i = 0u; i < WORDS; i += THREADS) { // 4 iterations
        let e = (begin + i) * select(2u, 1u, G_DTYPE == F32);
        if e >= p.g_count {
            return;
        }
        let at = g_word(e);
        if G_DTYPE == F32 {
            g[at] = bitcast<u32>(g_step(e));
            continue;
        }
        let lower = pack(g_step(e), G_DTYPE);
        var upper = g[at] & 0xffff0000u;
        if e + 1u < p.g_count {
            upper = pack(g_step(e + 1u), G_DTYPE) << 16u;
        }
        g[at] = lower | upper;
    }
}
