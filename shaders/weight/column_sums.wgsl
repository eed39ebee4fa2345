// Sums down the columns of a matrix, partial sums of the norms of a kept axis that is not the first.
// import weight/again

// What the elements of a unit, or of its columns, give. One element alone: in low.x.
struct UnitTerms {
    low: vec4<f32>,
    high: vec4<f32>,
    low_products: vec4<f32>,
    high_products: vec4<f32>,
}

fn terms_of(x: Unit, y: Unit) -> UnitTerms {
    return UnitTerms(x.low * x.low, x.high * x.high, x.low * y.low, x.high * y.high);
}

// Of unit `at`, or of element `at`.
fn terms_at(m: Member, at: u32, whole: bool) -> UnitTerms {
    var x = Unit();
    var y = Unit();
    if whole {
        x = v_unit(m, at);
        if DOT {
            y = dw_unit(m, at);
        }
    } else {
        x.low.x = v_at(m, at);
        if DOT {
            y.low.x = dw_at(m, at);
        }
    }
    return terms_of(x, y);
}

fn plus(a: UnitTerms, b: UnitTerms) -> UnitTerms {
    return UnitTerms(
        a.low + b.low,
        a.high + b.high,
        a.low_products + b.low_products,
        a.high_products + b.high_products,
    );
}

// Of element i of the unit.
fn sums_in(terms: UnitTerms, i: u32) -> Sums {
    var sums = Sums(terms.low[i % 4u], terms.low_products[i % 4u]);
    if UNIT != 4u {
        let odd = i % 2u == 1u;
        sums.squares = select(terms.low[i / 2u], terms.high[i / 2u], odd);
        sums.products = select(terms.low_products[i / 2u], terms.high_products[i / 2u], odd);
    }
    if KNOWN {
        sums.squares = 1.0;
    }
    return sums;
}

// An invocation's stretch of `count` rows from element `first` on, in the columns of a unit or in one.
fn sum_down(item: Columns, at: u32, first: u32, count: u32, whole: bool) {
    let m = item.member;
    let per = select(1u, UNIT, whole);
    let step = item.stride / per;
    var u = first / per;
    var sums = UnitTerms();
    var row = 0u;
    for (; row + 3u < count; row += 4u) { // count / 4 iterations
        let a = terms_at(m, u, whole);
        let b = terms_at(m, u + step, whole);
        let c = terms_at(m, u + 2u * step, whole);
        let d = terms_at(m, u + 3u * step, whole);
        sums = plus(sums, plus(plus(a, b), plus(c, d)));
        u += 4u * step;
    }
    for (; row < count; row += 1u) { // at most 3 iterations
        sums = plus(sums, terms_at(m, u, whole));
        u += step;
    }
    var again = 0u;
    for (var i = 0u; i < per; i += 1u) { // at most UNIT iterations
        let own = sums_in(sums, i);
        put_part(at + i, WideSums(Wide(own.squares, 0), Wide(own.products, 0)));
        again |= select(1u << i, 0u, is_fine(own));
    }
    // Rarely. A loop, since some drivers run all code between the braces of an `if`, and throw it away.
    for (var i = select(0u, per, again == 0u); i < per; i += 1u) { // at most UNIT iterations
        if ((again >> i) & 1u) == 1u {
            let up = scale_exponent(sums_in(sums, i).squares);
            let squares = squares_again(m, first + i, item.stride, count, exp2i(up));
            var products = Wide(0.0, NOTHING);
            if DOT {
                products = products_again(m, first + i, item.stride, count);
            }
            put_part(at + i, WideSums(Wide(squares, -2 * up), products));
        }
    }
}

@compute @workgroup_size(THREADS)
fn column_sums(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
    let id = flat(group, groups);
    if !is_item(id) {
        return;
    }
    let item = column_item(id);
    let split = t / item.units;
    let begin = split * item.split_length;
    if begin >= item.rows || split >= THREADS / item.units {
        return;
    }
    let count = min(item.split_length, item.rows - begin);
    let whole = has(item.member, WHOLE, ALL_WHOLE);
    let column = t % item.units * select(1u, UNIT, whole);
    let first = item.first + begin * item.stride + column;
    let at = item.member.part + split * item.columns + column;
    // One of them is all that is left where the setting is the same for all.
    if whole {
        sum_down(item, at, first, count, true);
    } else {
        sum_down(item, at, first, count, false);
    }
}
