//! How fast the operators are: checks each one's result, times it, and holds it against the roof of the adapter,
//! measured in the same run; then ratios of two forms of one operator, measured in turn.
//!
//! ```sh
//! cargo bench --bench throughput                                 # everything; appended to the results if all was quiet
//! cargo bench --bench throughput -- --filter "ratio linear f32"  # lines that have all these words
//! cargo bench --bench throughput -- --only sizes --append        # one section, or some, of those of `Section`
//! cargo bench --bench throughput -- --quick --json out.json      # less of everything
//! cargo bench --bench throughput -- --only dora --cpu            # ratios of CPU time: CPU drivers, busy machines
//! cargo bench --bench throughput -- --table FILE.csv             # what was recorded, beside its bounds, for docs/measured.md
//! ```
//!
//! What was not run as a whole is appended with `--append` only, and nothing is where the roof was another one at the
//! end.
//!
//! Times of single operators are the device's own (the wall clock's where it has no timestamps), the median of several
//! calls. Times in ratios are of whole submissions with their recording, as a program meets them.
mod conv;
mod dora;
mod problem;
mod ratio;
mod recurrent;
mod set;
mod table;

use std::cell::Cell;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use serde_json::{Value, json};
use weightnorm::{Cost, DType, Gpu, Options, Roofline, Tile, Timing};

use conv::ConvOp;
use dora::DoraForm;
use problem::{Failure, Form, Kept, Op, Prepared, Problem};
use ratio::Call;
use recurrent::CellForm;
use set::{Network, SetForm, SetOp};

