// What is done to every element of a weight, given what its norm is to it.
// import weight/elements
// import numbers/lanes
//
//   SCALE     w = g * v / n̂, or with IN_PLACE the same with v in w's place
//   BACKWARD  dv = g / n̂ * (dw - dg * (v / d)), w standing for dv
//   COPY      w = v
//   CENTER    w = v - center + bias: the end of mean-only batch normalization
//
// w is written in whole units, and word by word at the ends; what lies in its words besides stays.

@group(0) @binding(3) var<storage, read> bias: array<f32>; // CENTER
@group(0) @binding(4) var<storage, read> centers: array<f32>; // CENTER
@group(0) @binding(5) var<storage, read> scales: array<vec2<f32>>; // Scale g / n̂; BACKWARD: and dg / d

override ACTION: u32 = SCALE;
override IN_PLACE: bool = false;

const SCALE = 0u;
const BACKWARD = 1u;
const COPY = 2u;
const CENTER = 3u;

// What a norm is to an element: its Scale (t, m), and that of the share of v in dv. CENTER: center and bias.
struct Factors {
    own: vec2<f32>,
    share: vec2<f32>,
}

fn factors_of(m: Member, j: u32) -> Factors {
    if ACTION == COPY {
        return Factors();
    }
    if ACTION == BACKWARD {
        return Factors(scales[m.out + 2u * j], scales[m.out + 2u * j + 1u]);
    }
    if ACTION == CENTER {
        if (m.flags & HAS_GAIN) == 0u {
            return Factors(vec2<f32>(centers[m.out + j], 0.0), vec2<f32>());
        }
        return Factors(vec2<f32>(centers[m.out + j], bias[m.g + j]), vec2<f32>());
    }
    return Factors(scales[m.out + j], vec2<f32>());
}

// Those of the elements of a unit.
struct UnitFactors {
    t: Unit,
    m: Unit,
    share_t: Unit,
    share_m: Unit,
}

// An element within its norm, and the norm.
struct Position {
    i: u32,
    j: u32,
}

fn position_of(item: Rescale, e: u32) -> Position {
    let position = item.position + e;
    return Position(position % item.inner, position / item.inner % item.kept);
}

// Further on by fewer than `inner` elements and `kept` norms, without a division.
fn moved(item: Rescale, start: Position, by: Position) -> Position {
    let to = start.i + by.i;
    let norm = start.j + by.j + select(0u, 1u, to >= item.inner);
    return Position(
        to - select(0u, item.inner, to >= item.inner),
        norm - select(0u, item.kept, norm >= item.kept),
    );
}

fn unit_factors(item: Rescale, at: Position) -> UnitFactors {
    let m = item.member;
    var found: UnitFactors;
    if has(m, WHOLE, ALL_WHOLE) {
        let f = factors_of(m, at.j);
        let t = vec4<f32>(f.own.x);
        let share_t = vec4<f32>(f.share.x);
        found.t = Unit(t, t);
        found.m = Unit(vec4<f32>(f.own.y), vec4<f32>(f.own.y));
        found.share_t = Unit(share_t, share_t);
        found.share_m = Unit(vec4<f32>(f.share.y), vec4<f32>(f.share.y));
        return found;
    }
    var element = at;
    for (var n = 0u; n < 4u; n += 1u) { // 4 iterations
        var f = factors_of(m, element.j);
        found.t.low[n] = f.own.x;
        found.m.low[n] = f.own.y;
        found.share_t.low[n] = f.share.x;
        found.share_m.low[n] = f.share.y;
        element = moved(item, element, Position(1u % item.inner, 1u / item.inner));
        if UNIT != 4u {
            f = factors_of(m, element.j);
            found.t.high[n] = f.own.x;
            found.m.high[n] = f.own.y;
            found.share_t.high[n] = f.share.x;
            found.share_m.high[n] = f.share.y;
            element = moved(item, element, Position(1u % item.inner, 1u / item.inner));
        }
    }
    return found;
}

// What is read of unit u: what stands to be scaled, v beside dw, and what dv holds.
struct Inputs {
    x: Unit,
    v: Unit,
    dv: Unit,
}

fn inputs_of(m: Member, u: u32) -> Inputs {
    var found = Inputs();
    if ACTION == BACKWARD {
        found.x = dw_unit(m, u);
        found.v = v_unit(m, u);
        if ADD {
            found.dv = w_unit(m, u);
        }
    } else if IN_PLACE {
        found.x = w_unit(m, u);
    } else {
        found.x = v_unit(m, u);
    }
    return found;
}

fn four_scaled(x: vec4<f32>, t: vec4<f32>, m: vec4<f32>) -> vec4<f32> {
    return ((x * t) * m) * t;
}

fn result_of(x: vec4<f32>, t: vec4<f32>, m: vec4<f32>) -> vec4<f32> {
    if ACTION == COPY {
        return x;
    }
    if ACTION == CENTER {
        return x - t + m;
    }
    return four_scaled(x, t, m);
}

fn without_share(x: vec4<f32>, v: vec4<f32>, t: vec4<f32>, m: vec4<f32>) -> vec4<f32> {
    if ACTION == BACKWARD {
        return x - four_scaled(v, t, m);
    }
    return x;
}

