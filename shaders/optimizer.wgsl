// Optimizer steps, in place, on a direction v and a gain g together. θ is an element of either, d its gradient:
//
//   KIND_SGD       θ ← θ - rate * d'                               d' = d + decay * θ
//   KIND_MOMENTUM  m ← d' in the first step, then inertia * m + fresh * d';    θ ← θ - rate * m
//   KIND_NESTEROV  the same m;                                     θ ← θ - rate * (d' + inertia * m)
//   KIND_ADAM      m ← (1 - fresh) * m + fresh * d';   s ← (1 - fresh_square) * s + fresh_square * d'²
//                  θ ← θ - rate * m / (sqrt(s) / root + eps)
//   KIND_ADAMW     the same with d' = d and θ ← decay * θ first
//
// where Adam's rate is γ / (1 - β₁ᵗ) and root is sqrt(1 - β₂ᵗ), made by the host in f64, and AdamW's decay is 1 - γλ.
// The first workgroups take v, the others g. Without a gain, or with an ordinary weight or a bias, there is only v.
//
// `optimizer` works element by element. `optimizer_rows` gives each row of v to LANES invocations and leaves it with
// norm 1: v ← v / n̂, the norm taken before v is rounded to its storage type.
// No invocation loops more often than the host allows (kernel.rs, MAX_ITERATIONS).

