//! The matrix product C[m,n] = Σ_k A[m,k]·B[n,k] that forward and backward are made of: facts, plan, dispatches.
//! Shaders: `shaders/product`.
pub(crate) mod epilogue;
pub(crate) mod plan;
pub(crate) mod record;
pub(crate) mod selection;
pub(crate) mod shape;
pub(crate) mod table;
pub(crate) mod tile;
pub(crate) mod variant;

use crate::Gpu;
pub use tile::Tile;

impl Tile {
    /// Whether a device can run it.
    pub fn runs_on(self, gpu: &Gpu) -> bool {
        self.runs(gpu.traits())
    }

    /// Those that a device can run.
    pub fn all_on(gpu: &Gpu) -> impl Iterator<Item = Tile> {
        Tile::ALL.into_iter().filter(|tile| tile.runs_on(gpu))
    }
}
