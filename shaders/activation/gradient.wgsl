// Gradients of activations, element by element: out = scale * d * act'(z), where z is `at`, or g_j * at + bias_j with
// column j of a matrix; or act' taken from what the activation gave, which is `at` then (FROM_OUTPUT).
// slot access = activation/words
// import activation/derivative
//
// A unit is four elements where all tensors are f32, else eight: whole quads of four words of each. An invocation
// takes EACH units, `run` apart, so that neighbours read neighbouring ones; where `run` is whole rows, all of its units
// lie in the same columns. In place, `out` holds d.

struct Params {
    begin: u32, // the first element of the window, 0 unless windows meet within a unit, and
    end: u32,   // the one behind its last one
    run: u32,
    columns: u32,      // that g and bias are bound for
    first_column: u32, // of element 0
    gain_step: u32,    // 1, or 0 where all columns have one gain
    same_columns: u32, // 1 where units `run` apart lie in the same columns
    offsets: u32,      // 8 bits each: element 0 of at, d, out within its binding
    more_offsets: u32, // 8 bits each: the first element of g, bias
    scale: f32,
    slope: f32,
}

var<immediate> p: Params;

@group(0) @binding(2) var<storage, read> g: array<u32>; // words of GAIN_DTYPE
@group(0) @binding(3) var<storage, read> bias: array<u32>; // words of BIAS_DTYPE

override AT_DTYPE: u32 = F32;
override D_DTYPE: u32 = F32;
override OUT_DTYPE: u32 = F32;
override GAIN_DTYPE: u32 = F32;
override BIAS_DTYPE: u32 = F32;
override HAS_GAIN: bool = false;
override HAS_BIAS: bool = false;
override IN_PLACE: bool = false;
override UNIT: u32 = select(8u, 4u, AT_DTYPE == F32 && D_DTYPE == F32 && OUT_DTYPE == F32);

const THREADS = 64u;
const EACH = 4u;

// Four words each; the second ones of f32 in units of eight.
struct Inputs {
    at: vec4<u32>,
    at_behind: vec4<u32>,
    d: vec4<u32>,
    d_behind: vec4<u32>,
}

// Four elements, or those at even and at odd places of eight.
struct Unit {
    low: vec4<f32>,
    high: vec4<f32>,
}

struct Factors {
    gain: Unit,
    bias: Unit,
}

// The word of a tensor at which unit u starts, given the place of element 0.
fn word_of(u: u32, place: u32, dtype: u32) -> u32 {
    return word_holding(place + u * UNIT, dtype);
}

fn inputs_of(u: u32) -> Inputs {
    var x: Inputs;
    if u * UNIT >= p.end {
        return x;
    }
    if ACTIVATION != ACT_NONE {
        let word = word_of(u, extractBits(p.offsets, 0u, 8u), AT_DTYPE);
        x.at = at_quad(word);
        if UNIT == 8u && AT_DTYPE == F32 {
            x.at_behind = at_quad(word + 4u);
        }
    }
    if IN_PLACE {
        let word = word_of(u, extractBits(p.offsets, 16u, 8u), OUT_DTYPE);
        x.d = out_quad(word);
        if UNIT == 8u && OUT_DTYPE == F32 {
            x.d_behind = out_quad(word + 4u);
        }
    } else {
        let word = word_of(u, extractBits(p.offsets, 8u, 8u), D_DTYPE);
        x.d = d_quad(word);
        if UNIT == 8u && D_DTYPE == F32 {
            x.d_behind = d_quad(word + 4u);
        }
    }
    return x;
}

fn unit_of(first: vec4<u32>, second: vec4<u32>, dtype: u32) -> Unit {
    if UNIT == 4u {
        return Unit(bitcast<vec4<f32>>(first), vec4<f32>());
    }
    if dtype == F32 {
        let a = bitcast<vec4<f32>>(first);
        let b = bitcast<vec4<f32>>(second);
        return Unit(vec4<f32>(a.xz, b.xz), vec4<f32>(a.yw, b.yw));
    }
    return Unit(quad_low(first, dtype), quad_high(first, dtype));
}

fn gain_of(column: u32) -> f32 {
    let at = extractBits(p.more_offsets, 0u, 8u) + column * p.gain_step;
    return unpack(g[word_holding(at, GAIN_DTYPE)], at, GAIN_DTYPE);
}

fn bias_of(column: u32) -> f32 {
    let at = extractBits(p.more_offsets, 8u, 8u) + column;
    return unpack(bias[word_holding(at, BIAS_DTYPE)], at, BIAS_DTYPE);
}

