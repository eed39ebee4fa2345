//! What stands for picture.rs in a build without the feature `image`.
use std::convert::Infallible;
use std::error::Error;
use std::path::Path;

use decode::model::Model;

/// There is none.
pub struct Slice(Infallible);

impl Slice {
    pub fn new(_: &Model, _: usize, _: Option<f64>) -> Result<Slice, String> {
        Err("--image: this build draws none. `cargo run --release -p decode --features image -- --image PNG` does"
            .into())
    }
}

pub fn draw(
    _: &Path,
    _: &str,
    slice: &Slice,
    _: impl FnOnce(usize, &[f32]) -> Result<Vec<f32>, weightnorm::Error>,
) -> Result<(), Box<dyn Error>> {
    match slice.0 {}
}
