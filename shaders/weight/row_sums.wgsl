// Sums over contiguous stretches of elements, rows or parts of rows: norms, or partial sums of them.
// import weight/again
//
// Stretches of whole units (WHOLE) are read in units. All others are read element by element from their own start, so
// that what they add up to depends on their elements alone, wherever in the tensor they lie.

override ONE_LANE: bool = false; // no item has stretches of more than one lane

struct Terms {
    squares: vec4<f32>,
    products: vec4<f32>,
}

// Of unit u, x being that of v.
fn add(terms: ptr<function, Terms>, m: Member, u: u32, x: Unit) {
    if !KNOWN {
        (*terms).squares += x.low * x.low;
        if UNIT != 4u {
            (*terms).squares += x.high * x.high;
        }
    }
    if DOT {
        let y = dw_unit(m, u);
        (*terms).products += x.low * y.low;
        if UNIT != 4u {
            (*terms).products += x.high * y.high;
        }
    }
}

// A lane's sums. `any`: whether there was anything to add up. That products are to be formed again shows in the sum of
// squares, which lane 0 sees: as the largest f32, since WGSL knows no constant that is infinite.
fn sums_of(terms: Terms, any: bool) -> Sums {
    var sums = Sums(total_of(terms.squares), total_of(terms.products));
    if KNOWN {
        sums.squares = 1.0;
    }
    if DOT && any && !is_safe(sums.products) {
        sums.squares = bitcast<f32>(INFINITY - 1u);
    }
    return sums;
}

// A lane's part of the sums over the units of a stretch.
fn sums_of_units(item: Rows, first: u32, end: u32, lane: u32) -> Sums {
    let m = item.member;
    let begin = first / UNIT;
    let stop = end / UNIT;
    let run = 1u << item.run_bits;
    // Every `run` lanes share a piece.
    let piece = ((stop - begin + (1u << item.lane_bits) - 1u) >> item.lane_bits) << item.run_bits;
    let own = begin + (lane >> item.run_bits) * piece;
    let own_end = min(own + piece, stop);
    var a = Terms();
    var b = Terms();
    let own_first = own + (lane & (run - 1u));
    var u = own_first;
    for (; u + 3u * run < own_end; u += 4u * run) { // length / (4 UNIT lanes) iterations
        let x = v_unit(m, u);
        let y = v_unit(m, u + run);
        let z = v_unit(m, u + 2u * run);
        let w = v_unit(m, u + 3u * run);
        add(&a, m, u, x);
        add(&b, m, u + run, y);
        add(&a, m, u + 2u * run, z);
        add(&b, m, u + 3u * run, w);
    }
    for (; u < own_end; u += run) { // at most 3 iterations
        add(&a, m, u, v_unit(m, u));
    }
    return sums_of(Terms(a.squares + b.squares, a.products + b.products), own_first < own_end);
}

// The same, element by element.
fn sums_of_elements(item: Rows, first: u32, end: u32, lane: u32) -> Sums {
    let m = item.member;
    let lanes = 1u << item.lane_bits;
    var terms = Terms();
    var e = first + lane;
    for (; e + 3u * lanes < end; e += 4u * lanes) { // length / (4 lanes) iterations
        let x = vec4<f32>(v_at(m, e), v_at(m, e + lanes), v_at(m, e + 2u * lanes), v_at(m, e + 3u * lanes));
        if !KNOWN {
            terms.squares += x * x;
        }
        if DOT {
            let y = vec4<f32>(dw_at(m, e), dw_at(m, e + lanes), dw_at(m, e + 2u * lanes), dw_at(m, e + 3u * lanes));
            terms.products += x * y;
        }
    }
    for (; e < end; e += lanes) { // at most 3 iterations
        let x = v_at(m, e);
        terms.squares.x += x * x;
        if DOT {
            terms.products.x += x * dw_at(m, e);
        }
    }
    return sums_of(terms, first + lane < end);
}

fn part_of_row(item: Rows, first: u32, lane: u32) -> Sums {
    let end = min(first + item.length, item.end);
    if has(item.member, WHOLE, ALL_WHOLE) {
        return sums_of_units(item, first, end, lane);
    }
    return sums_of_elements(item, first, end, lane);
}

