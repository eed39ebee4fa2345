// How statistics.wgsl reads a matrix word by word: any number of columns, from any element on. (quads.wgsl:
// four words at once.)
// import batch/statistics

@group(0) @binding(0) var<storage, read> a: array<u32>; // (rows, columns) words of A_DTYPE
@group(0) @binding(1) var<storage, read> u: array<f32>; // (rows, columns)

// An element of a, with its partner.
fn pair(row: u32, column: u32) -> vec2<f32> {
    let e = row * p.stride + column;
    let at = extractBits(p.offsets, 0u, 8u) + e;
    let x = unpack(a[select(at >> 1u, at, A_DTYPE == F32)], at, A_DTYPE);
    if STATISTIC == STATISTIC_DOTS && HAS_U {
        return vec2<f32>(x, u[extractBits(p.offsets, 8u, 8u) + e]);
    }
    return vec2<f32>(x, 0.0);
}

// What is added up of it.
fn term(pair: vec2<f32>) -> vec2<f32> {
    return vec2<f32>(pair.x, pair.x * pair.y);
}

fn bits_of(pair: vec2<f32>) -> u32 {
    return bitcast<u32>(pair.x);
}

// Rows begin, begin + CY, .. below end of a column, four at a time.
fn column_stat(column: u32, begin: u32, end: u32) -> Stat {
    var total = Stat(vec2<f32>(), 0.0);
    var lanes = array<vec2<f32>, 4>();
    var seen = 0u; // all bits of a in this column
    var row = begin;
    for (; row + 3u * CY < end; row += 4u * CY) { // (end - begin) / (4 CY) iterations
        let x = pair(row, column);
        let y = pair(row + CY, column);
        let z = pair(row + 2u * CY, column);
        let w = pair(row + 3u * CY, column);
        if STATISTIC == STATISTIC_DOTS {
            lanes[0] += term(x);
            lanes[1] += term(y);
            lanes[2] += term(z);
            lanes[3] += term(w);
            seen |= (bits_of(x) | bits_of(y)) | (bits_of(z) | bits_of(w));
        } else {
            let four = vec4<f32>(x.x, y.x, z.x, w.x);
            // Relative to the first one, so that a mean far from 0 costs no digits.
            let apart = four - four.x;
            let shift = 0.25 * ((apart.x + apart.y) + (apart.z + apart.w));
            let rest = apart - shift;
            total = merge(total, Stat(vec2<f32>(four.x + shift, 0.25 * dot(rest, rest)), 4.0));
        }
    }
    if STATISTIC == STATISTIC_DOTS {
        total.s = (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
    }
    for (; row < end; row += CY) { // at most 3 iterations
        let x = pair(row, column);
        if STATISTIC == STATISTIC_DOTS {
            total.s += term(x);
            seen |= bits_of(x);
        } else {
            total = merge(total, Stat(x, 1.0));
        }
    }
    if STATISTIC == STATISTIC_DOTS && WIDE && HAS_U {
        // Once more, term by term, where the sum left the safe range; a sum of zeros did not.
        let again = scale_exponent(total.s.y) != 0 && (seen & MAGNITUDE) != 0u;
        var dot = Wide(0.0, NOTHING);
        for (row = select(end, begin, again); row < end; row += CY) { // (end - begin) / CY iterations
            let x = pair(row, column);
            dot = add_term(dot, x.x, x.y);
        }
        if again {
            total = Stat(vec2<f32>(total.s.x, dot.m), f32(dot.e));
        }
    }
    return total;
}

// A workgroup takes CX columns of one split; its invocation t takes column t % CX and every CY-th row from t / CX on.
@compute @workgroup_size(THREADS)
fn batch_sums(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
    let id = flat(group, groups);
    let blocks = (p.count + CX - 1u) / CX;
    let split = id / blocks;
    let column = id % blocks * CX + t % CX;
    let mine = split < p.splits && column < p.count;
    var stat = Stat(vec2<f32>(), 0.0);
    if mine {
        let begin = split * p.split_length;
        stat = column_stat(column, begin + t / CX, min(begin + p.split_length, p.rows));
    }
    stat = combine_lanes(stat, t);
    if mine && t < CX {
        if DIRECT {
            write_end(column, stat);
        } else {
            partials[p.first_partial + split * p.count + column] = PartialStatistic(stat.s.x, stat.s.y, stat.n);
        }
    }
}
