//! All kernels and all modules, for tests and other compilers: each operator's file lists its own.
use crate::kernel::Kernel;
use crate::source::Module;
use crate::{activation, batch, conv, dora, linear, optimizer, product, profile, recurrent, weight};

/// Every module.
pub fn modules() -> Vec<Module> {
    let mut all = vec![profile::probe::MODULE, dora::norms::MODULE];
    all.extend(weight::item::MODULES);
    all.extend(batch::statistics::MODULES);
    all.extend(optimizer::step::MODULES);
    all.extend(activation::gradient::MODULES);
    all.extend(product::variant::modules());
    all.extend(conv::kernels::modules());
    all.extend(recurrent::step::modules());
    all
}

/// Every kernel.
pub fn kernels() -> Vec<&'static Kernel> {
    [
        weight::item::KERNELS,
        linear::epilogue::KERNELS,
        conv::kernels::KERNELS,
        recurrent::step::KERNELS,
        linear::backward::epilogue::KERNELS,
        dora::norms::KERNELS,
        batch::statistics::KERNELS,
        optimizer::step::KERNELS,
        activation::gradient::KERNELS,
        profile::probe::KERNELS,
    ]
    .concat()
}
