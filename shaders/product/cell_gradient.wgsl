// A step of recurrent cells on the way back: A = dq of the step behind, (batch, gates of all units), B = v of the
// hidden weight as (gates of all units, units), scaled to w; the sums are what of dh comes through the weight.
// slot scale = product/scale_pairs
// slot family = product/tile
// import product/exact
// import product/activation
// import product/cells
//
// With d = dh, the sums and dy, and c, h and the gates as c_cell.wgsl has them:
//
//   LSTM  dc += d o (1 - tanh²(c')), di = dc g i (1 - i), df = dc c f (1 - f), dg = dc i (1 - g²),
//         do = d tanh(c') o (1 - o), dc = dc f for the step before
//   GRU   dn = d (1 - u)(1 - n²), du = d (h - n) u (1 - u), dr = dn q r (1 - r), of q: dr, du, dn r;
//         d u for the step before
//   RNN   dz = d (1 - h'²)
//
// Gradients of the gates take their place. Before the first step what a GRU carries becomes dh itself.

@group(0) @binding(2) var<storage, read_write> carried: array<f32>; // (batch, units): dc, or d u of a GRU
// GRU: (batch, 3 units), what was kept of q, and its gradient. LSTM, with C_APART: c', (batch, units), to be read.
@group(0) @binding(3) var<storage, read_write> of_hidden: array<f32>;
@group(0) @binding(5) var<storage, read_write> gates: array<f32>; // (batch, gates of all units)
@group(0) @binding(6) var<storage, read> dy: array<u32>; // (batch, units), words of DY_DTYPE
// (batch, units), words of BEFORE_DTYPE: c, and `next` elements further c'; h of a GRU.
@group(0) @binding(7) var<storage, read> before: array<u32>;

override DY_DTYPE: u32 = F32;
override BEFORE_DTYPE: u32 = F32;
override SCALE_OF_COLUMNS: u32 = SCALE_NONE; // beside SCALED_B

const SCALE_NONE = 0u;
const SCALE_EACH = 1u;
const SCALE_ONE = 2u;

// Whether the sums are ready, (batch, units), in the place of A; without steps of k.
override READY: bool = false;

override C_APART: bool = false;

override GATE_COUNT: u32 = select(select(1u, 3u, CELL == CELL_GRU), 4u, CELL == CELL_LSTM);

fn carried_place(at: u32) -> u32 {
    return extractBits(p.more_offsets, 0u, 8u) + at;
}

fn back_from_behind(at: u32) -> f32 {
    var value = 0.0;
    if (p.zeros & ZERO_BEHIND) == 0u {
        value = carried[carried_place(at)];
    }
    return value;
}

// `further` elements behind the first.
fn before_at(further: u32) -> f32 {
    let e = extractBits(p.more_offsets, 8u, 8u) + further;
    return unpack(before[word_holding(e, BEFORE_DTYPE)], e, BEFORE_DTYPE);
}

fn before_or_zero(at: u32) -> f32 {
    var value = 0.0;
    if (p.zeros & ZERO_BEFORE) == 0u {
        value = before_at(at);
    }
    return value;
}

fn end_lstm(at: u32, z: u32, d: f32) {
    let n = p.columns;
    let i = gates[z];
    let f = gates[z + n];
    let g = gates[z + 2u * n];
    let o = gates[z + 3u * n];
    var c_behind = 0.0;
    if C_APART {
        c_behind = of_hidden[extractBits(p.more_offsets, 24u, 8u) + at];
    } else {
        c_behind = before_at(at + p.next);
    }
    let tanh_c = tanh_of(vec4<f32>(c_behind)).x;
    let dc = back_from_behind(at) + d * o * (1.0 - tanh_c * tanh_c);
    gates[z] = dc * g * (i * (1.0 - i));
    gates[z + n] = dc * before_or_zero(at) * (f * (1.0 - f));
    gates[z + 2u * n] = dc * i * (1.0 - g * g);
    gates[z + 3u * n] = d * tanh_c * (o * (1.0 - o));
    carried[carried_place(at)] = dc * f;
}

fn end_gru(at: u32, z: u32, d: f32) {
    let n = p.columns;
    let r = gates[z];
    let u = gates[z + n];
    let candidate = gates[z + 2u * n];
    // As far from its first element as z is from that of the gates.
    let first = extractBits(p.more_offsets, 24u, 8u) + z - extractBits(p.offsets, 16u, 8u);
    let q = of_hidden[first + 2u * n];
    let dn = d * (1.0 - u) * (1.0 - candidate * candidate);
    let du = d * (before_or_zero(at) - candidate) * (u * (1.0 - u));
    let dr = dn * q * (r * (1.0 - r));
    gates[z] = dr;
    gates[z + n] = du;
    gates[z + 2u * n] = dn;
    of_hidden[first] = dr;
    of_hidden[first + n] = du;
    of_hidden[first + 2u * n] = dn * r;
    carried[carried_place(at)] = d * u;
}

fn end(row: u32, unit: u32, sum: f32) {
    let at = row * p.columns + unit;
    let z = extractBits(p.offsets, 16u, 8u) + row * GATE_COUNT * p.columns + unit;
    let e = extractBits(p.offsets, 24u, 8u) + at;
    var d = sum;
    if SCALE_OF_COLUMNS != SCALE_NONE {
        let scale = step_scale(select(0u, unit, SCALE_OF_COLUMNS == SCALE_EACH));
        d = ((d * scale.x) * scale.y) * scale.x;
    }
    if CELL == CELL_GRU && (p.zeros & BEFORE_ALL) != 0u {
        carried[carried_place(at)] = d + back_from_behind(at);
        return;
    }
    d += unpack(dy[word_holding(e, DY_DTYPE)], e, DY_DTYPE);
    if CELL == CELL_LSTM {
        end_lstm(at, z, d);
    } else if CELL == CELL_GRU {
        end_gru(at, z, d + back_from_behind(at));
    } else {
        gates[z] = d * (1.0 - gates[z] * gates[z]);
    }
}

@compute @workgroup_size(THREADS)
fn cell_gradient(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
    let tile = flat(workgroup, workgroups);
    if tile >= tile_count() {
        return;
    }
    let origin = tile_origin(tile);
    product(origin.x, origin.y, 0u, p.depth, t);
    let column = origin.y + own_column(t);
    for (var block = 0u; block < TM / BLOCK; block += 1u) { // TM / BLOCK iterations
        take_block(block);
        let row = origin.x + own_row(t) + block * BLOCK;
        for (var q = 0u; q < QUADS; q += 1u) {
            let left = left_of(column + STEP * q, p.columns, true);
            for (var i = 0u; i < BLOCK; i += 1u) {
                let four = sum_at(i, q);
                for (var c = 0u; c < 4u; c += 1u) { // 4 iterations
                    let unit = column + STEP * q + c;
                    if row + i < p.rows && c < left {
                        var sum = four[c];
                        if READY {
                            sum = a_at(a_place(row + i, unit));
                        }
                        end(row + i, unit, sum);
                    }
                }
            }
        }
    }
}
