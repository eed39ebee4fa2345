// The parameters of a product of two matrices.
//
// Slot `params`, which params_windows.wgsl fills too. What else it declares says which group of columns a tile belongs
// to; here all columns are one group.

struct Params {
    rows: u32,         // of C in this dispatch
    columns: u32,      // of C in this dispatch
    depth: u32,        // steps of k in this dispatch
    a_stride: u32,     // elements from a row of A, as stored, to the next
    b_stride: u32,     // the same of B
    c_stride: u32,     // the same of C
    split_length: u32, // steps of k in a split
    split_first: u32,  // the number of the first split in this dispatch
    splits: u32,       // of all dispatches
    offsets: u32,      // 8 bits each: the first element within its binding of A, of B; the others are the epilogue's
    more_offsets: u32, // 8 bits each: the epilogue's, the third of the Scales of the steps
    policy: u32,
    eps: f32,
    slope: f32,        // of a leaky ReLU; in gradient.wgsl a factor of the sums
    next: u32,         // of recurrent cells: see c_cell.wgsl
    zeros: u32,        // the same: bits
}

var<immediate> p: Params;

// Of a step of recurrent cells: how many rows of B, one for each of its gates, belong to a unit. They lie as many rows
// apart as there are units, and meet in the quads of an invocation: column 4i + j is gate j of unit i. Where there are
// three the fourth column repeats the last.
override GATES: u32 = 1u;
override FOUR_MEET: bool = GATES > 1u;

// Groups of the dispatch.
fn group_count() -> u32 {
    return 1u;
}

// Takes the group of a tile, and gives the tile's number within it.
fn in_group(tile: u32, tiles: u32) -> u32 {
    return tile;
}

// Takes the group of a column of all groups, and gives the column's number within it.
fn column_in_group(column: u32) -> u32 {
    return column;
}

// The columns of all groups together, and where one of the group that was taken is among them.
fn all_columns() -> u32 {
    return p.columns;
}

fn column_of_all(column: u32) -> u32 {
    return column;
}

const GATED = false; // see params_windows.wgsl

// The rows of B of four columns of the dispatch.
fn b_rows(columns: vec4<u32>) -> vec4<u32> {
    if FOUR_MEET {
        return columns / 4u + min(columns % 4u, vec4<u32>(GATES - 1u)) * (p.columns / 4u);
    }
    return columns;
}

// The first step of k of the dispatch's i-th split: operands are bound from its first on.
fn split_begin(i: u32) -> u32 {
    return i * p.split_length;
}

fn b_stride() -> u32 {
    return p.b_stride;
}

// The Scale of step k.
fn scale_index(k: u32) -> u32 {
    return k;
}

// The norm and gain of a column, and its bias.
fn norm_index(column: u32) -> u32 {
    return b_rows(vec4<u32>(column)).x;
}

fn channel_of(column: u32) -> u32 {
    return b_rows(vec4<u32>(column)).x;
}
