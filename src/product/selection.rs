//! A product in numbers, and how it is to be computed.
use super::shape::BK;
use super::tile::{Family, Tile};
use crate::choose::Traits;
use crate::{ArgumentError, DType, Error};

/// A product, as far as it matters to speed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Problem {
    /// Of A and B: see [`Operand`](crate::product::record::Operand).
    pub along_k: [bool; 2],
    pub dtypes: [DType; 2],
    /// Rows and columns of C, steps of k.
    pub size: [u64; 3],
}

/// How a product is to be computed, as far as that is said: by a request, for tests and tuning, or by measured choices.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Selection {
    pub tile: Option<Tile>,
    pub split_length: Option<u32>,
}

impl Selection {
    /// Whether the device can do it for products of matrices. `cooperative`: whether cooperative matrices can do all
    /// that is asked for.
    pub fn check(&self, op: &'static str, traits: Traits, cooperative: bool) -> Result<(), Error> {
        if let Some(tile) = self.tile.filter(|tile| tile.family() == Family::Narrow) {
            let reason = "it computes convolutions alone".to_owned();
            return Err(ArgumentError::Variant { op, got: format!("{tile:?}"), reason }.into());
        }
        self.check_device(op, traits, cooperative)
    }

    /// Whether the device can do it for some product.
    pub fn check_device(&self, op: &'static str, traits: Traits, cooperative: bool) -> Result<(), Error> {
        if let Some(tile) = self.tile.filter(|tile| !tile.runs(traits)) {
            let reason = match tile.family() {
                Family::Cooperative8 | Family::Cooperative16 => {
                    "the device has no cooperative matrices of this size, or they were not asked for"
                }
                Family::Tile | Family::Stream | Family::Narrow => "the device has no workgroups of so many invocations",
                Family::Subgroup => {
                    "the device has no subgroups of one size of 8 or 16 lanes, or they were not asked for"
                }
            };
            return Err(ArgumentError::Variant { op, got: format!("{tile:?}"), reason: reason.to_owned() }.into());
        }
        if let Some(tile) = self.tile.filter(|tile| tile.is_cooperative() && !cooperative) {
            let reason = "cooperative matrices multiply f16 by f16, and nothing that is scaled before";
            return Err(ArgumentError::Variant { op, got: format!("{tile:?}"), reason: reason.to_owned() }.into());
        }
        let Some(split_length) = self.split_length else { return Ok(()) };
        let tile = self.tile.unwrap_or(Tile::Tile64x64);
        let longest = tile.longest(traits);
        if split_length == 0 || u64::from(split_length).next_multiple_of(BK) > longest {
            let reason = format!("a split has 1 to {longest} steps with this tile");
            return Err(
                ArgumentError::Variant { op, got: format!("split_length {split_length}, {tile:?}"), reason }.into()
            );
        }
        Ok(())
    }
}
