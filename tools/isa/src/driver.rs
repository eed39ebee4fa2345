//! One pipeline through the Vulkan driver, set up as wgpu sets it up, and what the driver says of it.
use std::ffi::{CStr, CString, c_char};

use ash::{ext, khr, vk};

use crate::at;

pub struct Driver {
    instance: ash::Instance,
    device: ash::Device,
    pub version: String,
    /// Whether the chip has cooperative matrices.
    pub cooperative: bool,
    _library: ash::Entry,
}

pub struct Binding {
    pub number: u32,
    pub uniform: bool,
}

/// What became of a pipeline.
pub struct Built {
    pub statistics: Vec<(String, u64)>,
    pub assembly: String,
}

impl Built {
    /// The sum of those that have one of these names: each driver has its own.
    pub fn statistic(&self, names: &[&str]) -> u64 {
        self.statistics.iter().filter(|(name, _)| names.contains(&name.as_str())).map(|(_, value)| value).sum()
    }
}

fn text(chars: &[c_char]) -> String {
    let bytes: Vec<u8> = chars.iter().take_while(|c| **c != 0).map(|c| *c as u8).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Driver {
    pub fn new() -> Result<Self, String> {
        // SAFETY: plain Vulkan: every structure outlives the call it is passed to, and objects are used with the
        // device that made them.
        unsafe {
            let library = ash::Entry::load().map_err(at("no Vulkan loader"))?;
            let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
            let info = vk::InstanceCreateInfo::default().application_info(&application);
            let instance = library.create_instance(&info, None).map_err(at("no Vulkan instance"))?;
            let physical = *instance
                .enumerate_physical_devices()
                .map_err(at("physical devices"))?
                .first()
                .ok_or("no Vulkan device: does VK_ICD_FILENAMES name one?")?;

            let mut driver = vk::PhysicalDeviceDriverProperties::default();
            let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut driver);
            instance.get_physical_device_properties2(physical, &mut properties);
            let version = format!("{} {}", text(&driver.driver_name), text(&driver.driver_info));

            // The robustness that wgpu asks for decides which loads the compiler may join; everything else that the
            // driver has is taken too, so that every shader compiles.
            let present = instance.enumerate_device_extension_properties(physical).map_err(at("extensions"))?;
            let has = |name: &CStr| present.iter().any(|e| e.extension_name_as_c_str() == Ok(name));
            let wanted =
                [khr::pipeline_executable_properties::NAME, ext::robustness2::NAME, khr::cooperative_matrix::NAME];
            let names: Vec<_> = wanted.into_iter().filter(|name| has(name)).map(CStr::as_ptr).collect();
            let mut robustness = vk::PhysicalDeviceRobustness2FeaturesEXT::default();
            let mut matrices = vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default();
            let mut executables = vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default();
            let mut v11 = vk::PhysicalDeviceVulkan11Features::default();
            let mut v12 = vk::PhysicalDeviceVulkan12Features::default();
            let mut v13 = vk::PhysicalDeviceVulkan13Features::default();
            let mut features = vk::PhysicalDeviceFeatures2::default()
                .push_next(&mut executables)
                .push_next(&mut robustness)
                .push_next(&mut v11)
                .push_next(&mut v12)
                .push_next(&mut v13);
            if has(khr::cooperative_matrix::NAME) {
                features = features.push_next(&mut matrices);
            }
            instance.get_physical_device_features2(physical, &mut features);
            let queues = [vk::DeviceQueueCreateInfo::default().queue_priorities(&[1.0])];
            let info = vk::DeviceCreateInfo::default()
                .queue_create_infos(&queues)
                .enabled_extension_names(&names)
                .push_next(&mut features);
            let device = instance.create_device(physical, &info, None).map_err(at("no device"))?;
            let cooperative = has(khr::cooperative_matrix::NAME);
            Ok(Driver { instance, device, version, cooperative, _library: library })
        }
    }

    pub fn build(&self, spirv: &[u32], entry: &str, bindings: &[Binding]) -> Result<Built, String> {
        let entry = CString::new(entry).map_err(|e| e.to_string())?;
        let entries: Vec<_> = bindings
            .iter()
            .map(|b| {
                let kind =
                    if b.uniform { vk::DescriptorType::UNIFORM_BUFFER } else { vk::DescriptorType::STORAGE_BUFFER };
                vk::DescriptorSetLayoutBinding::default()
                    .binding(b.number)
                    .descriptor_type(kind)
                    .descriptor_count(1)
                    .stage_flags(vk::ShaderStageFlags::COMPUTE)
            })
            .collect();
        // SAFETY: as in `new`. The objects live until the process ends.
        unsafe {
            let device = &self.device;
            let module = device
                .create_shader_module(&vk::ShaderModuleCreateInfo::default().code(spirv), None)
                .map_err(at("shader module"))?;
            let set = device
                .create_descriptor_set_layout(&vk::DescriptorSetLayoutCreateInfo::default().bindings(&entries), None)
                .map_err(at("bindings"))?;
            let immediates = [vk::PushConstantRange::default().stage_flags(vk::ShaderStageFlags::COMPUTE).size(64)];
            let sets = [set];
            let layout = vk::PipelineLayoutCreateInfo::default().set_layouts(&sets).push_constant_ranges(&immediates);
            let layout = device.create_pipeline_layout(&layout, None).map_err(at("pipeline layout"))?;
            let stage = vk::PipelineShaderStageCreateInfo::default()
                .stage(vk::ShaderStageFlags::COMPUTE)
                .module(module)
                .name(&entry);
            let capture = vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR
                | vk::PipelineCreateFlags::CAPTURE_INTERNAL_REPRESENTATIONS_KHR;
            let info = vk::ComputePipelineCreateInfo::default().stage(stage).layout(layout).flags(capture);
            let pipeline = device
                .create_compute_pipelines(vk::PipelineCache::null(), &[info], None)
                .map_err(|(_, error)| format!("pipeline: {error}"))?[0];
            self.built(pipeline)
        }
    }

    /// # Safety
    /// `pipeline` is one of this device, made with both flags of VK_KHR_pipeline_executable_properties.
    unsafe fn built(&self, pipeline: vk::Pipeline) -> Result<Built, String> {
        let executables = khr::pipeline_executable_properties::Device::new(&self.instance, &self.device);
        let which = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline);
        // SAFETY: by the caller; the sizes of the texts are those the driver asked for.
        unsafe {
            let found = executables.get_pipeline_executable_statistics(&which).map_err(at("statistics"))?;
            // All that are looked at are counts of 64 bits.
            let statistics = found.iter().map(|s| (text(&s.name), s.value.u64)).collect();

            let get = executables.fp().get_pipeline_executable_internal_representations_khr;
            let handle = self.device.handle();
            let mut count = 0;
            get(handle, &which, &mut count, std::ptr::null_mut()).result().map_err(at("representations"))?;
            let mut parts = vec![vk::PipelineExecutableInternalRepresentationKHR::default(); count as usize];
            get(handle, &which, &mut count, parts.as_mut_ptr()).result().map_err(at("representations"))?;
            let mut bodies: Vec<Vec<u8>> = parts.iter().map(|part| vec![0; part.data_size]).collect();
            for (part, body) in parts.iter_mut().zip(&mut bodies) {
                part.p_data = body.as_mut_ptr().cast();
            }
            get(handle, &which, &mut count, parts.as_mut_ptr()).result().map_err(at("representations"))?;
            // "Assembly", "NAK assembly", "IR3 Assembly"; Apple's compiler shows none.
            let last = parts.iter().position(|part| text(&part.name).to_lowercase().ends_with("assembly"));
            let assembly = last.map_or_else(String::new, |i| String::from_utf8_lossy(&bodies[i]).into_owned());
            let assembly = assembly.trim_end_matches('\0').to_owned();
            Ok(Built { statistics, assembly })
        }
    }
}
