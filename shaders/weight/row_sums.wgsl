// Sums over contiguous stretches of elements, rows or parts of rows: norms, or partial sums of them.
// import weight/sums
// import weight/elements

override ONE_LANE: bool = false; // no item has stretches of more than one lane

struct Sums4 {
    squares: vec4<f32>,
    products: vec4<f32>,
}

// Of unit u of v, with the one of dw beside it.
fn add(sums: ptr<function, Sums4>, x: Unit, y: Unit) {
    (*sums).squares += x.low * x.low;
    if UNIT != 4u {
        (*sums).squares += x.high * x.high;
    }
    if DOT {
        (*sums).products += x.low * y.low;
        if UNIT != 4u {
            (*sums).products += x.high * y.high;
        }
    }
}

fn dw_beside(m: Member, u: u32) -> Unit {
    if DOT {
        return dw_unit(m, u);
    }
    return Unit();
}

// A lane's part of the sums over the elements first .. first + length - 1.
fn part_of_row(item: Rows, first: u32, lane: u32) -> Sums {
    let m = item.member;
    let end = min(first + item.length, item.end);
    let begin = (first + UNIT - 1u) / UNIT;
    let stop = max(end / UNIT, begin);
    let run = 1u << item.run_bits;
    // Every `run` lanes share a piece.
    let piece = ((stop - begin + (1u << item.lane_bits) - 1u) >> item.lane_bits) << item.run_bits;
    let own = begin + (lane >> item.run_bits) * piece;
    let own_end = min(own + piece, stop);
    var a = Sums4();
    var b = Sums4();
    var u = own + (lane & (run - 1u));
    for (; u + 3u * run < own_end; u += 4u * run) { // length / (4 UNIT lanes) iterations
        let x = v_unit(m, u);
        let y = v_unit(m, u + run);
        let z = v_unit(m, u + 2u * run);
        let w = v_unit(m, u + 3u * run);
        add(&a, x, dw_beside(m, u));
        add(&b, y, dw_beside(m, u + run));
        add(&a, z, dw_beside(m, u + 2u * run));
        add(&b, w, dw_beside(m, u + 3u * run));
    }
    for (; u < own_end; u += run) { // at most 3 iterations
        add(&a, v_unit(m, u), dw_beside(m, u));
    }
    // Units that the row shares with its neighbours: the first and the last one, or one in all.
    var touched = own + (lane & (run - 1u)) < own_end;
    if !has(m, WHOLE, ALL_WHOLE) {
        let shares_first = first % UNIT != 0u;
        let shares_last = end % UNIT != 0u && (end / UNIT != first / UNIT || !shares_first);
        let whole = item.length == 0u || !(shares_first || shares_last);
        for (var k = select(lane, 2u, whole); k < 2u; k += 1u << item.lane_bits) { // at most 2 iterations
            if select(shares_first, shares_last, k == 1u) {
                let edge = select(first, end, k == 1u) / UNIT;
                let x = masked(v_unit(m, edge), edge, first, end);
                add(&b, x, masked(dw_beside(m, edge), edge, first, end));
            }
        }
        touched = touched || (lane < 2u && !whole);
    }
    let s = a.squares + b.squares;
    let d = a.products + b.products;
    var sums = Sums((s.x + s.y) + (s.z + s.w), (d.x + d.y) + (d.z + d.w));
    // What is to be formed again shows in the sum of squares, which lane 0 sees: as the largest f32, since WGSL
    // knows no constant that is infinite.
    if DOT && touched && !is_safe(sums.products) {
        sums.squares = bitcast<f32>(INFINITY - 1u);
    }
    return sums;
}

// The same of v² with v scaled, element by element.
fn squares_of_row(item: Rows, first: u32, lane: u32, scale: f32) -> f32 {
    let end = min(first + item.length, item.end);
    var sum = vec4<f32>();
    var n = 0u;
    for (var e = first + lane; e < end; e += 1u << item.lane_bits) { // length / lanes iterations
        let a = v_at(item.member, e) * scale;
        sum[n] += a * a;
        n = (n + 1u) % 4u;
    }
    return (sum.x + sum.y) + (sum.z + sum.w);
}

// The same of dw * v, whatever the exponents.
fn products_of_row(item: Rows, first: u32, lane: u32) -> Wide {
    let end = min(first + item.length, item.end);
    var sum = Wide(0.0, NOTHING);
    for (var e = first + lane; DOT && e < end; e += 1u << item.lane_bits) { // length / lanes iterations
        sum = sum_of(sum, product_of(wide(v_at(item.member, e)), wide(dw_at(item.member, e))));
    }
    return sum;
}

