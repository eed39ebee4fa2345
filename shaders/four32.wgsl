// Four words of memory, or two, as they are read and written at once: 32-bit words. (four64.wgsl: 64-bit words.)

alias Four = vec4<u32>;
alias Two = vec2<u32>;

// The words in the order of memory.
fn four_words(four: Four) -> vec4<u32> {
    return four;
}

fn two_words(two: Two) -> vec2<u32> {
    return two;
}

fn four_of(words: vec4<u32>) -> Four {
    return words;
}

fn four_numbers(four: Four) -> vec4<f32> {
    return bitcast<vec4<f32>>(four_words(four));
}

fn four_of_numbers(numbers: vec4<f32>) -> Four {
    return four_of(bitcast<vec4<u32>>(numbers));
}
