// Norms of their partial sums, or of what the caller knows of them.
// import weight/sums

const PARTIAL_SUMS = 64u; // of a block

// A lane's part of the partial sums of a norm, added up as they are, which is right if none has an exponent of its own:
// the exponents that come of it are 0 then. In blocks, so that none of many is rounded as often as there are others.
fn plain_sums(item: Finish, first: u32, lane: u32, lanes: u32) -> WideSums {
    var total = Sums(0.0, 0.0);
    var exponents = vec2<i32>();
    let end = item.outer * item.inner;
    for (var i = lane; i < end;) { // bounded by the host, with those within
        var block = Sums(0.0, 0.0);
        for (var k = 0u; k < PARTIAL_SUMS && i < end; k += 1u) { // (outer * inner) / lanes iterations in all
            let own = part_at(first + i / item.inner * item.a_stride + i % item.inner);
            block.squares += own.squares.m;
            block.products += own.products.m;
            exponents |= vec2<i32>(own.squares.e, own.products.e);
            i += lanes;
        }
        total.squares += block.squares;
        total.products += block.products;
    }
    return WideSums(Wide(total.squares, exponents.x), Wide(total.products, exponents.y));
}

// The same whatever the exponents.
fn wide_sums(item: Finish, first: u32, lane: u32, lanes: u32) -> WideSums {
    var total = WideSums(Wide(0.0, NOTHING), Wide(0.0, NOTHING));
    let end = item.outer * item.inner;
    for (var i = lane; i < end;) { // bounded by the host, with those within
        var block = WideSums(Wide(0.0, NOTHING), Wide(0.0, NOTHING));
        for (var k = 0u; k < PARTIAL_SUMS && i < end; k += 1u) { // (outer * inner) / lanes iterations in all
            let own = part_at(first + i / item.inner * item.a_stride + i % item.inner);
            block.squares = sum_of(block.squares, own.squares);
            if DOT {
                block.products = sum_of(block.products, own.products);
            }
            i += lanes;
        }
        total.squares = sum_of(total.squares, block.squares);
        if DOT {
            total.products = sum_of(total.products, block.products);
        }
    }
    return total;
}

@compute @workgroup_size(THREADS)
fn finish_sums(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
    let id = flat(group, groups);
    if !is_item(id) {
        return;
    }
    let item = finish_item(id);
    let m = item.member;
    let lanes = 1u << item.lane_bits;
    let lane = t & (lanes - 1u);
    for (var turn = 0u; turn < item.turns; turn += 1u) { // bounded by the host, with the loops within
        let j = turn * (THREADS >> item.lane_bits) + (t >> item.lane_bits);
        let first = m.part + min(j, item.count - 1u) * item.inner;
        var sums = plain_sums(item, first, lane, lanes);
        let plain = sums.squares.e == 0 && sums.products.e == 0;
        if !plain || !is_fine(Sums(sums.squares.m, sums.products.m)) {
            sums = wide_sums(item, first, lane, lanes);
        }
        sums.squares = combine_lanes(sums.squares, t, lanes);
        if DOT {
            sums.products = combine_lanes(sums.products, t, lanes);
        }
        if lane == 0u && j < item.count {
            put_sums(m, item.norm + j, sums);
        }
    }
}

// Norm j is known[j]. An invocation a norm.
@compute @workgroup_size(THREADS)
fn known_norms(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
    let id = flat(group, groups);
    if !is_item(id) {
        return;
    }
    let item = finish_item(id);
    if t < item.count {
        put_norm(item.member, item.norm + t, known_norm(item.member, item.norm + t));
    }
}
