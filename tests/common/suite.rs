//! How GPU tests run, in every package that has some (`tests/gpu/main.rs`): all of one binary share one device, which
//! is taken for a GPU whatever it is, so that the tests prove what users run. What a software driver takes instead is
//! tested by name (`Kind::Software`, `in_turn`).
//!
//! Each test says what it needs; where the adapter lacks that, the test is listed as ignored with the reason.
//! Without any adapter all are, unless `WEIGHTNORM_REQUIRE_GPU=1`, which makes that a failure.
//! `WEIGHTNORM_NO_IMMEDIATES=1` forces the parameters of every dispatch into uniform buffers; `WEIGHTNORM_REVERSED=1`
//! does so, and has the invocations of workgroups in reverse order. `WEIGHTNORM_TEST_TIMES=1` shows what each test
//! takes. `WEIGHTNORM_TEST_ORDER=SEED` has the tests in an order that the seed gives, for runs that end before all
//! are through.
#![allow(dead_code, reason = "each test binary uses its own part of this file")]

use std::ffi::OsStr;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Mutex;

pub use libtest_mimic::Failed;
use libtest_mimic::{Arguments, Completion, Trial};
use weightnorm::internals::Kind;
use weightnorm::{DeviceError, Error, Gpu, Options, ParameterPassing, wgpu};

/// What a test comes back with.
pub type Outcome = Result<(), Failed>;

/// What a test needs beside an adapter.
#[derive(Clone, Copy, PartialEq)]
pub enum Needs {
    Nothing,
    /// More than one thread on one device, or dispatches that take seconds: wgpu's GL backend has one context lock.
    NotGl,
    /// Minutes, or seconds that every run on every driver need not spend: behind `--ignored`.
    Time,
    /// Both.
    NotGlAndTime,
}

/// Which cases of a test run: each kind of kernel, tile, storage type, axis and end takes a pipeline of its own, which
/// drivers build for a second.
#[derive(Clone, Copy, PartialEq)]
pub enum Extent {
    /// Each value of each of them somewhere.
    Few,
    /// Every combination: minutes, behind `--ignored`.
    All,
}

impl Extent {
    /// All cases, or every `step`-th.
    pub fn of<T>(self, cases: impl IntoIterator<Item = T>, step: usize) -> Vec<T> {
        cases.into_iter().step_by(if self == Extent::All { 1 } else { step }).collect()
    }

    /// The one for all cases, or the one for few.
    pub fn choose<T>(self, all: T, few: T) -> T {
        if self == Extent::All { all } else { few }
    }
}

/// Collects tests that share one device.
pub struct Suite {
    gpu: Option<Gpu>,
    trials: Vec<Trial>,
    apart: Vec<&'static str>,
}

impl Suite {
    /// Names of tests that go behind `--ignored`, a line each; `#` begins a remark.
    pub fn set_apart(&mut self, names: &'static str) {
        let names = names.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
        self.apart.extend(names.filter(|name| !name.is_empty()));
    }

    pub fn test(&mut self, name: &str, needs: Needs, test: impl FnOnce(&Gpu) -> Outcome + Send + 'static) {
        let skip = |reason: &'static str| Trial::ignorable_test(name, move || Ok(Completion::ignored_with(reason)));
        let trial = match self.gpu.clone() {
            None => skip("no GPU"),
            Some(gpu)
                if matches!(needs, Needs::NotGl | Needs::NotGlAndTime)
                    && gpu.report().info.backend == wgpu::Backend::Gl =>
            {
                skip("not on GL")
            }
            Some(gpu) => {
                let own_name = name.to_owned();
                let timed = move || Spent::during(&own_name, &gpu, || test(&gpu).inspect_err(|e| shown(&own_name, e)));
                Trial::test(name, timed).with_ignored_flag(matches!(needs, Needs::Time | Needs::NotGlAndTime))
            }
        };
        self.trials.push(trial);
    }

    /// A test of combinations: a few, and as `NAME_in_full` all of them.
    pub fn sampled(&mut self, name: &str, test: fn(&Gpu, Extent) -> Outcome) {
        self.test(name, Needs::Nothing, move |gpu| test(gpu, Extent::Few));
        self.test(&format!("{name}_in_full"), Needs::Time, move |gpu| test(gpu, Extent::All));
    }