#[derive(Parser)]
#[command(about = "Times the operators and holds them against the roof of the adapter")]
struct Args {
    /// Only the lines whose name has all of these words
    #[arg(long, default_value = "")]
    filter: String,
    /// Only this section, or these
    #[arg(long, value_delimiter = ',')]
    only: Vec<Section>,
    /// Measures nothing: makes a table of a CSV of results, of the lines that --filter leaves
    #[arg(long, value_name = "FILE")]
    table: Option<PathBuf>,
    /// Small shapes, few repetitions
    #[arg(long)]
    quick: bool,
    /// Appends to the results though not everything was run
    #[arg(long)]
    append: bool,
    /// Writes every line to this file as well
    #[arg(long)]
    json: Option<PathBuf>,
    /// Linear layers with every tile that the device can run, too
    #[arg(long)]
    tiles: bool,
    /// Asks for cooperative matrices, which are experimental, and measures layers in f16 with them and without
    #[arg(long)]
    cooperative: bool,
    /// Shows which dispatches the time of an operator goes to
    #[arg(long)]
    profile: bool,
    /// Pairs for a ratio
    #[arg(long, default_value_t = 31)]
    pairs: usize,
    /// Begins no further line after so many seconds, and says how many there would have been
    #[arg(long)]
    seconds: Option<f64>,
    /// Ratios of CPU time instead of the wall clock's, on Linux: for a driver that computes on a CPU beside other work
    #[arg(long)]
    cpu: bool,
    /// Milliseconds of one repetition
    #[arg(long, default_value_t = 40.0)]
    ms: f64,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Section {
    /// Each operator by itself
    Rates,
    /// Two forms of one operator, in turn
    Ratios,
    /// Convolutions by themselves, with and without weight norm, and beside `linear`
    Convs,
    /// Sequences of LSTM cells, beside `linear` and an elementwise kernel, and with and without weight norm
    Recurrent,
    /// DoRA beside plain LoRA
    Dora,
    /// Many layers at once, against a call for each
    Sets,
    /// Time over size
    Sizes,
}

/// Rows and columns of the row operators; m, k, n of the layers.
const ROWS: [[usize; 2]; 5] = [[1024, 1024], [4096, 4096], [8, 1 << 20], [1 << 20, 8], [512, 4608]];
/// Short rows, as those of 3x3 and 3x3x3 convolutions over one channel.
const SHORT: [[usize; 2]; 5] = [[1 << 20, 4], [1 << 19, 16], [1 << 18, 32], [1 << 18, 9], [1 << 17, 27]];
const LAYERS: [[usize; 3]; 9] = [
    [1, 1024, 1024],
    [8, 4096, 4096],
    [64, 1024, 1024],
    [256, 784, 512],
    [512, 512, 512],
    [1024, 1024, 1024],
    [33, 257, 129],
    [16_384, 512, 512],
    [16_384, 512, 259],
];
/// Weights for the operators that are not measured on `ROWS`.
const WEIGHTS: [[usize; 2]; 3] = [[1024, 1024], [4096, 4096], [512, 4608]];
/// Rows and features of a batch.
const BATCHES: [[usize; 2]; 3] = [[64, 1024], [1024, 1024], [16_384, 512]];
/// A few rows of x, where the weight is what has to be read.
const SMALL: [[usize; 3]; 8] = [
    [1, 1024, 1024],
    [2, 1024, 1024],
    [4, 1024, 1024],
    [8, 1024, 1024],
    [1, 4096, 4096],
    [2, 4096, 4096],
    [4, 4096, 4096],
    [8, 4096, 4096],
];
/// How long a GPU is kept busy before it is timed.
const WARM_UP: Duration = Duration::from_millis(300);
const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

/// One line of the output.
struct Line {
    name: String,
    ms: f64,
    work: Cost,
    percent: f64,
    /// Of a ratio: median and 95 % interval.
    ratio: Option<[f64; 3]>,
}

struct Bench {
    gpu: Gpu,
    roof: Roofline,
    args: Args,
    lines: Vec<Line>,
    start: Instant,
    not_reached: Cell<usize>,
}

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    if let Some(file) = &args.table {
        return table::print(file, |name| args.wants(name));
    }
    let start = Instant::now();
    let gpu = pollster::block_on(Gpu::new_async(options(&args)))?;
    println!("{}", gpu.report());
    let roof = gpu.roofline()?;
    let clock = if gpu.timing() == Timing::Timestamps { "timestamps" } else { "wall clock" };
    println!(
        "roof:       copy {:.2} GB/s, read {:.2} GB/s, multiply-add {:.2} GFLOP/s, by {clock}\n",
        roof.copy * 1e-9,
        roof.read * 1e-9,
        roof.multiply_add * 1e-9
    );
    let mut bench = Bench { gpu, roof, args, lines: vec![], start, not_reached: Cell::new(0) };
    for section in Section::value_variants() {
        if bench.args.only.is_empty() || bench.args.only.contains(section) {
            let start = Instant::now();
            match section {
                Section::Rates => bench.rates()?,
                Section::Ratios => bench.ratios()?,
                Section::Convs => bench.convs()?,
                Section::Recurrent => bench.recurrent()?,
                Section::Dora => bench.dora()?,
                Section::Sets => bench.sets()?,
                Section::Sizes => bench.sizes()?,
            }
            println!("{:.0} s", start.elapsed().as_secs_f64());
        }
    }
    if bench.not_reached.get() > 0 {
        println!("\nnot reached in the time given: {} lines", bench.not_reached.get());
    }
    let quiet = bench.quiet()?;
    if bench.lines.is_empty() {
        return Err(format!("no line has all the words of {:?}", bench.args.filter).into());
    }
    if let Some(file) = &bench.args.json {
        std::fs::write(file, serde_json::to_string_pretty(&bench.json())?)?;
    }
    let whole = bench.args.filter.is_empty() && bench.args.only.is_empty() && !bench.args.quick;
    if quiet && (whole || bench.args.append) {
        println!("\nappended to {}", bench.append()?.display());
    }
    Ok(())
}

fn options(args: &Args) -> Options {
    if !args.cooperative {
        return Options::default();
    }
    #[expect(unsafe_code, reason = "the token of who accepts experimental features, by --cooperative")]
    // SAFETY: a driver that computes them wrong is found by the check of each result; nothing else depends on this
    // device.
    let token = unsafe { wgpu::ExperimentalFeatures::enabled() };
    Options::default().cooperative_matrices(token, vec![])
}