fn put_result(m: Member, u: u32, read: Inputs, f: UnitFactors) {
    var result = Unit();
    result.low = result_of(without_share(read.x.low, read.v.low, f.share_t.low, f.share_m.low), f.t.low, f.m.low);
    if UNIT != 4u {
        let x = without_share(read.x.high, read.v.high, f.share_t.high, f.share_m.high);
        result.high = result_of(x, f.t.high, f.m.high);
    }
    if ACTION == BACKWARD && ADD {
        result.low += read.dv.low;
        result.high += read.dv.high;
    }
    put_unit(m, u, result);
}

// Element e alone.
fn result_at(item: Rescale, e: u32) -> f32 {
    let m = item.member;
    let f = factors_of(m, position_of(item, e).j);
    let own = Scale(f.own.x, f.own.y);
    if ACTION == COPY {
        return v_at(m, e);
    }
    if ACTION == CENTER {
        return v_at(m, e) - f.own.x + f.own.y;
    }
    if ACTION == BACKWARD {
        let value = scaled(dw_at(m, e) - scaled(v_at(m, e), Scale(f.share.x, f.share.y)), own);
        if ADD {
            return value + w_at(m, e);
        }
        return value;
    }
    if IN_PLACE {
        return scaled(w_at(m, e), own);
    }
    return scaled(v_at(m, e), own);
}

// Of quad q of w the elements begin .. end - 1.
fn put_edge(item: Rescale, q: u32, begin: u32, end: u32) {
    let m = item.member;
    let dtype = type_of(m, OF_W, W_DTYPE);
    let per_word = select(2u, 1u, dtype == F32);
    var words = vec4<u32>();
    var which = vec4<bool>();
    for (var i = 0u; i < 4u; i += 1u) { // 4 iterations
        let e = (4u * q + i) * per_word;
        let low = e >= begin && e < end;
        let high = per_word == 2u && e + 1u >= begin && e + 1u < end;
        which[i] = low || high;
        if !which[i] {
            continue;
        }
        if per_word == 1u {
            words[i] = bitcast<u32>(result_at(item, e));
            continue;
        }
        var word = w_word(m.w, 4u * q + i);
        if low {
            word = (word & 0xffff0000u) | pack(result_at(item, e), dtype);
        }
        if high {
            word = (word & 0xffffu) | (pack(result_at(item, e + 1u), dtype) << 16u);
        }
        words[i] = word;
    }
    put_words(m.w, q, words, which);
}

@compute @workgroup_size(THREADS)
fn rescale(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
    let id = flat(group, groups);
    if !is_item(id) {
        return;
    }
    let item = rescale_item(id);
    let m = item.member;
    let first = (item.begin + UNIT - 1u) / UNIT;
    let stop = max(item.end / UNIT, first);
    // Every `run` invocations share a piece, unless all of them do.
    let run = 1u << item.run_bits;
    let piece = (stop - first + THREADS - 1u) / THREADS * run;
    let begin = first + (t >> item.run_bits) * piece;
    let step = item.step;
    var u = begin + (t & (run - 1u));
    let end = select(0u, select(min(begin + piece, stop), stop, run == THREADS), t < item.width);
    let keeps = has(m, KEEPS, ALL_KEEP);
    let by = Position(step * UNIT % item.inner, step * UNIT / item.inner % item.kept);
    var at = position_of(item, u * UNIT);
    var f: UnitFactors;
    if u < end {
        f = unit_factors(item, at);
    }
    for (; ACTION != BACKWARD && u + 3u * step < end; u += 4u * step) { // units of an invocation / 4 iterations
        let x = inputs_of(m, u);
        let y = inputs_of(m, u + step);
        let z = inputs_of(m, u + 2u * step);
        let w = inputs_of(m, u + 3u * step);
        put_result(m, u, x, f);
        if !keeps {
            at = moved(item, at, by);
            f = unit_factors(item, at);
        }
        put_result(m, u + step, y, f);
        if !keeps {
            at = moved(item, at, by);
            f = unit_factors(item, at);
        }
        put_result(m, u + 2u * step, z, f);
        if !keeps {
            at = moved(item, at, by);
            f = unit_factors(item, at);
        }
        put_result(m, u + 3u * step, w, f);
        if !keeps {
            at = moved(item, at, by);
            f = unit_factors(item, at);
        }
    }
    for (; u + step < end; u += 2u * step) { // units of an invocation / 2 iterations
        let x = inputs_of(m, u);
        let y = inputs_of(m, u + step);
        put_result(m, u, x, f);
        if !keeps {
            at = moved(item, at, by);
            f = unit_factors(item, at);
        }
        put_result(m, u + step, y, f);
        if !keeps {
            at = moved(item, at, by);
            f = unit_factors(item, at);
        }
    }
    for (; u < end; u += step) { // at most 1 iteration
        put_result(m, u, inputs_of(m, u), f);
    }
    // Before the first whole unit and behind the last one, up to two quads each.
    let quad = select(8u, 4u, type_of(m, OF_W, W_DTYPE) == F32);
    let behind = t >= 2u;
    let edge = select(item.begin, max(stop * UNIT, item.begin), behind);
    let to = select(min(first * UNIT, item.end), item.end, behind);
    let q = edge / quad + (t & 1u);
    if t < 4u && edge < to && q * quad < to {
        put_edge(item, q, edge, to);
    }
}
