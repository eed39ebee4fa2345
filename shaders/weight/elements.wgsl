// The elements of v, dw and w, one by one and in units.
// slot item = weight/item_one
// slot access = weight/words

// A unit. Packed words, or storage types that differ: eight elements, those at even places, and those at odd ones as
// the halves of packed words have them. All f32: four, in `low`.
struct Unit {
    low: vec4<f32>,
    high: vec4<f32>,
}

fn unit_of_f32(first: vec4<u32>, second: vec4<u32>) -> Unit {
    let a = bitcast<vec4<f32>>(first);
    let b = bitcast<vec4<f32>>(second);
    return Unit(vec4<f32>(a.xz, b.xz), vec4<f32>(a.yw, b.yw));
}

fn v_unit(m: Member, u: u32) -> Unit {
    if UNIT == 4u {
        return Unit(bitcast<vec4<f32>>(v_quad(m.v, u)), vec4<f32>());
    }
    let dtype = type_of(m, OF_V, V_DTYPE);
    if dtype == F32 {
        return unit_of_f32(v_quad(m.v, 2u * u), v_quad(m.v, 2u * u + 1u));
    }
    let words = v_quad(m.v, u);
    return Unit(quad_low(words, dtype), quad_high(words, dtype));
}

fn dw_unit(m: Member, u: u32) -> Unit {
    if UNIT == 4u {
        return Unit(bitcast<vec4<f32>>(dw_quad(m.dw, u)), vec4<f32>());
    }
    let dtype = type_of(m, OF_DW, DW_DTYPE);
    if dtype == F32 {
        return unit_of_f32(dw_quad(m.dw, 2u * u), dw_quad(m.dw, 2u * u + 1u));
    }
    let words = dw_quad(m.dw, u);
    return Unit(quad_low(words, dtype), quad_high(words, dtype));
}

fn w_unit(m: Member, u: u32) -> Unit {
    if UNIT == 4u {
        return Unit(bitcast<vec4<f32>>(w_quad(m.w, u)), vec4<f32>());
    }
    let dtype = type_of(m, OF_W, W_DTYPE);
    if dtype == F32 {
        return unit_of_f32(w_quad(m.w, 2u * u), w_quad(m.w, 2u * u + 1u));
    }
    let words = w_quad(m.w, u);
    return Unit(quad_low(words, dtype), quad_high(words, dtype));
}

fn put_unit(m: Member, u: u32, x: Unit) {
    if UNIT == 4u {
        put_quad(m.w, u, bitcast<vec4<u32>>(x.low));
        return;
    }
    let dtype = type_of(m, OF_W, W_DTYPE);
    if dtype == F32 {
        let first = vec4<f32>(x.low.x, x.high.x, x.low.y, x.high.y);
        put_quad(m.w, 2u * u, bitcast<vec4<u32>>(first));
        put_quad(m.w, 2u * u + 1u, bitcast<vec4<u32>>(vec4<f32>(x.low.z, x.high.z, x.low.w, x.high.w)));
    } else {
        put_quad(m.w, u, quad_of(x.low, x.high, dtype));
    }
}

fn v_at(m: Member, e: u32) -> f32 {
    let dtype = type_of(m, OF_V, V_DTYPE);
    return unpack(v_word(m.v, word_holding(e, dtype)), e, dtype);
}

fn dw_at(m: Member, e: u32) -> f32 {
    let dtype = type_of(m, OF_DW, DW_DTYPE);
    return unpack(dw_word(m.dw, word_holding(e, dtype)), e, dtype);
}

fn w_at(m: Member, e: u32) -> f32 {
    let dtype = type_of(m, OF_W, W_DTYPE);
    return unpack(w_word(m.w, word_holding(e, dtype)), e, dtype);
}