impl Args {
    fn wants(&self, name: &str) -> bool {
        self.filter.split_whitespace().all(|word| name.contains(word))
    }
}

impl Bench {
    fn wants(&self, name: &str) -> bool {
        let over = self.args.seconds.is_some_and(|most| self.start.elapsed().as_secs_f64() >= most);
        let wants = self.args.wants(name);
        self.not_reached.set(self.not_reached.get() + usize::from(wants && over));
        wants && !over
    }

    /// Milliseconds that the bytes, and that the operations of some work take at least.
    fn bounds(&self, work: &Cost) -> [f64; 2] {
        let bytes = Cost { operations: 0, ..*work };
        let operations = Cost { operations: work.operations, ..Cost::default() };
        [bytes, operations].map(|work| 1e3 * self.roof.seconds(&work))
    }

    /// What of a list is run: with `--quick` what takes little.
    fn some<T: Copy>(&self, all: &[T], work: impl Fn(T) -> usize) -> Vec<T> {
        all.iter().copied().filter(|&one| !self.args.quick || work(one) <= 1 << 25).collect()
    }

    fn layers(&self, all: &[[usize; 3]]) -> Vec<[usize; 3]> {
        self.some(all, |[m, k, n]| m * k * n)
    }

    /// Every operator by itself.
    fn rates(&mut self) -> Result<(), Failure> {
        println!("{:>10} {:>9} {:>9} {:>9}", "ms", "GB/s", "GFLOP/s", "% of roof");
        let mut problems = vec![];
        for shape in self.some(&[&ROWS[..], &SHORT].concat(), |[n, k]| n * k) {
            problems.extend([Op::Read, Op::Copy].map(|op| Problem::rows(op, DType::F32, shape)));
            for op in [Op::RowNorms, Op::Normalize] {
                problems.extend(DTYPES.map(|dtype| Problem::rows(op, dtype, shape)));
            }
        }
        for shape in self.some(&WEIGHTS, |[n, k]| n * k) {
            for kept in [Kept::Columns, Kept::Middle] {
                for op in [Op::RowNorms, Op::Normalize] {
                    problems.extend(DTYPES[..2].iter().map(|&d| Problem { kept, ..Problem::rows(op, d, shape) }));
                }
            }
            for kept in [Kept::Rows, Kept::Columns, Kept::Middle] {
                problems.push(Problem { kept, ..Problem::rows(Op::NormalizeBackward, DType::F32, shape) });
            }
            problems.push(Problem::rows(Op::AdamStep, DType::F32, shape));
        }
        for shape in self.some(&BATCHES, |[n, k]| n * k) {
            problems.extend(DTYPES[..2].iter().map(|&dtype| Problem::rows(Op::BatchNorm, dtype, shape)));
        }
        for shape in self.layers(&LAYERS) {
            for form in [Form::Plain, Form::Fused, Form::Known, Form::Three] {
                problems.push(Problem::layer(Op::Linear, form, DType::F32, shape));
            }
            problems.extend(DTYPES[1..].iter().map(|&d| Problem::layer(Op::Linear, Form::Fused, d, shape)));
            for op in [Op::LinearBackward, Op::LinearStep] {
                problems.extend([Form::Plain, Form::Fused].map(|form| Problem::layer(op, form, DType::F32, shape)));
            }
        }
        if self.args.tiles {
            for shape in self.layers(&LAYERS) {
                for op in [Op::Linear, Op::LinearBackward] {
                    let problem = Problem::layer(op, Form::Fused, DType::F32, shape);
                    problems.extend(Tile::all_on(&self.gpu).map(|tile| Problem { tile: Some(tile), ..problem }));
                }
            }
        }
        if self.args.cooperative {
            for shape in self.layers(&LAYERS) {
                let problem = Problem::layer(Op::Linear, Form::Fused, DType::F16, shape);
                let tiles = [Tile::Tile64x64, Tile::Cooperative8, Tile::Cooperative16]
                    .into_iter()
                    .filter(|tile| tile.runs_on(&self.gpu));
                problems.extend(tiles.map(|tile| Problem { tile: Some(tile), ..problem }));
            }
        }
        for problem in problems {
            let name = problem.name();
            if self.wants(&name) {
                let prepared = Prepared::new(&self.gpu, problem)?;
                prepared.record_and_check(&self.gpu)?;
                self.rate(name, &prepared, |cost| prepared.work(cost))?;
            }
        }
        Ok(())
    }

