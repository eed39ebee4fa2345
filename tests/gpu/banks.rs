//! How tiles use workgroup memory and the cache, from the functions that the shader itself uses: of each invocation of
//! a tile, the lanes' places, what it reads and what it stores, as a kernel of `product/tile.wgsl`'s own functions
//! tells.
//!
//! NVIDIA serves a 128-bit access of 32 lanes in four cycles (wavefronts) of 8 lanes, or in two of 16 where lanes i and
//! i ^ 1, or i and i ^ 2, all read the same. 32 banks hold 8 vectors; two vectors of the same banks take a cycle each.
use std::collections::BTreeSet;

use weightnorm::internals::{Module, Shared, modules};
use weightnorm::{DType, Gpu};

use crate::{Needs, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    suite.test("banks::two_wavefronts_and_no_conflicts", Needs::Nothing, two_wavefronts_and_no_conflicts);
    suite.test("banks::tiles_in_bands", Needs::Nothing, tiles_in_bands);
}

const KERNEL: &str = "
@group(0) @binding(0) var<storage, read_write> found: array<u32>;

@compute @workgroup_size(THREADS)
fn where_lanes_are(@builtin(local_invocation_index) t: u32) {
    // What `multiply` reads of the first quad, and what `stage_fetched` stores first, in vectors.
    found[4u * t] = lane_m(t) * (TM / 4u);
    found[4u * t + 1u] = lane_n(t);
    let of_a = block_of(t, BM4);
    found[4u * t + 2u] = 4u * of_a.y * A_ROW + of_a.x;
    let of_b = block_of(t, BN4);
    found[4u * t + 3u] = 4u * of_b.y * B_ROW + of_b.x;
}

// Of a product of `ROWS` by `COLUMNS`.
override ROWS: u32 = 1u;
override COLUMNS: u32 = 1u;

@compute @workgroup_size(THREADS)
fn where_tiles_are(@builtin(global_invocation_id) id: vec3<u32>) {
    p.rows = ROWS;
    p.columns = COLUMNS;
    if id.x < tile_count() {
        let origin = tile_origin(id.x);
        found[2u * id.x] = origin.x;
        found[2u * id.x + 1u] = origin.y;
    }
}
";

/// WX, WY, TM, TN, BK of a tile, and the conflicts of a store of A and of B: with 8 columns, two quads of B are stored
/// by half of the banks each.
const TILES: [([u32; 5], [usize; 2]); 5] = [
    ([16, 16, 8, 8, 16], [1, 1]),
    ([8, 8, 8, 8, 16], [1, 1]),
    ([8, 8, 8, 8, 8], [1, 1]),
    ([8, 8, 4, 4, 16], [1, 1]),
    ([2, 32, 4, 4, 16], [1, 2]),
];

fn two_wavefronts_and_no_conflicts(gpu: &Gpu) -> Outcome {
    for ([wx, wy, tm, tn, bk], conflicts) in TILES {
        let tile = [("WX", wx), ("WY", wy), ("TM", tm), ("TN", tn), ("BK", bk)];
        let places = found(gpu, "where_lanes_are", &tile, 1, 4 * wx * wy)?;
        let column = |i: usize| places.chunks(4).map(|four| four[i]).collect::<Vec<_>>();
        let (m, n) = (column(0), column(1));
        let all: BTreeSet<_> = m.iter().zip(&n).collect();
        assert_eq!(all.len() as u32, wx * wy, "each invocation has a place of its own");
        assert_eq!((m.iter().max(), n.iter().max()), (Some(&((wy - 1) * (tm / 4))), Some(&(wx - 1))));
        let tile = format!("{}x{}", wy * tm, wx * tn);
        for (what, places) in [("A", m), ("B", n)] {
            // An invocation's other reads are the same number of vectors further on. Subgroups of 64 are two of 32.
            for warp in places.chunks(32) {
                assert_eq!(wavefronts(warp), 2, "{tile}: reads of {what}: {warp:?}");
            }
        }
        // Invocations that have a block to store; the other three vectors of it are a row further on each.
        let stored = [(column(2), wy * tm, conflicts[0]), (column(3), wx * tn, conflicts[1])];
        for (what, (places, rows, conflicts)) in ["A", "B"].into_iter().zip(stored) {
            let blocks = (rows / 4 * (bk / 4)).min(wx * wy) as usize;
            for eight in places[..blocks].chunks(8) {
                assert_eq!(cycles(eight), conflicts, "{tile}, {bk} steps: stores of {what}: {eight:?}");
            }
        }
    }
    Ok(())
}

