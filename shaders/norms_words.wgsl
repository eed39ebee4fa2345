// How norms.wgsl reads v and dw word by word: any length of rows, from any element on. (norms_quads.wgsl: four words at
// once.)

@group(0) @binding(0) var<storage, read> v: array<u32>; // words of V_DTYPE
@group(0) @binding(5) var<storage, read> dw: array<u32>; // DOT: words of W_DTYPE, shaped as v

// What a unit adds to a sum: squares of a word, or a product of elements.
alias Terms = f32;

override SQUARE_UNIT: u32 = select(2u, 1u, V_DTYPE == F32); // elements
const PRODUCT_UNIT = 1u; // elements

fn total_of(terms: Terms) -> f32 {
    return terms;
}

fn v_at(e: u32) -> f32 {
    return unpack(v[select(e >> 1u, e, V_DTYPE == F32)], e, V_DTYPE);
}

fn dw_at(e: u32) -> f32 {
    return unpack(dw[select(e >> 1u, e, W_DTYPE == F32)], e, W_DTYPE);
}

// The squares of what word w holds of the elements first .. end - 1.
fn squares_at(w: u32, first: u32, end: u32, scale: f32) -> Terms {
    if V_DTYPE == F32 {
        let a = bitcast<f32>(v[w]) * scale;
        return a * a;
    }
    let pair = unpack_pair(v[w], V_DTYPE) * scale;
    // The neighbouring row may own a half of the word, and hold a NaN there.
    let a = select(0.0, pair.x, 2u * w >= first);
    let b = select(0.0, pair.y, 2u * w + 1u < end);
    return a * a + b * b;
}

// dw * v at element e of v and f of dw.
fn products_at(e: u32, f: u32) -> Terms {
    return v_at(e) * dw_at(f);
}

// The square of element e of v, which products_at takes too.
fn squares_beside(e: u32, scale: f32) -> Terms {
    let a = v_at(e) * scale;
    return a * a;
}

// Elements first, first + stride, .. of a column, rows of them, four at a time.
fn column_squares(first: u32, rows: u32, scale: f32) -> f32 {
    var a = 0.0;
    var b = 0.0;
    var c = 0.0;
    var d = 0.0;
    var e = first;
    var row = 0u;
    for (; row + 3u < rows; row += 4u) { // rows / 4 iterations
        a += squares_beside(e, scale);
        b += squares_beside(e + p.stride, scale);
        c += squares_beside(e + 2u * p.stride, scale);
        d += squares_beside(e + 3u * p.stride, scale);
        e += 4u * p.stride;
    }
    for (; row < rows; row += 1u) { // at most 3 iterations
        a += squares_beside(e, scale);
        e += p.stride;
    }
    return (a + b) + (c + d);
}

// sum of dw * v down a column, from e of v and f of dw on.
fn column_dots(e: u32, f: u32, rows: u32) -> Wide {
    var a = 0.0;
    var b = 0.0;
    var c = 0.0;
    var d = 0.0;
    var row = 0u;
    for (; row + 3u < rows; row += 4u) { // rows / 4 iterations
        a += products_at(e + row * p.stride, f + row * p.stride);
        b += products_at(e + (row + 1u) * p.stride, f + (row + 1u) * p.stride);
        c += products_at(e + (row + 2u) * p.stride, f + (row + 2u) * p.stride);
        d += products_at(e + (row + 3u) * p.stride, f + (row + 3u) * p.stride);
    }
    for (; row < rows; row += 1u) { // at most 3 iterations
        a += products_at(e + row * p.stride, f + row * p.stride);
    }
    let s = (a + b) + (c + d);
    if is_safe(s) {
        return Wide(s, 0);
    }
    return wide_column_dots(e, f, rows);
}

// Sums of squares down the columns of a (length, count) matrix: stretch s of a column holds split_length rows.
// One invocation a stretch, neighbours in neighbouring columns. Writes part[part_first + s * count + column].
@compute @workgroup_size(THREADS)
fn column_sums(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let task = flat(group, groups) * THREADS + t;
    let column = task % p.count;
    let split = task / p.count;
    if split >= p.splits {
        return;
    }
    let row = split * p.split_length;
    let rows = min(p.split_length, p.length - row);
    let place = row * p.stride + column;
    let first = extractBits(p.firsts, 0u, 8u) + place;
    var sum: Wide;
    if DOT {
        sum = column_dots(first, extractBits(p.more_firsts, 0u, 8u) + place, rows);
    } else {
        var s = column_squares(first, rows, 1.0);
        let up = lift(s);
        if up != 0 {
            s = column_squares(first, rows, exp2i(up));
        }
        sum = Wide(s, -2 * up);
    }
    part[p.part_first + task] = vec2<u32>(bitcast<u32>(sum.m), bitcast<u32>(sum.e));
}
