// How norms.wgsl reads v and dw four words at once: rows (of columns: the matrix) of whole quads from an aligned element
// on, dw of v's storage type. (norms_words.wgsl: all else.)

@group(0) @binding(0) var<storage, read> v: array<vec4<u32>>; // quads of V_DTYPE
@group(0) @binding(5) var<storage, read> dw: array<vec4<u32>>; // DOT: quads of V_DTYPE, shaped as v

// What a unit, which is a quad, adds to a sum.
alias Terms = vec4<f32>;

override WORD: u32 = select(2u, 1u, V_DTYPE == F32); // elements of 32 bits
override QUAD: u32 = 4u * WORD; // elements
override SQUARE_UNIT: u32 = QUAD;
override PRODUCT_UNIT: u32 = QUAD;
override COLUMN_QUADS: u32 = 4u; // column_sums: quads of a row for an invocation, RUN apart, up to MAX_COLUMN_QUADS

const MAX_COLUMN_QUADS = 4u;
const BLOCK = 64u; // column_sums: rows that are added up by themselves

fn total_of(terms: Terms) -> f32 {
    return (terms.x + terms.y) + (terms.z + terms.w);
}

fn v_at(e: u32) -> f32 {
    return unpack(v[e / QUAD][e % QUAD / WORD], e, V_DTYPE);
}

fn dw_at(e: u32) -> f32 {
    return unpack(dw[e / QUAD][e % QUAD / WORD], e, V_DTYPE);
}

fn squares(words: vec4<u32>, scale: f32) -> Terms {
    let a = quad_low(words, V_DTYPE) * scale;
    if V_DTYPE == F32 {
        return a * a;
    }
    let b = quad_high(words, V_DTYPE) * scale;
    return a * a + b * b;
}

fn squares_at(u: u32, first: u32, end: u32, scale: f32) -> Terms {
    return squares(v[u], scale);
}

// The squares of quad u of v, which products_at takes too.
fn squares_beside(u: u32, scale: f32) -> Terms {
    return squares_at(u, 0u, 0u, scale);
}

fn products(a: vec4<u32>, b: vec4<u32>) -> Terms {
    let low = quad_low(a, V_DTYPE) * quad_low(b, V_DTYPE);
    if V_DTYPE == F32 {
        return low;
    }
    return low + quad_high(a, V_DTYPE) * quad_high(b, V_DTYPE);
}

// dw * v, quad u of v and f of dw.
fn products_at(u: u32, f: u32) -> Terms {
    return products(v[u], dw[f]);
}

fn column_squares(e: u32, rows: u32, scale: f32) -> f32 {
    var s = 0.0;
    for (var row = 0u; row < rows; row += 1u) { // rows iterations
        let a = v_at(e + row * p.stride) * scale;
        s += a * a;
    }
    return s;
}

// Sums of squares down the columns of a (length, count) matrix: stretch s of a column holds split_length rows.
// An invocation takes COLUMN_QUADS quads of each row of a stretch. Writes part[part_first + s * count + column].
@compute @workgroup_size(THREADS)
fn column_sums(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let task = flat(group, groups) * THREADS + t;
    let units = p.count / QUAD;
    let blocks = (units + RUN * COLUMN_QUADS - 1u) / (RUN * COLUMN_QUADS) * RUN;
    let split = task / blocks;
    let unit = task % blocks / RUN * (RUN * COLUMN_QUADS) + task % RUN;
    if split >= p.splits || unit >= units {
        return;
    }
    let begin = split * p.split_length;
    let rows = min(p.split_length, p.length - begin);
    let place = begin * p.stride + unit * QUAD;
    let e = extractBits(p.firsts, 0u, 8u) + place;
    let f = extractBits(p.more_firsts, 0u, 8u) + place;
    let step = p.stride / QUAD;
    // Quads past the last one repeat it.
    let last = units - 1u - unit;

    var low = array<vec4<f32>, MAX_COLUMN_QUADS>();
    var high = array<vec4<f32>, MAX_COLUMN_QUADS>();
    for (var row = 0u; row < rows; row += BLOCK) { // rows / BLOCK iterations
        var block_low = array<vec4<f32>, MAX_COLUMN_QUADS>();
        var block_high = array<vec4<f32>, MAX_COLUMN_QUADS>();
        for (var i = row; i < min(row + BLOCK, rows); i += 1u) { // BLOCK iterations
            for (var k = 0u; k < COLUMN_QUADS; k += 1u) { // COLUMN_QUADS iterations
                let offset = i * step + min(k * RUN, last);
                let a = v[e / QUAD + offset];
                var b = a;
                if DOT {
                    b = dw[f / QUAD + offset];
                }
                block_low[k] += quad_low(a, V_DTYPE) * quad_low(b, V_DTYPE);
                if V_DTYPE != F32 {
                    block_high[k] += quad_high(a, V_DTYPE) * quad_high(b, V_DTYPE);
                }
            }
        }
        for (var k = 0u; k < COLUMN_QUADS; k += 1u) { // COLUMN_QUADS iterations
            low[k] += block_low[k];
            high[k] += block_high[k];
        }
    }

    let at = p.part_first + split * p.count + unit * QUAD;
    var safe = true;
    for (var k = 0u; k < COLUMN_QUADS; k += 1u) { // COLUMN_QUADS iterations
        if k * RUN > last {
            break;
        }
        for (var i = 0u; i < QUAD; i += 1u) { // QUAD iterations
            // Of packed words, the even elements are the low ones.
            let s = select(low[k][i / WORD], high[k][i / WORD], i % WORD == 1u);
            safe &= is_fine(s);
            part[at + k * RUN * QUAD + i] = vec2<u32>(bitcast<u32>(s), 0u);
        }
    }
    // Rarely: what f32 does not hold safely, once more.
    for (var i = select(0u, QUAD * COLUMN_QUADS, safe); i < QUAD * COLUMN_QUADS; i += 1u) { // QUAD * COLUMN_QUADS iterations
        let offset = i / QUAD * RUN * QUAD + i % QUAD;
        if i / QUAD * RUN > last {
            break;
        }
        let s = bitcast<f32>(part[at + offset].x);
        if is_fine(s) {
            continue;
        }
        var sum: Wide;
        if DOT {
            sum = wide_column_dots(e + offset, f + offset, rows);
        } else {
            let up = lift(s);
            sum = Wide(column_squares(e + offset, rows, exp2i(up)), -2 * up);
        }
        part[at + offset] = vec2<u32>(bitcast<u32>(sum.m), bitcast<u32>(sum.e));
    }
}
