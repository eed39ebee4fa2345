//! The modules of products: a file of an epilogue, and what fills its slots.
use super::tile::Family;
use crate::source::Module;

impl Family {
    const ALL: [Family; 5] =
        [Family::Tile, Family::Stream, Family::Subgroup, Family::Cooperative8, Family::Cooperative16];

    /// Of matrices. Software drivers read mixed types element by element; cooperative matrices take f16 alone.
    pub fn can_read(self, reads: [OperandRead; 2]) -> bool {
        match self {
            Family::Tile | Family::Stream => true,
            Family::Subgroup => reads[0] == reads[1],
            Family::Cooperative8 | Family::Cooperative16 => reads[0] == reads[1] && reads[0] != OperandRead::Quad,
            Family::Narrow => false,
        }
    }

    /// Its file.
    pub fn file(self) -> &'static str {
        match self {
            Family::Tile => "product/tile",
            Family::Stream => "product/stream",
            Family::Subgroup => "product/subgroup",
            Family::Narrow => "product/narrow",
            Family::Cooperative8 | Family::Cooperative16 => "product/cooperative",
        }
    }

    /// The module of a product of matrices with this epilogue.
    pub fn module(self, epilogue: &'static str, [a, b]: [OperandRead; 2], result: &'static str) -> Module {
        let family = self.file();
        let a = match a {
            OperandRead::Scalar => "product/a_scalar",
            OperandRead::Quad => "product/a_quad",
            OperandRead::Pair => "product/a_pair",
        };
        let b = match b {
            OperandRead::Scalar => "product/b_scalar",
            OperandRead::Quad => "product/b_quad",
            OperandRead::Pair => "product/b_pair",
        };
        let module = Module::new(epilogue).fill("family", family).fill("a", a).fill("b", b).fill("result", result);
        match self {
            Family::Cooperative8 => module.fill("matrix", "product/matrix8"),
            Family::Cooperative16 => module.fill("matrix", "product/matrix16"),
            _ => module,
        }
    }
}

/// How an operand is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OperandRead {
    /// Element by element: anything.
    Scalar,
    /// f32, four at a time.
    Quad,
    /// f16 or bf16, four at a time.
    Pair,
}

impl OperandRead {
    /// What comes together: both operands four at a time, or neither.
    pub const BOTH: [[OperandRead; 2]; 5] = [
        [OperandRead::Scalar, OperandRead::Scalar],
        [OperandRead::Quad, OperandRead::Quad],
        [OperandRead::Pair, OperandRead::Pair],
        [OperandRead::Pair, OperandRead::Quad],
        [OperandRead::Quad, OperandRead::Pair],
    ];
}

const LINEAR: &str = "product/linear";
const GRADIENT: &str = "product/gradient";
pub(crate) const RESULTS: [&str; 3] = ["product/result_scalar", "product/result_packed", "product/result_vec4"];

/// Every module of a product.
pub(crate) fn modules() -> Vec<Module> {
    let mut all = vec![];
    for epilogue in [LINEAR, GRADIENT] {
        for family in Family::ALL {
            for reads in OperandRead::BOTH.into_iter().filter(|reads| family.can_read(*reads)) {
                all.extend(RESULTS.map(|result| family.module(epilogue, reads, result)));
            }
        }
    }
    all
}
