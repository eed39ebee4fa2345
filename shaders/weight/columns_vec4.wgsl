// Sums down the columns of a matrix, partial sums of norms, four words at once.
// slot access = weight/access_vec4
// import weight/exact
//
// Fills the slot `columns` of norms.wgsl.

override COLUMN_QUADS: u32 = 4u; // column_sums: quads of a row for an invocation, RUN apart, up to MAX_COLUMN_QUADS

const MAX_COLUMN_QUADS = 4u;
const BLOCK = 64u; // column_sums: rows that are added up by themselves

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
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
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
    let e = extractBits(p.offsets, 0u, 8u) + place;
    let f = extractBits(p.more_offsets, 0u, 8u) + place;
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
    // QUAD * COLUMN_QUADS iterations.
    for (var i = select(0u, QUAD * COLUMN_QUADS, safe); i < QUAD * COLUMN_QUADS; i += 1u) {
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
            sum = exact_column_dots(e + offset, f + offset, rows);
        } else {
            let up = lift(s);
            sum = Wide(column_squares(e + offset, rows, exp2i(up)), -2 * up);
        }
        part[at + offset] = vec2<u32>(bitcast<u32>(sum.m), bitcast<u32>(sum.e));
    }
}
