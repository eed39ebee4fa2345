// What every matrix product shares: C[m,n] = sum_k A[m,k] * B[n,k], its parameters, its tiles, and where elements lie.
// slot params = product/params
// slot view = product/view_matrix
// slot scale = product/scale_pairs
//
// The view says where an element of A and of B lies: view_matrix.wgsl, of two matrices. The entry points, in
// linear.wgsl, conv.wgsl and gradient.wgsl, say what A and B are and what becomes of C.
//
// A workgroup computes BM by BN of C, an invocation TM neighbouring rows of it and, of each, QUADS quads of
// neighbouring columns that lie STEP apart.
// No invocation loops more often than the host allows (product.rs, max_length).

override SCALED_B: bool = false; // B[n,k] is scaled by the Scale of step k before it is multiplied
override SQUARES: bool = false; // the squares of each row of B are added up beside the product
override ROW_SQUARES: bool = false; // those of each row of A too, which runs along k then

override WX: u32 = 8u; // invocations along the columns of C
override WY: u32 = 8u; // along its rows
override TM: u32 = 8u; // rows of an invocation
override TN: u32 = 8u; // its columns, 4 or 8
override STEP: u32 = 4u; // columns from a quad of an invocation to its next

override THREADS: u32 = WX * WY;
override BM: u32 = WY * TM;
override BN: u32 = WX * TN;
override QUADS: u32 = TN / 4u;
override BLOCK: u32 = min(TM, 8u); // rows that are finished together

// Whether quads of an operand may end within the four elements that are read, and how many are there or not together.
const QUADS_MAY_END = A_MAY_END || B_MAY_END;
const WHOLE = select(4u, 1u, QUADS_MAY_END);

// The first row and column of a tile of C. Tiles go in bands of up to MOST_ABREAST along the shorter side, so that
// those at work at a time lie in a block about as high as wide: what they share, rows of both operands, is still in
// the cache.
const MOST_ABREAST = 16u;

fn tile_origin(tile_of_all: u32) -> vec2<u32> {
    let tiles = vec2<u32>((p.rows + BM - 1u) / BM, (p.columns + BN - 1u) / BN);
    let tile = in_group(tile_of_all, tiles.x * tiles.y);
    let by_columns = p.rows >= p.columns;
    let sides = select(tiles, tiles.yx, by_columns); // the shorter one first
    let bands = (sides.x + MOST_ABREAST - 1u) / MOST_ABREAST;
    let abreast = (sides.x + bands - 1u) / bands;
    let band = tile / (abreast * sides.y);
    let in_band = tile - band * abreast * sides.y;
    let width = min(abreast, sides.x - band * abreast);
    let place = vec2<u32>(band * abreast + in_band % width, in_band / width);
    return select(place, place.yx, by_columns) * vec2<u32>(BM, BN);
}

fn tile_count() -> u32 {
    return group_count() * ((p.rows + BM - 1u) / BM) * ((p.columns + BN - 1u) / BN);
}

// How many of the elements i .. end - 1 there are, none unless `there`.
fn left_of(i: u32, end: u32, there: bool) -> u32 {
    return select(0u, end - i, i < end && there);
}

// The Scale of step k, t and m.
fn step_scale(k: u32) -> vec2<f32> {
    return scale_at(extractBits(p.more_offsets, 16u, 8u), scale_index(k));
}

// Scales of the steps k .. k + 3, which the family fetches.
var<private> step_t: vec4<f32>;
var<private> step_m: vec4<f32>;

// Four steps of a row of B, scaled.
fn scaled_along(four: vec4<f32>) -> vec4<f32> {
    if !SCALED_B {
        return four;
    }
    return ((four * step_t) * step_m) * step_t;
}

// Four columns of B at the given one of the four steps.
fn scaled_across(four: vec4<f32>, step: u32) -> vec4<f32> {
    if !SCALED_B {
        return four;
    }
    return ((four * step_t[step]) * step_m[step]) * step_t[step];
}