// What becomes of the sums of stretch r.
fn put_row(item: Rows, r: u32, sums: WideSums) {
    if (item.member.flags & DIRECT) != 0u {
        put_sums(item.member, item.norm + r, sums);
    } else {
        put_part(item.member.part + r, sums);
    }
}

// The same of sums that f32 holds safely. False where it does not; then the row has to be summed up again.
fn put_plain_row(item: Rows, r: u32, sums: Sums) -> bool {
    let direct = (item.member.flags & DIRECT) != 0u;
    if !DOT && direct {
        return put_plain_sum(item.member, item.norm + r, sums.squares);
    }
    let plain = scale_exponent(sums.squares) == 0;
    let all = WideSums(Wide(sums.squares, 0), Wide(sums.products, 0));
    if plain && DOT {
        put_row(item, r, all);
    } else if plain {
        put_part(item.member.part + r, all);
    }
    return plain;
}

// An invocation's own stretches, one a turn, without a barrier: drivers on CPUs have none at all then.
fn rows_of_a_lane(item: Rows, t: u32) {
    var again = 0u; // bit i: the stretch of turn i was not plain
    for (var turn = 0u; turn * THREADS + t < item.count; turn += 1u) { // at most 32 iterations
        let r = turn * THREADS + t;
        let fine = put_plain_row(item, r, part_of_row(item, item.first + r * item.length, 0u));
        again |= select(1u << turn, 0u, fine);
    }
    // Rarely: the ends of f32's range.
    for (; again != 0u; again &= again - 1u) { // at most 32 iterations
        let r = firstTrailingBit(again) * THREADS + t;
        let first = item.first + r * item.length;
        let count = min(first + item.length, item.end) - first;
        let up = scale_exponent(squares_again(item.member, first, 1u, count, 1.0));
        let squares = squares_again(item.member, first, 1u, count, exp2i(up));
        var products = Wide(0.0, NOTHING);
        if DOT {
            products = products_again(item.member, first, 1u, count);
        }
        put_row(item, r, WideSums(Wide(squares, -2 * up), products));
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
    var own_again = 0u; // bit i: the row of turn i was not plain
    for (var turn = 0u; turn < item.turns; turn += 1u) { // at most 32 iterations
        let r = turn * (THREADS >> item.lane_bits) + (t >> item.lane_bits);
        let own = part_of_row(item, item.first + min(r, item.count - 1u) * item.length, lane);
        var sums = Sums(sum_of_lanes(own.squares, t, lanes, turn & 1u), 0.0);
        if DOT {
            sums.products = sum_of_lanes(own.products, t, lanes, 2u + (turn & 1u));
        }
        if lane == 0u && r < item.count && !put_plain_row(item, r, sums) {
            own_again |= 1u << turn;
        }
    }

    // Rarely, and for all rows of a turn together: the ends of f32's range.
    let again = any_of_lanes(own_again, t);
    for (var turn = 0u; turn < item.turns; turn += 1u) { // at most 32 iterations
        if ((again >> turn) & 1u) == 0u {
            continue;
        }
        let r = turn * (THREADS >> item.lane_bits) + (t >> item.lane_bits);
        let row = item.first + min(r, item.count - 1u) * item.length;
        let first = row + lane;
        let end = max(min(row + item.length, item.end), first);
        let count = (end - first + lanes - 1u) >> item.lane_bits;
        // Which scale is safe, the squares alone say.
        var up = 0;
        var squares = 0.0;
        for (var go = 0u; go < 2u; go += 1u) { // 2 iterations
            up = select(scale_exponent(squares), 0, go == 0u);
            let own_squares = squares_again(item.member, first, lanes, count, exp2i(up));
            squares = sum_of_lanes(own_squares, t, lanes, go);
        }
        var products = Wide(0.0, NOTHING);
        if DOT {
            products = combine_lanes(products_again(item.member, first, lanes, count), t, lanes);
        }
        if ((own_again >> turn) & 1u) == 1u {
            put_row(item, r, WideSums(Wide(squares, -2 * up), products));
        }
    }
}