    /// Times an operator, and prints its line. `work`: of a call, of what the crate says. Returns its time.
    fn rate(&mut self, name: String, prepared: &dyn Call, work: impl Fn(Cost) -> Cost) -> Result<f64, Failure> {
        let calls = self.calls(prepared)?.clamp(5, 200);
        self.warm(&[prepared])?;
        let profile = self.gpu.profile(|ops| (0..calls).try_for_each(|_| prepared.record(ops)))?;
        // A call may be several operators.
        let per_call = profile.operators.len() / calls;
        let mut times: Vec<f64> =
            profile.operators.chunks(per_call).map(|call| call.iter().map(|o| o.seconds()).sum()).collect();
        let seconds = ratio::median(&mut times);
        let mut cost = Cost::default();
        profile.operators[..per_call].iter().for_each(|operator| cost += operator.cost);
        let work = work(cost);
        let percent = 100.0 * self.roof.seconds(&work) / seconds;
        let [bytes, operations] = [work.bytes(), work.operations].map(|amount| amount as f64 * 1e-9 / seconds);
        println!("{:>10.4} {bytes:>9.2} {operations:>9.2} {percent:>9.1}  {name}", seconds * 1e3);
        if self.args.profile {
            println!("{profile}\n");
        }
        self.lines.push(Line { name, ms: seconds * 1e3, work, percent, ratio: None });
        Ok(seconds)
    }

    /// Keeps a GPU busy for a while: it clocks down within moments when it waits for the CPU to compile or to check.
    fn warm(&self, all: &[&dyn Call]) -> Result<(), Failure> {
        let start = Instant::now();
        while self.gpu.report().info.device_type != wgpu::DeviceType::Cpu && start.elapsed() < WARM_UP {
            for prepared in all {
                prepared.wall((2e-3 / prepared.wall(1)?).clamp(1.0, 200.0) as usize)?;
            }
        }
        Ok(())
    }

    /// Calls that take as long as a repetition should.
    fn calls(&self, prepared: &dyn Call) -> Result<usize, Failure> {
        let target = self.args.ms * 1e-3 * if self.args.quick { 0.25 } else { 1.0 };
        let rough = (target / prepared.wall(1)?).clamp(1.0, 64.0) as usize;
        Ok((target / prepared.wall(rough)?).clamp(1.0, 2000.0) as usize)
    }

    /// Pairs of forms whose ratio is of interest.
    fn ratios(&mut self) -> Result<(), Failure> {
        println!("\n{:>8} {:>17} {:>10} {:>10}", "ratio", "95 %", "ms", "ms");
        let f32 = |op, form, shape| Problem::layer(op, form, DType::F32, shape);
        let mut pairs = vec![];
        for op in [Op::Linear, Op::LinearStep] {
            for shape in self.layers(&[&LAYERS[..], &SMALL[1..7]].concat()) {
                pairs.push([f32(op, Form::Fused, shape), f32(op, Form::Plain, shape)]);
            }
        }
        for shape in self.layers(&SMALL) {
            pairs.push([f32(Op::Linear, Form::Three, shape), f32(Op::Linear, Form::Fused, shape)]);
        }
        for shape in self.some(&[&ROWS[..], &SHORT].concat(), |[n, k]| n * k) {
            for (op, plain) in [(Op::RowNorms, Op::Read), (Op::Normalize, Op::Copy)] {
                let of = |op, dtype| Problem::rows(op, dtype, shape);
                pairs.push([of(op, DType::F32), of(plain, DType::F32)]);
                pairs.push([of(op, DType::F16), of(op, DType::F32)]);
            }
        }
        for shape in self.layers(&SMALL) {
            pairs.push([DType::F16, DType::F32].map(|dtype| Problem::layer(Op::Linear, Form::Fused, dtype, shape)));
        }
        for [first, second] in pairs {
            let name = format!("ratio {} / {}", first.name(), second.name());
            if self.wants(&name) {
                self.ratio(name, first, second)?;
            }
        }
        Ok(())
    }

