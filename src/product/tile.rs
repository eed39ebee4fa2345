//! The shapes of the product kernels, by name.
use std::fmt;
use std::str::FromStr;

use crate::{Error, ParseError};

/// How a product is computed: what fills the slot `family`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// From workgroup memory.
    Tile,
    /// From registers, for few rows of A.
    Stream,
    /// By the lanes of a subgroup, for software drivers.
    Subgroup,
    /// From registers, for few columns of a convolution.
    Narrow,
    /// In cooperative matrices of 8 by 8.
    Cooperative8,
    /// In cooperative matrices of 16 by 16.
    Cooperative16,
}

/// A shape of the product kernels: how they compute, and how much of the result a workgroup does.
///
/// Every product is computed by the tile that is forced ([`Linear::tile`](crate::Linear::tile),
/// [`LinearBackward::tile`](crate::LinearBackward::tile)); else by that of the [`TuningTable`](crate::TuningTable) for
/// exactly this product; else by that of a table. It takes subgroups where a CPU computes and the device can, memory
/// everywhere else, and of these a tile that the rows and columns of the product fill well and, on a GPU, that makes
/// enough workgroups to keep it busy, where need be with the sums in pieces.
///
/// [`Display`](fmt::Display) writes the names in lower case, and [`FromStr`] reads those of [`Tile::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Tile {
    /// From workgroup memory, 128 rows by 128 columns, 8 by 8 an invocation: half of what [`Tile::Tile64x64`] reads for
    /// a multiply-add. For products of 192 such tiles or more, of 24 on a GPU within a processor.
    Tile128x128,
    /// From workgroup memory, 64 rows by 64 columns, 8 by 8 an invocation.
    Tile64x64,
    /// From workgroup memory, 32 by 32, 4 by 4 an invocation.
    Tile32x32,
    /// From workgroup memory, 128 rows by 8 columns, 4 by 4 an invocation: a few output features.
    Tile128x8,
    /// From registers, 8 rows by 8 columns, or by 32 for dx and dv: a few rows of x, at the speed at which the weight
    /// comes from memory.
    Gemv8,
    /// 4 rows by as many columns.
    Gemv4,
    /// 2 rows by as many columns.
    Gemv2,
    /// 1 row by 4 columns, or by 32.
    Gemv1,
    /// By a subgroup of 8 or 16 lanes, 64 rows by 8 columns a lane. As the others of its name for devices whose
    /// subgroups have one size: those that compute on a CPU.
    Subgroup64,
    /// 32 rows by 8 columns a lane.
    Subgroup32,
    /// 16 rows by 8 columns a lane.
    Subgroup16,
    /// 8 rows by 4 columns a lane.
    Subgroup8,
    /// 4 rows by 4 columns a lane.
    Subgroup4,
    /// 2 rows by 4 columns a lane.
    Subgroup2,
    /// 1 row by 4 columns a lane.
    Subgroup1,
    /// In cooperative matrices of 8 by 8, 32 rows by 32 columns. As [`Tile::Cooperative16`] for products of two
    /// matrices stored as f16, neither of which is scaled before it is multiplied, on devices that were asked for the
    /// experimental feature: [`Options::cooperative_matrices`](crate::Options::cooperative_matrices).
    Cooperative8,
    /// In cooperative matrices of 16 by 16, 64 rows by 64 columns.
    Cooperative16,
    /// From registers, 256 rows by up to 4 columns, for convolutions alone: few channels of a group.
    Narrow4,
    /// The same of up to 8 columns.
    Narrow8,
}

impl Tile {
    /// All that products of matrices have.
    pub const ALL: [Tile; 17] = [
        Tile::Tile128x128,
        Tile::Tile64x64,
        Tile::Tile32x32,
        Tile::Tile128x8,
        Tile::Gemv8,
        Tile::Gemv4,
        Tile::Gemv2,
        Tile::Gemv1,
        Tile::Subgroup64,
        Tile::Subgroup32,
        Tile::Subgroup16,
        Tile::Subgroup8,
        Tile::Subgroup4,
        Tile::Subgroup2,
        Tile::Subgroup1,
        Tile::Cooperative8,
        Tile::Cooperative16,
    ];

    pub(crate) fn family(self) -> Family {
        match self {
            Tile::Tile128x128 | Tile::Tile64x64 | Tile::Tile32x32 | Tile::Tile128x8 => Family::Tile,
            Tile::Gemv8 | Tile::Gemv4 | Tile::Gemv2 | Tile::Gemv1 => Family::Stream,
            Tile::Cooperative8 => Family::Cooperative8,
            Tile::Cooperative16 => Family::Cooperative16,
            Tile::Narrow4 | Tile::Narrow8 => Family::Narrow,
            _ => Family::Subgroup,
        }
    }

    pub(crate) fn is_cooperative(self) -> bool {
        matches!(self.family(), Family::Cooperative8 | Family::Cooperative16)
    }
}

impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{self:?}").to_lowercase())
    }
}

impl Tile {
    /// Their names, for an error.
    pub(crate) const NAMES: &str = "tile128x128, tile64x64, tile32x32, tile128x8, gemv1, 2, 4 or 8, subgroup1, 2, 4, .. or \
                                    64, cooperative8 or 16";
}

impl FromStr for Tile {
    type Err = Error;

    /// # Errors
    /// [`ParseError::Tile`].
    fn from_str(name: &str) -> Result<Tile, Error> {
        Tile::ALL
            .into_iter()
            .find(|tile| tile.to_string() == name)
            .ok_or_else(|| Error::Parse(ParseError::Tile { got: name.to_owned(), expected: Tile::NAMES.to_owned() }))
    }
}
