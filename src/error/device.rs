//! What a device, an adapter or a driver says.
use super::text::Short;

/// There is no device, it cannot do this, or it failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// No adapter that wgpu can use was found.
    #[cfg_attr(
        target_arch = "wasm32",
        error(
            "no GPU adapter found (tried {tried}).\nWebGPU needs https or localhost, and may have to be switched on: \
             in Chrome on Linux under chrome://flags"
        )
    )]
    #[cfg_attr(
        not(target_arch = "wasm32"),
        error(
            "no GPU adapter found (tried {tried}).\nInstall a Vulkan driver: \
             `apt install libvulkan1 mesa-vulkan-drivers` (Debian, Ubuntu; needs no GPU), \
             `dnf install vulkan-loader mesa-vulkan-drivers` (Fedora); on macOS and Windows update the graphics driver"
        )
    )]
    NoAdapter {
        /// What was looked for.
        tried: String,
    },
    /// A variable of the environment leaves no adapter to choose, though there may be some.
    #[error("{variable} is {:?}: {reason}", Short(value))]
    AdapterChoice {
        /// `WGPU_BACKEND` or `WGPU_ADAPTER_NAME`.
        variable: &'static str,
        /// What it is set to.
        value: String,
        /// What is wrong with that, and what there is.
        reason: String,
    },
    /// The adapter refused to make a device.
    #[error("adapter {adapter} gave no device: {}", Short(reason))]
    NoDevice {
        /// The adapter's name.
        adapter: String,
        /// What it said.
        reason: String,
    },
    /// The device cannot run the kernels.
    #[error("the device lacks {what}")]
    Unsupported {
        /// What is missing.
        what: String,
    },
    /// The device is out of memory.
    #[error("out of memory: {what} of {bytes} bytes")]
    OutOfMemory {
        /// What was being allocated.
        what: &'static str,
        /// Its size.
        bytes: u64,
    },
    /// The device is lost. Make a new [`Gpu`](crate::Gpu).
    #[error("the device is lost: {}. Make a new Gpu", Short(reason))]
    Lost {
        /// What the driver said.
        reason: String,
    },
    /// wgpu reported an error that this crate did not foresee.
    #[error("wgpu: {}", Short(message))]
    Wgpu {
        /// wgpu's words.
        message: String,
    },
}
