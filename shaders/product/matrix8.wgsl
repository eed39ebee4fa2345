// Cooperative matrices of 8 by 8. Slot `matrix` of cooperative.wgsl.
enable f16;
enable wgpu_cooperative_matrix;

alias FragmentA = coop_mat8x8<f16, A>;
alias FragmentB = coop_mat8x8<f16, B>;
alias FragmentC = coop_mat8x8<f32, C>;

const SIDE = 8u;
