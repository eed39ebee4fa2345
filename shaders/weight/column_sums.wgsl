// Sums down the columns of a matrix, partial sums of the norms of a kept axis that is not the first.
// import weight/sums
// import weight/elements

// The sum of a column's stretch once more, whatever the exponents. `squares`: as it came out.
fn put_column_again(item: Columns, at: u32, first: u32, count: u32, squares: f32) {
    let up = lift(squares);
    var sum = 0.0;
    var products = Wide(0.0, NOTHING);
    for (var row = 0u; row < count; row += 1u) { // count iterations
        let e = first + row * item.stride;
        let a = v_at(item.member, e);
        sum += (a * exp2i(up)) * (a * exp2i(up));
        if DOT {
            products = sum_of(products, product_of(wide(a), wide(dw_at(item.member, e))));
        }
    }
    put_part(at, WideSums(Wide(sum, -2 * up), products));
}

// Of element e.
fn term_at(m: Member, e: u32) -> vec2<f32> {
    let a = v_at(m, e);
    if DOT {
        return vec2<f32>(a * a, a * dw_at(m, e));
    }
    return vec2<f32>(a * a, 0.0);
}

// An invocation with one column of `count` rows from element `first` on.
fn sum_of_column(item: Columns, at: u32, first: u32, count: u32) {
    let m = item.member;
    var sum = vec2<f32>();
    var e = first;
    var row = 0u;
    for (; row + 3u < count; row += 4u) { // count / 4 iterations
        let a = term_at(m, e);
        let b = term_at(m, e + item.stride);
        let c = term_at(m, e + 2u * item.stride);
        let d = term_at(m, e + 3u * item.stride);
        sum += (a + b) + (c + d);
        e += 4u * item.stride;
    }
    for (; row < count; row += 1u) { // at most 3 iterations
        sum += term_at(m, e);
        e += item.stride;
    }
    put_part(at, WideSums(Wide(sum.x, 0), Wide(sum.y, 0)));
    // Rarely. A loop, since some drivers run all code between the braces of an `if`, and throw it away.
    for (var i = select(0u, 1u, is_fine(Sums(sum.x, sum.y))); i < 1u; i += 1u) { // at most 1 iteration
        put_column_again(item, at, first, count, sum.x);
    }
}

// Those of a unit, or of its elements' products with dw.
struct Terms {
    low: vec4<f32>,
    high: vec4<f32>,
    low_products: vec4<f32>,
    high_products: vec4<f32>,
}

fn terms_at(m: Member, u: u32) -> Terms {
    let x = v_unit(m, u);
    var terms = Terms(x.low * x.low, vec4<f32>(), vec4<f32>(), vec4<f32>());
    if UNIT != 4u {
        terms.high = x.high * x.high;
    }
    if DOT {
        let y = dw_unit(m, u);
        terms.low_products = x.low * y.low;
        terms.high_products = x.high * y.high;
    }
    return terms;
}

fn plus(a: Terms, b: Terms) -> Terms {
    return Terms(
        a.low + b.low,
        a.high + b.high,
        a.low_products + b.low_products,
        a.high_products + b.high_products,
    );
}

// Of element i of the unit.
fn sums_in(terms: Terms, i: u32) -> Sums {
    if UNIT == 4u {
        return Sums(terms.low[i], terms.low_products[i]);
    }
    let odd = i % 2u == 1u;
    return Sums(
        select(terms.low[i / 2u], terms.high[i / 2u], odd),
        select(terms.low_products[i / 2u], terms.high_products[i / 2u], odd),
    );
}

// An invocation with the columns of a unit.
fn sums_of_unit(item: Columns, at: u32, first: u32, count: u32) {
    let m = item.member;
    let step = item.stride / UNIT;
    var u = first / UNIT;
    var sums = Terms();
    var row = 0u;
    for (; row + 3u < count; row += 4u) { // count / 4 iterations
        let a = terms_at(m, u);
        let b = terms_at(m, u + step);
        let c = terms_at(m, u + 2u * step);
        let d = terms_at(m, u + 3u * step);
        sums = plus(sums, plus(plus(a, b), plus(c, d)));
        u += 4u * step;
    }
    for (; row < count; row += 1u) { // at most 3 iterations
        sums = plus(sums, terms_at(m, u));
        u += step;
    }
    var again = 0u;
    for (var i = 0u; i < UNIT; i += 1u) { // UNIT iterations
        let own = sums_in(sums, i);
        put_part(at + i, WideSums(Wide(own.squares, 0), Wide(own.products, 0)));
        again |= select(1u << i, 0u, is_fine(own));
    }
    for (var i = select(0u, UNIT, again == 0u); i < UNIT; i += 1u) { // UNIT iterations
        if ((again >> i) & 1u) == 1u {
            put_column_again(item, at + i, first + i, count, sums_in(sums, i).squares);
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
    if whole {
        sums_of_unit(item, at, first, count);
    } else {
        sum_of_column(item, at, first, count);
    }
}