    /// A test that may find out that the driver lacks something, and then is ignored with the reason.
    pub fn test_if_able(&mut self, name: &str, test: impl FnOnce(&Gpu) -> Result<Completion, Failed> + Send + 'static) {
        let (gpu, own_name) = (self.gpu.clone(), name.to_owned());
        self.trials.push(Trial::ignorable_test(name, move || match gpu {
            None => Ok(Completion::ignored_with("no GPU")),
            Some(gpu) => Spent::during(&own_name, &gpu, || test(&gpu).inspect_err(|e| shown(&own_name, e))),
        }));
    }

    /// A test that takes a Python with PyTorch: `WEIGHTNORM_PYTHON`, or python3. Ignored with the reason where that has
    /// none, and behind `--ignored`, since importing it takes seconds.
    pub fn test_with_pytorch(&mut self, name: &str, test: fn(&Gpu, &OsStr) -> Outcome) {
        self.test_if_able(name, move |gpu| {
            let python = std::env::var_os("WEIGHTNORM_PYTHON").unwrap_or("python3".into());
            match Command::new(&python).args(["-c", "import torch, safetensors.torch"]).output() {
                Ok(output) if output.status.success() => test(gpu, &python).map(|()| Completion::Completed),
                _ => Ok(Completion::ignored_with("no Python with torch and safetensors: WEIGHTNORM_PYTHON names one")),
            }
        });
        self.last_behind_ignored();
    }

    /// Both of that: a few combinations, and as `NAME_in_full` all of them.
    pub fn sampled_if_able(&mut self, name: &str, test: fn(&Gpu, Extent) -> Result<Completion, Failed>) {
        self.test_if_able(name, move |gpu| test(gpu, Extent::Few));
        self.test_if_able(&format!("{name}_in_full"), move |gpu| test(gpu, Extent::All));
        self.last_behind_ignored();
    }

    fn last_behind_ignored(&mut self) {
        let last = self.trials.pop();
        self.trials.extend(last.map(|trial| trial.with_ignored_flag(true)));
    }
}

/// Devices that tests share, since each has pipelines of its own, which take longer to build than to run: those with
/// other limits, and those taken for another kind.
static SHARED: Mutex<Vec<Shared>> = Mutex::new(vec![]);

struct Shared {
    limits: wgpu::Limits,
    kind: Kind,
    /// What it was made of: of the same device where it is one of another kind.
    origin: Option<wgpu::Device>,
    gpu: Gpu,
}

/// The one of its kind, which `make` makes for the first who wants it.
pub fn shared(
    limits: wgpu::Limits,
    kind: Kind,
    origin: Option<wgpu::Device>,
    make: impl FnOnce() -> Result<Gpu, Failed>,
) -> Result<Gpu, Failed> {
    let mut all = SHARED.lock()?;
    if let Some(found) = all.iter().find(|s| s.limits == limits && s.kind == kind && s.origin == origin) {
        return Ok(found.gpu.clone());
    }
    let gpu = make()?;
    all.push(Shared { limits, kind, origin, gpu: gpu.clone() });
    Ok(gpu)
}

/// Pipelines of all of them.
fn pipeline_count() -> usize {
    SHARED.lock().map_or(0, |all| all.iter().map(|s| s.gpu.pipeline_count()).sum())
}

/// Lets go of them, before drivers take their leave.
fn forget() {
    if let Ok(mut all) = SHARED.lock() {
        all.clear();
    }
}

/// Shows at once why a test failed: a run that is stopped for time does not come to its list of failures.
fn shown(name: &str, why: &Failed) {
    eprintln!("{name} failed: {}", why.message().unwrap_or_default());
}

/// Processor time, and pipelines of the devices that tests share.
struct Spent {
    seconds: f64,
    pipelines: usize,
}

impl Spent {
    fn so_far(gpu: &Gpu) -> Spent {
        // Of all threads, in hundredths of a second: the 14th and 15th number, of which the name in parentheses is the
        // 2nd.
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let ticks: f64 = after_name.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<f64>().ok()).sum();
        Spent { seconds: ticks / 100.0, pipelines: gpu.pipeline_count() + pipeline_count() }
    }

    /// `WEIGHTNORM_TEST_TIMES=1`, with `--test-threads=1`, shows which tests take how much: nearly all is drivers
    /// building pipelines.
    fn during<T>(name: &str, gpu: &Gpu, test: impl FnOnce() -> T) -> T {
        if !is_set("WEIGHTNORM_TEST_TIMES") {
            return test();
        }
        let before = Spent::so_far(gpu);
        let result = test();
        let after = Spent::so_far(gpu);
        let (seconds, pipelines) = (after.seconds - before.seconds, after.pipelines - before.pipelines);
        eprintln!("time: {seconds:6.2} s, {pipelines:3} pipelines, {name}");
        result
    }
}

