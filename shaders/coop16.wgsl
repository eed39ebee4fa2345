enable f16;
enable wgpu_cooperative_matrix;

// Cooperative matrices of 16 by 16, for coop.wgsl. Joined in front of all else, since directives come first.

alias FragmentA = coop_mat16x16<f16, A>;
alias FragmentB = coop_mat16x16<f16, B>;
alias FragmentC = coop_mat16x16<f32, C>;

const SIDE = 16u;