struct Params {
    v_count: u32, // elements of v; optimizer_rows: rows
    g_count: u32, // elements of g
    length: u32,  // optimizer_rows: elements of a row
    firsts: u32,  // 8 bits each: the first element of v, dv, m_v, s_v within its binding
    more_firsts: u32, // the same of g, dg, m_g, s_g
    first_step: u32, // KIND_MOMENTUM, KIND_NESTEROV: 1 where m has no value yet
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

@group(0) @binding(0) var<storage, read_write> v: array<u32>; // words of V_DTYPE
@group(0) @binding(1) var<storage, read> dv: array<u32>; // words of DV_DTYPE
@group(0) @binding(2) var<storage, read_write> m_v: array<f32>;
@group(0) @binding(3) var<storage, read_write> s_v: array<f32>;
@group(0) @binding(4) var<storage, read_write> g: array<f32>;
@group(0) @binding(5) var<storage, read> dg: array<f32>;
@group(0) @binding(6) var<storage, read_write> m_g: array<f32>;
@group(0) @binding(7) var<storage, read_write> s_g: array<f32>;

override V_DTYPE: u32 = F32;
override DV_DTYPE: u32 = F32;
override KIND: u32 = KIND_SGD;
override POLICY: u32 = EPS_CLAMP; // optimizer_rows: of the norm
override LANES: u32 = 64u; // invocations of a row, a power of two up to THREADS

override V_PER_WORD: u32 = select(2u, 1u, V_DTYPE == F32);

const THREADS = 64u;
const WORDS = 4u * THREADS; // of v or g, for a workgroup
const KIND_SGD = 0u;
const KIND_MOMENTUM = 1u;
const KIND_NESTEROV = 2u;
const KIND_ADAM = 3u;
const KIND_ADAMW = 4u;

var<workgroup> sums: array<f32, THREADS>;
var<workgroup> exponents: array<i32, THREADS>;

fn has_m() -> bool {
    return KIND != KIND_SGD;
}

fn has_s() -> bool {
    return KIND == KIND_ADAM || KIND == KIND_ADAMW;
}

// d', the gradient with the decay in it.
fn decayed(theta: f32, d: f32, decay: f32) -> f32 {
    if KIND == KIND_ADAMW {
        return d;
    }
    return d + decay * theta;
}

// The new (m, s).
fn moments(old: vec2<f32>, d: f32) -> vec2<f32> {
    if has_s() {
        let m = (1.0 - p.fresh) * old.x + p.fresh * d;
        return vec2<f32>(m, (1.0 - p.fresh_square) * old.y + (p.fresh_square * d) * d);
    }
    if p.first_step != 0u {
        return vec2<f32>(d, 0.0);
    }
    return vec2<f32>(p.inertia * old.x + p.fresh * d, 0.0);
}

// The new θ, given the new (m, s).
fn moved(theta: f32, d: f32, ms: vec2<f32>, rate: f32, decay: f32) -> f32 {
    if has_s() {
        let start = select(theta, theta * decay, KIND == KIND_ADAMW);
        // Not max(), which would make a 0 of NaN.
        let square = select(ms.y, 0.0, ms.y < 0.0);
        return start - rate * (ms.x / (sqrt(square) / p.root + p.eps));
    }
    if KIND == KIND_MOMENTUM {
        return theta - rate * ms.x;
    }
    return theta - rate * (d + p.inertia * ms.x);
}

fn v_word(word: u32) -> u32 {
    return extractBits(p.firsts, 0u, 8u) / V_PER_WORD + word;
}

fn v_old(e: u32) -> f32 {
    return unpack(v[v_word(e / V_PER_WORD)], e, V_DTYPE);
}

fn v_gradient(e: u32, theta: f32) -> f32 {
    let at = extractBits(p.firsts, 8u, 8u) + e;
    return decayed(theta, unpack(dv[select(at >> 1u, at, DV_DTYPE == F32)], at, DV_DTYPE), p.v_decay);
}

fn v_moments(e: u32) -> vec2<f32> {
    var ms = vec2<f32>();
    if has_m() {
        ms.x = m_v[extractBits(p.firsts, 16u, 8u) + e];
    }
    if has_s() {
        ms.y = s_v[extractBits(p.firsts, 24u, 8u) + e];
    }
    return ms;
}

// One step of element e of v: its new value. m and s are written.
fn v_step(e: u32) -> f32 {
    let theta = v_old(e);
    let d = v_gradient(e, theta);
    var ms = vec2<f32>();
    if has_m() {
        ms = moments(v_moments(e), d);
        m_v[extractBits(p.firsts, 16u, 8u) + e] = ms.x;
    }
    if has_s() {
        s_v[extractBits(p.firsts, 24u, 8u) + e] = ms.y;
    }
    return moved(theta, d, ms, p.v_rate, p.v_decay);
}

// The same value again, after v_step wrote m and s.
fn v_step_again(e: u32) -> f32 {
    let theta = v_old(e);
    return moved(theta, v_gradient(e, theta), v_moments(e), p.v_rate, p.v_decay);
}

// The first `count` elements of a word of v. The half behind the last element stays.
fn put_word(word: u32, pair: vec2<f32>, count: u32) {
    let at = v_word(word);
    if V_DTYPE == F32 {
        v[at] = bitcast<u32>(pair.x);
        return;
    }
    var upper = pack(pair.y, V_DTYPE) << 16u;
    if count == 1u {
        upper = v[at] & 0xffff0000u;
    }
    v[at] = pack(pair.x, V_DTYPE) | upper;
}

// Words begin, begin + THREADS, .. of g.
fn g_steps(begin: u32) {
    for (var i = 0u; i < WORDS; i += THREADS) { // 4 iterations
        let e = begin + i;
        if e >= p.g_count {
            return;
        }
        let at = extractBits(p.more_firsts, 0u, 8u) + e;
        let at_m = extractBits(p.more_firsts, 16u, 8u) + e;
        let at_s = extractBits(p.more_firsts, 24u, 8u) + e;
        let theta = g[at];
        let d = decayed(theta, dg[extractBits(p.more_firsts, 8u, 8u) + e], p.g_decay);
        var ms = vec2<f32>();
        if has_s() {
            ms = moments(vec2<f32>(m_g[at_m], s_g[at_s]), d);
            s_g[at_s] = ms.y;
        } else if has_m() {
            ms = moments(vec2<f32>(m_g[at_m], 0.0), d);
        }
        if has_m() {
            m_g[at_m] = ms.x;
        }
        g[at] = moved(theta, d, ms, p.g_rate, p.g_decay);
    }
}

// One step. Each invocation owns every THREADS-th of the WORDS words of its workgroup.
@compute @workgroup_size(THREADS)
fn optimizer(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let words = (p.v_count + V_PER_WORD - 1u) / V_PER_WORD;
    let v_groups = (words + WORDS - 1u) / WORDS;
    let id = flat(group, groups);
    if id >= v_groups {
        g_steps((id - v_groups) * WORDS + t);
        return;
    }
    for (var i = 0u; i < WORDS; i += THREADS) { // 4 iterations
        let word = id * WORDS + t + i;
        if word >= words {
            return;
        }
        let e = word * V_PER_WORD;
        let count = min(p.v_count - e, V_PER_WORD);
        var pair = vec2<f32>();
        for (var half = 0u; half < count; half += 1u) { // at most 2 iterations
            pair[half] = v_step(e + half);
        }
        put_word(word, pair, count);
    }
}

// The sum of squares of the row, added up by each of its invocations in the same order.
fn row_sum(own: Wide, t: u32) -> Wide {
    sums[t] = own.m;
    exponents[t] = own.e;
    // Everybody reads what everybody wrote.
    workgroupBarrier();
    let begin = t / LANES * LANES;
    var total = Wide(0.0, NOTHING);
    for (var lane = 0u; lane < LANES; lane += 1u) { // LANES iterations
        total = sum_of(total, Wide(sums[begin + lane], exponents[begin + lane]));
    }
    return total;
}

// One step, and rows of v with norm 1. LANES invocations a row, THREADS / LANES rows a workgroup; every word belongs to
// one row. An invocation reads and writes the same words of v, m and s throughout, so that it needs no storage barrier;
// it forms the new v twice rather than keep it.
@compute @workgroup_size(THREADS)
fn optimizer_rows(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let rows = THREADS / LANES;
    let v_groups = (p.v_count + rows - 1u) / rows;
    let id = flat(group, groups);
    if id >= v_groups {
        g_steps((id - v_groups) * WORDS + t);
    }
    let words = p.length / V_PER_WORD;
    let row = id * rows + t / LANES;
    let mine = id < v_groups && row < p.v_count;
    let begin = row * words + t % LANES;
    let end = select(0u, (row + 1u) * words, mine);
    var own = Wide(0.0, NOTHING);
    if mine {
        var s = 0.0;
        for (var word = begin; word < end; word += LANES) { // words / LANES iterations
            for (var half = 0u; half < V_PER_WORD; half += 1u) { // at most 2 iterations
                let a = v_step(word * V_PER_WORD + half);
                s += a * a;
            }
        }
        let up = lift(s);
        if up != 0 {
            s = 0.0;
            for (var word = begin; word < end; word += LANES) { // words / LANES iterations
                for (var half = 0u; half < V_PER_WORD; half += 1u) { // at most 2 iterations
                    let a = v_step_again(word * V_PER_WORD + half) * exp2i(up);
                    s += a * a;
                }
            }
        }
        own = Wide(s, -2 * up);
    }
    let norm = effective_norm(row_sum(own, t), POLICY, p.norm_eps);
    for (var word = begin; word < end; word += LANES) { // words / LANES iterations
        var pair = vec2<f32>();
        for (var half = 0u; half < V_PER_WORD; half += 1u) { // at most 2 iterations
            pair[half] = narrow(quotient(wide(v_step_again(word * V_PER_WORD + half)), norm));
        }
        put_word(word, pair, V_PER_WORD);
    }
}
