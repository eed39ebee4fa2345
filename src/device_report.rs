//! What is reported of a device.
use std::fmt;

/// What a [`Gpu`](crate::Gpu) runs on and what it uses of it. `Display` gives it in a few lines.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DeviceReport {
    /// Adapter, driver and backend.
    pub info: wgpu::AdapterInfo,
    /// The device's limits.
    pub limits: wgpu::Limits,
    /// Whether the parameters of a dispatch travel as immediates; else each has a small uniform buffer.
    pub immediates: bool,
    /// The sides of the cooperative matrices that products of f16 may use: 8, 16, both or, without
    /// [`Options::cooperative_matrices`](crate::Options::cooperative_matrices), none.
    pub cooperative_matrices: Vec<u32>,
    /// What a caller's device was made without though the adapter has it ([`Gpu::wanted`](crate::Gpu::wanted)), and
    /// what that costs: a line for each feature or limit.
    pub lacks: Vec<String>,
}

impl fmt::Display for DeviceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DeviceReport { info, limits, immediates, cooperative_matrices, lacks } = self;
        writeln!(f, "adapter:    {} ({:?}, {:?})", info.name, info.device_type, info.backend)?;
        writeln!(f, "driver:     {} {}", info.driver, info.driver_info)?;
        let binding = limits.max_storage_buffer_binding_size >> 20;
        let groups = limits.max_compute_workgroups_per_dimension;
        writeln!(f, "limits:     {binding} MiB in a binding, {groups} workgroups in a dimension")?;
        write!(f, "parameters: {}", if *immediates { "immediates" } else { "a uniform buffer for each dispatch" })?;
        cooperative_matrices.iter().try_for_each(|side| write!(f, "\ncooperative matrices: {side} by {side}"))?;
        lacks.iter().try_for_each(|line| write!(f, "\nlacks:      {line}"))
    }
}
