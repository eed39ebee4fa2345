//! The device handle and tensors: choice of an adapter, adopted devices, threads, offsets, readback.
use std::process::Command;

use weightnorm::{Axis, DType, Gpu, Options, ParameterPassing, Tensor, WeightNorm};

use crate::limits::every_operator;
use crate::misuse;
use crate::problem::{Op, Problem, adapter_of, device};
use crate::{Extent, Failed, Needs, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    suite.test("host::environment_chooses", Needs::Nothing, environment_chooses);
    suite.test("host::no_adapter", Needs::Nothing, no_adapter);
    suite.test("host::adopts_devices", Needs::Nothing, adopts_devices);
    suite.test("host::reports", Needs::Nothing, reports);
    suite.test("host::reports_what_is_lacking", Needs::Nothing, reports_what_is_lacking);
    suite.test("host::threads", Needs::NotGl, threads);
    suite.test("host::offsets", Needs::Nothing, offsets);
    suite.test("host::tensors_come_back", Needs::Nothing, |gpu| Ok(misuse::tensors_come_back(gpu)?));
    suite.test("host::reads_without_a_poller", Needs::NotGl, reads_without_a_poller);
}

const fn is_clone_send_sync<T: Clone + Send + Sync>() {}
const _: () = {
    is_clone_send_sync::<Gpu>();
    is_clone_send_sync::<Tensor>();
};

/// This binary again, with other variables: its output and whether it passed.
fn again(variables: &[(&str, &str)]) -> Result<(String, bool), Failed> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["golden::wn_4x8", "--exact"]).envs(variables.iter().copied());
    let output = command.output()?;
    Ok((String::from_utf8_lossy(&output.stdout).into_owned(), output.status.success()))
}

fn environment_chooses(gpu: &Gpu) -> Outcome {
    let info = gpu.report().info;
    // Part of the name, in other letters.
    let part = info.name.split_whitespace().next().unwrap_or_default().to_uppercase();
    let backend = info.backend.to_str();
    let (output, passed) = again(&[("WGPU_ADAPTER_NAME", &part), ("WGPU_BACKEND", backend)])?;
    assert!(passed && output.contains(&info.name) && output.contains("1 passed"), "{output}");
    assert!(output.contains(&format!("{:?}", info.backend)), "{output}");
    Ok(())
}

/// A variable that leaves no adapter: the message says so, and what there is; the tests fail, since it is a mistake.
fn no_adapter(gpu: &Gpu) -> Outcome {
    let elsewhere = if cfg!(windows) { "metal" } else { "dx12" };
    let name = gpu.report().info.name;
    for (variable, value, words) in [
        ("WGPU_ADAPTER_NAME", "no such adapter", &["no adapter has that in its name. There are: ", name.as_str()][..]),
        ("WGPU_BACKEND", elsewhere, &["this system cannot have that, only "]),
        ("WGPU_BACKEND", "vulcan", &["there is no backend \"vulcan\", only vulkan, metal, dx12 and gl"]),
    ] {
        for require in ["0", "1"] {
            let (output, passed) = again(&[(variable, value), ("WEIGHTNORM_REQUIRE_GPU", require)])?;
            assert!(!passed && output.contains(&format!("{variable} is {value:?}: ")), "{output}");
            assert!(words.iter().all(|word| output.contains(word)), "{output}");
            assert!(!output.contains("Install") && !output.contains("0x0"), "{output}");
        }
    }
    // Empty ones count as unset.
    let (output, passed) = again(&[("WGPU_BACKEND", ""), ("WGPU_ADAPTER_NAME", " ")])?;
    assert!(passed && output.contains("1 passed"), "{output}");
    Ok(())
}

/// Devices of the caller's: with everything wanted, with nothing, and with immediates that we are told not to use.
fn adopts_devices(gpu: &Gpu) -> Outcome {
    let (_instance, adapter) = adapter_of(gpu, wgpu::MemoryBudgetThresholds::default())?;
    let wanted = Gpu::wanted(&adapter);
    let has = adapter.features().contains(wgpu::Features::IMMEDIATES);
    assert_eq!(wanted.features.contains(wgpu::Features::IMMEDIATES), has);
    let used = wgpu::Features::IMMEDIATES
        | wgpu::Features::SUBGROUP
        | wgpu::Features::TIMESTAMP_QUERY
        | wgpu::Features::PIPELINE_CACHE;
    assert_eq!(wanted.features, adapter.features() & used);
    assert_eq!(wanted.limits, adapter.limits());
    for (with, parameters, immediates) in [
        (true, ParameterPassing::Auto, has),
        (true, ParameterPassing::Uniform, false),
        (false, ParameterPassing::Auto, false),
    ] {
        let (device, queue) = device(&adapter, |features, limits| {
            if !with {
                *features = wgpu::Features::empty();
                limits.max_immediate_size = 0;
            }
        })?;
        let gpu = Gpu::from_wgpu(
            device.clone(),
            queue,
            Options::default().parameter_passing(parameters).kind(gpu.traits().kind),
        )?;
        assert_eq!(gpu.report().immediates, immediates);
        assert_eq!(gpu.device(), &device);
        every_operator(&gpu, DType::F32, Extent::Few)?;
    }
    Ok(())
}

