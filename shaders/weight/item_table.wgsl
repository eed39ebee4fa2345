// The items of a set of weights: a table on the device. (item_one.wgsl: of one weight.)
// import weight/item

struct Params {
    count: u32,       // items
    first: u32,       // the first of them within its binding
    takes_gains: u32, // 0: no member has a gain
}

var<immediate> p: Params;

// It shares its buffer with nothing: see READ in source.rs.
@group(0) @binding(0) var<storage> rows: array<Rows>;
@group(0) @binding(0) var<storage> columns: array<Columns>;
@group(0) @binding(0) var<storage> finishes: array<Finish>;
@group(0) @binding(0) var<storage> rescales: array<Rescale>;

fn is_item(id: u32) -> bool {
    return id < p.count;
}

fn sum_item(id: u32) -> Rows {
    return rows[p.first + id];
}

fn column_item(id: u32) -> Columns {
    return columns[p.first + id];
}

fn finish_item(id: u32) -> Finish {
    return finishes[p.first + id];
}

fn rescale_item(id: u32) -> Rescale {
    return rescales[p.first + id];
}

fn takes_gains() -> bool {
    return p.takes_gains != 0u;
}
