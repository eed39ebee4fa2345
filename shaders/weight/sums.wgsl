// Sums of squares and of products, the partial ones, and what is made of those of a norm.
// slot item = weight/item_one
// import numbers/norm
// import numbers/lanes
//
// What is written for norm j is one of, by the flags of its member,
//   OUT_NORMS   f32: n̂_j
//   OUT_SCALES  two f32, the Scale g_j / n̂_j
//   OUT_WIDE    f32 and i32 (m, e): n̂_j = m * 2^e
// and, on request, n̂_j as f32 in `beside`. With DOT the sums are those of the backward pass, v² and dw * v, and it is
//   out         four f32, the Scales g_j / n̂_j and dg_j / d_j
//   beside      on request f32, dg_j = sum dw * (v / n̂_j), or what stands there and that

@group(0) @binding(3) var<storage, read> g: array<u32>; // words of the storage type of the member's g
@group(0) @binding(4) var<storage, read_write> part: array<vec2<u32>>; // Wide: f32 m, i32 e
@group(0) @binding(5) var<storage, read_write> out: array<f32>;
@group(0) @binding(6) var<storage, read_write> beside: array<f32>;
@group(0) @binding(8) var<storage, read> known: array<f32>; // KNOWN: d; known_norms: n̂

override DOT: bool = false;
override KNOWN: bool = false; // with DOT: the norms need no sums of squares

override PARTS: u32 = select(1u, 2u, DOT); // sums of a partial sum

const OUT_NORMS = 0u;
const OUT_SCALES = 1u;
const OUT_WIDE = 2u;

// The sums that belong together. Without DOT there are no products.
struct Sums {
    squares: f32,
    products: f32,
}

struct WideSums {
    squares: Wide,
    products: Wide,
}

// Whether f32 holds them safely.
fn is_fine(sums: Sums) -> bool {
    return scale_exponent(sums.squares) == 0 && (!DOT || is_safe(sums.products));
}

fn total_of(x: vec4<f32>) -> f32 {
    return (x.x + x.y) + (x.z + x.w);
}

fn put_part(at: u32, sums: WideSums) {
    part[PARTS * at] = vec2<u32>(bitcast<u32>(sums.squares.m), bitcast<u32>(sums.squares.e));
    if DOT {
        part[PARTS * at + 1u] = vec2<u32>(bitcast<u32>(sums.products.m), bitcast<u32>(sums.products.e));
    }
}

fn part_at(at: u32) -> WideSums {
    let squares = part[PARTS * at];
    var sums = WideSums(Wide(bitcast<f32>(squares.x), bitcast<i32>(squares.y)), Wide(0.0, 0));
    if DOT {
        let products = part[PARTS * at + 1u];
        sums.products = Wide(bitcast<f32>(products.x), bitcast<i32>(products.y));
    }
    return sums;
}

fn gain_of(m: Member, j: u32) -> f32 {
    if !takes_gains() || (m.flags & HAS_GAIN) == 0u {
        return 1.0;
    }
    let dtype = extractBits(m.flags, OF_GAIN, 2u);
    return unpack(g[word_holding(m.g + j, dtype)], m.g + j, dtype);
}

fn known_norm(m: Member, j: u32) -> Wide {
    return wide_of(known[extractBits(m.flags, OF_KNOWN, 8u) + j]);
}

fn put_scale(at: u32, scale: Scale) {
    out[at] = scale.t;
    out[at + 1u] = scale.m;
}

fn put_norm(m: Member, j: u32, norm: Wide) {
    if (m.flags & HAS_BESIDE) != 0u {
        beside[m.w + j] = f32_of(norm);
    }
    let form = extractBits(m.flags, OF_OUT, 2u);
    if form == OUT_NORMS {
        out[m.out + j] = f32_of(norm);
    } else if form == OUT_SCALES {
        put_scale(m.out + 2u * j, scale_of(quotient(wide_of(gain_of(m, j)), norm)));
    } else {
        put_scale(m.out + 2u * j, Scale(norm.m, bitcast<f32>(norm.e)));
    }
}

// What becomes of the sums of norm j.
fn put_sums(m: Member, j: u32, sums: WideSums) {
    let policy = policy_of(m);
    if !DOT {
        put_norm(m, j, effective_norm(sums.squares, policy, m.eps));
        return;
    }
    var d: Wide;
    if KNOWN {
        d = known_norm(m, j);
    } else {
        d = divisor_of(sums.squares, policy, m.eps);
    }
    let factors = factors_of_products(sums.products, d, gain_of(m, j), policy, m.eps);
    if (m.flags & HAS_BESIDE) != 0u {
        beside[m.w + j] = select(0.0, beside[m.w + j], ADD) + f32_of(factors.dg);
    }
    put_scale(m.out + 4u * j, factors.a);
    put_scale(m.out + 4u * j + 2u, factors.share);
}

// The same without DOT, where neither the sum nor what is made of it is near the ends of f32's range, in a fraction of
// the time. False where that is not so; then nothing was written.
fn put_plain_sum(m: Member, j: u32, squares: f32) -> bool {
    let form = extractBits(m.flags, OF_OUT, 2u);
    let norm = plain_norm(squares, policy_of(m), m.eps);
    let scale = select(1.0, gain_of(m, j) / norm, form == OUT_SCALES);
    if norm == 0.0 || !is_normal(scale) {
        return false;
    }
    if (m.flags & HAS_BESIDE) != 0u {
        beside[m.w + j] = norm;
    }
    if form == OUT_NORMS {
        out[m.out + j] = norm;
    } else if form == OUT_SCALES {
        put_scale(m.out + 2u * j, Scale(1.0, scale));
    } else {
        put_scale(m.out + 2u * j, Scale(norm, 0.0)); // the bits of exponent 0
    }
    return true;
}
