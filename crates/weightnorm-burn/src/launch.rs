//! The crate's dispatches through cubecl's own launch: in Burn's order, in Burn's memory, in Burn's compute passes.
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::ir::{ElemType, UIntKind, metadata::Info};
use burn_cubecl::cubecl::prelude::{
    AddressType, CubeCount, CubeDim, ExecutionMode, KernelDefinition, KernelId, KernelMetadata, KernelSettings, Scope,
};
use burn_cubecl::cubecl::server::{Handle, KernelArguments, MetadataBindingInfo};
use burn_cubecl::cubecl::{CubeKernel, PrecompiledSource};
use burn_cubecl::tensor::CubeTensor;
use weightnorm::{Error, Facts, Launch, Planned, Recorder, SCRATCH_BUFFERS, Tensor};

use crate::support::storage_type;

/// One kernel in one variant, as cubecl wants it.
struct Variant {
    /// Equal labels have equal texts: it is what cubecl keeps pipelines by.
    label: Arc<str>,
    entry_point: &'static str,
    wgsl: String,
}

/// A launch of it.
struct Kernel(Arc<Variant>);

impl KernelMetadata for Kernel {
    fn id(&self) -> KernelId {
        KernelId::new::<Self>().info(Arc::clone(&self.0.label))
    }

    fn address_type(&self) -> ElemType {
        ElemType::UInt(UIntKind::U32)
    }
}

impl CubeKernel for Kernel {
    /// There is no representation but the text. Unchecked: no loop counters, which keep drivers from unrolling.
    fn define(&self) -> KernelDefinition {
        let settings = KernelSettings::new(CubeDim::new_1d(1).0, ExecutionMode::Unchecked, AddressType::U32);
        KernelDefinition { body: Scope::root(settings.clone()), settings, info: Info::default() }
    }

    fn source(&self) -> Option<PrecompiledSource> {
        Some(PrecompiledSource {
            source: self.0.wgsl.clone(),
            entrypoint_name: self.0.entry_point.to_owned(),
            lang: "wgsl",
        })
    }
}

/// The text of each variant is composed once.
fn variant(dispatch: &Planned<'_>) -> Arc<Variant> {
    static ALL: Mutex<Option<HashMap<Arc<str>, Arc<Variant>>>> = Mutex::new(None);
    let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    let label = dispatch.label();
    let all = all.get_or_insert_default();
    if let Some(known) = all.get(label.as_str()) {
        return Arc::clone(known);
    }
    let label: Arc<str> = label.into();
    let (entry_point, wgsl) = (dispatch.entry_point(), dispatch.plain_wgsl());
    let made = Arc::new(Variant { label: Arc::clone(&label), entry_point, wgsl });
    all.insert(label, Arc::clone(&made));
    made
}

/// Numbers of scratch buffers begin here; below are the tensors.
const SCRATCH: u64 = 1000;

/// Bytes between things that are bound but not used.
const APART: u64 = 256;

/// Launches on the tensors of one operator.
struct Launcher<'a> {
    client: &'a Client,
    tensors: &'a [&'a CubeTensor],
    scratch: [Option<Handle>; SCRATCH_BUFFERS],
    /// What is bound where a kernel does not use a binding.
    nothing: Option<Handle>,
}

impl Launcher<'_> {
    /// Bytes `offset .. offset + size` of a buffer.
    fn part(&self, number: u64, offset: u64, size: u64) -> Handle {
        let handle = match number.checked_sub(SCRATCH) {
            Some(which) => self.scratch[which as usize].clone().expect("asked for before it is bound"),
            None => self.tensors[number as usize].handle.clone(),
        };
        // cubecl rounds sizes up to whole words by itself.
        let behind = handle.size_in_used().saturating_sub(offset + size);
        handle.offset_start(offset).offset_end(behind)
    }

    /// Of its own for each place: browsers refuse writable bindings that overlap.
    fn unused(&mut self, place: u64, of: u64) -> Handle {
        let bytes = of * APART;
        let handle = self.nothing.get_or_insert_with(|| self.client.empty(bytes as usize)).clone();
        handle.offset_start(place * APART).offset_end(bytes - (place + 1) * APART)
    }
}

impl Launch for Launcher<'_> {
    fn scratch(&mut self, which: usize, bytes: u64) -> Result<u64, Error> {
        if self.scratch[which].as_ref().is_none_or(|handle| handle.size() < bytes) {
            self.scratch[which] = Some(self.client.empty(bytes.next_multiple_of(APART) as usize));
        }
        Ok(SCRATCH + which as u64)
    }

    fn launch(&mut self, dispatch: &Planned<'_>) -> Result<(), Error> {
        let mut arguments = KernelArguments::new();
        for (place, bound) in dispatch.bindings().enumerate() {
            let handle = match bound.buffer {
                Some(number) => self.part(number, bound.offset, bound.size),
                None => self.unused(place as u64, 16),
            };
            arguments = arguments.with_buffer(handle.binding());
        }
        let mut words = vec![0; dispatch.parameters().len().div_ceil(16) * 2];
        for (word, bytes) in words.iter_mut().zip(dispatch.parameters().chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_le_bytes(whole);
        }
        let [x, y, z] = dispatch.workgroups();
        let arguments = arguments.with_info(MetadataBindingInfo::custom(words));
        self.client.launch(Box::new(Kernel(variant(dispatch))), CubeCount::Static(x, y, z), arguments);
        Ok(())
    }
}

/// Records on tensors of Burn, contiguous ones. What it records was planned before with the same shapes, so that no
/// error is left (`support::decide`).
pub(crate) fn record<const N: usize>(
    facts: Facts,
    tensors: [&CubeTensor; N],
    record: impl FnOnce(&mut Recorder<'_, '_>, [&Tensor; N]) -> Result<(), Error>,
) {
    let planned = tensors.map(|tensor| tensor.meta.shape().iter().copied().collect::<Vec<usize>>());
    let mut number = 0;
    let planned = planned.map(|shape| {
        let dtype = storage_type(tensors[number as usize].dtype).expect("a type that was planned");
        number += 1;
        Tensor::of_launcher(number - 1, 0, &shape, dtype).expect("a tensor that was planned")
    });
    let client = &tensors[0].client;
    let mut launcher = Launcher { client, tensors: &tensors, scratch: Default::default(), nothing: None };
    let mut ops = Recorder::launching(facts, &mut launcher);
    record(&mut ops, planned.each_ref()).expect("an operator that was planned");
}
