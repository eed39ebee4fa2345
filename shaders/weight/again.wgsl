// Sums over some elements once more, where they left what f32 holds safely: of v scaled by 2^lift, and of products each
// with an exponent of its own. Rarely needed, so element by element, in an order that the elements alone decide.
// import weight/sums
// import weight/elements

// Of elements first, first + step, ..: the squares of `count` of them, scaled.
fn squares_again(m: Member, first: u32, step: u32, count: u32, scale: f32) -> f32 {
    var sum = vec4<f32>();
    for (var i = 0u; i < count; i += 1u) { // count iterations
        let a = v_at(m, first + i * step) * scale;
        sum = vec4<f32>(sum.y, sum.z, sum.w, sum.x + a * a);
    }
    return total_of(sum);
}

// The same of their products with dw.
fn products_again(m: Member, first: u32, step: u32, count: u32) -> Wide {
    var sum = Wide(0.0, NOTHING);
    for (var i = 0u; i < count; i += 1u) { // count iterations
        sum = sum_of(sum, product_of(wide_of(v_at(m, first + i * step)), wide_of(dw_at(m, first + i * step))));
    }
    return sum;
}
