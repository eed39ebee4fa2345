//! Which tile computes which product, as text.
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use crate::choose::Traits;
use crate::product::selection::{Problem, Selection};
use crate::{DType, Error, ParseError, Tile};

/// The tile for each of some products, and the length of the pieces where its sums are split: what
/// [`Gpu::tune`](crate::Gpu::tune) measured, and [`Options::tuning_table`](crate::Options::tuning_table) takes.
///
/// As text, to be kept wherever the caller likes:
///
/// ```text
/// weightnorm 0.1.0 | llvmpipe (LLVM 15.0.6, 256 bits) | llvmpipe Mesa 22.3.6 (LLVM 15.0.6) | Vulkan
/// forward f32 f32 64 512 1024 subgroup32
/// weight_gradient f32 f32 512 1024 64 subgroup32
/// weight_gradient f16 f16 64 64 16384 tile64x64 split 1024
/// ```
///
/// The first line says what they were made by and on: version of the crate, adapter, driver, backend. Elsewhere they
/// count as none: a choice is about speed alone, and what was measured there says nothing here. Each other line is one
/// product C = A·B: which (`forward` x·vᵀ, `input_gradient` dy·v, `weight_gradient` dyᵀ·x), the storage types of A and
/// B, the rows and columns of C, the length of its sums, then the choice. No line may be of another form, or of a tile
/// that this version does not know.
///
/// ```
/// let text = "weightnorm 0.1.0 | An adapter | its driver 1.0 | Vulkan\nforward f32 f32 64 512 1024 tile64x64\n";
/// let table: weightnorm::TuningTable = text.parse()?;
/// assert_eq!((table.len(), table.to_string().as_str()), (1, text));
/// # Ok::<(), weightnorm::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TuningTable {
    /// The first line.
    origin: String,
    by_product: HashMap<Problem, Choice>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Choice {
    pub tile: Tile,
    pub split_length: Option<u32>,
}

/// The products of a linear layer, by the layout of their operands.
pub(crate) const FORWARD: [bool; 2] = [true, true];
pub(crate) const INPUT_GRADIENT: [bool; 2] = [true, false];
pub(crate) const WEIGHT_GRADIENT: [bool; 2] = [false, false];
const PRODUCTS: [(&str, [bool; 2]); 3] =
    [("forward", FORWARD), ("input_gradient", INPUT_GRADIENT), ("weight_gradient", WEIGHT_GRADIENT)];
const DTYPES: [(&str, DType); 3] = [("f32", DType::F32), ("f16", DType::F16), ("bf16", DType::Bf16)];

fn named<T: Copy>(names: &[(&str, T)], name: &str) -> Option<T> {
    names.iter().find(|(n, _)| *n == name).map(|&(_, value)| value)
}

fn name_of<'a, T: PartialEq>(names: &[(&'a str, T)], value: &T) -> &'a str {
    names.iter().find(|(_, v)| v == value).map_or("", |(name, _)| name)
}

impl TuningTable {
    /// How many products they name.
    pub fn len(&self) -> usize {
        self.by_product.len()
    }

    /// Whether they name none.
    pub fn is_empty(&self) -> bool {
        self.by_product.is_empty()
    }

    /// What is left of them on this adapter: all or none.
    pub(crate) fn on(self, info: &wgpu::AdapterInfo) -> TuningTable {
        let wgpu::AdapterInfo { name, driver, driver_info, backend, .. } = info;
        let version = env!("CARGO_PKG_VERSION");
        let origin = one_line(&format!("weightnorm {version} | {name} | {driver} {driver_info} | {backend:?}"));
        if self.origin == origin { self } else { TuningTable { origin, ..TuningTable::default() } }
    }

    /// Whether the device can do what they say.
    pub(crate) fn check(&self, traits: Traits) -> Result<(), Error> {
        self.by_product.values().try_for_each(|choice| choice.selection().check("tuning_table", traits, true))
    }

    /// Chooses for a product, whatever was chosen before.
    pub(crate) fn set(&mut self, problem: Problem, choice: Choice) {
        self.by_product.insert(problem, choice);
    }

    /// `cooperative`: whether cooperative matrices can do the product.
    pub(crate) fn get(&self, problem: &Problem, cooperative: bool) -> Selection {
        let choice = self.by_product.get(problem).filter(|choice| cooperative || !choice.tile.is_cooperative());
        choice.map_or(Selection::default(), |choice| choice.selection())
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl Choice {
    pub fn selection(self) -> Selection {
        Selection { tile: Some(self.tile), split_length: self.split_length }
    }
}

impl fmt::Display for TuningTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.origin)?;
        let mut products: Vec<_> = self.by_product.iter().collect();
        let place = |along_k: &[bool; 2]| PRODUCTS.iter().position(|(_, p)| p == along_k);
        products.sort_by_key(|(key, _)| (place(&key.along_k), key.dtypes.map(DType::code), key.size));
        for (Problem { along_k, dtypes, size: [rows, columns, depth] }, Choice { tile, split_length }) in products {
            let [a, b] = dtypes.map(|dtype| name_of(&DTYPES, &dtype));
            write!(f, "{} {a} {b} {rows} {columns} {depth} {tile}", name_of(&PRODUCTS, along_k))?;
            split_length.map_or(Ok(()), |length| write!(f, " split {length}"))?;
            writeln!(f)?;
        }
        Ok(())
    }
}

impl FromStr for TuningTable {
    type Err = Error;

    /// # Errors
    /// [`ParseError::TuningTable`], with the first line that is not one of them; empty lines do no harm.
    fn from_str(text: &str) -> Result<TuningTable, Error> {
        let error = |place: usize, got: &str, expected: String| {
            Err(ParseError::TuningTable { line: place + 1, got: got.to_owned(), expected }.into())
        };
        let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let first = lines.next().unwrap_or((0, ""));
        if !first.1.starts_with("weightnorm ") {
            return error(first.0, first.1, "weightnorm, its version, adapter, driver and backend".to_owned());
        }
        let mut table = TuningTable { origin: one_line(first.1), ..TuningTable::default() };
        for (place, line) in lines {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (&[product, a, b, rows, columns, depth, tile], split) = words.split_at(words.len().min(7)) else {
                return error(place, line, "a product, two types, three sizes and a tile".to_owned());
            };
            let size = [rows, columns, depth].map(|number| number.parse().ok());
            let split_length = match split {
                [] => Some(None),
                ["split", length] => length.parse().ok().map(Some),
                _ => None,
            };
            let known = (named(&PRODUCTS, product), named(&DTYPES, a), named(&DTYPES, b), size, split_length);
            let (Some(along_k), Some(a), Some(b), [Some(rows), Some(columns), Some(depth)], Some(split_length)) = known
            else {
                let expected = "forward, input_gradient or weight_gradient, types among f32, f16 and bf16, three sizes, a \
                                tile, and split and a length or nothing";
                return error(place, line, expected.to_owned());
            };
            let key = Problem { along_k, dtypes: [a, b], size: [rows, columns, depth] };
            let choice = match tile.parse() {
                Ok(tile) => Choice { tile, split_length },
                Err(unknown) => return error(place, line, format!("a tile of this version ({unknown})")),
            };
            if table.by_product.insert(key, choice).is_some() {
                return error(place, line, "one line for each product".to_owned());
            }
        }
        Ok(table)
    }
}
