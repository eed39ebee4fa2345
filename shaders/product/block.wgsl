// What tile.wgsl and the views of operands share: blocks of 4 rows by 4 steps of k, as an invocation stages them.

override BK: u32 = 16u; // steps of k that are staged at a time, a multiple of 8
// Whether the steps of k of each split are a multiple of BK: none is missing then, and nothing need be compared.
override WHOLE_STEPS: bool = false;

alias Block = array<vec4<u32>, 4>; // of four rows, or of four steps of k, as it is stored
var<private> places: array<vec4<u32>, 3>; // of the blocks at step 0 of k, where they are found once
