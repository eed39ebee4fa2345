// Sums down the columns of a matrix, partial sums of norms, word by word.
// slot access = weight/access_scalar
// import weight/exact
//
// Slot `columns` of norms.wgsl, which columns_vec4.wgsl fills too.

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
    return exact_column_dots(e, f, rows);
}

// Sums of squares down the columns of a (length, count) matrix: stretch s of a column holds split_length rows.
// One invocation a stretch, neighbours in neighbouring columns. Writes part[part_first + s * count + column].
@compute @workgroup_size(THREADS)
fn column_sums(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
    let task = flat(group, groups) * THREADS + t;
    let column = task % p.count;
    let split = task / p.count;
    if split >= p.splits {
        return;
    }
    let row = split * p.split_length;
    let rows = min(p.split_length, p.length - row);
    let place = row * p.stride + column;
    let first = extractBits(p.offsets, 0u, 8u) + place;
    var sum: Wide;
    if DOT {
        sum = column_dots(first, extractBits(p.more_offsets, 0u, 8u) + place, rows);
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
