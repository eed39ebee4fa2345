// Short contiguous rows where an invocation had better walk through memory: v is read once, in whole quads, though a row may
// end within one.
//
//   norm_blocks       n̂
//   normalize_blocks  w = g * v / n̂ in one dispatch
//
// Joined behind held.wgsl. v and w are (count, HELD) quads: a block is ROWS rows that fill HELD quads. Each invocation has
// one, and shares no word with another one.

struct Params {
    count: u32,  // blocks
    firsts: u32, // 8 bits each: the first element of v, w, g, norms within its binding
    policy: u32,
    eps: f32,
}

var<immediate> p: Params;

@group(0) @binding(3) var<storage, read_write> norms_out: array<f32>; // norm_blocks: one for each row
// The same as g and norms_out, where that goes: IN_QUADS.
@group(0) @binding(4) var<storage, read> g_quads: array<Quad>;
@group(0) @binding(5) var<storage, read_write> norms_out_quads: array<Quad>;

const THREADS = 64u;

override COLUMNS: u32 = 9u; // elements of a row
override ROWS: u32 = 4u; // up to 8
override HELD: u32 = 9u; // quads of a block, ROWS * COLUMNS / QUAD, up to 32
override HAS_GAIN: bool = false;
override IN_QUADS: bool = false; // g and norms start with aligned elements, and ROWS of them fill quads: 4 or 8
override WORD: u32 = select(2u, 1u, V_DTYPE == F32); // elements of 32 bits

// The row, within its block, of element i of quad_low of a part of quad k, and of quad_high.
fn low_row(k: u32, part: u32, i: u32) -> u32 {
    return (k * QUAD + (i * PARTS + part) * WORD) / COLUMNS;
}

fn high_row(k: u32, part: u32, i: u32) -> u32 {
    return (k * QUAD + (i * PARTS + part) * WORD + 1u) / COLUMNS;
}

alias OfRows = array<vec4<f32>, 2>;

// What take and give of held.wgsl go by.
var<private> block: u32;
var<private> sums: OfRows; // of squares, then the factors
var<private> plain: bool; // all rows of the block are near neither end of f32's range

// Quad k of a block: held, and its squares added to those of its rows, in the order of the elements, so that a row's sum does
// not depend on where in the block it is.
fn take(k: u32) {
    if k < HELD {
        held[k] = quad_at(block * HELD + k);
        let a = words_of(held[k], 0u);
        let b = words_of(held[k], PARTS - 1u);
        let low_a = quad_low(a, V_DTYPE);
        let low_b = quad_low(b, V_DTYPE);
        var high_a = vec4<f32>();
        var high_b = vec4<f32>();
        if V_DTYPE != F32 {
            high_a = quad_high(a, V_DTYPE);
            high_b = quad_high(b, V_DTYPE);
        }
        for (var i = 0u; i < 4u; i += 1u) { // 4 iterations
            add_squares(k, 0u, i, low_a[i], high_a[i]);
            if PARTS == 2u {
                add_squares(k, 1u, i, low_b[i], high_b[i]);
            }
        }
    }
}

fn add_squares(k: u32, part: u32, i: u32, low: f32, high: f32) {
    sums[low_row(k, part, i) / 4u][low_row(k, part, i) % 4u] += low * low;
    if V_DTYPE != F32 {
        sums[high_row(k, part, i) / 4u][high_row(k, part, i) % 4u] += high * high;
    }
}

// Writes numbers, one for each row of a block, as norms.
fn put_norms(norms: OfRows) {
    let first = extractBits(p.firsts, 24u, 8u) + block * ROWS;
    if IN_QUADS {
        let a = bitcast<vec4<u32>>(norms[0]);
        let b = bitcast<vec4<u32>>(norms[1]);
        let at = first / (4u * PARTS);
        if PARTS == 2u {
            norms_out_quads[at] = joined(vec4<u32>(a.xz, b.xz), vec4<u32>(a.yw, b.yw));
        } else {
            norms_out_quads[at] = joined(a, a);
            if ROWS > 4u {
                norms_out_quads[at + 1u] = joined(b, b);
            }
        }
        return;
    }
    for (var r = 0u; r < 8u; r += 1u) { // 8 iterations
        if r < ROWS {
            norms_out[first + r] = norms[r / 4u][r % 4u];
        }
    }
}

// The gains of a block.
fn gains_of() -> OfRows {
    var gains = OfRows(vec4<f32>(1.0), vec4<f32>(1.0));
    if !HAS_GAIN {
        return gains;
    }
    let first = extractBits(p.firsts, 16u, 8u) + block * ROWS;
    if IN_QUADS {
        let at = first / (4u * PARTS);
        let quad = g_quads[at];
        let a = bitcast<vec4<f32>>(words_of(quad, 0u));
        gains[0] = a;
        if PARTS == 2u {
            let b = bitcast<vec4<f32>>(words_of(quad, 1u));
            gains[0] = vec4<f32>(a.x, b.x, a.y, b.y);
            gains[1] = vec4<f32>(a.z, b.z, a.w, b.w);
        } else if ROWS > 4u {
            gains[1] = bitcast<vec4<f32>>(words_of(g_quads[at + 1u], 0u));
        }
        return gains;
    }
    for (var r = 0u; r < 8u; r += 1u) { // 8 iterations
        if r < ROWS {
            gains[r / 4u][r % 4u] = bitcast<f32>(g[first + r]);
        }
    }
    return gains;
}

