// Partial sums in f32, (splits, columns of all groups, rows): those of a split lie as the gradient of a weight does,
// (channel of c, channel of a in a group, tap). For sums that nobody forms again with an exponent of their own.
// slot params = product/params_windows
// import numbers/wide
//
// Fills the slot `partials`: see partials_wide.wgsl.

@group(0) @binding(8) var<storage, read_write> partials: array<f32>;

fn partial_place(split: u32, row: u32, column: u32) -> u32 {
    return (split * all_columns() + column) * p.rows + row;
}

fn finished_place(i: u32) -> vec2<u32> {
    return vec2<u32>(i % p.rows, i / p.rows);
}

fn put_partial(at: u32, sum: Wide) {
    partials[at] = sum.m;
}

fn partial_at(at: u32) -> Wide {
    return Wide(partials[at], 0);
}