/// GL has one context, which one thread at a time may use, and nearly all time goes to its driver. So a second process
/// has the second half of the tests, where there is a second core.
const SECOND_HALF: &str = "WEIGHTNORM_SECOND_HALF";

/// That process, with these arguments.
fn second_half() -> std::io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(std::env::args_os().skip(1))
        .env(SECOND_HALF, "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn is_set(name: &str) -> bool {
    std::env::var(name).is_ok_and(|v| v == "1")
}

/// Mesa's drivers on the CPU leave out LLVM's optimizations, unless something is said of that: tests compile many
/// kernels, and run each only a little.
#[expect(unsafe_code, reason = "so that it is known before the driver is loaded")]
fn unoptimized() {
    if std::env::var_os("GALLIVM_PERF").is_none() {
        // SAFETY: there is no other thread yet.
        unsafe { std::env::set_var("GALLIVM_PERF", "nopt") };
    }
}

/// What a test binary does: registers its tests, in two halves that take about as long, and runs those that its
/// arguments want.
pub fn run(first: impl FnOnce(&mut Suite), second: impl FnOnce(&mut Suite)) -> ExitCode {
    unoptimized();
    let mut halves = false;
    let mut arguments = Arguments::from_args();
    let parameters = match (is_set("WEIGHTNORM_REVERSED"), is_set("WEIGHTNORM_NO_IMMEDIATES")) {
        (true, _) => ParameterPassing::Reversed,
        (_, true) => ParameterPassing::Uniform,
        _ => ParameterPassing::Auto,
    };
    let gpu = match pollster::block_on(Gpu::new_async(Options::default().parameter_passing(parameters).kind(Kind::Gpu)))
    {
        Ok(gpu) => {
            let info = gpu.report().info;
            println!("adapter: {:?} | {} | {} | {}", info.backend, info.name, info.driver, info.driver_info);
            println!("{}", gpu.report());
            if info.backend == wgpu::Backend::Gl {
                let cores = std::thread::available_parallelism().map_or(1, usize::from);
                let wanted = arguments.test_threads.unwrap_or(cores);
                halves = wanted.min(cores) > 1 && !arguments.exact && !arguments.list && !is_set(SECOND_HALF);
                arguments.test_threads = Some(1);
            }
            Some(gpu)
        }
        Err(error @ Error::Device(DeviceError::NoAdapter { .. })) if !is_set("WEIGHTNORM_REQUIRE_GPU") => {
            println!("skipping every GPU test: {error}");
            None
        }
        Err(error) => {
            println!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let mut suite = Suite { gpu, trials: vec![], apart: vec![] };
    first(&mut suite);
    let middle = suite.trials.len();
    second(&mut suite);
    for name in suite.apart {
        let Some(at) = suite.trials.iter().position(|trial| trial.name() == name) else {
            println!("no test is named {name}, which is to be set apart");
            return ExitCode::FAILURE;
        };
        let trial = suite.trials.remove(at).with_ignored_flag(true);
        suite.trials.insert(at, trial);
    }
    let last = suite.trials.split_off(middle);
    // Programs that tests start inherit the variable, and name the one test that they want.
    let is_second = is_set(SECOND_HALF) && !arguments.exact;
    let (trials, other) = if is_second { (last, None) } else { (suite.trials, Some(last)) };
    if halves {
        // Its output is read while it runs, and shown when these are through.
        println!("(on GL another process has the second half of the tests)");
        let child = second_half().map(|child| std::thread::spawn(|| child.wait_with_output()));
        let failed = libtest_mimic::run(&arguments, trials).has_failed();
        forget();
        let output = match child.map(|thread| thread.join().expect("it only waits")) {
            Ok(Ok(output)) => output,
            Ok(Err(error)) | Err(error) => {
                println!("the second half: {error}");
                return ExitCode::FAILURE;
            }
        };
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
        print!("{}", String::from_utf8_lossy(&output.stdout));
        return if failed || !output.status.success() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let mut trials: Vec<Trial> = trials.into_iter().chain(other.into_iter().flatten()).collect();
    if let Ok(seed) = std::env::var("WEIGHTNORM_TEST_ORDER") {
        trials.sort_by_cached_key(|trial| hash(&(&seed, trial.name())));
    }
    let code = libtest_mimic::run(&arguments, trials).exit_code();
    forget();
    code
}
