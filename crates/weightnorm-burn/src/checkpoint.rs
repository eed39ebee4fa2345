//! The names of weights in PyTorch's checkpoints.
use burn::store::KeyRemapper;

/// Both spellings of PyTorch's weight norm, older and newer, as the modules of this crate have them:
///
/// | PyTorch | here |
/// |---|---|
/// | `weight_g`, `parametrizations.weight.original0` | `g` |
/// | `weight_v`, `parametrizations.weight.original1` | `v` |
///
/// ```no_run
/// use burn::store::{ModuleSnapshot, SafetensorsStore};
/// use weightnorm_burn::{WeightNormConv1d, pytorch_names};
///
/// # fn f(mut model: WeightNormConv1d) -> Result<(), Box<dyn std::error::Error>> {
/// let mut store = SafetensorsStore::from_file("model.safetensors").remap(pytorch_names());
/// model.load_from(&mut store)?;
/// # Ok(())
/// # }
/// ```
///
/// The same does for Burn's `PytorchStore`, which reads `.pt`. All else keeps its name; add what a model needs to it
/// with `add_pattern`. Shapes are PyTorch's too, and no adapter is needed for these modules; Burn's own `Linear` beside
/// them wants `PyTorchToBurnAdapter`, which leaves these alone.
pub fn pytorch_names() -> KeyRemapper {
    const NAMES: [(&str, &str); 4] = [
        (r"(^|\.)weight_g$", "${1}g"),
        (r"(^|\.)weight_v$", "${1}v"),
        (r"(^|\.)parametrizations\.weight\.original0$", "${1}g"),
        (r"(^|\.)parametrizations\.weight\.original1$", "${1}v"),
    ];
    KeyRemapper::from_patterns(NAMES.to_vec()).expect("patterns of this crate")
}
