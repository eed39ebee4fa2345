//! The steps of Burn's autodiff.
use burn::backend::Backend;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::autodiff::{Autodiff, NodeId};
use burn::backend::tensor::FloatTensor;

use crate::kernels::{Forward, Kernels};
use crate::layer::{Layer, Wanted};

#[derive(Debug)]
struct LayerStep;

/// x, v and g are the graph's own; u and the norms are kept.
#[derive(Debug, Clone)]
struct LayerState<B: Backend> {
    nodes: [NodeId; 3],
    u: FloatTensor<B>,
    norms: FloatTensor<B>,
    layer: Layer,
    has_bias: bool,
}

impl<B: Kernels> Backward<B, 4> for LayerStep {
    type State = LayerState<B>;

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let LayerState { nodes, u, norms, layer, has_bias } = ops.state;
        let [x, v, g] = nodes.map(|node| checkpointer.retrieve_node_output(node));
        let [dx, dv, dg, dbias] = ops.parents.each_ref().map(Option::is_some);
        let wanted = Wanted { dx, dv, dg, dbias: dbias && has_bias };
        let (dx, dv, dg, dbias) = B::weightnorm_layer_backward(x, v, g, u, norms, dy, layer, wanted);
        let given = [(wanted.dx, dx), (wanted.dv, dv), (wanted.dg, dg), (wanted.dbias, dbias)];
        for (parent, (wanted, gradient)) in ops.parents.iter().zip(given) {
            if let Some(node) = parent
                && wanted
            {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct WeightStep;

impl<B: Kernels> Backward<B, 2> for WeightStep {
    type State = ([NodeId; 2], usize);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dw = grads.consume::<B>(&ops.node);
        let (nodes, axis) = ops.state;
        let [v, g] = nodes.map(|node| checkpointer.retrieve_node_output(node));
        let (dv, dg) = B::weightnorm_weight_backward(v, g, dw, axis);
        for (parent, gradient) in ops.parents.iter().zip([dv, dg]) {
            if let Some(node) = parent {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

impl<B: Forward + Kernels, C: CheckpointStrategy> Forward for Autodiff<B, C> {
    fn weightnorm_layer(
        x: FloatTensor<Self>,
        v: FloatTensor<Self>,
        g: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        layer: Layer,
        has_bias: bool,
    ) -> FloatTensor<Self> {
        let nodes = [&x, &v, &g, &bias].map(|tensor| tensor.node());
        let inner = [&x, &v, &g, &bias].map(|tensor| tensor.primitive().clone());
        let [x_inner, v_inner, g_inner, bias_inner] = inner;
        match LayerStep.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let (y, u, norms) = B::weightnorm_layer_kept(x_inner, v_inner, g_inner, bias_inner, layer, has_bias);
                let nodes = [&x, &v, &g].map(|tensor| prep.checkpoint(tensor));
                prep.finish(LayerState { nodes, u, norms, layer, has_bias }, y)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::weightnorm_layer(x_inner, v_inner, g_inner, bias_inner, layer, has_bias))
            }
        }
    }

    fn weightnorm_weight(v: FloatTensor<Self>, g: FloatTensor<Self>, axis: usize) -> FloatTensor<Self> {
        let w = B::weightnorm_weight(v.primitive().clone(), g.primitive().clone(), axis);
        match WeightStep.prepare::<C>([v.node(), g.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let nodes = [&v, &g].map(|tensor| prep.checkpoint(tensor));
                prep.finish((nodes, axis), w)
            }
            OpsKind::UnTracked(prep) => prep.finish(w),
        }
    }
}
