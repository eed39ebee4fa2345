//! Weight normalization of any model of Burn's, by its hook for parameters.
use burn::module::{Module, Param, Reparameterization, Reparameterizer};
use burn::tensor::Tensor;

use crate::operators;

/// What stands beside a parameter v: `param.val()` is then w = g·v/n̂.
#[derive(Module, Debug)]
pub struct Gain {
    /// One for each index of the kept axis.
    pub g: Param<Tensor<1>>,
    /// The kept axis.
    pub axis: usize,
}

impl Reparameterization for Gain {
    const NAME: &'static str = "weight_norm";

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        crate::weight(base, self.g.val(), self.axis).expect("g of this parameter")
    }
}

/// Gives every weight of a model a gain, with g the norms of v: the same function at first, and g and v are trained.
///
/// ```
/// use burn::module::Module;
/// use burn::nn::LinearConfig;
/// use weightnorm_burn::WeightNormalization;
///
/// # let device = burn::tensor::Device::wgpu(burn::tensor::DeviceKind::DefaultDevice);
/// let model = LinearConfig::new(64, 32).init(&device.autodiff());
/// let model = model.apply_reparameterization(WeightNormalization::new());
/// // .. training, with any of Burn's optimizers ..
/// let folded = model.valid().materialize();
/// ```
///
/// It takes the parameters called `weight` of rank 2 and more. Axis 1 is kept of rank 2, which is the outputs of Burn's
/// `Linear`, axis 0 of all others, as PyTorch has it; [`WeightNormalization::axis`] and [`WeightNormalization::skip`]
/// say otherwise. w is formed once for each `val()`, in one or two dispatches of this crate; the modules of this crate
/// do not form it at all, and are faster.
#[derive(Debug, Clone, Default)]
pub struct WeightNormalization {
    axes: Vec<(String, Option<usize>)>,
}

impl WeightNormalization {
    /// Of every weight.
    pub fn new() -> Self {
        WeightNormalization::default()
    }

    /// Keeps this axis of the parameters whose path ends in `path`: `"embedding.weight"`. The parameter may have any
    /// name. What is said first holds.
    pub fn axis(mut self, path: impl Into<String>, axis: usize) -> Self {
        self.axes.push((path.into(), Some(axis)));
        self
    }

    /// Leaves the parameters whose path ends in `path` as they are.
    pub fn skip(mut self, path: impl Into<String>) -> Self {
        self.axes.push((path.into(), None));
        self
    }

    /// The axis to keep, if any.
    fn kept(&self, path: &str, rank: usize) -> Option<usize> {
        let ends_in = |end: &str| path.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        if let Some((_, axis)) = self.axes.iter().find(|(end, _)| ends_in(end)) {
            return axis.filter(|&axis| axis < rank);
        }
        (rank >= 2 && ends_in("weight")).then_some(usize::from(rank == 2))
    }
}

impl Reparameterizer for WeightNormalization {
    type Reparam = Gain;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<Gain>) {
        let Some(axis) = self.kept(path, D) else { return (param, None) };
        let v = param.val().detach();
        let kept = v.dims()[axis];
        let g = Param::from_tensor(operators::norms(v, axis).reshape([kept]).detach());
        (param, Some(Gain { g, axis }))
    }
}

#[cfg(test)]
mod tests {
    use super::WeightNormalization;

    #[test]
    fn paths_choose_axes() {
        let plain = WeightNormalization::new();
        assert_eq!(plain.kept("conv.weight", 3), Some(0));
        assert_eq!(plain.kept("head.weight", 2), Some(1));
        assert_eq!(plain.kept("weight", 2), Some(1));
        assert_eq!(plain.kept("norm.weight", 1), None);
        assert_eq!(plain.kept("conv.bias", 2), None);
        assert_eq!(plain.kept("conv.overweight", 3), None);
        let other = plain.axis("embedding.weight", 0).skip("head.weight").axis("code", 0);
        assert_eq!(other.kept("model.embedding.weight", 2), Some(0));
        assert_eq!(other.kept("preembedding.weight", 2), Some(1));
        assert_eq!(other.kept("head.weight", 2), None);
        assert_eq!(other.kept("model.code", 2), Some(0));
    }
}
