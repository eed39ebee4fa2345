//! The basic blocks of what the driver prints: assembly, or its own IR where it has no disassembler for the chip.

/// A basic block.
#[derive(Default)]
pub struct Block {
    name: String,
    pub instructions: usize,
    pub multiply_adds: usize,
    reads_shared: bool,
    in_loop: bool,
}

const MULTIPLY_ADDS: [&str; 6] = ["v_fma", "v_pk_fma", "v_dual_fma", "v_mad", "v_dot", "v_wmma"];

/// The block of some loop that does the work: with the most multiply-adds among those that read workgroup memory (the
/// steps of a tiled product, not its rare second way), else among all; the longest where there is none.
pub fn hottest_block(assembly: &str) -> Block {
    let blocks = blocks(assembly);
    let rank = |b: &Block| (b.in_loop, b.reads_shared && b.multiply_adds > 0, b.multiply_adds, b.instructions);
    blocks.into_iter().max_by_key(rank).unwrap_or_default()
}

fn blocks(assembly: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = vec![];
    for line in assembly.lines().map(str::trim) {
        if let Some(number) = line.strip_prefix("BB") {
            let name = format!("BB{}", number.trim_end_matches(':'));
            blocks.push(Block { name, ..Block::default() });
        }
        // The IR names what an instruction defines: `v1: %9:v[3] = v_fma_f32 ..`.
        let code = line.split_once(" = ").map_or(line, |(_, code)| code);
        let operation = code.split_whitespace().next().unwrap_or_default();
        if !["s_", "v_", "ds_", "buffer_", "global_", "scratch_", "flat_", "p_"]
            .iter()
            .any(|p| operation.starts_with(p))
        {
            continue;
        }
        let Some(block) = blocks.last_mut() else { continue };
        block.instructions += 1;
        block.multiply_adds += usize::from(MULTIPLY_ADDS.iter().any(|m| operation.starts_with(m)));
        block.reads_shared |= operation.starts_with("ds_read") || operation.starts_with("ds_load");
        if operation.starts_with("s_cbranch") || operation == "s_branch" {
            let target = code.split_whitespace().nth(1).unwrap_or_default().trim_start_matches("block:");
            // A branch backwards closes a loop.
            if let Some(start) = blocks.iter().position(|b| b.name == target) {
                blocks[start..].iter_mut().for_each(|b| b.in_loop = true);
            }
        }
    }
    blocks
}