    fn ratio(&mut self, name: String, first: Problem, second: Problem) -> Result<(), Failure> {
        let [first, second] = [Prepared::new(&self.gpu, first)?, Prepared::new(&self.gpu, second)?];
        first.record_and_check(&self.gpu)?;
        second.record_and_check(&self.gpu)?;
        self.in_turn(name, &first, &second)
    }

    fn in_turn(&mut self, name: String, first: &dyn Call, second: &dyn Call) -> Result<(), Failure> {
        let calls = self.calls(first)?.min(self.calls(second)?);
        self.warm(&[first, second])?;
        let pairs = if self.args.quick { self.args.pairs.min(7) } else { self.args.pairs };
        let ratio::Ratio { median, low, high, times } =
            ratio::interleaved(pairs, || self.seconds(first, calls), || self.seconds(second, calls))?;
        let [a, b] = times.map(|t| 1e3 * t);
        println!("{median:>8.3} {low:>8.3} {high:>8.3} {a:>10.4} {b:>10.4}  {name}");
        self.lines.push(Line { name, ms: a, work: Cost::default(), percent: 0.0, ratio: Some([median, low, high]) });
        Ok(())
    }

    /// Seconds of one of `count` calls: of the wall clock, or of the CPUs.
    fn seconds(&self, call: &dyn Call, count: usize) -> Result<f64, Failure> {
        if !self.args.cpu {
            return Ok(call.wall(count)?);
        }
        let before = ratio::cpu_time()?;
        call.wall(count)?;
        Ok((ratio::cpu_time()? - before) as f64 * 1e-9 / count as f64)
    }

    /// Convolutions, in turn with themselves without weight norm and with `linear` of as many rows, columns and steps.
    fn convs(&mut self) -> Result<(), Failure> {
        println!("\n{:>10} {:>9} {:>9} {:>9}", "ms", "GB/s", "GFLOP/s", "% of roof");
        let most = if self.args.quick { 1 << 26 } else { usize::MAX };
        let layers: Vec<_> = conv::layers().into_iter().filter(|layer| layer.work() <= most).collect();
        for &layer in &layers {
            for op in ConvOp::ALL {
                for form in [Form::Fused, Form::Plain] {
                    let prepared = conv::Prepared::new(&self.gpu, layer, op, form)?;
                    let name = prepared.name();
                    if self.wants(&name) {
                        prepared.record_and_check()?;
                        self.rate(name, &prepared, |cost| cost)?;
                    }
                }
            }
        }
        println!("\n{:>8} {:>17} {:>10} {:>10}", "ratio", "95 %", "ms", "ms");
        for &layer in &layers {
            for op in ConvOp::ALL {
                let of = |form| conv::Prepared::new(&self.gpu, layer, op, form);
                let [fused, plain] = [of(Form::Fused)?, of(Form::Plain)?];
                let name = format!("ratio {} / {}", fused.name(), plain.name());
                if self.wants(&name) {
                    fused.record_and_check()?;
                    plain.record_and_check()?;
                    self.in_turn(name, &fused, &plain)?;
                }
                let linear = Problem::layer(Op::Linear, Form::Fused, DType::F32, layer.as_linear()?);
                let name = format!("ratio {} / {}", fused.name(), linear.name());
                if op == ConvOp::Forward && self.wants(&name) {
                    let linear = Prepared::new(&self.gpu, linear)?;
                    linear.record_and_check(&self.gpu)?;
                    fused.record_and_check()?;
                    self.in_turn(name, &fused, &linear)?;
                }
            }
        }
        Ok(())
    }

