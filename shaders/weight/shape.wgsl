// Parameters of the kernels of norms.wgsl, and the partial sums between them.
// import numbers/lanes

struct Params {
    count: u32,        // row_sums: stretches; column_sums: columns; finish_sums: norms
    length: u32,       // row_sums: elements in a row; column_sums: rows; finish_sums: outer partial sums (a)
    stride: u32,       // column_sums: elements from a row to the next; finish_sums: from an outer sum to the next
    splits: u32,       // row_sums: stretches a row; column_sums: stretches of rows; finish_sums: from j to j + 1
    split_length: u32, // elements (rows) in a stretch; finish_sums: inner partial sums (b)
    split_first: u32,  // the stretch at which this dispatch starts; row_sums: within its row
    part_first: u32,   // where the partial sums of this dispatch start
    offsets: u32,       // 8 bits each: the first element of v, g, norms, norms_too within its binding
    more_offsets: u32,  // the same of dw, known
    policy: u32,
    eps: f32,
    has_gain: u32,
    has_norms_too: u32, // 2: add to it
}

var<immediate> p: Params;

@group(0) @binding(2) var<storage, read_write> part: array<vec2<u32>>; // Wide: f32 m, i32 e

override V_DTYPE: u32 = F32;
override W_DTYPE: u32 = F32;
override DOT: bool = false; // sums of dw * v for those of v²

// Neighbouring invocations that read neighbouring units, a power of two up to those of a stretch: all of them where
// a device joins their reads, fewer where each had better go through memory in order.
override RUN: u32 = 64u;

// Whether f32 holds a sum safely.
fn is_fine(s: f32) -> bool {
    if DOT {
        return is_safe(s);
    }
    return lift(s) == 0;
}
