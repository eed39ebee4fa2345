// How statistics.wgsl reads a matrix four words at once: rows of whole quads from an aligned element on;
// STATISTIC_DOTS.
// (words.wgsl: all else.)
// import batch/statistics

@group(0) @binding(0) var<storage, read> a: array<vec4<u32>>; // (rows, columns) quads of A_DTYPE
@group(0) @binding(1) var<storage, read> u: array<vec4<u32>>; // (rows, columns)

override QUAD: u32 = select(8u, 4u, A_DTYPE == F32); // elements
override BESIDE: u32 = QUAD / 4u; // quads of u beside one of a
override RUN: u32 = 64u; // neighbouring invocations that read neighbouring quads
override COLUMN_QUADS: u32 = 4u; // batch_sums: quads of a row for an invocation, RUN apart, up to MAX_COLUMN_QUADS

override ROWS_AT_ONCE: u32 = 1u; // batch_sums: rows whose reads are on their way at a time, up to MAX_ROWS

const MAX_COLUMN_QUADS = 4u;
const MAX_ROWS = 4u;
const BLOCK = 64u; // rows that are added up by themselves

alias Sums = array<vec4<f32>, MAX_COLUMN_QUADS>;

// An invocation takes COLUMN_QUADS quads of each row of a split.
@compute @workgroup_size(THREADS)
fn batch_sums(
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
    let end = min(begin + p.split_length, p.rows);
    let step = p.stride / QUAD;
    let at = extractBits(p.offsets, 0u, 8u) / QUAD + unit;
    let at_u = extractBits(p.offsets, 8u, 8u) / 4u + unit * BESIDE;
    // Quads past the last one repeat it.
    let last = units - 1u - unit;

    // Sums of a and of a * u; of packed words, of the lower and of the upper halves.
    var low = Sums();
    var high = Sums();
    var low_dots = Sums();
    var high_dots = Sums();
    var seen = array<vec4<u32>, MAX_COLUMN_QUADS>(); // all bits of a in these columns
    for (var row = begin; row < end; row += BLOCK) { // split_length / BLOCK iterations
        var block_low = Sums();
        var block_high = Sums();
        var block_low_dots = Sums();
        var block_high_dots = Sums();
        for (var i = row; i < min(row + BLOCK, end); i += ROWS_AT_ONCE) { // BLOCK / ROWS_AT_ONCE iterations
            for (var k = 0u; k < COLUMN_QUADS; k += 1u) { // COLUMN_QUADS iterations
                var words: array<vec4<u32>, MAX_ROWS>;
                var us: array<vec4<f32>, MAX_ROWS>;
                var second_us: array<vec4<f32>, MAX_ROWS>;
                for (var r = 0u; r < ROWS_AT_ONCE; r += 1u) { // ROWS_AT_ONCE iterations
                    // Rows past the last one read it again.
                    let offset = min(i + r, end - 1u) * step + min(k * RUN, last);
                    words[r] = a[at + offset];
                    if HAS_U {
                        us[r] = bitcast<vec4<f32>>(u[at_u + offset * BESIDE]);
                        if A_DTYPE != F32 {
                            second_us[r] = bitcast<vec4<f32>>(u[at_u + offset * BESIDE + 1u]);
                        }
                    }
                }
                for (var r = 1u; r < ROWS_AT_ONCE; r += 1u) { // ROWS_AT_ONCE - 1 iterations
                    // In place of what is read: with a branch around its use compilers move each read into it.
                    let there = i + r < end;
                    words[r] = select(vec4<u32>(), words[r], there);
                    us[r] = select(vec4<f32>(), us[r], there);
                    second_us[r] = select(vec4<f32>(), second_us[r], there);
                }
                for (var r = 0u; r < ROWS_AT_ONCE; r += 1u) { // ROWS_AT_ONCE iterations
                    let x = quad_low(words[r], A_DTYPE);
                    if WIDE {
                        seen[k] |= words[r];
                    }
                    block_low[k] += x;
                    if A_DTYPE == F32 {
                        if HAS_U {
                            block_low_dots[k] += x * us[r];
                        }
                    } else {
                        let z = quad_high(words[r], A_DTYPE);
                        block_high[k] += z;
                        if HAS_U {
                            block_low_dots[k] += x * vec4<f32>(us[r].xz, second_us[r].xz);
                            block_high_dots[k] += z * vec4<f32>(us[r].yw, second_us[r].yw);
                        }
                    }
                }
            }
        }
        for (var k = 0u; k < COLUMN_QUADS; k += 1u) { // COLUMN_QUADS iterations
            low[k] += block_low[k];
            high[k] += block_high[k];
            low_dots[k] += block_low_dots[k];
            high_dots[k] += block_high_dots[k];
        }
    }

    var again = 0u; // a bit for each column whose sum of a * u left the safe range; a sum of zeros did not
    for (var k = 0u; k < COLUMN_QUADS; k += 1u) { // COLUMN_QUADS iterations
        if k * RUN > last {
            break;
        }
        for (var i = 0u; i < QUAD; i += 1u) { // QUAD iterations
            var s = vec2<f32>(low[k][i % 4u], low_dots[k][i % 4u]);
            if A_DTYPE != F32 {
                let even = vec2<f32>(low[k][i / 2u], low_dots[k][i / 2u]);
                s = select(even, vec2<f32>(high[k][i / 2u], high_dots[k][i / 2u]), i % 2u == 1u);
            }
            let column = (unit + k * RUN) * QUAD + i;
            var once_more = false;
            if WIDE && HAS_U {
                let bits = unpack(seen[k][select(i / 2u, i % 4u, A_DTYPE == F32)], i, A_DTYPE);
                once_more = scale_exponent(s.y) != 0 && magnitude(bits) != 0u;
                again |= select(0u, 1u << (k * QUAD + i), once_more);
            }
            if !once_more {
                put(split, column, Stat(s, 0.0));
            }
        }
    }
    // Once more, term by term.
    while again != 0u { // at most COLUMN_QUADS * QUAD iterations
        let at_bit = countTrailingZeros(again);
        again &= again - 1u;
        let k = at_bit / QUAD;
        let i = at_bit % QUAD;
        var sum = 0.0;
        var dot = Wide(0.0, NOTHING);
        for (var row = begin; row < end; row += 1u) { // split_length iterations
            let offset = row * step + k * RUN;
            let word = a[at + offset][select(i / 2u, i % 4u, A_DTYPE == F32)];
            let x = unpack(word, i, A_DTYPE);
            sum += x;
            dot = add_term(dot, x, bitcast<vec4<f32>>(u[at_u + offset * BESIDE + i / 4u])[i % 4u]);
        }
        let column = (unit + k * RUN) * QUAD + i;
        put(split, column, Stat(vec2<f32>(sum, dot.m), f32(dot.e)));
    }
}

// What a split makes of a column.
fn put(split: u32, column: u32, stat: Stat) {
    if DIRECT {
        write_end(column, stat);
    } else {
        partials[p.first_partial + split * p.count + column] = PartialStatistic(stat.s.x, stat.s.y, stat.n);
    }
}