    /// Sequences of cells, in turn with themselves without weight norm, with the same of `linear` and a kernel of the
    /// bench's, and with the products alone.
    fn recurrent(&mut self) -> Result<(), Failure> {
        use CellForm::*;
        println!("\n{:>8} {:>17} {:>10} {:>10}", "ratio", "95 %", "ms", "ms");
        for size in self.some(&recurrent::SIZES, |[length, batch, _, units]| length * batch * units * units) {
            for pair in
                [[Fused, Products], [Fused, Plain], [Fused, Elementwise], [Plain, ElementwisePlain], [Step, StepPlain]]
            {
                let [first, second] = pair.map(|form| recurrent::Prepared::new(&self.gpu, size, form));
                let (first, second) = (first?, second?);
                let name = format!("ratio {} / {}", first.name(), second.name());
                if self.wants(&name) {
                    let dispatches = [first.record_and_check()?, second.record_and_check()?];
                    self.counted(name, dispatches, &first, &second)?;
                }
            }
        }
        Ok(())
    }

    /// DoRA with norms of each call and with known ones, in turn with plain LoRA.
    fn dora(&mut self) -> Result<(), Failure> {
        println!("\n{:>8} {:>17} {:>10} {:>10}", "ratio", "95 %", "ms", "ms");
        for size in self.some(&dora::SIZES, |[batch, ins, outs, _]| batch * ins * outs / 32) {
            for form in [DoraForm::Fused, DoraForm::Known] {
                let [first, second] = [form, DoraForm::Lora].map(|form| dora::Prepared::new(&self.gpu, size, form));
                let (first, second) = (first?, second?);
                let name = format!("ratio {} / {}", first.name(), second.name());
                if self.wants(&name) {
                    let dispatches = [first.record_and_check()?, second.record_and_check()?];
                    self.counted(name, dispatches, &first, &second)?;
                }
            }
        }
        Ok(())
    }

    /// Two calls in turn, with the dispatches of each.
    fn counted(
        &mut self,
        name: String,
        [first_count, second_count]: [u64; 2],
        first: &dyn Call,
        second: &dyn Call,
    ) -> Result<(), Failure> {
        if self.args.profile {
            println!("{}\n", self.gpu.profile(|ops| first.record(ops))?);
        }
        self.in_turn(format!("{name} ({first_count} and {second_count} dispatches)"), first, second)
    }

    /// Sets of layers against one call for each, and against one weight of as many elements.
    fn sets(&mut self) -> Result<(), Failure> {
        println!("\n{:>8} {:>17} {:>10} {:>10}  dispatches", "ratio", "95 %", "ms", "ms");
        let (generator, hundred) = (Network::generator(), Network::hundred());
        let mut networks = vec![generator.clone()];
        if !self.args.quick {
            networks.extend([Network::discriminators(), hundred.clone()]);
        }
        let mut pairs = vec![];
        for network in &networks {
            for op in SetOp::ALL {
                pairs.push((op, DType::F32, network.clone(), network.clone(), SetForm::OneByOne));
            }
        }
        for op in SetOp::ALL {
            for dtype in [DType::F32, DType::F16] {
                if !self.args.quick {
                    pairs.push((op, dtype, hundred.clone(), hundred.as_one(), SetForm::OneByOne));
                }
            }
        }
        for (op, dtype, first, second, form) in pairs {
            let other = if first.name == second.name { "one_by_one" } else { second.name };
            let name = format!("ratio set {} {dtype:?} {} / {other}", op.name(), first.name).to_lowercase();
            if !self.wants(&name) {
                continue;
            }
            let set = set::Prepared::new(&self.gpu, &first, dtype, op, SetForm::Set)?;
            let second = set::Prepared::new(&self.gpu, &second, dtype, op, form)?;
            let dispatches = [set.record_and_check()?, second.record_and_check()?];
            let target = self.args.ms * 1e-3;
            let calls = (target / set.wall(1)?.max(second.wall(1)?)).clamp(1.0, 64.0) as usize;
            let pairs = if self.args.quick { self.args.pairs.min(7) } else { self.args.pairs };
            let ratio::Ratio { median, low, high, times } =
                ratio::interleaved(pairs, || set.wall(calls), || second.wall(calls))?;
            let [a, b] = times.map(|t| 1e3 * t);
            let [few, many] = dispatches;
            println!("{median:>8.3} {low:>8.3} {high:>8.3} {a:>10.4} {b:>10.4}  {few:>3} {many:>3}  {name}");
            self.lines.push(Line {
                name,
                ms: a,
                work: Cost::default(),
                percent: 0.0,
                ratio: Some([median, low, high]),
            });
        }
        Ok(())
    }

