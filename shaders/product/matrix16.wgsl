// Cooperative matrices of 16 by 16. Slot `matrix` of cooperative.wgsl.
enable f16;
enable wgpu_cooperative_matrix;

alias FragmentA = coop_mat16x16<f16, A>;
alias FragmentB = coop_mat16x16<f16, B>;
alias FragmentC = coop_mat16x16<f32, C>;

const SIDE = 16u;
