// What is done to every element of a weight, given what its norm is to it.
// import weight/elements
// import numbers/norm
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
override ALL_KEEP: bool = true; // of no item do the units of an invocation have several norms

const SCALE = 0u;
const BACKWARD = 1u;
const COPY = 2u;
const CENTER = 3u;

// What the norms of four elements are to them: their Scales (t, m), and those of the share of v in dv. CENTER: centers
// and biases.
struct Factors {
    t: vec4<f32>,
    m: vec4<f32>,
    share_t: vec4<f32>,
    share_m: vec4<f32>,
}

// Those of the elements of a unit.
struct UnitFactors {
    low: Factors,
    high: Factors,
}

fn factors_of(m: Member, j: u32) -> vec4<f32> {
    if ACTION == COPY {
        return vec4<f32>();
    }
    if ACTION == BACKWARD {
        return vec4<f32>(scales[m.out + 2u * j], scales[m.out + 2u * j + 1u]);
    }
    if ACTION == CENTER {
        let center = centers[extractBits(m.flags, OF_KNOWN, 8u) + j];
        if (m.flags & HAS_GAIN) == 0u {
            return vec4<f32>(center, 0.0, 0.0, 0.0);
        }
        return vec4<f32>(center, bias[m.g + j], 0.0, 0.0);
    }
    return vec4<f32>(scales[m.out + j], 0.0, 0.0);
}

fn four_times(f: vec4<f32>) -> Factors {
    return Factors(vec4<f32>(f.x), vec4<f32>(f.y), vec4<f32>(f.z), vec4<f32>(f.w));
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

// Those of a unit from `at` on.
fn unit_factors(item: Rescale, at: Position) -> UnitFactors {
    let m = item.member;
    if ALL_KEEP || (m.flags & WHOLE) != 0u {
        let f = four_times(factors_of(m, at.j));
        return UnitFactors(f, f);
    }
    var found: UnitFactors;
    var element = at;
    let by = Position(1u % item.inner, 1u / item.inner);
    for (var n = 0u; n < 4u; n += 1u) { // 4 iterations
        let f = factors_of(m, element.j);
        found.low.t[n] = f.x;
        found.low.m[n] = f.y;
        found.low.share_t[n] = f.z;
        found.low.share_m[n] = f.w;
        element = moved(item, element, by);
        if UNIT != 4u {
            let h = factors_of(m, element.j);
            found.high.t[n] = h.x;
            found.high.m[n] = h.y;
            found.high.share_t[n] = h.z;
            found.high.share_m[n] = h.w;
            element = moved(item, element, by);
        }
    }
    return found;
}

// What becomes of four elements: x is what stands to be scaled, v stands beside dw, and dv is what that holds.
fn result_of(x: vec4<f32>, v: vec4<f32>, dv: vec4<f32>, f: Factors) -> vec4<f32> {
    if ACTION == COPY {
        return x;
    }
    if ACTION == CENTER {
        return x - f.t + f.m;
    }
    if ACTION == BACKWARD {
        let result = gradient_of_v(x, v, f.t, f.m, f.share_t, f.share_m);
        if ADD {
            return result + dv;
        }
        return result;
    }
    return ((x * f.t) * f.m) * f.t;
}

// Units of a turn, if their factors stay the same: 64 bytes are read at a time (32 where all tensors are of 16 bits).
override AHEAD: u32 = select(2u, 4u, UNIT == 4u && ACTION != BACKWARD);

// What is read of a unit, and of an element (low.x).
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

fn inputs_at(m: Member, e: u32) -> Inputs {
    var found = Inputs();
    if ACTION == BACKWARD {
        found.x.low.x = dw_at(m, e);
        found.v.low.x = v_at(m, e);
        if ADD {
            found.dv.low.x = w_at(m, e);
        }
    } else if IN_PLACE {
        found.x.low.x = w_at(m, e);
    } else {
        found.x.low.x = v_at(m, e);
    }
    return found;
}

fn put_result(m: Member, u: u32, read: Inputs, f: UnitFactors) {
    var result = Unit();
    result.low = result_of(read.x.low, read.v.low, read.dv.low, f.low);
    if UNIT != 4u {
        result.high = result_of(read.x.high, read.v.high, read.dv.high, f.high);
    }
    put_unit(m, u, result);
}

// Of quad q of w the elements begin .. end - 1.
fn put_edge(item: Rescale, q: u32, begin: u32, end: u32) {
    let m = item.member;
    let dtype = type_of(m, OF_W, W_DTYPE);
    let quad = select(8u, 4u, dtype == F32);
    var words = vec4<u32>();
    var which = vec4<bool>();
    for (var e = max(begin, quad * q); e < min(end, quad * (q + 1u)); e += 1u) { // at most 8 iterations
        let read = inputs_at(m, e);
        let f = four_times(factors_of(m, position_of(item, e).j));
        let value = result_of(read.x.low, read.v.low, read.dv.low, f).x;
        let word = word_holding(e, dtype);
        let i = word - 4u * q;
        if dtype == F32 {
            words[i] = bitcast<u32>(value);
        } else {
            let shift = 16u * (e & 1u);
            let beside = select(w_word(m.w, word), words[i], which[i]);
            words[i] = (beside & (0xffff0000u >> shift)) | (pack(value, dtype) << shift);
        }
        which[i] = true;
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
    let keeps = ALL_KEEP || (m.flags & KEEPS) != 0u;
    let by = Position(step * UNIT % item.inner, step * UNIT / item.inner % item.kept);
    var at = position_of(item, u * UNIT);
    var f: UnitFactors;
    if u < end {
        f = unit_factors(item, at);
    }
    // All that a turn reads comes before all that it writes, so that the reads are on their way together.
    for (; keeps && u + (AHEAD - 1u) * step < end; u += AHEAD * step) { // units of an invocation / AHEAD iterations
        let x = inputs_of(m, u);
        let y = inputs_of(m, u + step);
        var z: Inputs;
        var w: Inputs;
        if AHEAD == 4u {
            z = inputs_of(m, u + 2u * step);
            w = inputs_of(m, u + 3u * step);
        }
        put_result(m, u, x, f);
        put_result(m, u + step, y, f);
        if AHEAD == 4u {
            put_result(m, u + 2u * step, z, f);
            put_result(m, u + 3u * step, w, f);
        }
    }
    for (; !keeps && u + step < end; u += 2u * step) { // units of an invocation / 2 iterations
        let x = inputs_of(m, u);
        let y = inputs_of(m, u + step);
        put_result(m, u, x, f);
        at = moved(item, at, by);
        put_result(m, u + step, y, unit_factors(item, at));
        at = moved(item, at, by);
        f = unit_factors(item, at);
    }
    for (; u < end; u += step) { // at most 3 iterations
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