fn reports(gpu: &Gpu) -> Outcome {
    let report = gpu.report();
    let text = report.to_string();
    for part in [&report.info.name, &report.info.driver, &format!("{:?}", report.info.backend)] {
        assert!(text.contains(part.as_str()), "{part} in {text}");
    }
    assert_eq!(text.contains("immediates"), report.immediates);
    assert_eq!(report.limits, gpu.device().limits());
    assert!(text.contains(&format!("{} workgroups", report.limits.max_compute_workgroups_per_dimension)));
    Ok(())
}

/// What a device of the caller's was made without is told, with what it costs; of one with all that is wanted, nothing.
fn reports_what_is_lacking(gpu: &Gpu) -> Outcome {
    assert!(gpu.report().lacks.is_empty(), "{}", gpu.report());
    let (_instance, adapter) = adapter_of(gpu, wgpu::MemoryBudgetThresholds::default())?;
    let lacks = |change: &dyn Fn(&mut wgpu::Features, &mut wgpu::Limits)| -> Result<Vec<String>, Failed> {
        let (device, queue) = device(&adapter, change)?;
        let report = Gpu::from_wgpu(device, queue, Options::default())?.report();
        let text = report.to_string();
        assert!(report.lacks.iter().all(|line| text.contains(&format!("lacks:      {line}"))), "{text}");
        Ok(report.lacks)
    };
    // On GL the adapter is not looked for, and may have no more.
    let on_gl = gpu.report().info.backend == wgpu::Backend::Gl;
    let with_all = lacks(&|_, _| ())?;
    assert!(with_all.iter().all(|line| on_gl && line.contains("if the adapter has it")), "{with_all:?}");
    let wanted = Gpu::wanted(&adapter).features;
    let names = [
        ("SUBGROUP", wgpu::Features::SUBGROUP),
        ("IMMEDIATES", wgpu::Features::IMMEDIATES),
        ("TIMESTAMP_QUERY", wgpu::Features::TIMESTAMP_QUERY),
        ("PIPELINE_CACHE", wgpu::Features::PIPELINE_CACHE),
    ];
    let with_none = lacks(&|features, limits| {
        *features = wgpu::Features::empty();
        limits.max_immediate_size = 0;
    })?;
    for (name, feature) in names {
        let told = with_none.iter().any(|line| line.starts_with(name));
        assert!(told == wanted.contains(feature) || (on_gl && told), "{name}: {with_none:?}");
    }
    let with_less = lacks(&|_, limits| {
        limits.max_storage_buffer_binding_size = 1 << 20;
        limits.max_compute_workgroups_per_dimension = 64;
    })?;
    for name in ["max_storage_buffer_binding_size", "max_compute_workgroups_per_dimension"] {
        assert!(on_gl || with_less.iter().any(|line| line.starts_with(name)), "{with_less:?}");
    }
    assert!(on_gl || with_less.len() == 2, "{with_less:?}");
    Ok(())
}

/// Four threads on one device whose pipelines nobody has built yet, each with encoders of its own.
fn threads(shared: &Gpu) -> Outcome {
    let gpu = crate::problem::adopted(shared, |_| ())?;
    let work = |thread: usize| -> Outcome {
        for i in 0..20 {
            let op = Op::ALL[(i + 3 * thread) % Op::ALL.len()];
            let axis = [Axis::Kept(0), Axis::Kept(1)][i / 10];
            Problem::new(op, &[33 + 7 * thread, 65 + i], axis, 9 + i, DType::F16).run(&gpu)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|thread| scope.spawn(move || work(thread))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?)
    })
}

/// Tensors that start where no binding can: bound from the address below.
fn offsets(gpu: &Gpu) -> Outcome {
    for dtype in [DType::F32, DType::F16] {
        // Products of f16 have tests of their own.
        let ops: &[Op] = if dtype == DType::F32 { &Op::ALL } else { &Op::OF_TENSORS };
        for (i, &op) in ops.iter().enumerate() {
            for offset in [4, 8, 12, 252, 256 + 12, 1020] {
                let axis = [Axis::Kept(0), Axis::Kept(1), Axis::Whole][i % 3];
                Problem::new(op, &[19, 21], axis, 3, dtype).at(offset).run(gpu)?;
            }
        }
    }
    Ok(())
}

/// `read_async` on a thread that nobody helps: the future polls the device itself.
fn reads_without_a_poller(gpu: &Gpu) -> Outcome {
    let v = gpu.upload(&[3f32, 4.0], &[1, 2])?;
    let norm = gpu.row_norms(WeightNorm::unit(&v).eps(weightnorm::Eps::None))?;
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(pollster::block_on(norm.read_async::<f32>())));
    assert_eq!(receiver.recv_timeout(std::time::Duration::from_secs(20))??, [5.0]);
    Ok(())
}
