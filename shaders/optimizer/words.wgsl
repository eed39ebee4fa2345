// The optimizer steps of steps.wgsl element by element: v of any length, from any word on. (quads.wgsl: four words at
// once.)
// import optimizer/steps
// import numbers/norm

@group(0) @binding(0) var<storage, read_write> v: array<u32>; // words of V_DTYPE
@group(0) @binding(1) var<storage, read> dv: array<u32>; // words of DV_DTYPE
@group(0) @binding(2) var<storage, read_write> m_v: array<f32>;
@group(0) @binding(3) var<storage, read_write> s_v: array<f32>;
override POLICY: u32 = EPS_CLAMP; // optimizer_rows: of the norm
override LANES: u32 = 64u; // optimizer_rows: invocations of a row, a power of two up to THREADS

override V_PER_WORD: u32 = select(2u, 1u, V_DTYPE == F32);

var<workgroup> sums: array<f32, THREADS>;
var<workgroup> exponents: array<i32, THREADS>;

fn v_word(word: u32) -> u32 {
    return extractBits(p.offsets, 0u, 8u) / V_PER_WORD + word;
}

// One element; all four of these are the same.
fn v_old(e: u32) -> vec4<f32> {
    return vec4<f32>(unpack(v[v_word(e / V_PER_WORD)], e, V_DTYPE));
}

fn v_gradient(e: u32, theta: vec4<f32>) -> vec4<f32> {
    let at = extractBits(p.offsets, 8u, 8u) + e;
    let d = unpack(dv[word_holding(at, DV_DTYPE)], at, DV_DTYPE);
    return decayed(theta, vec4<f32>(d), p.v_decay);
}

fn v_moments(e: u32) -> Moments {
    var ms = Moments();
    if has_m() {
        ms.m = vec4<f32>(m_v[extractBits(p.offsets, 16u, 8u) + e]);
    }
    if has_s() {
        ms.s = vec4<f32>(s_v[extractBits(p.offsets, 24u, 8u) + e]);
    }
    return ms;
}

// One step of element e of v: its new value. m and s are written.
fn v_step(e: u32) -> f32 {
    let theta = v_old(e);
    let d = v_gradient(e, theta);
    var ms = Moments();
    if has_m() {
        ms = moments(v_moments(e), d);
        m_v[extractBits(p.offsets, 16u, 8u) + e] = ms.m.x;
    }
    if has_s() {
        s_v[extractBits(p.offsets, 24u, 8u) + e] = ms.s.x;
    }
    return moved(theta, d, ms, p.v_rate, p.v_decay).x;
}

// The same value again, after v_step wrote m and s.
fn v_step_again(e: u32) -> f32 {
    let theta = v_old(e);
    return moved(theta, v_gradient(e, theta), v_moments(e), p.v_rate, p.v_decay).x;
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

// One step. Each invocation owns every THREADS-th of the WORDS words of its workgroup.
@compute @workgroup_size(THREADS)
fn optimizer(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
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
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
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
        let up = scale_exponent(s);
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
            pair[half] = f32_of(quotient(wide_of(v_step_again(word * V_PER_WORD + half)), norm));
        }
        put_word(word, pair, V_PER_WORD);
    }
}