// The gain of one row.
fn gain_of(row: u32) -> f32 {
    if !HAS_GAIN {
        return 1.0;
    }
    let at = extractBits(p.firsts, 16u, 8u) + row;
    if IN_QUADS {
        return bitcast<f32>(word_of(g_quads[at / (4u * PARTS)], at % (4u * PARTS)));
    }
    return bitcast<f32>(g[at]);
}

fn put_norm(row: u32, norm: f32) {
    let at = extractBits(p.firsts, 24u, 8u) + row;
    if IN_QUADS {
        let q = at / (4u * PARTS);
        norms_out_quads[q] = with_word(norms_out_quads[q], at % (4u * PARTS), bitcast<u32>(norm));
    } else {
        norms_out[at] = norm;
    }
}

// Writes the norms of the block, which are right where it is plain.
fn write_plain_norms() {
    sums = OfRows();
    take_all();
    var norms: OfRows;
    plain = true;
    for (var r = 0u; r < 8u; r += 4u) { // 2 iterations
        if r < ROWS {
            norms[r / 4u] = plain_norms(sums[r / 4u], p.policy, p.eps);
            for (var i = 0u; i < 4u; i += 1u) { // 4 iterations
                if r + i < ROWS {
                    plain &= norms[r / 4u][i] != 0.0;
                }
            }
        }
    }
    put_norms(norms);
}

// A part of quad k, each element by the factor of its row.
fn scaled_part(k: u32, part: u32) -> vec4<u32> {
    let words = words_of(held[k], part);
    var low = quad_low(words, V_DTYPE);
    var high = vec4<f32>();
    for (var i = 0u; i < 4u; i += 1u) { // 4 iterations
        low[i] *= sums[low_row(k, part, i) / 4u][low_row(k, part, i) % 4u];
    }
    if V_DTYPE != F32 {
        high = quad_high(words, V_DTYPE);
        for (var i = 0u; i < 4u; i += 1u) { // 4 iterations
            high[i] *= sums[high_row(k, part, i) / 4u][high_row(k, part, i) % 4u];
        }
    }
    return quad_of(low, high, V_DTYPE);
}

// Writes quad k, scaled; in place only if all of its block is right.
fn give(k: u32) {
    if k < HELD {
        let a = scaled_part(k, 0u);
        var quad = joined(a, a);
        if PARTS == 2u {
            quad = joined(a, scaled_part(k, 1u));
        }
        if IN_PLACE {
            quad = select(held[k], quad, plain);
        }
        put(block * HELD + k, quad);
    }
}

// Writes the rows of the block where it is plain. Others hold anything then, but in place what they held.
fn write_plain() {
    sums = OfRows();
    take_all();
    var factors = gains_of();
    plain = true;
    for (var r = 0u; r < 8u; r += 4u) { // 2 iterations
        if r < ROWS {
            let norms = plain_norms(sums[r / 4u], p.policy, p.eps);
            factors[r / 4u] /= norms;
            for (var i = 0u; i < 4u; i += 1u) { // 4 iterations
                if r + i < ROWS {
                    plain &= norms[i] != 0.0 && is_normal(factors[r / 4u][i]);
                }
            }
        }
    }
    sums = factors;
    give_all();
}

fn element(e: u32) -> f32 {
    return unpack(word_of(quad_at(e / QUAD), e % QUAD / WORD), e, V_DTYPE);
}

fn put_element(e: u32, value: f32) {
    let q = extractBits(p.firsts, 8u, 8u) / QUAD + e / QUAD;
    let i = e % QUAD / WORD;
    var word = bitcast<u32>(value);
    if V_DTYPE != F32 {
        let shift = 16u * (e & 1u);
        word = (word_of(w[q], i) & (0xffff0000u >> shift)) | (pack(value, V_DTYPE) << shift);
    }
    w[q] = with_word(w[q], i, word);
}

fn row_squares(first: u32, scale: f32) -> f32 {
    var sum = 0.0;
    for (var e = first; e < first + COLUMNS; e += 1u) { // COLUMNS iterations
        let x = element(e) * scale;
        sum += x * x;
    }
    return sum;
}

// The norm of a row, over the whole range of f32.
fn norm_of(row: u32) -> Wide {
    let first = row * COLUMNS;
    let up = lift(row_squares(first, 1.0));
    return effective_norm(Wide(row_squares(first, exp2i(up)), -2 * up), p.policy, p.eps);
}

fn write_row(row: u32) {
    let first = row * COLUMNS;
    let scale = scale_of(quotient(wide(gain_of(row)), norm_of(row)));
    for (var e = first; e < first + COLUMNS; e += 1u) { // COLUMNS iterations
        put_element(e, scaled(element(e), scale));
    }
}

@compute @workgroup_size(THREADS)
fn normalize_blocks(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    block = flat(group, groups) * THREADS + t;
    if block >= p.count {
        return;
    }
    write_plain();
    // Rarely. A loop, since some drivers run all code between the braces of an `if`, and throw it away; of this one once.
    let end = (block + 1u) * ROWS;
    for (var row = select(block * ROWS, end, plain); row < end; row += 1u) { // ROWS iterations
        write_row(row);
    }
}

@compute @workgroup_size(THREADS)
fn norm_blocks(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    block = flat(group, groups) * THREADS + t;
    if block >= p.count {
        return;
    }
    write_plain_norms();
    // Rarely.
    let end = (block + 1u) * ROWS;
    for (var row = select(block * ROWS, end, plain); row < end; row += 1u) { // ROWS iterations
        put_norm(row, narrow(norm_of(row)));
    }
}
