// The end of a step of recurrent cells. With q = U·h + its bias, the sums, and z, what the input gave:
//
//   LSTM  i, f, o = logistic(z + q), g = tanh(z + q), c' = f c + i g, h' = o tanh(c')
//   GRU   r, u = logistic(z + q), n = tanh(z + r q), h' = (1 - u) n + u h
//   RNN   h' = tanh(z + q)
//   TIMES m = z q
//
// slot params = product/params
// slot result = product/result_scalar
// import product/shape
// import product/activation
// import product/cells
// import numbers/wide
//
// Fills the slot `c`: see c_matrix.wgsl. The result is h', (batch, units). c' and what is kept for gradients take the
// place of what they are made of, so sums that are formed again are left out at first, as those that are added to
// something.

// (batch, gates of all units): z; with KEEP the gates take its place, of an RNN h'.
@group(0) @binding(6) var<storage, read_write> gates: array<f32>;
// LSTM: c, (batch, units), and `next` elements further c'. GRU, with KEEP: q of n, in the third of (batch, 3 units).
@group(0) @binding(7) var<storage, read_write> beside: array<f32>;

override KEEP: bool = false;
// Whether the sums with their bias are ready, (batch, gates of all units), where norms are else: with NORM_PLAIN, and
// no steps of k.
override READY: bool = false;
// LSTM, with READY: whether c is in the place of A, and c' alone where both are else.
override C_APART: bool = false;

const ADD = true;

var<private> collected: vec4<f32>; // sums of a unit that are put one after another

fn units() -> u32 {
    return select(p.columns, p.columns / 4u, FOUR_MEET);
}

fn gate_place(row: u32, unit: u32) -> u32 {
    return extractBits(p.offsets, 24u, 8u) + row * GATES * units() + unit;
}

fn beside_first() -> u32 {
    return extractBits(p.more_offsets, 24u, 8u);
}

fn ready_at(row: u32, gate: u32, unit: u32) -> f32 {
    return given[extractBits(p.more_offsets, 16u, 8u) + (row * GATES + gate) * units() + unit];
}

fn sums_of(row: u32, unit: u32, sums: vec4<f32>) -> vec4<f32> {
    if !READY {
        return sums;
    }
    return vec4<f32>(
        ready_at(row, 0u, unit), ready_at(row, 1u, unit), ready_at(row, 2u, unit), ready_at(row, GATES - 1u, unit),
    );
}

fn put_h(row: u32, unit: u32, h: f32) {
    put_element(extractBits(p.offsets, 16u, 8u) + row * units() + unit, h);
}

fn end_lstm(row: u32, unit: u32, q: vec4<f32>) {
    let n = units();
    let z = gate_place(row, unit);
    let sums_of_gates = q + vec4<f32>(gates[z], gates[z + n], gates[z + 2u * n], gates[z + 3u * n]);
    let open = logistic(sums_of_gates);
    let candidate = tanh_of(vec4<f32>(sums_of_gates.z)).x;
    let at = beside_first() + row * n + unit;
    var before = 0.0;
    if (p.zeros & ZERO_BEFORE) == 0u {
        if C_APART {
            before = a_at(a_place(row, unit));
        } else {
            before = beside[at];
        }
    }
    let c = open.y * before + open.x * candidate;
    beside[at + p.next] = c;
    if KEEP {
        gates[z] = open.x;
        gates[z + n] = open.y;
        gates[z + 2u * n] = candidate;
        gates[z + 3u * n] = open.w;
    }
    put_h(row, unit, open.w * tanh_of(vec4<f32>(c)).x);
}

fn end_gru(row: u32, unit: u32, q: vec4<f32>) {
    let n = units();
    let z = gate_place(row, unit);
    let open = logistic(vec4<f32>(q.x + gates[z], q.y + gates[z + n], 0.0, 0.0));
    let candidate = tanh_of(vec4<f32>(gates[z + 2u * n] + open.x * q.z)).x;
    var before = 0.0;
    if (p.zeros & ZERO_BEFORE) == 0u {
        before = a_at(a_place(row, unit));
    }
    if KEEP {
        gates[z] = open.x;
        gates[z + n] = open.y;
        gates[z + 2u * n] = candidate;
        beside[beside_first() + row * 3u * n + 2u * n + unit] = q.z;
    }
    put_h(row, unit, (1.0 - open.y) * candidate + open.y * before);
}

fn end_rnn(row: u32, unit: u32, q: f32) {
    let z = gate_place(row, unit);
    var h = gates[z] * q;
    if CELL != CELL_TIMES {
        h = tanh_of(vec4<f32>(gates[z] + q)).x;
    }
    if KEEP {
        gates[z] = h;
    }
    put_h(row, unit, h);
}

fn end_unit(row: u32, unit: u32, q: vec4<f32>) {
    if CELL == CELL_LSTM {
        end_lstm(row, unit, q);
    } else {
        end_gru(row, unit, q);
    }
}

fn put_row(i: u32, row: u32, column: u32, values: vec4<f32>, count: u32, skipped: u32) {
    if FOUR_MEET {
        if skipped == 0u {
            end_unit(row, column / 4u, sums_of(row, column / 4u, values));
        }
        return;
    }
    for (var c = 0u; c < 4u; c += 1u) { // 4 iterations
        if c < count && ((skipped >> c) & 1u) == 0u {
            var q = values[c];
            if READY {
                q = ready_at(row, 0u, column + c);
            }
            end_rnn(row, column + c, q);
        }
    }
}

// Of a unit one after another.
fn put_result(row: u32, column: u32, value: f32) {
    if !FOUR_MEET {
        end_rnn(row, column, value);
        return;
    }
    collected[column % 4u] = value;
    if column % 4u == 3u {
        end_unit(row, column / 4u, collected);
    }
}

// The sums themselves are not kept, nor norms.
const ONTO = false;

fn kept_row(row: u32, column: u32, count: u32) -> vec4<f32> {
    return vec4<f32>();
}

fn keep_row(row: u32, column: u32, values: vec4<f32>, count: u32) {}

fn keep_one(row: u32, column: u32, value: f32) {}

fn keep_norm(column: u32, norm: Wide) {}