/// Each tile comes once. Of 256 that follow each other, 9 to 16 lie abreast, or all: they read no more than 2 * 16 rows
/// of tiles where a band ends, and 256 / 16 + 4 columns, or so.
fn tiles_in_bands(gpu: &Gpu) -> Outcome {
    let tiles = [("WX", 8), ("WY", 8), ("TM", 4), ("TN", 4)];
    for [rows, columns] in [[1, 1], [40, 3000], [3000, 40], [1024, 1024], [550, 2100], [2100, 1000], [4096, 4096]] {
        let [down, along] = [rows, columns].map(|size: u32| size.div_ceil(32));
        let constants = [tiles.as_slice(), &[("ROWS", rows), ("COLUMNS", columns)]].concat();
        let groups = (down * along).div_ceil(64);
        let places = found(gpu, "where_tiles_are", &constants, groups, 2 * down * along)?;
        let places: Vec<_> = places.chunks(2).map(|place| (place[0], place[1])).collect();
        let all: BTreeSet<_> = (0..down).flat_map(|m| (0..along).map(move |n| (32 * m, 32 * n))).collect();
        assert_eq!(places.iter().copied().collect::<BTreeSet<_>>(), all, "{rows}x{columns}");
        for together in places.windows(256).step_by(64) {
            let rows: BTreeSet<_> = together.iter().map(|place| place.0).collect();
            let columns: BTreeSet<_> = together.iter().map(|place| place.1).collect();
            assert!(
                rows.len() + columns.len() <= 2 * 16 + 256 / 16 + 4,
                "{} rows, {} columns",
                rows.len(),
                columns.len()
            );
        }
    }
    Ok(())
}

/// Cycles in which lanes read vectors of 16 bytes at these places.
fn wavefronts(lanes: &[u32]) -> usize {
    let same = |bit: usize| (0..lanes.len()).all(|i| lanes[i] == lanes[i ^ bit]);
    let together = if same(1) || same(2) { 16 } else { 8 };
    lanes.chunks(together).map(cycles).sum()
}

/// Of lanes that are served together: one for each further vector of the same banks.
fn cycles(lanes: &[u32]) -> usize {
    let vectors: BTreeSet<_> = lanes.iter().collect();
    (0..8).map(|banks| vectors.iter().filter(|v| **v % 8 == banks).count()).max().unwrap_or_default()
}

/// What a kernel of the module of tiles in quads writes: `count` words.
fn found(
    gpu: &Gpu,
    kernel: &str,
    constants: &[(&str, u32)],
    groups: u32,
    count: u32,
) -> Result<Vec<u32>, libtest_mimic::Failed> {
    let slots = ["product/tile", "product/a_quad", "product/b_quad", "product/result_vec4"];
    let is_it =
        |m: &Module| m.file == "product/linear" && slots.iter().all(|file| m.slots.iter().any(|slot| slot.1 == *file));
    let source = modules().into_iter().find(is_it).ok_or("no module of tiles in quads")?.source(Shared::default());
    // The kernels have no parameters, and not every device has immediates.
    let source = source.replace("var<immediate>", "var<private>") + KERNEL;
    let device = gpu.device();
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: None,
        source: wgpu::ShaderSource::Wgsl(source.into()),
    });
    let constants: Vec<_> = constants.iter().map(|&(name, value)| (name, f64::from(value))).collect();
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: None,
        module: &module,
        entry_point: Some(kernel),
        compilation_options: wgpu::PipelineCompilationOptions { constants: &constants, ..Default::default() },
        cache: None,
    });
    let tensor = gpu.zeros(&[count as usize], DType::F32)?;
    let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &pipeline.get_bind_group_layout(0),
        entries: &[wgpu::BindGroupEntry { binding: 0, resource: tensor.buffer()?.as_entire_binding() }],
    });
    let mut encoder = device.create_command_encoder(&Default::default());
    let mut pass = encoder.begin_compute_pass(&Default::default());
    pass.set_pipeline(&pipeline);
    pass.set_bind_group(0, &group, &[]);
    pass.dispatch_workgroups(groups, 1, 1);
    drop(pass);
    gpu.queue().submit([encoder.finish()]);
    Ok(tensor.read::<f32>()?.into_iter().map(f32::to_bits).collect())
}
