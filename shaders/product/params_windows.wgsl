// The parameters of a convolution, and what follows from them.
//
// Fills the slot `params`: see params.wgsl.
//
// A convolution goes over two sides: a, whose positions the taps fall on, and c, whose positions are windows of a:
//   c[b, p, u] = sum_(q,κ) v[p, q, κ] * a[b, gQ + q, u * stride + κ * reach - lead]        p in group g
// Rows of the product are positions of all images, an image having a multiple of four of them, of which the last may
// not be there. Sizes along height and width are packed, 16 bits each, height above; one in 1-D has height 1.
// Images, groups and channels are counted from the first ones that are bound, and so are rows, columns and steps.

struct Params {
    rows: u32,          // of C in this dispatch
    columns: u32,       // of a group in this dispatch
    depth: u32,         // steps of k
    split_length: u32,  // steps of k in a split
    split_first: u32,
    splits: u32,
    offsets: u32,       // 8 bits each: the first element within its binding of A, of B, of C, of the extra tensor
    more_offsets: u32,  // 8 bits each: of the gains, the biases, the norms or Scales, the norms that are written
    policy: u32,
    eps: f32,
    slope: f32,
    window_split: u32,  // the first split of the steps that are bound
    group_count: u32,   // in this dispatch
    v_row: u32,         // elements of v from a row to the next
    row_first: u32,
    column_first: u32,
    a_image: u32,       // elements of A from an image to the next
    a_width: u32,
    heights: u32,       // of A; above it that of C
    positions: u32,     // rows of an image that are there
    width: u32,         // of them
    channels: u32,      // of a group, of A
    taps: u32,          // of the sum
    kernel: u32,        // taps of v
    phases: u32,        // positions of C for one row of the product
    stride: u32,
    reach: u32,         // from a tap to the next
    lead: u32,          // positions before
    c_image: u32,       // elements of C from an image to the next
    c_width: u32,
    input_slope: f32,
    scale: f32,         // of the result
}

var<immediate> p: Params;

override PHASED: bool = false; // columns are (channel of a, phase); else channels of c
override SCALE_BY_GROUP: bool = false; // each group has Scales of its own
override SCALE_AXIS: u32 = SCALE_CHANNELS; // what has Scales of its own

// A gate of activation.wgsl, which makes each channel of y of two of c: columns are (channel of y, half of c), so that
// neighbours meet at the end. There is one group then.
override GATE: u32 = 0u;
override GATED: bool = GATE != 0u;
const FOUR_MEET = false; // see params.wgsl

const SCALE_CHANNELS = 0u;
const SCALE_HEIGHT = 1u;
const SCALE_WIDTH = 2u;

var<private> group: u32; // of the tile

fn group_count() -> u32 {
    return p.group_count;
}

fn in_group(tile: u32, tiles: u32) -> u32 {
    group = tile / tiles;
    return tile % tiles;
}

fn column_in_group(column: u32) -> u32 {
    group = column / p.columns;
    return column % p.columns;
}

fn all_columns() -> u32 {
    return p.group_count * p.columns;
}

fn column_of_all(column: u32) -> u32 {
    return group * p.columns + column;
}

// A dispatch of several groups has all of their columns.
fn first_column() -> u32 {
    return group * p.columns + p.column_first;
}

// The rows of B of four columns of the dispatch.
fn b_rows(columns: vec4<u32>) -> vec4<u32> {
    let all = first_column() + columns;
    if GATED {
        return all / 2u + all % 2u * (p.c_image / p.positions);
    }
    return all;
}

fn split_begin(i: u32) -> u32 {
    return (p.split_first - p.window_split + i) * p.split_length;
}

fn height_of(packed: u32) -> u32 {
    return packed >> 16u;
}

fn width_of(packed: u32) -> u32 {
    return packed & 0xffffu;
}

fn area_of(packed: u32) -> u32 {
    return height_of(packed) * width_of(packed);
}

// Rows of B are those of v.
fn b_stride() -> u32 {
    return p.v_row;
}

fn scale_index(k: u32) -> u32 {
    if SCALE_AXIS == SCALE_WIDTH {
        return k % width_of(p.kernel);
    }
    if SCALE_AXIS == SCALE_HEIGHT {
        return k / width_of(p.kernel) % height_of(p.kernel);
    }
    return select(0u, group * p.channels, SCALE_BY_GROUP) + k / area_of(p.taps);
}

// Of a phased product the kept axis is that of a's channels within a group.
fn norm_index(column: u32) -> u32 {
    return select(b_rows(vec4<u32>(column)).x, (p.column_first + column) / area_of(p.phases), PHASED);
}

fn channel_of(column: u32) -> u32 {
    return b_rows(vec4<u32>(column)).x / area_of(p.phases);
}

// i / n, for i below 2^20: exact, since (i + 1/2) / n is further from an integer than the roundings move it.
fn divided(i: u32, n: u32) -> u32 {
    return u32((f32(i) + 0.5) * (1.0 / f32(n)));
}

// The rows of an image.
fn rows_of_image() -> u32 {
    return (p.positions + 3u) / 4u * 4u;
}
