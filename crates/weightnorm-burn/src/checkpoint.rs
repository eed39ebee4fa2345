//! The names of weights in PyTorch's checkpoints.
use burn::store::KeyRemapper;

/// Both spellings of PyTorch's weight norm, older and newer, as the modules of this crate have them:
///
/// | PyTorch | here |
/// |---|---|
/// | `weight_g`, `parametrizations.weight.original0` | `g` |
/// | `weight_v`, `parametrizations.weight.original1` | `v` |
/// | `weight_ih_l0_g`, `parametrizations.weight_ih_l0.original0`, .., of a recurrent layer | `input.g`, .. |
/// | `weight_hh_l0_g`, `parametrizations.weight_hh_l0.original0`, .. | `hidden.g`, .. |
/// | `bias_ih_l0`, `bias_hh_l0` | `input.bias`, `hidden.bias` |
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
    const NAMES: [(&str, &str); 14] = [
        (r"(^|\.)weight_ih_l0_g$", "${1}input.g"),
        (r"(^|\.)weight_ih_l0_v$", "${1}input.v"),
        (r"(^|\.)weight_hh_l0_g$", "${1}hidden.g"),
        (r"(^|\.)weight_hh_l0_v$", "${1}hidden.v"),
        (r"(^|\.)parametrizations\.weight_ih_l0\.original0$", "${1}input.g"),
        (r"(^|\.)parametrizations\.weight_ih_l0\.original1$", "${1}input.v"),
        (r"(^|\.)parametrizations\.weight_hh_l0\.original0$", "${1}hidden.g"),
        (r"(^|\.)parametrizations\.weight_hh_l0\.original1$", "${1}hidden.v"),
        (r"(^|\.)bias_ih_l0$", "${1}input.bias"),
        (r"(^|\.)bias_hh_l0$", "${1}hidden.bias"),
        (r"(^|\.)weight_g$", "${1}g"),
        (r"(^|\.)weight_v$", "${1}v"),
        (r"(^|\.)parametrizations\.weight\.original0$", "${1}g"),
        (r"(^|\.)parametrizations\.weight\.original1$", "${1}v"),
    ];
    KeyRemapper::from_patterns(NAMES.to_vec()).expect("patterns of this crate")
}
