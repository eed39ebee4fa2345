// Products dw * v and their sums, whatever the exponents.
// slot access = weight/access_scalar

fn exact_product(e: u32, f: u32) -> Wide {
    return product_of(wide(v_at(e)), wide(dw_at(f)));
}

fn exact_column_dots(e: u32, f: u32, rows: u32) -> Wide {
    var sum = Wide(0.0, NOTHING);
    for (var row = 0u; row < rows; row += 1u) { // rows iterations
        sum = sum_of(sum, exact_product(e + row * p.stride, f + row * p.stride));
    }
    return sum;
}