// What becomes of the sums of stretch r.
fn put_row(item: Rows, r: u32, sums: WideSums) {
    if has(item.member, DIRECT, ALL_DIRECT) {
        put_sums(item.member, item.norm + r, sums);
    } else {
        put_part(item.member.part + r, sums);
    }
}

// The same of sums that f32 holds safely. False where it does not; then the row has to be summed up again.
fn put_plain_row(item: Rows, r: u32, sums: Sums) -> bool {
    if !DOT && has(item.member, DIRECT, ALL_DIRECT) {
        return put_plain_sum(item.member, item.norm + r, sums.squares);
    }
    let plain = lift(sums.squares) == 0;
    if plain {
        let all = WideSums(Wide(sums.squares, 0), Wide(sums.products, 0));
        if DOT {
            put_row(item, r, all);
        } else {
            // All of put_row would be run for nothing by drivers that run both sides of a branch.
            put_part(item.member.part + r, all);
        }
    }
    return plain;
}

// `turns` neighbouring stretches of an item, which lie together in memory, without a barrier: drivers on CPUs have none
// at all then.
fn rows_of_a_lane(item: Rows, t: u32) {
    let begin = t * item.turns;
    let end = min(begin + item.turns, item.count);
    var again = 0u;
    for (var r = begin; r < end; r += 1u) { // at most 32 iterations
        let fine = put_plain_row(item, r, part_of_row(item, item.first + r * item.length, 0u));
        again |= select(1u << (r - begin), 0u, fine);
    }
    // Rarely: the ends of f32's range.
    for (var r = select(begin, end, again == 0u); r < end; r += 1u) { // at most 32 iterations
        if ((again >> (r - begin)) & 1u) == 1u {
            let first = item.first + r * item.length;
            let up = lift(squares_of_row(item, first, 0u, 1.0));
            let squares = Wide(squares_of_row(item, first, 0u, exp2i(up)), -2 * up);
            put_row(item, r, WideSums(squares, products_of_row(item, first, 0u)));
        }
    }
}

@compute @workgroup_size(THREADS)
fn row_sums(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
    let id = flat(group, groups);
    if !is_item(id) {
        return;
    }
    let item = sum_item(id);
    if ONE_LANE {
        rows_of_a_lane(item, t);
        return;
    }
    let lanes = 1u << item.lane_bits;
    let lane = t & (lanes - 1u);
    let side_by_side = THREADS >> item.lane_bits;
    var own_again = 0u; // bit r: the row of turn r was not plain
    for (var turn = 0u; turn < item.turns; turn += 1u) { // at most 32 iterations
        let r = turn * side_by_side + (t >> item.lane_bits);
        let exists = r < item.count;
        let own = part_of_row(item, item.first + min(r, item.count - 1u) * item.length, lane);
        var sums = Sums(sum_of_lanes(own.squares, t, lanes, turn & 1u), 0.0);
        if DOT {
            sums.products = sum_of_lanes(own.products, t, lanes, 2u + (turn & 1u));
        }
        if lane == 0u && exists && !put_plain_row(item, r, sums) {
            own_again |= 1u << turn;
        }
    }

    // Rarely, and for all rows of a turn together: the ends of f32's range.
    let again = any_of_lanes(own_again, t);
    for (var turn = 0u; turn < 32u; turn += 1u) { // 32 iterations
        if (again >> turn) == 0u {
            break;
        }
        if ((again >> turn) & 1u) == 0u {
            continue;
        }
        let r = turn * side_by_side + (t >> item.lane_bits);
        let first = item.first + min(r, item.count - 1u) * item.length;
        // Which scale is safe, the squares alone say.
        let up = lift(sum_of_lanes(squares_of_row(item, first, lane, 1.0), t, lanes, 0u));
        let squares = sum_of_lanes(squares_of_row(item, first, lane, exp2i(up)), t, lanes, 1u);
        var products = Wide(0.0, NOTHING);
        if DOT {
            products = combine_lanes(products_of_row(item, first, lane), t, lanes);
        }
        workgroupBarrier();
        if lane == 0u && r < item.count && ((own_again >> turn) & 1u) == 1u {
            put_row(item, r, WideSums(Wide(squares, -2 * up), products));
        }
    }
}
