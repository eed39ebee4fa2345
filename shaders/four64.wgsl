// What four32.wgsl does, in words of 64 bits: see quad64.wgsl. Nothing need start at more than 16 bytes here either.

alias Four = vec2<u64>;
alias Two = u64;

fn four_words(four: Four) -> vec4<u32> {
    let low = vec2<u32>(four);
    let high = vec2<u32>(four >> vec2<u32>(32u));
    return vec4<u32>(low.x, high.x, low.y, high.y);
}

fn two_words(two: Two) -> vec2<u32> {
    return vec2<u32>(u32(two), u32(two >> 32u));
}

fn four_of(words: vec4<u32>) -> Four {
    return vec2<u64>(words.xz) | (vec2<u64>(words.yw) << vec2<u32>(32u));
}

fn four_numbers(four: Four) -> vec4<f32> {
    return bitcast<vec4<f32>>(four_words(four));
}

fn four_of_numbers(numbers: vec4<f32>) -> Four {
    return four_of(bitcast<vec4<u32>>(numbers));
}
