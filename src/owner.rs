//! Devices, and whose a buffer, a queue or a pipeline cache is.
//!
//! wgpu numbers all it makes within an instance, compares by number alone, and looks up a number in the instance of
//! whoever uses it. So a buffer of another instance is silently another buffer, or a panic, and two devices may be
//! equal that are not. What wgpu does keep apart is where an error goes: to the device that made the thing. So a
//! harmless mistake is made with it, and it is the device's own if an error scope of that device hears of the mistake.
//! Otherwise another device does, whose own scope or handler gets the error; wgpu's handler, where the owner has set
//! none, panics, which is caught here.
//!
//! A browser tells foreign things apart by itself, and its answers come too late for this.
use std::sync::{Arc, Mutex, Weak};

#[cfg(not(target_arch = "wasm32"))]
use crate::{ArgumentError, scope};
use crate::{DeviceError, Error};

/// A device, once however many handles it has.
pub(crate) struct Owner {
    pub device: wgpu::Device,
    pub state: Arc<State>,
    /// Made by the crate, with its handlers.
    pub own: bool,
}

/// What the device's handlers report.
#[derive(Default)]
pub(crate) struct State {
    lost: Mutex<Option<String>>,
    error: Mutex<Option<Error>>,
}

impl State {
    pub fn check(&self) -> Result<(), Error> {
        if let Some(reason) = self.lost.lock().expect("no panic while held").clone() {
            return Err(DeviceError::Lost { reason }.into());
        }
        self.error.lock().expect("no panic while held").take().map_or(Ok(()), Err)
    }

    pub fn mark_lost(&self, reason: String) {
        self.lost.lock().expect("no panic while held").get_or_insert(reason);
    }

    /// An error for the next call to tell.
    pub fn report(&self, error: Error) {
        self.error.lock().expect("no panic while held").get_or_insert(error);
    }
}

type Owners = Vec<Weak<Owner>>;

#[cfg(not(target_arch = "wasm32"))]
fn with_owners<T>(look: impl FnOnce(&mut Owners) -> T) -> T {
    static OWNERS: Mutex<Owners> = Mutex::new(vec![]);
    look(&mut OWNERS.lock().expect("no panic while held"))
}

/// A browser's devices stay on their thread.
#[cfg(target_arch = "wasm32")]
fn with_owners<T>(look: impl FnOnce(&mut Owners) -> T) -> T {
    thread_local!(static OWNERS: std::cell::RefCell<Owners> = const { std::cell::RefCell::new(vec![]) });
    OWNERS.with_borrow_mut(look)
}

impl Owner {
    /// Of a device that nobody else has yet. Installs the crate's handlers.
    pub fn of_new(device: wgpu::Device) -> Arc<Owner> {
        let state = Arc::new(State::default());
        let for_lost = state.clone();
        device.set_device_lost_callback(move |reason, message| for_lost.mark_lost(format!("{reason:?}: {message}")));
        let for_errors = state.clone();
        device.on_uncaptured_error(Arc::new(move |error| {
            for_errors.report(crate::scope::from_wgpu(error, "a resource", 0));
        }));
        let owner = Arc::new(Owner { device, state, own: true });
        with_owners(|owners| owners.push(Arc::downgrade(&owner)));
        owner
    }

    /// Of a caller's device: the one it has already, if it has one.
    pub fn of(device: wgpu::Device) -> Arc<Owner> {
        with_owners(|owners| {
            owners.retain(|owner| owner.strong_count() > 0);
            if let Some(owner) = owners.iter().filter_map(Weak::upgrade).find(|o| is_same(&o.device, &device)) {
                return owner;
            }
            let owner = Arc::new(Owner { device, state: Arc::default(), own: false });
            owners.push(Arc::downgrade(&owner));
            owner
        })
    }

