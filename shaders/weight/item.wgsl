// What a workgroup does with a weight: an item, of one of these kinds. Slot `item`: item_one.wgsl derives the items of
// one weight from the parameters of a dispatch, item_table.wgsl reads those of a set from its table. Either declares
//
//   is_item(id) -> bool            whether the workgroup has anything to do
//   sum_item(id), column_item(id), finish_item(id), rescale_item(id)
//   takes_gains() -> bool          whether any g is to be taken
//
// and item_one.wgsl alone pieces_of_dw(), for held_gradients.wgsl.
//
// A tensor's elements are counted from a place that is a multiple of eight elements from its start; where that lies in
// its binding, modulo 2^32, says the slot `access`.
// import numbers/storage

// What all items begin with: where the weight's tensors are, and what is to be done.
struct Member {
    v: u32,      // words or quads, see the slot `access`
    dw: u32,
    g: u32,      // element
    part: u32,   // partial sums
    out: u32,    // f32 words of `out`; rescale: scales of `scales`
    w: u32,      // rescale: as v; else f32 words of `beside`
    flags: u32,
    eps: f32,
}

// Fields of `flags`: the first bit, and two bits each, or one.
const OF_V = 0u;
const OF_DW = 2u;
const OF_W = 4u;
const OF_POLICY = 6u;
const HAS_GAIN = 0x100u;
const DIRECT = 0x200u; // row_sums: a stretch is one norm: write it out
const HAS_BESIDE = 0x400u;
const WHOLE = 0x800u; // row_sums: stretches of whole units; column_sums, held_gradients: rows of them; rescale:
                      // each has one norm
const KEEPS = 0x1000u; // rescale: all units of an invocation have the same norms
const OF_GAIN = 13u;
const OF_KNOWN = 16u; // eight bits: element of `known` or `centers`
const OF_OUT = 24u; // what is written for a norm: OUT_NORMS ..

// Stretches `count` of `length` elements, one after the other. Sum r goes to norm r or partial sum r.
struct Rows {
    member: Member,
    first: u32,     // element
    length: u32,
    count: u32,
    turns: u32,     // stretches that a lane has a part in, up to 32
    lane_bits: u32, // log2 of the lanes of a stretch
    run_bits: u32,  // log2 of the neighbouring lanes that read neighbouring units
    end: u32,       // element behind the last stretch, which may be shorter
    norm: u32,      // of stretch 0, if DIRECT
}

// `rows` rows of some neighbouring columns, in stretches of split_length rows. Stretch s of column c goes to partial
// sum s * columns + c.
struct Columns {
    member: Member,
    first: u32,        // element
    stride: u32,       // from a row to the next
    rows: u32,
    split_length: u32,
    columns: u32,      // of the stretches' partial sums
    units: u32,        // units (WHOLE) or elements of a row, an invocation each
    unused: u32,
    unused_too: u32,
}

// Norm j is the sum of the partial sums a * a_stride + j * inner + b, a < outer, b < inner.
struct Finish {
    member: Member,
    outer: u32,
    a_stride: u32,
    inner: u32,
    count: u32, // norms
    turns: u32,
    lane_bits: u32,
    norm: u32, // the first one
    unused: u32,
}

// Elements begin .. end - 1. Element e belongs to norm (position + e) / inner % kept.
struct Rescale {
    member: Member,
    begin: u32,
    end: u32,
    inner: u32,
    kept: u32,
    position: u32,
    step: u32,     // from a unit of an invocation to its next
    width: u32,    // invocations
    run_bits: u32, // log2 of the neighbouring invocations that take neighbouring units
}

const MIXED = 3u; // a storage type, or a flag, of each item's own

override V_DTYPE: u32 = F32;
override DW_DTYPE: u32 = F32;
override W_DTYPE: u32 = F32;
override ADD: bool = false; // add to what dg and dv hold
override ALL_WHOLE: u32 = 1u; // row_sums, column_sums: the flag of all items, or MIXED

// Elements that are read and written together, from a multiple of that on: whole quads in every storage type.
override UNIT: u32 = select(8u, 4u, (V_DTYPE | DW_DTYPE | W_DTYPE) == F32);

// `setting`: 0 or 1 where it is the same for all items of a dispatch.
fn has(m: Member, flag: u32, setting: u32) -> bool {
    return select(setting == 1u, (m.flags & flag) != 0u, setting == MIXED);
}

fn type_of(m: Member, first_bit: u32, setting: u32) -> u32 {
    return select(setting, extractBits(m.flags, first_bit, 2u), setting == MIXED);
}

fn policy_of(m: Member) -> u32 {
    return extractBits(m.flags, OF_POLICY, 2u);
}