    /// Times over sizes: a shape should not be slower than its neighbours say, a + b·size through both of them.
    fn sizes(&mut self) -> Result<(), Failure> {
        let norms = [1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000].map(|thousands: usize| {
            (Problem::rows(Op::RowNorms, DType::F32, [10 * thousands, 1000]), thousands as f64)
        });
        let products = [128, 192, 256, 320, 384, 512, 640, 768, 1024, 1280, 1536, 2048]
            .map(|edge: usize| (Problem::layer(Op::Linear, Form::Plain, DType::F32, [edge; 3]), (edge as f64).powi(3)));
        for series in [&norms[..9], &products] {
            let mut points = vec![];
            for &(problem, size) in series {
                let name = format!("sizes {}", problem.name());
                if self.wants(&name)
                    && (!self.args.quick || problem.n * problem.k.max(problem.m * problem.k) <= 1 << 25)
                {
                    if points.is_empty() {
                        println!("\n{:>10} {:>9} {:>9} {:>9}", "ms", "GB/s", "GFLOP/s", "% of roof");
                    }
                    let prepared = Prepared::new(&self.gpu, problem)?;
                    prepared.record_and_check(&self.gpu)?;
                    points.push((size, self.rate(name.clone(), &prepared, |cost| prepared.work(cost))?, name));
                }
            }
            for three in points.windows(3) {
                let [(s0, t0, _), (s1, t1, name), (s2, t2, _)] = three else { unreachable!("windows of three") };
                let fit = t0 + (t2 - t0) * (s1 - s0) / (s2 - s0);
                let (name, ratio) = (format!("fit {name}"), t1 / fit);
                println!("{ratio:>8.3} {:>40}  {name}", "");
                let ratio = Some([ratio, f64::NAN, f64::NAN]);
                self.lines.push(Line { name, ms: 1e3 * t1, work: Cost::default(), percent: 0.0, ratio });
            }
        }
        Ok(())
    }

    /// Measures the roof once more. Where the machine was not quiet, the percentages are off by as much, and nothing is
    /// kept.
    fn quiet(&self) -> Result<bool, Failure> {
        let (device, queue) = (self.gpu.device().clone(), self.gpu.queue().clone());
        let Roofline { copy, read, multiply_add } = Gpu::from_wgpu(device, queue, Options::default())?.roofline()?;
        let drifts = [copy / self.roof.copy, read / self.roof.read, multiply_add / self.roof.multiply_add];
        let quiet = drifts.iter().all(|drift| (drift - 1.0).abs() <= 0.1);
        if !quiet {
            let [copy, read, multiply_add] = drifts.map(|drift| 100.0 * drift);
            println!(
                "\nNOT QUIET: at the end of the run the adapter reached {copy:.0} % of the copy, {read:.0} % of the read and \
                 {multiply_add:.0} % of the multiply-add roof above"
            );
        }
        Ok(quiet)
    }