    /// Refuses a buffer of another device. One that the host can map, or has mapped, passes: the mistake would unmap
    /// it. `mine`: a buffer of this device.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn expect_buffer(&self, op: &'static str, buffer: &wgpu::Buffer, mine: &wgpu::Buffer) -> Result<(), Error> {
        let mappable = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::MAP_WRITE;
        if buffer.usage().intersects(mappable) || buffer.get_mapped_range(0..0).is_ok() {
            return Ok(());
        }
        // WebGPU has no error for it: should wgpu do without one some day, nothing is refused.
        if self.hears(|| buffer.unmap()) || !self.hears(|| mine.unmap()) {
            return Ok(());
        }
        Err(self.foreign(op, "the buffer"))
    }

    /// Refuses a queue of another device. `mine`: a buffer of this device without `COPY_DST`.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn expect_queue(&self, op: &'static str, queue: &wgpu::Queue, mine: &wgpu::Buffer) -> Result<(), Error> {
        // Nothing is written, and nothing could be: the place is none.
        if self.hears(|| queue.write_buffer(mine, 1, &[])) { Ok(()) } else { Err(self.foreign(op, "the queue")) }
    }

    /// Refuses a pipeline cache of another device.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn expect_cache(&self, op: &'static str, cache: &wgpu::PipelineCache) -> Result<(), Error> {
        let source = wgpu::ShaderSource::Wgsl("@compute @workgroup_size(1) fn placeholder() {}".into());
        let module = wgpu::ShaderModuleDescriptor { label: Some("weightnorm.nothing"), source };
        let module = self.device.create_shader_module(module);
        let mut descriptor = wgpu::ComputePipelineDescriptor {
            label: Some("weightnorm.nothing"),
            layout: None,
            module: &module,
            entry_point: None,
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        };
        let build = |descriptor: &wgpu::ComputePipelineDescriptor<'_>| {
            let build = || caught(|| drop(self.device.create_compute_pipeline(descriptor)));
            scope::Scopes::default().scoped(&self.device, "a pipeline", 0, build)
        };
        // What fails without the cache as well is not the cache's fault.
        build(&descriptor)?;
        descriptor.cache = Some(cache);
        match build(&descriptor) {
            Ok(true) => Ok(()),
            Err(error) if !matches!(error, Error::Device(DeviceError::Wgpu { .. })) => Err(error),
            _ => Err(self.foreign(op, "the pipeline cache")),
        }
    }

    /// Whether an error scope of this device hears of a mistake. Scopes of the other devices that the crate knows keep
    /// it from their handlers.
    #[cfg(not(target_arch = "wasm32"))]
    fn hears(&self, mistake: impl FnOnce()) -> bool {
        let others: Vec<_> = with_owners(|owners| {
            let others = owners.iter().filter(|owner| !std::ptr::eq(owner.as_ptr(), self));
            others.filter_map(Weak::upgrade).collect()
        });
        let mut nets: Vec<_> =
            others.iter().map(|o: &Arc<Owner>| o.device.push_error_scope(wgpu::ErrorFilter::Validation)).collect();
        let heard = hears(&self.device, mistake);
        while let Some(net) = nets.pop() {
            drop(net);
        }
        heard
    }

    /// The error of a thing that is not this device's, or of the device itself, which hears nothing once it is lost.
    #[cfg(not(target_arch = "wasm32"))]
    fn foreign(&self, op: &'static str, arg: &'static str) -> Error {
        scope::lost(&self.device).unwrap_or(Error::Argument(ArgumentError::OtherGpu { op, arg }))
    }
}

/// Whether a device is the same, and not only equal to it.
#[cfg(not(target_arch = "wasm32"))]
fn is_same(known: &wgpu::Device, device: &wgpu::Device) -> bool {
    known == device && {
        // Catches the error if they are not the same.
        let _net = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::MAP_WRITE;
        let label = Some("weightnorm.mistake");
        let wrong = wgpu::BufferDescriptor { label, size: 4, usage, mapped_at_creation: false };
        hears(known, || drop(device.create_buffer(&wrong)))
    }
}

#[cfg(target_arch = "wasm32")]
fn is_same(known: &wgpu::Device, device: &wgpu::Device) -> bool {
    known == device
}

#[cfg(not(target_arch = "wasm32"))]
fn hears(device: &wgpu::Device, mistake: impl FnOnce()) -> bool {
    let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
    caught(mistake);
    crate::scope::now(scope.pop()).flatten().is_some()
}

/// Whether wgpu does it without a panic.
#[cfg(not(target_arch = "wasm32"))]
fn caught(call: impl FnOnce()) -> bool {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).is_ok()
}
