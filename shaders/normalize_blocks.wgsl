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

override COLUMNS: u32 = 9u; // elements of a row
override ROWS: u32 = 4u; // up to 8
override HELD: u32 = 9u; // quads of a block, ROWS * COLUMNS / QUAD, up to MAX_HELD
override HAS_GAIN: bool = false;

// The row, within its block, of element i of quad_low of quad k, and of quad_high.
fn low_row(k: u32, i: u32) -> u32 {
    return (k * QUAD + i * QUAD / 4u) / COLUMNS;
}

fn high_row(k: u32, i: u32) -> u32 {
    return (k * QUAD + i * QUAD / 4u + 1u) / COLUMNS;
}

alias OfRows = array<vec4<f32>, 2>;
alias Block = array<vec4<u32>, MAX_HELD>;

// Reads a block, and adds up the squares of each of its rows.
fn sums_of(block: u32, held: ptr<function, Block>) -> OfRows {
    var sums: OfRows;
    for (var k = 0u; k < MAX_HELD; k += 1u) { // MAX_HELD iterations
        if k < HELD {
            (*held)[k] = quad_at(block * HELD + k);
        }
    }
    // A loop of its own, so that the array is there when a compiler decides what it unrolls.
    for (var k = 0u; k < MAX_HELD; k += 1u) { // MAX_HELD iterations
        if k < HELD {
            let low = quad_low((*held)[k], V_DTYPE);
            for (var i = 0u; i < 4u; i += 1u) { // 4 iterations
                sums[low_row(k, i) / 4u][low_row(k, i) % 4u] += low[i] * low[i];
            }
            if V_DTYPE != F32 {
                let high = quad_high((*held)[k], V_DTYPE);
                for (var i = 0u; i < 4u; i += 1u) { // 4 iterations
                    sums[high_row(k, i) / 4u][high_row(k, i) % 4u] += high[i] * high[i];
                }
            }
        }
    }
    return sums;
}

// Writes the norms of a block. Whether all of them are near neither end of f32's range, and so are right.
fn write_plain_norms(block: u32) -> bool {
    var held: Block;
    let sums = sums_of(block, &held);
    let first = extractBits(p.firsts, 24u, 8u) + block * ROWS;
    var plain = true;
    for (var r = 0u; r < 8u; r += 4u) { // 2 iterations
        if r < ROWS {
            let norms = plain_norms(sums[r / 4u], p.policy, p.eps);
            for (var i = 0u; i < 4u; i += 1u) { // 4 iterations
                if r + i < ROWS {
                    norms_out[first + r + i] = norms[i];
                    plain &= norms[i] != 0.0;
                }
            }
        }
    }
    return plain;
}

// Whether all rows of the block are near neither end of f32's range, and so were written. Others hold anything then, but in
// place what they held.
fn write_plain(block: u32) -> bool {
    var held: Block;
    let sums = sums_of(block, &held);
    var factors: OfRows;
    var plain = true;
    for (var r = 0u; r < 8u; r += 4u) { // 2 iterations
        if r < ROWS {
            let norms = plain_norms(sums[r / 4u], p.policy, p.eps);
            var gains = vec4<f32>(1.0);
            if HAS_GAIN {
                for (var i = 0u; i < 4u; i += 1u) { // 4 iterations
                    gains[i] = g[extractBits(p.firsts, 16u, 8u) + block * ROWS + min(r + i, ROWS - 1u)];
                }
            }
            factors[r / 4u] = gains / norms;
            for (var i = 0u; i < 4u; i += 1u) { // 4 iterations
                if r + i < ROWS {
                    plain &= norms[i] != 0.0 && is_normal(factors[r / 4u][i]);
                }
            }
        }
    }
    for (var k = 0u; k < MAX_HELD; k += 1u) { // MAX_HELD iterations
        if k < HELD {
            var low = quad_low(held[k], V_DTYPE);
            var high = vec4<f32>();
            for (var i = 0u; i < 4u; i += 1u) { // 4 iterations
                low[i] *= factors[low_row(k, i) / 4u][low_row(k, i) % 4u];
            }
            if V_DTYPE != F32 {
                high = quad_high(held[k], V_DTYPE);
                for (var i = 0u; i < 4u; i += 1u) { // 4 iterations
                    high[i] *= factors[high_row(k, i) / 4u][high_row(k, i) % 4u];
                }
            }
            var words = quad_of(low, high, V_DTYPE);
            if IN_PLACE {
                words = select(held[k], words, plain);
            }
            put(block * HELD + k, words);
        }
    }
    return plain;
}

fn element(e: u32) -> f32 {
    return unpack(quad_at(e / QUAD)[e % QUAD * 4u / QUAD], e, V_DTYPE);
}

fn put_element(e: u32, value: f32) {
    let q = extractBits(p.firsts, 8u, 8u) / QUAD + e / QUAD;
    let i = e % QUAD * 4u / QUAD;
    if V_DTYPE == F32 {
        w[q][i] = bitcast<u32>(value);
        return;
    }
    let shift = 16u * (e & 1u);
    w[q][i] = (w[q][i] & (0xffff0000u >> shift)) | (pack(value, V_DTYPE) << shift);
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
    var gain = 1.0;
    if HAS_GAIN {
        gain = g[extractBits(p.firsts, 16u, 8u) + row];
    }
    let scale = scale_of(quotient(wide(gain), norm_of(row)));
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
    let block = flat(group, groups) * THREADS + t;
    if block >= p.count {
        return;
    }
    let plain = write_plain(block);
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
    let block = flat(group, groups) * THREADS + t;
    if block >= p.count {
        return;
    }
    let plain = write_plain_norms(block);
    // Rarely.
    let end = (block + 1u) * ROWS;
    for (var row = select(block * ROWS, end, plain); row < end; row += 1u) { // ROWS iterations
        norms_out[extractBits(p.firsts, 24u, 8u) + row] = narrow(norm_of(row));
    }
}