    fn json(&self) -> Value {
        let report = self.gpu.report();
        let lines = self.lines.iter().map(|line| {
            json!({
                "name": line.name, "ms": line.ms, "read": line.work.read, "written": line.work.written,
                "operations": line.work.operations, "bounds_ms": self.bounds(&line.work),
                "percent_of_roof": line.percent, "ratio": line.ratio,
            })
        });
        json!({
            "version": env!("CARGO_PKG_VERSION"), "adapter": report.info.name,
            "backend": format!("{:?}", report.info.backend),
            "driver": format!("{} {}", report.info.driver, report.info.driver_info),
            "roof": { "copy": self.roof.copy, "read": self.roof.read, "multiply_add": self.roof.multiply_add },
            "lines": lines.collect::<Vec<_>>(), "not_reached": self.not_reached.get(),
        })
    }

    /// Appends every line to the day's file, or to another one of the day where that has other columns.
    fn append(&self) -> Result<PathBuf, Failure> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
        std::fs::create_dir_all(&folder)?;
        let date = today();
        let has_columns = |path: &Path| match std::fs::read_to_string(path) {
            Ok(text) => text.lines().next() == Some(table::COLUMNS),
            Err(_) => true,
        };
        let names = std::iter::once(format!("{date}.csv")).chain((2..).map(|n| format!("{date}-{n}.csv")));
        let path =
            names.map(|name| folder.join(name)).find(|path| has_columns(path)).expect("there is a number for it");
        let fresh = !path.exists();
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&path)?;
        if fresh {
            writeln!(file, "{}", table::COLUMNS)?;
        }
        let info = self.gpu.report().info;
        let text = |text: &str| text.replace([',', '"', '\n'], ";");
        let Roofline { copy, read, multiply_add } = self.roof;
        let machine = format!(
            "{date},{},{},{:?},{},{:.3},{:.3},{:.3}",
            env!("CARGO_PKG_VERSION"),
            text(&info.name),
            info.backend,
            text(&format!("{} {}", info.driver, info.driver_info)),
            copy * 1e-9,
            read * 1e-9,
            multiply_add * 1e-9
        );
        for line in &self.lines {
            let Line { name, ms, work, percent, ratio } = line;
            write!(file, "{machine},{name},{ms:.6},")?;
            match ratio {
                None => {
                    let [bytes_ms, operations_ms] = self.bounds(work);
                    writeln!(
                        file,
                        "{},{},{:.4},{:.4},{percent:.2},,,,{bytes_ms:.6},{operations_ms:.6}",
                        work.bytes(),
                        work.operations,
                        work.bytes() as f64 * 1e-6 / ms,
                        work.operations as f64 * 1e-6 / ms
                    )?
                }
                Some([median, low, high]) if low.is_finite() => {
                    writeln!(file, ",,,,,{median:.4},{low:.4},{high:.4},,")?
                }
                Some([median, ..]) => writeln!(file, ",,,,,{median:.4},,,,")?,
            }
        }
        Ok(path)
    }
}

impl Prepared {
    /// One call, which may have to compile, and the check of what it leaves.
    fn record_and_check(&self, gpu: &Gpu) -> Result<(), Failure> {
        self.wall(1)?;
        gpu.check()?;
        self.check()
    }

    /// The least work of one call. The plain kernels, and the way through w, do the work of the operators whose place
    /// they take.
    fn work(&self, cost: Cost) -> Cost {
        let bytes = (self.problem.n * self.problem.k) as u64 * self.problem.dtype.size();
        match self.problem.op {
            Op::Read => Cost { read: bytes, written: 0, operations: 0 },
            Op::Copy => Cost { read: bytes, written: bytes, operations: 0 },
            _ => cost,
        }
    }
}

/// The day in UTC, year-month-day.
fn today() -> String {
    let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    // Days since 1 March of year 0, in eras of 400 years; years begin in March, so that the leap day is the last.
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}
