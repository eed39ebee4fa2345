//! What is to be measured.
use std::ops::Range;

use clap::ValueEnum;
use weightnorm::{Axis, DType};

#[derive(Clone, Copy, PartialEq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Operator {
    /// The norms of v
    RowNorms,
    /// w = g·v/n̂
    Normalize,
    /// v and g of an ordinary w
    Split,
    /// dv and dg of a given dw
    NormalizeBackward,
    /// The norms of all weights at once
    RowNormsSet,
    /// w of all weights at once
    NormalizeSet,
    /// dv and dg of all weights at once
    NormalizeBackwardSet,
    /// y = x·wᵀ + bias, w never stored
    Linear,
    /// The same, with what the backward pass wants
    LinearSaved,
    /// dx, dv, dg and dbias
    LinearBackward,
}

impl Operator {
    pub fn is_product(self) -> bool {
        matches!(self, Operator::Linear | Operator::LinearSaved | Operator::LinearBackward)
    }

    pub fn is_of_set(self) -> bool {
        matches!(self, Operator::RowNormsSet | Operator::NormalizeSet | Operator::NormalizeBackwardSet)
    }

    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// A weight, with those of a file that are like it.
pub struct Weight {
    pub shape: Vec<usize>,
    pub axis: Axis,
    pub dtype: DType,
    pub names: Vec<String>,
}

/// What is to be measured.
pub struct Case {
    pub operator: Operator,
    /// One; of a set all.
    pub weights: Range<usize>,
    pub batch: Option<usize>,
}

/// What is to be measured: products for each batch, and only where the weight is a matrix.
pub fn cases(weights: &[Weight], operators: &[Operator], batches: &[usize]) -> Vec<Case> {
    let mut cases = vec![];
    for &operator in operators {
        if operator.is_of_set() {
            cases.push(Case { operator, weights: 0..weights.len(), batch: None });
            continue;
        }
        for (place, weight) in weights.iter().enumerate() {
            let case = |batch| Case { operator, weights: place..place + 1, batch };
            match operator.is_product() {
                true if weight.shape.len() == 2 => cases.extend(batches.iter().map(|&batch| case(Some(batch)))),
                true => {}
                false => cases.push(case(None)),
            }
        }
    }
    cases
}