fn gains_of(columns: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(gain_of(columns.x), gain_of(columns.y), gain_of(columns.z), gain_of(columns.w));
}

fn biases_of(columns: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(bias_of(columns.x), bias_of(columns.y), bias_of(columns.z), bias_of(columns.w));
}

fn next(column: u32) -> u32 {
    return select(column + 1u, 0u, column + 1u == p.columns);
}

fn four_columns(first: u32) -> vec4<u32> {
    let second = next(first);
    let third = next(second);
    return vec4<u32>(first, second, third, next(third));
}

fn factors_of(u: u32) -> Factors {
    var f: Factors;
    if !HAS_GAIN && !HAS_BIAS {
        return f;
    }
    let first = four_columns((p.first_column + u * UNIT) % p.columns);
    var low = first;
    var high = first;
    if UNIT == 8u {
        let second = four_columns(next(first.w));
        low = vec4<u32>(first.xz, second.xz);
        high = vec4<u32>(first.yw, second.yw);
    }
    if HAS_GAIN {
        f.gain.low = gains_of(low);
        if UNIT == 8u {
            f.gain.high = gains_of(high);
        }
    }
    if HAS_BIAS {
        f.bias.low = biases_of(low);
        if UNIT == 8u {
            f.bias.high = biases_of(high);
        }
    }
    return f;
}

fn result_of(d: vec4<f32>, at: vec4<f32>, gain: vec4<f32>, bias: vec4<f32>) -> vec4<f32> {
    var z = at;
    if HAS_GAIN {
        z *= gain;
    }
    if HAS_BIAS {
        z += bias;
    }
    return pulled_back(p.scale * d, z, p.slope);
}

// The bits of the four words from element e on that are the window's own.
fn own_bits(e: u32) -> vec4<u32> {
    let step = select(2u, 1u, OUT_DTYPE == F32);
    let first = vec4<u32>(e) + vec4<u32>(0u, 1u, 2u, 3u) * step;
    let own = select(vec4<u32>(), vec4<u32>(1u), (first >= vec4<u32>(p.begin)) & (first < vec4<u32>(p.end)));
    if OUT_DTYPE == F32 {
        return own * 0xffffffffu;
    }
    let second = first + 1u;
    let other = select(vec4<u32>(), vec4<u32>(1u), (second >= vec4<u32>(p.begin)) & (second < vec4<u32>(p.end)));
    return own * 0xffffu + other * 0xffff0000u;
}

fn put(u: u32, x: Inputs, f: Factors) {
    if u * UNIT >= p.end {
        return;
    }
    let at = unit_of(x.at, x.at_behind, AT_DTYPE);
    let d = unit_of(x.d, x.d_behind, select(D_DTYPE, OUT_DTYPE, IN_PLACE));
    let word = word_of(u, extractBits(p.offsets, 16u, 8u), OUT_DTYPE);
    let low = result_of(d.low, at.low, f.gain.low, f.bias.low);
    if UNIT == 4u {
        put_quad(word, bitcast<vec4<u32>>(low), own_bits(u * UNIT));
        return;
    }
    let high = result_of(d.high, at.high, f.gain.high, f.bias.high);
    if OUT_DTYPE == F32 {
        let first = vec4<f32>(low.x, high.x, low.y, high.y);
        let second = vec4<f32>(low.z, high.z, low.w, high.w);
        put_quad(word, bitcast<vec4<u32>>(first), own_bits(u * UNIT));
        put_quad(word + 4u, bitcast<vec4<u32>>(second), own_bits(u * UNIT + 4u));
        return;
    }
    put_quad(word, quad_of(low, high, OUT_DTYPE), own_bits(u * UNIT));
}

@compute @workgroup_size(THREADS)
fn activation_gradient(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let i = flat(group, groups) * THREADS + ordered(index, THREADS);
    let u = i / p.run * (p.run * EACH) + i % p.run;
    if u * UNIT >= p.end {
        return;
    }
    // All that is read comes before all that is written, so that the reads are on their way together.
    let a = inputs_of(u);
    let b = inputs_of(u + p.run);
    let c = inputs_of(u + 2u * p.run);
    let d = inputs_of(u + 3u * p.run);
    var f = factors_of(u);
    put(u, a, f);
    if p.same_columns == 0u {
        f = factors_of(u + p.run);
    }
    put(u + p.run, b, f);
    if p.same_columns == 0u {
        f = factors_of(u + 2u * p.run);
    }
    put(u + 2u * p.run, c, f);
    if p.same_columns == 0u {
        f = factors_of(u + 3u * p.run);
    }
    put(u + 3u * p.run, d, f);
}
