// Partial sums with an exponent of their own, (splits, rows, columns of all groups).
// slot params = product/params
// import numbers/wide
//
// Slot `partials`, which partials_plain.wgsl fills too: the functions below.

@group(0) @binding(8) var<storage, read_write> partials: array<vec2<u32>>; // Wide: f32 m, i32 e

// That of an element of C, of a column of all groups.
fn partial_place(split: u32, row: u32, column: u32) -> u32 {
    return (split * p.rows + row) * all_columns() + column;
}

// Row and column of the i-th element of C that is finished, so that neighbours find neighbouring partial sums.
fn finished_place(i: u32) -> vec2<u32> {
    return vec2<u32>(i / all_columns(), i % all_columns());
}

fn put_partial(at: u32, sum: Wide) {
    partials[at] = vec2<u32>(bitcast<u32>(sum.m), bitcast<u32>(sum.e));
}

fn partial_at(at: u32) -> Wide {
    return Wide(bitcast<f32>(partials[at].x), bitcast<i32>(partials[at].y));
}
