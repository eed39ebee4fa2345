// The items of one weight, derived from the parameters of a dispatch. (item_table.wgsl: of a set. `Cut::item` of
// src/weight/cut.rs makes those of its table by the same arithmetic.)
// import weight/item

// Items lie in rows, `across` of them side by side: item id is number id % across of row id / across.
struct Params {
    count: u32,       // items
    across: u32,
    each: u32,        // of `all` side by side, those of an item: row_sums: stretches; column_sums: columns;
                      // finish_sums: norms; rescale: elements
    all: u32,         // rescale: element behind the last one
    length: u32,      // row_sums: elements of a stretch; column_sums: rows of one; rescale: elements from an item's
                      // first one to behind its last one, more than `each` where it goes down columns;
                      // finish_sums: log2 of the lanes of a norm
    stride: u32,      // elements from a row to the next; finish_sums: see Finish, a_stride
    rows: u32,        // column_sums: all of them; finish_sums: see Finish, outer; held_gradients: pieces of dw
    step: u32,        // column_sums: rows of an item; rescale: see Rescale
    inner: u32,       // see Finish, Rescale; held_gradients: units from a piece of dw to the next
    kept: u32,        // see Rescale
    position: u32,    // see Rescale
    part: u32,        // the first partial sum
    places: u32,      // 8 bits each: v, dw, g, out of Member (held_gradients: dg is out)
    more_places: u32, // 8 bits each: w of Member; the first element
    flags: u32,
    eps: f32,
}

var<immediate> p: Params;

override LANE_BITS: u32 = 6u;
override RUN_BITS: u32 = 6u;

fn is_item(id: u32) -> bool {
    return id < p.count;
}

fn takes_gains() -> bool {
    return true;
}

// How many there are, and units from one to the next.
fn pieces_of_dw() -> vec2<u32> {
    return vec2<u32>(p.rows, p.inner);
}

fn member_at(part: u32) -> Member {
    return Member(
        extractBits(p.places, 0u, 8u),
        extractBits(p.places, 8u, 8u),
        extractBits(p.places, 16u, 8u),
        p.part + part,
        extractBits(p.places, 24u, 8u),
        extractBits(p.more_places, 0u, 8u),
        p.flags,
        p.eps,
    );
}

fn first_element() -> u32 {
    return extractBits(p.more_places, 8u, 8u);
}

fn turns_of(count: u32, lane_bits: u32) -> u32 {
    let side_by_side = 64u >> lane_bits;
    return (count + side_by_side - 1u) / side_by_side;
}

fn sum_item(id: u32) -> Rows {
    let y = id / p.across;
    let x = (id - y * p.across) * p.each;
    let count = min(p.each, p.all - x);
    let row = first_element() + y * p.stride;
    return Rows(
        member_at(y * p.all + x),
        row + x * p.length,
        p.length,
        count,
        turns_of(count, LANE_BITS),
        LANE_BITS,
        RUN_BITS,
        row + p.stride,
        x,
    );
}

fn column_item(id: u32) -> Columns {
    let y = id / p.across;
    let x = (id - y * p.across) * p.each;
    let row = y * p.step;
    return Columns(
        member_at(row / p.length * p.all + x),
        first_element() + row * p.stride + x,
        p.stride,
        min(p.step, p.rows - row),
        p.length,
        p.all,
        min(p.each, p.all - x) / select(1u, UNIT, (p.flags & WHOLE) != 0u),
        0u,
        0u,
    );
}

fn finish_item(id: u32) -> Finish {
    let x = id * p.each;
    let count = min(p.each, p.all - x);
    let lane_bits = p.length;
    let turns = turns_of(count, lane_bits);
    return Finish(member_at(x * p.inner), p.rows, p.stride, p.inner, count, turns, lane_bits, x, 0u);
}

fn rescale_item(id: u32) -> Rescale {
    let y = id / p.across;
    let x = (id - y * p.across) * p.each;
    let row = y * p.stride;
    let down = p.length > p.each;
    return Rescale(
        member_at(0u),
        max(row + x, first_element()),
        min(row + min(x + p.length, p.stride), p.all),
        p.inner,
        p.kept,
        p.position,
        p.step,
        select(64u, min(p.each, p.step * UNIT - x) / UNIT, down),
        RUN_BITS,
    );
}
